"""Against an MLflow server that keeps the artifacts: there, empty directories are really lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import mlflow.artifacts
import pytest

from publish_tools import load_model, publish_model
from triton_repo.artifact import ModelArtifact
from triton_repo.flavors import convert
from triton_repo.names import check_name
from triton_repo.testing.tracking import TrackingServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow server` with artifacts behind it."""
    root = tmp_path_factory.mktemp("server")
    database = root / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    artifacts = str(root / "artifacts")
    with TrackingServer(root, database=database, artifacts_destination=artifacts) as running:
        yield running.url


@pytest.fixture
def tracking(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    # the default experiment of a copied database keeps its artifacts elsewhere
    experiment = mlflow.MlflowClient(server).get_experiment_by_name("proxied")
    identifier = (
        experiment.experiment_id
        if experiment is not None
        else mlflow.MlflowClient(server).create_experiment("proxied", "mlflow-artifacts:/proxied")
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", identifier)
    mlflow.set_tracking_uri(server)
    return server


@pytest.mark.usefixtures("tracking")
def test_an_ensemble_survives_a_store_that_drops_empty_directories(
    ensemble: Path, tmp_path: Path
) -> None:
    published = publish_model("both", ensemble)
    raw = Path(mlflow.artifacts.download_artifacts(published.uri, dst_path=str(tmp_path)))
    assert not (raw / "both" / "1").exists(), "the store kept it: this test shows nothing"
    entry = convert(ModelArtifact.open(raw), flavor="triton", name=check_name("both"), version=1)
    assert list(entry.versions) == [1, 3]
    model = load_model(published.uri, dst_path=tmp_path / "ours")
    assert list(model.directory.versions) == [1, 3]
    assert (model.path / "3").is_dir()


def test_what_mlflow_prints_does_not_reach_stdout(tracking: str, python_model: Path) -> None:
    """With an HTTP server MLflow prints "View run … at …" on stdout."""
    command = [str(Path(sys.executable).parent / "publish-model")]
    arguments = ["--model_directory", str(python_model), "--tracking-uri", tracking]
    result = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith("models:/identity/")
    assert "View run" in result.stderr


@pytest.mark.usefixtures("tracking")
def test_an_onnx_file_survives_with_its_external_data(onnx_file: Path, tmp_path: Path) -> None:
    published = publish_model("net", onnx_file)
    raw = Path(mlflow.artifacts.download_artifacts(published.uri, dst_path=str(tmp_path / "raw")))
    entry = convert(ModelArtifact.open(raw), flavor="onnx", name=check_name("net"), version=2)
    assert entry.versions[2].names() == ["model.onnx", "weights/w.bin"]
