# ruff: noqa: INP001 - no part of the package: the worker beside it imports it
"""From Triton's arrays to what `predict` takes, and from what it answers to Triton's arrays.

Rows are looked at all together, by numpy and pandas; only text and JSON are made one by one.

JSON has no NaN and no infinity. They are strings in it, with a letter written as an escape, which
no encoder does: who knows of it tells them from text, for all others they are `"NaN"`,
`"Infinity"` and `"-Infinity"`. The client has the same, in `mlflow_triton_plugin.predict._json`.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import numbers
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

__all__ = ["Given", "Wanted"]

#: The parameter of a request that holds MLflow's `params`, as JSON.
_PARAMS = "mlflow_params"
#: The one that holds the names of the caller's columns, where the signature has none; a JSON list.
_NAMES = "mlflow_names"

#: What Python writes for the numbers that JSON has not, and what we do.
_SPELLINGS = {
    "NaN": r'"\u004eaN"',
    "Infinity": r'"\u0049nfinity"',
    "-Infinity": r'"-\u0049nfinity"',
}
_NUMBERS = {spelling: python for python, spelling in _SPELLINGS.items()}
#: All integers up to here have a float64 of their own.
_EXACT = 2**53
#: numpy's types by the words of config.pbtxt, where they are not numpy's own in upper case.
_TYPES: dict[str, Any] = {
    "TYPE_STRING": np.object_,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
}
_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')

# -- what is given ------------------------------------------------------------------------------


class Given:
    """What a request gives, as the model takes it: a frame, a list, an array, a dict of arrays."""

    def __init__(
        self, names: list[str], signature: ModelSignature | None, *, from_hints: bool
    ) -> None:
        schema = signature.inputs if signature is not None else None
        self._are_tensors = schema is None or schema.is_tensor_spec()
        self._have_names = len(names) > 1 if schema is None else schema.has_input_names()
        self._types: dict[str, Any] = {}
        self._ranks: dict[str, int] = {}
        if schema is not None:
            self._types = dict(zip(names, schema.input_types(), strict=True))
        if schema is not None and self._are_tensors:
            ranks = (len(each.shape) for each in schema.inputs)
            self._ranks = dict(zip(names, ranks, strict=True))
        self._params = {each.name: each for each in getattr(signature, "params", None) or ()}
        self._is_list = from_hints and not self._have_names

    def data(self, arrays: Arrays, parameters: str = "") -> object:
        """The first argument of `predict`: a request's arrays, and names in its parameters."""
        if self._are_tensors:
            shaped = {name: self._tensor(name, array) for name, array in arrays.items()}
            return shaped if self._have_names else next(iter(shaped.values()))
        columns = {
            name: _column(array, *_unnested(self._types[name])) for name, array in arrays.items()
        }
        if self._is_list:
            return next(iter(columns.values())).tolist()
        import pandas as pd  # noqa: PLC0415 - models that take arrays may do without

        frame = pd.DataFrame({name: _cells(each) for name, each in columns.items()}, copy=False)
        return frame if self._have_names else frame.set_axis(_labels(parameters, frame), axis=1)

    def params(self, text: str) -> dict[str, Any] | None:
        """The second: what a request's parameters say.

        Ours come as JSON under one name; those of other clients under their own, where they are
        what the model takes: gateways add some that are not.
        """
        given = json.loads(text) if text else {}
        ours = _from_json(given.pop(_PARAMS, "{}"))
        known = (
            (self._params[name], value) for name, value in given.items() if name in self._params
        )
        return {**{spec.name: _param(spec, value) for spec, value in known}, **ours} or None

    def _tensor(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        dtype = self._types.get(name)
        if array.dtype == object and dtype is not None and dtype.kind != "S":
            texts = [each.decode() for each in array.reshape(-1)]
            kind = dtype if dtype.kind == "U" else object
            array = np.array(texts, dtype=kind).reshape(array.shape)
        # a row that is one value is [1] to Triton
        return array.reshape(-1) if self._ranks.get(name) == 1 else array


def _labels(parameters: str, frame: Any) -> Sequence[object]:
    """The names of columns that the signature does not name: the caller's, else their positions."""
    given = json.loads(parameters).get(_NAMES) if parameters else None
    labels = json.loads(given) if isinstance(given, str) else []
    width = len(frame.columns)
    return labels if isinstance(labels, list) and len(labels) == width else range(width)


def _param(spec: Any, value: object) -> object:
    levels, kind = _unnested(spec.dtype)
    if isinstance(value, str) and (spec.shape is not None or levels or kind == "json"):
        return json.loads(value)  # the protocol has no lists
    return value


def _unnested(kind: Any) -> tuple[int, str]:
    """How many arrays are around the values of an MLflow type, and what the values are."""
    levels = 0
    while type(kind).__name__ == "Array":
        kind, levels = kind.dtype, levels + 1
    leaf = kind.name if type(kind).__name__ == "DataType" else "json"
    return (0, leaf) if leaf == "json" else (levels, leaf)


def _column(array: NDArray[Any], levels: int, leaf: str) -> NDArray[Any]:
    """The values of one column: [rows], or [rows, …] where a row has arrays."""
    flat = array.reshape(-1)
    if leaf == "string":
        flat = np.array([each.decode() for each in flat], dtype=object)
    elif leaf == "datetime":
        import pandas as pd  # noqa: PLC0415 - as above

        dates = pd.to_datetime([each.decode() for each in flat], format="ISO8601")
        flat = dates.to_numpy() if dates.tz is None else np.asarray(dates, dtype=object)
    elif leaf == "json":
        flat = _objects([_from_json(each.decode()) for each in flat])
    return flat.reshape(array.shape) if levels else flat


def _cells(values: NDArray[Any]) -> NDArray[Any]:
    """A frame's column: one array a cell where rows have more than one value."""
    return values if values.ndim == 1 else _objects(list(values))


def _objects(values: Sequence[object]) -> NDArray[Any]:
    """An array of these very objects: numpy would look into them."""
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def _from_json(text: str) -> Any:
    if "\\u004" in text:
        text = _STRING_OR_NUMBER.sub(lambda found: _NUMBERS.get(found[0], found[0]), text)
    return json.loads(text)


# -- what is answered ---------------------------------------------------------------------------


class Wanted:
    """What a prediction is made into: arrays of the outputs' types and shapes.

    Attributes:
        names: of the outputs.
    """

    def __init__(
        self,
        outputs: list[dict[str, Any]],
        signature: ModelSignature | None,
        *,
        batched: bool,
        as_json: Sequence[str] = (),
    ) -> None:
        self.names: list[str] = [each["name"] for each in outputs]
        self._types = [_numpy_type(each["data_type"]) for each in outputs]
        self._dims = [[int(dim) for dim in each["dims"]] for each in outputs]
        self._batched = batched
        schema = signature.outputs if signature is not None else None
        kinds = schema.input_types() if schema is not None else []
        known = schema.input_names() if schema is not None else []
        if len(kinds) == len(outputs):
            self._are_json = [
                not isinstance(kind, np.dtype) and _unnested(kind)[1] == "json" for kind in kinds
            ]
        else:  # config.pbtxt has others than the signature, or that has none
            self._are_json = [name in as_json or not kinds for name in self.names]
        # what a BYTES output may hold; anything where config.pbtxt has others than the signature
        are_known = len(kinds) == len(outputs)
        self._kinds = [_kind_of(kind) for kind in kinds] if are_known else [""] * len(outputs)
        # where the output's name is not the model's own, a key that is called so is but a key
        self._is_whole = self.names == list(as_json) and self.names[0] not in known

    def arrays(self, prediction: Any, *, is_piece: bool = False) -> list[NDArray[Any]]:
        """One array an output.

        Args:
            prediction: what `predict` answers, or one piece of what `predict_stream` gives.
            is_piece: whether it is one row where it can be; otherwise it is rows where it can be.

        Raises:
            ValueError: the prediction is not what the signature says.
        """
        if prediction is None and not all(self._are_json):
            raise ValueError("the model answers nothing (None)")
        if hasattr(prediction, "toarray"):  # scipy's sparse matrices
            prediction = prediction.toarray()
        if self._is_whole:
            values: list[Any] = [[_records(prediction)] if is_piece else _records(prediction)]
        else:
            values = self._values(prediction)
        return [self._array(place, value, is_piece) for place, value in enumerate(values)]

    def are_rows(self, prediction: Any) -> bool:
        """Whether a prediction is a row for each that was given, as far as its form says.

        scikit-learn answers an array for each target, and as many as there are rows by chance.
        """
        if len(self.names) > 1 or not isinstance(prediction, (list, tuple, Mapping)):
            return True
        if isinstance(prediction, Mapping):
            return not self._is_whole
        return not any(getattr(each, "ndim", 0) for each in prediction)

    def _values(self, prediction: Any) -> list[Any]:
        """What of a prediction belongs to which output.

        Raises:
            ValueError: that cannot be told.
        """
        names = self.names
        if _is_frame(prediction):
            return self._of_frame(prediction)
        if isinstance(prediction, Mapping) and (len(names) > 1 or names[0] in prediction):
            return [_member_of(prediction, name) for name in names]
        if len(names) == 1:
            return [prediction]
        if isinstance(prediction, list) and prediction and isinstance(prediction[0], Mapping):
            return [[_member_of(row, name) for row in prediction] for name in names]
        if isinstance(prediction, (list, tuple)) and len(prediction) == len(names):
            if isinstance(prediction, list) and _may_be_rows(prediction):
                raise ValueError(
                    f"the model answers a list of {len(names)} lists of {len(names)} values, which "
                    f"may be rows or the outputs {', '.join(names)}; answer a DataFrame, or a dict "
                    "of the outputs"
                )
            return list(prediction)
        matrix = _array_of(prediction, ", ".join(names))
        if matrix.shape[1:2] != (len(names),):
            raise ValueError(
                f"the model answers {type(prediction).__name__} of shape {list(matrix.shape)}, and "
                f"its signature has the outputs {', '.join(names)}"
            )
        return [matrix[:, place] for place in range(len(names))]

    def _of_frame(self, frame: Any) -> list[Any]:
        places = {str(column): place for place, column in enumerate(frame.columns)}
        if places.keys() >= set(self.names):
            return [frame.iloc[:, places[name]] for name in self.names]
        if len(self.names) == 1:
            is_column = len(places) == 1 and not self._are_json[0]
            return [frame.iloc[:, 0] if is_column else frame]
        if len(places) == len(self.names) and not places.keys() & set(self.names):
            return [frame.iloc[:, place] for place in range(len(places))]
        raise ValueError(
            f"the model answers the columns {', '.join(places)}, and its signature has "
            f"{', '.join(self.names)}"
        )

    def _array(self, place: int, value: Any, is_piece: bool) -> NDArray[Any]:  # noqa: FBT001
        dtype, dims, name = self._types[place], self._dims[place], self.names[place]
        if dtype is not np.object_:
            array = _numbers(value, dtype, name)
        else:
            is_json = self._are_json[place]
            array = _json_texts(value, name) if is_json else _texts(value, name, self._kinds[place])
        if not self._batched:
            return array if array.ndim == len(dims) else array.reshape(dims)
        if array.ndim == len(dims) + 1:
            return array
        if _is_row(array.shape, dims) and (is_piece or -1 not in dims):
            return array[np.newaxis]
        return array.reshape(len(array) if array.ndim else 1, *dims)


def _numpy_type(name: str) -> Any:
    return _TYPES.get(name) or np.dtype(name[len("TYPE_") :].lower()).type


def _is_row(shape: Sequence[int], dims: Sequence[int]) -> bool:
    """Whether a tensor of this shape is one row of the output."""
    return len(shape) == len(dims) and all(
        dim in (-1, size) for size, dim in zip(shape, dims, strict=True)
    )


def _may_be_rows(values: Sequence[Any]) -> bool:
    """Whether each of the values is as long as there are values; tensors of outputs are no rows."""
    lengths = {
        len(each) if _is_list(each) or hasattr(each, "iloc") else None
        for each in values
        if getattr(each, "ndim", 1) == 1
    }
    return lengths == {len(values)}


def _is_frame(prediction: Any) -> bool:
    return hasattr(prediction, "columns")


def _records(prediction: Any) -> Any:
    return prediction.to_dict("records") if _is_frame(prediction) else prediction


def _member_of(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise ValueError(
            f"the model's answer has no {name}, and its signature has; logged without outputs in "
            "its signature, it answers JSON, whatever the keys"
        )
    return values[name]


def _array_of(value: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as exc:
        raise ValueError(
            f"{name} of the model's answer is ragged: its rows have different lengths, which a "
            "tensor has not"
        ) from exc


def _survives(array: NDArray[Any], dtype: type[np.generic]) -> bool:
    """Whether numbers are the same in another type, but for the rounding of fractions."""
    if array.dtype.kind not in "biuf":
        return False
    wanted = np.dtype(dtype)
    is_whole = array.dtype.kind != "f" and wanted.kind != "f"
    if array.dtype.kind in ("b", wanted.kind) and (
        not is_whole or np.can_cast(array.dtype, wanted)
    ):
        return True
    with np.errstate(all="ignore"):  # what does not fit is looked for
        converted = array.astype(wanted)
        back = converted.astype(array.dtype)
    if not bool(((converted == array) & (back == array)).all()):
        return False
    # -1 and 2**64 - 1 are one number to a comparison that wraps around
    return bool(((converted < 0) == (array < 0)).all()) if wanted.kind in "iu" else True


def _numbers(value: Any, dtype: type[np.generic], name: str) -> NDArray[Any]:
    """Numbers of the output's type.

    Raises:
        ValueError: they are none, rows have different lengths, or a value would be lost.
    """
    array = _array_of(value, name)
    if array.dtype == object and array.ndim:  # cells that hold arrays, or missing values
        array = _stacked(array, name)
    had_one_type = isinstance(getattr(value, "dtype", None), np.dtype)
    if array.dtype == object or (not had_one_type and _may_be_rounded(array)):
        cells = _cells_of(value, name)
        as_numbers = [_number_of(each, np.dtype(dtype), name) for each in cells.reshape(-1)]
        return np.array(as_numbers, dtype=dtype).reshape(cells.shape)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if not _survives(array, dtype):
        raise ValueError(
            f"{name} of the model's answer is {array.dtype}, and its signature has "
            f"{np.dtype(dtype)}; log the model with the signature that infer_signature gives"
        )
    with np.errstate(over="ignore"):  # told below
        converted = np.ascontiguousarray(array, dtype=dtype)
    if converted.dtype.kind == "f" and np.isinf(converted).any():
        too_large = np.isinf(converted) & np.isfinite(array)
        if too_large.any():
            raise _does_not_fit(array[too_large].flat[0], np.dtype(dtype), name)
    return converted


def _stacked(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Cells that hold lists or arrays of numbers, as one array; others as they are."""
    if not all(_is_list(each) for each in array):
        return array
    rows = [_array_of(each, name) for each in array]
    if any(row.dtype.kind not in "biuf" for row in rows):
        return array
    stacked = _array_of(rows, name)
    return array if _may_be_rounded(stacked) else stacked


def _may_be_rounded(array: NDArray[Any]) -> bool:
    """Whether an array may hold integers that numpy rounded, as it does beside floats."""
    return array.dtype.kind == "f" and bool((np.abs(array) >= _EXACT).any())


def _number_of(value: Any, wanted: np.dtype[Any], name: str) -> Any:
    """One number of an output's type.

    Raises:
        ValueError: it is none, or has no such form.
    """
    if _is_missing(value):
        if wanted.kind == "f":
            return np.nan
        raise ValueError(
            f"{name} of the model's answer has a missing value, which {wanted} cannot be"
        )
    if isinstance(value, (bool, np.bool_)):
        return value
    if not isinstance(value, (numbers.Real, Decimal)):
        raise ValueError(  # noqa: TRY004 - the model's answer, not a caller's argument
            f"{name} of the model's answer holds {type(value).__name__}, and its signature has "
            f"{wanted}"
        )
    number: Any = value
    if not (_is_float(number, wanted) if wanted.kind == "f" else _is_integer(number, wanted)):
        raise _does_not_fit(number, wanted, name)
    return number if wanted.kind == "f" else int(number)


def _is_finite(value: Any) -> bool:
    return bool(value == value and abs(value) != float("inf"))  # noqa: PLR0124 - NaN differs


def _is_integer(value: Any, wanted: np.dtype[Any]) -> bool:
    """Whether a number is an integer, or a boolean, of the wanted type."""
    if not _is_finite(value) or value != int(value):
        return False
    if wanted.kind == "b":
        return int(value) in (0, 1)
    return bool(np.iinfo(wanted).min <= int(value) <= np.iinfo(wanted).max)


def _is_float(value: Any, wanted: np.dtype[Any]) -> bool:
    """Whether a number is a float of the wanted type; fractions are rounded."""
    if not _is_finite(value):
        return True
    if isinstance(value, (numbers.Integral, Decimal)) and value == int(value):
        is_small = abs(int(value)) <= int(np.finfo(wanted).max)
        return is_small and int(wanted.type(int(value))) == int(value)
    with np.errstate(over="ignore"):
        return bool(np.isfinite(wanted.type(float(value))))


def _does_not_fit(value: Any, wanted: np.dtype[Any], name: str) -> ValueError:
    return ValueError(
        f"{name} of the model's answer has {value}, which is no {wanted}, as its signature says; "
        "log the model with the signature that infer_signature gives"
    )


def _kind_of(kind: Any) -> str:
    """What the values of an output are: `string`, `binary`, `datetime`, or empty for any."""
    if isinstance(kind, np.dtype):
        return {"S": "binary", "U": "string"}.get(kind.kind, "")
    return _unnested(kind)[1]


def _texts(value: Any, name: str, kind: str) -> NDArray[Any]:
    """Text as UTF-8, dates as ISO 8601, bytes as they are.

    Raises:
        ValueError: a value is of another type than the output; nothing is made text of.
    """
    dates = getattr(value, "dtype", None)
    is_plain = isinstance(dates, np.dtype) and dates.kind == "M"  # pandas' own has a time zone
    if is_plain and kind in ("datetime", ""):
        array = np.asarray(value)
        if np.isnat(array).any():
            raise _missing(name)
        value = np.datetime_as_string(array)
    array = _cells_of(value, name)
    texts = [_bytes_of(each, name, kind) for each in array.reshape(-1)]
    return _objects(texts).reshape(array.shape)


def _cells_of(value: Any, name: str) -> NDArray[Any]:
    """The values as an array of objects: numpy makes text of numbers beside text, and drops NULs.

    Raises:
        ValueError: rows have different lengths.
    """
    if isinstance(value, (str, bytes)):
        return _objects([value])
    if hasattr(value, "to_numpy"):  # pandas
        value = value.to_numpy(dtype=object)
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value.astype(object)
    if not _is_list(value):
        cell = np.empty((), dtype=object)
        cell[()] = value
        return cell
    rows = list(value)
    nested = [_is_list(row) for row in rows]
    if not any(nested):
        return _objects(rows)
    if not all(nested):
        raise _ragged(name)
    cells = [_cells_of(row, name) for row in rows]
    if len({each.shape for each in cells}) > 1:
        raise _ragged(name)
    return np.stack(cells)


def _is_missing(value: Any) -> bool:
    """Whether a value is None, or what pandas has for a value that is missing; NaN is a number."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _missing(name: str) -> ValueError:
    return ValueError(f"{name} of the model's answer has a missing value, where text belongs")


def _ragged(name: str) -> ValueError:
    return ValueError(
        f"{name} of the model's answer is ragged: its rows have different lengths, which a tensor "
        "cannot hold; answer rows of one length, or log the model without this output in its "
        "signature, so that it answers JSON"
    )


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _bytes_of(value: Any, name: str, kind: str) -> bytes:
    """One value of a BYTES output.

    Raises:
        ValueError: it is of another type.
    """
    is_nan = isinstance(value, (float, np.floating)) and bool(np.isnan(value))
    is_nat = isinstance(value, np.datetime64) and bool(np.isnat(value))
    if is_nan or is_nat or _is_missing(value):
        raise _missing(name)
    if isinstance(value, str) and kind in ("string", "datetime", ""):
        return value.encode()
    if isinstance(value, (bytes, bytearray)) and kind in ("binary", ""):
        return bytes(value)
    if isinstance(value, np.datetime64) and kind in ("datetime", ""):
        return str(np.datetime_as_string(value)).encode()
    if isinstance(value, dt.date) and kind in ("datetime", ""):
        return value.isoformat().encode()
    raise ValueError(
        f"{name} of the model's answer holds {type(value).__name__}, and its signature has "
        f"{kind or 'text or bytes'}; answer that, or log the model without this output in its "
        "signature, so that it answers JSON"
    )


def _json_texts(value: Any, name: str) -> NDArray[Any]:
    """One JSON text a row.

    Raises:
        ValueError: a value has no form in JSON.
    """
    try:
        rows = _records(value)
        rows = _plain(rows) if hasattr(rows, "tolist") else rows
        rows = rows if isinstance(rows, (list, tuple)) else [rows]
        return _objects([_json_of(each).encode() for each in rows])
    except TypeError as exc:
        raise ValueError(f"{name} of the model's answer has no form in JSON: {exc}") from exc


def _json_of(value: Any) -> str:
    text = json.dumps(value, default=_plain)
    if "NaN" in text or "Infinity" in text:
        text = _STRING_OR_NUMBER.sub(lambda found: _SPELLINGS.get(found[0], found[0]), text)
    return text


def _plain(value: Any) -> object:
    """What JSON has no form for, in one that it has: bytes as base64, as MLflow's server does.

    Raises:
        TypeError: there is none.
    """
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if _is_missing(value):
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "m" or isinstance(value, dt.timedelta):
        raise TypeError("a duration is not one of its types")
    if kind == "M" and isinstance(value, (np.ndarray, np.generic)):  # else they are nanoseconds
        texts = np.asarray(np.datetime_as_string(value)).astype(object)
        texts[np.isnat(value)] = None
        return texts.tolist()
    if _is_frame(value) and hasattr(value, "iloc"):
        return value.to_dict("records")
    # pandas and numpy, pydantic, dates; a Series as a dict has but one row of each label
    for method in ("tolist", "model_dump", "to_dict", "isoformat"):
        if hasattr(value, method):
            plain = getattr(value, method)()
            if type(plain) is not type(value):  # numpy's own that Python has no type for
                return plain
    raise TypeError(f"{type(value).__name__} is not one of its types")
