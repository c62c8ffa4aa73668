"""Models that answer in pieces: `predict_stream`, on Triton what it is in process."""

from __future__ import annotations

import gc
import io
import itertools
import json
import threading
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Queue
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema, TensorSpec
from tritonclient import grpc as triton_grpc

from mlflow_triton_plugin import cli
from mlflow_triton_plugin.cli import main
from mlflow_triton_plugin.local import LocalTriton

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252
from ..waiting import wait_until  # noqa: TID252
from . import custom
from .conftest import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

PROMPT = {"prompt": ["tell me a é story"]}
WORDS = ["TELL", "ME", "A", "É", "STORY"]
SIGNATURE = infer_signature(pd.DataFrame(PROMPT), ["text"], params={"gate": ""})


@pytest.fixture(scope="module")
def telling(deploy: Deploy) -> tuple[str, str]:
    return deploy(custom.Telling(), signature=SIGNATURE)


def texts(predictions: Iterable[Any]) -> list[str]:
    """Of an output of strings, one row a piece."""
    arrays = [each["outputs"]["predictions"] for each in predictions]
    assert all(array.shape == (1, 1) for array in arrays)
    return [array.item().decode() for array in arrays]


def gated(gate: Path) -> dict[str, Any]:
    return {"inputs": PROMPT, "params": {"gate": str(gate)}}


def test_the_pieces_are_those_of_the_model_in_process(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient
) -> None:
    name, uri = telling
    wanted = list(mlflow.pyfunc.load_model(uri).predict_stream({"prompt": PROMPT["prompt"][0]}))
    assert texts(pyfunc_client.predict_stream(name, PROMPT)) == wanted == WORDS
    frame = pd.DataFrame(PROMPT)
    assert texts(pyfunc_client.predict_stream(f"{name}/1", frame)) == WORDS


def test_predict_answers_what_predict_does(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient
) -> None:
    several = {"prompt": ["a b", "c", "é"]}
    answered = pyfunc_client.predict(telling[0], several)["outputs"]["predictions"]
    assert [each.decode() for each in answered.reshape(-1)] == ["A B", "C", "É"]


def test_a_piece_may_have_several_outputs(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    """`test_pyfunc_forms.py` of triton-repo has pieces of every form, without a server."""
    outputs = Schema([ColSpec("string", "token"), ColSpec("double", "logprob")])
    signature = ModelSignature(Schema([ColSpec("long", "count")]), outputs)
    name, uri = deploy(custom.Pieces(), signature=signature)
    model = mlflow.pyfunc.load_model(uri)
    for count in (0, 1, 20):
        wanted = list(model.predict_stream({"count": count}))
        pieces = [
            each["outputs"]
            for each in pyfunc_client.predict_stream(name, {"count": np.array([count])})
        ]
        found = [
            {"token": each["token"].item().decode(), "logprob": each["logprob"].item()}
            for each in pieces
        ]
        assert found == wanted
        assert len(found) == count


def test_a_piece_without_the_batch_dimension_is_one_row(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    """The same."""
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, 3))])
    signature = ModelSignature(Schema([ColSpec("double", "x")]), outputs)
    name, _uri = deploy(custom.Rows(), signature=signature)
    pieces = pyfunc_client.predict_stream(name, {"x": [1.0]})
    arrays = [each["outputs"]["predictions"] for each in pieces]
    given = [np.atleast_2d(piece) for piece in custom.rows()]
    assert [each.tolist() for each in arrays] == [each.tolist() for each in given]
    answered = pyfunc_client.predict(name, {"x": [1.0]})["outputs"]["predictions"]
    assert answered.tolist() == [[1, 2, 3]]


