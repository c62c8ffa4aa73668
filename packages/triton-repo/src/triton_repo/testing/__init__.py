"""The tests every store must pass, and a store that fails on demand.

For the authors of stores. It needs pytest, which this package does not depend on: nothing else
here imports this module.

```python
class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MyStore(...)  # a new and empty repository for every test
```
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import pytest

from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import (
    LockedError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)
from triton_repo.record import FileDigest
from triton_repo.scan import scan_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from triton_repo.store import PlacedTree, Store

__all__ = ["FaultyStore", "StoreContract", "WatchedStore", "make_tree"]

_T = TypeVar("_T")

#: Names that a store must neither decode, normalise nor trip over.
_ODD_NAMES = (
    "with space",
    "Größe.txt",
    "日本語",
    "a+b",
    "100%",
    "%2e%2e",
    "q?x=1&y#z",
    "back\\slash",
    "[a]*{b}",
    "a=b@c~d",
    "'quoted\"",
    ".hidden",
    "-dash",
)

#: Run by another Python: takes a lock, says so, and keeps it until it is told to stop.
_HOLD = """
import sys
{opening_code}
with store.lock({key!r}, {holder!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


def make_tree(
    directory: Path, files: Mapping[str, bytes], empty_directories: Sequence[str] = ()
) -> Tree:
    """Write files below the new directory `directory` and plan to place them all.

    Without a scan, which refuses names that a store has to keep all the same.
    """
    directory.mkdir(parents=True)
    for path, content in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path in empty_directories:
        (directory / path).mkdir(parents=True)
    placed = (
        EntryFile(PurePosixPath(path), directory / path, len(content))
        for path, content in sorted(files.items())
    )
    return Tree(tuple(placed), tuple(PurePosixPath(path) for path in empty_directories))


class StoreContract:
    """What `triton_repo.store.Store` promises, one test a promise.

    Attributes:
        freed_within_s: how many seconds the lock of a holder that was killed may last.
        refused_names: of files, which the store cannot keep as they are and so refuses.
        keys_in_a_page: how many keys it lists at a time.
    """

    freed_within_s: float = 5.0
    keys_in_a_page: int = 1_000
    refused_names: tuple[str, ...] = ()

    @pytest.fixture
    def store(self) -> Store:
        """A new and empty repository; override it."""
        raise NotImplementedError("override the fixture `store`")

    def opening_code(self, store: Store) -> str:
        """Python source that opens the same repository in another process, as `store`."""
        return f"from triton_repo.store import open_store; store = open_store({store.uri!r})"

    # -- files ----------------------------------------------------------------------------

    def test_a_usable_repository_passes_the_check(self, store: Store) -> None:
        """`check` is silent about a repository that can be written."""
        store.check()
        assert store.children("") == []

    def test_what_is_written_is_read_back(self, store: Store) -> None:
        """`write` makes the directories it needs, and `read` gives the same bytes."""
        content = bytes(range(256))
        store.write("m/deep/file", content)
        assert store.read("m/deep/file") == content
        assert store.exists("m/deep/file")
        assert store.exists("m/deep")
        assert store.exists("m")

    def test_an_empty_file_is_a_file(self, store: Store) -> None:
        """Nothing in it, and there all the same."""
        store.write("m/empty", b"")
        assert store.exists("m/empty")
        assert store.read("m/empty") == b""
        assert store.list_files("m") == {"empty": 0}

    def test_writing_again_replaces_the_whole_content(self, store: Store) -> None:
        """A shorter content leaves nothing of the longer one, and no temporary file stays."""
        store.write("m/file", b"long content")
        store.write("m/file", b"short")
        assert store.read("m/file") == b"short"
        assert store.list_files("m") == {"file": 5}

    def test_reading_what_is_missing_says_so(self, store: Store) -> None:
        """`read`, `digest`, `move` and `copy_file` of nothing raise ObjectNotFoundError."""
        store.write("m/file", b"x")
        for call in (
            lambda: store.read("m/missing"),
            lambda: store.read("missing/file"),
            lambda: store.digest("m/missing"),
            lambda: store.move("m/missing", "m/to"),
            lambda: store.copy_file("m/missing", "m/to"),
        ):
            with pytest.raises(ObjectNotFoundError):
                call()
        assert store.list_files("m") == {"file": 1}
        assert not store.exists("m/missing")

    def test_errors_name_the_repository_and_the_key(self, store: Store) -> None:
        """Whoever catches a StoreError learns where it happened."""
        with pytest.raises(StoreError) as caught:
            store.read("m/missing")
        assert caught.value.uri == store.uri
        assert caught.value.key == "m/missing"
        assert "missing" in str(caught.value)

    def test_a_digest_is_that_of_the_content(self, store: Store) -> None:
        """Size in bytes, and sha256 in lower-case hex."""
        for content in (b"", b"abc", bytes(3_000_000)):
            store.write("m/file", content)
            assert store.digest("m/file") == _digest(content)

    @pytest.mark.parametrize("name", _ODD_NAMES)
    def test_odd_names_are_kept(self, store: Store, tmp_path: Path, name: str) -> None:
        """A key's spelling is neither decoded nor changed; or it is refused."""
        if name in self.refused_names:
            for call in (lambda: store.write(f"m/{name}", b""), lambda: store.read(f"m/{name}")):
                with pytest.raises(StoreError):
                    call()
            return
        store.write(f"m/{name}", b"1")
        assert store.read(f"m/{name}") == b"1"
        store.copy_file(f"m/{name}", f"m/copies/{name}")
        store.place("m/1", make_tree(tmp_path / "source", {f"{name}/{name}": b"2"}))
        assert store.list_files("m") == {name: 1, f"copies/{name}": 1, f"1/{name}/{name}": 1}
        assert store.children("m/1") == [name]
        store.remove(f"m/{name}")
        assert not store.exists(f"m/{name}")

    # -- listings -------------------------------------------------------------------------

    def test_children_are_the_directories_right_below(self, store: Store) -> None:
        """Sorted, without files and without what is deeper."""
        for key in ("b/1/x", "b/10/x", "b/2/y/z", "b/file", "a/file"):
            store.write(key, b"x")
        assert store.children("") == ["a", "b"]
        assert store.children("b") == ["1", "10", "2"]
        assert store.children("b/1") == []

    def test_files_are_listed_by_their_relative_path(self, store: Store) -> None:
        """Every file at any depth, with its size in bytes."""
        store.write("m/config.pbtxt", b"12")
        store.write("m/1/sub/weights", b"12345")
        store.write("m2/other", b"x")
        assert store.list_files("m") == {"config.pbtxt": 2, "1/sub/weights": 5}
        assert store.list_files("m/1") == {"sub/weights": 5}

    # -- whole path segments ---------------------------------------------------------------

    def test_removing_a_model_leaves_models_sharing_its_prefix(self, store: Store) -> None:
        """`model` is neither `model_1`, `model2` nor `model.bak`."""
        others = ["model_1", "model2", "model.bak", "mode", "model-a", "model 1"]
        for name in ["model", *others]:
            store.write(f"{name}/1/file", name.encode())
        store.remove("model")
        assert not store.exists("model")
        assert store.children("") == sorted(others)
        for name in others:
            assert store.read(f"{name}/1/file") == name.encode()

    def test_removing_a_version_leaves_versions_sharing_its_digits(self, store: Store) -> None:
        """Version 1 is neither 10 nor 11."""
        for version in ("1", "10", "11"):
            store.write(f"m/{version}/file", b"x")
        store.remove("m/1")
        assert store.children("m") == ["10", "11"]

    def test_a_prefix_does_not_exist(self, store: Store) -> None:
        """`m/conf` is not there because `m/config.pbtxt` is; nor are its files listed."""
        store.write("model2/config.pbtxt", b"x")
        assert not store.exists("model")
        assert not store.exists("model2/conf")
        store.write("model/file", b"x")
        assert store.list_files("model") == {"file": 1}
        assert store.children("model") == []

    def test_moving_a_directory_leaves_directories_sharing_its_prefix(self, store: Store) -> None:
        """Moving version 1 does not take version 10 along."""
        store.write("m/1/file", b"one")
        store.write("m/10/file", b"ten")
        store.move("m/1", "m/aside/1")
        assert store.list_files("m") == {"10/file": 3, "aside/1/file": 3}

    @pytest.mark.parametrize("key", ["", ".", "..", "m/..", "m/../..", "/", "m/", "m//x", "./m"])
    def test_the_repository_itself_cannot_be_removed(self, store: Store, key: str) -> None:
        """What is not the key of one thing in the repository is refused, and all of it stays."""
        store.write("m/file", b"x")
        with pytest.raises(StoreError):
            store.remove(key)
        assert store.read("m/file") == b"x"

    # -- place ----------------------------------------------------------------------------

    def test_a_placed_tree_is_there_with_its_digests(self, store: Store, tmp_path: Path) -> None:
        """Every file at its path, and the digests of what was written are returned."""
        files = {"model.onnx": b"graph", "data/weights": bytes(100_000), "empty": b""}
        placed = store.place("m/7", make_tree(tmp_path / "source", files))
        assert dict(placed.digests()) == {path: _digest(content) for path, content in files.items()}
        assert store.list_files("m/7") == {path: len(content) for path, content in files.items()}
        for path, content in files.items():
            assert store.read(f"m/7/{path}") == content

    def test_the_source_stays_as_it_was(self, store: Store, tmp_path: Path) -> None:
        """Placing copies; an artifact may be MLflow's own directory."""
        tree = make_tree(tmp_path / "source", {"a": b"1", "sub/b": b"2"}, ["none"])
        before = scan_tree(tmp_path / "source", inside=tmp_path / "source")
        assert before == tree
        store.place("m/1", tree)
        assert scan_tree(tmp_path / "source", inside=tmp_path / "source") == before
        assert [each.source.read_bytes() for each in tree.files] == [b"1", b"2"]

    def test_empty_directories_survive(self, store: Store, tmp_path: Path) -> None:
        """An ensemble's version is an empty directory, and Triton wants to see it."""
        store.place("ensemble/1", make_tree(tmp_path / "ensemble", {}))
        assert store.exists("ensemble/1")
        assert store.children("ensemble") == ["1"]
        assert store.list_files("ensemble") == {}
        tree = make_tree(tmp_path / "model", {"file": b"x"}, ["assets", "deep/er"])
        store.place("model/1", tree)
        assert store.children("model/1") == ["assets", "deep"]
        assert store.children("model/1/deep") == ["er"]

    def test_progress_adds_up_to_the_size(self, store: Store, tmp_path: Path) -> None:
        """`on_copied` is told every byte once."""
        pieces: list[int] = []
        tree = make_tree(tmp_path / "source", {"a": bytes(5_000_000), "b": b"xyz", "c": b""})
        store.place("m/1", tree, pieces.append)
        assert sum(pieces) == tree.size_bytes

    def test_a_directory_appears_whole(self, store: Store, tmp_path: Path) -> None:
        """While it is being copied nobody sees it, nor a directory that Triton takes for one."""
        if not store.places_whole:
            pytest.skip("this store cannot rename: files appear one after another")
        seen: list[tuple[bool, list[str]]] = []

        def look(_: int) -> None:
            numbered = [name for name in store.children("m") if name[:1].isdigit()]
            seen.append((store.exists("m/3"), [*numbered, *store.children("")]))

        store.write("m/config.pbtxt", b"")
        store.place("m/3", make_tree(tmp_path / "source", {"a": b"1", "b": b"2"}), look)
        assert seen == [(False, ["m"])] * 2
        assert store.exists("m/3")

    @pytest.mark.parametrize("there", ["directory", "empty directory", "file"])
    def test_placing_over_something_fails_and_leaves_it(
        self, store: Store, tmp_path: Path, there: str
    ) -> None:
        """Version directories never change once they are visible."""
        if there == "directory":
            store.place("m/1", make_tree(tmp_path / "old", {"old": b"old"}))
        elif there == "empty directory":
            store.place("m/1", make_tree(tmp_path / "old", {}))
        else:
            store.write("m/1", b"old")
        before = store.list_files("m")
        with pytest.raises(StoreError):
            store.place("m/1", make_tree(tmp_path / "new", {"new": b"new"}))
        assert store.list_files("m") == before
        assert store.exists("m/1")
        assert store.children("m") == ([] if there == "file" else ["1"])

    def test_a_place_that_fails_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        """A source that vanishes midway is an error, and what was copied before it is gone."""
        tree = make_tree(tmp_path / "source", {"a": b"1", "b": b"2", "c": b"3"})
        (tmp_path / "source" / "b").unlink()
        store.write("m/config.pbtxt", b"")
        with pytest.raises(StoreError):
            store.place("m/1", tree)
        assert store.list_files("m") == {"config.pbtxt": 0}
        assert store.children("m") == []

    def test_an_interrupted_place_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        """Ctrl-C goes through, and nothing stays behind."""

        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        store.write("m/config.pbtxt", b"")
        with pytest.raises(KeyboardInterrupt):
            store.place("m/1", make_tree(tmp_path / "source", {"a": b"1"}), interrupt)
        assert store.list_files("m") == {"config.pbtxt": 0}
        assert store.children("m") == []

    # -- move, copy, remove ------------------------------------------------------------------

    def test_a_file_moves_over_another(self, store: Store) -> None:
        """The target is replaced and the source is gone."""
        store.write("m/new", b"new")
        store.write("m/old", b"old content")
        store.move("m/new", "m/old")
        assert store.read("m/old") == b"new"
        assert store.list_files("m") == {"old": 3}

    def test_a_directory_moves_with_all_that_is_in_it(self, store: Store, tmp_path: Path) -> None:
        """Empty directories too, to a place whose parents are not there yet."""
        store.place("m/1", make_tree(tmp_path / "source", {"a": b"1", "b/c": b"2"}, ["none"]))
        store.move("m/1", "m/aside/deep/1")
        assert not store.exists("m/1")
        assert store.list_files("m/aside") == {"deep/1/a": 1, "deep/1/b/c": 1}
        assert store.children("m/aside/deep/1") == ["b", "none"]

    def test_an_empty_directory_moves(self, store: Store, tmp_path: Path) -> None:
        """An ensemble's version can be set aside, and come back."""
        store.place("m/1", make_tree(tmp_path / "source", {}))
        store.move("m/1", "m/aside/1")
        assert not store.exists("m/1")
        assert store.children("m/aside") == ["1"]

    def test_two_directories_change_places(self, store: Store, tmp_path: Path) -> None:
        """With all that is in them, empty directories too."""
        store.place("m/1", make_tree(tmp_path / "one", {"a": b"1", "b/c": b"22"}, ["none"]))
        store.place("m/aside/2", make_tree(tmp_path / "two", {"a": b"333"}, ["nothing/here"]))
        store.exchange([("m/1", "m/aside/2")])
        assert store.list_files("m") == {"1/a": 3, "aside/2/a": 1, "aside/2/b/c": 2}
        assert store.children("m/1") == ["nothing"]
        assert store.children("m/1/nothing") == ["here"]
        assert store.children("m/aside/2") == ["b", "none"]
        store.exchange([("m/1", "m/aside/2")])
        assert store.list_files("m") == {"1/a": 1, "1/b/c": 2, "aside/2/a": 3}

    def test_an_empty_directory_changes_places_too(self, store: Store, tmp_path: Path) -> None:
        """An ensemble's version, with one that has files."""
        store.place("m/1", make_tree(tmp_path / "one", {}))
        store.place("m/aside/1", make_tree(tmp_path / "two", {"a": b"1"}))
        store.exchange([("m/1", "m/aside/1")])
        assert store.list_files("m") == {"1/a": 1}
        assert store.children("m/aside") == ["1"]

    def test_a_whole_model_changes_places(self, store: Store) -> None:
        """What is right at the root may be named first or second."""
        store.write("m/1/a", b"old")
        store.write("other/sub/m/1/a", b"newer")
        store.exchange([("m", "other/sub/m")])
        assert store.list_files("") == {"m/1/a": 5, "other/sub/m/1/a": 3}
        store.exchange([("other/sub/m", "m")])
        assert store.list_files("") == {"m/1/a": 3, "other/sub/m/1/a": 5}
        assert store.children("") == ["m", "other"]

    def test_two_files_change_places(self, store: Store) -> None:
        """In one directory, and in two."""
        store.write("m/a", b"1")
        store.write("m/b", b"22")
        store.write("m/sub/c", b"333")
        store.exchange([("m/a", "m/b")])
        store.exchange([("m/a", "m/sub/c")])
        assert store.list_files("m") == {"a": 3, "b": 1, "sub/c": 2}

    def test_nothing_changes_places_with_what_is_missing(self, store: Store) -> None:
        """ObjectNotFoundError, whichever it is, and everything stays."""
        store.write("m/1/a", b"1")
        for key, other in (("m/1", "m/2"), ("m/2", "m/1"), ("m/1", "n/2"), ("m/2", "m/3")):
            with pytest.raises(ObjectNotFoundError):
                store.exchange([(key, other)])
            assert store.list_files("") == {"m/1/a": 1}
            assert store.children("") == ["m"]
            assert store.children("m") == ["1"]

    def test_nothing_changes_places_with_what_is_in_it(self, store: Store) -> None:
        """An error, and everything stays."""
        store.write("m/1/a", b"1")
        for key, other in (("m", "m/1"), ("m/1", "m")):
            with pytest.raises(StoreError):
                store.exchange([(key, other)])
            assert store.list_files("") == {"m/1/a": 1}

    def test_a_copy_has_the_same_content_and_leaves_its_source(self, store: Store) -> None:
        """Over nothing and over another file."""
        store.write("m/labels", b"cat dog")
        store.write("m/old", b"something longer than that")
        for to in ("m/aside/labels", "m/old"):
            store.copy_file("m/labels", to)
            assert store.read(to) == b"cat dog"
        store.write("m/labels", b"changed")
        assert store.read("m/aside/labels") == b"cat dog"
        assert store.list_files("m") == {"labels": 7, "aside/labels": 7, "old": 7}

    def test_removing_what_is_not_there_is_fine(self, store: Store) -> None:
        """Nothing happens, to it or to its neighbours."""
        store.write("m/file", b"x")
        for key in ("m/missing", "missing", "missing/deep"):
            store.remove(key)
        assert store.list_files("m") == {"file": 1}
        assert store.children("") == ["m"]

    def test_removing_takes_everything_below(self, store: Store, tmp_path: Path) -> None:
        """A file, a version, a whole model; nothing is left of them."""
        store.write("m/file", b"x")
        store.place("m/1", make_tree(tmp_path / "source", {"a/b/c": b"1"}, ["none"]))
        store.place("m/2", make_tree(tmp_path / "second", {"a": b"1"}))
        store.remove("m/file")
        store.remove("m/1")
        assert store.list_files("m") == {"2/a": 1}
        assert store.children("m") == ["2"]
        store.remove("m")
        assert not store.exists("m")
        assert store.children("") == []

    def test_more_files_than_a_page_are_listed_and_removed(
        self, store: Store, tmp_path: Path
    ) -> None:
        """Object stores list so many keys at a time."""
        count = self.keys_in_a_page + 50
        tree = make_tree(tmp_path / "source", {f"{number:04}": b"" for number in range(count)})
        store.place("m/1", tree)
        assert len(store.list_files("m/1")) == len(tree.files)
        store.remove("m/1")
        assert not store.exists("m/1")

    def test_sweeping_leaves_what_is_whole(self, store: Store, tmp_path: Path) -> None:
        """Only what a killed call left half-made goes; a missing key is fine."""
        store.write("m/config.pbtxt", b"1")
        store.write("m/.hidden/file", b"2")
        store.place("m/1", make_tree(tmp_path / "source", {"a": b"3"}, ["none"]))
        store.sweep("m")
        store.sweep("missing")
        assert store.list_files("m") == {"config.pbtxt": 1, ".hidden/file": 1, "1/a": 1}
        assert store.children("m/1") == ["none"]
        assert not store.exists("missing")

    def test_sweeping_the_root_takes_nothing_that_is_whole(
        self, store: Store, tmp_path: Path
    ) -> None:
        """Files at the root that only look like ours, models, and what is in them."""
        names = (".m.lock", "package.lock", ".hidden", "README.md", "empty.lock")
        for name in names:
            store.write(name, b"" if name == "empty.lock" else b'{"not": "ours"}')
        store.place("m/1", make_tree(tmp_path / "source", {"a.lock": b"3"}, ["none"]))
        before = store.list_files("")
        store.sweep("")
        assert store.list_files("") == before
        assert store.children("m/1") == ["none"]

    def test_sweeping_the_root_leaves_locks_that_are_held(self, store: Store) -> None:
        """By this process and by another."""
        with (
            store.lock(".a.lock", "here"),
            self._held_elsewhere(store, ".b.lock", "elsewhere"),
        ):
            store.sweep("")
            for key, holder in ((".a.lock", "here"), (".b.lock", "elsewhere")):
                with pytest.raises(LockedError) as caught, store.lock(key, "me"):
                    pass
                assert caught.value.holder == holder

    def test_sweeping_the_root_takes_locks_of_the_dead(self, store: Store) -> None:
        """Once it is certain that they are."""
        with self._held_elsewhere(store, ".m.lock", "elsewhere") as process:
            process.kill()
            process.wait()
        deadline = time.monotonic() + self.freed_within_s
        while store.list_files(""):
            store.sweep("")
            assert time.monotonic() < deadline, f"still there after {self.freed_within_s} s"

    # -- lock -----------------------------------------------------------------------------

    def test_a_second_holder_learns_who_has_the_lock(self, store: Store) -> None:
        """LockedError says who holds it, and since when."""
        with store.lock(".m.lock", "alice@host"):
            with pytest.raises(LockedError) as caught, store.lock(".m.lock", "bob@host"):
                pass
            assert caught.value.holder == "alice@host"
            assert caught.value.since
            assert "alice@host" in str(caught.value)

    def test_a_released_lock_can_be_taken(self, store: Store) -> None:
        """Again and again, and who held it before is forgotten."""
        for holder in ("somebody with a long name", "bob"):
            with store.lock(".m.lock", holder):
                with pytest.raises(LockedError) as caught, store.lock(".m.lock", "other"):
                    pass
                assert caught.value.holder == holder

    def test_an_exception_releases_the_lock(self, store: Store) -> None:
        """And passes through as it is."""
        for error in (ValueError, KeyboardInterrupt):
            with pytest.raises(error), store.lock(".m.lock", "alice"):
                raise error
            with store.lock(".m.lock", "bob"):
                pass

    def test_a_failed_attempt_leaves_the_lock_with_its_holder(self, store: Store) -> None:
        """Who was refused has not released anybody else's lock."""
        with store.lock(".m.lock", "alice"):
            for _ in range(2):
                with pytest.raises(LockedError), store.lock(".m.lock", "bob"):
                    pass

    def test_different_keys_do_not_block_each_other(self, store: Store) -> None:
        """Two models are changed at once, even where one's name begins with the other's."""
        with store.lock(".m.lock", "alice"), store.lock(".m.lock2", "bob"):
            pass

    def test_a_lock_is_no_model(self, store: Store) -> None:
        """It adds no directory at the root, which Triton would list."""
        with store.lock(".m.lock", "alice"):
            assert store.children("") == []
        assert store.children("") == []

    def test_a_lock_of_another_process_holds(self, store: Store) -> None:
        """Until that process is done."""
        with self._held_elsewhere(store, ".m.lock", "elsewhere") as process:
            with pytest.raises(LockedError) as caught, store.lock(".m.lock", "here"):
                pass
            assert caught.value.holder == "elsewhere"
            process.communicate()  # closes its input: it is done
            with store.lock(".m.lock", "here"):
                pass

    def test_who_waits_gets_the_lock_when_its_holder_is_done(self, store: Store) -> None:
        """And not before."""
        with self._held_elsewhere(store, ".m.lock", "elsewhere") as process:
            assert process.stdin is not None
            closing = threading.Timer(0.5, process.stdin.close)
            closing.start()
            with store.lock(".m.lock", "here", wait_s=60):
                assert closing.finished.is_set()
            closing.join()

    def test_who_has_waited_long_enough_is_told_how_long(self, store: Store) -> None:
        """And who has it since when, as always."""
        with store.lock(".m.lock", "alice"):
            began = time.monotonic()
            with pytest.raises(LockedError, match=r"alice since .*waited 0\.\d+ s") as caught:
                store.lock(".m.lock", "bob", wait_s=0.5).__enter__()
            assert time.monotonic() - began >= 0.5  # noqa: PLR2004 - as long as was asked for
            assert caught.value.holder == "alice"
            assert caught.value.since
            with pytest.raises(LockedError) as caught, store.lock(".m.lock", "bob"):
                pass
            assert "waited" not in str(caught.value)

    def test_a_killed_holders_lock_is_free(self, store: Store) -> None:
        """And the next holder's name is not mixed with the dead one's."""
        with self._held_elsewhere(store, ".m.lock", "x" * 200) as process:
            process.kill()
            process.wait()
        deadline = time.monotonic() + self.freed_within_s
        while True:
            with suppress(LockedError), store.lock(".m.lock", "next"):
                with pytest.raises(LockedError) as caught, store.lock(".m.lock", "other"):
                    pass
                assert caught.value.holder == "next"
                return
            assert time.monotonic() < deadline, f"still locked after {self.freed_within_s} s"
            time.sleep(0.05)

    @contextmanager
    def _held_elsewhere(
        self, store: Store, key: str, holder: str
    ) -> Iterator[subprocess.Popen[str]]:
        code = _HOLD.format(opening_code=self.opening_code(store), key=key, holder=holder)
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n", "the other process took no lock"
            yield process
            process.kill()


def _digest(content: bytes) -> FileDigest:
    return FileDigest(len(content), hashlib.sha256(content).hexdigest())


@dataclass
class WatchedStore:
    """A store whose changing calls all go through `change`, for tests to count and disturb.

    Attributes:
        store: does the work.
    """

    store: Store

    def change(self, what: str, key: str, call: Callable[[], _T]) -> _T:
        """Carry out one changing call, or do something else instead; override it.

        Args:
            what: the method; taking a lock is `lock`, giving it back is `unlock`.
            key: what it changes.
            call: does it.
        """
        raise NotImplementedError("override `change`")

    @property
    def uri(self) -> str:
        """See `Store`."""
        return self.store.uri

    @property
    def readers(self) -> int:
        """See `Store`."""
        return self.store.readers

    @property
    def places_whole(self) -> bool:
        """See `Store`."""
        return self.store.places_whole

    @property
    def resumes(self) -> bool:
        """See `Store`."""
        return self.store.resumes

    @property
    def can_fill_up(self) -> bool:
        """See `Store`."""
        return self.store.can_fill_up

    def copies_from(self, uri: str, endpoint: str) -> bool:
        """See `Store`."""
        return self.store.copies_from(uri, endpoint)

    def check(self) -> None:
        """See `Store`."""
        self.store.check()

    def snapshot(self) -> Store:
        """See `Store`."""
        return self.store.snapshot()

    def children(self, key: str) -> list[str]:
        """See `Store`."""
        return self.store.children(key)

    def list_files(self, key: str) -> dict[str, int]:
        """See `Store`."""
        return self.store.list_files(key)

    def exists(self, key: str) -> bool:
        """See `Store`."""
        return self.store.exists(key)

    def read(self, key: str) -> bytes:
        """See `Store`."""
        return self.store.read(key)

    def digest(self, key: str) -> FileDigest:
        """See `Store`."""
        return self.store.digest(key)

    def write(self, key: str, data: bytes) -> None:
        """See `Store`; watched."""
        self.change("write", key, lambda: self.store.write(key, data))

    def place(
        self,
        key: str,
        tree: Tree,
        on_copied: Callable[[int], None] | None = None,
        *,
        sent: str = "",
    ) -> PlacedTree:
        """See `Store`; watched."""
        return self.change("place", key, lambda: self.store.place(key, tree, on_copied, sent=sent))

    def move(self, key: str, to: str) -> None:
        """See `Store`; watched."""
        self.change("move", key, lambda: self.store.move(key, to))

    def exchange(self, pairs: Sequence[tuple[str, str]]) -> None:
        """See `Store`; watched."""
        self.change("exchange", pairs[0][1], lambda: self.store.exchange(pairs))

    def copy_file(self, key: str, to: str) -> None:
        """See `Store`; watched."""
        self.change("copy_file", key, lambda: self.store.copy_file(key, to))

    def remove(self, key: str) -> None:
        """See `Store`; watched."""
        self.change("remove", key, lambda: self.store.remove(key))

    def sweep(self, key: str) -> None:
        """See `Store`; watched."""
        self.change("sweep", key, lambda: self.store.sweep(key))

    @contextmanager
    def lock(self, key: str, holder: str, wait_s: float = 0.0) -> Iterator[None]:
        """See `Store`; taking it and giving it back are watched."""
        held = self.store.lock(key, holder, wait_s)
        self.change("lock", key, held.__enter__)
        try:
            yield
        finally:
            self.change("unlock", key, lambda: held.__exit__(None, None, None))


@dataclass
class FaultyStore(WatchedStore):
    """A store whose `fail_at`-th changing call fails, for tests of what is left behind.

    Attributes:
        fail_at: which changing call fails, counted from 1; 0 for none.
        after: whether the call is carried out before it fails: the answer is lost, not the call.
        calls: the changing calls so far, as `method key`.
    """

    fail_at: int = 0
    after: bool = False
    calls: list[str] = field(default_factory=list)

    def change(self, what: str, key: str, call: Callable[[], _T]) -> _T:
        """See `WatchedStore`."""
        self.calls.append(f"{what} {key}")
        fails = len(self.calls) == self.fail_at
        if fails and not self.after:
            raise self._fault(key)
        result = call()
        if fails:
            raise self._fault(key)
        return result

    def _fault(self, key: str) -> StoreUnavailableError:
        return StoreUnavailableError("failed on demand", uri=self.uri, key=key)
