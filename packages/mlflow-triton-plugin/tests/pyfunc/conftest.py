"""An embedded Triton whose Python has what MLflow's models need."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from cloudpickle import register_pickle_by_value
from mlflow.deployments import get_deploy_client

from mlflow_triton_plugin.local import LocalTriton, model_packages

from ..conftest import unloads_not_waited_for  # noqa: TID252 - tests have no name to be imported by
from ..models import log_pyfunc  # noqa: TID252 - the same
from . import custom

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

REQUIREMENTS = [
    f"mlflow-skinny=={mlflow.__version__}",
    f"scikit-learn=={version('scikit-learn')}",
    "skops",
]

PACKAGES = model_packages(REQUIREMENTS)

# the server has no tests to import them from
register_pickle_by_value(custom)

#: Deploys a model of `custom` (or any that was logged); its name and its URI.
Deploy = Callable[..., tuple[str, str]]


@pytest.fixture(scope="session")
def pyfunc_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pyfunc")


@pytest.fixture(scope="session")
def pyfunc_triton(pyfunc_repository: Path) -> Iterator[LocalTriton]:
    """Auto-complete is off, as in `triton`: configs are whole, and it would start models twice."""
    options = ["--disable-auto-complete-config"]
    with LocalTriton(pyfunc_repository, packages=PACKAGES, extra_args=options) as server:
        yield server


@pytest.fixture(scope="session", params=["grpc"])
def pyfunc_client(
    pyfunc_triton: LocalTriton, pyfunc_repository: Path, request: pytest.FixtureRequest
) -> Iterator[TritonDeploymentClient]:
    urls = {"grpc": pyfunc_triton.grpc_url, "http": pyfunc_triton.http_url}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_URL", urls[request.param])
        patch.setenv("TRITON_MODEL_REPO", str(pyfunc_repository))
        made: TritonDeploymentClient = get_deploy_client("triton")
        yield made


@pytest.fixture(scope="module")
def deploy(pyfunc_client: TritonDeploymentClient) -> Iterator[Deploy]:
    """Log a `PythonModel` and deploy it; deleted with the module: each one has a process."""
    names = []

    def log_and_deploy(
        model: Any, config: dict[str, Any] | None = None, **logged: Any
    ) -> tuple[str, str]:
        info = log_pyfunc(model, **logged)
        name = f"m{uuid.uuid4().hex[:12]}"
        names.append(name)
        pyfunc_client.create_deployment(name, info.model_uri, config=config)
        return name, info.model_uri

    yield log_and_deploy
    with unloads_not_waited_for():  # Triton waits two seconds for each one's process to end
        for name in names:
            pyfunc_client.delete_deployment(name)


@pytest.fixture
def pyfunc_name(pyfunc_client: TritonDeploymentClient) -> Iterator[str]:
    """A deployment name of this test alone, deleted afterwards."""
    name = f"m{uuid.uuid4().hex[:12]}"
    yield name
    with unloads_not_waited_for():
        pyfunc_client.delete_deployment(name)
