"""A model repository in an object store: no directories, no renames, one PUT the only atomic step.

A directory is there as long as there is an object below it; an empty one holds a file that says so.
What takes more than one request leaves a note while it is under way, beside its place:

```
_mlflow_triton_tmp-…/note.json   what is being moved or exchanged, and how far it came
                    /0/…, /1/…   what an exchange has saved
```

`sweep` finishes what has a note, or undoes it where nothing was overwritten yet. In between a
reader sees some of the objects where they were, some where they will be, and some in both places.
"""

from __future__ import annotations

import json
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triton_repo.errors import ObjectNotFoundError, StoreError
from triton_repo.journal import OUR_DIRECTORY
from triton_repo.store._bucket import ObjectInfo
from triton_repo.store._lease import hold, remove_dead
from triton_repo.store._listing import Listings
from triton_repo.store._record_cache import RECORDS_FILENAME, is_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from triton_repo.entry import Tree
    from triton_repo.record import FileDigest
    from triton_repo.store._bucket import Bucket

__all__ = ["DIRECTORY_FILENAME", "ObjectStore"]

#: Stands for a directory that has nothing in it: Triton wants to see an ensemble's version.
DIRECTORY_FILENAME = ".mlflow-triton-directory"

#: No number in front, and sorted after the versions: see `_local._TEMPORARY`.
_TEMPORARY = "_mlflow_triton_tmp-"
_NOTE = "note.json"

_logger = logging.getLogger(__name__)

#: How far an exchange has come. Before the first there is nothing to undo but what was saved; from
#: it on the exchange is finished, whoever comes next: what is to be written is safe elsewhere.
_SAVING, _TAKING, _GIVING = "saving", "taking", "giving"


