"""Whether repository, record, servers and answers agree on one deployment when nobody is at it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from triton_repo.config import CONFIG_FILENAME
from triton_repo.model_view import ModelView, PlaceState
from triton_repo.names import check_name
from triton_repo.record import RECORD_FILENAME
from triton_repo.store import open_store

from .hammer_models import factor_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient
    from triton_repo.record import DeploymentRecord

#: How long a server may take until nothing is loading or unloading any more.
SETTLED_WITHIN_S = 30.0

X = np.array([1, 2, 3, 5], np.float32)


@dataclass(frozen=True)
class Witness:
    """Looks at one repository and the servers that read it, with a client of its own."""

    repository: Path
    client: TritonDeploymentClient

    @classmethod
    def of(cls, repository: Path, address: str) -> Witness:
        return cls(repository, get_deploy_client(f"triton://{address}"))

    def view(self, name: str) -> ModelView:
        return ModelView(open_store(str(self.repository)), check_name(name))

    def index(self, name: str) -> dict[int, str]:
        """Triton's state of each version, once nothing is loading or unloading."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            states = self.client._servers.states(name).get(name, [])
            index = {int(each.version): each.state for each in states}
            if not {"LOADING", "UNLOADING"} & set(index.values()):
                return index
            assert time.monotonic() < deadline, f"{name} did not settle: {index}"
            time.sleep(0.02)

    def agrees(self, name: str) -> int | None:
        """Check that all agree; the registered version that serves, or None for no deployment."""
        index = self.index(name)
        ready = {version for version, state in index.items() if state == "READY"}
        state = self.view(name).state()
        if state is PlaceState.ABSENT:
            assert not (self.repository / name).exists()
            assert ready == set(), f"{name} is gone, and {ready} serve"
            for call in (
                lambda: self.client.get_deployment(name),
                lambda: self.client.predict(name, {"x": X}),
            ):
                with pytest.raises(MlflowException) as raised:
                    call()
                assert raised.value.error_code == "RESOURCE_DOES_NOT_EXIST"
            return None
        assert state is PlaceState.DEPLOYED, f"{name} is {state}: {self.files(name)}"
        record = self.view(name).record()
        config = self.view(name).config()
        assert record is not None
        assert config is not None
        (serving,) = record.serving
        assert ready == {serving}, f"{name}: the record says {serving}, Triton {index}"
        assert config.served(record.versions) == (serving,)
        self._matches_files(name, record)
        self._described(name, record, serving)
        self.answers(name, serving)
        registered = record.versions[serving].source.registered_version
        assert registered == serving
        return registered

    def answers(self, name: str, version: int) -> None:
        """Check that this version answers, and only it."""
        answer = self.client.predict(name, {"x": X})
        factor = factor_of(version)
        assert int(answer["model_version"]) == version
        assert answer["outputs"]["stamp"].tolist() == [factor] * len(X)
        assert answer["outputs"]["y"].tolist() == (X * factor).tolist()

    def files(self, name: str) -> dict[str, int]:
        """Every file below the model's directory."""
        root = self.repository / name
        return {
            path.relative_to(root).as_posix(): path.stat().st_size
            for path in root.rglob("*")
            if path.is_file()
        }

    def _matches_files(self, name: str, record: DeploymentRecord) -> None:
        """Every file is what the record says, and there is nothing else, no directory either."""
        view = self.view(name)
        recorded = {
            f"{version}/{path}": digest
            for version, seen in record.versions.items()
            for path, digest in seen.files.items()
        }
        expected = {*recorded, CONFIG_FILENAME, RECORD_FILENAME}
        assert set(self.files(name)) == expected
        assert view.digests(recorded) == recorded
        directories = {path.name for path in (self.repository / name).iterdir() if path.is_dir()}
        assert directories == {str(version) for version in record.versions}

    def _described(self, name: str, record: DeploymentRecord, serving: int) -> None:
        described = self.client.get_deployment(name)
        assert (described["state"], described["reason"]) == ("READY", "")
        assert described["served_versions"] == [serving]
        assert set(described["versions"]) == set(record.versions)
        assert described["mlflow_model_uri"] == record.model_uri
        assert described in self.client.list_deployments()

    def nothing_stray(self, names: Iterable[str]) -> None:
        """Check that the repository's root holds the deployments and nothing else.

        No lock, no temporary file, no directory of a deployment that is not listed.
        """
        listed = {each["name"] for each in self.client.list_deployments()}
        assert listed <= set(names)
        assert {path.name for path in self.repository.iterdir()} == listed
