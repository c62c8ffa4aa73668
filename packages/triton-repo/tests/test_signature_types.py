"""MLflow's types and Triton's: the whole table, read there and back, from MLflow's own classes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from triton_repo.signature import columns_of
from triton_repo.tensors import DATATYPES, datatype_of

#: Spelled out, so that the table is not checked against itself.
COLUMNS = {
    DataType.boolean: "BOOL",
    DataType.integer: "INT32",
    DataType.long: "INT64",
    DataType.float: "FP32",
    DataType.double: "FP64",
    DataType.string: "BYTES",
    DataType.binary: "BYTES",
    DataType.datetime: "BYTES",
}
TENSORS = {
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    **dict.fromkeys(("str", "bytes", "object"), "BYTES"),
    "bool": "BOOL",
}
REFUSED = ("datetime64[ns]", "timedelta64[s]", "complex64", "complex128", "longdouble")

plain = st.sampled_from(sorted(COLUMNS, key=str))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
objects = st.builds(
    lambda kinds: Object([Property(name, kind) for name, kind in kinds.items()]),
    st.dictionaries(names, plain, min_size=1, max_size=3),
)
as_json = objects | plain.map(Map) | st.just(AnyType())
shapes = st.lists(st.integers(1, 4096) | st.just(-1), max_size=4)


def read(spec: ColSpec | TensorSpec) -> Any:
    """The column of a signature with this alone, as MLflow writes it into MLmodel."""
    (column,) = columns_of(json.loads(json.dumps(Schema([spec]).to_dict())))
    return column


@given(kind=plain, levels=st.integers(0, 4), name=names, required=st.booleans())
def test_columns_and_arrays_of_them(
    kind: DataType, levels: int, name: str, *, required: bool
) -> None:
    """One value a row, or one variable dimension for each level of arrays."""
    nested: Any = kind
    for _ in range(levels):
        nested = Array(nested)
    column = read(ColSpec(nested, name, required=required))
    assert column.spec is not None
    assert (column.spec.name, column.spec.optional) == (name, not required)
    assert column.spec.datatype == COLUMNS[kind]
    assert column.spec.shape == ((-1, *[-1] * levels) if levels else (-1, 1))
    assert (column.is_json, column.is_list) == (False, levels > 0)
    # and back: what the datatype is called there is this type, or text that stands for it
    called = DATATYPES[column.spec.datatype].column
    assert called == ("string" if column.spec.datatype == "BYTES" else kind.name)
    assert datatype_of(column=called).name == column.spec.datatype


@given(kind=as_json, levels=st.integers(0, 3), name=names, required=st.booleans())
def test_objects_maps_and_anything_are_one_json_text_a_row(
    kind: Any, levels: int, name: str, *, required: bool
) -> None:
    nested = kind
    for _ in range(levels):
        nested = Array(nested)
    column = read(ColSpec(nested, name, required=required))
    assert (column.is_json, column.is_list) == (True, levels > 0)
    assert column.spec is not None
    assert (column.spec.datatype, column.spec.shape) == ("BYTES", (-1, 1))
    assert column.spec.optional is not required


@given(dtype=st.sampled_from(sorted(TENSORS)), shape=shapes, name=names)
def test_tensors_keep_their_shape(dtype: str, shape: list[int], name: str) -> None:
    column = read(TensorSpec(np.dtype(dtype), tuple(shape), name))
    assert column.spec is not None
    assert column.spec.datatype == TENSORS[dtype]
    assert column.spec.shape == tuple(shape)
    # and back: numpy's dtype of it is the one that was logged
    if TENSORS[dtype] != "BYTES":
        called = DATATYPES[column.spec.datatype].tensor
        assert np.dtype(called) == np.dtype(dtype)
        back = read(TensorSpec(np.dtype(called), tuple(shape), name))
        assert back.spec == column.spec


@pytest.mark.parametrize("dtype", REFUSED)
@given(shape=shapes, name=names)
def test_what_triton_has_no_type_for_is_said_of_the_column(
    dtype: str, shape: list[int], name: str
) -> None:
    column = read(TensorSpec(np.dtype(dtype), tuple(shape), name))
    assert column.spec is None
    assert (column.name, column.problem) == (name, "Triton has no such type")
    assert np.dtype(dtype).name in column.type


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits_of_a_fraction_are_none_of_its_types(dtype: str) -> None:
    """ml_dtypes' types, whose names numpy reads only where that is imported."""
    (column,) = columns_of(
        [{"type": "tensor", "name": "x", "tensor-spec": {"dtype": dtype, "shape": [-1]}}]
    )
    assert column.spec is None
    assert dtype in column.type


def test_bfloat16_is() -> None:
    (column,) = columns_of(
        [{"type": "tensor", "name": "x", "tensor-spec": {"dtype": "bfloat16", "shape": [-1, 2]}}]
    )
    assert column.spec is not None
    assert (column.spec.datatype, column.spec.shape) == ("BF16", (-1, 2))
