"""The worker of any MLflow model, in this process.

It is certain which requests come together, and neither a server nor a process of the model's own
has to be waited for. The plugin's tests have the real ones.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_repo.flavors
from triton_repo.artifact import ModelArtifact
from triton_repo.flavors import convert
from triton_repo.names import check_name

if TYPE_CHECKING:
    import pytest

SHIM = Path(triton_repo.flavors.__file__).with_name("_pyfunc")


@dataclass
class Sender:
    """Keeps what is sent."""

    sent: list[tuple[Any, bool]] = field(default_factory=list)
    is_cancelled: bool = False

    def send(self, response: Any, *, final: bool = False) -> None:
        self.sent.append((response, final))


def load_worker(patch: pytest.MonkeyPatch) -> Any:
    """The module `mlflow_triton_worker`, as it is in its own process."""
    return load("mlflow_triton_worker", patch)


def load(name: str, patch: pytest.MonkeyPatch) -> Any:
    """A module of a version's directory, by the name that it has there."""
    spec = importlib.util.spec_from_file_location(name, SHIM / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def arrays_of(response: Any) -> dict[str, Any]:
    """The outputs of a request that was answered."""
    assert response.error is None, response.error
    found: dict[str, Any] = response.arrays
    return found


def answered(response: Any) -> list[Any]:
    """The values of the only output, or the first."""
    found: list[Any] = next(iter(arrays_of(response).values())).reshape(-1).tolist()
    return found


class Placed:
    """A saved model as the worker loads it: with the config that a deployment has.

    Args:
        worker: what `load_worker` gave.
        root: the directory of the saved model.
    """

    def __init__(self, worker: Any, root: Path) -> None:
        artifact = ModelArtifact.open(root)
        entry = convert(artifact, flavor="python_function", name=check_name("m"), version=1)
        assert entry.config is not None
        config = {"max_batch_size": 0, **json.loads(entry.config.to_json())}
        self._worker = worker
        self.model: Any = worker.Model(config, root)

    def request(self, **arrays: Any) -> Any:
        return self._worker.Request(arrays, sender=Sender())

    def predict(self, **arrays: Any) -> dict[str, Any]:
        """What one request is answered, by the outputs' names."""
        (response,) = self.predict_all(self.request(**arrays))
        return arrays_of(response)

    def predict_all(self, *requests: Any) -> list[Any]:
        """What requests that come together are answered, where each wants one answer."""
        for each in requests:
            each.parameters = json.dumps({"mlflow_stream": False})
        responses: list[Any] | None = self.model.execute(list(requests))
        if responses is not None:
            return responses
        return [sent for each in requests for sent, _ in each.sender.sent if sent is not None]

    def predict_stream(self, **arrays: Any) -> list[dict[str, Any]]:
        """The pieces that one request is answered; none can be asked afterwards."""
        request = self.request(**arrays)
        assert self.model.execute([request]) is None
        self.model.close()
        assert request.sender.sent[-1] == (None, True)
        return [arrays_of(sent) for sent, _ in request.sender.sent if sent is not None]
