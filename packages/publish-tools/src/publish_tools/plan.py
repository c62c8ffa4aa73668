"""What will be published, found and checked before MLflow hears of it. Reads; never writes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from publish_tools.examples import INPUT_EXAMPLE, Examples, read_examples
from publish_tools.signature import Tensors, config_tensors, graph_tensors
from triton_repo.artifact import OUTPUT_EXAMPLE
from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import (
    ArtifactError,
    ConfigError,
    InvalidNameError,
    MissingModelFileError,
    UnsupportedFlavorError,
)
from triton_repo.flavors.onnx import generate_config
from triton_repo.flavors.onnx_graph import read_graph
from triton_repo.group import ModelGroup, is_group
from triton_repo.layout import ModelDirectory
from triton_repo.names import check_name
from triton_repo.scan import check_member

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from publish_tools.examples import Example
    from triton_repo.flavors.onnx_graph import OnnxGraph

__all__ = [
    "FLAVORS",
    "MLFLOW_FILES",
    "ModelPlan",
    "content_digest",
    "plan_model",
    "plan_onnx",
    "plan_repository",
    "plan_triton",
]

FLAVORS = ("triton", "onnx")

#: What MLflow itself, or the deployment, looks for at the top of an artifact.
MLFLOW_FILES = frozenset({
    INPUT_EXAMPLE,
    "MLmodel",
    OUTPUT_EXAMPLE,
    "conda.yaml",
    "extra_files",
    "metadata",
    "python_env.yaml",
    "registered_model_meta",
    "requirements.txt",
    "serving_input_example.json",
})  # fmt: skip

_MODEL_FILENAME = "model.onnx"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelPlan:
    """One model that is fit to be published.

    Attributes:
        flavor: `triton` or `onnx`.
        source: the directory, or the .onnx file.
        tree: every file, by its path in the artifact; MLflow's own files and examples left out.
        settings: the keys that the flavor gets in MLmodel.
        tensors: inputs and outputs for the signature.
        config: the config.pbtxt that goes along, if there is one.
        versions: version directories; empty for `onnx`. Of several models, the main one's.
        models: of a directory of several models their names, in the order of loading, the main one
            last; else empty.
        examples: an input example, and the answer to it.
    """

    flavor: str
    source: Path
    tree: Tree
    settings: Mapping[str, Any]
    tensors: Tensors
    config: ModelConfig | None = None
    versions: tuple[int, ...] = ()
    models: tuple[str, ...] = ()
    examples: Examples = field(default_factory=Examples)

    @property
    def size_bytes(self) -> int:
        """How many bytes will be uploaded."""
        return self.tree.size_bytes + sum(map(len, self.examples.files.values()))

    @property
    def files(self) -> list[str]:
        """The paths in the artifact of what will be uploaded, examples included."""
        return [*(str(file.path) for file in self.tree.files), *self.examples.files]


def plan_model(
    source: str | os.PathLike[str],
    flavor: str | None = None,
    *,
    main_model: str = "",
    input_example: Example | None = None,
    output_example: Example | None = None,
) -> ModelPlan:
    """Find out and check what would be published.

    Args:
        source: a model directory in Triton's layout, a directory of several that are deployed as
            one, or an .onnx file or a directory with one.
        flavor: when not given, `onnx` for a file that ends in .onnx, otherwise `triton`.
        main_model: of several models the one that clients ask; the one that no other needs when
            not given.
        input_example: `{name: nested lists or arrays}`, `{"inputs": {…}}`, or a JSON file of it.
        output_example: what the model answers to it, in the same forms with `"outputs"`.

    Raises:
        ArtifactError: it is not there, or Triton could not load it, or an example does not fit it;
            `UnsupportedFlavorError` for a flavor that cannot be published.
        ConfigError: config.pbtxt does not parse.
    """
    plan = _plan_flavor(Path(source), flavor, main_model)
    known = config_tensors(plan.config) if plan.config is not None else Tensors()
    examples = read_examples(
        input_example,
        output_example,
        inputs=known.inputs or plan.tensors.inputs,  # config.pbtxt says which are optional
        outputs=known.outputs or plan.tensors.outputs,
    )
    return replace(plan, examples=examples)


def _plan_flavor(path: Path, flavor: str | None, main_model: str) -> ModelPlan:
    flavor = flavor or ("onnx" if path.suffix == ".onnx" and path.is_file() else "triton")
    if main_model and not (flavor == "triton" and is_group(path)):
        raise ArtifactError(
            f"{path} is one model; main_model chooses among several that are deployed as one"
        )
    if flavor == "triton":
        return plan_triton(path, main_model)
    if flavor == "onnx":
        return plan_onnx(path)
    raise UnsupportedFlavorError(
        f"flavor {flavor!r} cannot be published; use one of {', '.join(FLAVORS)}",
        flavor=flavor,
        supported=FLAVORS,
    )


def plan_repository(repository: str | os.PathLike[str]) -> list[Path]:
    """The model directories of a model repository, sorted.

    Raises:
        ArtifactError: it is not a directory, has no models, or is itself a model.
    """
    root = Path(repository)
    if not root.is_dir():
        raise ArtifactError(f"{root} is not a directory")
    if (root / CONFIG_FILENAME).exists():
        raise ArtifactError(f"{root} is one model, not a repository of them; use --model_directory")
    # a leading dot: version control and other tools' bookkeeping
    models = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not models:
        raise ArtifactError(f"{root} holds no model directories")
    return sorted(models)


# -- the triton flavor ------------------------------------------------------------------------


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
        yield _entry(CONFIG_FILENAME, path, directory.root)
    yield from directory.shared.files
    for version, tree in directory.versions.items():
        for file in tree.files:
            yield EntryFile(PurePosixPath(str(version)) / file.path, file.source, file.size_bytes)


def _entry(relative: str, source: Path, inside: Path) -> EntryFile:
    return EntryFile(PurePosixPath(relative), source, check_member(source, inside.resolve())[1])


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


# -- the onnx flavor --------------------------------------------------------------------------


def plan_onnx(source: str | os.PathLike[str]) -> ModelPlan:
    """Plan a bare ONNX model; see `plan_model`.

    Its external data goes along; config.pbtxt beside it (or above its version directory) and the
    files that this names become the artifact's `extra_files`.
    """
    path = Path(source)
    model_file = _onnx_file(path)
    home = _config_home(model_file.parent)
    graph = read_graph(model_file)
    external = [
        _entry(location, model_file.parent / location, home) for location in graph.external_files
    ]
    config = _read_config(home)
    extra = [_entry(f"extra_files/{name}", home / name, home) for name in _extras(home, config)]
    data = _data_filename(model_file, external)
    model = EntryFile(PurePosixPath(data), model_file, model_file.stat().st_size)
    settings: dict[str, Any] = {"data": data}
    if extra:
        settings["extra_files"] = [{"path": str(file.path)} for file in extra]
    return ModelPlan(
        flavor="onnx",
        source=path,
        tree=Tree((model, *external, *extra)),
        settings=settings,
        tensors=graph_tensors(graph, config_tensors(config) if config else Tensors()),
        config=config,
    )


def _onnx_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist")
    found = sorted(path.glob("*.onnx")) or sorted(path.glob("[1-9]*/*.onnx"))
    named = [candidate for candidate in found if candidate.name == _MODEL_FILENAME]
    chosen = named or found
    if len(chosen) != 1:
        raise MissingModelFileError(
            f"{path} holds {len(chosen)} .onnx files where one is needed; name the file, or use "
            "--flavor triton for a model directory with its versions",
            path=_MODEL_FILENAME,
        )
    return _onnx_file(chosen[0])


def _config_home(directory: Path) -> Path:
    """Where config.pbtxt would be: beside the model, or above its version directory."""
    at = directory.resolve()
    while not (at / CONFIG_FILENAME).exists() and (at.name.isdecimal() or at.suffix == ".onnx"):
        at = at.parent
    return at if (at / CONFIG_FILENAME).exists() else directory


def _read_config(home: Path) -> ModelConfig | None:
    path = home / CONFIG_FILENAME
    if not path.exists():
        return None
    check_member(path, home.resolve())
    return ModelConfig.parse(path.read_bytes(), where=str(path))


def _extras(home: Path, config: ModelConfig | None) -> list[str]:
    """config.pbtxt and what it names, relative to `home`."""
    if config is None:
        return []
    names = []
    for setting, name in config.named_files:
        if not (home / name).is_file():
            raise MissingModelFileError(
                f"{home / CONFIG_FILENAME}: {setting} names {name!r}, which is not there", path=name
            )
        names.append(name)
    return [CONFIG_FILENAME, *dict.fromkeys(names)]


def _data_filename(model_file: Path, external: list[EntryFile]) -> str:
    """What the model is called in the artifact: as `mlflow.onnx` calls it, if that is free."""
    taken = {file.path.parts[0] for file in external}
    clash = sorted(taken & MLFLOW_FILES)
    if clash:
        raise ArtifactError(
            f"{model_file}: its external data file {clash[0]!r} has a name that MLflow needs; "
            "save the model with another one"
        )
    return _MODEL_FILENAME if _MODEL_FILENAME not in taken else model_file.name


# -- content ----------------------------------------------------------------------------------


def content_digest(plan: ModelPlan) -> str:
    """SHA-256 over what would be uploaded: flavor, paths, contents. Memory stays constant."""
    lines = [f"flavor {plan.flavor}"]
    lines += [f"directory {path}" for path in plan.tree.empty_directories]
    lines += [f"file {file.path} {_file_digest(file.source)}" for file in plan.tree.files]
    lines += [
        f"file {name} {hashlib.sha256(data).hexdigest()}"
        for name, data in plan.examples.files.items()
    ]
    text = "\0".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
