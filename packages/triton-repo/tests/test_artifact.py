"""An MLmodel is text from somebody else: it names files of the model, and nothing outside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError, MissingModelFileError
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path


def save(root: Path, document: Any) -> Path:
    """A model directory with this MLmodel: text as it stands, anything else as YAML."""
    root.mkdir(exist_ok=True)
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    (root / "MLmodel").write_text(text)
    return root


@pytest.fixture
def artifact(tmp_path: Path) -> ModelArtifact:
    root = save(tmp_path / "model", {"flavors": {"onnx": {"data": "model.onnx"}}})
    (root / "model.onnx").touch()
    (root / "sub").mkdir()
    (root / "sub" / "file").touch()
    (tmp_path / "model-2").mkdir()
    (tmp_path / "model-2" / "secret").touch()
    return ModelArtifact.open(root)


# -- MLmodel ----------------------------------------------------------------------------------


def test_flavors_and_identity_are_read(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "artifact_path": "triton",
        "run_id": "abc",
        "model_id": "m-1",
        "model_uuid": "old",
        "flavors": {"onnx": {"data": "model.onnx"}, "python_function": None},
    }
    artifact = ModelArtifact.open(save(tmp_path, document))
    assert artifact.flavors == {"onnx": {"data": "model.onnx"}, "python_function": {}}
    assert (artifact.run_id, artifact.model_id) == ("abc", "m-1")
    assert artifact.artifact_path == "triton"


def test_an_older_models_uuid_is_its_id(tmp_path: Path) -> None:
    document: dict[str, Any] = {"model_uuid": "0123", "run_id": None, "flavors": {"onnx": {}}}
    artifact = ModelArtifact.open(save(tmp_path, document))
    assert (artifact.model_id, artifact.run_id) == ("0123", "")


@pytest.mark.parametrize("missing", ["directory", "file"])
def test_a_directory_without_mlmodel_is_no_model(tmp_path: Path, missing: str) -> None:
    root = tmp_path / "nothing" if missing == "directory" else tmp_path
    with pytest.raises(MissingModelFileError, match="is no MLflow model") as caught:
        ModelArtifact.open(root)
    assert caught.value.path == "MLmodel"


def test_an_mlmodel_that_is_a_directory_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").mkdir()
    with pytest.raises(ArtifactError, match="cannot read"):
        ModelArtifact.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flavors: [unclosed", "is not YAML"),
        ("\tflavors: {}", "is not YAML"),
        ("flavors: \0", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("{[1]: 2}", "is not YAML"),
        ("when: 2026-99-99", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("flavors: !!python/object/apply:os.system ['touch hacked']", "is not YAML"),
        ("flavors: !!python/name:os.system", "is not YAML"),
        ("!!set {a, b}", "is not a mapping"),
        ("", "is not a mapping"),
        ("null", "is not a mapping"),
        ("- flavors", "is not a mapping"),
        ("just text", "is not a mapping"),
        ("42", "is not a mapping"),
        ("{}", "names no flavors"),
        ("flavors:", "names no flavors"),
        ("flavors: {}", "names no flavors"),
        ("flavors: [onnx]", "names no flavors"),
        ("flavors: onnx", "names no flavors"),
    ],
)
def test_what_is_no_mlmodel_is_refused_by_its_path(
    tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tag runs anything."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=message) as caught:
        ModelArtifact.open(save(tmp_path, text))
    assert str(tmp_path / "MLmodel") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["MLmodel"]


@given(st.binary(max_size=80))
def test_any_bytes_are_an_mlmodel_or_an_artifact_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    root = tmp_path_factory.getbasetemp()
    (root / "MLmodel").write_bytes(data)
    with pytest.raises(ArtifactError):
        ModelArtifact.open(root)


# -- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", ["model.onnx", "./model.onnx", "sub", "sub/", "sub/file", "."])
def test_files_of_the_model_are_found(artifact: ModelArtifact, relative: str) -> None:
    assert artifact.path(relative) == artifact.root / relative


@pytest.mark.parametrize(
    "relative",
    [
        "/etc/hostname",
        "/",
        "..",
        "../x",
        "../model-2/secret",
        "sub/../../model-2/secret",
        "sub/../model.onnx",
    ],
)
def test_a_path_that_leaves_the_model_is_refused(artifact: ModelArtifact, relative: str) -> None:
    """`data: /etc/hostname` once copied that file into the repository."""
    with pytest.raises(ArtifactError, match="leaves the model"):
        artifact.path(relative)


@pytest.mark.parametrize("relative", ["", None, 7, ["model.onnx"], {"a": 1}, "a\0b", True])
def test_what_is_no_path_is_refused(artifact: ModelArtifact, relative: Any) -> None:
    with pytest.raises(ArtifactError, match="where a path belongs"):
        artifact.path(relative)


def test_a_missing_file_is_named_with_who_named_it(artifact: ModelArtifact) -> None:
    with pytest.raises(MissingModelFileError, match="the graph names 'sub/gone'") as caught:
        artifact.path("sub/gone", said_by="the graph")
    assert caught.value.path == "sub/gone"


@pytest.mark.parametrize("target", ["/etc/hostname", "../model-2/secret", "..", "gone"])
def test_a_link_does_not_leave_the_model_either(artifact: ModelArtifact, target: str) -> None:
    (artifact.root / "link").symlink_to(target)
    for relative in ("link", "link/"):
        with pytest.raises(ArtifactError):
            artifact.path(relative)
    with pytest.raises(ArtifactError):
        artifact.path("link/passwd" if target.startswith("/") else "link/model-2")


def test_files_logged_beside_the_model_come_first(artifact: ModelArtifact, tmp_path: Path) -> None:
    beside = tmp_path / "elsewhere"
    opened = ModelArtifact.open(artifact.root, beside={"config.pbtxt": beside})
    assert opened.find("config.pbtxt") == beside
    assert opened.find("gone", "sub/file", "model.onnx") == artifact.root / "sub" / "file"
    assert opened.find("gone", "sub") is None
    assert opened.find() is None


# -- signatures -------------------------------------------------------------------------------


def signature(tmp_path: Path, columns: Any, *, raw: bool = False) -> dict[str, TensorSpec]:
    document = {
        "flavors": {"onnx": {}},
        "signature": {"inputs": columns if raw else json.dumps(columns)},
    }
    artifact = ModelArtifact.open(save(tmp_path, document))
    assert artifact.signature_tensors("outputs") == {}
    return artifact.signature_tensors("inputs")


def tensor(name: str, dtype: str, shape: Any) -> dict[str, Any]:
    return {"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}


def test_tensors_keep_their_shape_and_the_batch_dimension(tmp_path: Path) -> None:
    found = signature(tmp_path, [tensor("x", "float32", [-1, 3, 224, 224]), tensor("y", "str", [])])
    assert found == {
        "x": TensorSpec("x", "FP32", (-1, 3, 224, 224)),
        "y": TensorSpec("y", "BYTES", ()),
    }


def test_a_single_unnamed_tensor_has_no_name(tmp_path: Path) -> None:
    """The model has to be asked for it."""
    column = {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
    assert signature(tmp_path, [column]) == {"": TensorSpec("", "INT64", (-1,))}


def test_columns_are_one_value_a_row(tmp_path: Path) -> None:
    columns = [
        {"name": "age", "type": "long", "required": True},
        {"name": "when", "type": "datetime", "required": False},
    ]
    assert signature(tmp_path, columns) == {
        "age": TensorSpec("age", "INT64", (-1, 1)),
        "when": TensorSpec("when", "BYTES", (-1, 1), optional=True),
    }


def test_what_triton_has_no_type_for_is_left_to_the_flavor(tmp_path: Path) -> None:
    columns = [
        {"name": "o", "type": "opaque"},
        {"name": "a", "type": "array", "items": {"type": "opaque"}},
        tensor("c", "complex64", [1]),
        tensor("s", "float32", "wide"),
        tensor("n", "float32", None),
        {"name": "t", "type": "tensor"},
        {"type": ["long"], "name": "list"},
        "text",
        None,
        7,
        tensor("ok", "float32", [1]),
    ]
    assert list(signature(tmp_path, columns)) == ["ok"]


@pytest.mark.parametrize("columns", ["{", "[1", "nan?", "5", '"text"', "{}", "true", "[" * 9999])
def test_a_signature_that_is_no_list_is_refused(tmp_path: Path, columns: str) -> None:
    with pytest.raises(ArtifactError, match=r"MLmodel: signature\.inputs is no"):
        signature(tmp_path, columns, raw=True)


@pytest.mark.parametrize("columns", [7, {"a": 1}, ["x"]])
def test_a_signature_in_yaml_is_refused(tmp_path: Path, columns: Any) -> None:
    """MLflow writes JSON in a string."""
    with pytest.raises(ArtifactError, match=r"signature\.inputs is not JSON"):
        signature(tmp_path, columns, raw=True)


@pytest.mark.parametrize(
    "document", [{}, {"signature": None}, {"signature": "x"}, {"signature": []}]
)
def test_a_model_without_a_signature_has_no_tensors(tmp_path: Path, document: Any) -> None:
    opened = ModelArtifact.open(save(tmp_path, {"flavors": {"onnx": {}}} | document))
    assert opened.signature_tensors("inputs") == {}
    assert opened.signature_tensors("outputs") == {}
