"""Models that have a faster way, on a server that lacks its backend, or whose backend is older.

The flavor is put beside a `PythonModel`: what its library would log, where only its names count.
Real ones are in tests/flavors.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.deployments import get_deploy_client
from mlflow.models import infer_signature
from mlflow.pyfunc import save_model

from mlflow_triton_plugin.local import LocalTriton
from mlflow_triton_plugin.local.provisioning import ensure_environment

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252
from . import custom
from .conftest import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

FRAME = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, 1.5]})
BOOSTING = {
    "learner": {
        "attributes": {},
        "gradient_booster": {
            "model": {"gbtree_model_param": {"num_trees": "1"}, "iteration_indptr": [0, 1]}
        },
    }
}
#: What a user who asks for the faster way is told.
LACKS_FIL = ("backend 'fil'", "--flavor python_function")
#: A backend that reads no model, as FIL does not read those of a newer XGBoost.
OLD_BACKEND = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        raise ValueError("key 'cats' is not recognized")
"""


@dataclass(frozen=True)
class Older:
    client: TritonDeploymentClient
    repository: Path
    backend: Path


@pytest.fixture
def forest(tmp_path: Path) -> str:
    """A model with the flavors `xgboost`, for FIL, and `python_function`."""
    root = tmp_path / "model"
    signature = infer_signature(FRAME, np.array([1.0], np.float32))
    save_model(
        root, python_model=custom.Sums(), signature=signature, pip_requirements=["mlflow-skinny"]
    )
    document = yaml.safe_load((root / "MLmodel").read_text())
    settings = {"data": "model.json", "model_class": "xgboost.sklearn.XGBRegressor"}
    document["flavors"]["xgboost"] = settings
    (root / "MLmodel").write_text(yaml.safe_dump(document))
    (root / "model.json").write_text(json.dumps(BOOSTING))
    return str(root)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Older]:
    """A server whose FIL backend reads no model."""
    backends = tmp_path_factory.mktemp("backends")
    for each in ensure_environment(packages=PACKAGES).backends.iterdir():
        (backends / each.name).symlink_to(each)
    (backends / "fil").mkdir()
    (backends / "fil" / "model.py").write_text(OLD_BACKEND)
    repository = tmp_path_factory.mktemp("older")
    arguments = [f"--backend-directory={backends}", "--disable-auto-complete-config"]
    with LocalTriton(repository, packages=PACKAGES, extra_args=arguments) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_URL", server.grpc_url)
            patch.setenv("TRITON_MODEL_REPO", str(repository))
            client: TritonDeploymentClient = get_deploy_client("triton")
        yield Older(client, repository, backends / "fil" / "model.py")


@pytest.fixture
def name(pyfunc_name: str) -> str:
    return pyfunc_name


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
    pyfunc_client: TritonDeploymentClient, pyfunc_repository: Path, forest: str
) -> None:
    """`test_a_config_decides_the_way` has the same of an update."""
    name = f"m{uuid.uuid4().hex[:12]}"
    for config in ({}, {"validate": "load"}):
        refused(
            partial(pyfunc_client.create_deployment, name, forest, "xgboost", config),
            "INVALID_PARAMETER_VALUE",
            *LACKS_FIL,
        )
        assert not (pyfunc_repository / name).exists()


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


