"""A model repository in a directory.

What the file system must give for the promises to hold: `rename` that replaces atomically, whole or
not at all after a power cut, also from one directory to another; and `fsync` that means it (ext4,
XFS, Btrfs, ZFS do; some network file systems do not). What locks need is said in `_lock`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from triton_repo.errors import (
    ObjectNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from triton_repo.store._copy import Copier, copy_file, digest_file, flush_directory
from triton_repo.store._exchange import SWAP_PREFIX, exchange, finish_exchange
from triton_repo.store._lock import remove_dead_lock, take_lock
from triton_repo.store._locked import LOCK_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from triton_repo.entry import Tree
    from triton_repo.record import FileDigest

__all__ = ["LocalStore"]

_logger = logging.getLogger(__name__)

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING = {errno.ENOENT, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

#: What is being written, copied or removed has a name of its own that begins like this, beside its
#: place. Triton would read "3.tmp" as version 3, and its auto-complete looks for the model file in
#: the directory that sorts first: the name is no number and sorts after them.
_TEMPORARY = "_mlflow_triton_tmp-"
#: What hashes at once and does not yet wait for one another's disk.
_READERS = 4
#: A temporary file at the root may be anybody's; one that nobody has written to for so long is not
#: wanted any more.
_FORGOTTEN_S = 3600.0


class LocalStore:
    """See `Store`.

    Staging areas are inside a model's own directory: at the root Triton would take them for models.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def uri(self) -> str:
        return str(self.root)

    @property
    def readers(self) -> int:
        return _READERS

    @property
    def places_whole(self) -> bool:
        return True

    @property
    def resumes(self) -> bool:
        return False

    @property
    def can_fill_up(self) -> bool:
        return True

    def _path(self, key: str) -> Path:
        if not key:
            return self.root
        if not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise StoreError(f"{key!r} is no key of {self.root}", uri=self.uri, key=key)
        return self.root / key

    def _writable(self, key: str) -> Path:
        """The path of a key that is going to be written; never through a link out of here."""
        path = self._path(key)
        for parent in path.parents:
            if parent == self.root:
                break
            if parent.is_symlink():
                raise StoreAccessError(
                    f"{parent} is a link, and nothing is written through links; replace it by "
                    "what it leads to",
                    uri=self.uri,
                    key=key,
                )
        return path

    def copies_from(self, uri: str, endpoint: str) -> bool:
        del uri, endpoint
        return False

    def check(self) -> None:
        if not self.root.is_dir():
            raise self._no_root()
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreAccessError(
                f"the model repository {self.root} cannot be written by this user; "
                "change its permissions or the user",
                uri=self.uri,
            )

    def _no_root(self) -> StoreAccessError:
        what = "is not a directory" if self.root.exists() else "does not exist"
        return StoreAccessError(
            f"the model repository {self.root} {what}; TRITON_MODEL_REPO must name the "
            "directory that Triton was started with (--model-repository)",
            uri=self.uri,
        )

    def snapshot(self) -> LocalStore:
        return self

    def children(self, key: str) -> list[str]:
        with self.translated(key), os.scandir(self._path(key)) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def list_files(self, key: str) -> dict[str, int]:
        start = self._path(key)
        found: dict[str, int] = {}
        with self.translated(key):
            for directory, _, names in os.walk(start, onerror=_raise):
                for name in names:
                    path = Path(directory, name)
                    found[path.relative_to(start).as_posix()] = path.lstat().st_size
        return found

    def exists(self, key: str) -> bool:
        return os.path.lexists(self._path(key))

    def read(self, key: str) -> bytes:
        with self.translated(key):
            return self._path(key).read_bytes()

    def digest(self, key: str) -> FileDigest:
        path = self._path(key)
        with self.translated(key):
            if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would never end
                raise StoreError(f"{path} is no regular file; remove it", uri=self.uri, key=key)
            return digest_file(path)

    def write(self, key: str, data: bytes) -> None:
        path = self._writable(key)
        temporary = _temporary_beside(path)
        with self.translated(key):
            self._make_directories(path.parent)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            flush_directory(path.parent)

    def place(
        self,
        key: str,
        tree: Tree,
        on_copied: Callable[[int], None] | None = None,
        *,
        sent: str = "",
    ) -> _LocalTree:
        del sent  # copying again costs no more
        target = self._writable(key)
        staging = _temporary_beside(target)
        copier = Copier()
        with self.translated(key):
            self._make_directories(target.parent)
            self._refuse_existing(key)
            try:
                pending = _fill(staging, tree, copier, on_copied)
                self._refuse_existing(key)  # rename would replace an empty directory
                staging.rename(target)
                copier.flush_directory(target.parent)
            except BaseException:
                copier.abandon()
                shutil.rmtree(staging, ignore_errors=True)
                raise
        return _LocalTree(self, key, copier, pending)

    def move(self, key: str, to: str) -> None:
        source, target = self._writable(key), self._writable(to)
        with self.translated(key):
            self._make_directories(target.parent)
            source.rename(target)
            flush_directory(target.parent)
            flush_directory(source.parent)

    def exchange(self, pairs: Sequence[tuple[str, str]]) -> None:
        paths = [self._writable(key) for pair in pairs for key in pair]
        for one, two in combinations(paths, 2):
            if one in two.parents or two in one.parents:
                raise StoreError(
                    f"{one} and {two} cannot change places: one is inside the other",
                    uri=self.uri,
                    key=pairs[0][0],
                )
        # what is noted beside the second would be a model at the root
        ordered = [
            (other, key) if self._path(other).parent == self.root else (key, other)
            for key, other in pairs
        ]
        with self.translated(pairs[0][0] if pairs else ""):
            exchange(self.root, ordered)

    def copy_file(self, key: str, to: str) -> None:
        source, target = self._path(key), self._writable(to)
        temporary = _temporary_beside(target)
        with self.translated(key):
            self._make_directories(target.parent)
            try:
                copy_file(source, temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            flush_directory(target.parent)

    def remove(self, key: str) -> None:
        path = self._writable(key)
        if path == self.root:
            raise StoreError(
                f"refused to remove the whole repository {self.root}", uri=self.uri, key=key
            )
        with self.translated(key):
            if path.is_dir() and not path.is_symlink():
                trash = _temporary_beside(path)
                if path.parent == self.root:  # at the root a trash directory would be a model
                    trash = path
                else:
                    path.rename(trash)  # gone at once, not file by file; after a power cut, too
                    flush_directory(path.parent)
                _empty(trash)
            elif os.path.lexists(path):  # not below a file, either
                path.unlink(missing_ok=True)
            if path.parent.is_dir():
                flush_directory(path.parent)

    def sweep(self, key: str) -> None:
        with self.translated(key):
            if key:
                self._sweep_below(self._writable(key))
            else:
                self._sweep_root()

    def _sweep_below(self, start: Path) -> None:
        for directory, below, files in os.walk(start):
            # exchanges first: they may bring back a directory that has temporaries in it
            for name in [name for name in below if name.startswith(SWAP_PREFIX)]:
                below.remove(name)
                finish_exchange(self.root, Path(directory, name))
            trash = [name for name in below if name.startswith(_TEMPORARY)]
            half = [name for name in files if name.startswith(_TEMPORARY)]
            below[:] = [name for name in below if name not in trash]
            for name in trash:
                _empty(Path(directory, name))
            for name in half:
                Path(directory, name).unlink(missing_ok=True)
            if trash or half:
                flush_directory(Path(directory))

    def _sweep_root(self) -> None:
        with os.scandir(self.root) as entries:
            files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
        for file in files:
            with suppress(OSError):  # another user's, or held, or gone: not ours to remove
                if file.name.endswith(LOCK_SUFFIX):
                    remove_dead_lock(Path(file.path))
                elif file.name.startswith(_TEMPORARY) and _is_forgotten(file):
                    Path(file.path).unlink()

    @contextmanager
    def lock(self, key: str, holder: str, wait_s: float = 0.0) -> Iterator[None]:
        path = self._writable(key)
        with self.translated(key):
            self._make_directories(path.parent)
            held = take_lock(path, holder, wait_s)
        with held:
            yield

    def _make_directories(self, directory: Path) -> None:
        """Make `directory` below the root; the root itself must be there."""
        if directory == self.root or directory.is_dir():
            return
        self._make_directories(directory.parent)
        directory.mkdir(exist_ok=True)
        flush_directory(directory.parent)

    def _refuse_existing(self, key: str) -> None:
        if os.path.lexists(self._path(key)):
            raise StoreError(
                f"{self._path(key)} is there already; nothing was placed", uri=self.uri, key=key
            )

    @contextmanager
    def translated(self, key: str) -> Iterator[None]:
        """Turn an OSError into the store's own error, naming the file."""
        try:
            yield
        except OSError as exc:
            raise self._error(exc, key) from exc

    def _error(self, exc: OSError, key: str) -> StoreError:
        where = exc.filename or self._path(key)
        what = exc.strerror or str(exc)
        if exc.errno in _MISSING and not self.root.is_dir():
            return self._no_root()
        if exc.errno in _MISSING:
            return ObjectNotFoundError(f"{where}: {what}", uri=self.uri, key=key)
        if exc.errno in _DENIED:
            return StoreAccessError(
                f"{where}: {what}; this user must be able to write the model repository",
                uri=self.uri,
                key=key,
            )
        if exc.errno in _FULL:
            return StoreUnavailableError(
                f"{where}: {what}; make room in {self.root} and run the command again",
                uri=self.uri,
                key=key,
            )
        return StoreUnavailableError(f"{where}: {what}", uri=self.uri, key=key)


def _empty(trash: Path) -> None:
    """Remove a directory that nobody wants; one with a name of its own may stay behind.

    A server that runs as another user leaves bytecode in there that this one cannot remove.
    """
    try:
        shutil.rmtree(trash)
    except PermissionError as exc:
        if not trash.name.startswith(_TEMPORARY):
            raise
        _logger.warning("%s cannot be removed (%s); nobody needs it", trash, exc)


def _temporary_beside(path: Path) -> Path:
    """A name that nobody else uses, two writers of the same file included."""
    return path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")


def _raise(exc: OSError) -> None:
    raise exc


@dataclass(frozen=True)
class _LocalTree:
    """See `PlacedTree`."""

    store: LocalStore
    key: str
    copier: Copier
    pending: Mapping[str, Future[FileDigest]]

    def digests(self) -> dict[str, FileDigest]:
        with self.store.translated(self.key):
            self.copier.finish()
            return {path: digest.result() for path, digest in self.pending.items()}

    def abandon(self) -> None:
        self.copier.abandon()


def _fill(
    staging: Path, tree: Tree, copier: Copier, on_copied: Callable[[int], None] | None
) -> dict[str, Future[FileDigest]]:
    staging.mkdir()
    made = {staging}
    pending: dict[str, Future[FileDigest]] = {}
    for file in tree.files:
        target = staging / file.path
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.update(parent for parent in target.parents if staging in parent.parents)
        pending[str(file.path)] = copier.copy(file.local(), target, on_copied)
    for path in tree.empty_directories:
        (staging / path).mkdir(parents=True, exist_ok=True)
    for directory in made:
        copier.flush_directory(directory)
    return pending


def _is_forgotten(file: os.DirEntry[str]) -> bool:
    return time.time() - file.stat(follow_symlinks=False).st_mtime > _FORGOTTEN_S
