"""Target URI, environment and `-C` options, parsed at once into frozen values.

The tables here are also what `mlflow deployments help -t triton` prints. The only reader of
`os.environ` for the deployments target.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlflow_triton_plugin.errors import SettingsError
from mlflow_triton_plugin.security import OPEN, Access
from triton_repo.change import Together
from triton_repo.masking import has_secret
from triton_repo.scan import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "OPTIONS",
    "VARIABLES",
    "Endpoint",
    "OnConflict",
    "Options",
    "Settings",
    "Validate",
    "parse_options",
]

OnConflict = Literal["fail", "adopt", "replace"]
Validate = Literal["false", "load", "true"]

DEFAULT_URL = "localhost:8001"
DEFAULT_KEEP_VERSIONS = 2
_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s/:@\[\]]+)(:(?P<port>\d{1,5}))?(?P<path>/\S*)?"
)
_LAST_PORT = 65535

#: Environment variables, with what `help` says of them.
VARIABLES = {
    "TRITON_URL": (
        "where Triton listens: host:port or grpc://host:port for gRPC, http:// or https:// for its "
        f"HTTP protocol (pip install 'mlflow-triton-plugin[http]'); default {DEFAULT_URL}. Several "
        "servers that share the model repository are separated by commas. triton://host:port as "
        "the target overrides it"
    ),
    "TRITON_MODEL_REPO": (
        "what Triton was started with (--model-repository): a path, a file:// URI, s3://bucket/p, "
        "s3://http://host:port/bucket/p, or as://account/container/p (pip install "
        "'mlflow-triton-plugin[azure]')"
    ),
    "TRITON_REQUEST_TIMEOUT": "seconds a request may take; default 60",
    "TRITON_CLOUD_CREDENTIAL_PATH": (
        "Triton's own file of credentials for s3:// and as://; otherwise boto3's variables and "
        "files are asked: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_DEFAULT_REGION, AWS_CA_BUNDLE and so "
        "on; for as://, AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY and Azure's default "
        "credential"
    ),
    "TRITON_TLS_CA": (
        "file with the authorities to trust for grpcs:// and https://, PEM; by default those that "
        "everybody trusts"
    ),
    "TRITON_TLS_CERT": "file with the client's certificate for mutual TLS, PEM, the leaf first",
    "TRITON_TLS_KEY": "file with the key of that certificate, PEM, not encrypted",
    "TRITON_HEADERS": (
        "headers of every request, name=value,name=value (percent-encoded where a value has a "
        "comma), such as the key of --grpc-restricted-protocol: triton-grpc-protocol-admin-key=KEY"
    ),
    "TRITON_HEADERS_FILE": "file with more of them, one `Name: value` a line; read anew for each",
    "TRITON_TOKEN_FILE": (
        "file with a bearer token for a gateway before Triton; read again for each request, so "
        "that it may rotate. It is sent with TLS, or on this machine"
    ),
    "MLFLOW_S3_ENDPOINT_URL": "the S3 that MLflow keeps artifacts in, where it is not Amazon's",
    "MLFLOW_ARTIFACTS_DESTINATION": (
        "where the tracking server keeps the artifacts that it serves (mlflow server "
        "--artifacts-destination): what lies in the repository's S3 is then copied there, not here"
    ),
}


@dataclass(frozen=True)
class Endpoint:
    """One address of a Triton server.

    Attributes:
        scheme: `grpc`, `grpcs`, `http` or `https`.
        address: `host:port`; with HTTP a path may follow.
    """

    scheme: str
    address: str

    @classmethod
    def parse(cls, text: str, *, setting: str) -> Endpoint:
        """Read one address; gRPC where it does not say otherwise.

        Raises:
            SettingsError: it is not an address.
        """
        scheme, separator, rest = text.strip().rpartition("://")
        scheme = scheme if separator else "grpc"
        match = _ADDRESS.fullmatch(rest)
        if scheme not in _DEFAULT_PORTS:
            raise SettingsError(
                f"{setting} is {text!r}; use grpc://, grpcs://, http:// or https:// and host:port",
                setting=setting,
            )
        if match is not None:
            _refuse_no_host(match["host"], text, setting)
        port = int((match and match["port"]) or _DEFAULT_PORTS[scheme])
        path = ((match and match["path"]) or "").rstrip("/")
        if match is None or not 0 < port <= _LAST_PORT or (path and scheme.startswith("grpc")):
            raise SettingsError(f"{setting} is {text!r}; use host:port", setting=setting)
        return cls(scheme, f"{match['host']}:{port}{path}")

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken there."""
        return self.scheme in ("grpcs", "https")

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent there stays on this machine."""
        host = self.address.partition("/")[0].rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


@dataclass(frozen=True)
class Settings:
    """Where to deploy to.

    Attributes:
        endpoints: the servers; every one of them loads every deployment.
        model_repository: TRITON_MODEL_REPO, or an empty string.
        request_timeout_s: deadline of every call but a load.
        artifacts_destination: where MLflow's tracking server keeps the artifacts that it serves,
            or an empty string: MLFLOW_ARTIFACTS_DESTINATION.
        s3_endpoint: of the S3 that MLflow keeps artifacts in, or an empty string for the default:
            MLFLOW_S3_ENDPOINT_URL.
        access: certificates, headers and a token for all of the servers.
    """

    endpoints: tuple[Endpoint, ...]
    model_repository: str = field(repr=False)  # a password in it is refused only when it is used
    request_timeout_s: float
    artifacts_destination: str = field(default="", repr=False)
    s3_endpoint: str = field(default="", repr=False)
    access: Access = OPEN

    @classmethod
    def read(cls, target_uri: str, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the target URI and the environment.

        Args:
            target_uri: `triton`, or `triton://host:port[,host:port…]`.
            environment: `os.environ` when not given.

        Raises:
            SettingsError: one of them is not what it should be; `setting` names it.
        """
        env = os.environ if environment is None else environment
        addresses, setting = _addresses(target_uri), "the target URI"
        if not addresses:
            addresses, setting = env.get("TRITON_URL") or DEFAULT_URL, "TRITON_URL"
        timeout = env.get("TRITON_REQUEST_TIMEOUT") or "60"
        if not {"@", "?", "#"}.isdisjoint(addresses):  # not repeated: it may be a password
            raise SettingsError(
                f"{setting} has more than hosts and ports in it; credentials go into "
                "TRITON_HEADERS_FILE or TRITON_TOKEN_FILE",
                setting=setting,
            )
        endpoints = tuple(
            Endpoint.parse(each, setting=setting) for each in addresses.rstrip("/").split(",")
        )
        access = Access.read(env)
        _refuse_plain(endpoints, setting, access)
        return cls(
            endpoints=endpoints,
            access=access,
            model_repository=env.get("TRITON_MODEL_REPO", ""),
            request_timeout_s=_seconds(timeout, "TRITON_REQUEST_TIMEOUT"),
            artifacts_destination=env.get("MLFLOW_ARTIFACTS_DESTINATION", ""),
            s3_endpoint=env.get("MLFLOW_S3_ENDPOINT_URL", ""),
        )

    def required_repository(self) -> str:
        """The model repository's address.

        Raises:
            SettingsError: TRITON_MODEL_REPO is not set, or holds a password.
        """
        if not self.model_repository:
            raise SettingsError(
                "TRITON_MODEL_REPO is not set; set it to what Triton was started with "
                "(--model-repository)",
                setting="TRITON_MODEL_REPO",
            )
        if has_secret(self.model_repository):
            raise SettingsError(
                "TRITON_MODEL_REPO has a password in it; leave it out, credentials go where "
                "TRITON_CLOUD_CREDENTIAL_PATH says",
                setting="TRITON_MODEL_REPO",
            )
        return self.model_repository


