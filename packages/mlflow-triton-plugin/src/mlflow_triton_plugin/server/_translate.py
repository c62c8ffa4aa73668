"""From the words of Triton and its clients to our errors; both protocols say the same things."""

from __future__ import annotations

import re
import socket
from typing import NoReturn

from mlflow_triton_plugin.errors import (
    ModelLoadError,
    ModelUnknownError,
    RequestRefusedError,
    ServerTimeoutError,
    ServerUnavailableError,
    TritonServerError,
)

__all__ = ["named", "raise_translated"]

_UNKNOWN = re.compile(
    r"unknown model|is not found|not ready|not at ready state|has no available versions"
)
_PROBE_TIMEOUT_S = 2.0


def raise_translated(
    exc: Exception,
    *,
    endpoint: str,
    status: str,
    reason: str,
    what: str,
    model: str = "",
    timeout_s: float = 0.0,
) -> NoReturn:
    """Raise ours from the client library's.

    Args:
        exc: what the client library raised.
        endpoint: the server, with its scheme.
        status: `UNAVAILABLE`, `NOT_FOUND`, … whatever the protocol.
        reason: the server's words.
        what: what was asked: `load`, `infer`, or a phrase for the message.
        model: the model it was about, or one of its versions: `resnet/6`.
        timeout_s: the deadline it had.
    """
    reason = " ".join(reason.split())
    unknown = bool(model) and (status == "NOT_FOUND" or bool(_UNKNOWN.search(reason)))
    # Triton says UNAVAILABLE of itself, of a protocol it restricts and of a version it has not
    if status == "UNAVAILABLE" and not unknown and "protocol is restricted" not in reason:
        raise ServerUnavailableError(
            _unavailable(endpoint, reason), endpoint=endpoint, status=status, model=model
        ) from exc
    if status == "DEADLINE_EXCEEDED":
        about = f"{what} {model}".strip()
        raise ServerTimeoutError(
            f"{endpoint} did not finish within {timeout_s:g} s: {about}; "
            "give it more time (-C load_timeout, TRITON_REQUEST_TIMEOUT) or look at its log",
            endpoint=endpoint,
            status=status,
            model=model,
        ) from exc
    if what == "load":
        raise ModelLoadError(
            f"{endpoint} cannot load {model}: {_explained(reason, model)}",
            endpoint=endpoint,
            status=status,
            model=model,
            reason=reason,
        ) from exc
    if unknown:
        raise ModelUnknownError(
            f"{endpoint} serves no {model}: {reason}; "
            "`mlflow deployments list -t triton` shows what is deployed",
            endpoint=endpoint,
            status=status,
            model=model,
        ) from exc
    if what == "infer":
        raise RequestRefusedError(
            f"{model} refused the request: {reason}",
            endpoint=endpoint,
            status=status,
            model=model,
            reason=reason,
        ) from exc
    raise TritonServerError(
        f"{endpoint}: {what} failed: {reason}", endpoint=endpoint, status=status, model=model
    ) from exc


def named(model: str, version: str) -> str:
    """How messages name a model or one of its versions."""
    return f"{model}/{version}" if version else model


def _explained(reason: str, model: str) -> str:
    """Triton's reason without what our message says already, and with what Triton leaves out."""
    reason = reason.removeprefix(f"failed to load '{model}', ")
    if reason != "failed to poll from model repository":
        return reason
    return (
        f"{reason}; either TRITON_MODEL_REPO is not the directory that this server reads, or it "
        "cannot make a configuration of what is there: its log says which"
    )


def _unavailable(endpoint: str, reason: str) -> str:
    scheme, _, address = endpoint.partition("://")
    if scheme.startswith("grpc") and _speaks_http(address):
        return (
            f"{endpoint} answers HTTP, not gRPC: use http://{address} "
            "or Triton's gRPC port (8001 by default) in TRITON_URL"
        )
    return (
        f"no Triton server answers at {endpoint} ({reason}); start it, or set TRITON_URL to its "
        f"{'gRPC' if scheme.startswith('grpc') else 'HTTP'} address"
    )


def _speaks_http(address: str) -> bool:
    """Whether something at `host:port` answers a plain HTTP request."""
    host, _, port = address.partition("/")[0].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_TIMEOUT_S) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            probe.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            return probe.recv(5) == b"HTTP/"
    except (OSError, ValueError):
        return False
