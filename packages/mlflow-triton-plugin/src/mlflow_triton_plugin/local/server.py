"""`LocalTriton`: a real `tritonserver` on this machine for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mlflow_triton_plugin.local import _ports
from mlflow_triton_plugin.local.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mlflow_triton_plugin.local.provisioning import Environment

__all__ = ["SYSTEM_TRITONSERVER", "LocalTriton"]

#: `tritonserver=` of LocalTriton: the one on PATH instead of the embedded one.
SYSTEM_TRITONSERVER = "system"

_SUPERVISOR = Path(__file__).with_name("_supervisor.py")
#: Seconds Triton gives requests in flight and models to unload before it exits anyway.
_EXIT_TIMEOUT_S = 10
#: Seconds after which the supervisor kills a server that was asked to stop.
_KILL_AFTER_S = _EXIT_TIMEOUT_S + 5
_TAIL_LINES = 20
_TAIL_BYTES = 64 * 1024
_POLL_S = 0.01
_PROBE_TIMEOUT_S = 2.0
#: Another process may take a free port before the server binds it.
_PORT_ATTEMPTS = 5
_PORT_TAKEN = re.compile(r"already in use|failed to start \w+ service", re.IGNORECASE)
#: What `bash -c`, through which the Python backend starts its stubs unquoted, takes as it is.
_SHELL_SAFE = re.compile(r"[\w@%+=:,./-]*", re.ASCII)
_OWNED_OPTIONS = {
    "--grpc-address": "host",
    "--grpc-port": "grpc_port",
    "--http-address": "host",
    "--http-port": "http_port",
    "--metrics-port": "metrics_port",
    "--model-control-mode": "model_control_mode",
}


@dataclass(frozen=True)
class _Ports:
    grpc: int
    http: int
    metrics: int | None


@dataclass(frozen=True)
class _Launcher:
    """A binary, what it finds in its environment, and ours, where it is the embedded one."""

    binary: str
    environ: dict[str, str]
    environment: Environment | None = None


class LocalTriton:
    """A `tritonserver` of our own, stopped with everything it started.

    It is stopped when the block ends, and also when this process dies, however it dies. Model
    directories are never written to.

    Args:
        model_repository: a directory that exists, or a URI Triton itself reads (`s3://…`).
        host: the address to listen on.
        grpc_port: 0 picks a free one.
        http_port: 0 picks a free one.
        metrics_port: 0 picks a free one; None turns metrics off.
        log_file: where to keep the server's log (appended to). By default it is in a temporary
            folder, which is removed when the server stopped as it should.
        model_control_mode: Triton's `explicit`, `none` or `poll`.
        tritonserver: `system` for the one on PATH, or the path of one. By default the embedded
            one, which is made on first use.
        extra_args: more options for `tritonserver`, after ours: the last one given counts.
        env: more environment variables for the server and its models.
        packages: what models of the Python backend need in the embedded server's environment, such
            as `model_packages(read_requirements(path))`: one is made for them on first use.
        startup_timeout_s: how long to wait until the server is ready.

    Raises:
        ValueError: an option in `extra_args` is one that this class has an argument for, or
            `packages` were given for a tritonserver of the user's.
    """

    def __init__(
        self,
        model_repository: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int | None = None,
        log_file: str | os.PathLike[str] | None = None,
        model_control_mode: str = "explicit",
        tritonserver: str | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        packages: Sequence[str] = (),
        startup_timeout_s: float = 60.0,
    ) -> None:
        _refuse_owned_options(extra_args)
        if packages and tritonserver is not None:
            raise ValueError("packages are for the embedded server; install them for yours")
        self._repository = os.fspath(model_repository)
        self._host = host
        self._wanted_ports = _Ports(grpc_port, http_port, metrics_port)
        self._ports = self._wanted_ports
        self._log_file = Path(log_file).absolute() if log_file else None
        self._model_control_mode = model_control_mode
        self._tritonserver = tritonserver
        self._extra_args = tuple(extra_args)
        self._env = dict(env or {})
        self._packages = tuple(packages)
        self._startup_timeout_s = startup_timeout_s
        self._folder: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._last_tail: list[str] = []

    # Life

    def start(self) -> Self:
        """Start the server and wait until it is ready.

        Returns:
            This object.

        Raises:
            UnsupportedPlatformError: no wheel for this machine.
            ProvisioningError: the embedded server could not be made.
            StartError: the server ended, a port is taken, the repository does not exist, or the
                server was not ready in time. Nothing is left running; the log is kept.
        """
        if self.is_running:
            raise StartError(f"this server runs already, as process {self._pid}")
        _require_repository(self._repository)
        launcher = self._launcher()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self._ports = self._pick_ports()
            try:
                self._launch(launcher)
                self._wait_until_ready()
                break
            except StartError as error:
                self._abandon()
                if not self._may_try_again(error, attempt):
                    raise
            except BaseException:
                self._abandon()
                self._remove_folder()
                raise
        return self

    def stop(self) -> None:
        """Stop the server, its stubs, and remove what they left in shared memory.

        Models get 10 s to finish what they are doing. Does nothing when it is not running.
        """
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        died = supervisor.poll() not in (None, 0)
        self._last_tail = self.log_tail(_TAIL_LINES)
        _end(supervisor)
        if not died or self._log_file:
            self._remove_folder()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the server ends by itself.

        Args:
            timeout_s: how long; None waits for ever.

        Returns:
            Its exit code; 128 + N when signal N ended it.

        Raises:
            TimeoutError: it still runs.
            StartError: it was never started, or is stopped.
        """
        if self._supervisor is None:
            raise StartError("this server is not started")
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"tritonserver still runs after {timeout_s} s") from error

    def poll(self) -> int | None:
        """Return the exit code of a server that ended by itself; None while it runs."""
        return None if self._supervisor is None else self._supervisor.poll()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # What it is

    @property
    def is_running(self) -> bool:
        """Whether the server's process is there."""
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def grpc_url(self) -> str:
        """Address for gRPC clients, `127.0.0.1:8001`."""
        return _ports.join(_ports.client_host(self._host), self._ports.grpc)

    @property
    def http_url(self) -> str:
        """Address for HTTP clients, `http://127.0.0.1:8000`."""
        return f"http://{_ports.join(_ports.client_host(self._host), self._ports.http)}"

    @property
    def metrics_url(self) -> str | None:
        """Address of the metrics page; None when metrics are off."""
        if self._ports.metrics is None:
            return None
        return f"http://{_ports.join(_ports.client_host(self._host), self._ports.metrics)}/metrics"

    @property
    def model_repository(self) -> str:
        """The repository as it was given."""
        return self._repository

    @property
    def pid(self) -> int | None:
        """Process id of `tritonserver`; None before it is started."""
        return self._pid

    @property
    def log_path(self) -> Path | None:
        """The server's log; None before it is started."""
        if self._log_file:
            return self._log_file
        return self._folder and self._folder / "tritonserver.log"

    def log_tail(self, lines: int = _TAIL_LINES) -> list[str]:
        """Return the log's last lines, also after the server stopped and the log was removed."""
        path = self.log_path
        if path is None or not path.is_file():
            return self._last_tail[-lines:]
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return log.read().decode("utf-8", "replace").splitlines()[-lines:]

    # Starting, step by step

    def _launcher(self) -> _Launcher:
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        if self._tritonserver is not None:
            return _Launcher(_find_tritonserver(self._tritonserver), environ | self._env)
        # imported here: with a tritonserver of the user's none of it is needed
        from mlflow_triton_plugin.local.provisioning import ensure_environment  # noqa: PLC0415

        made = ensure_environment(packages=self._packages)
        # a numpy 2 found through it would make the Python backend return zeros
        environ.pop("PYTHONPATH", None)
        environ.pop("PYTHONHOME", None)
        environ |= {"PYTHONNOUSERSITE": "1", "VIRTUAL_ENV": str(made.root)}
        environ |= self._env
        environ["PATH"] = _prepend(made.binaries, environ.get("PATH"))
        environ["LD_LIBRARY_PATH"] = _prepend(made.libraries, environ.get("LD_LIBRARY_PATH"))
        return _Launcher(str(made.tritonserver), environ, made)

    def _pick_ports(self) -> _Ports:
        """No two are the same: the system may pick one again that nobody listens at yet."""
        wanted = self._wanted_ports
        taken = {wanted.grpc, wanted.http, wanted.metrics}
        grpc = self._pick_port("grpc", wanted.grpc, taken)
        http = self._pick_port("http", wanted.http, {*taken, grpc})
        if wanted.metrics is None:
            return _Ports(grpc, http, None)
        metrics = self._pick_port("metrics", wanted.metrics, {*taken, grpc, http})
        return _Ports(grpc, http, metrics)

    def _pick_port(self, service: str, wanted: int, taken: Collection[int | None]) -> int:
        try:
            if not wanted:
                while (port := _ports.free_port(self._host)) in taken:
                    pass
                return port
            if _ports.is_free(self._host, wanted):
                return wanted
        except OSError as error:
            raise StartError(f"cannot listen on {self._host}: {error.strerror}") from error
        raise StartError(
            f"port {wanted} on {self._host} is taken: choose another {service} port, "
            "or 0 for a free one"
        )

    def _launch(self, launcher: _Launcher) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mlflow-triton-"))
        prefix = f"mlflow_triton_{secrets.token_hex(8)}_"
        command = [launcher.binary, *self._options(self._folder, prefix)]
        if launcher.environment is not None:
            backends = launcher.environment.backends.relative_to(launcher.environment.root)
            root = _shell_safe(launcher.environment.root, self._folder / "environment")
            command.append(f"--backend-directory={root / backends}")
            # who makes an environment for its models cannot know their Python otherwise, nor
            # whether they run on the same machine
            command.append(f"--id={launcher.environment.server_id}")
        command += self._extra_args
        ours = [prefix, str(_KILL_AFTER_S), str(self._folder)]
        log_path = self._log_file or self._folder / "tritonserver.log"
        with _opened(log_path) as log:
            self._supervisor = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-S", str(_SUPERVISOR), *ours, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=launcher.environ,
                # Ctrl-C at the terminal is for us; we stop the server in order
                start_new_session=True,
            )
        said = _stream(self._supervisor.stdout).readline()
        self._pid = int(said) if said else None

    def _options(self, folder: Path, region_prefix: str) -> list[str]:
        ports = self._ports
        # libevhtp's spelling
        http_host = f"ipv6:{self._host}" if ":" in self._host else self._host
        metrics = ["--allow-metrics=false"]
        if ports.metrics is not None:
            metrics = [f"--metrics-port={ports.metrics}", f"--metrics-address={http_host}"]
        repository: str | Path = self._repository
        if "://" not in self._repository:
            repository = _shell_safe(Path(self._repository).absolute(), folder / "repository")
        return [
            f"--model-repository={repository}",
            f"--model-control-mode={self._model_control_mode}",
            f"--grpc-address={_ports.bracketed(self._host)}",
            f"--grpc-port={ports.grpc}",
            f"--http-address={http_host}",
            f"--http-port={ports.http}",
            *metrics,
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={region_prefix}",
        ]

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        while not self._is_ready():
            waited_s = time.monotonic() - started
            returncode = self.poll()
            if returncode is not None:
                raise self._start_error(f"ended with exit code {returncode}", waited_s, returncode)
            if waited_s > self._startup_timeout_s:
                asked = f"{self.http_url}/v2/health/ready" if self._has_http else self.grpc_url
                raise self._start_error(f"was not ready after {waited_s:.0f} s ({asked})", waited_s)
            time.sleep(_POLL_S)

    @property
    def _has_http(self) -> bool:
        last = [arg for arg in self._extra_args if arg.startswith("--allow-http")][-1:]
        return not last or last[0].partition("=")[2].lower() not in ("false", "0", "off", "no")

    def _is_ready(self) -> bool:
        answers = self._is_http_ready() if self._has_http else self._is_listening(self._ports.grpc)
        # Triton opens its metrics port last
        metrics = self._ports.metrics
        return answers and (metrics is None or self._is_listening(metrics))

    def _is_http_ready(self) -> bool:
        host = _ports.client_host(self._host)
        connection = http.client.HTTPConnection(host, self._ports.http, timeout=_PROBE_TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                return False

    def _is_listening(self, port: int) -> bool:
        address = (_ports.client_host(self._host), port)
        try:
            socket.create_connection(address, timeout=_PROBE_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    def _start_error(self, what: str, waited_s: float, returncode: int | None = None) -> StartError:
        tail = _without_usage(self.log_tail(_TAIL_BYTES))[-_TAIL_LINES:]
        shown = "\n".join(f"  {line}" for line in tail)
        return StartError(
            f"tritonserver {what}; its log, {self.log_path}, ends with:\n{shown}",
            returncode=returncode,
            log_path=self.log_path,
            log_tail=tail,
            waited_s=waited_s,
        )

    def _may_try_again(self, error: StartError, attempt: int) -> bool:
        """Tell whether another process took a port that was free when we looked."""
        taken = any(_PORT_TAKEN.search(line) for line in error.log_tail)
        if not taken or attempt == _PORT_ATTEMPTS:
            return False
        self._remove_folder()
        return True

    def _abandon(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            _end(supervisor)

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _shell_safe(path: Path, link: Path) -> Path:
    """Return the path, or a link to it where the Python backend's shell would misread it."""
    if _SHELL_SAFE.fullmatch(str(path)):
        return path
    link.symlink_to(path, target_is_directory=True)
    return link


def _without_usage(lines: list[str]) -> list[str]:
    """Leave out the options' description, which comes after the complaint about one."""
    usage = next((at for at, line in enumerate(lines) if line.startswith("Usage: ")), len(lines))
    return lines[:usage] or lines


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """Tell the supervisor to stop its server, and wait until it has.

    Interrupted here (a second Ctrl-C), it still does: the pipe is closed by then.
    """
    # written to and not only closed: a forked child of ours may hold the pipe open
    with contextlib.suppress(BrokenPipeError), _stream(supervisor.stdin) as pipe:
        pipe.write(b"q")
    try:
        supervisor.wait(_KILL_AFTER_S + 5)
    except subprocess.TimeoutExpired:  # stuck in the kernel; the server gets SIGTERM from it
        supervisor.kill()
        supervisor.wait()
    _stream(supervisor.stdout).close()


def _opened(log_path: Path) -> IO[bytes]:
    try:
        return log_path.open("ab")
    except OSError as error:
        raise StartError(f"the log {log_path} cannot be written: {error.strerror}") from error


def _stream(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise AssertionError("Popen was given PIPE")
    return pipe


def _prepend(folder: Path, path: str | None) -> str:
    return f"{folder}{os.pathsep}{path}" if path else str(folder)


def _require_repository(repository: str) -> None:
    if "://" not in repository and not Path(repository).is_dir():
        raise StartError(f"the model repository {repository} is not a directory; create it first")


def _refuse_owned_options(extra_args: Sequence[str]) -> None:
    for arg in extra_args:
        argument = _OWNED_OPTIONS.get(arg.partition("=")[0])
        if argument:
            option = f"--{argument.replace('_', '-')}"
            raise ValueError(f"{arg}: say {argument}= (triton-local: {option}) instead")


def _find_tritonserver(wanted: str) -> str:
    if wanted == SYSTEM_TRITONSERVER:
        found = shutil.which("tritonserver")
        if found is None:
            raise StartError("there is no tritonserver on PATH; leave --tritonserver out")
        return str(Path(found).absolute())
    if not os.access(wanted, os.X_OK) or Path(wanted).is_dir():
        raise StartError(f"{wanted} is not a program that can be run")
    return str(Path(wanted).absolute())
