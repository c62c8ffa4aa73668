"""Values to the model's type, where that loses nothing.

The rule, by what is sent (down) and what the model takes (across):

|                    | BOOL    | INT*, UINT*           | FP16, BF16, FP32, FP64      | BYTES     |
| ------------------ | ------- | --------------------- | --------------------------- | --------- |
| bool               | yes     | yes (0, 1)            | yes (0, 1)                  | refused   |
| int                | 0 and 1 | in range              | exactly representable       | refused   |
| float              | 0 and 1 | whole and in range    | rounded to the nearest,     | refused   |
|                    |         |                       | unless that makes infinity  |           |
| None, NaN, NA, NaT | refused | refused               | NaN                         | refused   |
| str                | refused | refused, never parsed | refused, never parsed       | see below |
| bytes              | refused | refused               | refused                     | see below |
| date, datetime     | refused | refused               | refused                     | see below |
| {"b64": "…"}       | refused | refused               | refused                     | as bytes  |

BYTES, by the type that MLflow's signature gives the input (`mlflow_types` in config.pbtxt):

|                    | unknown  | string  | binary  | datetime | bytes (a tensor) |
| ------------------ | -------- | ------- | ------- | -------- | ---------------- |
| str                | UTF-8    | UTF-8   | base64  | UTF-8    | UTF-8            |
| bytes              | as is    | refused | as is   | as is    | as is            |
| date, datetime     | ISO-8601 | refused | refused | ISO-8601 | refused          |

Text for a binary column is base64, as in MLflow's scoring protocol. A date for a string column is
refused: `pandas.read_json` makes one of text, and its spelling is lost. The model decodes the bytes
of a string column, where MLflow's own would be given bytes.

Rounding is normal for floats (Python's are float64, models take FP32) and never for integers: an
id of 2**24 + 1 sent to an FP32 input would silently become another id. None is NaN for floats
because `pandas.read_json` turns `null` into NaN and, inside lists, a bare `NaN` into None: the two
cannot be told apart any more.

A table whose columns config.pbtxt names is the exception: MLflow's model takes integers of any size
in it, and makes floats of them itself, or compares them with thresholds that this does not move.
"""

from __future__ import annotations

import base64
import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_triton_plugin.predict._schema import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from triton_repo.tensors import TensorSpec

__all__ = ["cast", "is_bytes_object", "shown"]

#: Bits of the significand, the hidden one included, and the largest finite value.
_FLOATS: dict[str, tuple[int, float]] = {
    "FP16": (11, float(np.finfo(np.float16).max)),
    "BF16": (8, float.fromhex("0x1.fep127")),
    "FP32": (24, float(np.finfo(np.float32).max)),
    "FP64": (53, float(np.finfo(np.float64).max)),
}
_LARGEST_ROUNDED = 2**127
_NUMBER_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float"}
_LONGEST_SHOWN = 60


def cast(
    array: NDArray[Any], spec: TensorSpec, *, rounds: bool = False, bytes_type: str = ""
) -> NDArray[Any]:
    """Give the values the input's type, in C order, without a copy where nothing changes.

    Args:
        array: numbers, text, dates, or an object array of such values.
        spec: the input they are for.
        rounds: whether integers are rounded as fractions are, where that is a float.
        bytes_type: what BYTES hold, see `ModelSchema`; empty where that is unknown.

    Returns:
        An array of `spec.dtype`; the same object when it is one already. BYTES arrays hold `bytes`;
        BF16 arrays are float32 holding values that BF16 has.

    Raises:
        InvalidInputError: a value would not survive; the first one is named with its position.
    """
    datatype = spec.datatype
    if array.dtype == spec.dtype and datatype not in ("BYTES", "BF16"):
        return array if array.flags.c_contiguous else array.copy(order="C")
    if datatype == "BYTES":
        return _to_bytes(array, spec, bytes_type)
    if array.dtype.name == "bfloat16":  # ml_dtypes; numpy itself knows it only as a void
        array = array.astype(np.float32)
    if rounds and datatype in _FLOATS:
        array = _without_integers(array)
    if array.dtype.kind not in _NUMBER_KINDS:
        return _from_objects(array, spec)
    converted, lost = _convert(array, spec)
    if lost is not None:
        raise _refusal(spec, array.shape, lost, array.flat[lost])
    return converted


def _without_integers(array: NDArray[Any]) -> NDArray[Any]:
    """Integers as floats, which may be rounded; those that no float comes near stay."""
    if array.dtype.kind in "iu":
        return array.astype(np.float64)
    if array.dtype.kind != "O":
        return array
    floats = np.empty(array.size, dtype=object)
    for position, each in enumerate(array.ravel()):
        is_integer = _kind(type(each)) == "int" and abs(each) <= _LARGEST_ROUNDED
        floats[position] = float(each) if is_integer else each
    return floats.reshape(array.shape)


