"""Names, shapes and batches are checked before anything is sent; the message says the remedy."""

from __future__ import annotations

import timeit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlflow_triton_plugin.predict import InvalidInputError, ModelSchema, to_tensors
from triton_repo.tensors import TensorSpec


def model(*shape: int, max_batch_size: int = 8) -> ModelSchema:
    return ModelSchema("m", "3", (TensorSpec("x", "FP32", shape),), (), max_batch_size)


def pair(max_batch_size: int = 8, *, optional: bool = False) -> ModelSchema:
    inputs = (
        TensorSpec("INPUT0", "FP32", (-1, 2)),
        TensorSpec("INPUT1", "FP32", (-1, 2), optional),
    )
    return ModelSchema("m", "3", inputs, (), max_batch_size)


def refusal(inputs: object, schema: ModelSchema, at: str | None = "x") -> str:
    with pytest.raises(InvalidInputError) as caught:
        to_tensors(inputs, schema)
    assert caught.value.input == at
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"), [("INPUT_1", "INPUT1"), ("input0", "INPUT0"), ("Input1", "INPUT1")]
)
def test_an_unknown_input_is_refused_with_the_nearest_known_one(wrong: str, near: str) -> None:
    message = refusal({"INPUT0": [[1, 2]], wrong: [[1, 2]]}, pair(), at=wrong)
    assert f'm/3 has no input "{wrong}" (did you mean "{near}"?)' in message
    assert "it takes INPUT0 FP32[-1, 2], INPUT1 FP32[-1, 2]" in message


def test_an_input_like_no_other_is_refused_with_what_there_is() -> None:
    message = refusal({"something": 1}, pair(), at="something")
    assert message.startswith('m/3 has no input "something"; it takes INPUT0')


def test_a_missing_input_is_refused_with_its_type_and_shape() -> None:
    message = refusal({"INPUT0": [[1, 2]]}, pair(), at="INPUT1")
    assert message == "m/3 also needs INPUT1 FP32[-1, 2]; given: INPUT0"
    assert "given: nothing" in refusal({}, pair(), at="INPUT0")


def test_an_optional_input_may_be_left_out() -> None:
    assert list(to_tensors({"INPUT0": [[1, 2]]}, pair(optional=True))) == ["INPUT0"]


# -- shapes ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4]), min_size=1, max_size=4).map(tuple),
)
def test_a_shape_fits_if_every_dimension_is_equal_or_variable(
    shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    array = np.zeros(shape, np.float32)
    if len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True)):
        assert to_tensors({"x": array}, model(*wanted, max_batch_size=0))["x"] is array
    elif len(shape) == 1 and wanted in ((-1, 1), (-1, 1, 1), (-1, 1, 1, 1)):  # one value a row
        tensor = to_tensors({"x": array}, model(*wanted, max_batch_size=0))["x"]
        assert tensor.shape == (*shape, *wanted[1:])
    else:
        message = refusal({"x": array}, model(*wanted, max_batch_size=0))
        assert f"input x: shape {list(shape)} is not the model's {list(wanted)}; " in message


def test_a_missing_batch_dimension_is_not_added_but_said() -> None:
    message = refusal({"x": np.zeros(16)}, model(-1, 16))
    assert "shape [16] is not the model's [-1, 16]; the batch dimension is missing" in message
    assert "send [1, 16]" in message


def test_a_missing_first_dimension_is_not_called_batch_where_the_model_has_none() -> None:
    message = refusal({"x": np.zeros(16)}, model(-1, 16, max_batch_size=0))
    assert "the first dimension is missing" in message


def test_a_leading_1_too_many_is_not_dropped_but_said() -> None:
    message = refusal({"x": np.zeros((1, 4))}, model(4, max_batch_size=0))
    assert "one dimension too many, drop the first" in message


@pytest.mark.parametrize("value", [5, 2.5, "text", None, {1: 2}, np.float32(3)])
@pytest.mark.parametrize("shape", [(1,), (-1,), (-1, 4)])
def test_a_single_value_is_refused_with_a_shape_to_send(
    value: object, shape: tuple[int, ...]
) -> None:
    message = refusal({"x": value}, model(*shape))
    ones = [max(size, 1) for size in shape]
    assert f"is a single value, send nested lists or an array of shape such as {ones}" in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], [3]], "row [1] has 1 value, the rows before it have 2 values"),
        ([[1, 2], [3, 4], [5, 6, 7]], "row [2] has 3 values, the rows before it have 2 values"),
        ([[[1, 2], [3, 4]], [[5, 6], [7]]], "row [1, 1] has 1 value, the rows before it have 2"),
        ([[[1]], [[2, 3]]], "row [1, 0] has 2 values, the rows before it have 1 value"),
        ([[1, 2], 3], "row [1] has a single value, the rows before it have 2 values"),
        ([[1, 2], "ab"], "row [1] has a single value"),
        ([[1, 2], []], "row [1] has 0 values"),
        ([np.array([1, 2]), np.array([3])], "row [1] has 1 value"),
    ],
)
def test_ragged_rows_are_refused_by_the_first_odd_one(rows: object, message: str) -> None:
    assert f"input x: ragged: {message}" in refusal({"x": rows}, model(-1, 2))
    if isinstance(rows, list):
        cells = np.empty(len(rows), dtype=object)
        cells[:] = rows
        assert f"input x: ragged: {message}" in refusal({"x": cells}, model(-1, 2))


@settings(deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=4)))
def test_nested_lists_have_the_shape_of_their_nesting(
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    schema = model(*array.shape, max_batch_size=0)
    tensor = to_tensors({"x": array.tolist()}, schema)["x"]
    np.testing.assert_array_equal(tensor, array)


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_of_max_batch_size_is_sent_and_one_more_is_refused() -> None:
    assert to_tensors([[1, 2]] * 8, model(-1, 2))["x"].shape == (8, 2)
    message = refusal([[1, 2]] * 9, model(-1, 2))
    assert "9 rows are more than m/3 takes at once (max_batch_size 8)" in message


def test_no_rows_are_no_batch() -> None:
    """Triton would say that the bytes of one row are missing."""
    assert "input x has no rows" in refusal(np.zeros((0, 2)), model(-1, 2))


def test_batches_of_different_sizes_are_refused_naming_both() -> None:
    inputs = {"INPUT0": np.zeros((2, 2)), "INPUT1": np.zeros((3, 2))}
    assert "INPUT0 has 2, INPUT1 has 3 rows" in refusal(inputs, pair(), at=None)


def test_a_model_that_does_not_batch_takes_any_first_dimension() -> None:
    inputs = {"INPUT0": np.zeros((20, 2)), "INPUT1": np.zeros((3, 2))}
    assert [t.shape[0] for t in to_tensors(inputs, pair(max_batch_size=0)).values()] == [20, 3]


# -- speed -----------------------------------------------------------------------------------------


def test_right_arrays_cost_microseconds_not_milliseconds() -> None:
    """Measured at 10 µs; the bound only catches work that grew with the data or the imports."""
    array = np.zeros((8, 2), np.float32)
    inputs, schema = {"INPUT0": array, "INPUT1": array}, pair()
    tensors = to_tensors(inputs, schema)
    assert tensors["INPUT0"] is array
    best_s = min(timeit.repeat(lambda: to_tensors(inputs, schema), number=200, repeat=5)) / 200
    assert best_s < 200e-6