class ObjectStore:
    """See `Store`."""

    def __init__(self, bucket: Bucket, snapshot: Listings | None = None) -> None:
        self.bucket = bucket
        self._snapshot = snapshot
        self._listings = snapshot  # or while a lock is held
        self._fence: Callable[[], None] | None = None

    @property
    def uri(self) -> str:
        return self.bucket.uri

    @property
    def readers(self) -> int:
        return self.bucket.parallel

    @property
    def places_whole(self) -> bool:
        return False

    @property
    def resumes(self) -> bool:
        return True

    @property
    def can_fill_up(self) -> bool:
        return False

    def copies_from(self, uri: str, endpoint: str) -> bool:
        return self.bucket.copies_from(uri, endpoint)

    def check(self) -> None:
        # Triton refuses a prefix without objects, and the last model may be deleted from it; the
        # name sorts before all models'
        self.bucket.check()
        first = next(iter(self.bucket.objects("", limit=1)), None)
        if self.bucket.has_prefix and (first is None or first[0] != DIRECTORY_FILENAME):
            self.bucket.put(DIRECTORY_FILENAME, b"")

    # -- reading ------------------------------------------------------------------------------

    def snapshot(self) -> ObjectStore:
        return ObjectStore(self.bucket, Listings.of_everything(self.bucket, _says_what_is_deployed))

    def children(self, key: str) -> list[str]:
        prefix = self._inside(key)
        if self._snapshot is not None and not key:
            names, there = _directories_in(self._snapshot.listed()), True
        elif self._listings is not None and key:
            below = [path[len(prefix) :] for path in self._listings.below(key) if path != key]
            names, there = _directories_in(below), bool(below)
        else:
            found, there = self.bucket.directories(prefix)
            names = set(found)
        if key and not there:
            raise self._missing(key)
        return sorted(names)

    def list_files(self, key: str) -> dict[str, int]:
        prefix = self._inside(key)
        if self._listings is not None and key:
            listed = self._listings.below(key)
        else:
            listed = dict(self.bucket.objects(prefix))
        below = {path[len(prefix) :]: info for path, info in listed.items() if path != key}
        if key and not below:
            raise self._missing(key)
        return {path: info.size_bytes for path, info in below.items() if _is_file(path)}

    def exists(self, key: str) -> bool:
        if not key:
            return True
        self._check_key(key)
        if self._listings is not None:
            return bool(self._listings.below(key))
        for path, _ in self.bucket.objects(key, limit=1):
            if path == key or path.startswith(f"{key}/"):
                return True
            # what only begins like it may come first: "1-old" before "1/"
            return any(True for _ in self.bucket.objects(f"{key}/", limit=1))
        return False

    def read(self, key: str) -> bytes:
        self._check_key(key)
        if self._listings is not None:
            return self._listings.read(key)
        return self.bucket.get(key).data

    def digest(self, key: str) -> FileDigest:
        self._check_key(key)
        return self.bucket.digest(key)

    # -- writing ------------------------------------------------------------------------------

    def write(self, key: str, data: bytes) -> None:
        self._check_key(key)
        self._put(key, data)

    def place(
        self,
        key: str,
        tree: Tree,
        on_copied: Callable[[int], None] | None = None,
        *,
        sent: str = "",
    ) -> _PlacedObjects:
        self._check_key(key)
        if self.exists(key):
            raise StoreError(
                f"{self.uri}/{key} is there already; nothing was placed", uri=self.uri, key=key
            )
        there = self.list_files(sent) if sent and self.exists(sent) else {}
        try:
            with self.bucket.uploads(on_copied) as uploads:
                for file in tree.files:
                    path = str(file.path)
                    again = there.get(path) == file.size_bytes
                    uploads.send(f"{key}/{path}", file, f"{sent}/{path}" if again else "")
                placed = uploads.results()
            empty = [f"{key}/{path}" for path in tree.empty_directories]
            for directory in empty or ([] if tree.files else [key]):
                self._put(f"{directory}/{DIRECTORY_FILENAME}", b"")
        except BaseException:
            self._changed(key)
            self.remove(key)
            raise
        self._changed(key)
        return _PlacedObjects({path[len(key) + 1 :]: digest for path, digest in placed.items()})

    def move(self, key: str, to: str) -> None:
        self._check_key(to)
        below = self._objects(key)
        if list(below) == [""]:
            self._copy(key, to, below)
            self._delete([key])
            return
        if self.exists(to):
            raise StoreError(f"{self.uri}/{to} is there already", uri=self.uri, key=to)
        note = self._put_note(to, {"move": [key, to]})
        self._finish_move(key, to)
        self._drop_note(note)

    def _finish_move(self, key: str, to: str) -> None:
        below = self._objects_now(key)
        self._copy(key, to, below)
        self._delete([f"{key}{path}" for path in below])

    def exchange(self, pairs: Sequence[tuple[str, str]]) -> None:
        if not pairs:
            return
        keys = [key for pair in pairs for key in pair]
        for key in keys:
            self._check_key(key)
        for number, key in enumerate(keys):
            for other in keys[:number]:
                if f"{key}/".startswith(f"{other}/") or f"{other}/".startswith(f"{key}/"):
                    raise StoreError(
                        f"{key} and {other} cannot change places: one is inside the other",
                        uri=self.uri,
                        key=key,
                    )
        for key in keys:
            self._objects(key)
        # what is noted beside the second would be a model at the root
        ordered = [(other, key) if "/" not in other else (key, other) for key, other in pairs]
        exchange = {"exchange": ordered}
        note = self._put_note(ordered[0][1], {**exchange, "state": _SAVING})
        aside = note.rpartition("/")[0]
        for number, (_, other) in enumerate(ordered):
            self._copy(other, f"{aside}/{number}", self._objects(other))
        self._finish_exchange(note, {**exchange, "state": _TAKING})

    def _finish_exchange(self, note: str, exchange: dict[str, Any]) -> None:
        """Go on with an exchange from a state in which everything is safe twice."""
        aside = note.rpartition("/")[0]
        pairs: list[tuple[str, str]] = exchange["exchange"]
        if exchange["state"] == _TAKING:
            self._write_note(note, exchange)
            for key, other in pairs:
                self._overwrite(other, key)
            exchange = {**exchange, "state": _GIVING}
        self._write_note(note, exchange)
        for number, (key, _) in enumerate(pairs):
            self._overwrite(key, f"{aside}/{number}")
        self._drop_note(note)

    def _overwrite(self, key: str, source: str) -> None:
        """Let the same be at `key` as at `source`."""
        before, now = self._objects_now(key), self._objects(source)
        self._copy(source, key, now)
        self._delete([f"{key}{path}" for path in before if path not in now])

    def copy_file(self, key: str, to: str) -> None:
        self._check_key(key)
        self._check_key(to)
        with self._changing(to):
            self.bucket.copy(key, to)
        self._changed(to)

    def remove(self, key: str) -> None:
        self._check_key(key)
        self._delete([f"{key}{path}" for path in self._objects_now(key)])

    def sweep(self, key: str) -> None:
        if not key:
            remove_dead(self.bucket)
            return
        prefix = self._inside(key)
        try:
            self.bucket.abort_uploads(prefix)
        except StoreError as exc:
            _logger.info("what is left of interrupted uploads stays: %s", exc)
        listed = [f"{key}{path}" for path in self._objects_now(key)]
        begun = {_temporary_of(path) for path in listed} - {""}
        for directory in sorted(begun):
            note = f"{directory}/{_NOTE}"
            if note not in listed:
                self.remove(directory)
                continue
            document = json.loads(self.read(note))
            if "move" in document:
                self._finish_move(*document["move"])
            elif document["state"] != _SAVING:
                self._finish_exchange(note, document)
            self._drop_note(note)

    @contextmanager
    def lock(self, key: str, holder: str, wait_s: float = 0.0) -> Iterator[None]:
        self._check_key(key)
        with hold(self.bucket, key, holder, wait_s) as lease:
            outer = self._listings, self._fence
            listings = self._listings = self._listings or Listings(self.bucket)
            self._fence = lease.check
            self.bucket.fence(self._fence)
            try:
                yield
            finally:
                self._listings, self._fence = outer
                self.bucket.fence(self._fence)
                listings.note_records()

    # -- the parts ----------------------------------------------------------------------------

    def _check_key(self, key: str) -> None:
        if not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise StoreError(f"{key!r} is no key of {self.uri}", uri=self.uri, key=key)

    def _inside(self, key: str) -> str:
        if not key:
            return ""
        self._check_key(key)
        return f"{key}/"

    def _objects(self, key: str) -> dict[str, int]:
        """What follows `key` in the keys of a file or of what is in a directory, with the sizes.

        Raises:
            ObjectNotFoundError: there is neither.
        """
        found = self._objects_now(key)
        if not found:
            raise self._missing(key)
        return found

    def _objects_now(self, key: str) -> dict[str, int]:
        self._check_key(key)
        if self._listings is not None:
            found = self._listings.below(key)
            return {path[len(key) :]: info.size_bytes for path, info in found.items()}
        below = {path[len(key) :]: info.size_bytes for path, info in self.bucket.objects(f"{key}/")}
        if below:
            return below
        first = next(iter(self.bucket.objects(key, limit=1)), None)
        return {"": first[1].size_bytes} if first is not None and first[0] == key else {}

    def _missing(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(f"there is nothing at {self.uri}/{key}", uri=self.uri, key=key)

    def _copy(self, key: str, to: str, below: Mapping[str, int]) -> None:
        with self._changing(to):
            self._side_by_side(
                lambda path: self.bucket.copy(f"{key}{path}", f"{to}{path}", below[path]),
                list(below),
            )
        self._changed(to)

    def _put(self, key: str, data: bytes) -> None:
        with self._changing(key):
            etag = self.bucket.put(key, data)
        if self._listings is not None:
            self._listings.wrote(key, data, ObjectInfo(len(data), etag))

    def _delete(self, keys: Sequence[str]) -> None:
        with self._changing(*keys):
            self.bucket.delete(keys)
        if self._listings is not None:
            self._listings.deleted(keys)

    @contextmanager
    def _changing(self, *keys: str) -> Iterator[None]:
        """What fails, or is interrupted by Ctrl-C, may have been done: it has to be asked."""
        try:
            yield
        except BaseException:
            for key in keys:
                self._changed(key)
            raise

    def _changed(self, key: str) -> None:
        if self._listings is not None:
            self._listings.changed(key)

    def _side_by_side(self, call: Callable[[str], Any], items: Sequence[str]) -> list[Any]:
        if len(items) <= 1:
            return [call(item) for item in items]
        pool = ThreadPoolExecutor(min(self.bucket.parallel, len(items)))
        try:
            return list(pool.map(call, items))
        finally:
            pool.shutdown(cancel_futures=True)

    def _put_note(self, key: str, document: dict[str, Any]) -> str:
        """Note what begins, beside `key`; returns the note's key."""
        parent, slash, _ = key.rpartition("/")
        note = f"{parent}{slash}{_TEMPORARY}{uuid.uuid4().hex}/{_NOTE}"
        self._write_note(note, document)
        return note

    def _write_note(self, note: str, document: dict[str, Any]) -> None:
        self._put(note, json.dumps(document).encode())

    def _drop_note(self, note: str) -> None:
        self._delete([note])  # first: without it the rest is rubbish
        self.remove(note.rpartition("/")[0])


@dataclass(frozen=True)
class _PlacedObjects:
    """See `PlacedTree`."""

    placed: Mapping[str, FileDigest]

    def digests(self) -> Mapping[str, FileDigest]:
        return self.placed

    def abandon(self) -> None:
        """Nothing goes on in the background."""


def _directories_in(paths: Iterable[str]) -> set[str]:
    return {path.split("/")[0] for path in paths if "/" in path}


def _is_file(path: str) -> bool:
    """Whether it is more than a sign of ours, or of others: they end a directory in a slash."""
    signs = (DIRECTORY_FILENAME, RECORDS_FILENAME)
    return bool(path) and not path.endswith("/") and path.rpartition("/")[2] not in signs


def _says_what_is_deployed(key: str) -> bool:
    """Whether everybody who lists deployments reads it: a record, or a note of a change."""
    return is_record(key) or key.endswith(f"/{OUR_DIRECTORY}/journal.json")


def _temporary_of(path: str) -> str:
    """The directory of a call under way that an object belongs to; an empty string if none."""
    parts = path.split("/")
    for number, part in enumerate(parts[:-1]):
        if part.startswith(_TEMPORARY):
            return "/".join(parts[: number + 1])
    return ""
