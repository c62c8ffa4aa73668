"""From a logged model to a repository entry: one module a flavor, each a pure plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triton_repo.errors import UnsupportedFlavorError
from triton_repo.flavors import onnx, pyfunc, triton
from triton_repo.names import check_file_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.names import ModelName

__all__ = ["SUPPORTED_FLAVORS", "choose_flavor", "convert"]

_CONVERTERS: dict[str, Callable[[ModelArtifact, ModelName, int], RepositoryEntry]] = {
    "triton": triton.convert,
    "onnx": onnx.convert,
    "python_function": pyfunc.convert,
}

#: In the order of preference when the user names none: what was made for Triton comes first, what
#: any model has comes last.
SUPPORTED_FLAVORS = tuple(_CONVERTERS)


def choose_flavor(artifact: ModelArtifact, flavor: str | None = None) -> str:
    """The flavor to deploy: the one asked for, or the best one the model has.

    Raises:
        UnsupportedFlavorError: the model does not have it, or this project does not serve it.
    """
    if flavor is None:
        for candidate in SUPPORTED_FLAVORS:
            if candidate in artifact.flavors:
                return candidate
        raise _unsupported(artifact, flavor, "the model has none of the flavors served")
    if flavor not in SUPPORTED_FLAVORS:
        raise _unsupported(artifact, flavor, f"flavor {flavor!r} cannot be served")
    if flavor not in artifact.flavors:
        raise _unsupported(artifact, flavor, f"the model was not logged with flavor {flavor!r}")
    return flavor


def convert(
    artifact: ModelArtifact, *, flavor: str, name: ModelName, version: int
) -> RepositoryEntry:
    """Plan the repository entry of one model.

    Args:
        artifact: the logged model.
        flavor: from `choose_flavor`.
        name: the deployment.
        version: the number a single version gets; an artifact with several keeps its own.

    Raises:
        ArtifactError: the model's files are not what MLmodel says; nothing was written.
        ConfigError: its config.pbtxt is wrong, or none can be generated.
    """
    entry = _CONVERTERS[flavor](artifact, name, version)
    for tree in (entry.shared, *entry.versions.values()):
        for part in {part for file in tree.files for part in file.path.parts}:
            check_file_name(part)
    return entry


def _unsupported(artifact: ModelArtifact, flavor: str | None, what: str) -> UnsupportedFlavorError:
    return UnsupportedFlavorError(
        f"{what}; it has {', '.join(sorted(artifact.flavors))}, "
        f"and these can be served: {', '.join(SUPPORTED_FLAVORS)}",
        flavor=flavor,
        supported=SUPPORTED_FLAVORS,
    )
