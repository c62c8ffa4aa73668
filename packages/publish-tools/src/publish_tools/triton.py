"""The MLflow flavor `triton`: a directory in Triton's layout, or of several models as one.

The artifact holds `MLmodel` and the directory. MLmodel's flavor says `data`, the directory's name,
and `versions`, its version directories (of several models, those of each by its name): artifact
stores lose those that are empty, which is what an ensemble's are. Of several models, `main_model`
is the one that clients ask. The flavor has no `python_function`: what it holds runs in Triton.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS

from publish_tools import _save
from publish_tools.plan import plan_model
from triton_repo.artifact import ModelArtifact
from triton_repo.flavors import choose_flavor
from triton_repo.flavors.triton import open_directory
from triton_repo.layout import ModelDirectory

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo

    from publish_tools.examples import Example
    from publish_tools.model_plan import ModelPlan
    from triton_repo.group import ModelGroup

__all__ = ["FLAVOR_NAME", "TritonModel", "load_model", "log_model", "save_model"]

FLAVOR_NAME = "triton"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TritonModel:
    """A `triton` model on the local disk.

    Attributes:
        artifact: what MLflow stored, MLmodel included.
        directory: the model in Triton's layout, checked; of several, the main one. Its `versions`
            are complete even where the artifact store lost an empty one.
        group: all of them, where there are several; else None.
    """

    artifact: ModelArtifact
    directory: ModelDirectory
    group: ModelGroup | None = None

    @property
    def path(self) -> Path:
        """The directory with config.pbtxt and the versions; of several models, the one above."""
        return self.directory.root if self.group is None else self.group.root


def save_model(
    model_directory: str | os.PathLike[str],
    path: str | os.PathLike[str],
    mlflow_model: Model | None = None,
    *,
    signature: ModelSignature | None = None,
    metadata: Mapping[str, Any] | None = None,
    main_model: str = "",
    input_example: Example | None = None,
    output_example: Example | None = None,
    link_files: bool = False,
) -> None:
    """Save a model directory as an MLflow model on the local disk.

    Args:
        model_directory: a directory in Triton's layout, or one of several models.
        path: where to save it; must be empty or not exist yet.
        mlflow_model: the MLmodel to add the flavor to.
        signature: instead of the one that config.pbtxt (or the ONNX graph) gives.
        metadata: kept in MLmodel.
        main_model: see `plan_model`.
        input_example: `{name: nested lists or arrays}`, `{"inputs": {…}}`, or a JSON file of it.
        output_example: what the model answers to it, in the same forms with `"outputs"`.
        link_files: link to the files instead of copying them; only for a directory that is
            uploaded at once.

    Raises:
        ArtifactError: Triton could not load the directory, or an example does not fit it; nothing
            was written.
        ConfigError: config.pbtxt does not parse; nothing was written.
        MlflowException: `path` is not empty.
    """
    plan = plan_model(
        model_directory,
        FLAVOR_NAME,
        main_model=main_model,
        input_example=input_example,
        output_example=output_example,
    )
    model = _save.new_model(mlflow_model, plan, signature=signature, metadata=metadata)
    model.add_flavor(
        FLAVOR_NAME,
        publish_tools_version=_save.installed_version("publish-tools"),
        **plan.settings,
    )
    _save.write_files(plan.tree, path, link=link_files)
    _save.write_examples(plan.examples, path)
    _save.write_mlmodel(model, path)


def log_model(
    model_directory: str | os.PathLike[str],
    name: str | None = None,
    *,
    artifact_path: str | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    metadata: Mapping[str, Any] | None = None,
    main_model: str = "",
    input_example: Example | None = None,
    output_example: Example | None = None,
    await_registration_for: int | None = DEFAULT_AWAIT_MAX_SLEEP_SECONDS,
) -> ModelInfo:
    """Log a model directory to the current MLflow run.

    Args:
        model_directory: a directory in Triton's layout, or one of several models.
        name: what the model is called; `triton` when not given.
        artifact_path: the older spelling of `name`.
        registered_model_name: register the model under this name, too.
        signature: instead of the one that config.pbtxt (or the ONNX graph) gives.
        metadata: kept in MLmodel.
        main_model: see `plan_model`.
        input_example: `{name: nested lists or arrays}`, `{"inputs": {…}}`, or a JSON file of it.
        output_example: what the model answers to it, in the same forms with `"outputs"`.
        await_registration_for: seconds to wait until the registered version is READY.

    Returns:
        MLflow's description of the logged model.

    Raises:
        ArtifactError: Triton could not load the directory, or an example does not fit it; nothing
            was made in MLflow.
        ConfigError: config.pbtxt does not parse; nothing was made in MLflow.
        MlflowException: MLflow refused.
    """
    # Model.log makes a model first and asks us afterwards
    plan = plan_model(
        model_directory,
        FLAVOR_NAME,
        main_model=main_model,
        input_example=input_example,
        output_example=output_example,
    )
    log_notes(plan)
    return _save.log(
        sys.modules[__name__],
        name=name,
        artifact_path=artifact_path,
        registered_model_name=registered_model_name,
        await_registration_for=await_registration_for,
        metadata=dict(metadata) if metadata is not None else None,
        model_directory=model_directory,
        signature=signature,
        main_model=main_model,
        input_example=plan.examples.inputs,
        output_example=plan.examples.outputs,
        link_files=True,
    )


def log_notes(plan: ModelPlan) -> None:
    """Say in the log what could not be found out about a model."""
    for note in plan.tensors.notes:
        _logger.warning("%s: %s", plan.source, note)


def load_model(model_uri: str, dst_path: str | os.PathLike[str] | None = None) -> TritonModel:
    """Fetch a `triton` model; those that NVIDIA's publishing script made are read, too.

    Args:
        model_uri: any URI of MLflow's, such as `models:/resnet/3`.
        dst_path: where to put it. Then the directory is complete, its empty versions included, and
            can be given to a server. Without it the result may be the artifact store's own
            directory, which is left as it is.

    Raises:
        MlflowException: MLflow cannot fetch it.
        UnsupportedFlavorError: the model has no `triton` flavor.
        ArtifactError: its files are not what MLmodel says.
    """
    if dst_path is not None:
        Path(dst_path).mkdir(parents=True, exist_ok=True)
    fetched = mlflow.artifacts.download_artifacts(
        artifact_uri=model_uri, dst_path=str(dst_path) if dst_path is not None else None
    )
    model = _read(ModelArtifact.open(Path(fetched)))
    if dst_path is not None:
        for directory in model.group.models.values() if model.group else [model.directory]:
            _restore_versions(directory)
    return model


def _read(artifact: ModelArtifact) -> TritonModel:
    choose_flavor(artifact, FLAVOR_NAME)
    found = open_directory(artifact)
    if isinstance(found, ModelDirectory):
        return TritonModel(artifact, found)
    return TritonModel(artifact, found.models[found.main], found)


def _restore_versions(directory: ModelDirectory) -> None:
    for version in directory.versions:
        (directory.root / str(version)).mkdir(exist_ok=True)
