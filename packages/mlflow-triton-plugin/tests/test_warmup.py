"""Warm-up from the input example: what stands in the repository, and at the next update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from triton_repo.config import ModelConfig

from .models import log_onnx, scale_model
from .refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

FIRST = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
SECOND = -FIRST
FILE = "warmup/input_example.0"


@pytest.fixture(scope="module")
def scale(registered: Callable[[str], str]) -> str:
    """Versions 1 and 2 have an example each; 3 has none."""
    name = registered("warm")
    for factor, example in ((2, FIRST), (3, SECOND), (4, None)):
        log_onnx(scale_model(factor), registered=name, input_example=example)
    return f"models:/{name}"


def warmups(repository: Path, name: str) -> list[tuple[str, int, dict[str, Any]]]:
    message = ModelConfig.read(repository / name / "config.pbtxt")._message
    return [
        (each.name, each.batch_size, {key: list(x.dims) for key, x in each.inputs.items()})
        for each in message.model_warmup
    ]


ONE = ("input_example_1", 1, {"x": [4]})
EIGHT = ("input_example_8", 8, {"x": [4]})


def test_the_first_row_of_the_example_stands_beside_the_config(
    client: TritonDeploymentClient, name: str, scale: str, repository: Path
) -> None:
    client.create_deployment(name, f"{scale}/1", config={"warmup": "8,1"})
    assert warmups(repository, name) == [ONE, EIGHT]
    assert (repository / name / FILE).read_bytes() == FIRST[0].tobytes()
    answered = client.predict(name, {"x": FIRST})["outputs"]["y"]
    np.testing.assert_array_equal(answered, FIRST * 2)


def test_the_next_model_is_warmed_up_with_its_own(
    client: TritonDeploymentClient, name: str, scale: str, repository: Path
) -> None:
    client.create_deployment(name, f"{scale}/1", config={"warmup": True})
    client.update_deployment(name, f"{scale}/2")
    assert warmups(repository, name) == [ONE]
    assert (repository / name / FILE).read_bytes() == SECOND[0].tobytes()
    client.update_deployment(name, f"{scale}/1")  # it returns, with what it had
    assert (repository / name / FILE).read_bytes() == FIRST[0].tobytes()
    assert client.get_deployment(name)["served_versions"] == [1]
    client.update_deployment(name, config={"warmup": [4]})
    assert warmups(repository, name) == [("input_example_4", 4, {"x": [4]})]


def test_it_is_taken_back(
    client: TritonDeploymentClient, name: str, scale: str, repository: Path
) -> None:
    client.create_deployment(name, f"{scale}/1", config={"warmup": "true"})
    assert "model_warmup" in client.plan_deployment(name)["config"]
    for off in ("default", "false", False):
        planned = client.plan_deployment(name, config={"warmup": off})["config"]
        assert "model_warmup" not in planned
    client.update_deployment(name, config={"warmup": False})
    assert warmups(repository, name) == []
    assert not (repository / name / "warmup").exists()
    assert client.get_deployment(name)["state"] == "READY"


def test_a_warm_up_given_by_hand_takes_its_place(
    client: TritonDeploymentClient, name: str, scale: str, repository: Path
) -> None:
    client.create_deployment(name, f"{scale}/1", config={"warmup": "true"})
    zeros = (
        '[{ name: "zeros" batch_size: 2 inputs '
        '{ key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }]'
    )
    for options in ({"config.model_warmup": zeros}, {}):
        client.update_deployment(name, f"{scale}/2", config=options)
        assert warmups(repository, name) == [("zeros", 2, {"x": [4]})]
        assert not (repository / name / "warmup").exists()


@pytest.mark.parametrize(
    ("version", "sizes", "said"),
    [
        (3, "true", "logged without an input example, and warmup needs one"),
        (1, "2048", "warmup=2048: the model takes 1024 rows at most"),
        (1, "0", "a whole number from 1"),
        (1, "often", "a whole number from 1"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_changes(
    client: TritonDeploymentClient,
    name: str,
    scale: str,
    repository: Path,
    version: int,
    sizes: str,
    said: str,
) -> None:
    refused(
        lambda: client.create_deployment(name, f"{scale}/{version}", config={"warmup": sizes}),
        "INVALID_PARAMETER_VALUE",
        said,
    )
    assert not (repository / name).exists()
