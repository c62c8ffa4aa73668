"""The points are all there: a call that nobody counts would be one that nobody dies at."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import MagicMock

import pytest

from mlflow_triton_plugin.server import TritonServer
from triton_repo.store import Store
from triton_repo.testing import WatchedStore

from .points import EVERY_POINT, chosen

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

STORE_READS = {
    *(
        "uri",
        "readers",
        "places_whole",
        "resumes",
        "can_fill_up",
        "copies_from",
        "check",
        "snapshot",
    ),
    *("children", "list_files", "exists", "read", "digest"),
}
SERVER_READS = {
    *("endpoint", "loads_paths", "check", "facts", "index", "schema", "infer", "stream", "close")
}
SERVER_CHANGES = {"load", "unload"}


class _Recording(WatchedStore):
    def change(self, what: str, key: str, call: Callable[[], _T]) -> _T:
        seen.append((what, key))
        return call()


seen: list[tuple[str, str]] = []


def methods(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


@pytest.mark.parametrize("method", sorted(methods(Store) - STORE_READS))
def test_every_method_of_a_store_that_does_not_only_read_is_counted(method: str) -> None:
    """One that is added to the protocol belongs into WatchedStore, or among the reading ones."""
    assert hasattr(WatchedStore, method), f"{method} is not watched"
    seen.clear()
    store = _Recording(MagicMock(spec=Store))
    call: Any = getattr(store, method)
    parameters = inspect.signature(call).parameters.values()
    names = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
    arguments = {"pairs": [("the one", "the key")]}  # they go by the second of the first pair
    returned = call(*[arguments.get(name, f"the {name}") for name in names])
    if method == "lock":
        with returned:
            assert seen == [("lock", "the key")]
        assert seen[1:] == [("unlock", "the key")]
    else:
        assert seen == [(method, "the key")]
        assert len(getattr(store.store, method).mock_calls) == 1


def test_scenarios_that_follow_one_another_walk_every_kind_of_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the first point and the last one; asked for, every point is walked."""
    monkeypatch.delenv(EVERY_POINT, raising=False)
    points = [f"{step} {number}" for number, step in enumerate("lwwwpmmxrrru")]

    def kind(point: str) -> str:
        return point[0]

    walks = [chosen(points, turn, between=2, kind=kind) for turn in range(7)]
    assert {len(walk) for walk in walks} == {3}
    assert {each for walk in walks for each in walk} >= {points[0], points[-1]}
    assert {kind(each) for walk in walks for each in walk} == set("lwpmxru")
    assert len({each for walk in walks for each in walk}) > len(points) * 2 // 3
    monkeypatch.setenv(EVERY_POINT, "1")
    assert chosen(points, 3, between=2, kind=kind) == points


def test_every_method_of_a_server_that_does_not_only_read_is_counted() -> None:
    """One that is added to the protocol belongs among the zygote's, or among the reading ones."""
    assert methods(TritonServer) == SERVER_READS | SERVER_CHANGES
