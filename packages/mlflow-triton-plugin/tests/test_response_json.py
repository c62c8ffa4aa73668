"""A prediction's JSON is strict, exact, and laid out as the reference's expected_output.json."""

from __future__ import annotations

import json
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mlflow.deployments import PredictionsResponse
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.predict import ModelSchema, to_tensors
from mlflow_triton_plugin.response import Prediction, outputs_from_json
from triton_repo.tensors import DATATYPES, TensorSpec

SHAPES = hnp.array_shapes(max_dims=3, max_side=3)
NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def prediction(**outputs: np.ndarray[Any, Any]) -> Prediction:
    return Prediction(outputs, model_name="m", model_version="3")


def strict(text: str) -> Any:
    """Parse as RFC 8259 does: no NaN, no Infinity; and the text must be ASCII."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


# -- the dict --------------------------------------------------------------------------------------


def test_a_prediction_is_mlflows_response_and_its_outputs_are_arrays() -> None:
    array = np.zeros((1, 2), np.float32)
    result = prediction(OUTPUT0=array)
    assert isinstance(result, PredictionsResponse)
    assert result["outputs"]["OUTPUT0"] is array
    assert (result["model_name"], result["model_version"]) == ("m", "3")


# -- layout ----------------------------------------------------------------------------------------


def test_the_layout_is_what_the_existing_plugin_writes() -> None:
    outputs = {
        "OUTPUT0": np.arange(16, dtype=np.int32)[np.newaxis],
        "OUTPUT1": np.zeros((1, 16), np.int32),
    }
    assert prediction(**outputs).to_json() == pd.DataFrame({"outputs": outputs}).to_json()


def test_nothing_but_the_outputs_is_written() -> None:
    assert prediction(y=np.array([1])).to_json() == '{"outputs":{"y":[1]}}'
    assert prediction().to_json() == '{"outputs":{}}'


def test_names_are_escaped() -> None:
    name = 'a"\\\n\u00e9'
    text = Prediction({name: np.array([1])}, model_name="m", model_version="1").to_json()
    assert strict(text) == {"outputs": {name: [1]}}


# -- exactness -------------------------------------------------------------------------------------


def bits(array: np.ndarray[Any, Any]) -> bytes:
    """The array's bytes, with every NaN the same one: JSON does not keep a NaN's payload."""
    if array.dtype.kind != "f":
        return array.tobytes()
    return np.where(np.isnan(array), array.dtype.type("nan"), array).tobytes()


@pytest.mark.parametrize("datatype", NUMBERS)
@settings(deadline=None)
@given(data=st.data())
def test_every_number_of_every_type_reads_back_bit_for_bit(
    datatype: str, data: st.DataObject
) -> None:
    array = data.draw(hnp.arrays(DATATYPES[datatype].numpy, SHAPES))
    if datatype == "BF16":
        with np.errstate(all="ignore"):
            array = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    text = prediction(y=array).to_json()
    strict(text)
    back = outputs_from_json(text, {"y": datatype})["y"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert bits(back) == bits(array)


@settings(deadline=None)
@given(hnp.arrays(np.uint32, 50))
def test_every_pattern_of_bits_of_a_float32_reads_back(patterns: np.ndarray[Any, Any]) -> None:
    array = patterns.view(np.float32)
    back = outputs_from_json(prediction(y=array).to_json(), {"y": "FP32"})["y"]
    assert bits(back) == bits(array)


@settings(deadline=None)
@given(hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False)))
def test_a_float32_is_written_no_longer_than_it_needs(array: np.ndarray[Any, Any]) -> None:
    written = prediction(y=array).to_json()[len('{"outputs":{"y":[') : -len("]}}")].split(",")
    for text, value in zip(written, array, strict=True):
        if np.isfinite(value):
            digits = text.split("e")[0].replace(".", "").replace("-", "").strip("0")
            shortest = np.format_float_scientific(value, trim="-").split("e")[0]
            assert len(digits) <= len(shortest.replace(".", "").replace("-", "").strip("0"))


def test_known_spellings() -> None:
    assert prediction(y=np.array([0.1, 16777216.0], np.float32)).to_json() == (
        '{"outputs":{"y":[0.1,16777216.0]}}'
    )
    assert prediction(y=np.array([0.1, 5e-324])).to_json() == '{"outputs":{"y":[0.1,5e-324]}}'
    assert prediction(y=np.array([2**64 - 1, 0], np.uint64)).to_json() == (
        '{"outputs":{"y":[18446744073709551615,0]}}'
    )
    assert prediction(y=np.array([[True], [False]])).to_json() == (
        '{"outputs":{"y":[[true],[false]]}}'
    )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ml_dtypes.bfloat16])
def test_what_is_not_finite_has_a_spelling(dtype: Any) -> None:
    array = np.array([[np.nan, 1.0], [np.inf, -np.inf]]).astype(dtype)
    assert prediction(y=array).to_json() == (
        '{"outputs":{"y":[["NaN",1.0],["Infinity","-Infinity"]]}}'
    )


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0).reshape(2, 6)[:, ::2],
        np.arange(6).reshape(2, 3).astype(">i4"),
        np.array([[np.nan, 1.0], [2.0, np.inf]]).T,
    ],
)
def test_any_layout_is_written_in_its_own_order(array: np.ndarray[Any, Any]) -> None:
    copied = np.array(array.tolist())
    assert strict(prediction(y=array).to_json()) == strict(prediction(y=copied).to_json())


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.float32(1.5), "1.5"),
        (np.float64("nan"), '"NaN"'),
        (np.zeros((0,)), "[]"),
        (np.zeros((2, 0)), "[[],[]]"),
        (np.array(b"a", object), '"a"'),
        (np.empty((1, 0), object), "[[]]"),
    ],
)
def test_tensors_without_dimensions_or_elements(array: Any, text: str) -> None:
    assert prediction(y=np.asarray(array)).to_json() == f'{{"outputs":{{"y":{text}}}}}'


# -- bytes -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(hnp.arrays(object, SHAPES, elements=st.binary() | st.text().map(
    lambda text: text.encode("utf-8", "surrogatepass"))))  # fmt: skip
def test_every_bytes_value_reads_back(array: np.ndarray[Any, Any]) -> None:
    text = prediction(y=array).to_json()
    strict(text)
    back = outputs_from_json(text, {"y": "BYTES"})["y"]
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_bytes_are_strings_where_they_are_utf_8_and_b64_where_not() -> None:
    array = np.array(["é".encode(), b"\xff\0", b""], dtype=object)
    assert strict(prediction(y=array).to_json())["outputs"]["y"] == ["é", {"b64": "/wA="}, ""]


def test_text_that_looks_like_a_spelling_stays_text() -> None:
    values = [b"NaN", b"Infinity", b'{"b64": "/wA="}', b"null"]
    array = np.array(values, dtype=object)
    back = outputs_from_json(prediction(y=array).to_json(), {"y": "BYTES"})["y"]
    assert back.tolist() == values


@pytest.mark.parametrize("array", [np.array(["é", "b"]), np.array(["é".encode(), b"b"])])
def test_numpys_own_text_arrays_are_written_too(array: np.ndarray[Any, Any]) -> None:
    assert strict(prediction(y=array).to_json())["outputs"]["y"] == ["é", "b"]


def test_an_output_can_be_the_next_models_input() -> None:
    array = np.array([[b"\xff"], [b"a"]], dtype=object)
    content = json.loads(prediction(y=array).to_json())
    schema = ModelSchema("n", "1", (TensorSpec("y", "BYTES", (-1, 1)),), ())
    assert to_tensors(content["outputs"], schema)["y"].tolist() == array.tolist()


# -- reading back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"outputs":{"z":[1]}}', "expected the outputs y; the JSON has z"),
        ('{"outputs":[1]}', "expected the outputs y; the JSON has none"),
        ("[1]", "expected the outputs y; the JSON has none"),
        (
            '{"outputs":{"y":[1.5]}}',
            "output y is not INT32: .*1.5 at \\[0\\] is not a whole number",
        ),
        ('{"outputs":{"y":["NaN"]}}', "output y is not INT32: .*'NaN' at \\[0\\] is text"),
    ],
)
def test_json_that_is_not_of_these_outputs_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outputs_from_json(text, {"y": "INT32"})


# -- frames and arrays -----------------------------------------------------------------------------


def test_the_one_output_is_an_ndarray_of_the_type_asked_for() -> None:
    array = np.array([[1.5]], np.float32)
    result = prediction(y=array)
    assert result.get_predictions("ndarray") is array
    assert result.get_predictions("ndarray", dtype="int8").tolist() == [[1]]


def test_several_outputs_are_no_ndarray() -> None:
    with pytest.raises(MlflowException, match=r"this model has 2 \(a, b\)") as caught:
        prediction(a=np.zeros(1), b=np.zeros(1)).get_predictions("ndarray")
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_frame_has_a_row_a_batch_row_and_a_column_an_output() -> None:
    vector, column = np.array([1, 2]), np.array([[3.0], [4.0]], np.float32)
    matrix = np.array([[5, 6], [7, 8]])
    frame = prediction(vector=vector, column=column, matrix=matrix).get_predictions()
    assert isinstance(frame, pd.DataFrame)
    assert frame["vector"].tolist() == [1, 2]
    assert frame["column"].dtype == np.float32
    assert frame["column"].tolist() == [3.0, 4.0]
    assert [row.tolist() for row in frame["matrix"]] == [[5, 6], [7, 8]]


def test_a_frame_of_outputs_can_be_the_next_models_input() -> None:
    outputs = {"a": np.array([[1.0], [2.0]], np.float32), "b": np.ones((2, 3), np.float32)}
    schema = ModelSchema(
        "n", "1", (TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 3))), (), 8
    )
    tensors = to_tensors(prediction(**outputs).get_predictions(), schema)
    assert {k: v.tolist() for k, v in tensors.items()} == {
        k: v.tolist() for k, v in outputs.items()
    }


def test_outputs_that_differ_in_rows_are_no_frame() -> None:
    with pytest.raises(MlflowException, match=r"differ in rows \(a 1, b 2\)"):
        prediction(a=np.zeros(1), b=np.zeros(2)).get_predictions()


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(MlflowException, match='"dataframe" or "ndarray", not "list"'):
        prediction(y=np.zeros(1)).get_predictions("list")  # type: ignore[call-overload]


# -- speed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("not_finite", [False, True])
def test_no_python_runs_for_each_element_of_a_large_array(
    not_finite: bool,  # noqa: FBT001 - a parameter
) -> None:
    """That is what makes it fast; `nox -s bench` measures how fast."""
    array = np.random.default_rng(1).random((16, 4096), dtype=np.float32)
    array[:, ::2] = np.nan if not_finite else 1
    answer, calls = prediction(y=array), 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        text = answer.to_json()
    finally:
        sys.setprofile(before)
    assert len(text) > array.size
    assert calls < array.size // 16
