"""The golden check: a model answers its own input example before anybody else can ask it.

The input example is MLflow's (`log_model(..., input_example=…)`). What the answer has to be may be
logged with it, as `output_example.json` in the model: `{"outputs": {name: nested lists}}`, the form
that `predict` writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.models import Model

from mlflow_triton_plugin.errors import GoldenCheckError, RequestRefusedError
from mlflow_triton_plugin.predict import InvalidInputError, request_parameters, to_tensors
from mlflow_triton_plugin.response import outputs_from_json
from triton_repo.artifact import OUTPUT_EXAMPLE
from triton_repo.errors import ArtifactError
from triton_repo.tensors import shape_fits
from triton_repo.text import human_size, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict import ModelSchema
    from mlflow_triton_plugin.server import TritonServer
    from triton_repo.artifact import ModelArtifact
    from triton_repo.tensors import TensorSpec

__all__ = ["GoldenExample", "input_example", "read_example"]

#: As JSON it takes many times as much memory.
_MAX_EXAMPLE_BYTES = 50_000_000


@dataclass(frozen=True)
class GoldenExample:
    """What a model is asked, and what it should answer.

    Attributes:
        inputs: the input example, in any form that `predict` takes.
        outputs: JSON of the answer; empty where none was logged.
        tolerance: how far a floating-point value may be from the logged one, relative to it and
            absolutely: `|a - b| <= tolerance * (1 + |b|)`.
    """

    inputs: Any
    outputs: bytes = b""
    tolerance: float = 1e-3

    def check(self, server: TritonServer, model: str, versions: Iterable[int] = ()) -> None:
        """Ask `model` on `server`: each of these versions, or the highest that is READY.

        Raises:
            GoldenCheckError: it refuses its own example, or its answer has the wrong names,
                shapes, types or values, or a value that is not finite.
        """
        for version in [str(version) for version in versions] or [""]:
            self._check_version(server, model, version)

    def _check_version(self, server: TritonServer, model: str, version: str) -> None:
        schema = server.schema(model, version)
        try:
            tensors = to_tensors(self.inputs, schema)
            parameters = request_parameters(self.inputs, schema)
            answered = server.infer(model, version, tensors, schema, parameters).outputs
        except (InvalidInputError, RequestRefusedError) as exc:
            why = f"its input example is refused: {exc}"
            raise _failed(server, model, why) from exc
        rows = {len(array) for array in tensors.values()} if schema.max_batch_size else set()
        fault = _fault(answered, schema, rows) or self._difference(answered, schema)
        if fault:
            raise _failed(server, model, fault)

    def _difference(self, answered: Mapping[str, NDArray[Any]], schema: ModelSchema) -> str | None:
        """The first difference from the logged answer; without one, values must be finite."""
        wanted: Mapping[str, NDArray[Any]] = {}
        if self.outputs:
            datatypes = {spec.name: spec.datatype for spec in schema.outputs}
            try:
                wanted = outputs_from_json(self.outputs, datatypes)
            except ValueError as exc:
                return f"{OUTPUT_EXAMPLE} does not fit: {exc}"
        for name, array in answered.items():
            fault = _unlike(array, wanted.get(name), self.tolerance)
            if fault:
                return f"output {name} {fault}"
        return None


def read_example(artifact: ModelArtifact, *, tolerance: float) -> GoldenExample:
    """The examples a model was logged with.

    Raises:
        ArtifactError: there is no input example, or it cannot be read.
    """
    example = input_example(artifact, needed_by="validate=true")
    outputs = artifact.find(OUTPUT_EXAMPLE)
    if outputs is not None:
        _check_size(outputs)
    return GoldenExample(example, outputs.read_bytes() if outputs else b"", tolerance)


def input_example(artifact: ModelArtifact, *, needed_by: str) -> Any:
    """The input example a model was logged with, in a form that `predict` takes.

    Args:
        artifact: the model.
        needed_by: the option that asks for it.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    try:
        model = Model.load(str(artifact.root))
        info = dict(model.saved_input_example_info or {})
    except Exception as exc:  # MLflow takes an MLmodel at its word: any type may be wrong
        raise ArtifactError(f"MLflow cannot read the model's MLmodel: {one_line(exc)}") from exc
    if not info:
        raise ArtifactError(
            f"the model was logged without an input example, and {needed_by} needs one; log it "
            f"with input_example=…, or leave {needed_by.partition('=')[0]} out"
        )
    example = artifact.path(
        info.get("artifact_path", ""), said_by="MLmodel's saved_input_example_info"
    )
    _check_size(example)
    try:
        return model.load_input_example(str(artifact.root))
    except Exception as exc:  # as above
        raise ArtifactError(f"the model's input example cannot be read: {one_line(exc)}") from exc


def _check_size(example: Path) -> None:
    if example.stat().st_size > _MAX_EXAMPLE_BYTES:
        raise ArtifactError(
            f"{example} is larger than {human_size(_MAX_EXAMPLE_BYTES)}; log the model with an "
            "example of a few rows"
        )


def _failed(server: TritonServer, model: str, why: str) -> GoldenCheckError:
    return GoldenCheckError(
        f"{model} failed its golden check on {server.endpoint}: {why}",
        endpoint=server.endpoint,
        model=model,
    )


def _fault(answered: Mapping[str, NDArray[Any]], schema: ModelSchema, rows: set[int]) -> str | None:
    """What is wrong with the form of an answer."""
    specs = {spec.name: spec for spec in schema.outputs}
    if answered.keys() != specs.keys():
        return f"it answers {_named(answered)}, and its configuration says {_named(specs)}"
    for name, array in answered.items():
        fault = _misfit(array, specs[name], rows)
        if fault:
            return f"output {name} {fault}"
    return None


def _named(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "nothing"


def _misfit(array: NDArray[Any], spec: TensorSpec, rows: set[int]) -> str | None:
    if array.dtype != spec.dtype:
        return f"is {array.dtype}, and its configuration says {spec.datatype}"
    if not shape_fits(array.shape, spec.shape) or (rows and array.shape[0] not in rows):
        batch = f" for {', '.join(map(str, rows))} rows" if rows else ""
        return f"has shape {list(array.shape)}{batch}, and should have {list(spec.shape)}"
    return None


def _unlike(array: NDArray[Any], wanted: NDArray[Any] | None, tolerance: float) -> str | None:
    """How an output differs from the logged one; where none was, it must be finite."""
    if wanted is None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"has values that are not finite, {_first(array, ~np.isfinite(array))}"
        return None
    if array.shape != wanted.shape:
        return f"has shape {list(array.shape)}, and {OUTPUT_EXAMPLE} has {list(wanted.shape)}"
    if array.dtype.kind == "f":
        same = np.isclose(array, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        same = np.asarray(array == wanted)
    if same.all():
        return None
    return f"is {_first(array, ~same)}, and {OUTPUT_EXAMPLE} has {_first(wanted, ~same)}"


def _first(array: NDArray[Any], where: NDArray[np.bool_]) -> str:
    index = tuple(np.argwhere(where)[0].tolist())
    return f"{array[index]} at {list(index)}"
