# ruff: noqa: INP001 - no part of the package: Triton's stub imports it by itself, as `model`
"""Triton's `onnxruntime` backend, on ONNX Runtime's Python API.

A Python-based backend: Triton loads this file for each model whose backend is `onnxruntime`, in a
stub process for each instance. It follows Triton's own backend (`onnxruntime_backend`,
`src/onnxruntime.cc`) in what it completes in a configuration, what it refuses, and what it reads
from `parameters` and `optimization`, so that a model that is served here is served there.

It may only import numpy, ONNX Runtime, Triton's `pb_utils` and the standard library, and runs on
Python 3.10 to 3.12.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

#: ONNX Runtime's name of a tensor's element type, and Triton's.
_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float": "TYPE_FP32",
    "double": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "string": "TYPE_STRING",
}
_TENSOR = re.compile(r"(?P<optional>optional\()?tensor\((?P<element>\w+)\)\)?")

#: Triton's default for `--backend-config=onnxruntime,default-max-batch-size`, of which a
#: Python-based backend is not told.
_DEFAULT_MAX_BATCH_SIZE = 4

#: `optimization { graph { level } }`; as in Triton's backend, everything is on by default.
_GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
#: `TensorProto.BFLOAT16`
_BFLOAT16_IN_ONNX = 16
_ERRORS_ONLY = 3

Config = dict[str, Any]
Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


class Tensor(NamedTuple):
    """One input or output of the graph.

    `dims` holds -1 for a variable dimension. It is empty for a scalar and also where the graph
    says nothing of the shape: ONNX Runtime does not tell these apart.
    """

    name: str
    type: str
    data_type: str
    dims: list[int]
    optional: bool


class TritonPythonModel:
    """One instance of one model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in what config.pbtxt leaves out, by the rules of Triton's own backend."""
        config = auto_complete_model_config.as_dict()
        if not _is_complete(config):
            # the one place where the stub is told where the model is
            version_folder = Path(_stub_arguments()[1]).parent
            options = _session_options({})
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = _load(_model_path(version_folder, config), options)
            _complete_batching(auto_complete_model_config, _inputs(session), _outputs(session))
            _complete_tensors(config, "input", _inputs(session))
            _complete_tensors(config, "output", _servable(_outputs(session)))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph and check that the configuration fits it."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        self._session = _load(_model_path(folder, config), _session_options(config))
        overridable = _tensors(self._session.get_overridable_initializers())
        self._inputs = {tensor.name: tensor for tensor in [*_inputs(self._session), *overridable]}
        self._outputs = {tensor.name: tensor for tensor in _outputs(self._session)}
        _check_features(config)
        _check(config, _inputs(self._session), self._inputs, self._outputs)
        self._batches = config["max_batch_size"] > 0
        self._padded = _padded(config, self._inputs | self._outputs)
        types = {tensor.data_type for tensor in (self._inputs | self._outputs).values()}
        self._has_bfloat16 = "TYPE_BF16" in types
        if types >= {"TYPE_BF16", "TYPE_STRING"}:
            raise pb_utils.TritonModelException(
                "the model has both bfloat16 and string tensors, which ONNX Runtime's Python API "
                "does not take together"
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails does not take the others with it."""
        responses: list[Any] = [None] * len(requests)
        for group, feeds in self._grouped(requests, responses):
            for index, response in zip(group, self._answer(requests, group, feeds), strict=True):
                responses[index] = response
        return responses

    def finalize(self) -> None:
        """Release the session."""
        del self._session

    def _grouped(
        self, requests: list[Any], responses: list[Any]
    ) -> list[tuple[list[int], list[Feed]]]:
        """Sort requests into those that can run as one batch: equal inputs but for the batch."""
        groups: dict[Any, tuple[list[int], list[Feed]]] = {}
        for index, request in enumerate(requests):
            try:
                feed = {tensor.name(): self._read(tensor) for tensor in request.inputs()}
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
                responses[index] = _failed(error)
                continue
            shapes = tuple((name, feed[name].shape[1:]) for name in sorted(feed))
            indices, feeds = groups.setdefault(shapes if self._batches else index, ([], []))
            indices.append(index)
            feeds.append(feed)
        return list(groups.values())

    def _answer(self, requests: list[Any], group: list[int], feeds: list[Feed]) -> list[Any]:
        wanted = [list(requests[index].requested_output_names()) for index in group]
        names = list(dict.fromkeys(name for some in wanted for name in some))
        if len(group) == 1:
            return [self._answer_one(names, feeds[0])]
        try:
            sizes = [len(next(iter(feed.values()))) for feed in feeds]
            merged = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
            parts = _split(self._run(names, merged), sizes)
        except Exception:  # noqa: BLE001 - whose fault it is shows when each runs alone
            pairs = zip(wanted, feeds, strict=True)
            return [self._answer_one(some, feed) for some, feed in pairs]
        pairs = zip(wanted, parts, strict=True)
        return [self._response({name: part[name] for name in some}) for some, part in pairs]

    def _answer_one(self, names: list[str], feed: Feed) -> Any:
        try:
            return self._response(self._run(names, feed))
        except Exception as error:  # noqa: BLE001 - it becomes the request's error
            return _failed(error)

    def _run(self, names: list[str], feed: Feed) -> Feed:
        if self._has_bfloat16:
            return self._run_values(names, feed)
        return dict(zip(names, self._session.run(names, feed), strict=True))

    def _run_values(self, names: list[str], feed: Feed) -> Feed:
        """Run with ONNX Runtime's own values: numpy has no bfloat16, it goes as uint16."""
        values = {name: self._ort_value(name, array) for name, array in feed.items()}
        results = self._session.run_with_ort_values(names, values)
        return {
            name: _from_onnx(value) if self._is_bfloat16(self._outputs[name]) else value.numpy()
            for name, value in zip(names, results, strict=True)
        }

    def _ort_value(self, name: str, array: Array) -> Any:
        if self._is_bfloat16(self._inputs[name]):
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16_IN_ONNX)
        return ort.OrtValue.ortvalue_from_numpy(array)

    @staticmethod
    def _is_bfloat16(tensor: Tensor) -> bool:
        return tensor.data_type == "TYPE_BF16"

    def _read(self, tensor: Any) -> Array:
        """Return a request's tensor as the graph takes it; a view where that is possible."""
        name = tensor.name()
        is_bfloat16 = self._is_bfloat16(self._inputs[name])
        array = _from_dlpack(tensor) if is_bfloat16 else tensor.as_numpy()
        if self._inputs[name].data_type == "TYPE_STRING":
            array = _decoded(array)
        return array.reshape(array.shape[:-1]) if name in self._padded else array

    def _response(self, outputs: Feed) -> Any:
        return pb_utils.InferenceResponse([self._written(*item) for item in outputs.items()])

    def _written(self, name: str, array: Array) -> Any:
        if name in self._padded:
            array = array.reshape((*array.shape, 1))
        if self._is_bfloat16(self._outputs[name]):
            return _to_dlpack(name, array)
        return pb_utils.Tensor(name, array)


