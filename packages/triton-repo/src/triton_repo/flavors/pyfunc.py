"""The `python_function` flavor: any MLflow model, in Triton's Python backend.

A version holds MLflow's directory as it was logged, `model.py`, which Triton's stub runs, and the
worker, a process that `model.py` starts and that loads the model. A model that has
`predict_stream` is a decoupled one to Triton: it answers in pieces. The config.pbtxt is the user's
where one can be found, to the byte; otherwise it is made from the model's signature.

```
<name>/config.pbtxt
<name>/7/model.py                        of this package, see `_pyfunc/model.py`
<name>/7/mlflow_triton_channel.py        what it and the worker say to each other
<name>/7/mlflow_triton_worker.py         the worker
<name>/7/mlflow_triton_values.py         its part that makes tensors of answers
<name>/7/mlflow_triton_environment.json  names the worker's Python, where it has one of its own
<name>/7/mlflow/MLmodel, …               the model
```
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import ModelConfig
from triton_repo.entry import EntryFile, RepositoryEntry, Tree
from triton_repo.errors import ArtifactError
from triton_repo.flavors._files import ModelFiles, entry_of, own_config
from triton_repo.flavors._rows import row_wise
from triton_repo.joining import JOIN_PARAMETER, Joining
from triton_repo.scan import scan_tree
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from triton_repo.artifact import ModelArtifact
    from triton_repo.names import ModelName
    from triton_repo.signature import Column

__all__ = [
    "ENVIRONMENT_FILE",
    "JSON_INPUTS",
    "JSON_LISTS",
    "JSON_OUTPUTS",
    "NAMES",
    "PARAMS",
    "PING",
    "SHIM_FILES",
    "STREAM",
    "STREAMS",
    "STREAM_END",
    "STREAM_ID",
    "TYPES",
    "UNNAMED",
    "convert",
    "generate_config",
]

BACKEND = "python"
MODEL_FOLDER = "mlflow"
#: `parameters` of config.pbtxt, each a JSON list of names: what MLflow calls `params`, which inputs
#: and outputs have one JSON text a row, and which of these inputs take a list in it. A request's
#: own parameter PARAMS holds the former's values as JSON: the protocol has neither lists nor,
#: everywhere, fractions.
PARAMS, JSON_INPUTS, JSON_OUTPUTS = "mlflow_params", "mlflow_json_inputs", "mlflow_json_outputs"
JSON_LISTS = "mlflow_json_lists"
#: A parameter of config.pbtxt: a JSON object that says what the BYTES of an input hold, by its
#: name; see `signature.Column.bytes_type`.
TYPES = "mlflow_types"
#: A parameter of config.pbtxt: `true` where the signature's columns have no names. The model is
#: given those of the caller's table, which a request's own parameter NAMES holds as a JSON list.
UNNAMED, NAMES = "mlflow_unnamed", "mlflow_names"
#: A value of a request's PARAMS that asks whether the model's process lives: `model.py` answers
#: without outputs, and does not ask the model. It is no JSON: a `model.py` of an earlier release
#: refuses it, before it asks the model, too.
PING = "mlflow-triton-ping"
#: A request's own parameter, where the model answers in pieces: False asks for what `predict`
#: answers, in one; without it, it is `predict_stream` that is asked.
STREAM = "mlflow_stream"
#: A name that a request for pieces may have, and the parameter of another request to the same model
#: that ends it before its time; the other is answered with nothing, or with an error where there is
#: no such request: there may be several instances.
STREAM_ID, STREAM_END = "mlflow_stream_id", "mlflow_stream_end"
#: A parameter of config.pbtxt: how many requests of an instance are answered in pieces at the same
#: time. Whoever reads it there knows that this package's `model.py` answers.
STREAMS = "mlflow_streams"
_STREAMS_DEFAULT = 32

#: Rows a request, or a batch of several, may have. Nothing is reserved for it.
GENERATED_MAX_BATCH_SIZE = 65_536
#: What a tensor without a name is called: MLflow's scoring protocol has these words.
_INPUT, _OUTPUT = "inputs", "predictions"
#: The lists of objects by which MLflow's own signatures of chats are known, among the outputs.
_CHATS = ("choices", "messages")

_SHIM = tuple(
    Path(__file__).with_name("_pyfunc") / name
    for name in (
        "model.py",
        "mlflow_triton_channel.py",
        "mlflow_triton_worker.py",
        "mlflow_triton_values.py",
    )
)
#: A file of a version: JSON whose `python` is that of an environment on the server's machine.
ENVIRONMENT_FILE = "mlflow_triton_environment.json"
#: What a version has, of this release or an earlier one, whose `model.py` answers PING.
SHIM_FILES = ("model.py", "mlflow_triton_values.py")
#: What to log instead of what Triton has no type for.
_REPLACEMENTS = {
    "datetime64": 'ColSpec("datetime", {name!r})',
    "timedelta64": 'ColSpec("double", {name!r}), in seconds',
    "complex": "two columns of double",
    "float128": 'ColSpec("double", {name!r})',
    "float8": 'TensorSpec(np.dtype("float16"), …, {name!r})',
}


def convert(artifact: ModelArtifact, name: ModelName, version: int) -> RepositoryEntry:
    """Plan the entry of any MLflow model; see `flavors.convert` for the arguments and errors."""
    whole = scan_tree(artifact.root, inside=artifact.root, tally=artifact.tally())
    config = own_config(artifact, BACKEND, version)
    folder = PurePosixPath(MODEL_FOLDER)
    shim = (EntryFile(PurePosixPath(file.name), file, file.stat().st_size) for file in _SHIM)
    tree = Tree(
        (*shim, *(replace(file, path=folder / file.path) for file in whole.files)),
        tuple(folder / path for path in whole.empty_directories),
    )
    return entry_of(
        ModelFiles(artifact, artifact.tally()),
        name=name,
        version=version,
        flavor="python_function",
        tree=tree,
        config=config or generate_config(artifact, name=name),
        has_own_config=config is not None,
    )


def generate_config(artifact: ModelArtifact, *, name: str) -> ModelConfig:
    """A config.pbtxt for a signature.

    A column is a tensor with one value a row, a `TensorSpec` a tensor of its shape. Where all of
    them begin with a variable dimension, that is the batch. Requests are joined in it only where
    the model is known to answer each row by itself. A model without an output signature
    answers one JSON text a row, and so does a chat (MLflow's `ChatModel`, `ChatAgent`,
    `llm/v1/chat`): its answers leave keys out that the signature has, its pieces have others.

    Raises:
        ArtifactError: the model has no input signature, or one that Triton has no types for; each
            column at fault is named.
    """
    takes, answers = (_served_columns(artifact, side) for side in ("inputs", "outputs"))
    inputs = _named(takes, _INPUT)
    if not inputs:
        raise ArtifactError(
            "the model was logged without a signature, and a server needs to know its inputs: "
            "mlflow.models.set_signature(model_uri, mlflow.models.infer_signature(inputs, "
            "model.predict(inputs))) adds one"
        )
    outputs, json_outputs, comment = _answered(answers)
    json_inputs = [spec for spec, each in zip(inputs, takes, strict=True) if each.is_json]
    json_lists = [
        spec for spec, each in zip(inputs, takes, strict=True) if each.is_json and each.is_list
    ]
    as_json = {
        PARAMS: artifact.signature_params,
        JSON_INPUTS: [spec.name for spec in json_inputs],
        JSON_LISTS: [spec.name for spec in json_lists],
        JSON_OUTPUTS: [spec.name for spec in json_outputs],
    }
    parameters = {key: json.dumps(names) for key, names in as_json.items() if names}
    parameters |= _types_and_names(inputs, takes)
    decoupled = bool(artifact.flavors["python_function"].get("streamable"))
    if decoupled:
        parameters[STREAMS] = str(_STREAMS_DEFAULT)
    batched = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
    joining = row_wise(artifact)
    if not batched:
        joining = Joining(is_joined=False, why="the signature has no batch dimension")
    parameters[JOIN_PARAMETER] = joining.text
    return ModelConfig.build(
        name=name,
        backend=BACKEND,
        inputs=[_config_spec(spec, batched=batched) for spec in inputs],
        outputs=[_config_spec(spec, batched=batched) for spec in outputs],
        max_batch_size=GENERATED_MAX_BATCH_SIZE if batched else 0,
        dynamic_batching=joining.is_joined,
        decoupled=decoupled,
        # each instance is a process that imports all of the model's packages
        instances=1,
        parameters=parameters,
        comment=comment,
    )


def _types_and_names(inputs: list[TensorSpec], takes: list[Column]) -> dict[str, str]:
    """The parameters by which clients know what the inputs' BYTES hold, and whose names count."""
    types = {spec.name: each.bytes_type for spec, each in zip(inputs, takes, strict=True)}
    known = {name: bytes_type for name, bytes_type in types.items() if bytes_type}
    parameters = {TYPES: json.dumps(known)} if known else {}
    if not any(each.name or each.is_tensor for each in takes):
        parameters[UNNAMED] = "true"
    return parameters


