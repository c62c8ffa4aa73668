"""What somebody changed in the repository by hand is not lost, and what is damaged is repaired."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

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
    import mlflow  # noqa: PLC0415

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
