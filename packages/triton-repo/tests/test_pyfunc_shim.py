"""What the Python backend does not do on demand: a response that it cannot send."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

import triton_repo.flavors

SHIM = Path(triton_repo.flavors.__file__).with_name("_pyfunc")
FINAL = 1


class Response:
    """The backend's, as far as the shim asks for it."""

    def __init__(self, output_tensors: list[Any], error: str = "") -> None:
        self.outputs = output_tensors
        self.error = error


class Sender:
    """Refuses what it has no memory for, and everything after the last response."""

    def __init__(self, *, memory: int) -> None:
        self._memory = memory
        self.sent: list[tuple[Any, int]] = []

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        if self.sent and self.sent[-1][1] == FINAL:
            raise RuntimeError("the sender has been closed")
        self.sent.append((response, flags))
        if response is not None and len(response.outputs) > self._memory:
            raise RuntimeError("no memory")


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`model.py`, with the backend's own module made up."""
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    backend.TritonError = str
    backend.InferenceResponse = Response
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    loaded = None
    for name in ("mlflow_triton_values", "model"):
        spec = importlib.util.spec_from_file_location(name, SHIM / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        spec.loader.exec_module(loaded)
    return loaded


class Model:
    """Gives its pieces, and says when that has ended."""

    def __init__(self, *pieces: Response) -> None:
        self._pieces = pieces
        self.is_closed = False

    def pieces(self, _: object) -> Any:
        try:
            yield from self._pieces
        finally:
            self.is_closed = True


def test_a_piece_that_cannot_be_sent_ends_the_request_with_that_error(shim: Any) -> None:
    model = Model(Response([1]), Response([1, 2, 3]), Response([1]))
    sender = Sender(memory=2)
    streams = shim._Streams(model, {})
    streams._answer(None, sender, "", Event())
    assert [flags for _, flags in sender.sent] == [0, 0, FINAL]
    assert sender.sent[-1][0].error == "RuntimeError: no memory"
    assert model.is_closed


@pytest.mark.parametrize(("outputs", "error"), [(1, None), (3, "RuntimeError: no memory")])
def test_so_does_an_answer_to_predict(shim: Any, outputs: int, error: str | None) -> None:
    sender = Sender(memory=2)
    shim._finish(sender, Response([0] * outputs))
    assert [flags for _, flags in sender.sent] == [0, FINAL]
    last = sender.sent[-1][0]
    assert (last and last.error) == error


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
def test_columns_without_names_have_the_callers(shim: Any, parameters: Any, wanted: Any) -> None:
    signature = ModelSignature(Schema([ColSpec("string"), ColSpec("long")]))
    given = shim.Given(["0", "1"], signature, from_hints=False)
    text = json.dumps(parameters) if isinstance(parameters, dict) else parameters
    arrays = {"0": np.array([[b"a"]], dtype=object), "1": np.array([[1]])}
    frame = given.data(arrays, text)
    assert frame.columns.tolist() == wanted
    assert frame.to_numpy().tolist() == [["a", 1]]
    assert given.params(text) is None


def test_a_signatures_own_names_count(shim: Any) -> None:
    signature = ModelSignature(Schema([ColSpec("long", "x")]))
    given = shim.Given(["x"], signature, from_hints=False)
    frame = given.data({"x": np.array([[1]])}, json.dumps({"mlflow_names": '["y"]'}))
    assert frame.columns.tolist() == ["x"]
