"""The repository index, line by line."""

from __future__ import annotations

import re
from typing import Any

from mlflow_triton_plugin.server import ModelState
from mlflow_triton_plugin.server._translate import StrangeAnswerError

__all__ = ["listed"]

#: Empty for a directory that was never loaded.
_VERSION = re.compile(r"(-?[0-9]{1,19})?")


def listed(name: Any, version: Any, state: Any, reason: Any) -> ModelState:
    """One line, as either protocol has it.

    Raises:
        StrangeAnswerError: it is not one of Triton's; whoever counts versions can rely on numbers.
    """
    if not isinstance(name, str):
        raise StrangeAnswerError(f"the name of a model is {name!r}")
    if not _VERSION.fullmatch(str(version)):
        raise StrangeAnswerError(f"a version of {name} is {version!r}")
    return ModelState(name, str(version), str(state), str(reason))
