"""What an environment is made of, and the name that follows from it."""

from __future__ import annotations

import hashlib
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlflow_triton_plugin.local import model_packages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_triton_plugin.environments.target import ServerPython

__all__ = ["Recipe", "recipe_of"]

#: How archives are made; another number, other archives.
_LAYOUT = "layout 1"
#: MLflow's own limit, which mlflow-skinny leaves out.
_PANDAS = "pandas<3"
_DIGITS = 12


@dataclass(frozen=True)
class Recipe:
    """An environment to pack.

    Attributes:
        python: the server's minor version, `3.11`.
        machine: the server's processor, as `platform.machine` calls it.
        packages: what is to be installed, sorted.
        pins: the numpy to go with them.
    """

    python: str
    machine: str
    packages: tuple[str, ...]
    pins: tuple[str, ...]

    @property
    def name(self) -> str:
        """`env-py311-<digest>`: the same for the same requirements, on every machine."""
        parts = (_LAYOUT, self.python, self.machine, *self.packages, *self.pins)
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_DIGITS]
        return f"env-py{self.python.replace('.', '')}-{digest}"


def recipe_of(requirements: Sequence[str], python: ServerPython) -> Recipe:
    """What a model's requirements come to on a server.

    MLflow is mlflow-skinny, with pandas; numpy is the model's where the server's Python backend can
    do with it.

    Raises:
        ProvisioningError: a line is no requirement.
    """
    model_packages(requirements)  # what is no requirement is refused in its words
    named = {canonicalize_name(Requirement(text).name) for text in requirements}
    packages = model_packages([*requirements, *(() if "pandas" in named else (_PANDAS,))])
    pins = [text for text in requirements if canonicalize_name(Requirement(text).name) == "numpy"]
    return Recipe(
        python=python.version,
        # a server is Linux, and other systems' processors have other names
        machine=platform.machine() if sys.platform == "linux" else "x86_64",
        packages=tuple(packages),
        pins=tuple(sorted(pins) or ["numpy"]) if python.takes_numpy_2 else ("numpy<2",),
    )
