"""Progress on stderr: one line that changes on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Progress"]

_TERMINAL_TICK_S = 0.2
#: A log file (CI) should show that something still happens, and not grow by it.
_LOG_TICK_S = 15.0


class Progress:
    """Says what is being done and that it is still being done.

    Args:
        stream: where to write; None is stderr as it is when something is said.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._width = 0

    def say(self, line: str) -> None:
        """Write one line that stays."""
        self._write(f"{line}\n")

    @contextmanager
    def step(self, title: str, detail: Callable[[], str] = str) -> Iterator[None]:
        """Show `title` while the body runs, and how long it took once it is through.

        Args:
            title: what is being done.
            detail: called now and then for a few more words, such as the size reached.
        """
        started = time.monotonic()
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(title, detail, started, done))
        ticker.daemon = True
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
        self._write(f"  {title}: {time.monotonic() - started:.1f} s\n")

    def _tick(
        self, title: str, detail: Callable[[], str], started: float, done: threading.Event
    ) -> None:
        interval = _TERMINAL_TICK_S if self._is_terminal() else _LOG_TICK_S
        while not done.wait(interval):
            words = detail()
            line = f"  {title} … {time.monotonic() - started:.0f} s{words and f', {words}'}"
            self._write(line if self._is_terminal() else f"{line}\n")

    def _is_terminal(self) -> bool:
        return self._out.isatty()

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stderr

    def _write(self, text: str) -> None:
        if self._is_terminal():
            # padded: what the line before it had more must go
            padded = f"\r{text.rstrip():{self._width}}"
            self._width = 0 if text.endswith("\n") else len(text)
            text = padded + "\n" * text.endswith("\n")
        self._out.write(text)
        self._out.flush()
