"""Files on their way into a bucket, side by side, whatever the client of its maker is."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from triton_repo.errors import StoreUnavailableError
from triton_repo.store._copy import digest_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from triton_repo.entry import EntryFile
    from triton_repo.record import FileDigest
    from triton_repo.store._bucket import Bucket

__all__ = ["FileUploads"]


def _identity(source: Path) -> tuple[int, int, int]:
    """Other ones once it was written to, or replaced."""
    status = source.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class FileUploads(ABC):
    """See `Uploads`."""

    def __init__(self, bucket: Bucket, on_copied: Callable[[int], None] | None) -> None:
        self._to = bucket
        self._on_copied = on_copied
        self._counting = threading.Lock()
        self._pool = ThreadPoolExecutor(bucket.parallel, thread_name_prefix="upload")
        self._sending: dict[str, Future[FileDigest]] = {}

    def send(self, key: str, file: EntryFile, sent: str = "") -> None:
        self._sending[key] = self._pool.submit(self._send, key, file, sent)

    def results(self) -> dict[str, FileDigest]:
        return {key: sent.result() for key, sent in self._sending.items()}

    def close(self) -> None:
        """Wait for what is on its way; nothing else begins."""
        self._pool.shutdown(cancel_futures=True)

    def _send(self, key: str, file: EntryFile, sent: str) -> FileDigest:
        copied = self._copy_origin(key, file) if file.origin is not None else None
        if copied is not None:
            self._report(copied.size_bytes)
            return copied
        source = file.local()
        try:
            if sent and (digest := self._to.digest(sent)) == digest_file(source):
                self._to.copy(sent, key, digest.size_bytes)
                self._report(digest.size_bytes)
                return digest
            before = _identity(source)
            digest = self._send_file(key, source)
            unchanged = _identity(source) == before
        except OSError as exc:
            raise StoreUnavailableError(
                f"{exc.filename or source}: {exc.strerror or exc}", uri=self._to.uri, key=key
            ) from exc
        if not unchanged:
            raise StoreUnavailableError(
                f"{source}: changed while it was copied", uri=self._to.uri, key=key
            )
        return digest

    def _copy_origin(self, key: str, file: EntryFile) -> FileDigest | None:
        """Copy a file from where it lies without its coming here; None where that cannot be."""
        del key, file
        return None

    @abstractmethod
    def _send_file(self, key: str, source: Path) -> FileDigest:
        """Send one file, telling `_report` of each piece; its digest, as it was sent."""

    def _report(self, size_bytes: int) -> None:
        if self._on_copied is not None:
            with self._counting:
                self._on_copied(size_bytes)
