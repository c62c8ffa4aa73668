"""What goes wrong gets one line, MLflow's error code, and leaves no trace."""

from __future__ import annotations

import functools
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from packaging.version import Version

from mlflow_triton_plugin.translate import ERROR_CODES
from triton_repo import errors as repo_errors
from triton_repo.journal import Journal
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace
from triton_repo.store import open_store

from .models import ONE_INSTANCE, PYTHON_CONFIG, log_scale, python_directory, python_source
from .refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.fixture(scope="module")
def scale(registered: Callable[[str], str]) -> str:
    name = registered("scale")
    log_scale(name, 1)
    return f"models:/{name}/1"


@pytest.fixture
def deployed(client: TritonDeploymentClient, name: str, tmp_path: Path) -> str:
    """A Python model, x FP32[-1] → y = x + 1."""
    client.create_deployment(name, artifact(tmp_path / "deployed", python_source("x + 1")))
    return name


def artifact(directory: Path, source: str, config: str = PYTHON_CONFIG + ONE_INSTANCE) -> str:
    python_directory(directory / "model", source, config=config)
    mlmodel(directory, {"triton": {"data": "model"}})
    return str(directory)


def mlmodel(directory: Path, flavors: dict[str, Any]) -> str:
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "MLmodel").write_text(json.dumps({"flavors": flavors}))
    return str(directory)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_down_is_named(
    environment: Callable[..., None], scale: str, repository: Path, scheme: str
) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    environment(TRITON_URL=url)
    client = get_deploy_client("triton")
    for call in (
        lambda: client.create_deployment("a", scale),
        lambda: client.predict("a", {}),
        client.list_deployments,
    ):
        refused(call, "TEMPORARILY_UNAVAILABLE", url, "TRITON_URL")
    assert not (repository / "a").exists()


def test_grpc_to_an_http_port_is_named(
    environment: Callable[..., None], triton: LocalTriton, scale: str
) -> None:
    environment(TRITON_URL=triton.http_url.removeprefix("http://"))
    client = get_deploy_client("triton")
    refused(
        lambda: client.create_deployment("a", scale), "TEMPORARILY_UNAVAILABLE", "HTTP, not gRPC"
    )


def test_http_to_a_grpc_port_is_named(
    environment: Callable[..., None], triton: LocalTriton, scale: str
) -> None:
    environment(TRITON_URL=f"http://{triton.grpc_url}")
    client = get_deploy_client("triton")
    refused(
        lambda: client.create_deployment("a", scale),
        "TEMPORARILY_UNAVAILABLE",
        "does not answer in HTTP",
        "grpc://",
    )


def test_an_unset_repository_is_named(
    client: TritonDeploymentClient, monkeypatch: pytest.MonkeyPatch, scale: str
) -> None:
    monkeypatch.delenv("TRITON_MODEL_REPO")
    other = get_deploy_client("triton")
    words = ("TRITON_MODEL_REPO is not set", "--model-repository")
    refused(lambda: other.create_deployment("a", scale), "INVALID_PARAMETER_VALUE", *words)


def test_a_repository_that_does_not_exist_is_not_made(
    environment: Callable[..., None], triton: LocalTriton, scale: str, tmp_path: Path
) -> None:
    environment(TRITON_URL=triton.grpc_url, TRITON_MODEL_REPO=str(tmp_path / "typo"))
    client = get_deploy_client("triton")
    refused(lambda: client.create_deployment("a", scale), "PERMISSION_DENIED", "does not exist")
    assert not (tmp_path / "typo").exists()


