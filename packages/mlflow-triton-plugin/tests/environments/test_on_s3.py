"""Environments in an object store, of which Triton downloads one model's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mlflow.deployments import get_deploy_client

from mlflow_triton_plugin.local import LocalTriton
from triton_repo.store import open_store
from triton_repo.testing.s3 import S3Server

from .conftest import FRAME
from .test_deploying import INFLECTION, PACK, answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A repository in S3 with a Triton on it, which the environment names."""
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        address = f"{server.make_bucket('repository')}/models"
        open_store(address).check()
        patch.delenv("MLFLOW_TRITON_CACHE", raising=False)  # the server's own is in the user's
        with LocalTriton(address, extra_args=["--disable-auto-complete-config"]) as running:
            monkeypatch.setenv("TRITON_URL", running.grpc_url)
            monkeypatch.setenv("TRITON_MODEL_REPO", address)
            yield address


def test_a_model_brings_its_environment_along(
    address: str, cache: Path, logged: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRITON_CACHE", str(cache.parent))
    client = get_deploy_client("triton")
    client.create_deployment("packed", logged(INFLECTION), config=PACK)
    assert answers(client, "packed") == ["my_model", "other_one"]
    store = open_store(address)
    (archive,) = (path for path in store.list_files("packed") if path.startswith("env-"))
    digest = store.digest(f"packed/{archive}")
    client.update_deployment("packed", logged(INFLECTION, suffix="!"))
    assert client.predict("packed", FRAME)["outputs"]["predictions"].size == len(FRAME)
    assert answers(client, "packed") == ["my_model!", "other_one!"]
    assert store.digest(f"packed/{archive}") == digest
    assert client.verify_deployment("packed") == []
    client.delete_deployment("packed")
    assert not store.exists("packed")
