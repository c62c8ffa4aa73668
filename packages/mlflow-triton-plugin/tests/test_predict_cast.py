"""Values become the model's type where that loses nothing, and are refused where it does."""

from __future__ import annotations

import base64
import datetime as dt
import sys
from decimal import Decimal
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlflow_triton_plugin.predict import InvalidInputError, ModelSchema, to_tensors
from mlflow_triton_plugin.predict._arrays import array_of
from triton_repo.tensors import DATATYPES, TensorSpec

INTEGERS = [name for name in DATATYPES if "INT" in name]
FLOATS = ["FP16", "BF16", "FP32", "FP64"]
SIGNIFICAND_BITS = {"FP16": 11, "BF16": 8, "FP32": 24, "FP64": 53}
LARGEST = {
    "FP16": 65504.0,
    "BF16": float.fromhex("0x1.fep127"),
    "FP32": float.fromhex("0x1.fffffep127"),
    "FP64": sys.float_info.max,
}
NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def one(datatype: str, *shape: int) -> ModelSchema:
    """A model with the one input `x`; of shape [-1] unless said otherwise."""
    return ModelSchema("m", "1", (TensorSpec("x", datatype, shape or (-1,)),), ())


def cast(values: object, datatype: str) -> np.ndarray[Any, Any]:
    return to_tensors({"x": values}, one(datatype))["x"]


def refusal(values: object, datatype: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        cast(values, datatype)
    assert caught.value.input == "x"
    message = str(caught.value)
    assert message.startswith("input x: ")
    assert "\n" not in message
    return message


# -- the right array is left alone -----------------------------------------------------------------


@pytest.mark.parametrize("datatype", NUMBERS)
def test_an_array_of_the_right_type_is_passed_through_itself(datatype: str) -> None:
    array = np.ones(3, dtype=DATATYPES[datatype].numpy)
    assert cast(array, datatype) is array


def test_an_array_of_bytes_objects_is_passed_through_itself() -> None:
    array = np.array([b"a", b"\xff"], dtype=object)
    assert cast(array, "BYTES") is array


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "swapped", "read-only"])
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BYTES"])
def test_any_layout_becomes_c_order_with_the_same_values(layout: str, datatype: str) -> None:
    plain = np.arange(12).reshape(3, 4).astype(DATATYPES[datatype].numpy)
    if datatype == "BYTES":
        plain = np.array([[str(v).encode() for v in row] for row in plain], dtype=object)
    wide = np.repeat(plain, 2, axis=1)
    laid_out = {
        "fortran": np.asfortranarray(plain),
        "strided": wide[:, ::2],
        "reversed": plain[::-1, ::-1].copy()[::-1, ::-1],
        "swapped": plain.astype(plain.dtype.newbyteorder()),
        "read-only": plain.copy(),
    }[layout]
    laid_out.flags.writeable = layout != "read-only"
    tensor = to_tensors({"x": laid_out}, one(datatype, -1, 4))["x"]
    assert tensor.flags.c_contiguous
    assert tensor.dtype == DATATYPES[datatype].numpy
    assert tensor.tolist() == plain.tolist()


# -- integers --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(INTEGERS), st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=5))
def test_integers_are_exact_or_refused_with_the_first_one_out_of_range(
    datatype: str, values: list[int]
) -> None:
    limits = np.iinfo(datatype.lower())
    outside = [i for i, v in enumerate(values) if not limits.min <= v <= limits.max]
    if outside:
        message = refusal(values, datatype)
        assert f"{values[outside[0]]} at [{outside[0]}]" in message
        assert f"{limits.min} to {limits.max}" in message
    else:
        assert cast(values, datatype).tolist() == values


@settings(deadline=None)
@given(
    st.sampled_from(INTEGERS), hnp.arrays(hnp.integer_dtypes() | hnp.unsigned_integer_dtypes(), 4)
)
def test_integer_arrays_of_any_width_keep_their_values_or_are_refused(
    datatype: str, array: np.ndarray[Any, Any]
) -> None:
    limits = np.iinfo(datatype.lower())
    if all(limits.min <= v <= limits.max for v in array.tolist()):
        assert cast(array, datatype).tolist() == array.tolist()
    else:
        assert "is outside" in refusal(array, datatype)


