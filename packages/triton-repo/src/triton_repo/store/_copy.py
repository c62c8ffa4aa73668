"""Copies one local file and takes its digest on the way, for the price of the slower of the two."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from triton_repo.record import FileDigest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["copy_file", "digest_file"]

_PIECE_BYTES = 8 * 1024 * 1024
_HASH_BYTES = 1024 * 1024
#: Below this a second thread costs more than it saves.
_SMALL_BYTES = 4 * 1024 * 1024
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def copy_file(
    source: Path, target: Path, on_copied: Callable[[int], None] | None = None
) -> FileDigest:
    """Copy `source` to the new file `target` and flush it to the disk.

    The digest is that of what was written: the hashing thread reads the target, right behind the
    copy, from the page cache. The kernel copies (and shares blocks where the file system can), so
    memory does not grow with the file.

    Raises:
        OSError: reading or writing failed; the target may be there in part.
    """
    report = on_copied or (lambda _: None)
    with source.open("rb", buffering=0) as reading:
        # Readable by the server, which may run as somebody else: the umask decides, not the
        # artifact's own mode; a file that can be run stays so.
        mode = 0o666 | (os.fstat(reading.fileno()).st_mode & 0o111)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writing = os.open(target, flags, mode)
        try:
            if os.fstat(reading.fileno()).st_size < _SMALL_BYTES:
                digest = _copy_small(reading.fileno(), writing, report)
            else:
                digest = _copy_large(reading.fileno(), writing, report)
            os.fsync(writing)
        finally:
            os.close(writing)
    return digest


def digest_file(path: Path) -> FileDigest:
    """Size and sha256 of a file."""
    with path.open("rb", buffering=0) as file:
        seen = hashlib.sha256()
        size_bytes = _hash_to_end(file.fileno(), 0, seen.update)
    return FileDigest(size_bytes, seen.hexdigest())


def _copy_small(reading: int, writing: int, report: Callable[[int], None]) -> FileDigest:
    seen = hashlib.sha256()
    size_bytes = 0
    while piece := os.read(reading, _HASH_BYTES):
        _write_all(writing, piece)
        seen.update(piece)
        size_bytes += len(piece)
        report(len(piece))
    return FileDigest(size_bytes, seen.hexdigest())


def _copy_large(reading: int, writing: int, report: Callable[[int], None]) -> FileDigest:
    seen = hashlib.sha256()
    written: SimpleQueue[int] = SimpleQueue()
    failures: list[OSError] = []

    def follow() -> None:
        done = 0
        try:
            while written.get() > 0:
                done = _hash_to_end(writing, done, seen.update)
        except OSError as exc:
            failures.append(exc)

    hashing = threading.Thread(target=follow, name="sha256", daemon=True)
    hashing.start()
    size_bytes = 0
    try:
        while copied := _copy_piece(reading, writing, size_bytes):
            size_bytes += copied
            written.put(copied)
            report(copied)
    finally:
        written.put(0)
        hashing.join()
    if failures:
        raise failures[0]
    return FileDigest(size_bytes, seen.hexdigest())


def _copy_piece(reading: int, writing: int, offset: int) -> int:
    try:
        return os.copy_file_range(reading, writing, _PIECE_BYTES, offset, offset)
    except OSError as exc:
        if exc.errno not in _NO_KERNEL_COPY:
            raise
    piece = os.pread(reading, _PIECE_BYTES, offset)
    os.lseek(writing, offset, os.SEEK_SET)
    _write_all(writing, piece)
    return len(piece)


def _write_all(writing: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(writing, view) :]


def _hash_to_end(descriptor: int, offset: int, update: Callable[[memoryview], None]) -> int:
    """Feed everything from `offset` to the file's present end to `update`; returns that end."""
    buffer = memoryview(bytearray(_HASH_BYTES))
    while count := os.preadv(descriptor, [buffer], offset):
        update(buffer[:count])
        offset += count
    return offset
