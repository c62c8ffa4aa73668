"""What the worker does with requests that come together: each caller's rows are its own."""

from __future__ import annotations

import datetime as dt
import json
import random
import sys
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema

from .shim import answered, arrays_of, load_worker

if TYPE_CHECKING:
    from collections.abc import Callable

CALLERS, ROUNDS = 10, 1000


@dataclass
class Model:
    """What `load_model` gives: it counts how often it is asked."""

    answer: Callable[[Any], Any]
    given: list[int] = field(default_factory=list)

    def predict(self, data: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow's
        self.given.append(len(data))
        return self.answer(data)


NUMBERS = ModelSignature(Schema([ColSpec("double", "a")]), Schema([ColSpec("double", "y")]))
#: The same as arrays, which are made faster than frames.
TENSORS = infer_signature({"a": np.zeros((1, 1))}, {"y": np.zeros(1)})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make the Python backend's model of an answer: `served(function, word)`."""
    worker = load_worker(monkeypatch)
    values = worker._beside("mlflow_triton_values")

    def make(
        answer: Callable[[Any], Any],
        word: str,
        signature: ModelSignature = NUMBERS,
        output: str = "TYPE_FP64",
        as_json: tuple[str, ...] = (),
        dims: tuple[str, ...] = ("1",),
        names: tuple[str, ...] = ("y",),
    ) -> Any:
        made: Any = object.__new__(worker.Model)
        made._model, made._streams, made._batched = Model(answer), None, True
        made._inputs = signature.inputs.input_names()
        made._given = values.Given(made._inputs, signature, from_hints=False)
        outputs = [
            {"name": name, "data_type": output, "dims": list(dims)} for name in as_json or names
        ]
        made._wanted = values.Wanted(outputs, signature, batched=True, as_json=as_json)
        made._joins = word in ("true", "asked")
        made._trials = None if word == "true" else worker._Trials()
        return made

    return make


def request(*values: float) -> Any:
    arrays = {"a": np.array(values, dtype=np.float64).reshape(-1, 1)}
    return sys.modules["mlflow_triton_worker"].Request(arrays)


def exploded(given: Any) -> list[float]:
    """`n` items for a row with n, so that 2 and 0 items are as many as two rows."""
    rows = np.asarray(given["a"]).reshape(-1)
    return [float(each) for each in rows for _ in range(int(each))]


def ranked(given: Any) -> Any:
    rows = given["a"].reshape(-1)
    return np.array([(rows < each).sum() + ((rows == each).sum() + 1) / 2 for each in rows])


def kept(frame: pd.DataFrame) -> Any:
    """Rows of its own choice, each with the label that it had."""
    return frame[frame["a"] >= 0].rename(columns={"a": "y"}).astype("float64")


@pytest.mark.parametrize("word", ["false", "asked"])
@pytest.mark.parametrize("answer", [exploded, ranked])
def test_nobody_gets_a_row_of_somebody_else(
    served: Callable[..., Any], answer: Callable[[Any], Any], word: str
) -> None:
    """Ten callers at once, a thousand rounds; also where a user wrongly asks for joining.

    The rows that all of them are answered are always as many as they gave.
    """
    model, chance = served(answer, word, TENSORS), random.Random(17)  # noqa: S311 - no secret
    foreign = 0
    for _ in range(ROUNDS):
        counts = [chance.randrange(3) for _ in range(CALLERS // 2)]
        tables = [[float(each)] for count in counts for each in (count, 2 - count)]
        responses = model.execute([request(*table) for table in tables])
        for table, response in zip(tables, responses, strict=True):
            own = np.asarray(answer({"a": np.array(table)})).reshape(-1).tolist()
            foreign += answered(response) != own
    assert foreign == 0


def test_rows_are_answered_together_where_that_is_known(served: Callable[..., Any]) -> None:
    model = served(lambda frame: (frame["a"] * 2).to_numpy(), "true")
    responses = model.execute([request(1, 2), request(3), request(4, 5, 6)])
    assert [answered(each) for each in responses] == [[2, 4], [6], [8, 10, 12]]
    assert model._model.given == [6]


def test_a_users_word_is_tried_before_it_is_taken(served: Callable[..., Any]) -> None:
    model = served(lambda frame: (frame["a"] * 2).to_numpy(), "asked")
    for _ in range(5):
        responses = model.execute([request(1, 2), request(3)])
        assert [answered(each) for each in responses] == [[2, 4], [6]]
    assert model._model.given == [2, 1, 3] * 3 + [3] * 2


def test_what_was_tried_once_is_tried_again(served: Callable[..., Any]) -> None:
    """With a number of rows that is new, and now and then."""
    model = served(lambda frame: (frame["a"] * 2).to_numpy(), "asked")
    for _ in range(3):
        model.execute([request(1), request(3)])
    model._model.given.clear()
    responses = model.execute([request(1), request(2, 3, 4)])
    assert [answered(each) for each in responses] == [[2], [4, 6, 8]]
    assert model._model.given == [1, 3, 4]
    model._model.given.clear()
    for _ in range(100):
        model.execute([request(1), request(3)])
    assert model._model.given.count(1) == 2
    assert model._model.given.count(2) == 100


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_small_answers_are_compared_as_closely_as_large_ones(
    served: Callable[..., Any], scale: float
) -> None:
    """Normalized by all rows of a request."""

    def shares(given: Any) -> Any:
        return np.asarray(given["a"] / given["a"].sum()).reshape(-1) * scale

    model = served(shares, "asked", TENSORS)
    responses = model.execute([request(1), request(3)])
    assert [answered(each) for each in responses] == [[scale], [scale]]
    assert not model._joins


@pytest.mark.parametrize("output", ["TYPE_FP64", "TYPE_STRING"])
def test_an_array_for_each_target_is_not_split_by_rows(
    served: Callable[..., Any], output: str
) -> None:
    """scikit-learn's predict_proba of two targets, beside two rows."""

    def probabilities(given: Any) -> Any:
        rows = given["a"].reshape(-1)
        return [np.stack([rows, 1 - rows], axis=1) + target for target in (0.0, 10.0)]

    as_json = ("y",) if output == "TYPE_STRING" else ()
    signature = ModelSignature(TENSORS.inputs, None if as_json else TENSORS.outputs)
    dims = ("1",) if as_json else ("2", "2")
    model = served(probabilities, "true", signature, output, as_json, dims)
    together = model.execute([request(0.25), request(0.5)])
    assert [len(each) for each in arrays_of(together[0]).values()] == [2]
    alone = model.execute([request(0.25)]) + model.execute([request(0.5)])
    for one, other in zip(together, alone, strict=True):
        assert answered(one) == answered(other)
    assert not model._joins


def test_one_answer_with_other_rows_ends_joining(served: Callable[..., Any]) -> None:
    """It was asked alone, so that this says what it may do to others."""
    model = served(exploded, "true")
    assert answered(model.execute([request(1, 1), request(1)])[1]) == [1]
    assert answered(model.execute([request(2)])[0]) == [2, 2]
    assert [answered(each) for each in model.execute([request(2), request(0)])] == [[2, 2], []]


def test_an_answer_with_other_rows_than_were_given_is_not_split(served: Callable[..., Any]) -> None:
    """Each request is asked by itself, then and from then on."""
    model = served(exploded, "true")
    for _ in range(2):
        responses = model.execute([request(1), request(2)])
        assert [answered(each) for each in responses] == [[1], [2, 2]]
    assert model._model.given == [2, 1, 1, 1, 1]


def test_rows_with_labels_of_their_own_are_not_split_by_their_number(
    served: Callable[..., Any],
) -> None:
    """An answer that says which rows it is of is believed."""

    def other_order(frame: pd.DataFrame) -> Any:
        return kept(frame).sort_values("y", ascending=False)

    model = served(other_order, "true")
    responses = model.execute([request(1), request(2)])
    assert [answered(each) for each in responses] == [[1], [2]]


def test_one_that_raises_is_found_one_by_one(served: Callable[..., Any]) -> None:
    def picky(frame: pd.DataFrame) -> Any:
        if (frame["a"] < 0).any():
            raise ValueError("negative")
        return frame["a"].to_numpy()

    model = served(picky, "true")
    one, two, three = model.execute([request(1), request(-1), request(3)])
    assert (answered(one), answered(three)) == ([1], [3])
    assert two.error == "ValueError: negative"
    assert len(model._model.given) == 4
    assert answered(model.execute([request(1), request(3)])[0]) == [1]
    assert len(model._model.given) == 5  # and it is joined again


# -- no value becomes text by str() ---------------------------------------------------------------

TEXTS = infer_signature(pd.DataFrame({"a": [1.0]}), pd.DataFrame({"y": ["x"]}))
BYTES = ModelSignature(Schema([ColSpec("double", "a")]), Schema([ColSpec("binary", "y")]))
UNKNOWN = ModelSignature(Schema([ColSpec("double", "a")]))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([{"a": 0}, {"a": 1}], "holds dict, and its signature has string"),
        ({"labels": ["p", "q"]}, "holds dict, and its signature has string"),
        ([["x"], ["y", "z"]], "is ragged"),
        ([b"\x01\xff", b""], "holds bytes, and its signature has string"),
        ([1, 2], "holds int, and its signature has string"),
        ([True, False], "holds bool, and its signature has string"),
        (np.array([1.5, 2.5]), "holds float, and its signature has string"),
        (["x", None], "has a missing value"),
        (["x", float("nan")], "has a missing value"),
        (pd.Series(["x", pd.NA], dtype="string"), "has a missing value"),
        ([Path("x"), Path("y")], "holds PosixPath, and its signature has string"),
        ([{"a"}, {"b"}], "holds set, and its signature has string"),
        (pd.to_datetime(["2024-01-02", "2024-01-03"]), "and its signature has string"),
    ],
)
def test_only_text_is_text(served: Callable[..., Any], answer: Any, words: str) -> None:
    model = served(lambda _: answer, "false", TEXTS, "TYPE_STRING")
    (response,) = model.execute([request(1, 2)])
    assert words in response.error
    assert "y of the model's answer" in response.error


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (["x", "y\0"], [b"x", b"y\0"]),
        (np.array(["x", "é"]), [b"x", "é".encode()]),
        (pd.Series(["x", "y"], dtype="category"), [b"x", b"y"]),
        (pd.DataFrame({"y": ["x", ""]}), [b"x", b""]),
    ],
)
def test_text_is_utf8_to_its_last_nul(served: Callable[..., Any], answer: Any, wanted: Any) -> None:
    model = served(lambda _: answer, "false", TEXTS, "TYPE_STRING")
    assert answered(model.execute([request(1, 2)])[0]) == wanted


