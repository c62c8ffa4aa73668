"""The `xgboost` and `lightgbm` flavors: forests, in Triton's FIL backend.

FIL reads XGBoost's UBJSON and JSON and LightGBM's text, takes one FP32 tensor of all columns, and
answers one FP32 tensor. What it answers is what MLflow's model does where that is a value, or the
number of a class: these are chosen by themselves. A Booster that answers probabilities is left to
`python_function` unless somebody asks for it.

Source: docs/model_config.md of Triton's fil_backend; `output_class` is the older name of what is
`is_classifier` to newer ones, and each ignores the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import ModelConfig
from triton_repo.errors import ArtifactError
from triton_repo.flavors._features import Features, features_of, width_of
from triton_repo.flavors._files import one_file_entry
from triton_repo.flavors.lightgbm_file import LightgbmFile
from triton_repo.flavors.xgboost_file import is_of_xgboost, read_boosting
from triton_repo.joining import JOIN_PARAMETER, Joining
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.names import ModelName

__all__ = ["convert_lightgbm", "convert_xgboost", "suits_lightgbm", "suits_xgboost"]

BACKEND = "fil"
_INPUT, _OUTPUT = "input__0", "output__0"
_JOINING = Joining(is_joined=True, why="a forest answers each row by itself")
#: FIL wants one; as in its own documentation.
GENERATED_MAX_BATCH_SIZE = 32_768

#: By the suffix that MLflow saves it with: what FIL calls the format, and the file.
_XGBOOST_FORMATS = {
    ".ubj": ("xgboost_ubj", "xgboost.ubj"),
    ".json": ("xgboost_json", "xgboost.json"),
}
_LIGHTGBM_FORMAT = ("lightgbm", "model.txt")
#: The end of `model_class`, and whether it answers the number of a class.
_XGBOOST_CLASSES = {
    "XGBRegressor": False,
    "XGBRFRegressor": False,
    "XGBRanker": False,
    "XGBClassifier": True,
    "XGBRFClassifier": True,
}
#: Those of XGBoost's own interface, which predict with all rounds; MLflow's default among them.
_XGBOOST_BOOSTERS = ("", "Booster")
#: LightGBM's objectives whose answer is a value, as it stands in the file.
_VALUES = (
    *("regression", "regression_l1", "huber", "fair", "poisson", "quantile", "mape", "gamma"),
    *("tweedie", "lambdarank", "rank_xendcg"),
)


@dataclass(frozen=True)
class _Forest:
    """A model file, and what a row of its answer is.

    Attributes:
        path: of the file.
        model_type: FIL's name for its format.
        filename: what FIL expects it to be called.
        width: numbers in a row of the answer.
        is_label: whether that is the number of a class.
        is_certain: whether FIL answers what MLflow's model does.
    """

    path: Path
    model_type: str
    filename: str
    width: int
    is_label: bool
    is_certain: bool


def suits_xgboost(artifact: ModelArtifact) -> bool:
    """Whether FIL answers what MLflow's model does, as far as can be told."""
    return _suits(artifact, _xgboost(artifact))


def suits_lightgbm(artifact: ModelArtifact) -> bool:
    """See `suits_xgboost`; XGBoost itself makes FP32 of what it is given, LightGBM does not."""
    forest = _lightgbm(artifact)
    datatypes = features_of(artifact).datatypes
    return _suits(artifact, forest) and LightgbmFile.read(forest.path).fits_fp32(datatypes)


def convert_xgboost(artifact: ModelArtifact, name: ModelName, version: int) -> RepositoryEntry:
    """Plan the entry of an XGBoost model; see `flavors.convert` for the arguments and errors."""
    return _convert(artifact, name, version, "xgboost", _xgboost(artifact))


def convert_lightgbm(artifact: ModelArtifact, name: ModelName, version: int) -> RepositoryEntry:
    """Plan the entry of a LightGBM model; see `flavors.convert` for the arguments and errors."""
    return _convert(artifact, name, version, "lightgbm", _lightgbm(artifact))


def _suits(artifact: ModelArtifact, forest: _Forest) -> bool:
    return (
        forest.is_certain
        and width_of(artifact) == forest.width
        and features_of(artifact).can_be_fp32
    )


