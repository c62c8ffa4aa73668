"""Triton over gRPC. With `config.py`'s protobuf, the only door to `tritonclient.grpc`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tritonclient.grpc import (  # noqa: TID251 - this is the door
    InferenceServerClient,
    InferInput,
)
from tritonclient.utils import InferenceServerException

from mlflow_triton_plugin.predict import ModelSchema
from mlflow_triton_plugin.server import InferResult, ModelState
from mlflow_triton_plugin.server._tensors import as_sent
from mlflow_triton_plugin.server._translate import raise_translated
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.settings import Endpoint

__all__ = ["GrpcServer"]


class GrpcServer:
    """See `TritonServer`."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = str(endpoint)
        self._timeout_s = timeout_s
        self._client = InferenceServerClient(endpoint.address, ssl=endpoint.scheme == "grpcs")

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def check(self) -> None:
        with self._translated("check"):
            self._client.is_server_live(client_timeout=self._timeout_s)

    def load(self, model: str, config: str | None, timeout_s: float) -> None:
        with self._translated("load", model, timeout_s):
            self._client.load_model(model, config=config, client_timeout=timeout_s)

    def unload(self, model: str) -> None:
        with self._translated("unload", model):
            self._client.unload_model(model, client_timeout=self._timeout_s)

    def index(self) -> list[ModelState]:
        with self._translated("the repository index"):
            index = self._client.get_model_repository_index(client_timeout=self._timeout_s)
        return [
            ModelState(each.name, each.version, each.state, each.reason) for each in index.models
        ]

    def schema(self, model: str, version: str = "") -> ModelSchema:
        with self._translated("the metadata of", model):
            metadata = self._client.get_model_metadata(
                model, version, client_timeout=self._timeout_s
            )
            config = self._client.get_model_config(
                model, version, client_timeout=self._timeout_s
            ).config
        optional = {tensor.name for tensor in config.input if tensor.optional}
        return ModelSchema(
            name=model,
            version=version,
            inputs=tuple(_spec(tensor, tensor.name in optional) for tensor in metadata.inputs),
            outputs=tuple(_spec(tensor, optional=False) for tensor in metadata.outputs),
            max_batch_size=config.max_batch_size,
        )

    def infer(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, NDArray[Any]],
        schema: ModelSchema,
    ) -> InferResult:
        inputs = []
        datatypes = schema.inputs_by_name
        for name, array in tensors.items():
            datatype = datatypes[name].datatype
            tensor = InferInput(name, array.shape, datatype)
            tensor.set_data_from_numpy(as_sent(array, datatype))
            inputs.append(tensor)
        with self._translated("infer", model):
            result = self._client.infer(
                model, inputs, model_version=version, client_timeout=self._timeout_s
            )
        response = result.get_response()
        outputs = {each.name: result.as_numpy(each.name) for each in response.outputs}
        return InferResult(response.model_version, outputs)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _translated(
        self, what: str, model: str = "", timeout_s: float | None = None
    ) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as exc:
            raise_translated(
                exc,
                endpoint=self._endpoint,
                status=str(exc.status() or "").removeprefix("StatusCode."),
                reason=str(exc.message() or exc),
                what=what,
                model=model,
                timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            )


def _spec(tensor: Any, optional: bool) -> TensorSpec:  # noqa: FBT001 - a column of the table
    return TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape), optional)
