"""Packing that is broken off, and disks that are full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

from mlflow_triton_plugin.environments.packing import packed, packed_before
from mlflow_triton_plugin.environments.recipe import Recipe, recipe_of
from mlflow_triton_plugin.environments.target import ServerPython
from mlflow_triton_plugin.local import ProvisioningError
from mlflow_triton_plugin.local.provisioning import CACHE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
TINY = Recipe(HERE, "x86_64", ("inflection==0.5.1",), ("roman==5.0",))


def test_an_archive_is_packed_once_and_anew_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert packed_before(TINY) is None
    archive = packed(TINY)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    site_packages = f"lib/python{HERE}/site-packages"
    assert f"{site_packages}/inflection/__init__.py" in names
    assert [each for each in names if each.startswith(f"{site_packages}/inflection/__pycache__/")]
    placed = archive.stat().st_ino
    assert packed(TINY) == archive == packed_before(TINY)
    assert archive.stat().st_ino == placed
    os.truncate(archive, 100)
    assert packed_before(TINY) is None
    with tarfile.open(packed(TINY)) as tar:
        assert tar.getnames() == names


def test_ctrl_c_leaves_nothing_of_it(tmp_path: Path) -> None:
    source = textwrap.dedent(f"""
        from mlflow_triton_plugin.environments.packing import packed
        from mlflow_triton_plugin.environments.recipe import Recipe
        packed({TINY!r})
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
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_line(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(small_disk))
    with pytest.raises(
        ProvisioningError, match=r"No space left on device|the disk is full"
    ) as told:
        packed(TINY)
    assert "\n" not in str(told.value)
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


def test_a_line_that_is_no_requirement_is_named() -> None:
    with pytest.raises(ProvisioningError, match="'a package' is no requirement"):
        recipe_of(["a package"], ServerPython("3.12", takes_numpy_2=True))
