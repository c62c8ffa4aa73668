"""S3 by boto3: the only door to it.

Credentials, regions, profiles, roles, proxies, CA bundles, addressing styles and retries are
boto3's, from its variables and files; only Triton's own credential file goes before them.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import logging
import os
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import boto3
import botocore.config
import botocore.exceptions
import s3transfer.manager
import urllib3.exceptions

from triton_repo._version import WRITER
from triton_repo.record import FileDigest
from triton_repo.store._bucket import ConditionError, Content, ObjectInfo
from triton_repo.store._s3_address import S3Address, read_credentials
from triton_repo.store._s3_errors import is_code, translate
from triton_repo.store._s3_uploads import DIGEST, PARALLEL, PARTS_AT_ONCE, S3Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from types_boto3_s3 import S3Client

    from triton_repo.entry import EntryFile

__all__ = ["S3Bucket"]

#: Above this, copies inside the repository go in parts of this size, several at once.
_COPY_BYTES = 256 * 1024 * 1024
#: Keys in one DeleteObjects request.
_DELETE_KEYS = 1000
_READ_ATTEMPTS = 4
_READ_BYTES = 1024 * 1024
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_RETRIES = 5
#: For what must be known soon: a lease goes by while one answer does not come.
_BEAT_TIMEOUT_S = 4
_BEAT_TRIES = 2
#: Requests after which something is not as it was; what is aborted was never there.
_CHANGING = {
    *("PutObject", "CopyObject", "DeleteObject", "DeleteObjects"),
    *("CreateMultipartUpload", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload"),
}
#: What S3 copies in one request, at most; it answers with the sha256 of what it copied.
_COPY_AT_MOST_BYTES = 5 * 1024**3

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class S3Bucket:
    """See `Bucket`."""

    parallel = PARALLEL

    def __init__(self, address: S3Address) -> None:
        self.address = address
        self.name = address.bucket
        self._session = _session(address)
        self.client = _client(self._session, address)
        self.client.meta.events.register("before-send.s3", self._before_request)
        self._fence: Callable[[], None] | None = None

    @property
    def uri(self) -> str:
        return self.address.uri

    @property
    def has_prefix(self) -> bool:
        return bool(self.address.prefix)

    def fence(self, check: Callable[[], None] | None) -> None:
        self._fence = check

    def _before_request(self, event_name: str, **_: Any) -> None:
        """Every try of a request comes by here, also those of s3transfer."""
        if self._fence is not None and event_name.rpartition(".")[2] in _CHANGING:
            self._fence()

    def impatient(self) -> S3Bucket:
        same = copy.copy(self)
        same.client = _client(self._session, self.address, impatient=True)
        same.fence(None)
        return same

    def check(self) -> None:
        if not self.address.is_readable_by_triton:
            _logger.warning(
                "Triton itself cannot read %s: with an endpoint it needs host:port, a bucket of "
                "a-z, 0-9, dots and dashes, and a prefix of these, capitals and _",
                self.uri,
            )

    def objects(self, prefix: str, limit: int | None = None) -> Iterator[tuple[str, ObjectInfo]]:
        for page in self._pages(prefix, MaxKeys=limit or 1000):
            for item in page.get("Contents", []):
                info = ObjectInfo(item["Size"], item["ETag"])
                yield item["Key"].removeprefix(self.address.prefix), info
            if limit is not None:
                return

    def directories(self, prefix: str) -> tuple[list[str], bool]:
        start = len(self.address.prefix) + len(prefix)
        names: list[str] = []
        there = False
        for page in self._pages(prefix, Delimiter="/"):
            found = page.get("CommonPrefixes", [])
            names += [item["Prefix"][start:-1] for item in found]
            there = there or bool(found or page.get("Contents"))
        return [name for name in names if name], there

    def _pages(self, prefix: str, **arguments: Any) -> Iterator[Any]:
        key = self.key(prefix)
        while True:
            with self.translated(prefix, "s3:ListBucket"):
                page = self.client.list_objects_v2(Bucket=self.name, Prefix=key, **arguments)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def get(self, key: str) -> Content:
        with self.translated(key, "s3:GetObject"):
            answer, data = self._read_whole(key, lambda body: bytes(body.read()))
        written = answer["LastModified"]
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        now = _http_date(headers.get("date")) or written
        return Content(data, answer["ETag"], (now - written).total_seconds())

    def put(self, key: str, data: bytes, *, new: bool = False, replacing: str = "") -> str:
        digest = hashlib.sha256(data)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if new else {}
        if replacing:
            condition = {"IfMatch": replacing}
        with self.translated(key, "s3:PutObject"):
            try:
                answer = self.send(key, data, digest.digest(), **condition)
            except botocore.exceptions.ClientError as exc:
                if condition and is_code(exc, "PreconditionFailed", "ConditionalRequestConflict"):
                    raise ConditionError from exc
                raise
        return str(answer["ETag"])

    def send(self, key: str, data: bytes, sha256: bytes, **arguments: Any) -> Any:
        return self.client.put_object(
            Bucket=self.name,
            Key=self.key(key),
            Body=data,
            ChecksumSHA256=base64.b64encode(sha256).decode(),
            Metadata={DIGEST: sha256.hex()},
            **arguments,
        )

    @contextmanager
    def uploads(self, on_copied: Callable[[int], None] | None) -> Iterator[S3Uploads]:
        uploads = S3Uploads(self, on_copied)
        try:
            yield uploads
        except BaseException:
            uploads.stop()
            raise
        uploads.close()

    def digest(self, key: str) -> FileDigest:
        with self.translated(key, "s3:GetObject"):
            found = self.client.head_object(
                Bucket=self.name, Key=self.key(key), ChecksumMode="ENABLED"
            )
            known = _sha256_of(found) or found["Metadata"].get(DIGEST)
            if known:
                return FileDigest(found["ContentLength"], known)
            # what somebody else put there has to be read, all of it
            answer, sha256 = self._read_whole(key, _read_sha256)
        return FileDigest(answer["ContentLength"], sha256)

    def _read_whole(self, key: str, read: Callable[[Any], _T]) -> tuple[Any, _T]:
        """Ask for an object and read its body; again where that breaks off.

        Botocore asks again only before the first byte.
        """
        for attempt in itertools.count(1):
            answer = self.client.get_object(Bucket=self.name, Key=self.key(key))
            try:
                return answer, read(answer["Body"])
            except (
                botocore.exceptions.IncompleteReadError,
                botocore.exceptions.ResponseStreamingError,
                botocore.exceptions.ReadTimeoutError,
            ):
                if attempt == _READ_ATTEMPTS:
                    raise
        raise AssertionError

    def copy(self, key: str, to: str, size_bytes: int = 0) -> None:
        source: Any = {"Bucket": self.name, "Key": self.key(key)}
        with self.translated(key, "s3:GetObject and s3:PutObject"):
            if size_bytes > _COPY_BYTES:
                self._copy_in_parts(source, to, self._metadata(key))
                return
            try:
                self.client.copy_object(
                    Bucket=self.name,
                    Key=self.key(to),
                    CopySource=source,
                    ChecksumAlgorithm="SHA256",
                )
            except botocore.exceptions.ClientError as exc:
                if not is_code(exc, "InvalidRequest", "EntityTooLarge"):
                    raise
                # more than one request may copy
                self._copy_in_parts(source, to, self._metadata(key))

    def _metadata(self, key: str) -> Any:
        """For a copy in parts, of which S3 knows no sha256 of its own."""
        found = self.client.head_object(Bucket=self.name, Key=self.key(key), ChecksumMode="ENABLED")
        stored = _sha256_of(found)
        return {**found["Metadata"], **({DIGEST: stored} if stored else {})}

    def copies_from(self, uri: str, endpoint: str) -> bool:
        return uri.startswith("s3://") and _endpoint(endpoint) == _endpoint(self.address.endpoint)

    def copy_from(self, key: str, file: EntryFile) -> FileDigest | None:
        """Copy an object of another bucket; None where that cannot be done from here."""
        if file.origin is None or not self.copies_from(file.origin.uri, file.origin.endpoint):
            return None
        bucket, _, path = file.origin.uri.removeprefix("s3://").partition("/")
        source: Any = {"Bucket": bucket, "Key": path}
        try:
            found = self.client.head_object(**source, ChecksumMode="ENABLED")
            if found["ContentLength"] != file.size_bytes:
                return None
            if file.size_bytes > _COPY_AT_MOST_BYTES:
                return self._copy_large_from(key, source, found)
            answer = self.client.copy_object(
                Bucket=self.name,
                Key=self.key(key),
                CopySource=source,
                CopySourceIfMatch=found["ETag"],
                ChecksumAlgorithm="SHA256",
                MetadataDirective="REPLACE",
                Metadata={DIGEST: _identity(found)},
            )
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as exc:
            _logger.info(
                "%s comes through this machine: the store does not copy it to %s with these "
                "credentials (%s)",
                file.origin.uri,
                self.uri,
                exc,
            )
            return None
        sha256 = _sha256_of(answer["CopyObjectResult"]) or _identity(found)
        return FileDigest(file.size_bytes, sha256)

    def _copy_large_from(self, key: str, source: Any, found: Any) -> FileDigest:
        """Copy what one request cannot: its sha256 is not to be had without reading it."""
        metadata = {DIGEST: _identity(found)}
        self._copy_in_parts(source, key, metadata, CopySourceIfMatch=found["ETag"])
        return FileDigest(found["ContentLength"], _identity(found))

    def _copy_in_parts(self, source: Any, to: str, metadata: Any, **condition: str) -> None:
        config = s3transfer.manager.TransferConfig(
            multipart_threshold=_COPY_BYTES,
            multipart_chunksize=_COPY_BYTES,
            max_request_concurrency=PARTS_AT_ONCE,
        )
        with s3transfer.manager.TransferManager(self.client, config) as transfers:
            transfers.copy(
                source,
                self.address.bucket,
                self.key(to),
                extra_args={"Metadata": metadata, "MetadataDirective": "REPLACE", **condition},
            ).result()

    def delete(self, keys: Iterable[str]) -> None:
        remaining = iter(keys)
        while batch := list(itertools.islice(remaining, _DELETE_KEYS)):
            with self.translated(batch[0], "s3:DeleteObject"):
                if len(batch) == 1:
                    self.client.delete_object(Bucket=self.name, Key=self.key(batch[0]))
                    continue
                answer = self.client.delete_objects(
                    Bucket=self.name,
                    Delete={"Objects": [{"Key": self.key(key)} for key in batch], "Quiet": True},
                )
                for error in answer.get("Errors", []):
                    raise botocore.exceptions.ClientError({"Error": error}, "DeleteObjects")

    def delete_replaced(self, key: str, etag: str) -> None:
        with self.translated(key, "s3:DeleteObject"):
            try:
                self.client.delete_object(Bucket=self.name, Key=self.key(key), IfMatch=etag)
            except botocore.exceptions.ClientError as exc:
                if is_code(exc, "PreconditionFailed", "ConditionalRequestConflict"):
                    raise ConditionError from exc
                raise

    def abort_uploads(self, prefix: str) -> None:
        with self.translated(prefix, "s3:ListBucketMultipartUploads"):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.name, Prefix=self.key(prefix)
            )
            for upload in [each for page in pages for each in page.get("Uploads", [])]:
                if self._fence is not None:
                    self._fence()
                self._abort_upload(upload["Key"], upload["UploadId"])

    def _abort_upload(self, key: str, upload: str) -> None:
        try:
            self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)
        except botocore.exceptions.ClientError as exc:
            if not is_code(exc, "NoSuchUpload"):  # an answer was lost
                raise

    # -- the parts ----------------------------------------------------------------------------

    def key(self, key: str) -> str:
        return f"{self.address.prefix}{key}"

    @contextmanager
    def translated(self, key: str, permission: str) -> Iterator[None]:
        try:
            yield
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            boto3.exceptions.Boto3Error,
        ) as exc:
            raise translate(exc, self.address, key, permission) from exc


def _session(address: S3Address) -> boto3.session.Session:
    credentials = read_credentials(address.uri)
    try:
        return boto3.session.Session(
            aws_access_key_id=credentials.key_id or None,
            aws_secret_access_key=credentials.secret_key or None,
            aws_session_token=credentials.session_token or None,
            region_name=credentials.region or None,
            profile_name=None if credentials.key_id else credentials.profile or None,
        )
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise translate(exc, address, "", "") from exc


def _client(
    session: boto3.session.Session, address: S3Address, *, impatient: bool = False
) -> S3Client:
    try:
        own = session._session  # noqa: SLF001
        retries: dict[str, Any] = {}
        if impatient or not own.get_config_variable("max_attempts"):
            retries["total_max_attempts"] = _BEAT_TRIES if impatient else _RETRIES
        if not own.get_config_variable("retry_mode"):
            retries["mode"] = "standard"
        return _whole_answers(
            session.client(
                "s3",
                endpoint_url=address.endpoint or None,
                config=botocore.config.Config(
                    connect_timeout=_BEAT_TIMEOUT_S if impatient else _CONNECT_TIMEOUT_S,
                    read_timeout=_BEAT_TIMEOUT_S if impatient else _READ_TIMEOUT_S,
                    max_pool_connections=PARALLEL + PARTS_AT_ONCE,
                    retries=cast("Any", retries),
                    user_agent_extra=WRITER,
                ),
            )
        )
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise translate(exc, address, "", "") from exc


def _whole_answers(client: S3Client) -> S3Client:
    """Let a client ask again where an answer's body breaks off.

    botocore does where there is no answer; of one that ends too early it lets urllib3's error
    through (`endpoint.py`, `_do_get_response`). Every request here may be sent twice.
    """
    ask: Any = client._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 - no other way in

    def ask_again(operation: str, arguments: dict[str, Any]) -> Any:
        for attempt in itertools.count(1):
            try:
                return ask(operation, arguments)
            except urllib3.exceptions.HTTPError as exc:
                if attempt == _READ_ATTEMPTS:
                    raise botocore.exceptions.ResponseStreamingError(error=exc) from exc
                body: Any = arguments.get("Body")
                if hasattr(body, "seek"):
                    body.seek(0)
        raise AssertionError

    client._make_api_call = ask_again  # type: ignore[attr-defined] # noqa: SLF001 - the same
    return client


def _http_date(text: str | None) -> datetime | None:
    return parsedate_to_datetime(text) if text else None


def _sha256_of(found: Any) -> str:
    """What S3 says of an object's content, in hex; an empty string where it does not know."""
    stored = found.get("ChecksumSHA256", "")
    # with a dash it is that of its parts' checksums
    return base64.b64decode(stored).hex() if stored and "-" not in stored else ""


def _read_sha256(body: Any) -> str:
    seen = hashlib.sha256()
    for piece in body.iter_chunks(_READ_BYTES):
        seen.update(piece)
    return seen.hexdigest()


def _identity(found: Any) -> str:
    """What says of an object that it is this one, where its sha256 is not known."""
    return f"etag:{found['ETag'].strip(chr(34))}"


def _endpoint(given: str) -> str:
    """Where boto3 goes when it is given this endpoint, or none; empty for Amazon's own."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return (given or next(filter(None, map(os.environ.get, names)), "")).rstrip("/").lower()
