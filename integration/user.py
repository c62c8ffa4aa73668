"""A user: the built wheels in an environment of their own, a shell, and what they have exported."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Answer", "PythonSession", "RefusedError", "User"]

_DEADLINE_S = 180

#: A Python that does what it is told, line by line: MLflow's own start is paid once.
_SESSION = """
import json, os, sys, traceback
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.clear()
    os.environ.update(asked["environment"])
    try:
        client = get_deploy_client("triton")
        value = getattr(client, asked["call"])(*asked["arguments"], **asked["options"])
        said = {"value": json.loads(value.to_json()) if hasattr(value, "to_json") else value}
    except MlflowException as exc:
        told = "".join(traceback.format_exception(exc))
        said = {"code": exc.error_code, "message": str(exc), "told": told}
    answers.write(json.dumps(said) + "\\n")
    answers.flush()
"""


@dataclass(frozen=True)
class Answer:
    """What a command did.

    Attributes:
        status: its exit status.
        out: its results.
        err: its messages.
    """

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its only `Error:` line; there must be one."""
        assert self.status == 1, self
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err, self.err
        return lines[0]


class RefusedError(Exception):
    """An MlflowException of the Python session.

    Attributes:
        code: its error code.
        message: its message.
        told: what a traceback shows, causes included.
    """

    def __init__(self, code: str, message: str, told: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.told = told


@dataclass(frozen=True)
class User:
    """Somebody at a shell of their own, on this machine.

    Attributes:
        python: of an environment with the wheels.
        home: an empty directory.
        exported: the variables, MLFLOW_TRACKING_URI and so on; nothing else is inherited.
    """

    python: Path
    home: Path
    exported: Mapping[str, str] = field(default_factory=dict)

    def export(self, **variables: str) -> User:
        """The same user, with more variables; an empty value unsets one."""
        merged = {**self.exported, **variables}
        return replace(self, exported={name: value for name, value in merged.items() if value})

    @property
    def environment(self) -> dict[str, str]:
        """All that a command sees."""
        paths = [str(self.python.parent), "/usr/local/bin", "/usr/bin", "/bin"]
        return {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": os.pathsep.join(paths),
            **self.exported,
        }

    def start(self, program: str, *arguments: object) -> subprocess.Popen[str]:
        """Start a command and do not wait for it."""
        return subprocess.Popen(
            # a program with a path of its own is that one
            [str(self.python.parent / program), *map(str, arguments)],
            cwd=self.home, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, program: str, *arguments: object) -> Answer:
        """Run a command to its end."""
        process = self.start(program, *arguments)
        try:
            out, err = process.communicate(timeout=_DEADLINE_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Answer(process.returncode, out, err)

    def deployments(self, command: str, *arguments: object, target: str = "triton") -> Answer:
        """`mlflow deployments COMMAND -t triton …`."""
        return self.run("mlflow", "deployments", command, "-t", target, *arguments)

    def publish(self, name: str, directory: Path, *options: object) -> Answer:
        """`publish-model` of a directory in Triton's layout."""
        what = ("--model_name", name, "--model_directory", directory)
        return self.run("publish-model", *what, *options)

    @contextmanager
    def session(self) -> Iterator[PythonSession]:
        """MLflow's Python API, in a process of the user's own."""
        with subprocess.Popen(
            [str(self.python), "-c", _SESSION], cwd=self.home, env=self.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                yield PythonSession(process, self)
            finally:
                process.kill()


class PythonSession:
    """`mlflow.deployments.get_deploy_client("triton")`, anew for each call."""

    def __init__(self, process: subprocess.Popen[str], user: User) -> None:
        self._process = process
        self._user = user

    def call(self, what: str, *arguments: Any, user: User | None = None, **options: Any) -> Any:
        """Call a method of the client.

        Args:
            what: such as `create_deployment`.
            arguments: its arguments, as JSON can say them.
            user: whose variables count; the session's own when not given.
            options: its keyword arguments.

        Returns:
            What it returned; of predictions the JSON.

        Raises:
            RefusedError: what it raised.
        """
        asked = {
            "environment": (user or self._user).environment,
            "call": what,
            "arguments": arguments,
            "options": options,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        if "code" in said:
            raise RefusedError(**said)
        return said["value"]
