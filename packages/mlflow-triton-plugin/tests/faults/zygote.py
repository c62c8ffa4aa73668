"""A process that has imported everything, and forks a child for each command it is told to run.

Importing MLflow takes seconds and a command a fraction of one, and a process that has used gRPC
must not fork: so this one never does, and its children live for one command each. A child counts
the calls by which the command changes the store or a server, and at one of them it dies, or lets
the call fail.

A script: orders are JSON lines on stdin, answers JSON lines on what was stdout. See `commands.py`.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from urllib.parse import unquote, urlsplit

import boto3
import botocore.session
import mlflow
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from mlflow.tracking._model_registry.utils import _get_store as registry_store
from mlflow.tracking._tracking_service.utils import _get_store as tracking_store

# the latter two so that no child has to import them
import mlflow_triton_plugin.server as server_package
import mlflow_triton_plugin.server._grpc  # noqa: F401
import triton_repo.flavors
import triton_repo.store._s3  # noqa: F401
from mlflow_triton_plugin import plugin
from mlflow_triton_plugin.security import OPEN
from triton_repo.errors import StoreAccessError, StoreUnavailableError
from triton_repo.store import open_store
from triton_repo.store._objects import ObjectStore
from triton_repo.testing import WatchedStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.awsrequest import AWSPreparedRequest

    from mlflow_triton_plugin.security import Access
    from mlflow_triton_plugin.server import TritonServer
    from mlflow_triton_plugin.settings import Endpoint
    from triton_repo.store._s3 import S3Bucket

_T = TypeVar("_T")

_SERVER_CALLS = ("load", "unload")
_POLL_S = 0.001


@dataclass
class Points:
    """Counts changing calls, and disturbs the one it is told to.

    Attributes:
        how: see `Fault` in `commands.py`.
        at: the call's number, from 1.
        server_log: Triton's log, for `kill-while-loading`.
        directories: what `lose-permission` makes read-only, with all below.
        calls: so far, as `method key`.
        requests: to an object store that change something, so far, as `METHOD key`.
    """

    how: str = "none"
    at: int = 0
    server_log: str = ""
    directories: tuple[str, ...] = ()
    calls: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch_requests(self, bucket: S3Bucket) -> None:
        """See every request just before it is sent, a part of a large file too."""
        counting = threading.Lock()

        def sees(request: AWSPreparedRequest, **_: object) -> None:
            if request.method in ("GET", "HEAD"):
                return
            with counting:
                path = unquote(urlsplit(request.url).path)
                key = path.removeprefix(f"/{bucket.name}/{bucket.address.prefix}")
                self.requests.append(f"{request.method} {key}")
                if self.how == "kill-request" and len(self.requests) == self.at:
                    _die()

        bucket.client.meta.events.register("before-send.s3", sees)

    def change(self, what: str, key: str, call: Callable[[], _T]) -> _T:
        """Carry out one changing call, or disturb it."""
        self.calls.append(f"{what} {key}")
        number = len(self.calls)
        if self.how == "fail-for-good" and number >= self.at and what not in _SERVER_CALLS:
            raise StoreAccessError("permission lost on demand", uri="(test)", key=key)
        if number != self.at or self.how == "kill-request":
            return call()
        if self.how == "fail-once":
            raise StoreUnavailableError("Input/output error on demand", uri="(test)", key=key)
        if self.how == "lose-permission":
            for directory in self.directories:
                _make_read_only(Path(directory))
        if self.how == "kill":
            _die()
        if self.how == "kill-while-loading":
            _die_while_loading(Path(self.server_log), key, call)
        result = call()
        if self.how == "kill-after":
            _die()
        return result


@dataclass
class _Store(WatchedStore):
    points: Points

    def change(self, what: str, key: str, call: Callable[[], _T]) -> _T:
        return self.points.change(what, key, call)


def _make_read_only(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        if path.is_dir():
            path.chmod(0o555)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process goes on")


def _die_while_loading(log: Path, model: str, load: Callable[[], object]) -> NoReturn:
    """Die once Triton's log says that it has begun.

    The log and not the index, which has no line for a model that is named by its path.
    """
    begun = log.stat().st_size
    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    while loading.is_alive():
        with log.open("rb") as file:
            file.seek(begun)
            if f"loading: {model}:".encode() in file.read():
                _die()
        time.sleep(_POLL_S)
    raise AssertionError(f"{model} was loaded before anybody saw it begin; nothing was killed")


def _watch_servers(points: Points) -> None:
    real = server_package.open_server

    def watched(server: TritonServer, what: str) -> Callable[..., Any]:
        call = getattr(server, what)

        def change(model: str, *arguments: Any, **options: Any) -> Any:
            return points.change(what, model, lambda: call(model, *arguments, **options))

        return change

    def open_server(endpoint: Endpoint, *, timeout_s: float, access: Access = OPEN) -> TritonServer:
        server = real(endpoint, timeout_s=timeout_s, access=access)
        for what in _SERVER_CALLS:
            setattr(server, what, watched(server, what))
        return server

    server_package.open_server = open_server


class _Capabilities(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _obey_permissions() -> None:
    """Let a file's mode count for root too: CAP_DAC_OVERRIDE and its like are given up.

    Source: capabilities(7), capset(2). Nothing else changes: files stay those of this user.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (_Capabilities * 2)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    dropped = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    sets[0].effective &= ~dropped
    sets[0].permitted &= ~dropped
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _obey(order: dict[str, Any]) -> dict[str, Any]:
    """Run one command; what it returned or raised, and the calls it made."""
    os.environ.update(order["environment"])
    if order["obey_permissions"]:
        _obey_permissions()
    points = Points(**order["fault"], server_log=order["server_log"])

    def opened(address: str) -> _Store:
        store = open_store(address)
        if isinstance(store, ObjectStore):
            points.watch_requests(cast("S3Bucket", store.bucket))
        return _Store(store, points)

    plugin.open_store = opened  # type: ignore[attr-defined]
    _watch_servers(points)
    said: dict[str, Any] = {}
    try:
        client = get_deploy_client("triton")
        said["result"] = getattr(client, order["method"])(**order["arguments"])
    except MlflowException as exc:
        said["error"] = {"code": exc.error_code, "message": str(exc.message)}
    except BaseException:  # noqa: BLE001 - whatever it is, the test wants to see it
        said["crash"] = traceback.format_exc()
    return {**said, "calls": points.calls, "requests": points.requests}


def _run(order: dict[str, Any]) -> dict[str, Any]:
    """Fork, run one command there, and wait; a killed child says nothing."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(order["timeout_s"])  # ends it, however it hangs
        try:
            os.write(write_end, json.dumps(_obey(order), default=str).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {**(json.loads(said) if said else {}), "signal": max(0, -code)}


def _open_tracking() -> None:
    """Have MLflow's stores ready, without a connection that children would share."""
    mlflow.MlflowClient().search_registered_models(max_results=1)
    for store in (tracking_store(), registry_store()):
        store.engine.dispose()


def _read_description_of_s3() -> None:
    """Have botocore's JSON ready, which every session would read by itself."""
    shared = functools.lru_cache(botocore.session.create_loader)
    setattr(botocore.session, "create_loader", shared)  # noqa: B010 - it imported that name
    boto3.session.Session("nobody", "nothing", region_name="us-east-1").client("s3")


def main() -> None:
    """Answer orders until stdin ends."""
    _open_tracking()
    _read_description_of_s3()
    # what a command prints must not get between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
