"""An MLflow tracking server on loopback that serves the artifacts itself, from where it is told.

It needs `mlflow`, which this package neither depends on nor imports: it is a program to it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

from triton_repo.testing.program import ServerProgram

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TrackingServer"]

_START_S = 120.0


class TrackingServer(ServerProgram):
    """`mlflow server` on a port of its own, gone when it is left.

    Attributes:
        url: such as `http://127.0.0.1:40001`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database: Path,
        artifacts_destination: str,
    ) -> None:
        """Where it works.

        Args:
            folder: for its log; where it runs.
            database: an SQLite file with MLflow's tables, which saves making them.
            artifacts_destination: where it keeps artifacts: a directory, or `s3://bucket/path`.
        """
        self.url = ""
        self._folder = folder
        self._database = database
        self._destination = artifacts_destination

    @property
    def log(self) -> Path:
        """What it says, requests among it."""
        return self._folder / "mlflow-server.log"

    def _start(self) -> subprocess.Popen[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                 "--port", str(port), "--workers", "1",
                 "--backend-store-uri", f"sqlite:///{self._database}",
                 "--artifacts-destination", self._destination],
                stdout=log, stderr=log, cwd=self._folder, env=environment, text=True,
                start_new_session=True,
            )  # fmt: skip

    def _wait(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):  # noqa: S310 - our own
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"mlflow server did not start: {self.log.read_text()[-2000:]}")
