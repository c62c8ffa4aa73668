"""Options that set fields of config.pbtxt: on the server, in the record, and at the next update."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import tritonclient.grpc

from mlflow_triton_plugin.cli import main
from triton_repo.config import ModelConfig

from .models import log_scale
from .refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.fixture(scope="module")
def scale(registered: Callable[[str], str]) -> str:
    name = registered("overridden")
    log_scale(name, 2.0, 3.0)
    return f"models:/{name}"


@pytest.fixture
def served(triton: LocalTriton, name: str) -> Callable[[], dict[str, Any]]:
    """The configuration that the server has."""

    def ask() -> dict[str, Any]:
        with tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client:
            config: dict[str, Any] = client.get_model_config(name, as_json=True)["config"]
            return config

    return ask


def on_disk(repository: Path, name: str) -> ModelConfig:
    return ModelConfig.read(repository / name / "config.pbtxt")


def test_they_are_set_and_stay_set(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    repository: Path,
    served: Callable[[], dict[str, Any]],
) -> None:
    options = {
        "max_batch_size": 8,
        "preferred_batch_size": [4, 8],
        "instance_count": "2",
        "instance_kind": "cpu",
        "parameters": {"THREADS": 2},
    }
    client.create_deployment(name, f"{scale}/1", config=options)
    for _ in range(2):  # the second time after an update that names none of them
        config = served()
        assert config["max_batch_size"] == 8
        assert config["dynamic_batching"]["preferred_batch_size"] == [4, 8]
        assert [group["count"] for group in config["instance_group"]] == [2]
        assert config["parameters"]["THREADS"] == {"string_value": "2"}
        assert on_disk(repository, name).max_batch_size == 8
        client.update_deployment(name, f"{scale}/2")
    assert client.get_deployment(name)["versions"][2]["overrides"]["max_batch_size"] == "8"
    client.update_deployment(name, config={"max_batch_size": "default"})
    assert served()["max_batch_size"] == 1024
    assert served()["dynamic_batching"]["preferred_batch_size"] == [4, 8]


def test_the_rate_limiter_is_told_what_an_instance_takes(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    served: Callable[[], dict[str, Any]],
) -> None:
    for resources in ("GPU_MEM=4,R2=1", {"GPU_MEM": 4, "R2": "1"}):
        client.create_deployment(
            name,
            f"{scale}/1",
            config={"rate_limiter_resources": resources, "rate_limiter_priority": "2"},
        )
        (group,) = served()["instance_group"]
        assert group["rate_limiter"] == {
            "resources": [{"name": "GPU_MEM", "count": 4}, {"name": "R2", "count": 1}],
            "priority": 2,
        }
        client.delete_deployment(name)


def test_another_value_copies_nothing(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    repository: Path,
    served: Callable[[], dict[str, Any]],
) -> None:
    client.create_deployment(name, f"{scale}/1")
    model = repository / name / "1" / "model.onnx"
    before = model.stat()
    client.update_deployment(name, config={"max_batch_size": 16})
    assert served()["max_batch_size"] == 16
    assert (model.stat().st_ino, model.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert client.get_deployment(name)["served_versions"] == [1]
    client.update_deployment(name, config={"max_batch_size": 32})
    assert served()["max_batch_size"] == 32


def test_a_version_returns_as_it_was(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    served: Callable[[], dict[str, Any]],
) -> None:
    client.create_deployment(name, f"{scale}/1", config={"max_batch_size": 8})
    client.update_deployment(name, f"{scale}/2", config={"max_batch_size": 16})
    client.update_deployment(name, f"{scale}/1")
    assert served()["max_batch_size"] == 8
    client.update_deployment(name, f"{scale}/2", config={"max_batch_size": 64})
    assert served()["max_batch_size"] == 64


def test_an_edit_in_the_repository_stays_beside_them(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    repository: Path,
    served: Callable[[], dict[str, Any]],
) -> None:
    client.create_deployment(name, f"{scale}/1", config={"max_batch_size": 8})
    path = repository / name / "config.pbtxt"
    tuned = path.read_text() + "# tuned\ninstance_group [{ count: 3 kind: KIND_CPU }]\n"
    path.write_text(tuned)
    client.update_deployment(name, f"{scale}/2", config={"max_queue_delay_microseconds": 50})
    config = served()
    assert [group["count"] for group in config["instance_group"]] == [3]
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == "50"
    assert "# tuned" in path.read_text()
    client.update_deployment(name, f"{scale}/2")
    assert "# tuned" in path.read_text()


def test_a_config_of_this_machine_takes_the_place_of_the_models(
    client: TritonDeploymentClient, name: str, scale: str, repository: Path, tmp_path: Path
) -> None:
    client.create_deployment(name, f"{scale}/1")
    generated = on_disk(repository, name).text
    mine = tmp_path / "mine.pbtxt"
    mine.write_text("# mine\n" + generated.replace("1024", "32"))
    client.update_deployment(name, config={"config": mine, "instance_count": 2})
    mine.unlink()
    client.update_deployment(name, f"{scale}/2")
    config = on_disk(repository, name)
    assert config.text.startswith("# mine\n")
    assert config.max_batch_size == 32
    assert "count: 2" in config.text


def test_a_value_that_the_server_refuses_changes_nothing(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    snapshot: Callable[[str], dict[str, bytes]],
    served: Callable[[], dict[str, Any]],
) -> None:
    client.create_deployment(name, f"{scale}/1")
    before = snapshot(name)
    refused(
        lambda: client.update_deployment(name, config={"preferred_batch_size": 4096}),
        "INVALID_PARAMETER_VALUE",
        "cannot make a configuration",
    )
    assert snapshot(name) == before
    assert served()["dynamic_batching"]["preferred_batch_size"] == [1024]  # Triton's own


def test_a_plan_shows_them(
    client: TritonDeploymentClient, name: str, scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.create_deployment(name, f"{scale}/1")
    assert main(["plan", name, "-C", "max_batch_size=8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert "-max_batch_size: 1024" in plan["config_diff"].splitlines()
    assert "+max_batch_size: 8" in plan["config_diff"].splitlines()
    assert plan["reuses"] == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_batch_size": "x"}, "-C max_batch_size is 'x'"),
        ({"max_batchsize": 8}, "did you mean max_batch_size?"),
        ({"dry_run": True}, "`mlflow-triton plan` shows what create would do"),
        ({"rate_limiter_resources": "R1"}, "-C rate_limiter_resources is ''"),
        ({"rate_limiter_resources": 4}, "such as R1=4,R2=1"),
        ({"config.max_batchsize": 8}, "did you mean max_batch_size?"),
        ({"config.name": '"x"'}, "set by deploying"),
        ({"config": "/no/such/file"}, "No such file"),
        ({"config.backend": '"python"'}, "which runs model.py, and version 1 of the model has"),
        ({"parameters": "x"}, "a dict belongs there"),
        ({"instance_kind": "tpu"}, "use auto, cpu, gpu, model"),
        ({"gpus": [0, -1]}, "-C gpus is -1"),
    ],
)
def test_what_is_no_field_or_no_value_is_refused(
    client: TritonDeploymentClient, scale: str, config: dict[str, Any], words: str
) -> None:
    refused(
        lambda: client.create_deployment("nothing", f"{scale}/1", config=config),
        "INVALID_PARAMETER_VALUE",
        words,
    )


def test_the_newer_of_two_options_that_contradict_each_other_wins(
    client: TritonDeploymentClient, name: str, scale: str, served: Callable[[], dict[str, Any]]
) -> None:
    client.create_deployment(name, f"{scale}/1", config={"join_requests": "true"})
    updated = client.update_deployment(name, config={"dynamic_batching": "false"})
    assert updated["requests"]["joined"] is False
    assert updated["versions"][1]["overrides"] == {"dynamic_batching": ""}
    assert "dynamic_batching" not in served()
    updated = client.update_deployment(name, config={"join_requests": "true"})
    assert updated["requests"]["joined"] is True
    assert updated["versions"][1]["overrides"] == {"join_requests": "true"}
    assert "dynamic_batching" in served()
