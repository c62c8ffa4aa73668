"""A server that is a program of its own, for as long as a block lasts."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["ServerProgram"]

_STOP_S = 20.0


class ServerProgram(ABC):
    """Started when it is entered, gone with all its workers when it is left."""

    _process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        # a session of its own: whatever the program starts is in it, and nothing else is
        self._process = self._start()
        try:
            self._wait(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    @abstractmethod
    def _start(self) -> subprocess.Popen[str]:
        """Start it, with `start_new_session`."""

    @abstractmethod
    def _wait(self, process: subprocess.Popen[str]) -> None:
        """Wait until it serves, and find out where.

        Raises:
            RuntimeError: it does not; with what it said.
        """

    def _stop(self) -> None:
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.communicate(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                pass
            break
