"""Without `-C env`: what the server's own Python lacks is in an environment on this machine."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pytest
import tritonclient.grpc
from mlflow.models import infer_signature
from tritonclient.utils import InferenceServerException

from mlflow_triton_plugin.cli import main
from mlflow_triton_plugin.environments import own, target
from mlflow_triton_plugin.environments.recipe import lacking, own_recipe_of
from mlflow_triton_plugin.environments.target import python_of
from mlflow_triton_plugin.local import ProvisioningError, _interpreters
from mlflow_triton_plugin.local.provisioning import CACHE_VARIABLE, ensure_environment
from mlflow_triton_plugin.server import ServerFacts, TritonServers

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from ..waiting import wait_until  # noqa: TID252
from . import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

FRAME = pd.DataFrame({"x": ["MyModel"]})
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
ENVIRONMENT = "mlflow_triton_environment.json"


@pytest.fixture(autouse=True)
def _own_cache(
    client: TritonDeploymentClient, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache with the server's environment, and none of a model's but those of these tests."""
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    python = ensure_environment()
    monkeypatch.setenv(CACHE_VARIABLE, str(cache.parent))
    link = cache.parent / python.root.name
    if not link.exists():
        link.symlink_to(python.root)


@pytest.fixture(scope="session")
def uri(triton: LocalTriton) -> str:
    """A model that needs what no server has: the newest numpy, and a package."""
    info = log_pyfunc(
        models.Versions(),
        signature=infer_signature(FRAME, ["2.0"]),
        pip_requirements=[
            *("mlflow-skinny", "inflection==0.5.1"),
            *(f"numpy=={np.__version__}", f"pandas=={pd.__version__}"),
        ],
    )
    return str(info.model_uri)


def test_it_is_made_once_and_used_in_place(
    client: TritonDeploymentClient, name: str, repository: Path, cache: Path, uri: str
) -> None:
    plan = client.plan_deployment(name, uri)["environment"]
    assert (plan["state"], plan["python"]) == ("to be made", PYTHON)
    assert f"numpy=={np.__version__}" in plan["differs"]
    assert not list(cache.glob("own-*"))

    created = client.create_deployment(name, uri)
    assert created["state"] == "READY"
    (answered,) = client.predict(name, FRAME)["outputs"]["predictions"].reshape(-1)
    assert answered.decode() == f"{np.__version__} {pd.__version__} my_model"

    (made,) = (path for path in cache.glob("own-*") if path.is_dir())
    placed = json.loads((repository / name / "1" / ENVIRONMENT).read_text())
    assert placed["python"] == str(made / "bin" / "python")
    other = f"{name}other"
    plan = client.plan_deployment(other, uri)["environment"]
    assert (plan["state"], plan["folder"]) == ("made before", str(made))
    # what it compiles is not in the repository, and not in what environments share
    assert not list((repository / name).rglob("__pycache__"))
    assert list((made / "bytecode").rglob("inflection/*.pyc"))
    assert client.verify_deployment(name) == []