def _answered(columns: list[Column]) -> tuple[list[TensorSpec], list[TensorSpec], str]:
    """The outputs, those of them that are JSON, and what config.pbtxt says at its top."""
    comment = "Generated from the model's signature. Log a config.pbtxt with it to use your own."
    whole = [TensorSpec(_OUTPUT, "BYTES", (-1, 1))]
    if not columns:
        why = "It says nothing of the outputs: each row of them is one JSON text."
        return whole, whole, f"{comment}\n{why}"
    if any(each.is_json and each.is_list and each.name in _CHATS for each in columns):
        why = "A chat's answers have not always the same keys: each is one JSON text."
        return whole, whole, f"{comment}\n{why}"
    outputs = _named(columns, _OUTPUT)
    as_json = [spec for spec, each in zip(outputs, columns, strict=True) if each.is_json]
    return outputs, as_json, comment


def _served_columns(artifact: ModelArtifact, side: str) -> list[Column]:
    columns = artifact.signature_columns(side)
    refused = [each for each in columns if each.spec is None]
    if refused:
        told = "; ".join(f"{_called(each)} is {each.type}: {_advice(each)}" for each in refused)
        raise ArtifactError(
            f"signature.{side} of the model has what Triton has no type for: {told}; convert it in "
            "the model, and log it with such a signature (mlflow.models.set_signature)"
        )
    return columns


def _called(column: Column) -> str:
    return f"column {column.name!r}" if column.name else "its tensor"


def _advice(column: Column) -> str:
    for kind, replacement in _REPLACEMENTS.items():
        if kind in column.type:
            return f"use {replacement.format(name=column.name or 'x')}"
    return column.problem


def _named(columns: Iterable[Column], default: str) -> list[TensorSpec]:
    """Tensors with names: MLflow knows columns without one by their position.

    Raises:
        ArtifactError: two have the same.
    """
    specs = [each.spec for each in columns if each.spec is not None]
    if len(specs) == 1:
        return [replace(specs[0], name=specs[0].name or default)]
    named = [replace(spec, name=spec.name or str(place)) for place, spec in enumerate(specs)]
    names = [spec.name for spec in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ArtifactError(
            f"the model's signature has {twice!r} more than once; rename all but one"
        )
    return named


def _config_spec(spec: TensorSpec, *, batched: bool) -> TensorSpec:
    """Without the batch dimension; a row with one value is [1], for Triton has no scalars."""
    return replace(spec, shape=spec.shape[1:] or (1,)) if batched else spec
