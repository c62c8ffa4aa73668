"""Directories that somebody else made, read without being led astray: names, links, limits.

Whoever may write to an artifact store chooses every name, link and byte of a model. Nothing here
opens a file, follows a link out of the artifact, or goes on without an end.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import ArtifactError
from triton_repo.names import check_file_name
from triton_repo.text import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["UNLIMITED", "Limits", "Tally", "check_member", "scan_tree"]


@dataclass(frozen=True)
class Limits:
    """How much an artifact may hold; more is refused before it is copied.

    Attributes:
        files: files and directories, those that links lead to counted where they appear. A hundred
            times what the largest models on public hubs have.
        size_bytes: of all files together; sparse ones count with their apparent size.
        depth: of directories below one another. Paths of the system end not far behind.
    """

    files: int = 100_000
    size_bytes: int = 10**12
    depth: int = 32


#: For directories of one's own.
UNLIMITED = Limits(files=10**12, size_bytes=10**18, depth=400)


class Tally:
    """What of an artifact was seen so far.

    Args:
        limits: what it may hold.
        where: how messages name it.
    """

    def __init__(self, limits: Limits, where: object) -> None:
        self._limits = limits
        self._where = where
        self._files = 0
        self._size_bytes = 0

    def add(self, path: PurePosixPath, size_bytes: int = 0) -> None:
        """Count one more file or directory.

        Args:
            path: where it is in the artifact.
            size_bytes: of a file.

        Raises:
            ArtifactError: it is one too many, or too deep.
        """
        self._files += 1
        if self._files > self._limits.files:
            raise ArtifactError(
                f"{self._where} has more than {self._limits.files} files and directories; if that "
                "is right, raise max_files"
            )
        if len(path.parts) > self._limits.depth:
            raise ArtifactError(
                f"{self._where} has directories more than {self._limits.depth} deep, such as "
                f"{'/'.join(path.parts[:3])}/…; lay it out flatter"
            )
        self.add_size(size_bytes)

    def add_size(self, size_bytes: int) -> None:
        """Count the bytes of a file that was counted before.

        Raises:
            ArtifactError: they are too many.
        """
        self._size_bytes += size_bytes
        if self._size_bytes > self._limits.size_bytes:
            raise ArtifactError(
                f"{self._where} holds more than {human_size(self._limits.size_bytes)}; if that is "
                "right, raise max_size"
            )


def scan_tree(
    directory: Path,
    *,
    inside: Path,
    keep: Callable[[PurePosixPath], bool] | None = None,
    tally: Tally | None = None,
) -> Tree:
    """Every file below `directory`, as a plan to copy it.

    Links are followed when they end inside `inside`; their targets' content is what is copied.

    Args:
        directory: where to start.
        inside: the artifact's root, which nothing may leave.
        keep: says of a path relative to `directory` whether it, and what is below it, is wanted.
        tally: counts what is seen; by default without a limit.

    Raises:
        ArtifactError: a link leaves `inside` or is broken, something is neither a file nor a
            directory, a name is misleading, or a limit is passed.
    """
    walk = _Walk(
        directory,
        inside.resolve(),
        keep or (lambda _: True),
        tally or Tally(UNLIMITED, directory),
    )
    files: list[EntryFile] = []
    empty: list[PurePosixPath] = []
    for path, entries, is_empty in walk.below(PurePosixPath(), frozenset({directory.resolve()})):
        files += entries
        if is_empty and path.parts:
            empty.append(path)
    return Tree(tuple(files), tuple(empty))


@dataclass(frozen=True)
class _Walk:
    """One walk through `directory`; see `scan_tree` for the attributes."""

    directory: Path
    root: Path
    keep: Callable[[PurePosixPath], bool]
    tally: Tally

    def below(
        self, at: PurePosixPath, above: frozenset[Path]
    ) -> Iterator[tuple[PurePosixPath, list[EntryFile], bool]]:
        """Yield every directory below `at` with the files in it, and whether it has nothing at all.

        `above` holds where the walk is, links resolved: two links can lead to each other in a
        circle.
        """
        files: list[EntryFile] = []
        directories: list[PurePosixPath] = []
        listing = self._listing(at)
        for entry in listing:
            path = at / entry.name
            if not self.keep(path):
                continue
            check_file_name(entry.name)  # directories, too
            mode, size_bytes = check_member(Path(entry.path), self.root)
            if stat.S_ISDIR(mode):
                directories.append(path)
            else:
                self.tally.add_size(size_bytes)
                files.append(EntryFile(path, Path(entry.path), size_bytes))
        yield at, files, not listing
        for path in directories:
            target = (self.directory / path).resolve()
            if target in above:
                raise ArtifactError(f"{self.directory / path} leads in a circle; remove the link")
            yield from self.below(path, above | {target})

    def _listing(self, at: PurePosixPath) -> list[os.DirEntry[str]]:
        """The entries of one directory, counted as they come: it may have millions."""
        found: list[os.DirEntry[str]] = []
        directory = self.directory / at
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self.tally.add(at / entry.name)
                    found.append(entry)
        except OSError as exc:
            raise ArtifactError(f"cannot read {directory}: {exc.strerror}") from exc
        return sorted(found, key=lambda entry: entry.name)


def check_member(path: Path, root: Path) -> tuple[int, int]:
    """Mode and size of what `path` leads to, once it is sure that this is inside `root`.

    Args:
        path: a file or directory, perhaps through links.
        root: an already resolved directory.

    Raises:
        ArtifactError: the link is broken, leads out of `root` or in a circle, or this is a device,
            a socket or a pipe.
    """
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError) as exc:  # RuntimeError: a circle of links, before Python 3.13
        raise ArtifactError(f"{path} leads nowhere: {exc}; replace the link by its target") from exc
    if not target.is_relative_to(root):
        raise ArtifactError(f"{path} leads out of the model, to {target}; copy the file into it")
    if path.is_symlink() and path.parent.resolve().is_relative_to(target):
        raise ArtifactError(f"{path} leads to a directory that contains it; remove the link")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ArtifactError(f"{path} is neither a file nor a directory; remove it")
    return status.st_mode, status.st_size
