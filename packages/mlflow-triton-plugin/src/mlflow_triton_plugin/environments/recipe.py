"""What an environment is made of, and the name that follows from it."""

from __future__ import annotations

import hashlib
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from mlflow_triton_plugin.local import model_packages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlflow_triton_plugin.environments.target import ServerPython

__all__ = ["Recipe", "lacking", "own_recipe_of", "recipe_of"]

#: How archives are made; another number, other archives.
_LAYOUT = "layout 2"
#: MLflow's own limits, which mlflow-skinny leaves out (`Requires-Dist` of mlflow's wheels).
_PANDAS, _NEXT_PANDAS, _TAKES_NEXT_PANDAS = "pandas<3", "pandas<4", Version("3.16")
_MLFLOW = ("mlflow", "mlflow-skinny")
#: The last one that older Python backends can do with.
_LAST_NUMPY_1, _NUMPY_1 = "1.26.4", "numpy<2"
_EXACT = ("==", "===")
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

    @property
    def own_name(self) -> str:
        """The same for an environment that a model's worker uses in place, on this machine."""
        return self.name.replace("env", "own", 1)

    @property
    def own_pins(self) -> tuple[str, ...]:
        """Without what is for the server's sake."""
        return tuple(each for each in self.pins if each != _NUMPY_1)


def recipe_of(requirements: Sequence[str], python: ServerPython) -> Recipe:
    """What a model's requirements come to on a server.

    MLflow is mlflow-skinny, with a pandas that it goes with; numpy is the model's where the
    server's Python backend can do with it. What is for other Pythons or systems is left out.

    Raises:
        ProvisioningError: a line is no requirement.
    """
    # a server is Linux, and other systems' processors have other names
    machine = platform.machine() if sys.platform == "linux" else "x86_64"
    wanted = _wanted(requirements, python.version, machine)
    packages = model_packages([*map(str, wanted), *_pandas_limit(wanted)])
    return Recipe(
        python=python.version,
        machine=machine,
        packages=tuple(packages),
        pins=_numpy(wanted, takes_numpy_2=python.takes_numpy_2),
    )


def own_recipe_of(requirements: Sequence[str], python: str) -> Recipe:
    """What a model's requirements come to in a Python of its own: what they say, and no less.

    MLflow is added where they do not name it, and pandas, which mlflow-skinny leaves out.

    Args:
        requirements: of the model.
        python: the minor version that it was logged with, `3.11`.

    Raises:
        ProvisioningError: a line is no requirement.
    """
    machine = platform.machine()
    wanted = _wanted(requirements, python, machine)
    packages = {str(each) for each in _with_mlflow(wanted, _pandas_limit(wanted))}
    return Recipe(python=python, machine=machine, packages=tuple(sorted(packages)), pins=())


def lacking(requirements: Sequence[str], site_packages: Path, python: str) -> list[str]:
    """Which requirements an installed environment does not meet.

    Args:
        requirements: of the model.
        site_packages: what the Python can import.
        python: its minor version.

    Raises:
        ProvisioningError: a line is no requirement.
    """
    installed: dict[str, str] = {
        canonicalize_name(each.metadata["Name"]): each.version
        for each in distributions(path=[str(site_packages)])
    }
    wanted = _with_mlflow(_wanted(requirements, python, platform.machine()), ("pandas",))
    return [str(each) for each in wanted if not _is_satisfied(each, installed)]


def _with_mlflow(wanted: list[Requirement], pandas: Sequence[str]) -> list[Requirement]:
    """The same with MLflow where nothing names it, and pandas, which mlflow-skinny leaves out."""
    if _named(wanted, "mlflow"):
        return wanted
    skinny = () if _named(wanted, "mlflow-skinny") else ("mlflow-skinny",)
    added = skinny if _named(wanted, "pandas") else (*skinny, *pandas)
    return [*wanted, *map(Requirement, added)]


def _is_satisfied(requirement: Requirement, installed: Mapping[str, str]) -> bool:
    version = installed.get(canonicalize_name(requirement.name))
    if version is None or requirement.url:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def _wanted(requirements: Sequence[str], python: str, machine: str) -> list[Requirement]:
    """What requirements ask for on a Python of Linux; what is for others is left out.

    Raises:
        ProvisioningError: a line is no requirement.
    """
    model_packages(requirements)  # what is no requirement is refused in its words
    there = _environment(python, machine)
    return [each for each in map(Requirement, requirements) if _is_for(each, there)]


def _environment(python: str, machine: str) -> dict[str, str]:
    """What markers ask for; the rest of it is this machine's, which no model can rely on."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.99",  # nobody knows; servers have late ones
        "python_version": python,
        "sys_platform": "linux",
    }


def _is_for(requirement: Requirement, server: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(server)


def _named(requirements: Sequence[Requirement], *names: str) -> list[Requirement]:
    return [each for each in requirements if canonicalize_name(each.name) in names]


def _pandas_limit(requirements: Sequence[Requirement]) -> tuple[str, ...]:
    """What MLflow's own wheel asks of pandas; nothing where the model names the very version."""
    own = _named(requirements, "pandas")
    if any(each.url or _exact(each) for each in own):
        return ()
    exact = [version for each in _named(requirements, *_MLFLOW) if (version := _exact(each))]
    takes_next = bool(exact) and min(exact) >= _TAKES_NEXT_PANDAS
    return (_NEXT_PANDAS if takes_next else _PANDAS,)


def _numpy(requirements: Sequence[Requirement], *, takes_numpy_2: bool) -> tuple[str, ...]:
    own = _named(requirements, "numpy")
    if takes_numpy_2:
        return tuple(sorted(map(str, own))) or ("numpy",)
    kept = sorted(str(each) for each in own if (each.url or each.specifier) and _admits_1(each))
    return (*kept, _NUMPY_1)


def _admits_1(requirement: Requirement) -> bool:
    """Whether any numpy 1 would do, tried with those at the ends of what is asked for."""
    ends = [each.version.removesuffix(".*") for each in requirement.specifier]
    tried = ["0", _LAST_NUMPY_1, *ends, *(f"{end}.1" for end in ends)]
    found = list(requirement.specifier.filter(tried))
    return any(Version(each).major < 2 for each in found)  # noqa: PLR2004 - numpy 2


def _exact(requirement: Requirement) -> Version | None:
    """The version that a requirement names, where it is one."""
    for each in requirement.specifier:
        if each.operator in _EXACT and not each.version.endswith(".*"):
            try:
                return Version(each.version)
            except InvalidVersion:  # `===` takes any text
                return None
    return None
