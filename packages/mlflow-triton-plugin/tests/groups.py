"""Directories of several models, logged as one: an ensemble, or a Python model that asks others."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.deployments import get_deploy_client

from .models import ONE_INSTANCE, PYTHON_CONFIG, python_directory, python_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

__all__ = [
    "Pipelines",
    "add_asking",
    "add_ensemble",
    "add_scale",
    "answer",
    "asked_meanwhile",
    "log_group",
    "register_group",
]

#: Between two requests of a client, which else takes the cores from the command that it watches.
_PAUSE_S = 0.005

#: The way from x to y: the tensors between the steps are called after their order.
_STEP = """\
    {{
      model_name: "{model}"
      model_version: -1
      input_map {{ key: "x" value: "{given}" }}
      output_map {{ key: "y" value: "{made}" }}
    }}
"""

_ASKING = """
import json

import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        said = parameters.get("{parameter}", {{}}).get("string_value", "{{}}")
        self.members = json.loads(said)

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            for member in {members}:
                place = self.members.get(member, {{"name": member, "version": -1}})
                asked = pb_utils.InferenceRequest(
                    model_name=place["name"],
                    model_version=place["version"],
                    requested_output_names=["y"],
                    inputs=[pb_utils.Tensor("x", x.as_numpy())],
                )
                answer = asked.exec()
                if answer.has_error():
                    raise pb_utils.TritonModelException(answer.error().message())
                x = pb_utils.get_output_tensor_by_name(answer, "y")
            y = pb_utils.Tensor("y", x.as_numpy())
            responses.append(pb_utils.InferenceResponse([y]))
        return responses
"""


def add_scale(root: Path, name: str, factor: float, *, config: str = "") -> None:
    """A model that answers `y = x * factor`."""
    config = PYTHON_CONFIG + ONE_INSTANCE + config
    python_directory(root / name, python_source(f"x * {factor}"), config=config)


def add_ensemble(root: Path, name: str, *steps: str) -> None:
    """An ensemble that sends x through these models, one after another."""
    tensors = ["x", *(f"between_{place}" for place in range(1, len(steps))), "y"]
    text = "".join(
        _STEP.format(model=model, given=given, made=made)
        for model, given, made in zip(steps, tensors, tensors[1:], strict=False)
    )
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(
        "# the way from x to y\n"
        + PYTHON_CONFIG.replace('backend: "python"', 'platform: "ensemble"')
        + f"ensemble_scheduling {{\n  step [\n{text.rstrip()}\n  ]\n}}\n".replace(
            "}\n    {", "},\n    {"
        )
    )


def add_asking(root: Path, name: str, *members: str, told: bool = False) -> None:
    """A Python model that asks these models, one after another."""
    parameter = "mlflow_members" if told else "nothing"
    source = _ASKING.format(members=repr(members), parameter=parameter)
    python_directory(root / name, source, config=PYTHON_CONFIG + ONE_INSTANCE)


def log_group(folder: Path, main: str = "") -> str:
    """Make a logged model of the directory `models` in a folder."""
    flavor = {"data": "models", **({"main_model": main} if main else {})}
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"triton": flavor}}))
    return str(folder)


def register_group(name: str, folder: Path, main: str = "") -> str:
    """Register what `log_group` makes; the URI of its version."""
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, log_group(folder, main)).version
    return f"models:/{name}/{version}"


@dataclass
class Pipelines:
    """Makes versions of a registered pipeline: x through `first` and `second`, all from scratch.

    Attributes:
        model: the registered model.
        folder: where their artifacts are.
        first: the name of the first member, and of the second.
    """

    model: str
    folder: Path
    first: str
    second: str
    made: list[str] = field(default_factory=list)

    def make(self, one: float, two: float, *, config: str = "", nested: bool = False) -> str:
        """A version whose members multiply by these; the URI."""
        root = self.folder / str(len(self.made)) / "models"
        add_scale(root, self.first, one, config=config)
        add_scale(root, self.second, two)
        if nested:
            add_ensemble(root, f"{self.first}_in", self.first)
        add_ensemble(root, "all", f"{self.first}_in" if nested else self.first, self.second)
        return self.registered(root)

    def registered(self, root: Path, main: str = "") -> str:
        self.made.append(register_group(self.model, root.parent, main))
        return self.made[-1]

    @property
    def root(self) -> Path:
        """The directory of the models of the version to come."""
        return self.folder / str(len(self.made)) / "models"


def answer(client: TritonDeploymentClient, name: str) -> float:
    """What a model or a pipeline of these answers to 1."""
    given = {"x": np.ones(1, np.float32)}
    return float(client.predict(name, given)["outputs"]["y"][0])


@contextmanager
def asked_meanwhile(address: str, name: str, *, clients: int = 3) -> Iterator[Counter[float]]:
    """Clients that ask one request after another; at the end, how often they got which answer."""
    done = threading.Event()

    def ask() -> Counter[float]:
        asking: Any = get_deploy_client(f"triton://{address}")
        seen: Counter[float] = Counter()
        while not done.wait(_PAUSE_S):
            seen[answer(asking, name)] += 1
        return seen

    answers: Counter[float] = Counter()
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask) for _ in range(clients)]
        try:
            yield answers
        finally:
            done.set()
        for each in asked:
            answers.update(each.result())
