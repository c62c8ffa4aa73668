"""Makes the environment that `tritonserver` and its Python stubs run in.

It is a virtual environment of its own, because the Python backend needs numpy < 2 and the user's
environment must not be touched. One a machine and set of pins, shared between projects:

```
<cache>/triton-2.51.0-<digest of the pins>/
    bin/python                      first on the server's PATH
    libpython/libpython3.11.so.1.0  what the stubs are linked against
    environment.json                written last: what it was made of, and the files' sizes
    lib/python3.11/site-packages/pytriton/tritonserver/
        bin/tritonserver
        backends-<digest of our backend>/{python,onnxruntime}/
```

The backends are beside the wheel's own, at the same depth, for their libraries find the wheel's
others relative to themselves. A release that changes only our backend adds such a folder (1.5 MB);
one that changes a pin makes a new environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from mlflow_triton_plugin.local._here import mark_of_here
from mlflow_triton_plugin.local._installers import install, make_venv, write_bytecode
from mlflow_triton_plugin.local._interpreters import (
    Interpreter,
    fetch_libpython,
    find_interpreter,
    find_uv,
)
from mlflow_triton_plugin.local._managed import CACHE_VARIABLE, ensure_directory
from mlflow_triton_plugin.local._packages import at_most
from mlflow_triton_plugin.local._platform import PlatformFacts, require_supported
from mlflow_triton_plugin.local._progress import Progress
from mlflow_triton_plugin.local.errors import ProvisioningError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "BACKEND_SOURCE",
    "CACHE_VARIABLE",
    "REQUIREMENTS",
    "TRITON_VERSION",
    "Environment",
    "cache_folder",
    "ensure_environment",
    "size_in_words",
]

#: What the wheel's server calls itself.
TRITON_VERSION = "2.51.0"

#: Installed without their dependencies: the server and the stubs use none of nvidia-pytriton's,
#: and ONNX Runtime runs models with numpy alone.
REQUIREMENTS = (
    "nvidia-pytriton==0.7.0",
    "numpy==1.26.4",
    'onnxruntime==1.32.0; python_version >= "3.11"',
    'onnxruntime==1.23.2; python_version < "3.11"',
)

#: What is done with the packages besides installing them; another number, another environment.
_LAYOUT = "layout 4"
_DOWNLOAD_MB = 100
_DISK_MB = 300
#: The ONNX backend that the wheel has not.
BACKEND_SOURCE = Path(__file__).with_name("_onnxruntime_backend") / "model.py"
#: Files at least this large are looked at again at each start: the binaries and their libraries.
_CHECKED_BYTES = 100_000


@dataclass(frozen=True)
class Environment:
    """A finished environment.

    Attributes:
        root: its directory.
        triton: the wheel's `pytriton/tritonserver` in it.
        backends: the folder for `--backend-directory`.
    """

    root: Path
    triton: Path
    backends: Path

    @property
    def python(self) -> str:
        """The minor version that its models run in, `3.11`."""
        return _stub_version(self.triton)

    @property
    def server_id(self) -> str:
        """What the server calls itself: its models' Python, this machine, and this environment."""
        return f"triton-python{self.python}-{mark_of_here()}-{self.root.name}"

    @property
    def site_packages(self) -> Path:
        """What its Python can import."""
        return self.root / "lib" / f"python{self.python}" / "site-packages"

    @property
    def tritonserver(self) -> Path:
        """The server's binary."""
        return self.triton / "bin" / "tritonserver"

    @property
    def binaries(self) -> Path:
        """Where `python3` is; the stub runs the first one on PATH."""
        return self.root / "bin"

    @property
    def libraries(self) -> Path:
        """Where the stubs find their libpython, and nothing else."""
        return self.root / "libpython"


