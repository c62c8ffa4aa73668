"""Forests for FIL, TorchScript, SavedModels: files, config.pbtxt, and who chooses them.

Real models of these libraries are in the plugin's tests/flavors, read there by what FIL reads with.
"""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError, ConfigError, UnsupportedFlavorError
from triton_repo.flavors import choose_flavor, convert
from triton_repo.names import check_name
from triton_repo.tensors import TensorSpec

from .test_pyfunc_flavor import array, column, tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from triton_repo.entry import RepositoryEntry

TABLE = [column("width", "double"), column("age", "long"), column("is_new", "boolean")]
NUMBER = [tensor(None, "float32", -1)]
PYFUNC = {"python_function": {"loader_module": "x"}}
LIGHTGBM = """tree
version=v4
num_class={classes}
num_tree_per_iteration=1
label_index=0
max_feature_idx={last}
objective={objective}
feature_names=width age is_new
tree_sizes=300

Tree=0
num_leaves=2
leaf_value=1 2

end of trees

pandas_categorical:{categories}
"""


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelArtifact]:
    """A logged model of these flavors, files and signature."""

    def log(
        flavors: dict[str, dict[str, Any]],
        files: dict[str, bytes],
        inputs: Sequence[dict[str, Any]] | None = TABLE,
        outputs: Sequence[dict[str, Any]] | None = NUMBER,
    ) -> ModelArtifact:
        sides = {"inputs": inputs, "outputs": outputs}
        signature = {side: json.dumps(each) for side, each in sides.items() if each is not None}
        document = {"flavors": flavors | PYFUNC, "signature": signature}
        (tmp_path / "MLmodel").write_text(json.dumps(document))
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        return ModelArtifact.open(tmp_path)

    return log


def xgboost(
    kind: str = "XGBRegressor", suffix: str = "ubj"
) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = {"data": f"model.{suffix}", "model_class": f"xgboost.sklearn.{kind}"}
    return {"xgboost": settings}, {f"model.{suffix}": b"{L"}


def lightgbm(
    objective: str = "regression", *, classes: int = 1, last: int = 2, categories: str = "[]"
) -> tuple[dict[str, Any], dict[str, Any]]:
    text = LIGHTGBM.format(classes=classes, last=last, objective=objective, categories=categories)
    return {"lightgbm": {"data": "model.lgb"}}, {"model.lgb": text.encode()}


def torch_script(root: Path, *members: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path = root / "made.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members or ("model/data.pkl", "model/constants.pkl", "model/code/__torch__.py"):
            archive.writestr(name, b"x")
    return {"pytorch": {"model_data": "data"}}, {"data/model.pth": path.read_bytes()}


def entry_of(artifact: ModelArtifact, flavor: str | None = None) -> RepositoryEntry:
    flavor = choose_flavor(artifact, flavor)
    return convert(artifact, flavor=flavor, name=check_name("m"), version=7)


def parameters(entry: RepositoryEntry) -> dict[str, str]:
    assert entry.config is not None
    return entry.config.parameters


# -- forests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "model_type", "filename"),
    [("ubj", "xgboost_ubj", "xgboost.ubj"), ("json", "xgboost_json", "xgboost.json")],
)
def test_xgboost(
    model: Callable[..., ModelArtifact], suffix: str, model_type: str, filename: str
) -> None:
    entry = entry_of(model(*xgboost(suffix=suffix)))
    assert (entry.flavor, entry.has_own_config) == ("xgboost", False)
    assert [str(file.path) for file in entry.versions[7].files] == [filename]
    assert entry.config is not None
    assert entry.config.backend == "fil"
    assert entry.config.inputs == (TensorSpec("input__0", "FP32", (3,)),)
    assert entry.config.outputs == (TensorSpec("output__0", "FP32", (1,)),)
    assert entry.config.max_batch_size > 0
    assert parameters(entry) == {
        "model_type": model_type,
        "output_class": "false",
        "is_classifier": "false",
        "mlflow_columns": '["width", "age", "is_new"]',
    }


@pytest.mark.parametrize("kind", ["XGBClassifier", "XGBRFClassifier"])
def test_a_classifier_answers_labels(model: Callable[..., ModelArtifact], kind: str) -> None:
    entry = entry_of(model(*xgboost(kind), outputs=[tensor(None, "int64", -1)]))
    assert entry.flavor == "xgboost"
    assert parameters(entry)["output_class"] == parameters(entry)["is_classifier"] == "true"
    assert "predict_proba" not in parameters(entry)


