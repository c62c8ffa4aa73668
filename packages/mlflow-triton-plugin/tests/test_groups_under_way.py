"""Several models as one while they change: requests, other commands, servers that die, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.deployments import get_deploy_client

from mlflow_triton_plugin.local import LocalTriton
from mlflow_triton_plugin.membership import Members
from mlflow_triton_plugin.server import TritonServers

from .groups import Pipelines, answer, asked_meanwhile
from .refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

CLIENTS = 3
SLOW = "import time\ntime.sleep(3)\n"


@pytest.mark.parametrize("names", ["own", "prefixed"])
def test_no_request_fails_or_is_answered_by_members_of_two_versions(
    client: TritonDeploymentClient, address: str, name: str, pipelines: Pipelines, names: str
) -> None:
    """Through updates, roll-backs and what is refused: 2 x 3 or 5 x 7, and never 2 x 7."""
    one, two = pipelines.make(2, 3), pipelines.make(5, 7)
    root = pipelines.root
    pipelines.make(11, 13)
    (root / pipelines.second / "1" / "model.py").write_text("raise ValueError('never')")
    client.create_deployment(name, one, config={"member_names": names})
    with asked_meanwhile(address, name, clients=CLIENTS) as seen:
        for uri in (two, one, two):
            client.update_deployment(name, uri)
            refused(
                lambda: client.update_deployment(name, pipelines.made[2]),
                "INVALID_PARAMETER_VALUE",
                "never",
            )
    assert set(seen) == {6, 35}
    assert min(seen.values()) > CLIENTS


def test_every_server_has_all_of_it_and_one_that_dies_keeps_none_from_going_on(
    triton: LocalTriton,
    repository: Path,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    first: Any = get_deploy_client(f"triton://{triton.grpc_url}")
    with LocalTriton(repository, extra_args=["--disable-auto-complete-config"]) as dying:
        second: Any = get_deploy_client(f"triton://{dying.grpc_url}")
        both: Any = get_deploy_client(f"triton://{triton.grpc_url},{dying.grpc_url}")
        both.create_deployment(name, pipelines.make(2, 3))
        assert answer(first, name) == answer(second, name) == 6
        assert both.update_deployment(name, pipelines.make(5, 3))["state"] == "READY"
        assert answer(first, name) == answer(second, name) == 15
        before = standing()
        root = pipelines.root
        pipelines.make(7, 3)
        source = root / pipelines.first / "1" / "model.py"
        source.write_text(SLOW + source.read_text())
        assert dying.pid is not None
        threading.Timer(1.5, os.kill, (dying.pid, signal.SIGKILL)).start()
        refused(lambda: both.update_deployment(name, pipelines.made[2]), "TEMPORARILY_UNAVAILABLE")
    assert standing() == before
    assert answer(first, name) == 15
    assert first.get_deployment(name)["state"] == "READY"
    assert first.verify_deployment(name) == []


@pytest.mark.parametrize("at", [1, 2, 3])
def test_ctrl_c_at_any_load_leaves_what_was_there(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    before = standing()
    uri = pipelines.make(5, 7)
    load, loaded = TritonServers.load, []

    def interrupted(self: TritonServers, model: str, **options: Any) -> Any:
        loaded.append(model)
        if len(loaded) == at:
            raise KeyboardInterrupt
        return load(self, model, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TritonServers, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.update_deployment(name, uri)
    assert {*loaded} <= {name, pipelines.first, pipelines.second}
    assert standing() == before
    assert answer(client, name) == 6
    client.update_deployment(name, uri)
    assert answer(client, name) == 35


def test_who_takes_a_members_name_meanwhile_keeps_it(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the plan and the deed; the second one leaves nothing."""
    uri = pipelines.make(2, 3)
    other = f"{name}_other"
    bring = Members.bring

    def overtaken(self: Members, *arguments: Any) -> None:
        monkeypatch.setattr(Members, "bring", bring)
        client.create_deployment(other, uri)
        taken.update(standing())
        bring(self, *arguments)

    taken: dict[str, bytes] = {}
    monkeypatch.setattr(Members, "bring", overtaken)
    try:
        refused(
            lambda: client.create_deployment(name, uri),
            "RESOURCE_CONFLICT",
            "was changed by somebody else just now; run the command again",
        )
        ours = {path for path in taken if path.startswith(f"{name}/")}
        assert standing() == {path: taken[path] for path in taken.keys() - ours}
        assert answer(client, other) == 6
    finally:
        client.delete_deployment(other)


def test_http_does_what_grpc_does(
    triton: LocalTriton, repository: Path, name: str, pipelines: Pipelines
) -> None:
    client: Any = get_deploy_client(f"triton://{triton.http_url}")
    client.create_deployment(name, pipelines.make(2, 3), config={"member_names": "prefixed"})
    assert answer(client, name) == 6
    client.update_deployment(name, pipelines.make(5, 3))
    assert answer(client, name) == 15
    client.delete_deployment(name)
    assert [path for path in repository.iterdir() if path.name.startswith(name)] == []


def test_a_pipeline_answers_its_example_before_anybody_else_can_ask_it(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    config = {"validate": True}
    expected = {"outputs": {"y": [6.0]}}
    good, bad = (pipelines.make(*factors) for factors in ((2, 3), (5, 3)))
    for number in range(2):
        folder = pipelines.folder / str(number)
        document = json.loads((folder / "MLmodel").read_text())
        info = {"artifact_path": "input_example.json", "type": "json_object"}
        (folder / "MLmodel").write_text(json.dumps(document | {"saved_input_example_info": info}))
        (folder / "input_example.json").write_text(json.dumps({"inputs": {"x": [1.0]}}))
        (folder / "output_example.json").write_text(json.dumps(expected))
    client.create_deployment(name, good, config=config)
    before = standing()
    refused(
        lambda: client.update_deployment(name, bad, config=config),
        "INVALID_PARAMETER_VALUE",
        "output y is 15",
    )
    assert standing() == before
    assert answer(client, name) == 6
