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

from mlflow_triton_plugin.environments.cached import Cached, flushed
from mlflow_triton_plugin.environments.recipe import Recipe
from mlflow_triton_plugin.local._installers import install, make_venv
from mlflow_triton_plugin.local._interpreters import find_python, find_uv
from mlflow_triton_plugin.local.errors import ProvisioningError
from mlflow_triton_plugin.local.provisioning import size_in_words
from triton_repo.text import as_line

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_triton_plugin.local._progress import Progress

__all__ = ["made_again", "own_of"]

_MARKER = "worker.json"


def own_of(recipe: Recipe) -> Cached:
    """The environment of a recipe; its file names the Python."""
    return Cached(recipe, recipe.own_name, _MARKER, _make, _is_complete)


def made_again(named: bytes) -> None:
    """Make an environment again that somebody has removed, for a version that is on disk.

    Args:
        named: the file of that version.

    Raises:
        ProvisioningError: it could not be made; nothing of it is left.
    """
    try:
        found = json.loads(named)
        recipe = Recipe(found["version"], platform.machine(), tuple(found["packages"]), ())
        own = own_of(recipe)
        is_ours = found["python"] == str(_python(own.folder))
    except (ValueError, KeyError, TypeError):  # a file that somebody wrote by hand
        return
    if is_ours:
        own.made()


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
    """Have installed programs run the Python in `folder`, as `staging` is going to be called."""
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
