"""Values of every type that MLflow has, drawn at random, there and back.

A model on Triton is given what it is given in process, and its answer comes back as it was.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from mlflow.deployments import get_deploy_client
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from . import custom

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

    Model = tuple[str, Any]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
longs = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
#: pandas' own range, whose ends MLflow cannot write.
instants = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))  # noqa: DTZ001
doubles = st.floats(allow_nan=True)
words = st.sampled_from(["NaN", "Infinity", "-Infinity", '"NaN', "\\u004eaN", '"\\u004eaN"'])
plain = texts | words | longs | doubles | st.booleans() | st.none()

KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "boolean": (DataType.boolean, st.booleans()),
    "integer": (DataType.integer, st.integers(-(2**31), 2**31 - 1)),
    "long": (DataType.long, longs),
    "float": (DataType.float, st.floats(width=32)),
    "double": (DataType.double, st.floats()),
    "string": (DataType.string, texts),
    "binary": (DataType.binary, st.binary(max_size=20)),
    "datetime": (DataType.datetime, instants),
    "doubles": (Array(DataType.double), st.lists(finite, min_size=2, max_size=2)),
    "strings": (Array(DataType.string), st.lists(texts, min_size=2, max_size=2)),
    "levels": (
        Array(Array(DataType.long)),
        st.lists(st.lists(longs, min_size=1, max_size=1), min_size=3, max_size=3),
    ),
    "object": (
        Object([Property("n", DataType.long), Property("s", DataType.string, required=False)]),
        st.fixed_dictionaries({"n": longs}, optional={"s": texts}),
    ),
    "map": (Map(DataType.double), st.dictionaries(texts, doubles, min_size=1, max_size=3)),
    "any": (
        AnyType(),
        st.lists(plain, max_size=3) | st.dictionaries(texts | words, plain, max_size=3),
    ),
    "objects": (
        Array(Object([Property("n", DataType.long)])),
        st.lists(st.fixed_dictionaries({"n": longs}), min_size=1, max_size=3),
    ),
}
DTYPES = {"integer": "int32", "float": "float32"}
TENSORS = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("bool", "float16", "float32", "float64"),
)

drawn = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@st.composite
def frames(draw: Callable[..., Any]) -> pd.DataFrame:
    rows = draw(st.integers(1, 5))
    columns = {
        name: pd.Series(
            draw(st.lists(values, min_size=rows, max_size=rows)), dtype=DTYPES.get(name)
        )
        for name, (_, values) in KINDS.items()
    }
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


@pytest.fixture(scope="module")
def clients(
    pyfunc_client: TritonDeploymentClient, pyfunc_triton: LocalTriton
) -> list[TritonDeploymentClient]:
    """Over gRPC and over HTTP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_URL", pyfunc_triton.http_url)
        return [pyfunc_client, get_deploy_client("triton")]


@pytest.fixture(scope="module")
def columns(deploy: Deploy) -> Model:
    schema = Schema([ColSpec(kind, name) for name, (kind, _) in KINDS.items()])
    name, uri = deploy(custom.Echo(), signature=ModelSignature(schema, schema))
    return name, mlflow.pyfunc.load_model(uri)


@drawn
@given(frame=frames())
def test_a_row_of_every_type_is_the_same_there(
    columns: Model, clients: list[TritonDeploymentClient], frame: pd.DataFrame
) -> None:
    name, model = columns
    wanted = model.predict(frame)
    for client in clients:
        check_columns(client.predict(name, frame)["outputs"], wanted)


def check_columns(outputs: dict[str, Any], wanted: pd.DataFrame) -> None:
    assert list(outputs) == list(KINDS)
    for column, array in outputs.items():
        assert len(array) == len(wanted)
        answered, local = plainly(column, array), wanted[column].tolist()
        if column in ("float", "double"):
            np.testing.assert_array_equal(answered, local)
            np.testing.assert_array_equal(np.signbit(answered), np.signbit(local))
        elif column == "datetime":
            assert [pd.Timestamp(text) for text in answered] == local
        else:
            assert as_lists(answered) == as_lists(local)


def plainly(column: str, array: Any) -> list[Any]:
    """One value a row, as Python has it."""
    kind = KINDS[column][0]
    if column in ("doubles", "strings", "levels"):
        values: list[Any] = array.tolist()
    else:
        values = array.reshape(-1).tolist()
    is_text = kind in (DataType.string, DataType.datetime) or column == "strings"
    return decoded(values) if is_text else values


def decoded(values: Any) -> Any:
    return [decoded(each) for each in values] if isinstance(values, list) else values.decode()


def as_lists(value: Any) -> Any:
    """MLflow makes arrays of lists; and NaN equals nothing."""
    if isinstance(value, float) and not np.isfinite(value):
        return f"the float {value}"
    if isinstance(value, np.ndarray):
        return [as_lists(each) for each in value.tolist()]
    if isinstance(value, list):
        return [as_lists(each) for each in value]
    if isinstance(value, dict):
        return {key: as_lists(each) for key, each in value.items()}
    return value


@pytest.fixture(scope="module")
def tensors(deploy: Deploy) -> Model:
    schema = Schema([TensorSpec(np.dtype(dtype), (-1, 2), dtype) for dtype in TENSORS])
    name, uri = deploy(custom.Echo(), signature=ModelSignature(schema, schema))
    return name, mlflow.pyfunc.load_model(uri)


@drawn
@given(rows=st.integers(1, 4), data=st.data())
def test_a_tensor_of_every_type_is_the_same_there(
    tensors: Model, clients: list[TritonDeploymentClient], rows: int, data: st.DataObject
) -> None:
    """To the bit, NaN and the sign of 0 included."""
    name, model = tensors
    given = {dtype: data.draw(npst.arrays(np.dtype(dtype), (rows, 2))) for dtype in TENSORS}
    wanted = model.predict(given)
    for client in clients:
        outputs = client.predict(name, given)["outputs"]
        assert list(outputs) == list(TENSORS)
        for dtype, array in outputs.items():
            assert array.dtype == wanted[dtype].dtype == np.dtype(dtype)
            assert array.tobytes() == wanted[dtype].tobytes()
