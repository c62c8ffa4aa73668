"""The Python backend's model of any MLflow model, in this process.

The backend's own module is made up: it is certain which requests come together, and no server and
no process of the model's own has to be waited for. The plugin's tests have the real ones.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

import triton_repo.flavors
from triton_repo.artifact import ModelArtifact
from triton_repo.flavors import convert
from triton_repo.names import check_name

if TYPE_CHECKING:
    import pytest

SHIM = Path(triton_repo.flavors.__file__).with_name("_pyfunc")
FINAL = 1
DTYPES = {
    **{f"TYPE_{sign}INT{n}": f"{sign}int{n}".lower() for sign in ("", "U") for n in (8, 16, 32, 64)},
    **{f"TYPE_FP{n}": f"float{n}" for n in (16, 32, 64)},
    "TYPE_BOOL": "bool",
    "TYPE_STRING": "object",
}


@dataclass
class Tensor:
    called: str
    array: Any

    def name(self) -> str:
        return self.called

    def as_numpy(self) -> Any:
        return self.array


@dataclass
class Sender:
    """Keeps what is sent."""

    sent: list[tuple[Response | None, int]] = field(default_factory=list)

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        self.sent.append((response, flags))


@dataclass
class Request:
    tensors: list[Tensor]
    params: str = ""
    sender: Sender = field(default_factory=Sender)

    def parameters(self) -> str:
        return self.params

    def inputs(self) -> list[Tensor]:
        return self.tensors

    def get_response_sender(self) -> Sender:
        return self.sender


@dataclass
class Response:
    output_tensors: list[Tensor]
    error: str | None = None

    @property
    def arrays(self) -> dict[str, Any]:
        assert self.error is None, self.error
        return {each.name(): each.as_numpy() for each in self.output_tensors}

    @property
    def answered(self) -> list[Any]:
        found: list[Any] = next(iter(self.arrays.values())).reshape(-1).tolist()
        return found


def load_shim(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`model` and `mlflow_triton_values`, with the backend's own module made up."""
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    backend.TritonError = str
    backend.InferenceResponse = Response
    backend.Tensor = Tensor
    backend.triton_string_to_numpy = lambda name: np.dtype(DTYPES[name]).type
    backend.get_input_tensor_by_name = lambda request, name: next(
        (each for each in request.inputs() if each.name() == name), None
    )
    patch.setitem(sys.modules, backend.__name__, backend)
    modules: dict[str, Any] = {}
    for name in ("mlflow_triton_values", "model"):
        spec = importlib.util.spec_from_file_location(name, SHIM / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, modules[name])
        spec.loader.exec_module(modules[name])
    return modules


class Placed:
    """A saved model as the backend starts it: with the config that a deployment has.

    Args:
        shim: what `load_shim` gave.
        root: the directory of the saved model.
        place: a directory for the version.
    """

    def __init__(self, shim: dict[str, Any], root: Path, place: Path) -> None:
        artifact = ModelArtifact.open(root)
        entry = convert(artifact, flavor="python_function", name=check_name("m"), version=1)
        assert entry.config is not None
        shutil.copytree(root, place / "1" / "mlflow")
        config = {"max_batch_size": 0, **json.loads(entry.config.to_json())}
        self.model: Any = shim["model"].TritonPythonModel()
        self.model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(place),
                "model_version": "1",
            }
        )

    def predict(self, **arrays: Any) -> dict[str, Any]:
        """What one request is answered, by the outputs' names."""
        (response,) = self.predict_all(request_of(**arrays))
        return response.arrays

    def predict_all(self, *requests: Request) -> list[Response]:
        """What requests that come together are answered, where each wants one answer."""
        for each in requests:
            each.params = json.dumps({"mlflow_stream": False})
        responses: list[Response] | None = self.model.execute(list(requests))
        if responses is not None:
            return responses
        return [sent for each in requests for sent, _ in each.sender.sent if sent is not None]

    def predict_stream(self, **arrays: Any) -> list[dict[str, Any]]:
        """The pieces that one request is answered; none can be asked afterwards."""
        request = request_of(**arrays)
        assert self.model.execute([request]) is None
        self.model.finalize()
        assert request.sender.sent[-1] == (None, FINAL)
        return [sent.arrays for sent, _ in request.sender.sent if sent is not None]


def request_of(**arrays: Any) -> Request:
    return Request([Tensor(name, array) for name, array in arrays.items()])
