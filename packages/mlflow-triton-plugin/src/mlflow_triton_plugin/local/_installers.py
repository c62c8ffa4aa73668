"""Makes a virtual environment and installs into it, with uv or with pip.

Requirements are handed over in a file: everybody on a machine may read command lines, and addresses
of packages have passwords.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton_plugin.local._installer_words import is_full_disk, reason_of
from mlflow_triton_plugin.local._managed import CACHE_VARIABLE
from mlflow_triton_plugin.local.errors import ProvisioningError
from triton_repo.masking import without_secrets
from triton_repo.text import as_line, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow_triton_plugin.local._interpreters import Interpreter

__all__ = ["install", "install_for", "make_venv", "write_bytecode"]

#: A file of site-packages. The stubs' interpreter ignores PYTHONDONTWRITEBYTECODE, and would leave
#: a __pycache__ in each model's version directory. Not sitecustomize.py: Debian's Python has one of
#: its own, which comes first.
_NO_BYTECODE = ("mlflow_triton_no_bytecode.pth", "import sys; sys.dont_write_bytecode = True\n")

#: Settings of the calling environment that would send the packages elsewhere. Indexes, proxies
#: and certificate settings are inherited.
_MISLEADING = (
    "PIP_PREFIX",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)
#: Ubuntu 20.04 and all that came later.
_GLIBC = "manylinux_2_31"
_LONGEST_REASON = 600
_FULL = f"the disk is full; make room, or set {CACHE_VARIABLE} to a folder that has it"
_WHEELS = ("--only-binary", ":all:")
_PINNED = ("--no-deps", *_WHEELS)
_PRETENDING = ("--dry-run",)


def make_venv(interpreter: Interpreter, folder: Path, root: Path) -> None:
    """Make a virtual environment without pip in it, so that Debian's ensurepip is not needed.

    Raises:
        ProvisioningError: this Python has no `venv` module.
    """
    command = [str(interpreter.executable), "-I", "-m", "venv", "--without-pip", str(folder)]
    failure = _run(command, folder)
    if failure is None:
        return
    said = f"{interpreter.executable} cannot make a virtual environment"
    if is_full_disk(failure):
        raise ProvisioningError(f"{said}: {_FULL}", path=root, output=failure)
    raise ProvisioningError(
        f"{said}: {_told(failure)}; on Debian and Ubuntu: "
        f"apt-get install python{interpreter.short_version}-venv",
        path=root,
        output=failure,
    )


def install(
    interpreter: Interpreter,
    folder: Path,
    requirements: Sequence[str],
    *,
    uv: str | None,
    root: Path,
    pinned: bool = True,
    pretends: bool = False,
    is_cache: bool = False,
) -> None:
    """Install with the first installer that manages it.

    uv is tried first, then pip: uv knows nothing of pip's configuration, and where that names the
    company's index only pip reaches it.

    Args:
        interpreter: the environment's Python.
        folder: the environment.
        requirements: what to install.
        uv: its path, or None.
        root: how messages name the environment.
        pinned: whether these are all there is: nothing that they require is installed.
        pretends: whether it is only found out if they could be.
        is_cache: whether the environment is one of many in a cache: its files are links to uv's
            own where they can be, and nothing is built, for that would run the packages' code.

    Raises:
        ProvisioningError: none did; the words of each are in it.
    """
    options = (*(_PINNED if pinned else ()), *(_PRETENDING if pretends else ()))
    if is_cache:
        options += _WHEELS
    failures = {}
    with _listed(requirements, folder) as file:
        for command in _commands(folder, uv, links="hardlink" if is_cache else "copy"):
            failed = _run([*command, *options, "--requirement", file], folder)
            if failed is None:
                return
            failures["uv" if command[0] == uv else "pip"] = failed
    if failures:
        raise _not_installed(requirements, failures, root)
    raise ProvisioningError(
        f"there is neither uv nor pip to install packages with: pip install uv, or on Debian "
        f"and Ubuntu apt-get install python{interpreter.short_version}-venv",
        path=root,
    )


def install_for(
    python: str,
    machine: str,
    folder: Path,
    requirements: Sequence[str],
    *,
    uv: str,
    root: Path,
    pretends: bool = False,
) -> None:
    """Install for a Python on Linux that this machine has not, from wheels alone.

    Args:
        python: its minor version, `3.12`.
        machine: its processor, `x86_64`.
        folder: its site-packages.
        requirements: what to install, with all that these require.
        uv: its path.
        root: how messages name the environment.
        pretends: see `install`.

    Raises:
        ProvisioningError: it could not; uv's words are in it.
    """
    target = ["--python-version", python, "--python-platform", f"{machine}-{_GLIBC}"]
    command = [uv, "pip", "install", "--python", sys.executable, "--target", str(folder), *target]
    options = ["--only-binary", ":all:", *(_PRETENDING if pretends else ())]
    with _listed(requirements, folder) as file:
        failure = _run([*command, *options, "--requirement", file], folder)
    if failure is not None:
        raise _not_installed(requirements, {"uv": failure}, root)


def _told(output: str) -> str:
    return shortened(as_line(reason_of(output)), _LONGEST_REASON)


def write_bytecode(python: Path, site_packages: Path, *options: str) -> None:
    """Compile what is installed, and have no more bytecode written.

    For that very reason: numpy, and MLflow for its models, would be compiled at each load.

    Args:
        python: the environment's own; where it has none, nothing is compiled.
        site_packages: what is compiled.
        options: of `compileall`.
    """
    name, content = _NO_BYTECODE
    (site_packages / name).write_text(content)
    if python.exists():
        subprocess.run(  # noqa: S603 - the environment's own Python
            [python, "-I", "-m", "compileall", "-q", "-j2", *options, site_packages],
            check=False,
            capture_output=True,
        )


@contextmanager
def _listed(requirements: Sequence[str], folder: Path) -> Iterator[str]:
    """A file of requirements that only its owner can read.

    It is in the folder that is removed where this process is killed.
    """
    descriptor, path = tempfile.mkstemp(".txt", "requirements-", folder)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.writelines(f"{each}\n" for each in requirements)
        yield path
    finally:
        Path(path).unlink(missing_ok=True)


def _not_installed(
    requirements: Sequence[str], failures: dict[str, str], root: Path
) -> ProvisioningError:
    output = without_secrets("\n".join(failures.values()))
    said = "; ".join(f"{tool} says: {_told(each)}" for tool, each in failures.items())
    why = f"{_FULL} ({said})" if is_full_disk(output) else said
    return ProvisioningError(
        f"{as_line(', '.join(requirements))} could not be installed: {why}",
        path=root,
        output=output,
    )


def _commands(folder: Path, uv: str | None, *, links: str) -> Iterator[list[str]]:
    python = str(folder / "bin" / "python")
    if uv:
        # the server's own has copies, not links into uv's cache: whatever damages it would damage
        # the cache too, and come back from it
        yield [uv, "pip", "install", "--python", python, "--link-mode", links]
    if importlib.util.find_spec("pip"):
        yield [sys.executable, "-m", "pip", "--python", python, "install", "--no-compile"]
    elif _run([python, "-I", "-m", "ensurepip"], folder) is None:
        yield [python, "-I", "-m", "pip", "install", "--no-compile"]


def _run(command: Sequence[str], folder: Path) -> str | None:
    """Run a command; return None when it went well, its output otherwise."""
    environ = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    done = subprocess.run(  # noqa: S603 - programs found by name, arguments of ours
        command,
        check=False,
        # not the user's project: its pyproject.toml may configure uv
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return None if done.returncode == 0 else done.stdout
