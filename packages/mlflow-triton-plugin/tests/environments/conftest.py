"""An embedded Triton whose Python has nothing but numpy, and a cache of environments of its own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest
from cloudpickle import register_pickle_by_value
from mlflow.models import infer_signature
from mlflow.tracking import MlflowClient

from mlflow_triton_plugin.local.provisioning import CACHE_VARIABLE, ensure_environment

from ..models import log_pyfunc, python_directory  # noqa: TID252 - tests have no name to be imported by
from . import models
from .wheels import make_wheel

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
        # an address that refuses connections goes on doing so
        for variable in ("UV_HTTP_RETRIES", "PIP_RETRIES"):
            patch.setenv(variable, "0")
        yield folder / "environments"


@pytest.fixture(scope="session")
def logged_pyfunc() -> Callable[..., str]:
    """Log a python_function model that needs these; its URI. `mlflow` is among them by default."""

    def log(*requirements: str, mlflow: tuple[str, ...] = (MLFLOW,)) -> str:
        info = log_pyfunc(
            models.Underscored(""),
            signature=infer_signature(FRAME, ["my_model"]),
            pip_requirements=[*mlflow, *requirements],
        )
        return str(info.model_uri)

    return log


@pytest.fixture(scope="session")
def stand_ins(triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Requirements that replace the large packages, so that an archive takes no 20 s to pack.

    MLflow and pandas are empty. numpy is a path to the one of the server, without which Triton's
    Python backend starts no model.
    """
    assert triton.is_running  # its environment was made
    folder = tmp_path_factory.mktemp("stand_ins")
    python = ensure_environment()
    seen = folder / "seen"
    seen.mkdir()
    packages = python.root / "lib" / f"python{python.python}" / "site-packages"
    for each in ("numpy", "numpy.libs"):
        (seen / each).symlink_to(packages / each)
    made = (
        make_wheel(folder, "mlflow_skinny", "3.0"),
        make_wheel(folder, "pandas", "2.0"),
        make_wheel(folder, "numpy", "1.26.4", modules={"numpy.pth": f"{seen}\n"}),
    )
    names = ("mlflow-skinny", "pandas", "numpy")
    return tuple(f"{name} @ {w.as_uri()}" for name, w in zip(names, made, strict=True))


@pytest.fixture(scope="session")
def logged(
    stand_ins: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """Make a model that writes names as `inflection` does, and needs these; its URI.

    One in Triton's layout: its process starts without importing MLflow.
    """

    def log(*requirements: str, suffix: str = "", registered: str | None = None) -> str:
        root = tmp_path_factory.mktemp("logged")
        config = models.CONFIG
        python_directory(root / "model", models.SOURCE.replace("SUFFIX", suffix), config=config)
        (root / "MLmodel").write_text("flavors: {triton: {data: model}}")
        (root / "requirements.txt").write_text("\n".join([*stand_ins, *requirements]))
        if registered is None:
            return str(root)
        client = MlflowClient()
        if not client.search_registered_models(f"name = '{registered}'"):
            client.create_registered_model(registered)
        version = client.create_model_version(registered, root.as_uri()).version
        return f"models:/{registered}/{version}"

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
