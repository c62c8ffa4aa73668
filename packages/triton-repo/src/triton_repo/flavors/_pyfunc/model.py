# ruff: noqa: INP001 - no part of the package: Triton's stub imports it by itself, as `model`
"""A model of Triton's Python backend: loads the MLflow model beside it, and asks it.

Placed by triton-repo as `model.py` of a version whose `mlflow/` is the model. It runs in the
server's Python, where this project is not installed: it needs MLflow (mlflow-skinny will do),
pandas, numpy and what the model itself requires.

Rows are looked at all together, by numpy and pandas; only text and JSON are made one by one.
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_MLFLOW = ("mlflow", "mlflow-skinny")
#: What is wrong with the environment that was packed for this model: its `bin/activate` sets it.
_UNFIT = "MLFLOW_TRITON_ENVIRONMENT"
#: The parameter of a request that holds MLflow's `params`, as JSON.
_PARAMS = "mlflow_params"


class TritonPythonModel:
    """What the Python backend makes one of for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model.

        Args:
            args: `model_config` as JSON, `model_repository` (the deployment's directory, on this
                machine) and `model_version`.

        Raises:
            TritonModelException: packages that the model needs are not there; other errors are
                those of the model.
        """
        if _UNFIT in os.environ:
            raise pb_utils.TritonModelException(os.environ[_UNFIT])
        folder = Path(args["model_repository"], args["model_version"], "mlflow")
        _refuse_missing(folder / "requirements.txt")
        _read_what_numpy_2_pickled()
        from mlflow.pyfunc import load_model  # noqa: PLC0415 - it may be missing

        config = json.loads(args["model_config"])
        self._model = load_model(str(folder))
        self._batched = config["max_batch_size"] > 0
        self._rows_are_kept = self._batched  # until an answer shows that they are not
        self._inputs = [each["name"] for each in config["input"]]
        logged = self._model.metadata
        # a function with type hints takes a list
        from_hints = getattr(logged, "_is_signature_from_type_hint", bool)()
        self._given = _Given(self._inputs, logged.signature, from_hints=from_hints)
        self._wanted = _Wanted(config["output"], logged.signature, batched=self._batched)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests: those that differ in nothing but their rows with one prediction.

        Args:
            requests: what Triton has joined.

        Returns:
            One response a request, in the same order.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[object, list[_Member]] = {}
        for place, request in enumerate(requests):
            try:
                member = self._member(place, request)
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is this request's
                responses[place] = _refusal(exc)
                continue
            groups.setdefault(member.key if self._batched else place, []).append(member)
        for members in groups.values():
            if not self._answer_together(members, responses):
                self._answer_each(members, responses)
        return responses

    def _member(self, place: int, request: Any) -> _Member:
        found = ((name, pb_utils.get_input_tensor_by_name(request, name)) for name in self._inputs)
        arrays = {name: tensor.as_numpy() for name, tensor in found if tensor is not None}
        # servers before 23.07 have no parameters
        return _Member(place, arrays, getattr(request, "parameters", str)() or "")

    def _answer_together(self, members: list[_Member], responses: list[Any]) -> bool:
        """Answer several requests with one prediction; False where each needs its own."""
        if len(members) == 1 or not self._rows_are_kept:
            return False
        joined = {
            name: np.concatenate([member.arrays[name] for member in members])
            for name in members[0].arrays
        }
        try:
            outputs = self._predict(joined, members[0].parameters)
        except Exception:  # noqa: BLE001 - one of them spoils it; which, is found one by one
            return False
        ends = np.cumsum([member.rows for member in members])
        kept = self._rows_are_kept = all(len(output) == ends[-1] for output in outputs)
        if kept:
            for member, end in zip(members, ends, strict=True):
                rows = [output[end - member.rows : end] for output in outputs]
                responses[member.place] = self._wanted.response(rows)
        return kept

    def _answer_each(self, members: list[_Member], responses: list[Any]) -> None:
        for member in members:
            try:
                outputs = self._predict(member.arrays, member.parameters)
                responses[member.place] = self._wanted.response(outputs)
            except Exception as exc:  # noqa: BLE001 - the model's own
                responses[member.place] = _refusal(exc)

    def _predict(self, arrays: Arrays, parameters: str) -> list[NDArray[Any]]:
        data, params = self._given.data(arrays), self._given.params(parameters)
        return self._wanted.arrays(self._model.predict(data, params=params))


def _refuse_missing(requirements: Path) -> None:
    """Make sure that what the model was logged with is here: what it imports late would be missed.

    Other versions of it are MLflow's to warn of.

    Raises:
        TritonModelException: something is not.
    """
    needed = ["mlflow-skinny", "pandas"]
    if requirements.is_file():
        needed += requirements.read_text("utf-8").splitlines()
    missing = [line.strip() for line in needed if not _is_here(line)]
    if missing:
        wanted = " ".join(f"'{each}'" for each in missing)
        raise pb_utils.TritonModelException(
            f"the server's Python lacks what this model needs: {', '.join(missing)}. Deploy it "
            "with an environment of its own (-C env=pack), install it on the server (pip install "
            f"{wanted}), or start the embedded server with what the model needs "
            "(triton-local --for-model URI)"
        )


def _read_what_numpy_2_pickled() -> None:
    """Give the modules that numpy 2 has renamed their new names, where this is numpy 1.

    Models are pickled with the newest; the Python backend of Tritons up to 24.x needs numpy 1,
    which itself has but some of these names.
    """
    if not np.__version__.startswith("1."):
        return
    for name in ("numeric", "fromnumeric", "function_base", "numerictypes", "records", "umath"):
        new = f"numpy._core.{name}"
        sys.modules.setdefault(new, importlib.import_module(f"numpy.core.{name}"))


def _is_here(line: str) -> bool:
    """Whether a line of requirements.txt is no requirement of this Python, or is installed."""
    requirement, _, marker = line.partition(";")
    found = re.match(r"\s*([A-Za-z0-9][\w.-]*)", requirement)
    if found is None or (marker and not _applies(marker)):
        return True
    # all of it has what the smaller one has
    names = _MLFLOW if found[1] in _MLFLOW else (found[1],)
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            return bool(metadata.version(name))
    return False


def _applies(marker: str) -> bool:
    try:
        from packaging.markers import Marker  # noqa: PLC0415 - MLflow needs it, too
    except ImportError:
        return False
    return Marker(marker.partition(" #")[0].strip()).evaluate()


class _Member:
    """One request of a batch."""

    def __init__(self, place: int, arrays: Arrays, parameters: str) -> None:
        self.place = place
        self.arrays = arrays
        self.parameters = parameters

    @property
    def key(self) -> object:
        """What requests that are answered together have in common."""
        shapes = tuple((name, array.shape[1:]) for name, array in self.arrays.items())
        return shapes, self.parameters

    @property
    def rows(self) -> int:
        return len(next(iter(self.arrays.values()), ()))


def _refusal(exc: Exception) -> Any:
    text = str(exc).strip()
    told = f"{type(exc).__name__}: {text}" if text else type(exc).__name__
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(told))


# -- what is given ------------------------------------------------------------------------------


class _Given:
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

    def data(self, arrays: Arrays) -> object:
        """The first argument of `predict`."""
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
        return frame if self._have_names else frame.set_axis(range(len(columns)), axis=1)

    def params(self, text: str) -> dict[str, Any] | None:
        """The second: what a request's parameters say.

        Ours come as JSON under one name; those of other clients under their own, where they are
        what the model takes: gateways add some that are not.
        """
        given = json.loads(text) if text else {}
        ours = json.loads(given.pop(_PARAMS, "{}"))
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

        flat = pd.to_datetime([each.decode() for each in flat], format="ISO8601").to_numpy()
    elif leaf == "json":
        flat = _objects([json.loads(each) for each in flat])
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


# -- what is answered ---------------------------------------------------------------------------


class _Wanted:
    """What a prediction is made into: arrays of the outputs' types and shapes."""

    def __init__(
        self, outputs: list[dict[str, Any]], signature: ModelSignature | None, *, batched: bool
    ) -> None:
        self._names: list[str] = [each["name"] for each in outputs]
        self._types = [pb_utils.triton_string_to_numpy(each["data_type"]) for each in outputs]
        self._dims = [[int(dim) for dim in each["dims"]] for each in outputs]
        self._batched = batched
        schema = signature.outputs if signature is not None else None
        # without a signature config.pbtxt asks for JSON
        self._are_json = [True] * len(outputs)
        if schema is not None:
            self._are_json = [
                not isinstance(kind, np.dtype) and _unnested(kind)[1] == "json"
                for kind in schema.input_types()
            ]

    def response(self, arrays: Iterable[NDArray[Any]]) -> Any:
        """Triton's response of what `arrays` gave."""
        tensors = [pb_utils.Tensor(*each) for each in zip(self._names, arrays, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def arrays(self, prediction: Any) -> list[NDArray[Any]]:
        """One array an output.

        Raises:
            ValueError: the prediction is not what the signature says.
        """
        if hasattr(prediction, "toarray"):  # scipy's sparse matrices
            prediction = prediction.toarray()
        values = self._values(prediction)
        return [self._array(place, value) for place, value in enumerate(values)]

    def _values(self, prediction: Any) -> list[Any]:
        """What of a prediction belongs to which output."""
        names = self._names
        if hasattr(prediction, "columns"):
            return self._of_frame(prediction)
        if isinstance(prediction, Mapping) and (len(names) > 1 or names[0] in prediction):
            return [_member_of(prediction, name) for name in names]
        if len(names) == 1:
            return [prediction]
        if isinstance(prediction, list) and prediction and isinstance(prediction[0], Mapping):
            return [[_member_of(row, name) for row in prediction] for name in names]
        if isinstance(prediction, (list, tuple)) and len(prediction) == len(names):
            return list(prediction)
        matrix = np.asarray(prediction)
        if matrix.shape[1:2] != (len(names),):
            raise ValueError(
                f"the model answers {type(prediction).__name__} of shape {list(matrix.shape)}, and "
                f"its signature has the outputs {', '.join(names)}"
            )
        return [matrix[:, place] for place in range(len(names))]

    def _of_frame(self, frame: Any) -> list[Any]:
        places = {str(column): place for place, column in enumerate(frame.columns)}
        if places.keys() >= set(self._names):
            return [frame.iloc[:, places[name]] for name in self._names]
        if len(self._names) == 1 and self._are_json[0]:
            return [frame.to_dict("records")]
        if len(self._names) == 1:
            return [frame.iloc[:, 0] if len(places) == 1 else frame]
        if len(places) == len(self._names):
            return [frame.iloc[:, place] for place in range(len(places))]
        raise ValueError(
            f"the model answers the columns {', '.join(places)}, and its signature has "
            f"{', '.join(self._names)}"
        )

    def _array(self, place: int, value: Any) -> NDArray[Any]:
        dtype, dims, name = self._types[place], self._dims[place], self._names[place]
        if dtype is not np.object_:
            array = _numbers(value, dtype, name)
        else:
            array = _json_texts(value) if self._are_json[place] else _texts(value, name)
        if not self._batched:
            return array if array.ndim == len(dims) else array.reshape(dims)
        if array.ndim == len(dims) + 1:
            return array
        return array.reshape(len(array) if array.ndim else 1, *dims)


def _member_of(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise ValueError(f"the model's answer has no {name}, and its signature has")
    return values[name]


def _numbers(value: Any, dtype: type[np.generic], name: str) -> NDArray[Any]:
    """Numbers of the output's type.

    Raises:
        ValueError: they are none, rows have different lengths, or a value would be lost.
    """
    array = np.asarray(value)
    if array.dtype == object:  # cells that hold arrays, or missing values
        try:
            array = np.array([np.asarray(each) for each in array] if array.ndim else array.item())
            array = array.astype(dtype) if array.dtype == object else array
        except (TypeError, ValueError) as exc:
            raise ValueError(f"{name} of the model's answer is no array of numbers: {exc}") from exc
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    lossless = array.dtype.kind in "biuf" and (
        np.can_cast(array.dtype, dtype, "same_kind") or bool((array.astype(dtype) == array).all())
    )
    if not lossless:
        raise ValueError(
            f"{name} of the model's answer is {array.dtype}, and its signature has "
            f"{np.dtype(dtype)}; log the model with the signature that infer_signature gives"
        )
    return np.ascontiguousarray(array, dtype=dtype)


def _texts(value: Any, name: str) -> NDArray[Any]:
    """Text as UTF-8, dates as ISO 8601."""
    array = np.asarray([value] if isinstance(value, (str, bytes)) else value)
    if array.dtype.kind == "M":
        array = np.datetime_as_string(array)
    if array.dtype.kind == "U":
        return np.asarray(np.char.encode(array, "utf-8")).astype(object)
    if array.dtype.kind == "O" and array.ndim == 1 and len(array) and _is_list(array[0]):
        array = np.array([list(each) for each in array], dtype=object)
    texts = [_bytes_of(each, name) for each in array.reshape(-1).tolist()]
    return _objects(texts).reshape(array.shape)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _bytes_of(value: Any, name: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dt.date):
        return value.isoformat().encode()
    if value is None or value != value:  # noqa: PLR0124 - NaN
        raise ValueError(f"{name} of the model's answer has a missing value, where text belongs")
    return str(value).encode()


def _json_texts(value: Any) -> NDArray[Any]:
    """One JSON text a row."""
    rows = value.tolist() if hasattr(value, "tolist") else value
    rows = rows if isinstance(rows, (list, tuple)) else [rows]
    return _objects([json.dumps(each, default=_plain).encode() for each in rows])


def _plain(value: Any) -> object:
    """What JSON has no form for, in one that it has."""
    for method in ("model_dump", "to_dict", "tolist", "isoformat"):  # pydantic, pandas, numpy
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)
