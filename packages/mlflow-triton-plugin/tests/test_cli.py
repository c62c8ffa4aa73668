"""MLflow's command line: every command of the reference README, in its order.

A process of its own takes seconds to import MLflow. It is used where it matters: for one command
that works and one that fails, for Ctrl-C, and for what is printed. The other commands are the same
objects of MLflow's, called in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import mlflow.cli
import pytest
from click.testing import CliRunner

from .models import log_scale, python_directory, python_source
from .waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def scale(registered: Callable[[str], str]) -> str:
    """Versions 1 and 2 multiply by 1 and 2."""
    name = registered("scale")
    log_scale(name, 1, 2)
    return name


def deployments(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlflow", "deployments", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert not check or done.returncode == 0, done.stderr
    return done


def here(*arguments: str) -> str:
    """Run the same in this process; what it printed to stdout."""
    done = CliRunner().invoke(mlflow.cli.cli, ["deployments", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_command_of_the_reference_readme_works_in_its_order(
    name: str, scale: str, tmp_path: Path
) -> None:
    """Create, list, get, predict to a file, update, delete; only the names are changed."""
    target = ("-t", "triton", "--name", name)
    made = deployments(
        "create", "-t", "triton", "--flavor", "onnx", "--name", name, "-m", f"models:/{scale}/1"
    )
    assert made.stdout == f"\nonnx deployment {name} is created\n"
    assert name in here("list", "-t", "triton")
    shown = here("get", *target)
    assert "state: READY" in shown
    assert f"mlflow_model_uri: models:/{scale}/1" in shown

    given, answer = tmp_path / "input.json", tmp_path / "output.json"
    given.write_text('{"inputs": {"x": [[1.5, 2, 3, 4], [5, 6, 7, 8]]}}')
    paths = ("--input-path", str(given), "--output-path", str(answer))
    here("predict", *target, *paths)
    assert json.loads(answer.read_text()) == {"outputs": {"y": [[1.5, 2, 3, 4], [5, 6, 7, 8]]}}
    printed = here("predict", *target, "--input-path", str(given))
    assert json.loads(printed) == json.loads(answer.read_text())

    updated = here("update", *target, "--flavor", "onnx", "-m", f"models:/{scale}/2")
    assert updated == f"Deployment {name} is updated (with flavor onnx)\n"
    here("predict", *target, *paths)
    assert json.loads(answer.read_text())["outputs"]["y"][0] == [3, 4, 6, 8]

    assert here("delete", *target) == f"Deployment {name} is deleted\n"
    assert here("delete", *target) == f"Deployment {name} is deleted\n"
    assert name not in here("list", "-t", "triton")


def test_an_error_is_one_line_and_exit_status_1(name: str, scale: str) -> None:
    failed = deployments(
        "update", "-t", "triton", "--name", name, "-m", f"models:/{scale}/1", check=False
    )
    assert failed.returncode == 1
    assert failed.stdout == ""
    (line,) = [line for line in failed.stderr.splitlines() if not line.startswith("20")]
    assert line.startswith(f"Error: no deployment {name} in ")


def test_an_unknown_option_is_one_line(name: str, scale: str) -> None:
    create = ("create", "-t", "triton", "--name", name, "-m", f"models:/{scale}/1")
    failed = CliRunner().invoke(mlflow.cli.cli, ["deployments", *create, "-C", "keepversions=3"])
    assert failed.exit_code == 1
    assert failed.output.splitlines()[-1] == (
        "Error: -C keepversions is not an option of create; did you mean keep_versions?"
    )


def test_help_documents_every_option_and_variable() -> None:
    page = here("help", "-t", "triton")
    for word in ("TRITON_URL", "TRITON_MODEL_REPO", "-C on_conflict", "-C keep_versions", "onnx"):
        assert word in page


@pytest.fixture
def slow_model(tmp_path: Path) -> str:
    """A model that takes a while to load."""
    python_directory(tmp_path / "model", "import time\ntime.sleep(3)\n" + python_source("x"))
    (tmp_path / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return str(tmp_path)


@pytest.mark.usefixtures("client")
def test_ctrl_c_in_the_middle_of_a_create_leaves_nothing(
    name: str, slow_model: str, repository: Path
) -> None:
    create = ("create", "-t", "triton", "--name", name, "-m", slow_model)
    with subprocess.Popen(
        [sys.executable, "-m", "mlflow", "deployments", *create],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until((repository / name / "1" / "model.py").exists)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "Aborted!"
    assert "Traceback" not in stderr
    assert not (repository / name).exists()


@pytest.fixture
def run_local(scale: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = ("run-local", "-t", "triton", "--name", "here", "-m", f"models:/{scale}/2")
    ports = ("-C", "grpc_port=0", "-C", "http_port=0")
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "deployments", *command, *ports],
            stderr=stderr,
            stdout=subprocess.PIPE,
            text=True,
        )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_run_local_serves_one_model_until_ctrl_c(
    run_local: subprocess.Popen[str], tmp_path: Path
) -> None:
    stderr = tmp_path / "stderr"
    wait_until(lambda: "is served at" in stderr.read_text() or run_local.poll() is not None)
    said = stderr.read_text()
    address = said.partition("grpc://")[2].split()[0]
    given = tmp_path / "input.json"
    given.write_text('{"inputs": {"x": [[1, 2, 3, 4]]}}')
    answer = here(
        "predict", "-t", f"triton://{address}", "--name", "here", "--input-path", str(given)
    )
    assert json.loads(answer) == {"outputs": {"y": [[2, 4, 6, 8]]}}
    run_local.send_signal(signal.SIGINT)
    stdout, _ = run_local.communicate(timeout=60)
    assert run_local.returncode == 0
    assert stdout == ""
    assert "Traceback" not in stderr.read_text()


def test_nothing_is_printed_to_stdout_but_results(name: str, scale: str) -> None:
    """Every deployments command is also an MCP tool with its stdout captured."""
    code = (
        "from mlflow.deployments import get_deploy_client as c\n"
        "t = c('triton')\n"
        f"t.create_deployment({name!r}, 'models:/{scale}/1')\n"
        f"t.update_deployment({name!r}, 'models:/{scale}/2')\n"
        f"t.list_deployments(), t.get_deployment({name!r}), t.delete_deployment({name!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == ""
