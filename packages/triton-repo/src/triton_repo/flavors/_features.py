"""A table as one tensor: what backends take that know no columns.

MLflow's model takes columns by their names, in any order; the tensor has them by position. Their
names go into config.pbtxt, so that this project's client still puts each where it belongs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton_repo.errors import ArtifactError

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.signature import Column

__all__ = ["COLUMNS", "Features", "features_of", "width_of"]

#: `parameters` of config.pbtxt: a JSON list, the names of the columns of the only input.
COLUMNS = "mlflow_columns"
_NUMBERS = ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "FP16", "FP32", "FP64")
#: Of these, those with integers that FP32 has not.
_LARGE_INTEGERS = ("INT32", "INT64")


@dataclass(frozen=True)
class Features:
    """What one row has.

    Attributes:
        count: how many numbers.
        datatypes: of each, or one for all of them.
        names: of all of them, or none.
    """

    count: int
    datatypes: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def can_be_fp32(self) -> bool:
        """Whether everything that MLflow's model takes can be sent as FP32.

        Where config.pbtxt names the columns, this project's client rounds integers that FP32 has
        not, as it does fractions; elsewhere it refuses them.
        """
        return bool(self.names) or not any(each in _LARGE_INTEGERS for each in self.datatypes)

    @property
    def parameters(self) -> dict[str, str]:
        """For config.pbtxt."""
        return {COLUMNS: json.dumps(self.names)} if self.names else {}


def features_of(artifact: ModelArtifact) -> Features:
    """The inputs of a model that takes a table of numbers.

    Raises:
        ArtifactError: its signature says of none, or of something else.
    """
    columns = artifact.signature_columns("inputs")
    if not columns:
        raise ArtifactError(
            "the model was logged without a signature, which says how many columns it takes; "
            "mlflow.models.set_signature adds one"
        )
    if len(columns) == 1 and columns[0].is_tensor:
        spec = columns[0].spec if _is_number(columns[0]) else None
        rank = 2
        if spec and len(spec.shape) == rank and spec.shape[0] == -1 and spec.shape[1] > 0:
            return Features(spec.shape[1], (spec.datatype,))
        raise ArtifactError(f"the model takes {columns[0].type}, and no table of numbers")
    for each in columns:
        if not _is_number(each) or each.spec is None or each.spec.optional or each.is_tensor:
            raise ArtifactError(
                f"column {each.name!r} is {each.type}{' or missing' if _may_lack(each) else ''}, "
                "and a table of numbers is needed"
            )
        if each.spec.shape != (-1, 1):
            raise ArtifactError(f"column {each.name!r} is {each.type}, more than one number a row")
    names = tuple(each.name for each in columns)
    datatypes = tuple(each.spec.datatype for each in columns if each.spec is not None)
    are_known = all(names) and len(set(names)) == len(names)
    return Features(len(columns), datatypes, names if are_known else ())


def width_of(artifact: ModelArtifact) -> int:
    """How many numbers the model answers for a row; 0 where its signature does not say."""
    columns = artifact.signature_columns("outputs")
    if not columns or not all(map(_is_number, columns)):
        return 0
    if len(columns) > 1:
        return (
            len(columns) if all(each.spec and each.spec.shape == (-1, 1) for each in columns) else 0
        )
    shape = columns[0].spec.shape if columns[0].spec is not None else ()
    if shape == (-1,):
        return 1
    rank = 2
    return max(shape[1], 0) if len(shape) == rank and shape[0] == -1 else 0


def _is_number(column: Column) -> bool:
    return column.spec is not None and column.spec.datatype in _NUMBERS and not column.is_json


def _may_lack(column: Column) -> bool:
    return column.spec is not None and column.spec.optional
