"""A model whose process died: Triton goes on calling it READY, and this target does not."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil
import pytest
import tritonclient.grpc
from mlflow.deployments import get_deploy_client
from mlflow.models import infer_signature

from mlflow_triton_plugin.local import LocalTriton

from ..models import log_pyfunc, python_directory, python_source  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252
from . import custom
from .processes import stubs_of

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

ALIVE = pd.DataFrame({"x": [1.0]})
SIGNATURE = infer_signature(ALIVE, ALIVE["x"])


def kill(triton: LocalTriton, client: TritonDeploymentClient, name: str) -> str:
    """Kill the process in which Triton has the model; what the next request is told."""
    for stub in stubs_of(triton, name):
        workers = stub.children()
        stub.kill()
        _, left = psutil.wait_procs(workers, timeout=10)
        assert left == []
    return told(client, name)


def told(client: TritonDeploymentClient, name: str) -> str:
    return refused(lambda: client.predict(name, ALIVE), "INVALID_STATE", name, "process died")


def answer(client: TritonDeploymentClient, name: str) -> float:
    (value,) = client.predict(name, ALIVE)["outputs"].values()
    return float(value.reshape(-1)[0])


@pytest.fixture(scope="module")
def deadly(deploy: Deploy) -> tuple[str, str]:
    return deploy(custom.Echo(), signature=SIGNATURE)


@pytest.fixture
def dead(
    deadly: tuple[str, str], pyfunc_client: TritonDeploymentClient, pyfunc_triton: LocalTriton
) -> str:
    """A deployment whose process has died."""
    kill(pyfunc_triton, pyfunc_client, deadly[0])
    return deadly[0]


def test_get_and_list_do_not_call_it_ready(
    pyfunc_client: TritonDeploymentClient, dead: str
) -> None:
    (listed,) = (each for each in pyfunc_client.list_deployments() if each["name"] == dead)
    for each in (pyfunc_client.get_deployment(dead), listed):
        assert each["state"] == "UNAVAILABLE"
        assert "process died" in each["reason"]
        assert each["served_versions"] == []


def test_predict_names_the_command_that_starts_the_process_again(
    pyfunc_client: TritonDeploymentClient, dead: str
) -> None:
    message = told(pyfunc_client, dead)
    assert f"mlflow deployments update -t triton --name {dead}" in message
    pyfunc_client.update_deployment(dead)
    assert answer(pyfunc_client, dead) == 1.0


@pytest.mark.parametrize("stream", ["false", "true"])
def test_looking_does_not_ask_the_model_and_counts_as_no_failure(
    pyfunc_client: TritonDeploymentClient,
    pyfunc_triton: LocalTriton,
    pyfunc_name: str,
    tmp_path: Path,
    stream: str,
) -> None:
    notes, name = tmp_path / "notes", pyfunc_name
    info = log_pyfunc(custom.Noting(str(notes)), signature=SIGNATURE)
    pyfunc_client.create_deployment(name, info.model_uri, config={"stream": stream})
    for _ in range(2):  # Triton counts a request when the next one is answered, at the latest
        assert pyfunc_client.get_deployment(name)["state"] == "READY"
    triton = tritonclient.grpc.InferenceServerClient(pyfunc_triton.grpc_url)
    (counts,) = triton.get_inference_statistics(name).model_stats
    assert not notes.exists()
    assert counts.inference_stats.success.count >= 1
    assert counts.inference_stats.fail.count == 0


def test_delete_does_not_wait_for_it_and_its_name_is_free(
    pyfunc_client: TritonDeploymentClient,
    pyfunc_triton: LocalTriton,
    pyfunc_repository: Path,
    deadly: tuple[str, str],
) -> None:
    """And an update serves another model in its place, which is deleted as any."""
    name = f"m{uuid.uuid4().hex[:12]}"
    pyfunc_client.create_deployment(name, deadly[1])
    kill(pyfunc_triton, pyfunc_client, name)
    pyfunc_client.delete_deployment(name, config={"load_timeout": 20})
    assert not (pyfunc_repository / name).exists()
    pyfunc_client.create_deployment(name, deadly[1])
    assert answer(pyfunc_client, name) == 1.0
    kill(pyfunc_triton, pyfunc_client, name)
    other = log_pyfunc(custom.Echo(), signature=SIGNATURE).model_uri
    updated = pyfunc_client.update_deployment(name, other, config={"load_timeout": 60})
    assert updated["state"] == "READY"
    assert answer(pyfunc_client, name) == 1.0
    pyfunc_client.delete_deployment(name, config={"load_timeout": 20})
    assert not (pyfunc_repository / name).exists()


def test_a_model_that_is_not_asked_is_deleted_once_triton_was_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Python model of the user's own, only predict reports it."""
    repository, artifact = tmp_path / "repository", tmp_path / "artifact"
    repository.mkdir()
    python_directory(artifact / "model", python_source("__import__('os')._exit(1)"))
    (artifact / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    monkeypatch.setenv("TRITON_MODEL_REPO", str(repository))
    one = np.ones(1, np.float32)
    # Triton waits for the unload as it stops, 30 s by default
    options = ["--disable-auto-complete-config", "--exit-timeout-secs=1"]
    with LocalTriton(repository, extra_args=options) as server:
        client = get_deploy_client(f"triton://{server.grpc_url}")
        client.create_deployment("own", str(artifact))
        refused(lambda: client.predict("own", one), "INVALID_STATE", "own", "process died")
        refused(
            lambda: client.delete_deployment("own", config={"load_timeout": 2}),
            *("DEADLINE_EXCEEDED", "UNLOADING", "restart Triton"),
        )
    with LocalTriton(repository, extra_args=options) as server:
        get_deploy_client(f"triton://{server.grpc_url}").delete_deployment("own")
    assert not (repository / "own").exists()
