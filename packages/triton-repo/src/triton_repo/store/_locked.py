"""Waiting for a lock, whatever it is made of, and what the one who does not get it is told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from triton_repo.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOCK_SUFFIX", "OUR_SUFFIX", "Holder", "taken_over", "wait_for"]

#: What the name of a lock ends in; and in what it ends if only we can have made it.
LOCK_SUFFIX = ".lock"
OUR_SUFFIX = ".mlflow-triton.lock"
#: The longest pause between two attempts, while somebody waits for the holder.
_LONGEST_WAIT_S = 1.0

#: How long a lock may go away in between again and again, and between two looks.
_VANISHING_S, _VANISHED_S = 30.0, 0.01

_Held = TypeVar("_Held")


class Holder(Protocol):
    """Who has a lock."""

    @property
    def holder(self) -> str:
        """For people."""

    @property
    def since(self) -> str:
        """For people, ISO 8601 in UTC."""


class _Vanishing:
    """Somebody, whenever one does not look."""

    holder, since = "others, in turn,", "a while"


def wait_for(
    key: str,
    attempt: Callable[[], tuple[_Held | None, Holder | None]],
    *,
    wait_s: float,
    pause_s: float,
) -> _Held:
    """Try until the lock is ours, or has been somebody else's for long enough.

    Args:
        key: the lock.
        attempt: the lock, or who has it; neither where it went away in between.
        wait_s: how long to wait for its holder.
        pause_s: between the first two attempts; later ones are longer.

    Raises:
        LockedError: somebody else has it, and still did after `wait_s`.
    """
    began_s = time.monotonic()
    while True:
        held, holder = attempt()
        if held is not None:
            return held
        waited_s = time.monotonic() - began_s
        if holder is None and waited_s < wait_s + _VANISHING_S:
            time.sleep(_VANISHED_S)
            continue
        holder = holder or _Vanishing()
        if waited_s >= wait_s:
            waited = f"; waited {waited_s:.3g} s" if wait_s > 0 else ""
            raise LockedError(
                f"{_name(key)} is being changed by {holder.holder} since {holder.since}{waited}; "
                "try again when it is done",
                holder=holder.holder,
                since=holder.since,
            )
        time.sleep(min(pause_s, wait_s - waited_s))
        pause_s = min(2 * pause_s, _LONGEST_WAIT_S)


def taken_over(key: str, taker: Holder, lease_s: float) -> LockedError:
    """What a holder is told that stood still for a lease, as it ends."""
    return LockedError(
        f"{taker.holder} took over the lock of {_name(key)} at {taker.since}: this process had not "
        f"been heard of for {lease_s:g} s; look at what stands there, and run the command again",
        holder=taker.holder,
        since=taker.since,
    )


def _name(key: str) -> str:
    """What a lock is of."""
    last = key.rpartition("/")[2]
    return last.removesuffix(OUR_SUFFIX).removesuffix(LOCK_SUFFIX).strip(".")
