"""A point on the monotonic clock."""

from __future__ import annotations

import time

__all__ = ["Deadline"]


class Deadline:
    """Passes `timeout_s` seconds after it was made."""

    def __init__(self, timeout_s: float) -> None:
        self._at_s = time.monotonic() + timeout_s

    @property
    def remaining_s(self) -> float:
        """Seconds left; never below 0."""
        return max(0.0, self._at_s - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining_s == 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        time.sleep(min(seconds, self.remaining_s))
