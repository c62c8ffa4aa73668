"""Directories in Triton's layout: of one model, or of several that are deployed as one."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from publish_tools._single_files import entry_of
from publish_tools.model_plan import MLFLOW_FILES, ModelPlan
from publish_tools.signature import Tensors, config_tensors
from triton_repo.config import CONFIG_FILENAME
from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import ConfigError, InvalidNameError
from triton_repo.flavors.onnx import generate_config
from triton_repo.flavors.onnx_graph import read_graph
from triton_repo.group import ModelGroup, is_group
from triton_repo.layout import ModelDirectory
from triton_repo.names import check_name

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from triton_repo.config import ModelConfig
    from triton_repo.flavors.onnx_graph import OnnxGraph

__all__ = ["plan_triton"]

_MODEL_FILENAME = "model.onnx"


def plan_triton(source: str | os.PathLike[str], main_model: str = "") -> ModelPlan:
    """Plan a directory in Triton's layout, or of several models; see `plan_model`."""
    root = Path(source)
    data = _data_name(root)
    if is_group(root):
        return _plan_group(root, data, main_model)
    directory = ModelDirectory.read(root)
    versions = sorted(directory.versions)
    return ModelPlan(
        flavor="triton",
        source=root,
        tree=_artifact_tree(PurePosixPath(data), directory),
        settings={"data": data, "versions": versions},
        tensors=_directory_tensors(directory),
        config=directory.config,
        versions=tuple(versions),
    )


def _plan_group(root: Path, data: str, main_model: str) -> ModelPlan:
    """Plan several models that are deployed as one; clients see the main one's tensors."""
    group = ModelGroup.read(root, main_model)
    tensors = {name: _directory_tensors(model) for name, model in group.models.items()}
    trees = [
        _artifact_tree(PurePosixPath(data, name), model) for name, model in group.models.items()
    ]
    main = group.models[group.main]
    return ModelPlan(
        flavor="triton",
        source=root,
        tree=Tree(
            tuple(file for tree in trees for file in tree.files),
            tuple(path for tree in trees for path in tree.empty_directories),
        ),
        settings={
            "data": data,
            "main_model": group.main,
            "versions": {name: sorted(model.versions) for name, model in group.models.items()},
        },
        tensors=tensors[group.main],
        config=main.config,
        versions=tuple(sorted(main.versions)),
        models=tuple(group.models),
    )


def _data_name(root: Path) -> str:
    """The directory's name in the artifact: its own, where every store can spell it."""
    name = root.resolve().name
    try:
        return check_name(name) if name not in MLFLOW_FILES else "model"
    except InvalidNameError:
        return "model"


def _artifact_tree(data: PurePosixPath, directory: ModelDirectory) -> Tree:
    files = [EntryFile(data / file.path, file.source, file.size_bytes) for file in _all(directory)]
    empty = [data / path for path in directory.shared.empty_directories]
    for version, tree in directory.versions.items():
        below = tree.empty_directories
        # an ensemble's version has nothing in it, and must exist all the same
        inside = below if tree.files or below else (PurePosixPath(),)
        empty += [data / str(version) / path for path in inside]
    return Tree(tuple(files), tuple(empty))


def _all(directory: ModelDirectory) -> Iterator[EntryFile]:
    """The directory's files, by their paths in it."""
    if directory.config is not None:
        path = directory.root / CONFIG_FILENAME
        yield entry_of(CONFIG_FILENAME, path, directory.root)
    yield from directory.shared.files
    for version, tree in directory.versions.items():
        for file in tree.files:
            yield EntryFile(PurePosixPath(str(version)) / file.path, file.source, file.size_bytes)


def _directory_tensors(directory: ModelDirectory) -> Tensors:
    config = directory.config
    filename = (config.model_filename if config is not None else "") or _MODEL_FILENAME
    graphs = [
        read_graph(file.source)  # every version's: what is no ONNX model is refused here
        for _, tree in sorted(directory.versions.items())
        for file in tree.files
        if str(file.path) == filename and file.path.suffix == ".onnx" and _reads_onnx(config)
    ]
    if config is not None and config.inputs and config.outputs:
        return config_tensors(config)
    if graphs:
        return _graph_config_tensors(graphs[-1], directory.root.name)
    return config_tensors(config) if config is not None else Tensors()


def _reads_onnx(config: ModelConfig | None) -> bool:
    return config is None or config.backend in ("", "onnxruntime")


def _graph_config_tensors(graph: OnnxGraph, name: str) -> Tensors:
    try:
        return config_tensors(generate_config(graph, name=name))
    except ConfigError as exc:
        return Tensors(notes=(f"there is no signature: {exc}",))
