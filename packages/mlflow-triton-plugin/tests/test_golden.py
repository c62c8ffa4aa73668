"""`-C validate=true`: a model answers its own input example before anybody else can ask it."""

from __future__ import annotations

import json
import threading
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from triton_repo.artifact import OUTPUT_EXAMPLE

from .conftest import error_of, unloads_not_waited_for
from .models import PYTHON_CONFIG, log_onnx, python_directory, python_source, scale_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

VALIDATE = {"validate": True}
ONE = np.ones(1, np.float32)


def example_model(
    directory: Path,
    expression: str,
    *,
    example: Any = None,
    output: Any = None,
    config: str = PYTHON_CONFIG,
) -> str:
    """A saved model, `y = expression`, with the examples it was logged with."""
    python_directory(directory / "model", python_source(expression), config=config)
    model = Model(flavors={"triton": {"data": "model"}})
    if example is not None:
        model.saved_input_example_info = {
            "artifact_path": "input_example.json",
            "type": "json_object",
        }
        (directory / "input_example.json").write_text(json.dumps(example))
    if output is not None:
        (directory / OUTPUT_EXAMPLE).write_text(json.dumps(output))
    model.save(str(directory / "MLmodel"))
    return str(directory)


def answer(client: TritonDeploymentClient, name: str) -> list[float]:
    found: list[float] = client.predict(name, ONE)["outputs"]["y"].tolist()
    return found


INPUT = {"inputs": {"x": [1.0, 2.0]}}


