"""What an ONNX file says about itself, read without its weights. The only door to `onnx`.

A model of 2 GB is skimmed through a memory map: long runs of bytes (the weights) are stepped over,
so neither memory nor time grows with them.
Format: onnx.proto and protobuf's "Encoding" document.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from triton_repo.errors import ArtifactError, ConfigError
from triton_repo.tensors import TensorSpec, datatype_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx  # noqa: TID251 - this is the door

__all__ = ["OnnxGraph", "read_graph"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LAST_BYTE = 0x80

#: Longer runs of bytes are tensor contents; names, shapes and external-data entries are shorter.
_LONGEST_KEPT = 64 * 1024


@dataclass(frozen=True)
class OnnxGraph:
    """The outside of a graph.

    Attributes:
        inputs: its real inputs, initializers left out. A dimension is -1 where it is variable; the
            shape is None where the graph does not even give a rank.
        outputs: the same.
        external_files: files beside the model that hold its weights.
    """

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    external_files: tuple[str, ...]

    @property
    def has_batch_dimension(self) -> bool:
        """Whether every tensor begins with a variable dimension, and no two name it differently."""
        tensors = self.inputs + self.outputs
        names = {tensor.first_dim_name for tensor in tensors} - {""}
        return (
            bool(self.inputs)
            and len(names) <= 1
            and all(tensor.shape is not None and tensor.shape[:1] == (-1,) for tensor in tensors)
        )


@dataclass(frozen=True)
class GraphTensor:
    """One input or output of a graph.

    Attributes:
        name: its name.
        datatype: Triton's name of its type.
        shape: -1 where variable; None where the graph gives no rank.
        first_dim_name: what the graph calls the first dimension (`batch`, `N`), or an empty string.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    first_dim_name: str = ""

    def spec(self, shape: tuple[int, ...]) -> TensorSpec:
        """The same tensor as a TensorSpec of the given shape."""
        return TensorSpec(self.name, self.datatype, shape)


def read_graph(path: Path) -> OnnxGraph:
    """Read inputs, outputs and the names of external files.

    Raises:
        ArtifactError: this is not an ONNX model, or one of its types is none of Triton's.
    """
    try:
        return _outside(_skim_file(path), path)
    except UnicodeDecodeError as exc:
        raise ArtifactError(f"{path} is not an ONNX model: a name in it is no UTF-8") from exc


def _outside(model: onnx.ModelProto, path: Path) -> OnnxGraph:
    graph = model.graph
    initialized = {_text(tensor.name) for tensor in graph.initializer}
    initialized |= {_text(tensor.values.name) for tensor in graph.sparse_initializer}
    real_inputs = [value for value in graph.input if _text(value.name) not in initialized]
    if not graph.output:
        raise ArtifactError(f"{path} is not an ONNX model: its graph has no outputs")
    return OnnxGraph(
        inputs=tuple(_tensor(value, path) for value in real_inputs),
        outputs=tuple(_tensor(value, path) for value in graph.output),
        external_files=tuple(sorted(set(_external_files(model)))),
    )


def _tensor(value: onnx.ValueInfoProto, path: Path) -> GraphTensor:
    name = _text(value.name)
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ArtifactError(
            f"{path}: {name!r} is a {kind or 'value without a type'}, and Triton serves "
            "tensors only; export the model without ZipMap or sequences"
        )
    tensor = value.type.tensor_type
    try:
        datatype = datatype_of(onnx=tensor.elem_type).name
    except ConfigError as exc:
        raise ArtifactError(f"{path}: {name!r}: {exc}; cast it in the graph") from exc
    if not tensor.HasField("shape"):
        return GraphTensor(name, datatype, None)
    dims = tensor.shape.dim
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in dims
    )
    return GraphTensor(name, datatype, shape, _text(dims[0].dim_param) if dims else "")


def _text(value: str | bytes) -> str:
    """A string of the graph, which some releases of protobuf give as bytes where it is no UTF-8.

    Raises:
        UnicodeDecodeError: it is none; other releases say so where the string is read.
    """
    return value if isinstance(value, str) else value.decode()


def _external_files(message: Any) -> Iterator[str]:
    """`location` of every tensor with external data, wherever in the model it stands."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for item in value if hasattr(value, "append") else [value]:
            if descriptor.name == "external_data":
                if item.key == "location":
                    yield str(PurePosixPath(_text(item.value)))
            else:
                yield from _external_files(item)


# -- skimming ---------------------------------------------------------------------------------


def _skim_file(path: Path) -> onnx.ModelProto:
    import onnx  # noqa: PLC0415, TID251 - 0.7 s that only an ONNX deployment pays

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            skimmed = _skim(data, 0, len(data), onnx.ModelProto.DESCRIPTOR)
        return onnx.ModelProto.FromString(skimmed)
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror}") from exc
    except IndexError as exc:
        raise ArtifactError(f"{path} is not an ONNX model: it ends too early") from exc
    except (ValueError, DecodeError, RecursionError) as exc:
        raise ArtifactError(f"{path} is not an ONNX model: {exc}") from exc


def _skim(data: mmap.mmap, start: int, end: int, descriptor: Any) -> bytes:
    """The message at `data[start:end]`, re-encoded without its long runs of bytes."""
    kept = bytearray()
    at = start
    while at < end:
        field_start = at
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type != _LENGTH:
            at = _after_scalar(data, at, wire_type)
            kept += data[field_start:at]
            continue
        size, at = _varint(data, at)
        value_end = at + size
        if value_end > end:
            raise ValueError("it ends too early")
        field = descriptor.fields_by_number.get(tag >> 3)
        if field is not None and field.message_type is not None:
            value = _skim(data, at, value_end, field.message_type)
            kept += _encode(tag) + _encode(len(value)) + value
        elif size <= _LONGEST_KEPT:
            kept += data[field_start:value_end]
        at = value_end
    return bytes(kept)


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & ~_LAST_BYTE) << shift
        if byte < _LAST_BYTE:
            return value, at
        shift += 7
        if shift > 63:  # noqa: PLR2004 - a varint has at most ten bytes of seven bits
            raise ValueError("a number in it is malformed")


def _after_scalar(data: mmap.mmap, at: int, wire_type: int) -> int:
    if wire_type == _VARINT:
        return _varint(data, at)[1]
    if wire_type == _FIXED64:
        return at + 8
    if wire_type == _FIXED32:
        return at + 4
    raise ValueError(f"a field in it has wire type {wire_type}")


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= _LAST_BYTE:
        encoded.append(value & 0x7F | _LAST_BYTE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