@settings(deadline=None)
@given(st.sampled_from(INTEGERS), hnp.arrays(hnp.floating_dtypes(sizes=(16, 32, 64)), 3))
def test_floats_become_integers_only_if_whole_and_in_range(
    datatype: str, array: np.ndarray[Any, Any]
) -> None:
    limits = np.iinfo(datatype.lower())

    def fits(value: float) -> bool:
        return value.is_integer() and limits.min <= int(value) <= limits.max

    values = array.astype(np.float64).tolist()
    if all(map(fits, values)):
        assert cast(array, datatype).tolist() == [int(v) for v in values]
    else:
        first = next(i for i, v in enumerate(values) if not fits(v))
        assert f" at [{first}] " in refusal(array, datatype)


@pytest.mark.parametrize("value", [2.0**63, -(2.0**63) - 1025, 1e300, float("inf"), float("nan")])
def test_floats_next_to_the_limits_of_int64_do_not_wrap(value: float) -> None:
    refusal([value], "INT64")


def test_the_smallest_int64_survives_from_a_float() -> None:
    assert cast([-(2.0**63)], "INT64").tolist() == [-(2**63)]


@settings(deadline=None)
@given(st.sampled_from(FLOATS), st.lists(st.integers(-(2**1030), 2**1030), min_size=1, max_size=4))
def test_integers_become_floats_only_if_exactly_representable(
    datatype: str, values: list[int]
) -> None:
    bits, limit = SIGNIFICAND_BITS[datatype], int(LARGEST[datatype])

    def fits(value: int) -> bool:
        return abs(value) <= limit and abs(value) // (value & -value or 1) < 2**bits

    if all(map(fits, values)):
        assert [int(v) for v in cast(values, datatype)] == values
    else:
        first = next(i for i, v in enumerate(values) if not fits(v))
        assert f" at [{first}] " in refusal(values, datatype)


@settings(deadline=None)
@example("FP16", np.array([-(2**15)] * 4, np.int16))
@example("BF16", np.array([-(2**15)] * 4, np.int16))
@example("BF16", np.array([-(2**31)] * 4, np.int32))
@example("FP32", np.array([-(2**31)] * 4, np.int32))
@example("FP64", np.array([-(2**63)] * 4, np.int64))
@given(st.sampled_from(FLOATS), hnp.arrays(hnp.integer_dtypes() | hnp.unsigned_integer_dtypes(), 4))
def test_integer_arrays_become_floats_only_if_every_value_is_kept(
    datatype: str, array: np.ndarray[Any, Any]
) -> None:
    try:
        tensor = cast(array, datatype)
    except InvalidInputError:
        wanted = ml_dtypes.bfloat16 if datatype == "BF16" else DATATYPES[datatype].numpy
        with np.errstate(over="ignore"):
            rounded = array.astype(wanted).astype(np.float64).tolist()
        assert rounded != array.tolist()
    else:
        assert [int(v) for v in tensor] == array.tolist()


def test_an_id_that_fp32_cannot_hold_is_refused_and_the_remedy_named() -> None:
    message = refusal([16777216, 16777217], "FP32")
    assert "16777217 at [1] has no exact FP32; send it as a float" in message


def test_a_large_integer_beside_a_float_is_not_rounded_on_the_way() -> None:
    assert cast([1.0, 2**53 + 1], "INT64").tolist() == [1, 2**53 + 1]
    assert cast([-1, 2**63], "FP64").tolist() == [-1.0, 2.0**63]
    assert "9007199254740993 at [1]" in refusal([1.5, 2**53 + 1], "FP64")


@pytest.mark.parametrize(
    ("datatype", "integer"), [("FP16", 2049), ("BF16", 257), ("FP32", 2**24 + 1)]
)
@pytest.mark.parametrize("beside", [0.5, np.float32(0.5), float("nan"), None])
def test_an_integer_beside_a_float_is_exact_or_refused(
    datatype: str, integer: int, beside: object
) -> None:
    for values in ([[integer, beside]], [(beside, integer)], [np.array([integer]), [beside]]):
        with pytest.raises(InvalidInputError, match=rf"{integer} at .* has no exact {datatype}"):
            to_tensors({"x": values}, one(datatype, -1, -1))
    assert cast([integer - 1, beside], datatype)[0] == integer - 1
    assert cast([float(integer), 0.5], datatype)[1] == 0.5


def test_integer_columns_beside_float_columns_are_exact_or_refused() -> None:
    frame = pd.DataFrame({"a": [2**24 + 1], "b": [0.5]})
    with pytest.raises(InvalidInputError, match=r"16777217 at \[0, 0\] has no exact FP32"):
        to_tensors(frame, one("FP32", -1, 2))
    assert to_tensors(frame - 1.0, one("FP32", -1, 2))["x"].tolist() == [[2.0**24, -0.5]]


