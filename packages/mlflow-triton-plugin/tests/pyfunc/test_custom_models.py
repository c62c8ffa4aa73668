"""Custom models on a real Triton answer what they answer in process."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import tritonclient.grpc
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema, TensorSpec

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252
from . import custom

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.5]})
FORM = {"form": "frame"}


def in_process(uri: str, data: Any, params: dict[str, Any] | None = None) -> Any:
    return mlflow.pyfunc.load_model(uri).predict(data, params=params)


def text(array: Any) -> list[str]:
    return [value.decode() for value in array.reshape(-1)]


@pytest.fixture(scope="module")
def shaped(deploy: Deploy) -> tuple[str, str]:
    """Two outputs in a form that a parameter names, validated with the model's example."""
    signature = infer_signature(FRAME, pd.DataFrame({"p": [1.0], "q": [1.0]}), params=FORM)
    example = (FRAME, FORM)
    config = {"validate": "true"}
    return deploy(custom.Shaped(), config, signature=signature, input_example=example)


@pytest.fixture(scope="module")
def upper(deploy: Deploy) -> tuple[str, str]:
    return deploy(custom.Upper(), {"validate": "true"}, input_example=["a", "é"])


@pytest.fixture(scope="module")
def lookup(deploy: Deploy) -> tuple[str, str]:
    return deploy(custom.Lookup())


@pytest.mark.parametrize("form", ["frame", "dict", "records", "nullable"])
def test_predictions_of_several_forms_are_answered(
    shaped: tuple[str, str], pyfunc_client: TritonDeploymentClient, form: str
) -> None:
    """`test_pyfunc_forms.py` of triton-repo has all of them, without a server."""
    name, uri = shaped
    answered = pyfunc_client.predict(name, {"inputs": FRAME, "params": {"form": form}})
    outputs = answered["outputs"]
    wanted = pd.DataFrame(in_process(uri, FRAME, {"form": form}))
    assert list(outputs) == ["p", "q"]
    for column in wanted:
        np.testing.assert_array_equal(outputs[column].reshape(-1), wanted[column])


