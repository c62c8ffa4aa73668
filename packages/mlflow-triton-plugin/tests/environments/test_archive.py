"""The archive itself, unpacked and activated as Triton's Python backend does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlflow_triton_plugin.environments.archive import write_archive
from mlflow_triton_plugin.environments.target import ServerPython, python_of
from mlflow_triton_plugin.errors import SettingsError
from mlflow_triton_plugin.server import ServerFacts

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_triton_plugin.server import TritonServers

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Like a virtual environment in which one package with a program was installed."""
    root = tmp_path / "root"
    site_packages = root / "lib" / f"python{HERE}" / "site-packages"
    site_packages.mkdir(parents=True)
    (site_packages / "packed_alone.py").write_text("ANSWER = 42\n")
    (root / "lib64").symlink_to("lib")
    programs = root / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    (programs / "activate").write_text("of this machine")
    program = "#!{}/bin/python3\nimport packed_alone; print(packed_alone.ANSWER)\n"
    (programs / "answer").write_text(program.format(root))
    (programs / "answer").chmod(0o700)
    (root / "pyvenv.cfg").write_text(f"home = {os.path.dirname(sys.executable)}\n")  # noqa: PTH120
    return root


def unpacked(root: Path, folder: Path, *, python: str = HERE) -> Path:
    archive = folder.with_suffix(".tar.gz")
    write_archive(root, archive, python=python)
    folder.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
    return folder


def activated(folder: Path, command: str, **environ: str) -> subprocess.Popen[str]:
    """As Triton runs a stub; the first Python on PATH is the server's."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # noqa: PTH120
    return subprocess.Popen(
        ["bash", "-c", f"source {folder}/bin/activate && exec {command}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": path, **environ},
    )


def test_the_same_packages_are_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """Neither the folder nor a time is in it."""
    write_archive(root, tmp_path / "first", python=HERE)
    another = tmp_path / "elsewhere" / "root"
    shutil.copytree(root, another, symlinks=True)
    program = another / "bin" / "answer"
    program.write_text(program.read_text().replace(str(root), str(another)))
    os.utime(program, (1, 1))
    write_archive(another, tmp_path / "second", python=HERE)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (
        str(tmp_path).encode()
        not in subprocess.run(
            ["gzip", "-cd"],
            input=(tmp_path / "first").read_bytes(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )


def test_it_runs_on_the_servers_python_wherever_it_is_unpacked(root: Path, tmp_path: Path) -> None:
    """Several instances at once; and the packages of the server's Python are not seen."""
    folder = unpacked(root, tmp_path / "here")
    code = "import packed_alone, sys; print(packed_alone.ANSWER, sys.prefix, 'pytest' in sys.path)"
    shutil.rmtree(root)
    started = [activated(folder, f'python3 -c "{code}"') for _ in range(8)]
    assert {each.communicate()[0] for each in started} == {f"42 {folder} False\n"}
    assert activated(folder, "answer").communicate()[0] == "42\n"
    found = activated(folder, 'python3 -c "import pytest"').communicate()[0]
    assert "No module named 'pytest'" in found
    assert sorted(path.name for path in (folder / "bin").iterdir()) == [
        "activate",
        "answer",
        "python3",
    ]


def test_another_python_is_told_and_not_used(root: Path, tmp_path: Path) -> None:
    folder = unpacked(root, tmp_path / "there", python="3.99")
    told = activated(folder, "printenv MLFLOW_TRITON_ENVIRONMENT").communicate()[0]
    assert told == (
        f"the environment is packed for Python 3.99, and the server has {HERE}; "
        f"pack it for that one: -C env_python={HERE}\n"
    )
    assert not (folder / "bin" / "python3").exists()


class _Servers:
    """What these servers say of themselves: images of other releases are not at hand."""

    def __init__(self, *said: tuple[str, str]) -> None:
        self._said = said

    def facts(self) -> list[ServerFacts]:
        return [
            ServerFacts(f"host{number}:8001", name, version)
            for number, (name, version) in enumerate(self._said, 1)
        ]


def asked(*said: tuple[str, str], **known: str) -> ServerPython:
    servers: TritonServers = _Servers(*said)  # type: ignore[assignment]
    return python_of(servers, **known)


@pytest.mark.parametrize(
    ("name", "version", "python", "takes_numpy_2"),
    [
        ("triton", "2.34.0", "3.10", False),
        ("triton", "2.51.0", "3.10", False),
        ("triton", "2.52.0", "3.12", False),
        ("triton", "2.54.0", "3.12", True),
        ("triton", "3.0.0", "3.12", True),
        ("triton-python3.11", "2.51.0", "3.11", False),
        ("of mine, python3.13", "2.60.0", "3.13", True),
    ],
)
def test_the_python_of_a_server(
    name: str, version: str, python: str, *, takes_numpy_2: bool
) -> None:
    assert asked((name, version)) == ServerPython(python, takes_numpy_2)


def test_what_is_said_goes_before_what_was_and_what_is_known_of_images() -> None:
    image, embedded = ("triton", "2.51.0"), ("triton-python3.11", "2.51.0")
    assert asked(image, wanted="3.9", recorded="3.8").version == "3.9"
    assert asked(image, recorded="3.8").version == "3.8"
    assert asked(embedded, recorded="3.8").version == "3.11"
    assert asked(embedded, image, wanted="3.10").version == "3.10"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([("triton", "2.30.0")], "host1:8001 does not say which Python its models run in"),
        ([("triton", "main")], "-C env_python=3.12"),
        (
            [("triton", "2.51.0"), ("triton-python3.11", "2.51.0")],
            "different Pythons: host1:8001 has 3.10, host2:8001 has 3.11",
        ),
    ],
)
def test_what_cannot_be_known_is_asked_for(said: list[tuple[str, str]], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        asked(*said)