def cache_folder() -> Path:
    """Where environments are kept: `MLFLOW_TRITON_CACHE`, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).absolute() if chosen else user_cache_path("mlflow-triton")


def ensure_environment(
    cache: Path | None = None,
    *,
    requirements: Sequence[str] = REQUIREMENTS,
    packages: Sequence[str] = (),
    platform: PlatformFacts | None = None,
    progress: Progress | None = None,
) -> Environment:
    """Return the environment, made if it is not there, and made anew if it is damaged.

    Args:
        cache: the folder to keep it in; `cache_folder()` by default.
        requirements: what to install; the pins of this release.
        packages: what models need besides, with all that these require: from `model_packages`.
            Another environment than the one without them.
        platform: what this machine is; detected by default.
        progress: where to say what is being done; stderr by default.

    Raises:
        UnsupportedPlatformError: the wheel does not run here; nothing was written.
        ProvisioningError: it could not be made; what was there before is as it was.
    """
    require_supported(platform or PlatformFacts.detect())
    digest = _digest(_LAYOUT, *requirements, *packages)
    root = (cache or cache_folder()) / f"triton-{TRITON_VERSION}-{digest}"
    progress = progress or Progress()
    make = partial(
        _make_environment,
        requirements=requirements,
        packages=packages,
        progress=progress,
        root=root,
    )
    try:
        ensure_directory(root, make=make, is_complete=_is_complete, progress=progress)
        triton = root / _read_marker(root)["triton"]
        backends = triton / f"backends-{_digest(BACKEND_SOURCE.read_text('utf-8'))}"
        ensure_directory(
            backends,
            make=partial(_make_backends, triton=triton),
            is_complete=_has_backends,
            progress=progress,
        )
    except OSError as error:
        raise ProvisioningError(
            f"Triton's environment cannot be made in {root.parent}: {error}; "
            f"set {CACHE_VARIABLE} to a folder that can be written",
            path=root,
        ) from error
    return Environment(root, triton, backends)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


# The environment


def _make_environment(
    staging: Path,
    *,
    requirements: Sequence[str],
    packages: Sequence[str],
    progress: Progress,
    root: Path,
) -> None:
    besides = f", and {', '.join(packages)}" if packages else ""
    progress.say(
        f"Making Triton {TRITON_VERSION}'s environment in {root}: once per machine, "
        f"about {_DOWNLOAD_MB} MB to download, {_DISK_MB} MB on disk{besides}"
    )
    _require_space(staging)
    uv = find_uv()
    with progress.step("1/4 finding a Python"):
        interpreter = _choose_interpreter(uv, staging, root)
    with progress.step(f"2/4 virtual environment with Python {interpreter.short_version}"):
        make_venv(interpreter, staging, root)
    size = partial(size_in_words, staging)
    with progress.step("3/4 downloading and installing Triton and ONNX Runtime", size):
        install(interpreter, staging, requirements, uv=uv, root=root)
    if packages:
        pins = [each for each in requirements if each.startswith("numpy")]
        add = partial(install, interpreter, staging, uv=uv, root=root, pinned=False)
        with progress.step("    downloading and installing what the models need", size):
            _install_packages(packages, pins, add, progress)
    with progress.step("4/4 checking it"):
        triton = _complete(staging, interpreter)
        _write_marker(staging, triton, [*requirements, *packages], interpreter)


def _install_packages(
    packages: Sequence[str],
    pins: Sequence[str],
    add: Callable[[Sequence[str]], None],
    progress: Progress,
) -> None:
    """Install what models need beside the server's numpy, in their versions where these go with it.

    Raises:
        ProvisioningError: no versions up to theirs do; the words are about theirs.
    """
    try:
        add([*packages, *pins])
    except ProvisioningError:
        older = at_most(packages)
        if older == list(packages):
            raise
        progress.say(
            f"    the models' versions do not go with the server's {', '.join(pins)}: older ones "
            "are taken where they must be; try what the models answer (-C validate=true)"
        )
        with suppress(ProvisioningError):
            add([*older, *pins])
            return
        raise


def _require_space(staging: Path) -> None:
    free_mb = shutil.disk_usage(staging).free // 2**20
    if free_mb < 2 * _DISK_MB:
        raise ProvisioningError(
            f"{staging.parent} has {free_mb} MB free and Triton's environment needs "
            f"{2 * _DISK_MB} MB while it is made; set {CACHE_VARIABLE} to a folder with more",
            path=staging,
        )


def _choose_interpreter(uv: str | None, staging: Path, root: Path) -> Interpreter:
    interpreter, reasons = find_interpreter(uv)
    if interpreter is None:
        raise ProvisioningError(
            "Triton's stubs need Python 3.10, 3.11 or 3.12 with its shared library, and none was "
            f"found ({'; '.join(reasons)}): install uv (pip install uv) and run this again, or "
            "install one, such as apt-get install python3.11 libpython3.11",
            path=root,
        )
    libpython = interpreter.libpython or _fetched_libpython(interpreter, staging)
    if libpython is None:
        name = f"libpython{interpreter.short_version}"
        raise ProvisioningError(
            f"{interpreter.executable} lacks its shared library {name}.so.1.0: install it "
            f"(Debian, Ubuntu: apt-get install {name}), or install uv (pip install uv), which "
            "brings a Python that has it",
            path=root,
        )
    folder = staging / "libpython"
    folder.mkdir(exist_ok=True)
    target = folder / f"libpython{interpreter.short_version}.so.1.0"
    if not target.exists():
        target.symlink_to(libpython)
    return interpreter


def _fetched_libpython(interpreter: Interpreter, staging: Path) -> Path | None:
    """Download the library and put it where the stubs look, as a file of the environment's."""
    unpacked = staging / "libpython" / "deb"
    unpacked.mkdir(parents=True)
    found = fetch_libpython(interpreter, unpacked)
    if found is not None:
        target = unpacked.parent / f"libpython{interpreter.short_version}.so.1.0"
        shutil.copy(found, target)
        found = target
    shutil.rmtree(unpacked)
    return found


