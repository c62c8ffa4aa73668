from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest

from publish_tools import (
    Destination,
    FailedModel,
    LabelError,
    Labels,
    PublishedModel,
    RegistrationError,
    UploadError,
    load_model,
    publish_model,
    publish_repository,
)
from triton_repo.errors import InvalidNameError, MissingModelFileError, TritonRepoError

if TYPE_CHECKING:
    from collections.abc import Callable


def statuses(results: list[PublishedModel | FailedModel]) -> dict[str, str]:
    return {
        result.name: result.status if isinstance(result, PublishedModel) else "failed"
        for result in results
    }


def test_a_published_model_is_registered_with_its_labels(
    registry: mlflow.MlflowClient, python_model: Path
) -> None:
    labels = Labels(aliases=("champion", "x-1"), tags={"team": "vision"}, description="A *model*.")
    published = publish_model("identity", python_model, labels=labels)
    assert (published.status, published.uri) == ("published", "models:/identity/1")
    version = registry.get_model_version("identity", "1")
    assert version.tags["team"] == "vision"
    assert version.description == "A *model*."
    assert version.run_id == published.run_id
    for alias in labels.aliases:
        assert int(registry.get_model_version_by_alias("identity", alias).version) == 1
    assert load_model("models:/identity@champion").directory.versions


def test_the_run_is_finished_and_named_and_none_stays_active(
    registry: mlflow.MlflowClient, python_model: Path
) -> None:
    destination = Destination(experiment="elsewhere", run_name="mine")
    published = publish_model("identity", python_model, destination=destination)
    run = registry.get_run(published.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    found = registry.get_experiment_by_name("elsewhere")
    assert found is not None
    assert run.info.experiment_id == found.experiment_id
    assert mlflow.active_run() is None


@pytest.mark.usefixtures("registry")
def test_an_active_run_is_used_and_left_active(python_model: Path) -> None:
    with mlflow.start_run() as run:
        published = publish_model("identity", python_model)
        assert mlflow.active_run() is not None
    assert published.run_id == run.info.run_id


@pytest.mark.usefixtures("registry")
def test_publishing_again_makes_a_new_version_unless_asked_otherwise(python_model: Path) -> None:
    first = publish_model("identity", python_model)
    second = publish_model("identity", python_model)
    third = publish_model("identity", python_model, only_if_changed=True)
    assert (first.version, second.version, third.version) == (1, 2, 2)
    assert third.status == "unchanged"
    (python_model / "1" / "model.py").write_text("# changed\n")
    assert publish_model("identity", python_model, only_if_changed=True).version == 3


@pytest.mark.usefixtures("registry")
def test_going_back_to_older_content_is_a_change(python_model: Path) -> None:
    model = python_model / "1" / "model.py"
    for content, version in (("# a", 1), ("# b", 2), ("# a", 3)):
        model.write_text(content)
        assert publish_model("identity", python_model, only_if_changed=True).version == version


def test_an_unchanged_model_gets_the_labels_all_the_same(
    registry: mlflow.MlflowClient, python_model: Path
) -> None:
    publish_model("identity", python_model)
    labels = Labels(("champion",), {"a": "b"}, "text")
    publish_model("identity", python_model, labels=labels, only_if_changed=True)
    version = registry.get_model_version_by_alias("identity", "champion")
    assert (version.tags["a"], version.description) == ("b", "text")


def test_a_directory_that_is_not_fit_makes_nothing_in_mlflow(
    nothing_made: Callable[[], bool], python_model: Path
) -> None:
    (python_model / "1" / "model.py").unlink()
    with pytest.raises(MissingModelFileError):
        publish_model("identity", python_model)
    assert nothing_made()


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("a/b", Labels()),
        ("a:b", Labels()),
        ("", Labels()),
        ("..", Labels()),
        ("a\nb", Labels()),
        ("ok", Labels(aliases=("latest",))),
        ("ok", Labels(aliases=("v3",))),
        ("ok", Labels(aliases=("not this",))),
        ("ok", Labels(tags={"": "x"})),
        ("ok", Labels(tags={"k" * 300: "x"})),
    ],
)
def test_names_that_the_registry_would_refuse_make_nothing_in_mlflow(
    name: str, labels: Labels, nothing_made: Callable[[], bool], python_model: Path
) -> None:
    with pytest.raises(InvalidNameError):
        publish_model(name, python_model, labels=labels)
    assert nothing_made()