def test_numbers_that_json_has_not_come_back_and_others_get_valid_json(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient, pyfunc_triton: LocalTriton
) -> None:
    signature = ModelSignature(Schema([ColSpec("double", "x")]))
    name, _uri = deploy(custom.NotFinite(), signature=signature)
    wanted = repr({**custom.NOT_FINITE, "b": [1, np.inf, -np.inf, None, 2**70]})
    for answered in (
        pyfunc_client.predict(name, {"x": [1.0]}),
        *pyfunc_client.predict_stream(name, {"x": [1.0]}),
    ):
        assert repr(answered["outputs"]["predictions"].item()) == wanted
        told = json.loads(answered.to_json(), parse_constant=pytest.fail)
        assert told["outputs"]["predictions"][0][0]["b"] == AS_TEXT["b"]
    request = urllib.request.Request(  # noqa: S310 - http, on this machine
        f"{pyfunc_triton.http_url}/v2/models/{name}/generate", b'{"x": 1}'
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        text = json.loads(answer.read())["predictions"]
    assert json.loads(text, parse_constant=pytest.fail) == AS_TEXT


AS_TEXT = {
    **custom.NOT_FINITE,
    "a": "NaN",
    "b": [1, "Infinity", "-Infinity", None, 2**70],
}


def test_a_piece_comes_before_the_next_is_made(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    pieces = pyfunc_client.predict_stream(telling[0], gated(gate))
    assert texts([next(pieces)]) == WORDS[:1]
    assert not (tmp_path / "gate.end").exists()
    gate.touch()
    assert texts(pieces) == WORDS[1:]


@pytest.mark.parametrize("leave", ["close", "let go"])
def test_who_goes_away_is_waited_for_by_nobody(
    telling: tuple[str, str],
    pyfunc_client: TritonDeploymentClient,
    tmp_path: Path,
    leave: str,
) -> None:
    gate = tmp_path / "gate"
    pieces: Any = pyfunc_client.predict_stream(telling[0], gated(gate))
    if leave == "close":
        assert texts([next(pieces)]) == WORDS[:1]
        pieces.close()
    del pieces
    gc.collect()
    assert texts(pyfunc_client.predict_stream(telling[0], PROMPT)) == WORDS
    gate.touch()
    wait_until((tmp_path / "gate.end").exists)


@pytest.fixture(scope="module")
def ticking() -> str:
    signature = infer_signature(pd.DataFrame({"folder": ["x"]}), ["text"])
    uri: str = log_pyfunc(custom.Ticking(), signature=signature).model_uri
    return uri


@pytest.mark.parametrize("options", [{"parameters.mlflow_streams": "2"}, {"instance_count": "2"}])
def test_who_leaves_an_endless_answer_ends_it(
    pyfunc_client: TritonDeploymentClient, ticking: str, tmp_path: Path, options: dict[str, str]
) -> None:
    """While the client lives on; those that have not begun, too, and on whichever instance."""
    name = f"m{uuid.uuid4().hex[:12]}"
    pyfunc_client.create_deployment(name, ticking, config={"load_timeout": "60", **options})
    asked = {"folder": [str(tmp_path)]}
    try:
        endless: list[Any] = [pyfunc_client.predict_stream(name, asked) for _ in range(2)]
        assert texts(next(each) for each in endless) == ["tick", "tick"]
        waiting = threading.Thread(
            target=lambda: next(pyfunc_client.predict_stream(name, asked)), daemon=True
        )
        waiting.start()
        assert texts([pyfunc_client.predict(name, asked)]) == asked["folder"]
        for each in endless:
            each.close()
        wait_until(lambda: len(list(tmp_path.iterdir())) == len(endless) + 1)
    finally:  # which waits until Triton has unloaded it
        pyfunc_client.delete_deployment(name, config={"load_timeout": "60"})


def test_a_cancelled_request_ends_the_generator(telling: tuple[str, str], tmp_path: Path) -> None:
    """On a server of its own: this Triton may never unload a model whose stream was cancelled."""
    gate = tmp_path / "gate"
    (tmp_path / "repository").mkdir()
    with LocalTriton(tmp_path / "repository", packages=PACKAGES) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_URL", server.grpc_url)
            patch.setenv("TRITON_MODEL_REPO", str(tmp_path / "repository"))
            client: Any = get_deploy_client("triton")
            client.create_deployment("told", telling[1])
        found: Queue[Any] = Queue()
        raw = triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
        tensor = triton_grpc.InferInput("prompt", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["first " * 50_000]], dtype=object))
        raw.start_stream(lambda result, error: found.put((result, error)))
        params = {"mlflow_params": json.dumps({"gate": str(gate)})}
        raw.async_stream_infer("told", [tensor], parameters=params)
        assert found.get(timeout=30)[1] is None
        raw.stop_stream(cancel_requests=True)
        threading.Event().wait(0.5)  # nothing says when Triton knows
        gate.touch()
        wait_until((tmp_path / "gate.end").exists)
        # the model's process learns of it with the next piece, and may have made some more by then
        assert int((tmp_path / "gate.end").read_text()) < 25_000


