"""What an ONNX file says about itself, read without its weights. The only door to `onnx`.

A model of 2 GB is skimmed through a memory map: weights are stepped over, so that neither memory
nor time grows with them, and a file that was made to take an age is given up.
Format: onnx.proto and protobuf's "Encoding" document.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from triton_repo.errors import ArtifactError, ConfigError
from triton_repo.tensors import TensorSpec, datatype_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import onnx  # noqa: TID251 - this is the door

__all__ = ["OnnxGraph", "read_graph"]

_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)
_LAST_BYTE = 0x80
_INT32 = 0xFFFFFFFF

#: What forests of trees are made of: numbers of 32 bits, varints, numbers of 64 bits, each with a
#: tag of one byte, and the names of the comparisons (`LEAF`, `BRANCH_LT`, `BRANCH_LEQ`) in field 9,
#: which is of interest in no message. Runs of one kind, since those match three times as fast.
_NUMBERS = re.compile(
    rb"(?:"
    rb"(?:[\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d].{4}){1,100}"
    rb"|(?:[\x08\x10\x18\x20\x28\x30\x38\x40\x48\x50\x58\x60\x68\x70\x78]"
    rb"[\x80-\xff]{0,9}[\0-\x7f]){1,100}"
    rb"|(?:[\x09\x11\x19\x21\x29\x31\x39\x41\x49\x51\x59\x61\x69\x71\x79].{8}){1,100}"
    rb"|(?:\x4a(?:\x04.{4}|\x09.{9}|\x0a.{10})){1,100}"
    rb"){1,100}",
    re.DOTALL,
)

#: Where tensors can stand in a model, and what of each message is of interest here.
_BELOW = {
    "ModelProto": ("graph", "functions", "training_info"),
    "TrainingInfoProto": ("initialization", "algorithm"),
    "FunctionProto": ("node",),
    "GraphProto": ("node", "initializer", "sparse_initializer", "input", "output"),
    "NodeProto": ("attribute",),
    "AttributeProto": ("t", "g", "tensors", "graphs", "sparse_tensor", "sparse_tensors"),
    "SparseTensorProto": ("values", "indices"),
    "TensorProto": ("name", "external_data"),
}
#: Graphs inside nodes, functions and trainings have names of their own.
_PLACES = (
    "model.graph",
    "model.graph.initializer",
    "model.graph.sparse_initializer",
    "model.graph.sparse_initializer.values",
)
#: Fields of a StringStringEntryProto, and of a TensorProto.
_KEY, _VALUE = 1, 2
_DATA_LOCATION = 14
_DEFAULT, _EXTERNAL = 0, 1
#: protobuf writes no larger message.
_MAX_FILE_BYTES = 2**31
#: A thousand times what real inputs take; protobuf's objects are forty times as large.
_MAX_VALUE_BYTES = 100_000
_DEEPEST_GROUP = 100
#: A hundred times what the largest graphs have; they take seconds.
_MAX_FIELDS = 5_000_000
#: Of what `_NUMBERS` steps over: twenty million nodes of trees; they take seconds, too.
_MAX_NUMBER_BYTES = 1_000_000_000
#: Of the file, which would otherwise stay in memory from its beginning to its end.
_MAX_MAPPED_BYTES = 16_000_000
#: Of names, shapes and places of weights.
_MAX_KEPT_BYTES = 50_000_000
#: What keeping one costs beside its bytes.
_OVERHEAD_BYTES = 100


#: Names of the first dimension that say nothing: tf2onnx numbers them, keras2onnx writes None.
_NO_NAME = re.compile(r"(?:|none|\?|-1|unk(?:nown)?_*\d*)", re.IGNORECASE)
#: Names that exporters and people give to the batch.
_BATCH_NAME = re.compile(
    r"n|b|bs|(?:n_?|num_?)?(?:batch|batches|examples?)(?:_?(?:size|dim|axis|n))?_*\d*",
    re.IGNORECASE,
)


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
    def has_variable_first_dimension(self) -> bool:
        """Whether every tensor begins with a variable dimension."""
        tensors = self.inputs + self.outputs
        return bool(self.inputs) and all(
            tensor.shape is not None and tensor.shape[:1] == (-1,) for tensor in tensors
        )

    @property
    def has_batch_dimension(self) -> bool:
        """Whether that is a batch by its name, the same in every tensor.

        Exporters that give no name, or a number (`unk__7`), mean the batch; those of outputs are
        often lost. Any other name, such as `seq` or `nodes`, may be of an axis whose places depend
        on each other.
        """
        input_names, output_names = map(_first_dim_names, (self.inputs, self.outputs))
        names = (input_names | output_names) - {""}
        return (
            self.has_variable_first_dimension
            and len(input_names) == 1
            and len(names) <= 1
            and all(_BATCH_NAME.fullmatch(name) for name in names)
        )

    @property
    def first_dimensions(self) -> str:
        """What the graph calls the first dimensions, for people."""
        tensors = self.inputs + self.outputs
        names = dict.fromkeys(repr(each.first_dim_name) for each in tensors if each.first_dim_name)
        return ", ".join(names)


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


def _first_dim_names(tensors: Iterable[GraphTensor]) -> set[str]:
    """What the first dimensions are called; an empty string for those that have no name."""
    names = {tensor.first_dim_name for tensor in tensors}
    return {"" if _NO_NAME.fullmatch(name) else name for name in names}


def read_graph(path: Path) -> OnnxGraph:
    """Read inputs, outputs and the names of external files.

    Raises:
        ArtifactError: this is not an ONNX model, one of its types is none of Triton's, or it has
            more nodes or names than any model.
    """
    import onnx  # noqa: PLC0415, TID251 - 0.7 s that only an ONNX deployment pays

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            skim = _Skim(data)
            skim.model(onnx.ModelProto.DESCRIPTOR)
        return _outside(skim, path, onnx.ValueInfoProto)
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror}") from exc
    except IndexError as exc:
        raise ArtifactError(f"{path} is not an ONNX model: it ends too early") from exc
    except UnicodeDecodeError as exc:
        raise ArtifactError(f"{path} is not an ONNX model: a name in it is no UTF-8") from exc
    except (ValueError, DecodeError, RecursionError) as exc:
        raise ArtifactError(f"{path} is not an ONNX model: {exc}") from exc


def _outside(skim: _Skim, path: Path, kind: type[onnx.ValueInfoProto]) -> OnnxGraph:
    if not skim.values["output"]:
        raise ArtifactError(f"{path} is not an ONNX model: its graph has no outputs")
    # one after the other: each is much larger than its bytes
    inputs, outputs = (map(kind.FromString, skim.values[side]) for side in ("input", "output"))
    return OnnxGraph(
        inputs=tuple(
            _tensor(value, path) for value in inputs if _text(value.name) not in skim.initialized
        ),
        outputs=tuple(_tensor(value, path) for value in outputs),
        external_files=tuple(sorted(skim.external_files)),
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


# -- skimming ---------------------------------------------------------------------------------


@dataclass
class _Skim:
    """One walk through a file, and what it has found so far.

    Attributes:
        data: the file.
        values: the graph's inputs and outputs, encoded.
        initialized: inputs that have a value.
        external_files: see `OnnxGraph`.
    """

    data: mmap.mmap
    values: Mapping[str, list[bytes]] = field(default_factory=lambda: {"input": [], "output": []})
    initialized: set[str] = field(default_factory=set)
    external_files: set[str] = field(default_factory=set)
    _fields_seen: int = 0
    _number_bytes: int = 0
    _let_go_at: int = _MAX_MAPPED_BYTES
    _kept_bytes: int = 0

    def model(self, descriptor: Any) -> None:
        """Gather what is of interest in the file; see `message`."""
        if len(self.data) > _MAX_FILE_BYTES:
            raise ValueError("it is larger than protobuf's 2 GB; keep the weights beside it")
        self.message(0, len(self.data), descriptor, "model")

    def message(self, start: int, end: int, descriptor: Any, place: str) -> None:
        """Gather what is of interest in one message.

        Args:
            start: where it begins.
            end: where it ends.
            descriptor: of its type.
            place: the fields that lead to it, where `_PLACES` has them; elsewhere an empty string.

        Raises:
            ValueError: it is none, or the file was made to take an age.
        """
        wanted = _wanted(descriptor)
        name: tuple[int, int] | None = None
        external: list[tuple[int, int]] = []
        for number, value_start, value_end in self._fields(start, end):
            found = wanted.get(number)
            if found is None:
                continue
            if found.name == "external_data":
                external.append((value_start, value_end))
            elif found.message_type is None:  # a tensor's, and the last of several counts
                name = value_start, value_end
            else:
                self._below(found, value_start, value_end, place)
        if name and place.endswith(("initializer", "values")):
            self.initialized.add(self._keep(*name).decode())
        # what was external once may be inside again: ONNX goes by the location alone
        if external and self._data_location(start, end) == _EXTERNAL:
            for each in external:
                self._add_external(*each)

    def _below(self, found: Any, start: int, end: int, place: str) -> None:
        """Gather what is of interest in one field of the message at `place`."""
        if found.name in self.values:
            if place == "model.graph":
                self.values[found.name].append(self._keep(start, end))
        elif start < end:
            below = f"{place}.{found.name}"
            self.message(start, end, found.message_type, below if below in _PLACES else "")

    def _data_location(self, start: int, end: int) -> int:
        """Where a tensor's data is, as the last of several says."""
        at, found = start, _DEFAULT
        while at < end:
            self._count(at)
            tag, at = _varint(self.data, at)
            if tag == _DATA_LOCATION << 3 | _VARINT:
                said, at = _varint(self.data, at)
                said &= _INT32
                # an enum of proto2 is closed: protobuf passes over what is none of its values
                found = said if said in (_DEFAULT, _EXTERNAL) else found
            else:
                at = self._after(tag, at)
        return found

    def _add_external(self, start: int, end: int) -> None:
        entry = {number: self._keep(*place) for number, *place in self._fields(start, end)}
        if entry.get(_KEY) == b"location":
            self.external_files.add(str(PurePosixPath(entry.get(_VALUE, b"").decode())))

    def _keep(self, start: int, end: int) -> bytes:
        """These bytes, which stay in memory."""
        if end - start > _MAX_VALUE_BYTES:
            raise ValueError(f"an input, an output or a name in it has {end - start} bytes")
        self._kept_bytes += end - start + _OVERHEAD_BYTES
        if self._kept_bytes > _MAX_KEPT_BYTES:
            raise ValueError("it has more names than any model")
        return self.data[start:end]

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, start and end of every field of a message that is no number."""
        data, at = self.data, start
        while at < end:
            self._count(at)
            numbers = _NUMBERS.match(data, at, end)
            if numbers is not None:
                self._count_numbers(numbers.end() - at)
                at = numbers.end()
                continue
            tag, at = _varint(data, at)
            if tag & 7 == _LENGTH:
                size, at = _varint(data, at)
                yield tag >> 3, at, min(at + size, end)
                at += size
            else:
                at = self._after(tag, at)
            if at > end:
                raise ValueError("it ends too early")

    def _count(self, at: int) -> None:
        self._fields_seen += 1
        if self._fields_seen > _MAX_FIELDS:
            raise ValueError(f"it has more than {_MAX_FIELDS} nodes, attributes and tensors")
        if at > self._let_go_at:
            self._let_go_at = at + _MAX_MAPPED_BYTES
            if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                self.data.madvise(mmap.MADV_DONTNEED)

    def _count_numbers(self, size_bytes: int) -> None:
        self._number_bytes += size_bytes
        if self._number_bytes > _MAX_NUMBER_BYTES:
            raise ValueError(f"it has more than {_MAX_NUMBER_BYTES} bytes of numbers in its nodes")

    def _after(self, tag: int, at: int, depth: int = 0) -> int:
        """Where the next field begins, once the tag of this one is read."""
        wire_type = tag & 7
        if wire_type == _VARINT:
            return _varint(self.data, at)[1]
        if wire_type == _LENGTH:
            size, at = _varint(self.data, at)
            return at + size
        if wire_type in (_FIXED64, _FIXED32):
            return at + (8 if wire_type == _FIXED64 else 4)
        if wire_type != _GROUP or depth > _DEEPEST_GROUP:
            raise ValueError(f"a field in it has wire type {wire_type}")
        while True:  # a group: fields up to its own end
            self._count(at)
            inner, at = _varint(self.data, at)
            if inner & 7 == _GROUP_END:
                if inner >> 3 != tag >> 3:
                    raise ValueError("a group in it ends as another")
                return at
            at = self._after(inner, at, depth + 1)


@cache
def _wanted(descriptor: Any) -> Mapping[int, Any]:
    """The fields of a message that are of interest, by number."""
    fields = (descriptor.fields_by_name[name] for name in _BELOW[descriptor.name])
    return {each.number: each for each in fields}


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
