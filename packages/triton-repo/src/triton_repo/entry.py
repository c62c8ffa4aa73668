"""The plan of one deployment: what will stand in the repository, before anything is written."""

from __future__ import annotations

import re
import threading
import unicodedata
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NewType

from triton_repo.errors import ArtifactError, InvalidNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path, PurePosixPath

    from triton_repo.config import ModelConfig

__all__ = [
    "EntryFile",
    "ModelName",
    "RemoteFile",
    "RepositoryEntry",
    "Tree",
    "check_file_name",
    "check_name",
]

ModelName = NewType("ModelName", str)
"""A string that `check_name` let through: one directory at the root of a model repository."""

# ASCII only, so that no look-alike of a separator passes; no leading dot or dash, so that the
# name is neither hidden nor taken for an option; "%" would be decoded by HTTP clients.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@~-]{0,199}")


def check_name(name: str) -> ModelName:
    """Let a deployment's name through, or say what is wrong with it.

    Raises:
        InvalidNameError: the name could leave its directory, or Triton or HTTP would misread it.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ModelName(name)
    raise InvalidNameError(
        f"{name!r} cannot name a deployment: use 1 to 200 letters, digits and _ . + = @ ~ -, "
        "beginning with a letter, a digit or _",
        name=str(name),
    )


#: What a person, or a program that normalizes, reads as a separator.
_SEPARATORS = frozenset("/\\\u2044\u2215\u2216\u29f5\u29f8\u29f9\ufe68\uff0f\uff3c\u2571\u2572")
#: The same of one dot or two; in the midst of a name they do no harm.
_DOTS = str.maketrans(
    {
        **dict.fromkeys("\u2024\u3002\ufe52\uff0e\uff61\u00b7\u0701\u0702", "."),
        "\u2025": "..",
    }
)
#: Joiners, which some scripts cannot be written without.
_JOINERS = "\u200c\u200d"


def check_file_name(name: str) -> None:
    """Let the name of one file or directory of a model through, or say what is wrong with it.

    Raises:
        ArtifactError: it holds a character that is not printable (a control character, a mark that
            turns the direction of text, a byte that is not UTF-8), or that looks like a separator,
            or all of it looks like `.` or `..`.
    """
    for place, character in enumerate(name):
        normal = unicodedata.normalize("NFKC", character)
        if character in _SEPARATORS or not _SEPARATORS.isdisjoint(normal.replace("\u2044", "")):
            raise _misleading(name, f"{character!a} in a name looks like a separator")
        if not (character.isprintable() or _belongs(name, place)):
            raise _misleading(name, f"{character!a} in a name is not printable")
    if name.translate(_DOTS) in (".", ".."):
        raise _misleading(name, "this is another directory, or looks like one")


def _belongs(name: str, place: int) -> bool:
    """Whether this is a joiner between letters or a space inside the name, of whatever width."""
    if not 0 < place < len(name) - 1:
        return False
    if name[place] in _JOINERS:
        return all(unicodedata.category(name[at])[0] in "LM" for at in (place - 1, place + 1))
    return unicodedata.category(name[place]) == "Zs"


def _misleading(name: str, why: str) -> ArtifactError:
    return ArtifactError(f"the model has a file {name!a}, and {why}; rename it")


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
    """

    path: PurePosixPath
    source: Path
    size_bytes: int
    origin: RemoteFile | None = None

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
