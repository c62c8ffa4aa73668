"""Answers that are not Triton's own, byte by byte: read where they mean something, else told."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
from concurrent import futures
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mlflow_triton_plugin.errors import ModelLoadError, ModelNotReadyError, TritonServerError
from mlflow_triton_plugin.server import TritonServers
from mlflow_triton_plugin.settings import Settings
from mlflow_triton_plugin.testing.pki import CertificateAuthority

from .refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOT_TRITON = ("TEMPORARILY_UNAVAILABLE", "answers, but not as Triton does")


def ask() -> Any:
    return get_deploy_client("triton").predict("m", {"x": np.zeros(1, np.float32)})["outputs"]["y"]


# -- gRPC -----------------------------------------------------------------------------------------


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server whose model answers whatever a test wants."""

    def __init__(self) -> None:
        self.answer = service_pb2.ModelInferResponse()
        self.index: list[dict[str, str]] = []
        self.datatype = "FP32"
        self.refusals: list[str] = []
        self.overtaken = 0
        self.loads = 0

    def ModelMetadata(self, *_: object) -> Any:  # noqa: N802
        tensors = [[{"name": name, "datatype": self.datatype, "shape": [1]}] for name in ("x", "y")]
        return service_pb2.ModelMetadataResponse(inputs=tensors[0], outputs=tensors[1])

    def ModelConfig(self, *_: object) -> Any:  # noqa: N802
        return service_pb2.ModelConfigResponse()

    def ModelInfer(self, *_: object) -> Any:  # noqa: N802
        return self.answer

    def RepositoryModelLoad(self, _: object, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.loads += 1
        if self.refusals:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusals.pop())
        return service_pb2.RepositoryModelLoadResponse()

    def RepositoryIndex(self, *_: object) -> Any:  # noqa: N802
        if self.loads and self.loads <= self.overtaken:
            gone = {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
            return service_pb2.RepositoryIndexResponse(models=[gone])
        return service_pb2.RepositoryIndexResponse(models=self.index)


@pytest.fixture
def service(environment: Callable[..., None]) -> Iterator[Service]:
    made = Service()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(made, server)
    environment(TRITON_URL=f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    yield made
    server.stop(None).wait()


def answer(datatype: str, *shape: int, raw: tuple[bytes, ...] = (), **contents: Any) -> Any:
    output: dict[str, Any] = {"name": "y", "datatype": datatype, "shape": shape}
    if contents:
        output["contents"] = contents
    return service_pb2.ModelInferResponse(outputs=[output], raw_output_contents=raw)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 1]),
        ("INT32", "int_contents", [-(2**31), 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
        ("BYTES", "bytes_contents", [b"a\0", b""]),
    ],
)
def test_tensors_in_the_typed_form_are_read(
    service: Service, datatype: str, field: str, values: list[Any]
) -> None:
    """The protocol allows it, and what stands before Triton may use it."""
    contents: dict[str, Any] = {field: values}
    service.answer = answer(datatype, 2, 1, **contents)
    assert ask().tolist() == [[value] for value in values]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (answer("FP32", 1, raw=(b"\0" * 4, b"\0" * 4)), "tensors: 1, raw contents: 2"),
        (answer("FP32", 1, raw=(b"\0" * 2,)), "tensor y FP32[1] has 2 bytes, and needs 4"),
        (answer("FP32", 2, raw=(b"\0" * 4,)), "tensor y FP32[2] has 4 bytes, and needs 8"),
        (answer("FP32", -1, raw=(b"\0" * 4,)), "tensor y has the shape [-1]"),
        (answer("FP128", 1, raw=(b"\0" * 16,)), "tensor y has the unknown datatype FP128"),
        (
            answer("BYTES", 1, raw=(b"\xff\xff\xff\x7fabc",)),
            "y BYTES[1] has a string that is longer",
        ),
        (answer("BYTES", 1, raw=(b"ab",)), "tensor y BYTES[1] has a string that is longer"),
        (answer("BYTES", 2, raw=(b"\1\0\0\0a",)), "tensor y BYTES[2] has 1 values, and needs 2"),
        (answer("BF16", 1, raw=(b"abc",)), "tensor y BF16[1] has 3 bytes, and needs 2"),
        (answer("FP32", 2, fp32_contents=[1.0]), "tensor y FP32[2] has 1 values, and needs 2"),
        (answer("FP16", 1, fp32_contents=[1.0]), "tensor y FP16[1] has no raw contents"),
        (answer("INT8", 1, int_contents=[300]), "tensor y INT8[1] has values beyond its type's"),
        (answer("UINT8", 1, uint_contents=[256]), "tensor y UINT8[1] has values beyond its type's"),
    ],
)
def test_tensors_that_do_not_fit_are_told(service: Service, given: Any, problem: str) -> None:
    service.answer = given
    refused(ask, *NOT_TRITON, "grpc://127.0.0.1", "infer m", problem)


