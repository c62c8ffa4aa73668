"""Where a model may lie, and what is left alone there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_triton_plugin.errors import DownloadError
from mlflow_triton_plugin.fetch import (
    RemoteArtifacts,
    ResolvedModel,
    S3Place,
    fetched,
    resolve,
)
from mlflow_triton_plugin.settings import Settings
from triton_repo.errors import ArtifactError, MissingModelFileError
from triton_repo.record import Source
from triton_repo.testing.s3 import S3Server

from .models import log_onnx, scale_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton_plugin.plugin import TritonDeploymentClient


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_local_artifact_is_read_where_it_is_and_left_as_it_is(
    registered: Callable[[str], str],
) -> None:
    """MLflow's own download writes `registered_model_meta` into the live directory."""
    name = registered("live")
    log_onnx(scale_model(1), registered=name)
    model = resolve(f"models:/{name}/1")
    with fetched(model) as found:
        artifact = found.artifact
        before = files_below(artifact.root)
        assert artifact.root == Path(model.location.removeprefix("file://"))
    with fetched(model) as found:
        artifact = found.artifact
        assert files_below(artifact.root) == before
    assert "registered_model_meta" not in before


def test_an_artifact_on_another_machine_is_named() -> None:
    model = ResolvedModel(Source("models:/m/1", "models:/m/1"), "/no/such/store/m")
    with pytest.raises(ArtifactError, match="no such directory on this machine"), fetched(model):
        pass


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server on loopback."""
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", server.url)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket("models")
        yield "s3://models"


def test_an_s3_source_is_downloaded_and_the_copy_removed(bucket: str, tmp_path: Path) -> None:
    mlflow.onnx.save_model(scale_model(2), tmp_path / "saved", pip_requirements=["onnxruntime"])
    get_artifact_repository(f"{bucket}/resnet").log_artifacts(str(tmp_path / "saved"))
    model = resolve(f"{bucket}/resnet")
    assert model.source.concrete_uri == f"{bucket}/resnet"
    with fetched(model) as found:
        artifact = found.artifact
        assert files_below(artifact.root) == files_below(tmp_path / "saved")
        downloaded = artifact.root
    assert not downloaded.exists()


def test_a_config_beside_a_remote_model_is_found(
    bucket: str, registered: Callable[[str], str], tmp_path: Path
) -> None:
    """log_artifact("config.pbtxt", "triton") puts it into the run, not into the model."""
    experiment = registered("remote")
    experiment_id = mlflow.create_experiment(experiment, artifact_location=f"{bucket}/{experiment}")
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 3\n")
    with mlflow.start_run(experiment_id=experiment_id):
        log_onnx(scale_model(1), registered=experiment)
        mlflow.log_artifact(str(tmp_path / "config.pbtxt"), "triton")
    with fetched(resolve(f"models:/{experiment}/1")) as found:
        artifact = found.artifact
        config = artifact.find("config.pbtxt")
        assert config is not None
        assert config.read_text() == "max_batch_size: 3\n"
    assert not config.exists()


@pytest.mark.parametrize("key", ["../../outside", "/etc/outside", "a/../../outside"])
def test_artifacts_whose_names_leave_the_model_are_refused(
    bucket: str, key: str, tmp_path: Path
) -> None:
    mlflow.onnx.save_model(scale_model(2), tmp_path / "saved", pip_requirements=["onnxruntime"])
    get_artifact_repository(f"{bucket}/evil").log_artifacts(str(tmp_path / "saved"))
    client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    client.put_object(Bucket="models", Key=f"evil/{key}", Body=b"")
    remote = RemoteArtifacts(lambda *_: True, Settings.read("triton", {}))
    try:
        with (
            pytest.raises(ArtifactError, match=r"evil lists '.*', which leaves the model"),
            fetched(resolve(f"{bucket}/evil"), remote),
        ):
            pass
    finally:
        client.delete_object(Bucket="models", Key=f"evil/{key}")


@pytest.mark.parametrize("copied", [True, False], ids=["copied there", "downloaded"])
def test_a_place_without_a_model_is_named(bucket: str, copied: bool) -> None:  # noqa: FBT001
    client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    client.put_object(Bucket="models", Key="notes/readme.txt", Body=b"no model")
    remote = RemoteArtifacts(lambda *_: copied, Settings.read("triton", {}))
    with (
        pytest.raises(MissingModelFileError, match="is no MLflow model: it has no MLmodel"),
        fetched(resolve(f"{bucket}/notes"), remote),
    ):
        pass


@pytest.mark.parametrize("copied", [True, False], ids=["copied there", "downloaded"])
def test_an_artifact_store_that_refuses_is_named(
    bucket: str,
    copied: bool,  # noqa: FBT001
    client: TritonDeploymentClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where MLflow lets its libraries' own errors through: there is no such bucket."""
    monkeypatch.setattr("mlflow_triton_plugin.fetch.RemoteArtifacts.locate", copied_or_not(copied))
    with pytest.raises(MlflowException, match=r"s3://nobodys/.*bucket does not exist"):
        client.create_deployment("refused", "s3://nobodys/m")


def copied_or_not(copied: bool) -> Callable[[RemoteArtifacts, str], S3Place | None]:  # noqa: FBT001
    return lambda _, location: S3Place(location, "") if copied else None


def test_a_signed_address_is_not_shown(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads its signature may read the artifact."""

    def refuse(*_: object, **__: object) -> None:
        said = "403 Forbidden for url: https://store.test/b/k?X-Amz-Signature=5ecret&X=1"
        raise requests.HTTPError(said)

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", refuse)
    with pytest.raises(DownloadError) as raised, fetched(resolve(f"{bucket}/m")):
        pass
    assert "https://store.test/b/k" in str(raised.value)
    assert "5ecret" not in str(raised.value)


def test_a_large_mlmodel_is_read_whole(bucket: str, tmp_path: Path) -> None:
    """Of a model with twenty thousand columns, and no other small files than those we read."""
    mlflow.onnx.save_model(scale_model(2), tmp_path / "saved", pip_requirements=["onnxruntime"])
    with (tmp_path / "saved" / "MLmodel").open("a") as file:
        file.write(f"metadata: {{note: {'x' * 1_200_000}}}\n")
    get_artifact_repository(f"{bucket}/wide").log_artifacts(str(tmp_path / "saved"))
    remote = RemoteArtifacts(lambda *_: True, Settings.read("triton", {}))
    with fetched(resolve(f"{bucket}/wide"), remote) as found:
        assert "onnx" in found.artifact.flavors
        assert found.origins == {}
