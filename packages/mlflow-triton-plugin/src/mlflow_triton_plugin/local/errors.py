"""Everything the embedded Triton raises on purpose.

```
LocalTritonError (RuntimeError)
├ UnsupportedPlatformError   .system .machine .glibc
├ ProvisioningError          .path .output
└ StartError                 .returncode .log_path .log_tail .waited_s
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["LocalTritonError", "ProvisioningError", "StartError", "UnsupportedPlatformError"]


class LocalTritonError(RuntimeError):
    """Base class of every error the embedded Triton raises on purpose."""


class UnsupportedPlatformError(LocalTritonError):
    """No Triton is published as a wheel for this machine; nothing was downloaded."""

    def __init__(self, message: str, *, system: str, machine: str, glibc: str) -> None:
        super().__init__(message)
        self.system = system
        self.machine = machine
        self.glibc = glibc


class ProvisioningError(LocalTritonError):
    """The server's environment could not be made; what was made of it so far is removed.

    Attributes:
        path: the directory that was to be made, or the file that says of what; None where neither
            is known.
        output: what the failing installer printed, for a bug report; may be empty.
    """

    def __init__(self, message: str, *, path: Path | None = None, output: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.output = output


class StartError(LocalTritonError):
    """The server did not become ready, and is stopped.

    Attributes:
        returncode: the server's exit code (128 + N for signal N), None where it never ran or had
            not ended by itself.
        log_path: its log, which is kept; None where it never ran.
        log_tail: the log's last lines.
        waited_s: how long it was waited for.
    """

    def __init__(
        self,
        message: str,
        *,
        returncode: int | None = None,
        log_path: Path | None = None,
        log_tail: Sequence[str] = (),
        waited_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.log_path = log_path
        self.log_tail = tuple(log_tail)
        self.waited_s = waited_s
