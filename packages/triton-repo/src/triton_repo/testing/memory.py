"""An object store in memory: what `ObjectStore` asks of a bucket, and nothing else."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from triton_repo.errors import ObjectNotFoundError, StoreUnavailableError
from triton_repo.record import FileDigest
from triton_repo.store._bucket import ConditionError, Content, ObjectInfo
from triton_repo.store._objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from triton_repo.entry import EntryFile

__all__ = ["MemoryBucket", "MemoryObjects", "memory_store"]


def memory_store() -> ObjectStore:
    """A new and empty repository that is gone with this process."""
    return ObjectStore(MemoryBucket(MemoryObjects()))


class MemoryObjects:
    """Objects by key. Every method is one step, also for other threads."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, str, float]] = {}
        self._one_at_a_time = threading.Lock()

    def listed(self, prefix: str) -> list[tuple[str, int, str]]:
        """Key, size in bytes and etag of those that begin with `prefix`, in order."""
        with self._one_at_a_time:
            found = [
                (key, len(data), etag)
                for key, (data, etag, _) in self._objects.items()
                if key.startswith(prefix)
            ]
        return sorted(found, key=lambda each: each[0].encode("utf-8", "surrogateescape"))

    def get(self, key: str) -> tuple[bytes, str, float] | None:
        """Content, etag and age in seconds; None where there is none."""
        with self._one_at_a_time:
            found = self._objects.get(key)
        return (found[0], found[1], time.time() - found[2]) if found is not None else None

    def put(self, key: str, data: bytes, *, new: bool = False, replacing: str = "") -> str | None:
        """Write, and return the etag; None where the condition does not hold."""
        with self._one_at_a_time:
            there = self._objects.get(key)
            if (new and there is not None) or (
                replacing and (there is None or there[1] != replacing)
            ):
                return None
            etag = uuid.uuid4().hex
            self._objects[key] = data, etag, time.time()
            return etag

    def delete(self, key: str, replacing: str = "") -> bool:
        """Delete what is there; False where it is another one."""
        with self._one_at_a_time:
            there = self._objects.get(key)
            if replacing and (there is None or there[1] != replacing):
                return False
            self._objects.pop(key, None)
            return True


@dataclass(frozen=True)
class MemoryBucket:
    """See `Bucket`.

    Attributes:
        stored: the objects, or something in another process that behaves like them.
        uri: how messages name it.
    """

    stored: MemoryObjects
    uri: str = field(default_factory=lambda: f"memory://{uuid.uuid4().hex}")
    parallel: int = 4
    has_prefix: bool = False
    fences: list[Callable[[], None]] = field(default_factory=list)

    def fence(self, check: Callable[[], None] | None) -> None:
        """See `Bucket`."""
        self.fences[:] = [check] if check is not None else []

    def impatient(self) -> MemoryBucket:
        """See `Bucket`."""
        return replace(self, fences=[])

    def changes(self) -> None:
        """To be called before anything is changed."""
        for check in self.fences:
            check()

    def check(self) -> None:
        """Nothing can go wrong."""

    def copies_from(self, uri: str, endpoint: str) -> bool:
        """Nothing lies in here from the start."""
        del uri, endpoint
        return False

    def objects(self, prefix: str, limit: int | None = None) -> Iterator[tuple[str, ObjectInfo]]:
        """See `Bucket`."""
        for key, size_bytes, etag in self.stored.listed(prefix)[:limit]:
            yield key, ObjectInfo(size_bytes, etag)

    def directories(self, prefix: str) -> tuple[list[str], bool]:
        """See `Bucket`."""
        below = [key[len(prefix) :] for key, _, _ in self.stored.listed(prefix)]
        names = dict.fromkeys(path.split("/")[0] for path in below if "/" in path)
        return list(names), bool(below)

    def get(self, key: str) -> Content:
        """See `Bucket`."""
        found = self.stored.get(key)
        if found is None:
            raise ObjectNotFoundError(f"{self.uri}/{key}: not there", uri=self.uri, key=key)
        return Content(*found)

    def put(self, key: str, data: bytes, *, new: bool = False, replacing: str = "") -> str:
        """See `Bucket`."""
        self.changes()
        etag = self.stored.put(key, data, new=new, replacing=replacing)
        if etag is None:
            raise ConditionError
        return etag

    @contextmanager
    def uploads(self, on_copied: Callable[[int], None] | None) -> Iterator[_MemoryUploads]:
        """See `Bucket`."""
        yield _MemoryUploads(self, on_copied or (lambda _: None))

    def digest(self, key: str) -> FileDigest:
        """See `Bucket`."""
        return _digest(self.get(key).data)

    def copy(self, key: str, to: str, size_bytes: int = 0) -> None:
        """See `Bucket`."""
        del size_bytes
        self.changes()
        self.stored.put(to, self.get(key).data)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Bucket`."""
        for key in keys:
            self.changes()
            self.stored.delete(key)

    def delete_replaced(self, key: str, etag: str) -> None:
        """See `Bucket`."""
        self.changes()
        if not self.stored.delete(key, etag):
            raise ConditionError

    def abort_uploads(self, prefix: str) -> None:
        """There are none in parts."""


@dataclass(frozen=True)
class _MemoryUploads:
    bucket: MemoryBucket
    on_copied: Callable[[int], None]
    sent: dict[str, FileDigest] = field(default_factory=dict)

    def send(self, key: str, file: EntryFile, sent: str = "") -> None:
        del sent  # nothing is saved here
        try:
            data = file.local().read_bytes()
        except OSError as exc:
            raise StoreUnavailableError(
                f"{exc.filename}: {exc.strerror}", uri=self.bucket.uri, key=key
            ) from exc
        self.bucket.changes()
        self.bucket.stored.put(key, data)
        self.sent[key] = _digest(data)
        self.on_copied(len(data))

    def results(self) -> dict[str, FileDigest]:
        return self.sent


def _digest(data: bytes) -> FileDigest:
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())
