"""A prediction is written to its file in one step, or the file stays as it was."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin import _output_file
from mlflow_triton_plugin.response import OutputFileError, Prediction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = '{"outputs":{"y":[1,2]}}'
RESULT = Prediction({"y": np.array([1, 2])}, model_name="m", model_version="1")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.parametrize("as_text", [True, False])
def test_the_file_holds_what_to_json_returns(tmp_path: Path, as_text: bool) -> None:  # noqa: FBT001 - a parameter
    path = tmp_path / "output.json"
    RESULT.to_json(str(path) if as_text else path)
    assert path.read_text() == TEXT == RESULT.to_json()
    assert os.listdir(tmp_path) == ["output.json"]  # noqa: PTH208 - nothing was left beside it


def test_a_relative_path_is_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RESULT.to_json("output.json")
    assert (tmp_path / "output.json").read_text() == TEXT


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "output.json"
    RESULT.to_json(path)
    assert mode(path) == 0o666 & ~umask


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("permissions", [0o600, 0o666, 0o640])
def test_an_existing_file_keeps_its_permissions(tmp_path: Path, permissions: int) -> None:
    path = tmp_path / "output.json"
    path.write_text("before" * 100)
    path.chmod(permissions)
    RESULT.to_json(path)
    assert mode(path) == permissions
    assert path.read_text() == TEXT


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)  # to nothing yet
    RESULT.to_json(link)
    assert link.is_symlink()
    assert real.read_text() == TEXT


def test_a_name_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    RESULT.to_json(path)
    assert path.read_text() == TEXT


class Interrupted(BaseException):
    """As Ctrl-C is: no Exception."""


@pytest.mark.parametrize("error", [Interrupted, OSError(28, "No space left on device")])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: Any
) -> None:
    path = tmp_path / "output.json"
    path.write_text("before")

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises((Interrupted, OutputFileError)):
        _output_file.write(path, chunks())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "output.json"
    RESULT.to_json(path)
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(50):
            RESULT.to_json(path)
    finally:
        done.set()
        reader.join()
    assert seen == {TEXT}


# -- what cannot be written ------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(OutputFileError) as caught:
        RESULT.to_json(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "Is a directory; name a file in a directory" in refusal(tmp_path)


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "missing" / "output.json")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file" / "output.json")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in refusal(tmp_path / "loop")


def test_a_read_only_file_is_refused_though_a_rename_would_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "output.json"
    path.write_text("before")
    path.chmod(0o444)
    if os.geteuid() == 0:  # to root every file is writable
        monkeypatch.setattr(os, "access", lambda *_: False)
    assert "Permission denied" in refusal(path)
    assert path.read_text() == "before"


def test_the_error_is_mlflows_and_one_line_at_mlflows_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OutputFileError) as caught:
        RESULT.to_json(tmp_path)
    error = caught.value
    assert isinstance(error, MlflowException)
    assert error.error_code == "INVALID_PARAMETER_VALUE"
    assert isinstance(error.__cause__, IsADirectoryError)
    assert isinstance(error, click.ClickException)
    error.show()
    assert capsys.readouterr().err.count("\n") == 1
    assert error.exit_code == 1


# -- streams ---------------------------------------------------------------------------------------

TO_STDOUT = """
import numpy as np
from mlflow_triton_plugin.response import Prediction
Prediction({"y": np.array([1, 2])}, model_name="m", model_version="1").to_json("/dev/stdout")
"""


def test_standard_output_through_a_pipe_is_written_directly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TO_STDOUT], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == TEXT


def test_standard_output_redirected_to_a_file_is_appended_to_not_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as appended:
        subprocess.run([sys.executable, "-c", TO_STDOUT], check=True, stdout=appended, timeout=120)
        appended.write("\nafter")
    assert log.read_text() == f"before\n{TEXT}\nafter"


def test_a_named_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    RESULT.to_json(pipe)
    reader.join(timeout=10)
    assert received == [TEXT]
    assert pipe.is_fifo()


def test_a_device_is_written_to_and_stays_one() -> None:
    RESULT.to_json("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116 - the device, not a path's file
