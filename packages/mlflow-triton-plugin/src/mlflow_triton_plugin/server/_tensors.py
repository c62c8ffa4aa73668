"""Tensors as the protocol has them: what both clients send, and what they make of an answer.

Nothing that a server says of a tensor is believed before it is checked here: a number of bytes that
does not fit, or a datatype that numpy reads as another one, would be wrong values and no error.
Whatever does not fit is a `StrangeAnswerError` that names the tensor.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient.utils import (
    deserialize_bytes_tensor,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from mlflow_triton_plugin.server._translate import StrangeAnswerError
from triton_repo.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = [
    "answered",
    "as_sent",
    "by_name",
    "described",
    "from_bytes",
    "from_http",
    "from_values",
    "to_bytes",
]

_BF16_SIZE_BYTES = 2
#: What values that are not raw may be, by the kind of their numpy dtype.
_VALUES: dict[str, tuple[type, ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (int, float),
    "O": (str, bytes),
}


# -- what is sent ----------------------------------------------------------------------------------


def to_bytes(array: NDArray[Any], datatype: str) -> bytes:
    """One tensor's content, as the protocol's "raw" form has it: little-endian, row by row."""
    if datatype == "BYTES":
        serialized = serialize_byte_tensor(array)
        return serialized.item() if serialized.size else b""
    if datatype == "BF16":  # the upper half of a float32; the values are on BF16's grid already
        return (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return array.tobytes()


def as_sent(array: NDArray[Any], datatype: str) -> NDArray[Any]:
    """The array in the dtype that this release of tritonclient serialises.

    BF16 is float32 to us. tritonclient takes float32 too, or from 26.06 on only
    `ml_dtypes.bfloat16`; the values are on BF16's grid already.
    """
    if datatype != "BF16":
        return array
    return array.astype(triton_to_np_dtype("BF16"), copy=False)


# -- what is answered ------------------------------------------------------------------------------


def described(name: Any, datatype: Any, shape: Iterable[Any]) -> TensorSpec:
    """A tensor of a model's metadata.

    Raises:
        StrangeAnswerError: there is no such datatype, or the shape is not one of whole numbers.
    """
    dims = tuple(shape)
    if not isinstance(name, str):
        raise StrangeAnswerError(f"the name of a tensor is {name!r}")
    if datatype not in DATATYPES:
        raise StrangeAnswerError(f"tensor {name} has the unknown datatype {datatype}")
    if not all(type(dim) is int for dim in dims):
        raise StrangeAnswerError(f"tensor {name} has the shape {list(dims)}")
    return TensorSpec(name, datatype, dims)


def answered(name: Any, datatype: Any, shape: Iterable[Any]) -> TensorSpec:
    """A tensor of an answer: as in metadata, but nothing of its shape is left open.

    Raises:
        StrangeAnswerError: it is not one.
    """
    tensor = described(name, datatype, shape)
    if min(tensor.shape, default=0) < 0:  # numpy would take one for "whatever is left"
        raise StrangeAnswerError(f"tensor {name} has the shape {list(tensor.shape)}")
    return tensor


def from_bytes(tensor: TensorSpec, data: bytes) -> NDArray[Any]:
    """The values of a tensor in the "raw" form; they stay where they are.

    Raises:
        StrangeAnswerError: there are more or fewer than its shape has.
    """
    if tensor.datatype == "BYTES":
        return _shaped(tensor, _strings(tensor, data))
    _check_size(tensor, len(data))
    if tensor.datatype == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(tensor.shape)
    return np.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape)


def from_values(tensor: TensorSpec, values: Iterable[Any]) -> NDArray[Any]:
    """The values of a tensor that come one by one: gRPC's typed contents, JSON's `data`.

    Args:
        tensor: what they belong to.
        values: row by row; in lists of lists, too, as KServe's protocol lets JSON have them.

    Raises:
        StrangeAnswerError: they are not of its datatype, or not as many as its shape has.
    """
    flat = list(values)
    for _ in tensor.shape[1:]:
        if any(isinstance(each, list) for each in flat):
            flat = [one for each in flat for one in (each if isinstance(each, list) else [each])]
    if not set(map(type, flat)).issubset(_VALUES[tensor.dtype.kind]):
        raise StrangeAnswerError(f"tensor {tensor} has values of another type")
    if tensor.datatype == "BYTES":
        flat = [each.encode() if isinstance(each, str) else each for each in flat]
    elif tensor.dtype.kind in "iu" and flat:
        limits = np.iinfo(tensor.dtype.name)  # numpy 1 would let them wrap around
        if min(flat) < limits.min or max(flat) > limits.max:
            raise StrangeAnswerError(f"tensor {tensor} has values beyond its type's")
    array = np.empty(len(flat), tensor.dtype)
    try:
        with np.errstate(over="raise"):
            array[:] = flat
    except ArithmeticError as exc:
        raise StrangeAnswerError(f"tensor {tensor} has values beyond its type's") from exc
    return _shaped(tensor, array)


def from_http(tensor: TensorSpec, output: dict[str, Any], result: Any) -> NDArray[Any]:
    """The values of a tensor that tritonclient's HTTP client has received.

    Args:
        tensor: what they belong to.
        output: its JSON, with `data` or the number of bytes that follow.
        result: tritonclient's `InferResult`: only this knows where they are.

    Raises:
        StrangeAnswerError: they do not fit.
    """
    size_bytes = (output.get("parameters") or {}).get("binary_data_size")
    if size_bytes is None:
        values = output["data"]
        if not isinstance(values, list):  # a string has characters to go through, too
            raise StrangeAnswerError(f"tensor {tensor} has no list of values")
        return from_values(tensor, values)
    if tensor.datatype != "BYTES":
        _check_size(tensor, size_bytes)
    try:
        array: NDArray[Any] = result.as_numpy(tensor.name)
    except (ValueError, struct.error) as exc:
        raise StrangeAnswerError(
            f"the {size_bytes} bytes of tensor {tensor} did not all come, or do not fit"
        ) from exc
    return array.astype(tensor.dtype, copy=False)  # BF16 is float32 to us


def by_name(pairs: Iterable[tuple[TensorSpec, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The outputs of an answer.

    Raises:
        StrangeAnswerError: two have one name.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for tensor, array in pairs:
        if tensor.name in arrays:
            raise StrangeAnswerError(f"tensor {tensor.name} is there twice")
        arrays[tensor.name] = array
    return arrays


def _check_size(tensor: TensorSpec, size_bytes: int) -> None:
    each = _BF16_SIZE_BYTES if tensor.datatype == "BF16" else tensor.dtype.itemsize
    wanted = math.prod(tensor.shape) * each
    if size_bytes != wanted:
        raise StrangeAnswerError(f"tensor {tensor} has {size_bytes} bytes, and needs {wanted}")


def _strings(tensor: TensorSpec, data: bytes) -> NDArray[Any]:
    try:
        strings: NDArray[Any] = deserialize_bytes_tensor(data)
    except struct.error as exc:
        raise StrangeAnswerError(
            f"tensor {tensor} has a string that is longer than what came"
        ) from exc
    return strings


def _shaped(tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    wanted = math.prod(tensor.shape)
    if array.size != wanted:
        raise StrangeAnswerError(f"tensor {tensor} has {array.size} values, and needs {wanted}")
    return array.reshape(tensor.shape)
