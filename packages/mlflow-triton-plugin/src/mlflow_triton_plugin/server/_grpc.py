"""Triton over gRPC: Triton's own service, as tritonclient ships it, on a grpcio channel.

With `config.py`'s protobuf, the only door to `tritonclient.grpc`. Its `InferenceServerClient` is
left out: it would add its own objects to every request, and hide gRPC's status behind a string.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from tritonclient.grpc import (  # noqa: TID251 - this is the door
    MAX_GRPC_MESSAGE_SIZE,
    service_pb2,
    service_pb2_grpc,
)

from mlflow_triton_plugin.errors import ServerAccessError, TritonServerError
from mlflow_triton_plugin.server import InferResult, ServerFacts
from mlflow_triton_plugin.server._configured import Configured
from mlflow_triton_plugin.server._states import listed
from mlflow_triton_plugin.server._stream import Answers
from mlflow_triton_plugin.server._tensors import (
    answered,
    by_name,
    described,
    from_bytes,
    from_values,
    to_bytes,
)
from mlflow_triton_plugin.server._translate import (
    StrangeAnswerError,
    as_triton_answers,
    named,
    raise_translated,
)
from triton_repo.flavors.pyfunc import NAMES, PARAMS, STREAM, STREAM_END, STREAM_ID

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict import ModelSchema
    from mlflow_triton_plugin.security import Access
    from mlflow_triton_plugin.server import ModelState
    from mlflow_triton_plugin.settings import Endpoint
    from triton_repo.tensors import TensorSpec

__all__ = ["GrpcServer"]

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    # by default a client that outlives its server looks for the next one every two minutes
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

#: 25.05, see `_stream`.
_SURVIVES_CANCELLING = (2, 58)

#: What grpcio itself says of bytes that are not the message that was asked for.
_UNREADABLE = "Exception deserializing response!"

#: Where `InferTensorContents` has the values of a datatype; FP16 and BF16 have only the raw form.
_TYPED_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


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

    def facts(self) -> ServerFacts:
        with self._translated("the metadata of the server"):
            said = self._send(self._triton.ServerMetadata, service_pb2.ServerMetadataRequest())
        return ServerFacts(self._endpoint, said.name, said.version)

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
        what = "the repository index"
        with self._translated(what):
            index = self._send(self._triton.RepositoryIndex, request)
        with as_triton_answers(self._access, self._endpoint, what):
            return [
                listed(each.name, each.version, each.state, each.reason) for each in index.models
            ]

    def schema(self, model: str, version: str = "") -> ModelSchema:
        request = service_pb2.ModelMetadataRequest(name=model, version=version)
        about = ("the metadata of", named(model, version))
        with self._translated(*about):
            metadata = self._send(self._triton.ModelMetadata, request)
        with as_triton_answers(self._access, self._endpoint, *about):
            inputs, outputs = (
                [described(each.name, each.datatype, each.shape) for each in tensors]
                for tensors in (metadata.inputs, metadata.outputs)
            )
        return self._configured(model, version, inputs).schema(model, version, inputs, outputs)

    def _configured(self, model: str, version: str, inputs: list[TensorSpec]) -> Configured:
        request = service_pb2.ModelConfigRequest(name=model, version=version)
        try:
            with self._translated("the configuration of", named(model, version)):
                config = self._send(self._triton.ModelConfig, request).config
        except ServerAccessError:
            return Configured.unknown(inputs)
        return Configured(
            optional=frozenset(tensor.name for tensor in config.input if tensor.optional),
            max_batch_size=config.max_batch_size,
            parameters={key: each.string_value for key, each in config.parameters.items()},
            decoupled=config.model_transaction_policy.decoupled,
        )

    def infer(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, NDArray[Any]],
        schema: ModelSchema,
        params: str = "",
        *,
        names: str = "",
        timeout_s: float | None = None,
    ) -> InferResult:
        request = _request(model, version, tensors, schema, {PARAMS: params, NAMES: names})
        if schema.decoupled:
            request.parameters[STREAM].bool_param = False
            results = list(self._responses(request, timeout_s))
            return self._only(results, named(model, version))
        try:
            response = self._send(self._triton.ModelInfer, request, timeout_s)
        except grpc.RpcError as exc:
            timeout_s = self._timeout_s if timeout_s is None else timeout_s
            self._raise(exc, "infer", named(model, version), timeout_s)
        with as_triton_answers(self._access, self._endpoint, "infer", named(model, version)):
            return InferResult(response.model_version, _outputs(response))

    def stream(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, NDArray[Any]],
        schema: ModelSchema,
        params: str = "",
        *,
        names: str = "",
    ) -> Generator[InferResult]:
        request = _request(model, version, tensors, schema, {PARAMS: params, NAMES: names})
        if schema.ends_streams:
            request.parameters[STREAM_ID].string_param = uuid.uuid4().hex
        return self._responses(request)

    def _responses(self, request: Any, timeout_s: float | None = None) -> Generator[InferResult]:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        about = ("infer", named(request.model_name, request.model_version))
        metadata = [(header.name, header.value) for header in self._access.headers()]
        cancels = self._cancels
        call = self._triton.ModelStreamInfer(iter([request]), metadata=metadata)
        answers = Answers(call, partial(self._has_ended, request))
        try:
            while (said := self._next(answers, *about, timeout_s)) is not None:
                if said.error_message:
                    self._refuse(said.error_message, *about)
                with as_triton_answers(self._access, self._endpoint, *about):
                    response = said.infer_response
                    result = InferResult(response.model_version, _outputs(response))
                yield result
        finally:
            answers.leave(cancels=cancels)

    def _has_ended(self, request: Any) -> bool:
        """Ask the model to end a request; False where another of its instances answers that one."""
        if STREAM_ID not in request.parameters:
            return True  # nobody there knows how
        ending = service_pb2.ModelInferRequest()
        ending.CopyFrom(request)
        ending.parameters.clear()
        ending.parameters[STREAM_END].CopyFrom(request.parameters[STREAM_ID])
        try:
            said = list(self._send(self._triton.ModelStreamInfer, iter([ending])))
        except grpc.RpcError:
            return False
        return not any(each.error_message for each in said)

    def _next(self, answers: Answers, what: str, model: str, timeout_s: float) -> Any:
        try:
            return answers.next(timeout_s)
        except TimeoutError:
            self._refuse("", what, model, status="DEADLINE_EXCEEDED")
        except grpc.RpcError as exc:
            self._raise(exc, what, model, timeout_s)

    @cached_property
    def _cancels(self) -> bool:
        """Whether the server survives it, see `_stream`."""
        try:
            return self.facts().release >= _SURVIVES_CANCELLING
        except TritonServerError:  # it may say it to others only
            return False

    def _only(self, results: list[InferResult], model: str) -> InferResult:
        if len(results) != 1:
            self._refuse(
                f"it gave {len(results)} answers, where one was asked for; ask predict_stream",
                "infer",
                model,
            )
        return results[0]

    def _refuse(self, reason: str, what: str, model: str, *, status: str = "") -> NoReturn:
        raise_translated(
            RuntimeError(reason),
            access=self._access,
            endpoint=self._endpoint,
            status=status,
            reason=reason,
            what=what,
            model=model,
            timeout_s=self._timeout_s,
        )

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
        if exc.details() == _UNREADABLE:
            with as_triton_answers(self._access, self._endpoint, what, model):
                raise StrangeAnswerError("it is no message of the protocol") from exc
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
    options = list(_OPTIONS)
    if endpoint.is_loopback or not endpoint.is_encrypted:
        # a proxy of the environment's would read the token, and has no way to this machine
        options.append(("grpc.enable_http_proxy", 0))
    if not endpoint.is_encrypted:
        return grpc.insecure_channel(endpoint.address, options)
    tls = access.tls
    credentials = grpc.ssl_channel_credentials(
        *((tls.ca, tls.key, tls.certificate) if tls is not None else ())
    )
    return grpc.secure_channel(endpoint.address, credentials, options)


def _request(
    model: str,
    version: str,
    tensors: Mapping[str, NDArray[Any]],
    schema: ModelSchema,
    parameters: Mapping[str, str],
) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for key, text in parameters.items():
        if text:
            request.parameters[key].string_param = text
    specs = schema.inputs_by_name
    for name, array in tensors.items():
        datatype = specs[name].datatype
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_bytes(array, datatype))
    return request


def _outputs(response: Any) -> dict[str, NDArray[Any]]:
    """The tensors of an answer.

    Triton itself always answers in the "raw" form; what stands before it may use the typed one.

    Raises:
        StrangeAnswerError: they are not what the answer says of them, see `_tensors`.
    """
    outputs, raw = response.outputs, response.raw_output_contents
    if raw and len(raw) != len(outputs):
        raise StrangeAnswerError(f"tensors: {len(outputs)}, raw contents: {len(raw)}")
    tensors = [answered(each.name, each.datatype, each.shape) for each in outputs]
    arrays = map(from_bytes, tensors, raw) if raw else map(_from_typed, tensors, outputs)
    return by_name(zip(tensors, arrays, strict=True))


def _from_typed(tensor: TensorSpec, output: Any) -> NDArray[Any]:
    field = _TYPED_FIELDS.get(tensor.datatype)
    if field is None:
        raise StrangeAnswerError(f"tensor {tensor} has no raw contents, and no other form")
    return from_values(tensor, getattr(output.contents, field))
