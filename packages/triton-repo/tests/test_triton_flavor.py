"""A directory in Triton's layout, logged as a model, comes out as it went in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.flavors import convert
from triton_repo.names import check_name

if TYPE_CHECKING:
    from pathlib import Path

    from triton_repo.entry import RepositoryEntry


def logged(root: Path, files: dict[str, str], **settings: Any) -> ModelArtifact:
    """An artifact with these files; a name that ends in `/` is an empty directory."""
    for path, text in ({"triton/": ""} | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            (root / path).write_text(text)
    document = {"flavors": {"triton": {"data": "triton"} | settings}}
    (root / "MLmodel").write_text(yaml.safe_dump(document))
    return ModelArtifact.open(root)


def converted(artifact: ModelArtifact, version: int = 7) -> RepositoryEntry:
    return convert(artifact, flavor="triton", name=check_name("resnet"), version=version)


def names(entry: RepositoryEntry) -> dict[int, list[str]]:
    return {number: tree.names() for number, tree in entry.versions.items()}


def test_one_version_becomes_the_version_asked_for(tmp_path: Path) -> None:
    """Whatever its number was; MLflow's versions are Triton's."""
    artifact = logged(
        tmp_path, {"triton/4/model.py": "", "triton/labels.txt": "", "conda.yaml": ""}
    )
    entry = converted(artifact)
    assert names(entry) == {7: ["model.py"]}
    assert entry.shared.names() == ["labels.txt"]
    assert entry.flavor == "triton"
    assert entry.config is None


def test_several_versions_keep_their_numbers(tmp_path: Path) -> None:
    entry = converted(logged(tmp_path, {"triton/4/model.py": "", "triton/11/model.py": ""}))
    assert names(entry) == {4: ["model.py"], 11: ["model.py"]}


def test_a_config_keeps_its_bytes(tmp_path: Path) -> None:
    text = '# mine\nbackend:"python"; # and why\n'
    entry = converted(logged(tmp_path, {"triton/1/model.py": "", "triton/config.pbtxt": text}))
    assert entry.config is not None
    assert entry.config.text == text


def test_a_clashing_name_and_the_only_versions_pin_follow(tmp_path: Path) -> None:
    text = 'name: "old" # mine\nbackend: "python"\nversion_policy { specific { versions: 1 } }\n'
    entry = converted(logged(tmp_path, {"triton/1/model.py": "", "triton/config.pbtxt": text}))
    assert entry.config is not None
    assert entry.config.text == (
        'name: "resnet" # mine\nbackend: "python"\n'
        "version_policy: { specific { versions: [ 7 ] } }\n"
    )


def test_a_set_keeps_its_pin(tmp_path: Path) -> None:
    text = "version_policy { specific { versions: 2 } }"
    files = {"triton/1/model.py": "", "triton/2/model.py": "", "triton/config.pbtxt": text}
    entry = converted(logged(tmp_path, files))
    assert entry.config is not None
    assert entry.config.text == text


def test_an_ensembles_version_survives_a_store_without_empty_directories(tmp_path: Path) -> None:
    """With or without a publisher that wrote down what it saw."""
    files = {"triton/config.pbtxt": 'platform: "ensemble"'}
    entry = converted(logged(tmp_path / "plain", files))
    assert names(entry) == {7: []}
    entry = converted(logged(tmp_path / "recorded", files, versions=[2, 3]))
    assert names(entry) == {2: [], 3: []}


def test_an_empty_ensemble_directory_is_kept(tmp_path: Path) -> None:
    files = {"triton/config.pbtxt": 'platform: "ensemble"', "triton/1/": ""}
    assert names(converted(logged(tmp_path, files))) == {7: []}


@pytest.mark.parametrize(
    "versions", ["1", 1, {"1": 2}, ["1"], [0], [-1], [1.5], [True], [None], [10**18], [[1]]]
)
def test_recorded_versions_that_are_none_are_refused(tmp_path: Path, versions: Any) -> None:
    artifact = logged(tmp_path, {"triton/1/model.py": ""}, versions=versions)
    with pytest.raises(ArtifactError, match="MLmodel's triton flavor gives versions"):
        converted(artifact)


@pytest.mark.parametrize("data", ["/etc", "..", "../model-2", "triton/../..", "", None, 7])
def test_a_directory_outside_the_model_is_refused(tmp_path: Path, data: Any) -> None:
    artifact = logged(tmp_path / "model", {"triton/1/model.py": ""}, data=data)
    (tmp_path / "model-2" / "1").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="MLmodel's triton flavor"):
        converted(artifact)


def test_a_missing_directory_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingModelFileError):
        converted(logged(tmp_path / "a", {}, data="gone"))
    with pytest.raises(ArtifactError, match="is not a directory"):
        converted(logged(tmp_path / "b", {"file": ""}, data="file"))


def test_a_link_may_lead_elsewhere_in_the_model_but_not_out(tmp_path: Path) -> None:
    artifact = logged(tmp_path / "model", {"triton/1/model.py": "", "weights": "shared"})
    link = tmp_path / "model" / "triton" / "1" / "weights"
    link.symlink_to("../../weights")
    assert names(converted(artifact)) == {7: ["model.py", "weights"]}
    link.unlink()
    link.symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="leads out of the model"):
        converted(artifact)


def test_an_older_deployments_record_is_not_published(tmp_path: Path) -> None:
    """A directory taken from a served repository brings neither record nor journal."""
    files = {
        "triton/1/model.py": "",
        "triton/mlflow-meta.json": "{}",
        "triton/_mlflow_triton/journal.json": "{}",
        "triton/_mlflow_triton/shared/0123": "",
    }
    assert converted(logged(tmp_path, files)).shared.names() == []


def test_what_triton_would_refuse_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no version directory"):
        converted(logged(tmp_path / "a", {"triton/config.pbtxt": ""}))
    with pytest.raises(ConfigError):
        converted(logged(tmp_path / "b", {"triton/1/x": "", "triton/config.pbtxt": "nonsense"}))
