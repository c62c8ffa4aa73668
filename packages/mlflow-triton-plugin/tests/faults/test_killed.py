"""A command that is killed outright, at every call by which it changes the store or a server.

The state before one call is that after the one before it: a process dies before each call, while
Triton loads, and after the last call. On an object store, where a call can be many requests, it
dies before each request; of those that go side by side, before the last. A run goes through some of
these points; `nox -s faults` through all.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from .commands import Fault
from .harness import Walk, is_store_call
from .scenarios import ALL_SCENARIOS, SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .harness import Bench


#: Killed before each call on an object store too: its requests are those of other scenarios.
BY_CALL = {"update of a set"}


def kill_points(walk: Walk) -> Iterator[tuple[str, Fault]]:
    """Every point of an undisturbed run, with its name."""
    calls = walk.calls
    requests = () if walk.label in BY_CALL else walk.requests
    for number, (request, following) in enumerate(pairwise((*requests, "")), 1):
        if _place(request) != _place(following):  # in the midst of those that go side by side
            yield f"killed before request {number}, {request}", Fault("kill-request", number)
    for number, call in enumerate(calls, 1):
        if not (requests and is_store_call(call)):
            yield f"killed before call {number}, {call}", Fault("kill", number)
        if call.startswith("load "):
            yield f"killed during call {number}, {call}", Fault("kill-while-loading", number)
    yield f"killed after the last call, {calls[-1]}", Fault("kill-after", len(calls))


def _place(request: str) -> tuple[str, str]:
    """A request's method and the directory it is about."""
    method, _, key = request.partition(" ")
    return method, key.rpartition("/")[0]


def kill(walk: Walk, scenario: Scenario, fault: Fault) -> None:
    outcome = walk.bench.run_apart(scenario.command, fault)
    assert outcome.signal == 9, f"nothing was killed: {outcome}"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("label", ALL_SCENARIOS)
def test_whatever_call_a_command_dies_at_a_fresh_server_serves_what_was_committed(
    bench: Bench, label: str, count: Callable[[str, str, int], None]
) -> None:
    """And the same command again succeeds there, leaving nothing stray.

    The server dies with the command, and another starts: after an update by Triton's default, which
    is to end at the first model that does not load; else with `--exit-on-error=false`.
    """
    scenario = ALL_SCENARIOS[label]
    walk = Walk(bench, label, scenario)
    for where, fault in walk.chosen(kill_points(walk)):
        with walk.point(where):
            kill(walk, scenario, fault)
            bench.restart(strictly=scenario.is_update)
            walk.check_old_or_new()
            walk.check_can_be_repeated()
            walk.restore()
    count("kill points", label, walk.points)
    walk.conclude()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("label", SCENARIOS)
def test_whatever_call_a_command_dies_at_the_server_goes_on(
    bench: Bench, label: str, count: Callable[[str, str, int], None]
) -> None:
    """Beside a server that lives, what served serves, and the same command again succeeds."""
    scenario = SCENARIOS[label]
    walk = Walk(bench, label, scenario)
    for where, fault in walk.chosen(kill_points(walk)):
        with walk.point(where):
            kill(walk, scenario, fault)
            walk.check_neighbour()
            if scenario.is_update:
                walk.check_served()
            walk.check_can_be_repeated()
            walk.restore()
    count("kill points beside a server that lives", label, walk.points)
    walk.conclude()
