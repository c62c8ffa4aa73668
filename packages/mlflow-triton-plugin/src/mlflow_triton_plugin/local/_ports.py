"""Ports and addresses of a server that is about to start."""

from __future__ import annotations

import socket

__all__ = ["bracketed", "client_host", "free_port", "is_free", "join"]

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared with


def free_port(host: str) -> int:
    """Let the system pick a port; another process may still take it before the server does."""
    with _bound(host, 0) as listener:
        port: int = listener.getsockname()[1]
        return port


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now.

    Raises:
        OSError: the host is no address of this machine.
    """
    with _bound(host, 0):  # tells a wrong host from a taken port
        pass
    try:
        with _bound(host, port):
            return True
    except OSError:
        return False


def client_host(host: str) -> str:
    """The address a client on this machine connects to."""
    return _EVERYWHERE.get(host, host)


def join(host: str, port: int) -> str:
    """`host:port`."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """The host, with the brackets IPv6 needs before a port."""
    return f"[{host}]" if ":" in host else host


def _bound(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    try:
        # as the server itself does: connections of its predecessor that linger do not count
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