def test_a_repository_that_the_server_does_not_read_is_named_and_its_model_left_alone(
    environment: Callable[..., None], deployed: str, scale: str, tmp_path: Path
) -> None:
    """The server serves a model of this name from its own repository."""
    (tmp_path / "other").mkdir()
    environment(TRITON_MODEL_REPO=str(tmp_path / "other"))
    client = get_deploy_client("triton")
    words = ("TRITON_MODEL_REPO is not the directory that this server reads",)
    refused(lambda: client.create_deployment(deployed, scale), "RESOURCE_ALREADY_EXISTS", *words)
    client.delete_deployment(deployed)
    y = client.predict(deployed, np.ones(1, np.float32))["outputs"]["y"]
    assert y.tolist() == [2]
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("address", ["gs://bucket/models", "hdfs://host/x", "ftp://host/x"])
def test_a_repository_of_an_unknown_kind_is_refused_and_no_folder_made(
    environment: Callable[..., None],
    triton: LocalTriton,
    scale: str,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The existing plugin makes local folders named `gs:` and `s3:`."""
    monkeypatch.chdir(tmp_path)
    environment(TRITON_URL=triton.grpc_url, TRITON_MODEL_REPO=address)
    client = get_deploy_client("triton")
    refused(lambda: client.create_deployment("a", scale), "INVALID_PARAMETER_VALUE", "://")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_nothing_behind(
    environment: Callable[..., None], triton: LocalTriton, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    assert os.system(f"mount -t tmpfs -o size=256k none {small}") == 0  # noqa: S605
    try:
        directory = tmp_path / "big"
        uri = artifact(directory, python_source("x"))
        (directory / "model" / "1" / "weights.bin").write_bytes(bytes(1_000_000))
        environment(TRITON_URL=triton.grpc_url, TRITON_MODEL_REPO=str(small))
        client = get_deploy_client("triton")
        refused(
            lambda: client.create_deployment("a", uri),
            "TEMPORARILY_UNAVAILABLE",
            "No space left",
            "make room",
        )
        assert not list(small.iterdir())
    finally:
        assert os.system(f"umount {small}") == 0  # noqa: S605


@pytest.mark.parametrize(
    "uri", ["models:/no-such-model/1", "models:/no-such-model/latest", "models:/no-such@champion"]
)
def test_an_unknown_model_is_resource_does_not_exist(
    client: TritonDeploymentClient, name: str, uri: str, repository: Path
) -> None:
    with_alias = "@" in uri and Version(mlflow.__version__).major < 3  # MLflow 2's own code
    code = "INVALID_PARAMETER_VALUE" if with_alias else "RESOURCE_DOES_NOT_EXIST"
    refused(lambda: client.create_deployment(name, uri), code)
    assert not (repository / name).exists()


@pytest.mark.parametrize("bad", [".", "..", "a/b", "a\\b", "a\nb", "%2e%2e", "", "/etc", "a b"])
def test_a_bad_name_is_refused_by_every_command(
    client: TritonDeploymentClient, scale: str, bad: str, repository: Path
) -> None:
    """A model named `.` emptied the whole repository."""
    before = sorted(repository.iterdir())
    for call in (
        lambda: client.create_deployment(bad, scale),
        lambda: client.update_deployment(bad, scale),
        lambda: client.delete_deployment(bad),
        lambda: client.get_deployment(bad),
        lambda: client.predict(bad, {}),
    ):
        refused(call, "INVALID_PARAMETER_VALUE", "cannot name a deployment")
    assert sorted(repository.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"{", "not YAML"),
        (b"[]", "not a mapping"),
        (b"flavors:\n", "no flavors"),
        (b"\xff\xfe\x00", "not YAML"),
        (None, "no MLmodel"),
    ],
)
def test_a_corrupt_mlmodel_is_named(
    client: TritonDeploymentClient, name: str, tmp_path: Path, content: bytes | None, word: str
) -> None:
    if content is not None:
        (tmp_path / "MLmodel").write_bytes(content)
    code = "INVALID_PARAMETER_VALUE" if content is not None else "RESOURCE_DOES_NOT_EXIST"
    refused(lambda: client.create_deployment(name, str(tmp_path)), code, word)


@pytest.mark.parametrize("data", ["/etc/hostname", "../secret", "model/../../secret", ""])
def test_files_outside_the_model_never_reach_the_repository(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path, data: str
) -> None:
    (tmp_path / "secret").write_text("s")
    for flavor in ("onnx", "triton"):
        uri = mlmodel(tmp_path / "model", {flavor: {"data": data}})
        create = functools.partial(client.create_deployment, name, uri)
        refused(create, "INVALID_PARAMETER_VALUE")
    assert not (repository / name).exists()


def test_a_corrupt_config_is_named_with_its_line(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    uri = artifact(tmp_path, python_source("x"), config='backend: "python"\ninputs [ ]\n')
    refused(
        lambda: client.create_deployment(name, uri),
        "INVALID_PARAMETER_VALUE",
        "config.pbtxt",
        "2:1",
        "inputs",
    )


def test_an_unknown_flavor_names_those_that_are_served(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    uri = mlmodel(tmp_path, {"sklearn": {}})
    for flavor in (None, "sklearn", "onnx"):
        create = functools.partial(client.create_deployment, name, uri, flavor=flavor)
        refused(create, "INVALID_PARAMETER_VALUE", "triton, onnx")


def test_an_unknown_option_is_refused_with_the_nearest_known_one(
    client: TritonDeploymentClient, name: str, scale: str
) -> None:
    refused(
        lambda: client.create_deployment(name, scale, config={"keep_version": "1"}),
        "INVALID_PARAMETER_VALUE",
        "-C keep_version",
        "did you mean keep_versions?",
    )


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"z": [1.0]}, ("z", "x")),
        ({"x": [[1.0]]}, ("x", "shape")),
        ({"x": ["a"]}, ("x", "'a'")),
        ({}, ("x",)),
        (None, ()),
    ],
)
def test_inputs_that_do_not_fit_are_refused_naming_the_input(
    client: TritonDeploymentClient, deployed: str, inputs: Any, words: tuple[str, ...]
) -> None:
    refused(lambda: client.predict(deployed, inputs), "INVALID_PARAMETER_VALUE", *words)


def test_an_error_of_the_model_is_a_bad_request_with_its_message(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    client.create_deployment(name, artifact(tmp_path, python_source("1 / 0 * x")))
    refused(lambda: client.predict(name, np.ones(1, np.float32)), "BAD_REQUEST", "division by zero")


def test_a_load_slower_than_its_deadline_says_so_and_leaves_nothing(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    uri = artifact(tmp_path, "import time\ntime.sleep(2)\n" + python_source("x"))
    refused(
        lambda: client.create_deployment(name, uri, config={"load_timeout": "1"}),
        "DEADLINE_EXCEEDED",
        "1 s",
        "load_timeout",
    )
    assert not (repository / name).exists()
    client.create_deployment(name, uri)
    assert client.get_deployment(name)["state"] == "READY"


def test_a_lock_names_its_holder(
    client: TritonDeploymentClient, name: str, scale: str, repository: Path
) -> None:
    with ModelPlace(open_store(str(repository)), check_name(name)).lock("ann@host (process 7)"):
        refused(
            lambda: client.create_deployment(name, scale),
            "RESOURCE_CONFLICT",
            "ann@host (process 7)",
            "since",
        )


def test_a_damaged_record_does_not_stand_in_the_way(
    client: TritonDeploymentClient, deployed: str, repository: Path, tmp_path: Path
) -> None:
    (repository / deployed / "mlflow-meta.json").write_text("{'name': None")
    (described,) = [each for each in client.list_deployments() if each["name"] == deployed]
    assert "not JSON" in described["reason"]
    uri = artifact(tmp_path / "next", python_source("x + 5"))
    assert client.update_deployment(deployed, uri)["state"] == "READY"


def test_an_interrupted_create_is_listed_and_finished_by_the_same_command(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    """What a killed create leaves: a journal and a staging directory."""
    (repository / name / "_mlflow_triton").mkdir(parents=True)
    journal = Journal("create", holder="me", created=True, new_versions=(1,))
    (repository / name / "_mlflow_triton" / "journal.json").write_bytes(journal.to_bytes())
    (repository / name / "_mlflow_triton_tmp-1").mkdir()
    assert client.get_deployment(name)["state"] == "INTERRUPTED"
    client.create_deployment(name, artifact(tmp_path, python_source("x")))
    assert client.get_deployment(name)["state"] == "READY"
    assert not list((repository / name).glob("_mlflow_triton*"))


@pytest.mark.parametrize("command", ["update", "create", "delete"])
def test_a_deployment_whose_server_restarted_can_be(
    client: TritonDeploymentClient, deployed: str, tmp_path: Path, command: str
) -> None:
    """updated, re-created and deleted."""
    client._servers.unload(deployed, timeout_s=30)
    assert client.get_deployment(deployed)["state"] == "NOT_LOADED"
    uri = artifact(tmp_path / "next", python_source("x + 9"))
    call: dict[str, Callable[[], Any]] = {
        "update": lambda: client.update_deployment(deployed),
        "create": lambda: client.create_deployment(deployed, uri),
        "delete": lambda: client.delete_deployment(deployed),
    }
    call[command]()
    names = [each["name"] for each in client.list_deployments()]
    assert (deployed in names) == (command != "delete")


def test_create_does_not_put_another_model_in_the_place_of_one_that_is_not_loaded(
    client: TritonDeploymentClient, name: str, scale: str, registered: Callable[[str], str]
) -> None:
    other = registered("other")
    log_scale(other, 7)
    client.create_deployment(name, scale)
    client._servers.unload(name, timeout_s=30)
    refused(
        lambda: client.create_deployment(name, f"models:/{other}/1"),
        "RESOURCE_ALREADY_EXISTS",
        "no server has it loaded",
    )
    client.create_deployment(name, scale)
    y = client.predict(name, {"x": np.ones((1, 4), np.float32)})["outputs"]["y"]
    assert y.tolist() == [[1, 1, 1, 1]]


def test_every_error_of_the_repository_has_a_code() -> None:
    def below(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    kinds = tuple(kind for kind, _ in ERROR_CODES)
    assert all(issubclass(each, kinds) for each in below(repo_errors.TritonRepoError))


def test_no_stray_files_are_left_at_the_root(repository: Path) -> None:
    """Locks and temporary files of every test above are gone."""
    assert [path.name for path in repository.iterdir() if path.name.startswith(".")] == []
