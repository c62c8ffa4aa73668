"""What is interrupted: the commands, what stands there before them, and the models they deploy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow

from .commands import Command

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "ALL_SCENARIOS",
    "KILLED_TOO",
    "NAME",
    "NEIGHBOUR",
    "OF_SEVERAL",
    "SCENARIOS",
    "Scenario",
    "register",
]

#: The deployment that is changed, and one whose name begins with its name.
NAME = "scale"
NEIGHBOUR = "scale_2"

#: Registered models. The second one's versions bring a labels.txt, which their answer depends on;
#: the third one's bring several version directories; the fourth one's are ensembles with members,
#: of which one never changes.
PLAIN = "faults-plain"
LABELLED = "faults-labelled"
SETS = "faults-sets"
SEVERAL = "faults-several"

_CONFIG = """\
# tuned by hand
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

_ENSEMBLE = """\
platform: "ensemble"
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling { step [
  { model_name: "scale_part" model_version: -1
    input_map { key: "x" value: "x" } output_map { key: "y" value: "between" } },
  { model_name: "scale_same" model_version: -1
    input_map { key: "x" value: "between" } output_map { key: "y" value: "y" } }
] }
"""

_SOURCE = """\
import pathlib

import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        labels = pathlib.Path(args["model_repository"], "labels.txt")
        self.label = float(labels.read_text()) if labels.is_file() else 0.0

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = (x * {factor} + self.label).astype("float32")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
"""

#: What a version answers to 1: its factor, and the number in its labels.txt.
_FACTORS = {1: 2.0, 2: 3.0, 3: 5.0}
_LABELS = {1: 1000.0, 2: 2000.0}
#: The version directories that each version of the third one brings.
_SETS = {1: (1, 2), 2: (2, 3), 3: (1,)}


def register(folder: Path) -> None:
    """Log the models into `folder` and register their versions."""
    client = mlflow.MlflowClient()
    for name in (PLAIN, LABELLED, SETS):
        client.create_registered_model(name)
        for version, factor in _FACTORS.items():
            source = folder / name / str(version)
            label = _LABELS.get(version) if name == LABELLED else None
            _log(source, factor, label, _SETS[version] if name == SETS else (1,))
            client.create_model_version(name, str(source))
    client.create_registered_model(SEVERAL)
    for version, factor in _FACTORS.items():
        source = folder / SEVERAL / str(version)
        _log_several(source, factor)
        client.create_model_version(SEVERAL, str(source))


def _log(folder: Path, factor: float, label: float | None, numbers: tuple[int, ...]) -> None:
    """A logged model of flavor `triton`, with a file large enough to fill a disk in steps."""
    _write_model(folder / "model", factor, numbers)
    if label is not None:
        (folder / "model" / "labels.txt").write_text(f"{label}\n")
    _write_mlmodel(folder, "model")


def _log_several(folder: Path, factor: float) -> None:
    """A logged ensemble with its members."""
    _write_model(folder / "models" / "scale_part", factor)
    _write_model(folder / "models" / "scale_same", 1.0)
    (folder / "models" / "all" / "1").mkdir(parents=True)
    (folder / "models" / "all" / "config.pbtxt").write_text(_ENSEMBLE)
    _write_mlmodel(folder, "models")


def _write_model(directory: Path, factor: float, numbers: tuple[int, ...] = (1,)) -> None:
    for number in numbers:
        version = directory / str(number)
        version.mkdir(parents=True)
        (version / "model.py").write_text(_SOURCE.format(factor=factor))
        (version / "weights.bin").write_bytes(bytes([int(factor)]) * 20_000)
    (directory / "config.pbtxt").write_text(_CONFIG)


def _write_mlmodel(folder: Path, data: str) -> None:
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"triton": {"data": data}}}))


@dataclass(frozen=True)
class Scenario:
    """One command to interrupt.

    Attributes:
        before: what makes the state it starts from, in an empty repository.
        command: the one that is interrupted.
        restore: what brings that state back after it; None to begin anew, which costs less than
            a delete: Triton takes a second to unload.
        old: what the deployment answers before the command; None where there is none.
        new: and after it.
        mixed: what a model of some old and some new files answers, where that can be.
    """

    before: tuple[Command, ...]
    command: Command
    restore: tuple[Command, ...] | None
    old: float | None
    new: float | None
    mixed: tuple[float, ...] = ()

    @property
    def is_update(self) -> bool:
        """Whether the deployment must serve throughout."""
        return self.old is not None and self.new is not None


def _create(version: int, model: str = PLAIN, name: str = NAME) -> Command:
    return Command("create_deployment", name, f"models:/{model}/{version}")


def _update(
    version: int, model: str = PLAIN, keep_versions: int = 2, validate: str = "false"
) -> Command:
    uri = f"models:/{model}/{version}"
    options = {"keep_versions": keep_versions, "validate": validate}
    return Command("update_deployment", NAME, uri, options)


_DELETE = Command("delete_deployment", NAME)

#: Committed before everything else, and never touched.
NEIGHBOUR_CREATED = _create(3, name=NEIGHBOUR)
NEIGHBOUR_ANSWER = _FACTORS[3]

SCENARIOS: Mapping[str, Scenario] = {
    "create": Scenario((), _create(1), None, old=None, new=2),
    "update": Scenario(
        (_create(1),),
        _update(2),
        # the first leaves a pin to the only version there is, the second takes it away
        (_update(1, keep_versions=1), _update(1)),
        old=2,
        new=3,
    ),
    "update that prunes": Scenario(
        (_create(1), _update(2, keep_versions=1)),
        _update(1, keep_versions=1),
        (_update(2, keep_versions=1),),
        old=3,
        new=2,
    ),
    "update of shared files": Scenario(
        (_create(1, LABELLED),),
        _update(2, LABELLED),
        (_update(1, LABELLED, keep_versions=1), _update(1, LABELLED)),
        old=1002,
        new=2003,
        mixed=(2002, 1003),
    ),
    "roll-back": Scenario((_create(1), _update(2)), _update(1), (_update(2),), old=3, new=2),
    "roll-back of shared files": Scenario(
        (_create(1, LABELLED), _update(2, LABELLED)),
        _update(1, LABELLED),
        (_update(2, LABELLED),),
        old=2003,
        new=1002,
    ),
    "delete": Scenario((_create(1),), _DELETE, (_create(1),), old=2, new=None),
}

#: Several models as one deployment: what is true of one is true of all of them.
OF_SEVERAL: Mapping[str, Scenario] = {
    "create of several": Scenario((), _create(1, SEVERAL), None, old=None, new=2),
    "update of several": Scenario(
        (_create(1, SEVERAL), _update(2, SEVERAL, keep_versions=1)),
        _update(1, SEVERAL, keep_versions=1),
        (_update(2, SEVERAL, keep_versions=1),),
        old=3,
        new=2,
    ),
    "delete of several": Scenario(
        (_create(1, SEVERAL),), _DELETE, (_create(1, SEVERAL),), old=2, new=None
    ),
}

#: For the walks of kills alone: more ways through the same steps.
KILLED_TOO: Mapping[str, Scenario] = {
    "update that is loaded apart": Scenario(
        (_create(1),),
        _update(2, validate="load"),
        (_update(1, keep_versions=1), _update(1)),
        old=2,
        new=3,
    ),
    "update of a set": Scenario(
        (_create(1, SETS),),
        _update(2, SETS),
        (_update(1, SETS), _update(1, SETS)),
        old=2,
        new=3,
    ),
}

ALL_SCENARIOS: Mapping[str, Scenario] = {**SCENARIOS, **KILLED_TOO, **OF_SEVERAL}
