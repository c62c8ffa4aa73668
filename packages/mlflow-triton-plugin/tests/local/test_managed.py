"""Directories that are made once: locking, interruption, repair."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from mlflow_triton_plugin.local._managed import ensure_directory
from mlflow_triton_plugin.local._progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _is_complete(path: Path) -> bool:
    return (path / "marker").exists()


def _make(path: Path) -> None:
    (path / "marker").touch()


def _ensure(path: Path, make: Callable[[Path], None] = _make) -> str:
    said = io.StringIO()
    ensure_directory(path, make=make, is_complete=_is_complete, progress=Progress(said))
    return said.getvalue()


def _unexpected(_path: Path) -> None:
    raise AssertionError("it was there already")


def test_what_is_complete_is_not_made_again(tmp_path: Path) -> None:
    _ensure(tmp_path / "cache" / "it")
    assert _ensure(tmp_path / "cache" / "it", _unexpected) == ""


def test_a_complete_one_can_be_used_by_who_may_not_write_there(tmp_path: Path) -> None:
    _ensure(tmp_path / "it")
    (tmp_path / "it.lock").unlink()
    _ensure(tmp_path / "it", _unexpected)
    assert not (tmp_path / "it.lock").exists()


def test_a_making_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _ensure(tmp_path / "it", fail)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["it.lock"])


def test_a_repair_that_fails_leaves_the_damaged_one_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "precious").touch()
    with pytest.raises(AssertionError):
        _ensure(tmp_path / "it", _unexpected)
    assert (tmp_path / "it" / "precious").exists()


def test_a_damaged_one_is_replaced_and_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "damaged").touch()
    (tmp_path / "it.tmp-interrupted").mkdir()
    (tmp_path / "it2.tmp-of-another").mkdir()
    _ensure(tmp_path / "it")
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock")
    assert names == ["it", "it2.tmp-of-another"]
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["marker"]


_OTHER = """
    import sys, time
    from pathlib import Path
    from mlflow_triton_plugin.local._managed import ensure_directory
    from mlflow_triton_plugin.local._progress import Progress

    def make(path):
        print("making", flush=True)
        sys.stdin.readline()
        (path / "marker").write_text("by the other")

    path = Path(sys.argv[1])
    ensure_directory(
        path, make=make, is_complete=lambda path: (path / "marker").exists(), progress=Progress()
    )
"""


def _start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_OTHER), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_second_of_two_processes_waits_says_so_and_makes_nothing(tmp_path: Path) -> None:
    with _start(tmp_path / "it") as first:
        assert first.stdout
        assert first.stdout.readline() == "making\n"
        with _start(tmp_path / "it") as second:
            assert second.stderr
            said = second.stderr.readline()
            assert "another process is making" in said
            assert "waiting" in said
            first.communicate("\n")
            out, _ = second.communicate()
    assert out == ""
    assert first.returncode == second.returncode == 0


def test_a_killed_maker_does_not_stand_in_the_way(tmp_path: Path) -> None:
    with _start(tmp_path / "it") as killed:
        assert killed.stdout
        assert killed.stdout.readline() == "making\n"
        killed.kill()
    assert list(tmp_path.glob("it.tmp-*"))
    assert _ensure(tmp_path / "it") == ""
    assert not list(tmp_path.glob("it.tmp-*"))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_changing_line_on_a_terminal_and_lines_elsewhere() -> None:
    for stream, start in ((_Terminal(), "\r"), (io.StringIO(), "")):
        with Progress(stream).step("work"):
            pass
        assert re.fullmatch(rf"{start}  work: \d+\.\d s\n", stream.getvalue())
