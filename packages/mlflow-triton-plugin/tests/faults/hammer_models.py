"""A registered model whose every answer says which version made it, and whose steps obey orders."""

from __future__ import annotations

import json
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """\
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "stamp" data_type: TYPE_INT32 dims: [ -1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

_SOURCE = """\
import pathlib
import time

import numpy as np
import triton_python_backend_utils as pb_utils

VERSION = {version}
CONTROL = pathlib.Path({control!r})


def obey(step):
    order = CONTROL / f"{{VERSION}}.{{step}}"
    if not order.exists():
        return
    what, _, rest = order.read_text().partition(" ")
    (CONTROL / f"{{VERSION}}.{{step}}.began").touch()
    if what == "raise":
        raise RuntimeError(rest)
    ends = time.monotonic() + float(rest)
    while time.monotonic() < ends and order.exists():
        time.sleep(0.01)


class TritonPythonModel:
    def initialize(self, args):
        obey("initialize")

    def execute(self, requests):
        obey("execute")
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = pb_utils.Tensor("y", x * np.float32({factor}))
            stamp = pb_utils.Tensor("stamp", np.full(x.shape, {factor}, np.int32))
            responses.append(pb_utils.InferenceResponse([y, stamp]))
        return responses

    def finalize(self):
        obey("finalize")
"""


def factor_of(version: int) -> int:
    """What version N multiplies by, and stamps on every element."""
    return 3 * version + 1


@dataclass(frozen=True)
class StampModel:
    """A registered model; version N answers y = x * factor_of(N) and the factor.

    Attributes:
        name: of the registered model.
        control: where its versions look for orders.
    """

    name: str
    control: Path

    def uri(self, version: int) -> str:
        return f"models:/{self.name}/{version}"

    def order(self, version: int, step: str, what: str) -> None:
        """Make a version's `initialize`, `execute` or `finalize` do something from now on.

        Args:
            version: the version.
            step: `initialize`, `execute` or `finalize`.
            what: `raise <words>`, or `sleep <seconds>`, which ends early when it is taken back.
        """
        self.began(version, step).unlink(missing_ok=True)
        (self.control / f"{version}.{step}").write_text(what)

    def take_back(self) -> None:
        """Take all orders back."""
        for path in self.control.iterdir():
            path.unlink(missing_ok=True)

    def began(self, version: int, step: str) -> Path:
        """The file that appears when an ordered step has begun."""
        return self.control / f"{version}.{step}.began"

    def wait_until_begun(self, version: int, step: str, *, within_s: float = 30) -> None:
        deadline = time.monotonic() + within_s
        while not self.began(version, step).exists():
            assert time.monotonic() < deadline, f"{step} of version {version} did not begin"
            time.sleep(0.005)


def register_stamp(name: str, scratch: Path, versions: int = 3) -> StampModel:
    """Register the model with versions 1 to N, each logged by a run of its own."""
    control = scratch / "control"
    control.mkdir(parents=True)
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    for version in range(1, versions + 1):
        logged = write_artifact(scratch / f"v{version}", stamp_source(version, control))
        register_directory(name, logged)
    return StampModel(name, control)


def stamp_source(version: int, control: Path) -> str:
    return _SOURCE.format(version=version, factor=factor_of(version), control=str(control))


def write_artifact(directory: Path, source: str | bytes, config: str = CONFIG) -> Path:
    """A logged model of flavor `triton` with one version; bytes make it an ONNX file."""
    version = directory / "model" / "1"
    version.mkdir(parents=True)
    if isinstance(source, bytes):
        (version / "model.onnx").write_bytes(source)
    else:
        (version / "model.py").write_text(textwrap.dedent(source))
    (directory / "model" / "config.pbtxt").write_text(config)
    (directory / "MLmodel").write_text(json.dumps({"flavors": {"triton": {"data": "model"}}}))
    return directory


def register_directory(name: str, directory: Path) -> int:
    """Log a directory in a run and register it; the new version's number."""
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(directory), "triton")
    source = f"{run.info.artifact_uri}/triton"
    return int(client.create_model_version(name, source, run.info.run_id).version)
