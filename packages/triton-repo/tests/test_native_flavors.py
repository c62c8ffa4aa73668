"""Forests for FIL, TorchScript, SavedModels: files, config.pbtxt, and who chooses them.

Real models of these libraries are in the plugin's tests/flavors, read there by what FIL reads with.
"""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.artifact import ModelArtifact
from triton_repo.config import NO_CONFIG, ModelConfig
from triton_repo.errors import ArtifactError, ConfigError, UnsupportedFlavorError
from triton_repo.flavors import check_backend, choose_flavor, convert
from triton_repo.names import check_name
from triton_repo.tensors import TensorSpec

from .model_files import lightgbm_text, torch_archive, xgboost_document, xgboost_file
from .test_pyfunc_flavor import array, column, tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from triton_repo.entry import RepositoryEntry

TABLE = [column("width", "double"), column("age", "long"), column("is_new", "boolean")]
NUMBER = [tensor(None, "float32", -1)]
PYFUNC = {"python_function": {"loader_module": "x"}}


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
    kind: str = "XGBRegressor", suffix: str = "ubj", **boosting: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    module = "core" if kind == "Booster" else "sklearn"
    settings = {"data": f"model.{suffix}", "model_class": f"xgboost.{module}.{kind}"}
    document = xgboost_document(**boosting)
    return {"xgboost": settings}, {f"model.{suffix}": xgboost_file(document, suffix)}


