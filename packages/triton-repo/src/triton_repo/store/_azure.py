"""Azure Blob Storage by Microsoft's own client: the only door to it.

Source of addresses and variables: Triton core, `src/filesystem/implementations/as.h`.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import BlobPrefix, ContainerClient

from triton_repo.errors import (
    ObjectNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from triton_repo.record import FileDigest
from triton_repo.store._bucket import (
    ConditionError,
    Content,
    ObjectInfo,
    prefix_of,
    without_secrets,
)
from triton_repo.store._copy import digest_file
from triton_repo.store._credential_file import credential_entry
from triton_repo.store._uploads import FileUploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


__all__ = ["AzureAddress", "AzureBucket"]

_PARALLEL = 16
_PART_BYTES = 8 * 1024 * 1024
_PARTS_AT_ONCE = 4
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S, _RETRIES = 10, 60, 4
#: For what must be known soon: a lease goes by while one answer does not come.
_BEAT_TIMEOUT_S, _BEAT_RETRIES = 4, 1
#: Our metadata on every blob: its sha256. Azure wants names that are identifiers in C#.
_DIGEST = "mlflow_triton_digest"
#: Between two looks at a copy that is under way, and how long one may take.
_COPY_LOOK_S, _COPY_TIMEOUT_S = 0.5, 3600.0

_ADDRESS = re.compile(r"as://+([0-9A-Za-z.-]+)/+([0-9a-z-]+)(?:/(.*))?", re.DOTALL)
_HOST = ".blob.core.windows.net"


@dataclass(frozen=True)
class AzureAddress:
    """Where a repository is: `as://account/container/prefix`.

    Attributes:
        account: the storage account's name.
        container: its name.
        prefix: of every key; empty, or with a slash at its end.
    """

    account: str
    container: str
    prefix: str

    @classmethod
    def parse(cls, address: str) -> AzureAddress:
        """Read an address; the account may carry `.blob.core.windows.net`.

        Raises:
            StoreError: it names no account or no container.
        """
        found = _ADDRESS.fullmatch(address)
        if not found or "?" in address:  # a shared access signature is a secret
            raise StoreError(
                f"{without_secrets(address)} names no account and container; use as://account/container/path",
                uri="as://",
            )
        return cls(found[1].removesuffix(_HOST), found[2], prefix_of(address, found[3] or ""))

    @property
    def uri(self) -> str:
        """As Triton spells it, without slashes too many."""
        return f"as://{self.account}/{self.container}/{self.prefix}".rstrip("/")


class AzureBucket:
    """See `Bucket`."""

    parallel = _PARALLEL

    def __init__(self, address: AzureAddress) -> None:
        self.address = address
        self._container = _container(address, raw_request_hook=self._before_request)
        self._fence: Callable[[], None] | None = None

    @property
    def uri(self) -> str:
        return self.address.uri

    @property
    def has_prefix(self) -> bool:
        return bool(self.address.prefix)

    def fence(self, check: Callable[[], None] | None) -> None:
        self._fence = check

    def _before_request(self, request: Any) -> None:
        if self._fence is not None and request.http_request.method not in ("GET", "HEAD"):
            self._fence()

    def impatient(self) -> AzureBucket:
        same = copy.copy(self)
        same._container = _container(  # noqa: SLF001 - its own class
            self.address, connection_timeout=_BEAT_TIMEOUT_S, read_timeout=_BEAT_TIMEOUT_S,
            retry_total=_BEAT_RETRIES,
        )  # fmt: skip
        same.fence(None)
        return same

    def copies_from(self, uri: str, endpoint: str) -> bool:
        del uri, endpoint
        return False

    def check(self) -> None:
        """Nothing is known to go wrong later."""

    def objects(self, prefix: str, limit: int | None = None) -> Iterator[tuple[str, ObjectInfo]]:
        with self._translated(prefix):
            found = self._container.list_blobs(
                name_starts_with=self._key(prefix), results_per_page=limit
            )
            for number, blob in enumerate(found, 1):
                info = ObjectInfo(blob.size, blob.etag)
                yield blob.name.removeprefix(self.address.prefix), info
                if number == limit:
                    return

    def directories(self, prefix: str) -> tuple[list[str], bool]:
        start = self._key(prefix)
        names, there = [], False
        with self._translated(prefix):
            for each in self._container.walk_blobs(name_starts_with=start, delimiter="/"):
                there = True
                if isinstance(each, BlobPrefix):
                    names.append(each.name[len(start) : -1])
        return [name for name in names if name], there

    def get(self, key: str) -> Content:
        headers: dict[str, str] = {}
        with self._translated(key):
            answer = self._blob(key).download_blob(
                raw_response_hook=lambda raw: headers.update(
                    {name.lower(): value for name, value in raw.http_response.headers.items()}
                )
            )
            data = answer.readall()
        written = answer.properties.last_modified
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else written
        return Content(data, answer.properties.etag, (now - written).total_seconds())

    def put(self, key: str, data: bytes, *, new: bool = False, replacing: str = "") -> str:
        condition: dict[str, Any] = {}
        if new:
            condition = {"match_condition": MatchConditions.IfMissing}
        elif replacing:
            condition = {"match_condition": MatchConditions.IfNotModified, "etag": replacing}
        with self._translated(key):
            try:
                answer = self._blob(key).upload_blob(
                    data,
                    overwrite=True,
                    metadata={_DIGEST: hashlib.sha256(data).hexdigest()},
                    **condition,
                )
            except (ResourceExistsError, ResourceModifiedError, ResourceNotFoundError) as exc:
                if condition and exc.status_code != 404:  # noqa: PLR2004 - no such container
                    raise ConditionError from exc
                raise
        return str(answer["etag"])

    @contextmanager
    def uploads(self, on_copied: Callable[[int], None] | None) -> Iterator[_Uploads]:
        uploads = _Uploads(self, on_copied)
        try:
            yield uploads
        finally:
            uploads.close()

    def send(self, key: str, source: Path, report: Callable[[int], None]) -> FileDigest:
        """Upload one file; its MD5 is checked there, part by part."""
        digest = digest_file(source)
        told = [0]

        def progress(sent_bytes: int, _total: int | None) -> None:
            report(sent_bytes - told[0])
            told[0] = sent_bytes

        with source.open("rb") as file, self._translated(key):
            self._blob(key).upload_blob(
                file,
                length=digest.size_bytes,
                overwrite=True,
                metadata={_DIGEST: digest.sha256},
                max_concurrency=_PARTS_AT_ONCE,
                validate_content=True,
                progress_hook=progress,
            )
        report(digest.size_bytes - told[0])
        return digest

    def digest(self, key: str) -> FileDigest:
        with self._translated(key):
            found = self._blob(key).get_blob_properties()
            noted = found.metadata.get(_DIGEST)
            if noted:
                return FileDigest(found.size, noted)
            seen, size_bytes = hashlib.sha256(), 0
            for piece in self._blob(key).download_blob().chunks():
                seen.update(piece)
                size_bytes += len(piece)
        return FileDigest(size_bytes, seen.hexdigest())

    def copy(self, key: str, to: str, size_bytes: int = 0) -> None:
        del size_bytes
        target = self._blob(to)
        with self._translated(key):
            status = target.start_copy_from_url(self._blob(key).url)["copy_status"]
            began_s = time.monotonic()
            while status == "pending":
                if time.monotonic() - began_s > _COPY_TIMEOUT_S:
                    raise StoreUnavailableError(
                        f"{self.uri}/{key}: its copy was not done after {_COPY_TIMEOUT_S:g} s",
                        uri=self.uri,
                        key=key,
                    )
                time.sleep(_COPY_LOOK_S)
                status = target.get_blob_properties().copy.status
        if status != "success":
            raise StoreUnavailableError(
                f"{self.uri}/{key}: its copy was {status}", uri=self.uri, key=key
            )

    def delete(self, keys: Iterable[str]) -> None:
        def delete(key: str) -> None:
            try:
                with self._translated(key):
                    self._blob(key).delete_blob()
            except ObjectNotFoundError:
                pass

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(delete, keys))

    def delete_replaced(self, key: str, etag: str) -> None:
        with self._translated(key):
            try:
                self._blob(key).delete_blob(
                    etag=etag, match_condition=MatchConditions.IfNotModified
                )
            except ResourceModifiedError as exc:
                raise ConditionError from exc

    def abort_uploads(self, prefix: str) -> None:
        """Azure forgets the blocks of an upload that was never finished after a week."""

    # -- the parts ----------------------------------------------------------------------------

    def _key(self, key: str) -> str:
        if "\\" in key:
            raise StoreError(
                f"{key!r} cannot be a blob: Azure takes a backslash for a slash; rename it",
                uri=self.uri,
                key=key,
            )
        return f"{self.address.prefix}{key}"

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(self._key(key))

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except AzureError as exc:
            raise self._error(exc, key) from exc

    def _error(self, exc: AzureError, key: str) -> StoreError:
        where = f"{self.uri}/{key}" if key else self.uri
        found = getattr(exc, "error_code", "") or ""
        code = str(getattr(found, "value", found))  # an enumeration, where the client knows it
        kind: type[StoreError] = StoreUnavailableError
        if code == "ContainerNotFound":
            kind, what = StoreAccessError, f"there is no container {self.address.container!r}"
        elif isinstance(exc, ResourceNotFoundError):
            kind, what = ObjectNotFoundError, "there is no such blob"
        elif isinstance(exc, ClientAuthenticationError) or code in _DENIED:
            kind = StoreAccessError
            what = (
                f"denied ({code or 'authentication failed'}); set AZURE_STORAGE_KEY, "
                "AZURE_STORAGE_CONNECTION_STRING, or give the identity the role Storage Blob Data "
                "Contributor"
            )
        elif isinstance(exc, HttpResponseError):
            what = f"{str(exc.reason or exc.message).splitlines()[0]} ({code or exc.status_code})"
        else:
            what = f"nothing answers there: {' '.join(str(exc).split())}"
        return kind(f"{where}: {what}", uri=self.uri, key=key)


_DENIED = {
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "InsufficientAccountPermissions",
    "NoAuthenticationInformation",
    "PublicAccessNotPermitted",
}


class _Uploads(FileUploads):
    """See `Uploads`."""

    def __init__(self, bucket: AzureBucket, on_copied: Callable[[int], None] | None) -> None:
        super().__init__(bucket, on_copied)
        self._bucket = bucket

    def _send_file(self, key: str, source: Path) -> FileDigest:
        return self._bucket.send(key, source, self._report)


def _container(address: AzureAddress, **special: Any) -> ContainerClient:
    """A client with Triton's credentials, or Azure's own ways to find some."""
    options: dict[str, Any] = {
        "max_single_put_size": _PART_BYTES,
        "max_block_size": _PART_BYTES,
        "connection_timeout": _CONNECT_TIMEOUT_S,
        "read_timeout": _READ_TIMEOUT_S,
        "retry_total": _RETRIES,
        **special,
    }
    entry = credential_entry("as", address.uri)
    connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    if not entry and connection:
        return ContainerClient.from_connection_string(connection, address.container, **options)
    account = entry.get("account_str") or os.environ.get("AZURE_STORAGE_ACCOUNT") or address.account
    key = entry.get("account_key") or (not entry and os.environ.get("AZURE_STORAGE_KEY"))
    if key:
        try:
            base64.b64decode(key, validate=True)
        except ValueError as exc:
            raise StoreAccessError(
                f"{address.uri}: the account's key (AZURE_STORAGE_KEY) is no base64; copy it again",
                uri=address.uri,
            ) from exc
    credential: Any = key
    if not key:
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - only where it is asked

        credential = DefaultAzureCredential()
    return ContainerClient(f"https://{account}{_HOST}", address.container, credential, **options)