def test_one_tensor_twice_is_told(service: Service) -> None:
    service.answer = answer("FP32", 1, raw=(b"\0" * 4,))
    service.answer.MergeFrom(service.answer)
    refused(ask, *NOT_TRITON, "tensor y is there twice")


def test_a_datatype_that_nobody_knows_is_told_of_metadata(service: Service) -> None:
    service.datatype = "FP128"
    refused(ask, *NOT_TRITON, "the metadata of m: tensor x has the unknown datatype FP128")


@pytest.mark.parametrize(
    ("reason", "loads"),
    [
        ("Internal: Could not get MetaData for bucket with name \x7f due to exception:", 2),
        ("no such file", 1),
    ],
)
def test_a_load_that_did_not_get_to_the_store_is_tried_once_more(
    service: Service, reason: str, loads: int
) -> None:
    servers = TritonServers.open(Settings.read("triton").endpoints, timeout_s=5)
    service.index = [{"name": "m", "version": "1", "state": "READY"}]
    for refusals in (1, 2):
        service.refusals, service.loads = [reason] * refusals, 0
        with nullcontext() if refusals < loads else pytest.raises(ModelLoadError):
            servers.load("m", config=None, versions=[1], timeout_s=5)
        assert service.loads == loads


def test_a_load_that_another_one_undid_is_done_once_more(service: Service) -> None:
    servers = TritonServers.open(Settings.read("triton").endpoints, timeout_s=5)
    service.index = [{"name": "m", "version": "1", "state": "READY"}]
    for service.overtaken in (1, 2):
        service.loads = 0
        with nullcontext() if service.overtaken == 1 else pytest.raises(ModelNotReadyError):
            servers.load("m", config=None, versions=[1], timeout_s=5)
        assert service.loads == 2


def test_a_version_that_is_no_number_is_told(service: Service) -> None:
    """Where a load waits for it, and where it is listed."""
    service.index = [{"name": "m", "version": "abc", "state": "READY"}]
    servers = TritonServers.open(Settings.read("triton").endpoints, timeout_s=5)
    with pytest.raises(TritonServerError, match="repository index: a version of m is 'abc'"):
        servers.load("m", config=None, versions=(1,), timeout_s=5)
    refused(get_deploy_client("triton").list_deployments, *NOT_TRITON, "a version of m is 'abc'")


