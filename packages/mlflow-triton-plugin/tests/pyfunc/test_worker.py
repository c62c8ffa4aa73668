"""The process of its own in which each instance of a model is: how it dies, and comes again."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from mlflow_triton_plugin.local import LocalTriton

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252
from ..servers import kill  # noqa: TID252
from ..waiting import wait_until  # noqa: TID252
from . import custom
from .conftest import PACKAGES
from .processes import stubs_of, workers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

ONE, DEADLY = (pd.DataFrame({"x": [value]}) for value in (1.0, -1.0))
SIGNATURE = infer_signature(ONE, ONE["x"])


def answer(client: TritonDeploymentClient, name: str) -> float:
    (value,) = client.predict(name, ONE)["outputs"].values()
    return float(value.reshape(-1)[0])


def answers(client: TritonDeploymentClient, name: str) -> bool:
    try:
        return answer(client, name) == 1.0
    except MlflowException:  # it is being started
        return False


def told(client: TritonDeploymentClient, name: str) -> str:
    try:
        answer(client, name)
    except MlflowException as exc:
        return str(exc)
    return ""


def regions(prefix: str) -> list[Path]:
    return [*Path("/dev/shm").glob(f"{prefix}*")]  # noqa: S108 - where shared memory is


@pytest.fixture(scope="module")
def deadly(deploy: Deploy) -> str:
    return deploy(custom.Dying(), signature=SIGNATURE)[0]


def test_a_model_that_ends_its_process_fails_that_request_and_is_there_again(
    pyfunc_client: TritonDeploymentClient, pyfunc_triton: LocalTriton, deadly: str
) -> None:
    (before,) = workers_of(pyfunc_triton, deadly)
    refused(
        lambda: pyfunc_client.predict(deadly, DEADLY),
        *("TEMPORARILY_UNAVAILABLE", deadly, "ended with exit code 1", "another one"),
    )
    described = pyfunc_client.get_deployment(deadly)
    assert described["state"] == "UNAVAILABLE"
    assert described["reason"].endswith("its process died, and another one is being started")
    refused(
        lambda: pyfunc_client.predict(deadly, ONE),
        *("TEMPORARILY_UNAVAILABLE", "ended with exit code 1"),
    )
    wait_until(lambda: answers(pyfunc_client, deadly), timeout_s=30)
    assert pyfunc_client.get_deployment(deadly)["state"] == "READY"
    (after,) = workers_of(pyfunc_triton, deadly)
    assert after.pid != before.pid
    assert len(stubs_of(pyfunc_triton, deadly)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_one_that_was_killed_while_nobody_asked_comes_again(
    pyfunc_client: TritonDeploymentClient,
    pyfunc_triton: LocalTriton,
    deadly: str,
    number: signal.Signals,
) -> None:
    wait_until(lambda: answers(pyfunc_client, deadly), timeout_s=30)
    (worker,) = workers_of(pyfunc_triton, deadly)
    worker.send_signal(number)
    psutil.wait_procs([worker], timeout=10)
    refused(
        lambda: pyfunc_client.predict(deadly, ONE),
        *("TEMPORARILY_UNAVAILABLE", f"was killed by {number.name}"),
    )
    wait_until(lambda: answers(pyfunc_client, deadly), timeout_s=30)


def test_one_that_does_not_start_again_says_why_and_does_not_keep_delete_waiting(
    pyfunc_client: TritonDeploymentClient,
    pyfunc_triton: LocalTriton,
    pyfunc_repository: Path,
    pyfunc_name: str,
) -> None:
    uri = log_pyfunc(custom.Echo(), signature=SIGNATURE).model_uri
    pyfunc_client.create_deployment(pyfunc_name, uri)
    model = pyfunc_repository / pyfunc_name / "1" / "mlflow"
    away = model.rename(model.with_name("away"))
    for worker in workers_of(pyfunc_triton, pyfunc_name):
        worker.kill()
    wait_until(lambda: "does not start: " in told(pyfunc_client, pyfunc_name), timeout_s=30)
    away.rename(model)
    wait_until(lambda: answers(pyfunc_client, pyfunc_name), timeout_s=30)
    for worker in workers_of(pyfunc_triton, pyfunc_name):
        worker.kill()
    pyfunc_client.delete_deployment(pyfunc_name, config={"load_timeout": 20})
    assert workers_of(pyfunc_triton, pyfunc_name) == []


@pytest.mark.parametrize("ended", [stubs_of, workers_of])
def test_nothing_is_left_of_a_server_that_was_killed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended: Callable[[LocalTriton, str], list[psutil.Process]],
) -> None:
    repository, folder = tmp_path / "repository", tmp_path / "tmp"
    repository.mkdir()
    folder.mkdir()
    monkeypatch.setenv("TRITON_MODEL_REPO", str(repository))
    uri = log_pyfunc(custom.Shouting(), signature=SIGNATURE).model_uri
    server = LocalTriton(
        repository,
        packages=PACKAGES,
        log_file=tmp_path / "log",
        env={"TMPDIR": str(folder)},
        extra_args=["--disable-auto-complete-config"],
    )
    with server:
        client: Any = get_deploy_client(f"triton://{server.grpc_url}")
        client.create_deployment("m", uri)
        assert answer(client, "m") == 1.0
        processes = [*stubs_of(server, "m"), *workers_of(server, "m")]
        assert len(processes) == 2
        # `mlflow_triton_<the server's>_<the region's>`
        prefix = processes[0].cmdline()[2].rpartition("_")[0]
        assert regions(prefix)
        for each in ended(server, "m"):
            each.kill()
        kill(server)
    gone, left = psutil.wait_procs(processes, timeout=10)
    assert (len(gone), left) == (2, [])
    assert regions(prefix) == []
    assert [*folder.iterdir()] == []
    # what the model prints is there by line, with its name
    assert "m: a line of the model" in (tmp_path / "log").read_text().splitlines()


def test_large_arrays_go_there_and_back(
    pyfunc_client: TritonDeploymentClient, deploy: Deploy
) -> None:
    given = np.random.default_rng(1).random((60_000, 30))
    name, _ = deploy(custom.Echo(), signature=infer_signature(given, given))
    for rows in (60_000, 3, 40_000):
        (found,) = pyfunc_client.predict(name, given[:rows])["outputs"].values()
        np.testing.assert_array_equal(found, given[:rows])
