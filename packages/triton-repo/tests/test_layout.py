"""A directory in Triton's layout is read whole, or refused with what to do about it."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.layout import ModelDirectory, is_shared_path, version_number

if TYPE_CHECKING:
    from pathlib import Path


def lay_out(root: Path, *paths: str, config: str | None = None) -> Path:
    """A model directory with these files (directories where they end in `/`)."""
    root.mkdir(exist_ok=True)
    for path in paths:
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path)
    if config is not None:
        (root / "config.pbtxt").write_text(config)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "model"


# -- version numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("1", 1), ("20", 20), ("9" * 18, int("9" * 18))])
def test_positive_numbers_are_versions(name: str, number: int) -> None:
    assert version_number(name) == number


@pytest.mark.parametrize(
    "name", ["data", ".staging-3", "v1", "_1", "one", "\u0661", "\uff11", "a1"]
)
def test_other_names_are_no_versions(name: str) -> None:
    assert version_number(name) is None


@pytest.mark.parametrize(
    "name", ["0", "007", "3.tmp", "1_old", "2 copy", " 4", "+5", "-6", "1\n", "9" * 19]
)
def test_names_that_triton_would_misread_are_refused(name: str) -> None:
    """It takes the leading digits, as `stoll` does."""
    with pytest.raises(ArtifactError, match="misread it as a version"):
        version_number(name)


# -- reading ----------------------------------------------------------------------------------


def test_versions_shared_files_and_config_are_told_apart(root: Path) -> None:
    """Files beside config.pbtxt at any depth are shared; our record and hidden ones are not."""
    lay_out(
        root,
        "1/model.py",
        "1/data/x",
        "12/model.py",
        "labels.txt",
        "vocab/a",
        "vocab/b/c",
        "mlflow-meta.json",
        ".git/config",
        "_mlflow_triton/journal.json",
        "__pycache__/x.pyc",
        "1/__pycache__/model.pyc",
        "1/.DS_Store",
        config='backend: "python"',
    )
    found = ModelDirectory.read(root)
    assert {number: tree.names() for number, tree in found.versions.items()} == {
        1: ["data/x", "model.py"],
        12: ["model.py"],
    }
    assert found.shared.names() == ["labels.txt", "vocab/a", "vocab/b/c"]
    assert found.config is not None
    assert found.config.text == 'backend: "python"'


def test_versions_come_in_the_order_of_their_numbers(root: Path) -> None:
    lay_out(root, "10/model.py", "9/model.py", "2/model.py")
    assert list(ModelDirectory.read(root).versions) == [2, 9, 10]


def test_a_directory_without_a_config_is_left_to_auto_complete(root: Path) -> None:
    found = ModelDirectory.read(lay_out(root, "1/model.onnx"))
    assert found.config is None


def test_a_missing_directory_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ArtifactError, match="is not a directory"):
            ModelDirectory.read(path)


def test_no_version_directory_is_refused_with_what_to_do(root: Path) -> None:
    lay_out(root, "model.onnx", config="")
    with pytest.raises(ArtifactError, match=r"has no version directory; put .*model/1"):
        ModelDirectory.read(root)


def test_a_file_named_like_a_version_is_no_version(root: Path) -> None:
    found = ModelDirectory.read(lay_out(root, "1/model.py", "2"))
    assert list(found.versions) == [1]
    assert found.shared.names() == ["2"]


@pytest.mark.parametrize("name", ["3.tmp", "0", "01"])
def test_a_misleading_directory_is_refused(root: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="begins with a digit"):
        ModelDirectory.read(lay_out(root, "1/model.py", f"{name}/model.py"))


def test_a_broken_config_is_a_config_error_that_names_the_file(root: Path) -> None:
    with pytest.raises(ConfigError, match=str(root / "config.pbtxt")):
        ModelDirectory.read(lay_out(root, "1/model.py", config="backend:"))


def test_a_type_that_triton_has_not_is_found_before_anything_is_uploaded(root: Path) -> None:
    config = 'backend: "python" input { name: "x" dims: 1 }'
    with pytest.raises(ConfigError, match=r"input\[x\]\.data_type"):
        ModelDirectory.read(lay_out(root, "1/model.py", config=config))


# -- named files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ('output { name: "y" data_type: TYPE_FP32 label_filename: "l.txt" }', "l.txt"),
        ('model_warmup { inputs { key: "x" value { input_data_file: "x" } } }', "warmup/x"),
        (
            """parameters { key: "EXECUTION_ENV_PATH"
                value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }""",
            "env.tar.gz",
        ),
    ],
)
def test_files_that_the_config_names_must_be_there(root: Path, config: str, path: str) -> None:
    lay_out(root, "1/model.py", config=f'backend: "python" {config}')
    with pytest.raises(MissingModelFileError) as caught:
        ModelDirectory.read(root)
    assert caught.value.path == path
    lay_out(root, path)
    assert ModelDirectory.read(root).shared.names() == [path]


@pytest.mark.parametrize(
    ("backend", "filename"),
    [
        ("onnxruntime", "model.onnx"),
        ("tensorrt", "model.plan"),
        ("pytorch", "model.pt"),
        ("openvino", "model.xml"),
        ("tensorflow", "model.savedmodel/saved_model.pb"),
        ("python", "model.py"),
    ],
)
def test_each_version_has_the_file_its_backend_loads(
    root: Path, backend: str, filename: str
) -> None:
    """Or a directory of that name."""
    lay_out(root, f"1/{filename}", "2/other", config=f'backend: "{backend}"')
    with pytest.raises(MissingModelFileError, match=str(root / "2")) as caught:
        ModelDirectory.read(root)
    assert caught.value.path.startswith("2/model.")
    lay_out(root, f"2/{filename}")
    assert list(ModelDirectory.read(root).versions) == [1, 2]


def test_a_file_name_of_the_users_own_is_what_must_be_there(root: Path) -> None:
    config = 'backend: "onnxruntime" default_model_filename: "net.onnx"'
    lay_out(root, "1/model.onnx", config=config)
    with pytest.raises(MissingModelFileError, match=r"has no net\.onnx"):
        ModelDirectory.read(root)
    lay_out(root, "1/net.onnx")
    ModelDirectory.read(root)


def test_one_model_py_may_serve_every_version(root: Path) -> None:
    """Newer Python backends look beside config.pbtxt too."""
    ModelDirectory.read(
        lay_out(root, "1/weights", "2/weights", "model.py", config='backend: "python"')
    )


def test_a_backend_that_chooses_by_itself_is_not_second_guessed(root: Path) -> None:
    ModelDirectory.read(lay_out(root, "1/xgboost.json", config='backend: "fil"'))
    ModelDirectory.read(lay_out(root, "2/anything", config=""))


def test_a_pinned_version_must_be_there(root: Path) -> None:
    config = 'backend: "python" version_policy { specific { versions: [1, 3] } }'
    lay_out(root, "1/model.py", "2/model.py", config=config)
    with pytest.raises(ConfigError, match="names version 3, and there is only 1, 2") as caught:
        ModelDirectory.read(root)
    assert caught.value.field == "version_policy"


# -- ensembles --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ['platform: "ensemble"', "ensemble_scheduling { }"])
def test_an_ensemble_has_an_empty_version(root: Path, config: str) -> None:
    """With nothing in it to look for."""
    found = ModelDirectory.read(lay_out(root, "1/", "labels.txt", config=config))
    assert [number for number, tree in found.versions.items() if not tree.files] == [1]


def test_an_ensembles_version_that_an_artifact_store_dropped_is_put_back(root: Path) -> None:
    """Object stores have no empty directories."""
    assert list(ModelDirectory.read(lay_out(root, config='platform: "ensemble"')).versions) == [1]


def test_versions_that_the_publisher_saw_are_put_back(root: Path) -> None:
    lay_out(root, config='platform: "ensemble"')
    assert list(ModelDirectory.read(root, versions=[3, 2]).versions) == [2, 3]


def test_a_recorded_version_does_not_hide_what_is_in_it(root: Path) -> None:
    found = ModelDirectory.read(lay_out(root, "1/model.py"), versions=[1])
    assert found.versions[1].names() == ["model.py"]


def test_a_recorded_version_without_its_model_is_refused(root: Path) -> None:
    """A version that is empty although it should not be was lost on the way."""
    with pytest.raises(MissingModelFileError):
        ModelDirectory.read(
            lay_out(root, "1/model.py", config='backend: "python"'), versions=[1, 2]
        )


# -- links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["1/link", "link", "1/deep/link", "config.pbtxt"])
def test_a_link_that_leaves_the_model_is_refused_wherever_it_is(root: Path, where: str) -> None:
    """config.pbtxt too: what it leads to would be published."""
    (root.parent / "outside").write_text('backend: "python"')
    lay_out(root, "1/model.py", "1/deep/x")
    (root / where).symlink_to(root.parent / "outside")
    with pytest.raises(ArtifactError, match="leads out of the model"):
        ModelDirectory.read(root)
    ModelDirectory.read(root, inside=root.parent)


def test_a_linked_version_directory_may_not_leave_either(root: Path) -> None:
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "model.py").touch()
    lay_out(root, "1/model.py")
    (root / "2").symlink_to(root.parent / "elsewhere")
    with pytest.raises(ArtifactError, match="leads out of the model"):
        ModelDirectory.read(root)


def test_a_config_that_is_a_broken_link_is_not_taken_for_none(root: Path) -> None:
    lay_out(root, "1/model.py")
    (root / "config.pbtxt").symlink_to("missing")
    with pytest.raises(ArtifactError, match="leads nowhere"):
        ModelDirectory.read(root)


def test_a_config_that_is_a_pipe_is_refused(root: Path) -> None:
    """And not waited for."""
    lay_out(root, "1/model.py")
    os.mkfifo(root / "config.pbtxt")
    with pytest.raises(ArtifactError, match="neither a file nor a directory"):
        ModelDirectory.read(root)


# -- shared paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["labels.txt", "vocab/a", "1", "env.tar.gz", "a/1/b", "a/.x"])
def test_files_that_versions_share_may_stand_here(path: str) -> None:
    assert is_shared_path(PurePosixPath(path))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/x",
        "../x",
        "a/../../x",
        "config.pbtxt",
        "mlflow-meta.json",
        "_mlflow_triton/journal.json",
        "_mlflow_triton_tmp-1/x",
        ".hidden",
        "1/labels.txt",
        "3.tmp/labels.txt",
    ],
)
def test_nothing_shared_may_stand_there(path: str) -> None:
    """Where it would be outside, a version, hidden, or in the place of a file of our own."""
    assert not is_shared_path(PurePosixPath(path))
