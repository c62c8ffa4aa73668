"""MLflow's objects, maps and `Any`: one JSON text a row, in BYTES.

JSON has no NaN and no infinity. They are strings in it, with a letter written as an escape, which
no encoder does: so they are told from text, both ways; for all others they are `"NaN"`,
`"Infinity"` and `"-Infinity"`. The model's side is `mlflow_triton_values.py` of `triton_repo`.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mlflow_triton_plugin.predict._arrays import is_series
from mlflow_triton_plugin.predict._cast import shown
from mlflow_triton_plugin.predict._forms import column_names, parameters
from mlflow_triton_plugin.predict._schema import InvalidInputError
from triton_repo.flavors.pyfunc import NAMES, PARAMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict._schema import ModelSchema
    from triton_repo.tensors import TensorSpec

__all__ = ["json_texts", "json_values", "request_parameters"]

#: What Python writes for the numbers that JSON has not, and what we do.
_SPELLINGS = {
    "NaN": r'"\u004eaN"',
    "Infinity": r'"\u0049nfinity"',
    "-Infinity": r'"-\u0049nfinity"',
}
_NUMBERS = {spelling: python for python, spelling in _SPELLINGS.items()}
_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')

#: What orjson would make a float of, perhaps.
_BEYOND_64_BITS = re.compile(rb"\d{20}")

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
            texts[place, 0] = _text(row)
        except TypeError as exc:  # orjson's JSONEncodeError is one
            raise InvalidInputError(
                f"input {spec.name}: row {place} has no form in JSON: {exc}", input=spec.name
            ) from exc
    return texts


def request_parameters(inputs: object, schema: ModelSchema) -> dict[str, str]:
    """Return the parameters of a request to a `python_function`, as its `model.py` reads them.

    Raises:
        InvalidInputError: see `params_text` and `names_text`.
    """
    texts = {PARAMS: params_text(inputs, schema), NAMES: names_text(inputs, schema)}
    return {name: text for name, text in texts.items() if text}


def params_text(inputs: object, schema: ModelSchema) -> str:
    """What stands beside the inputs as MLflow's `params`, as one JSON text; empty without any.

    Raises:
        InvalidInputError: the model takes no such parameter, or a value has no form in JSON.
    """
    given = parameters(inputs, schema)
    try:
        return _text(given).decode() if given else ""
    except TypeError as exc:
        raise InvalidInputError(f"the parameters have no form in JSON: {exc}") from exc


def names_text(inputs: object, schema: ModelSchema) -> str:
    """The names of the columns that were given, for a model whose own have none, as a JSON list.

    Empty where they are positions, which the model has without being told.

    Raises:
        InvalidInputError: one is neither a string nor an integer, and would come back as another.
    """
    names = [_name(label) for label in column_names(inputs, schema)]
    return "" if names == list(range(len(names))) else json.dumps(names)


def _name(label: object) -> str | int:
    """Return a column's label as JSON holds it.

    Raises:
        InvalidInputError: JSON does not hold it.
    """
    if isinstance(label, str):
        return str.__str__(label)  # str() of an Enum is its name
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        return int(label)
    raise InvalidInputError(
        f"column {shown(label)}: the label is of type {type(label).__name__}, and a request holds "
        "strings and integers; rename the column"
    )


def _text(value: object) -> bytes:
    """JSON of a value.

    Raises:
        TypeError: it has no form in JSON.
    """
    text = orjson.dumps(value, option=_OPTIONS)
    if b"null" not in text:  # which stands for the others, too
        return text
    with suppress(TypeError, ValueError):  # Python's knows fewer kinds of keys
        by_python = json.dumps(value, default=_plain)
        if "NaN" in by_python or "Infinity" in by_python:
            return _replaced(by_python, _SPELLINGS).encode()
    return text


def _plain(value: object) -> object:
    if isinstance(value, (np.ndarray, np.floating)):
        return value.tolist()
    return orjson.loads(orjson.dumps(value, option=_OPTIONS))


def _replaced(text: str, by: Mapping[str, str]) -> str:
    return _STRING_OR_NUMBER.sub(lambda found: by.get(found[0], found[0]), text)


def json_values(array: NDArray[Any]) -> NDArray[Any]:
    """The same back: objects for texts; a text that is no JSON, as a model may answer, stays."""
    values = np.empty(array.size, dtype=object)
    for place, text in enumerate(_flat(array)):
        try:
            values[place] = _read(text)
        except (ValueError, RecursionError):
            values[place] = text
    return values.reshape(array.shape)


def _read(text: bytes) -> object:
    """What a JSON text says; also one that only Python reads, with NaN or halves of surrogates.

    Raises:
        ValueError: it is none.
    """
    if rb"\u004" not in text and not _BEYOND_64_BITS.search(text):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return json.loads(_replaced(text.decode(), _NUMBERS))


def _flat(array: NDArray[Any]) -> Iterable[bytes]:
    texts: list[bytes] = array.reshape(-1).tolist()
    return texts
