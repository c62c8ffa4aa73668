"""Deployments on an S3 repository that the embedded Triton reads by itself."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin import fetch
from mlflow_triton_plugin.cli import main
from mlflow_triton_plugin.local import LocalTriton
from mlflow_triton_plugin.local.cli import check_repository
from mlflow_triton_plugin.local.cli import main as local_main
from mlflow_triton_plugin.server import TritonServers
from triton_repo.record import RECORD_FILENAME, DeploymentRecord
from triton_repo.store import _lease, open_store
from triton_repo.store._s3_uploads import S3Uploads
from triton_repo.testing.s3 import S3Server
from triton_repo.testing.tracking import TrackingServer

from .conftest import error_of, unloads_not_waited_for
from .groups import add_ensemble, add_scale, register_group
from .models import log_onnx, log_scale, python_directory, scale_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton_plugin.plugin import TritonDeploymentClient
    from triton_repo.store import Store

ROW = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture(scope="module")
def repository(server: S3Server) -> str:
    """One that Triton can start on: a prefix without objects is none to it."""
    address = f"{server.make_bucket('repository')}/models/team_1"
    open_store(address).check()
    return address


@pytest.fixture(scope="module")
def triton(repository: str) -> Iterator[LocalTriton]:
    with LocalTriton(repository, extra_args=["--disable-auto-complete-config"]) as running:
        yield running


@pytest.fixture
def store(repository: str) -> Store:
    return open_store(repository)


@pytest.fixture(scope="module")
def scales(registered: Callable[[str], str]) -> str:
    name = registered("s3-scale")
    log_scale(name, 1, 2, 3)
    return name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the plugin asks S3 for what."""
    from mlflow_triton_plugin import plugin  # noqa: PLC0415

    seen: Counter[str] = Counter()

    def opened(address: str) -> Store:
        store: Any = open_store(address)
        store.bucket.client.meta.events.register(
            "before-send.s3", lambda event_name, **_: seen.update([event_name.rpartition(".")[2]])
        )
        return store  # type: ignore[no-any-return]

    monkeypatch.setattr(plugin, "open_store", opened)
    return seen


def factor(client: TritonDeploymentClient, name: str) -> float:
    return float(client.predict(name, {"x": ROW})["outputs"]["y"][0, 0])


def test_a_model_goes_its_whole_way(
    client: TritonDeploymentClient, name: str, scales: str, store: Store, repository: str
) -> None:
    """Create, update, go back, list, verify, delete; then it is gone, its neighbours are not."""
    neighbours = [f"{name}_1", f"{name}2", f"{name}.bak"]
    for neighbour in neighbours:
        client.create_deployment(neighbour, f"models:/{scales}/3")
    client.create_deployment(name, f"models:/{scales}/1")
    assert factor(client, name) == 1
    updated = client.update_deployment(name, f"models:/{scales}/2")
    assert (updated["state"], updated["served_versions"]) == ("READY", [2])
    assert factor(client, name) == 2
    config = store.read(f"{name}/config.pbtxt").decode()
    assert "versions: [ 2 ]" in config
    assert client.get_deployment(name)["triton_model_path"] == f"{repository}/{name}"
    client.update_deployment(name, f"models:/{scales}/1")
    assert factor(client, name) == 1
    assert sorted(client.get_deployment(name)["versions"]) == [1, 2]
    client.update_deployment(name, f"models:/{scales}/3", config={"keep_versions": 1})
    assert store.children(name) == ["3"]
    assert main(["verify", name]) == 0
    listed = {each["name"]: each["state"] for each in client.list_deployments()}
    assert listed == dict.fromkeys([name, *neighbours], "READY")
    client.delete_deployment(name)
    assert store.children("") == sorted(neighbours)
    for neighbour in neighbours:
        assert factor(client, neighbour) == 3
        with unloads_not_waited_for():
            client.delete_deployment(neighbour)
    assert store.list_files("") == {}


