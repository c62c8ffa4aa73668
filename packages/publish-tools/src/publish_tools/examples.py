"""An input example and the answer to it, checked against the model, as JSON that MLflow reads.

`input_example.json` is `{name: values}`, as MLflow's own flavors write it: NaN is null, infinity is
`Infinity`. `output_example.json` is `{"outputs": {name: values}}`, as `mlflow deployments predict`
writes it: `"NaN"`, `"Infinity"`, `"-Infinity"`. In both, bytes that are not UTF-8 are
`{"b64": "…"}`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from triton_repo.artifact import OUTPUT_EXAMPLE
from triton_repo.errors import ArtifactError
from triton_repo.tensors import TensorSpec, shape_fits

if TYPE_CHECKING:
    import os

__all__ = ["INPUT_EXAMPLE", "Example", "Examples", "read_examples"]

INPUT_EXAMPLE = "input_example.json"

Example: TypeAlias = "Mapping[str, Any] | str | os.PathLike[str]"
"""`{name: nested lists or arrays}`, that below `"inputs"` or `"outputs"`, or a JSON file of it."""

_Specs: TypeAlias = Sequence[TensorSpec]

#: What may stand beside "inputs" or "outputs" in a request, a response or a `Prediction`.
_BESIDE = frozenset({"id", "model_name", "model_version"})


@dataclass(frozen=True)
class Examples:
    """What is published with a model; values are what JSON can hold.

    Attributes:
        inputs: the values by input, or None.
        outputs: what the model answers to them, or None.
    """

    inputs: Mapping[str, Any] | None = None
    outputs: Mapping[str, Any] | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """The files to write, by their names at the artifact's root."""
        files = {}
        if self.inputs is not None:
            files[INPUT_EXAMPLE] = _json(self.inputs)
        if self.outputs is not None:
            files[OUTPUT_EXAMPLE] = _json({"outputs": self.outputs})
        return files


def read_examples(
    input_example: Example | None,
    output_example: Example | None,
    *,
    inputs: _Specs,
    outputs: _Specs,
) -> Examples:
    """Read both examples and hold them against the model.

    Args:
        input_example: None where there is none.
        output_example: the same.
        inputs: what the model takes, batch dimension included; empty where that is not known.
        outputs: what it answers, in the same way.

    Raises:
        ArtifactError: one is no JSON, has a name that the model does not have, lacks one that it
            needs, or has another shape; or there is an answer and no question.
    """
    if input_example is None and output_example is not None:
        raise ArtifactError(
            "an output example is the answer to an input example; give that (input_example), too"
        )
    asked = _Reader("input", inputs).read(input_example)
    return Examples(asked, _Reader("output", outputs).read(output_example))


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True)
class _Reader:
    """Reads one of the two. `kind` is `input` or `output`."""

    kind: str
    specs: _Specs

    def read(self, example: Example | None) -> dict[str, Any] | None:
        if example is None:
            return None
        is_values = isinstance(example, Mapping)
        where = f"the {self.kind} example" if is_values else str(example)
        try:
            values = self._named(example if isinstance(example, Mapping) else _load(Path(example)))
            self._check_names(values)
            return {name: self._plain(name, value) for name, value in values.items()}
        except (ValueError, RecursionError) as exc:
            raise ArtifactError(f"{where}: {exc}") from exc

    def _named(self, document: object) -> dict[str, Any]:
        key = f"{self.kind}s"
        if isinstance(document, Mapping):
            inner = document.get(key)
            is_wrapper = isinstance(inner, Mapping) and not _is_bytes(inner)
            if is_wrapper and document.keys() - {key} <= _BESIDE:
                document = inner
        if not isinstance(document, Mapping) or not document:
            raise ValueError(f'expected {{"{key}": {{name: values}}}}')
        return {str(name): value for name, value in document.items()}

    def _check_names(self, values: Mapping[str, Any]) -> None:
        known = {spec.name: spec for spec in self.specs}
        listed = ", ".join(map(str, self.specs))
        unknown = [name for name in values if known and name not in known]
        if unknown:
            raise ValueError(f'the model has no {self.kind} "{unknown[0]}"; it has {listed}')
        missing = [
            str(spec) for spec in self.specs if spec.name not in values and not spec.optional
        ]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing; the model has {listed}")

    def _plain(self, name: str, value: object) -> object:
        """The values as JSON has them."""
        try:
            plain = _plain(value, self._not_finite)
            shape = _shape(plain)
        except ValueError as exc:
            raise ValueError(f"{self.kind} {name} {exc}") from exc
        for spec in self.specs:
            if spec.name == name and not _fits(shape, spec.shape):
                raise ValueError(
                    f"{self.kind} {name} has shape {list(shape)}, and the model has {spec} (-1 "
                    "stands for any size)"
                )
        return plain

    def _not_finite(self, value: float) -> object:
        if self.kind == "input":
            return None if math.isnan(value) else value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _load(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as exc:
        raise ValueError(f"it cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ValueError(f"it is not JSON: {exc}") from exc


def _is_bytes(value: object) -> bool:
    """Whether it is `{"b64": "…"}`, as TensorFlow Serving spells bytes in JSON."""
    return isinstance(value, Mapping) and value.keys() == {"b64"}


def _plain(value: object, not_finite: Callable[[float], object]) -> object:
    if hasattr(value, "__array__"):
        value = _nested(np.asarray(value))
    if isinstance(value, (list, tuple)):
        return [_plain(item, not_finite) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return not_finite(value)
    if isinstance(value, bytes):
        return _text(value)
    if value is None or isinstance(value, (str, int, float)) or _is_bytes(value):
        return value
    raise ValueError(f"holds a value of type {type(value).__name__}, which a tensor cannot")


def _nested(array: np.ndarray[Any, Any]) -> object:
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype(np.float64)  # what Python and JSON hold; no value changes
    if array.dtype.kind not in "biufOSU":
        raise ValueError(f"is of type {array.dtype}, which a tensor cannot be")
    return array.tolist()


def _text(value: bytes) -> object:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode("ascii")}


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    shapes = {_shape(item) for item in value}
    if len(shapes) > 1:
        raise ValueError("is ragged; make all its rows the same length")
    return (len(value), *next(iter(shapes), ()))


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    wanted = wanted or (1,)  # Triton has no scalars: its clients send [1]
    if 0 in shape:  # what is behind a dimension of 0 is not in the JSON
        return True
    return shape_fits(shape, wanted)
