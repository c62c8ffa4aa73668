"""A progress bar on stderr for copies that take long enough to wonder about."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["copying"]

_SLOW_BYTES = 8 * 1024 * 1024


@contextmanager
def copying(what: str, size_bytes: int) -> Iterator[Callable[[int], None] | None]:
    """Yield what the copy should report its bytes to, or None where nobody would see it."""
    if size_bytes < _SLOW_BYTES:
        yield None
        return
    from tqdm import tqdm  # noqa: PLC0415 - only large models need it

    # disable=None: no bar where stderr is not a terminal
    with tqdm(
        total=size_bytes,
        desc=what,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=1,
        disable=None,
    ) as bar:

        def on_copied(size_bytes: int) -> None:
            bar.update(size_bytes)

        yield on_copied
