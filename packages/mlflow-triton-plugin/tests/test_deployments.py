"""The deployment commands through MLflow's Python API, on a real Triton.

Over both protocols where a command loads, asks or unloads in another way or meets another error.
"""

from __future__ import annotations

import inspect
import json
import shutil
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin import plugin
from triton_repo.journal import Journal

from . import models
from .models import log_onnx, log_scale, python_directory, python_source, scale_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

ROW = np.ones((1, 4), np.float32)


over_both = pytest.mark.parametrize("address", ["grpc", "http"], indirect=True)


@pytest.fixture
def address(request: pytest.FixtureRequest, triton: LocalTriton) -> str:
    return triton.http_url if getattr(request, "param", "grpc") == "http" else triton.grpc_url


@pytest.fixture(scope="module")
def scales(registered: Callable[[str], str]) -> str:
    """A registered model whose versions 1, 2, 3 multiply by 1, 2, 3."""
    name = registered("scale")
    log_scale(name, 1, 2, 3)
    return name


def factor(client: TritonDeploymentClient, name: str) -> float:
    """What the deployed scale model multiplies by."""
    return float(client.predict(name, {"x": ROW})["outputs"]["y"][0, 0])


@over_both
def test_create_serves_the_model_and_describes_it(
    client: TritonDeploymentClient, name: str, scales: str
) -> None:
    made = client.create_deployment(name, f"models:/{scales}/1", flavor="onnx")
    assert (made["name"], made["flavor"], made["state"]) == (name, "onnx", "READY")
    assert factor(client, name) == 1
    assert client.get_deployment(name) == made


