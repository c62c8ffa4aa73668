"""The plan before the deed: it changes nothing, and the deed does what it says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin import changing
from mlflow_triton_plugin.cli import main
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace
from triton_repo.store import open_store

from .models import log_scale, python_directory, python_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.fixture(scope="module")
def scale(registered: Callable[[str], str]) -> str:
    name = registered("planned")
    log_scale(name, 1, 2, 3)
    return f"models:/{name}"


@pytest.fixture
def plan(client: TritonDeploymentClient, repository: Path) -> Callable[..., dict[str, Any]]:
    """Plan, and see that nothing has changed, on disk or on the server."""

    def state() -> object:
        files = {path: path.lstat().st_mtime_ns for path in repository.rglob("*")}
        return files, client.list_deployments()

    def call(*arguments: Any, **options: Any) -> dict[str, Any]:
        before = state()
        planned: dict[str, Any] = client.plan_deployment(*arguments, **options)
        assert state() == before
        return planned

    return call


def placed(repository: Path, name: str) -> dict[str, int]:
    folder = repository / name
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("config.pbtxt", "mlflow-meta.json")
    }


def test_create_does_what_was_planned(
    client: TritonDeploymentClient,
    plan: Callable[..., dict[str, Any]],
    repository: Path,
    name: str,
    scale: str,
) -> None:
    planned = plan(name, f"{scale}/2", config={"validate": "load"})
    assert (planned["operation"], planned["flavor"], planned["version"]) == ("create", "onnx", 2)
    assert planned["model"] == f"{scale}/2"
    assert planned["tried_apart"]
    assert planned["removes"] == planned["replaces"] == planned["removes_files"] == []
    client.create_deployment(name, f"{scale}/2", config={"validate": "load"})
    assert placed(repository, name) == planned["files"]
    assert sum(planned["files"].values()) == planned["size_bytes"]
    assert (repository / name / "config.pbtxt").read_text() == planned["config"]
    assert client.get_deployment(name)["served_versions"] == planned["serves"] == [2]


def test_update_does_what_was_planned(
    client: TritonDeploymentClient,
    plan: Callable[..., dict[str, Any]],
    repository: Path,
    name: str,
    scale: str,
) -> None:
    client.create_deployment(name, f"{scale}/1")
    client.update_deployment(name, f"{scale}/2")
    config = repository / name / "config.pbtxt"
    before = placed(repository, name)

    planned = plan(name, f"{scale}/3")
    assert (planned["operation"], planned["serves"]) == ("update", [3])
    assert planned["removes"] == [1]
    assert "-version_policy: { specific { versions: [ 2 ] } }" in planned["config_diff"]
    assert "+version_policy: { specific { versions: [ 3 ] } }" in planned["config_diff"]
    client.update_deployment(name, f"{scale}/3")
    kept = {path: size for path, size in before.items() if not path.startswith("1/")}
    assert placed(repository, name) == kept | planned["files"]
    assert config.read_text() == planned["config"]

    back = plan(name, f"{scale}/2")
    assert (back["reuses"], back["files"], back["serves"]) == (2, {}, [2])
    client.update_deployment(name, f"{scale}/2")
    assert config.read_text() == back["config"]

    again = plan(name)
    assert (again["config_diff"], again["files"], again["removes"]) == ("", {}, [])
    both = plan(name, config={"serve_versions": "2,3"})
    client.update_deployment(name, config={"serve_versions": "2,3"})
    assert client.get_deployment(name)["served_versions"] == sorted(both["serves"]) == [2, 3]
    assert config.read_text() == both["config"]


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that commands copy, piece by piece."""
    pieces: list[int] = []

    @contextmanager
    def counting(_: str, __: int) -> Iterator[Callable[[int], None]]:
        yield pieces.append

    monkeypatch.setattr(changing, "copying", counting)
    return pieces


