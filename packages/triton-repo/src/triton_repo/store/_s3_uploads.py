"""Files on their way to S3: small ones in one request each, large ones in parts, side by side."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import s3transfer.manager
import s3transfer.subscribers

from triton_repo.record import FileDigest
from triton_repo.store._copy import digest_file
from triton_repo.store._uploads import FileUploads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from s3transfer.futures import TransferFuture

    from triton_repo.entry import EntryFile
    from triton_repo.store._s3 import S3Bucket

__all__ = ["DIGEST", "PARALLEL", "PARTS_AT_ONCE", "S3Uploads"]

#: Requests at once: more of them wait for one another in Python, not for the network.
PARALLEL = 24
#: Larger files go in parts of this size, several at once; smaller ones in one request each.
PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 10
#: Our metadata on every object that we send: its sha256, so that no digest costs a download. Of
#: what was copied inside the store and has no sha256 there, `etag:` and its source's.
DIGEST = "mlflow-triton-digest"


class S3Uploads(FileUploads):
    """See `Uploads`: small files in one request each, large ones in parts, all side by side."""

    def __init__(self, bucket: S3Bucket, on_copied: Callable[[int], None] | None) -> None:
        super().__init__(bucket, on_copied)
        self._bucket = bucket
        self._transfers = s3transfer.manager.TransferManager(
            bucket.client,
            s3transfer.manager.TransferConfig(
                multipart_threshold=PART_BYTES,
                multipart_chunksize=PART_BYTES,
                max_request_concurrency=PARTS_AT_ONCE,
            ),
        )

    def close(self) -> None:
        super().close()
        self._transfers.shutdown()

    def stop(self) -> None:
        """End what is on its way; on return nothing is any more."""
        for sending in self._sending.values():
            sending.cancel()
        try:
            # its `shutdown(cancel=True)` raises a TypeError where a transfer is on its way
            self._transfers.__exit__(KeyboardInterrupt, KeyboardInterrupt("stopped"), None)
        finally:
            super().close()

    def _copy_origin(self, key: str, file: EntryFile) -> FileDigest | None:
        return self._bucket.copy_from(key, file)

    def _send_file(self, key: str, source: Path) -> FileDigest:
        if source.stat().st_size < PART_BYTES:
            return self._send_small(key, source.read_bytes())
        return self._send_large(key, source)

    def _send_small(self, key: str, data: bytes) -> FileDigest:
        seen = hashlib.sha256(data)
        with self._bucket.translated(key, "s3:PutObject"):
            self._bucket.send(key, data, seen.digest())
        self._report(len(data))
        return FileDigest(len(data), seen.hexdigest())

    def _send_large(self, key: str, source: Path) -> FileDigest:
        digest = digest_file(source)
        with self._bucket.translated(key, "s3:PutObject"):
            self._transfers.upload(
                str(source),
                self._bucket.address.bucket,
                self._bucket.key(key),
                extra_args={"Metadata": {DIGEST: digest.sha256}},
                subscribers=[_Progress(self._report)],
            ).result()
        return digest


class _Progress(s3transfer.subscribers.BaseSubscriber):
    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def on_progress(self, future: TransferFuture, bytes_transferred: int, **_: Any) -> None:
        del future
        self._report(bytes_transferred)
