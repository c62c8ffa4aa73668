"""create and update, less Triton's own load, beside a plain copy of the same file."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import time
from typing import TYPE_CHECKING

from common import artifact, heading, less_load, row
from mlflow.deployments import get_deploy_client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from mlflow_triton_plugin.local import LocalTriton

SIZES = {"10 kB": (10_000, 9), "2 GB": (2_000_000_000, 5)}
#: `--quick` divides what is larger than this by 20.
_LARGE_BYTES = 1_000_000
_SMALL_BYTES = 1000


def run_create(triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the table of create."""
    _run("create", create_less_load, triton, folder, quick=quick)


def run_update(triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the table of update, from a small version to one of each size."""
    small = artifact(folder / "small", _SMALL_BYTES)

    def update(client: Any, uri: str) -> float:
        client.create_deployment("copied", small)
        os.sync()
        taken_s = less_load(lambda: client.update_deployment("copied", uri))
        client.delete_deployment("copied")
        return taken_s

    _run("update", update, triton, folder, quick=quick)


def _run(
    what: str,
    measure: Callable[[Any, str], float],
    triton: LocalTriton,
    folder: Path,
    *,
    quick: bool,
) -> None:
    heading(f"{what} less Triton's own load (median)")
    client = get_deploy_client("triton")
    for label, (size_bytes, rounds) in SIZES.items():
        if quick and size_bytes > _LARGE_BYTES:
            size_bytes //= 20  # noqa: PLW2901
        uri = artifact(folder / f"{what}{label.replace(' ', '')}", size_bytes)
        before_kib = peak_kib()
        ours: list[float] = []
        copies: list[float] = []
        durable: list[float] = []
        for _ in range(rounds):
            ours.append(measure(client, uri))
            copies.append(copy(uri, triton.model_repository, durable=False))
            durable.append(copy(uri, triton.model_repository, durable=True))
        report(label, ours, copies, durable)
        print(f"{'':<26} peak memory grew by {(peak_kib() - before_kib) / 1024:.1f} MiB")
        shutil.rmtree(uri)


def report(label: str, ours: list[float], copies: list[float], durable: list[float]) -> None:
    """Print ours beside a copy, and beside a copy that has reached the disk, as ours has."""
    middle = statistics.median
    row(label, middle(ours) * 1e3, middle(copies) * 1e3, limit="plain copy  ", aim="1.05x")
    row("", middle(ours) * 1e3, middle(durable) * 1e3, limit="copy + fsync", aim="-")


def create_less_load(client: Any, uri: str) -> float:
    """Seconds that create takes, those of Triton's load taken off."""
    os.sync()  # what earlier rounds wrote must not be flushed on our time
    taken_s = less_load(lambda: client.create_deployment("copied", uri))
    client.delete_deployment("copied")
    return taken_s


def copy(uri: str, repository: str, *, durable: bool) -> float:
    """Seconds that a plain copy of the weights to the same file system takes."""
    os.sync()
    source, target = f"{uri}/model/1/weights.bin", f"{repository}.copy"
    begin = time.perf_counter()
    shutil.copyfile(source, target)
    if durable:
        with open(target, "rb") as file:  # noqa: PTH123
            os.fsync(file.fileno())
    taken_s = time.perf_counter() - begin
    os.unlink(target)  # noqa: PTH108
    return taken_s


def peak_kib() -> int:
    """This process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
