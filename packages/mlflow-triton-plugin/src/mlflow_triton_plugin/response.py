"""What `predict` returns, and its JSON.

The JSON is strict (RFC 8259, ASCII) and exact, and laid out as the existing plugin's:
`{"outputs": {"OUTPUT0": [[…]], …}}`, nothing else. By datatype, a value is spelled

| datatype | spelling |
| --- | --- |
| BOOL | `true`, `false` |
| INT*, UINT* | all digits; a JavaScript reader keeps 53 bits of them, `outputs_from_json` all 64 |
| FP64 | the shortest decimal that reads back as this float64 |
| FP16, FP32, BF16 | the shortest decimal that reads back as this float32 |
| FP*, BF16: NaN, ±infinity | `"NaN"`, `"Infinity"`, `"-Infinity"`, for JSON has no such numbers |
| BYTES, valid UTF-8 | a string |
| BYTES, all else | `{"b64": "…"}`, as TensorFlow Serving spells bytes |
| objects of a `python_function` | themselves; NaN, ±infinity in them as above |

Nothing is ambiguous once the output's datatype is known: a string is NaN or infinity only in a
float tensor, and an object is always bytes, for a BYTES value that looks like one is a string.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import orjson
from mlflow.deployments import PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from mlflow_triton_plugin._output_file import OutputFileError, write
from mlflow_triton_plugin.predict import InvalidInputError
from mlflow_triton_plugin.predict._arrays import array_of
from mlflow_triton_plugin.predict._cast import cast
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from numpy.typing import DTypeLike, NDArray

__all__ = ["OutputFileError", "Prediction", "outputs_from_json"]

#: Of what Python writes: text, within which the others are text, and what JSON has not.
_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')
_NOT_FINITE = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


class Prediction(PredictionsResponse):
    """One prediction: `["outputs"]` (arrays by name), `["model_name"]`, `["model_version"]`.

    Args:
        outputs: the output tensors by name.
        model_name: the model that answered.
        model_version: its version.
    """

    def __init__(
        self, outputs: Mapping[str, NDArray[Any]], *, model_name: str, model_version: str
    ) -> None:
        super().__init__(outputs=dict(outputs), model_name=model_name, model_version=model_version)

    @overload
    def get_predictions(
        self, predictions_format: Literal["dataframe"] = "dataframe", dtype: DTypeLike | None = None
    ) -> pd.DataFrame: ...
    @overload
    def get_predictions(
        self, predictions_format: Literal["ndarray"], dtype: DTypeLike | None = None
    ) -> NDArray[Any]: ...
    def get_predictions(
        self,
        predictions_format: Literal["dataframe", "ndarray"] = "dataframe",
        dtype: DTypeLike | None = None,
    ) -> pd.DataFrame | NDArray[Any]:
        """The outputs in one piece.

        Args:
            predictions_format: `"dataframe"`, with a row a batch row and a column an output: the
                values of an output of shape [batch] or [batch, 1], otherwise each row's array.
                `"ndarray"`, for a model with one output.
            dtype: what to convert the ndarray to; not used for a frame.

        Raises:
            MlflowException: the outputs do not fit that format, or it is neither of the two.
        """
        if predictions_format == "dataframe":
            return _frame(self["outputs"])
        if predictions_format == "ndarray":
            array = _only(self["outputs"])
            return array if dtype is None else array.astype(dtype, copy=False)
        raise MlflowException(
            f'predictions_format is "dataframe" or "ndarray", not "{predictions_format}"',
            INVALID_PARAMETER_VALUE,
        )

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """`{"outputs": {name: nested lists}}`, exact; the module's table has the spellings.

        Args:
            path: a file to write it to: a new one, put in the place of an old one in one step and
                with its permissions. Streams (`/dev/stdout`, pipes, devices) are written directly.

        Returns:
            The JSON, or None when it went to `path`.

        Raises:
            OutputFileError: `path` is a directory or cannot be written; nothing there has changed.
        """
        chunks = _json_chunks(self["outputs"])
        if path is None:
            return b"".join(chunks).decode("ascii")
        write(path, chunks)
        return None


# -- formats ---------------------------------------------------------------------------------------


def _only(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if len(outputs) != 1:
        raise MlflowException(
            f"an ndarray holds one output, and this model has {len(outputs)} ({', '.join(outputs)})"
            '; take result["outputs"][name], or the format "dataframe"',
            INVALID_PARAMETER_VALUE,
        )
    return next(iter(outputs.values()))


def _frame(outputs: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 - only callers who ask for a frame pay for it

    columns = {name: _cells(array) for name, array in outputs.items()}
    if len({len(cells) for cells in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {len(cells)}" for name, cells in columns.items())
        raise MlflowException(
            f'the outputs differ in rows ({sizes}), which a frame cannot; take result["outputs"]',
            INVALID_PARAMETER_VALUE,
        )
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def _cells(array: NDArray[Any]) -> NDArray[Any] | list[NDArray[Any]]:
    if all(size == 1 for size in array.shape[1:]):
        return array.reshape(-1)
    return list(array)


# -- JSON ------------------------------------------------------------------------------------------


def _json_chunks(outputs: Mapping[str, NDArray[Any]]) -> Iterator[bytes]:
    separator = '{"outputs":{'
    for name, array in outputs.items():
        yield f"{separator}{json.dumps(name)}:".encode("ascii")
        yield _texts(array) if array.dtype.kind in "OSUT" else _numbers(array)
        separator = ","
    yield b"}}" if outputs else b'{"outputs":{}}'


def _numbers(array: NDArray[Any]) -> bytes:
    # bfloat16 is what newer Triton clients give for BF16; older orjson knows neither
    if array.dtype.name in ("bfloat16", "float16"):
        array = array.astype(np.float32)
    # orjson wants C order, the machine's own bytes and at least one dimension
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    text = orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)
    if plain.dtype.kind == "f" and not np.isfinite(plain).all():
        text = _with_not_finite(text, plain)
    return text if array.ndim else text[1:-1]


def _with_not_finite(text: bytes, array: NDArray[Any]) -> bytes:
    """Put the spellings where orjson wrote null, which it does for nothing but these."""
    values = array[~np.isfinite(array)]
    spelled = np.where(np.isnan(values), '"NaN"', np.where(values > 0, '"Infinity"', '"-Infinity"'))
    pieces = text.split(b"null")
    joined = [b""] * (2 * len(pieces) - 1)
    joined[::2] = pieces
    joined[1::2] = spelled.astype("S").tolist()
    return b"".join(joined)


def _texts(array: NDArray[Any]) -> bytes:
    spelled = np.empty(array.size, dtype=object)
    spelled[:] = [_spelled(value) for value in array.ravel().tolist()]
    nested = spelled.reshape(array.shape).tolist()
    text = json.dumps(nested, separators=(",", ":"))
    if "NaN" in text or "Infinity" in text:
        text = _STRING_OR_NUMBER.sub(
            lambda found: found[0] if found[0][0] == '"' else f'"{found[0]}"', text
        )
    return text.encode("ascii")


def _spelled(value: object) -> object:
    if not isinstance(value, bytes):  # text, or what a model answered as JSON
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode("ascii")}


def outputs_from_json(text: str | bytes, dtypes: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read the outputs back from what `to_json` wrote.

    Args:
        text: the JSON.
        dtypes: every output's Triton datatype, such as `{"OUTPUT0": "INT32"}`.

    Returns:
        The arrays, bit for bit except for a NaN's payload; BYTES elements are `bytes`, BF16 is
        float32. JSON does not keep the later dimensions of a tensor with a dimension of 0.

    Raises:
        ValueError: the text is not such JSON, its outputs are not those of `dtypes`, or an output's
            values are not of its datatype.
    """
    parsed = json.loads(text)
    outputs = parsed.get("outputs") if isinstance(parsed, dict) else None
    if not isinstance(outputs, dict) or outputs.keys() != dtypes.keys():
        found = ", ".join(outputs) if isinstance(outputs, dict) else "none"
        raise ValueError(f"expected the outputs {', '.join(dtypes)}; the JSON has {found}")
    return {name: _read(name, nested, dtypes[name]) for name, nested in outputs.items()}


def _read(name: str, nested: object, datatype: str) -> NDArray[Any]:
    spec = TensorSpec(name, datatype, ())
    try:
        array = array_of(nested, name)
        if spec.dtype.kind == "f" and array.dtype.kind in "OU":
            array = _with_floats(array)
        return cast(array, spec)
    except InvalidInputError as exc:
        raise ValueError(f"output {name} is not {datatype}: {exc}") from exc


def _with_floats(array: NDArray[Any]) -> NDArray[Any]:
    floats = np.empty(array.size, dtype=object)
    floats[:] = [_NOT_FINITE.get(v, v) if isinstance(v, str) else v for v in array.ravel().tolist()]
    return floats.reshape(array.shape)