def lightgbm(objective: str = "regression", **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    text = lightgbm_text(objective, **more)
    return {"lightgbm": {"data": "model.lgb"}}, {"model.lgb": text.encode()}


def torch_script(
    attributes: Any = (("training", False),), *members: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    pickled = attributes if isinstance(attributes, bytes) else pickle.dumps(dict(attributes), 2)
    archive = torch_archive(pickled, *members)
    return {"pytorch": {"model_data": "data"}}, {"data/model.pth": archive}


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
        "mlflow_join_requests": "true: a forest answers each row by itself",
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


def test_a_class_of_somebody_elses_may_answer_otherwise(
    model: Callable[..., ModelArtifact],
) -> None:
    flavors, files = xgboost("XGBRanker")
    assert choose_flavor(model(flavors, files)) == "xgboost"
    flavors["xgboost"]["model_class"] = "mine.XGBRanker"
    assert choose_flavor(model(flavors, files)) == "python_function"


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
        (xgboost(booster="gblinear"), "is a linear model (gblinear)"),
        (xgboost("Booster", "json", booster="gblinear"), "is a linear model (gblinear)"),
        (({"xgboost": {"data": "m.ubj"}}, {"m.ubj": b"{L"}), "is not what XGBoost writes"),
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


# -- forests: what XGBoost predicts with, what 32 bits can tell apart ------------------------------


@pytest.mark.parametrize("suffix", ["ubj", "json"])
def test_an_estimator_that_leaves_rounds_out_is_for_python(
    model: Callable[..., ModelArtifact], suffix: str
) -> None:
    """Early stopping: the file holds all rounds, and FIL predicts with all of them."""
    artifact = model(*xgboost(suffix=suffix, rounds=9, best=3))
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ArtifactError) as raised:
        entry_of(artifact, "xgboost")
    assert "holds 9 rounds, of which its estimator predicts with the first 4" in str(raised.value)
    assert "save_best=True" in str(raised.value)


def test_an_estimator_that_kept_the_best_rounds_is_for_fil(
    model: Callable[..., ModelArtifact],
) -> None:
    assert entry_of(model(*xgboost(rounds=9, best=8))).flavor == "xgboost"
    assert entry_of(model(*xgboost("XGBClassifier", rounds=4, trees=3, best=3))).flavor == "xgboost"


def test_a_booster_predicts_with_all_rounds(model: Callable[..., ModelArtifact]) -> None:
    """MLflow asks it as it is, and only the estimators look for the best round."""
    assert entry_of(model(*xgboost("Booster", rounds=9, best=3)), "xgboost").flavor == "xgboost"


def test_dart_is_a_forest_too(model: Callable[..., ModelArtifact]) -> None:
    assert entry_of(model(*xgboost(booster="dart"))).flavor == "xgboost"
    assert choose_flavor(model(*xgboost(booster="dart", best=0))) == "python_function"


@pytest.mark.parametrize(
    ("kind", "infos", "splits", "fits"),
    [
        ("double", "[0:100]", (20.25, 20.5, 60.0), True),
        ("double", "[0:100]", (20.25, 20.2501), False),  # a few dozen steps of FP32
        ("double", "[1700000000:1700005000]", (1700001234.5,), False),
        ("double", "[0:1000000000000]", (0.5, 999.5), True),  # what is far beyond stays beyond
        ("double", "[0:20]", (1e300,), True),  # LightGBM's infinity
        ("double", "1:2:3", (0.0,), True),
        ("double", "1:2:30000000", (0.0,), False),
        ("double", "none", ("nonsense",), False),
        ("float", "[0:100]", (20.25, 20.2501), True),  # such a column has nothing in between
        ("float", "[0:40000000]", (30000000.0,), True),
        ("long", "[19000:19365]", (19001.5, 19002.5), True),
        ("long", "[1700000000:1700005000]", (1700001234.5,), False),
    ],
)
def test_thresholds_that_32_bits_move_are_for_python(
    model: Callable[..., ModelArtifact], kind: str, infos: str, splits: Any, *, fits: bool
) -> None:
    """LightGBM's columns have 64 bits; asked for, FIL serves it all the same."""
    inputs = [column("width", "float"), column("x", kind)]
    made = lightgbm(last=1, infos=f"[0:1] {infos}", splits=tuple((1, each) for each in splits))
    artifact = model(*made, inputs=inputs)
    assert choose_flavor(artifact) == ("lightgbm" if fits else "python_function")
    assert entry_of(artifact, "lightgbm").flavor == "lightgbm"


def test_large_integers_are_for_python_where_no_client_knows_the_columns(
    model: Callable[..., ModelArtifact],
) -> None:
    """Where config.pbtxt names columns they are rounded, as XGBoost does; elsewhere refused."""
    assert choose_flavor(model(*xgboost(), inputs=[column("id", "long")])) == "xgboost"
    for inputs in (
        [tensor(None, "int64", -1, 3)],
        [column(None, "long"), column(None, "double")],
    ):
        artifact = model(*xgboost(), inputs=inputs)
        assert choose_flavor(artifact) == "python_function"
        assert entry_of(artifact, "xgboost").flavor == "xgboost"
    assert choose_flavor(model(*xgboost(), inputs=[tensor(None, "int16", -1, 3)])) == "xgboost"


def test_a_matrix_of_doubles_is_looked_at_as_columns_are(
    model: Callable[..., ModelArtifact],
) -> None:
    inputs = [tensor(None, "float64", -1, 3)]
    assert choose_flavor(model(*lightgbm(), inputs=inputs)) == "lightgbm"
    near = model(*lightgbm(splits=((2, 0.5), (2, 0.500001))), inputs=inputs)
    assert choose_flavor(near) == "python_function"


def test_a_matrix_has_columns_without_names(model: Callable[..., ModelArtifact]) -> None:
    entry = entry_of(model(*xgboost(), inputs=[tensor(None, "float64", -1, 5)]))
    assert entry.config is not None
    assert entry.config.inputs == (TensorSpec("input__0", "FP32", (5,)),)
    assert "mlflow_columns" not in parameters(entry)


# -- TorchScript ----------------------------------------------------------------------------------


def test_torch_script(model: Callable[..., ModelArtifact], tmp_path: Path) -> None:
    image, classes = [tensor(None, "float32", -1, 3, 8, 8)], [tensor(None, "float32", -1, 10)]
    entry = entry_of(model(*torch_script(), inputs=image, outputs=classes))
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
    entry = entry_of(model(*torch_script(), inputs=fixed, outputs=fixed))
    assert entry.config is not None
    assert entry.config.max_batch_size == 0
    assert entry.config.inputs == (TensorSpec("INPUT__0", "FP32", (1, 4)),)


def test_torch_script_of_a_table(model: Callable[..., ModelArtifact], tmp_path: Path) -> None:
    outputs = [column("a", "float"), column("b", "float")]
    entry = entry_of(model(*torch_script(), outputs=outputs))
    assert entry.config is not None
    assert entry.config.inputs == (TensorSpec("INPUT__0", "FP32", (3,)),)
    assert entry.config.outputs == (TensorSpec("OUTPUT__0", "FP32", (2,)),)
    assert parameters(entry) == {
        "mlflow_columns": '["width", "age", "is_new"]',
        "mlflow_join_requests": "true: PyTorch answers each row of a batch",
    }


MATRIX = [tensor(None, "float32", -1, 4)]


@pytest.mark.parametrize(
    "attributes",
    [
        {"training": True, "d": 1},
        {"training": False, "part": {"word": "training", "training": True}},
        {"training": False, "words": ["training", "x"], "part": {"training": True}},
    ],
)
def test_torch_script_in_training_mode_is_for_python(
    model: Callable[..., ModelArtifact], attributes: Any
) -> None:
    """MLflow calls eval() once it has loaded it, and Triton does not: Dropout would be random."""
    artifact = model(*torch_script(attributes), inputs=MATRIX, outputs=MATRIX)
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ArtifactError, match=r"model\.eval\(\) before torch\.jit\.script"):
        entry_of(artifact, "pytorch")


