"""Triton over gRPC: Triton's own service, as tritonclient ships it, on a grpcio channel.

With `config.py`'s protobuf, the only door to `tritonclient.grpc`. Its `InferenceServerClient` is
left out: it would add its own objects to every request, and hide gRPC's status behind a string.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import numpy as np
from tritonclient.grpc import (  # noqa: TID251 - this is the door
    MAX_GRPC_MESSAGE_SIZE,
    service_pb2,
    service_pb2_grpc,
)
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from mlflow_triton_plugin.errors import ServerAccessError
from mlflow_triton_plugin.predict import ModelSchema
from mlflow_triton_plugin.server import InferResult, ModelState
from mlflow_triton_plugin.server._translate import named, raise_translated
from triton_repo.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.security import Access
    from mlflow_triton_plugin.settings import Endpoint

__all__ = ["GrpcServer"]

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    # by default a client that outlives its server looks for the next one every two minutes
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class GrpcServer:
    """See `TritonServer`."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, access: Access) -> None:
        self._endpoint = str(endpoint)
        self._timeout_s = timeout_s
        self._access = access
        self._channel = _channel(endpoint, access)
        self._triton = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @property
    def loads_paths(self) -> bool:
        return True

    def check(self) -> None:
        with self._translated("check"):
            self._send(self._triton.ServerLive, service_pb2.ServerLiveRequest())

    def load(self, model: str, config: str | None, timeout_s: float) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        if config is not None:
            request.parameters["config"].string_param = config
        with self._translated("load", model, timeout_s):
            self._send(self._triton.RepositoryModelLoad, request, timeout_s)

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        with self._translated("unload", model, timeout_s):
            self._send(self._triton.RepositoryModelUnload, request, timeout_s)

    def index(self) -> list[ModelState]:
        request = service_pb2.RepositoryIndexRequest()
        with self._translated("the repository index"):
            index = self._send(self._triton.RepositoryIndex, request)
        return [
            ModelState(each.name, each.version, each.state, each.reason) for each in index.models
        ]

    def schema(self, model: str, version: str = "") -> ModelSchema:
        asked = {"name": model, "version": version}
        with self._translated("the metadata of", named(model, version)):
            metadata = self._send(
                self._triton.ModelMetadata, service_pb2.ModelMetadataRequest(**asked)
            )
        optional, max_batch_size = self._configured(model, version, metadata)
        return ModelSchema(
            name=model,
            version=version,
            inputs=tuple(_spec(tensor, tensor.name in optional) for tensor in metadata.inputs),
            outputs=tuple(_spec(tensor, optional=False) for tensor in metadata.outputs),
            max_batch_size=max_batch_size,
        )

    def _configured(self, model: str, version: str, metadata: Any) -> tuple[set[str], int]:
        """Which inputs are optional, and the largest batch, 0 where there is none.

        Who may ask for predictions only is told neither: then it is for Triton to check both.
        """
        request = service_pb2.ModelConfigRequest(name=model, version=version)
        try:
            with self._translated("the configuration of", named(model, version)):
                config = self._send(self._triton.ModelConfig, request).config
        except ServerAccessError:
            return {tensor.name for tensor in metadata.inputs}, 0
        return {tensor.name for tensor in config.input if tensor.optional}, config.max_batch_size

    def infer(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, NDArray[Any]],
        schema: ModelSchema,
    ) -> InferResult:
        request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
        specs = schema.inputs_by_name
        for name, array in tensors.items():
            datatype = specs[name].datatype
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(_to_bytes(array, datatype))
        try:
            response = self._send(self._triton.ModelInfer, request)
        except grpc.RpcError as exc:
            self._raise(exc, "infer", named(model, version), self._timeout_s)
        contents = zip(response.outputs, response.raw_output_contents, strict=True)
        outputs = {
            each.name: _from_bytes(data, each.datatype).reshape(each.shape)
            for each, data in contents
        }
        return InferResult(response.model_version, outputs)

    def close(self) -> None:
        self._channel.close()

    def _send(self, call: Any, request: Any, timeout_s: float | None = None) -> Any:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        metadata = [(header.name, header.value) for header in self._access.headers()]
        return call(request, timeout=timeout_s, metadata=metadata)

    @contextmanager
    def _translated(
        self, what: str, model: str = "", timeout_s: float | None = None
    ) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            self._raise(exc, what, model, self._timeout_s if timeout_s is None else timeout_s)

    def _raise(self, exc: grpc.RpcError, what: str, model: str, timeout_s: float) -> NoReturn:
        raise_translated(
            exc,
            access=self._access,
            endpoint=self._endpoint,
            status=exc.code().name,
            reason=exc.details() or "",
            what=what,
            model=model,
            timeout_s=timeout_s,
        )


def _channel(endpoint: Endpoint, access: Access) -> grpc.Channel:
    if endpoint.scheme != "grpcs":
        return grpc.insecure_channel(endpoint.address, _OPTIONS)
    tls = access.tls
    credentials = grpc.ssl_channel_credentials(
        *((tls.ca, tls.key, tls.certificate) if tls is not None else ())
    )
    return grpc.secure_channel(endpoint.address, credentials, _OPTIONS)


def _to_bytes(array: NDArray[Any], datatype: str) -> bytes:
    """One tensor's content, as the protocol's "raw" form has it: little-endian, row by row."""
    if datatype == "BYTES":
        serialized = serialize_byte_tensor(array)
        return serialized.item() if serialized.size else b""
    if datatype == "BF16":  # the upper half of a float32; the values are on BF16's grid already
        return (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return array.tobytes()


def _from_bytes(data: bytes, datatype: str) -> NDArray[Any]:
    if datatype == "BYTES":
        strings: NDArray[Any] = deserialize_bytes_tensor(data)
        return strings
    if datatype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype=DATATYPES[datatype].numpy)


def _spec(tensor: Any, optional: bool) -> TensorSpec:  # noqa: FBT001 - a column of the table
    return TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape), optional)
