"""The store's contract on an object store in memory, which other processes reach by a socket."""

from __future__ import annotations

from multiprocessing.managers import BaseManager
from typing import TYPE_CHECKING, Any, cast

import pytest

from triton_repo.store._objects import ObjectStore
from triton_repo.testing import StoreContract
from triton_repo.testing.memory import MemoryBucket, MemoryObjects, memory_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from triton_repo.store import Store

_KEY = b"not a secret"

_CONNECT = """
from multiprocessing.managers import BaseManager
from triton_repo.store._objects import ObjectStore
from triton_repo.testing.memory import MemoryBucket
class Manager(BaseManager): pass
Manager.register("objects")
manager = Manager({address!r}, {key!r})
manager.connect()
store = ObjectStore(MemoryBucket(manager.objects(), {uri!r}))
"""


class _Manager(BaseManager):
    """Serves one `MemoryObjects`."""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Any, Any]]:
    """The manager's address, and its objects.

    One proxy for all tests: proxies of one object share a connection, which is closed when any
    of them is collected, be it in the midst of another's call (`BaseProxy._decref`).
    """
    with _Manager(("127.0.0.1", 0), _KEY) as running:
        manager: Any = running
        yield running.address, manager.objects()


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self, served: tuple[Any, Any]) -> Store:
        self.address, objects = served
        for key, _, _ in objects.listed(""):
            objects.delete(key)
        return ObjectStore(MemoryBucket(objects))

    def opening_code(self, store: Store) -> str:
        return _CONNECT.format(address=self.address, key=_KEY, uri=store.uri)


_objects = MemoryObjects()
_Manager.register("objects", lambda: _objects)


def test_a_store_of_this_process_alone_needs_nothing() -> None:
    store = memory_store()
    with store.lock(".m.lock", "me"):
        store.write("m/file", b"x")
    assert store.read("m/file") == b"x"
    assert cast("MemoryBucket", store.bucket).uri == store.uri
    assert memory_store().children("") == []
