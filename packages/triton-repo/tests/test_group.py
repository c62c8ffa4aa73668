"""Directories of several models: who needs whom, which one is asked, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.group import ModelGroup, is_group
from triton_repo.scan import Limits, Tally

if TYPE_CHECKING:
    from pathlib import Path


def add_ensemble(root: Path, name: str, *steps: str) -> None:
    """An ensemble; a step is `model` or `model:version`."""
    lines = []
    for step in steps:
        model, _, version = step.partition(":")
        lines.append(f'    {{ model_name: "{model}" model_version: {version or -1} }}')
    text = f'platform: "ensemble"\nensemble_scheduling {{\n  step [\n{",".join(lines)}\n  ]\n}}\n'
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(text)


def add_python(root: Path, name: str, source: str = "", versions: tuple[int, ...] = (1,)) -> None:
    for version in versions:
        (root / name / str(version)).mkdir(parents=True)
        (root / name / str(version) / "model.py").write_text(source)
    (root / name / "config.pbtxt").write_text('backend: "python"\n')


def test_what_is_needed_comes_first(tmp_path: Path) -> None:
    add_ensemble(tmp_path, "all", "zeta", "alpha", "inner")
    add_ensemble(tmp_path, "inner", "zeta")
    add_python(tmp_path, "alpha")
    add_python(tmp_path, "zeta")
    group = ModelGroup.read(tmp_path)
    assert group.main == "all"
    assert list(group.models) == ["alpha", "zeta", "inner", "all"]
    assert group.needs["inner"] == {"zeta"}
    assert group.needs["all"] == {"zeta", "alpha", "inner"}
    assert group.models["zeta"].root == tmp_path / "zeta"


def test_sources_of_python_models_say_whom_they_ask(tmp_path: Path) -> None:
    add_python(tmp_path, "a_main", "request = ask(model_name='tokens', of=\"weights\")")
    add_python(tmp_path, "tokens", "# not weights, and not \"tokens'")
    add_python(tmp_path, "weights", "")
    group = ModelGroup.read(tmp_path)
    assert group.main == "a_main"
    assert group.needs["a_main"] == {"tokens", "weights"}
    assert not group.needs["tokens"]


def test_names_in_sources_make_no_circle(tmp_path: Path) -> None:
    add_ensemble(tmp_path, "all", "first", "second")
    add_python(tmp_path, "first", "'second', 'all', 'first'")
    add_python(tmp_path, "second", "'first'")
    group = ModelGroup.read(tmp_path)
    assert group.main == "all"
    assert list(group.models) == ["second", "first", "all"]


def test_the_main_model_needs_what_nobody_else_does(tmp_path: Path) -> None:
    """Its source may make up the names that it asks."""
    for name in ("asks", "part_1", "part_2"):
        add_python(tmp_path, name, "f'part_{number}'")
    group = ModelGroup.read(tmp_path, "asks")
    assert group.needs["asks"] == {"part_1", "part_2"}
    assert group.main == "asks"


def test_what_is_no_model_is_left_out(tmp_path: Path) -> None:
    add_python(tmp_path, "alone")
    (tmp_path / "README.md").write_text("a repository")
    (tmp_path / ".git" / "1").mkdir(parents=True)
    assert list(ModelGroup.read(tmp_path).models) == ["alone"]


def test_a_repository_is_told_from_a_model(tmp_path: Path) -> None:
    assert not is_group(tmp_path)
    assert not is_group(tmp_path / "absent")
    add_python(tmp_path, "one")
    assert is_group(tmp_path)
    assert not is_group(tmp_path / "one")
    assert not is_group(tmp_path / "one" / "1")
    (tmp_path / "without_config" / "1").mkdir(parents=True)
    assert not is_group(tmp_path / "without_config")


@pytest.mark.parametrize("directory", ["0", "3.old"])
def test_a_model_whose_version_triton_would_misread_is_still_no_repository(
    tmp_path: Path, directory: str
) -> None:
    (tmp_path / directory).mkdir()
    add_python(tmp_path, "inside")
    assert not is_group(tmp_path)


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    add_ensemble(tmp_path, "all", "one", "two")
    add_python(tmp_path, "one")
    with pytest.raises(
        ConfigError, match=r"all.config\.pbtxt: .*step\[1\] names model 'two'"
    ) as told:
        ModelGroup.read(tmp_path)
    assert told.value.field == "ensemble_scheduling.step[1].model_name"


def test_a_step_of_a_version_that_is_not_there(tmp_path: Path) -> None:
    add_ensemble(tmp_path, "all", "one:2", "one:3")
    add_python(tmp_path, "one", versions=(1, 2))
    with pytest.raises(ConfigError, match="names version 3 of one, which has 1, 2"):
        ModelGroup.read(tmp_path)


def test_ensembles_that_lead_to_each_other(tmp_path: Path) -> None:
    add_ensemble(tmp_path, "a", "b")
    add_ensemble(tmp_path, "b", "a")
    with pytest.raises(ConfigError, match=r"in a circle: (a → b → a|b → a → b)"):
        ModelGroup.read(tmp_path)
    with pytest.raises(ConfigError, match="in a circle"):
        ModelGroup.read(tmp_path, "a")


def test_an_ensemble_of_itself(tmp_path: Path) -> None:
    add_ensemble(tmp_path, "a", "a")
    with pytest.raises(ConfigError, match="in a circle: a → a"):
        ModelGroup.read(tmp_path)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        ("", r"2 models that no other needs: all, other; say which one .* \(main_model\)"),
        ("none", "no model 'none' to be the main one; there is all, one, other"),
        ("one", "'one' cannot be the main model, because all needs it"),
    ],
)
def test_there_is_one_main_model(tmp_path: Path, main: str, words: str) -> None:
    add_ensemble(tmp_path, "all", "one")
    add_python(tmp_path, "one")
    add_python(tmp_path, "other")
    with pytest.raises(ArtifactError, match=words):
        ModelGroup.read(tmp_path, main)


def test_no_models(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="0 models that no other needs"):
        ModelGroup.read(tmp_path)
    with pytest.raises(ArtifactError, match="is not a directory"):
        ModelGroup.read(tmp_path / "absent")


def test_a_name_that_is_not_the_directorys(tmp_path: Path) -> None:
    add_python(tmp_path, "one")
    (tmp_path / "one" / "config.pbtxt").write_text('name: "eins"\nbackend: "python"\n')
    with pytest.raises(ConfigError, match=r"name is 'eins', and the directory .* is 'one'"):
        ModelGroup.read(tmp_path)


@pytest.mark.parametrize("name", ["a b", "-a", "a\u2044b", "é"])
def test_a_directory_that_cannot_be_a_models(tmp_path: Path, name: str) -> None:
    add_python(tmp_path, name)
    with pytest.raises(ArtifactError, match="cannot be a model's"):
        ModelGroup.read(tmp_path)


def test_models_are_checked_and_counted_together(tmp_path: Path) -> None:
    add_python(tmp_path, "one")
    add_python(tmp_path, "two")
    with pytest.raises(ArtifactError, match="more than 5 files"):
        ModelGroup.read(tmp_path, "one", tally=Tally(Limits(files=5), tmp_path))
    (tmp_path / "two" / "1" / "model.py").unlink()
    with pytest.raises(MissingModelFileError, match=r"two.1 has no model\.py"):
        ModelGroup.read(tmp_path, "one")


def test_links_stay_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("")
    root = tmp_path / "repository"
    add_python(root, "one")
    (root / "one" / "1" / "more.py").symlink_to(outside)
    with pytest.raises(ArtifactError, match="leads out of the model"):
        ModelGroup.read(root)


def test_versions_that_a_store_has_lost_are_known(tmp_path: Path) -> None:
    add_ensemble(tmp_path, "all", "inner")
    add_ensemble(tmp_path, "inner")
    (tmp_path / "inner" / "1").rmdir()
    group = ModelGroup.read(tmp_path, versions={"inner": [4]})
    assert list(group.models["inner"].versions) == [4]
