"""What the hand-over does in Triton's stub; the backend's own module is made up.

For what the real one does not do on demand: a response that it cannot send.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .shim import load

FINAL = 1


class Response:
    """The backend's, as far as the hand-over asks for it."""

    def __init__(self, output_tensors: list[Any], error: str = "") -> None:
        self.outputs = output_tensors
        self.error = error


class Sender:
    """Refuses what it has no memory for, and everything after the last response."""

    def __init__(self, *, memory: int, is_cancelled: bool = False) -> None:
        self._memory = memory
        self.is_cancelled = lambda: is_cancelled
        self.sent: list[tuple[Any, int]] = []

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        if self.sent and self.sent[-1][1] == FINAL:
            raise RuntimeError("the sender has been closed")
        self.sent.append((response, flags))
        if response is not None and len(response.outputs) > self._memory:
            raise RuntimeError("no memory")


@pytest.fixture
def handover(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`model.py`."""
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    backend.TritonError = str
    backend.InferenceResponse = Response
    backend.Tensor = lambda name, array: (name, array)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    load("mlflow_triton_channel", monkeypatch)
    return load("model", monkeypatch)


def streams_of(handover: Any, sender: Sender, outputs: int = 3) -> Any:
    """Those of a model with one request, the first, under way."""
    model = object.__new__(handover.TritonPythonModel)
    model._outputs = [str(number) for number in range(outputs)]
    streams = handover._Streams(model)
    streams._senders[1] = sender
    return streams


def piece(*arrays: int, final: bool = False) -> tuple[dict[str, Any], list[Any]]:
    return {"to": 1, "final": final}, [np.array(each) for each in arrays]


END: tuple[dict[str, Any], list[Any]] = ({"to": 1, "final": True, "empty": True}, [])


def test_a_piece_that_cannot_be_sent_ends_the_request_with_that_error(handover: Any) -> None:
    sender = Sender(memory=2)
    streams = streams_of(handover, sender)
    assert streams.take(*piece(1)) is None
    assert streams.take(*piece(1, 2, 3)) == 1  # the worker is told
    assert streams.take(*piece(1)) is None
    assert streams.take(*END) is None
    assert [flags for _, flags in sender.sent] == [0, 0, FINAL]
    assert sender.sent[-1][0].error == "RuntimeError: no memory"
    assert streams._senders == {}


def test_a_caller_who_left_is_sent_no_more(handover: Any) -> None:
    sender = Sender(memory=9, is_cancelled=True)
    streams = streams_of(handover, sender)
    assert [streams.take(*piece(1)) for _ in range(2)] == [1, None]
    assert streams.take(*END) is None
    assert sender.sent == [(None, FINAL)]


@pytest.mark.parametrize(
    ("arrays", "error"), [((1,), None), ((1, 2, 3), "RuntimeError: no memory")]
)
def test_an_answer_to_predict_is_sent_and_then_its_end(
    handover: Any, arrays: tuple[int, ...], error: str | None
) -> None:
    sender = Sender(memory=2)
    streams_of(handover, sender).take(*piece(*arrays, final=True))
    assert [flags for _, flags in sender.sent] == [0, FINAL]
    last = sender.sent[-1][0]
    assert (last and last.error) == error


def test_a_worker_that_died_is_told_to_all_that_wait(handover: Any) -> None:
    sender = Sender(memory=2)
    streams = streams_of(handover, sender)
    streams.fail("it died")
    streams.fail("again")
    ((response, flags),) = sender.sent
    assert (response.error, flags) == ("it died", FINAL)
