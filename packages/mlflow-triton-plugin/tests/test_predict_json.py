"""Objects as JSON and back: nothing is lost, and what stands in between is JSON to everybody."""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_triton_plugin.predict import InvalidInputError, ModelSchema, to_tensors
from mlflow_triton_plugin.predict._json import json_texts, json_values, names_text
from triton_repo.tensors import TensorSpec

SPEC = TensorSpec("x", "BYTES", (-1, 1))

words = st.sampled_from(["NaN", "Infinity", "-Infinity", '"NaN"', "\\", "\\u004eaN", '"\\u004eaN'])
texts = st.text(st.characters(exclude_categories=["Cs"])) | words
leaves = st.floats() | texts | st.integers(-(2**63), 2**64 - 1) | st.booleans() | st.none()
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
)


def told(value: Any) -> Any:
    """What can be compared: NaN equals nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"the float {value}"
    if isinstance(value, dict):
        return {key: told(each) for key, each in value.items()}
    return [told(each) for each in value] if isinstance(value, list) else value


def read(*texts: bytes) -> list[Any]:
    found: list[Any] = json_values(np.array(texts, dtype=object)).tolist()
    return found


@given(value=values)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    (text,) = json_texts([value], SPEC).reshape(-1)
    assert told(read(text)) == told([value])
    json.loads(text, parse_constant=pytest.fail)


def test_to_others_they_are_the_words_for_them() -> None:
    (text,) = json_texts([[math.nan, math.inf, -math.inf, "NaN"]], SPEC).reshape(-1)
    assert json.loads(text) == ["NaN", "Infinity", "-Infinity", "NaN"]


@dataclass
class Point:
    x: float


def test_values_that_only_one_encoder_knows_keep_what_it_makes_of_them() -> None:
    """Beside a number that JSON has not, too."""
    day = dt.date(2026, 1, 2)
    row = {"n": np.float32("nan"), "a": np.array([1, math.nan]), "d": day, "p": Point(1.5)}
    (text,) = json_texts([row], SPEC).reshape(-1)
    wanted = {"n": math.nan, "a": [1.0, math.nan], "d": "2026-01-02", "p": {"x": 1.5}}
    assert told(read(text)) == told([wanted])
    (text,) = json_texts([{day: None}], SPEC).reshape(-1)
    assert read(text) == [{"2026-01-02": None}]


def test_what_only_python_reads_is_read_and_what_nobody_does_stays() -> None:
    given = (
        b"[NaN, -Infinity]",
        rb'"\ud83d"',
        str(2**70).encode(),
        b"no JSON",
        b"\xff",
        b"[" * 9999,
    )
    assert told(read(*given)) == [
        ["the float nan", "the float -inf"],
        "\ud83d",
        2**70,
        *given[3:],
    ]


class Color(str, Enum):
    RED = "red"


UNNAMED = ModelSchema(
    "m", "1", (TensorSpec("inputs", "FP64", (-1, 2)),), (), max_batch_size=8, is_unnamed=True
)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [(["a", 7], ["a", 7]), ([Color.RED, "b"], ["red", "b"]), ([np.int64(5), "b"], [5, "b"])],
)
def test_labels_of_columns_come_back_as_they_were(labels: list[Any], wanted: list[Any]) -> None:
    frame = pd.DataFrame([[1.0, 2.0]], columns=pd.Index(labels, dtype=object))
    assert json.loads(names_text(frame, UNNAMED)) == wanted


@pytest.mark.parametrize("label", [1.5, dt.date(2024, 1, 2), ("a", "b"), True, None])
def test_a_label_that_is_neither_a_string_nor_an_integer_is_refused_by_name(label: Any) -> None:
    records = [{"a": 1.0, label: 2.0}]
    with pytest.raises(InvalidInputError, match="rename the column") as raised:
        names_text(records, UNNAMED)
    assert f"column {label!r}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_enum_that_is_a_string_is_its_value() -> None:
    schema = ModelSchema("m", "1", (TensorSpec("red", "BYTES", (-1,)),), ())
    (sent,) = to_tensors({Color.RED: [Color.RED]}, schema).values()
    assert sent.tolist() == [b"red"]
