"""All deployment records of a repository in one object, so that listing them is not a GET each.

`.mlflow-triton-records.json` at the root is a cache and nothing else: who reads it compares each
entry's etag with the listing's and takes what differs from the record itself. Who changes a record
brings it up to date; where that fails, or is overtaken by another writer, the entry is merely old.
"""

from __future__ import annotations

import gzip
import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from triton_repo.errors import ObjectNotFoundError, StoreError
from triton_repo.record import RECORD_FILENAME
from triton_repo.store._bucket import ConditionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton_repo.store._bucket import Bucket

__all__ = ["RECORDS_FILENAME", "cached_records", "is_record", "note_records"]

RECORDS_FILENAME = ".mlflow-triton-records.json"
#: Others may be faster; then the entry stays as old as it is.
_ATTEMPTS = 5

_logger = logging.getLogger(__name__)


def is_record(key: str) -> bool:
    """Whether this is a model's record."""
    return key.endswith(f"/{RECORD_FILENAME}") and key.count("/") == 1


def cached_records(bucket: Bucket) -> dict[str, tuple[str, bytes]]:
    """Etag and content of every record that the cache holds, by its key; perhaps old ones."""
    try:
        return _parse(bucket.get(RECORDS_FILENAME).data)
    except StoreError:  # none, or not for us: it is only a cache
        return {}


def note_records(bucket: Bucket, changed: Mapping[str, tuple[str, bytes] | None]) -> None:
    """Bring the cache up to date.

    Args:
        bucket: the repository.
        changed: etag and content of the records that were written, by their keys; None for one
            that was deleted.
    """
    try:
        for _ in range(_ATTEMPTS):
            with suppress(ConditionError):
                _note_once(bucket, changed)
                return
    except StoreError as exc:
        _logger.debug("%s was not brought up to date: %s", RECORDS_FILENAME, exc)


def _note_once(bucket: Bucket, changed: Mapping[str, tuple[str, bytes] | None]) -> None:
    try:
        content = bucket.get(RECORDS_FILENAME)
        known, etag = _parse(content.data), content.etag
    except ObjectNotFoundError:
        known, etag = {}, ""
    entries = {**known, **changed}
    now = {key: entry for key, entry in entries.items() if entry is not None}
    if now == known:
        return
    if not now:
        bucket.delete_replaced(RECORDS_FILENAME, etag)
        return
    document = {
        key: {"etag": etag_, "record": record.decode("utf-8", "surrogateescape")}
        for key, (etag_, record) in now.items()
    }
    data = gzip.compress(json.dumps(document).encode(), compresslevel=1, mtime=0)
    bucket.put(RECORDS_FILENAME, data, new=not etag, replacing=etag)


def _parse(data: bytes) -> dict[str, tuple[str, bytes]]:
    try:
        document = json.loads(gzip.decompress(data))
        return {
            key: (entry["etag"], entry["record"].encode("utf-8", "surrogateescape"))
            for key, entry in document.items()
        }
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
        return {}