def _complete(root: Path, interpreter: Interpreter) -> Path:
    """Make the binaries runnable, compile the sources, and prove that the packages import."""
    site_packages = root / "lib" / f"python{interpreter.short_version}" / "site-packages"
    triton = site_packages / "pytriton" / "tritonserver"
    for binary in (*triton.glob("bin/*"), *triton.glob("python_backend_stubs/*/*")):
        binary.chmod(0o755)  # pip drops the run bit
    python = root / "bin" / "python"
    write_bytecode(python, site_packages)
    check = "import numpy, onnxruntime; assert numpy.__version__ < '2'"
    done = subprocess.run(  # noqa: S603 - the environment's own Python
        [python, "-I", "-c", check], check=False, capture_output=True, text=True
    )
    if done.returncode != 0 or not (triton / "bin" / "tritonserver").is_file():
        last_line = (done.stderr.strip().splitlines() or ["tritonserver is not in the wheel"])[-1]
        raise ProvisioningError(
            f"the packages that were installed do not work: {last_line}",
            path=root,
            output=done.stderr,
        )
    return triton


def _write_marker(
    root: Path, triton: Path, requirements: Sequence[str], interpreter: Interpreter
) -> None:
    marker = {
        "requirements": list(requirements),
        "python": ".".join(str(part) for part in interpreter.version),
        "interpreter": str(interpreter.executable),
        "triton": str(triton.relative_to(root)),
        "files": _large_files(root),
    }
    (root / "environment.json").write_text(json.dumps(marker, indent=1), "utf-8")


def _large_files(root: Path) -> dict[str, int]:
    sizes = {path: path.stat().st_size for path in (root / "lib").rglob("*") if path.is_file()}
    return {
        str(path.relative_to(root)): size for path, size in sizes.items() if size >= _CHECKED_BYTES
    }


def _read_marker(root: Path) -> dict[str, str]:
    marker: dict[str, str] = json.loads((root / "environment.json").read_text("utf-8"))
    return marker


def _is_complete(root: Path) -> bool:
    """Tell whether the environment is whole; a few dozen `stat` calls, no process is started."""
    try:
        marker = json.loads((root / "environment.json").read_text("utf-8"))
        sizes = {name: (root / name).stat().st_size for name in marker["files"]}
        return (
            sizes == marker["files"]
            # both are links to an interpreter that may have been uninstalled
            and (root / "bin" / "python3").exists()
            and any(path.exists() for path in (root / "libpython").iterdir())
            and os.access(root / marker["triton"] / "bin" / "tritonserver", os.X_OK)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def size_in_words(folder: Path) -> str:
    """How much there is by now, `31 MB`."""
    size_bytes = 0
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):  # moved by the installer meanwhile
            size_bytes += path.lstat().st_size
    return f"{size_bytes // 2**20} MB"


# The backends


def _make_backends(staging: Path, *, triton: Path) -> None:
    python = staging / "python"
    shutil.copytree(triton / "backends" / "python", python)
    # a link: the stub finds the wheel's libraries relative to where it really is
    stub = Path("python_backend_stubs", _stub_version(triton), "triton_python_backend_stub")
    (python / stub.name).symlink_to(Path("..", "..") / stub)
    (staging / "onnxruntime").mkdir()
    shutil.copyfile(BACKEND_SOURCE, staging / "onnxruntime" / "model.py")


def _stub_version(triton: Path) -> str:
    site_packages = triton.parents[1]
    return site_packages.parent.name.removeprefix("python")


def _has_backends(backends: Path) -> bool:
    """Tell whether our backend is there, byte for byte, and the stub it runs in."""
    try:
        source = (backends / "onnxruntime" / "model.py").read_bytes()
    except OSError:
        return False
    stub = backends / "python" / "triton_python_backend_stub"
    return source == BACKEND_SOURCE.read_bytes() and os.access(stub, os.X_OK)