def test_a_model_that_passes_serves(
    client: TritonDeploymentClient,
    name: str,
    tmp_path: Path,
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    """With and without a logged output; nothing of the check is left behind."""
    first = example_model(tmp_path / "a", "x + 1", example=INPUT)
    client.create_deployment(name, first, config=VALIDATE)
    assert answer(client, name) == [2]
    output = {"outputs": {"y": [3.0, 4.0001]}}
    second = example_model(tmp_path / "b", "x + 2", example=INPUT, output=output)
    client.update_deployment(name, second, config=VALIDATE)
    assert answer(client, name) == [3]
    assert not [path for path in snapshot(name) if "_mlflow_triton" in path]


@pytest.fixture(scope="module")
def serving(
    triton: LocalTriton, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A deployment, `y = x + 1`, whose model has no example; every update of it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_URL", triton.grpc_url)
        patch.setenv("TRITON_MODEL_REPO", str(repository))
        client = get_deploy_client("triton")
    name = f"m{uuid.uuid4().hex[:12]}"
    client.create_deployment(name, example_model(tmp_path_factory.mktemp("old"), "x + 1"))
    yield name
    with unloads_not_waited_for():
        client.delete_deployment(name)


REFUSED = {
    "an error": ("x / 0 if False else [][0]", None, "list index out of range"),
    "a value that is not finite": ("x * float('nan')", None, "not finite, nan at [0]"),
    "a wrong type": ("x); y = y.astype(np.float64); dict(y=y", None, "is float64, and"),
    "another number of dimensions": ("[x, x]", None, "has shape [2, 2], and should have [-1]"),
    "another value than was logged": (
        "x + 2",
        {"outputs": {"y": [3.0, 4.1]}},
        "output y is 4.0 at [1], and output_example.json has 4.099",
    ),
    "another shape than was logged": (
        "x + 2",
        {"outputs": {"y": [3.0]}},
        "has shape [2], and output_example.json has [1]",
    ),
    "another name than was logged": ("x", {"outputs": {"z": [1.0, 2.0]}}, "expected the outputs y"),
}


@pytest.mark.parametrize("label", REFUSED)
def test_a_model_that_fails_its_check_never_answers_anybody(
    client: TritonDeploymentClient,
    serving: str,
    tmp_path: Path,
    snapshot: Callable[[str], dict[str, bytes]],
    label: str,
) -> None:
    """The old version answers every request meanwhile, and not a byte of it is different."""
    expression, output, said = REFUSED[label]
    before = snapshot(serving)
    bad = example_model(tmp_path / "bad", expression, example=INPUT, output=output)
    answers: list[list[float]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(answer(client, serving))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(MlflowException) as raised:
            client.update_deployment(serving, bad, config=VALIDATE)
    finally:
        over.set()
        asking.join()
    code, message = error_of(raised)
    assert code == "INVALID_PARAMETER_VALUE"
    assert said in message
    assert message.startswith(f"{serving} failed its golden check")
    assert "incoming" not in message
    assert snapshot(serving) == before
    assert answers
    assert all(each == [2] for each in answers)
    assert client.get_deployment(serving)["state"] == "READY"


def test_a_create_that_fails_its_check_leaves_nothing(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    bad = example_model(tmp_path / "bad", "x * np.inf", example=INPUT)
    with pytest.raises(MlflowException, match="not finite"):
        client.create_deployment(name, bad, config=VALIDATE)
    assert not list(repository.glob(f"*{name}*"))


def test_every_version_that_a_model_serves_is_asked(
    client: TritonDeploymentClient, name: str, tmp_path: Path, repository: Path
) -> None:
    both = "version_policy: { specific { versions: [ 1, 2 ] } }\n"
    uri = example_model(tmp_path, "x * np.nan", example=INPUT, config=PYTHON_CONFIG + both)
    (tmp_path / "model" / "2").mkdir()
    (tmp_path / "model" / "2" / "model.py").write_text(python_source("x + 1"))
    with pytest.raises(MlflowException, match="not finite"):
        client.create_deployment(name, uri, config=VALIDATE)
    assert not (repository / name).exists()


def test_a_value_that_was_logged_as_not_finite_is_right(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    output = {"outputs": {"y": ["NaN", "NaN"]}}
    uri = example_model(tmp_path / "a", "x * float('nan')", example=INPUT, output=output)
    assert client.create_deployment(name, uri, config=VALIDATE)["state"] == "READY"


def test_how_far_a_value_may_be_off_can_be_said(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    output = {"outputs": {"y": [2.05, 3.05]}}
    uri = example_model(tmp_path / "a", "x + 1", example=INPUT, output=output)
    with pytest.raises(MlflowException, match="golden check"):
        client.create_deployment(name, uri, config=VALIDATE)
    loose = {**VALIDATE, "validate_tolerance": "0.1"}
    assert client.create_deployment(name, uri, config=loose)["state"] == "READY"


def test_an_example_that_does_not_fit_the_model_is_said_so(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    uri = example_model(tmp_path / "a", "x", example={"inputs": {"z": [1.0]}})
    with pytest.raises(MlflowException, match=r'its input example is refused: .* no input "z"'):
        client.create_deployment(name, uri, config=VALIDATE)


def test_a_model_without_an_example_cannot_be_validated(
    client: TritonDeploymentClient,
    serving: str,
    snapshot: Callable[[str], dict[str, bytes]],
) -> None:
    before = snapshot(serving)
    with pytest.raises(MlflowException, match="logged without an input example") as raised:
        client.update_deployment(serving, config=VALIDATE)
    assert error_of(raised)[0] == "INVALID_PARAMETER_VALUE"
    assert snapshot(serving) == before


@pytest.mark.parametrize("path", ["../outside.json", "/etc/hostname", "missing.json"])
def test_an_example_outside_the_model_is_refused(
    client: TritonDeploymentClient, name: str, tmp_path: Path, path: str
) -> None:
    uri = example_model(tmp_path / "a", "x", example=INPUT)
    (tmp_path / "outside.json").write_text(json.dumps(INPUT))
    model = Model.load(uri)
    model.saved_input_example_info = {"artifact_path": path, "type": "json_object"}
    model.save(str(tmp_path / "a" / "MLmodel"))
    with pytest.raises(MlflowException, match="saved_input_example_info names"):
        client.create_deployment(name, uri, config=VALIDATE)


def test_what_mlflow_logs_as_an_example_is_taken_also_where_a_version_returns(
    client: TritonDeploymentClient,
    name: str,
    registered: Callable[[str], str],
    repository: Path,
) -> None:
    """MLflow's own `log_model(input_example=…)`: an array, then a frame.

    A version that is on disk is asked again, and not copied again.
    """
    model = registered("examples")
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    log_onnx(scale_model(2), registered=model, input_example=array)
    frame = pd.DataFrame(array, columns=list("abcd"))
    log_onnx(scale_model(3), registered=model, input_example=frame)
    client.create_deployment(name, f"models:/{model}/1", config=VALIDATE)
    updated = client.update_deployment(name, f"models:/{model}/2", config=VALIDATE)
    assert updated["served_versions"] == [2]
    before = (repository / name / "1" / "model.onnx").stat()
    back = client.update_deployment(name, f"models:/{model}/1", config=VALIDATE)
    after = (repository / name / "1" / "model.onnx").stat()
    assert back["served_versions"] == [1]
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("validate", ["load", "true"])
def test_a_model_that_does_not_load_apart_never_touches_what_serves(
    client: TritonDeploymentClient,
    serving: str,
    tmp_path: Path,
    snapshot: Callable[[str], dict[str, bytes]],
    validate: str,
) -> None:
    """Triton's reason is shown under the deployment's own serving."""
    before = snapshot(serving)
    bad = example_model(tmp_path / "bad", "x", example=INPUT)
    (tmp_path / "bad" / "model" / "1" / "model.py").write_text("raise ValueError('no good')")
    with pytest.raises(MlflowException) as raised:
        client.update_deployment(serving, bad, config={"validate": validate})
    assert "no good" in str(raised.value)
    assert f"cannot load {serving}:" in str(raised.value)
    assert "incoming" not in str(raised.value)
    assert snapshot(serving) == before
    assert answer(client, serving) == [2]


def test_a_model_without_an_example_can_be_loaded_apart(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    uri = example_model(tmp_path / "a", "x + 1")
    assert client.create_deployment(name, uri, config={"validate": "load"})["state"] == "READY"
    assert answer(client, name) == [2]


@pytest.mark.parametrize("value", ["maybe", "", "1", None])
def test_a_misspelt_validate_is_refused(client: TritonDeploymentClient, value: object) -> None:
    with pytest.raises(MlflowException, match="use false, load, true"):
        client.create_deployment("any", "any", config={"validate": value})


def test_the_check_needs_grpc(
    triton: LocalTriton, environment: Callable[..., None], tmp_path: Path
) -> None:
    """Triton's HTTP routes have no room for the path under which the model is tried."""
    http = get_deploy_client(f"triton://{triton.http_url}")
    uri = example_model(tmp_path / "a", "x", example=INPUT)
    with pytest.raises(MlflowException, match="needs Triton's gRPC protocol"):
        http.create_deployment("never", uri, config=VALIDATE)


def test_a_model_with_label_files_is_tried_with_them(
    client: TritonDeploymentClient, name: str, tmp_path: Path
) -> None:
    """What overwrites a file that serves is loaded apart first, files beside config.pbtxt too."""
    for label in ("cat", "dog"):
        directory = tmp_path / label
        source = "import pathlib\n" + python_source("x + 1").replace(
            "class TritonPythonModel:",
            "class TritonPythonModel:\n"
            "    def initialize(self, args):\n"
            "        beside = pathlib.Path(args['model_repository'], 'labels.txt')\n"
            f"        assert beside.read_text() == {label!r}\n",
        )
        python_directory(directory / "model", source, config=PYTHON_CONFIG)
        (directory / "model" / "labels.txt").write_text(label)
        (directory / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    client.create_deployment(name, str(tmp_path / "cat"))
    client.update_deployment(name, str(tmp_path / "dog"))
    assert answer(client, name) == [2]