def _refuse_no_host(host: str, text: str, setting: str) -> None:
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host.strip("[]"))
        else:
            host.encode("idna")  # as a look-up of it would
    except ValueError as exc:
        what = "host name" if isinstance(exc, UnicodeError) else "IPv6 address"
        raise SettingsError(f"{setting} is {text!r}; {host} is no {what}", setting=setting) from exc


def _addresses(target_uri: str) -> str:
    """The servers that a target URI names, or an empty string.

    Raises:
        SettingsError: it is another URI, and would mean the default server to nobody.
    """
    scheme, separator, addresses = target_uri.partition("://")
    if scheme.lower() != "triton" or bool(separator) != bool(addresses):
        raise SettingsError(  # not repeated: it may hold a password
            "the target URI is neither triton, which means TRITON_URL, nor triton://host:port; "
            "write it as one of them",
            setting="the target URI",
        )
    return addresses


def _refuse_plain(endpoints: tuple[Endpoint, ...], setting: str, access: Access) -> None:
    """Nobody who names certificates means to go without TLS, and a token is not for everybody."""
    encrypted = [endpoint for endpoint in endpoints if endpoint.is_encrypted]
    for endpoint in endpoints:
        if endpoint.is_encrypted:
            continue
        problem = ""
        if access.tls is not None:
            problem = "TRITON_TLS_CA or TRITON_TLS_CERT is set"
        elif access.token_file is not None and not endpoint.is_loopback:
            problem = (
                "TRITON_TOKEN_FILE is set: a token is sent with TLS, or on this machine; a network "
                "that encrypts by itself can have it from TRITON_HEADERS_FILE (authorization: "
                "Bearer …)"
            )
        elif encrypted and access.has_headers:
            problem = f"{encrypted[0]} is: the headers for it would go there, too"
        if problem:
            raise SettingsError(
                f"{setting} has {endpoint}, which is not encrypted, and {problem}; use "
                f"{endpoint.scheme}s://{endpoint.address}, or unset it",
                setting=setting,
            )


