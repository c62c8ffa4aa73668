"""From a logged model to a repository entry: one module a flavor, each a pure plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.errors import ConfigError, TritonRepoError, UnsupportedFlavorError
from triton_repo.flavors import fil, onnx, pyfunc, pytorch, savedmodel, triton
from triton_repo.flavors._features import COLUMNS
from triton_repo.flavors._files import user_config
from triton_repo.names import check_file_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.names import ModelName

__all__ = [
    "ANY_MODEL",
    "COLUMNS",
    "NATIVE_FLAVORS",
    "SUPPORTED_FLAVORS",
    "check_backend",
    "choose_flavor",
    "convert",
    "refuse_flavor",
]

#: The flavor that every model has.
ANY_MODEL = "python_function"

_CONVERTERS: dict[str, Callable[[ModelArtifact, ModelName, int], RepositoryEntry]] = {
    "triton": triton.convert,
    "onnx": onnx.convert,
    "xgboost": fil.convert_xgboost,
    "lightgbm": fil.convert_lightgbm,
    "pytorch": pytorch.convert,
    "tensorflow": savedmodel.convert,
    ANY_MODEL: pyfunc.convert,
}

#: In the order of preference when the user names none: what was made for Triton comes first, what
#: any model has comes last.
SUPPORTED_FLAVORS = tuple(_CONVERTERS)

#: Of those whose backend is faster than Python, and may be missing: whether it would answer what
#: MLflow's model does. Only who asks for the others gets them.
_SUITS: dict[str, Callable[[ModelArtifact], bool]] = {
    "xgboost": fil.suits_xgboost,
    "lightgbm": fil.suits_lightgbm,
    "pytorch": pytorch.suits,
    "tensorflow": lambda _: False,
}


#: Those.
NATIVE_FLAVORS = tuple(_SUITS)
#: Who serves what a flavor places. A model in Triton's layout is for whichever its config.pbtxt
#: names, and so is a graph: OpenVINO and TensorRT read ONNX, too.
_BACKENDS = {
    "onnx": onnx.BACKEND,
    "xgboost": fil.BACKEND,
    "lightgbm": fil.BACKEND,
    "pytorch": pytorch.BACKEND,
    "tensorflow": savedmodel.BACKEND,
    ANY_MODEL: pyfunc.BACKEND,
}
_OF_SEVERAL_BACKENDS = ("triton", "onnx")
#: Its file; without that Triton 24.10 goes on loading for ever.
_PYTHON_FILE = "model.py"


def choose_flavor(
    artifact: ModelArtifact,
    flavor: str | None = None,
    *,
    before: str = "",
    native: bool = True,
    config: ModelConfig | None = None,
) -> str:
    """The flavor to deploy: the one asked for, or the best one the model has.

    A config.pbtxt that names a backend decides where one of the model's flavors is for that.

    Args:
        artifact: the logged model.
        flavor: the one asked for.
        before: the one that is deployed: names and types of tensors depend on it, so it stays
            where the model has it.
        native: whether a backend may be chosen that the server perhaps lacks.
        config: a config.pbtxt that is going to stand in the place of the model's own.

    Raises:
        UnsupportedFlavorError: the model does not have it, or this project does not serve it.
    """
    refuse_flavor(artifact, flavor)
    if flavor is not None:
        return flavor
    candidates = [each for each in SUPPORTED_FLAVORS if each in artifact.flavors]
    if before in candidates:
        return before
    if ANY_MODEL in candidates and not native:
        candidates = [each for each in candidates if each not in NATIVE_FLAVORS]
    backend = _backend_named(artifact, config)
    named = [each for each in candidates if _BACKENDS.get(each, backend) == backend]
    if backend and named:
        return named[0]
    if ANY_MODEL in candidates:
        suits = (each for each in candidates if each not in _SUITS or _suits(artifact, each))
        return next(suits)
    return candidates[0]


def _backend_named(artifact: ModelArtifact, config: ModelConfig | None) -> str:
    """The backend that the config.pbtxt given, or the user's own, names; empty where none does."""
    try:
        config = config or user_config(artifact)
    except TritonRepoError:  # told to who converts it
        return ""
    return config.backend if config is not None else ""


def refuse_flavor(artifact: ModelArtifact, flavor: str | None) -> None:
    """Make sure, by its MLmodel alone, that a model can be deployed by a flavor.

    Raises:
        UnsupportedFlavorError: the model does not have it, or this project does not serve it.
    """
    if flavor is None:
        if not any(each in artifact.flavors for each in SUPPORTED_FLAVORS):
            raise _unsupported(artifact, flavor, "the model has none of the flavors served")
    elif flavor not in SUPPORTED_FLAVORS:
        raise _unsupported(artifact, flavor, f"flavor {flavor!r} cannot be served")
    elif flavor not in artifact.flavors:
        raise _unsupported(artifact, flavor, f"the model was not logged with flavor {flavor!r}")


def _suits(artifact: ModelArtifact, flavor: str) -> bool:
    """Whether a native way is to be chosen."""
    try:
        return _SUITS[flavor](artifact)
    except TritonRepoError:  # told to who asks for it
        return False


def convert(
    artifact: ModelArtifact,
    *,
    flavor: str,
    name: ModelName,
    version: int,
    batches: bool = False,
) -> RepositoryEntry:
    """Plan the repository entry of one model.

    Args:
        artifact: the logged model.
        flavor: from `choose_flavor`.
        name: the deployment.
        version: the number a single version gets; an artifact with several keeps its own.
        batches: whether the user says that the first dimension of an ONNX graph is a batch.

    Raises:
        ArtifactError: the model's files are not what MLmodel says; nothing was written.
        ConfigError: its config.pbtxt is wrong, or none can be generated.
    """
    if flavor == "onnx":
        entry = onnx.convert(artifact, name, version, batches=batches)
    else:
        entry = _CONVERTERS[flavor](artifact, name, version)
    for each in (entry, *entry.members.values()):
        for tree in (each.shared, *each.versions.values()):
            for part in {part for file in tree.files for part in file.path.parts}:
                check_file_name(part)
    return entry


def check_backend(entry: RepositoryEntry, config: ModelConfig) -> None:
    """Make sure that what an entry places is for the backend that its config.pbtxt will name.

    Args:
        entry: from `convert`.
        config: the config.pbtxt that it is going to have, whoever wrote it.

    Raises:
        ConfigError: it is for another one, which would not find its files.
    """
    if entry.flavor not in _OF_SEVERAL_BACKENDS:
        served_by = _BACKENDS[entry.flavor]
        if config.backend not in ("", served_by):
            raise ConfigError(
                f"{CONFIG_FILENAME} names backend {config.backend!r}, and flavor {entry.flavor} is "
                f"served by {served_by!r}; choose another --flavor, or give another "
                f"{CONFIG_FILENAME} (-C config; default is the model's own)",
                field="backend",
            )
    if config.backend != pyfunc.BACKEND:
        return
    needed = config.model_filename or _PYTHON_FILE
    for number, tree in entry.versions.items():
        if needed not in tree.names():
            raise ConfigError(
                f"{CONFIG_FILENAME} names backend {config.backend!r}, which runs {needed}, and "
                f"version {number} of the model has none; name the backend that the model is for",
                field="backend",
            )


def _unsupported(artifact: ModelArtifact, flavor: str | None, what: str) -> UnsupportedFlavorError:
    return UnsupportedFlavorError(
        f"{what}; it has {', '.join(sorted(artifact.flavors))}, "
        f"and these can be served: {', '.join(SUPPORTED_FLAVORS)}",
        flavor=flavor,
        supported=SUPPORTED_FLAVORS,
    )
