"""Publish models in Triton layout, and ONNX models, to the MLflow Model Registry.

The names below are imported when they are first used: `import publish_tools` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from publish_tools.errors import LabelError, PublishError, RegistrationError, UploadError
    from publish_tools.model_plan import ModelPlan
    from publish_tools.plan import plan_model, plan_repository
    from publish_tools.publish import (
        Destination,
        FailedModel,
        Labels,
        PublishedModel,
        publish_model,
        publish_repository,
    )
    from publish_tools.triton import TritonModel, load_model, log_model, save_model

__all__ = [
    "Destination",
    "FailedModel",
    "LabelError",
    "Labels",
    "ModelPlan",
    "PublishError",
    "PublishedModel",
    "RegistrationError",
    "TritonModel",
    "UploadError",
    "load_model",
    "log_model",
    "plan_model",
    "plan_repository",
    "publish_model",
    "publish_repository",
    "save_model",
]

_HOMES = {
    "errors": ("LabelError", "PublishError", "RegistrationError", "UploadError"),
    "model_plan": ("ModelPlan",),
    "plan": ("plan_model", "plan_repository"),
    "publish": (
        "Destination",
        "FailedModel",
        "Labels",
        "PublishedModel",
        "publish_model",
        "publish_repository",
    ),
    "triton": ("TritonModel", "load_model", "log_model", "save_model"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