def test_bytes_keep_their_nuls_and_text_is_not_taken_for_bytes(served: Callable[..., Any]) -> None:
    model = served(lambda _: [b"a\0", b"\xff"], "false", BYTES, "TYPE_STRING")
    assert answered(model.execute([request(1, 2)])[0]) == [b"a\0", b"\xff"]
    model = served(lambda _: ["a", "b"], "false", BYTES, "TYPE_STRING")
    assert "holds str, and its signature has binary" in model.execute([request(1, 2)])[0].error


@pytest.mark.parametrize(
    "answer",
    [
        pd.to_datetime(["2024-01-02", "NaT"]),
        np.array(["2024-01-02", "NaT"], "datetime64[s]"),
        [np.datetime64("NaT"), dt.date(2024, 1, 2)],
        pd.to_datetime(["2024-01-02", "NaT"], utc=True),
    ],
)
def test_a_date_that_is_missing_is_refused(served: Callable[..., Any], answer: Any) -> None:
    signature = ModelSignature(Schema([ColSpec("double", "a")]), Schema([ColSpec("datetime", "y")]))
    model = served(lambda _: answer, "false", signature, "TYPE_STRING")
    assert "y of the model's answer has a missing value" in model.execute([request(1, 2)])[0].error


def answers_in_json(served: Callable[..., Any], answer: Any) -> Any:
    model = served(lambda _: answer, "false", UNKNOWN, "TYPE_STRING", ("predictions",))
    (response,) = model.execute([request(1, 2)])
    return response


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ([b"\x01\xff", b""], ["Af8=", ""]),
        ([["x"], ["y", "z"]], [["x"], ["y", "z"]]),
        ([{"a": b"\x01\xff"}, {"a": None}], [{"a": "Af8="}, {"a": None}]),
        (pd.DataFrame({"l": [["x"], ["y", "z"]]}), [{"l": ["x"]}, {"l": ["y", "z"]}]),
        ({"labels": ["p", "q"]}, [{"labels": ["p", "q"]}]),
        ([pd.Timestamp("2024-01-02"), np.datetime64("NaT")], ["2024-01-02T00:00:00", None]),
        (np.array(["2024-01-02", "NaT"], "datetime64[s]"), ["2024-01-02T00:00:00", None]),
        (
            np.array(["2024-01-02T00:00:00.000000001", "NaT"], "datetime64[ns]"),
            ["2024-01-02T00:00:00.000000001", None],
        ),
        (pd.Series(pd.to_datetime(["2024-01-02", "NaT"])), ["2024-01-02T00:00:00", None]),
        ([{"s": pd.Series([1, 2], index=[7, 7])}], [{"s": [1, 2]}]),
        ([pd.DataFrame({"q": [1, 2]})], [[{"q": 1}, {"q": 2}]]),
        ([np.float32(0.5), np.int8(1)], [0.5, 1]),
    ],
)
def test_json_has_what_the_model_said(
    served: Callable[..., Any], answer: Any, wanted: list[Any]
) -> None:
    assert [json.loads(text) for text in answered(answers_in_json(served, answer))] == wanted


