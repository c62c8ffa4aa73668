"""Packs environments, each once a machine: what was packed is kept in the cache."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

from mlflow_triton_plugin.environments.archive import digest_of, write_archive
from mlflow_triton_plugin.environments.cached import Cached, flushed
from mlflow_triton_plugin.local._installers import (
    install,
    install_for,
    make_venv,
    write_bytecode,
)
from mlflow_triton_plugin.local._interpreters import find_python, find_uv
from mlflow_triton_plugin.local.errors import ProvisioningError
from mlflow_triton_plugin.local.provisioning import size_in_words
from triton_repo.text import as_line, human_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Protocol

    from mlflow_triton_plugin.environments.recipe import Recipe
    from mlflow_triton_plugin.local._progress import Progress

    class _Install(Protocol):
        def __call__(self, requirements: Sequence[str], *, pretends: bool = False) -> None: ...


__all__ = ["archive_of"]

_ARCHIVE = "environment.tar.gz"
_MARKER = "environment.json"


def archive_of(recipe: Recipe) -> Cached:
    """The archive of a recipe."""
    return Cached(recipe, recipe.name, _ARCHIVE, _make, _is_complete)


def _is_complete(folder: Path) -> bool:
    """Whether the archive is what was packed, to the byte; it is read to its end.

    Triton that breaks off in an archive unpacks none any more, of any model.
    """
    try:
        marker = json.loads((folder / _MARKER).read_text("utf-8"))
        archive = folder / _ARCHIVE
        is_whole = bool(archive.stat().st_size == marker["size_bytes"])
        return is_whole and digest_of(archive) == marker["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(staging: Path, *, recipe: Recipe, folder: Path, progress: Progress) -> None:
    packages = as_line(", ".join(recipe.packages))
    progress.say(f"Packing {recipe.name} for Python {recipe.python}: {packages}")
    root = staging / "root"
    root.mkdir()
    add = _installer(recipe, root, folder)
    with progress.step("1/2 downloading and installing", partial(size_in_words, root)):
        _install(recipe, add, folder)
    archive = staging / _ARCHIVE
    with progress.step("2/2 packing", partial(size_in_words, archive)):
        _finish(root, recipe)
        write_archive(root, archive, python=recipe.python)
    shutil.rmtree(root)
    marker = {
        "python": recipe.python,
        "machine": recipe.machine,
        "packages": [as_line(each) for each in (*recipe.packages, *recipe.pins)],
        "size_bytes": archive.stat().st_size,
        "sha256": digest_of(archive),
    }
    (staging / _MARKER).write_text(json.dumps(marker, indent=1), "utf-8")
    flushed(archive, staging / _MARKER, staging)
    progress.say(f"Packed {recipe.name}: {human_size(archive.stat().st_size)}")


def _install(recipe: Recipe, add: _Install, folder: Path) -> None:
    """Install what was asked for, in the versions asked for.

    Raises:
        ProvisioningError: that cannot be had; where it is for the server's older numpy, that is
            told.
    """
    try:
        add([*recipe.packages, *recipe.pins])
    except ProvisioningError as error:
        if not _is_for_numpy(recipe, add):
            raise
        raise ProvisioningError(
            "what the model requires needs numpy 2, and the Python backend of Triton before 25.01 "
            "cannot read its arrays: require versions that go with numpy below 2 "
            f"(mlflow.models.update_model_requirements), or serve it with a newer Triton; {error}",
            path=folder,
            output=error.output,
        ) from error


def _is_for_numpy(recipe: Recipe, add: _Install) -> bool:
    """Whether the server's older numpy is what does not fit, and nothing else."""

    def can_be(pins: Sequence[str]) -> bool:
        try:
            add([*recipe.packages, *pins], pretends=True)
        except ProvisioningError:
            return False
        return True

    return recipe.own_pins != recipe.pins and not can_be(recipe.pins) and can_be(recipe.own_pins)


def _installer(recipe: Recipe, root: Path, folder: Path) -> _Install:
    """What installs into `root`: for this machine's Python of that version, or for another's.

    Raises:
        ProvisioningError: neither can be done here.
    """
    uv = find_uv()
    interpreter = find_python(recipe.python, uv) if sys.platform == "linux" else None
    if interpreter is not None:
        make_venv(interpreter, root, folder)
        return partial(install, interpreter, root, uv=uv, root=folder, pinned=False)
    if uv is None:
        raise ProvisioningError(
            f"an environment for the server's Python {recipe.python} needs that Python on this "
            "machine, or uv (pip install uv), which brings wheels for it without",
            path=folder,
        )
    return partial(
        install_for, recipe.python, recipe.machine, _site_packages(root, recipe), uv=uv, root=folder
    )


def _site_packages(root: Path, recipe: Recipe) -> Path:
    folder = root / "lib" / f"python{recipe.python}" / "site-packages"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _finish(root: Path, recipe: Recipe) -> None:
    # by its content, for the archive has no times
    mode = ("--invalidation-mode", "unchecked-hash", "-s", str(root))
    write_bytecode(root / "bin" / "python", _site_packages(root, recipe), *mode)
