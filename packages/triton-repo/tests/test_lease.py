"""One writer at a time in an object store: leases, takers-over, and stores without conditions."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.errors import LockedError, StoreError, StoreUnavailableError
from triton_repo.store import _lease, _locked, _s3, open_store
from triton_repo.store._objects import ObjectStore
from triton_repo.testing import make_tree
from triton_repo.testing.memory import MemoryBucket, MemoryObjects
from triton_repo.testing.proxy import Fault, FaultyProxy, Request
from triton_repo.testing.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

KEY = ".resnet.mlflow-triton.lock"

#: Seconds, for tests: a lease of many beats, because the machine may be busy.
PACE = {"_BEAT_S": 0.1, "_LEASE_S": 2.0, "_SETTLE_S": 0.3}


@pytest.fixture(autouse=True)
def _pace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in PACE.items():
        monkeypatch.setattr(_lease, name, seconds)


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def store(objects: MemoryObjects) -> ObjectStore:
    return ObjectStore(MemoryBucket(objects))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on this process is on another machine."""

    def move(machine: str) -> None:
        monkeypatch.setattr(_lease, "_machine", lambda: machine)

    move("here")
    return move


def left_by(objects: MemoryObjects, store: ObjectStore, machine: str = "far") -> None:
    """A lock whose holder was killed."""
    note = _lease._Note("dead@far", "2026-01-01", "claim", machine, 2**22, "1")
    objects.put(KEY, note.to_bytes())


def test_a_holder_who_beats_keeps_the_lock_for_as_long_as_it_likes(store: ObjectStore) -> None:
    with store.lock(KEY, "me"):
        deadline = time.monotonic() + 1.5 * PACE["_LEASE_S"]
        while time.monotonic() < deadline:
            with pytest.raises(LockedError, match="is being changed by me since"):
                store.lock(KEY, "other").__enter__()
            time.sleep(0.2)
    assert store.list_files("") == {}


def test_a_dead_holder_elsewhere_keeps_the_lock_for_a_lease(
    store: ObjectStore, objects: MemoryObjects
) -> None:
    left_by(objects, store)
    began_s = time.monotonic()
    with pytest.raises(LockedError, match="dead@far since 2026-01-01"):
        store.lock(KEY, "me").__enter__()
    with store.lock(KEY, "me", wait_s=30):
        assert time.monotonic() - began_s >= PACE["_LEASE_S"]
    assert not store.exists(KEY)


