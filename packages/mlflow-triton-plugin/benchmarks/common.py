"""Taking turns, medians, tables."""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.server import TritonServers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["artifact", "heading", "less_load", "median_ms", "row", "taking_turns"]

IDENTITY = """\
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(each, "x").as_numpy())]
            )
            for each in requests
        ]
"""
CONFIG = """\
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


def artifact(folder: Path, blob_bytes: int = 0) -> str:
    """A logged model whose y is its x, with a file of weights that nobody reads."""
    version = folder / "model" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(IDENTITY)
    (folder / "model" / "config.pbtxt").write_text(CONFIG)
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"triton": {"data": "model"}}}))
    with (version / "weights.bin").open("wb") as file:
        piece = bytes(range(256)) * 4096
        for _ in range(0, blob_bytes, len(piece)):
            file.write(piece[: min(len(piece), blob_bytes)])
    return str(folder)


def taking_turns(rounds: int, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call, `rounds` times, one after another."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, seconds, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return seconds


def less_load(call: Callable[[], object]) -> float:
    """Seconds that a command takes, those of Triton's own load taken off."""
    load_s = 0.0
    load = TritonServers.load

    def timed(self: TritonServers, model: str, **options: Any) -> Any:
        nonlocal load_s
        begin = time.perf_counter()
        try:
            return load(self, model, **options)
        finally:
            load_s += time.perf_counter() - begin

    TritonServers.load = timed  # type: ignore[method-assign]
    try:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin - load_s
    finally:
        TritonServers.load = load  # type: ignore[method-assign]


def median_ms(seconds: Sequence[float]) -> float:
    """Median, in milliseconds."""
    return statistics.median(seconds) * 1000


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def row(label: str, ours_ms: float, limit_ms: float, *, limit: str, aim: str) -> None:
    """One line of a table."""
    print(
        f"{label:<26} ours {ours_ms:10.2f} ms   {limit} {limit_ms:10.2f} ms   "
        f"{ours_ms / limit_ms:5.2f}x  (aim {aim})",
        flush=True,
    )