# -- options ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What `-C` (or `config=` in Python) said, with defaults filled in; see `OPTIONS`."""

    on_conflict: OnConflict = "fail"
    keep_versions: int | None = None
    serve_versions: Together | None = None
    validate: Validate = "false"
    validate_tolerance: float = 1e-3
    max_files: int = Limits.files
    max_size_bytes: int = Limits.size_bytes
    load_timeout_s: float = 600.0
    lock_timeout_s: float = 0.0
    grpc_port: int = 8001
    http_port: int = 8000

    @property
    def limits(self) -> Limits:
        """How much a model may hold."""
        return Limits(files=self.max_files, size_bytes=self.max_size_bytes)

    @property
    def tries_apart(self) -> bool:
        """Whether a model is loaded apart before it serves anybody."""
        return self.validate != "false"


@dataclass(frozen=True)
class _Option:
    """One row: how it is parsed, which commands take it, and what `help` says."""

    field: str
    parse: Callable[[Any, str], Any]
    commands: tuple[str, ...]
    help: str


#: What is said of a value that is refused.
_SHOWN_CHARACTERS = 80


def _text(value: Any) -> str:
    """What a value reads like; empty for a number with more digits than Python writes."""
    try:
        return str(value)
    except ValueError:
        return ""


def _shown(value: Any) -> str:
    """A value as messages have it, no longer than a line takes."""
    try:
        shown = repr(value)
    except ValueError:
        return "a number with thousands of digits"
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"


