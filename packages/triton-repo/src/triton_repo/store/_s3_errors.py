"""What went wrong at S3, in one line: what, where, and what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import botocore.exceptions

from triton_repo.errors import (
    ObjectNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from triton_repo.store._s3_address import S3Address

__all__ = ["is_code", "translate"]

_SIGNING = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or TRITON_CLOUD_CREDENTIAL_PATH"
)
#: Error codes of S3 that are about who asks.
_ACCESS = {
    "InvalidAccessKeyId": f"the access key is not known there; {_SIGNING}",
    "SignatureDoesNotMatch": f"the secret key does not belong to the access key; {_SIGNING}",
    "InvalidToken": "the session token is not valid; renew AWS_SESSION_TOKEN",
    "ExpiredToken": "the session has expired; renew AWS_SESSION_TOKEN, or log in again",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it (S3 allows 15 minutes)",
    "AccountProblem": "the account has a problem",
    "InvalidObjectState": "the object is archived; restore it first",
}
_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "UnauthorizedAccess"}

_BOTO = botocore.exceptions
#: OpenSSL's words, of several releases, where the other side does not speak TLS.
_NO_TLS = re.compile(r"(?i)wrong[_ ]version[_ ]number|record layer failure|packet length too long")
#: What boto3 raises without an answer of S3, from the special to the general.
_WITHOUT_ANSWER: tuple[tuple[tuple[type[Exception], ...], type[StoreError], str], ...] = (
    (
        (_BOTO.NoCredentialsError, _BOTO.PartialCredentialsError),
        StoreAccessError,
        f"no credentials were found; {_SIGNING}",
    ),
    (
        (_BOTO.ProfileNotFound,),
        StoreAccessError,
        "{cause}; AWS_PROFILE must name one of those in ~/.aws/config",
    ),
    (
        (_BOTO.CredentialRetrievalError, _BOTO.TokenRetrievalError, _BOTO.SSOError),
        StoreAccessError,
        "no credentials could be had: {cause}",
    ),
    (
        (_BOTO.SSLError,),
        StoreUnavailableError,
        (
            "the certificate of {endpoint} could not be verified; AWS_CA_BUNDLE names a file of "
            "the certificate authorities to trust"
        ),
    ),
    (
        (_BOTO.EndpointConnectionError, _BOTO.ConnectTimeoutError),
        StoreUnavailableError,
        "nothing answers at {endpoint}; is it up, and is the address right?",
    ),
    (
        (
            _BOTO.ConnectionClosedError,
            _BOTO.ReadTimeoutError,
            _BOTO.ResponseStreamingError,
            _BOTO.IncompleteReadError,
        ),
        StoreUnavailableError,
        "{endpoint} did not answer to the end, several times; try again when it does",
    ),
    ((_BOTO.HTTPClientError,), StoreUnavailableError, "{endpoint} could not be asked: {cause}"),
)


def is_code(exc: botocore.exceptions.ClientError, *codes: str) -> bool:
    """Whether S3 answered one of these; HEAD and some servers say only the status."""
    status = {"412": "PreconditionFailed", "409": "ConditionalRequestConflict"}
    code = _code(exc)
    return status.get(code, code) in codes


def translate(exc: Exception, address: S3Address, key: str, permission: str) -> StoreError:
    """The store's error for one of boto3's.

    Args:
        exc: what was raised.
        address: the repository.
        key: what was asked for, relative to the repository.
        permission: what the caller must be allowed to do there.
    """
    if isinstance(exc, botocore.exceptions.ClientError):
        return _answered(exc, address, key, permission)
    where = f"{address.uri}/{key}" if key else address.uri
    kind, what = _not_asked(exc, address)
    return kind(f"{where}: {what}", uri=address.uri, key=key)


def _answered(
    exc: botocore.exceptions.ClientError, address: S3Address, key: str, permission: str
) -> StoreError:
    code = _code(exc)
    where = f"{address.uri}/{key}" if key else address.uri
    kind: type[StoreError] = StoreAccessError
    if code == "NoSuchBucket":
        endpoint = address.endpoint or "Amazon S3"
        where = address.uri
        what = (
            f"there is no bucket {address.bucket!r} at {endpoint}; create it, or mend the address"
        )
    elif code in _MISSING:
        kind, what = ObjectNotFoundError, "there is no such object"
    elif code in _DENIED:
        resource = f"arn:aws:s3:::{address.bucket}"
        if "List" not in permission:
            resource += f"/{address.prefix}{key}"
        what = f"denied; these credentials need {permission} on {resource}"
    elif code in _REGION:
        region = _header(exc, "x-amz-bucket-region")
        in_region = f"in the region {region}" if region else "in another region"
        what = f"the bucket is {in_region}; set AWS_DEFAULT_REGION to it"
    elif code in _ACCESS:
        what = _ACCESS[code]
    else:
        kind = StoreUnavailableError
        message = exc.response.get("Error", {}).get("Message", "")
        what = f"{message.rstrip('.') or 'failed'} ({code})"
    return kind(f"{where}: {what}", uri=address.uri, key=key)


def _not_asked(exc: Exception, address: S3Address) -> tuple[type[StoreError], str]:
    """What went wrong before S3 had an answer."""
    endpoint = address.endpoint or "Amazon S3"
    if isinstance(exc, _BOTO.SSLError) and _NO_TLS.search(str(exc)):
        plain = endpoint.replace("https://", "http://")
        return StoreUnavailableError, f"{endpoint} speaks no TLS; use s3://{plain}/…"
    for kinds, error, what in _WITHOUT_ANSWER:
        if isinstance(exc, kinds):
            return error, what.format(endpoint=endpoint, cause=_cause(exc))
    return StoreUnavailableError, _cause(exc)


def _cause(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__


def _code(exc: botocore.exceptions.ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _header(exc: botocore.exceptions.ClientError, name: str) -> str:
    metadata: Any = exc.response.get("ResponseMetadata", {})
    return str(metadata.get("HTTPHeaders", {}).get(name, ""))
