"""How a client knows Triton, and how Triton knows the client: TLS, headers, a bearer token.

Parsed by `settings.py`, which alone reads the environment. Nothing here is ever printed: neither
`repr` nor a message holds a key, a header's value or a token.
"""

from __future__ import annotations

import html
import json
import os
import re
import ssl
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, unquote

from mlflow_triton_plugin.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["OPEN", "Access", "Tls"]

_NAME = re.compile(r"[a-z0-9_.-]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
#: What the protocols themselves set; another value would break every request.
_OWN_NAMES = frozenset(
    {"connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade"}
    | {"accept-encoding", "content-encoding", "inference-header-content-length", "user-agent"}
)
_MAX_FILE_BYTES = 1_000_000
#: Shorter values are words that a message may well use by chance.
_SECRET_LENGTH = 4


@dataclass(frozen=True)
class Header:
    """One header of every request; gRPC calls it metadata.

    Attributes:
        name: in lower case.
        value: printable ASCII; a secret.
    """

    name: str
    value: str = field(repr=False)

    @property
    def secrets(self) -> set[str]:
        """What of it a server that repeats it must not be quoted with, however it writes it."""
        scheme, _, credentials = self.value.partition(" ")
        said = {self.value}
        if self.name.endswith("authorization") and credentials:
            said = {self.value, credentials.strip()} - {scheme}
        return {form for each in said for form in _written(each)}


@dataclass(frozen=True)
class Tls:
    """Certificates, as PEM.

    Attributes:
        ca: whom to trust instead of the authorities that everybody trusts; None for those.
        certificate: what the client shows a server that asks, the leaf first; None for nothing.
        key: the key of that certificate.
        where: how messages name the latter two.
    """

    ca: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    where: str = ""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Tls | None:
        """Read TRITON_TLS_CA, TRITON_TLS_CERT and TRITON_TLS_KEY; None where none is set.

        Raises:
            SettingsError: a file is missing, damaged, or one of a pair without the other.
        """
        names = ("TRITON_TLS_CA", "TRITON_TLS_CERT", "TRITON_TLS_KEY")
        ca, certificate, key = (environment.get(name) or "" for name in names)
        if not (ca or certificate or key):
            return None
        if bool(certificate) != bool(key):
            there, missing = names[1:] if certificate else reversed(names[1:])
            raise SettingsError(
                f"{there} is set and {missing} is not; a client certificate needs both",
                setting=missing,
            )
        tls = cls(
            ca=_read(ca, names[0]) if ca else None,
            certificate=_read(certificate, names[1]) if certificate else None,
            key=_read(key, names[2]) if key else None,
            where=f"{certificate} and {key}",
        )
        tls.context()
        return tls

    def context(self, kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
        """What Python's own TLS needs to be such a client.

        Args:
            kind: gevent's, for a client with gevent's sockets.

        Raises:
            SettingsError: a file is no certificate or key, or the two do not belong together.
        """
        context = kind(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            _trust(context, self.ca)
        else:
            context.load_default_certs()
        if self.certificate is not None and self.key is not None:
            _show(context, self.certificate + b"\n" + self.key, self.where)
        return context


@dataclass(frozen=True)
class Access:
    """What every request carries, and over which connection.

    Attributes:
        tls: for `grpcs://` and `https://`; None for the authorities everybody trusts and no client
            certificate.
        fixed: the headers of TRITON_HEADERS.
        headers_file: TRITON_HEADERS_FILE, one `Name: value` a line.
        token_file: TRITON_TOKEN_FILE, a bearer token.
    """

    tls: Tls | None = None
    fixed: tuple[Header, ...] = field(default=(), repr=False)
    headers_file: Path | None = None
    token_file: Path | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Access:
        """Read what the environment says, files included.

        Raises:
            SettingsError: something is not what it should be; no message holds a secret.
        """
        headers_file = environment.get("TRITON_HEADERS_FILE")
        token_file = environment.get("TRITON_TOKEN_FILE")
        access = cls(
            tls=Tls.read(environment),
            fixed=_parse_variable(environment.get("TRITON_HEADERS") or ""),
            headers_file=Path(headers_file) if headers_file else None,
            token_file=Path(token_file) if token_file else None,
        )
        access.check()
        return access

    @property
    def has_headers(self) -> bool:
        """Whether requests carry anything that is not for everybody."""
        return bool(self.fixed or self.headers_file or self.token_file)

    def check(self) -> None:
        """Read the files, and make sure that no header is said twice.

        Raises:
            SettingsError: it is, or a file is not what it should be.
        """
        seen: dict[str, str] = {}
        for source in self._sources:
            for header in source.first():
                if header.name in seen:
                    raise SettingsError(
                        f"{source.setting} sets a header that {seen[header.name]} sets, too; "
                        "say it once",
                        setting=source.setting,
                    )
                seen[header.name] = source.setting

    def headers(self) -> list[Header]:
        """The headers of a request that is about to be sent; files that rotate are read again."""
        headers = list(self.fixed)
        for source in self._sources[1:]:
            headers += source.now()
        self._sent.update(*(header.secrets for header in headers))
        return headers

    def without_secrets(self, text: str) -> str:
        """The text, where a server repeats what it was sent, without it."""
        for value in sorted(self._sent, key=len, reverse=True):
            if len(value) >= _SECRET_LENGTH:
                text = text.replace(value, "***")
        return text

    @cached_property
    def _sent(self) -> set[str]:
        """Every value that a server may repeat, those that were replaced meanwhile among them."""
        return set()

    @cached_property
    def _sources(self) -> tuple[_Source, ...]:
        sources = [_Source("TRITON_HEADERS", None, self.fixed)]
        if self.headers_file is not None:
            sources.append(_Source("TRITON_HEADERS_FILE", self.headers_file))
        if self.token_file is not None:
            sources.append(_Source("TRITON_TOKEN_FILE", self.token_file))
        return tuple(sources)


class _Source:
    """Where headers come from; a file's last good content is kept while it is being replaced."""

    def __init__(self, setting: str, path: Path | None, headers: Iterable[Header] = ()) -> None:
        self.setting = setting
        self._path = path
        self._headers = tuple(headers)
        self._rotates = False

    def first(self) -> tuple[Header, ...]:
        """Read it.

        Raises:
            SettingsError: it cannot be read, or is not what it should be.
        """
        if self._path is not None:
            self._headers = self._parse(_read(str(self._path), self.setting))
            # what a shell's <(…) makes can be read once
            self._rotates = stat.S_ISREG(self._path.stat().st_mode)
        return self._headers

    def now(self) -> tuple[Header, ...]:
        """Read it again, if it can be."""
        if not self._headers:
            return self.first()
        if self._rotates:
            try:
                return self.first()
            except (SettingsError, OSError):  # half written, or gone for a moment
                return self._headers
        return self._headers

    def _parse(self, data: bytes) -> tuple[Header, ...]:
        # no UnicodeDecodeError: it would carry the file's content
        text = data.decode("ascii", errors="replace")
        if self.setting == "TRITON_TOKEN_FILE":
            token = text.strip()
            if not _VALUE.fullmatch(token) or " " in token:
                raise SettingsError(
                    f"{self.setting}: {self._path} does not hold one token; it is one line of "
                    "printable ASCII without spaces",
                    setting=self.setting,
                )
            return (Header("authorization", f"Bearer {token}"),)
        lines = (
            (number, line)
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")
        )
        return _unique(
            (
                _header(line.partition(":"), f"{self.setting}: line {number}", "Name: value")
                for number, line in lines
            ),
            self.setting,
        )


def _written(value: str) -> Iterator[str]:
    """A value as texts have it: as it is, in one line of words, in JSON, in an address, in HTML."""
    quoted = json.dumps(value)[1:-1]
    yield from (value, " ".join(value.split()), quoted, quoted.replace("/", "\\/"))
    yield re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", quoted)  # Go's JSON
    yield from (quote(value), quote(value, safe=""), quote_plus(value), html.escape(value))


def _parse_variable(text: str) -> tuple[Header, ...]:
    """TRITON_HEADERS: `name=value,name=value`, as OpenTelemetry's OTEL_EXPORTER_OTLP_HEADERS."""
    entries = [entry for entry in text.split(",") if entry.strip()]
    headers = (
        _header(entry.partition("="), f"TRITON_HEADERS: entry {number}", "name=value", unquote)
        for number, entry in enumerate(entries, 1)
    )
    return _unique(headers, "TRITON_HEADERS")


def _header(
    parts: tuple[str, str, str],
    where: str,
    form: str,
    decode: Callable[[str], str] = str.strip,
) -> Header:
    """One header; messages repeat nothing of what was written, for it may be a secret.

    Not the name either: it may be what stands behind a comma in a value.
    """
    setting = where.partition(":")[0]
    name, separator, value = parts
    name, value = name.strip().lower(), decode(value.strip())
    if not separator or not _NAME.fullmatch(name):
        raise SettingsError(
            f"{where} is not {form}, with a name of letters, digits, -, _ and .", setting=setting
        )
    if name in _OWN_NAMES or name.startswith("grpc-") or name.endswith("-bin"):
        raise SettingsError(
            f"{where} sets a header that belongs to the protocol itself; leave it out",
            setting=setting,
        )
    if not _VALUE.fullmatch(value):
        raise SettingsError(
            f"{where} has a value that is empty or not printable ASCII",
            setting=setting,
        )
    return Header(name, value)


def _unique(headers: Iterable[Header], setting: str) -> tuple[Header, ...]:
    found: dict[str, Header] = {}
    for number, header in enumerate(headers, 1):
        if header.name in found:
            first = list(found).index(header.name) + 1
            raise SettingsError(
                f"{setting} sets one header twice, as number {first} and {number}; say it once",
                setting=setting,
            )
        found[header.name] = header
    return tuple(found.values())


def _read(path: str, setting: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:  # ValueError: no path at all
        why = getattr(exc, "strerror", None) or str(exc)
        raise SettingsError(f"{setting}: {path!r} cannot be read: {why}", setting=setting) from exc
    if len(data) > _MAX_FILE_BYTES:
        raise SettingsError(f"{setting}: {path} is larger than 1 MB", setting=setting)
    return data


def _trust(context: ssl.SSLContext, ca: bytes) -> None:
    problem = "holds no PEM certificate"
    try:
        context.load_verify_locations(cadata=ca.decode("ascii", errors="ignore"))
        if context.cert_store_stats()["x509"]:
            return
    except (ssl.SSLError, ValueError) as exc:
        problem = f"is not a bundle of PEM certificates ({_said(exc)})"
    raise SettingsError(f"the file of TRITON_TLS_CA {problem}", setting="TRITON_TLS_CA")


def _show(context: ssl.SSLContext, pem: bytes, where: str) -> None:
    try:
        with _as_file(pem) as path:
            # without a password OpenSSL would ask the terminal for one
            context.load_cert_chain(path, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as exc:
        raise SettingsError(
            f"TRITON_TLS_CERT and TRITON_TLS_KEY: {where} are not a PEM certificate and its "
            f"unencrypted key ({_said(exc)})",
            setting="TRITON_TLS_KEY",
        ) from exc


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path that these bytes can be read from while the block lasts; nobody else can.

    Python's TLS reads keys from files only. The user's own may be a pipe, or be replaced.
    """
    if hasattr(os, "memfd_create"):  # never on a disk
        with os.fdopen(os.memfd_create("mlflow-triton"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.name


def _said(exc: Exception) -> str:
    reason = getattr(exc, "reason", None) or str(exc)
    return str(reason).replace("_", " ").lower()


#: Neither certificates nor headers.
OPEN = Access()
