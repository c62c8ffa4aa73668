"""The `triton` flavor: a directory that already has Triton's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triton_repo.entry import RepositoryEntry
from triton_repo.errors import ArtifactError
from triton_repo.layout import ModelDirectory
from triton_repo.text import brief

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.names import ModelName

__all__ = ["convert", "open_directory"]

_TOO_HIGH = 10**18  # Triton reads versions as 64-bit numbers


def convert(artifact: ModelArtifact, name: ModelName, version: int) -> RepositoryEntry:
    """Plan the entry of a model in Triton's layout.

    A single version directory is placed as `version`, whatever its number was; several keep their
    numbers. See `flavors.convert` for the arguments and errors.
    """
    directory = open_directory(artifact)
    config, versions = directory.config, directory.versions
    if len(versions) == 1:
        (tree,) = versions.values()
        if config is not None and config.pinned_versions:
            config = config.pinned([version])
        versions = {version: tree}
    return RepositoryEntry(
        name=name,
        flavor="triton",
        versions=versions,
        shared=directory.shared,
        config=config.with_name(name) if config is not None else None,
        has_own_config=config is not None,
    )


def open_directory(artifact: ModelArtifact) -> ModelDirectory:
    """The directory in Triton's layout that a model of this flavor holds, checked.

    Raises:
        ArtifactError: it is not what MLmodel says.
        ConfigError: its config.pbtxt does not parse.
    """
    settings = artifact.flavors["triton"]
    root = artifact.path(settings.get("data", ""), said_by="MLmodel's triton flavor (data)")
    return ModelDirectory.read(
        root, inside=artifact.root, versions=_recorded(settings), tally=artifact.tally()
    )


def _recorded(settings: object) -> list[int]:
    """Version directories the publisher saw; stores that lose empty ones cannot hide them."""
    versions = settings.get("versions", []) if isinstance(settings, dict) else []
    if not isinstance(versions, list) or not all(
        type(version) is int and 0 < version < _TOO_HIGH for version in versions
    ):
        raise ArtifactError(
            f"MLmodel's triton flavor gives versions {brief(versions)}; a list belongs there"
        )
    return versions
