"""Answers that are not Triton's own, byte by byte: read where they mean something, else told."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mlflow_triton_plugin.errors import TritonServerError
from mlflow_triton_plugin.server import TritonServers
from mlflow_triton_plugin.settings import Settings

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

    def ModelMetadata(self, *_: object) -> Any:  # noqa: N802
        tensors = [[{"name": name, "datatype": "FP32", "shape": [1]}] for name in ("x", "y")]
        return service_pb2.ModelMetadataResponse(inputs=tensors[0], outputs=tensors[1])

    def ModelConfig(self, *_: object) -> Any:  # noqa: N802
        return service_pb2.ModelConfigResponse()

    def ModelInfer(self, *_: object) -> Any:  # noqa: N802
        return self.answer

    def RepositoryModelLoad(self, *_: object) -> Any:  # noqa: N802
        return service_pb2.RepositoryModelLoadResponse()

    def RepositoryIndex(self, *_: object) -> Any:  # noqa: N802
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
    "given",
    [
        answer("FP32", 1, raw=(b"\0" * 4, b"\0" * 4)),
        answer("FP32", 1, raw=(b"\0" * 2,)),
        answer("FP32", 2, raw=(b"\0" * 4,)),
        answer("FP32", -1, raw=(b"\0" * 4,)),
        answer("FP128", 1, raw=(b"\0" * 16,)),
        answer("BYTES", 1, raw=(b"\xff\xff\xff\x7fabc",)),
        answer("BYTES", 1, raw=(b"ab",)),
        answer("BF16", 1, raw=(b"abc",)),
        answer("FP32", 2, fp32_contents=[1.0]),
        answer("FP16", 1, fp32_contents=[1.0]),
        answer("INT8", 1, int_contents=[300]),
    ],
)
def test_tensors_that_do_not_fit_are_told(service: Service, given: Any) -> None:
    service.answer = given
    refused(ask, *NOT_TRITON, "infer m")


def test_a_version_that_is_no_number_is_not_ready(service: Service) -> None:
    service.index = [{"name": "m", "version": "abc", "state": "READY"}]
    settings = Settings.read("triton")
    servers = TritonServers.open(settings.endpoints, timeout_s=5)
    with pytest.raises(TritonServerError, match="does not serve version 1"):
        servers.load("m", config=None, versions=(1,), timeout_s=5)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_token_does_not_go_through_a_proxy(
    service: Service,
    environment: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text("hidden")
    service.index = [{"name": "m", "version": "1", "state": "READY"}]
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        environment(
            TRITON_TOKEN_FILE=str(tmp_path / "token"),
            **{variable: f"http://127.0.0.1:{proxy.getsockname()[1]}"},
        )
        client = get_deploy_client("triton")
        client.list_deployments()
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


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
    thread = threading.Thread(target=server.serve_forever)
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
BYTES = json_answer(datatype="BYTES", parameters={"binary_data_size": 3})
LENGTH = "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, BINARY + b"\0\0", {LENGTH: str(len(BINARY))}),
        (200, BINARY, {LENGTH: "zz"}),
        (200, BYTES + b"abc", {LENGTH: str(len(BYTES))}),
        (200, json_answer(data=["a"]), {}),
        (200, json_answer(data=[1.0, 2.0]), {}),
        (200, b"junk", {"Content-Encoding": "gzip"}),
        (200, gzip.compress(BINARY)[:20], {"Content-Encoding": "gzip"}),
        (200, b"junk", {"Content-Encoding": "deflate"}),
        (200, b"[" * 100_000, {}),
        (200, b"<html>", {}),
        (400, b'{"error": ["a"]}', {}),
    ],
)
def test_an_http_answer_that_cannot_be_read_is_told(
    environment: Callable[..., None], status: int, body: bytes, headers: dict[str, str]
) -> None:
    with http_server(status, body, headers) as url:
        environment(TRITON_URL=url)
        refused(ask, *NOT_TRITON, url, "infer m")


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


@pytest.mark.parametrize("url", ["http://a..b:8000", f"http://{'a' * 70}:8000"])
def test_a_host_that_dns_has_no_form_for_is_named(
    environment: Callable[..., None], url: str
) -> None:
    environment(TRITON_URL=url)
    refused(get_deploy_client("triton").list_deployments, "TEMPORARILY_UNAVAILABLE", url, "no host")


@pytest.mark.parametrize("url", ["http://[1:2]:80", "[1:2]:8001", "[:::]:8001"])
def test_brackets_hold_ipv6(environment: Callable[..., None], url: str) -> None:
    environment(TRITON_URL=url)
    refused(lambda: get_deploy_client("triton"), "INVALID_PARAMETER_VALUE", "is no IPv6 address")
