"""The answers of one gRPC stream, as they come; and how to leave before its end.

Tritons up to 25.04 may crash, or never unload the model again, when a stream is cancelled while it
is answered (triton-inference-server/server, issues 7368 and 8034). There, who leaves lets the
answers come to their end, unread. A model of ours is asked by another request to end them soon;
others go on for nobody, as long as this process lives, and their version is not unloaded meanwhile.
"""

from __future__ import annotations

import math
from contextlib import suppress
from queue import Empty, Full, Queue
from random import uniform
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Answers"]

#: Answers that wait for their reader; gRPC holds the others back.
_WAITING = 16
_POLL_S = 0.2
#: A request to end another may come to the wrong instance of the model. Triton gives them requests
#: in turn: one of a few in a row finds it, unless there are more instances. Then again, in seconds.
_IN_A_ROW = 4
_AGAIN_S = 0.5


class Answers:
    """Reads a stream in a thread of its own: gRPC has deadlines for the whole of it only.

    Args:
        call: what the stub has returned.
        end: asks the model to end it, and says whether it will; called in the reader's thread.
    """

    def __init__(self, call: Any, end: Callable[[], bool]) -> None:
        self._call = call
        self._end = end
        self._end_from = 0.0
        self._read: Queue[Any] = Queue(_WAITING)
        self._left = Event()
        Thread(target=self._read_all, name="mlflow-triton-stream", daemon=True).start()

    def next(self, timeout_s: float) -> Any:
        """The next answer, None after the last.

        Raises:
            TimeoutError: none came.
            grpc.RpcError: the stream ended with it.
        """
        try:
            found = self._read.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError from None
        if isinstance(found, grpc.RpcError):
            raise found
        return found

    def leave(self, *, cancels: bool) -> None:
        """Read no further.

        Args:
            cancels: whether the server is told; otherwise, with the next answer, the model is, and
                what comes is thrown away.
        """
        if cancels:
            self._end_from = math.inf
        self._left.set()
        if cancels:
            self._call.cancel()

    def _read_all(self) -> None:
        last: grpc.RpcError | None = None
        try:
            for each in self._call:
                self._put(each)
                if self._left.is_set() and monotonic() >= self._end_from:
                    self._end_from = self._ask_to_end()
        except grpc.RpcError as exc:
            last = exc
        self._put(last)

    def _ask_to_end(self) -> float:
        """Ask the model to end the stream; from when on to ask again, never where it will."""
        if any(self._end() for _ in range(_IN_A_ROW)):
            return math.inf
        # two who leave together would else take each other's turns for ever
        return monotonic() + _AGAIN_S * uniform(0.5, 1.5)  # noqa: S311 - no secret

    def _put(self, found: Any) -> None:
        while not self._left.is_set():
            with suppress(Full):
                self._read.put(found, timeout=_POLL_S)
                return
