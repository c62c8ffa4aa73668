"""What the lock and fsync add to a small create and update: each left out in turn."""

from __future__ import annotations

import os
import statistics
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from common import artifact, heading, less_load
from mlflow.deployments import get_deploy_client

from triton_repo.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton


def run(_triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the table."""
    heading("what the lock and fsync add, 10 kB model, less Triton's own load (median)")
    client = get_deploy_client("triton")
    first, second = (artifact(folder / f"durable{each}", 10_000 + each) for each in (1, 2))

    def create() -> None:
        client.create_deployment("durable", first)

    def update() -> None:
        client.update_deployment("durable", second)

    variants: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "as it is": nullcontext,
        "without the lock": without_lock,
        "without fsync": without_fsync,
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(5 if quick else 21):
        for label, variant in variants.items():
            os.sync()
            with variant():
                for command in (create, update):
                    taken = seconds.setdefault((command.__name__, label), [])
                    taken.append(less_load(command))
            client.delete_deployment("durable")
    for name in ("create", "update"):
        medians = {label: statistics.median(seconds[name, label]) * 1e3 for label in variants}
        whole_ms = medians["as it is"]
        print(
            f"{name}: {whole_ms:.1f} ms, of which the lock "
            f"{whole_ms - medians['without the lock']:.1f} ms, fsync "
            f"{whole_ms - medians['without fsync']:.1f} ms"
        )


@contextmanager
def without_lock() -> Iterator[None]:
    """Nobody else writes here."""
    lock = LocalStore.lock

    def no_lock(*_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    LocalStore.lock = no_lock  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        LocalStore.lock = lock  # type: ignore[method-assign]


@contextmanager
def without_fsync() -> Iterator[None]:
    """A power cut may take anything."""
    fsync = os.fsync
    os.fsync = lambda fd: None  # noqa: ARG005 - the name is part of its type
    try:
        yield
    finally:
        os.fsync = fsync
