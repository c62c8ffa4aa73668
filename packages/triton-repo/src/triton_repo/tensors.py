"""Tensors as three worlds see them: Triton, numpy and MLflow, joined by one table.

Triton's names are those of the KServe v2 protocol (`FP32`, `BYTES`); config.pbtxt spells the same
types `TYPE_FP32`, `TYPE_STRING`. Source: Triton's `model_configuration.md`, "Datatypes".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triton_repo.errors import ConfigError

__all__ = ["DATATYPES", "Datatype", "TensorSpec", "datatype_of", "shape_fits"]


@dataclass(frozen=True)
class Datatype:
    """One row of the table.

    Attributes:
        name: Triton's name in the inference protocol, such as `FP32`.
        config_name: its name in config.pbtxt, such as `TYPE_FP32`.
        numpy: what a client's arrays hold. `BYTES` is `object` (bytes or str elements); `BF16` has
            no numpy dtype of its own: its values are held as float32.
        onnx: `onnx.TensorProto.DataType`, or None where ONNX has no such type.
        tensor: the dtype MLflow's `TensorSpec` uses for it.
        column: the MLflow `ColSpec` type that becomes this datatype, or None.
    """

    name: str
    config_name: str
    numpy: np.dtype[np.generic]
    onnx: int | None
    tensor: str
    column: str | None = None


def _row(
    name: str, dtype: str, onnx: int | None, column: str | None = None, tensor: str = ""
) -> Datatype:
    config_name = "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"
    return Datatype(name, config_name, np.dtype(dtype), onnx, tensor or dtype, column)


#: Every Triton datatype, by its protocol name. The ONNX numbers are `TensorProto.DataType`'s.
DATATYPES: dict[str, Datatype] = {
    row.name: row
    for row in (
        _row("BOOL", "bool", 9, "boolean"),
        _row("UINT8", "uint8", 2),
        _row("UINT16", "uint16", 4),
        _row("UINT32", "uint32", 12),
        _row("UINT64", "uint64", 13),
        _row("INT8", "int8", 3),
        _row("INT16", "int16", 5),
        _row("INT32", "int32", 6, "integer"),
        _row("INT64", "int64", 7, "long"),
        _row("FP16", "float16", 10),
        _row("FP32", "float32", 1, "float"),
        _row("FP64", "float64", 11, "double"),
        _row("BF16", "float32", 16, None, "bfloat16"),
        _row("BYTES", "object", 8, "string", "str"),
    )
}

_BY_CONFIG_NAME = {row.config_name: row for row in DATATYPES.values()}
_BY_ONNX = {row.onnx: row for row in DATATYPES.values() if row.onnx is not None}
_BY_TENSOR = {row.tensor: row for row in DATATYPES.values()}
_BY_COLUMN = {row.column: row for row in DATATYPES.values() if row.column is not None}
# Further MLflow spellings of BYTES; a datetime column has no native type and travels as ISO-8601.
_BY_TENSOR |= dict.fromkeys(("object", "bytes", "string"), DATATYPES["BYTES"])
_BY_COLUMN |= dict.fromkeys(("binary", "datetime"), DATATYPES["BYTES"])


def datatype_of(
    *,
    config_name: str | None = None,
    onnx: int | None = None,
    tensor: str | None = None,
    column: str | None = None,
) -> Datatype:
    """Look a datatype up by exactly one of its other names.

    Args:
        config_name: `TYPE_FP32`, from config.pbtxt.
        onnx: `TensorProto.DataType` number, from an ONNX graph.
        tensor: numpy dtype name, from an MLflow `TensorSpec`; `<U5`, `|S3` and `str` are BYTES.
        column: MLflow `ColSpec` type, such as `long`.

    Raises:
        ConfigError: Triton has no such type.
    """
    found: Datatype | None
    if config_name is not None:
        found, asked = _BY_CONFIG_NAME.get(config_name), config_name
    elif onnx is not None:
        found, asked = _BY_ONNX.get(onnx), f"ONNX type {onnx}"
    elif tensor is not None:
        found, asked = _by_tensor(tensor), tensor
    else:
        found, asked = _BY_COLUMN.get(column or ""), f"MLflow type {column}"
    if found is None:
        raise ConfigError(f"Triton has no datatype for {asked}", field="data_type")
    return found


def _by_tensor(dtype: str) -> Datatype | None:
    if dtype in _BY_TENSOR:
        return _BY_TENSOR[dtype]
    try:
        parsed = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # numpy parses "i4,," as Python
        return None
    if parsed.kind in "USO":
        return DATATYPES["BYTES"]
    return _BY_TENSOR.get(parsed.name)


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of one input or output.

    Attributes:
        name: the tensor's name.
        datatype: protocol name, a key of `DATATYPES`.
        shape: -1 stands for a variable dimension. Whether the batch dimension is included is said
            where the spec is used: MLflow signatures and server metadata include it,
            config.pbtxt's `dims` do not when `max_batch_size` is over 0.
        optional: the input may be left out of a request.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype a client's arrays have."""
        return DATATYPES[self.datatype].numpy

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}{list(self.shape)}"


def shape_fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array of `shape` is what `wanted` asks for; -1 there stands for any size."""
    if len(shape) != len(wanted):
        return False
    return all(want in (size, -1) for size, want in zip(shape, wanted, strict=True))
