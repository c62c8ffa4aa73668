"""What the plugin adds to `mlflow deployments list` beyond MLflow's own start."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

from common import artifact, heading
from mlflow.deployments import get_deploy_client

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton

# MLflow's CLI as its console script runs it, with a clock around the command itself.
COMMAND = """
import sys, time
begin = time.perf_counter()
import mlflow.cli, mlflow.deployments.cli
started = time.perf_counter()
mlflow.deployments.cli.commands(["list", "-t", "triton"], standalone_mode=False)
print(started - begin, time.perf_counter() - started, file=sys.stderr)
"""


def run(_triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the figures."""
    heading("mlflow deployments list, 3 deployments (median)")
    client = get_deploy_client("triton")
    names = ["listed1", "listed2", "listed3"]
    for name in names:
        client.create_deployment(name, artifact(folder / name))
    rounds = [measure() for _ in range(3 if quick else 9)]
    start_s, list_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"MLflow's own start {start_s * 1e3:.0f} ms; the plugin adds {list_s * 1e3:.0f} ms "
        "(aim 150 ms)"
    )
    for name in names:
        client.delete_deployment(name)


def measure() -> tuple[float, float]:
    """Seconds of MLflow's imports, and of the command."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True
    )
    start_s, list_s = done.stderr.splitlines()[-1].split()
    return float(start_s), float(list_s)
