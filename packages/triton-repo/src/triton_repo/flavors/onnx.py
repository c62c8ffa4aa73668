"""The `onnx` flavor: a model that MLflow logged with `mlflow.onnx`.

Its config.pbtxt is the user's where one can be found, to the byte; otherwise it is generated from
the graph, so that the model also loads where the server's auto-complete is off.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.entry import EntryFile, RepositoryEntry, Tree
from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.flavors._files import ModelFiles, shared_tree, user_config
from triton_repo.flavors.onnx_graph import GraphTensor, OnnxGraph, read_graph
from triton_repo.joining import JOIN_PARAMETER, Joining
from triton_repo.scan import check_member, scan_tree

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.names import ModelName
    from triton_repo.tensors import TensorSpec

__all__ = ["GENERATED_MAX_BATCH_SIZE", "convert", "generate_config"]

BACKEND = "onnxruntime"
MODEL_FILENAME = "model.onnx"

#: Rows a request may have under a generated config. Triton reserves nothing for it, so there is no
#: reason for its own default of 4, which refuses the first real table it is given.
GENERATED_MAX_BATCH_SIZE = 1024


def convert(
    artifact: ModelArtifact, name: ModelName, version: int, *, batches: bool = False
) -> RepositoryEntry:
    """Plan the entry of an ONNX model; see `flavors.convert` for the arguments and errors."""
    data = artifact.path(artifact.flavors["onnx"].get("data", ""), said_by="MLmodel's onnx flavor")
    model_files = ModelFiles(artifact, artifact.tally())
    model_file, base = _model_file(data, artifact.root)
    model_bytes = model_files.size_of(model_file, said_by="MLmodel's onnx flavor")
    graph = read_graph(model_file)
    config = own_config = user_config(artifact)
    if config is None:
        config = generate_config(
            graph,
            name=name,
            signature_inputs=artifact.signature_tensors("inputs"),
            signature_outputs=artifact.signature_tensors("outputs"),
            batches=batches,
        )
    elif config.pinned_versions:
        config = config.pinned([version])
    model = EntryFile(PurePosixPath(_filename(config, model_file, base)), model_file, model_bytes)
    tree = _version_tree(model_files, model, base, graph)
    return RepositoryEntry(
        name=name,
        flavor="onnx",
        versions={version: tree},
        shared=shared_tree(model_files, config),
        config=config.with_name(name),
        has_own_config=own_config is not None,
    )


def _model_file(data: Path, root: Path) -> tuple[Path, Path]:
    """The .onnx file and the directory that its external files are relative to."""
    if data.is_file():
        return data, data.parent
    candidates = sorted(data.glob("*.onnx"))
    named = [path for path in candidates if path.name == MODEL_FILENAME]
    if len(named or candidates) != 1:
        raise MissingModelFileError(
            f"{data} holds {len(candidates)} .onnx files; exactly one, or one called "
            f"{MODEL_FILENAME}, is needed",
            path=MODEL_FILENAME,
        )
    (model_file,) = named or candidates
    check_member(model_file, root.resolve())
    return model_file, data


def _filename(config: ModelConfig, model_file: Path, base: Path) -> str:
    """What the model file is called in the repository: what the server will look for."""
    named = config.model_filename
    if config.backend not in ("", BACKEND):
        return named or str(model_file.relative_to(base))
    return named or MODEL_FILENAME


def _version_tree(model_files: ModelFiles, model: EntryFile, base: Path, graph: OnnxGraph) -> Tree:
    """The model and what it needs, at the same relative paths: ONNX Runtime resolves them so."""
    root = model_files.artifact.root
    if base.resolve() == root.resolve():
        return Tree((model, *_external(model_files, base, graph)))
    # A directory of its own (`data: onnx/`): everything in it belongs to the model.
    whole = scan_tree(base, inside=root, tally=model_files.artifact.tally())
    others = tuple(
        file
        for file in whole.files
        if file.source != model.source and str(file.path) != CONFIG_FILENAME
    )
    _external(model_files, base, graph)
    if any(file.path == model.path for file in others):
        raise ArtifactError(
            f"{base} holds another {model.path} than {model.source.name}, the model that MLmodel "
            "names; remove or rename it"
        )
    return Tree((model, *others), whole.empty_directories)


def _external(model_files: ModelFiles, base: Path, graph: OnnxGraph) -> list[EntryFile]:
    """The files that hold weights of the graph."""
    files = []
    for location in graph.external_files:
        said_by = "the ONNX graph (external data)"
        if PurePosixPath(location).is_absolute():
            raise ArtifactError(f"{said_by} names {location!r}, which leaves the model")
        artifact = model_files.artifact
        path = artifact.path(str(base.relative_to(artifact.root) / location), said_by=said_by)
        size_bytes = model_files.size_of(path, said_by=said_by)
        files.append(EntryFile(PurePosixPath(location), path, size_bytes))
    return files


# -- the generated config ---------------------------------------------------------------------


def generate_config(
    graph: OnnxGraph,
    *,
    name: str,
    signature_inputs: dict[str, TensorSpec] | None = None,
    signature_outputs: dict[str, TensorSpec] | None = None,
    batches: bool = False,
) -> ModelConfig:
    """A config.pbtxt for a graph.

    Names and types are the graph's. A shape that the graph leaves open is taken from the MLflow
    signature. Where every tensor begins with the same variable dimension, and it is a batch by its
    name, requests are joined in it. Otherwise tensors keep their true shapes (`max_batch_size: 0`):
    places along a sequence, say, may depend on each other.

    Args:
        graph: the model's.
        name: the deployment.
        signature_inputs: shapes, where the graph has none.
        signature_outputs: the same.
        batches: whether the user says that the first dimension is a batch, whatever its name.

    Raises:
        ConfigError: a tensor's rank is nowhere to be found.
    """
    inputs = [_with_shape(tensor, signature_inputs or {}) for tensor in graph.inputs]
    outputs = [_with_shape(tensor, signature_outputs or {}) for tensor in graph.outputs]
    whole = OnnxGraph(tuple(inputs), tuple(outputs), ())
    # A tensor that is nothing but its batch ([N]) would have no dims left; keep the true shapes.
    has_rows = all(len(tensor.shape or ()) > 1 for tensor in (*inputs, *outputs))
    is_sure = has_rows and whole.has_batch_dimension
    batched = is_sure or (has_rows and batches and whole.has_variable_first_dimension)
    joining = _joining(whole, is_sure=is_sure)
    return ModelConfig.build(
        name=name,
        backend=BACKEND,
        platform="onnxruntime_onnx",
        inputs=[_config_spec(tensor, batched=batched) for tensor in inputs],
        outputs=[_config_spec(tensor, batched=batched) for tensor in outputs],
        max_batch_size=GENERATED_MAX_BATCH_SIZE if batched else 0,
        dynamic_batching=is_sure,
        parameters={JOIN_PARAMETER: joining.text},
        comment="Generated from the ONNX graph. Log a config.pbtxt with the model to use your own.",
    )


def _joining(graph: OnnxGraph, *, is_sure: bool) -> Joining:
    names = graph.first_dimensions
    if is_sure:
        why = (
            f"the first dimension is a batch by its name ({names or 'none, as exporters leave it'})"
        )
    elif graph.has_variable_first_dimension and names:
        why = f"the first dimensions ({names}) are no batch by their names"
    else:
        why = "the graph has no batch dimension in every tensor"
    return Joining(is_joined=is_sure, why=why)


def _with_shape(tensor: GraphTensor, signature: dict[str, TensorSpec]) -> GraphTensor:
    if tensor.shape is not None:
        return tensor
    known = signature.get(tensor.name) or (signature.get("") if len(signature) == 1 else None)
    if known is None:
        raise ConfigError(
            f"the ONNX graph gives no shape for {tensor.name!r}; log the model with a signature, "
            "or a config.pbtxt with it",
            field=f"{tensor.name}.dims",
        )
    return GraphTensor(tensor.name, tensor.datatype, known.shape, tensor.first_dim_name)


def _config_spec(tensor: GraphTensor, *, batched: bool) -> TensorSpec:
    shape = tensor.shape or ()
    return tensor.spec(shape[1:] if batched else shape)
