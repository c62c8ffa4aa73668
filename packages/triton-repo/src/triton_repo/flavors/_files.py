"""What the flavors that MLflow saves share: their files, counted, and a config of the user's."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.entry import EntryFile, RepositoryEntry, Tree
from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.layout import is_shared_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from triton_repo.artifact import ModelArtifact
    from triton_repo.names import ModelName
    from triton_repo.scan import Tally

__all__ = ["ModelFiles", "entry_of", "one_file_entry", "own_config", "shared_tree", "user_config"]


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, counted before they are made part of a plan."""

    artifact: ModelArtifact
    tally: Tally

    def size_of(self, path: Path, *, said_by: str) -> int:
        """The size of what the artifact has found at `path`.

        Raises:
            ArtifactError: it is no file, or a limit is passed.
        """
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path} is no file, and {said_by} names it")
        self.tally.add(PurePosixPath(path.name), status.st_size)
        return status.st_size


def user_config(artifact: ModelArtifact) -> ModelConfig | None:
    """The config.pbtxt that was logged with the model, or beside it; None where none was.

    Raises:
        ConfigError: it is none, or names something outside the model.
    """
    path = artifact.find(CONFIG_FILENAME, f"extra_files/{CONFIG_FILENAME}")
    if path is None:
        return None
    config = ModelConfig.read(path)
    config.check_paths(where=str(path))
    return config


def own_config(artifact: ModelArtifact, backend: str, version: int) -> ModelConfig | None:
    """The same, for a flavor that one backend serves.

    Raises:
        ConfigError: also where it names another.
    """
    config = user_config(artifact)
    if config is None:
        return None
    if config.backend not in ("", backend):
        raise ConfigError(
            f"{CONFIG_FILENAME} of the model names backend {config.backend!r}, and this flavor "
            f"is served by {backend!r}; choose another --flavor, or log it without one to have it "
            "generated",
            field="backend",
        )
    return config.pinned([version]) if config.pinned_versions else config


def entry_of(
    model_files: ModelFiles,
    *,
    name: ModelName,
    version: int,
    flavor: str,
    tree: Tree,
    config: ModelConfig,
    has_own_config: bool,
) -> RepositoryEntry:
    """The plan for one version directory, and the files that config.pbtxt names beside it."""
    return RepositoryEntry(
        name=name,
        flavor=flavor,
        versions={version: tree},
        shared=shared_tree(model_files, config),
        config=config.with_name(name),
        has_own_config=has_own_config,
    )


def one_file_entry(
    artifact: ModelArtifact,
    *,
    name: ModelName,
    version: int,
    flavor: str,
    backend: str,
    source: Path,
    path: PurePosixPath,
    generate: Callable[[], ModelConfig],
) -> RepositoryEntry:
    """The plan for a model that is one file to its backend.

    Args:
        artifact: the logged model.
        name: the deployment.
        version: the number that it gets.
        flavor: whose plan it is.
        backend: who serves it.
        source: the file, in the artifact.
        path: what the backend calls it, where the user's config.pbtxt does not say otherwise.
        generate: makes config.pbtxt, where the user has logged none.
    """
    model_files = ModelFiles(artifact, artifact.tally())
    size_bytes = model_files.size_of(source, said_by=f"MLmodel's {flavor} flavor")
    config = own_config(artifact, backend, version)
    has_own_config = config is not None
    if config is None:
        config = generate()
    elif config.model_filename:
        path = PurePosixPath(config.model_filename)
    return entry_of(
        model_files,
        name=name,
        version=version,
        flavor=flavor,
        tree=Tree((EntryFile(path, source, size_bytes),)),
        config=config,
        has_own_config=has_own_config,
    )


def shared_tree(model_files: ModelFiles, config: ModelConfig) -> Tree:
    """The files config.pbtxt names beside itself, from wherever the user can have put them.

    Raises:
        ConfigError: it names one that cannot be beside it.
        MissingModelFileError: one was not logged.
    """
    files = {}
    for field, name in config.named_files:
        path = PurePosixPath(name)
        if not is_shared_path(path):
            raise ConfigError(
                f"{CONFIG_FILENAME}: {field} names {name!r}, which is outside the model, in a "
                "version directory or a name of our own; put it beside config.pbtxt",
                field=field,
            )
        if path in files:
            continue
        source = model_files.artifact.find(name, f"extra_files/{name}", f"extra_files/{path.name}")
        if source is None:
            raise MissingModelFileError(
                f"{CONFIG_FILENAME}: {field} names {name!r}, which was not logged with the model; "
                "add it with extra_files=[…] or mlflow.log_artifact",
                path=name,
            )
        files[path] = EntryFile(path, source, model_files.size_of(source, said_by=CONFIG_FILENAME))
    return Tree(tuple(files.values()))
