"""Requests are joined where each row is known to be answered by itself, and nowhere else."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import skops.io
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingClassifier

from triton_repo.artifact import ModelArtifact
from triton_repo.change import plan_return
from triton_repo.config import ModelConfig
from triton_repo.flavors import convert
from triton_repo.joining import Joining, joining_of
from triton_repo.names import check_name
from triton_repo.record import DeploymentRecord, FileDigest, Source, VersionRecord
from triton_repo.stock import Stock

if TYPE_CHECKING:
    from pathlib import Path

COLUMN = [{"name": "x", "type": "double"}]
TENSOR = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}}]
FIXED = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [2, 4]}}]


def config_of(root: Path, loader: str, columns: list[Any] = COLUMN, **settings: Any) -> ModelConfig:
    """The config.pbtxt generated for a python_function with this loader."""
    library = settings.pop("library", {})
    flavor = {"loader_module": loader, **settings}
    signature = {side: json.dumps(columns) for side in ("inputs", "outputs")}
    flavors = {"python_function": flavor, loader.rpartition(".")[2]: library}
    document = {"flavors": flavors, "signature": signature}
    (root / "MLmodel").write_text(json.dumps(document))
    artifact = ModelArtifact.open(root)
    entry = convert(artifact, flavor="python_function", name=check_name("m"), version=1)
    assert entry.config is not None
    return entry.config


def joining(root: Path, loader: str, columns: list[Any] = COLUMN, **settings: Any) -> Joining:
    config = config_of(root, loader, columns, **settings)
    found = joining_of(config, "python_function")
    assert found.is_joined == config.is_dynamic
    return found


@pytest.mark.parametrize(
    "loader", ["mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost"]
)
def test_tables_of_known_libraries_are_answered_row_by_row(tmp_path: Path, loader: str) -> None:
    found = joining(tmp_path, loader)
    assert found.is_joined
    assert "answers each row by itself" in found.why


@pytest.mark.parametrize("loader", ["mlflow.pytorch", "mlflow.keras", "mlflow.tensorflow"])
def test_networks_are_where_the_signature_has_a_batch(tmp_path: Path, loader: str) -> None:
    library = {"model_type": "keras"}
    assert joining(tmp_path, loader, TENSOR, library=library).is_joined
    without = joining(tmp_path, loader, FIXED, library=library)
    assert without == Joining(is_joined=False, why="the signature has no batch dimension")


@pytest.mark.parametrize(
    ("loader", "library", "words"),
    [
        ("mlflow.tensorflow", {"model_type": "tf2-module"}, "a TensorFlow tf2-module"),
        ("mlflow.tensorflow", {}, "a TensorFlow module"),
        ("mlflow.xgboost", {"model_class": "mine.XGBRanker"}, "mine.XGBRanker"),
        ("mlflow.xgboost", {"model_class": "xgboost_more.XGBRanker"}, "xgboost_more.XGBRanker"),
    ],
)
def test_what_a_librarys_flavor_loads_of_others_is_not(
    tmp_path: Path, loader: str, library: dict[str, str], words: str
) -> None:
    found = joining(tmp_path, loader, TENSOR, library=library)
    assert found == Joining(is_joined=False, why=f"{words} may look at all rows of a request")
    its_own = {"model_class": "xgboost.sklearn.XGBRanker"}
    assert joining(tmp_path, "mlflow.xgboost", library=its_own).is_joined


@pytest.mark.parametrize(
    "loader",
    [
        *("mlflow.pyfunc.model", "mlflow.prophet", "mlflow.pmdarima", "mlflow.statsmodels"),
        *("mlflow.transformers", "mlflow.sentence_transformers", "mlflow.langchain", "mine"),
    ],
)
def test_everything_else_is_asked_request_by_request(tmp_path: Path, loader: str) -> None:
    found = joining(tmp_path, loader)
    assert not found.is_joined
    assert "may look at all rows of a request" in found.why


@pytest.mark.parametrize("method", ["fit_predict", "score", "fit_transform"])
def test_methods_that_look_at_all_rows_are_not(tmp_path: Path, method: str) -> None:
    found = joining(tmp_path, "mlflow.sklearn", predict_fn=method)
    assert found == Joining(
        is_joined=False, why=f"{method} of scikit-learn may look at all rows of a request"
    )
    assert joining(tmp_path, "mlflow.sklearn", predict_fn="predict_proba").is_joined


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_class_of_somebody_elses_in_a_pickle_is_not(tmp_path: Path, protocol: int) -> None:
    """Names are read from the pickle without running it, memoized ones too."""
    known = [np.arange(3.0), OrderedDict(a=np.float64(1)), np.arange(3.0), {"x": np.int64(3)}]
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(known, protocol))
    assert joining(tmp_path, "mlflow.sklearn").is_joined
    path.write_bytes(pickle.dumps([*known, Fraction(1, 2)], protocol))
    assert joining(tmp_path, "mlflow.sklearn") == Joining(
        is_joined=False,
        why="fractions.Fraction in the scikit-learn model may look at all rows of a request",
    )


@pytest.mark.parametrize(
    ("start", "is_joined"),
    [(None, True), ("zero", True), ("prior", True), ("stratified", False), ("uniform", False)],
)
def test_gradient_boosting_is_where_what_it_starts_from_draws_nothing(
    tmp_path: Path, start: str | None, *, is_joined: bool
) -> None:
    """It starts from a DummyClassifier, and some of these draw random numbers for all rows."""
    init = DummyClassifier(strategy=start) if start not in (None, "zero") else start
    model = GradientBoostingClassifier(n_estimators=1, init=init).fit([[0.0], [1.0]], [0, 1])
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(model))
    assert joining(tmp_path, "mlflow.sklearn").is_joined is is_joined
    path.write_bytes(pickle.dumps(DummyClassifier().fit([[0.0], [1.0]], [0, 1])))
    assert "sklearn.dummy.DummyClassifier" in joining(tmp_path, "mlflow.sklearn").why
    path.unlink()
    (tmp_path / "model.skops").write_bytes(skops.io.dumps(model))
    assert joining(tmp_path, "mlflow.sklearn").is_joined is is_joined


def test_nor_is_a_pickle_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(bytes(100))
    assert "model.pkl, which cannot be read" in joining(tmp_path, "mlflow.lightgbm").why


@pytest.mark.parametrize(
    ("module", "name", "is_joined"),
    [
        ("sklearn.linear_model._base", "LinearRegression", True),
        ("sklearn.preprocessing._function_transformer", "FunctionTransformer", False),
        ("sklearn.decomposition._nmf", "NMF", False),
        ("sklearn.dummy", "DummyClassifier", False),
        ("sklearn.neural_network._rbm", "BernoulliRBM", False),
        ("my_package", "Ranks", False),
    ],
)
def test_skops_files_are_read_too(
    tmp_path: Path, module: str, name: str, *, is_joined: bool
) -> None:
    step = {"__class__": name, "__module__": module, "__loader__": "ObjectNode"}
    steps = {"__class__": "Pipeline", "__module__": "sklearn.pipeline", "content": [step]}
    with zipfile.ZipFile(tmp_path / "model.skops", "w") as archive:
        archive.writestr("schema.json", json.dumps(steps))
    assert joining(tmp_path, "mlflow.sklearn").is_joined is is_joined


def test_what_a_user_asks_for_is_done_and_can_be_taken_back(tmp_path: Path) -> None:
    generated = config_of(tmp_path, "mlflow.pyfunc.model")
    joined = generated.overridden({"join_requests": "true"})
    assert joined.is_dynamic
    assert joining_of(joined, "python_function") == Joining(
        is_joined=True, why="-C join_requests=true asks for it"
    )
    apart = joined.overridden({"join_requests": "false"})
    assert not apart.is_dynamic
    assert joining_of(apart, "python_function").why == "-C join_requests=false asks for it"
    known = config_of(tmp_path, "mlflow.sklearn")
    assert known.overridden({"join_requests": "true"}) == known


def test_options_of_the_batcher_do_not_join_what_may_look_at_all_rows(tmp_path: Path) -> None:
    """Priorities need Triton's dynamic batcher; model.py then asks for each request."""
    generated = config_of(tmp_path, "mlflow.pyfunc.model")
    config = generated.overridden({"dynamic_batching.priority_levels": "3"})
    assert config.is_dynamic
    assert not joining_of(config, "python_function").is_joined


