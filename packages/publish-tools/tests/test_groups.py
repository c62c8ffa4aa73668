"""Several models that are deployed as one are published as one."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from publish_tools import load_model, plan_model, publish_model, save_model
from publish_tools.cli import main
from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError, ConfigError
from triton_repo.flavors import convert
from triton_repo.names import check_name

if TYPE_CHECKING:
    from pathlib import Path

    import mlflow

    from publish_tools import ModelPlan


@pytest.fixture
def models(python_model: Path, ensemble: Path) -> Path:
    """A directory of an ensemble, `both`, and what it is made of, `identity`."""
    assert python_model.parent == ensemble.parent
    shutil.rmtree(ensemble / "3")
    return ensemble.parent


def names(plan: ModelPlan) -> list[str]:
    return sorted(str(file.path) for file in plan.tree.files)


def test_a_directory_of_models_is_planned_as_one(models: Path) -> None:
    plan = plan_model(models)
    assert plan.flavor == "triton"
    assert plan.models == ("identity", "both")
    assert plan.settings == {
        "data": "models",
        "main_model": "both",
        "versions": {"both": [1], "identity": [1]},
    }
    assert names(plan) == [
        "models/both/config.pbtxt",
        "models/identity/1/model.py",
        "models/identity/config.pbtxt",
    ]
    assert [str(path) for path in plan.tree.empty_directories] == ["models/both/1"]


def test_clients_see_the_main_models_tensors(models: Path) -> None:
    config = models / "identity" / "config.pbtxt"
    config.write_text(config.read_text().replace('"Y"', '"Z"'))
    assert [spec.name for spec in plan_model(models).tensors.outputs] == ["Y"]


def test_the_main_model_can_be_named_and_has_to_be_one(models: Path, python_model: Path) -> None:
    other = shutil.copytree(python_model, models / "other")
    with pytest.raises(ArtifactError, match="2 models that no other needs: both, other"):
        plan_model(models)
    plan = plan_model(models, main_model="other")
    assert plan.settings["main_model"] == "other"
    with pytest.raises(ArtifactError, match="is one model; main_model chooses among several"):
        plan_model(other, main_model="other")


def test_an_ensemble_without_its_members_is_refused_here(models: Path) -> None:
    (models / "identity").rename(models / "identity_2")
    with pytest.raises(ConfigError, match="names model 'identity', and there is both, identity_2"):
        plan_model(models)


def test_what_is_saved_is_read_back_by_who_deploys_it(models: Path, tmp_path: Path) -> None:
    """An artifact store that loses empty directories does no harm."""
    saved = tmp_path / "saved"
    save_model(models, saved)
    shutil.rmtree(saved / "models" / "both" / "1")
    flavor = yaml.safe_load((saved / "MLmodel").read_text())["flavors"]["triton"]
    assert flavor["main_model"] == "both"
    entry = convert(
        ModelArtifact.open(saved), flavor="triton", name=check_name("pipeline"), version=7
    )
    assert list(entry.versions) == [7]
    assert list(entry.members) == ["identity"]
    assert list(entry.members["identity"].versions) == [7]


@pytest.mark.usefixtures("registry")
def test_a_published_group_comes_back_whole(models: Path, tmp_path: Path) -> None:
    published = publish_model("pipeline", models)
    assert published.uri == "models:/pipeline/1"
    shutil.rmtree(models)
    model = load_model(published.uri, tmp_path / "fetched")
    assert model.path.name == "models"
    assert model.directory.root.name == "both"
    assert model.group is not None
    assert list(model.group.models) == ["identity", "both"]
    assert (model.path / "both" / "1").is_dir()
    assert (model.path / "identity" / "1" / "model.py").is_file()


def test_the_command_says_which_models(
    registry: mlflow.MlflowClient, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model_directory", str(models), "--model_name", "pipeline"]) == 0
    printed, said = capsys.readouterr()
    assert "published (triton, models identity both, version 1, 3 files" in printed
    assert "warning" not in said
    assert len(registry.search_model_versions("name = 'pipeline'")) == 1
    arguments = ["--model_directory", str(models), "--main_model", "both", "--dry_run", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["identity", "both"]


@pytest.mark.parametrize(
    "arguments",
    [["--model_repository", "x"], ["--model_directory", "x", "--model_repository", "x"]],
)
def test_a_main_model_is_for_one_directory(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--main_model", "both"])
    assert ended.value.code == 2
    assert "--model_directory" in capsys.readouterr().err