def test_a_backend_that_does_not_read_the_model_is_as_none(
    older: Older, forest: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which formats of which libraries a backend reads depends on its release."""
    client = older.client
    for config in ({}, {"validate": "load"}):
        with caplog.at_level(logging.WARNING):
            made = client.create_deployment("forest", forest, config=config)
        assert made["flavor"] == "python_function"
        told = [each.getMessage() for each in caplog.records if "instead" in each.getMessage()]
        assert len(told) == 1
        assert "key 'cats' is not recognized" in told[0]
        assert answers(client, "forest") == [1.5, 3.5]
        client.delete_deployment("forest")
        caplog.clear()


def test_what_somebody_chose_is_refused_with_the_backend_s_reason(
    older: Older, forest: str, tmp_path: Path
) -> None:
    """By its name, or by a config.pbtxt; and what is set of that is no reason to."""
    client = older.client
    own = tmp_path / "fil.pbtxt"
    own.write_text(client.plan_deployment("forest", forest)["config"])
    for flavor, config in (("xgboost", {}), (None, {"config": str(own)})):
        refused(
            partial(client.create_deployment, "forest", forest, flavor, config),
            "INVALID_PARAMETER_VALUE",
            "key 'cats' is not recognized",
        )
        assert client.plan_deployment("forest", forest, flavor, config)["falls_back"] is None
    Path(forest, "config.pbtxt").write_bytes(own.read_bytes())
    refused(
        lambda: client.create_deployment("forest", forest),
        "INVALID_PARAMETER_VALUE",
        "key 'cats' is not recognized",
    )
    assert not (older.repository / "forest").exists()


def test_an_update_keeps_the_native_way_or_fails(older: Older, forest: str) -> None:
    """Clients know the names and types of its tensors."""
    client = older.client
    older.backend.write_text(OLD_BACKEND.replace("raise", "return\n        raise"))
    assert client.create_deployment("forest", forest)["flavor"] == "xgboost"
    older.backend.write_text(OLD_BACKEND)
    changed = Path(forest, "model.json")
    changed.write_text(changed.read_text() + " ")
    refused(
        lambda: client.update_deployment("forest", forest),
        "INVALID_PARAMETER_VALUE",
        "key 'cats' is not recognized",
    )
    assert client.get_deployment("forest")["state"] == "READY"
    assert client.update_deployment("forest", forest, "python_function")["state"] == "READY"
    client.delete_deployment("forest")


def test_a_config_decides_the_way(
    pyfunc_client: TritonDeploymentClient,
    pyfunc_repository: Path,
    forest: str,
    name: str,
    tmp_path: Path,
) -> None:
    """A plan and a create agree, and what is for another backend is refused before it is placed."""
    python, fil = tmp_path / "python.pbtxt", tmp_path / "fil.pbtxt"
    for flavor, path in (("python_function", python), ("xgboost", fil)):
        path.write_text(pyfunc_client.plan_deployment(name, forest, flavor)["config"])
    plan = pyfunc_client.plan_deployment(name, forest, config={"config": str(python)})
    assert (plan["flavor"], plan["falls_back"]) == ("python_function", None)
    made = pyfunc_client.create_deployment(name, forest, config={"config": str(python)})
    assert made["flavor"] == "python_function"
    assert answers(pyfunc_client, name) == [1.5, 3.5]
    refused(
        lambda: pyfunc_client.update_deployment(name, forest, config={"config": str(fil)}),
        "INVALID_PARAMETER_VALUE",
        "names backend 'fil', and flavor python_function is served by 'python'",
        "choose another --flavor",
    )
    refused(
        lambda: pyfunc_client.update_deployment(name, forest, "xgboost", {"config": "default"}),
        "INVALID_PARAMETER_VALUE",
        *LACKS_FIL,
    )
    for act in (pyfunc_client.plan_deployment, pyfunc_client.create_deployment):
        refused(
            partial(act, "other", forest, "xgboost", {"config": str(python)}),
            "INVALID_PARAMETER_VALUE",
            "names backend 'python', and flavor xgboost is served by 'fil'",
        )
        refused(
            partial(act, "other", forest, "xgboost", {"config.backend": '"python"'}),
            "INVALID_PARAMETER_VALUE",
            "names backend 'python', and flavor xgboost is served by 'fil'",
        )
    assert not (pyfunc_repository / "other").exists()
    assert answers(pyfunc_client, name) == [1.5, 3.5]


def test_an_environment_asks_for_python(pyfunc_client: TritonDeploymentClient, forest: str) -> None:
    plan = pyfunc_client.plan_deployment("planned", forest, config={"env": "pack"})
    assert (plan["flavor"], plan["falls_back"]) == ("python_function", None)