@pytest.mark.parametrize(
    ("kind", "outputs", "answers"),
    [
        ("Booster", NUMBER, {"output_class": "false"}),
        (
            "Booster",
            [tensor(None, "float32", -1, 4)],
            {"output_class": "true", "predict_proba": "true"},
        ),
        ("XGBRegressor", [tensor(None, "float32", -1, 4)], {"output_class": "false"}),
        ("XGBRegressor", None, {"output_class": "false"}),
    ],
)
def test_what_fil_may_answer_otherwise_is_for_who_asks(
    model: Callable[..., ModelArtifact],
    kind: str,
    outputs: list[dict[str, Any]] | None,
    answers: dict[str, str],
) -> None:
    artifact = model(*xgboost(kind), outputs=outputs)
    assert choose_flavor(artifact) == "python_function"
    asked = entry_of(artifact, "xgboost")
    assert answers.items() <= parameters(asked).items()
    assert asked.config is not None
    assert asked.config.outputs[0].shape == ((4,) if "predict_proba" in answers else (1,))


@pytest.mark.parametrize("objective", ["regression", "poisson", "lambdarank", "quantile alpha:0.5"])
def test_lightgbm(model: Callable[..., ModelArtifact], objective: str) -> None:
    entry = entry_of(model(*lightgbm(objective)))
    assert entry.flavor == "lightgbm"
    assert [str(file.path) for file in entry.versions[7].files] == ["model.txt"]
    assert parameters(entry)["model_type"] == "lightgbm"
    assert parameters(entry)["output_class"] == "false"


def test_lightgbm_s_probabilities_are_for_who_asks(model: Callable[..., ModelArtifact]) -> None:
    binary = model(*lightgbm("binary sigmoid:1"))
    assert choose_flavor(binary) == "python_function"
    assert parameters(entry_of(binary, "lightgbm"))["output_class"] == "false"
    several = lightgbm("multiclass num_class:3", classes=3)
    multiclass = model(*several, outputs=[tensor(None, "float64", -1, 3)])
    assert choose_flavor(multiclass) == "python_function"
    entry = entry_of(multiclass, "lightgbm")
    assert parameters(entry)["predict_proba"] == "true"
    assert entry.config is not None
    assert entry.config.outputs[0].shape == (3,)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (xgboost(suffix="xgb"), 'model_format="ubj"'),
        (lightgbm(last=8), "the signature has 3 columns, and model.lgb takes 9"),
        (lightgbm(categories='[["a", "b"]]'), "pandas' categories"),
        (({"lightgbm": {"data": "model.lgb"}}, {"model.lgb": b"\x80\x04pickle"}), "is a pickle"),
        (({"lightgbm": {"data": "model.lgb"}}, {"model.lgb": b""}), "is a pickle"),
    ],
)
def test_what_fil_does_not_read_is_for_python(
    model: Callable[..., ModelArtifact], made: Any, words: str
) -> None:
    artifact = model(*made)
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ArtifactError) as raised:
        entry_of(artifact, next(iter(made[0])))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([column("color", "string")], "column 'color' is string"),
        ([column("x", "double", required=False)], "column 'x' is double or missing"),
        ([column("x", array({"type": "double"}))], "more than one number a row"),
        ([column("x", {"type": "any"})], "column 'x' is Any"),
        ([tensor(None, "float32", -1, -1)], "Tensor(float32, (-1, -1)), and no table"),
        ([tensor(None, "float32", -1, 2, 3)], "and no table of numbers"),
        (None, "without a signature"),
    ],
)
def test_what_is_no_table_of_numbers_is_for_python(
    model: Callable[..., ModelArtifact], inputs: Any, words: str
) -> None:
    artifact = model(*xgboost(), inputs=inputs)
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ArtifactError) as raised:
        entry_of(artifact, "xgboost")
    assert words in str(raised.value)


def test_a_matrix_has_columns_without_names(model: Callable[..., ModelArtifact]) -> None:
    entry = entry_of(model(*xgboost(), inputs=[tensor(None, "float64", -1, 5)]))
    assert entry.config is not None
    assert entry.config.inputs == (TensorSpec("input__0", "FP32", (5,)),)
    assert "mlflow_columns" not in parameters(entry)


# -- TorchScript ----------------------------------------------------------------------------------


def test_torch_script(model: Callable[..., ModelArtifact], tmp_path: Path) -> None:
    image, classes = [tensor(None, "float32", -1, 3, 8, 8)], [tensor(None, "float32", -1, 10)]
    entry = entry_of(model(*torch_script(tmp_path), inputs=image, outputs=classes))
    assert entry.flavor == "pytorch"
    assert [str(file.path) for file in entry.versions[7].files] == ["model.pt"]
    assert entry.config is not None
    assert entry.config.backend == "pytorch"
    assert entry.config.inputs == (TensorSpec("INPUT__0", "FP32", (3, 8, 8)),)
    assert entry.config.outputs == (TensorSpec("OUTPUT__0", "FP32", (10,)),)
    assert entry.config.max_batch_size > 0