@pytest.mark.parametrize(
    "value", [np.array([1], "timedelta64[ns]"), pd.Timedelta(1), pd.Series([pd.Timedelta(1)])]
)
def test_a_duration_is_no_number(served: Callable[..., Any], value: Any) -> None:
    for answer in (value, [value]):
        error = answers_in_json(served, answer).error
        assert error is not None
        assert "a duration is not one of its types" in error


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, 1j, object()])
def test_json_has_no_repr(served: Callable[..., Any], value: object) -> None:
    error = answers_in_json(served, [value]).error
    assert error is not None
    assert "predictions of the model's answer has no form in JSON" in error
    assert type(value).__name__ in error


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [np.array([2**40]), np.array([2**63], np.uint64), np.array([1.5]), np.array([-1.5e10])],
)
def test_integers_never_wrap_around(served: Callable[..., Any], answer: Any) -> None:
    signature = ModelSignature(Schema([ColSpec("double", "a")]), Schema([ColSpec("integer", "y")]))
    model = served(lambda _: answer, "false", signature, "TYPE_INT32")
    assert "and its signature has int32" in model.execute([request(1)])[0].error
    model = served(lambda _: np.array([-7], np.int64), "false", signature, "TYPE_INT32")
    assert answered(model.execute([request(1)])[0]) == [-7]


