"""How a server of the tests ends."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_triton_plugin.local import LocalTriton

__all__ = ["kill"]

_DIES_WITHIN_S = 30.0


def kill(server: LocalTriton) -> None:
    """Kill a server at once, and end the stubs and the shared memory that it leaves."""
    if server.pid is not None and server.is_running:
        os.kill(server.pid, signal.SIGKILL)
        server.wait(_DIES_WITHIN_S)
    server.stop()
