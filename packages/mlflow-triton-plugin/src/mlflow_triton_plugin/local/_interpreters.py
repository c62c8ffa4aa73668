"""Finds the Python that the server's stubs can run on.

Triton's Python backend starts a stub process built for one Python version, which loads that
version's `libpythonX.Y.so.1.0` and then the packages of the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "SUPPORTED",
    "Interpreter",
    "fetch_libpython",
    "find_interpreter",
    "find_python",
    "find_uv",
    "probe",
]

#: The wheel has stubs for 3.8 to 3.13. numpy < 2 has no wheel for 3.13 (and the Python backend
#: returns zero bytes with numpy 2); ONNX Runtime has none any more for 3.9 and older.
SUPPORTED = ((3, 12), (3, 11), (3, 10))

_PROBE_TIMEOUT_S = 20
_DOWNLOAD_TIMEOUT_S = 600

_PROBE = """
import json, os, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
folders.append(os.path.join(folders[0], sysconfig.get_config_var("MULTIARCH") or ""))
found = [p for p in (os.path.join(f, name) for f in folders) if os.path.isfile(p)]
if not found:
    try:
        import ctypes
        ctypes.CDLL(name)
        with open("/proc/self/maps") as maps:
            found = [line.split()[-1] for line in maps if line.rstrip().endswith("/" + name)]
    except (ImportError, OSError):
        pass
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": list(sys.version_info[:3]),
    "is_64_bit": sys.maxsize > 2**32,
    "libpython": os.path.realpath(found[0]) if found else None,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that can run the stubs.

    Attributes:
        executable: its path.
        version: such as (3, 11, 7).
        libpython: its shared library; None where it has none.
    """

    executable: Path
    version: tuple[int, int, int]
    libpython: Path | None

    @property
    def short_version(self) -> str:
        """Major and minor, `3.11`."""
        return f"{self.version[0]}.{self.version[1]}"


def find_uv() -> str | None:
    """The `uv` to use: of the running environment, or on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def find_interpreter(uv: str | None) -> tuple[Interpreter | None, list[str]]:
    """Find a Python for the stubs.

    Looked at in this order: the running one, `python3.X` on PATH, `/usr/bin/python3`, those uv
    knows, one that uv downloads. One without a libpython is taken when there is no better one.

    Returns:
        The interpreter, and why each of the others would not do.
    """
    second_best: Interpreter | None = None
    reasons: list[str] = []
    for executable in _candidates(uv):
        found, reason = probe(executable)
        if found is not None and found.libpython is not None:
            return found, reasons
        second_best = second_best or found
        reasons.append(f"{executable} {reason}")
    return second_best, list(dict.fromkeys(reasons))


def find_python(version: str, uv: str | None, *, fetches: bool = False) -> Interpreter | None:
    """Find a Python of one minor version to install packages for, such as 3.11.

    Args:
        version: `3.11`.
        uv: its path, or None.
        fetches: whether uv is asked to bring one where there is none.
    """
    for executable in _candidates_for(version, uv, fetches=fetches):
        found, _ = probe(executable, any_version=True)
        if found is not None and found.short_version == version:
            return found
    return None


def _candidates_for(version: str, uv: str | None, *, fetches: bool) -> Iterator[str]:
    names = (f"python{version}", "python3")
    yield sys.executable
    yield from filter(None, map(shutil.which, names))
    yield from (f"/usr/bin/{name}" for name in names)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python3")))
    if uv:
        yield from _managed_by(uv, version)
        if fetches:
            yield from _fetched_by(uv, version)


def probe(executable: str | Path, *, any_version: bool = False) -> tuple[Interpreter | None, str]:
    """Ask a Python about itself.

    Args:
        executable: its path.
        any_version: whether it need not be one that stubs run on.

    Returns:
        The interpreter where it can be used at all, and what is wrong with it otherwise.
    """
    try:
        answer = json.loads(_run([str(executable), "-I", "-c", _PROBE], _PROBE_TIMEOUT_S))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, "does not run"
    major, minor, micro = answer["version"]
    if answer["implementation"] != "cpython" or not answer["is_64_bit"]:
        return None, "is not a 64-bit CPython"
    if (major, minor) not in SUPPORTED and not any_version:
        return None, f"is {major}.{minor}"
    libpython = Path(answer["libpython"]) if answer["libpython"] else None
    found = Interpreter(Path(executable), (major, minor, micro), libpython)
    return found, "" if libpython else f"has no libpython{major}.{minor}.so.1.0"


def fetch_libpython(interpreter: Interpreter, folder: Path) -> Path | None:
    """Get Debian's `libpythonX.Y` without root: download the package and unpack it.

    Args:
        interpreter: a Python without its shared library.
        folder: an existing directory to unpack into.

    Returns:
        The library, or None where this is no Debian or the download fails.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    name = f"libpython{interpreter.short_version}"
    try:
        _run(["apt-get", "download", name], _DOWNLOAD_TIMEOUT_S, cwd=folder)
        for package in folder.glob(f"{name}_*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(folder)], _DOWNLOAD_TIMEOUT_S)
            package.unlink()
    except (OSError, subprocess.SubprocessError):
        return None
    return next(folder.rglob(f"{name}.so.1.0"), None)


def _candidates(uv: str | None) -> Iterator[str]:
    yield sys.executable
    names = [f"python{major}.{minor}" for major, minor in SUPPORTED]
    found = [shutil.which(name) for name in (*names, "python3")]
    yield from (path for path in found if path)
    yield from ("/usr/bin/python3", *(f"/usr/bin/{name}" for name in names))
    if uv:
        yield from _found_by_uv(uv)


def _found_by_uv(uv: str) -> Iterator[str]:
    versions = [f"{major}.{minor}" for major, minor in SUPPORTED]
    for version in versions:
        yield from _managed_by(uv, version)
    yield from _fetched_by(uv, versions[0])


def _managed_by(uv: str, version: str) -> list[str]:
    return _lines([uv, "python", "find", "--managed-python", "--no-python-downloads", version])


def _fetched_by(uv: str, version: str) -> list[str]:
    """The one that uv downloads; nothing where it cannot."""
    _lines([uv, "python", "install", version])
    return _managed_by(uv, version)


def _lines(command: Sequence[str]) -> list[str]:
    try:
        return _run(command, _DOWNLOAD_TIMEOUT_S).splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _run(command: Sequence[str], timeout_s: float, cwd: Path | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - programs found by name, arguments of ours
        command,
        check=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=timeout_s,
    )
    return done.stdout
