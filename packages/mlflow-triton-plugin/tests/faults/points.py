"""Which points of a walk are gone through: some in every run, all of them when asked for."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["EVERY_POINT", "are_all_walked", "chosen"]

_T = TypeVar("_T")

#: A variable: whether walks go through all of their points.
EVERY_POINT = "FAULTS_EVERY_POINT"


def are_all_walked() -> bool:
    """Whether none is left out."""
    return bool(os.environ.get(EVERY_POINT))


def chosen(points: Iterable[_T], label: str, stride: int) -> list[_T]:
    """One point in so many, or all of them.

    Scenarios begin at different ones: the steps of a command are much the same in all of them, so
    that what one leaves out another has.

    Args:
        points: all of them.
        label: the scenario.
        stride: one in how many, unless all are walked.
    """
    found = list(points)
    if are_all_walked() or not found:
        return found
    return found[zlib.crc32(label.encode()) % min(stride, len(found)) :: stride]