def test_an_integer_that_the_float_does_not_have_is_refused(served: Callable[..., Any]) -> None:
    model = served(lambda _: np.array([2**53 + 1]), "false")
    assert "is int64, and its signature has float64" in model.execute([request(1)])[0].error


@pytest.mark.parametrize(
    ("answer", "output", "words"),
    [
        ([True, None], "TYPE_BOOL", "a missing value, which bool cannot be"),
        ([1, None], "TYPE_INT64", "a missing value, which int64 cannot be"),
        (pd.array([1, None], dtype="Int64"), "TYPE_INT64", "and its signature has int64"),
        (pd.array([2**53 + 1, None], dtype="Int64"), "TYPE_FP64", "which is no float64"),
        ([{}, 1.0], "TYPE_BOOL", "holds dict, and its signature has bool"),
        (np.array([{"a": 1}, 2], dtype=object), "TYPE_FP64", "holds dict"),
        (np.array(["5", 1], dtype=object), "TYPE_FP64", "holds str"),
        ([None, "5"], "TYPE_FP64", "holds str, and its signature has float64"),
        ([2**53 + 1, None], "TYPE_FP64", "has 9007199254740993, which is no float64"),
        ([2**53 + 1, 0.5], "TYPE_FP64", "has 9007199254740993, which is no float64"),
        ([2**63, -1], "TYPE_INT64", "has 9223372036854775808, which is no int64"),
        ([2**64, 1], "TYPE_UINT64", "has 18446744073709551616, which is no uint64"),
        ([Decimal("1.5"), Decimal(2)], "TYPE_INT64", "has 1.5, which is no int64"),
        ([1e300, None], "TYPE_FP32", "has 1e+300, which is no float32"),
        ([2**2000, None], "TYPE_FP64", "which is no float64"),
        ([float("inf"), Decimal(1)], "TYPE_INT64", "has inf, which is no int64"),
    ],
)
def test_what_is_no_such_number_is_refused(
    served: Callable[..., Any], answer: Any, output: str, words: str
) -> None:
    model = served(lambda _: answer, "false", NUMBERS, output)
    (response,) = model.execute([request(1, 2)])
    assert "y of the model's answer" in response.error
    assert words in response.error