@pytest.mark.parametrize(
    "attributes",
    [
        {"training": False, "words": ["training", "x"], "part": {"training": False}},
        {},  # frozen: no code can go by it
    ],
)
def test_torch_script_that_only_answers_is_for_triton(
    model: Callable[..., ModelArtifact], attributes: Any
) -> None:
    artifact = model(*torch_script(attributes), inputs=MATRIX, outputs=MATRIX)
    assert entry_of(artifact).flavor == "pytorch"


def test_torch_script_that_does_not_say_is_for_python(model: Callable[..., ModelArtifact]) -> None:
    for pickled in (b"x", b"", pickle.dumps({"training": False}, 4)):
        artifact = model(*torch_script(pickled), inputs=MATRIX, outputs=MATRIX)
        assert choose_flavor(artifact) == "python_function"
        with pytest.raises(ArtifactError, match="does not say whether its modules are in training"):
            entry_of(artifact, "pytorch")


@pytest.mark.parametrize(
    ("outputs", "datatype", "is_chosen"),
    [
        ([column("label", "long")], "INT64", True),
        ([column("is_new", "boolean")], "BOOL", True),
        ([column("score", "float")], "FP32", True),
        # by hand, for what torch answers in FP32 and INT64
        ([column("score", "double")], "FP64", False),
        ([column("label", "integer")], "INT32", False),
        ([tensor(None, "int32", -1, 1)], "INT32", True),
        ([tensor(None, "float64", -1, 2)], "FP64", False),
    ],
)
def test_an_answer_of_torch_script_has_the_type_of_the_signature(
    model: Callable[..., ModelArtifact], outputs: Any, datatype: str, *, is_chosen: bool
) -> None:
    """Triton refuses every answer of another type; where that may be, nobody chooses it unasked."""
    artifact = model(*torch_script(), outputs=outputs)
    assert choose_flavor(artifact) == ("pytorch" if is_chosen else "python_function")
    config = entry_of(artifact, "pytorch").config
    assert config is not None
    assert config.outputs[0].datatype == datatype


