"""Copies local files now, and digests and flushes the large ones while something else goes on.

A version is copied, then Triton loads it, then it is committed. Only the commit needs the digests,
and the certainty that the bytes are on the disk: both are had while Triton loads, so that placing
a large model costs what a plain copy costs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from triton_repo.record import FileDigest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Copier", "copy_file", "digest_file", "flush_directory"]

#: What the kernel copies in one call: large, for a call has a price; small enough for Ctrl-C.
_PIECE_BYTES = 64 * 1024 * 1024
#: What goes through memory in one call, where the kernel cannot copy.
_READ_BYTES = 8 * 1024 * 1024
_HASH_BYTES = 1024 * 1024
#: Files below this are digested and flushed at once: a second look would cost more.
_SMALL_BYTES = 4 * 1024 * 1024
#: Files that may wait for their digest, each with an open descriptor.
_MOST_PENDING = 64
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


class Copier:
    """Copies files, and finishes the large ones in the background.

    The digest is that of what was written: it is taken from the target, out of the page cache, by
    a descriptor that stays right when the file is moved. The kernel copies (and shares blocks
    where the file system can), so memory does not grow with the file.
    """

    def __init__(self) -> None:
        self._abandoned = threading.Event()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="digest")
        self._pending: list[Future[FileDigest]] = []
        self._directories: list[Future[None]] = []

    def copy(
        self, source: Path, target: Path, on_copied: Callable[[int], None] | None = None
    ) -> Future[FileDigest]:
        """Copy `source` to the new file `target`.

        Returns:
            Its digest, once the bytes are on the disk.

        Raises:
            OSError: reading or writing failed; the target may be there in part.
        """
        report = on_copied or (lambda _: None)
        with source.open("rb", buffering=0) as reading:
            status = os.fstat(reading.fileno())
            # Readable by the server, which may run as somebody else: the umask decides, not the
            # artifact's own mode; a file that can be run stays so.
            mode = 0o666 | (status.st_mode & 0o111)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            writing = os.open(target, flags, mode)
            try:
                if status.st_size < _SMALL_BYTES:
                    return _done(_copy_small(reading.fileno(), writing, report))
                copied = _copy_large(reading.fileno(), writing, report)
                if copied != os.fstat(reading.fileno()).st_size or copied < status.st_size:
                    raise OSError(errno.EIO, "changed while it was copied", str(source))
                return self._finish_later(os.dup(writing))
            finally:
                os.close(writing)

    def flush_directory(self, directory: Path) -> None:
        """Make the names in a directory durable: at once, or behind the large files.

        Journaling file systems flush a file's data before the journal that names it, so that this
        would wait for gigabytes that are on their way already.
        """
        if not self._pending:
            flush_directory(directory)
            return
        descriptor = _open_directory(directory)
        flushing = self._pool.submit(_fsync_directory, descriptor)
        flushing.add_done_callback(lambda _: os.close(descriptor))
        self._directories.append(flushing)

    def finish(self) -> None:
        """Wait until everything is durable.

        Raises:
            OSError: something could not be flushed or read back.
        """
        for digest in self._pending:
            digest.result()
        for flushed in self._directories:
            flushed.result()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Stop working on files that nobody wants any more."""
        self._abandoned.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _finish_later(self, descriptor: int) -> Future[FileDigest]:
        open_files = [each for each in self._pending if not each.done()]
        if len(open_files) >= _MOST_PENDING:
            wait(open_files[:1])
        flushing = self._pool.submit(os.fsync, descriptor)
        pending = self._pool.submit(self._digest, descriptor, flushing)
        pending.add_done_callback(lambda _: os.close(descriptor))
        self._pending.append(pending)
        return pending

    def _digest(self, descriptor: int, flushing: Future[None]) -> FileDigest:
        seen = hashlib.sha256()

        def update(piece: memoryview) -> None:
            if self._abandoned.is_set():
                raise InterruptedError(errno.EINTR, "abandoned")
            seen.update(piece)

        try:
            size_bytes = _hash_to_end(descriptor, 0, update)
        finally:
            flushing.result()
        return FileDigest(size_bytes, seen.hexdigest())


def digest_file(path: Path) -> FileDigest:
    """Size and sha256 of a file."""
    with path.open("rb", buffering=0) as file:
        seen = hashlib.sha256()
        size_bytes = _hash_to_end(file.fileno(), 0, seen.update)
    return FileDigest(size_bytes, seen.hexdigest())


def flush_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = _open_directory(directory)
    try:
        _fsync_directory(descriptor)
    finally:
        os.close(descriptor)


def _open_directory(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _fsync_directory(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EBADF):  # file systems without directory fsync
            raise


def copy_file(
    source: Path, target: Path, on_copied: Callable[[int], None] | None = None
) -> FileDigest:
    """Copy one file and wait until its bytes are on the disk; see `Copier.copy`."""
    copier = Copier()
    try:
        digest = copier.copy(source, target, on_copied)
        copier.finish()
        return digest.result()
    finally:
        copier.abandon()


def _done(digest: FileDigest) -> Future[FileDigest]:
    done: Future[FileDigest] = Future()
    done.set_result(digest)
    return done


def _copy_small(reading: int, writing: int, report: Callable[[int], None]) -> FileDigest:
    seen = hashlib.sha256()
    size_bytes = 0
    while piece := os.read(reading, _HASH_BYTES):
        _write_all(writing, piece)
        seen.update(piece)
        size_bytes += len(piece)
        report(len(piece))
    os.fsync(writing)
    return FileDigest(size_bytes, seen.hexdigest())


def _copy_large(reading: int, writing: int, report: Callable[[int], None]) -> int:
    size_bytes = 0
    while copied := _copy_piece(reading, writing, size_bytes):
        size_bytes += copied
        report(copied)
    return size_bytes


def _copy_piece(reading: int, writing: int, offset: int) -> int:
    try:
        copied = os.copy_file_range(reading, writing, _PIECE_BYTES, offset, offset)
        if copied:
            return copied
        # the end, or a file system that says 0 where it cannot: reading tells them apart
    except OSError as exc:
        if exc.errno not in _NO_KERNEL_COPY:
            raise
    piece = os.pread(reading, _READ_BYTES, offset)
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
