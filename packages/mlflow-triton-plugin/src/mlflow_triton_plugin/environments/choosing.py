"""Which environment a deployment gets: the one asked for, or what an earlier command asked for."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.errors import SettingsError
from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import MissingModelFileError, TritonRepoError
from triton_repo.flavors import ANY_MODEL
from triton_repo.flavors.pyfunc import ENVIRONMENT_FILE
from triton_repo.text import as_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.server import TritonServers
    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.placement import ModelPlace
    from triton_repo.stock import Stock

__all__ = ["ENV_PARAMETER", "Environment", "OwnEnvironment", "bring_back", "environment_for"]

_logger = logging.getLogger(__name__)

#: The path in `triton_repo.overrides`.
ENV_PARAMETER = "parameters.EXECUTION_ENV_PATH"
_PARAMETER = ENV_PARAMETER.partition(".")[2]
_ANCHOR = "$$TRITON_MODEL_DIRECTORY/"
#: What `Recipe.name` gives, and what a file of the user's is called.
_PACKED = re.compile(r"env-py(3)(\d+)-[0-9a-f]{12}\.tar\.gz")
_GIVEN = re.compile(r"env-file-[0-9a-f]{12}\.tar\.gz")
_DIGITS = 12
_PYTHON_OF_HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True)
class OwnEnvironment:
    """An environment on this machine, which the model's worker uses in place.

    Attributes:
        source: the file that names it; another one where it is yet to be made.
        state: `made before`, `made now` or `to be made`.
        python: its minor version.
        packages: what it is made of.
        differs: the requirements that the server's own Python does not meet.
    """

    source: Path
    state: str
    python: str
    packages: tuple[str, ...]
    differs: tuple[str, ...]

    def beside(self, entry: RepositoryEntry) -> RepositoryEntry:
        """The entry with the file in each version."""
        size_bytes = self.source.stat().st_size
        path = PurePosixPath(ENVIRONMENT_FILE)
        file = EntryFile(path, self.source, size_bytes, is_derived=True)
        versions = {
            number: replace(tree, files=(*tree.files, file))
            for number, tree in entry.versions.items()
        }
        return replace(entry, versions=versions)

    def described(self) -> dict[str, Any]:
        """For a plan: JSON."""
        return {
            "folder": "" if self.state == "to be made" else str(self.source.parent),
            "state": self.state,
            "python": self.python,
            "packages": [as_line(each) for each in self.packages],
            "differs": [as_line(each) for each in self.differs],
        }


@dataclass(frozen=True)
class Environment:
    """The archive that a deployment names.

    Attributes:
        filename: beside config.pbtxt.
        source: the file on this machine; None where the repository has it already, or it is yet to
            be packed.
        state: `in the repository`, `packed before`, `packed now`, `to be packed` or `given`.
        python: the minor version that it was packed for; an empty string for a user's own.
        packages: what it is packed from; empty for a user's own.
    """

    filename: str
    source: Path | None
    state: str
    python: str = ""
    packages: tuple[str, ...] = ()

    @property
    def override(self) -> dict[str, str]:
        """What config.pbtxt says of it, see `triton_repo.overrides`."""
        return {ENV_PARAMETER: f"{_ANCHOR}{self.filename}"}

    def beside(self, entry: RepositoryEntry) -> RepositoryEntry:
        """The entry with it, and without the one of its model's own config.pbtxt."""
        own = dict(entry.config.named_files if entry.config is not None else ())
        replaced = own.pop("parameters[EXECUTION_ENV_PATH]", "")
        files = [file for file in entry.shared.files if str(file.path) != replaced]
        if self.source is not None:
            size_bytes = self.source.stat().st_size
            path = PurePosixPath(self.filename)
            files.append(EntryFile(path, self.source, size_bytes, is_derived=True))
        return replace(entry, shared=Tree(tuple(files), entry.shared.empty_directories))

    def described(self) -> dict[str, Any]:
        """For a plan: JSON."""
        return {
            "file": self.filename,
            "state": self.state,
            "python": self.python,
            "packages": [as_line(each) for each in self.packages],
        }


def environment_for(
    entry: RepositoryEntry,
    artifact: ModelArtifact,
    base: Stock | None,
    *,
    overrides: Mapping[str, str],
    options: Options,
    servers: TritonServers,
    packs: bool,
) -> tuple[Environment | OwnEnvironment | None, dict[str, str]]:
    """The environment of a planned deployment.

    Args:
        entry: the model.
        artifact: the same, for its requirements.
        base: what stands there, if it stays.
        overrides: what is set of config.pbtxt, by this command and by those before.
        options: of the command.
        servers: who will load it.
        packs: whether it is packed where it has to be; otherwise nothing is written.

    Returns:
        The environment, None where the server's Python is enough, and the overrides with it.

    Raises:
        SettingsError: the model is none of the Python backend, or the archive given is none.
        ProvisioningError: it could not be packed; nothing was changed.
        TritonServerError: a server did not say what it is.
    """
    recorded = overrides.get(ENV_PARAMETER, "").removeprefix(_ANCHOR)
    others = {path: text for path, text in overrides.items() if path != ENV_PARAMETER}
    was_packed, was_given = _PACKED.fullmatch(recorded), _GIVEN.fullmatch(recorded)
    wanted = options.env or ("pack" if was_packed else recorded if was_given else "auto")
    if options.env_python and wanted != "pack":
        raise _without_pack()
    is_free = options.env == "auto" or not (recorded or _names_an_archive(entry))
    if wanted == "auto" and entry.flavor == ANY_MODEL and is_free:
        return _own(artifact, servers, packs=packs), others
    if wanted in ("auto", "default"):
        kept = overrides if options.env is None else others
        return None, dict(kept)
    backend = entry.config.backend if entry.config is not None else ""
    if backend != "python":
        served = f"flavor {entry.flavor} of this model is served by {backend or 'another'}"
        if options.env is None:
            _logger.warning("%s, which needs no %s", served, recorded)
            return None, others
        raise SettingsError(
            f"-C env is for models of Triton's Python backend, and {served}; leave it out, or "
            "choose --flavor python_function",
            setting="-C env",
        )
    if isinstance(wanted, Path):
        found = _given(wanted, base)
    elif wanted == "pack":
        python = f"{was_packed[1]}.{was_packed[2]}" if was_packed else ""
        found = _packed(artifact, base, options, servers, recorded=python, packs=packs)
    else:
        found = _kept(wanted, base)
    return found, others | found.override


