"""Makes the table of flavors from what the tests have found."""

from __future__ import annotations

import json
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import MODELS

if TYPE_CHECKING:
    import pytest

_TABLE = Path(__file__).parents[2] / "FLAVORS.md"
_HEAD = """\
# Flavors

Models that MLflow's own `log_model` has logged, deployed as `python_function` on the embedded
Triton, answer what `mlflow.pyfunc.load_model(uri).predict(data)` answers in process. The native
way is the backend that is tried first where nobody names a flavor; the embedded server has that of
ONNX only. Made by `nox -s flavors`.

| flavor | library | model | outputs | create | native way |
| --- | --- | --- | --- | --- | --- |
"""
_LIBRARIES = {"pytorch": "torch", "sklearn": "scikit-learn"}


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table when all of the models were asked and all have passed."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    passed = reporter.stats.get("passed", [])
    found = [
        json.loads(value)
        for report in passed
        for name, value in report.user_properties
        if name == "flavor"
    ]
    if exitstatus == 0 and len(found) == len(MODELS):
        rows = [
            f"| `{flavor}` | {_library(flavor)} | {model.replace('_', ' ')} | {outputs} "
            f"| {took_s} s | {native} |\n"
            for flavor, model, outputs, took_s, native in found
        ]
        _TABLE.write_text(_HEAD + "".join(rows) + _foot(), "utf-8")


def _library(flavor: str) -> str:
    name = _LIBRARIES.get(flavor, flavor)
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def _foot() -> str:
    text = (
        f"MLflow {version('mlflow')}. The time is that of `mlflow deployments create`, which loads "
        "the model and with it the library, in a process of its own, on two cores."
    )
    return "\n" + textwrap.fill(text, 118) + "\n"
