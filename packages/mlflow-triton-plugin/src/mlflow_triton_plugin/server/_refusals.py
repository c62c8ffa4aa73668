"""Why a server and this client do not let each other in, told from a server that is down.

Both clients call nearly all of it UNAVAILABLE. What is wrong with TLS is found out by one more
connection, with Python's own TLS: its reasons are the same for every release of gRPC.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING

from mlflow_triton_plugin.security import Tls

if TYPE_CHECKING:
    from mlflow_triton_plugin.security import Access

__all__ = ["accepts", "restricted", "speaks_http", "tls_problem", "unauthorized"]

_PROBE_TIMEOUT_S = 2.0
#: Triton's own words, over gRPC and over HTTP.
_RESTRICTED = re.compile(r"This (?:protocol|API) is restricted, expecting header '?([\w.-]+)'?")
_ALERTS = {
    "CERTIFICATE_REQUIRED": "it asks for a client certificate",
    "BAD_CERTIFICATE": "it does not take the client's certificate",
    "UNKNOWN_CA": "it does not trust the authority that signed the client's certificate",
    "CERTIFICATE_EXPIRED": "the client's certificate has expired",
    "CERTIFICATE_UNKNOWN": "it does not take the client's certificate",
    "HANDSHAKE_FAILURE": "it asks for a client certificate, or shares no cipher",
}
_SHOW = "set TRITON_TLS_CERT and TRITON_TLS_KEY to one that it takes"
_TRUST = "set TRITON_TLS_CA to the authority that signed it, and TRITON_URL to a name in it"


def restricted(reason: str, access: Access) -> str | None:
    """What to do where Triton restricts a protocol; None where that is not what it says."""
    found = _RESTRICTED.search(reason)
    if found is None:
        return None
    name = access.without_secrets(found[1].lower())
    if name in {header.name for header in access.headers()}:
        return f"it restricts this, and its value of the header {name} is not the one sent"
    return (
        f"it restricts this to requests with the header {name}; set it in TRITON_HEADERS "
        f"({name}=VALUE) or TRITON_HEADERS_FILE"
    )


def unauthorized(status: str, reason: str) -> str | None:
    """What to do where a server or a gateway before it refuses who asks."""
    if status not in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return None
    said = f": {reason}" if reason else ""
    return f"it refuses this client ({status}{said}); see TRITON_TOKEN_FILE and TRITON_HEADERS"


def tls_problem(endpoint: str, reason: str, access: Access) -> str | None:
    """What is wrong with TLS, one or the other way; None where that is not what is wrong.

    Args:
        endpoint: the server, with its scheme.
        reason: what the client library said.
        access: what the client trusts and shows.
    """
    scheme, _, address = endpoint.partition("://")
    encrypted = scheme in ("grpcs", "https")
    try:
        stays = _shake_hands(address, _context(access, scheme))
    except ssl.SSLCertVerificationError as exc:
        return f"its certificate is not to be trusted ({exc.verify_message}); {_TRUST}"
    except ssl.SSLError as exc:
        return _told(str(exc.reason or ""), scheme, address)
    except (OSError, ValueError):
        return None  # nobody is there, or whoever is there hung up
    if not encrypted:
        return f"it speaks TLS; use {scheme}s://{address} in TRITON_URL"
    if stays:  # Python trusts it: gRPC has authorities of its own
        distrusted = "CERTIFICATE_VERIFY_FAILED" in reason
        return f"its certificate is not to be trusted; {_TRUST}" if distrusted else None
    return _why_it_hangs_up(address, access, scheme)


def _context(access: Access, scheme: str) -> ssl.SSLContext:
    context = (access.tls or Tls()).context()
    if not scheme.endswith("s"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"] if scheme.startswith("grpc") else ["http/1.1"])
    return context


def _why_it_hangs_up(address: str, access: Access, scheme: str) -> str | None:
    """What a server has against this client that takes its hand and then hangs up.

    Up to TLS 1.2 a client's certificate is part of the handshake: if that comes about, the
    certificate is not what it is, and a gateway may have nobody behind it.
    """
    context = _context(access, scheme)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        _shake_hands(address, context)
    except ssl.SSLEOFError:
        pass
    except ssl.SSLError as exc:
        told = _told(str(exc.reason or ""), scheme, address)
        if told is not None or "PROTOCOL_VERSION" in str(exc.reason):
            return told
    except ConnectionError:
        pass
    except (OSError, ValueError):
        return None
    else:
        return None
    if access.tls is not None and access.tls.certificate is not None:
        return f"it does not take the client's certificate; {_SHOW}"
    return f"it hangs up on clients without a certificate; {_SHOW}"


def _told(alert: str, scheme: str, address: str) -> str | None:
    for name, problem in _ALERTS.items():
        if name in alert:
            if not scheme.endswith("s"):
                return f"it speaks TLS, and {problem}; use {scheme}s://{address}, and {_SHOW}"
            return f"{problem}; {_SHOW}"
    if scheme.endswith("s") and alert in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return f"it does not speak TLS; use {scheme[:-1]}://{address} in TRITON_URL"
    return None


def _shake_hands(address: str, context: ssl.SSLContext) -> bool:
    """Connect; with TLS 1.3 a server says what it thinks of the client only afterwards.

    Returns:
        Whether it stays; gRPC's servers just hang up on a client that they do not take.

    Raises:
        OSError: whatever is wrong.
    """
    host, port = _host_and_port(address)
    with socket.create_connection((host, port), _PROBE_TIMEOUT_S) as plain:
        plain.settimeout(_PROBE_TIMEOUT_S)
        with context.wrap_socket(plain, server_hostname=host) as secure:
            if secure.selected_alpn_protocol() != "h2":
                return True
            try:
                return bool(secure.recv(1))  # HTTP/2's servers speak first
            except (ssl.SSLEOFError, ConnectionError):
                return False


def accepts(endpoint: str) -> bool:
    """Whether somebody takes a connection there: a server that stands still does."""
    try:
        socket.create_connection(
            _host_and_port(endpoint.partition("://")[2]), _PROBE_TIMEOUT_S
        ).close()
    except (OSError, ValueError):
        return False
    return True


def speaks_http(endpoint: str, access: Access) -> bool:
    """Whether something answers an HTTP request there, with TLS where that is `https://`."""
    scheme, _, address = endpoint.partition("://")
    host, port = _host_and_port(address)
    try:
        with ExitStack() as stack:
            probe = stack.enter_context(socket.create_connection((host, port), _PROBE_TIMEOUT_S))
            probe.settimeout(_PROBE_TIMEOUT_S)
            if scheme == "https":
                context = _context(access, scheme)
                probe = stack.enter_context(context.wrap_socket(probe, server_hostname=host))
            probe.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            return probe.recv(5) == b"HTTP/"
    except (OSError, ValueError):
        return False


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.partition("/")[0].rpartition(":")
    return host.strip("[]"), int(port)