def test_several_models_go_their_whole_way_as_one(
    client: TritonDeploymentClient,
    name: str,
    store: Store,
    registered: Callable[[str], str],
    tmp_path: Path,
    repository: str,
) -> None:
    """An ensemble's version directory is empty, which is nothing in S3."""
    model = registered("s3-pipeline")
    one, two = f"{name}_a", f"{name}_b"
    uris = []
    for factor in (2, 5):
        models = tmp_path / str(factor) / "models"
        add_scale(models, one, factor)
        add_scale(models, two, 3)
        add_ensemble(models, "all", one, two)
        uris.append(register_group(model, models.parent))

    def answer(client: TritonDeploymentClient) -> float:
        given = {"x": np.ones(1, np.float32)}
        return float(client.predict(name, given)["outputs"]["y"][0])

    client.create_deployment(name, uris[0])
    assert answer(client) == 6
    client.update_deployment(name, uris[1], config={"validate": "load"})
    assert answer(client) == 15
    assert store.children(one) == store.children(name) == ["1", "2"]
    assert store.children(two) == ["1"]
    client.update_deployment(name, uris[0])
    assert answer(client) == 6
    assert client.verify_deployment() == []
    with LocalTriton(
        repository, extra_args=["--disable-auto-complete-config", "--load-model=*"]
    ) as another:
        assert answer(get_deploy_client(f"triton://{another.grpc_url}")) == 6
    client.delete_deployment(name)
    assert not [each for each in store.children("") if each.startswith(name)]


def test_a_server_that_starts_anew_serves_what_was_committed(
    client: TritonDeploymentClient, name: str, scales: str, repository: str
) -> None:
    """Old versions on disk and all; the last one by going back."""
    client.create_deployment(name, f"models:/{scales}/1")
    client.update_deployment(name, f"models:/{scales}/2")
    client.update_deployment(name, f"models:/{scales}/1")
    with LocalTriton(repository, extra_args=["--load-model=*"]) as other:
        assert factor(get_deploy_client(f"triton://{other.grpc_url}"), name) == 1


@pytest.mark.parametrize("validate", ["false", "load"])
def test_a_model_that_is_refused_changes_nothing(
    client: TritonDeploymentClient,
    name: str,
    scales: str,
    store: Store,
    registered: Callable[[str], str],
    tmp_path: Path,
    validate: str,
) -> None:
    """Loaded apart or in its place: the old version serves, and every object is what it was."""
    broken = registered("broken")
    directory = python_directory(tmp_path / "broken", "raise RuntimeError('no weights')")
    client.create_deployment(name, f"models:/{scales}/1")
    before = {path: store.read(path) for path in store.list_files("")}
    from publish_tools import triton as flavor  # noqa: PLC0415 - only this test publishes

    with mlflow.start_run():
        flavor.log_model(directory, name="model", registered_model_name=broken)
    with pytest.raises(MlflowException, match="no weights"):
        client.update_deployment(name, f"models:/{broken}/1", config={"validate": validate})
    assert {path: store.read(path) for path in store.list_files("")} == before
    assert factor(client, name) == 1
    updated = client.update_deployment(name, f"models:/{scales}/2", config={"validate": "load"})
    assert updated["served_versions"] == [2]
    assert factor(client, name) == 2


