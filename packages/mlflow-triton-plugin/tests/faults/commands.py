"""Deployment commands as values, and the zygote that runs them in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from mlflow.deployments import BaseDeploymentClient
    from typing_extensions import Self

__all__ = ["Command", "Fault", "How", "Outcome", "Zygote"]

_ZYGOTE = Path(__file__).with_name("zygote.py")
#: Seconds after which a command that hangs is ended, which the test then sees.
_COMMAND_TIMEOUT_S = 60

How = Literal[
    "none",
    "kill",  # SIGKILL instead of the call
    "kill-after",  # SIGKILL once it has returned
    "kill-while-loading",  # a load: SIGKILL while Triton says LOADING
    "kill-request",  # SIGKILL instead of a request to an object store
    "fail-once",  # a store call: it fails as with EIO, later ones work
    "fail-for-good",  # it and every later store call fail for want of permission
    "lose-permission",  # directories, and those below, become read-only before the call
]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and at which changing call or request, counted from 1."""

    how: How = "none"
    at: int = 0
    directories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """One call of the deployment client."""

    method: Literal["create_deployment", "update_deployment", "delete_deployment"]
    name: str
    model_uri: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        given = {"model_uri": self.model_uri} if self.model_uri else {}
        return {"name": self.name, "config": dict(self.options), **given}

    def run(self, client: BaseDeploymentClient) -> Any:
        return getattr(client, self.method)(**self.arguments)


@dataclass(frozen=True)
class Outcome:
    """How a command in a process of its own ended.

    Attributes:
        signal: that killed it, or 0.
        calls: the changing calls it made, as `method key`; empty where it was killed.
        requests: those to an object store that change something, as `METHOD key`.
        code: of the MlflowException it raised, or an empty string.
        message: of the same.
        crash: the traceback of any other exception.
    """

    signal: int
    calls: tuple[str, ...]
    requests: tuple[str, ...] = ()
    code: str = ""
    message: str = ""
    crash: str = ""

    @property
    def succeeded(self) -> bool:
        return not (self.signal or self.code or self.crash)

    def __str__(self) -> str:
        if self.signal:
            return f"killed by signal {self.signal}"
        return self.crash or (f"{self.code}: {self.message}" if self.code else "success")


class Zygote:
    """Runs each command in a fresh process that has everything imported already."""

    def __init__(self, log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_ZYGOTE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def run(
        self,
        command: Command,
        environment: Mapping[str, str],
        fault: Fault | None = None,
        *,
        server_log: Path,
        obey_permissions: bool = False,
    ) -> Outcome:
        """Run one command and wait for its end.

        Args:
            command: what to run.
            environment: TRITON_URL and TRITON_MODEL_REPO.
            fault: what goes wrong on the way.
            server_log: Triton's log, which says when it begins to load.
            obey_permissions: whether file modes count, though this may be root.
        """
        order = {
            "method": command.method,
            "arguments": command.arguments,
            "environment": dict(environment),
            "fault": asdict(fault or Fault()),
            "server_log": str(server_log),
            "obey_permissions": obey_permissions,
            "timeout_s": _COMMAND_TIMEOUT_S,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the zygote is gone; its log says why"
        said = json.loads(line)
        error = said.get("error", {})
        return Outcome(
            signal=said["signal"],
            calls=tuple(said.get("calls", ())),
            requests=tuple(said.get("requests", ())),
            code=error.get("code", ""),
            message=error.get("message", ""),
            crash=said.get("crash", ""),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_COMMAND_TIMEOUT_S + 5)
        self._process.stdout.close()
