"""The models of `examples/`, what they are asked and what they answer; and how tests wait."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EXAMPLES", "MODEL", "artifact_of", "eventually", "expected", "given_inputs"]

EXAMPLES = Path(__file__).parent.parent / "examples"
MODEL = "onnx_float32_int32_int32"
_DEADLINE_S = 120


def given_inputs() -> Any:
    """What every one of them can be asked."""
    return json.loads((EXAMPLES / "input.json").read_text())["inputs"]


def expected(end: str = "") -> Any:
    """What a model answers: `""` the first version, `_v2` the second, `_ensemble`."""
    return json.loads((EXAMPLES / f"expected_output{end}.json").read_text())


def artifact_of(folder: Path) -> Path:
    """The first version as MLflow saves it, in the new directory `folder`, for tests to change."""
    shutil.copytree(EXAMPLES / MODEL, folder / "model")
    (folder / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return folder


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {_DEADLINE_S} s"
        time.sleep(0.05)