def test_an_error_in_the_midst_comes_after_the_pieces_before_it(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient
) -> None:
    pieces = pyfunc_client.predict_stream(telling[0], {"prompt": ["one two bad four"]})
    assert texts(itertools.islice(pieces, 2)) == ["ONE", "TWO"]
    refused(lambda: next(pieces), "BAD_REQUEST", "word 2 is bad")
    assert list(pieces) == []
    begin = lambda: pyfunc_client.predict_stream(telling[0], {"prompt": ["bad"]})  # noqa: E731
    refused(begin, "BAD_REQUEST", "word 0 is bad")


WAYS = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "Wordless", "UnicodeError")


@pytest.fixture(scope="module")
def leaving() -> str:
    """The URI of a model that raises what its row says."""
    signature = infer_signature(pd.DataFrame({"how": ["x"]}), ["text"])
    uri: str = log_pyfunc(custom.Leaving(), signature=signature).model_uri
    return uri


@pytest.mark.parametrize("stream", ["true", "false"])
def test_whatever_a_model_raises_ends_its_request_and_nothing_else(
    pyfunc_client: TritonDeploymentClient, leaving: str, stream: str
) -> None:
    """`sys.exit()` too: the version goes on answering, and unloads when it is asked to."""
    name = f"m{uuid.uuid4().hex[:12]}"
    pyfunc_client.create_deployment(name, leaving, config={"stream": stream, "load_timeout": "30"})
    try:
        for way in WAYS:
            asked = {"how": [way]}
            refused(partial(pyfunc_client.predict, name, asked), "BAD_REQUEST", way)
            if stream == "true":
                pieces = pyfunc_client.predict_stream(name, asked)
                assert texts([next(pieces)]) == ["first"]
                refused(partial(next, pieces), "BAD_REQUEST", way)
                assert list(pieces) == []
        assert beside_each_other(pyfunc_client, name) == ["stays", "SystemExit"] * 20
    finally:
        pyfunc_client.delete_deployment(name, config={"load_timeout": "30"})


def beside_each_other(client: TritonDeploymentClient, name: str) -> list[str]:
    """What requests that Triton may join are answered, each by itself."""

    def ask(how: str) -> str:
        try:
            return texts([client.predict(name, {"how": [how]})])[0]
        except MlflowException as exc:
            return how if how in str(exc) else str(exc)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, ["stays", "SystemExit"] * 20))


