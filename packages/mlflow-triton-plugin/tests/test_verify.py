"""`mlflow-triton verify` and `repair` in a subprocess, on what the plugin deployed for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.cli import main
from triton_repo.change import plan_change
from triton_repo.entry import RepositoryEntry, Tree
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace
from triton_repo.record import Source
from triton_repo.store import LocalStore

from .models import log_scale

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

#: Stands for a repository in which nothing is deployed.
EMPTY = "(empty)"
PROGRAM = Path(sys.executable).with_name("mlflow-triton")


@pytest.fixture(scope="module")
def scale(registered: Callable[[str], str]) -> str:
    """Versions 1 and 2 multiply by 1 and 2."""
    name = registered("scale")
    log_scale(name, 1, 2)
    return name


@pytest.fixture
def deployment(client: TritonDeploymentClient, name: str, scale: str) -> str:
    """Version 2 serves, version 1 can come back."""
    client.create_deployment(name, f"models:/{scale}/1")
    client.update_deployment(name, f"models:/{scale}/2")
    return name


@pytest.fixture
def copied(deployment: str, repository: Path, tmp_path: Path) -> tuple[Path, str]:
    """A repository with this deployment alone, that no server reads."""
    shutil.copytree(repository / deployment, tmp_path / "copy" / deployment)
    return tmp_path / "copy", deployment


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **variables},
    )


def verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """No server is there to be asked."""
    return run("verify", *arguments, TRITON_MODEL_REPO=str(folder), TRITON_URL="127.0.0.1:9")


# -- verify -----------------------------------------------------------------------------------


def test_a_deployment_is_as_recorded_and_says_nothing_on_stdout(
    copied: tuple[Path, str],
) -> None:
    done = verify(copied[0])
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlflow-triton: checked 1 deployment: 2 files, ")
    assert line.endswith(" are as recorded; no problems")


def test_each_finding_is_one_line_and_the_exit_status_is_1(copied: tuple[Path, str]) -> None:
    folder, name = copied
    model = folder / name / "2" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    (folder / name / "1" / "model.onnx").unlink()
    (folder / name / "labels.txt").touch()
    done = verify(folder)
    assert done.returncode == 1
    missing, changed, extra = done.stdout.splitlines()
    assert missing.startswith(f"{name}/1/model.onnx: missing (recorded ")
    assert changed.startswith(f"{name}/2/model.onnx: changed ({len(content)} bytes, sha256 ")
    assert extra == f"{name}/labels.txt: extra (not recorded)"
    assert done.stderr == (
        "mlflow-triton: checked 1 deployment: 0 files, 0 B, are as recorded; 3 problems\n"
    )


def test_json_is_one_document_with_the_same_findings(copied: tuple[Path, str]) -> None:
    folder, name = copied
    shutil.rmtree(folder / name / "1")
    (folder / "byhand" / "1").mkdir(parents=True)
    done = verify(folder, "--json")
    assert done.returncode == 1
    size_bytes = (folder / name / "2" / "model.onnx").stat().st_size
    assert json.loads(done.stdout) == {
        "repository": str(folder),
        "deployments": [
            {
                "name": name,
                "files": 1,
                "size_bytes": size_bytes,
                "findings": [
                    {
                        "path": "1/",
                        "problem": "missing",
                        "detail": "the whole version directory, 1 file",
                    }
                ],
            }
        ],
        "findings": 1,
        "not_deployed": ["byhand"],
    }
    assert done.stderr.splitlines()[-1] == (
        "mlflow-triton: left out, not deployed by MLflow: byhand"
    )


def test_only_the_named_deployments_are_checked(copied: tuple[Path, str]) -> None:
    folder, name = copied
    shutil.copytree(folder / name, folder / "damaged")
    (folder / "damaged" / "2" / "model.onnx").write_bytes(b"")
    assert verify(folder, name).returncode == 0
    done = verify(folder, "damaged", name)
    assert done.returncode == 1
    assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == [
        "damaged/2/model.onnx: changed"
    ]
    assert verify(folder).returncode == 1


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"TRITON_MODEL_REPO": ""}, ["verify"], "TRITON_MODEL_REPO is not set"),
        ({"TRITON_MODEL_REPO": "/no/where"}, ["verify"], "/no/where does not exist"),
        ({"TRITON_MODEL_REPO": "gopher://x"}, ["verify"], "gopher://"),
        ({"TRITON_MODEL_REPO": EMPTY}, ["verify", "nobody-has-this"], "no deployment nobody"),
        ({"TRITON_MODEL_REPO": EMPTY}, ["verify", "../x"], "cannot name a deployment"),
        ({"TRITON_MODEL_REPO": "/no/where"}, ["repair"], "/no/where does not exist"),
        ({"TRITON_MODEL_REPO": EMPTY}, ["repair", "nobody-has-this"], "no deployment nobody"),
        ({"TRITON_MODEL_REPO": EMPTY, "TRITON_URL": "127.0.0.1:9"}, ["repair"], "127.0.0.1:9"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_status_2(
    variables: dict[str, str], arguments: list[str], message: str, tmp_path: Path
) -> None:
    given = {key: str(tmp_path) if value == EMPTY else value for key, value in variables.items()}
    done = run(*arguments, **given)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlflow-triton: ")
    assert message in line


@pytest.mark.parametrize("arguments", [[], ["verfy"], ["verify", "--jsn"], ["repair", "--json"]])
def test_wrong_usage_is_exit_status_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: mlflow-triton")


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_help_has_examples_and_the_exit_statuses(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    page = capsys.readouterr().out
    for words in ("examples:", "mlflow-triton verify resnet", "Exit status:", "TRITON_MODEL_REPO"):
        assert words in page
    assert max(map(len, page.splitlines())) <= 100


def test_verify_does_not_pay_for_mlflow() -> None:
    code = "import sys, mlflow_triton_plugin.cli; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_ctrl_c_is_one_line(
    copied: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("TRITON_MODEL_REPO", str(copied[0]))
    monkeypatch.setattr("mlflow_triton_plugin.cli.verify", interrupt)
    assert main(["verify"]) == 130
    assert capsys.readouterr().err == "mlflow-triton: interrupted\n"


# -- repair -----------------------------------------------------------------------------------


def begin_update(repository: Path, name: str) -> ModelPlace:
    """What a command leaves that is killed once its files are in their places."""
    place = ModelPlace(LocalStore(repository), check_name(name))
    entry = RepositoryEntry(name=place.name, flavor="triton", versions={9: Tree()})
    change = plan_change(entry, Source("models:/x/9"), base=place.take_stock(), wanted_version=9)
    place.install(place.stage(change, operation="update", holder="alice@elsewhere"))
    return place


def test_repair_undoes_what_a_killed_command_left(
    deployment: str, repository: Path, snapshot: Callable[[str], dict[str, bytes]]
) -> None:
    before = snapshot(deployment)
    begin_update(repository, deployment)
    found = run("verify", deployment)
    assert found.returncode == 1
    assert found.stdout.startswith(f"{deployment}: interrupted (update by alice@elsewhere since ")
    done = run("repair", deployment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{deployment}: an interrupted change was undone\n"
    assert snapshot(deployment) == before
    assert run("verify", deployment).returncode == 0
    again = run("repair")
    assert (again.returncode, again.stdout) == (0, "")


def test_repair_leaves_a_live_command_alone_and_names_it(
    deployment: str, repository: Path, snapshot: Callable[[str], dict[str, bytes]]
) -> None:
    place = begin_update(repository, deployment)
    before = snapshot(deployment)
    with place.lock("bob@here (process 7)"):
        done = run("repair", deployment)
    assert (done.returncode, done.stdout) == (1, "")
    left, summary = done.stderr.splitlines()
    assert left.startswith(f"mlflow-triton: {deployment} is left as it is: ")
    assert "bob@here (process 7)" in left
    assert summary == "mlflow-triton: looked at 1 deployment; 1 left interrupted"
    assert snapshot(deployment) == before
    assert run("repair").returncode == 0
    assert run("verify", deployment).returncode == 0


def test_repair_sweeps_leftovers_of_dead_commands_only(deployment: str, repository: Path) -> None:
    """Temporary files in a deployment, and locks that nobody holds."""
    leftover = repository / deployment / "_mlflow_triton_tmp-00ff"
    (leftover / "below").mkdir(parents=True)
    (leftover / "below" / "file").touch()
    dead, held = (check_name(name) for name in ("dead", "held"))
    code = (
        "import os, signal, sys; from triton_repo.placement import ModelPlace\n"
        "from triton_repo.store import LocalStore; from pathlib import Path\n"
        "with ModelPlace(LocalStore(Path(sys.argv[1])), 'dead').lock('somebody'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(repository)], check=False, timeout=60)
    assert locks(repository, dead)
    with ModelPlace(LocalStore(repository), held).lock("somebody else"):
        done = run("repair")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert locks(repository, held)
    assert not locks(repository, dead)
    assert not leftover.exists()


def locks(repository: Path, name: str) -> list[Path]:
    return [path for path in repository.iterdir() if path.name.startswith(f".{name}.")]


def test_the_python_api_verifies_and_repairs(
    client: TritonDeploymentClient, name: str, registered: Callable[[str], str], repository: Path
) -> None:
    model = registered("api")
    log_scale(model, 1)
    client.create_deployment(name, f"models:/{model}/1")
    assert client.verify_deployment(name) == []
    assert client.repair_deployment(name) is None
    (repository / name / "1" / "model.onnx").write_bytes(b"damaged")
    (found,) = client.verify_deployment(name)
    assert (found["deployment"], found["path"], found["problem"]) == (
        name,
        "1/model.onnx",
        "changed",
    )
    assert found in client.verify_deployment()
    with pytest.raises(MlflowException) as raised:
        client.verify_deployment("nobody")
    assert raised.value.error_code == "RESOURCE_DOES_NOT_EXIST"
