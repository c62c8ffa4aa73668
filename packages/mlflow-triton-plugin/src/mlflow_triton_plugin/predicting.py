"""One request: the caller's inputs → tensors → a server → the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.errors import ModelUnknownError, RequestRefusedError
from mlflow_triton_plugin.predict import InvalidInputError, to_tensors
from mlflow_triton_plugin.response import Prediction
from triton_repo.entry import check_name

if TYPE_CHECKING:
    from mlflow_triton_plugin.predict import ModelSchema
    from mlflow_triton_plugin.server import InferResult, TritonServer

__all__ = ["Predictor"]


class Predictor:
    """Sends requests to one server, remembering the models' inputs from one to the next.

    Asking for them costs two calls, more than a small request itself. A deployment can change
    meanwhile: when a request fails under a remembered schema, the server is asked again, and the
    request is sent once more if the schema was out of date.
    """

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._schemas: dict[str, ModelSchema] = {}

    def predict(self, name: str | None, inputs: Any) -> Prediction:
        """Send one request.

        Raises:
            InvalidInputError: the inputs are not what the model takes; nothing was sent.
            ModelUnknownError: nothing serves under this name.
            RequestRefusedError: Triton or the model refused the request.
        """
        model = check_name(name or "")
        known = self._schemas.get(model)
        if known is None:
            return self._send(inputs, self._schema(model))
        try:
            return self._send(inputs, known)
        except (InvalidInputError, RequestRefusedError, ModelUnknownError):
            del self._schemas[model]
            fresh = self._schema(model)
            if fresh == known:
                raise
            return self._send(inputs, fresh)

    def _schema(self, model: str) -> ModelSchema:
        schema = self._server.schema(model)
        self._schemas[model] = schema
        return schema

    def _send(self, inputs: Any, schema: ModelSchema) -> Prediction:
        result = self._server.infer(schema.name, "", to_tensors(inputs, schema), schema)
        return _prediction(result, schema)


def _prediction(result: InferResult, schema: ModelSchema) -> Prediction:
    return Prediction(result.outputs, model_name=schema.name, model_version=result.version)
