"""What an XGBoost file says of its boosting, before its trees.

XGBoost sorts the keys of what it writes: attributes and the numbers of trees come before the trees,
which are not read. Source: XGBoost's "Introduction to Model IO" and its `doc/model.schema`; of
UBJSON it writes sized arrays, and numbers in the order of the network.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from triton_repo.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Boosting", "is_of_xgboost", "read_boosting"]

#: Names of columns can make it long; nothing of real models comes near.
_HEAD_BYTES = 8 * 1024 * 1024
_LARGE_PART = "trees"
_MOST_LEVELS = 16
_NUMBERS = {
    b"i": ">i1",
    b"U": ">u1",
    b"I": ">i2",
    b"l": ">i4",
    b"L": ">i8",
    b"d": ">f4",
    b"D": ">f8",
}
_CONSTANTS: dict[bytes, Any] = {b"Z": None, b"T": True, b"F": False}
#: What a JSON text is made of, but for the inside of its strings.
_BRACKET_OR_STRING = re.compile(r'["{}\[\]]')


@dataclass(frozen=True)
class Boosting:
    """How a model was boosted.

    Attributes:
        has_trees: whether by trees (`gbtree`, `dart`); otherwise it is linear (`gblinear`).
        rounds: how many there are in the file.
        best: how many of them were best, counted from the first, where training stopped early.
    """

    has_trees: bool
    rounds: int = 0
    best: int | None = None

    @property
    def is_cut(self) -> bool:
        """Whether XGBoost's scikit-learn estimators leave out the last rounds when they predict."""
        return self.best is not None and self.best < self.rounds


def is_of_xgboost(model_class: str) -> bool:
    """Whether MLmodel's `model_class` is XGBoost's own; another one may answer anything."""
    return not model_class or model_class.startswith("xgboost.")


def read_boosting(path: Path) -> Boosting:
    """Read the head of a model file, `.ubj` or `.json`.

    Raises:
        ArtifactError: it is not what XGBoost writes.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        return _boosting((_of_json if path.suffix == ".json" else _of_ubjson)(head))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise ArtifactError(
            f"{path.name} is not what XGBoost writes ({type(exc).__name__}: {exc}); log the model "
            "again, or deploy it with --flavor python_function"
        ) from exc


def _boosting(document: dict[str, Any]) -> Boosting:
    learner = document["learner"]
    booster = learner["gradient_booster"]
    model = booster.get("gbtree", booster)["model"]  # dart has one inside
    if model.get("gbtree_model_param") is None:
        return Boosting(has_trees=False)
    best = learner.get("attributes", {}).get("best_iteration")
    return Boosting(
        has_trees=True, rounds=_rounds(model), best=None if best is None else int(best) + 1
    )


def _rounds(model: dict[str, Any]) -> int:
    """How many rounds there are: each has a tree of each class, or several in a random forest."""
    if "iteration_indptr" in model:
        return len(model["iteration_indptr"]) - 1
    of_a_class = list(model["tree_info"]).count(0)  # before XGBoost 1.7
    return int(of_a_class / int(model["gbtree_model_param"].get("num_parallel_tree", 1) or 1))


# -- JSON -----------------------------------------------------------------------------------------


def _of_json(head: bytes) -> dict[str, Any]:
    text = head.decode("utf-8", "replace")
    found: dict[str, Any] = json.loads(_closed(text))
    return found


def _closed(text: str) -> str:
    """The document without its trees and what comes after them; all of it where it has none."""
    at, closing = 0, ""
    decode = json.JSONDecoder().raw_decode
    while (found := _BRACKET_OR_STRING.search(text, at)) is not None:
        at = found.end()
        if found[0] == '"':
            said, at = decode(text, found.start())
            if said == _LARGE_PART and text[at : at + 8].lstrip().startswith(":"):
                return text[: found.start()].rstrip().removesuffix(",") + closing
        elif found[0] in "{[":
            closing = {"{": "}", "[": "]"}[found[0]] + closing
            _check_depth(len(closing))
        else:
            closing = closing[1:]
    return text


def _check_depth(levels: int) -> None:
    if levels > _MOST_LEVELS:
        raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")


# -- UBJSON ---------------------------------------------------------------------------------------


class _TreesReached(Exception):  # noqa: N818 - no error: all that is wanted has been read
    pass


def _of_ubjson(head: bytes) -> dict[str, Any]:
    reader = _UbjsonReader(head)
    if reader.take(1) != b"{":
        raise ValueError("it does not begin as UBJSON")
    document: dict[str, Any] = {}
    with suppress(_TreesReached):
        reader.fill(document, levels=1)
    return document


class _UbjsonReader:
    """Reads a document from its beginning.

    Args:
        data: of it.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        part = self._data[self._at : self._at + max(size, 0)]
        if len(part) != size:
            raise ValueError("it breaks off")
        self._at += size
        return part

    def fill(self, target: dict[str, Any], *, levels: int) -> None:
        """Read an object; what was read of it stays, where its trees are reached."""
        _check_depth(levels)
        while (marker := self.take(1)) != b"}":
            key = self._text(marker)
            if key == _LARGE_PART:
                raise _TreesReached
            marker = self.take(1)
            if marker == b"{":
                self.fill(target.setdefault(key, {}), levels=levels + 1)
            else:
                target[key] = self._value(marker, levels)

    def _value(self, marker: bytes, levels: int) -> Any:
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker == b"S":
            return self._text(self.take(1))
        if marker == b"[":
            return self._array(levels + 1)
        if marker == b"{":
            found: dict[str, Any] = {}
            self.fill(found, levels=levels + 1)
            return found
        return self._numbers(marker, 1)[0]

    def _array(self, levels: int) -> Any:
        _check_depth(levels)
        marker, kind = self.take(1), b""
        if marker == b"$":
            kind, marker = self.take(1), self.take(1)
        if marker != b"#":
            return self._until_closed(marker, levels)
        count = self._integer(self.take(1))
        if kind:
            return self._numbers(kind, count)
        return [self._value(self.take(1), levels) for _ in range(count)]

    def _until_closed(self, marker: bytes, levels: int) -> list[Any]:
        found = []
        while marker != b"]":
            found.append(self._value(marker, levels))
            marker = self.take(1)
        return found

    def _text(self, marker: bytes) -> str:
        return self.take(self._integer(marker)).decode("utf-8", "replace")

    def _integer(self, marker: bytes) -> int:
        return int(self._numbers(marker, 1)[0])

    def _numbers(self, marker: bytes, count: int) -> Any:
        layout = np.dtype(_NUMBERS[marker])
        return np.frombuffer(self.take(count * layout.itemsize), layout)