def test_lists_of_floats_alone_do_not_become_objects() -> None:
    for values in ([[300.0, 0.5]], [(300.0,), [True]], [np.array([300.0]), [0.5]]):
        assert array_of(values, "x").dtype == np.float64


def test_a_large_integer_column_beside_a_float_column_is_not_rounded_on_the_way() -> None:
    frame = pd.DataFrame({"a": [2**53 + 1], "b": [1.0]})
    assert to_tensors(frame, one("INT64", -1, 2))["x"].tolist() == [[2**53 + 1, 1]]


# -- floats ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(hnp.arrays(np.float64, 4))
def test_float64_is_rounded_to_the_nearest_fp32_unless_that_makes_infinity(
    array: np.ndarray[Any, Any],
) -> None:
    with np.errstate(all="ignore"):
        rounded = array.astype(np.float32)
    overflowed = np.isinf(rounded) & np.isfinite(array)
    if overflowed.any():
        message = refusal(array, "FP32")
        assert f" at [{overflowed.argmax()}] is too large for FP32" in message
    else:
        np.testing.assert_array_equal(cast(array, "FP32"), rounded)


@settings(deadline=None)
@given(hnp.arrays(np.float32, 4))
def test_float32_is_rounded_to_the_nearest_bf16_ties_to_even(array: np.ndarray[Any, Any]) -> None:
    with np.errstate(all="ignore"):
        rounded = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    if (np.isinf(rounded) & np.isfinite(array)).any():
        assert "is too large for BF16" in refusal(array, "BF16")
    else:
        np.testing.assert_array_equal(cast(array, "BF16"), rounded)


def test_a_bf16_array_keeps_its_values() -> None:
    array = np.array([1.5, -3.0], dtype=ml_dtypes.bfloat16)
    assert cast(array, "BF16").tolist() == [1.5, -3.0]
    assert cast([array[:1], array[1:]][0], "FP32").tolist() == [1.5]


def test_rounding_to_bf16_never_makes_infinity_of_nan() -> None:
    payload_in_the_low_bits = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32)
    tensor = cast(payload_in_the_low_bits.view(np.float32), "BF16")
    assert np.isnan(tensor).all()
    assert not (tensor.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_and_infinity_pass_to_floats(datatype: str) -> None:
    tensor = cast([float("nan"), float("inf"), float("-inf")], datatype)
    assert np.isnan(tensor[0])
    assert tensor[1:].tolist() == [float("inf"), float("-inf")]


@pytest.mark.parametrize("missing", [None, pd.NA, pd.NaT, float("nan")])
def test_a_missing_value_is_nan_for_floats(missing: object) -> None:
    assert np.isnan(cast([missing, 1.0], "FP32")[0])


@pytest.mark.parametrize("missing", [None, pd.NA, pd.NaT, float("nan"), np.datetime64("NaT")])
@pytest.mark.parametrize("datatype", ["BOOL", "INT32", "UINT8", "BYTES"])
def test_a_missing_value_is_refused_elsewhere_with_its_position(
    missing: object, datatype: str
) -> None:
    present: object = "text" if datatype == "BYTES" else 1
    assert f"at [1] is a missing value, and {datatype} has none" in refusal(
        [present, missing], datatype
    )


# -- booleans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", NUMBERS)
def test_booleans_become_0_and_1(datatype: str) -> None:
    assert cast([True, False], datatype).tolist() == [1, 0]
    assert cast(np.array([True, False]), datatype).tolist() == [1, 0]


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], np.array([0, 1], np.uint8), [False, 1]])
def test_0_and_1_become_booleans(values: object) -> None:
    tensor = cast(values, "BOOL")
    assert tensor.dtype == bool
    assert tensor.tolist() == [False, True]


@pytest.mark.parametrize("value", [2, -1, 0.5, 2**70])
def test_no_other_number_becomes_a_boolean(value: float) -> None:
    assert f"{value} at [1] is neither 0 nor 1" in refusal([1, value], "BOOL")


# -- text and bytes --------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.binary(), min_size=1))
def test_text_is_sent_as_utf_8_and_bytes_as_they_are(values: list[str | bytes]) -> None:
    expected = [v.encode() if isinstance(v, str) else v for v in values]
    assert cast(values, "BYTES").tolist() == expected
    assert cast(np.array(values, dtype=object), "BYTES").tolist() == expected