def test_a_plan_says_what_the_servers_python_lacks(
    client: TritonDeploymentClient, name: str, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", name, "-m", uri]) == 0
    said = capsys.readouterr().out
    assert re.search(r"the server's Python lacks .*inflection==0\.5\.1", said)
    assert f"with Python {PYTHON}" in said


def test_one_that_is_gone_is_named_and_made_again(
    client: TritonDeploymentClient, triton: LocalTriton, name: str, cache: Path, uri: str
) -> None:
    client.create_deployment(name, uri)
    (made,) = (path for path in cache.glob("own-*") if path.is_dir())
    shutil.rmtree(made)
    raw = tritonclient.grpc.InferenceServerClient(triton.grpc_url)
    raw.unload_model(name)
    wait_until(lambda: not raw.is_model_ready(name), timeout_s=20)
    with pytest.raises(InferenceServerException) as raised:
        raw.load_model(name)
    assert f"{made}/bin/python, is not on the server's machine any more" in str(raised.value)
    assert client.update_deployment(name)["state"] == "READY"
    assert made.is_dir()
    # also for a version that is on disk, of which nothing is fetched
    client.update_deployment(name, uri, config={"version": 2})
    shutil.rmtree(made)
    assert client.update_deployment(name, config={"version": 1})["served_versions"] == [1]
    assert made.is_dir()


# -- when there is one ----------------------------------------------------------------------------


def servers(*names: str) -> TritonServers:
    """Servers that call themselves so."""
    facts = [ServerFacts("a", name, "2.51.0") for name in names]
    found = [SimpleNamespace(facts=lambda each=each: each) for each in facts]
    return TritonServers(cast("Any", found))


@pytest.mark.parametrize(
    ("id_of", "is_lacking"),
    [
        (lambda ours: ours, True),
        (lambda ours: ours.replace("triton-2", "triton-9"), False),  # of another cache
        (lambda _: "triton", False),
        (lambda _: "triton-python3.11", False),
        (lambda ours: re.sub(r"-[0-9a-f]{12}-", "-000000000000-", ours), False),
    ],
)
def test_only_servers_of_this_machine_have_one(
    client: TritonDeploymentClient, id_of: Callable[[str], str], *, is_lacking: bool
) -> None:
    (ours,) = (each.name for each in client._servers.facts())
    one = id_of(ours)
    wanted = ["inflection"]
    assert bool(target.lacking_here(servers(one), wanted, "")) == is_lacking
    assert not target.lacking_here(servers(ours, "triton"), wanted, "")


def test_another_python_than_the_servers_is_lacking(client: TritonDeploymentClient) -> None:
    (ours,) = (each.name for each in client._servers.facts())
    assert "python==3.99" in target.lacking_here(servers(ours), [], "3.99")
    python = python_of(client._servers).version
    assert target.lacking_here(servers(ours), [], python) == ["mlflow-skinny", "pandas"]


def test_versions_have_to_satisfy_what_the_model_says(tmp_path: Path) -> None:
    for package, version in (("Some_Package", "1.5"), ("mlflow-skinny", "3.0rc1"), ("pandas", "2")):
        info = tmp_path / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
    wanted = {
        "some-package": True,
        "some.package>=1.4,<2": True,
        "some-package==1.4": False,
        "some-package @ https://example.org/x.whl": False,
        "other": False,
        "other; python_version<'3'": True,
        "mlflow-skinny>=3.0rc1": True,
        "mlflow": False,
    }
    assert {each: not lacking([each], tmp_path, PYTHON) for each in wanted} == wanted


@pytest.mark.parametrize(
    ("requirements", "packages"),
    [
        (["mlflow==3.1", "numpy==2.1"], ("mlflow==3.1", "numpy==2.1")),
        (["mlflow-skinny"], ("mlflow-skinny", "pandas<3")),
        (["roman"], ("mlflow-skinny", "pandas<3", "roman")),
        (["roman; python_version<'3'", "pandas==2.2"], ("mlflow-skinny", "pandas==2.2")),
    ],
)
def test_it_is_made_of_what_the_model_says(
    requirements: list[str], packages: tuple[str, ...]
) -> None:
    recipe = own_recipe_of(requirements, PYTHON)
    assert (recipe.packages, recipe.machine) == (packages, platform.machine())
    assert recipe.own_name.startswith(f"own-py{PYTHON.replace('.', '')}-")


def test_a_python_that_is_nowhere_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "find_uv", lambda: None)
    with pytest.raises(ProvisioningError, match=r"logged with Python 3\.99, and this machine has"):
        own.own_of(own_recipe_of([], "3.99")).made()
    assert not list(cache.glob("own-py399*/"))


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_pythons_of_pyenv_are_found(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that no stub runs on."""
    python = tmp_path / "versions" / f"{version}.1" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    answer = {
        "implementation": "cpython",
        "version": [*map(int, version.split(".")), 1],
        "is_64_bit": True,
        "libpython": None,
    }
    python.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    python.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = _interpreters.find_python(version, None)
    if version != PYTHON:
        assert found is not None
        assert found.short_version == version
