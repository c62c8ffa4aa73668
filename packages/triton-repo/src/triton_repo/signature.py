"""A model's signature, column by column: what Triton calls each, and why it cannot.

Format: MLflow's "Model Signatures and Schemas"; a column is a `ColSpec` or a `TensorSpec`. What the
Python backend can carry is more than Triton has types for: dates travel as ISO 8601, objects as
JSON, both in BYTES.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from triton_repo.errors import ConfigError
from triton_repo.tensors import TensorSpec, datatype_of

__all__ = ["Column", "columns_of"]

#: Triton counts in 64 bits.
_LARGEST_DIMENSION = 2**63 - 1
#: MLflow's types whose values are JSON on the way.
_JSON_TYPES = ("object", "map", "any", "sparkml-vector")
_MOST_LEVELS = 8


@dataclass(frozen=True)
class Column:
    """One column or tensor of a signature.

    Attributes:
        name: empty where the signature has none: a single tensor, or columns known by position.
        type: as people write it: `long`, `Array(double)`, `Tensor(float32, (-1, 4))`.
        is_tensor: a `TensorSpec`, whose shape is the model's own; otherwise it is a column, with
            one value a row.
        spec: the tensor it becomes, with the rows as first dimension; None where there is none.
        problem: why there is none.
        is_json: whether its values are JSON on the way.
        is_list: whether each of them is a list.
        bytes_type: what BYTES hold that are not JSON: `string`, `binary`, `datetime`, and `bytes`
            for a tensor of text or bytes.
    """

    name: str
    type: str
    is_tensor: bool
    spec: TensorSpec | None
    problem: str = ""
    is_json: bool = False
    is_list: bool = False
    bytes_type: str = ""


def columns_of(document: Iterable[object]) -> list[Column]:
    """The columns of one side of a signature.

    Args:
        document: the list that `signature.inputs` or `signature.outputs` holds as JSON.
    """
    return [_column(each) for each in document if isinstance(each, Mapping)]


def _column(document: Mapping[str, Any]) -> Column:
    name = _text(document, "name")
    optional = document.get("required") is False
    if document.get("type") == "tensor":
        return _tensor(document, name, optional=optional)
    shown = _shown(document)
    levels, leaf = _unnested(document)
    kind = _text(leaf, "type")
    try:
        datatype = "BYTES" if kind in _JSON_TYPES else datatype_of(column=kind).name
    except ConfigError:
        return Column(name, shown, is_tensor=False, spec=None, problem="Triton has no such type")
    is_json = kind in _JSON_TYPES
    # a list of objects is one JSON text
    shape = (-1, *([-1] * (0 if is_json else levels) or [1]))
    spec = TensorSpec(name, datatype, shape, optional)
    return Column(
        name,
        shown,
        is_tensor=False,
        spec=spec,
        is_json=is_json,
        is_list=levels > 0,
        bytes_type=kind if datatype == "BYTES" and not is_json else "",
    )


def _tensor(document: Mapping[str, Any], name: str, *, optional: bool) -> Column:
    tensor = document.get("tensor-spec")
    tensor = tensor if isinstance(tensor, Mapping) else {}
    dtype = _text(tensor, "dtype")
    try:
        shape = tuple(int(dim) for dim in tensor.get("shape", ()))
        if any(abs(dim) > _LARGEST_DIMENSION for dim in shape):
            raise ValueError  # noqa: TRY301 - as one that is no number
    except (TypeError, ValueError, OverflowError):  # Infinity is JSON to Python
        return Column(name, f"Tensor({dtype})", is_tensor=True, spec=None, problem="has no shape")
    shown = f"Tensor({dtype}, {shape})"
    try:
        datatype = datatype_of(tensor=dtype).name
    except ConfigError:
        return Column(name, shown, is_tensor=True, spec=None, problem="Triton has no such type")
    spec = TensorSpec(name, datatype, shape, optional)
    bytes_type = "bytes" if datatype == "BYTES" else ""
    return Column(name, shown, is_tensor=True, spec=spec, bytes_type=bytes_type)


def _unnested(document: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """How many arrays are around the values, and what the values are."""
    levels = 0
    while document.get("type") == "array" and levels <= _MOST_LEVELS:
        items = document.get("items")
        document = items if isinstance(items, Mapping) else {}
        levels += 1
    return levels, document


def _shown(document: Mapping[str, Any]) -> str:
    levels, leaf = _unnested(document)
    kind = _text(leaf, "type") or "no type"
    named = kind.capitalize() if kind in _JSON_TYPES else kind
    return f"{'Array(' * levels}{named}{')' * levels}"


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""
