"""The plan of one deployment: what will stand in the repository, before anything is written."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from triton_repo.errors import ArtifactError
from triton_repo.members import config_with

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path, PurePosixPath

    from triton_repo.config import ModelConfig
    from triton_repo.members import MemberVersions
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
        members: the models that came with it because it needs them, by their names, in the order of
            loading; see `triton_repo.group`.
        asks: of these and of the model itself, those that its sources name.
        is_told: whether its sources read where its members are, see `triton_repo.members`.
        models: where its members will be, once that is planned.
        part_of: the deployment that it is a member of; empty where it is one itself.
    """

    name: ModelName
    flavor: str
    versions: Mapping[int, Tree]
    shared: Tree = field(default_factory=Tree)
    config: ModelConfig | None = None
    has_own_config: bool = False
    members: Mapping[str, RepositoryEntry] = field(default_factory=dict)
    asks: frozenset[str] = frozenset()
    is_told: bool = False
    models: Mapping[str, MemberVersions] = field(default_factory=dict)
    part_of: str = ""

    @property
    def size_bytes(self) -> int:
        """The sum of its files' sizes, those of its members left out."""
        return self.shared.size_bytes + sum(tree.size_bytes for tree in self.versions.values())

    @property
    def config_text(self) -> str:
        """The text of its config.pbtxt; empty where it has none."""
        return self.config.text if self.config is not None else ""

    def from_origins(self, origins: Mapping[Path, RemoteFile]) -> RepositoryEntry:
        """The same, with the files known that are not on this machine."""
        return replace(
            self,
            versions={n: tree.from_origins(origins) for n, tree in self.versions.items()},
            shared=self.shared.from_origins(origins),
            members={name: each.from_origins(origins) for name, each in self.members.items()},
        )

    def with_models(self, models: Mapping[str, MemberVersions]) -> RepositoryEntry:
        """The same, once it is known where its members will be."""
        config = self.config
        if config is not None:
            config = config_with(config, models, is_told=self.is_told)
        return replace(self, config=config, models=models)

    def renamed(self, name: ModelName) -> RepositoryEntry:
        """The same under another name."""
        config = self.config.with_name(name) if self.config is not None else None
        return replace(self, name=name, config=config)

    def renumbered(self, version: int) -> RepositoryEntry:
        """The same single version under another number; a `specific` policy follows."""
        (tree,) = self.versions.values()
        config = self.config
        if config is not None and config.pinned_versions:
            config = config.pinned([version])
        return replace(self, versions={version: tree}, config=config)
