"""Whether a `python_function` answers each row by itself, by what MLmodel and its files say.

Nothing is loaded or run: pickles are read as the list of names that they import, and skops files by
their schema. Format: Python's `pickletools`; skops' "Persistence" document.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from typing import TYPE_CHECKING, Any

from triton_repo.errors import TritonRepoError
from triton_repo.flavors.xgboost_file import is_of_xgboost
from triton_repo.joining import Joining

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from triton_repo.artifact import ModelArtifact

__all__ = ["PICKLE_SUFFIXES", "row_wise"]

#: The loaders of MLflow whose models take a table or a batch, and answer it row by row.
_TABLES = {
    "mlflow.sklearn": "scikit-learn",
    "mlflow.xgboost": "XGBoost",
    "mlflow.lightgbm": "LightGBM",
    "mlflow.catboost": "CatBoost",
}
_BATCHES = {
    "mlflow.pytorch": "PyTorch",
    "mlflow.keras": "Keras",
    "mlflow.tensorflow": "TensorFlow",
}
#: Methods of scikit-learn's estimators that look at one row at a time.
_METHODS = (
    *("predict", "predict_proba", "predict_log_proba", "predict_joint_log_proba"),
    *("decision_function", "score_samples", "transform", "apply"),
)
#: Packages whose estimators do so.
_PACKAGES = frozenset(
    (
        *("sklearn", "xgboost", "lightgbm", "catboost", "numpy", "scipy", "pandas", "joblib"),
        *("builtins", "copyreg", "collections", "datetime", "_codecs", "_sklearn"),
    )
)
#: scikit-learn's own that call a function of the user's, iterate until all rows are good enough, or
#: draw random numbers for all rows.
_TOGETHER = frozenset(
    (
        *("FunctionTransformer", "NMF", "MiniBatchNMF", "LatentDirichletAllocation"),
        *("IterativeImputer", "BernoulliRBM"),
    )
)
#: This one does so with a strategy that draws, and only then. Gradient boosting has one of its own,
#: which does not, to start from; elsewhere its strategy is not looked at.
_DUMMY = ("sklearn.dummy", "DummyClassifier")
_BOOSTED = ("sklearn.ensemble._gb", "GradientBoostingClassifier")
_DRAWING = frozenset(("stratified", "uniform"))
#: What runs whatever it is given.
_CALLS = frozenset(("eval", "exec", "getattr", "compile", "__import__"))
PICKLE_SUFFIXES = (".pkl", ".skops")
_SKOPS_SCHEMA = "schema.json"
_MAX_SCHEMA_BYTES = 100_000_000


def row_wise(artifact: ModelArtifact) -> Joining:
    """Whether each row is answered by itself, and how that is known."""
    settings = artifact.flavors["python_function"]
    loader = str(settings.get("loader_module", ""))
    other = _other_class(artifact, loader)
    if other:
        return _unknown(f"{other} may look at all rows of a request")
    if loader in _BATCHES:
        return Joining(is_joined=True, why=f"{_BATCHES[loader]} answers each row of a batch")
    library = _TABLES.get(loader)
    if library is None:
        what = "a python_model" if loader in ("", "mlflow.pyfunc.model") else f"a model of {loader}"
        return _unknown(f"{what} may look at all rows of a request")
    method = str(settings.get("predict_fn") or "predict")
    if method not in _METHODS:
        return _unknown(f"{method} of {library} may look at all rows of a request")
    foreign = _foreign_name(artifact)
    if foreign:
        return _unknown(f"{foreign} in the {library} model may look at all rows of a request")
    return Joining(is_joined=True, why=f"{library} answers each row by itself")


def _other_class(artifact: ModelArtifact, loader: str) -> str:
    """What the library's flavor loads, where that is not the library's own; else empty."""
    if loader == "mlflow.xgboost":
        model_class = str(artifact.flavors.get("xgboost", {}).get("model_class") or "")
        return "" if is_of_xgboost(model_class) else model_class
    if loader == "mlflow.tensorflow":
        model_type = str(artifact.flavors.get("tensorflow", {}).get("model_type") or "")
        return "" if model_type == "keras" else f"a TensorFlow {model_type or 'module'}"
    return ""


def _unknown(why: str) -> Joining:
    return Joining(is_joined=False, why=why)


def _foreign_name(artifact: ModelArtifact) -> str:
    """A name in the model's files that may look at several rows; empty where there is none."""
    for path in sorted(artifact.root.rglob("*")):
        if path.suffix not in PICKLE_SUFFIXES or not path.is_file():
            continue
        try:
            foreign = _foreign_in(_of_skops(path) if path.suffix == ".skops" else _of_pickle(path))
            if foreign:
                return foreign
        except (OSError, ValueError, LookupError, RecursionError, zipfile.BadZipFile):
            return f"{path.name}, which cannot be read,"
        except TritonRepoError as exc:
            return str(exc)
    return ""


def _foreign_in(contents: Iterator[tuple[str, str] | str]) -> str:
    """The first name that may look at several rows; empty where there is none.

    Args:
        contents: of a file: the names that it imports, and those of its texts that `_DRAWING` has.
    """
    has_dummy = is_boosted = draws = False
    for found in contents:
        if isinstance(found, str):
            draws = True
        elif found == _DUMMY:
            has_dummy = True
        elif not _is_known(*found):
            return ".".join(found)
        is_boosted = is_boosted or found == _BOOSTED
    return ".".join(_DUMMY) if has_dummy and (draws or not is_boosted) else ""


def _is_known(module: str, name: str) -> bool:
    root = module.partition(".")[0]
    last = name.rpartition(".")[2]
    return root in _PACKAGES and last not in _TOGETHER and last not in _CALLS


def _of_skops(path: Path) -> Iterator[tuple[str, str] | str]:
    """The classes of a skops file, and its texts, see `_foreign_in`."""
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(_SKOPS_SCHEMA).file_size > _MAX_SCHEMA_BYTES:
            raise ValueError(path.name)
        document = json.loads(archive.read(_SKOPS_SCHEMA))
    found = [document]
    while found:
        each: Any = found.pop()
        if isinstance(each, dict):
            if isinstance(each.get("__class__"), str):
                yield str(each.get("__module__")), each["__class__"]
            text = each.get("content")
            if isinstance(text, str) and text.strip('"') in _DRAWING:  # a text is in JSON there
                yield text
            found.extend(each.values())
        elif isinstance(each, list):
            found.extend(each)


def _of_pickle(path: Path) -> Iterator[tuple[str, str] | str]:
    """The names that a pickle imports, and its texts, see `_foreign_in`.

    Raises:
        ValueError: it is none, or makes up a name while it is read.
    """
    memo: dict[int, str | None] = {}
    pushed: list[str | None] = []
    with path.open("rb") as file:
        for opcode, found, _ in pickletools.genops(file):
            value: Any = found
            name = opcode.name
            if name == "GLOBAL":
                module, _, attribute = str(value).partition(" ")
                yield module, attribute
                pushed.append(None)
            elif name == "STACK_GLOBAL":
                spelled = [each for each in pushed[-2:] if each is not None]
                if len(spelled) < len(("module", "attribute")):
                    raise ValueError(path.name)
                yield spelled[0], spelled[1]
                pushed.append(None)
            elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if name == "MEMOIZE" else value] = pushed[-1] if pushed else None
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                pushed.append(memo.get(value))
            elif name in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST"):
                raise ValueError(path.name)
            elif name != "FRAME":
                if isinstance(value, str) and value in _DRAWING:
                    yield value
                pushed.append(value if isinstance(value, str) else None)
            del pushed[:-2]
