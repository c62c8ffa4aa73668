"""MLflow's chats answer on Triton what they answer in process, asked as they are in process.

`test_pyfunc_forms.py` of triton-repo has one without a stream, and how often one is asked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest
from cloudpickle import register_pickle_by_value
from mlflow.deployments import get_deploy_client

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from . import chats

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

register_pickle_by_value(chats)

USER = {"role": "user", "content": "hi é"}
TURNS = [USER, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "NaN"}]
FUNCTION = {"name": "f", "strict": True, "parameters": {"properties": {}}}
#: What each kind takes beside its messages.
MORE: dict[str, dict[str, Any]] = {
    "ChatModel": {
        "temperature": 0.25,
        "max_tokens": 7,
        "stop": ["\n", "end"],
        "tools": [{"type": "function", "function": FUNCTION}],
        "custom_inputs": {"a": [1, {"b": None}]},
    },
    "ChatAgent": {"context": {"user_id": "me"}, "custom_inputs": {"a": [1, {"b": None}]}},
    "ResponsesAgent": {"temperature": 0.25, "custom_inputs": {"a": [1, {"b": None}]}},
}


@pytest.fixture(scope="module", params=list(chats.KINDS))
def chat(deploy: Deploy, request: pytest.FixtureRequest) -> tuple[str, str, Any]:
    """Its kind, its name on Triton, and the model in process."""
    name, uri = deploy(chats.KINDS[request.param]())
    return request.param, name, mlflow.pyfunc.load_model(uri)


def asked(kind: str, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    return {"input" if kind == "ResponsesAgent" else "messages": messages, **more}


def answers(predictions: Any) -> list[Any]:
    """One JSON each."""
    arrays = [each["outputs"]["predictions"] for each in predictions]
    assert all(array.shape == (1, 1) for array in arrays)
    return [array.item() for array in arrays]


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("more", [False, True])
def test_they_answer_what_they_answer_in_process(
    chat: tuple[str, str, Any], pyfunc_client: TritonDeploymentClient, turns: int, *, more: bool
) -> None:
    kind, name, model = chat
    request = asked(kind, TURNS[:turns], **(MORE[kind] if more else {}))
    wanted = like_json(model.predict(request))
    assert answers([pyfunc_client.predict(name, request)]) == [wanted]
    assert answers([pyfunc_client.predict(name, {"inputs": request})]) == [wanted]
    assert answers([pyfunc_client.predict(name, [request])]) == [wanted]
    wanted = [like_json(each) for each in model.predict_stream(request)]
    assert answers(pyfunc_client.predict_stream(name, request)) == wanted
    assert len(wanted) >= turns


def like_json(answer: Any) -> Any:
    """MLflow's own answers are JSON; it is their tuples and enumerations that are not."""
    return json.loads(json.dumps(answer))


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_command_line_takes_the_same(
    chat: tuple[str, str, Any],
    pyfunc_client: TritonDeploymentClient,
    tmp_path: Path,
    turns: int,
    *,
    wrapped: bool,
) -> None:
    """`mlflow deployments predict` reads its input with pandas, which makes rows of messages."""
    kind, name, model = chat
    request = asked(kind, TURNS[:turns])
    if kind != "ChatAgent":
        request["temperature"] = 0.5
    path = tmp_path / "input.json"
    path.write_text(json.dumps({"inputs": request} if wrapped else request))
    wanted = like_json(model.predict(request))
    assert answers([pyfunc_client.predict(name, pd.read_json(path))]) == [wanted]


def test_a_chat_serves_clients_that_take_one_answer(
    pyfunc_client: TritonDeploymentClient,
    pyfunc_triton: LocalTriton,
    pyfunc_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over HTTP; and it answers its own example, and warms up with it."""
    uri = log_pyfunc(chats.Streaming()).model_uri
    config = {"stream": "false", "validate": "true", "warmup": "true"}
    pyfunc_client.create_deployment(pyfunc_name, uri, config=config)
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_URL", pyfunc_triton.http_url)
        http = get_deploy_client("triton")
    request = asked("ChatModel", TURNS, **MORE["ChatModel"])
    wanted = mlflow.pyfunc.load_model(uri).predict(request)
    assert answers([http.predict(pyfunc_name, request)]) == [wanted]
