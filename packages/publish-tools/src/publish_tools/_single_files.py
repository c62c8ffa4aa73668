"""Models that are one file, with what belongs to it: ONNX, and those of other backends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from publish_tools.model_plan import MLFLOW_FILES, ModelPlan
from publish_tools.signature import Tensors, config_tensors, graph_tensors
from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.flavors.onnx_graph import read_graph
from triton_repo.scan import check_member

if TYPE_CHECKING:
    import os

__all__ = ["entry_of", "is_bare", "plan_bare", "plan_onnx"]

_MODEL_FILENAME = "model.onnx"

#: Single files that are a model: the backend, and what Triton knows it by in a version directory.
#: Source: the file names in Triton's `core`, constants.h.
_BARE_FILES = {
    ".engine": ("tensorrt", "model.plan"),
    ".plan": ("tensorrt", "model.plan"),
    ".pt": ("pytorch", "model.pt"),
    ".xml": ("openvino", "model.xml"),
}
#: Backends that cannot complete a config.pbtxt by themselves.
_NEED_CONFIG = ("pytorch",)


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
        entry_of(location, model_file.parent / location, home) for location in graph.external_files
    ]
    config = _read_config(home)
    extra = [entry_of(f"extra_files/{name}", home / name, home) for name in _extras(home, config)]
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


def is_bare(path: Path) -> bool:
    """Whether this is a single file that a backend other than ONNX Runtime serves."""
    return path.suffix in _BARE_FILES and path.is_file()


def plan_bare(path: Path) -> ModelPlan:
    """Plan a model that is one file to its backend; config.pbtxt beside it goes along.

    Raises:
        ConfigError: config.pbtxt is that of another backend.
        MissingModelFileError: there is none, and the backend needs one.
    """
    backend, filename = _BARE_FILES[path.suffix]
    home = _config_home(path.parent)
    config = _read_config(home)
    if config is not None and config.backend not in ("", backend):
        raise ConfigError(
            f"{home / CONFIG_FILENAME} names backend {config.backend!r}, and {path.name} is for "
            f"{backend}; is it that of another model?",
            field="backend",
        )
    if config is None and backend in _NEED_CONFIG:
        raise MissingModelFileError(
            f"{path} needs a {CONFIG_FILENAME} beside it: Triton's {backend} backend does not find "
            "out by itself what a model's tensors are",
            path=CONFIG_FILENAME,
        )
    data, version = PurePosixPath("model"), "1"
    placed = (config.model_filename if config is not None else "") or filename
    files = [entry_of(str(data / version / placed), path, path.parent)]
    weights = path.with_suffix(".bin")
    if backend == "openvino" and weights.exists():
        name = PurePosixPath(placed).with_suffix(".bin")
        files.append(entry_of(str(data / version / name), weights, path.parent))
    files += [entry_of(str(data / name), home / name, home) for name in _extras(home, config)]
    return ModelPlan(
        flavor="triton",
        source=path,
        tree=Tree(tuple(files)),
        settings={"data": str(data), "versions": [int(version)]},
        tensors=_bare_tensors(path, config),
        config=config,
        versions=(int(version),),
    )


def _bare_tensors(path: Path, config: ModelConfig | None) -> Tensors:
    tensors = config_tensors(config) if config is not None else Tensors()
    if tensors.inputs or tensors.outputs:
        return tensors
    note = f"there is no signature: {path.name} does not tell its tensors; a config.pbtxt can"
    return replace(tensors, notes=(note,))


def entry_of(relative: str, source: Path, inside: Path) -> EntryFile:
    """A file to upload, once it is sure that it does not lead out of `inside`.

    Raises:
        ArtifactError: it does, or is no file.
    """
    return EntryFile(PurePosixPath(relative), source, check_member(source, inside.resolve())[1])


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
