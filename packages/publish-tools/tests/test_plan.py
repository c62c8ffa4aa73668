from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from publish_tools import plan_model, plan_repository
from publish_tools.plan import content_digest
from triton_repo.errors import (
    ArtifactError,
    ConfigError,
    MissingModelFileError,
    UnsupportedFlavorError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from publish_tools import ModelPlan


def names(plan: ModelPlan) -> list[str]:
    return sorted(str(file.path) for file in plan.tree.files)


def test_a_directory_is_planned_under_its_own_name(python_model: Path) -> None:
    plan = plan_model(python_model)
    assert plan.flavor == "triton"
    assert plan.settings == {"data": "identity", "versions": [1]}
    assert names(plan) == ["identity/1/model.py", "identity/config.pbtxt"]


def test_files_beside_the_versions_and_in_folders_go_along(python_model: Path) -> None:
    for name in ("labels.txt", "1/folder/deep/w.bin", "7/model.py"):
        (python_model / name).parent.mkdir(parents=True, exist_ok=True)
        (python_model / name).write_text("x")
    plan = plan_model(python_model)
    assert plan.versions == (1, 7)
    assert {"identity/labels.txt", "identity/1/folder/deep/w.bin"} <= set(names(plan))


def test_a_model_file_that_is_no_onnx_model_is_refused_whatever_the_config_says(
    tmp_path: Path,
) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "model.onnx").write_bytes(b"hello")
    (tmp_path / "net" / "config.pbtxt").write_text(
        'backend: "onnxruntime"\n'
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
    )
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        plan_model(tmp_path / "net")


def test_bookkeeping_and_litter_stay_behind(python_model: Path) -> None:
    """What a deployment writes beside a model, and Python's caches, are no part of it."""
    for name in ("mlflow-meta.json", ".staging-2/x", "1/__pycache__/model.pyc"):
        (python_model / name).parent.mkdir(parents=True, exist_ok=True)
        (python_model / name).write_text("{}")
    assert names(plan_model(python_model)) == ["identity/1/model.py", "identity/config.pbtxt"]


def test_an_ensembles_empty_versions_are_planned_and_recorded(ensemble: Path) -> None:
    plan = plan_model(ensemble)
    assert [str(path) for path in plan.tree.empty_directories] == ["both/1", "both/3"]
    assert plan.settings["versions"] == [1, 3]


def test_a_directory_whose_name_mlflow_needs_gets_another(
    tmp_path: Path, python_model: Path
) -> None:
    for name in ("MLmodel", "spaces and ünicode"):
        copy = shutil.copytree(python_model, tmp_path / name)
        assert plan_model(copy).settings["data"] == "model"


def test_a_directory_without_versions_is_refused(python_model: Path) -> None:
    shutil.rmtree(python_model / "1")
    with pytest.raises(ArtifactError, match="no version directory"):
        plan_model(python_model)


def test_a_config_that_does_not_parse_is_refused(python_model: Path) -> None:
    (python_model / "config.pbtxt").write_text("input [ {")
    with pytest.raises(ConfigError, match=r"config\.pbtxt"):
        plan_model(python_model)


def test_a_file_that_the_config_names_must_exist(python_model: Path) -> None:
    config = python_model / "config.pbtxt"
    config.write_text(config.read_text().replace("[ -1 ]", '[ -1 ] label_filename: "labels.txt"'))
    with pytest.raises(MissingModelFileError, match=r"labels\.txt"):
        plan_model(python_model)


