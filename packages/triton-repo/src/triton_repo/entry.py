"""The plan of one deployment: what will stand in the repository, before anything is written."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from triton_repo.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path, PurePosixPath

    from triton_repo.config import ModelConfig
    from triton_repo.names import ModelName

__all__ = [
    "EntryFile",
    "RemoteFile",
    "RepositoryEntry",
    "Tree",
]


class RemoteFile:
    """A file that lies in an object store, and need not come to this machine to be copied.

    Attributes:
        uri: where it lies, such as `s3://bucket/key`.
        endpoint: of the store, such as `http://127.0.0.1:9000`; an empty string for the default.
    """

    def __init__(
        self, uri: str, endpoint: str, download: Callable[[], None], *, is_here: bool = False
    ) -> None:
        """Where it is.

        Args:
            uri: see above.
            endpoint: see above.
            download: brings it.
            is_here: whether it was brought already.
        """
        self.uri = uri
        self.endpoint = endpoint
        self._download = download
        self._here = is_here
        self._fetching = threading.Lock()

    def fetch(self) -> None:
        """Let the file itself take the place of the one that stands for it."""
        with self._fetching:
            if not self._here:
                self._download()
                self._here = True


@dataclass(frozen=True)
class EntryFile:
    """One file to place.

    Attributes:
        path: where it goes, relative to its tree.
        source: the file to copy; nothing is ever moved out of an artifact. Where there is an
            `origin`, only something of the same size until that is fetched: see `local`.
        size_bytes: its size when the plan was made.
        origin: where the file lies if it was not brought to this machine.
        is_derived: whether it was made for the model, and is none that its author wrote: one that
            was edited in the repository is replaced.
    """

    path: PurePosixPath
    source: Path
    size_bytes: int
    origin: RemoteFile | None = None
    is_derived: bool = False

    def __post_init__(self) -> None:
        if not self.path.parts or self.path.is_absolute() or ".." in self.path.parts:
            raise ArtifactError(f"{str(self.path)!r} cannot be placed: it leaves its directory")

    def local(self) -> Path:
        """The file on this machine, which it may have to be brought to."""
        if self.origin is not None:
            self.origin.fetch()
        return self.source


@dataclass(frozen=True)
class Tree:
    """Files and empty directories below one directory of the repository."""

    files: tuple[EntryFile, ...] = ()
    empty_directories: tuple[PurePosixPath, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(file.size_bytes for file in self.files)

    def names(self) -> list[str]:
        """The files' paths, sorted."""
        return sorted(str(file.path) for file in self.files)

    def from_origins(self, origins: Mapping[Path, RemoteFile]) -> Tree:
        """The same, with the files known that are not on this machine."""
        files = (replace(file, origin=origins.get(file.source)) for file in self.files)
        return replace(self, files=tuple(files))


@dataclass(frozen=True)
class RepositoryEntry:
    """What one deployment will be: `<name>/config.pbtxt`, `<name>/<version>/…`, shared files.

    Attributes:
        name: the directory at the root of the repository.
        flavor: the MLflow flavor it was made from.
        versions: content of each version directory, by its number.
        shared: files beside config.pbtxt; they belong to every version.
        config: None where the model relies on Triton's auto-complete.
        has_own_config: whether the config is the model's own, and not one that was generated.
    """

    name: ModelName
    flavor: str
    versions: Mapping[int, Tree]
    shared: Tree = field(default_factory=Tree)
    config: ModelConfig | None = None
    has_own_config: bool = False

    @property
    def size_bytes(self) -> int:
        """How many bytes will be copied."""
        return self.shared.size_bytes + sum(tree.size_bytes for tree in self.versions.values())

    @property
    def config_text(self) -> str:
        """The text of its config.pbtxt; empty where it has none."""
        return self.config.text if self.config is not None else ""

    def from_origins(self, origins: Mapping[Path, RemoteFile]) -> RepositoryEntry:
        """The same, with the files known that are not on this machine."""
        versions = {number: tree.from_origins(origins) for number, tree in self.versions.items()}
        return replace(self, versions=versions, shared=self.shared.from_origins(origins))

    def renumbered(self, version: int) -> RepositoryEntry:
        """The same single version under another number; a `specific` policy follows."""
        (tree,) = self.versions.values()
        config = self.config
        if config is not None and config.pinned_versions:
            config = config.pinned([version])
        return replace(self, versions={version: tree}, config=config)
