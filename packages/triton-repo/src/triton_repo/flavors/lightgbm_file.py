"""What a LightGBM file says: its head, what of it FIL does not read, and how fine its splits are.

LightGBM compares in 64 bits, FIL is given 32. Rounding keeps the order of numbers: a value gets to
the other side of a threshold only where it lies within half a step of FP32 of it. So thresholds
that are many steps apart are safe, however large values between or beyond them are.

Source: `GBDT::SaveModelToString` and `Tree::ToString` of LightGBM.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from triton_repo.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["LightgbmFile"]

#: The head ends with the first tree; names of columns can make it long.
_HEAD_BYTES, _TAIL_BYTES = 16 * 1024 * 1024, 64 * 1024
_SPLIT_FEATURE, _THRESHOLD = b"split_feature=", b"threshold="
#: Many times that of a tree with as many leaves as LightGBM allows.
_LONGEST_LINE = 16 * 1024 * 1024
#: Thresholds are looked at together; the same ones come up in many trees.
_TOGETHER = 1_000_000
#: LightGBM's infinity: nothing is beyond it, in 32 bits either.
_INFINITE = 1e300
#: FP32 holds integers up to this one.
_EXACT = 2.0**24
#: How many steps of FP32 thresholds have to be apart: ordinary data has ten times that, and what
#: lies between two of them is at most once in 2,000 rounded to another side.
_STEPS = 1024
#: The same for columns whose values FP32 holds: their thresholds may be rounded.
_STEPS_BETWEEN_EXACT = 2
_RANGE = re.compile(r"\[([^:\]]+):([^\]]+)\]")


@dataclass(frozen=True)
class LightgbmFile:
    """A model file.

    Attributes:
        path: of it.
        fields: of its head.
        tail: the parameters it was trained with, and what pandas knew.
    """

    path: Path
    fields: Mapping[str, str]
    tail: bytes

    @classmethod
    def read(cls, path: Path) -> LightgbmFile:
        """Read the head and the tail.

        Raises:
            ArtifactError: it is none, or has what Treelite, which FIL reads models with, has no
                form for.
        """
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).partition(b"\nTree=")[0]
            file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
            tail = file.read()
        if not head.startswith(b"tree\n"):
            raise ArtifactError(
                f"{path.name} is a pickle, and Triton's FIL backend reads LightGBM's own text; log "
                "the Booster (mlflow.lightgbm.log_model(model.booster_)), or deploy it with "
                "--flavor python_function"
            )
        lines = head.decode("utf-8", "replace").split("\n")
        found = cls(path, dict(line.partition("=")[::2] for line in lines), tail)
        found._refuse_what_fil_does_not_read()
        return found

    def _refuse_what_fil_does_not_read(self) -> None:
        categories = self.tail.rpartition(b"\npandas_categorical:")[2].strip()
        if b"\npandas_categorical:" in self.tail and categories not in (b"[]", b"null"):
            raise ArtifactError(
                f"{self.path.name} was trained on columns of pandas' categories, which Triton's "
                "FIL backend does not know; deploy it with --flavor python_function"
            )
        if b"\n[linear_tree: 1]" in self.tail or self.fields.get("linear_tree") == "1":
            raise ArtifactError(
                f"{self.path.name} has linear trees, which Triton's FIL backend does not read; "
                "deploy it with --flavor python_function"
            )

    def fits_fp32(self, datatypes: Sequence[str]) -> bool:
        """Whether values in 32 bits are decided on as in 64; the file is read to its end.

        Args:
            datatypes: of each of its columns, as Triton calls them, or one for all.
        """
        try:
            splits = self._splits()
            is_fp32 = np.isin(_of_each(splits, datatypes), ("FP16", "FP32"))
            return (
                bool(np.all(is_fp32 | (np.abs(splits[:, 1]) <= _EXACT)))
                and all(category <= _EXACT for category in self._categories())
                and _are_apart(np.concatenate([splits, self._ends(splits)]), datatypes)
            )
        except (OSError, ValueError, IndexError):  # of another form, which Treelite judges
            return False

    def _splits(self) -> NDArray[Any]:
        """Columns and thresholds, as rows `[column, threshold]`, each once."""
        found, new, count = np.empty((0, 2)), [], 0
        for split in self._splits_of_trees():
            new.append(split)
            count += len(split)
            if count > _TOGETHER:
                found, new, count = np.unique(np.concatenate([found, *new]), axis=0), [], 0
        found = np.unique(np.concatenate([found, *new]), axis=0)
        return found[np.abs(found[:, 1]) < _INFINITE]

    def _splits_of_trees(self) -> Iterator[NDArray[Any]]:
        columns: list[bytes] = []
        with self.path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if line.startswith(_SPLIT_FEATURE):
                    columns = line.removeprefix(_SPLIT_FEATURE).split()
                elif line.startswith(_THRESHOLD):
                    thresholds = line.removeprefix(_THRESHOLD).split()
                    yield np.array([columns, thresholds]).astype(np.float64).T

    def _ends(self, splits: NDArray[Any]) -> NDArray[Any]:
        """The least and the largest value in training of the columns that are split, alike."""
        ranges = [_RANGE.fullmatch(each) for each in self._infos]
        ends = [(at, float(end)) for at, seen in enumerate(ranges) if seen for end in seen.groups()]
        rows = np.array(ends).reshape(-1, 2)
        return rows[np.isin(rows[:, 0], splits[:, 0])]

    def _categories(self) -> Iterator[float]:
        """The values of columns that are categories."""
        for info in self._infos:
            if ":" in info and not info.startswith("["):
                yield from map(float, info.split(":"))

    @property
    def _infos(self) -> list[str]:
        return self.fields.get("feature_infos", "").split()


def _are_apart(points: NDArray[Any], datatypes: Sequence[str]) -> bool:
    """Whether the points of each column are enough steps of FP32 apart."""
    points = np.unique(points, axis=0)
    column, value = points.T
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.spacing(np.abs(value).astype(np.float32)).astype(np.float64)
    needed = np.where(_of_each(points, datatypes) == "FP64", _STEPS, _STEPS_BETWEEN_EXACT)
    is_far = np.diff(value) >= (needed * np.maximum(steps, np.roll(steps, 1)))[1:]
    return bool(np.all(is_far | (np.diff(column) > 0)))


def _of_each(points: NDArray[Any], datatypes: Sequence[str]) -> NDArray[Any]:
    """The datatype of each point's column."""
    column = points[:, 0].astype(np.int64)
    return np.array(datatypes)[column if len(datatypes) > 1 else 0 * column]
