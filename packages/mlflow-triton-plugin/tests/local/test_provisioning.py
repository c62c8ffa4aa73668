"""Making the server's environment, from wheels made here: same files, no contents."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlflow_triton_plugin.local import ProvisioningError, UnsupportedPlatformError, provisioning
from mlflow_triton_plugin.local._interpreters import (
    Interpreter,
    fetch_libpython,
    find_interpreter,
    probe,
)
from mlflow_triton_plugin.local._platform import PlatformFacts, require_supported
from mlflow_triton_plugin.local._progress import Progress
from mlflow_triton_plugin.local.provisioning import Environment, ensure_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGE = b"\x7fELF" + bytes(200_000)
_TRITON_FILES = {
    "pytriton/tritonserver/bin/tritonserver": _LARGE,
    "pytriton/tritonserver/backends/python/libtriton_python.so": _LARGE,
    **{
        f"pytriton/tritonserver/python_backend_stubs/{version}/triton_python_backend_stub": _LARGE
        for version in ("3.10", "3.11", "3.12")
    },
}


def _wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes]) -> str:
    """Write a wheel; return the requirement for it."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    names = [*files, *metadata, f"{info}/RECORD"]
    metadata[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in names).encode()
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in {**files, **metadata}.items():
            wheel.writestr(file, content)
    return f"{name} @ {path.as_uri()}"


