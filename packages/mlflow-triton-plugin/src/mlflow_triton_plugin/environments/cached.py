"""What is made once a machine and kept in its cache: a folder with one file that stands for it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mlflow_triton_plugin.local._managed import ensure_directory
from mlflow_triton_plugin.local._progress import Progress
from mlflow_triton_plugin.local.errors import ProvisioningError
from mlflow_triton_plugin.local.provisioning import CACHE_VARIABLE, cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.environments.recipe import Recipe

    class _Make(Protocol):
        def __call__(
            self, staging: Path, *, recipe: Recipe, folder: Path, progress: Progress
        ) -> None: ...


__all__ = ["Cached", "flushed"]


@dataclass(frozen=True)
class Cached:
    """An environment in the cache.

    Attributes:
        recipe: what it is made of.
        name: of its folder.
        filename: of the file in it that is wanted.
        make: fills an empty folder, `staging`, which gets the name of `folder` afterwards.
        is_complete: tells a folder that can be used from a damaged one.
    """

    recipe: Recipe
    name: str
    filename: str
    make: _Make
    is_complete: Callable[[Path], bool]

    @property
    def folder(self) -> Path:
        """Where it is, or is going to be."""
        return cache_folder() / "environments" / self.name

    def made_before(self) -> Path | None:
        """The file, where this machine has it already."""
        return self.folder / self.filename if self.is_complete(self.folder) else None

    def made(self, progress: Progress | None = None) -> Path:
        """The file; it is made unless it is there.

        Raises:
            ProvisioningError: it could not be made; nothing of it is left.
        """
        folder = self.folder
        progress = progress or Progress()
        make = partial(self.make, recipe=self.recipe, folder=folder, progress=progress)
        try:
            ensure_directory(folder, make=make, is_complete=self.is_complete, progress=progress)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full" if full else str(error)
            raise ProvisioningError(
                f"{self.name} cannot be made in {folder.parent}: {what}; make room, or set "
                f"{CACHE_VARIABLE} to a folder that has it",
                path=folder,
            ) from error
        return folder / self.filename


def flushed(*paths: Path) -> None:
    """Have what was written outlast a power cut, before it gets its name."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
