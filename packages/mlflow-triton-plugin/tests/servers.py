"""How a server of the tests ends."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_triton_plugin.local import LocalTriton

__all__ = ["kill"]


def kill(server: LocalTriton) -> None:
    """Kill a server, without giving it time for anything; its stubs and segments go with it."""
    if server.pid is not None and server.is_running:
        os.kill(server.pid, signal.SIGKILL)
        server.wait(timeout_s=10)
    server.stop()