@pytest.fixture(scope="module")
def requirements(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheels")
    return [
        _wheel(folder, "nvidia_pytriton", "0", _TRITON_FILES),
        _wheel(folder, "numpy", "1", {"numpy/__init__.py": b"__version__ = '1'\n"}),
        _wheel(folder, "onnxruntime", "0", {"onnxruntime/__init__.py": b""}),
    ]


def _make(cache: Path, requirements: list[str]) -> tuple[Environment, str]:
    said = io.StringIO()
    made = ensure_environment(cache, requirements=requirements, progress=Progress(said))
    return made, said.getvalue()


@pytest.fixture
def environment(tmp_path: Path, requirements: list[str]) -> Environment:
    return _make(tmp_path, requirements)[0]


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_it_is_made_with_uv_and_with_pip(
    installer: str, tmp_path: Path, requirements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if installer == "pip":
        monkeypatch.setattr(provisioning, "find_uv", lambda: None)
    made, said = _make(tmp_path, requirements)
    assert made.tritonserver.stat().st_mode & 0o111
    assert (made.binaries / "python3").exists()
    assert [path.suffixes[-1] for path in made.libraries.iterdir()] == [".0"]
    stub = made.backends / "python" / "triton_python_backend_stub"
    assert stub.is_symlink()
    assert stub.resolve().parent.parent.name == "python_backend_stubs"
    assert (made.backends / "python" / "libtriton_python.so").is_file()
    assert "class TritonPythonModel" in (made.backends / "onnxruntime" / "model.py").read_text()
    assert str(made.root) in said
    assert "MB" in said
    assert "4/4" in said


def test_where_uv_fails_pip_is_asked(
    tmp_path: Path, requirements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pip may be configured for an index that uv knows nothing of."""
    monkeypatch.setattr(provisioning, "find_uv", lambda: "/bin/false")
    made, _ = _make(tmp_path, requirements)
    assert made.tritonserver.is_file()


def test_it_is_made_once(environment: Environment, tmp_path: Path, requirements: list[str]) -> None:
    again, said = _make(tmp_path, requirements)
    assert again == environment
    assert said == ""


def test_other_pins_make_another_one(
    environment: Environment, tmp_path: Path, requirements: list[str]
) -> None:
    other, _ = _make(tmp_path, requirements[::-1])
    assert other.root != environment.root
    assert environment.root.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "lib/python*/site-packages/pytriton/tritonserver/bin/tritonserver",
        "lib/python*/site-packages/pytriton/tritonserver/python_backend_stubs/3.1*/*stub",
        "libpython/*",
        "bin/python3",
        "environment.json",
    ],
)
def test_one_that_lacks_a_file_is_made_anew(
    damage: str, environment: Environment, tmp_path: Path, requirements: list[str]
) -> None:
    for path in environment.root.glob(damage):
        path.unlink()
    _, said = _make(tmp_path, requirements)
    assert "Making" in said
    assert environment.tritonserver.is_file()


def test_one_with_a_truncated_library_is_made_anew(
    environment: Environment, tmp_path: Path, requirements: list[str]
) -> None:
    """As a full disk or a crash may leave it."""
    environment.tritonserver.write_bytes(b"half")
    _make(tmp_path, requirements)
    assert environment.tritonserver.read_bytes() == _LARGE


def test_a_changed_backend_is_replaced_without_a_new_environment(
    environment: Environment, tmp_path: Path, requirements: list[str]
) -> None:
    model = environment.backends / "onnxruntime" / "model.py"
    source = model.read_text("utf-8")
    model.write_text("broken", "utf-8")
    _, said = _make(tmp_path, requirements)
    assert said == ""
    assert model.read_text("utf-8") == source


def test_the_stubs_interpreter_writes_no_bytecode(environment: Environment) -> None:
    command = [str(environment.binaries / "python"), "-I", "-c"]
    command.append("import sys; print(sys.dont_write_bytecode)")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True"


def test_what_models_need_is_compiled_once_and_not_at_each_load(
    tmp_path: Path, requirements: list[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    needed = _wheel(wheels, "needed", "1", {"needed/__init__.py": b"VALUE = 1\n"})
    made = ensure_environment(tmp_path, requirements=requirements, packages=[needed])
    command = [str(made.binaries / "python"), "-I", "-c", "import needed; print(needed.__cached__)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_file()


def test_two_at_once_make_one(tmp_path: Path, requirements: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: _make(tmp_path, requirements), range(2)))
    assert both[0][0] == both[1][0]
    assert sum("Making" in said for _, said in both) == 1


def test_packages_that_cannot_be_had_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    missing = f"nowhere @ {(tmp_path / 'nowhere-1-py3-none-any.whl').as_uri()}"
    with pytest.raises(ProvisioningError, match=r"nowhere .* could not be installed: ") as caught:
        _make(tmp_path / "cache", [missing])
    assert "nowhere" in caught.value.output
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_packages_that_do_not_import_are_not_called_an_environment(
    tmp_path: Path, requirements: list[str]
) -> None:
    newer = _wheel(tmp_path, "numpy", "2", {"numpy/__init__.py": b"__version__ = '2'\n"})
    with pytest.raises(ProvisioningError, match="do not work: AssertionError"):
        _make(tmp_path / "cache", [requirements[0], newer, requirements[2]])


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, requirements: list[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProvisioningError, match="MLFLOW_TRITON_CACHE") as caught:
        _make(tmp_path / "file" / "cache", requirements)
    assert caught.value.path is not None
    assert caught.value.path.parent == tmp_path / "file" / "cache"


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRITON_CACHE", str(tmp_path))
    assert provisioning.cache_folder() == tmp_path
    monkeypatch.delenv("MLFLOW_TRITON_CACHE")
    assert provisioning.cache_folder().name == "mlflow-triton"


def test_without_uv_and_pip_one_line_says_what_to_install(
    tmp_path: Path, requirements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_triton_plugin.local import _installers  # noqa: PLC0415

    monkeypatch.setattr(provisioning, "find_uv", lambda: None)
    monkeypatch.setattr(_installers, "_commands", lambda *_, **__: iter(()))
    with pytest.raises(ProvisioningError, match="neither uv nor pip") as caught:
        _make(tmp_path, requirements)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (PlatformFacts("Darwin", "arm64", ""), "this is Darwin"),
        (PlatformFacts("Windows", "AMD64", ""), "this is Windows"),
        (PlatformFacts("Linux", "aarch64", "2.39"), "this machine is aarch64"),
        (PlatformFacts("Linux", "x86_64", "2.31"), "this one has glibc 2.31"),
        (PlatformFacts("Linux", "x86_64", ""), "the C library here is another one"),
    ],
)
def test_a_machine_without_a_wheel_gets_one_line_with_the_ways_out(
    facts: PlatformFacts, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedPlatformError, match=reason) as caught:
        ensure_environment(tmp_path / "cache", platform=facts)
    assert "tritonserver on PATH" in str(caught.value)
    assert "nvcr.io/nvidia/tritonserver" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_glibc_2_35_is_enough() -> None:
    require_supported(PlatformFacts("Linux", "x86_64", "2.35"))
    require_supported(PlatformFacts("Linux", "x86_64", "2.100"))


def _python(path: Path, **answers: object) -> Path:
    """Write an interpreter that answers the probe so."""
    facts = {
        "implementation": "cpython",
        "version": [3, 11, 4],
        "is_64_bit": True,
        "libpython": "/lib/libpython3.11.so.1.0",
    }
    path.write_text(f"#!/bin/sh\necho '{json.dumps(facts | answers)}'\n", "utf-8")
    path.chmod(0o755)
    return path


def test_interpreters_that_cannot_run_the_stubs_are_told_apart(tmp_path: Path) -> None:
    found, reason = probe(_python(tmp_path / "good"))
    assert found == Interpreter(tmp_path / "good", (3, 11, 4), Path("/lib/libpython3.11.so.1.0"))
    assert reason == ""
    assert probe(_python(tmp_path / "new", version=[3, 13, 0])) == (None, "is 3.13")
    assert probe(_python(tmp_path / "pypy", implementation="pypy"))[0] is None
    assert probe(tmp_path / "nowhere") == (None, "does not run")
    found, reason = probe(_python(tmp_path / "static", libpython=None))
    assert found is not None
    assert reason == "has no libpython3.11.so.1.0"


def test_the_running_interpreter_comes_first() -> None:
    found, _ = find_interpreter(None)
    assert found is not None
    if probe(sys.executable)[0] == found:
        assert found.version == sys.version_info[:3]


def test_without_a_python_for_the_stubs_the_reasons_and_the_ways_out_are_told(
    tmp_path: Path, requirements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = ["/usr/bin/python3 is 3.13"]
    monkeypatch.setattr(provisioning, "find_interpreter", lambda _uv: (None, reasons))
    with pytest.raises(ProvisioningError, match=r"python3 is 3\.13.*pip install uv"):
        _make(tmp_path, requirements)


def test_without_a_libpython_the_package_to_install_is_named(
    tmp_path: Path, requirements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    static = Interpreter(Path(sys.executable), (3, 11, 4), None)
    monkeypatch.setattr(provisioning, "find_interpreter", lambda _uv: (static, []))
    monkeypatch.setattr(provisioning, "fetch_libpython", lambda *_: None)
    with pytest.raises(ProvisioningError, match=r"apt-get install libpython3\.11"):
        _make(tmp_path, requirements)


def test_debians_libpython_is_unpacked_from_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `apt-get download` and `dpkg-deb -x`, which need no root."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (
        ("apt-get", 'touch "$2_3.11.4_amd64.deb"'),
        ("dpkg-deb", 'mkdir -p "$3/usr/lib"; touch "$3/usr/lib/libpython3.11.so.1.0"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    folder = tmp_path / "deb"
    folder.mkdir()
    found = fetch_libpython(Interpreter(Path("python3.11"), (3, 11, 4), None), folder)
    assert found == folder / "usr" / "lib" / "libpython3.11.so.1.0"
