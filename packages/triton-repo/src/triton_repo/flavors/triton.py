"""The `triton` flavor: a directory in Triton's layout, or several that are deployed as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from triton_repo.entry import RepositoryEntry
from triton_repo.errors import ArtifactError
from triton_repo.group import ModelGroup, is_group
from triton_repo.layout import ModelDirectory
from triton_repo.names import check_name
from triton_repo.text import brief

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.names import ModelName

__all__ = ["convert", "open_directory"]

_TOO_HIGH = 10**18  # Triton reads versions as 64-bit numbers


def convert(artifact: ModelArtifact, name: ModelName, version: int) -> RepositoryEntry:
    """Plan the entry of a model in Triton's layout.

    A single version directory is placed as `version`, whatever its number was; several keep their
    numbers. Of several models the main one is the entry, and the others are its members, under the
    names that they have in the artifact. See `flavors.convert` for the arguments and errors.
    """
    found = open_directory(artifact)
    if isinstance(found, ModelDirectory):
        return _entry(found, name, version)
    entries = {
        each: replace(
            _entry(model, check_name(each), version),
            asks=found.asks[each],
            is_told=each in found.told,
        )
        for each, model in found.models.items()
    }
    main = entries.pop(found.main)
    return replace(main.renamed(name), members=entries)


def _entry(directory: ModelDirectory, name: ModelName, version: int) -> RepositoryEntry:
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


def open_directory(artifact: ModelArtifact) -> ModelDirectory | ModelGroup:
    """What a model of this flavor holds in Triton's layout, checked: one model, or several.

    Raises:
        ArtifactError: it is not what MLmodel says.
        ConfigError: a config.pbtxt does not parse, or names models that are not there.
    """
    settings = artifact.flavors["triton"]
    root = artifact.path(settings.get("data", ""), said_by="MLmodel's triton flavor (data)")
    recorded = settings.get("versions", [])
    # the artifact itself holds MLflow's own directories, too
    if root.resolve() != artifact.root.resolve() and is_group(root):
        return ModelGroup.read(
            root,
            _main(settings),
            inside=artifact.root,
            versions=_recorded_of_each(recorded),
            tally=artifact.tally(),
        )
    return ModelDirectory.read(
        root, inside=artifact.root, versions=_recorded(recorded), tally=artifact.tally()
    )


def _main(settings: Mapping[str, object]) -> str:
    main = settings.get("main_model", "")
    if not isinstance(main, str):
        raise ArtifactError(f"MLmodel's triton flavor gives main_model {brief(main)}, no name")
    return main


def _recorded_of_each(recorded: object) -> dict[str, list[int]]:
    """`_recorded`, of each model by its name."""
    if not isinstance(recorded, Mapping):
        return {}
    return {str(name): _recorded(versions) for name, versions in recorded.items()}


def _recorded(versions: object) -> list[int]:
    """Version directories the publisher saw; stores that lose empty ones cannot hide them."""
    if not isinstance(versions, list) or not all(
        type(version) is int and 0 < version < _TOO_HIGH for version in versions
    ):
        raise ArtifactError(
            f"MLmodel's triton flavor gives versions {brief(versions)}; a list belongs there"
        )
    return versions
