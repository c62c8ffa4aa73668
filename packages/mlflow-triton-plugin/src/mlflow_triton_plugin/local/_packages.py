"""What models need in the server's Python: their requirements.txt, fit for that Python."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mlflow_triton_plugin.local.errors import ProvisioningError
from triton_repo.text import as_line, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["at_most", "model_packages", "read_requirements", "requirements_of"]

#: MLflow without its servers and its user interface is a tenth of it, and loads every model; what
#: `mlflow.pyfunc` imports is not among what it requires.
_MLFLOW = "mlflow-skinny"
_HASH = re.compile(r"(?:^|\s)--hash[=\s]")
#: Of `-rother.txt`.
_SHORT = 2
#: What a requirements.txt may have besides packages, and why none of it is taken.
_NO_PACKAGES = {
    ("-r", "--requirement"): (
        "other files are not read, for only this one comes with a model: name their packages in it"
    ),
    ("-c", "--constraint"): (
        "constraints are not read: name the packages that they are for, with their versions"
    ),
    ("-e", "--editable"): (
        "what is editable is a folder of the machine it was logged on: name a version that was "
        "released, or an address (name @ https://…)"
    ),
}
_NO_HASHES = (
    "hashes are for exactly the packages that are named, and others come with them (mlflow-skinny "
    "in the place of mlflow): leave them out"
)
_NO_SETTINGS = (
    "only packages belong there: indexes, and what is taken from them, are uv's and pip's settings "
    "(UV_INDEX_URL, PIP_INDEX_URL)"
)
#: What uv and pip would put in from the environment of whoever deploys.
_VARIABLE = re.compile(r"\$\{[A-Za-z0-9_]+\}")


def read_requirements(path: Path) -> list[str]:
    """The lines of a requirements.txt that name packages.

    Raises:
        ProvisioningError: it cannot be read, or holds more than packages (`-r`, `--index-url`).
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProvisioningError(f"{path} cannot be read: {error}", path=path) from error
    found = [text for line in lines if (text := line.partition(" #")[0].strip())]
    for text in found:
        why = _why_no_package(text)
        if why:
            raise ProvisioningError(f"{path} has {as_line(text)!r}; {why}", path=path)
    return [text for text in found if not text.startswith("#")]


def _why_no_package(text: str) -> str:
    """What a line asks for that an environment cannot give; empty for what may name a package."""
    option = re.split(r"[\s=]", text, maxsplit=1)[0]
    for options, why in _NO_PACKAGES.items():
        if option in options or (len(option) > _SHORT and option[:_SHORT] in options):
            return why
    if _HASH.search(text):
        return _NO_HASHES
    return _NO_SETTINGS if text.startswith("-") else ""


def requirements_of(model_uri: str) -> list[str]:
    """The same of a model in MLflow.

    Raises:
        ProvisioningError: there is no such model, or it has none.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes two seconds
    from mlflow.pyfunc import get_model_dependencies  # noqa: PLC0415 - as above

    try:
        return read_requirements(Path(get_model_dependencies(model_uri)))
    except MlflowException as error:
        raise ProvisioningError(
            f"the requirements of {as_line(model_uri)} cannot be read: {one_line(error)}"
        ) from error


def at_most(packages: Iterable[str]) -> list[str]:
    """The same packages, in the versions that are pinned or in older ones; MLflow's stays."""
    found = []
    for text in packages:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) != _MLFLOW:
            requirement.specifier = SpecifierSet(
                ",".join(
                    f"<={each.version}"
                    if each.operator == "==" and "*" not in each.version
                    else str(each)
                    for each in requirement.specifier
                )
            )
        found.append(str(requirement))
    return found


def model_packages(requirements: Iterable[str]) -> list[str]:
    """Requirements as the server's environment can have them, in a fixed order.

    numpy is the server's own: its Python backend needs one below 2. MLflow is mlflow-skinny, of the
    same version, and pandas, which that does not ask for, no newer than what MLflow has here.

    Raises:
        ProvisioningError: a line is no requirement.
    """
    found: dict[str, set[str]] = {}
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise ProvisioningError(
                f"{as_line(text)!r} is no requirement: {str(error).splitlines()[0]}"
            ) from error
        if _VARIABLE.search(text):
            raise ProvisioningError(
                f"{as_line(text)!r} names an environment variable, and a model is given none of "
                "this machine's; name the address itself"
            )
        if canonicalize_name(requirement.name) == "mlflow":
            requirement.name, requirement.extras = _MLFLOW, set()
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement))
    found.pop("numpy", None)
    found.setdefault(_MLFLOW, {_MLFLOW})
    found.setdefault("pandas", {f"pandas<={version('pandas')}"})
    return sorted(text for texts in found.values() for text in texts)
