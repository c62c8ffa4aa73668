"""One request: the caller's inputs → tensors → a server → the answer."""

from __future__ import annotations

import logging
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_triton_plugin.errors import (
    ModelUnknownError,
    RequestRefusedError,
    ServerUnavailableError,
)
from mlflow_triton_plugin.predict import (
    InvalidInputError,
    json_values,
    names_text,
    params_text,
    to_tensors,
)
from mlflow_triton_plugin.response import Prediction
from triton_repo.errors import InvalidNameError
from triton_repo.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict import ModelSchema
    from mlflow_triton_plugin.server import InferResult, TritonServer

__all__ = ["Predictor"]

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class Predictor:
    """Sends requests to the first server that answers, remembering the models' inputs.

    Asking for them costs two calls, more than a small request itself. A deployment can change
    meanwhile: when a request fails under a remembered schema, the server is asked again, and the
    request is sent once more if the schema was out of date. Streams are long beside two calls, and
    are begun under what the server says then.
    """

    def __init__(self, servers: Iterable[TritonServer]) -> None:
        self._servers = list(servers)
        self._schemas: dict[tuple[str, str], ModelSchema] = {}

    def predict(self, name: str | None, inputs: Any) -> Prediction:
        """Send one request.

        Args:
            name: a deployment, or one of the versions that it serves: `resnet/6`.
            inputs: see `predict.to_tensors`.

        Raises:
            InvalidNameError: `name` is neither.
            InvalidInputError: the inputs are not what the model takes; nothing was sent.
            ModelUnknownError: nothing serves under this name.
            RequestRefusedError: Triton or the model refused the request.
            ServerUnavailableError: no server answers.
        """
        model = _model_and_version(name or "")
        known = self._schemas.get(model)
        if known is None:
            return self._send(inputs, self._schema(model))
        try:
            return self._send(inputs, known)
        except (InvalidInputError, RequestRefusedError, ModelUnknownError):
            self._schemas.pop(model, None)  # another thread may have found out, too
            fresh = self._schema(model)
            if fresh == known:
                raise
            return self._send(inputs, fresh)

    def predict_stream(self, name: str | None, inputs: Any) -> Iterator[Prediction]:
        """Send one request to a model that answers in pieces, and wait for the first of them.

        Args:
            name: see `predict`.
            inputs: see `predict`.

        Returns:
            The pieces, as they come. Closing it ends the request.

        Raises:
            RequestRefusedError: also in the midst of it, or the model does not answer in pieces.
            Exception: those of `predict`.
        """
        # asked anew: a model that streams no longer answers as one that has but one piece
        schema = self._schema(_model_and_version(name or ""))
        return self._begin(inputs, schema)

    def _schema(self, model: tuple[str, str]) -> ModelSchema:
        schema = self._ask(lambda server: server.schema(*model))
        self._schemas[model] = schema
        return schema

    def _send(self, inputs: Any, schema: ModelSchema) -> Prediction:
        tensors = to_tensors(inputs, schema)
        params = params_text(inputs, schema)
        names = names_text(inputs, schema)
        result = self._ask(
            lambda server: server.infer(
                schema.name, schema.version, tensors, schema, params, names=names
            )
        )
        return _prediction(result, schema)

    def _begin(self, inputs: Any, schema: ModelSchema) -> Iterator[Prediction]:
        tensors = to_tensors(inputs, schema)
        params = params_text(inputs, schema)
        names = names_text(inputs, schema)
        if schema.decoupled is False:
            raise RequestRefusedError(
                f"{schema} answers at once, not in pieces; ask predict, or deploy a model that has "
                "predict_stream (or whose predict is a generator, with -C stream=true)",
                endpoint="",
                status="UNIMPLEMENTED",
                model=schema.name,
                reason="not decoupled",
            )

        def begun(server: TritonServer) -> tuple[InferResult | None, Generator[InferResult]]:
            results = server.stream(
                schema.name, schema.version, tensors, schema, params, names=names
            )
            return next(results, None), results

        first, others = self._ask(begun)
        return _predictions(first, others, schema)

    def _ask(self, call: Callable[[TritonServer], _T]) -> _T:
        """Ask the servers in their order, passing over those that do not answer."""
        for server in self._servers[:-1]:
            try:
                return call(server)
            except ServerUnavailableError as exc:
                _logger.warning("%s; asking the next server", exc)
        return call(self._servers[-1])


def _predictions(
    first: InferResult | None, others: Generator[InferResult], schema: ModelSchema
) -> Iterator[Prediction]:
    with closing(others):
        if first is not None:
            yield _prediction(first, schema)
        for result in others:
            yield _prediction(result, schema)


def _prediction(result: InferResult, schema: ModelSchema) -> Prediction:
    outputs = _in_order(result.outputs, schema)
    for name in schema.json_outputs & outputs.keys():
        outputs[name] = json_values(outputs[name])
    return Prediction(outputs, model_name=schema.name, model_version=result.version)


def _model_and_version(name: str) -> tuple[str, str]:
    """`resnet` and "", or `resnet` and "6" of `resnet/6`: no name has a slash in it.

    Raises:
        InvalidNameError: it is neither.
    """
    model, slash, version = name.partition("/")
    if slash and not re.fullmatch(r"[1-9][0-9]{0,17}", version):
        raise InvalidNameError(
            f"{name!r} cannot name a deployment, nor one of its versions; use NAME or NAME/6",
            name=name,
        )
    return check_name(model), version


def _in_order(outputs: Mapping[str, NDArray[Any]], schema: ModelSchema) -> dict[str, NDArray[Any]]:
    """The outputs as the model lists them; an ensemble answers in any order."""
    if len(outputs) == 1:
        return dict(outputs)
    known = {spec.name: place for place, spec in enumerate(schema.outputs)}
    return {name: outputs[name] for name in sorted(outputs, key=lambda name: known.get(name, 0))}
