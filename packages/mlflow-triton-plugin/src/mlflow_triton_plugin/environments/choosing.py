"""Which environment a deployment gets: the one asked for, or what an earlier command asked for."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.errors import SettingsError
from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import MissingModelFileError
from triton_repo.text import as_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.server import TritonServers
    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.stock import Stock

__all__ = ["ENV_PARAMETER", "Environment", "environment_for"]

_logger = logging.getLogger(__name__)

#: The path in `triton_repo.overrides`.
ENV_PARAMETER = "parameters.EXECUTION_ENV_PATH"
_ANCHOR = "$$TRITON_MODEL_DIRECTORY/"
#: What `Recipe.name` gives, and what a file of the user's is called.
_PACKED = re.compile(r"env-py(3)(\d+)-[0-9a-f]{12}\.tar\.gz")
_GIVEN = re.compile(r"env-file-[0-9a-f]{12}\.tar\.gz")
_DIGITS = 12


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
) -> tuple[Environment | None, dict[str, str]]:
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
    wanted = options.env or ("pack" if was_packed else recorded if was_given else "default")
    if options.env_python and wanted != "pack":
        raise _without_pack()
    if wanted == "default":
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


def _without_pack() -> SettingsError:
    return SettingsError(
        "-C env_python says which Python an environment is packed for, and none is packed here; "
        "add -C env=pack, or leave it out",
        setting="-C env_python",
    )


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
    from mlflow_triton_plugin.environments.packing import packed, packed_before  # noqa: PLC0415
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
    filename = f"{recipe.name}.tar.gz"
    source = None
    if base is not None and base.has_beside(filename):
        state = "in the repository"
    elif (source := packed_before(recipe)) is not None:
        state = "packed before"
    elif packs:
        source, state = packed(recipe), "packed now"
    else:
        state = "to be packed"
    packages = (*recipe.packages, *recipe.pins)
    return Environment(filename, source, state, recipe.python, packages)
