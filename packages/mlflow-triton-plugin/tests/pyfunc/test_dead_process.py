"""A model whose process died: Triton goes on calling it READY, and this target does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from mlflow.models import infer_signature

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252
from . import custom

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

ALIVE, DEADLY = (pd.DataFrame({"x": [value]}) for value in (1.0, -1.0))
SIGNATURE = infer_signature(ALIVE, ALIVE["x"])


def kill(client: TritonDeploymentClient, name: str) -> str:
    """Have the model end its process; the message of the request that did."""
    return refused(lambda: client.predict(name, DEADLY), "INVALID_STATE", name, "process died")


def answer(client: TritonDeploymentClient, name: str) -> float:
    (value,) = client.predict(name, ALIVE)["outputs"].values()
    return float(value.reshape(-1)[0])


@pytest.fixture
def dead(deploy: Deploy, pyfunc_client: TritonDeploymentClient) -> str:
    """A deployment whose process has died."""
    name, _ = deploy(custom.Dying(), signature=SIGNATURE)
    kill(pyfunc_client, name)
    return name


def test_predict_names_the_command_that_starts_the_process_again(
    pyfunc_client: TritonDeploymentClient, dead: str
) -> None:
    message = kill(pyfunc_client, dead)
    assert f"mlflow deployments update -t triton --name {dead}" in message
    pyfunc_client.update_deployment(dead)
    assert answer(pyfunc_client, dead) == 1.0