@pytest.mark.parametrize("name", ["1/weights.bin", "labels.txt", "config.pbtxt"])
def test_a_link_that_leaves_the_directory_is_refused(
    name: str, python_model: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text((python_model / "config.pbtxt").read_text())
    (python_model / name).unlink(missing_ok=True)
    (python_model / name).symlink_to(outside)
    with pytest.raises(ArtifactError, match="leads out"):
        plan_model(python_model)


def test_a_link_inside_the_directory_is_published_as_what_it_leads_to(python_model: Path) -> None:
    (python_model / "2").mkdir()
    (python_model / "2" / "model.py").symlink_to("../1/model.py")
    plan = plan_model(python_model)
    linked = next(file for file in plan.tree.files if str(file.path) == "identity/2/model.py")
    assert linked.source.read_text() == "# Python\n"


def test_an_unknown_flavor_names_the_known_ones(python_model: Path) -> None:
    with pytest.raises(UnsupportedFlavorError, match="triton, onnx") as caught:
        plan_model(python_model, "sklearn")
    assert caught.value.supported == ("triton", "onnx")


def test_an_onnx_file_brings_its_external_data(onnx_file: Path) -> None:
    plan = plan_model(onnx_file)
    assert plan.flavor == "onnx"
    assert names(plan) == ["model.onnx", "weights/w.bin"]
    assert plan.settings == {"data": "model.onnx"}


def test_missing_external_data_is_refused(onnx_file: Path) -> None:
    (onnx_file.parent / "weights" / "w.bin").unlink()
    with pytest.raises(ArtifactError, match=r"w\.bin"):
        plan_model(onnx_file)


def test_external_data_that_leads_out_of_the_directory_is_refused(
    onnx_file: Path, tmp_path: Path
) -> None:
    weights = onnx_file.parent / "weights" / "w.bin"
    weights.rename(tmp_path / "w.bin")
    weights.symlink_to(tmp_path / "w.bin")
    with pytest.raises(ArtifactError, match="leads out"):
        plan_model(onnx_file)


def test_external_data_named_like_mlflows_own_files_is_refused(
    tmp_path: Path, make_onnx: Callable[..., Path]
) -> None:
    path = make_onnx(tmp_path / "net.onnx", external="MLmodel")
    with pytest.raises(ArtifactError, match="name that MLflow needs"):
        plan_model(path)


def test_a_model_keeps_its_name_where_its_external_data_has_the_usual_one(
    tmp_path: Path, make_onnx: Callable[..., Path]
) -> None:
    path = make_onnx(tmp_path / "net.onnx", external="model.onnx")
    assert plan_model(path).settings["data"] == "net.onnx"


def test_a_config_beside_an_onnx_file_goes_along_with_what_it_names(onnx_file: Path) -> None:
    (onnx_file.parent / "config.pbtxt").write_text(
        'output [ { name: "Y" data_type: TYPE_FP32 dims: [ 128 ] label_filename: "l/a.txt" } ]'
    )
    (onnx_file.parent / "l").mkdir()
    (onnx_file.parent / "l" / "a.txt").write_text("cat\ndog\n")
    plan = plan_model(onnx_file)
    extra = [{"path": "extra_files/config.pbtxt"}, {"path": "extra_files/l/a.txt"}]
    assert plan.settings["extra_files"] == extra
    assert {"extra_files/config.pbtxt", "extra_files/l/a.txt"} <= set(names(plan))


@pytest.mark.parametrize("source", ["model", "model/1", "model/1/model.onnx"])
def test_the_config_above_a_version_directory_is_found(
    source: str, tmp_path: Path, make_onnx: Callable[..., Path]
) -> None:
    """So that one model directory can be published with either flavor."""
    (tmp_path / "model" / "1").mkdir(parents=True)
    make_onnx(tmp_path / "model" / "1" / "model.onnx")
    (tmp_path / "model" / "config.pbtxt").write_text("max_batch_size: 4")
    plan = plan_model(tmp_path / source, "onnx")
    assert names(plan) == ["extra_files/config.pbtxt", "model.onnx"]


def test_a_directory_with_several_onnx_files_is_ambiguous(
    onnx_file: Path, make_onnx: Callable[..., Path]
) -> None:
    make_onnx(onnx_file.parent / "other.onnx")
    with pytest.raises(MissingModelFileError, match=r"holds 2 \.onnx files"):
        plan_model(onnx_file.parent, "onnx")


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("hello")
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        plan_model(tmp_path / "x.onnx")


def test_the_digest_follows_content_and_nothing_else(python_model: Path) -> None:
    before = content_digest(plan_model(python_model))
    (python_model / "1" / "model.py").touch()
    assert content_digest(plan_model(python_model)) == before
    (python_model / "2").mkdir()
    (python_model / "1" / "model.py").rename(python_model / "2" / "model.py")
    (python_model / "1").rmdir()
    assert content_digest(plan_model(python_model)) != before


def test_a_repositorys_models_are_its_visible_directories(
    python_model: Path, ensemble: Path
) -> None:
    repository = python_model.parent
    (repository / ".git").mkdir()
    (repository / "README.md").write_text("")
    assert plan_repository(repository) == [ensemble, python_model]


def test_a_single_model_is_not_taken_for_a_repository(python_model: Path) -> None:
    with pytest.raises(ArtifactError, match="--model_directory"):
        plan_repository(python_model)
