"""What somebody changed in the repository by hand is not lost, and what is damaged is repaired."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from triton_repo.journal import Journal

from .models import ONE_INSTANCE, PYTHON_CONFIG, log_scale, python_directory, python_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.fixture(scope="module")
def scales(registered: Callable[[str], str]) -> str:
    """Versions 1, 2, 3 multiply by 1, 2, 3; none has a config.pbtxt of its own."""
    name = registered("scale")
    log_scale(name, 1, 2, 3)
    return name


def artifact(directory: Path, source: str, labels: str = "") -> str:
    """A model of flavor triton; its labels, if any, are a file beside config.pbtxt."""
    config = PYTHON_CONFIG + ONE_INSTANCE
    if labels:
        config = config.replace('name: "y"', 'name: "y" label_filename: "labels.txt"')
    python_directory(directory / "model", source, config=config)
    if labels:
        (directory / "model" / "labels.txt").write_text(labels)
    (directory / "MLmodel").write_text(json.dumps({"flavors": {"triton": {"data": "model"}}}))
    return str(directory)


def test_a_config_tuned_in_the_repository_survives_updates_that_bring_none(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    """The existing plugin replaced it by a two-line stub."""
    client.create_deployment(name, f"models:/{scales}/1")
    config = repository / name / "config.pbtxt"
    tuned = config.read_text().replace("max_batch_size: 1024", "max_batch_size: 7  # tuned")
    config.write_text(tuned)
    client.update_deployment(name, f"models:/{scales}/2")
    assert config.read_text() == tuned + "version_policy: { specific { versions: [ 2 ] } }\n"
    client.update_deployment(name, f"models:/{scales}/1")
    assert "max_batch_size: 7  # tuned" in config.read_text()
    assert client.predict(name, np.ones((7, 4), np.float32))["outputs"]["y"].shape == (7, 4)


def test_a_shared_file_edited_in_the_repository_comes_back_with_its_version(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    first = artifact(tmp_path / "a", python_source("x + 1"), labels="a\n")
    client.create_deployment(name, first)
    labels = repository / name / "labels.txt"
    labels.write_text("edited\n")
    client.update_deployment(name, artifact(tmp_path / "b", python_source("x + 2"), labels="b\n"))
    assert labels.read_text() == "b\n"
    record = json.loads((repository / name / "mlflow-meta.json").read_text())
    kept = record["versions"]["1"]["shared"]["labels.txt"]["sha256"]
    assert (repository / name / "_mlflow_triton" / "shared" / kept).read_text() == "edited\n"


def test_shared_files_go_and_come_back_with_their_version(
    client: TritonDeploymentClient,
    name: str,
    registered: Callable[[str], str],
    tmp_path: Path,
    repository: Path,
) -> None:
    model = registered("labelled")
    mlflow_client = mlflow.MlflowClient()
    mlflow_client.create_registered_model(model)
    for label in ("a\n", "b\n"):
        uri = artifact(tmp_path / label.strip(), python_source("x"), labels=label)
        mlflow_client.create_model_version(model, source=uri)
    labels = repository / name / "labels.txt"
    client.create_deployment(name, f"models:/{model}/1")
    client.update_deployment(name, f"models:/{model}/2")
    assert labels.read_text() == "b\n"
    client.update_deployment(name, f"models:/{model}/1")
    assert labels.read_text() == "a\n"
    assert client.get_deployment(name)["served_versions"] == [1]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_deploying_the_same_model_again_repairs_its_version(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path, damage: str
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    model = repository / name / "1" / "model.onnx"
    whole = model.read_bytes()
    if damage == "truncated":
        model.write_bytes(whole[:10])
    else:
        model.unlink()
    updated = client.update_deployment(name, f"models:/{scales}/1")
    assert updated["served_versions"] == [1]
    assert model.read_bytes() == whole
    assert not (repository / name / "_mlflow_triton").exists()


def test_a_kept_version_that_was_damaged_is_fetched_again(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    client.update_deployment(name, f"models:/{scales}/2")
    (repository / name / "1" / "model.onnx").write_bytes(b"")
    client.update_deployment(name, f"models:/{scales}/1")
    y = client.predict(name, {"x": np.ones((1, 4), np.float32)})["outputs"]["y"]
    assert y.tolist() == [[1, 1, 1, 1]]


def test_the_same_update_twice_changes_nothing(
    client: TritonDeploymentClient,
    name: str,
    scales: str,
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    client.update_deployment(name, f"models:/{scales}/2")
    before = snapshot(name)
    client.update_deployment(name, f"models:/{scales}/2")
    assert snapshot(name) == before


def test_loading_again_keeps_what_was_edited_and_added_by_hand(
    client: TritonDeploymentClient,
    name: str,
    tmp_path: Path,
    repository: Path,
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    """`update` without a URI is what a deployment that is not loaded asks for."""
    client.create_deployment(name, artifact(tmp_path, python_source("x"), labels="a\n"))
    model = repository / name
    config = (model / "config.pbtxt").read_text() + "# tuned\n"
    (model / "config.pbtxt").write_text(config)
    (model / "labels.txt").write_text("edited\n")
    (model / "notes.md").write_text("mine")
    (model / "5").mkdir()
    (model / "5" / "model.py").write_text(python_source("x * 5"))
    client.update_deployment(name)
    left = snapshot(name)
    assert left[f"{name}/config.pbtxt"].decode().startswith(config)
    assert left[f"{name}/labels.txt"] == b"edited\n"
    assert left[f"{name}/notes.md"] == b"mine"
    assert left[f"{name}/5/model.py"] == python_source("x * 5").encode()
    assert client.get_deployment(name)["served_versions"] == [1]


def test_a_config_that_no_longer_parses_is_not_overwritten(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    config = repository / name / "config.pbtxt"
    broken = config.read_text() + "instance_grup [ ]\n"
    config.write_text(broken)
    with pytest.raises(MlflowException, match="instance_grup"):
        client.update_deployment(name, f"models:/{scales}/2")
    assert config.read_text() == broken


def test_an_edited_config_does_not_follow_to_another_backend(
    client: TritonDeploymentClient, name: str, scales: str, tmp_path: Path, repository: Path
) -> None:
    client.create_deployment(name, artifact(tmp_path, python_source("x")))
    config = repository / name / "config.pbtxt"
    config.write_text(config.read_text() + "# tuned\n")
    client.update_deployment(name, f"models:/{scales}/2")
    y = client.predict(name, {"x": np.ones((1, 4), np.float32)})["outputs"]["y"]
    assert y.tolist() == [[2, 2, 2, 2]]


def test_adoption_keeps_every_version_that_was_there(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    python_directory(repository / name, *(python_source(f"x * {each}") for each in (1, 2, 3)))
    uri = artifact(tmp_path, python_source("x * 9"))
    made = client.create_deployment(name, uri, config={"on_conflict": "adopt"})
    assert sorted(made["versions"]) == [1, 2, 3, 4]
    assert made["served_versions"] == [4]


@pytest.mark.parametrize("in_the_way", ["directory", "link"])
def test_what_is_in_the_way_of_a_shared_file_is_left_alone(
    client: TritonDeploymentClient,
    name: str,
    tmp_path: Path,
    repository: Path,
    snapshot: Callable[[str], dict[str, bytes]],
    in_the_way: str,
) -> None:
    foreign = python_directory(repository / name, python_source("x"))
    uri = artifact(tmp_path / "model", python_source("x * 9"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("precious")
    if in_the_way == "directory":
        (foreign / "assets").mkdir()
        (foreign / "assets" / "data").write_text("precious")
        (tmp_path / "model" / "model" / "assets").write_text("a file")
    else:
        (foreign / "assets").symlink_to(outside)
        (tmp_path / "model" / "model" / "assets").mkdir()
        (tmp_path / "model" / "model" / "assets" / "data").write_text("other")
    before = snapshot(name)
    try:
        with pytest.raises(MlflowException, match="assets"):
            client.create_deployment(name, uri, config={"on_conflict": "adopt"})
        assert snapshot(name) == before
        assert (outside / "data").read_text() == "precious"
    finally:
        shutil.rmtree(foreign)


def test_a_set_that_is_loaded_again_serves_what_it_served(
    client: TritonDeploymentClient, name: str, registered: Callable[[str], str], tmp_path: Path
) -> None:
    model = registered("set")
    mlflow_client = mlflow.MlflowClient()
    mlflow_client.create_registered_model(model)
    uri = artifact(tmp_path, python_source("x * 1"))
    (tmp_path / "model" / "2").mkdir()
    (tmp_path / "model" / "2" / "model.py").write_text(python_source("x * 2"))
    mlflow_client.create_model_version(model, source=uri)
    client.create_deployment(name, f"models:/{model}/1")
    assert client.update_deployment(name)["served_versions"] == [2]
    assert client.update_deployment(name, f"models:/{model}/1")["served_versions"] == [2]
    assert sorted(client.get_deployment(name)["versions"]) == [1, 2]


@pytest.mark.parametrize("command", ["delete", "create", "update"])
def test_the_servers_agree_with_the_disk_after_a_killed_change(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path, command: str
) -> None:
    """Killed after the server had loaded it, before it was committed."""
    client.create_deployment(name, artifact(tmp_path / "a", python_source("x * 1")))
    record = (repository / name / "mlflow-meta.json").read_bytes()
    config = (repository / name / "config.pbtxt").read_bytes()
    client.update_deployment(name, artifact(tmp_path / "b", python_source("x * 2")))
    journal = Journal(
        "update",
        new_versions=(2,),
        config_before=config,
        config_guard=(repository / name / "config.pbtxt").read_bytes(),
    )
    (repository / name / "mlflow-meta.json").write_bytes(record)
    (repository / name / "_mlflow_triton").mkdir()
    (repository / name / "_mlflow_triton" / "journal.json").write_bytes(journal.to_bytes())
    if command == "delete":
        client.delete_deployment(name)
        with pytest.raises(MlflowException, match=name):
            client.predict(name, np.ones(1, np.float32))
        return
    with pytest.raises(MlflowException):
        getattr(client, f"{command}_deployment")(name, "models:/no-such-model/1")
    assert client.get_deployment(name)["served_versions"] == [1]
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [1]


def test_a_killed_create_is_unloaded_by_delete(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    client.create_deployment(name, artifact(tmp_path, python_source("x")))
    for path in ("mlflow-meta.json", "config.pbtxt"):  # a commit's
        (repository / name / path).unlink()
    (repository / name / "_mlflow_triton").mkdir()
    journal = Journal("create", created=True, new_versions=(1,))
    (repository / name / "_mlflow_triton" / "journal.json").write_bytes(journal.to_bytes())
    client.delete_deployment(name)
    assert not (repository / name).exists()
    with pytest.raises(MlflowException, match=name):
        client.predict(name, np.ones(1, np.float32))


def test_a_damaged_journal_is_listed_with_what_to_do(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    client.create_deployment(name, artifact(tmp_path, python_source("x")))
    ours = repository / name / "_mlflow_triton"
    ours.mkdir()
    (ours / "journal.json").write_text("{")
    (described,) = [each for each in client.list_deployments() if each["name"] == name]
    assert described["state"] == "INTERRUPTED"
    assert "remove it if no command is running" in described["reason"]
    shutil.rmtree(ours)