def _convert(
    artifact: ModelArtifact, name: ModelName, version: int, flavor: str, forest: _Forest
) -> RepositoryEntry:
    return one_file_entry(
        artifact,
        name=name,
        version=version,
        flavor=flavor,
        backend=BACKEND,
        source=forest.path,
        path=PurePosixPath(forest.filename),
        generate=lambda: _config(name, features_of(artifact), forest),
    )


def _config(name: str, features: Features, forest: _Forest) -> ModelConfig:
    answers_classes = forest.is_label or forest.width > 1
    parameters = {"model_type": forest.model_type}
    parameters |= dict.fromkeys(("output_class", "is_classifier"), str(answers_classes).lower())
    if forest.width > 1:
        parameters["predict_proba"] = "true"
    return ModelConfig.build(
        name=name,
        backend=BACKEND,
        inputs=[TensorSpec(_INPUT, "FP32", (features.count,))],
        outputs=[TensorSpec(_OUTPUT, "FP32", (forest.width,))],
        max_batch_size=GENERATED_MAX_BATCH_SIZE,
        dynamic_batching=True,
        parameters=parameters | features.parameters | {JOIN_PARAMETER: _JOINING.text},
        comment="Generated from the model. Log a config.pbtxt with it to use your own.",
    )


# -- XGBoost --------------------------------------------------------------------------------------


def _xgboost(artifact: ModelArtifact) -> _Forest:
    said_by = "MLmodel's xgboost flavor"
    settings = artifact.flavors["xgboost"]
    path = artifact.path(str(settings.get("data", "")), said_by=said_by)
    if path.suffix not in _XGBOOST_FORMATS:
        raise ArtifactError(
            f"{path.name} is in no format that Triton's FIL backend reads; log the model with "
            'model_format="ubj", or deploy it with --flavor python_function'
        )
    model_class = str(settings.get("model_class") or "")
    name = model_class.rpartition(".")[2]
    _refuse_what_fil_predicts_otherwise(path, is_booster=name in _XGBOOST_BOOSTERS)
    is_label = _XGBOOST_CLASSES.get(name) if is_of_xgboost(model_class) else None
    return _Forest(
        path,
        *_XGBOOST_FORMATS[path.suffix],
        width=1 if is_label is not None else max(width_of(artifact), 1),
        is_label=bool(is_label),
        is_certain=is_label is not None,
    )


def _refuse_what_fil_predicts_otherwise(path: Path, *, is_booster: bool) -> None:
    """What FIL does not read, or reads more of than XGBoost uses.

    Raises:
        ArtifactError: the model is linear, or its estimator leaves out its last rounds.
    """
    boosting = read_boosting(path)
    if not boosting.has_trees:
        raise ArtifactError(
            f"{path.name} is a linear model (gblinear), and Triton's FIL backend has trees only; "
            "deploy it with --flavor python_function"
        )
    if boosting.is_cut and not is_booster:
        raise ArtifactError(
            f"{path.name} was trained with early stopping and holds {boosting.rounds} rounds, of "
            f"which its estimator predicts with the first {boosting.best}, and Triton's FIL "
            "backend with all; train it with xgboost.callback.EarlyStopping(…, save_best=True), "
            "or deploy it with --flavor python_function"
        )


# -- LightGBM -------------------------------------------------------------------------------------


def _lightgbm(artifact: ModelArtifact) -> _Forest:
    path = _lightgbm_path(artifact)
    fields = LightgbmFile.read(path).fields
    features = features_of(artifact)
    if fields.get("max_feature_idx") not in (None, str(features.count - 1)):
        raise ArtifactError(
            f"the signature has {features.count} columns, and {path.name} takes "
            f"{int(fields['max_feature_idx']) + 1}; log it with the signature of its own data"
        )
    objective = fields.get("objective", "").partition(" ")[0]
    width = fields.get("num_class", "1")
    return _Forest(
        path,
        *_LIGHTGBM_FORMAT,
        width=int(width) if width.isdecimal() else 1,
        is_label=False,
        is_certain=objective in _VALUES and width == "1",
    )


def _lightgbm_path(artifact: ModelArtifact) -> Path:
    said_by = "MLmodel's lightgbm flavor"
    path = artifact.path(str(artifact.flavors["lightgbm"].get("data", "")), said_by=said_by)
    if not path.is_file():
        raise ArtifactError(f"{path} is no file, and {said_by} names it")
    return path