@pytest.mark.parametrize(
    "array",
    [
        np.array(["é", "bc"]),
        np.array(["é".encode(), b"bc"]),
        pd.array(["é", "bc"], dtype="string"),
        pd.Categorical(["é", "bc"]),
        [np.str_("é"), bytearray(b"bc")],
        [memoryview("é".encode()), np.bytes_(b"bc")],
    ],
)
def test_every_kind_of_text_array_becomes_an_object_array_of_bytes(array: object) -> None:
    tensor = cast(array, "BYTES")
    assert tensor.dtype == object
    assert tensor.tolist() == ["é".encode(), b"bc"]
    assert {type(value) for value in tensor} == {bytes}


def test_trailing_nuls_of_bytes_in_a_list_are_kept() -> None:
    assert cast([b"a\0", b"\0\0"], "BYTES").tolist() == [b"a\0", b"\0\0"]


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("text", ["1", "0.5", "true", "NaN"])
def test_text_is_never_parsed_to_a_number(datatype: str, text: str) -> None:
    assert f"{text!r} at [1] is text, which is never parsed" in refusal([1, text], datatype)
    assert f"{text!r} at [0] is text" in refusal(np.array([text]), datatype)


@pytest.mark.parametrize("number", [123, 1.5, True, np.int64(7)])
def test_a_number_for_bytes_is_refused_with_what_read_json_does_to_text(number: object) -> None:
    message = refusal(["a", number], "BYTES")
    assert "at [1] is a number, and x takes BYTES" in message
    assert '{"inputs": {"x": [...]}}' in message


def test_a_lone_surrogate_has_no_utf_8() -> None:
    assert "at [1] has a lone surrogate" in refusal(["a", "\ud800"], "BYTES")


def test_the_b64_spelling_that_predictions_are_written_in_is_read() -> None:
    assert cast([{"b64": "/wA="}, "a"], "BYTES").tolist() == [b"\xff\0", b"a"]
    assert "at [0] is not valid base64" in refusal([{"b64": "?"}, "a"], "BYTES")


@pytest.mark.parametrize(
    ("date", "text"),
    [
        (pd.Timestamp("2020-01-02"), b"2020-01-02T00:00:00"),
        (pd.Timestamp("2020-01-02 03:04:05.5", tz="UTC"), b"2020-01-02T03:04:05.500000+00:00"),
        (dt.datetime(2020, 1, 2, 3, 4, 5), b"2020-01-02T03:04:05"),  # noqa: DTZ001 - naive ones exist
        (dt.date(2020, 1, 2), b"2020-01-02"),
        (np.datetime64("2020-01-02T03:04:05.500", "ns"), b"2020-01-02T03:04:05.500000"),
        (np.datetime64("2020-01-02T00:00:00.000000001"), b"2020-01-02T00:00:00.000000001"),
        (np.datetime64("2020-01-02T00:00:00", "ns"), b"2020-01-02T00:00:00"),
    ],
)
def test_a_date_becomes_iso_8601_text(date: object, text: bytes) -> None:
    assert cast([date], "BYTES").tolist() == [text]
    assert cast(np.array([date]), "BYTES").tolist() == [text]


@settings(deadline=None)
@given(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)))  # noqa: DTZ001
def test_every_spelling_of_a_date_gives_the_same_text(date: dt.datetime) -> None:
    spellings = [date, pd.Timestamp(date), np.datetime64(date), np.datetime64(date, "ns")]
    assert set(cast(spellings, "BYTES")) == {date.isoformat().encode()}


def of_type(values: object, bytes_type: str, *shape: int) -> list[Any]:
    spec = TensorSpec("x", "BYTES", shape or (-1,))
    schema = ModelSchema("m", "1", (spec,), (), bytes_types={"x": bytes_type})
    found: list[Any] = to_tensors({"x": values}, schema)["x"].tolist()
    return found


