"""The processes that a server's models have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from mlflow_triton_plugin.local import LocalTriton

__all__ = ["stubs_of", "workers_of"]

_STUB = "triton_python_backend_stub"


def stubs_of(triton: LocalTriton, model: str) -> list[psutil.Process]:
    """Those of Triton's own for one model: one an instance."""
    children = psutil.Process(triton.pid).children(recursive=True)
    return [each for each in children if _is_stub(each, model)]


def _is_stub(process: psutil.Process, model: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.ZombieProcess:  # Triton does not look after one that died
        return False
    return bool(words) and words[0].endswith(_STUB) and f"/{model}/" in words[1]


def workers_of(triton: LocalTriton, model: str) -> list[psutil.Process]:
    """Those that have the model itself."""
    return [worker for stub in stubs_of(triton, model) for worker in stub.children()]