# What the graph says


def _load(path: Path, options: Any) -> Any:
    if not path.is_file():
        raise pb_utils.TritonModelException(f"there is no model file {path}")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise pb_utils.TritonModelException(f"ONNX Runtime cannot load {path}: {error}") from error


def _model_path(version_folder: Path, config: Config) -> Path:
    """Return the model's file: the configured one, `model.onnx`, or that in such a directory."""
    name = config.get("default_model_filename") or "model.onnx"
    path = version_folder / name
    others = sorted((config.get("cc_model_filenames") or {}).values())
    if not path.exists() and others:
        path = version_folder / others[0]
    return path / "model.onnx" if path.is_dir() else path


def _stub_arguments() -> list[str]:
    return Path("/proc/self/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")


def _inputs(session: Any) -> list[Tensor]:
    return _tensors(session.get_inputs())


def _outputs(session: Any) -> list[Tensor]:
    return _tensors(session.get_outputs())


def _tensors(arguments: list[Any]) -> list[Tensor]:
    return [_tensor(argument) for argument in arguments]


def _tensor(argument: Any) -> Tensor:
    match = _TENSOR.fullmatch(argument.type)
    data_type = _TYPES.get(match["element"], "") if match else ""
    # a variable dimension is None, or has a name
    dims = [dim if isinstance(dim, int) and dim >= 0 else -1 for dim in argument.shape or []]
    return Tensor(argument.name, argument.type, data_type, dims, bool(match and match["optional"]))


# Completing a configuration


def _is_complete(config: Config) -> bool:
    """Tell whether there is nothing to complete; as Triton's own backend."""
    return bool(config["input"]) and bool(config["output"])


