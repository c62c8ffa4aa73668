"""`LocalStore`: the contract of every store, and what only a directory can show."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from triton_repo.errors import (
    LockedError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from triton_repo.store import LocalStore, _exchange, open_store
from triton_repo.testing import StoreContract, make_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and changes users")


class TestLocalStore(StoreContract):
    """A directory is a store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        root = tmp_path / "repository"
        root.mkdir()
        return LocalStore(root)


class TestExchangeInThreeSteps:
    """What the contract says of an exchange, where nothing can exchange at once."""

    @pytest.fixture(autouse=True, params=["file system", "C library"])
    def _no_exchange(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        answer = None if request.param == "C library" else lambda *_: errno.EINVAL
        monkeypatch.setattr(_exchange, "_renameat2", lambda: answer)

    test_directories = StoreContract.test_two_directories_change_places
    test_an_empty_directory = StoreContract.test_an_empty_directory_changes_places_too
    test_a_whole_model = StoreContract.test_a_whole_model_changes_places
    test_files = StoreContract.test_two_files_change_places
    test_what_is_missing = StoreContract.test_nothing_changes_places_with_what_is_missing
    test_what_is_inside = StoreContract.test_nothing_changes_places_with_what_is_in_it


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    root = tmp_path / "repository"
    root.mkdir()
    return LocalStore(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[LocalStore]:
    """A repository on a disk of 1 MB."""
    root = tmp_path / "disk"
    root.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(root)], check=True
    )
    yield LocalStore(root)
    subprocess.run(["umount", "-l", str(root)], check=True)


def everything(store: LocalStore) -> list[str]:
    """Every path below the root, whatever it is."""
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*"))


def as_nobody(call: Callable[[], str]) -> str:
    """What `call` returns to a user who owns nothing here; a fork, so that nothing is imported."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            answer = call()
        except BaseException as exc:  # noqa: BLE001 - told to the parent, which asserts
            answer = repr(exc)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:  # noqa: PTH123 - a descriptor
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def open_to_all(directory: Path) -> None:
    """Temporary directories of pytest let nobody else in."""
    for each in (directory, *directory.parents):
        if each.name.startswith(("pytest-", "popen-", "test_")):
            each.chmod(0o755)


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "file://localhost{}"])
def test_paths_and_file_addresses_open_the_same_directory(tmp_path: Path, spelling: str) -> None:
    store = open_store(spelling.format(tmp_path))
    assert isinstance(store, LocalStore)
    assert store.uri == str(tmp_path)


def test_an_escaped_file_address_is_decoded_once(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/a%20b%2525")
    assert store.uri == f"{tmp_path}/a b%25"


@pytest.mark.parametrize("address", ["gs://bucket/x", "https://host/x", "file://elsewhere/x"])
def test_an_address_that_is_not_served_is_never_a_local_folder(address: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(address)
    assert caught.value.uri == address


def test_a_repository_that_is_not_there_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(StoreAccessError, match="does not exist; TRITON_MODEL_REPO"):
        LocalStore(tmp_path / "missing").check()
    (tmp_path / "file").touch()
    with pytest.raises(StoreAccessError, match="is not a directory"):
        LocalStore(tmp_path / "file").check()


def test_the_root_is_never_made(tmp_path: Path) -> None:
    """A mistyped TRITON_MODEL_REPO must not become a directory that no server reads."""
    store = LocalStore(tmp_path / "missing")
    with pytest.raises(StoreError):
        store.write("m/config.pbtxt", b"")
    with pytest.raises(StoreError):
        store.place("m/1", make_tree(tmp_path / "source", {"a": b""}))
    with pytest.raises(StoreError), store.lock(".m.lock", "me"):
        pass
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("key", ["../outside", "m/../../outside", "m/./x", "/outside"])
def test_keys_stay_in_the_repository(store: LocalStore, tmp_path: Path, key: str) -> None:
    with pytest.raises(StoreError, match="no key"):
        store.write(key, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository"]
    assert everything(store) == []


# -- who may read and write -------------------------------------------------------------------


def test_the_umask_decides_who_may_read(store: LocalStore, tmp_path: Path) -> None:
    """The server may run as somebody else; the artifact's own modes say nothing about it."""
    tree = make_tree(tmp_path / "source", {"run.sh": b"1", "sub/model": b"2"})
    (tmp_path / "source" / "run.sh").chmod(0o700)
    (tmp_path / "source" / "sub" / "model").chmod(0o600)
    (tmp_path / "source" / "sub").chmod(0o700)
    before = os.umask(0o027)
    try:
        store.place("m/1", tree)
        store.write("m/config.pbtxt", b"")
        store.copy_file("m/config.pbtxt", "m/copy")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE((store.root / path).stat().st_mode) for path in everything(store)}
    assert modes == {
        "m": 0o750,
        "m/1": 0o750,
        "m/1/run.sh": 0o740,
        "m/1/sub": 0o750,
        "m/1/sub/model": 0o640,
        "m/config.pbtxt": 0o640,
        "m/copy": 0o640,
    }


