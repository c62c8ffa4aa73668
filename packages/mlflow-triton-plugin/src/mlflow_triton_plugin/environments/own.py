"""Environments that a model's worker uses in place: those of servers on this machine.

```
<cache>/environments/own-py311-<digest>/
    bin/python, lib/…        a virtual environment
    bytecode/                what workers compile: nothing is run or compiled by who deploys
    worker.json              written last; a copy of it is beside each `model.py` that uses it
```
"""

from __future__ import annotations

import json
import platform
from functools import partial
from typing import TYPE_CHECKING

from mlflow_triton_plugin.environments.packing import ensured, flushed
from mlflow_triton_plugin.environments.recipe import Recipe
from mlflow_triton_plugin.local._installers import install, make_venv
from mlflow_triton_plugin.local._interpreters import find_python, find_uv
from mlflow_triton_plugin.local._progress import Progress
from mlflow_triton_plugin.local.errors import ProvisioningError
from mlflow_triton_plugin.local.provisioning import cache_folder, size_in_words
from triton_repo.text import as_line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["made", "made_again", "made_before"]

_MARKER = "worker.json"


def made_before(recipe: Recipe) -> Path | None:
    """The file that names it, where this machine has it already."""
    folder = _folder(recipe)
    return folder / _MARKER if _is_complete(folder) else None


def made(recipe: Recipe, progress: Progress | None = None) -> Path:
    """The file that names it; it is made unless it is there.

    Raises:
        ProvisioningError: it could not be made; nothing of it is left.
    """
    folder = _folder(recipe)
    progress = progress or Progress()
    make = partial(_make, recipe=recipe, folder=folder, progress=progress)
    try:
        ensured(recipe.own_name, folder, make, _is_complete, progress)
    except ProvisioningError as error:
        raise ProvisioningError(
            f"{error}; -C env=default has the server's own Python run the model",
            path=folder,
            output=error.output,
        ) from error
    return folder / _MARKER


def made_again(named: bytes) -> None:
    """Make the environment of a version on disk again, where somebody has removed it.

    Args:
        named: the file of that version.

    Raises:
        ProvisioningError: it could not be made; nothing of it is left.
    """
    try:
        found = json.loads(named)
        recipe = Recipe(found["version"], platform.machine(), tuple(found["packages"]), ())
        is_ours = found["python"] == str(_python(_folder(recipe)))
    except (ValueError, KeyError, TypeError):  # somebody's own
        return
    if is_ours:
        made(recipe)


def _folder(recipe: Recipe) -> Path:
    return cache_folder() / "environments" / recipe.own_name


def _is_complete(folder: Path) -> bool:
    try:
        named = json.loads((folder / _MARKER).read_text("utf-8"))["python"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(named == str(_python(folder))) and _python(folder).exists()


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _make(staging: Path, *, recipe: Recipe, folder: Path, progress: Progress) -> None:
    packages = as_line(", ".join(recipe.packages))
    progress.say(f"Making an environment with Python {recipe.python}: {packages}")
    uv = find_uv()
    interpreter = find_python(recipe.python, uv, fetches=True)
    if interpreter is None:
        raise ProvisioningError(
            f"the model was logged with Python {recipe.python}, and this machine has none of it: "
            + ("uv found none to download" if uv else "install it, or uv (pip install uv)"),
            path=folder,
        )
    make_venv(interpreter, staging, folder)
    with progress.step("downloading and installing", partial(size_in_words, staging)):
        install(
            *(interpreter, staging, recipe.packages),
            uv=uv,
            root=folder,
            pinned=False,
            is_cache=True,
        )
    _point_at(folder, staging)
    marker = {
        "python": str(_python(folder)),
        "version": recipe.python,
        "packages": [as_line(each) for each in recipe.packages],
    }
    (staging / _MARKER).write_text(json.dumps(marker, indent=1), "utf-8")
    flushed(staging / _MARKER, staging)


def _point_at(folder: Path, staging: Path) -> None:
    """Have the programs that were installed run the Python in `folder`, which is not there yet."""
    ours = f"#!{staging}".encode()
    for program in (staging / "bin").iterdir():
        if program.is_symlink() or not program.is_file():
            continue
        content = program.read_bytes()
        if content.startswith(ours):
            written = program.with_name(f".{program.name}")
            written.write_bytes(f"#!{folder}".encode() + content.removeprefix(ours))
            written.chmod(program.stat().st_mode)
            written.replace(program)
