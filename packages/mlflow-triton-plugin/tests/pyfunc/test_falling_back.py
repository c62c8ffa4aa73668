"""Models that have a faster way, on a server that lacks its backend.

The flavor is put beside a `PythonModel`: what its library would log, where only its names count.
Real ones are in tests/flavors.
"""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.models import infer_signature
from mlflow.pyfunc import save_model

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252
from . import custom

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

FRAME = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, 1.5]})


@pytest.fixture
def forest(tmp_path: Path) -> str:
    """A model with the flavors `xgboost`, for FIL, and `python_function`."""
    root = tmp_path / "model"
    signature = infer_signature(FRAME, np.array([1.0], np.float32))
    save_model(
        root, python_model=custom.Sums(), signature=signature, pip_requirements=["mlflow-skinny"]
    )
    document = yaml.safe_load((root / "MLmodel").read_text())
    settings = {"data": "model.ubj", "model_class": "xgboost.sklearn.XGBRegressor"}
    document["flavors"]["xgboost"] = settings
    (root / "MLmodel").write_text(yaml.safe_dump(document))
    (root / "model.ubj").write_bytes(b"{L")
    return str(root)


@pytest.fixture
def name(pyfunc_client: TritonDeploymentClient) -> Iterator[str]:
    name = f"m{uuid.uuid4().hex[:12]}"
    yield name
    pyfunc_client.delete_deployment(name)


def answers(client: TritonDeploymentClient, name: str) -> list[float]:
    found: list[float] = client.predict(name, FRAME)["outputs"]["predictions"].reshape(-1).tolist()
    return found


def test_it_is_deployed_as_any_model(
    pyfunc_client: TritonDeploymentClient,
    forest: str,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = pyfunc_client.plan_deployment(name, forest)
    assert (plan["flavor"], plan["falls_back"]) == ("xgboost", "python_function")
    with caplog.at_level(logging.WARNING):
        made = pyfunc_client.create_deployment(name, forest)
    assert made["flavor"] == "python_function"
    told = [each.getMessage() for each in caplog.records if "fil" in each.getMessage()]
    assert len(told) == 1
    assert "it is deployed as python_function instead" in told[0]
    assert answers(pyfunc_client, name) == [1.5, 3.5]
    # what is deployed stays what it is: its tensors have other names than a forest's
    caplog.clear()
    assert pyfunc_client.plan_deployment(name, forest)["flavor"] == "python_function"
    assert pyfunc_client.update_deployment(name, forest)["flavor"] == "python_function"
    assert not [each for each in caplog.records if "instead" in each.getMessage()]


def test_one_that_is_loaded_apart_first_falls_back_too(
    pyfunc_client: TritonDeploymentClient, forest: str, name: str
) -> None:
    made = pyfunc_client.create_deployment(name, forest, config={"validate": "load"})
    assert made["flavor"] == "python_function"
    assert answers(pyfunc_client, name) == [1.5, 3.5]


def test_an_update_keeps_the_way_that_is_deployed(
    pyfunc_client: TritonDeploymentClient, forest: str, name: str
) -> None:
    own = log_pyfunc(custom.Echo(), signature=infer_signature(FRAME, FRAME)).model_uri
    pyfunc_client.create_deployment(name, own)
    made = pyfunc_client.update_deployment(name, forest)
    assert made["flavor"] == "python_function"
    assert answers(pyfunc_client, name) == [1.5, 3.5]


def test_who_asks_for_it_is_told_and_nothing_changes(
    pyfunc_client: TritonDeploymentClient, pyfunc_repository: Path, forest: str, name: str
) -> None:
    words = ("backend 'fil'", "--flavor python_function")

    def create(**config: Any) -> object:
        return pyfunc_client.create_deployment(name, forest, "xgboost", config)

    refused(create, "INVALID_PARAMETER_VALUE", *words)
    refused(lambda: create(validate="load"), "INVALID_PARAMETER_VALUE", *words)
    assert not (pyfunc_repository / name).exists()
    pyfunc_client.create_deployment(name, forest, "python_function")
    refused(
        lambda: pyfunc_client.update_deployment(name, forest, "xgboost"),
        "INVALID_PARAMETER_VALUE",
        *words,
    )
    assert answers(pyfunc_client, name) == [1.5, 3.5]


def test_a_model_that_has_no_other_way_is_refused(
    pyfunc_client: TritonDeploymentClient, pyfunc_repository: Path, forest: str, name: str
) -> None:
    path = Path(forest, "MLmodel")
    document = yaml.safe_load(path.read_text())
    del document["flavors"]["python_function"]
    path.write_text(yaml.safe_dump(document))
    refused(
        lambda: pyfunc_client.create_deployment(name, forest),
        "INVALID_PARAMETER_VALUE",
        "backend 'fil'",
    )
    assert not (pyfunc_repository / name).exists()


def test_an_environment_asks_for_python(pyfunc_client: TritonDeploymentClient, forest: str) -> None:
    plan = pyfunc_client.plan_deployment("planned", forest, config={"env": "pack"})
    assert (plan["flavor"], plan["falls_back"]) == ("python_function", None)
