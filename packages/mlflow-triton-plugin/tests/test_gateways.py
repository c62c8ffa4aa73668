"""What stands between this client and Triton answers for it: each is told from the other."""

from __future__ import annotations

import socket
import ssl
import threading
from concurrent import futures
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.testing.pki import CertificateAuthority

from .refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """An HTTP server that has one answer; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def aborting(status: grpc.StatusCode, details: str) -> Iterator[str]:
    """A gRPC server that has one answer; its address."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
                context.abort(status, details)
                raise AssertionError

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Handler(),))
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{number}"
    finally:
        server.stop(None).wait()


@contextmanager
def hanging_up(tls: ssl.SSLContext) -> Iterator[str]:
    """Shakes hands, finds nobody behind itself and hangs up; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    with connection, tls.wrap_socket(connection, server_side=True) as secure:
                        secure.unwrap()
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"localhost:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def taking_no_connection() -> Iterator[str]:
    """Its queue is full, and further packets are dropped, as by a firewall; its address."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (503, b"<h1>upstream\x1b[2J is down</h1>", "TEMPORARILY_UNAVAILABLE", ["HTTP 503", "down"]),
        (302, b"<a href=/login>here</a>", "TEMPORARILY_UNAVAILABLE", ["HTTP 302", "/login"]),
        (500, b'{"message": "no route"}', "TEMPORARILY_UNAVAILABLE", ["HTTP 500", "no route"]),
        (403, b"<h1>Forbidden</h1>", "PERMISSION_DENIED", ["HTTP 403", "Forbidden"]),
        (200, b'{"a": 1}', "TEMPORARILY_UNAVAILABLE", ["not as Triton does"]),
        (200, b"[1]", "TEMPORARILY_UNAVAILABLE", ["not as Triton does"]),
        (200, b"null", "TEMPORARILY_UNAVAILABLE", ["not as Triton does"]),
    ],
)
def test_an_http_answer_that_is_not_tritons_is_told_as_it_is(
    environment: Callable[..., None], status: int, body: bytes, code: str, words: list[str]
) -> None:
    with answering(status, body) as url:
        environment(TRITON_URL=url)
        client = get_deploy_client("triton")
        said = refused(lambda: client.predict("m", np.ones((1, 4))), code, url, *words)
        assert said.isprintable()
        assert "no Triton server answers" not in said
        refused(client.list_deployments, code, url, *words)


def test_a_long_reason_is_cut_and_printable(
    environment: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with aborting(grpc.StatusCode.UNAVAILABLE, "\x1b[2J\u202e" + "long " * 1000) as address:
        environment(TRITON_URL=f"{address},{address}")
        with pytest.raises(MlflowException) as raised:
            get_deploy_client("triton").predict("m", np.ones((1, 4)))
    assert len(str(raised.value)) < 3000
    assert str(raised.value).isprintable()
    (logged,) = [each for each in caplog.records if "asking the next server" in each.message]
    assert logged.message.isprintable()
    assert len(logged.message) < 3000


def test_tritons_words_are_understood_whatever_the_headers_say(
    environment: Callable[..., None],
) -> None:
    """A header may have a value that Triton's words have, too."""
    said = "This protocol is restricted, expecting header 'x-admin'"
    with aborting(grpc.StatusCode.UNAVAILABLE, said) as address:
        environment(TRITON_URL=address, TRITON_HEADERS="x-tenant=restricted,x-team=red header")
        client = get_deploy_client("triton")
        refused(client.list_deployments, "PERMISSION_DENIED", "requests with the header x-admin")


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
@pytest.mark.parametrize("shown", ["no certificate", "a certificate"])
def test_a_gateway_with_nobody_behind_it_is_down(
    environment: Callable[..., None], tmp_path: Path, scheme: str, shown: str
) -> None:
    authority = CertificateAuthority(tmp_path / "ours")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*authority.issue("localhost"))
    tls.set_alpn_protocols(["h2", "http/1.1"])
    own = authority.issue("deployer")
    mutual = {"TRITON_TLS_CERT": str(own.certificate), "TRITON_TLS_KEY": str(own.key)}
    with hanging_up(tls) as address:
        environment(
            TRITON_URL=f"{scheme}://{address}",
            TRITON_TLS_CA=str(authority.certificate),
            TRITON_REQUEST_TIMEOUT="5",
            **(mutual if shown == "a certificate" else {}),
        )
        client = get_deploy_client("triton")
        refused(client.list_deployments, "TEMPORARILY_UNAVAILABLE", address, "answer")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_address_that_takes_no_connection_is_not_called_slow(
    environment: Callable[..., None], scheme: str
) -> None:
    with taking_no_connection() as address:
        environment(TRITON_URL=f"{scheme}://{address}", TRITON_REQUEST_TIMEOUT="1")
        client = get_deploy_client("triton")
        refused(client.list_deployments, "TEMPORARILY_UNAVAILABLE", address, "no connection")