def test_a_double_module_takes_doubles(model: Callable[..., ModelArtifact]) -> None:
    double = [tensor(None, "float64", -1, 4)]
    assert choose_flavor(model(*torch_script(), inputs=double, outputs=double)) == "pytorch"


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ({"inputs": [tensor(None, "uint16", -1, 4)]}, "has no UINT16"),
        ({"outputs": [tensor(None, "uint32", -1, 4)]}, "has no UINT32"),
        ({"outputs": [tensor(None, "bfloat16", -1, 4)]}, "has no BF16"),
        ({"inputs": [tensor(None, "str", -1, 4)]}, "has no BYTES"),
        ({"outputs": [column("a", "float"), column("b", "long")]}, "different types (float, long)"),
        ({"outputs": [column("a", "string")]}, "tensors of numbers only, and the model has string"),
    ],
)
def test_types_that_triton_s_torch_has_not_are_for_python(
    model: Callable[..., ModelArtifact], sides: Any, words: str
) -> None:
    artifact = model(*torch_script(), **({"inputs": MATRIX, "outputs": MATRIX} | sides))
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ArtifactError) as raised:
        entry_of(artifact, "pytorch")
    assert words in str(raised.value)


def test_several_tensors_are_for_who_asks(
    model: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    """MLflow's own pyfunc takes one."""
    two = [tensor("ids", "int64", -1, 8), tensor("mask", "int64", -1, 8)]
    artifact = model(*torch_script(), inputs=two, outputs=NUMBER)
    assert choose_flavor(artifact) == "python_function"
    config = entry_of(artifact, "pytorch").config
    assert config is not None
    assert [spec.name for spec in config.inputs] == ["INPUT__0", "INPUT__1"]


@pytest.mark.parametrize("members", [("model/data.pkl", "model/data/0"), ()])
def test_a_pickled_module_is_for_python(
    model: Callable[..., ModelArtifact], tmp_path: Path, members: tuple[str, ...]
) -> None:
    made = torch_script(b"", *members)
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


def test_a_config_that_is_given_has_the_last_word(
    model: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    """It stands in the place of the model's own, so that one counts no more."""
    given = {
        backend: ModelConfig.parse(f'backend: "{backend}"') for backend in ("python", "fil", "onnx")
    }
    artifact = model(*xgboost())
    assert choose_flavor(artifact, config=given["python"]) == "python_function"
    assert choose_flavor(artifact, config=given["fil"]) == "xgboost"
    assert choose_flavor(artifact, config=given["onnx"]) == "xgboost"
    assert choose_flavor(artifact, config=NO_CONFIG) == "xgboost"
    assert choose_flavor(model(*xgboost("Booster")), config=given["fil"]) == "xgboost"
    assert choose_flavor(artifact, config=given["fil"], native=False) == "python_function"
    assert choose_flavor(artifact, "xgboost", config=given["python"]) == "xgboost"
    assert choose_flavor(artifact, before="xgboost", config=given["python"]) == "xgboost"
    (tmp_path / "config.pbtxt").write_text('backend: "python"\n')
    assert choose_flavor(artifact) == "python_function"
    assert choose_flavor(artifact, config=given["fil"]) == "xgboost"


@pytest.mark.parametrize("flavor", ["xgboost", "python_function"])
def test_a_config_of_another_backend_is_refused(
    model: Callable[..., ModelArtifact], flavor: str
) -> None:
    """Triton would look for files that are not there, and with Python wait for them for ever."""
    entry = entry_of(model(*xgboost()), flavor)
    served_by = {"xgboost": "fil", "python_function": "python"}
    for backend in ("", served_by[flavor]):
        check_backend(entry, ModelConfig.parse(f'backend: "{backend}"'))
    other = next(each for each in served_by.values() if each != served_by[flavor])
    with pytest.raises(ConfigError) as raised:
        check_backend(entry, ModelConfig.parse(f'backend: "{other}"'))
    assert f"flavor {flavor} is served by {served_by[flavor]!r}" in str(raised.value)
    assert "choose another --flavor" in str(raised.value)


def test_python_runs_a_file_that_is_there(model: Callable[..., ModelArtifact]) -> None:
    entry = entry_of(model(*xgboost()), "python_function")
    text = 'backend: "python"\ndefault_model_filename: "{}"'
    check_backend(entry, ModelConfig.parse(text.format("mlflow_triton_values.py")))
    with pytest.raises(ConfigError, match=r"runs other\.py, and version 7 of the model has none"):
        check_backend(entry, ModelConfig.parse(text.format("other.py")))


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
