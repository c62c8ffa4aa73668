from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from publish_tools.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    import mlflow

COMMAND = [str(Path(sys.executable).parent / "publish-model")]
REFERENCE_COMMAND = [str(Path(sys.executable).parent / "publish_model_to_mlflow")]


def run(*arguments: str, command: list[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.usefixtures("registry")
def test_the_references_command_prints_the_uri_and_the_next_command(python_model: Path) -> None:
    result = run(
        "--model_name", "identity", "--model_directory", str(python_model), "--flavor", "triton",
        command=REFERENCE_COMMAND,
    )  # fmt: skip
    assert result.returncode == 0
    (line,) = result.stdout.splitlines()
    assert line.startswith("models:/identity/1 published (triton, version 1, 2 files")
    assert line.endswith(
        "mlflow deployments create -t triton --name identity -m models:/identity/1"
    )


def test_an_empty_model_name_is_a_usage_error(python_model: Path) -> None:
    """As a shell gives it where a variable is not set."""
    result = run("--model_name", "", "--model_directory", str(python_model))
    assert result.returncode == 2
    assert result.stderr.endswith("--model_name is empty\n")


@pytest.mark.usefixtures("registry")
def test_json_is_all_there_is_on_stdout(python_model: Path) -> None:
    result = run("--model-directory", str(python_model), "--json", "--alias", "champion")
    document = json.loads(result.stdout)
    assert result.returncode == 0
    assert document["model_uri"] == "models:/identity/1"
    assert document["aliases"] == ["champion"]
    assert document["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}]
    assert "Created version '1'" in result.stderr


def test_an_unfit_model_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path) -> None:
    result = run("--model_name", "x", "--model_directory", str(tmp_path / "missing"))
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line == f"publish-model: {tmp_path}/missing is not a directory"


def test_wrong_usage_is_exit_code_2() -> None:
    result = run("--model_name", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--model_directory" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model_directory", "a", "--model_repository", "b"],
        ["--model_repository", "b", "--model_name", "x"],
        ["--model_repository", "b", "--flavor", "onnx"],
        ["--model_repository", "b", "--input_example", "c"],
        ["--model_directory", "a", "--output_example", "c"],
        ["--model_directory", "a", "--republish"],
        ["--model_directory", "a", "--tag", "novalue"],
        ["--model_directory", "a", "--flavor", "sklearn"],
        ["--model_directory", __file__],
        ["--model_dir", "a"],
    ],
)
def test_flags_that_do_not_go_together_are_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_an_unreachable_server_is_one_line_and_no_run(
    python_model: Path, closed_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--model_directory", str(python_model), "--tracking-uri", closed_address])
    captured = capsys.readouterr()
    assert (code, captured.out) == (1, "")
    lines = [line for line in captured.err.splitlines() if line.startswith("publish-model:")]
    assert len(lines) == 1
    assert "no run was made" in lines[0]


def test_a_tracking_uri_that_mlflow_does_not_know_is_one_line(python_model: Path) -> None:
    result = run("--model_directory", str(python_model), "--tracking_uri", "nosuch://host")
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("publish-model: cannot upload")


def test_ctrl_c_is_one_line_and_exit_code_130(python_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        arguments = ["--model_directory", str(python_model), "--tracking-uri", uri]
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with silent.accept()[0] as connection:
            assert connection.recv(1)  # it has asked, and waits for an answer now
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("publish-model: interrupted")
    assert "Traceback" not in err


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    nothing_made: Callable[[], bool], python_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model_directory", str(python_model), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("would publish identity as a new version")
    assert nothing_made()


def test_a_dry_run_without_a_database_makes_none(python_model: Path) -> None:
    assert run("--model_directory", str(python_model), "--dry_run").returncode == 0
    assert not list(Path.cwd().iterdir())


def test_every_label_reaches_the_version(
    registry: mlflow.MlflowClient, python_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["--model-directory", str(python_model), "--model-name", "named", "--alias", "a",
         "--alias", "b", "--tag", "k=v=w", "--tag", "empty=", "--description", "text",
         "--experiment", "elsewhere", "--run-name", "mine"]
    )  # fmt: skip
    assert code == 0
    version = registry.get_model_version_by_alias("named", "b")
    assert (version.tags["k"], version.tags["empty"], version.description) == ("v=w", "", "text")
    assert registry.get_run(version.run_id or "").info.run_name == "mine"
    assert "--name named" in capsys.readouterr().out


@pytest.mark.usefixtures("registry")
def test_a_second_version_may_have_to_be_an_update(
    python_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether an older version is deployed is not known here."""
    for end in ("/1\n", "/2 (update, where it is deployed already)\n"):
        main(["--model_directory", str(python_model)])
        said = capsys.readouterr().out
        assert "deploy it: mlflow deployments create -t triton " in said
        assert said.endswith(end)


def test_a_name_in_the_config_that_differs_is_a_warning(
    python_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = python_model / "config.pbtxt"
    config.write_text('name: "other"\n' + config.read_text())
    assert main(["--model_directory", str(python_model), "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    assert "publish-model: warning: config.pbtxt says name: 'other'" in captured.err
    assert len(json.loads(captured.out)["warnings"]) == 1


@pytest.mark.usefixtures("registry")
def test_a_bare_onnx_file_is_published_with_mlflows_onnx_flavor(
    onnx_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model_name", "net", "--model_directory", str(onnx_file), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["flavor"], document["files"]) == ("onnx", ["model.onnx", "weights/w.bin"])


@pytest.mark.usefixtures("registry", "ensemble")
def test_a_repository_is_one_line_a_model_and_a_summary(
    python_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = python_model.parent
    (repository / "bad").mkdir()
    assert main(["--model_repository", str(repository)]) == 1
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()[:-1]] == [
        "models:/both/1",
        "models:/identity/1",
    ]
    assert captured.out.splitlines()[-1] == "1 failed, 2 published"
    assert "publish-model: bad: " in captured.err


@pytest.mark.usefixtures("registry", "ensemble")
def test_a_repositorys_json_lists_failures_too(
    python_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = python_model.parent
    (repository / "bad").mkdir()
    assert main(["--model-repository", str(repository), "--json", "--dry-run"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [model["status"] for model in document["models"]] == ["failed", "planned", "planned"]
    assert document["failed"] == 1


def test_help_names_every_flag_and_does_not_wait_for_mlflow() -> None:
    code = (
        "import sys; from publish_tools.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert 'mlflow' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    for name in ("model_name", "model_directory", "model_repository", "dry_run", "tracking_uri"):
        assert f"--{name}" in result.stdout
        assert f"--{name.replace('_', '-')}" in result.stdout