def test_a_sweep_leaves_what_may_be_a_living_holders_for_a_day(
    store: ObjectStore, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(objects, store)
    time.sleep(1.1 * PACE["_LEASE_S"])
    store.sweep("")
    assert store.exists(KEY)
    assert _lease._FORGOTTEN_S == 24 * 3600
    monkeypatch.setattr(_lease, "_FORGOTTEN_S", PACE["_LEASE_S"])
    store.sweep("")
    assert not store.exists(KEY)


@pytest.mark.usefixtures("elsewhere")
def test_a_dead_holder_of_this_machine_does_not_keep_it(
    store: ObjectStore, objects: MemoryObjects
) -> None:
    """There is no such process; nor was that number's process there already when it was."""
    for sweeps in (True, False):
        left_by(objects, store, machine="here")
        if sweeps:
            store.sweep("")
            assert not store.exists(KEY)
        else:
            with store.lock(KEY, "me"):
                pass


@pytest.fixture
def stopped(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """A lock whose holder was not heard of for a lease, and goes on now."""
    with monkeypatch.context() as patch:
        patch.setattr(_lease, "_BEAT_S", 1e6)
        held = store.lock(KEY, "me")
        held.__enter__()
    time.sleep(1.2 * PACE["_LEASE_S"])
    return held


def test_who_stands_still_for_a_lease_writes_nothing_more_once_somebody_took_over(
    store: ObjectStore,
    objects: MemoryObjects,
    stopped: AbstractContextManager[None],
    tmp_path: Path,
) -> None:
    """Whatever it was about to do, and at its end it is told, too."""
    objects.put("m/a", b"a")
    tree = make_tree(tmp_path / "tree", {"file": b"1"})
    writes: list[Callable[[], object]] = [
        lambda: store.write("m/b", b""),
        lambda: store.place("m/1", tree),
        lambda: store.move("m/a", "m/b"),
        lambda: store.copy_file("m/a", "m/b"),
        lambda: store.remove("m"),
    ]
    with ObjectStore(MemoryBucket(objects)).lock(KEY, "the other", wait_s=10):
        for write in writes:
            with pytest.raises(LockedError, match="the other took over the lock of resnet at"):
                write()
        with pytest.raises(LockedError, match="the other took over the lock of resnet at"):
            stopped.__exit__(None, None, None)
        assert store.list_files("m") == {"a": 1}
    assert not store.exists(KEY)


def test_who_stands_still_is_told_even_if_the_other_is_done_already(
    store: ObjectStore, objects: MemoryObjects, stopped: AbstractContextManager[None]
) -> None:
    with ObjectStore(MemoryBucket(objects)).lock(KEY, "the other", wait_s=10):
        pass
    with pytest.raises(LockedError, match="somebody else took over"):
        store.write("m/a", b"")
    with pytest.raises(LockedError, match="somebody else took over"):
        stopped.__exit__(None, None, None)
    assert store.list_files("") == {}


def test_who_stood_still_unnoticed_goes_on(
    store: ObjectStore, objects: MemoryObjects, stopped: AbstractContextManager[None]
) -> None:
    """It has the lock for another lease, from its first write on."""
    store.write("m/a", b"")
    with pytest.raises(LockedError, match="being changed by me"):
        ObjectStore(MemoryBucket(objects)).lock(KEY, "the other").__enter__()
    stopped.__exit__(None, None, None)
    assert store.list_files("") == {"m/a": 0}


def _unreachable(*_: object, **__: object) -> str:
    raise StoreUnavailableError("out of reach", uri="memory://")


def test_one_of_several_gets_a_dead_holders_lock(objects: MemoryObjects) -> None:
    """And the others are refused, or wait for it."""
    for _ in range(2):
        left_by(objects, ObjectStore(MemoryBucket(objects)))
        time.sleep(PACE["_LEASE_S"])
        inside: list[int] = []
        most: list[int] = []

        def take(number: int, inside: list[int] = inside, most: list[int] = most) -> None:
            store = ObjectStore(MemoryBucket(objects))
            with store.lock(KEY, f"taker {number}", wait_s=30):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.05)
                inside.remove(number)

        threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1, 1, 1, 1]