def type_refusal(value: object, bytes_type: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        of_type([value], bytes_type)
    assert caught.value.input == "x"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_for_a_binary_column_is_base64() -> None:
    assert of_type(["Af8=", b"Af8=", {"b64": "Af8="}], "binary") == [b"\1\xff", b"Af8=", b"\1\xff"]
    assert of_type(pd.Series(["Af8=", ""]), "binary") == [b"\1\xff", b""]
    assert of_type([["Af8=", "/wA="]], "binary", -1, -1) == [[b"\1\xff", b"\xff\0"]]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_base64_as_mlflow_writes_it_into_input_examples_is_read(content: bytes) -> None:
    assert of_type([base64.encodebytes(content).decode()], "binary") == [content]


@pytest.mark.parametrize("text", ["Af8", "hello!", "é", "_-8="])
def test_other_text_for_a_binary_column_is_refused(text: str) -> None:
    assert "at [0] is not valid base64, and x takes binary" in type_refusal(text, "binary")


@pytest.mark.parametrize(
    "date", [dt.date(2024, 1, 2), pd.Timestamp("2024-01-02"), np.datetime64("2024-01-02", "ns")]
)
def test_a_date_is_taken_by_datetime_columns_only(date: Any) -> None:
    """`pandas.read_json` makes one of text, whose spelling is lost."""
    for bytes_type in ("string", "binary", "bytes"):
        said = type_refusal(date, bytes_type)
        assert f"at [0] is a date, and x takes {bytes_type}. If it was text: " in said
        assert '{"inputs": {"x": [...]}}' in said
    assert of_type([date], "datetime")[0].startswith(b"2024-01-02")
    assert of_type(["2024-01-02"], "datetime") == [b"2024-01-02"]


@pytest.mark.parametrize("value", [b"a", np.bytes_(b"a"), {"b64": "YQ=="}])
def test_bytes_are_refused_by_string_columns_and_taken_by_tensors_of_text(value: object) -> None:
    assert "at [0] is bytes, and x takes strings" in type_refusal(value, "string")
    assert of_type([value, "é"], "bytes") == [b"a", "é".encode()]


def test_a_missing_value_or_a_number_is_refused_whatever_bytes_hold() -> None:
    for bytes_type in ("string", "binary", "datetime", "bytes"):
        assert "is a missing value" in type_refusal(None, bytes_type)
        assert "is a number" in type_refusal(1, bytes_type)


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_a_date_for_a_number_is_refused_with_what_read_json_does_to_columns(
    datatype: str, unit: str
) -> None:
    dates = np.array(["2020-01-02"], f"M8[{unit}]")
    assert "at [0] is a date, and x takes" in refusal(dates, datatype)


# -- what no tensor holds --------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize(
    "value", [1j, Decimal(1), dt.timedelta(1), {"a": 1}, {1}, np.timedelta64(1, "ns"), object()]
)
def test_a_value_of_any_other_type_is_refused_with_its_type(datatype: str, value: object) -> None:
    assert f"at [0] is of type {type(value).__name__}" in refusal([value], datatype)


@pytest.mark.parametrize("dtype", ["complex64", "m8[ns]", [("a", "i4")]])
def test_an_array_of_any_other_type_is_refused(dtype: Any) -> None:
    assert " at [0] is of type" in refusal(np.zeros(2, dtype), "INT64")


def test_a_masked_value_is_refused_because_a_tensor_would_show_it() -> None:
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    assert "the value at [1] is masked" in refusal(masked, "FP32")
    assert cast(np.ma.masked_array([1.0, 2.0]), "FP32").tolist() == [1.0, 2.0]


def test_the_first_of_several_bad_values_is_named_with_its_whole_position() -> None:
    values = [[[1, 2], [3, "a"]], [[None, 2**70], [0.5, 1]]]
    with pytest.raises(InvalidInputError, match=r"'a' at \[0, 1, 1\]"):
        to_tensors({"x": values}, one("INT32", -1, 2, 2))


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(refusal(["a" * 10_000], "FP32")) < 200


class Foreign:
    """An array of another library, such as a torch tensor."""

    def __init__(self, fails: bool = False) -> None:  # noqa: FBT001, FBT002 - a test's switch
        self.fails = fails

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        if self.fails:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return np.array([1.0, 2.0], dtype)


def test_an_object_with_dunder_array_is_an_array() -> None:
    assert cast(Foreign(), "FP32").tolist() == [1.0, 2.0]


def test_a_foreign_array_that_cannot_be_converted_is_refused_in_its_own_words() -> None:
    assert "a Foreign that gives no numpy array (can't convert cuda:0" in refusal(
        Foreign(fails=True), "FP32"
    )


@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_an_empty_list_is_an_empty_tensor_of_any_type(datatype: str) -> None:
    tensor = cast([], datatype)
    assert tensor.shape == (0,)
    assert tensor.dtype == DATATYPES[datatype].numpy
