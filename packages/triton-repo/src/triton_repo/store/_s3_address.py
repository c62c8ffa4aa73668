"""`s3://…` as Triton spells it, and the credentials that Triton would take for it.

Source: Triton core, `src/filesystem/implementations/s3.h`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from triton_repo.errors import StoreError
from triton_repo.store._bucket import prefix_of, without_secrets
from triton_repo.store._credential_file import credential_entry

__all__ = ["S3Address", "S3Credentials", "read_credentials"]

_SCHEME = "s3://"
_ENDPOINT = re.compile(r"(https?)://+([^/]+)(?:/+(.*))?", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[0-9A-Za-z._-]+)(?::([0-9]{1,5}))?")
_BUCKET = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{1,253}[0-9A-Za-z]")
#: What Triton itself reads where an address names an endpoint; anything else it misreads.
_TRITONS = re.compile(
    r"s3://(http://|https://|)([0-9a-zA-Z\-.]+):([0-9]+)/([0-9a-z.\-]+)(((/[0-9a-zA-Z.\-_]+)*)?)"
)


@dataclass(frozen=True)
class S3Address:
    """Where a repository is.

    Attributes:
        endpoint: such as `http://127.0.0.1:9000`; an empty string for Amazon's own, or what
            `AWS_ENDPOINT_URL_S3` says.
        bucket: its name.
        prefix: of every key; empty, or with a slash at its end.
    """

    endpoint: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, address: str) -> S3Address:
        """Read `s3://bucket/prefix` or `s3://http://host:port/bucket/prefix`.

        Also without a prefix, with slashes too many, with `https://` and without a port, and as
        `s3://host:port/bucket`, which is HTTP.

        Raises:
            StoreError: it names no bucket, or carries a password.
        """
        rest = address.removeprefix(_SCHEME).lstrip("/")
        found = _ENDPOINT.fullmatch(rest)
        if "?" in rest or "@" in rest.partition("/")[0] or (found and "@" in found[2]):
            raise StoreError(
                "the repository's address carries a name, a password or a signature; give them in "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
                uri=_SCHEME,
            )
        endpoint = ""
        if found:
            scheme, authority, path = found[1], found[2], found[3] or ""
            endpoint = f"{scheme}://{_authority(authority, address)}"
        else:
            authority, _, path = rest.partition("/")
            if ":" in authority:
                endpoint = f"http://{_authority(authority, address)}"
            else:
                path = rest
        bucket, _, prefix = path.lstrip("/").partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise StoreError(
                f"{without_secrets(address)} names no bucket; use "
                "s3://bucket/prefix or s3://https://host:port/bucket/prefix",
                uri=_SCHEME,
            )
        return cls(endpoint, bucket, prefix_of(address, prefix))

    @property
    def uri(self) -> str:
        """As Triton spells it, without slashes too many."""
        endpoint = f"{self.endpoint}/" if self.endpoint else ""
        return f"{_SCHEME}{endpoint}{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def is_readable_by_triton(self) -> bool:
        """Whether Triton reads the same out of it as this class."""
        return not self.endpoint or _TRITONS.fullmatch(self.uri) is not None


def _authority(authority: str, address: str) -> str:
    found = _HOST_AND_PORT.fullmatch(authority)
    if not found or int(found[2] or 0) > 65_535:  # noqa: PLR2004 - the highest port
        raise StoreError(
            f"{without_secrets(address)} names no host:port of an S3 endpoint", uri=_SCHEME
        )
    return authority


@dataclass(frozen=True, repr=False)
class S3Credentials:
    """What Triton's own credential file says of a repository; empty strings where it is silent."""

    key_id: str = ""
    secret_key: str = ""
    session_token: str = ""
    region: str = ""
    profile: str = ""


def read_credentials(uri: str) -> S3Credentials:
    """The credentials of Triton's file for an address; see `credential_entry`.

    Returns:
        Nothing but empty strings where there is no such file; boto3's own ways apply then.
    """
    entry = credential_entry("s3", uri)
    names = ("key_id", "secret_key", "session_token", "region", "profile")
    return S3Credentials(*(entry.get(name, "") for name in names))
