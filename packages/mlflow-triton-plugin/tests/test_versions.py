"""Several versions of one deployment served at once, and asked one by one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from .conftest import error_of
from .models import log_onnx, log_scale, python_directory, python_source, scale_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

ROW = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def scales(registered: Callable[[str], str]) -> str:
    """A registered model whose versions 1 to 4 multiply by their number."""
    name = registered("scale")
    log_scale(name, 1, 2, 3, 4)
    return name


@pytest.fixture
def three(client: TritonDeploymentClient, name: str, scales: str) -> str:
    """A deployment with versions 1, 2 and 3 on disk; 3 serves."""
    client.create_deployment(name, f"models:/{scales}/1")
    for version in (2, 3):
        client.update_deployment(name, f"models:/{scales}/{version}", config={"keep_versions": 9})
    return name


def factor(client: TritonDeploymentClient, name: str) -> float:
    """What a deployed scale model, or one version of it, multiplies by."""
    return float(client.predict(name, {"x": ROW})["outputs"]["y"][0, 0])


def test_an_update_can_serve_its_version_beside_an_older_one(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    updated = client.update_deployment(
        name, f"models:/{scales}/2", config={"serve_versions": "1,2"}
    )
    assert (updated["state"], updated["served_versions"]) == ("READY", [1, 2])
    assert [factor(client, f"{name}/{each}") for each in (1, 2)] == [1, 2]
    assert client.predict(f"{name}/1", {"x": ROW})["model_version"] == "1"
    assert "versions: [ 1, 2 ]" in (repository / name / "config.pbtxt").read_text()
    assert client.get_deployment(name) == updated


def test_what_serves_can_be_chosen_without_a_model(
    client: TritonDeploymentClient, three: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what is on disk: MLflow is not asked, nothing is fetched."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    for asked, served in (("latest:2", [2, 3]), ([1, 3], [1, 3]), (1, [1]), ("1, 2,3", [1, 2, 3])):
        updated = client.update_deployment(
            three, config={"serve_versions": asked, "keep_versions": 9}
        )
        assert updated["served_versions"] == served
        assert [factor(client, f"{three}/{each}") for each in served] == served


@pytest.fixture(autouse=True)
def _tracking_uri_comes_back(tracking: str) -> Iterator[None]:
    yield
    mlflow.set_tracking_uri(tracking)


def test_a_version_that_does_not_serve_is_said_so(
    client: TritonDeploymentClient, three: str
) -> None:
    with pytest.raises(MlflowException) as raised:
        factor(client, f"{three}/1")
    code, message = error_of(raised)
    assert code == "RESOURCE_DOES_NOT_EXIST"
    assert f"{three}/1" in message


@pytest.mark.parametrize("spelling", ["/", "/0", "/x", "/1/2", "/-1", "/01"])
def test_what_is_no_version_is_refused_before_anything_is_sent(
    client: TritonDeploymentClient, spelling: str
) -> None:
    with pytest.raises(MlflowException) as raised:
        client.predict(f"resnet{spelling}", {"x": ROW})
    assert error_of(raised)[0] == "INVALID_PARAMETER_VALUE"


def test_choosing_what_serves_prunes_nothing(client: TritonDeploymentClient, three: str) -> None:
    updated = client.update_deployment(three, config={"serve_versions": "2,3"})
    assert (updated["served_versions"], sorted(updated["versions"])) == ([2, 3], [1, 2, 3])


def test_loading_again_serves_what_was_served_together(
    client: TritonDeploymentClient, three: str
) -> None:
    client.update_deployment(three, config={"serve_versions": "1,3"})
    client._servers.unload(three, timeout_s=30)
    assert client.update_deployment(three)["served_versions"] == [1, 3]


def test_going_back_to_a_damaged_version_places_it_anew(
    client: TritonDeploymentClient, three: str, scales: str, repository: Path
) -> None:
    """Of the same size or not; and choosing it from what is on disk is refused."""
    model = repository / three / "1" / "model.onnx"
    other = (repository / three / "2" / "model.onnx").read_bytes()
    model.write_bytes(other)
    with pytest.raises(MlflowException, match="is not what was placed"):
        client.update_deployment(three, config={"serve_versions": "1,3"})
    updated = client.update_deployment(three, f"models:/{scales}/1", config={"keep_versions": 9})
    assert updated["served_versions"] == [1]
    assert factor(client, three) == 1
    assert model.read_bytes() != other
    model.write_bytes(other)  # and the version that serves
    client.update_deployment(three, f"models:/{scales}/1", config={"keep_versions": 9})
    assert factor(client, three) == 1
    assert client.verify_deployment(three) == []


def test_the_next_update_serves_its_version_alone(
    client: TritonDeploymentClient, three: str, scales: str
) -> None:
    client.update_deployment(three, config={"serve_versions": "latest:3", "keep_versions": 9})
    updated = client.update_deployment(three, f"models:/{scales}/4")
    assert updated["served_versions"] == [4]
    assert sorted(updated["versions"]) == [3, 4]


def test_what_serves_is_never_pruned(client: TritonDeploymentClient, three: str) -> None:
    updated = client.update_deployment(
        three, config={"serve_versions": "latest:3", "keep_versions": 1}
    )
    assert sorted(updated["versions"]) == updated["served_versions"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("3,7", "names version 7, which is not on disk"),
        ("1,2", "leaves out version 4, the one that is deployed"),
    ],
)
def test_versions_that_cannot_be_served_are_named_and_nothing_changes(
    client: TritonDeploymentClient,
    three: str,
    scales: str,
    snapshot: Callable[[str], dict[str, bytes]],
    asked: str,
    said: str,
) -> None:
    before = snapshot(three)
    uri = f"models:/{scales}/{4 if '7' not in asked else 3}"
    with pytest.raises(MlflowException) as raised:
        client.update_deployment(three, uri, config={"serve_versions": asked})
    code, message = error_of(raised)
    assert code == "INVALID_PARAMETER_VALUE"
    assert said in message
    assert snapshot(three) == before
    assert factor(client, three) == 3


@pytest.mark.parametrize("asked", ["", "0", "latest", "latest:0", "6;7", "a", True, None, "-1"])
def test_a_misspelt_choice_is_refused(client: TritonDeploymentClient, asked: object) -> None:
    with pytest.raises(MlflowException) as raised:
        client.update_deployment("any", config={"serve_versions": asked})
    assert error_of(raised)[0] == "INVALID_PARAMETER_VALUE"
    assert "serve_versions" in str(raised.value)


def test_versions_with_other_inputs_are_not_served_together(
    client: TritonDeploymentClient,
    name: str,
    registered: Callable[[str], str],
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    """Triton has one config.pbtxt for all of them: one version would be served by a wrong one."""
    model = registered("widths")
    for width in (4, 5):
        log_onnx(scale_model(width, weights=width), registered=model)
    client.create_deployment(name, f"models:/{model}/1")
    before = snapshot(name)
    with pytest.raises(MlflowException, match="differ in input; deploy one of them under another"):
        client.update_deployment(name, f"models:/{model}/2", config={"serve_versions": "1,2"})
    assert snapshot(name) == before
    assert factor(client, name) == 4


def test_a_restarted_server_serves_the_same_versions(
    client: TritonDeploymentClient, three: str, repository: Path, tmp_path: Path
) -> None:
    from mlflow_triton_plugin.local import LocalTriton  # noqa: PLC0415

    client.update_deployment(three, config={"serve_versions": "1,3", "keep_versions": 9})
    shutil.copytree(repository / three, tmp_path / "repository" / three)
    with LocalTriton(
        tmp_path / "repository",
        model_control_mode="none",
        extra_args=["--disable-auto-complete-config"],
    ) as server:
        other = mlflow.deployments.get_deploy_client(f"triton://{server.grpc_url}")
        assert [factor(other, f"{three}/{each}") for each in (1, 3)] == [1, 3]
        with pytest.raises(MlflowException):
            factor(other, f"{three}/2")


def test_a_model_with_several_versions_of_its_own_can_serve_some_of_them(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    sources = [python_source(f"x + {number}") for number in (1, 2, 3)]
    python_directory(tmp_path / "model", *sources)
    (tmp_path / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    made = client.create_deployment(name, str(tmp_path), config={"serve_versions": "1,3"})
    assert made["served_versions"] == [1, 3]
    one = np.ones(1, np.float32)
    answers = [client.predict(f"{name}/{each}", one)["outputs"]["y"][0] for each in (1, 3)]
    assert answers == [2, 4]


def test_going_back_through_an_alias_copies_nothing(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    client.update_deployment(name, f"models:/{scales}/2")
    mlflow.MlflowClient().set_registered_model_alias(scales, "stable", "1")
    before = (repository / name / "1" / "model.onnx").stat()
    back = client.update_deployment(name, f"models:/{scales}@stable")
    after = (repository / name / "1" / "model.onnx").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert (back["served_versions"], back["mlflow_model_uri"]) == ([1], f"models:/{scales}@stable")
    assert back["versions"][1]["source"] == f"models:/{scales}/1"
    assert factor(client, name) == 1


def test_every_version_on_disk_is_listed_with_its_source_digest_and_time(
    client: TritonDeploymentClient, three: str, scales: str, triton: LocalTriton
) -> None:
    described = client.get_deployment(three)
    assert sorted(described["versions"]) == [1, 2, 3]
    for number, seen in described["versions"].items():
        assert seen["source"] == f"models:/{scales}/{number}"
        assert seen["placed_at"].endswith("+00:00")
    assert len({seen["digest"] for seen in described["versions"].values()}) == 3
    assert described in client.list_deployments()


def test_a_version_can_have_a_number_of_its_own(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1", config={"version": "40"})
    assert client.get_deployment(name)["served_versions"] == [40]
    updated = client.update_deployment(name, f"models:/{scales}/2", config={"version": 7})
    assert updated["served_versions"] == [7]
    assert factor(client, f"{name}/7") == 2
    assert sorted(each.name for each in (repository / name).iterdir() if each.is_dir()) == [
        "40",
        "7",
    ]
    # without a model it is one that is there
    assert client.update_deployment(name, config={"version": 40})["served_versions"] == [40]
    assert factor(client, name) == 1


def test_the_model_that_serves_can_get_another_number(
    client: TritonDeploymentClient, three: str, scales: str
) -> None:
    for version in (3, 1):  # the one that serves, and one that is kept
        updated = client.update_deployment(
            three, f"models:/{scales}/{version}", config={"version": version * 11}
        )
        assert updated["served_versions"] == [version * 11]
        assert factor(client, three) == version


@pytest.mark.parametrize(
    ("version", "model", "said"),
    [
        (2, 4, "version=2: .* has another model's version 2; 4 is free"),
        (9, None, r"has no version 9 \(there is 1, 2, 3\); give --model-uri, too"),
        (0, 4, "a whole number from 1"),
    ],
)
def test_a_number_that_is_taken_or_is_not_there_is_refused(
    client: TritonDeploymentClient,
    three: str,
    scales: str,
    snapshot: Callable[[str], dict[str, bytes]],
    version: int,
    model: int | None,
    said: str,
) -> None:
    before = snapshot(three)
    uri = f"models:/{scales}/{model}" if model else None
    with pytest.raises(MlflowException, match=said) as raised:
        client.update_deployment(three, uri, config={"version": version})
    assert error_of(raised)[0] == "INVALID_PARAMETER_VALUE"
    assert snapshot(three) == before
    assert factor(client, three) == 3


def test_a_model_with_several_versions_keeps_their_numbers(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    sources = [python_source(f"x * {factor}") for factor in (1, 2)]
    python_directory(tmp_path / "model", *sources)
    (tmp_path / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    with pytest.raises(MlflowException, match=r"brings versions of its own \(1, 2\)"):
        client.create_deployment(name, str(tmp_path), config={"version": 3})
