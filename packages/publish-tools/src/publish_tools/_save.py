"""From a plan to an MLflow model on disk: the files, MLmodel, and what MLflow's loaders need."""

from __future__ import annotations

import inspect
import shutil
from importlib import metadata as distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

from publish_tools.examples import INPUT_EXAMPLE
from publish_tools.signature import model_signature

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import ModuleType

    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

    from publish_tools.examples import Examples
    from publish_tools.model_plan import ModelPlan
    from triton_repo.entry import Tree

__all__ = [
    "ARTIFACT_NAME",
    "installed_version",
    "log",
    "new_model",
    "pinned",
    "write_environment",
    "write_examples",
    "write_files",
    "write_mlmodel",
]

#: What a model is called in its run when nobody says: `runs:/<run>/triton`, as in the reference.
ARTIFACT_NAME = "triton"

_MODEL_LOG_TAKES_NAME = "name" in inspect.signature(Model.log).parameters


def log(
    flavor: ModuleType, *, name: str | None, artifact_path: str | None, **arguments: Any
) -> ModelInfo:
    """`Model.log`, with the model's name where this MLflow wants it: 3 says `name`, 2 the path.

    Raises:
        MlflowException: both names were given, or MLflow refused.
    """
    if name is not None and artifact_path is not None:
        raise MlflowException.invalid_parameter_value("give `name` or `artifact_path`, not both")
    called = name or artifact_path or ARTIFACT_NAME
    where = {"artifact_path": None if _MODEL_LOG_TAKES_NAME else called}
    if _MODEL_LOG_TAKES_NAME:
        where["name"] = called
    info: ModelInfo = Model.log(**where, flavor=flavor, **arguments)
    return info


def new_model(
    mlflow_model: Model | None,
    plan: ModelPlan,
    *,
    signature: ModelSignature | None,
    metadata: Mapping[str, Any] | None,
) -> Model:
    """The MLmodel to be written, with everything in it that does not depend on the flavor."""
    model = mlflow_model if mlflow_model is not None else Model()
    model.signature = signature if signature is not None else model_signature(plan.tensors)
    if metadata is not None:
        model.metadata = dict(metadata)
    model.model_size_bytes = plan.size_bytes
    if plan.examples.inputs is not None:
        kind = _example_type(plan.examples.inputs, model.signature)
        # without serving_input_path: MLflow would load the model here to try it
        model.saved_input_example_info = {"artifact_path": INPUT_EXAMPLE, "type": kind}
    return model


def _example_type(values: Mapping[str, Any], signature: ModelSignature | None) -> str:
    """What MLflow makes of the file: arrays, which pyfunc models want, or JSON as it is.

    It casts arrays to the signature's types, and what does not fit comes out as something else:
    1.5 as the integer 1, bytes as the text of their JSON.
    """
    inputs = signature.inputs if signature is not None else None
    if inputs is None or not inputs.is_tensor_spec() or not inputs.has_input_names():
        return "json_object"
    types = {name: spec.type for name, spec in inputs.input_dict().items()}
    fit = all(name in types and _keeps(types[name], value) for name, value in values.items())
    return "ndarray" if fit else "json_object"


def _keeps(dtype: np.dtype[Any], value: object) -> bool:
    """Whether MLflow's cast keeps the values; a float may be rounded to a shorter one."""
    array = np.array(value)
    if array.dtype.kind not in "biuf" or dtype.kind not in "biuf":
        return False
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
    return array.dtype.kind == dtype.kind == "f" or np.array_equal(array, cast)


def write_mlmodel(model: Model, path: str | os.PathLike[str]) -> None:
    """Write `MLmodel`, last: a directory without it is no model."""
    model.save(str(Path(path) / "MLmodel"))


def write_files(tree: Tree, path: str | os.PathLike[str], *, link: bool) -> None:
    """Put the files of a plan below `path`.

    Args:
        tree: what to put there.
        path: a directory that is empty or does not exist yet.
        link: link to the files instead of copying them. For a directory that is uploaded and
            thrown away: artifact stores read through links, and the model is not copied twice.

    Raises:
        MlflowException: `path` exists and is not empty, as in MLflow's own flavors.
    """
    root = Path(path)
    if root.exists() and any(root.iterdir()):
        raise MlflowException(
            f"{root} already exists and is not empty", error_code=RESOURCE_ALREADY_EXISTS
        )
    root.mkdir(parents=True, exist_ok=True)
    for directory in tree.empty_directories:
        (root / directory).mkdir(parents=True, exist_ok=True)
    for file in tree.files:
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to(file.source.resolve())
        else:
            shutil.copy(file.source, target)  # mode bits too: a model may bring an executable


def write_examples(examples: Examples, path: str | os.PathLike[str]) -> None:
    """Write the example files, at the top."""
    for name, data in examples.files.items():
        (Path(path) / name).write_bytes(data)


def write_environment(path: str | os.PathLike[str], requirements: list[str], python: str) -> None:
    """Write requirements.txt, conda.yaml and python_env.yaml, as MLflow's flavors do."""
    root = Path(path)
    (root / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")
    dependencies = [f"python={python}", "pip", {"pip": requirements}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}
    environment = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    for name, document in (("conda.yaml", conda), ("python_env.yaml", environment)):
        text = yaml.safe_dump(document, sort_keys=False)
        (root / name).write_text(text, encoding="utf-8")


def pinned(package: str) -> str:
    """The requirement `package==…` for the version that is installed here, else `package`."""
    version = installed_version(package)
    return f"{package}=={version}" if version else package


def installed_version(package: str) -> str:
    """The version that is installed here, or an empty string."""
    try:
        return distributions.version(package)
    except distributions.PackageNotFoundError:
        return ""
