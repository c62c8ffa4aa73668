"""MLflow's objects, maps and `Any`: one JSON text a row, in BYTES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mlflow_triton_plugin.predict._arrays import is_series
from mlflow_triton_plugin.predict._forms import parameters
from mlflow_triton_plugin.predict._schema import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict._schema import ModelSchema
    from triton_repo.tensors import TensorSpec

__all__ = ["json_texts", "json_values", "params_text"]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def json_texts(value: object, spec: TensorSpec) -> NDArray[Any]:
    """Rows of any values as JSON.

    Args:
        value: a list, array or series with one value a row, or a single value.
        spec: the input they are for.

    Returns:
        An object array of `bytes`, of shape [rows, 1].

    Raises:
        InvalidInputError: a value has no form in JSON.
    """
    if is_series(value) or isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value.tolist()
    rows = value if isinstance(value, (list, tuple)) else [value]
    texts = np.empty((len(rows), 1), dtype=object)
    for place, row in enumerate(rows):
        try:
            texts[place, 0] = orjson.dumps(row, option=_OPTIONS)
        except TypeError as exc:  # orjson's JSONEncodeError is one
            raise InvalidInputError(
                f"input {spec.name}: row {place} has no form in JSON: {exc}", input=spec.name
            ) from exc
    return texts


def params_text(inputs: object, schema: ModelSchema) -> str:
    """What stands beside the inputs as MLflow's `params`, as one JSON text; empty without any.

    Raises:
        InvalidInputError: the model takes no such parameter, or a value has no form in JSON.
    """
    given = parameters(inputs, schema)
    try:
        return orjson.dumps(given, option=_OPTIONS).decode() if given else ""
    except TypeError as exc:
        raise InvalidInputError(f"the parameters have no form in JSON: {exc}") from exc


def json_values(array: NDArray[Any]) -> NDArray[Any]:
    """The same back: objects for texts; a text that is no JSON, as a model may answer, stays."""
    values = np.empty(array.size, dtype=object)
    for place, text in enumerate(_flat(array)):
        try:
            values[place] = orjson.loads(text)
        except orjson.JSONDecodeError:
            values[place] = text
    return values.reshape(array.shape)


def _flat(array: NDArray[Any]) -> Iterable[bytes]:
    texts: list[bytes] = array.reshape(-1).tolist()
    return texts
