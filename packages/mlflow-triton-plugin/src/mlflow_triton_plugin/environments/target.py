"""Which Python a server's models run in: Triton's stub is built for one minor version.

No protocol of Triton's tells it. The embedded server does in its name, and so can any other
(`tritonserver --id=triton-python3.12`); NVIDIA's images have that of their Ubuntu.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_triton_plugin.environments.recipe import lacking
from mlflow_triton_plugin.errors import SettingsError, TritonServerError
from mlflow_triton_plugin.local._here import mark_of_here
from mlflow_triton_plugin.local.provisioning import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_triton_plugin.server import ServerFacts, TritonServers

__all__ = ["ServerPython", "lacking_here", "python_of"]

_SAYS = re.compile(r"python(3\.\d{1,2})\b")
#: What the embedded server says besides: the machine that it is on, and its environment there.
_IS_HERE = re.compile(
    r"triton-python(?P<python>3\.\d{1,2})-(?P<mark>\w+)-(?P<name>triton-[\w.]+-\w+)"
)
#: From which Triton on NVIDIA's images have which Python: 23.05 came with Ubuntu 22.04 (its
#: python_backend README), 24.11 with 24.04.
_OF_IMAGES = (((2, 52), "3.12"), ((2, 34), "3.10"))
#: 25.01. pybind11 2.12 came into the Python backend after 24.10; numpy 2 is a known issue in the
#: release notes of 2.51 and 2.52.
_NUMPY_2 = (2, 54)


@dataclass(frozen=True)
class ServerPython:
    """What packages have to fit.

    Attributes:
        version: major and minor, `3.11`.
        takes_numpy_2: whether the Python backend reads arrays of numpy 2.
    """

    version: str
    takes_numpy_2: bool


def lacking_here(servers: TritonServers, requirements: Sequence[str], python: str) -> list[str]:
    """Which of a model's requirements embedded servers of this machine do not meet.

    Args:
        servers: all that will load it.
        requirements: of the model.
        python: the minor version that it was logged with; an empty string where that is not known.

    Returns:
        An empty list where one server is elsewhere or does not tell, or all meet all of them.
    """
    try:
        facts = servers.facts()
    except TritonServerError:  # it may tell others only
        return []
    found = [match for each in facts if (match := _IS_HERE.fullmatch(each.name))]
    if len(found) < len(facts) or any(each["mark"] != mark_of_here() for each in found):
        return []
    lacks: list[str] = []
    for each in found:
        lib = cache_folder() / each["name"] / "lib" / f"python{each['python']}"
        if not lib.is_dir():  # the server's cache is another one, for a reason of its user's
            return []
        if python not in ("", each["python"]):
            lacks.append(f"python=={python}")
        lacks += lacking(requirements, lib / "site-packages", each["python"])
    return list(dict.fromkeys(lacks))


def python_of(servers: TritonServers, *, wanted: str = "", recorded: str = "") -> ServerPython:
    """The Python of all servers that read a repository.

    Args:
        servers: all of them.
        wanted: what the user says it is; an empty string where they say nothing.
        recorded: what was packed for before: it counts where a server does not say.

    Raises:
        SettingsError: they have different ones, or it cannot be known.
        TritonServerError: one does not answer.
    """
    facts = servers.facts()
    takes_numpy_2 = all(each.release >= _NUMPY_2 for each in facts)
    if wanted:
        return ServerPython(wanted, takes_numpy_2)
    found = {each.endpoint: _version(each, recorded) for each in facts}
    unknown = [endpoint for endpoint, version in found.items() if not version]
    if unknown:
        raise SettingsError(
            f"{unknown[0]} does not say which Python its models run in; say it: "
            "-C env_python=3.12 (tritonserver --id=triton-python3.12 says it for good)",
            setting="-C env_python",
        )
    if len(set(found.values())) > 1:
        told = ", ".join(f"{endpoint} has {version}" for endpoint, version in found.items())
        raise SettingsError(
            f"one environment cannot be packed for servers with different Pythons: {told}; give "
            "each a repository of its own (-C env_python=3.12 says what all of them have)",
            setting="-C env_python",
        )
    return ServerPython(next(iter(found.values()), recorded), takes_numpy_2)


def _version(facts: ServerFacts, recorded: str) -> str:
    said = _SAYS.search(facts.name)
    if said:
        return said[1]
    of_image = (python for least, python in _OF_IMAGES if facts.release >= least)
    return recorded or next(of_image, "")