def test_bytes_that_are_no_message_are_told(environment: Callable[..., None]) -> None:
    class Handler(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.unary_unary_rpc_method_handler(lambda *_: b"\xff\xff")

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Handler(),))
    environment(TRITON_URL=f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    try:
        refused(ask, *NOT_TRITON, "the metadata of m: it is no message of the protocol")
    finally:
        server.stop(None).wait()


def test_a_secret_that_comes_back_in_a_strange_answer_is_not_repeated(
    service: Service, environment: Callable[..., None]
) -> None:
    environment(TRITON_HEADERS="x-key=hidden-value")
    service.answer = answer("hidden-value", 1, raw=(b"\0" * 4,))
    refused(ask, *NOT_TRITON, "the unknown datatype ***", secrets=("hidden-value",))


# -- proxies --------------------------------------------------------------------------------------


PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@pytest.fixture
def proxy(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the environment names as the proxy for everything; it hears, and says nothing."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment(
            **dict.fromkeys(PROXIES, address), **{name.upper(): address for name in PROXIES}
        )
        yield Proxy(listener)


class Proxy:
    """Whoever connects is kept waiting."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def was_asked(self) -> bool:
        self._listener.settimeout(0)
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def first_line(self) -> bytes:
        self._listener.settimeout(10)
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(10)
            return connection.recv(4096).partition(b"\r\n")[0]


def test_a_token_does_not_go_through_a_proxy(
    service: Service, proxy: Proxy, environment: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("hidden")
    environment(TRITON_TOKEN_FILE=str(tmp_path / "token"))
    get_deploy_client("triton").list_deployments()
    assert not proxy.was_asked()


def test_headers_without_tls_do_not_go_through_a_proxy(
    service: Service, proxy: Proxy, environment: Callable[..., None]
) -> None:
    """Nor where the address is not this machine's: 0.0.0.0 is one that happens to be here."""
    port = os.environ["TRITON_URL"].rpartition(":")[2]
    environment(TRITON_URL=f"grpc://0.0.0.0:{port}", TRITON_HEADERS="x-key=hidden")
    assert not Settings.read("triton").endpoints[0].is_loopback
    get_deploy_client("triton").list_deployments()
    assert not proxy.was_asked()


def test_tls_on_this_machine_goes_through_no_proxy(
    proxy: Proxy, environment: Callable[..., None], tmp_path: Path
) -> None:
    authority = CertificateAuthority(tmp_path / "ours")
    pair = authority.issue("localhost")
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    environment(TRITON_URL=f"grpcs://localhost:{port}", TRITON_TLS_CA=str(authority.certificate))
    server.start()
    try:
        assert get_deploy_client("triton").list_deployments() == []
    finally:
        server.stop(None).wait()
    assert not proxy.was_asked()


def test_tls_elsewhere_may_go_through_a_proxy(
    proxy: Proxy, environment: Callable[..., None]
) -> None:
    """It is asked for a tunnel, and sees nothing of what goes through."""
    environment(TRITON_URL="grpcs://triton.invalid:8001", TRITON_REQUEST_TIMEOUT="10")
    with futures.ThreadPoolExecutor(1) as pool:
        line = pool.submit(proxy.first_line)
        with pytest.raises(MlflowException):
            get_deploy_client("triton").list_deployments()
        assert line.result() == b"CONNECT triton.invalid:8001 HTTP/1.1"


def test_http_goes_through_no_proxy(proxy: Proxy, environment: Callable[..., None]) -> None:
    with http_server(200, b"[]", {}) as url:
        environment(TRITON_URL=url, TRITON_HEADERS="x-key=hidden")
        assert get_deploy_client("triton").list_deployments() == []
    assert not proxy.was_asked()


# -- HTTP -----------------------------------------------------------------------------------------


METADATA = {
    side: [{"name": name, "datatype": "FP32", "shape": [1]}]
    for side, name in (("inputs", "x"), ("outputs", "y"))
}


@contextmanager
def http_server(status: int, body: bytes, headers: dict[str, str]) -> Iterator[str]:
    """A model that is like any other, until it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            known = {"m": METADATA, "config": {}}.get(self.path.rpartition("/")[2])
            sent = body if known is None else json.dumps(known).encode()
            self.send_response(status if known is None else 200)
            for name, value in headers.items() if known is None else ():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

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


def json_answer(**output: Any) -> bytes:
    tensor = {"name": "y", "datatype": "FP32", "shape": [1], **output}
    return json.dumps({"model_name": "m", "model_version": "1", "outputs": [tensor]}).encode()


BINARY = json_answer(parameters={"binary_data_size": 4})
LENGTH = "Inference-Header-Content-Length"


def binary(content: bytes, **output: Any) -> tuple[int, bytes, dict[str, str]]:
    """An answer whose tensor has its values behind the JSON."""
    output.setdefault("parameters", {"binary_data_size": len(content)})
    body = json_answer(**output)
    return 200, body + content, {"Inference-Header-Content-Length": str(len(body))}


def zipped(body: bytes) -> tuple[int, bytes, dict[str, str]]:
    return 200, body, {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ((200, json_answer(shape=[2, 1], data=[1, 0.5]), {}), [[1.0], [0.5]]),
        ((200, json_answer(shape=[2, 1], data=[[1], [0.5]]), {}), [[1.0], [0.5]]),
        ((200, json_answer(shape=[], data=[3]), {}), 3.0),
        ((200, json_answer(shape=[0, 2], data=[]), {}), []),
        ((200, json_answer(datatype="BOOL", shape=[2], data=[True, False]), {}), [True, False]),
        ((200, json_answer(datatype="UINT64", data=[2**64 - 1]), {}), [2**64 - 1]),
        ((200, json_answer(datatype="BYTES", data=["\u00e4"]), {}), [b"\xc3\xa4"]),
        (binary(b"\0\0\x80\x3f"), [1.0]),
        (binary(b"\1\0\0\0a", datatype="BYTES"), [b"a"]),
        (binary(b"\x80\x3f\x00\xbf", datatype="BF16", shape=[2]), [1.0, -0.5]),
        (binary(b"", shape=[0]), []),
    ],
)
def test_tensors_of_an_http_answer_are_read(
    environment: Callable[..., None], given: tuple[int, bytes, dict[str, str]], values: Any
) -> None:
    """In JSON, too, and then in the same types as in binary."""
    with http_server(*given) as url:
        environment(TRITON_URL=url)
        array = ask()
    assert array.tolist() == values
    assert array.dtype.isbuiltin == 1  # BF16 is float32, whatever tritonclient makes of it


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (binary(b"\0\0", parameters={"binary_data_size": 4}), "tensor y FP32[1] did not all come"),
        (binary(b"\0" * 8), "tensor y FP32[1] has 8 bytes, and needs 4"),
        (binary(b"\0" * 8, datatype="FP99"), "tensor y has the unknown datatype FP99"),
        (binary(b"abc", datatype="BYTES"), "tensor y BYTES[1] did not all come, or do not fit"),
        (binary(b"\0" * 4, parameters={"binary_data_size": "4"}), "its JSON has another form"),
        ((200, json_answer(), {}), "'data' is missing"),
        ((200, json_answer(data="a"), {}), "tensor y FP32[1] has no list of values"),
        ((200, json_answer(data=["a"]), {}), "tensor y FP32[1] has values of another type"),
        ((200, json_answer(data=[[1.0]]), {}), "tensor y FP32[1] has values of another type"),
        ((200, json_answer(data=[1.0, 2.0]), {}), "tensor y FP32[1] has 2 values, and needs 1"),
        ((200, json_answer(data=[1e300]), {}), "tensor y FP32[1] has values beyond its type's"),
        ((200, json_answer(datatype="INT8", data=[300]), {}), "has values beyond its type's"),
        ((200, json_answer(datatype="INT8", data=[1.5]), {}), "has values of another type"),
        ((200, json_answer(shape=[-1], data=[1.0]), {}), "tensor y has the shape [-1]"),
        ((200, json_answer(shape=["1"], data=[1.0]), {}), "tensor y has the shape ['1']"),
        ((200, BINARY, {LENGTH: "zz"}), "invalid literal"),
        (zipped(b"junk"), "Not a gzipped file"),
        (zipped(gzip.compress(BINARY)[:20]), "Compressed file ended before"),
        ((200, b"junk", {"Content-Encoding": "deflate"}), "while decompressing data"),
        ((200, b"[" * 100_000, {}), "recursion"),
        ((200, b"<html>", {}), "Parse error"),
        ((200, b"\xff\xfe", {}), "it is no UTF-8"),
        ((200, b"null", {}), "its JSON has another form"),
        ((200, b"{}", {}), "'outputs' is missing"),
        ((400, b'{"error": ["a"]}', {}), "its error is no text"),
        ((400, b'{"error": null}', {}), "its error is no text"),
    ],
)
def test_an_http_answer_that_cannot_be_read_is_told(
    environment: Callable[..., None], given: tuple[int, bytes, dict[str, str]], problem: str
) -> None:
    with http_server(*given) as url:
        environment(TRITON_URL=url)
        refused(ask, *NOT_TRITON, url, "infer m", problem)


@pytest.mark.parametrize(
    ("status", "body"), [(302, b""), (407, b""), (500, b"\xff\xfe"), (500, b"[]")]
)
def test_an_http_error_that_is_not_tritons_is_not_the_models(
    environment: Callable[..., None], status: int, body: bytes
) -> None:
    with http_server(status, body, {}) as url:
        environment(TRITON_URL=url)
        refused(ask, *NOT_TRITON, url, f"HTTP {status}")


@contextmanager
def saying(said: bytes) -> Iterator[str]:
    """Hears what it is asked, says this and hangs up; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(said)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


STATUS_LINE = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            b"\0\0\x12garbage\r\n",
            "does not answer in HTTP; if it is Triton's gRPC port, use grpc://",
        ),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer in HTTP"),
        (b"", "it hung up and gave no answer"),
        (STATUS_LINE, "answers, but not as Triton does"),
        (STATUS_LINE + b"\0bad\r\n\r\n", "answers, but not as Triton does"),
        (STATUS_LINE + b"Content-Length: 100\r\n\r\n[]", "answers, but not as Triton does"),
        (STATUS_LINE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "but not as Triton does"),
    ],
)
def test_half_an_http_answer_is_told_from_another_protocol(
    environment: Callable[..., None], said: bytes, words: str
) -> None:
    with saying(said) as url:
        environment(TRITON_URL=url)
        client = get_deploy_client("triton")
        refused(client.list_deployments, "TEMPORARILY_UNAVAILABLE", url, words)


