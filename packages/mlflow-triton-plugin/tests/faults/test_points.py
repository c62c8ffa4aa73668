"""The points are all there: a call that nobody counts would be one that nobody dies at."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import MagicMock

import pytest

from mlflow_triton_plugin.server import TritonServer
from triton_repo.store import Store
from triton_repo.testing import WatchedStore

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


def test_every_method_of_a_server_that_does_not_only_read_is_counted() -> None:
    """One that is added to the protocol belongs among the zygote's, or among the reading ones."""
    assert methods(TritonServer) == SERVER_READS | SERVER_CHANGES
