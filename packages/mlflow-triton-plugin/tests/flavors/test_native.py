"""Models with a faster way: what is placed, read by what Triton's backends read with.

The embedded server has neither FIL nor PyTorch's backend. FIL reads models with Treelite, whose own
prediction is beside MLflow's here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature

from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError
from triton_repo.flavors import choose_flavor, convert
from triton_repo.flavors.torch_script import is_in_training
from triton_repo.names import check_name

from .models import MODELS, Logged, local_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from triton_repo.config import ModelConfig

RANDOM = np.random.default_rng(3)
FRAME = pd.DataFrame(RANDOM.normal(size=(200, 4)), columns=["a", "b", "c", "d"])
VALUES = FRAME["a"] * 2 + FRAME["b"].abs() - FRAME["c"] * FRAME["d"]
TWO = (VALUES > 0).astype(np.int64)
THREE = np.digitize(VALUES, [-1.0, 1.0])


def logged(flavor: Any, model: Any, answer: Any, **more: Any) -> Logged:
    info = flavor.log_model(model, name="m", signature=infer_signature(FRAME, answer), **more)
    return Logged(info.model_uri, FRAME, flavor.__name__.removeprefix("mlflow."))


def xgb(kind: str, target: Any, model_format: str = "ubj", **options: Any) -> Logged:
    import xgboost  # noqa: PLC0415 - as in models

    model = getattr(xgboost, kind)(n_estimators=8, max_depth=3, **options).fit(FRAME, target)
    return logged(mlflow.xgboost, model, model.predict(FRAME), model_format=model_format)


def stopped(**options: Any) -> Logged:
    """Early: training goes on for some rounds after the best one."""
    import xgboost  # noqa: PLC0415

    callback = xgboost.callback.EarlyStopping(rounds=3, **options)
    model = xgboost.XGBRegressor(n_estimators=200, learning_rate=0.8, callbacks=[callback])
    noise = RANDOM.normal(size=50)
    model.fit(FRAME[50:], VALUES[50:], eval_set=[(FRAME[:50], VALUES[:50] + noise)], verbose=False)
    assert model.best_iteration < 199
    return logged(mlflow.xgboost, model, model.predict(FRAME), model_format="ubj")


def xgb_booster(target: Any, **parameters: Any) -> Logged:
    import xgboost  # noqa: PLC0415

    data = xgboost.DMatrix(FRAME, target)
    model = xgboost.train({"max_depth": 3, **parameters}, data, 8)
    return logged(mlflow.xgboost, model, model.predict(data))


def lgb_booster(target: Any, **parameters: Any) -> Logged:
    import lightgbm  # noqa: PLC0415

    data = lightgbm.Dataset(FRAME, target)
    model = lightgbm.train({"verbose": -1, **parameters}, data, 8)
    return logged(mlflow.lightgbm, model, model.predict(FRAME))


def lgb_stopped() -> Logged:
    import lightgbm  # noqa: PLC0415

    rest, first = (
        lightgbm.Dataset(FRAME[50:], VALUES[50:]),
        lightgbm.Dataset(FRAME[:50], VALUES[:50]),
    )
    stop = lightgbm.early_stopping(3, verbose=False)
    parameters = {"verbose": -1, "learning_rate": 0.8}
    model = lightgbm.train(parameters, rest, 200, valid_sets=[first], callbacks=[stop])
    assert model.best_iteration < 199
    return logged(mlflow.lightgbm, model, model.predict(FRAME))


#: Chosen by themselves.
CERTAIN: dict[str, Callable[[], Logged]] = {
    "regressor": lambda: xgb("XGBRegressor", VALUES),
    "regressor, JSON": lambda: xgb("XGBRegressor", VALUES, "json"),
    "counts": lambda: xgb("XGBRegressor", THREE, objective="count:poisson"),
    "random forest": lambda: xgb("XGBRFRegressor", VALUES),
    "dart": lambda: xgb("XGBRegressor", VALUES, booster="dart", rate_drop=0.3),
    "stopped, the best rounds kept": lambda: stopped(save_best=True),
    "two classes": lambda: xgb("XGBClassifier", TWO),
    "three classes": lambda: xgb("XGBClassifier", THREE),
    "LightGBM": lambda: lgb_booster(VALUES, objective="regression"),
    "LightGBM, quantiles": lambda: lgb_booster(VALUES, objective="quantile", alpha=0.8),
    "LightGBM, counts": lambda: lgb_booster(THREE, objective="poisson"),
    # it saves the best rounds alone
    "LightGBM, stopped": lgb_stopped,
}
#: For who asks.
ASKED: dict[str, Callable[[], Logged]] = {
    "Booster": lambda: xgb_booster(VALUES),
    "probability": lambda: xgb_booster(TWO, objective="binary:logistic"),
    "probabilities": lambda: xgb_booster(THREE, objective="multi:softprob", num_class=3),
    "LightGBM, probability": lambda: lgb_booster(TWO, objective="binary"),
    "LightGBM, probabilities": lambda: lgb_booster(THREE, objective="multiclass", num_class=3),
}


@pytest.mark.parametrize("name", [*CERTAIN, *ASKED])
def test_fil_reads_what_is_placed_and_answers_the_same(name: str) -> None:
    import treelite  # noqa: PLC0415 - as in models

    model = (CERTAIN | ASKED)[name]()
    artifact = ModelArtifact.open(Path(local_path(model)))
    assert choose_flavor(artifact) == (model.native if name in CERTAIN else "python_function")
    entry = convert(artifact, flavor=model.native, name=check_name("m"), version=1)
    config = entry.config
    assert config is not None
    (file,) = entry.versions[1].files
    if config.parameters["model_type"] == "lightgbm":
        forest = treelite.frontend.load_lightgbm_model(file.local())
    else:
        kind = {"xgboost_ubj": "ubjson", "xgboost_json": "json"}[config.parameters["model_type"]]
        forest = treelite.frontend.load_xgboost_model(file.local(), format_choice=kind)
    assert forest.num_feature == config.inputs[0].shape[0]
    answered = treelite.gtil.predict(forest, FRAME.to_numpy(np.float32))[:, 0, :]
    wanted = np.asarray(mlflow.pyfunc.load_model(model.uri).predict(FRAME))
    np.testing.assert_allclose(
        as_fil_answers(answered, config), wanted.reshape(len(FRAME), -1), rtol=1e-4, atol=1e-5
    )


def as_fil_answers(scores: Any, config: ModelConfig) -> Any:
    """A value, the number of a class or probabilities: as FIL's parameters ask for."""
    width = config.outputs[0].shape[0]
    if config.parameters["output_class"] == "false":
        assert scores.shape[1] == width == 1
        return scores
    if config.parameters.get("predict_proba") == "true":
        assert scores.shape[1] == width
        return scores
    assert width == 1
    best = scores.argmax(axis=1) if scores.shape[1] > 1 else scores[:, 0] > 0.5
    return best.astype(np.int64).reshape(-1, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (stopped, "its estimator predicts with the first"),
        (lambda: xgb("XGBRegressor", VALUES, booster="gblinear"), "is a linear model"),
        (lambda: xgb("XGBClassifier", TWO, "json", booster="gblinear"), "is a linear model"),
    ],
)
def test_what_fil_would_answer_otherwise_is_for_python(
    make: Callable[[], Logged], words: str
) -> None:
    artifact = ModelArtifact.open(Path(local_path(make())))
    assert choose_flavor(artifact) == "python_function"
    with pytest.raises(ArtifactError, match=words):
        convert(artifact, flavor="xgboost", name=check_name("m"), version=1)


