"""An embedded Triton whose Python has nothing but numpy, and a cache of environments of its own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest
from cloudpickle import register_pickle_by_value
from mlflow.models import infer_signature

from mlflow_triton_plugin.local.provisioning import CACHE_VARIABLE

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from . import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

register_pickle_by_value(models)

MLFLOW = f"mlflow=={mlflow.__version__}"
FRAME = pd.DataFrame({"x": ["MyModel", "OtherOne"]})


@pytest.fixture(scope="session")
def cache(triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where environments are packed; the server, which is in the user's, has started by then."""
    assert triton.is_running
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder / "environments"


@pytest.fixture(scope="session")
def logged() -> Callable[..., str]:
    """Log a model that writes names as `inflection` does, and needs these; its URI."""

    def log(*requirements: str, suffix: str = "", registered: str | None = None) -> str:
        info = log_pyfunc(
            models.Underscored(suffix),
            signature=infer_signature(FRAME, ["my_model"]),
            pip_requirements=[MLFLOW, *requirements],
            registered_model_name=registered,
        )
        return str(info.model_uri)

    return log


@pytest.fixture
def deployed(
    client: TritonDeploymentClient, cache: Path
) -> Iterator[Callable[[str, dict[str, Any]], str]]:
    """Deploy a model; its name. Deleted at the end."""
    assert cache.parent.is_dir()
    names = []

    def deploy(uri: str, config: dict[str, Any]) -> str:
        names.append(f"m{uuid.uuid4().hex[:12]}")
        client.create_deployment(names[-1], uri, config=config)
        return names[-1]

    yield deploy
    for name in names:
        client.delete_deployment(name)