def bring_back(place: ModelPlace, base: Stock, versions: Iterable[int]) -> None:
    """Make environments again that somebody has removed, for versions that are on disk."""
    named = [
        f"{place.name}/{version}/{ENVIRONMENT_FILE}"
        for version in versions
        if version in base.versions and ENVIRONMENT_FILE in base.versions[version].files
    ]
    if not named:
        return
    from mlflow_triton_plugin.environments.own import made_again  # noqa: PLC0415 - rare
    from mlflow_triton_plugin.local import ProvisioningError  # noqa: PLC0415 - the same

    for key in named:
        try:
            made_again(place.store.read(key))
        except (ProvisioningError, TritonRepoError) as exc:  # the load will tell
            _logger.warning("%s", exc)


def _without_pack() -> SettingsError:
    return SettingsError(
        "-C env_python says which Python an environment is packed for, and none is packed here; "
        "add -C env=pack, or leave it out",
        setting="-C env_python",
    )


def _own(artifact: ModelArtifact, servers: TritonServers, *, packs: bool) -> OwnEnvironment | None:
    """An environment on this machine; None where the servers are elsewhere, or have it all."""
    # imported here: `options`, and so every command, imports this module
    from mlflow_triton_plugin.environments.own import own_of  # noqa: PLC0415
    from mlflow_triton_plugin.environments.recipe import own_recipe_of  # noqa: PLC0415
    from mlflow_triton_plugin.environments.target import lacking_here  # noqa: PLC0415
    from mlflow_triton_plugin.local import ProvisioningError, read_requirements  # noqa: PLC0415

    listed = artifact.find("requirements.txt")
    if listed is None:
        return None
    logged = str(artifact.flavors["python_function"].get("python_version") or "")
    python = ".".join(logged.split(".")[:2])
    try:
        requirements = read_requirements(listed)
        recipe = own_recipe_of(requirements, python or _PYTHON_OF_HERE)
    except ProvisioningError as exc:
        _logger.warning("%s; the server's own Python runs the model", exc)
        return None
    differs = lacking_here(servers, requirements, python)
    if not differs:
        return None
    own = own_of(recipe)
    if (source := own.made_before()) is not None:
        state = "made before"
    elif packs:
        try:
            source, state = own.made(), "made now"
        except ProvisioningError as exc:
            way_out = "-C env=default has the server's own Python run the model"
            raise ProvisioningError(f"{exc}; {way_out}", path=exc.path, output=exc.output) from exc
    else:
        # a plan copies nothing; with this file, no version on disk is the same
        source, state = listed, "to be made"
    return OwnEnvironment(source, state, recipe.python, recipe.packages, tuple(differs))


def _names_an_archive(entry: RepositoryEntry) -> bool:
    """Whether config.pbtxt of the model's own has an environment for Triton's stub."""
    return entry.config is not None and _PARAMETER in entry.config.parameters


def _given(archive: Path, base: Stock | None) -> Environment:
    from mlflow_triton_plugin.environments.archive import checked_digest  # noqa: PLC0415 - rare

    filename = f"env-file-{checked_digest(archive)[:_DIGITS]}.tar.gz"
    there = base is not None and base.has_beside(filename)
    return Environment(filename, None if there else archive, "given")


def _kept(filename: str, base: Stock | None) -> Environment:
    if base is None or not base.has_beside(filename):
        raise MissingModelFileError(
            f"{filename}, the environment that was given with -C env, is no longer beside "
            "config.pbtxt, or is not what it was; give it again, or -C env=pack or default",
            path=filename,
        )
    return Environment(filename, None, "in the repository")


def _packed(
    artifact: ModelArtifact,
    base: Stock | None,
    options: Options,
    servers: TritonServers,
    *,
    recorded: str,
    packs: bool,
) -> Environment:
    # imported here: most models are deployed without
    from mlflow_triton_plugin.environments.packing import archive_of  # noqa: PLC0415
    from mlflow_triton_plugin.environments.recipe import recipe_of  # noqa: PLC0415
    from mlflow_triton_plugin.environments.target import python_of  # noqa: PLC0415
    from mlflow_triton_plugin.local import read_requirements  # noqa: PLC0415

    listed = artifact.find("requirements.txt")
    if listed is None:
        raise MissingModelFileError(
            "-C env=pack packs what requirements.txt of the model names, and it has none; log it "
            "with pip_requirements, or give an archive (-C env=FILE.tar.gz)",
            path="requirements.txt",
        )
    python = python_of(servers, wanted=options.env_python, recorded=recorded)
    recipe = recipe_of(read_requirements(listed), python)
    archive = archive_of(recipe)
    filename = f"{recipe.name}.tar.gz"
    source = None
    if base is not None and base.has_beside(filename):
        state = "in the repository"
    elif (source := archive.made_before()) is not None:
        state = "packed before"
    elif packs:
        source, state = archive.made(), "packed now"
    else:
        state = "to be packed"
    packages = (*recipe.packages, *recipe.pins)
    return Environment(filename, source, state, recipe.python, packages)
