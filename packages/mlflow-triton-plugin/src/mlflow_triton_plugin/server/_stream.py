"""The answers of one gRPC stream, as they come; and how to leave before its end.

Tritons up to 25.04 may crash, or never unload the model again, when a stream is cancelled while it
is answered (triton-inference-server/server, issues 7368 and 8034). There, who leaves lets the
answers come to their end, unread: the model goes on for nobody, and the server for everybody.
"""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import grpc

__all__ = ["Answers"]

#: Answers that wait for their reader; gRPC holds the others back.
_WAITING = 16
_POLL_S = 0.2


class Answers:
    """Reads a stream in a thread of its own: gRPC has deadlines for the whole of it only.

    Args:
        call: what the stub has returned.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
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
            cancels: whether the server is told; otherwise what comes is thrown away.
        """
        self._left.set()
        if cancels:
            self._call.cancel()

    def _read_all(self) -> None:
        last: grpc.RpcError | None = None
        try:
            for each in self._call:
                self._put(each)
        except grpc.RpcError as exc:
            last = exc
        self._put(last)

    def _put(self, found: Any) -> None:
        while not self._left.is_set():
            with suppress(Full):
                self._read.put(found, timeout=_POLL_S)
                return
