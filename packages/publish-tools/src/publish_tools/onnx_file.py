"""MLflow's own flavor `onnx`, written from files: the weights are never loaded.

`mlflow.onnx.log_model` takes a model in memory, loads it a second time to find its requirements,
and writes its weights anew. Here the bytes are uploaded as they are, whatever their size; MLmodel
says what `mlflow.onnx` would have said, so its `load_model` and that of `mlflow.pyfunc` work.
"""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

from mlflow import pyfunc
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS

from publish_tools import _save
from publish_tools.plan import plan_model
from publish_tools.triton import log_notes

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo

    from publish_tools.examples import Example

__all__ = ["FLAVOR_NAME", "log_model", "save_model"]

FLAVOR_NAME = "onnx"

#: What `mlflow.onnx` writes when it is not told otherwise.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def save_model(
    model_file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    mlflow_model: Model | None = None,
    *,
    signature: ModelSignature | None = None,
    metadata: Mapping[str, Any] | None = None,
    input_example: Example | None = None,
    output_example: Example | None = None,
    link_files: bool = False,
) -> None:
    """Save an .onnx file, with what belongs to it, as an MLflow model on the local disk.

    Args:
        model_file: the file, or a directory that holds one. Its external data goes along, and so
            does a config.pbtxt beside it, with the files that it names.
        path: where to save it; must be empty or not exist yet.
        mlflow_model: the MLmodel to add the flavors to.
        signature: instead of the one that the graph gives.
        metadata: kept in MLmodel.
        input_example: `{name: nested lists or arrays}`, `{"inputs": {…}}`, or a JSON file of it.
        output_example: what the model answers to it, in the same forms with `"outputs"`.
        link_files: link to the files instead of copying them; only for a directory that is
            uploaded at once.

    Raises:
        ArtifactError: it is no ONNX model, or a file that belongs to it is missing, or an example
            does not fit it; nothing was written.
        ConfigError: config.pbtxt does not parse; nothing was written.
        MlflowException: `path` is not empty.
    """
    plan = plan_model(
        model_file, FLAVOR_NAME, input_example=input_example, output_example=output_example
    )
    model = _save.new_model(mlflow_model, plan, signature=signature, metadata=metadata)
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.onnx",
        data=plan.settings["data"],
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )
    model.add_flavor(
        FLAVOR_NAME,
        onnx_version=_save.installed_version("onnx"),
        providers=list(_PROVIDERS),
        onnx_session_options=None,
        code=None,
        **plan.settings,
    )
    _save.write_files(plan.tree, path, link=link_files)
    _save.write_examples(plan.examples, path)
    requirements = [_save.pinned(package) for package in ("mlflow", "onnx", "onnxruntime")]
    _save.write_environment(path, requirements, platform.python_version())
    _save.write_mlmodel(model, path)


def log_model(
    model_file: str | os.PathLike[str],
    name: str | None = None,
    *,
    artifact_path: str | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    metadata: Mapping[str, Any] | None = None,
    input_example: Example | None = None,
    output_example: Example | None = None,
    await_registration_for: int | None = DEFAULT_AWAIT_MAX_SLEEP_SECONDS,
) -> ModelInfo:
    """Log an .onnx file to the current MLflow run.

    Args:
        model_file: as in `save_model`.
        name: what the model is called; `triton` when not given.
        artifact_path: the older spelling of `name`.
        registered_model_name: register the model under this name, too.
        signature: instead of the one that the graph gives.
        metadata: kept in MLmodel.
        input_example: `{name: nested lists or arrays}`, `{"inputs": {…}}`, or a JSON file of it.
        output_example: what the model answers to it, in the same forms with `"outputs"`.
        await_registration_for: seconds to wait until the registered version is READY.

    Returns:
        MLflow's description of the logged model.

    Raises:
        ArtifactError: as in `save_model`; nothing was made in MLflow.
        ConfigError: the same.
        MlflowException: MLflow refused.
    """
    # Model.log makes a model first and asks us afterwards
    plan = plan_model(
        model_file, FLAVOR_NAME, input_example=input_example, output_example=output_example
    )
    log_notes(plan)
    return _save.log(
        sys.modules[__name__],
        name=name,
        artifact_path=artifact_path,
        registered_model_name=registered_model_name,
        await_registration_for=await_registration_for,
        metadata=dict(metadata) if metadata is not None else None,
        model_file=model_file,
        signature=signature,
        input_example=plan.examples.inputs,
        output_example=plan.examples.outputs,
        link_files=True,
    )
