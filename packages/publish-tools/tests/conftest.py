from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before mlflow is imported: it looks for a network

import mlflow
import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# CI draws the same examples each time: a failure there belongs to the change under test.
settings.register_profile("publish-tools", derandomize=bool(os.environ.get("CI")))
settings.load_profile("publish-tools")

IDENTITY = """backend: "python"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_STRING dims: [ -1 ] } ]
"""
ENSEMBLE = """platform: "ensemble"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_STRING dims: [ -1 ] } ]
ensemble_scheduling { step [ {
  model_name: "identity" model_version: -1
  input_map { key: "X" value: "X" } output_map { key: "Y" value: "Y" }
} ] }
"""


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """`mlflow.set_tracking_uri` and its like write to the environment: take it back."""
    before = dict(os.environ)
    yield
    for name in {name for name in os.environ if name.startswith("MLFLOW_")} - before.keys():
        del os.environ[name]
    os.environ.update(before)
    mlflow.set_tracking_uri(before.get("MLFLOW_TRACKING_URI", ""))
    mlflow.set_registry_uri(before.get("MLFLOW_REGISTRY_URI", ""))
    for name in {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"} - before.keys():
        os.environ.pop(name, None)


@pytest.fixture
def closed_address() -> Iterator[str]:
    """An HTTP address where connections are refused."""
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever MLflow makes in the current directory is the test's own."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database; making its tables takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # MLflow 2 makes an `mlruns` where it stands
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def registry(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[mlflow.MlflowClient]:
    """A tracking server's worth of SQLite and files, chosen as MLflow's current one."""
    database = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    uri = f"sqlite:///{database}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("tests", (tmp_path / "artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    mlflow.set_tracking_uri(uri)
    yield client
    mlflow.end_run()


@pytest.fixture
def nothing_made(registry: mlflow.MlflowClient) -> Callable[[], bool]:
    """Says whether MLflow has no runs, no models and no registered models."""

    def check() -> bool:
        experiments = [experiment.experiment_id for experiment in registry.search_experiments()]
        found: list[Any] = [
            *registry.search_registered_models(),
            *registry.search_runs(experiments),
        ]
        if hasattr(registry, "search_logged_models"):
            found += registry.search_logged_models(experiments)
        return not found

    return check


@pytest.fixture
def python_model(tmp_path: Path) -> Path:
    """A model for the Python backend."""
    return write_model(tmp_path / "models" / "identity", IDENTITY, {"1/model.py": "# Python\n"})


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    """An ensemble whose versions 1 and 3 are empty directories."""
    root = write_model(tmp_path / "models" / "both", ENSEMBLE, {})
    (root / "1").mkdir()
    (root / "3").mkdir()
    return root


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """`Y = X @ W`, with W of 64 kB beside it: external data, as large models have it."""
    directory = tmp_path / "bare"
    directory.mkdir()
    return write_onnx(directory / "net.onnx", external="weights/w.bin")


def write_model(root: Path, config: str, files: dict[str, str]) -> Path:
    root.mkdir(parents=True)
    (root / "config.pbtxt").write_text(config)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def write_onnx(path: Path, *, external: str = "", rank: bool = True) -> Path:
    weights = numpy_helper.from_array(np.eye(128, dtype=np.float32), "W")
    shape: list[str | int | None] | None = ["batch", 128] if rank else None
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)],
        initializer=[weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if external:
        (path.parent / external).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)
    return path


@pytest.fixture
def make_onnx() -> Callable[..., Path]:
    """`write_onnx`, for tests that choose where."""
    return write_onnx


@pytest.fixture
def make_model() -> Callable[..., Path]:
    """`write_model`, for tests that choose what."""
    return write_model
