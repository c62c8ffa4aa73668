"""Target URI and environment, parsed at once into frozen values.

The table here is also what `mlflow deployments help -t triton` prints. The only reader of
`os.environ` for the deployments target.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_triton_plugin._values import LAST_PORT, seconds
from mlflow_triton_plugin.errors import SettingsError
from mlflow_triton_plugin.security import OPEN, Access
from triton_repo.masking import has_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["VARIABLES", "Endpoint", "Settings"]

DEFAULT_URL = "localhost:8001"
_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s/:@\[\]]+)(:(?P<port>\d{1,5}))?(?P<path>/\S*)?"
)

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
        if match is None or not 0 < port <= LAST_PORT or (path and scheme.startswith("grpc")):
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
            request_timeout_s=seconds(timeout, "TRITON_REQUEST_TIMEOUT"),
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
