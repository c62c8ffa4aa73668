from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from publish_tools import load_model, log_model, save_model
from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError, UnsupportedFlavorError
from triton_repo.flavors import convert
from triton_repo.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_saved_model_has_the_flavor_the_signature_and_no_pyfunc(
    python_model: Path, tmp_path: Path
) -> None:
    save_model(python_model, tmp_path / "saved", metadata={"team": "vision"})
    model = Model.load(str(tmp_path / "saved"))
    assert list(model.flavors) == ["triton"]
    assert model.flavors["triton"]["data"] == "identity"
    assert model.flavors["triton"]["versions"] == [1]
    assert model.signature.inputs.input_names() == ["X"]
    assert model.signature.outputs.input_names() == ["Y"]
    assert model.metadata == {"team": "vision"}
    assert model.model_size_bytes == sum(
        path.stat().st_size for path in (tmp_path / "saved" / "identity").rglob("*.*")
    )


def test_a_saved_model_is_a_copy(python_model: Path, tmp_path: Path) -> None:
    """Links are for directories that are uploaded and thrown away."""
    (python_model / "1" / "model.py").chmod(0o755)
    save_model(python_model, tmp_path / "saved")
    saved = tmp_path / "saved" / "identity" / "1" / "model.py"
    assert not saved.is_symlink()
    assert saved.stat().st_mode & 0o111


def test_nothing_is_saved_over_something(python_model: Path, tmp_path: Path) -> None:
    with pytest.raises(MlflowException, match="not empty"):
        save_model(python_model, tmp_path)


def test_a_logged_model_comes_back_from_its_run_and_from_the_registry(
    registry: mlflow.MlflowClient, python_model: Path
) -> None:
    with mlflow.start_run() as run:
        info = log_model(python_model, "triton", registered_model_name="identity")
    assert str(info.registered_model_version) == "1"
    assert registry.get_registered_model("identity").name == "identity"
    for uri in (info.model_uri, f"runs:/{run.info.run_id}/triton", "models:/identity/1"):
        model = load_model(uri)
        assert model.path.name == "identity"
        assert model.directory.config is not None
        assert list(model.directory.versions) == [1]


def test_both_spellings_of_the_name_work_and_not_together(
    registry: mlflow.MlflowClient, python_model: Path
) -> None:
    with mlflow.start_run() as run:
        log_model(python_model, artifact_path="here")
        with pytest.raises(MlflowException, match="not both"):
            log_model(python_model, "a", artifact_path="b")
    assert load_model(f"runs:/{run.info.run_id}/here").directory.versions
    assert registry.get_run(run.info.run_id).info.status == "FINISHED"


def test_an_unfit_directory_makes_nothing_in_mlflow(
    nothing_made: Callable[[], bool], python_model: Path
) -> None:
    (python_model / "1" / "model.py").unlink()
    with pytest.raises(ArtifactError):
        log_model(python_model, registered_model_name="identity")
    assert nothing_made()


@pytest.mark.usefixtures("registry")
def test_an_ensemble_comes_back_with_its_empty_versions_on_disk(
    ensemble: Path, tmp_path: Path
) -> None:
    with mlflow.start_run():
        info = log_model(ensemble)
    model = load_model(info.model_uri, dst_path=tmp_path / "fetched")
    assert sorted(path.name for path in model.path.iterdir()) == ["1", "3", "config.pbtxt"]


def test_versions_that_the_store_lost_are_read_from_the_record(
    ensemble: Path, tmp_path: Path
) -> None:
    save_model(ensemble, tmp_path / "saved")
    for version in (1, 3):
        (tmp_path / "saved" / "both" / str(version)).rmdir()
    assert list(load_model(str(tmp_path / "saved")).directory.versions) == [1, 3]


def test_what_nvidias_script_published_can_be_loaded_and_deployed(
    ensemble: Path, tmp_path: Path
) -> None:
    """Its MLmodel says `data` and nothing else; an ensemble's directory may have got lost."""
    saved = tmp_path / "saved"
    save_model(ensemble, saved)
    theirs = Model()
    theirs.add_flavor("triton", data="both", triton_version="2.1")
    theirs.save(str(saved / "MLmodel"))
    for version in (1, 3):
        (saved / "both" / str(version)).rmdir()
    assert list(load_model(str(saved)).directory.versions) == [1]
    artifact = ModelArtifact.open(saved)
    entry = convert(artifact, flavor="triton", name=check_name("both"), version=4)
    assert list(entry.versions) == [4]


def test_a_model_of_another_flavor_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    model = Model()
    model.add_flavor("sklearn", data="x")
    model.save(str(tmp_path / "m" / "MLmodel"))
    with pytest.raises(UnsupportedFlavorError, match="sklearn"):
        load_model(str(tmp_path / "m"))


def test_loading_leaves_the_artifact_stores_own_directory_alone(
    ensemble: Path, tmp_path: Path
) -> None:
    """Without dst_path MLflow hands out the live directory of a local store."""
    save_model(ensemble, tmp_path / "saved")
    (tmp_path / "saved" / "both" / "3").rmdir()
    load_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "both" / "3").exists()