@pytest.mark.parametrize(
    ("answer", "output", "wanted"),
    [
        ([1.5, None], "TYPE_FP64", [1.5, np.nan]),
        (pd.array([3, None], dtype="Int64"), "TYPE_FP64", [3.0, np.nan]),
        ([Decimal("1.5"), Decimal(2**53)], "TYPE_FP64", [1.5, 2.0**53]),
        ([Decimal(2**53 + 1), Decimal(-1)], "TYPE_INT64", [2**53 + 1, -1]),
        ([2**64 - 1, 2**53 + 1], "TYPE_UINT64", [2**64 - 1, 2**53 + 1]),
        ([np.float32(2), 3], "TYPE_INT64", [2, 3]),
        (np.array([True, 2.0, 0], dtype=object), "TYPE_FP64", [1.0, 2.0, 0.0]),
        ([1e300, float("-inf")], "TYPE_FP64", [1e300, -np.inf]),
        (pd.Series([[1, 2], (3, 4)]), "TYPE_INT64", [1, 2, 3, 4]),
        (pd.Series([[2**53 + 1, 0], np.array([0, 1])]), "TYPE_INT64", [2**53 + 1, 0, 0, 1]),
    ],
)
def test_numbers_among_objects_are_what_they_were(
    served: Callable[..., Any], answer: Any, output: str, wanted: list[Any]
) -> None:
    model = served(lambda _: answer, "false", NUMBERS, output)
    (array,) = arrays_of(model.execute([request(1, 2)])[0]).values()
    np.testing.assert_array_equal(array.reshape(-1), wanted)


# -- several outputs ------------------------------------------------------------------------------

TWO = infer_signature({"a": np.zeros((1, 1))}, {"y": np.zeros(1), "z": np.zeros(1)})


def answers_two(served: Callable[..., Any], answer: Any) -> Any:
    model = served(lambda _: answer, "false", TWO, names=("y", "z"))
    (response,) = model.execute([request(1, 2)])
    return response


@pytest.mark.parametrize(
    "answer",
    [
        np.array([[1, 2], [3, 4]]),
        (np.array([1, 3]), np.array([2, 4])),
        ([1, 3], [2, 4]),
        pd.DataFrame({"y": [1, 3], "z": [2, 4]}),
        pd.DataFrame({"z": [2, 4], "other": [0, 0], "y": [1, 3]}),
        pd.DataFrame([[1, 2], [3, 4]]),
        [{"y": 1, "z": 2}, {"z": 4, "y": 3}],
        [np.array([[1], [3]]), np.array([[2], [4]])],
    ],
)
def test_each_output_has_its_column(served: Callable[..., Any], answer: Any) -> None:
    arrays = arrays_of(answers_two(served, answer))
    assert {name: array.reshape(-1).tolist() for name, array in arrays.items()} == {
        "y": [1, 3],
        "z": [2, 4],
    }


@pytest.mark.parametrize("form", [list, np.array, pd.Series])
def test_as_many_rows_as_outputs_are_not_taken_for_outputs(
    served: Callable[..., Any], form: Callable[[list[float]], Any]
) -> None:
    error = answers_two(served, [form([1.0, 2.0]), form([3.0, 4.0])]).error
    assert error is not None
    assert "may be rows or the outputs y, z" in error


def test_columns_of_other_names_are_not_taken_by_their_place(served: Callable[..., Any]) -> None:
    error = answers_two(served, pd.DataFrame({"z": [2, 4], "x": [1, 3]})).error
    assert error is not None
    assert "answers the columns z, x, and its signature has y, z" in error