@needs_root
def test_another_user_can_read_what_was_placed(store: LocalStore, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    store.place("m/1", make_tree(tmp_path / "source", {"model": b"read me"}))
    assert as_nobody(lambda: store.read("m/1/model").decode()) == "read me"


def test_a_lost_permission_is_an_access_error_that_leaves_nothing(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root ignores modes: where we are root, the system call says what it says to others."""
    store.write("m/config.pbtxt", b"old")
    tree = make_tree(tmp_path / "source", {"a": b"1"})
    (store.root / "m").chmod(0o555)
    if os.geteuid() == 0:

        def denied(path: object, *_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", denied)
        monkeypatch.setattr(Path, "rename", denied)
        monkeypatch.setattr(Path, "replace", denied)
    for call in (
        lambda: store.place("m/1", tree),
        lambda: store.write("m/config.pbtxt", b"new"),
        lambda: store.move("m/config.pbtxt", "m/moved"),
    ):
        with pytest.raises(StoreAccessError, match="must be able to write"):
            call()
    monkeypatch.undo()
    (store.root / "m").chmod(0o755)
    assert everything(store) == ["m", "m/config.pbtxt"]
    assert store.read("m/config.pbtxt") == b"old"


@needs_root
def test_a_user_without_rights_gets_access_errors(store: LocalStore, tmp_path: Path) -> None:
    """With a real other user, from the check to the lock."""
    open_to_all(tmp_path)
    store.write("m/config.pbtxt", b"old")

    def refused() -> str:
        answers = []
        for call in (
            store.check,
            lambda: store.lock(".m.lock", "nobody").__enter__(),
            lambda: store.write("m/config.pbtxt", b"new"),
            lambda: store.remove("m"),
        ):
            with pytest.raises(StoreAccessError) as caught:
                call()
            answers.append(type(caught.value).__name__)
        return " ".join([*answers, store.read("m/config.pbtxt").decode()])

    assert as_nobody(refused) == "StoreAccessError " * 4 + "old"
    assert everything(store) == ["m", "m/config.pbtxt"]


# -- disks ------------------------------------------------------------------------------------


@needs_root
def test_a_full_disk_is_named_and_leaves_nothing(small_disk: LocalStore, tmp_path: Path) -> None:
    store = small_disk
    store.write("m/config.pbtxt", b"old")
    tree = make_tree(tmp_path / "source", {"a": bytes(1000), "big": bytes(5_000_000)})
    for call in (
        lambda: store.place("m/1", tree),
        lambda: store.write("m/config.pbtxt", bytes(2_000_000)),
    ):
        with pytest.raises(StoreUnavailableError, match="make room"):
            call()
    assert everything(store) == ["m", "m/config.pbtxt"]
    assert store.read("m/config.pbtxt") == b"old"


@needs_root
def test_a_full_disk_still_lets_things_be_locked_and_removed(small_disk: LocalStore) -> None:
    """What frees space must work where there is none."""
    store = small_disk
    store.write("m/file", bytes(10_000))
    filler = store.root / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with store.lock(".m.lock", "me"):
        with pytest.raises(LockedError), store.lock(".m.lock", "other"):
            pass
        store.remove("m/file")
        store.remove("m")
    assert everything(store) == ["filler"]


@needs_root
def test_a_read_only_disk_is_an_access_error(small_disk: LocalStore, tmp_path: Path) -> None:
    store = small_disk
    store.write("m/config.pbtxt", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(store.root)], check=True)
    with pytest.raises(StoreAccessError, match="cannot be written"):
        store.check()
    for call in (
        lambda: store.write("m/config.pbtxt", b"new"),
        lambda: store.place("m/1", make_tree(tmp_path / "source", {"a": b""})),
        lambda: store.remove("m"),
    ):
        with pytest.raises(StoreAccessError, match="Read-only"):
            call()
    assert store.read("m/config.pbtxt") == b"old"


# -- links and leftovers ----------------------------------------------------------------------


def test_removing_a_link_leaves_what_it_leads_to(store: LocalStore, tmp_path: Path) -> None:
    """A directory that somebody linked into the repository is not ours to empty."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    (store.root / "m").mkdir()
    (store.root / "m" / "1").symlink_to(tmp_path / "precious")
    (store.root / "linked").symlink_to(tmp_path / "precious")
    store.remove("m")
    store.remove("linked")
    assert everything(store) == []
    assert (tmp_path / "precious" / "file").read_bytes() == b"x"


def test_a_file_in_the_way_of_a_directory_is_an_error(store: LocalStore) -> None:
    store.write("m", b"a file")
    with pytest.raises(StoreError):
        store.write("m/config.pbtxt", b"")
    with pytest.raises(ObjectNotFoundError):
        store.children("m")
    assert store.read("m") == b"a file"


def test_every_temporary_name_is_hidden_from_triton(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digit in front, or it would be a version; not at the root, where it would be a model.

    And sorted after the versions: auto-complete looks into the directory that sorts first.
    """
    seen: set[str] = set()
    real_fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.update(everything(store))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    store.write("m/config.pbtxt", b"")
    store.place("m/1", make_tree(tmp_path / "source", {"a": b""}))
    store.copy_file("m/config.pbtxt", "m/2.copy")
    temporary = {path for path in seen if "_mlflow_triton_tmp" in path}
    assert len({path.split("/")[1] for path in temporary}) == 3
    assert all(path.startswith("m/_mlflow_triton_tmp-") for path in temporary)
    assert not [path for path in everything(store) if "tmp" in path]


def test_sweeping_takes_what_killed_calls_left(store: LocalStore) -> None:
    """Half-written files, half-copied and half-removed directories, at any depth."""
    store.write("m/1/a", b"x")
    store.write("m/sub/file", b"x")
    store.write("other/_mlflow_triton_tmp-1/x", b"another model's, whose lock we do not hold")
    for path in ("m/_mlflow_triton_tmp-1/deep/a", "m/sub/_mlflow_triton_tmp-2"):
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / path).write_bytes(b"half")
    store.sweep("m")
    assert store.list_files("m") == {"1/a": 1, "sub/file": 1}
    assert store.children("m") == ["1", "sub"]
    assert store.list_files("other")


# -- exchange ---------------------------------------------------------------------------------


def test_an_exchange_has_no_moment_between(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One system call: a reader finds the one or the other."""
    store.write("m/1/a", b"1")
    store.write("m/sub/1/a", b"22")
    monkeypatch.setattr(os, "rename", None)
    monkeypatch.setattr(Path, "rename", None)
    store.exchange([("m/1", "m/sub/1")])
    assert store.list_files("m") == {"1/a": 2, "sub/1/a": 1}


def test_nothing_is_exchanged_through_a_link(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "precious" / "1").mkdir(parents=True)
    store.write("m/1/a", b"1")
    (store.root / "m" / "link").symlink_to(tmp_path / "precious")
    for key, other in (("m/1", "m/link/1"), ("m/link/1", "m/1")):
        with pytest.raises(StoreAccessError, match="is a link"):
            store.exchange([(key, other)])
    assert list((tmp_path / "precious" / "1").iterdir()) == []
    assert store.read("m/1/a") == b"1"


EXCHANGES = {
    "one directory": [("m/deep/1", "m/sub/2")],
    "several": [("m/in/2", "m/2"), ("m/in/labels", "m/labels"), ("m/in/deep/b", "m/deep/b")],
    "files": [("m/in/labels", "m/labels"), ("m/in/config", "m/config")],
}
#: What changes a directory; a process can die right before each of these calls.
CALLS = ("mkdir", "rename", "fsync", "unlink", "rmdir", "symlink", "link")


@pytest.mark.parametrize("killed", [False, True], ids=["failed", "killed"])
@pytest.mark.parametrize("at_once", [False, True], ids=["in steps", "at once"])
@pytest.mark.parametrize("label", EXCHANGES)
def test_an_exchange_is_finished_or_undone_wherever_it_stops(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, label: str, *, at_once: bool, killed: bool
) -> None:
    """By the error's own way out, or by the next sweep; a reader finds all old or all new."""
    if not at_once:
        monkeypatch.setattr(_exchange, "_renameat2", lambda: None)
    pairs = EXCHANGES[label]
    whole = at_once or label == "files"  # a directory cannot trade its place in one step
    seen = set()
    for fail_at in count(1):
        for key, other in pairs:
            for path, data in ((key, b"new"), (other, b"old")):
                store.write(f"{path}/a" if path[-1] in "12" else path, data)
        before = everything(store)
        over = interrupted(store, pairs, fail_at, killed=killed)
        if whole:
            assert {content(store, other) for _, other in pairs} in ({b"old"}, {b"new"})
        store.sweep("m")
        assert everything(store) == before
        found = {(content(store, key), content(store, other)) for key, other in pairs}
        assert found in ({(b"new", b"old")}, {(b"old", b"new")})
        seen |= found
        if over:
            break
    assert (b"old", b"new") in seen
    assert fail_at > 2
    assert len(seen) == 2 or (at_once and len(pairs) == 1)


def content(store: LocalStore, key: str) -> bytes:
    """Of a file, or of the one in a directory."""
    return store.read(f"{key}/a" if key[-1] in "12" else key)


def interrupted(
    store: LocalStore, pairs: list[tuple[str, str]], fail_at: int, *, killed: bool
) -> bool:
    """Exchange, and fail or be killed before the `fail_at`-th system call; True if none was."""
    with pytest.MonkeyPatch.context() as patch:
        calls = count(1)
        for name in CALLS:
            patch.setattr(os, name, failing(getattr(os, name), calls, fail_at, killed=killed))
        child = os.fork() if killed else 0
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with suppress(StoreError):
            store.exchange(pairs)
        if killed:
            os._exit(0)
        return next(calls) <= fail_at


def failing(
    real: Callable[..., object], calls: Iterator[int], fail_at: int, *, killed: bool
) -> Callable[..., object]:
    """`real`, but for the call with that number: it fails, or the process dies."""

    def fail_or_do(*arguments: object, **options: object) -> object:
        if next(calls) == fail_at:
            if killed:
                os._exit(9)
            raise OSError(errno.EIO, "failed on demand")
        return real(*arguments, **options)

    return fail_or_do


def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "pipe")
    with pytest.raises(StoreError, match="no regular file"):
        LocalStore(tmp_path).digest("m/pipe")


def test_trash_that_cannot_be_emptied_is_no_failure(tmp_path: Path) -> None:
    """A server that runs as root leaves bytecode which its client may not remove."""
    if os.getuid() != 0:
        pytest.skip("only root can make what another user may not remove")
    root = tmp_path / "repository"
    for directory in (".", "m", "m/1", "m/1/__pycache__"):
        (root / directory).mkdir()
    (root / "m/1/__pycache__/model.pyc").write_bytes(b"x")
    for directory in (".", "m", "m/1"):
        os.chown(root / directory, _NOBODY, _NOBODY)
    open_to_all(tmp_path)
    store = LocalStore(root)

    def remove_and_sweep() -> str:
        store.remove("m/1")
        store.sweep("m")
        return "done"

    assert as_nobody(remove_and_sweep) == "done"
    assert not store.exists("m/1")
