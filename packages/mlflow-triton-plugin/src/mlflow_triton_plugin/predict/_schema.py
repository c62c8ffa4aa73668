"""What the model takes, and the error for what it does not take."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton_repo.tensors import TensorSpec

__all__ = ["InvalidInputError", "ModelSchema"]


class InvalidInputError(ValueError):
    """The caller's inputs are not what the model takes; nothing was sent.

    Attributes:
        input: the model input at fault, or None where the fault is not one input's.
    """

    def __init__(self, message: str, *, input: str | None = None) -> None:  # noqa: A002 - the attribute's name
        super().__init__(message)
        self.input = input


@dataclass(frozen=True)
class ModelSchema:
    """The inputs and outputs of one model version, as the server's metadata gives them.

    Attributes:
        name: the model.
        version: the version these inputs and outputs belong to.
        inputs: shapes with the batch dimension included, as -1, when `max_batch_size` is over 0.
        outputs: the same.
        max_batch_size: 0 where the model does not batch.
        parameters: names of what `predict` of a `python_function` takes beside its inputs.
        json_inputs: inputs that take one JSON text a row, for MLflow's objects, maps and `Any`.
        json_lists: those of `json_inputs` that take a list in each row.
        json_outputs: as `json_inputs`, of outputs.
        columns: names of the columns of the only input, in order, where MLflow's model takes a
            table of them; empty where nobody knows.
        bytes_types: what the BYTES of an input hold, by its name: `string`, `binary`, `datetime`,
            `bytes` (text or bytes, in a tensor). Where it is unknown, whatever has bytes is taken.
        is_unnamed: whether MLflow's model has columns without names: it is given the caller's.
        decoupled: whether a request may have any number of answers; None where that is unknown.
        ends_streams: whether another request can end one of these before its time.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    parameters: tuple[str, ...] = ()
    json_inputs: frozenset[str] = frozenset()
    json_lists: frozenset[str] = frozenset()
    json_outputs: frozenset[str] = frozenset()
    columns: tuple[str, ...] = ()
    bytes_types: Mapping[str, str] = field(default_factory=dict, hash=False)
    is_unnamed: bool = False
    decoupled: bool | None = False
    ends_streams: bool = False

    # Kept per schema: predict looks names up on a path whose budget is microseconds.
    @cached_property
    def inputs_by_name(self) -> Mapping[str, TensorSpec]:
        """The inputs by their names."""
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def required(self) -> frozenset[str]:
        """Names of the inputs that every request must have."""
        return frozenset(spec.name for spec in self.inputs if not spec.optional)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else self.name
