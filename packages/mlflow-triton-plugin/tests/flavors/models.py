# ruff: noqa: PLC0415, S106 - each model imports its own library; a token is a word here
"""A small real model of each flavor of MLflow's, trained and logged as its users do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MODELS", "Logged", "local_path"]


@dataclass(frozen=True)
class Logged:
    """A logged model.

    Attributes:
        uri: of the model.
        data: what it is asked.
        native: the flavor that MLflow logged it with.
        params: for `predict`.
    """

    uri: str
    data: Any
    native: str
    params: dict[str, Any] | None = None


def local_path(model: Logged) -> str:
    """The directory that it was logged to."""
    path: str = mlflow.artifacts.download_artifacts(model.uri)
    return path


def _table(rows: int = 60) -> tuple[pd.DataFrame, pd.Series[Any]]:
    random = np.random.default_rng(7)
    frame = pd.DataFrame(random.normal(size=(rows, 3)), columns=["width", "height", "age"])
    return frame, (frame["width"] + frame["height"] > 0).astype(np.int64)


def _logged(flavor: Any, model: Any, data: Any, answer: Any, **more: Any) -> Logged:
    info = flavor.log_model(model, name="model", signature=infer_signature(data, answer), **more)
    return Logged(info.model_uri, data, flavor.__name__.removeprefix("mlflow."))


def sklearn_classifier() -> Logged:
    from sklearn.linear_model import LogisticRegression

    frame, target = _table()
    model = LogisticRegression().fit(frame, target)
    return _logged(mlflow.sklearn, model, frame, model.predict(frame))


def sklearn_probabilities() -> Logged:
    from sklearn.ensemble import RandomForestClassifier

    frame, target = _table()
    model = RandomForestClassifier(10, random_state=0).fit(frame, target)
    trusted = ["sklearn.tree._tree.Tree"]
    more = {"pyfunc_predict_fn": "predict_proba", "skops_trusted_types": trusted}
    return _logged(mlflow.sklearn, model, frame, model.predict_proba(frame), **more)


def sklearn_pipeline_with_text() -> Logged:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame, _ = _table()
    frame["color"] = np.where(frame["age"] > 0, "rouge é", "green")
    columns = make_column_transformer(
        (OneHotEncoder(), ["color"]), (StandardScaler(), ["width", "height", "age"])
    )
    model = make_pipeline(columns, Ridge()).fit(frame, frame["width"] * 2)
    return _logged(mlflow.sklearn, model, frame, model.predict(frame))


def xgboost() -> Logged:
    from xgboost import XGBClassifier

    frame, target = _table()
    model = XGBClassifier(n_estimators=5).fit(frame, target)
    return _logged(mlflow.xgboost, model, frame, model.predict(frame))


def lightgbm() -> Logged:
    import lightgbm

    frame, target = _table()
    booster = lightgbm.train({"verbose": -1}, lightgbm.Dataset(frame, target), 5)
    return _logged(mlflow.lightgbm, booster, frame, booster.predict(frame))


def catboost() -> Logged:
    from catboost import CatBoostRegressor

    frame, target = _table()
    model = CatBoostRegressor(iterations=5, verbose=False, allow_writing_files=False)
    model.fit(frame, target)
    return _logged(mlflow.catboost, model, frame, model.predict(frame))


def statsmodels() -> Logged:
    from statsmodels.api import OLS

    frame, target = _table()
    fitted = OLS(target, frame).fit()
    return _logged(mlflow.statsmodels, fitted, frame, fitted.predict(frame))


def prophet() -> Logged:
    from prophet import Prophet

    days = pd.DataFrame({"ds": pd.date_range("2026-01-01", periods=60, freq="D")})
    model = Prophet(uncertainty_samples=0).fit(days.assign(y=np.arange(60) % 7 * 1.0))
    return _logged(mlflow.prophet, model, days[:5], model.predict(days[:5]))


def spacy() -> Logged:
    import spacy

    language = spacy.blank("en")
    categories = language.add_pipe("textcat")
    categories.add_label("GOOD")
    categories.add_label("BAD")
    language.initialize()
    texts = pd.DataFrame({"text": ["a fine day", "é"]})
    answer = pd.DataFrame({"predictions": [{"GOOD": 0.5, "BAD": 0.5}] * 2})
    return _logged(mlflow.spacy, language, texts, answer)


def pytorch() -> Logged:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    data = np.arange(20, dtype=np.float32).reshape(5, 4)
    answer = model(torch.from_numpy(data)).detach().numpy()
    return _logged(mlflow.pytorch, model, data, answer, serialization_format="pickle")


def torch_script() -> Logged:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    data = np.arange(20, dtype=np.float32).reshape(5, 4)
    answer = model(torch.from_numpy(data)).detach().numpy()
    script = torch.jit.script(model)
    return _logged(mlflow.pytorch, script, data, answer, serialization_format="pickle")


def onnx() -> Logged:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    data = {"x": np.array([[1, -2], [-3, 4]], np.float32)}
    return _logged(mlflow.onnx, model, data, {"y": np.abs(data["x"])})


def transformers() -> Logged:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        pipeline,
    )

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "day", "bad"]
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    model = BertForSequenceClassification(config)
    classify = pipeline("text-classification", model=model, tokenizer=fast)
    texts = pd.DataFrame({"text": ["a fine day", "a bad day"]})
    answer = pd.DataFrame({"label": ["LABEL_0"], "score": [0.5]})
    info = mlflow.transformers.log_model(
        classify, name="model", signature=infer_signature(["a fine day"], answer)
    )
    return Logged(info.model_uri, texts["text"].tolist(), "transformers")


def sentence_transformers() -> Logged:
    import torch
    from sentence_transformers import SentenceTransformer, models

    torch.manual_seed(0)
    bag = models.BoW(vocab=["fine", "day", "bad"])
    model = SentenceTransformer(modules=[bag, models.Dense(3, 4)], device="cpu")
    texts = ["a fine day", "bad"]
    info = mlflow.sentence_transformers.log_model(
        model, name="model", signature=infer_signature(texts, model.encode(texts))
    )
    return Logged(info.model_uri, texts, "sentence_transformers")


MODELS: dict[str, Callable[[], Logged]] = {
    each.__name__: each
    for each in (
        *(sklearn_classifier, sklearn_probabilities, sklearn_pipeline_with_text),
        *(xgboost, lightgbm, catboost, statsmodels, prophet, spacy, pytorch, torch_script, onnx),
        *(transformers, sentence_transformers),
    )
}