def test_a_lock_that_could_not_be_given_back_is_free_for_this_process(
    store: ObjectStore, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was out of reach; to others it is free after a lease."""
    delete = MemoryBucket.delete_replaced
    with store.lock(KEY, "me"):
        monkeypatch.setattr(MemoryBucket, "delete_replaced", _unreachable)
    monkeypatch.setattr(MemoryBucket, "delete_replaced", delete)
    assert store.exists(KEY)
    with store.lock(KEY, "me again"):
        pass
    assert not store.exists(KEY)


def test_what_is_no_lock_of_ours_is_respected_for_a_lease_and_never_swept(
    store: ObjectStore, objects: MemoryObjects
) -> None:
    objects.put(KEY, b"{}")
    with pytest.raises(LockedError, match="somebody else since an unknown time"):
        store.lock(KEY, "me").__enter__()
    time.sleep(PACE["_LEASE_S"])
    store.sweep("")
    assert store.exists(KEY)


def test_a_store_without_conditional_writes_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is refused: nobody could be kept out. Nothing is left there."""
    with S3Server() as server, FaultyProxy(server.url) as proxy:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("models")
        proxy.drops |= {"if-none-match", "if-match"}
        store = open_store(f"s3://{proxy.url}/models")
        with pytest.raises(StoreError, match=r"takes no notice of If-None-Match: two commands"):
            store.lock(KEY, "me").__enter__()
        assert store.list_files("") == {}


def test_a_store_that_knows_half_of_the_conditions_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A beat could overwrite the lock of who has taken over."""
    with S3Server() as server, FaultyProxy(server.url) as proxy:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("models")
        proxy.drops |= {"if-match"}
        store = open_store(f"s3://{proxy.url}/models")
        with pytest.raises(StoreError, match=r"takes no notice of If-Match: two commands"):
            store.lock(KEY, "me").__enter__()
        assert store.list_files("") == {}


def test_one_answer_that_does_not_come_does_not_cost_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beats are patient for a moment only, unlike everything else."""
    monkeypatch.setattr(_s3, "_BEAT_TIMEOUT_S", 0.3)
    with S3Server() as server, FaultyProxy(server.url) as proxy:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("models")
        store = open_store(f"s3://{proxy.url}/models")
        stalled: list[int] = []

        def stall(number: int, request: Request) -> Fault | None:
            beats = request.method == "PUT" and request.path.endswith(KEY)
            if beats and len(stalled) < 1:
                stalled.append(number)
                return "stall"
            return None

        with store.lock(KEY, "me"):
            proxy.fault = stall
            deadline = time.monotonic() + 2 * PACE["_LEASE_S"]
            while time.monotonic() < deadline:
                with pytest.raises(LockedError, match="being changed by me"):
                    open_store(f"s3://{server.url}/models").lock(KEY, "other").__enter__()
                time.sleep(0.2)
            store.write("m/a", b"")
        assert stalled
        assert store.list_files("") == {"m/a": 0}


def test_a_process_that_we_are_not_let_see_is_not_dead(
    store: ObjectStore, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hidepid` hides other users' processes."""
    monkeypatch.setattr(_lease, "_machine", lambda: "here")
    note = _lease._Note("other@here", "2026-01-01", "claim", "here", os.getppid(), "123")
    objects.put(KEY, note.to_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(_lease, "_started", lambda _: "")
        store.sweep("")
        assert store.exists(KEY)
    store.sweep("")  # it can be seen, and began at another time
    assert not store.exists(KEY)


def test_a_lock_that_comes_and_goes_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_locked, "_VANISHING_S", 0.1)
    with pytest.raises(LockedError, match="resnet is being changed by others, in turn, since"):
        _locked.wait_for(KEY, lambda: (None, None), wait_s=0, pause_s=0.01)


def test_what_was_interrupted_is_asked_for_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while an answer is on its way: it may have been done, and an undo must see that."""
    put, delete, copy = MemoryBucket.put, MemoryBucket.delete, MemoryBucket.copy

    def interrupted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: Any, **named: Any) -> object:
            call(*arguments, **named)
            if arguments[1] != KEY:
                raise KeyboardInterrupt
            return ""

        return wrapped

    store.write("m/a", b"old")
    with store.lock(KEY, "me"):
        assert store.read("m/a") == b"old"
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBucket, "put", interrupted(put))
            with pytest.raises(KeyboardInterrupt):
                store.write("m/a", b"new")
        assert store.read("m/a") == b"new"
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBucket, "copy", interrupted(copy))
            with pytest.raises(KeyboardInterrupt):
                store.copy_file("m/a", "m/b")
            assert store.exists("m/b")
            with pytest.raises(KeyboardInterrupt):
                store.move("m/b", "m/c")
        assert store.exists("m/c")
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBucket, "delete", interrupted(delete))
            with pytest.raises(KeyboardInterrupt):
                store.remove("m/a")
        assert not store.exists("m/a")


def test_an_upload_ends_where_the_lock_was_lost(
    store: ObjectStore,
    objects: MemoryObjects,
    stopped: AbstractContextManager[None],
    tmp_path: Path,
) -> None:
    """Files that were to follow are not sent over the other's, nor is anything removed."""
    other = ObjectStore(MemoryBucket(objects))
    tree = make_tree(tmp_path / "tree", {f"file-{number}": b"mine" for number in range(9)})
    names = iter(tree.names())

    def take_over(_: int) -> None:
        if next(names) == "file-2":
            time.sleep(1.1 * PACE["_LEASE_S"])
            with other.lock(KEY, "other", wait_s=10):
                other.remove("m")
                other.write("m/1/file-5", b"theirs")

    with pytest.raises(LockedError, match="somebody else took over"):
        store.place("m/1", tree, take_over)
    with pytest.raises(LockedError):
        stopped.__exit__(None, None, None)
    assert other.list_files("") == {"m/1/file-5": 6}