def test_a_deployment_of_an_older_release_is_told() -> None:
    inputs = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
    text = (
        '# Generated from the model\'s signature.\nbackend: "python"\nmax_batch_size: 8\n' + inputs
    )
    older = ModelConfig.parse(text + "dynamic_batching { }\n")
    found = joining_of(older, "python_function")
    assert (found.is_joined, found.is_older) == (True, True)
    assert "-C join_requests=true or false" in found.why
    own = ModelConfig.parse(
        f'backend: "python"\nmax_batch_size: 8\ndynamic_batching {{ }}\n{inputs}'
    )
    assert not joining_of(own, "python_function").is_joined
    assert joining_of(own, "triton").is_joined


def test_a_model_py_of_an_older_release_joins_under_a_config_of_the_models_own() -> None:
    inputs = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]'
    own = ModelConfig.parse(f'backend: "python" max_batch_size: 8 dynamic_batching {{ }} {inputs}')
    older = "39c64ccc19eb27222763c13d4e195e836c9ff66cb409e9e980c6aa82af350d9c"
    files = {"model.py": FileDigest(1, older)}
    found = joining_of(own, "python_function", files)
    assert (found.is_joined, found.is_older) == (True, True)
    assert not joining_of(own, "python_function", {"model.py": FileDigest(1, "0")}).is_joined
    said = own.with_override("parameters.mlflow_join_requests", "false: mine")
    assert joining_of(said, "python_function", files).is_older  # it does not read the parameter
    assert not joining_of(own, "triton", files).is_older
    placed = VersionRecord(Source(), files, config=own.text, flavor="python_function")
    now = DeploymentRecord("m", "python_function", "", "", serving=(1,), versions={1: placed})
    assert plan_return(Stock(now), 1, source=Source()).joining.is_older


def test_what_triton_completes_it_may_join() -> None:
    bare = ModelConfig.parse('backend: "onnxruntime"\n')
    assert joining_of(bare, "triton") == Joining(
        is_joined=True, why="config.pbtxt names no inputs; Triton completes it, and may join them"
    )


def test_versions_serve_together_whose_reasons_differ_and_not_whose_joining_does() -> None:
    text = 'backend: "python" max_batch_size: 8 parameters {{ key: "{key}" value {{ {value} }} }}'

    def config(said: str) -> ModelConfig:
        value = f'string_value: "{said}"'
        return ModelConfig.parse(text.format(key="mlflow_join_requests", value=value))

    assert config("true: one").difference(config("true: another")) is None
    differing = config("true: one").difference(config("false: one"))
    assert differing == "parameters.mlflow_join_requests"