def _complete_batching(model_config: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    config = model_config.as_dict()
    can_batch = all(tensor.dims[:1] == [-1] for tensor in [*inputs, *outputs])
    if not can_batch:
        if config["max_batch_size"]:
            raise pb_utils.TritonModelException(
                f"max_batch_size is {config['max_batch_size']}, and the model does not support "
                "batching: the first dimension of each input and output must be variable; set "
                "max_batch_size: 0"
            )
        return
    if config["max_batch_size"] == 0:
        model_config.set_max_batch_size(_DEFAULT_MAX_BATCH_SIZE)
    if config["max_batch_size"] > 1 and not config.get("sequence_batching"):
        model_config.set_dynamic_batching()


def _complete_tensors(config: Config, key: str, tensors: list[Tensor]) -> None:
    """Describe all inputs or outputs where the configuration describes none."""
    batches = config["max_batch_size"] > 0
    if not config[key]:
        # not by add_input, which knows nothing of `reshape`
        config[key].extend(_described(tensor, batches=batches) for tensor in tensors)


def _described(tensor: Tensor, *, batches: bool) -> Config:
    _require_type(tensor)
    described: Config = {"name": tensor.name, "data_type": tensor.data_type}
    described["dims"] = tensor.dims[1:] if batches else tensor.dims
    if not described["dims"]:
        described["dims"] = [1]
        if batches:
            described["reshape"] = {"shape": []}
    if tensor.optional:
        described["optional"] = True
    return described


def _servable(outputs: list[Tensor]) -> list[Tensor]:
    """Leave out what Triton has no type for, as long as there is something left to serve."""
    servable = [tensor for tensor in outputs if tensor.data_type]
    for tensor in outputs:
        if tensor not in servable:
            pb_utils.Logger.log_warn(f"output '{tensor.name}' is {tensor.type}: it is not served")
    return servable or outputs


def _require_type(tensor: Tensor) -> None:
    if not tensor.data_type:
        raise pb_utils.TritonModelException(
            f"'{tensor.name}' is {tensor.type}, for which Triton has no datatype; export the model "
            "with tensors only (skl2onnx: zipmap=False)"
        )


# Checking a configuration


def _check_features(config: Config) -> None:
    unsupported = [key for key in ("batch_input", "batch_output") if config.get(key)]
    if (config.get("sequence_batching") or {}).get("state"):
        unsupported.append("sequence_batching.state")
    if unsupported:
        raise pb_utils.TritonModelException(
            f"the embedded Triton's onnxruntime backend does not support {', '.join(unsupported)}"
        )


def _check(
    config: Config, required: list[Tensor], inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> None:
    batches = config["max_batch_size"] > 0
    controls = (config.get("sequence_batching") or {}).get("control_input", [])
    named = {tensor["name"] for tensor in [*config["input"], *controls]}
    for tensor in required:
        if tensor.name not in named and not tensor.optional:
            raise pb_utils.TritonModelException(
                f"the model needs input '{tensor.name}', which the configuration does not name"
            )
    for kind, known in (("input", inputs), ("output", outputs)):
        for described in config[kind]:
            _check_tensor(kind, described, known, batches=batches)


def _check_tensor(kind: str, described: Config, known: dict[str, Tensor], *, batches: bool) -> None:
    name = described["name"]
    if name not in known:
        raise pb_utils.TritonModelException(
            f"the configuration names {kind} '{name}', and the model has no such {kind}; "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    tensor = known[name]
    _require_type(tensor)
    if described["data_type"] != tensor.data_type:
        raise pb_utils.TritonModelException(
            f"the configuration says {described['data_type']} for {kind} '{name}', and the model "
            f"has {tensor.data_type}"
        )
    _check_dims(kind, described, tensor, batches=batches)


def _check_dims(kind: str, described: Config, tensor: Tensor, *, batches: bool) -> None:
    dims = described["dims"]
    if described.get("reshape") is not None:
        dims = described["reshape"].get("shape", [])
    dims = [int(dim) for dim in dims]
    full = [-1, *dims] if batches else dims
    if _dims_fit(full, tensor.dims) or (full[-1:] == [1] and _dims_fit(full[:-1], tensor.dims)):
        return
    hint = ""
    if batches and tensor.dims[:1] != [-1]:
        hint = "; its first dimension is no batch dimension: set max_batch_size: 0"
    raise pb_utils.TritonModelException(
        f"the configuration says dims {dims} for {kind} '{tensor.name}'"
        f"{' and a batch dimension before them' if batches else ''}, and the model has "
        f"{tensor.dims}{hint}"
    )


def _dims_fit(full: list[int], model: list[int]) -> bool:
    """Compare as Triton's backend does: a variable dimension of the model takes any size."""
    if not model:  # a scalar, or nothing is known of the shape
        return True
    pairs = zip(full, model, strict=False)
    return len(full) == len(model) and all(dim in (-1, ours) for ours, dim in pairs)


def _padded(config: Config, tensors: dict[str, Tensor]) -> set[str]:
    """Name the tensors with a dimension of 1 that the graph lacks.

    A configuration has no scalars: without a `reshape`, `dims: [1]` stands for one.
    """
    own_rank = int(config["max_batch_size"] > 0)
    return {
        described["name"]
        for described in [*config["input"], *config["output"]]
        if [int(dim) for dim in described["dims"]] == [1]
        and described.get("reshape") is None
        and len(tensors[described["name"]].dims) == own_rank
    }


# Options


def _session_options(config: Config) -> Any:
    """Read what Triton's backend reads from a configuration."""
    parameters = {
        key: value["string_value"] for key, value in (config.get("parameters") or {}).items()
    }
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    graph = (config.get("optimization") or {}).get("graph") or {}
    level = int(graph.get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS.get(
        level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    intra = _integer(parameters, "intra_op_thread_count")
    options.intra_op_num_threads = intra or _threads_an_instance(config)
    options.inter_op_num_threads = _integer(parameters, "inter_op_thread_count")
    if _integer(parameters, "execution_mode"):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = _boolean(parameters, "enable_mem_arena")
    options.enable_mem_pattern = _boolean(parameters, "enable_mem_pattern")
    for key, value in parameters.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return options


def _threads_an_instance(config: Config) -> int:
    """Divide the processors between the instances, which run at the same time."""
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group") or [{}])
    return max(1, len(os.sched_getaffinity(0)) // max(1, instances))


def _integer(parameters: dict[str, str], key: str) -> int:
    try:
        return int(parameters.get(key) or 0)
    except ValueError:
        raise pb_utils.TritonModelException(
            f"parameter {key} must be a whole number, and is '{parameters[key]}'"
        ) from None


def _boolean(parameters: dict[str, str], key: str) -> bool:
    value = parameters.get(key, "true").lower()
    if value not in ("true", "false", "1", "0"):
        raise pb_utils.TritonModelException(
            f"parameter {key} must be true, false, 1 or 0, and is '{value}'"
        )
    return value in ("true", "1")


# Data


def _split(outputs: Feed, sizes: list[int]) -> list[Feed]:
    """Cut a batch's outputs into the requests', as views."""
    ends = np.cumsum(sizes)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != ends[-1]:
            raise ValueError(f"output '{name}' has no batch dimension")
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]


def _decoded(array: Array) -> Array:
    """Turn Triton's bytes into what ONNX Runtime takes as strings."""
    items = [item if isinstance(item, bytes) else str(item).encode() for item in array.flat]
    decoded = np.empty(len(items), dtype=object)
    try:
        decoded[:] = [item.decode() for item in items]
    except UnicodeDecodeError as error:
        raise ValueError(f"a string is not UTF-8: {error}") from error
    shaped: Array = decoded.reshape(array.shape)
    return shaped


def _failed(error: Exception) -> Any:
    invalid = type(error).__name__ in ("InvalidArgument", "ValueError")
    code = pb_utils.TritonError.INVALID_ARG if invalid else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


# bfloat16, which numpy has not: the tensors' memory is looked at as uint16, through DLPack


class _DLTensor(ctypes.Structure):
    """The head of DLPack's `DLManagedTensor` (dlpack.h)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DL_UINT = 1
_DL_BFLOAT = 4
#: Capsules keep a pointer to their name, not a copy.
_NAME = b"dltensor"
_USED_NAME = b"used_dltensor"

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = (ctypes.py_object, ctypes.c_char_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class _Relabelled:
    """A tensor that hands out another one's memory under another element type."""

    def __init__(self, capsule: Any, type_code: int) -> None:
        pointer = _capsule_pointer(capsule, _NAME)
        _DLTensor.from_address(pointer).type_code = type_code
        # Triton renames a capsule it consumed to "used_dlpack"; numpy's own, which expects
        # "used_dltensor", would then crash: this one has no destructor
        self._capsule = _new_capsule(pointer, _NAME, None)
        _set_capsule_name(capsule, _USED_NAME)

    def __dlpack__(self, **_options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU


def _from_dlpack(tensor: Any) -> Array:
    """Return a request's tensor as uint16; a view."""
    array: Array = np.from_dlpack(_Relabelled(tensor.to_dlpack(), _DL_UINT))
    return array


def _to_dlpack(name: str, array: Array) -> Any:
    """Return a response's tensor made of uint16."""
    capsule = np.ascontiguousarray(array).__dlpack__()
    return pb_utils.Tensor.from_dlpack(name, _Relabelled(capsule, _DL_BFLOAT))


def _from_onnx(value: Any) -> Array:
    """Return a copy, as uint16, of ONNX Runtime's value, whose memory goes with it."""
    array = np.empty(value.shape(), np.uint16)
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array