def test_the_triton_version_is_the_registry_version(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/3")
    assert (repository / name / "3" / "model.onnx").is_file()
    assert client.predict(name, {"x": ROW})["model_version"] == "3"


@over_both
def test_update_adds_the_version_beside_the_old_one_and_pins_it(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    updated = client.update_deployment(name, f"models:/{scales}/2")
    assert updated["flavor"] == "onnx"
    assert updated["served_versions"] == [2]
    assert sorted(updated["versions"]) == [1, 2]
    assert "versions: [ 2 ]" in (repository / name / "config.pbtxt").read_text()
    assert factor(client, name) == 2


def test_going_back_copies_nothing(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    client.update_deployment(name, f"models:/{scales}/2")
    before = (repository / name / "1" / "model.onnx").stat()
    client.update_deployment(name, f"models:/{scales}/1")
    after = (repository / name / "1" / "model.onnx").stat()
    assert factor(client, name) == 1
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_old_versions_beyond_keep_versions_are_removed(
    client: TritonDeploymentClient, name: str, scales: str
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    client.update_deployment(name, f"models:/{scales}/2")
    assert sorted(client.update_deployment(name, f"models:/{scales}/3")["versions"]) == [2, 3]
    kept_one = client.update_deployment(name, f"models:/{scales}/2", config={"keep_versions": 1})
    assert sorted(kept_one["versions"]) == [2]


@over_both
def test_an_update_without_a_uri_loads_what_is_deployed_again(
    client: TritonDeploymentClient, name: str, scales: str
) -> None:
    client.create_deployment(name, f"models:/{scales}/2")
    client.update_deployment(name)
    assert factor(client, name) == 2


@over_both
def test_delete_leaves_nothing_behind_and_can_be_repeated(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    client.delete_deployment(name)
    assert not list(repository.glob(f"*{name}*"))
    assert not list(repository.glob(f".*{name}*"))
    client.delete_deployment(name)
    with pytest.raises(MlflowException) as raised:
        client.predict(name, {"x": ROW})
    assert raised.value.error_code == "RESOURCE_DOES_NOT_EXIST"


@pytest.mark.parametrize("spelling", ["alias", "latest", "model id", "run", "path", "file uri"])
def test_every_uri_resolves_to_a_concrete_version_in_the_record(
    client: TritonDeploymentClient,
    name: str,
    registered: Callable[[str], str],
    repository: Path,
    spelling: str,
    tmp_path: Path,
) -> None:
    model = registered("uris")
    with mlflow.start_run() as run:
        info = log_onnx(scale_model(5), registered=model)
    mlflow.MlflowClient().set_registered_model_alias(model, "champion", "1")
    mlflow.onnx.save_model(scale_model(5), tmp_path / "saved", pip_requirements=["onnxruntime"])
    model_id = getattr(info, "model_id", None)
    if spelling == "model id" and model_id is None:
        pytest.skip("MLflow 2 has no model ids")
    asked, concrete = {
        "alias": (f"models:/{model}@champion", f"models:/{model}/1"),
        "latest": (f"models:/{model}/latest", f"models:/{model}/1"),
        "model id": (f"models:/{model_id}", f"models:/{model_id}"),
        "run": (
            f"runs:/{run.info.run_id}/triton",
            f"models:/{model_id}" if model_id else f"runs:/{run.info.run_id}/triton",
        ),
        "path": (str(tmp_path / "saved"), str(tmp_path / "saved")),
        "file uri": ((tmp_path / "saved").as_uri(), str(tmp_path / "saved")),
    }[spelling]
    client.create_deployment(name, asked)
    record = json.loads((repository / name / "mlflow-meta.json").read_text())
    source = record["versions"]["1"]["source"]
    assert record["mlflow_model_uri"] == source["uri"] == asked
    assert source["concrete_uri"] == concrete
    assert factor(client, name) == 5


def test_external_data_is_deployed_with_the_model(
    client: TritonDeploymentClient, name: str, registered: Callable[[str], str]
) -> None:
    model = registered("external")
    log_onnx(scale_model(2, weights=4096), registered=model)  # over 1 KB: MLflow stores it beside
    client.create_deployment(name, f"models:/{model}/1")
    answer = client.predict(name, {"x": np.ones((2, 4096), np.float32)})["outputs"]["y"]
    assert answer.shape == (2, 4096)
    assert (answer == 2).all()


def test_a_config_logged_beside_the_model_is_used_to_the_byte(
    client: TritonDeploymentClient,
    name: str,
    registered: Callable[[str], str],
    repository: Path,
    tmp_path: Path,
) -> None:
    """As the reference README says: mlflow.log_artifact("config.pbtxt", "triton")."""
    config = (
        '# tuned by hand \xe9\nbackend: "onnxruntime"  max_batch_size: 7\n'
        'input { name: "x" data_type: TYPE_FP32 dims: 4 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" }\n'
    ).encode("latin-1") + models.ONE_INSTANCE.encode()
    (tmp_path / "config.pbtxt").write_bytes(config)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    model = registered("beside")
    with mlflow.start_run():
        log_onnx(scale_model(3), registered=model)
        mlflow.log_artifact(str(tmp_path / "config.pbtxt"), "triton")
        mlflow.log_artifact(str(tmp_path / "labels.txt"), "triton")
    client.create_deployment(name, f"models:/{model}/1")
    assert (repository / name / "config.pbtxt").read_bytes() == config
    assert (repository / name / "labels.txt").read_text() == "a\nb\nc\nd\n"
    assert factor(client, name) == 3


def test_a_directory_in_tritons_layout_is_served_as_it_is(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    uri = triton_artifact(tmp_path, python_source("x * 10"), python_source("x * 20"))
    made = client.create_deployment(name, uri)
    assert (made["state"], made["served_versions"]) == ("READY", [2])  # Triton's default: latest 1
    assert client.get_deployment(name) == made
    config = (tmp_path / "model" / "config.pbtxt").read_bytes()
    assert (repository / name / "config.pbtxt").read_bytes() == config
    assert sorted(path.name for path in (repository / name).iterdir() if path.is_dir()) == [
        "1",
        "2",
    ]
    assert client.predict(name, np.ones(3, np.float32))["outputs"]["y"].tolist() == [20, 20, 20]
    assert not list((repository / name).rglob("__pycache__"))


@over_both
def test_a_set_of_versions_is_replaced_as_a_set(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    """Replacing {1, 2} by {1} must not leave 2, which Triton would go on serving."""
    two = triton_artifact(tmp_path / "two", python_source("x * 10"), python_source("x * 20"))
    other = triton_artifact(tmp_path / "other", python_source("x * 30"), python_source("x * 40"))
    one = triton_artifact(tmp_path / "one", python_source("x * 50"))
    client.create_deployment(name, two)
    client.update_deployment(name, other)
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [40]
    assert sorted(client.get_deployment(name)["versions"]) == [1, 2]
    client.update_deployment(name, one)
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [50]
    assert not (repository / name / "_mlflow_triton").exists()


@over_both
def test_a_refused_model_leaves_no_trace_and_says_tritons_reason(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    uri = triton_artifact(tmp_path, "raise ImportError('no module named frobnicate')")
    with pytest.raises(MlflowException, match="no module named frobnicate") as raised:
        client.create_deployment(name, uri)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "\n" not in str(raised.value)
    assert not (repository / name).exists()


@over_both
def test_a_failed_update_changes_nothing(
    client: TritonDeploymentClient,
    name: str,
    tmp_path: Path,
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    client.create_deployment(name, triton_artifact(tmp_path / "good", python_source("x + 1")))
    before = snapshot(name)
    bad = triton_artifact(tmp_path / "bad", "raise ImportError('no module named frobnicate')")
    with pytest.raises(MlflowException, match="frobnicate"):
        client.update_deployment(name, bad)
    assert snapshot(name) == before
    assert client.get_deployment(name)["state"] == "READY"
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [2]


def test_create_refuses_a_name_that_is_deployed(
    client: TritonDeploymentClient, name: str, scales: str
) -> None:
    client.create_deployment(name, f"models:/{scales}/1")
    with pytest.raises(MlflowException, match="deployed already") as raised:
        client.create_deployment(name, f"models:/{scales}/2")
    assert raised.value.error_code == "RESOURCE_ALREADY_EXISTS"
    assert factor(client, name) == 1


@over_both
@pytest.mark.parametrize("command", ["update", "get", "predict"])
def test_a_missing_deployment_is_resource_does_not_exist(
    client: TritonDeploymentClient, name: str, scales: str, command: str
) -> None:
    call: dict[str, Callable[[], Any]] = {
        "update": lambda: client.update_deployment(name, f"models:/{scales}/1"),
        "get": lambda: client.get_deployment(name),
        "predict": lambda: client.predict(name, {"x": ROW}),
    }
    with pytest.raises(MlflowException) as raised:
        call[command]()
    assert raised.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def foreign_model(repository: Path, name: str) -> Path:
    return python_directory(repository / name, python_source("x * 7"))


def test_a_directory_that_is_not_ours_is_never_touched(
    client: TritonDeploymentClient,
    name: str,
    scales: str,
    repository: Path,
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    foreign = foreign_model(repository, name)
    before = snapshot(name)
    try:
        for attempt in (
            lambda: client.create_deployment(name, f"models:/{scales}/1"),
            lambda: client.update_deployment(name, f"models:/{scales}/1"),
            lambda: client.delete_deployment(name),
        ):
            with pytest.raises(MlflowException, match="not deployed by MLflow"):
                attempt()
        assert snapshot(name) == before
        assert name not in [each["name"] for each in client.list_deployments()]
    finally:
        shutil.rmtree(foreign)


def test_a_foreign_model_can_be_adopted(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    foreign_model(repository, name)
    uri = triton_artifact(tmp_path, python_source("x * 8"))
    made = client.create_deployment(name, uri, config={"on_conflict": "adopt"})
    assert sorted(made["versions"]) == [1, 2]
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [8]


def test_a_foreign_model_can_be_replaced(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    foreign_model(repository, name)
    (repository / name / "5").mkdir()
    shutil.copy(repository / name / "1" / "model.py", repository / name / "5")
    uri = triton_artifact(tmp_path, python_source("x * 9"))
    made = client.create_deployment(name, uri, config={"on_conflict": "replace"})
    assert sorted(made["versions"]) == made["served_versions"]
    assert len(made["versions"]) == 1
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [9]


def test_deleting_an_interrupted_adoption_leaves_the_foreign_model(
    client: TritonDeploymentClient,
    name: str,
    repository: Path,
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    foreign = foreign_model(repository, name)
    before = snapshot(name)
    config = (foreign / "config.pbtxt").read_bytes()
    journal = Journal("create", holder="me", new_versions=(2,), config_before=config)
    (foreign / "_mlflow_triton").mkdir()
    (foreign / "_mlflow_triton" / "journal.json").write_bytes(journal.to_bytes())
    (foreign / "2").mkdir()
    try:
        with pytest.raises(MlflowException, match="not deployed by MLflow"):
            client.delete_deployment(name)
        assert snapshot(name) == before
    finally:
        shutil.rmtree(foreign)


@over_both
def test_one_ready_model_that_is_not_ours_does_not_stand_in_the_way_of_list(
    client: TritonDeploymentClient, name: str, scales: str, repository: Path, triton: LocalTriton
) -> None:
    other = foreign_model(repository, f"{name}_foreign")
    server = next(iter(client._servers))
    try:
        server.load(other.name, None, 60)
        client.create_deployment(name, f"models:/{scales}/1")
        names = [each["name"] for each in client.list_deployments()]
        assert name in names
        assert other.name not in names
    finally:
        server.unload(other.name)
        shutil.rmtree(other)


def test_deployments_of_nvidias_plugin_are_recognised(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    foreign_model(repository, name)
    (repository / name / "mlflow-meta.json").write_text(
        json.dumps(
            {
                "name": name,
                "triton_model_path": str(repository / name),
                "mlflow_model_uri": "models:/old/1",
                "flavor": "triton",
            }
        )
    )
    assert client.get_deployment(name)["mlflow_model_uri"] == "models:/old/1"
    updated = client.update_deployment(
        name, triton_artifact(tmp_path, python_source("x * 6")), flavor="triton"
    )
    assert sorted(updated["versions"]) == [1, 2]
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [6]


def test_deleting_a_model_leaves_models_that_share_its_prefix(
    client: TritonDeploymentClient, name: str, scales: str
) -> None:
    longer = f"{name}_1"
    client.create_deployment(name, f"models:/{scales}/1")
    client.create_deployment(longer, f"models:/{scales}/2")
    client.delete_deployment(name)
    assert factor(client, longer) == 2
    client.delete_deployment(longer)


@pytest.mark.parametrize("command", ["create", "update", "delete", "list", "get", "predict"])
def test_endpoints_are_refused_clearly(client: TritonDeploymentClient, command: str) -> None:
    call: dict[str, Callable[[], Any]] = {
        "create": lambda: client.create_deployment("a", "models:/a/1", endpoint="e"),
        "update": lambda: client.update_deployment("a", "models:/a/1", endpoint="e"),
        "delete": lambda: client.delete_deployment("a", endpoint="e"),
        "list": lambda: client.list_deployments(endpoint="e"),
        "get": lambda: client.get_deployment("a", endpoint="e"),
        "predict": lambda: client.predict("a", {}, endpoint="e"),
    }
    with pytest.raises(MlflowException, match="endpoints are not supported") as raised:
        call[command]()
    assert raised.value.error_code == "NOT_IMPLEMENTED"


@over_both
def test_a_deployment_that_was_updated_elsewhere_is_still_predicted_right(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    """The remembered inputs of an older version are asked for anew when they no longer fit."""
    client.create_deployment(name, triton_artifact(tmp_path / "a", python_source("x + 1")))
    client.predict(name, {"x": np.ones(1, np.float32)})
    renamed = models.PYTHON_CONFIG.replace('"x"', '"z"') + models.ONE_INSTANCE
    source = python_source("x + 2").replace('request, "x"', 'request, "z"')
    other = get_deploy_client("triton")
    other.update_deployment(name, triton_artifact(tmp_path / "b", source, config=renamed))
    assert client.predict(name, {"z": np.ones(1, np.float32)})["outputs"]["y"].tolist() == [3]


def triton_artifact(directory: Path, *sources: str, config: str | None = None) -> str:
    """A logged model of flavor `triton`, as a path."""
    model = python_directory(
        directory / "model", *sources, config=config or models.PYTHON_CONFIG + models.ONE_INSTANCE
    )
    (directory / "MLmodel").write_text(
        json.dumps({"flavors": {"triton": {"data": model.name}}, "model_uuid": str(directory)})
    )
    return str(directory)


# -- MLflow's contract ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "create_deployment",
        "update_deployment",
        "delete_deployment",
        "list_deployments",
        "get_deployment",
        "predict",
    ],
)
def test_signatures_are_those_of_mlflows_base_class(method: str) -> None:
    def shape(owner: type) -> list[tuple[str, Any]]:
        parameters = inspect.signature(getattr(owner, method)).parameters.values()
        return [(each.name, each.default) for each in parameters]

    assert shape(plugin.TritonDeploymentClient) == shape(BaseDeploymentClient)


def test_the_plugin_module_shows_exactly_one_client_class() -> None:
    classes = [
        value
        for _, value in inspect.getmembers(plugin, inspect.isclass)
        if issubclass(value, BaseDeploymentClient) and value is not BaseDeploymentClient
    ]
    assert classes == [plugin.TritonDeploymentClient]