# -- numbers to numbers ----------------------------------------------------------------------------


def _convert(array: NDArray[Any], spec: TensorSpec) -> tuple[NDArray[Any], int | None]:
    """The converted array, and the index (in C order) of the first value that did not survive."""
    with np.errstate(all="ignore"):  # what numpy would warn about is what is looked for below
        converted = array.astype(spec.dtype, order="C", copy=False)
        if spec.datatype == "BF16":
            converted = _on_bf16_grid(converted)
        mask = _lost(array, converted, spec.datatype) if array.size else None
    if mask is None or not mask.any():
        return converted, None
    return converted, int(mask.ravel().argmax())


def _on_bf16_grid(array: NDArray[Any]) -> NDArray[Any]:
    """Round float32 to the nearest BF16, ties to even; truncating it then loses nothing."""
    bits = array.reshape(-1).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return array
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    # A NaN's payload could carry into the sign or vanish, which is infinity: keep the quiet one.
    rounded[np.isnan(array.reshape(-1))] = 0x7FC00000
    return rounded.view(np.float32).reshape(array.shape)


def _lost(array: NDArray[Any], converted: NDArray[Any], datatype: str) -> NDArray[np.bool_] | None:
    """Which values changed their meaning; None where the types alone say that none can have."""
    kind = _NUMBER_KINDS[array.dtype.kind]
    if kind == "bool" or (datatype != "BF16" and np.can_cast(array.dtype, converted.dtype)):
        return _inexact(array, datatype) if kind == "int" and datatype in _FLOATS else None
    if datatype == "BOOL":
        return np.asarray((array != 0) & (array != 1))
    if datatype not in _FLOATS:
        target = np.iinfo(converted.dtype)
        return _not_whole(array, target) if kind == "float" else _out_of_range(array, target)
    if kind == "float":
        return np.asarray(np.isinf(converted) & np.isfinite(array))
    return _inexact(array, datatype)


def _out_of_range(array: NDArray[Any], target: np.iinfo[Any]) -> NDArray[np.bool_]:
    source = np.iinfo(array.dtype)
    # Bounds of the array's own type: numpy 1 compares uint64 with a negative number as floats.
    low = array.dtype.type(max(target.min, source.min))
    high = array.dtype.type(min(target.max, source.max))
    return np.asarray((array < low) | (array > high))


def _not_whole(array: NDArray[Any], target: np.iinfo[Any]) -> NDArray[np.bool_]:
    wide = np.promote_types(array.dtype, np.float32)  # float16 has no 2**63
    values = array.astype(wide, copy=False)
    # min and max + 1 are powers of two and exact as floats; max itself is not.
    inside = (values >= wide.type(target.min)) & (values < wide.type(int(target.max) + 1))
    return np.asarray(~(inside & (values == np.trunc(values))))


def _inexact(array: NDArray[Any], datatype: str) -> NDArray[np.bool_] | None:
    bits, largest = _FLOATS[datatype]
    if np.iinfo(array.dtype).max <= 2**bits:
        return None
    # Wide first: the smallest integer of a type is its own abs. That of int64, read as uint64, is
    # its magnitude.
    wide = array.astype(np.int64, copy=False) if array.dtype.kind == "i" else array
    magnitude = np.abs(wide).astype(np.uint64)
    if magnitude.max() <= np.uint64(2**bits):
        return None
    one = np.uint64(1)
    lowest_set_bit = np.maximum(magnitude & (~magnitude + one), one)
    too_many_bits = magnitude // lowest_set_bit >= np.uint64(2**bits)
    return np.asarray(too_many_bits | (magnitude > np.uint64(min(int(largest), 2**64 - 1))))


# -- Python objects to numbers ---------------------------------------------------------------------


