"""Inputs and outputs as MLflow's pages show them, from config.pbtxt or an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from triton_repo.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    from triton_repo.config import ModelConfig
    from triton_repo.flavors.onnx_graph import GraphTensor, OnnxGraph

__all__ = ["Tensors", "config_tensors", "graph_tensors", "model_signature"]

#: numpy knows `bfloat16` only where ml_dtypes was imported; an MLmodel that names it cannot even
#: be opened anywhere else.
_NOT_IN_NUMPY = frozenset({"BF16"})


@dataclass(frozen=True)
class Tensors:
    """What goes in and what comes out, as a client sees it: batch dimension included.

    Attributes:
        inputs: empty when they are not known.
        outputs: the same.
        notes: what could not be found out, in words for the user.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()


def config_tensors(config: ModelConfig) -> Tensors:
    """The tensors of a config.pbtxt, with -1 in front where `max_batch_size` is over 0."""
    batch = (-1,) if config.max_batch_size > 0 else ()

    def batched(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=batch + spec.shape) for spec in specs)

    return _noted(batched(config.inputs), batched(config.outputs))


def graph_tensors(graph: OnnxGraph, known: Tensors) -> Tensors:
    """The tensors of an ONNX graph; a shape it leaves open comes from `known`, by name."""
    shapes = {spec.name: spec.shape for spec in (*known.inputs, *known.outputs)}
    notes: list[str] = []

    def specs(side: str, tensors: Iterable[GraphTensor]) -> tuple[TensorSpec, ...]:
        found = []
        for tensor in tensors:
            shape = tensor.shape if tensor.shape is not None else shapes.get(tensor.name)
            if shape is None:
                notes.append(
                    f"the signature has no {side}: the ONNX graph gives no shape for "
                    f"{tensor.name!r}; a config.pbtxt beside the model can"
                )
                return ()
            found.append(tensor.spec(shape))
        return tuple(found)

    tensors = _noted(specs("inputs", graph.inputs), specs("outputs", graph.outputs))
    return replace(tensors, notes=(*notes, *tensors.notes))


def _noted(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Tensors:
    """The tensors, with a note on a side that the signature will not have."""
    sides = {"inputs": _nameless(inputs), "outputs": _nameless(outputs)}
    notes = [
        f"the signature has no {side}: MLflow has no type for {', '.join(map(str, specs))}"
        for side, specs in sides.items()
        if specs
    ]
    return Tensors(inputs, outputs, tuple(notes))


def _nameless(specs: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    """Those that MLflow has no type for."""
    return [spec for spec in specs if spec.datatype in _NOT_IN_NUMPY]


def model_signature(tensors: Tensors) -> ModelSignature | None:
    """The MLflow signature, or None when it would have neither side.

    A side with a tensor that MLflow cannot name is left out: half of it would mislead.
    MLflow's `TensorSpec` cannot say that an input is optional: such inputs are listed like others,
    and config.pbtxt has the word.
    """
    from mlflow.models import ModelSignature  # noqa: PLC0415 - 2 s that a dry run does not pay

    inputs, outputs = _schema(tensors.inputs), _schema(tensors.outputs)
    return ModelSignature(inputs, outputs) if inputs or outputs else None


def _schema(specs: tuple[TensorSpec, ...]) -> Schema | None:
    from mlflow.types import ColSpec, Schema  # noqa: PLC0415 - the same
    from mlflow.types import TensorSpec as MlflowTensorSpec  # noqa: PLC0415 - the same

    if _nameless(specs):
        return None
    columns: list[ColSpec | MlflowTensorSpec] = [
        MlflowTensorSpec(np.dtype(DATATYPES[spec.datatype].tensor), spec.shape, spec.name)
        for spec in specs
    ]
    return Schema(columns) if columns else None