def test_a_dry_run_does_not_even_import_mlflow(python_model: Path) -> None:
    code = (
        "import sys, publish_tools; "
        f"p = publish_tools.publish_model('m', {str(python_model)!r}, dry_run=True); "
        "assert (p.status, p.version, p.uri) == ('planned', None, ''); "
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert not list(Path.cwd().iterdir())


def test_importing_the_package_is_free() -> None:
    code = (
        "import sys, publish_tools; "
        "heavy = {'mlflow', 'numpy', 'onnx', 'tritonclient', 'yaml'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_failed_upload_registers_nothing_and_names_the_failed_run(
    registry: mlflow.MlflowClient,
    python_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = registry.create_experiment("blocked", (tmp_path / "file" / "x").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", blocked)
    with pytest.raises(UploadError, match="nothing was registered") as caught:
        publish_model("identity", python_model)
    assert registry.get_run(caught.value.run_id).info.status == "FAILED"
    assert not registry.search_registered_models()


@pytest.mark.usefixtures("registry")
def test_a_failed_registration_says_where_the_uploaded_model_is(
    python_model: Path, closed_address: str
) -> None:
    mlflow.set_registry_uri(closed_address)
    with pytest.raises(RegistrationError) as caught:
        publish_model("identity", python_model)
    assert caught.value.model_uri in str(caught.value)
    mlflow.set_registry_uri("")
    assert int(mlflow.register_model(caught.value.model_uri, "identity").version) == 1


def test_a_registered_model_left_without_versions_is_mentioned(
    registry: mlflow.MlflowClient, python_model: Path
) -> None:
    with pytest.raises(RegistrationError, match="with no version so far"):
        publish_model("identity", python_model, labels=Labels(tags={"k": "v" * 200_000}))
    assert registry.get_registered_model("identity").latest_versions == []


@pytest.mark.usefixtures("registry")
def test_a_failed_label_says_that_the_version_is_there(python_model: Path) -> None:
    publish_model("identity", python_model)
    with pytest.raises(LabelError, match="is registered") as caught:
        publish_model(
            "identity",
            python_model,
            labels=Labels(tags={"k": "v" * 200_000}),
            only_if_changed=True,
        )
    assert caught.value.model_uri == "models:/identity/1"


@pytest.mark.usefixtures("registry")
def test_one_bad_model_does_not_stop_the_others(python_model: Path, ensemble: Path) -> None:
    repository = python_model.parent
    (repository / "bad" / "1").mkdir(parents=True)
    (repository / "bad" / "config.pbtxt").write_text("nonsense {")
    results = publish_repository(repository)
    assert statuses(results) == {"bad": "failed", "both": "published", "identity": "published"}
    assert isinstance(results[0], FailedModel)
    assert isinstance(results[0].error, TritonRepoError)
    assert load_model("models:/both/1").path.name == ensemble.name


@pytest.mark.usefixtures("registry")
def test_a_second_run_publishes_what_has_changed(python_model: Path, ensemble: Path) -> None:
    repository = python_model.parent
    publish_repository(repository)
    (ensemble / "7").mkdir()
    second = publish_repository(repository)
    assert statuses(second) == {"both": "published", "identity": "unchanged"}
    everything = publish_repository(repository, only_if_changed=False)
    assert statuses(everything) == {"both": "published", "identity": "published"}


def test_a_repositorys_link_to_elsewhere_is_refused(python_model: Path, tmp_path: Path) -> None:
    shutil.move(python_model, tmp_path / "elsewhere")
    python_model.symlink_to(tmp_path / "elsewhere")
    results = publish_repository(python_model.parent, dry_run=True)
    assert statuses(results) == {"identity": "failed"}


def test_a_model_whose_name_cannot_be_registered_fails_alone(python_model: Path) -> None:
    shutil.copytree(python_model, python_model.parent / "a:b")
    results = publish_repository(python_model.parent, dry_run=True)
    assert statuses(results) == {"a:b": "failed", "identity": "planned"}


@pytest.mark.usefixtures("registry")
def test_the_tracking_servers_password_is_not_told(
    python_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own message has the address in it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://user:hidden@127.0.0.1:1")
    with pytest.raises(UploadError) as raised:
        publish_model("identity", python_model, destination=Destination(experiment="elsewhere"))
    assert "http://***@127.0.0.1:1" in str(raised.value)
    assert "hidden" not in str(raised.value)
