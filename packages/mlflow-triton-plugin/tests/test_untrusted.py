"""An artifact that somebody else spoilt is refused with one line, before anything is written."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from mlflow_triton_plugin.errors import SettingsError
from mlflow_triton_plugin.options import parse_options
from triton_repo.scan import Limits
from triton_repo.testing.tracking import TrackingServer

from .models import ONE_INSTANCE, PYTHON_CONFIG, python_directory, python_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    source = python_source("x + 1")
    python_directory(folder / "model", source, config=PYTHON_CONFIG + ONE_INSTANCE)
    (folder / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return folder


def refused(
    client: TritonDeploymentClient,
    repository: Path,
    uri: str,
    config: dict[str, Any] | None = None,
) -> str:
    """The line that it is refused with; the repository is as it was."""
    before = sorted(repository.rglob("*"))
    with pytest.raises(MlflowException) as raised:
        client.create_deployment("untrusted", uri, config=config)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE", str(raised.value)
    assert str(raised.value).isprintable()
    assert sorted(repository.rglob("*")) == before
    return str(raised.value)


def test_what_is_spoilt_on_a_local_disk_is_refused(
    client: TritonDeploymentClient, repository: Path, artifact: Path
) -> None:
    model = artifact / "model"
    (model / "a\nb").touch()
    assert "'a\\nb'" in refused(client, repository, str(artifact))
    (model / "a\nb").unlink()
    os.mkfifo(model / "1" / "weights")
    assert "neither a file nor a directory" in refused(client, repository, str(artifact))
    (model / "1" / "weights").unlink()
    (model / "1" / "weights").symlink_to("/etc/hostname")
    assert "leads out of the model" in refused(client, repository, str(artifact))
    (model / "1" / "weights").unlink()
    (artifact / "MLmodel").rename(artifact / "real")
    (artifact / "MLmodel").symlink_to("/dev/zero")
    assert "leads out of the model" in refused(client, repository, str(artifact))
    (artifact / "MLmodel").unlink()
    (artifact / "MLmodel").write_text('{"flavors": {"a\\u001b[2Jb": {}}}')
    assert "a\\x1b[2Jb" in refused(client, repository, str(artifact))


def test_limits_are_options(
    client: TritonDeploymentClient, repository: Path, artifact: Path, name: str
) -> None:
    with (artifact / "model" / "1" / "weights").open("wb") as file:
        file.truncate(5_000_000)
    said = refused(client, repository, str(artifact), {"max_size": "4MB"})
    assert "holds more than 4.0 MB; if that is right, raise max_size" in said
    said = refused(client, repository, str(artifact), {"max_files": "2"})
    assert "more than 2 files" in said
    enough = {"max_size": "6MB", "max_files": "10"}
    assert client.create_deployment(name, str(artifact), config=enough)["state"] == "READY"


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [("500MB", 5 * 10**8), ("1.5 gb", 15 * 10**8), ("7", 7), (7, 7), ("2T", 2 * 10**12), ("3B", 3)],
)
def test_a_size_may_have_a_unit(value: Any, size_bytes: int) -> None:
    options = parse_options({"max_size": value, "max_files": 9}, command="create")
    assert options.limits == Limits(files=9, size_bytes=size_bytes)


@pytest.mark.parametrize("value", ["", "0", "-1", "many", "1 XB", "1e9", True, None, "0.0001"])
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="-C max_size is"):
        parse_options({"max_size": value}, command="create")


# -- a tracking server that serves artifacts ------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tracking: str) -> Iterator[TrackingServer]:
    folder = tmp_path_factory.mktemp("tracking")
    database = folder / "mlflow.db"
    shutil.copy(tracking.removeprefix("sqlite:///"), database)
    destination = str(folder / "served")
    with TrackingServer(folder, database=database, artifacts_destination=destination) as server:
        yield server


@pytest.fixture
def run(served: TrackingServer, artifact: Path) -> Iterator[Callable[[], str]]:
    """Log the artifact as it is now, through the server; its URI."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(served.url)
    client = mlflow.MlflowClient()
    experiment = client.create_experiment(artifact.parent.name)

    def log() -> str:
        run_id = client.create_run(experiment).info.run_id
        client.log_artifacts(run_id, str(artifact), "model")
        return f"runs:/{run_id}/model"

    yield log
    mlflow.set_tracking_uri(before)


def test_what_is_too_large_is_refused_before_it_is_downloaded(
    client: TritonDeploymentClient,
    repository: Path,
    artifact: Path,
    run: Callable[[], str],
    served: TrackingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server's log has no GET of any file."""
    (artifact / "model" / "1" / "weights").write_bytes(b"x" * 5_000_000)
    uri = run()
    log = served.log.read_text()
    said = refused(client, repository, uri, {"max_size": "4MB"})
    assert "holds more than 4.0 MB" in said
    assert "more than 2 files" in refused(client, repository, uri, {"max_files": "2"})
    assert "/model/model/1/weights" not in served.log.read_text().removeprefix(log)


def test_a_name_that_misleads_is_refused_before_it_is_downloaded(
    client: TritonDeploymentClient, repository: Path, artifact: Path, run: Callable[[], str]
) -> None:
    (artifact / "model" / "a\u2215b").touch()
    assert "a\\u2215b" in refused(client, repository, run())


@pytest.mark.parametrize("listed_bytes", [None, -(10**9), 0])
def test_what_a_listing_hides_is_found_before_anything_is_placed(
    client: TritonDeploymentClient,
    repository: Path,
    artifact: Path,
    run: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    listed_bytes: int | None,
) -> None:
    """Not every artifact store says how large its files are, and one could lie."""
    listing: Callable[..., list[FileInfo]] = HttpArtifactRepository.list_artifacts

    def without_sizes(store: HttpArtifactRepository, path: str | None = None) -> list[FileInfo]:
        return [FileInfo(each.path, each.is_dir, listed_bytes) for each in listing(store, path)]

    (artifact / "model" / "1" / "weights").write_bytes(b"x" * 5_000_000)
    uri = run()
    monkeypatch.setattr(HttpArtifactRepository, "list_artifacts", without_sizes)
    said = refused(client, repository, uri, {"max_size": "4MB"})
    assert "holds more than 4.0 MB; if that is right, raise max_size" in said


# -- input examples -------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["input_example.json", "output_example.json"])
def test_an_example_without_an_end_is_not_read(
    client: TritonDeploymentClient, repository: Path, artifact: Path, which: str
) -> None:
    info = {"artifact_path": "input_example.json", "type": "ndarray"}
    document = {"flavors": {"triton": {"data": "model"}}, "saved_input_example_info": info}
    (artifact / "MLmodel").write_text(json.dumps(document))
    (artifact / "input_example.json").write_text('{"inputs": [[1]]}')
    with (artifact / which).open("wb") as file:
        file.truncate(10**11)
    said = refused(client, repository, str(artifact), {"validate": "true"})
    assert f"{which} is larger than 50.0 MB" in said
