"""What MLflow's own `log_model` logs, on a real Triton, beside the same model in process.

The table in FLAVORS.md is made from this run: `nox -s flavors`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_triton_plugin.local import LocalTriton, model_packages, requirements_of
from triton_repo.artifact import ModelArtifact
from triton_repo.flavors import choose_flavor, convert
from triton_repo.names import check_name

from .models import MODELS, Logged, local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.fixture(scope="session")
def logged() -> dict[str, Logged]:
    return {name: make() for name, make in MODELS.items()}


@pytest.fixture(scope="session")
def client(
    logged: dict[str, Logged], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonDeploymentClient]:
    """Of a server whose Python was made as `triton-local --for-model URI …` makes it."""
    repository = tmp_path_factory.mktemp("flavors")
    lines = [line for model in logged.values() for line in requirements_of(model.uri)]
    with (
        LocalTriton(repository, packages=model_packages(lines)) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TRITON_URL", server.grpc_url)
        patch.setenv("TRITON_MODEL_REPO", str(repository))
        made: TritonDeploymentClient = get_deploy_client("triton")
        yield made


@pytest.mark.parametrize("name", MODELS)
def test_a_deployed_model_answers_as_in_process(
    client: TritonDeploymentClient,
    logged: dict[str, Logged],
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    model = logged[name]
    started = time.monotonic()
    client.create_deployment(name, model.uri, "python_function")
    took_s = time.monotonic() - started
    try:
        outputs = client.predict(name, model.data)["outputs"]
    finally:
        client.delete_deployment(name)
    wanted = mlflow.pyfunc.load_model(model.uri).predict(model.data)
    compare(outputs, wanted)
    row = [model.native, name, len(outputs), round(took_s, 1), native_way(model)]
    record_property("flavor", json.dumps(row))


def native_way(model: Logged) -> str:
    """The backend of the flavor that is chosen by itself, where it is not Python."""
    artifact = ModelArtifact.open(Path(local_path(model)))
    flavor = choose_flavor(artifact)
    entry = convert(artifact, flavor=flavor, name=check_name("m"), version=1)
    assert entry.config is not None
    return "" if entry.config.backend == "python" else f"`{entry.config.backend}`"


def compare(outputs: dict[str, Any], wanted: Any) -> None:
    """Every value, whatever form pyfunc has given it."""
    if isinstance(wanted, pd.DataFrame):
        wanted = {column: wanted[column].to_numpy() for column in wanted}
    if not isinstance(wanted, dict):
        assert len(outputs) == 1
        wanted = dict(zip(outputs, [wanted], strict=True))
    assert set(outputs) == set(wanted)
    for column, values in wanted.items():
        given, expected = outputs[column], np.asarray(values)
        if given.dtype == object:
            assert [read(each) for each in given.reshape(-1)] == [
                str(each) if isinstance(each, (str, np.datetime64)) else each
                for each in expected.reshape(-1)
            ]
        else:
            np.testing.assert_allclose(
                given.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6
            )


def read(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