def test_a_tensor_of_fixed_shape_is_not_batched(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    tensors = Schema([TensorSpec(np.dtype(np.float32), (2, 3))])
    name, uri = deploy(custom.Echo(), signature=ModelSignature(tensors, tensors))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    answered = pyfunc_client.predict(name, array)["outputs"]["predictions"]
    np.testing.assert_array_equal(answered, in_process(uri, array))


def test_lists_of_strings(upper: tuple[str, str], pyfunc_client: TritonDeploymentClient) -> None:
    name, uri = upper
    given = ["a", "bü", ""]
    answered = pyfunc_client.predict(name, given)["outputs"]["predictions"]
    assert text(answered) == in_process(uri, given)


def test_lists_of_objects(lookup: tuple[str, str], pyfunc_client: TritonDeploymentClient) -> None:
    name, uri = lookup
    given = [{"a": 1}, {"a": 2, "b": 3}]
    answered = pyfunc_client.predict(name, given)
    assert answered["outputs"]["predictions"].reshape(-1).tolist() == in_process(uri, given)
    first = json.loads(answered.to_json())["outputs"]["predictions"][0]
    assert first == [{"sum": 1, "keys": ["a"]}]


def test_what_the_caller_named_and_wrote_reaches_the_model(
    deploy: Deploy,
    pyfunc_client: TritonDeploymentClient,
    pyfunc_triton: LocalTriton,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs = Schema([ColSpec("string", "y")])
    unnamed = Schema([ColSpec("string"), ColSpec("binary")])
    name, uri = deploy(custom.Described(), signature=ModelSignature(unnamed, outputs))
    frame = pd.DataFrame({"text": ["a", "b"], "blob": [b"\1\xff", b"a"]})
    wanted = mlflow.pyfunc.load_model(uri).predict(frame)
    assert wanted[0] == "['text', 'blob'] ['a', b'\\x01\\xff']"
    monkeypatch.setenv("TRITON_URL", pyfunc_triton.http_url)
    in_json = {"columns": ["text", "blob"], "data": [["a", "Af8="], ["b", "YQ=="]]}
    for client in (pyfunc_client, get_deploy_client("triton")):
        for table in (frame, {"dataframe_split": in_json}):
            answered = client.predict(name, table)["outputs"]["y"].reshape(-1).tolist()
            assert [_text(each) for each in answered] == wanted
    with pytest.raises(MlflowException, match=r"input 0: .* at \[0, 0\] is a date"):
        pyfunc_client.predict(name, frame.assign(text=pd.Timestamp("2024-01-02")))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_columns_that_may_be_left_out(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    schema = Schema([ColSpec("double", "a"), ColSpec("double", "b", required=False)])
    outputs = Schema([TensorSpec(np.dtype(np.int64), (-1,))])
    name, uri = deploy(custom.Counting(), signature=ModelSignature(schema, outputs))
    for given in (FRAME, FRAME.assign(b=[1.0, np.nan, 2.0])):
        answered = pyfunc_client.predict(name, given)["outputs"]["predictions"]
        np.testing.assert_array_equal(answered.reshape(-1), in_process(uri, given))


@pytest.fixture(scope="module")
def scaled(deploy: Deploy) -> tuple[str, str]:
    frame = pd.DataFrame({"x": [1.0]})
    params = {"factor": 2.0, "more": [0.5, 0.25]}
    return deploy(custom.Scaled(), signature=infer_signature(frame, frame["x"], params=params))


@pytest.mark.parametrize(
    "params", [{}, {"factor": 3.0}, {"factor": 3, "more": [1.0]}, {"more": np.array([2.0])}]
)
def test_they_reach_the_model(
    scaled: tuple[str, str],
    pyfunc_client: TritonDeploymentClient,
    params: dict[str, Any],
) -> None:
    name, uri = scaled
    frame = pd.DataFrame({"x": [1.0, 2.0]})
    answered = pyfunc_client.predict(name, {"inputs": frame, "params": params})
    wanted = in_process(uri, frame, params)
    np.testing.assert_array_equal(answered["outputs"]["x"].reshape(-1), wanted)


def test_as_the_command_line_reads_them(
    scaled: tuple[str, str], pyfunc_client: TritonDeploymentClient, tmp_path: Path
) -> None:
    path = tmp_path / "input.json"
    path.write_text('{"inputs": {"x": [1.0, 2.0]}, "params": {"factor": 10.0, "more": []}}')
    answered = pyfunc_client.predict(scaled[0], pd.read_json(path))
    assert answered["outputs"]["x"].reshape(-1).tolist() == [10.0, 20.0]


def test_unknown_ones_are_refused(
    scaled: tuple[str, str], pyfunc_client: TritonDeploymentClient
) -> None:
    with pytest.raises(MlflowException, match='no parameter "facto"') as raised:
        pyfunc_client.predict(scaled[0], {"inputs": {"x": [1.0]}, "params": {"facto": 1}})
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"


def test_an_error_of_the_model_comes_back_with_its_message(
    scaled: tuple[str, str], pyfunc_client: TritonDeploymentClient
) -> None:
    with pytest.raises(MlflowException, match="x is -4, and must not be negative") as raised:
        pyfunc_client.predict(scaled[0], {"x": [1.0, -4.0]})
    assert raised.value.error_code == "BAD_REQUEST"


def test_one_bad_request_spoils_no_other(
    scaled: tuple[str, str], pyfunc_client: TritonDeploymentClient
) -> None:
    def ask(value: float) -> object:
        try:
            return pyfunc_client.predict(scaled[0], {"x": [value]})["outputs"]["x"].item()
        except MlflowException as exc:
            return "must not be negative" in str(exc)

    values = [float(number % 7 - 1) for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answered = list(pool.map(ask, values))
    assert answered == [True if value < 0 else value * 2 + 0.75 for value in values]


def test_a_model_whose_rows_are_not_kept_is_asked_for_each_request(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    tensors = Schema([TensorSpec(np.dtype(np.float64), (-1, 2))])
    name, _uri = deploy(custom.Mean(), signature=ModelSignature(tensors, tensors))

    def ask(number: int) -> list[Any]:
        given = np.full((2 + number % 3, 2), float(number))
        answered = pyfunc_client.predict(name, given)["outputs"]["predictions"]
        found: list[Any] = answered.tolist()
        return found

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(100))) == [[[float(n)] * 2] for n in range(100)]


ODD = {
    "huge": "y of the model's answer has 1e+300, which is no float32",
    "nothing": "the model answers nothing (None)",
    "ragged": "y of the model's answer is ragged",
    "text": "y of the model's answer is",
}


def test_an_answer_that_no_tensor_can_hold_is_refused(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    """`test_pyfunc_joining.py` of triton-repo has more of them, without a server."""
    signature = ModelSignature(
        infer_signature(FRAME).inputs,
        Schema([ColSpec("float", "y")]),
        infer_signature(FRAME, params=FORM).params,
    )
    name, _uri = deploy(custom.Odd(), signature=signature)
    for form, words in ODD.items():
        asked = {"inputs": FRAME, "params": {"form": form}}
        refused(partial(pyfunc_client.predict, name, asked), "BAD_REQUEST", words)


def test_what_the_server_lacks_is_listed_and_nothing_changes(
    pyfunc_client: TritonDeploymentClient, pyfunc_repository: Path
) -> None:
    info = log_pyfunc(
        custom.Needy(),
        signature=infer_signature(FRAME, FRAME),
        pip_requirements=[
            "mlflow",
            "numpy",
            "no-such-package==1.2",
            "nor-this; python_version>'3'",
        ],
    )
    with pytest.raises(
        MlflowException, match=r"lacks .*: no-such-package==1\.2, nor-this"
    ) as raised:
        pyfunc_client.create_deployment("needy", info.model_uri, config={"env": "default"})
    assert "pip install 'no-such-package==1.2'" in str(raised.value)
    assert "--for-model" in str(raised.value)
    assert not (pyfunc_repository / "needy").exists()


def test_a_model_without_a_signature_is_refused_with_the_line_that_adds_one(
    pyfunc_client: TritonDeploymentClient,
) -> None:
    info = log_pyfunc(custom.Echo())
    with pytest.raises(MlflowException, match=r"set_signature\(model_uri, ") as raised:
        pyfunc_client.create_deployment("unsigned", info.model_uri)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_same_over_http(
    scaled: tuple[str, str],
    lookup: tuple[str, str],
    pyfunc_triton: LocalTriton,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_URL", pyfunc_triton.http_url)
    client = get_deploy_client("triton")
    asked = {"inputs": {"x": [1.0, 2.0]}, "params": {"factor": 10.5, "more": [1.0]}}
    assert client.predict(scaled[0], asked)["outputs"]["x"].reshape(-1).tolist() == [11.5, 22.0]
    given = [{"a": 1}, {"b": 3}]
    answered = client.predict(lookup[0], given)["outputs"]["predictions"]
    assert answered.reshape(-1).tolist() == in_process(lookup[1], given)


def test_parameters_of_other_clients_reach_the_model(
    scaled: tuple[str, str], pyfunc_triton: LocalTriton
) -> None:
    """Under their own names; those that the model does not take are somebody else's."""
    tensor = tritonclient.grpc.InferInput("x", [1, 1], "FP64")
    tensor.set_data_from_numpy(np.array([[3.0]]))
    asked = {"factor": 3, "more": "[0.25]", "gateway": "eu"}
    with tritonclient.grpc.InferenceServerClient(pyfunc_triton.grpc_url) as raw:
        answered = raw.infer(scaled[0], [tensor], parameters=asked).as_numpy("x")
    assert answered.tolist() == [[9.25]]


@pytest.mark.parametrize("kind", ["shaped", "upper"])
def test_a_model_answers_its_own_example_before_anybody_elses(
    pyfunc_client: TritonDeploymentClient, kind: str, request: pytest.FixtureRequest
) -> None:
    """A frame with parameters, and a list: both fixtures deploy with `validate`."""
    name, _uri = request.getfixturevalue(kind)
    assert pyfunc_client.get_deployment(name)["state"] == "READY"