def test_a_command_that_stood_still_changes_nothing_once_another_took_over(
    client: TritonDeploymentClient, name: str, scales: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes up with its model loaded, about to commit it."""
    client.create_deployment(name, f"models:/{scales}/1")
    for constant, seconds in {"_BEAT_S": 1e6, "_LEASE_S": 1.0, "_SETTLE_S": 0.1}.items():
        monkeypatch.setattr(_lease, constant, seconds)
    load = TritonServers.load

    def stand_still(self: TritonServers, *arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(TritonServers, "load", load)
        loaded = load(self, *arguments, **named)
        time.sleep(2.5)  # S3 tells the time in whole seconds
        other: Any = get_deploy_client("triton")
        other.update_deployment(name, f"models:/{scales}/3", config={"lock_timeout": 10})
        return loaded

    monkeypatch.setattr(TritonServers, "load", stand_still)
    with pytest.raises(MlflowException, match="took over the lock of") as caught:
        client.update_deployment(name, f"models:/{scales}/2")
    assert error_of(caught)[0] == "RESOURCE_CONFLICT"
    assert client.get_deployment(name)["served_versions"] == [3]
    assert factor(client, name) == 3
    assert main(["verify", name]) == 0


def test_listing_costs_two_requests(
    client: TritonDeploymentClient, scales: str, calls: Counter[str]
) -> None:
    """One listing for a thousand objects, and the record cache."""
    names = [f"listed{uuid.uuid4().hex[:8]}" for _ in range(3)]
    for each in names:
        client.create_deployment(each, f"models:/{scales}/1")
    calls.clear()
    listed = client.list_deployments()
    assert [each["name"] for each in listed] == sorted(names)
    assert calls == {"ListObjectsV2": 1, "GetObject": 1}
    with unloads_not_waited_for():
        for each in names:
            client.delete_deployment(each)


def test_what_is_not_as_recorded_is_named(
    client: TritonDeploymentClient,
    name: str,
    scales: str,
    store: Store,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Missing, changed and extra; and going back to it places it anew."""
    client.create_deployment(name, f"models:/{scales}/1")
    client.update_deployment(name, f"models:/{scales}/2")
    model = store.read(f"{name}/1/model.onnx")
    store.write(f"{name}/1/model.onnx", model[:-1] + b"x")
    store.write(f"{name}/2/stray", b"x")
    assert main(["verify", name]) == 1
    said = capsys.readouterr().out
    assert f"{name}/1/model.onnx" in said
    assert f"{name}/2/stray" in said
    client.update_deployment(name, f"models:/{scales}/1")
    assert store.read(f"{name}/1/model.onnx") == model
    assert factor(client, name) == 1


# -- artifacts that lie in S3 ---------------------------------------------------------------------


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What MLflow brings to this machine."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository  # noqa: PLC0415

    seen: list[str] = []
    real = S3ArtifactRepository._download_file

    def download(self: S3ArtifactRepository, remote_file_path: str, local_path: str) -> None:
        seen.append(remote_file_path)
        real(self, remote_file_path, local_path)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(S3ArtifactRepository, "_download_file", download)
    return seen


@pytest.fixture(scope="module")
def in_s3(server: S3Server, registered: Callable[[str], str]) -> str:
    """A registered model whose artifacts lie in S3: 1.2 MB of weights beside a small graph."""
    server.make_bucket("artifacts")
    name = registered("in-s3")
    experiment = mlflow.create_experiment(name, artifact_location=f"s3://artifacts/{name}")
    with mlflow.start_run(experiment_id=experiment):
        log_onnx(scale_model(2, weights=300_000), registered=name)
    return name


def weights_of(store: Store, name: str) -> str:
    """The name of the one large file of a deployment."""
    (path,) = [path for path, size in store.list_files(f"{name}/1").items() if size > 2**20]
    return path


def test_large_artifacts_in_s3_do_not_come_here(
    client: TritonDeploymentClient, name: str, in_s3: str, store: Store, downloads: list[str]
) -> None:
    """Digest and size are in the record all the same."""
    client.create_deployment(name, f"models:/{in_s3}/1")
    stem = weights_of(store, name)
    assert downloads
    assert not [path for path in downloads if path.endswith(stem)]
    record = DeploymentRecord.parse(store.read(f"{name}/{RECORD_FILENAME}"))
    recorded = record.versions[1].files[stem]
    assert recorded == store.digest(f"{name}/1/{stem}")
    assert len(recorded.sha256) == 64
    assert main(["verify", name]) == 0
    row = np.ones((1, 300_000), np.float32)
    assert client.predict(name, {"x": row})["outputs"]["y"].shape == row.shape


def test_a_large_graph_is_read_here_and_copied_there(
    client: TritonDeploymentClient,
    name: str,
    server: S3Server,
    registered: Callable[[str], str],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An .onnx file with its weights inside; nothing of it is uploaded."""
    server.client().create_bucket(Bucket="graphs")
    whole = registered("whole")
    experiment = mlflow.create_experiment(whole, artifact_location="s3://graphs/whole")
    with mlflow.start_run(experiment_id=experiment):
        model = scale_model(2, weights=300_000)
        log_onnx(model, registered=whole, save_as_external_data=False)
    sent: list[str] = []
    real = S3Uploads._send_file

    def send(self: S3Uploads, key: str, source: Path) -> Any:
        sent.append(key)
        return real(self, key, source)

    monkeypatch.setattr(S3Uploads, "_send_file", send)
    client.create_deployment(name, f"models:/{whole}/1")
    assert f"{name}/1/{weights_of(store, name)}" not in sent
    assert main(["verify", name]) == 0


def test_a_large_forest_is_looked_into(
    client: TritonDeploymentClient, server: S3Server, tmp_path: Path
) -> None:
    """What stands for a file that is not downloaded is full of zeros, and no model."""
    server.client().create_bucket(Bucket="forests")
    column = json.dumps([{"name": "x", "type": "double"}])
    answer = json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1]}}])
    settings = {"data": "model.ubj", "model_class": "xgboost.sklearn.XGBRegressor"}
    document = {
        "flavors": {"xgboost": settings, "python_function": {"loader_module": "mlflow.xgboost"}},
        "signature": {"inputs": column, "outputs": answer},
    }
    (tmp_path / "MLmodel").write_text(json.dumps(document))
    linear = b"{U\x07learner{U\x10gradient_booster{U\x05model{}}}}"
    trees = linear.replace(b"model{}", b"model{U\x12gbtree_model_param{}U\x09tree_info[]}")
    for data, chosen in ((linear, "python_function"), (trees, "xgboost")):
        (tmp_path / "model.ubj").write_bytes(data + bytes(2**20))
        experiment = mlflow.create_experiment(chosen, artifact_location=f"s3://forests/{chosen}")
        with mlflow.start_run(experiment_id=experiment) as run:
            mlflow.log_artifacts(str(tmp_path), "forest")
        plan = client.plan_deployment("forest", f"runs:/{run.info.run_id}/forest")
        assert plan["flavor"] == chosen


def test_artifacts_of_another_endpoint_come_through_this_machine(
    name: str,
    in_s3: str,
    store: Store,
    server: S3Server,
    downloads: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`localhost` is another spelling, and could be another store."""
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", server.url.replace("127.0.0.1", "localhost"))
    get_deploy_client("triton").create_deployment(name, f"models:/{in_s3}/1")
    assert [path for path in downloads if path.endswith(weights_of(store, name))]


def test_where_a_proxy_keeps_artifacts_can_be_told() -> None:
    """By MLflow's own variable for it."""
    from mlflow_triton_plugin.settings import Settings  # noqa: PLC0415

    told = {"MLFLOW_ARTIFACTS_DESTINATION": "s3://artifacts/root/", "MLFLOW_S3_ENDPOINT_URL": "e"}
    asked: list[tuple[str, str]] = []

    def copies_from(uri: str, endpoint: str) -> bool:
        asked.append((uri, endpoint))
        return True

    remote = fetch.RemoteArtifacts(copies_from, Settings.read("triton", told))
    for location in (
        "mlflow-artifacts:/1/models/m-1/artifacts",
        "mlflow-artifacts://host:5000/1/models/m-1/artifacts",
    ):
        place = remote.locate(location)
        assert place is not None
        assert place.uri == "s3://artifacts/root/1/models/m-1/artifacts"
    assert set(asked) == {("s3://artifacts/root/1/models/m-1/artifacts", "e")}


@pytest.fixture
def proxied(
    server: S3Server,
    tracking: str,
    registered: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """A model behind an MLflow server that hands its artifacts out, and keeps them in S3."""
    server.make_bucket("proxied")
    database = tmp_path / "mlflow.db"
    shutil.copyfile(tracking.removeprefix("sqlite:///"), database)
    destination = "s3://proxied/mlflow"
    with TrackingServer(tmp_path, database=database, artifacts_destination=destination) as running:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
        mlflow.set_tracking_uri(running.url)
        try:
            name = registered("proxied")
            experiment = mlflow.create_experiment(name)
            with mlflow.start_run(experiment_id=experiment):
                log_onnx(scale_model(2, weights=300_000), registered=name)
            yield name
        finally:
            mlflow.set_tracking_uri(tracking)


def test_artifacts_behind_mlflows_proxy_do_not_come_here_once_it_is_told_where_they_are(
    name: str, proxied: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real server; without being told, the model comes through here."""
    from mlflow.store.artifact.mlflow_artifacts_repo import (  # noqa: PLC0415
        MlflowArtifactsRepository,
    )

    downloads: list[str] = []
    real = MlflowArtifactsRepository._download_file

    def download(self: MlflowArtifactsRepository, remote_file_path: str, local_path: str) -> None:
        downloads.append(remote_file_path)
        real(self, remote_file_path, local_path)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(MlflowArtifactsRepository, "_download_file", download)
    for told in ("s3://proxied/mlflow", ""):
        downloads.clear()
        monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", told)
        client: Any = get_deploy_client("triton")
        client.create_deployment(name, f"models:/{proxied}/1")
        weights = weights_of(store, name)
        assert downloads
        assert any(path.endswith(weights) for path in downloads) is not bool(told)
        row = np.ones((1, 300_000), np.float32)
        assert client.predict(name, {"x": row})["outputs"]["y"][0, 0] == 2
        assert main(["verify", name]) == 0
        client.delete_deployment(name)


# -- what is said ---------------------------------------------------------------------------------


def test_nothing_secret_is_said_or_kept(
    client: TritonDeploymentClient,
    name: str,
    scales: str,
    store: Store,
    server: S3Server,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in our logs at their most talkative, nor in records, locks or errors."""
    for logger in ("triton_repo", "mlflow_triton_plugin"):
        caplog.set_level(logging.DEBUG, logger)
    client.create_deployment(name, f"models:/{scales}/1")
    with pytest.raises(MlflowException) as caught:
        client.create_deployment(name, f"models:/{scales}/1")
    ours = [each for each in caplog.records if each.name.startswith(("triton_repo", "mlflow_tri"))]
    kept = [store.read(path).decode(errors="replace") for path in store.list_files("")]
    said = [str(caught.value), *(each.getMessage() for each in ours), *kept]
    assert not [text for text in said if server.SECRET_KEY in text]


@pytest.mark.parametrize(
    ("model_repository", "words"),
    [
        ("s3://{url}/no-such-bucket", "there is no bucket 'no-such-bucket'"),
        ("s3://http://127.0.0.1:9/bucket", "nothing answers at http://127.0.0.1:9"),
        ("s3://", "names no bucket"),
        ("gs://bucket/models", "gs:// cannot be written; use s3://, as:// or a directory"),
    ],
)
def test_a_repository_that_cannot_be_used_is_one_line(
    environment: Callable[..., None], server: S3Server, model_repository: str, words: str
) -> None:
    environment(TRITON_MODEL_REPO=model_repository.format(url=server.url), AWS_MAX_ATTEMPTS="1")
    client = get_deploy_client("triton")
    for call in (client.list_deployments, lambda: client.create_deployment("m", "models:/m/1")):
        with pytest.raises(MlflowException) as caught:
            call()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_command_line_names_what_it_cannot_reach(
    environment: Callable[..., None], triton: LocalTriton
) -> None:
    """As a user sees it: one line, and an exit status."""
    environment(TRITON_MODEL_REPO="s3://http://127.0.0.1:9/bucket", AWS_MAX_ATTEMPTS="1")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mlflow-triton")), "verify"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 2
    assert "nothing answers at http://127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1


def test_triton_local_starts_on_an_empty_prefix(server: S3Server) -> None:
    """Triton itself takes it for no repository."""
    address = f"{server.make_bucket('fresh')}/models"
    check_repository(address)
    with LocalTriton(address) as triton:
        assert triton.grpc_url


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://http://127.0.0.1:9/bucket", "nothing answers at http://127.0.0.1:9"),
        ("s3://{url}/no-such-bucket", "there is no bucket 'no-such-bucket'"),
        ("s3://http://me:hunter2@127.0.0.1:9/bucket", "carries a name, a password"),
    ],
)
def test_triton_local_says_what_is_wrong_with_a_repository_in_one_line(
    server: S3Server,
    address: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert local_main(["--model-repository", address.format(url=server.url)]) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert "hunter2" not in said.err + said.out
