"""One tensor's values, however they are held, to one numpy array that has lost nothing.

`numpy.array` on its own makes floats of integers beside floats, which are then rounded as floats
are; text of numbers beside text; and unreadable complaints of ragged lists.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from mlflow_triton_plugin.predict._schema import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["array_of", "is_frame", "is_series"]

#: Up to here every integer is exact in every float type that a model takes; BF16 has 8 bits.
_LAST_EXACT = 2.0**8
_NESTED = (list, tuple, np.ndarray)
_INTEGERS, _FLOATS = (int, np.integer), (float, bool, np.floating, np.bool_)


def array_of(value: object, name: str) -> NDArray[Any]:
    """The values as an array: of their own dtype, or of objects where no dtype holds them all.

    Args:
        value: array of any layout, nested lists, scalar, pandas frame or series, or any object with
            `__array__`, such as a torch tensor.
        name: the input they are for.

    Raises:
        InvalidInputError: ragged lists, masked values, or an object that gives no array.
    """
    if type(value) is np.ndarray:
        return _renested(value, name) if value.dtype.kind == "O" else value
    if isinstance(value, (list, tuple, range)):
        return _from_nested(value, name)
    if is_frame(value):
        return _from_frame(value, name)
    if isinstance(value, np.ma.MaskedArray):
        _refuse_masked(value, name)
    if isinstance(value, (str, bytes)):  # numpy would drop trailing NULs
        return _scalar(value)
    return _from_object(value, name)


def is_frame(value: object) -> TypeGuard[pd.DataFrame]:
    """Whether it is a pandas DataFrame, without importing pandas: nobody has one who has not."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def is_series(value: object) -> TypeGuard[pd.Series[Any]]:
    """Whether it is a pandas Series, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series)


def _scalar(value: object) -> NDArray[Any]:
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def _from_object(value: object, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as exc:  # anything: it is the foreign object's own __array__ that raised
        raise InvalidInputError(
            f"input {name}: a {type(value).__name__} that gives no numpy array ({exc}); convert it "
            "with numpy.asarray first",
            input=name,
        ) from exc
    return _renested(array, name) if array.dtype.kind == "O" and array.ndim else array


def _from_frame(frame: pd.DataFrame, name: str) -> NDArray[Any]:
    array = frame.to_numpy()
    dtypes = set(frame.dtypes)
    mixed = len(dtypes) > 1 and any(dtype.kind in "iu" for dtype in dtypes)
    if mixed and _may_hide_integers(array):
        array = frame.to_numpy(dtype=object)
    return array if array.dtype.kind != "O" else _renested(array, name)


def _may_hide_integers(array: NDArray[Any]) -> bool:
    """Whether floats have whole numbers so large that some float type would round integers."""
    if array.dtype.kind != "f":
        return False
    large = array[np.isfinite(array) & (np.abs(array) > _LAST_EXACT)]
    return bool((large == np.trunc(large)).any())


def _has_integers(rows: Iterable[Any]) -> bool:
    """Whether nested lists have an integer anywhere; each level is looked at by its types."""
    level = list(rows)
    while level:
        types = set(map(type, level))
        if any(issubclass(each, _INTEGERS) and each is not bool for each in types):
            return True
        nested = [each for each in types if not issubclass(each, _FLOATS)]
        if not nested:
            return False
        deeper: list[Any] = []
        for each in level:
            if isinstance(each, (list, tuple, range)):
                deeper.extend(each)
            elif hasattr(each, "__array__") and np.asarray(each).dtype.kind in "iuO":
                return True
        level = deeper
    return False


def _from_nested(value: Iterable[Any], name: str) -> NDArray[Any]:
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError):
        _refuse_ragged(value, name)
        return _objects(value)
    # Numbers beside text became text, beside dates dates, beside floats floats: begin again.
    if array.dtype.kind in "USOMmc" or (_may_hide_integers(array) and _has_integers(value)):
        return _objects(value)
    return array


def _objects(value: object) -> NDArray[Any]:
    return np.array(value, dtype=object)


def _renested(array: NDArray[Any], name: str) -> NDArray[Any]:
    """An object array of lists (pandas cells, say) as the nested lists that it is."""
    if not array.ndim or not any(issubclass(t, _NESTED) for t in set(map(type, array.flat))):
        return array
    return _from_nested(array.tolist(), name)


def _refuse_masked(array: np.ma.MaskedArray[Any, Any], name: str) -> None:
    mask = np.ma.getmaskarray(array)
    if mask.any():
        position = [int(i) for i in np.argwhere(mask)[0]]
        raise InvalidInputError(
            f"input {name}: the value at {position} is masked, and a tensor has no mask; fill it "
            "with .filled(value) first",
            input=name,
        )


def _refuse_ragged(value: object, name: str) -> None:
    odd = _first_odd_row(value, (), [])
    if odd is None:
        return
    path, length, expected = odd
    raise InvalidInputError(
        f"input {name}: ragged: row {list(path)} has {_described(length)}, the rows before it have "
        f"{_described(expected)}; make all rows the same length",
        input=name,
    )


def _described(length: int | None) -> str:
    if length is None:
        return "a single value"
    return "1 value" if length == 1 else f"{length} values"


def _rows(value: object) -> list[Any] | None:
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else None
    return list(value) if isinstance(value, (list, tuple)) else None


def _first_odd_row(
    value: object, path: tuple[int, ...], lengths: list[int | None]
) -> tuple[tuple[int, ...], int | None, int | None] | None:
    """Where the nesting departs from its first rows: path, length there, length expected there.

    `lengths` collects, depth by depth, the length that the first row of that depth had.
    """
    rows = _rows(value)
    length = None if rows is None else len(rows)
    if len(path) == len(lengths):
        lengths.append(length)
    if length != lengths[len(path)]:
        return path, length, lengths[len(path)]
    for position, row in enumerate(rows or ()):
        odd = _first_odd_row(row, (*path, position), lengths)
        if odd is not None:
            return odd
    return None
