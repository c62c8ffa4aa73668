"""The names of the columns that a model is given."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from .shim import load_worker


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `mlflow_triton_values`."""
    return load_worker(monkeypatch)._beside("mlflow_triton_values")


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ("", [0, 1]),
        ('{"mlflow_params": "{}"}', [0, 1]),
        ({"mlflow_names": '["w", 7]'}, ["w", 7]),
        ({"mlflow_names": '["w"]'}, [0, 1]),
        ({"mlflow_names": 1}, [0, 1]),
    ],
)
def test_columns_without_names_have_the_callers(values: Any, parameters: Any, wanted: Any) -> None:
    signature = ModelSignature(Schema([ColSpec("string"), ColSpec("long")]))
    given = values.Given(["0", "1"], signature, from_hints=False)
    text = json.dumps(parameters) if isinstance(parameters, dict) else parameters
    arrays = {"0": np.array([[b"a"]], dtype=object), "1": np.array([[1]])}
    frame = given.data(arrays, text)
    assert frame.columns.tolist() == wanted
    assert frame.to_numpy().tolist() == [["a", 1]]
    assert given.params(text) is None


def test_a_signatures_own_names_count(values: Any) -> None:
    signature = ModelSignature(Schema([ColSpec("long", "x")]))
    given = values.Given(["x"], signature, from_hints=False)
    frame = given.data({"x": np.array([[1]])}, json.dumps({"mlflow_names": '["y"]'}))
    assert frame.columns.tolist() == ["x"]
