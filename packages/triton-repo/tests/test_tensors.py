"""One table joins MLflow's, Triton's, ONNX's and numpy's types; every row is read both ways."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from triton_repo.errors import ConfigError
from triton_repo.tensors import DATATYPES, Datatype, TensorSpec, datatype_of

#: Spelled out: the table is checked against something that is not itself.
ROWS = [
    ("BOOL", "TYPE_BOOL", "BOOL", "bool", "boolean"),
    ("UINT8", "TYPE_UINT8", "UINT8", "uint8", None),
    ("UINT16", "TYPE_UINT16", "UINT16", "uint16", None),
    ("UINT32", "TYPE_UINT32", "UINT32", "uint32", None),
    ("UINT64", "TYPE_UINT64", "UINT64", "uint64", None),
    ("INT8", "TYPE_INT8", "INT8", "int8", None),
    ("INT16", "TYPE_INT16", "INT16", "int16", None),
    ("INT32", "TYPE_INT32", "INT32", "int32", "integer"),
    ("INT64", "TYPE_INT64", "INT64", "int64", "long"),
    ("FP16", "TYPE_FP16", "FLOAT16", "float16", None),
    ("FP32", "TYPE_FP32", "FLOAT", "float32", "float"),
    ("FP64", "TYPE_FP64", "DOUBLE", "float64", "double"),
    ("BF16", "TYPE_BF16", "BFLOAT16", "bfloat16", None),
    ("BYTES", "TYPE_STRING", "STRING", "str", "string"),
]
rows = pytest.mark.parametrize(
    ("name", "config_name", "onnx_name", "tensor", "column"), ROWS, ids=[row[0] for row in ROWS]
)


@rows
def test_every_row_is_found_by_each_of_its_names(
    name: str, config_name: str, onnx_name: str, tensor: str, column: str | None
) -> None:
    row = DATATYPES[name]
    number = onnx.TensorProto.DataType.Value(onnx_name)
    assert row == Datatype(name, config_name, row.numpy, number, tensor, column)
    assert datatype_of(config_name=config_name) is row
    assert datatype_of(onnx=number) is row
    assert datatype_of(tensor=tensor) is row
    if column is not None:
        assert datatype_of(column=column) is row


@rows
def test_every_row_is_triton_s_own_mapping(
    name: str, config_name: str, onnx_name: str, tensor: str, column: str | None
) -> None:
    """As tritonclient converts arrays, and as model_config.proto names the types."""
    del onnx_name, tensor, column
    assert config_name in model_config_pb2.DataType.keys()  # noqa: SIM118 - no mapping
    if name != "BF16":  # arrays of it are float32, or ml_dtypes' where tritonclient finds that
        assert DATATYPES[name].numpy == np.dtype(triton_to_np_dtype(name))
        assert np_to_triton_dtype(DATATYPES[name].numpy) == name


def test_the_table_has_every_type_that_triton_has() -> None:
    ours = {row.config_name for row in DATATYPES.values()}
    assert ours == set(model_config_pb2.DataType.keys()) - {"TYPE_INVALID"}
    assert [row[0] for row in ROWS] == list(DATATYPES)


@given(
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
)
def test_a_numpy_dtype_keeps_its_kind_and_width(dtype: np.dtype[np.generic]) -> None:
    """In either byte order, by its name and by its code."""
    for spelled in (dtype.name, dtype.str):
        assert datatype_of(tensor=spelled).numpy == dtype.newbyteorder("=")


@given(
    npst.byte_string_dtypes(endianness="?", max_len=50)
    | npst.unicode_string_dtypes(endianness="?", max_len=50)
    | st.sampled_from([np.dtype(object)])
)
def test_strings_of_any_length_are_bytes(dtype: np.dtype[np.generic]) -> None:
    """The client library itself has no answer for `<U5`."""
    assert datatype_of(tensor=dtype.str).name == "BYTES"


@pytest.mark.parametrize("tensor", ["str", "string", "bytes", "object"])
def test_mlflow_s_names_of_text_are_bytes(tensor: str) -> None:
    assert datatype_of(tensor=tensor).name == "BYTES"


@pytest.mark.parametrize(
    ("column", "name"),
    [("string", "BYTES"), ("binary", "BYTES"), ("datetime", "BYTES"), ("integer", "INT32")],
)
def test_columns_without_a_native_type_travel_as_bytes(column: str, name: str) -> None:
    """A datetime is ISO-8601 text; binary is never decoded."""
    assert datatype_of(column=column).name == name


@given(
    npst.complex_number_dtypes(endianness="?")
    | npst.datetime64_dtypes(endianness="?")
    | npst.timedelta64_dtypes(endianness="?")
    | npst.array_dtypes()
    | st.sampled_from([np.dtype(np.longdouble), np.dtype("V8")])
)
def test_what_triton_has_no_type_for_is_refused_by_name(dtype: np.dtype[np.generic]) -> None:
    for spelled in (dtype.name, dtype.str):
        with pytest.raises(ConfigError) as caught:
            datatype_of(tensor=spelled)
        assert spelled in str(caught.value)
        assert caught.value.field == "data_type"


@pytest.mark.parametrize(
    "name",
    ["float8_e4m3fn", "float8_e5m2", "int4", "complex64", "nothing", "", "i4,,", "(2,", "\ud800"],
)
def test_odd_dtype_names_are_refused_and_nothing_else(name: str) -> None:
    """Some of them numpy parses as Python, and raises what Python raises."""
    with pytest.raises(ConfigError):
        datatype_of(tensor=name)


@given(st.text(max_size=12))
def test_any_text_is_a_type_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert datatype_of(tensor=text).name in DATATYPES
    with suppress(ConfigError):
        assert datatype_of(column=text).name in DATATYPES
    with suppress(ConfigError):
        assert datatype_of(config_name=text).name in DATATYPES


@pytest.mark.parametrize(
    "onnx_name",
    ["UNDEFINED", "COMPLEX64", "COMPLEX128", "FLOAT8E4M3FN", "FLOAT8E5M2", "UINT4", "INT4"],
)
def test_onnx_types_that_triton_has_not_are_refused(onnx_name: str) -> None:
    with pytest.raises(ConfigError, match="ONNX type"):
        datatype_of(onnx=onnx.TensorProto.DataType.Value(onnx_name))


@pytest.mark.parametrize("column", ["array", "object", "map", "any", "sparkml_vector", "", "LONG"])
def test_mlflow_types_that_need_json_are_refused(column: str) -> None:
    with pytest.raises(ConfigError, match="MLflow type"):
        datatype_of(column=column)


def test_a_spec_says_what_it_is() -> None:
    spec = TensorSpec("x", "BF16", (-1, 3))
    assert str(spec) == "x BF16[-1, 3]"
    assert spec.dtype == np.dtype("float32")
