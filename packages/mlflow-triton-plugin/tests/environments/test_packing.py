"""Packing that is broken off, and disks that are full."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlflow_triton_plugin.environments import packing
from mlflow_triton_plugin.environments.packing import archive_of
from mlflow_triton_plugin.environments.recipe import Recipe, recipe_of
from mlflow_triton_plugin.environments.target import ServerPython
from mlflow_triton_plugin.local import ProvisioningError, _installers
from mlflow_triton_plugin.local._interpreters import Interpreter
from mlflow_triton_plugin.local.provisioning import CACHE_VARIABLE

from .wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
TINY = Recipe(HERE, "x86_64", ("inflection==0.5.1",), ("roman==5.0",))


def test_an_archive_is_packed_once_and_anew_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert archive_of(TINY).made_before() is None
    archive = archive_of(TINY).made()
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    site_packages = f"lib/python{HERE}/site-packages"
    assert f"{site_packages}/inflection/__init__.py" in names
    assert [each for each in names if each.startswith(f"{site_packages}/inflection/__pycache__/")]
    placed = archive.stat().st_ino
    assert archive_of(TINY).made() == archive == archive_of(TINY).made_before()
    assert archive.stat().st_ino == placed
    whole = archive.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2 : len(damaged) // 2 + 8] = bytes(8)  # as long as it was
    for content in (bytes(damaged), whole[:100], b""):
        archive.write_bytes(content)
        assert archive_of(TINY).made_before() is None
        with tarfile.open(archive_of(TINY).made()) as tar:
            assert tar.getnames() == names


def test_an_archive_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave a file of zeros as long as it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    flushed: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        assert not (tmp_path / "environments" / TINY.name).exists()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    archive = archive_of(TINY).made()
    assert [path.name for path in flushed[:2]] == [archive.name, "environment.json"]
    assert flushed[2] == flushed[0].parent
    assert flushed[2].name.startswith(f"{TINY.name}.tmp-")


def test_ctrl_c_leaves_nothing_of_it(tmp_path: Path) -> None:
    source = textwrap.dedent(f"""
        from mlflow_triton_plugin.environments.packing import archive_of
        from mlflow_triton_plugin.environments.recipe import Recipe
        archive_of({TINY!r}).made()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, CACHE_VARIABLE: str(tmp_path)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("environments/*.tmp-*/root/bin")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode != 0
    assert [path.suffix for path in (tmp_path / "environments").iterdir()] == [".lock"]


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("small_disk", "pins"),
    [("16k", TINY.pins), ("64k", TINY.pins), ("64k", ("numpy<2",)), ("128k", TINY.pins)],
    indirect=["small_disk"],
)
def test_a_full_disk_is_one_line(
    small_disk: Path, pins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is being done when there is no more room, and whatever else could be the reason."""
    monkeypatch.setenv(CACHE_VARIABLE, str(small_disk))
    with pytest.raises(ProvisioningError, match="the disk is full") as told:
        archive_of(replace(TINY, pins=pins)).made()
    assert "numpy 2" not in str(told.value)
    assert "\n" not in str(told.value)
    assert CACHE_VARIABLE in str(told.value)
    assert not list((small_disk / "environments").glob("*.tmp-*"))


def test_a_recipe_is_what_the_requirements_and_the_server_come_to() -> None:
    lines = ["mlflow==3.1.0", "numpy==2.1.0", "scikit_learn"]
    old = recipe_of(lines, ServerPython("3.10", takes_numpy_2=False))
    assert old.packages == ("mlflow-skinny==3.1.0", "pandas<3", "scikit_learn")
    assert old.pins == ("numpy<2",)
    new = recipe_of(lines, ServerPython("3.12", takes_numpy_2=True))
    assert new.pins == ("numpy==2.1.0",)
    assert new.name != old.name
    assert new.name.startswith("env-py312-")
    own = recipe_of([*lines, "pandas==2.2.0"], ServerPython("3.12", takes_numpy_2=True))
    assert "pandas<3" not in own.packages
    assert recipe_of(list(reversed(lines)), ServerPython("3.10", takes_numpy_2=False)) == old


OLD, NEW = ServerPython("3.10", takes_numpy_2=False), ServerPython("3.12", takes_numpy_2=True)


@pytest.mark.parametrize(
    ("numpy", "pins"),
    [
        (["numpy==1.24.4"], ("numpy==1.24.4", "numpy<2")),
        (["numpy==1.23.5"], ("numpy==1.23.5", "numpy<2")),
        (["numpy==1.24.*"], ("numpy==1.24.*", "numpy<2")),
        (["numpy>=1.22,<3"], ("numpy<3,>=1.22", "numpy<2")),
        (["numpy>1.20,<1.24"], ("numpy<1.24,>1.20", "numpy<2")),
        (["numpy~=1.24.0"], ("numpy~=1.24.0", "numpy<2")),
        (["numpy"], ("numpy<2",)),
        (["numpy==2.1.0"], ("numpy<2",)),
        (["numpy>=2"], ("numpy<2",)),
        (["numpy==2.1.0; python_version>='3.12'", "numpy==1.26.1; python_version<'3.12'"], None),
    ],
)
def test_a_numpy_that_an_older_server_can_do_with_stays(
    numpy: list[str], pins: tuple[str, ...] | None
) -> None:
    """What its Python backend cannot read becomes one that it can."""
    found = recipe_of(numpy, OLD).pins
    assert found == (pins or ('numpy==1.26.1; python_version < "3.12"', "numpy<2"))
    assert recipe_of(["numpy==1.24.4"], OLD).name != recipe_of(["numpy==1.23.5"], OLD).name


@pytest.mark.parametrize(
    ("lines", "pandas"),
    [
        (["mlflow==2.22.5", "pandas"], {"pandas", "pandas<3"}),
        (["mlflow-skinny==3.15.0", "pandas>=2"], {"pandas>=2", "pandas<3"}),
        (["mlflow==3.16.0"], {"pandas<4"}),
        (["mlflow==3.17.2", "pandas"], {"pandas", "pandas<4"}),
        (["mlflow", "pandas"], {"pandas", "pandas<3"}),
        (["mlflow<3.10"], {"pandas<3"}),
        (["mlflow==2.22.5", "pandas==2.2.3"], {"pandas==2.2.3"}),
        (["mlflow==2.22.5", "pandas==3.0.1"], {"pandas==3.0.1"}),
        (["mlflow==2.22.5", "pandas==2.2.*"], {"pandas==2.2.*", "pandas<3"}),
        (["mlflow==2.22.5", "pandas==2.2.3; python_version<'3.9'"], {"pandas<3"}),
        (["mlflow==3.17.2; python_version<'3.9'"], {"pandas<3"}),
        (["mlflow===odd"], {"pandas<3"}),
    ],
)
def test_pandas_is_one_that_mlflow_goes_with(lines: list[str], pandas: set[str]) -> None:
    """mlflow-skinny asks for none, and MLflow before 3.16 fails on the strings of pandas 3."""
    packages = recipe_of(lines, NEW).packages
    assert {each for each in packages if each.startswith("pandas")} == pandas


def test_what_is_for_other_pythons_and_systems_is_left_out() -> None:
    lines = [
        "a==1; python_version<'3.11'",
        "b==1; sys_platform=='win32'",
        "c==1; platform_system=='Linux' and implementation_name=='cpython'",
        "mlflow==3.1.0; python_version<'3.9'",
    ]
    assert [each.partition("=")[0] for each in recipe_of(lines, NEW).packages] == [
        *("c", "mlflow-skinny", "pandas<3"),
    ]
    assert recipe_of(lines, OLD).packages[0].startswith("a==1")
    assert recipe_of(["a==1", lines[1]], NEW) == recipe_of(["a==1"], NEW)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which is all the packages that there are."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, version, requires in (
        *(("mini", "1.0", ""), ("mini", "2.0", "")),
        *(("numpy", "1.26.4", ""), ("numpy", "2.1.0", "")),
        ("modern", "1.0", "numpy>=2"),
    ):
        make_wheel(folder, name, version, requires=requires)
    for variable, value in {
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(folder),
        "UV_NO_CONFIG": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        CACHE_VARIABLE: str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(variable, value)
    return folder


@pytest.fixture(params=["uv", "pip"])
def installer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pip":
        monkeypatch.setattr(packing, "find_uv", lambda: None)


def versions_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        names = [Path(name).name for name in tar.getnames()]
    found = {name.removesuffix(".dist-info") for name in names if name.endswith(".dist-info")}
    return {each for each in found if not each.startswith(("pip-", "setuptools-"))}


@pytest.mark.usefixtures("wheels", "installer")
def test_another_version_than_asked_for_is_never_packed(tmp_path: Path) -> None:
    """An older one would do for the installer; who asked for this one asked for it."""
    for python in (OLD, NEW):
        pins = recipe_of([], python).pins
        with pytest.raises(ProvisioningError) as told:
            archive_of(Recipe(HERE, "x86_64", ("mini==1.5",), pins)).made()
        assert str(told.value).startswith("mini==1.5, ")
        assert "mini==1.5" in str(told.value).partition("could not be installed: ")[2]
        assert "numpy 2" not in str(told.value)
        assert "\n" not in str(told.value)
    assert [path.suffix for path in (tmp_path / "cache" / "environments").iterdir()] == [
        ".lock",
        ".lock",
    ]
    assert versions_in(archive_of(Recipe(HERE, "x86_64", ("mini==1.0",), ("numpy<2",))).made()) == {
        *("mini-1.0", "numpy-1.26.4"),
    }


@pytest.mark.usefixtures("wheels")
def test_where_neither_uv_nor_pip_is_installed_python_brings_pip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(packing, "find_uv", lambda: None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else real(name)
    )
    archive = archive_of(Recipe(HERE, "x86_64", ("mini==1.0",), ("numpy<2",))).made()
    assert versions_in(archive) == {"mini-1.0", "numpy-1.26.4"}
    with tarfile.open(archive) as tar:
        assert any(name.endswith("/site-packages/pip") for name in tar.getnames())


@pytest.mark.usefixtures("wheels", "installer")
def test_what_needs_numpy_2_is_refused_where_the_server_cannot_have_it() -> None:
    with pytest.raises(ProvisioningError, match="needs numpy 2") as told:
        archive_of(Recipe(HERE, "x86_64", ("modern==1.0",), ("numpy<2",))).made()
    assert "Triton before 25.01" in str(told.value)
    assert "modern==1.0" in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(ProvisioningError) as pinned:  # it does not go with its own numpy
        archive_of(Recipe(HERE, "x86_64", ("modern==1.0",), ("numpy==1.26.4", "numpy<2"))).made()
    assert "needs numpy 2" not in str(pinned.value)
    recipe = Recipe(HERE, "x86_64", ("modern==1.0",), ("numpy==2.1.0",))
    assert versions_in(archive_of(recipe).made()) == {"modern-1.0", "numpy-2.1.0"}


def test_requirements_are_not_on_a_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody on a machine can read those; the file is for its owner, and goes again."""
    programs = tmp_path / "bin"
    programs.mkdir()
    seen = tmp_path / "seen"
    for name in ("uv", "python"):
        (programs / name).write_text(
            f'#!/bin/sh\nfor each; do last="$each"; done\necho "$@" >> {seen}\n'
            f'stat -c %a "$last" >> {seen}\ncat "$last" >> {seen}.content\nexit 1\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setattr(packing, "find_uv", lambda: str(programs / "uv"))
    monkeypatch.setattr(packing, "find_python", lambda *_: None)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    address = "thing @ https://me:hush@127.0.0.1:9/thing-1.0-py3-none-any.whl"
    other = Recipe("3.9", "x86_64", (address,), ("numpy",))
    with pytest.raises(ProvisioningError) as told:
        archive_of(other).made()
    here = Interpreter(Path(sys.executable), (3, 11, 0), None)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ProvisioningError):
        _installers.install(here, root, [address], uv=str(programs / "uv"), root=root)
    commands = seen.read_text()
    assert commands.count("pip install") + commands.count("pip --python") == 3
    assert "hush" not in commands
    assert commands.splitlines()[1::2] == ["600"] * 3
    assert Path(f"{seen}.content").read_text().count(address) == 3
    assert "hush" not in str(told.value) + told.value.output
    assert not list(tmp_path.rglob("requirements-*"))


def test_a_line_that_is_no_requirement_is_named() -> None:
    with pytest.raises(ProvisioningError, match="'a package' is no requirement"):
        recipe_of(["a package"], ServerPython("3.12", takes_numpy_2=True))
