"""Makes a virtual environment and installs into it, with uv or with pip."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from mlflow_triton_plugin.local.errors import ProvisioningError
from triton_repo.text import as_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlflow_triton_plugin.local._interpreters import Interpreter

__all__ = ["install", "install_for", "make_venv"]

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
#: How uv words what led to its error, before 0.13 and since.
_CAUSE = re.compile(r" (?:caused by|cause): ", re.IGNORECASE)
_PINNED = ("--no-deps", "--only-binary", ":all:")


def make_venv(interpreter: Interpreter, folder: Path, root: Path) -> None:
    """Make a virtual environment without pip in it, so that Debian's ensurepip is not needed.

    Raises:
        ProvisioningError: this Python has no `venv` module.
    """
    command = [str(interpreter.executable), "-I", "-m", "venv", "--without-pip", str(folder)]
    failure = _run(command, folder)
    if failure is not None:
        raise ProvisioningError(
            f"{interpreter.executable} cannot make a virtual environment: {_reason(failure)}; "
            f"on Debian and Ubuntu: apt-get install python{interpreter.short_version}-venv",
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

    Raises:
        ProvisioningError: none did; the last one's words are in it.
    """
    failure = ""
    for command in _commands(folder, uv):
        failed = _run([*command, *(_PINNED if pinned else ()), *requirements], folder)
        if failed is None:
            return
        failure = failed
    if failure:
        raise _not_installed(requirements, failure, root)
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
) -> None:
    """Install for a Python on Linux that this machine has not, from wheels alone.

    Args:
        python: its minor version, `3.12`.
        machine: its processor, `x86_64`.
        folder: its site-packages.
        requirements: what to install, with all that these require.
        uv: its path.
        root: how messages name the environment.

    Raises:
        ProvisioningError: it could not; uv's words are in it.
    """
    target = ["--python-version", python, "--python-platform", f"{machine}-{_GLIBC}"]
    command = [uv, "pip", "install", "--python", sys.executable, "--target", str(folder), *target]
    failure = _run([*command, "--only-binary", ":all:", *requirements], folder)
    if failure is not None:
        raise _not_installed(requirements, failure, root)


def _not_installed(requirements: Sequence[str], output: str, root: Path) -> ProvisioningError:
    wanted, said = as_line(", ".join(requirements)), as_line(_reason(output))
    return ProvisioningError(
        f"{wanted} could not be installed: {said}",
        path=root,
        output=output,
    )


def _commands(folder: Path, uv: str | None) -> Iterator[list[str]]:
    python = str(folder / "bin" / "python")
    if uv:
        # copies, not links into uv's cache: whatever damages this environment would damage the
        # cache too, and come back from it
        yield [uv, "pip", "install", "--python", python, "--link-mode", "copy"]
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


def _reason(output: str) -> str:
    """The line that says what went wrong: pip's or uv's last error, with what uv says caused it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [place for place, line in enumerate(lines) if line.lower().startswith("error")]
    if not errors:
        return (lines or ["no reason given"])[-1]
    # in a narrow terminal uv breaks its lines
    failed, *causes = _CAUSE.split(" ".join(lines[errors[-1] :]))
    return f"{failed}: {causes[-1]}" if causes else lines[errors[-1]]
