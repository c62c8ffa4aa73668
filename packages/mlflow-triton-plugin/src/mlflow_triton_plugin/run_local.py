"""`mlflow deployments run-local`: one model on an embedded Triton, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow.models import get_model_info

from mlflow_triton_plugin.deploy import Deployer
from mlflow_triton_plugin.local import LocalTriton, StartError, model_packages, requirements_of
from mlflow_triton_plugin.server import TritonServers
from mlflow_triton_plugin.settings import Endpoint
from triton_repo.flavors import NATIVE_FLAVORS, SUPPORTED_FLAVORS
from triton_repo.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from mlflow_triton_plugin.options import Options

__all__ = ["serve_until_interrupted"]


def serve_until_interrupted(
    name: str, model_uri: str, flavor: str | None, options: Options
) -> None:
    """Start a server on a repository of its own, deploy the model to it, and wait.

    Messages go to stderr. On return the server and the repository are gone.

    Raises:
        LocalTritonError: the server did not start, or stopped by itself.
        TritonRepoError, TritonServerError, MlflowException: the model could not be deployed.
    """
    with (
        _terminating_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="mlflow-triton-local-") as repository,
        LocalTriton(
            repository,
            grpc_port=options.grpc_port,
            http_port=options.http_port,
            # unless it is asked for, the model has an environment of its own
            packages=_packages(model_uri, flavor) if options.env == "default" else (),
        ) as triton,
    ):
        endpoint = Endpoint.parse(triton.grpc_url, setting="the local server's address")
        servers = TritonServers.open([endpoint], timeout_s=options.load_timeout_s)
        # the embedded server has none of the backends that may be missing
        deployer = Deployer(open_store(repository), servers, native=False)
        deployer.create(name, model_uri, flavor, options)
        _say(
            f"{name} is served at grpc://{triton.grpc_url} and {triton.http_url}; "
            f"try: mlflow deployments predict -t triton://{triton.grpc_url} --name {name} "
            "--input-path input.json. Ctrl-C stops it."
        )
        try:
            exit_code = triton.wait()
        except KeyboardInterrupt:
            _say("stopping")
            return
        tail = "; ".join(triton.log_tail(3))
        raise StartError(f"tritonserver ended by itself with exit status {exit_code}: {tail}")


def _packages(model_uri: str, flavor: str | None) -> list[str]:
    """What the server's Python needs for this model: nothing but for a `python_function`."""
    flavors = get_model_info(model_uri).flavors
    here = (each for each in SUPPORTED_FLAVORS if each not in NATIVE_FLAVORS)
    chosen = flavor or next((each for each in here if each in flavors), "")
    return model_packages(requirements_of(model_uri)) if chosen == "python_function" else []


@contextmanager
def _terminating_as_interrupt() -> Iterator[None]:
    """SIGTERM, as a supervisor sends it, ends the block like Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
