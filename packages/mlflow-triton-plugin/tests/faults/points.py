"""Which points of a walk are gone through: some in every run, all of them when asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["EVERY_POINT", "are_all_walked", "chosen"]

_T = TypeVar("_T")

#: A variable: whether walks go through all of their points.
EVERY_POINT = "FAULTS_EVERY_POINT"


def are_all_walked() -> bool:
    """Whether none is left out."""
    return bool(os.environ.get(EVERY_POINT))


def chosen(
    points: Iterable[_T], turn: int, *, between: int, kind: Callable[[_T], str] = str
) -> list[_T]:
    """Return a few points, or all of them.

    Every scenario has points in its midst, each in another kind of step, and in turn the first
    point or the last one. The turn says in which kinds, and at which steps of these: scenarios that
    follow one another go through all kinds. The steps of a command are much the same in all of
    them, so that what one leaves out another has.

    Args:
        points: all of them.
        turn: the scenario's number among those that are walked alike.
        between: how many of those that are neither the first nor the last.
        kind: of what kind of step a point is.
    """
    found = list(points)
    if are_all_walked() or len(found) <= between + 1:
        return found
    kinds: dict[str, list[int]] = {}
    for number, point in enumerate(found[1:-1], 1):
        kinds.setdefault(kind(point), []).append(number)
    names = list(kinds)
    numbers = {[0, len(found) - 1][turn % 2]}
    for place in range(turn * between, turn * between + min(between, len(names))):
        steps = kinds[names[place % len(names)]]
        numbers.add(steps[(turn + place // len(names)) % len(steps)])
    return [found[number] for number in sorted(numbers)]
