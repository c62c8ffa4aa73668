"""A server that completes configurations, as Triton does by default."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_triton_plugin.local import LocalTriton

from .models import log_onnx, scale_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.fixture(scope="module")
def completing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    with LocalTriton(tmp_path_factory.mktemp("completing")) as server:
        yield server


@pytest.fixture
def client(completing: LocalTriton, monkeypatch: pytest.MonkeyPatch) -> TritonDeploymentClient:
    monkeypatch.setenv("TRITON_MODEL_REPO", completing.model_repository)
    made: TritonDeploymentClient = get_deploy_client(f"triton://{completing.grpc_url}")
    return made


def answer(client: TritonDeploymentClient, name: str) -> list[float]:
    x = np.ones((1, 4), np.float32)
    return list(client.predict(name, {"x": x})["outputs"]["y"][0])


def artifact(directory: Path, factor: float) -> str:
    """A model of flavor triton with no config.pbtxt at all."""
    mlflow.onnx.save_model(
        scale_model(factor), directory / "saved", pip_requirements=["onnxruntime"]
    )
    version = directory / "model" / "1"
    version.mkdir(parents=True)
    shutil.copy(directory / "saved" / "model.onnx", version)
    (directory / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return str(directory)


def test_a_model_without_a_config_is_created_updated_and_returned_to(
    client: TritonDeploymentClient, name: str, tmp_path: Path, completing: LocalTriton
) -> None:
    """Only the pin is written, once there are two versions to choose from."""
    config = tmp_path.__class__(completing.model_repository) / name / "config.pbtxt"
    client.create_deployment(name, artifact(tmp_path / "a", 2))
    assert answer(client, name) == [2] * 4
    assert not config.exists()
    client.update_deployment(name, artifact(tmp_path / "b", 3))
    assert answer(client, name) == [3] * 4
    assert config.read_text().strip() == "version_policy: { specific { versions: [ 2 ] } }"
    client.update_deployment(name, str(tmp_path / "a"))
    assert answer(client, name) == [2] * 4


def test_a_generated_config_is_taken_as_it_is(
    client: TritonDeploymentClient, name: str, registered: Callable[[str], str]
) -> None:
    model = registered("completed")
    log_onnx(scale_model(4), registered=model)
    client.create_deployment(name, f"models:/{model}/1")
    assert answer(client, name) == [4] * 4
