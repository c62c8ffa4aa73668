"""`triton-local`, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tritonclient.grpc as grpcclient

from mlflow_triton_plugin.local.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pids = Callable[[int], set[int]]

_COMMAND = [sys.executable, "-m", "mlflow_triton_plugin.local"]
_FREE_PORTS = ["--grpc-port=0", "--http-port", "0"]


@contextmanager
def _running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run it as a terminal does: in a process group of its own, which Ctrl-C reaches."""
    (folder / "tmp").mkdir()
    (folder / "models").mkdir(exist_ok=True)
    with subprocess.Popen(
        [*_COMMAND, f"--model-repository={folder / 'models'}", *_FREE_PORTS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _read_ready(process: subprocess.Popen[str]) -> dict[str, str]:
    """Return the addresses it printed."""
    assert process.stdout
    line = process.stdout.readline()
    match = re.fullmatch(r"ready: gRPC (?P<grpc>\S+) HTTP (?P<http>\S+)( metrics \S+)?\n", line)
    assert match, line
    return match.groupdict()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_cleanly_and_with_all_it_started(
    number: signal.Signals,
    tmp_path: Path,
    python_model: Callable[[Path, str], None],
    descendants: Pids,
    is_alive: Callable[[int], bool],
) -> None:
    python_model(tmp_path / "models" / "model", "1")
    with _running(tmp_path, "--", "--disable-auto-complete-config") as process:
        client = grpcclient.InferenceServerClient(_read_ready(process)["grpc"])
        client.load_model("model")
        client.close()
        everyone = descendants(process.pid)
        assert len(everyone) > 2, "supervisor, server, stub"
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not any(is_alive(pid) for pid in everyone)
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "stopping"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_addresses_are_on_stdout_ready_to_be_pasted(tmp_path: Path) -> None:
    with _running(tmp_path, "--metrics-port=0") as process:
        grpc = _read_ready(process)["grpc"]
        assert process.stdout
        assert process.stdout.readline() == f"export TRITON_URL={grpc}\n"
        expected = f"export TRITON_MODEL_REPO={tmp_path / 'models'}\n"
        assert process.stdout.readline() == expected


def test_further_options_go_to_tritonserver(tmp_path: Path) -> None:
    with _running(tmp_path, "--", "--id=of-mine", "--log-verbose", "1") as process:
        client = grpcclient.InferenceServerClient(_read_ready(process)["grpc"])
        assert client.get_server_metadata().name == "of-mine"
        client.close()


def test_a_server_that_dies_ends_it_with_the_end_of_the_log(
    tmp_path: Path, descendants: Pids
) -> None:
    with _running(tmp_path) as process:
        _read_ready(process)
        (server,) = [pid for pid in descendants(process.pid) if _name(pid) == "tritonserver"]
        os.kill(server, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "tritonserver ended with exit code 137" in err
    assert "Started HTTPService" in err
    log = re.search(r"(\S+tritonserver\.log) ends", err)
    assert log
    assert Path(log[1]).exists()


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text("utf-8").strip()


def test_a_failing_start_is_one_message_and_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model-repository", str(tmp_path), f"--grpc-port={port}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"triton-local: port {port} on 127.0.0.1 is taken")


def test_a_repository_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--model-repository={tmp_path / 'nowhere'}", *_FREE_PORTS]) == 1
    assert "nowhere is not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model-repository is needed"),
        (["--model-repository=models", "stray"], "unexpected argument stray"),
        (["--model-repository=models", "--grpc-address=::"], "--host"),
        (["--model-repository=models", "--grpc-port=many"], "invalid int value"),
    ],
)
def test_a_wrong_command_line_is_exit_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "triton-local --prepare" in capsys.readouterr().out


def test_prepare_makes_the_environment_and_prints_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--prepare"]) == 0
    assert Path(capsys.readouterr().out.strip(), "environment.json").is_file()


def test_sigterm_is_handled_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["--prepare"])
    assert signal.getsignal(signal.SIGTERM) is before
