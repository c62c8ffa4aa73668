"""A store that fails at every call by which a command changes it: once, or from then on.

A run goes through some of these points; `nox -s faults` through all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .commands import Fault
from .harness import Walk, is_store_call
from .scenarios import OF_SEVERAL, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .harness import Bench


def store_calls(calls: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """The names of the store's calls, with their numbers.

    Giving back a lock is left out: that it cannot fail is the store's own affair, and its tests'.
    """
    for number, call in enumerate(calls, 1):
        if is_store_call(call) and not call.startswith("unlock "):
            yield f"at call {number}, {call}", number


#: Of several models the one that has the others' steps among its own.
FAILED = {**SCENARIOS, "update of several": OF_SEVERAL["update of several"]}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("label", FAILED)
def test_a_command_that_one_failing_call_ends_has_changed_nothing(
    bench: Bench, label: str, count: Callable[[str, str, int], None]
) -> None:
    """As with EIO: every byte is as it was, the old version serves. One that succeeds did all.

    A delete that fails is gone on with by the next one instead.
    """
    scenario = FAILED[label]
    walk = Walk(bench, label, scenario)
    for where, number in walk.chosen(store_calls(walk.calls)):
        with walk.point(f"failed once {where}"):
            before = bench.repository.content()
            outcome = bench.run_apart(scenario.command, Fault("fail-once", number))
            if outcome.succeeded:
                walk.check_new()
                walk.restore()
                continue
            walk.check_refused(outcome, "TEMPORARILY_UNAVAILABLE")
            if scenario.new is None:
                walk.check_neighbour()
                walk.check_can_be_repeated()
                walk.restore()
            else:
                walk.check_unchanged(before)
    count("store calls that fail once", label, walk.points)
    walk.conclude()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("label", SCENARIOS)
def test_a_store_that_lets_us_in_again_is_put_right_by_the_same_command(
    bench: Bench, label: str, count: Callable[[str, str, int], None]
) -> None:
    """Permission is lost at a call and stays so: nothing can be put back then.

    What served serves meanwhile. Once it is back, the same command succeeds and nothing is stray.
    """
    scenario = SCENARIOS[label]
    walk = Walk(bench, label, scenario)
    for where, number in walk.chosen(store_calls(walk.calls)):
        with walk.point(f"failed for good {where}"):
            outcome = bench.run_apart(scenario.command, Fault("fail-for-good", number))
            walk.check_refused(outcome, "PERMISSION_DENIED")
            walk.check_neighbour()
            if scenario.is_update:
                walk.check_served()
            walk.check_can_be_repeated()
            walk.restore()
    count("store calls from which all fail", label, walk.points)
    walk.conclude()
