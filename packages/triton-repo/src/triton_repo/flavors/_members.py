"""What the flavors that MLflow saves share: their files, counted, and a config of the user's."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.layout import is_shared_path

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.scan import Tally

__all__ = ["Members", "shared_tree", "user_config"]


@dataclass(frozen=True)
class Members:
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


def shared_tree(members: Members, config: ModelConfig) -> Tree:
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
        source = members.artifact.find(name, f"extra_files/{name}", f"extra_files/{path.name}")
        if source is None:
            raise MissingModelFileError(
                f"{CONFIG_FILENAME}: {field} names {name!r}, which was not logged with the model; "
                "add it with extra_files=[…] or mlflow.log_artifact",
                path=name,
            )
        files[path] = EntryFile(path, source, members.size_of(source, said_by=CONFIG_FILENAME))
    return Tree(tuple(files.values()))
