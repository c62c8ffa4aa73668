"""The plan before the deed: it changes nothing, and the deed does what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.cli import main
from triton_repo.entry import check_name
from triton_repo.placement import ModelPlace
from triton_repo.store import open_store

from .models import log_scale

if TYPE_CHECKING:
    from collections.abc import Callable
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
    assert lines[-1].endswith("; serve 2")
    assert main(["plan", name, "-m", f"{scale}/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removes"] == []
    assert main(["plan", name, "-m", f"{scale}/2", "-f", "sklearn"]) == 2
    assert capsys.readouterr().err.startswith("mlflow-triton: ")
    with pytest.raises(SystemExit):
        main(["plan", name, "-C", "keep_versions"])
    assert "is not KEY=VALUE" in capsys.readouterr().err
