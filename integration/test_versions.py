"""Other releases of the server: what the wheel has them of does the core of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlflow_triton_plugin.testing.containers import TritonContainer

from .building import image_of
from .examples import MODEL, expected, given_inputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from testcontainers.core.network import Network

    from .user import User


@pytest.mark.parametrize("release", ["2.44", "2.39"])
def test_an_older_triton_does_the_core_of_the_contract(
    release: str,
    network: Network,
    tmp_path: Path,
    local_user: User,
    published: Callable[[str], str],
) -> None:
    """Create, validated; predict; update beside it; roll back; list; delete."""
    inputs = given_inputs()
    first, second = expected(), expected("_v2")
    server = TritonContainer(image_of(f"triton-{release}"), tmp_path, network=network)
    with server, local_user.session() as python:
        assert server.version.startswith(f"{release}.")
        user = local_user.export(TRITON_URL=server.url, TRITON_MODEL_REPO=str(tmp_path))
        for model in (MODEL, "python_add_sub"):
            load = {"validate": "load"}
            python.call("create_deployment", model, published(model), config=load, user=user)
        assert python.call("predict", MODEL, inputs, user=user) == first
        other = published(f"{MODEL}_v2")
        python.call("update_deployment", MODEL, other, user=user)
        assert python.call("predict", MODEL, inputs, user=user) == second
        python.call("update_deployment", MODEL, published(MODEL), user=user)
        assert python.call("predict", MODEL, inputs, user=user) == first
        states = {
            each["name"]: each["state"] for each in python.call("list_deployments", user=user)
        }
        assert states == {MODEL: "READY", "python_add_sub": "READY"}
        over_http = user.export(TRITON_URL=server.http_url)
        assert python.call("predict", MODEL, inputs, user=over_http) == first
        for model in (MODEL, "python_add_sub"):
            python.call("delete_deployment", model, user=user)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
