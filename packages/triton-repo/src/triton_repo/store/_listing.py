"""What one writer knows of a repository in an object store, so that it need not ask twice.

Whoever holds a lock is the only writer of what it locks; people aside, and for them a listing is
old after a moment. What the writer itself does is kept up with.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from triton_repo.errors import ObjectNotFoundError
from triton_repo.store._record_cache import cached_records, is_record, note_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from triton_repo.store._bucket import Bucket, ObjectInfo

__all__ = ["Listings"]

#: For so long nobody else is expected to have changed what was listed.
_FRESH_S = 2.0
#: Objects of up to this size are remembered: configs, records, journals.
_SMALL_BYTES = 1024 * 1024


class Listings:
    """The listings of whole models, and the small objects that were read."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._models: dict[str, tuple[float, dict[str, ObjectInfo]]] = {}
        self._contents: dict[str, tuple[str, bytes]] = {}
        self._records: dict[str, tuple[str, bytes] | None] = {}

    @classmethod
    def of_everything(cls, bucket: Bucket, wanted: Callable[[str], bool]) -> Listings:
        """The whole repository as it is now, never asked for again; with some objects' content.

        Costs a request for every thousand objects, one for the record cache, and one for each
        wanted object that is not in there: these side by side.
        """
        seen = cls(bucket)
        with ThreadPoolExecutor(bucket.parallel) as pool:
            cached = pool.submit(cached_records, bucket)
            for key, info in bucket.objects(""):
                model = _model(key)
                seen._models.setdefault(model, (math.inf, {}))[1][key] = info
            seen._contents = cached.result()
            keys = [key for key in seen.listed() if wanted(key)]
            list(pool.map(seen.read, keys))
        return seen

    def listed(self) -> list[str]:
        """Of everything that was listed."""
        return [key for _, objects in self._models.values() for key in objects]

    def note_records(self) -> None:
        """Let others find the records that were written meanwhile without asking for each."""
        if self._records:
            note_records(self._bucket, self._records)

    def below(self, key: str) -> dict[str, ObjectInfo]:
        """The object at `key`, or all those below it, by their keys; in one request at most."""
        model = _model(key)
        listed_s, objects = self._models.get(model, (0.0, {}))
        if time.monotonic() - listed_s > _FRESH_S:
            listed_s, objects = time.monotonic(), dict(self._bucket.objects(f"{model}/"))
            self._models[model] = listed_s, objects
        return {
            path: info
            for path, info in objects.items()
            if path == key or path.startswith(f"{key}/")
        }

    def read(self, key: str) -> bytes:
        """A whole small object.

        Raises:
            ObjectNotFoundError: there is none.
        """
        info = self.below(key).get(key)
        if info is None:
            raise ObjectNotFoundError(
                f"there is nothing at {self._bucket.uri}/{key}", uri=self._bucket.uri, key=key
            )
        etag, data = self._contents.get(key, ("", b""))
        if etag != info.etag:
            content = self._bucket.get(key)
            etag, data = content.etag, content.data
            if len(data) <= _SMALL_BYTES:
                self._contents[key] = etag, data
        return data

    def wrote(self, key: str, data: bytes, info: ObjectInfo) -> None:
        """An object was written."""
        listed = self._models.get(_model(key))
        if listed is not None:
            listed[1][key] = info
            self._contents[key] = info.etag, data
        if is_record(key):
            self._records[key] = info.etag, data

    def deleted(self, keys: Iterable[str]) -> None:
        """Objects were deleted."""
        for key in keys:
            listed = self._models.get(_model(key))
            if listed is not None:
                listed[1].pop(key, None)
            if is_record(key):
                self._records[key] = None

    def changed(self, key: str) -> None:
        """Something was done at `key` or below it; what, has to be asked."""
        self._models.pop(_model(key), None)


def _model(key: str) -> str:
    return key.partition("/")[0]