def test_seconds_since_1970_are_too_fine_for_fil() -> None:
    import lightgbm  # noqa: PLC0415

    frame = FRAME.assign(time=1.7e9 + RANDOM.integers(0, 5000, len(FRAME)).astype(np.float64))
    target = frame["time"] % 300
    model = lightgbm.train({"verbose": -1}, lightgbm.Dataset(frame, target), 8)
    signature = infer_signature(frame, model.predict(frame))
    info = mlflow.lightgbm.log_model(model, name="m", signature=signature)
    artifact = ModelArtifact.open(Path(local_path(Logged(info.model_uri, frame, "lightgbm"))))
    assert choose_flavor(artifact) == "python_function"


def test_what_lightgbm_s_estimators_pickle_is_for_python() -> None:
    import lightgbm  # noqa: PLC0415

    model = lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(FRAME, VALUES)
    found = logged(mlflow.lightgbm, model, model.predict(FRAME), serialization_format="cloudpickle")
    assert choose_flavor(ModelArtifact.open(Path(local_path(found)))) == "python_function"


def test_torch_script_is_told_from_a_pickle() -> None:
    import torch  # noqa: PLC0415 - as in models

    pickled = ModelArtifact.open(Path(local_path(MODELS["pytorch"]())))
    assert choose_flavor(pickled) == "python_function"
    model = MODELS["torch_script"]()
    artifact = ModelArtifact.open(Path(local_path(model)))
    assert choose_flavor(artifact) == "pytorch"
    entry = convert(artifact, flavor="pytorch", name=check_name("m"), version=1)
    (file,) = entry.versions[1].files
    assert str(file.path) == "model.pt"
    script = torch.jit.load(str(file.local()))
    wanted = mlflow.pyfunc.load_model(model.uri).predict(model.data)
    answered = script(torch.from_numpy(model.data)).detach().numpy()
    np.testing.assert_allclose(answered, wanted, rtol=1e-6)
    assert entry.config is not None
    assert (entry.config.inputs[0].shape, entry.config.outputs[0].shape) == ((4,), (3,))


def test_torch_script_says_whether_it_trains() -> None:
    """As real archives do: of a module, of one part of it, traced, and frozen."""
    import torch  # noqa: PLC0415

    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    example = torch.rand(2, 4)

    def trains(script: Any) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            torch.jit.save(script, Path(folder, "model.pth"))
            return is_in_training(Path(folder, "model.pth"))

    assert trains(torch.jit.script(module))
    module.eval()
    assert not trains(torch.jit.script(module))
    assert not trains(torch.jit.trace(module, example))
    assert not trains(torch.jit.freeze(torch.jit.script(module)))
    module[1].train()
    assert trains(torch.jit.script(module))
