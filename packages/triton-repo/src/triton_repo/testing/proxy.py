"""A proxy between an HTTP client and a server that spoils answers, as networks and servers do."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["INTERNAL_ERROR", "SLOW_DOWN", "Fault", "FaultyProxy", "Refusal", "Request"]

#: How soon a proxy that is left notices it.
_POLL_S = 0.01


@dataclass(frozen=True)
class Refusal:
    """What is answered instead of the server.

    Attributes:
        status: of HTTP.
        code: S3's word for it.
        headers: of the answer.
    """

    status: int
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """As S3 words it."""
        return f"<Error><Code>{self.code}</Code><Message>On demand.</Message></Error>".encode()


INTERNAL_ERROR = Refusal(500, "InternalError")
SLOW_DOWN = Refusal(503, "SlowDown")

Spoiled = Literal[
    "reset",  # the connection, before the server is asked
    "lost",  # the server is asked, and its answer does not arrive
    "truncated",  # half of the answer's body, and then nothing
    "stall",  # no answer, until the proxy is left
]

Fault: TypeAlias = Refusal | Spoiled


@dataclass(frozen=True)
class Request:
    """What came to the proxy."""

    method: str
    path: str
    size_bytes: int

    @property
    def changes(self) -> bool:
        """Whether it is of a kind that changes something."""
        return self.method in ("PUT", "POST", "DELETE")


@dataclass
class FaultyProxy:
    """Stands before `upstream` as long as the block lasts.

    Attributes:
        upstream: the server's URL.
        fault: asked for each request, by its number from 1: what is to go wrong, or None.
        drops: names of headers that do not get through, in lower case.
        requests: that came so far.
        tls: speak TLS with this server's certificate.
        url: where it listens.
    """

    upstream: str
    fault: Callable[[int, Request], Fault | None] = lambda _number, _request: None
    drops: frozenset[str] = frozenset({"connection", "expect"})
    requests: list[Request] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    url: str = ""

    def __enter__(self) -> Self:
        self._numbering = threading.Lock()
        self._left = threading.Event()
        proxy = self

        class Handler(_Handler):
            def handle_request(self) -> None:
                proxy._pass(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if self.tls is not None:
            scheme = "https"
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        self._server.shutdown()
        self._server.server_close()

    def _pass(self, handler: _Handler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        request = Request(handler.command, handler.path, len(body))
        with self._numbering:
            self.requests.append(request)
            fault = self.fault(len(self.requests), request)
        if fault == "reset":
            handler.reset()
        elif fault == "stall":
            self._left.wait()
        elif isinstance(fault, Refusal):
            handler.answer(fault.status, list(fault.headers.items()), fault.body())
        else:
            status, headers, data = self._ask(handler, body)
            if fault == "lost":
                handler.reset()
            else:
                handler.answer(status, headers, data, whole=fault != "truncated")

    def _ask(self, handler: _Handler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc)
        try:
            connection.putrequest(
                handler.command, handler.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in handler.headers.items():
                if name.lower() not in self.drops:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        raise NotImplementedError

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = lambda self: self.handle_request()  # noqa: N815

    def answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, whole: bool = True
    ) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # an answer to HEAD says how long it would be
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # who asked has given up
                self.wfile.write(data if whole else data[: len(data) // 2])
        if not whole:
            self.wfile.flush()
            self.reset()

    def reset(self) -> None:
        """End the connection the hard way: RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""
