"""Several servers on one model repository: a deployment is loaded by each of them."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.local import LocalTriton

from .models import ONE_INSTANCE, PYTHON_CONFIG, python_directory, python_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def second(repository: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository) as server:
        yield server


def artifact(directory: Path, source: str) -> str:
    python_directory(directory / "model", source, config=PYTHON_CONFIG + ONE_INSTANCE)
    (directory / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return str(directory)


def test_every_server_loads_updates_and_unloads(
    triton: LocalTriton, second: LocalTriton, name: str, tmp_path: Path
) -> None:
    both = get_deploy_client(f"triton://{triton.grpc_url},{second.grpc_url}")
    alone = [get_deploy_client(f"triton://{each.grpc_url}") for each in (triton, second)]
    one = np.ones(1, np.float32)
    both.create_deployment(name, artifact(tmp_path / "a", python_source("x + 1")))
    assert [each.predict(name, one)["outputs"]["y"].tolist() for each in alone] == [[2], [2]]
    updated = both.update_deployment(name, artifact(tmp_path / "b", python_source("x + 2")))
    assert updated["state"] == "READY"
    assert [each.predict(name, one)["outputs"]["y"].tolist() for each in alone] == [[3], [3]]
    alone[1]._servers.unload(name, timeout_s=30)
    assert both.get_deployment(name)["state"] == "PARTLY_READY"
    both.delete_deployment(name)
    for each in alone:
        with pytest.raises(MlflowException, match=name):
            each.predict(name, one)


def test_one_server_that_refuses_puts_all_of_them_back(
    triton: LocalTriton, second: LocalTriton, name: str, tmp_path: Path
) -> None:
    """The model loads in one server only: the other's process id is not the one it wants."""
    both = get_deploy_client(f"triton://{triton.grpc_url},{second.grpc_url}")
    both.create_deployment(name, artifact(tmp_path / "a", python_source("x + 1")))
    picky = (
        "import pathlib, os\n"
        "def server_of(pid):\n"
        "    while pid > 1:\n"
        f"        if pid == {triton.pid}:\n"
        "            return True\n"
        "        pid = int(pathlib.Path(f'/proc/{pid}/stat').read_text().split()[3])\n"
        "if not server_of(os.getpid()):\n"
        "    raise ImportError('only the first server will do')\n"
    ) + python_source("x + 2")
    with pytest.raises(MlflowException, match="only the first server will do"):
        both.update_deployment(name, artifact(tmp_path / "b", picky))
    assert both.get_deployment(name)["served_versions"] == [1]
    for each in (triton, second):
        client = get_deploy_client(f"triton://{each.grpc_url}")
        assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [2]


def test_a_request_goes_to_the_next_server_when_the_first_is_down(
    triton: LocalTriton, name: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        down = f"127.0.0.1:{probe.getsockname()[1]}"
    up = get_deploy_client(f"triton://{triton.grpc_url}")
    up.create_deployment(name, artifact(tmp_path, python_source("x + 1")))
    client = get_deploy_client(f"triton://{down},{triton.grpc_url}")
    assert client.predict(name, np.ones(1, np.float32))["outputs"]["y"].tolist() == [2]


def test_a_server_that_dies_in_an_update_does_not_keep_the_others_from_being_put_back(
    triton: LocalTriton, repository: Path, name: str, tmp_path: Path
) -> None:
    slow = "import time\n" + python_source("x + 2").replace(
        "class TritonPythonModel:",
        "class TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(3)\n",
    )
    one = np.ones(1, np.float32)
    first = get_deploy_client(f"triton://{triton.grpc_url}")
    with LocalTriton(repository, extra_args=["--disable-auto-complete-config"]) as dying:
        both = get_deploy_client(f"triton://{triton.grpc_url},{dying.grpc_url}")
        both.create_deployment(name, artifact(tmp_path / "a", python_source("x + 1")))
        assert dying.pid is not None
        threading.Timer(1.5, os.kill, (dying.pid, signal.SIGKILL)).start()
        with pytest.raises(MlflowException) as raised:
            both.update_deployment(name, artifact(tmp_path / "b", slow))
    assert raised.value.error_code == "TEMPORARILY_UNAVAILABLE"
    assert first.predict(name, one)["outputs"]["y"].tolist() == [2]
    assert first.get_deployment(name)["state"] == "READY"
    assert first.verify_deployment(name) == []
