"""Answers of every form that MLflow allows, as `model.py` makes tensors of them.

Each model is saved, converted and loaded as for a deployment. The plugin's tests/pyfunc has a few
of the same forms on a real server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc.model import ChatAgent, ChatModel, PythonModel
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.agent import ChatAgentMessage, ChatAgentResponse
from mlflow.types.llm import ChatChoice, ChatCompletionResponse, ChatMessage
from mlflow.types.schema import Array

from .shim import Placed, answered, load_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    Place = Callable[..., tuple[Placed, Any]]

FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.5]})
COLUMN = FRAME.to_numpy()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Save a `PythonModel`; as the worker has it, and as MLflow has it in process."""
    worker = load_worker(monkeypatch)

    def save_and_place(model: Any, signature: ModelSignature | None = None) -> tuple[Placed, Any]:
        root = tmp_path / "model"
        mlflow.pyfunc.save_model(
            root, python_model=model, signature=signature, pip_requirements=["mlflow-skinny"]
        )
        return Placed(worker, root), mlflow.pyfunc.load_model(str(root))

    return save_and_place


def text(array: Any) -> list[str]:
    return [value.decode() for value in array.reshape(-1)]


class Echo(PythonModel):
    """Answers what it was given."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow's
        return model_input


def test_every_type_of_column_goes_both_ways(place: Place) -> None:
    frame = pd.DataFrame(
        {
            "boolean": [True, False],
            "integer": np.array([1, -2], dtype=np.int32),
            "long": [2**62, -1],
            "float": np.array([0.1, np.nan], dtype=np.float32),
            "double": [0.1, -1e300],
            "string": ["é\0", ""],
            "binary": [b"\xff\0", b"a"],
            "datetime": pd.to_datetime(["2026-01-02T03:04:05.678901", "1969-12-31T00:00:00.5"]),
            "array": [[1.0, 2.0], [3.0, 4.0]],
            "nested": [[["a", "b"]], [["é", ""]]],
            "object": [{"k": 1, "s": "x"}, {"k": 2, "s": "é"}],
        }
    )
    placed, model = place(Echo(), infer_signature(frame, frame))
    wanted = model.predict(frame)
    numbers = ["boolean", "integer", "long", "float", "double"]
    given: dict[str, Any] = {each: frame[[each]].to_numpy() for each in numbers}
    texts = {
        "string": frame["string"].tolist(),
        "datetime": [each.isoformat() for each in frame["datetime"]],
        "object": [json.dumps(each, default=int) for each in frame["object"]],
    }
    given |= {name: as_bytes(values) for name, values in texts.items()}
    given["binary"] = np.array(frame[["binary"]], dtype=object)
    given["array"] = np.array(frame["array"].tolist())
    given["nested"] = as_bytes(["a", "b", "é", ""]).reshape(2, 1, 2)
    outputs = placed.predict(**given)
    assert list(outputs) == list(frame.columns)
    for column in numbers:
        assert outputs[column].dtype == wanted[column].dtype
        np.testing.assert_array_equal(outputs[column].reshape(-1), wanted[column])
    assert text(outputs["string"]) == wanted["string"].tolist()
    assert outputs["binary"].reshape(-1).tolist() == wanted["binary"].tolist()
    dates = pd.to_datetime(text(outputs["datetime"]), format="ISO8601")
    assert dates.tolist() == wanted["datetime"].tolist()
    assert outputs["array"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert text(outputs["nested"]) == ["a", "b", "é", ""]
    assert outputs["nested"].shape == (2, 1, 2)
    objects = [json.loads(each) for each in text(outputs["object"])]
    assert objects == wanted["object"].tolist()


def as_bytes(values: list[str]) -> Any:
    return np.array([[each.encode()] for each in values], dtype=object)


def test_a_tensor_without_a_name_goes_both_ways(place: Place) -> None:
    array = np.arange(6).reshape(3, 2).astype(np.float16)
    placed, model = place(Echo(), infer_signature(array, array))
    (name,) = placed.model._inputs
    (answered,) = placed.predict(**{name: array}).values()
    assert answered.dtype == array.dtype
    np.testing.assert_array_equal(answered, model.predict(array))


def test_tensors_with_names_are_a_dict(place: Place) -> None:
    given = {"a": np.ones((2, 3), np.float32), "b": np.array([1, 2])}
    placed, model = place(Echo(), infer_signature(given, given))
    outputs = placed.predict(a=given["a"], b=given["b"].reshape(-1, 1))
    wanted = model.predict(given)
    np.testing.assert_array_equal(outputs["a"], wanted["a"])
    np.testing.assert_array_equal(outputs["b"].reshape(-1), wanted["b"])


class Shaped(PythonModel):
    """Answers the same two values in one of the forms that pyfunc allows."""

    def __init__(self, form: str) -> None:
        self._form = form

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow's
        a, b = model_input["a"].to_numpy() * 2, model_input["a"].to_numpy() + 0.5
        return FORMS[self._form](a, b)


def _sparse(a: Any, b: Any) -> Any:
    from scipy import sparse  # noqa: PLC0415 - where it is asked for

    return sparse.csr_matrix(np.stack([a, b], axis=1))


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "array": lambda a, _: a,
    "matrix": lambda a, b: np.stack([a, b], axis=1),
    "series": lambda a, _: pd.Series(a),
    "list": lambda a, _: a.tolist(),
    "frame": lambda a, b: pd.DataFrame({"p": a, "q": b}),
    "dict": lambda a, b: {"p": a, "q": b},
    "records": lambda a, b: [{"p": p, "q": q} for p, q in zip(a, b, strict=True)],
    "strings": lambda a, _: [f"é{value:g}" for value in a],
    "categories": lambda a, _: pd.Series(np.where(a > 2, "many", "few")).astype("category"),
    "nullable": lambda a, _: pd.array(a.astype(np.int64), dtype="Int64"),
    "sparse": _sparse,
    "dates": lambda a, _: pd.Series(pd.Timestamp("2026-01-02") + pd.to_timedelta(a, unit="D")),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_predictions_of_every_form_are_answered(place: Place, form: str) -> None:
    shaped = Shaped(form)
    local = shaped.predict(None, FRAME)
    named = {"p": [1.0], "q": [1.0]}
    known = {"sparse": np.ones((1, 2)), "records": pd.DataFrame(named), "nullable": np.array([1])}
    placed, _model = place(shaped, infer_signature(FRAME, known.get(form, local)))
    outputs = placed.predict(a=COLUMN)
    if form in ("frame", "dict", "records"):
        wanted = pd.DataFrame(local)
        assert list(outputs) == ["p", "q"]
        for column in wanted:
            np.testing.assert_array_equal(outputs[column].reshape(-1), wanted[column])
        return
    (answered,) = outputs.values()
    if form in ("strings", "categories"):
        assert text(answered) == list(local)
    elif form == "dates":
        assert pd.to_datetime(text(answered), format="ISO8601").tolist() == local.tolist()
    else:
        dense = local.toarray() if form == "sparse" else np.asarray(local)
        np.testing.assert_array_equal(answered.reshape(dense.shape), dense.astype(answered.dtype))


def test_without_an_output_signature_rows_are_objects(place: Place) -> None:
    placed, _model = place(
        Shaped("records"), ModelSignature(Schema([ColSpec(DataType.double, "a")]))
    )
    answered = placed.predict(a=COLUMN)["predictions"]
    assert [json.loads(each) for each in text(answered)] == [
        {"p": 2.0, "q": 1.5},
        {"p": 4.0, "q": 2.5},
        {"p": 7.0, "q": 4.0},
    ]


# -- in pieces ------------------------------------------------------------------------------------


class Pieces(PythonModel):
    """Gives pieces of one of the forms that pyfunc allows, as many as it is asked for."""

    def __init__(self, form: str) -> None:
        self._form = form

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow's
        return [PIECES[self._form](int(count)) for count in model_input["count"]]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow's
        for each in range(int(model_input["count"])):
            yield PIECES[self._form](each)


PIECES: dict[str, Callable[[int], Any]] = {
    "text": lambda each: f"piece {each} é",
    "number": lambda each: each / 2,
    "object": lambda each: {"delta": {"content": "x" * each}, "index": each},
    "columns": lambda each: {"token": f"t{each}", "logprob": -0.5 * each},
}


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("form", list(PIECES))
def test_pieces_of_every_form(place: Place, form: str, count: int) -> None:
    columns: Any = {
        "text": [ColSpec("string")],
        "number": [ColSpec("double")],
        "object": None,
        "columns": [ColSpec("string", "token"), ColSpec("double", "logprob")],
    }[form]
    inputs = Schema([ColSpec("long", "count")])
    signature = ModelSignature(inputs, Schema(columns) if columns else None)
    placed, model = place(Pieces(form), signature)
    wanted = list(model.predict_stream({"count": count}))
    pieces = placed.predict_stream(count=np.array([[count]]))
    if form == "columns":
        found: list[Any] = [
            {"token": each["token"].item().decode(), "logprob": each["logprob"].item()}
            for each in pieces
        ]
    else:
        values = [each["predictions"].item() for each in pieces]
        found = [each.decode() if isinstance(each, bytes) else each for each in values]
        found = [json.loads(each) for each in found] if form == "object" else found
    assert found == wanted
    assert len(found) == count


class Rows(PythonModel):
    """Gives rows with the batch dimension or without it."""

    def __init__(self, form: str) -> None:
        self._form = form

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow's
        return ROWS[self._form]()[0]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow's
        yield from ROWS[self._form]()


ROWS: dict[str, Callable[[], list[Any]]] = {
    "any": lambda: [[1.0, 2.0], [[3.0]], [], np.ones((2, 2)), 4.0],
    "texts": lambda: [["a", "b"], [["c"]], np.array(["d", "e", "f"])],
    "json": lambda: [
        [1, [2]],
        {"predictions": 3},
        pd.DataFrame({"q": [1, 2]}),
        np.arange(2),
        None,
        "x",
    ],
}


@pytest.mark.parametrize("form", list(ROWS))
def test_a_piece_without_the_batch_dimension_is_one_row(place: Place, form: str) -> None:
    """With a fixed number of values: tests/pyfunc/test_streaming.py of the plugin."""
    kinds: dict[str, Any] = {
        "any": Schema([ColSpec(Array(DataType.double))]),
        "texts": Schema([ColSpec(Array(DataType.string))]),
        "json": None,
    }
    signature = ModelSignature(Schema([ColSpec("double", "x")]), kinds[form])
    placed, _model = place(Rows(form), signature)
    arrays = [each["predictions"] for each in placed.predict_stream(x=np.ones((1, 1)))]
    if form == "json":
        wanted = [[1, [2]], {"predictions": 3}, [{"q": 1}, {"q": 2}], [0, 1], None, "x"]
        assert [each.shape for each in arrays] == [(1, 1)] * len(wanted)
        assert [json.loads(each.item()) for each in arrays] == wanted
        return
    if form == "texts":
        arrays = [np.char.decode(each.astype("S")) for each in arrays]
    given = [np.atleast_2d(piece) for piece in ROWS[form]()]
    assert [each.tolist() for each in arrays] == [each.tolist() for each in given]


# -- chats ----------------------------------------------------------------------------------------

HELLO: Any = [{"role": "user", "content": "hi é"}, {"role": "user", "content": "NaN"}]


class Completing(ChatModel):
    """Has no `predict_stream`."""

    def predict(self, context: Any, messages: Any, params: Any) -> Any:  # type: ignore[override] # noqa: ARG002
        said = "; ".join(each.content for each in messages)
        choice = ChatChoice(index=0, message=ChatMessage(role="assistant", content=said))
        return ChatCompletionResponse(choices=[choice], model="m", created=1)


class Counting(ChatAgent):
    """Appends a line to a file whenever it is asked."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def predict(  # type: ignore[override]
        self,
        messages: Any,
        context: Any = None,  # noqa: ARG002 - MLflow's
        custom_inputs: Any = None,  # noqa: ARG002 - MLflow's
    ) -> ChatAgentResponse:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{messages[0].content}\n")
        return ChatAgentResponse(messages=[ChatAgentMessage(id="1", role="user", content="ok")])


def test_a_chat_without_a_stream_gives_its_answer_in_one_piece(place: Place) -> None:
    placed, model = place(Completing())
    wanted = model.predict({"messages": HELLO})
    messages = as_bytes([json.dumps(HELLO)])
    answered = placed.predict(messages=messages)["predictions"]
    assert json.loads(answered.item()) == wanted
    pieces = placed.predict_stream(messages=messages)
    assert [json.loads(each["predictions"].item()) for each in pieces] == [wanted]


def test_a_chat_is_asked_once_for_each_request(place: Place, tmp_path: Path) -> None:
    """Others are asked for all that wait together, and again where that was no good."""
    path = tmp_path / "asked"
    placed, _model = place(Counting(str(path)))
    path.unlink(missing_ok=True)
    texts = [f"text {number}" for number in range(60)]
    requests = [
        placed.request(messages=as_bytes([json.dumps([{"role": "user", "content": each}])]))
        for each in texts
    ]
    for together in (requests[:1], requests[1:13], requests[13:]):
        for response in placed.predict_all(*together):
            assert json.loads(answered(response)[0])["messages"][0]["content"] == "ok"
    assert path.read_text().splitlines() == texts