def test_versions_over_http_are_numbers(environment: Callable[..., None]) -> None:
    with http_server(200, b'[{"name": "m", "version": "abc", "state": "READY"}]', {}) as url:
        environment(TRITON_URL=url)
        client = get_deploy_client("triton")
        refused(client.list_deployments, *NOT_TRITON, url, "a version of m is 'abc'")


def test_settings_that_break_later_are_told_over_http(
    environment: Callable[..., None], tmp_path: Path
) -> None:
    """Not as a server that does not speak HTTP."""
    file = tmp_path / "headers"
    file.write_text("# none yet\n")
    with http_server(200, b"[]", {}) as url:
        environment(TRITON_URL=url, TRITON_HEADERS_FILE=str(file))
        client = get_deploy_client("triton")
        file.write_text("not a header\n")
        refused(client.list_deployments, "INVALID_PARAMETER_VALUE", "TRITON_HEADERS_FILE: line 1")


def test_a_path_beyond_ascii_is_sent_encoded(environment: Callable[..., None]) -> None:
    with http_server(200, b"[]", {}) as url:
        environment(TRITON_URL=f"{url}/\u4e2d%20x")
        assert get_deploy_client("triton").list_deployments() == []


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_host_that_dns_has_no_form_for_is_refused(
    environment: Callable[..., None], scheme: str, host: str
) -> None:
    environment(TRITON_URL=f"{scheme}://{host}:8000")
    refused(
        lambda: get_deploy_client("triton"),
        *("INVALID_PARAMETER_VALUE", "TRITON_URL is", f"{host} is no host name"),
    )


@pytest.mark.parametrize("url", ["http://[1:2]:80", "[1:2]:8001", "[:::]:8001"])
def test_brackets_hold_ipv6(environment: Callable[..., None], url: str) -> None:
    environment(TRITON_URL=url)
    refused(
        lambda: get_deploy_client("triton"),
        *("INVALID_PARAMETER_VALUE", "TRITON_URL is", "is no IPv6 address"),
    )
