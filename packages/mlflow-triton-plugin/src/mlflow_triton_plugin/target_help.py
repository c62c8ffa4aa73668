"""`mlflow deployments help -t triton`, from the tables that parse what it describes."""

from __future__ import annotations

import textwrap

from mlflow_triton_plugin.options import (
    MEMBER_OPTION,
    OPTIONS,
    OVERRIDE_PREFIXES,
    OVERRIDES,
)
from mlflow_triton_plugin.settings import VARIABLES
from triton_repo.flavors import ANY_MODEL, SUPPORTED_FLAVORS

__all__ = ["help_text"]

_INTRODUCTION = """\
Deploy MLflow models to NVIDIA Triton Inference Server.

Target URI: triton, or triton://host:port to override TRITON_URL. Start Triton with
--model-control-mode=explicit, or use `triton-local --model-repository DIR`.
"""

_OVERRIDES = (
    "Options of create, update and run-local that set fields of config.pbtxt. An update keeps\n"
    "them; the value default gives one back to the model:"
)

_OF_MEMBERS = (
    "one of these for a member of several models that are deployed as one, such as "
    "member.bert.instance_count=2"
)

_EXAMPLES = """\
Examples:
  export TRITON_URL=localhost:8001 TRITON_MODEL_REPO=/models
  mlflow deployments create -t triton --name resnet -m models:/resnet/1
  mlflow deployments update -t triton --name resnet -m models:/resnet@champion
  mlflow deployments update -t triton --name resnet -m models:/resnet/7 -C validate=true
  mlflow deployments update -t triton --name resnet -C serve_versions=6,7
  mlflow deployments update -t triton --name resnet -C max_batch_size=64 -C instance_count=2
  mlflow deployments create -t triton --name churn -m models:/churn/7 -C env=pack
  mlflow deployments predict -t triton --name resnet --input-path input.json
  mlflow deployments predict -t triton --name resnet/6 --input-path input.json
  mlflow deployments run-local -t triton --name resnet -m models:/resnet/1

What create or update would do is shown by `mlflow-triton plan resnet -m models:/resnet/7`, which
changes nothing. What is on disk is checked by `mlflow-triton verify`; what a killed command left is
put right by the same command again, by update or delete, or for all deployments by
`mlflow-triton repair`.
"""


def help_text() -> str:
    """The whole page."""
    options = {
        f"-C {name}": f"({', '.join(option.commands)}) {option.help}"
        for name, option in OPTIONS.items()
    }
    overrides = {f"-C {name}": override.help for name, override in OVERRIDES.items()}
    overrides |= {f"-C {name}": text for name, text in OVERRIDE_PREFIXES.values()}
    overrides[f"-C {MEMBER_OPTION}"] = _OF_MEMBERS
    flavors = textwrap.fill(
        f"Flavors: {', '.join(SUPPORTED_FLAVORS)}. Without --flavor an update keeps the one that "
        "is deployed; else it is the first that the model has and its backend serves alike, or "
        f"{ANY_MODEL} where a server lacks that backend.",
        92,
    )
    parts = (
        _INTRODUCTION,
        _table("Environment:", VARIABLES),
        _table("Options of create, update, delete and run-local:", options),
        _table(_OVERRIDES, overrides),
        f"{flavors}\n",
        _EXAMPLES,
    )
    return "\n".join(parts)


def _table(title: str, rows: dict[str, str]) -> str:
    lines = [title]
    for name, text in rows.items():
        lines += [
            f"  {name}",
            textwrap.fill(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6),
        ]
    return "\n".join(lines) + "\n"