@pytest.mark.parametrize("validate", ["false", "load"])
def test_what_is_copied_only_to_be_loaded_apart_is_in_the_plan(
    client: TritonDeploymentClient,
    plan: Callable[..., dict[str, Any]],
    repository: Path,
    name: str,
    scale: str,
    copied: list[int],
    capsys: pytest.CaptureFixture[str],
    validate: str,
) -> None:
    client.create_deployment(name, f"{scale}/1")
    copied.clear()
    there = placed(repository, name)
    planned = plan(name, f"{scale}/1", config={"validate": validate})
    capsys.readouterr()
    assert main(["plan", name, "-m", f"{scale}/1", "-C", f"validate={validate}"]) == 0
    lines = capsys.readouterr().out
    assert (planned["reuses"], planned["files"]) == (1, {})
    client.update_deployment(name, f"{scale}/1", config={"validate": validate})
    assert placed(repository, name) == there
    assert sum(copied) == planned["size_bytes"] == sum(planned["files_apart"].values())
    if validate == "load":
        assert planned["files_apart"] == there
        assert f"= {name}/1/model.onnx (" in lines
        assert "nothing is copied" not in lines
    else:
        assert planned["files_apart"] == {}
        assert "nothing is copied" in lines


def labelled(
    folder: Path, label: str, comment: str = "one", source: str = python_source("x")
) -> str:
    """An artifact with a file beside config.pbtxt."""
    model = python_directory(folder / "model", source)
    (model / "labels.txt").write_text(label)
    config = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(f"# {comment}\n{config}", encoding="utf-8")
    (folder / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return str(folder)


def test_a_file_in_the_way_is_refused_in_the_plan(
    client: TritonDeploymentClient,
    plan: Callable[..., dict[str, Any]],
    repository: Path,
    name: str,
    scale: str,
    tmp_path: Path,
) -> None:
    client.create_deployment(name, f"{scale}/1")
    (repository / name / "labels.txt").write_text("somebody's own")
    model = labelled(tmp_path, "cat")
    assert same_refusal(
        lambda: plan(name, model), lambda: client.update_deployment(name, model)
    ) == (
        "INVALID_PARAMETER_VALUE",
        f"{repository}/{name}/labels.txt is in the way of the model's own; move or rename it",
    )


def same_refusal(*calls: Callable[[], object]) -> tuple[str, str]:
    """What all of them say: MLflow's error code and the message."""
    said = set()
    for call in calls:
        with pytest.raises(MlflowException) as raised:
            call()
        said.add((raised.value.error_code, str(raised.value)))
    (same,) = said
    return same


def test_nothing_is_planned_while_another_command_is_at_it(
    client: TritonDeploymentClient,
    plan: Callable[..., dict[str, Any]],
    repository: Path,
    name: str,
    scale: str,
) -> None:
    model = f"{scale}/1"
    place = ModelPlace(open_store(str(repository)), check_name(name))
    with place.lock("alice@here", 0):
        code, message = same_refusal(
            lambda: plan(name, model), lambda: client.create_deployment(name, model)
        )
    assert code == "RESOURCE_CONFLICT"
    assert message.startswith(f"{name} is being changed by alice@here since ")
    client.create_deployment(name, model)
    with place.lock("alice@here", 0):
        place.begin_delete("alice@here")
        same_refusal(lambda: plan(name, model), lambda: client.update_deployment(name, model))
        place.recover()
    assert plan(name, model)["operation"] == "create"


def test_a_repository_that_is_not_there_or_not_ours_is_refused_in_the_plan(
    environment: Callable[..., None],
    name: str,
    scale: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root may write everywhere: `access` says what it says to others."""
    model = f"{scale}/1"
    environment(TRITON_MODEL_REPO=str(tmp_path / "none"))
    other = get_deploy_client("triton")
    calls = (
        lambda: other.plan_deployment(name, model),
        lambda: other.create_deployment(name, model),
    )
    assert "does not exist" in same_refusal(*calls)[1]
    (tmp_path / "none").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_, **__: False)
        code, message = same_refusal(*calls)
    assert code == "PERMISSION_DENIED"
    assert "cannot be written" in message
    assert list((tmp_path / "none").iterdir()) == []


def test_files_that_come_back_with_a_version_are_in_the_plan(
    client: TritonDeploymentClient,
    plan: Callable[..., dict[str, Any]],
    repository: Path,
    registered: Callable[[str], str],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = registered("labelled")
    mlflow_client = mlflow.MlflowClient()
    mlflow_client.create_registered_model(model)
    for number, label in enumerate(("cat", "dog"), 1):
        source = labelled(tmp_path / label, label, source=python_source(f"x * {number}"))
        mlflow_client.create_model_version(model, source=source)
    cats, dogs = f"models:/{model}/1", f"models:/{model}/2"
    client.create_deployment(name, cats)
    client.update_deployment(name, dogs)
    planned = plan(name, cats)
    assert planned["restores"] == ["labels.txt"]
    capsys.readouterr()
    assert main(["plan", name, "-m", cats]) == 0
    assert f"~ {name}/labels.txt is again what it was with that version" in capsys.readouterr().out
    client.update_deployment(name, cats)
    assert (repository / name / "labels.txt").read_text() == "cat"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((None,), "RESOURCE_DOES_NOT_EXIST", "no deployment"),
        (("models:/nothing-of-this-name/1",), "RESOURCE_DOES_NOT_EXIST", "not found"),
        (("SCALE", "sklearn"), "INVALID_PARAMETER_VALUE", "cannot be served"),
        (("SCALE", None, {"keep_version": 3}), "INVALID_PARAMETER_VALUE", "keep_versions?"),
        (("SCALE", None, {"max_size": 10}), "INVALID_PARAMETER_VALUE", "more than 10 B"),
    ],
)
def test_what_would_be_refused_is_refused_in_the_plan(
    client: TritonDeploymentClient,
    plan: Callable[..., dict[str, Any]],
    name: str,
    scale: str,
    arguments: tuple[Any, ...],
    code: str,
    words: str,
) -> None:
    model, *rest = (f"{scale}/1" if each == "SCALE" else each for each in arguments)
    deed: Callable[..., Any] = client.create_deployment if model else client.update_deployment
    for call in (plan, deed):
        with pytest.raises(MlflowException, match=words.replace("?", "[?]")) as raised:
            call(name, model, *rest)
        assert raised.value.error_code == code


def test_nothing_is_planned_on_an_interrupted_change(
    client: TritonDeploymentClient, repository: Path, name: str, scale: str
) -> None:
    client.create_deployment(name, f"{scale}/1")
    place = ModelPlace(open_store(str(repository)), check_name(name))
    with place.lock("a test", 0):
        place.begin_delete("a test")
    with pytest.raises(MlflowException, match=f"mlflow-triton repair {name}") as raised:
        client.plan_deployment(name, f"{scale}/2")
    assert raised.value.error_code == "RESOURCE_CONFLICT"


def test_the_command_prints_it_for_people_and_for_programs(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client.create_deployment(name, f"{scale}/1")
    capsys.readouterr()
    assert main(["plan", name, "-m", f"{scale}/2", "-C", "keep_versions=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"update {name}: {scale}/2 as version 2, flavor onnx"
    assert any(line.startswith(f"+ {name}/2/model.onnx (") for line in lines)
    assert f"- {name}/1/ is one more than keep_versions keeps" in lines
    assert lines[-2].endswith("; serve 2")
    joined = "requests are joined: the first dimension is a batch by its name ('batch')"
    assert lines[-1] == joined
    assert main(["plan", name, "-m", f"{scale}/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removes"] == []
    assert main(["plan", name, "-m", f"{scale}/2", "-f", "sklearn"]) == 2
    assert capsys.readouterr().err.startswith("mlflow-triton: ")
    with pytest.raises(SystemExit):
        main(["plan", name, "-C", "keep_versions"])
    assert "is not KEY=VALUE" in capsys.readouterr().err


def test_an_option_that_is_given_twice_is_refused(
    name: str, scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's own commands refuse it, too."""
    twice = ("-C", "keep_versions=1", "-C", "keep_versions=2")
    assert main(["plan", name, "-m", f"{scale}/1", *twice]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "mlflow-triton: -C keep_versions is given twice; give it once\n"


def test_a_terminal_without_the_characters_gets_escapes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    for stream in ("stdout", "stderr"):
        wrapper = io.TextIOWrapper(written, encoding="ascii", errors="strict", write_through=True)
        monkeypatch.setattr(sys, stream, wrapper)
    assert main(["plan", name, "-m", labelled(tmp_path, "cat", "café")]) == 0
    assert b"# caf\\xe9" in written.getvalue()
    for command in ("plan", "verify", "repair"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    assert main(["verify", "caf\u00e9"]) == 2
    assert b"caf\\xe9" in written.getvalue().splitlines()[-1]


def test_planning_a_directory_leaves_nothing_where_it_was_asked(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    """MLflow makes a database in the working directory, but only if it is asked for a model."""
    model = labelled(tmp_path / "artifact", "cat")
    (tmp_path / "here").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    code = f"from mlflow_triton_plugin.cli import main; main(['plan', {name!r}, '-m', {model!r}])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"create {name}: {model}")
    assert list((tmp_path / "here").iterdir()) == []