def test_streams_and_predictions_go_on_beside_each_other(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    held = [pyfunc_client.predict_stream(telling[0], gated(gate)) for _ in range(5)]
    with ThreadPoolExecutor(8) as pool:
        asked = [f"a{each} b{each}" for each in range(40)]
        found = pool.map(
            lambda text: texts(pyfunc_client.predict_stream(telling[0], {"prompt": [text]})), asked
        )
        assert list(found) == [text.upper().split() for text in asked]
    test_predict_answers_what_predict_does(telling, pyfunc_client)
    gate.touch()
    assert [texts(pieces) for pieces in held] == [WORDS] * 5


def test_others_than_the_number_configured_wait(
    telling: tuple[str, str],
    pyfunc_client: TritonDeploymentClient,
    pyfunc_name: str,
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    config = {"parameters.mlflow_streams": "1"}
    pyfunc_client.create_deployment(pyfunc_name, telling[1], config=config)
    try:
        first = pyfunc_client.predict_stream(pyfunc_name, gated(gate))
        second: list[str] = []
        waiting = threading.Thread(
            target=lambda: second.extend(texts(pyfunc_client.predict_stream(pyfunc_name, PROMPT)))
        )
        waiting.start()
        waiting.join(0.5)
        assert second == []
        gate.touch()
        assert texts(first) == WORDS
        waiting.join(30)
        assert second == WORDS
    finally:
        gate.touch()


def test_more_than_one_row_is_refused_with_the_model_s_words(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient
) -> None:
    refused(
        lambda: pyfunc_client.predict_stream(telling[0], {"prompt": ["a", "b"]}),
        "BAD_REQUEST",
        "requires single input",
    )


def test_a_deadline_is_for_each_piece(
    telling: tuple[str, str],
    pyfunc_client: TritonDeploymentClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_REQUEST_TIMEOUT", "1")
    hasty: Any = get_deploy_client("triton")
    gate = tmp_path / "gate"
    pieces = hasty.predict_stream(telling[0], gated(gate))
    assert texts([next(pieces)]) == WORDS[:1]
    refused(lambda: next(pieces), "DEADLINE_EXCEEDED", "1 s")
    gate.touch()
    assert texts(pyfunc_client.predict_stream(telling[0], PROMPT)) == WORDS


def test_a_predict_that_is_a_generator_streams_on_request(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.5]})
    name, _uri = deploy(custom.Generating(), signature=infer_signature(frame, [1.0]))
    refused(lambda: pyfunc_client.predict(name, frame), "BAD_REQUEST", "-C stream=true")
    pyfunc_client.update_deployment(name, config={"stream": True})
    pieces = pyfunc_client.predict_stream(name, frame)
    assert [each["outputs"]["predictions"].item() for each in pieces] == [2.0, 5.0]


def test_stream_false_serves_clients_that_take_one_answer(
    telling: tuple[str, str],
    pyfunc_client: TritonDeploymentClient,
    pyfunc_triton: LocalTriton,
    pyfunc_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, uri = pyfunc_name, telling[1]
    monkeypatch.setenv("TRITON_URL", pyfunc_triton.http_url)
    http: Any = get_deploy_client("triton")
    words = ("BAD_REQUEST", "gRPC", "stream=false")
    refused(lambda: http.predict(telling[0], PROMPT), *words)
    refused(lambda: http.predict_stream(telling[0], PROMPT), *words)
    pyfunc_client.create_deployment(name, uri, config={"stream": "false"})
    answered = http.predict(name, PROMPT)["outputs"]["predictions"]
    assert answered.item().decode() == PROMPT["prompt"][0].upper()
    # until it is taken back it stays, also through updates
    pyfunc_client.update_deployment(name, uri)
    assert http.predict(name, PROMPT)["outputs"]["predictions"].shape == (1, 1)
    pyfunc_client.update_deployment(name, config={"stream": "default"})
    assert texts(pyfunc_client.predict_stream(name, PROMPT)) == WORDS


def test_an_update_from_one_to_the_other_and_back(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient, pyfunc_name: str
) -> None:
    """And a model that answers at once says so where it is asked for pieces."""
    frame = pd.DataFrame(PROMPT)
    whole = log_pyfunc(custom.Echo(), signature=infer_signature(frame, ["text"])).model_uri
    stream = partial(pyfunc_client.predict_stream, pyfunc_name, PROMPT)
    predict = partial(pyfunc_client.predict, pyfunc_name, PROMPT)
    pyfunc_client.create_deployment(pyfunc_name, whole)
    assert texts([predict()]) == PROMPT["prompt"]
    refused(stream, "BAD_REQUEST", "not in pieces")
    pyfunc_client.update_deployment(pyfunc_name, telling[1])
    assert texts([predict()]) == [PROMPT["prompt"][0].upper()]
    assert texts(stream()) == WORDS
    pyfunc_client.update_deployment(pyfunc_name, whole)
    assert texts([predict()]) == PROMPT["prompt"]
    refused(stream, "BAD_REQUEST", "not in pieces")


def test_it_answers_its_own_example_and_warms_up(
    pyfunc_client: TritonDeploymentClient, pyfunc_name: str
) -> None:
    example = (pd.DataFrame(PROMPT), {"gate": ""})
    info = log_pyfunc(custom.Telling(), signature=SIGNATURE, input_example=example)
    config = {"validate": True, "warmup": "1,8"}
    pyfunc_client.create_deployment(pyfunc_name, info.model_uri, config=config)
    assert texts(pyfunc_client.predict_stream(pyfunc_name, PROMPT)) == WORDS


def test_other_clients(telling: tuple[str, str], pyfunc_triton: LocalTriton) -> None:
    found: list[str] = []
    done = threading.Event()

    def on_answer(result: Any, error: Any) -> None:
        if (
            error is not None
            or result.get_response().parameters["triton_final_response"].bool_param
        ):
            done.set()
        else:
            found.append(result.as_numpy("predictions").item().decode())

    with triton_grpc.InferenceServerClient(pyfunc_triton.grpc_url.removeprefix("grpc://")) as raw:
        tensor = triton_grpc.InferInput("prompt", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([PROMPT["prompt"]], dtype=object))
        raw.start_stream(on_answer)
        raw.async_stream_infer(telling[0], [tensor], enable_empty_final_response=True)
        assert done.wait(30)
        raw.stop_stream()
    assert found == WORDS
    request = urllib.request.Request(  # noqa: S310 - http, on this machine
        f"{pyfunc_triton.http_url}/v2/models/{telling[0]}/generate_stream",
        json.dumps({"prompt": PROMPT["prompt"][0]}).encode(),
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        events = [line.removeprefix(b"data: ") for line in answer if line.startswith(b"data: ")]
    assert [json.loads(each)["predictions"] for each in events] == WORDS


def test_the_command_line_prints_a_line_a_piece(
    telling: tuple[str, str],
    pyfunc_client: TritonDeploymentClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "input.json"
    path.write_text(json.dumps({"inputs": PROMPT}))
    assert main(["predict-stream", telling[0], "--input-path", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["outputs"]["predictions"] for line in lines] == [[[w]] for w in WORDS]
    path.write_text(json.dumps({"inputs": {"prompt": ["good bad"]}}))
    assert main(["predict-stream", telling[0], "--input-path", str(path)]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["outputs"]["predictions"] == [["GOOD"]]
    assert "word 1 is bad" in told.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": {"0": "tell me"}}', ["TELL", "ME"]),
        (pd.DataFrame({"prompt": ["tell me"]}, index=[7]).to_json(), ["TELL", "ME"]),
        ('{"columns": ["prompt"], "index": [0], "data": [["tell me"]]}', ["TELL", "ME"]),
        ('[{"prompt": "tell me"}]', ["TELL", "ME"]),
        ('{"prompt": ["00123"]}', ["00123"]),
        ('{"prompt": {"0": "00123"}}', ["00123"]),
    ],
)
def test_the_command_line_takes_what_that_of_mlflow_takes(
    telling: tuple[str, str],
    pyfunc_client: TritonDeploymentClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: list[str],
) -> None:
    """What pandas writes; but text is text, also where it looks like a number."""
    path = tmp_path / "input.json"
    path.write_text(text)
    if words[0] != "00123":
        answered = pyfunc_client.predict(telling[0], pd.read_json(path))
        assert texts([answered]) == [" ".join(words)]
    assert main(["predict-stream", telling[0], "--input-path", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["outputs"]["predictions"] for line in lines] == [[[w]] for w in words]


@pytest.mark.parametrize(
    ("given", "by_pandas"),
    [
        ({"a": {"0": 1, "3": 2}}, True),
        ({"a": [1, 2], "b": 3}, True),
        ({"inputs": {"0": "x"}}, True),
        ({"a": [1, 2]}, False),
        ({"a": {"b": 1}}, False),
        ({"messages": [{"role": "user"}] * 2, "stop": ["x"], "n": 1}, False),
        ({"messages": [{"role": "user"}], "custom_inputs": {"a": 1}}, False),
        ({}, False),
        ([1], False),
        (None, False),
    ],
)
def test_only_what_is_a_table_to_pandas_alone_is_read_by_it(given: Any, *, by_pandas: bool) -> None:
    read = cli._as_pandas_reads(given)
    if by_pandas:
        pd.testing.assert_frame_equal(read, pd.read_json(io.StringIO(json.dumps(given))))
    else:
        assert read is given


def test_the_end_of_the_server_waits_for_no_stream(
    telling: tuple[str, str], pyfunc_client: TritonDeploymentClient, tmp_path: Path
) -> None:
    """A deployment that is deleted meanwhile answers what it has begun."""
    name, gate = f"m{uuid.uuid4().hex[:12]}", tmp_path / "gate"
    pyfunc_client.create_deployment(name, telling[1])
    pieces = pyfunc_client.predict_stream(name, gated(gate))
    assert texts([next(pieces)]) == WORDS[:1]
    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(pyfunc_client.delete_deployment, name)
        gate.touch()
        assert texts(pieces) == WORDS[1:]
        deleted.result(60)