def _number(
    what: str, *, least: float, most: float = sys.float_info.max
) -> Callable[[Any, str], float]:
    def parse(value: Any, setting: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if isinstance(value, bool) or not least <= number <= most:
            raise SettingsError(
                f"{setting} is {_shown(value)}; {what} belongs there", setting=setting
            )
        return number

    return parse


#: Three years. Clocks and threads take no more than a few hundred, and fail when they are asked.
_MOST_SECONDS = 1e8
_A_TIME = f"a number of seconds, {_MOST_SECONDS:.0f} at most,"
_seconds = _number(_A_TIME, least=sys.float_info.min, most=_MOST_SECONDS)
_seconds_or_none = _number(_A_TIME, least=0.0, most=_MOST_SECONDS)
_at_least_0 = _number("a number of at least 0", least=0.0)


def _choice(choices: object, *, ignore_case: bool = False) -> Callable[[Any, str], Any]:
    """One of a `Literal`'s strings."""

    def parse(value: Any, setting: str) -> Any:
        text = _text(value).strip().lower() if ignore_case else value  # Python's True, too
        if text not in get_args(choices):
            raise SettingsError(
                f"{setting} is {_shown(value)}; use {', '.join(get_args(choices))}", setting=setting
            )
        return text

    return parse


def _together(value: Any, setting: str) -> Together:
    """`6,7`, `latest:2`; from Python also `[6, 7]` and `7`."""
    listed = isinstance(value, (list, tuple))
    text = ",".join(_text(each) for each in value) if listed else _text(value).replace(" ", "")
    latest = re.fullmatch(r"latest:([1-9]\d{0,8})", text)
    if latest:
        return Together(latest=int(latest[1]))
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d{0,17}(,[1-9]\d{0,17})*", text):
        raise SettingsError(
            f"{setting} is {_shown(value)}; version numbers belong there, such as 6,7, or latest:2",
            setting=setting,
        )
    return Together(versions=tuple(dict.fromkeys(int(number) for number in text.split(","))))


def _count(least: int, most: int = 999_999_999) -> Callable[[Any, str], int]:
    def parse(value: Any, setting: str) -> int:
        text = _text(value).strip()
        number = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
        if isinstance(value, bool) or not least <= number <= most:
            raise SettingsError(
                f"{setting} is {_shown(value)}; a whole number from {least} to {most} belongs "
                "there",
                setting=setting,
            )
        return number

    return parse


_port = _count(0, _LAST_PORT)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _size(value: Any, setting: str) -> int:
    """`500MB`, `1.5 GB`; a number is bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?) ?([KMGT]?)B?", _text(value).strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if isinstance(value, bool) or size < 1:
        raise SettingsError(
            f"{setting} is {_shown(value)}; a size belongs there, such as 500MB or 20GB",
            setting=setting,
        )
    return size


OPTIONS: dict[str, _Option] = {
    "on_conflict": _Option(
        "on_conflict",
        _choice(OnConflict),
        ("create",),
        "what to do with a model of this name that is in the repository and was not deployed by "
        "MLflow: fail (default), adopt (its versions stay beside the new one) or replace (it is "
        "removed once the new one serves)",
    ),
    "keep_versions": _Option(
        "keep_versions",
        _count(1),
        ("create", "update"),
        "how many version directories may stay on disk, those that serve included; default 2. "
        "What serves always stays; update -C serve_versions without a model URI keeps all",
    ),
    "serve_versions": _Option(
        "serve_versions",
        _together,
        ("create", "update"),
        "serve several versions at once: their numbers (6,7), or latest:2 for the one deployed and "
        "the highest of the others; update without a model URI changes nothing else. predict asks "
        "one of them as NAME/6. Default: the version deployed, alone",
    ),
    "validate": _Option(
        "validate",
        _choice(Validate, ignore_case=True),
        ("create", "update"),
        "load: before the model serves anybody, load it apart, under a name that no client knows. "
        "true: also send it the input example it was logged with; errors, wrong names, shapes or "
        "types and values that are not finite refuse it, and so do other values than those of a "
        "logged output_example.json. Both take a second load, and gRPC. Default false",
    ),
    "validate_tolerance": _Option(
        "validate_tolerance",
        _at_least_0,
        ("create", "update"),
        "how far validate lets a floating-point value be from the logged one, relatively and "
        "absolutely; default 0.001",
    ),
    "max_size": _Option(
        "max_size_bytes",
        _size,
        ("create", "update", "run-local"),
        "how large a model may be before it is refused, such as 20GB; default 1TB",
    ),
    "max_files": _Option(
        "max_files",
        _count(1),
        ("create", "update", "run-local"),
        f"how many files and directories it may have; default {Limits.files}",
    ),
    "load_timeout": _Option(
        "load_timeout_s",
        _seconds,
        ("create", "update", "delete", "run-local"),
        "seconds that Triton may take to load or unload the model; default 600",
    ),
    "lock_timeout": _Option(
        "lock_timeout_s",
        _seconds_or_none,
        ("create", "update", "delete"),
        "seconds to wait for another command that is changing the same deployment; default 0",
    ),
    "grpc_port": _Option(
        "grpc_port", _port, ("run-local",), "port of the local server; 0 for any; default 8001"
    ),
    "http_port": _Option(
        "http_port", _port, ("run-local",), "port of the local server; 0 for any; default 8000"
    ),
}


def parse_options(config: Mapping[str, Any] | None, *, command: str) -> Options:
    """Read the options of one command.

    Args:
        config: strings from the CLI, or real types from Python.
        command: `create`, `update`, `delete` or `run-local`.

    Raises:
        SettingsError: an option is unknown, not for this command, or its value is wrong.
    """
    if config is not None and not isinstance(config, Mapping):
        raise SettingsError(
            f"config is {_shown(config)}; a dict of options belongs there, such as "
            "{'keep_versions': 3}",
            setting="config",
        )
    parsed: dict[str, Any] = {}
    for key, value in (config or {}).items():
        option = OPTIONS.get(key)
        if option is None or command not in option.commands:
            raise SettingsError(_unknown_option(_text(key), command), setting=_text(key))
        parsed[option.field] = option.parse(value, f"-C {key}")
    return Options(**parsed)


def _unknown_option(key: str, command: str) -> str:
    known = [name for name, option in OPTIONS.items() if command in option.commands]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
    return f"-C {key} is not an option of {command}; {hint}"