def _from_objects(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Cast values of mixed types, each type as a group, so that no int passes through a float."""
    values = list(array.ravel())  # not tolist: that makes plain integers of datetime64[ns]
    groups = _groups(values)
    is_float = spec.datatype in _FLOATS
    converted = np.full(len(values), np.nan if is_float else 0, dtype=spec.dtype)
    lost = []
    for kind, group in groups.items():
        if kind in ("bool", "int", "float"):
            part, first = _convert_group(kind, [values[i] for i in group], spec)
            converted[group] = part
        else:
            first = None if kind == "missing" and is_float else 0
        lost += [] if first is None else [group[first]]
    if lost:
        raise _refusal(spec, array.shape, min(lost), values[min(lost)])
    return converted.reshape(array.shape)


def _groups(values: list[Any]) -> dict[str, list[int]]:
    """Positions of the values, by what kind of thing they are."""
    kinds = {type_: _kind(type_) for type_ in set(map(type, values))}
    groups: dict[str, list[int]] = {}
    for position, value in enumerate(values):
        groups.setdefault(kinds[type(value)], []).append(position)
    return groups


def _kind(type_: type[Any]) -> str:
    # pandas is not imported here, and its NaT would pass for a datetime.
    if type_.__name__ in ("NoneType", "NAType", "NaTType"):
        return "missing"
    for kind, types in _TYPES:
        if issubclass(type_, types):
            return kind
    return "other"


_TYPES: tuple[tuple[str, tuple[type[Any], ...]], ...] = (
    ("bool", (bool, np.bool_)),
    ("other", (np.timedelta64,)),  # numpy counts it among its integers
    ("int", (int, np.integer)),
    ("float", (float, np.floating)),
    ("text", (str,)),
    ("bytes", (bytes, bytearray, memoryview)),
    ("date", (dt.date, np.datetime64)),
)


def _convert_group(
    kind: str, values: list[Any], spec: TensorSpec
) -> tuple[NDArray[Any], int | None]:
    if kind != "int":
        return _convert(np.array(values), spec)
    ints = [int(value) for value in values]
    for dtype in (np.int64, np.uint64):
        if np.iinfo(dtype).min <= min(ints) and max(ints) <= np.iinfo(dtype).max:
            return _convert(np.array(ints, dtype=dtype), spec)
    return _convert_big_ints(ints, spec)


def _convert_big_ints(values: list[int], spec: TensorSpec) -> tuple[NDArray[Any], int | None]:
    """Integers that no one numpy type holds: only a float input can take them all."""
    converted = np.zeros(len(values), dtype=spec.dtype)
    for position, value in enumerate(values):
        if not _fits(value, spec):
            return converted, position
        converted[position] = value
    return converted, None


def _limits(spec: TensorSpec) -> tuple[int, int]:
    if spec.datatype == "BOOL":
        return 0, 1
    limits = np.iinfo(spec.datatype.lower())
    return limits.min, limits.max


def _fits(value: int, spec: TensorSpec) -> bool:
    if spec.datatype not in _FLOATS:
        low, high = _limits(spec)
        return low <= value <= high
    bits, largest = _FLOATS[spec.datatype]
    magnitude = abs(value)
    lowest_set_bit = max(magnitude & -magnitude, 1)
    return magnitude // lowest_set_bit < 2**bits and magnitude <= int(largest)


# -- anything to BYTES -----------------------------------------------------------------------------


#: The kinds of values that BYTES are made of, by what they hold.
_TAKEN = {
    "string": ("text",),
    "binary": ("text", "bytes"),
    "bytes": ("text", "bytes"),
}
_TAKEN_OTHERWISE = ("text", "bytes", "date")


def _to_bytes(array: NDArray[Any], spec: TensorSpec, bytes_type: str) -> NDArray[Any]:
    values = list(array.ravel())
    taken = _TAKEN.get(bytes_type, _TAKEN_OTHERWISE)
    if array.dtype == object and set(map(type, values)) <= {bytes} and "bytes" in taken:
        return array if array.flags.c_contiguous else array.copy(order="C")
    encode = _from_base64 if bytes_type == "binary" else str.encode
    encoded = np.empty(len(values), dtype=object)
    for position, value in enumerate(values):
        encoded[position] = as_bytes = _encoded(value, taken, encode)
        if as_bytes is None:
            raise _refusal(spec, array.shape, position, value, bytes_type)
    return encoded.reshape(array.shape)


def _encoded(value: Any, taken: Sequence[str], encode: Callable[[str], bytes]) -> bytes | None:
    """The value's bytes, or None if it has none."""
    kind = "bytes" if is_bytes_object(value) else _kind(type(value))
    if kind not in taken:
        return None
    try:
        if kind == "text":
            return encode(str.__str__(value))  # str() of an Enum is its name
        if kind == "date":
            return _iso_8601(value)
        return _from_base64(value["b64"]) if isinstance(value, dict) else bytes(value)
    except ValueError:  # a lone surrogate; not base64
        return None


def _from_base64(text: str) -> bytes:
    """The bytes of base64 text, which MLflow breaks into lines.

    Raises:
        ValueError: it is none.
    """
    return base64.b64decode("".join(text.split()), validate=True)


def is_bytes_object(value: object) -> bool:
    """Whether it is `{"b64": "…"}`, TensorFlow Serving's spelling of bytes in JSON."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _iso_8601(value: dt.date | np.datetime64) -> bytes | None:
    """As `pandas.Timestamp.isoformat` spells it, for every type of date."""
    if not isinstance(value, np.datetime64):
        return value.isoformat().encode()
    if np.isnat(value):
        return None
    seconds, _, fraction = str(value).partition(".")
    fraction = fraction.rstrip("0")
    micro, nano = 6, 9
    digits = fraction.ljust(micro if len(fraction) <= micro else nano, "0")
    return (f"{seconds}.{digits}" if fraction else seconds).encode()


# -- what to say -----------------------------------------------------------------------------------


def _refusal(
    spec: TensorSpec, shape: Sequence[int], index: int, value: Any, bytes_type: str = ""
) -> InvalidInputError:
    position = [int(i) for i in np.unravel_index(index, tuple(shape))]
    where = f" at {position}" if position else ""
    if spec.datatype == "BYTES":
        why = _why_no_bytes(value, spec, bytes_type)
    else:
        why = _why_no_number(value, spec)
    return InvalidInputError(f"input {spec.name}: {shown(value)}{where} {why}", input=spec.name)


def shown(value: Any) -> str:
    """The value as a message can show it: one line, of bounded length."""
    if isinstance(value, np.generic):
        value = str(value) if isinstance(value, np.datetime64) else value.item()
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def _is_missing(value: Any) -> bool:
    kind = _kind(type(value))
    if kind == "float" or isinstance(value, np.datetime64):
        return bool(value != value)  # noqa: PLR0124 - how NaN and NaT are told
    return kind == "missing"


def _why_no_bytes(value: Any, spec: TensorSpec, bytes_type: str) -> str:
    kind = _kind(type(value))
    if _is_missing(value):
        return "is a missing value, and BYTES has none; send a string, such as an empty one"
    if kind in ("bool", "int", "float"):
        return (
            f"is a number, and {spec.name} takes BYTES (text). If it was text: {_READ_JSON} "
            f'turns text like "00123" into numbers{_SEND_INSIDE.format(name=spec.name)}'
        )
    if kind == "date":
        return (
            f"is a date, and {spec.name} takes {bytes_type}. If it was text: {_READ_JSON} "
            f'turns text like "2024-01-02" into dates{_SEND_INSIDE.format(name=spec.name)}'
        )
    return _why_not_these_bytes(value, kind, spec, bytes_type)


def _why_not_these_bytes(value: Any, kind: str, spec: TensorSpec, bytes_type: str) -> str:
    if kind == "text" and bytes_type == "binary":
        return f"is not valid base64, and {spec.name} takes binary; send base64 text, or bytes"
    if kind == "text":
        return "has a lone surrogate, which UTF-8 cannot write; send bytes"
    if bytes_type == "string" and (kind == "bytes" or is_bytes_object(value)):
        return f"is bytes, and {spec.name} takes strings; send text, such as value.decode()"
    if is_bytes_object(value):
        return "is not valid base64"
    return f'is of type {type(value).__name__}; BYTES takes str, bytes, dates and {{"b64": "…"}}'


def _why_no_number(value: Any, spec: TensorSpec) -> str:
    kind = _kind(type(value))
    if kind in ("bool", "int", "float"):
        return _why_not_this_number(value, kind, spec)
    if _is_missing(value):
        return _NO_MISSING.format(datatype=spec.datatype)
    if kind == "text":
        return f"is text, which is never parsed; {spec.name} takes {spec.datatype}, send numbers"
    if kind == "date":
        return (
            f"is a date, and {spec.name} takes {spec.datatype}. If it was a number: {_READ_JSON} "
            f"turns columns named like dates into dates{_SEND_INSIDE.format(name=spec.name)}"
        )
    return f"is of type {type(value).__name__}; {spec.name} takes {spec.datatype}"


_READ_JSON = "pandas.read_json (so `mlflow deployments predict`)"
_SEND_INSIDE = '; inside {{"inputs": {{"{name}": [...]}}}} it leaves them alone'
_NO_MISSING = "is a missing value, and {datatype} has none; send a number that stands for it"


def _why_not_this_number(value: Any, kind: str, spec: TensorSpec) -> str:
    datatype = spec.datatype
    if datatype in _FLOATS:
        if kind == "float" or abs(value) > int(_FLOATS[datatype][1]):
            return f"is too large for {datatype} (largest {_FLOATS[datatype][1]:.6g})"
        return f"has no exact {datatype}; send it as a float if rounding it is right"
    if _is_missing(value):
        return _NO_MISSING.format(datatype=datatype)
    if datatype == "BOOL":
        return "is neither 0 nor 1, and BOOL has nothing else"
    if kind == "float" and not float(value).is_integer():
        return f"is not a whole number, and {spec.name} takes {datatype}; round it first"
    low, high = _limits(spec)
    return f"is outside {datatype} ({low} to {high})"
