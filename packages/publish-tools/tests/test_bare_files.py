"""A model that is one file to its backend is published as it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from publish_tools import plan_model, save_model
from publish_tools.cli import main
from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.flavors import convert
from triton_repo.names import check_name

if TYPE_CHECKING:
    from pathlib import Path

    from publish_tools import ModelPlan
    from triton_repo.entry import RepositoryEntry

CONFIG = """# mine
backend: "{backend}"
max_batch_size: 8
input [ {{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" }} ]
"""


def names(plan: ModelPlan) -> list[str]:
    return sorted(str(file.path) for file in plan.tree.files)


def written(folder: Path, *files: str) -> Path:
    """The first of these files."""
    for name in files:
        (folder / name).write_text(name)
    return folder / files[0]


def deployed(plan: ModelPlan, folder: Path) -> RepositoryEntry:
    """What a deployment of it is going to be."""
    save_model(plan.source, folder)
    artifact = ModelArtifact.open(folder)
    return convert(artifact, flavor="triton", name=check_name("net"), version=7)


@pytest.mark.parametrize(
    ("files", "placed"),
    [
        (["net.plan"], ["model.plan"]),
        (["net.engine"], ["model.plan"]),
        (["net.xml", "net.bin"], ["model.bin", "model.xml"]),
        (["net.xml"], ["model.xml"]),
    ],
)
def test_a_file_is_what_triton_knows_it_by(
    tmp_path: Path, files: list[str], placed: list[str]
) -> None:
    plan = plan_model(written(tmp_path, *files))
    assert plan.flavor == "triton"
    assert names(plan) == [f"model/1/{name}" for name in placed]
    assert "there is no signature" in plan.tensors.notes[0]
    entry = deployed(plan, tmp_path / "saved")
    assert entry.versions[7].names() == placed
    assert entry.config is None


@pytest.mark.parametrize(
    ("file", "backend"), [("net.plan", "tensorrt"), ("net.xml", "openvino"), ("net.pt", "pytorch")]
)
def test_a_config_beside_it_goes_along_with_what_it_names(
    tmp_path: Path, file: str, backend: str
) -> None:
    (tmp_path / "config.pbtxt").write_text(CONFIG.format(backend=backend))
    plan = plan_model(written(tmp_path, file, "labels.txt"))
    assert [spec.name for spec in plan.tensors.inputs] == ["INPUT__0"]
    assert not plan.tensors.notes
    entry = deployed(plan, tmp_path / "saved")
    assert entry.shared.names() == ["labels.txt"]
    assert entry.config is not None
    assert entry.config.text == CONFIG.format(backend=backend)


def test_a_config_may_call_it_otherwise(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(
        'backend: "openvino"\ndefault_model_filename: "det.xml"\n'
    )
    plan = plan_model(written(tmp_path, "net.xml", "net.bin"))
    assert names(plan) == ["model/1/det.bin", "model/1/det.xml", "model/config.pbtxt"]


def test_the_config_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('backend: "python"\n')
    with pytest.raises(ConfigError, match=r"names backend 'python', and net\.plan is for tensorrt"):
        plan_model(written(tmp_path, "net.plan"))


def test_what_a_backend_cannot_complete_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(MissingModelFileError, match=r"net\.pt needs a config\.pbtxt beside it"):
        plan_model(written(tmp_path, "net.pt"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a directory"):
        plan_model(written(tmp_path, "net.bin"))
    with pytest.raises(ArtifactError, match="is one model"):
        plan_model(written(tmp_path, "net.plan"), main_model="net")


@pytest.mark.usefixtures("registry")
def test_the_command_publishes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(written(tmp_path, "net.plan"))
    assert main(["--model_directory", source, "--model_name", "net", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model_uri"] == "models:/net/1"
    assert document["files"] == ["model/1/model.plan"]