def test_torch_script_of_fixed_shapes_is_not_batched(
    model: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    fixed = [tensor(None, "float32", 1, 4)]
    entry = entry_of(model(*torch_script(tmp_path), inputs=fixed, outputs=fixed))
    assert entry.config is not None
    assert entry.config.max_batch_size == 0
    assert entry.config.inputs == (TensorSpec("INPUT__0", "FP32", (1, 4)),)


def test_torch_script_of_a_table(model: Callable[..., ModelArtifact], tmp_path: Path) -> None:
    outputs = [column("a", "float"), column("b", "float")]
    entry = entry_of(model(*torch_script(tmp_path), outputs=outputs))
    assert entry.config is not None
    assert entry.config.inputs == (TensorSpec("INPUT__0", "FP32", (3,)),)
    assert entry.config.outputs == (TensorSpec("OUTPUT__0", "FP32", (2,)),)
    assert parameters(entry) == {"mlflow_columns": '["width", "age", "is_new"]'}


def test_several_tensors_are_for_who_asks(
    model: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    """MLflow's own pyfunc takes one."""
    two = [tensor("ids", "int64", -1, 8), tensor("mask", "int64", -1, 8)]
    artifact = model(*torch_script(tmp_path), inputs=two, outputs=NUMBER)
    assert choose_flavor(artifact) == "python_function"
    config = entry_of(artifact, "pytorch").config
    assert config is not None
    assert [spec.name for spec in config.inputs] == ["INPUT__0", "INPUT__1"]


@pytest.mark.parametrize("members", [("model/data.pkl", "model/data/0"), ()])
def test_a_pickled_module_is_for_python(
    model: Callable[..., ModelArtifact], tmp_path: Path, members: tuple[str, ...]
) -> None:
    made = torch_script(tmp_path, *members)
    if not members:
        made[1]["data/model.pth"] = b"\x80\x02pickle"
    matrix = [tensor(None, "float32", -1, 4)]
    artifact = model(*made, inputs=matrix, outputs=matrix)
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ArtifactError, match=r"torch\.jit\.script"):
        entry_of(artifact, "pytorch")


# -- SavedModels ----------------------------------------------------------------------------------


def test_a_saved_model_is_for_who_asks(model: Callable[..., ModelArtifact]) -> None:
    settings = {"model_type": "tf2-module", "saved_model_dir": "tf2model"}
    files = {"tf2model/saved_model.pb": b"graph", "tf2model/variables/variables.index": b"i"}
    artifact = model({"tensorflow": settings}, files)
    assert choose_flavor(artifact) == "python_function"
    entry = entry_of(artifact, "tensorflow")
    assert {str(file.path) for file in entry.versions[7].files} == {
        "model.savedmodel/saved_model.pb",
        "model.savedmodel/variables/variables.index",
    }
    assert entry.config is not None
    assert entry.config.backend == "tensorflow"
    assert 'platform: "tensorflow_savedmodel"' in entry.config.text


def test_keras_own_format_is_no_saved_model(model: Callable[..., ModelArtifact]) -> None:
    settings = {"model_type": "keras", "data": "data"}
    artifact = model({"tensorflow": settings}, {"data/model.keras": b"zip"})
    with pytest.raises(ArtifactError, match="no SavedModel"):
        entry_of(artifact, "tensorflow")


# -- who chooses ----------------------------------------------------------------------------------


def test_what_is_deployed_stays_what_it_is(model: Callable[..., ModelArtifact]) -> None:
    artifact = model(*xgboost())
    assert choose_flavor(artifact, before="python_function") == "python_function"
    assert choose_flavor(artifact, before="xgboost") == "xgboost"
    assert choose_flavor(artifact, before="onnx") == "xgboost"
    assert choose_flavor(artifact, "xgboost", before="python_function") == "xgboost"
    assert choose_flavor(artifact, native=False) == "python_function"
    certain = model(*xgboost("Booster"))
    assert choose_flavor(certain, before="xgboost") == "xgboost"


def test_the_user_s_config_has_the_last_word(
    model: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    artifact = model(*xgboost())
    (tmp_path / "config.pbtxt").write_text('backend: "python"\nmax_batch_size: 8\n')
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ConfigError, match="served by 'fil'"):
        entry_of(artifact, "xgboost")
    own = 'backend: "fil"\ndefault_model_filename: "forest.bin"\nmax_batch_size: 8\n'
    (tmp_path / "config.pbtxt").write_text(own)
    entry = entry_of(model(*xgboost("Booster")))
    assert (entry.flavor, entry.has_own_config) == ("xgboost", True)
    assert [str(file.path) for file in entry.versions[7].files] == ["forest.bin"]


def test_without_python_function_it_is_the_only_way(
    model: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    model(*xgboost("Booster"))
    document = json.loads((tmp_path / "MLmodel").read_text())
    del document["flavors"]["python_function"]
    (tmp_path / "MLmodel").write_text(json.dumps(document))
    artifact = ModelArtifact.open(tmp_path)
    assert choose_flavor(artifact) == "xgboost"
    with pytest.raises(UnsupportedFlavorError, match="was not logged with flavor 'lightgbm'"):
        choose_flavor(artifact, "lightgbm")
