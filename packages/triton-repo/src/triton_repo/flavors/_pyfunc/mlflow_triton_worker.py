# ruff: noqa: INP001 - no part of the package: the hand-over starts it by itself
"""A model's worker: loads the MLflow model beside it, and asks it for the hand-over, `model.py`.

A process of its own, with the Python, the numpy and the packages of the model; this project is not
installed there. It needs MLflow (mlflow-skinny will do), pandas, numpy and what the model requires.

Where config.pbtxt has the decoupled transaction policy, requests are answered in pieces: those that
`predict_stream` of the model gives, as they come. Each request has a thread meanwhile, as it has in
MLflow's own scoring server. Who wants what `predict` answers says so with the request, and who
wants no more pieces with another one: not every Triton survives that a request is cancelled.

Arguments: the process of the hand-over, the socket to it, and the memory for what either sends.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import ModuleType

    from mlflow_triton_channel import Channel
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_PR_SET_PDEATHSIG = 1
_MLFLOW = ("mlflow", "mlflow-skinny")
#: Where MLflow has the classes that people derive theirs from, and those that are asked by a chat.
_BASES, _CHATS = "mlflow.pyfunc.model", ("ChatModel", "ChatAgent", "ResponsesAgent")
#: A parameter of config.pbtxt: a JSON list of the outputs that have one JSON text a row.
_JSON_OUTPUTS = "mlflow_json_outputs"
#: The parameter of a request that chooses between `predict_stream` and `predict`: true, false.
_STREAM = "mlflow_stream"
#: The name of a request for pieces, and the parameter of another one that ends it.
_ID, _END = "mlflow_stream_id", "mlflow_stream_end"
#: How many requests of an instance are answered in pieces at the same time: a parameter of
#: config.pbtxt. Others wait for their turn.
_STREAMS, _STREAMS_DEFAULT = "mlflow_streams", 32
#: A parameter of config.pbtxt: whether requests may be answered with one prediction, and why.
#: `true` where the model is known to answer each row by itself, `asked` where a user says so.
_JOIN, _KNOWN, _ASKED = "mlflow_join_requests", "true", "asked"
#: How many batches are asked together and one by one before a user's word is taken for it; and
#: which later ones are, too: each so many, and those with a number of rows that is new.
_TRIALS, _AGAIN = 3, 100
#: How far floating-point answers may differ between the two, beside the largest of them: kernels
#: depend on the batch's size.
_CLOSE = 1e-4


class LoadError(Exception):
    """The model cannot be loaded, for a reason that is not its own."""


class Sender(Protocol):
    """Where the answers to one request go."""

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""

    def send(self, response: Response | None, *, final: bool = False) -> None:
        """Send an answer, or a piece of one; None with `final` says that there is no more."""


@dataclass
class Request:
    """What is asked.

    Attributes:
        arrays: the inputs that the request has, by name.
        parameters: its own, as JSON; empty where there are none.
        sender: where the answers go that are sent as they come.
    """

    arrays: Arrays
    parameters: str = ""
    sender: Sender | None = None


@dataclass
class Response:
    """What is answered: the outputs by name, in the order of config.pbtxt, or an error."""

    arrays: Arrays = field(default_factory=dict)
    error: str | None = None


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is not on the model's way to its own modules."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py is not beside {__file__}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Model:
    """The MLflow model of one instance.

    Args:
        config: the deployment's config.pbtxt.
        folder: the logged model.

    Raises:
        LoadError: packages that the model needs are not there, or config.pbtxt has a wrong value;
            other errors are those of the model.
    """

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        _refuse_missing(folder / "requirements.txt")
        _read_what_numpy_2_pickled()
        from mlflow.pyfunc import load_model  # noqa: PLC0415 - it may be missing

        self._model: Any = load_model(str(folder))
        policy = config.get("model_transaction_policy", {})
        self._streams = _Streams(self, config) if policy.get("decoupled") else None
        self._batched = config["max_batch_size"] > 0
        self._inputs = [each["name"] for each in config["input"]]
        self._know(self._model.metadata, config)

    def _know(self, logged: Any, config: dict[str, Any]) -> None:
        """What the model's MLmodel and its classes say of it."""
        classes = _classes(self._model)
        word = _parameter(config, _JOIN).partition(":")[0]
        # until an answer shows otherwise; a chat that was asked twice might act twice
        self._joins = self._batched and word in (_KNOWN, _ASKED) and not _is_chat(classes)
        self._trials = None if word == _KNOWN else _Trials()
        is_streamable = bool(logged.flavors["python_function"].get("streamable"))
        self._has_stream = is_streamable and _has_stream(classes)
        # a function with type hints takes a list
        from_hints = getattr(logged, "_is_signature_from_type_hint", bool)()
        values = _beside("mlflow_triton_values")
        self._given = values.Given(self._inputs, logged.signature, from_hints=from_hints)
        as_json = json.loads(_parameter(config, _JSON_OUTPUTS) or "[]")
        self._wanted = values.Wanted(
            config["output"], logged.signature, batched=self._batched, as_json=as_json
        )

    @property
    def is_decoupled(self) -> bool:
        """Whether requests are answered in pieces, as they come."""
        return self._streams is not None

    def execute(self, requests: Sequence[Request]) -> list[Response] | None:
        """Answer requests, each with a prediction of its own.

        Where the model answers each row by itself, requests that differ in nothing but their rows
        are answered with one prediction.

        Args:
            requests: what Triton has joined.

        Returns:
            One response a request, in the same order; None where they are sent as they come.
        """
        if self._streams is None:
            return self._answers(requests)
        rest = [request for request in requests if not self._streams.takes(request)]
        for request, response in zip(rest, self._answers(rest), strict=True):
            _sender(request).send(response, final=True)
        return None

    def close(self) -> None:
        """End when what is being answered in pieces is at its end."""
        if self._streams is not None:
            self._streams.close()

    def pieces(self, request: Request) -> Generator[Response]:
        """The answer to one request, in pieces.

        Raises:
            BaseException: the model's own, in the midst of it.
        """
        data = self._given.data(self._known(request.arrays), request.parameters)
        params = self._given.params(request.parameters)
        if self._has_stream:
            answer = self._model.predict_stream(data, params=params)
        else:
            answer = self._model.predict(data, params=params)
        if not isinstance(answer, Iterator):
            answer = iter((answer,))
        try:
            for piece in answer:
                yield self._response(self._wanted.arrays(piece, is_piece=True))
        finally:
            if hasattr(answer, "close"):
                answer.close()

    def _answers(self, requests: Sequence[Request]) -> list[Response]:
        responses = [Response()] * len(requests)
        groups: dict[object, list[Member]] = {}
        for place, request in enumerate(requests):
            member = Member(place, self._known(request.arrays), request.parameters)
            groups.setdefault(member.key if self._joins else place, []).append(member)
        for members in groups.values():
            if len(members) == 1 or not self._answer_together(members, responses):
                self._answer_each(members, responses)
        return responses

    def _response(self, outputs: Sequence[NDArray[Any]]) -> Response:
        return Response(dict(zip(self._wanted.names, outputs, strict=True)))

    def _known(self, arrays: Arrays) -> Arrays:
        """The inputs in the order of config.pbtxt."""
        return {name: arrays[name] for name in self._inputs if name in arrays}

    def _answer_together(self, members: list[Member], responses: list[Response]) -> bool:
        """Answer several requests with one prediction; False where each needs its own.

        The answer is split only where each request's own rows can be told. A number of rows that
        fits is not enough: a model may answer two rows for one and none for another.
        """
        if not self._joins:
            return False
        if self._trials is not None and self._trials.are_due(members):
            self._try_together(members, responses)
            return True
        outputs = self._rows_of(members)
        if outputs is None:
            return False
        for member, rows in zip(members, _split(outputs, members), strict=True):
            responses[member.place] = self._response(rows)
        return True

    def _try_together(self, members: list[Member], responses: list[Response]) -> None:
        """Answer each request by itself, and see whether one prediction gives the same rows."""
        alone = self._answer_each(members, responses)
        if not self._joins or any(each is None for each in alone):
            return
        outputs = self._rows_of(members)
        self._joins = outputs is not None and all(
            _is_same(row, other)
            for rows, others in zip(_split(outputs, members), alone, strict=True)
            for row, other in zip(rows, others or (), strict=True)
        )

    def _rows_of(self, members: list[Member]) -> list[NDArray[Any]] | None:
        """The outputs for all rows of several requests; None where rows cannot be told apart."""
        joined = {
            name: np.concatenate([member.arrays[name] for member in members])
            for name in members[0].arrays
        }
        try:
            data, answer = self._asked(joined, members[0].parameters)
            if not _is_of_these_rows(answer, data):
                return None
            if not self._wanted.are_rows(answer):
                self._joins = False
                return None
            outputs: list[NDArray[Any]] = self._wanted.arrays(answer)
        except BaseException:  # noqa: BLE001 - one of them spoils it; which, is found one by one
            return None
        total = sum(member.rows for member in members)
        self._joins = all(len(output) == total for output in outputs)
        return outputs if self._joins else None

    def _answer_each(
        self, members: list[Member], responses: list[Response]
    ) -> list[list[NDArray[Any]] | None]:
        """Answer each request by itself; what was answered, None where that is an error."""
        answered: list[list[NDArray[Any]] | None] = []
        for member in members:
            try:
                outputs = self._predict(member.arrays, member.parameters)
                responses[member.place] = self._response(outputs)
            except BaseException as exc:  # noqa: BLE001 - sys.exit() must not be the others'
                responses[member.place] = _refusal(exc)
                answered.append(None)
                continue
            answered.append(outputs)
            # a model that once answers other rows than it was given may do so at any time
            self._joins = self._joins and all(len(each) == member.rows for each in outputs)
        return answered

    def _predict(self, arrays: Arrays, parameters: str) -> list[NDArray[Any]]:
        _, answer = self._asked(arrays, parameters)
        answered: list[NDArray[Any]] = self._wanted.arrays(answer)
        return answered

    def _asked(self, arrays: Arrays, parameters: str) -> tuple[Any, Any]:
        """What the model was given, and what it answered."""
        data = self._given.data(arrays, parameters)
        params = self._given.params(parameters)
        answer = self._model.predict(data, params=params)
        if isinstance(answer, Iterator):
            raise TypeError(
                "the model answers in pieces (a generator), and was asked for one answer; deploy "
                "it with -C stream=true, and ask predict_stream"
            )
        return data, answer


class _Streams:
    """Answers requests in pieces, a thread each.

    It never waits for one itself: behind a request that waits, there may be one that ends another.

    Args:
        model: whose requests.
        config: its config.pbtxt.
    """

    def __init__(self, model: Model, config: dict[str, Any]) -> None:
        said = _parameter(config, _STREAMS)
        try:
            at_once = max(int(said or _STREAMS_DEFAULT), 1)
        except ValueError as exc:
            raise LoadError(
                f"parameters.{_STREAMS} of config.pbtxt is {said!r}; a number belongs there"
            ) from exc
        self._model = model
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix=_STREAMS)
        self._left: dict[str, Event] = {}

    def takes(self, request: Request) -> bool:
        """See to it that a request is answered; False where one answer is wanted."""
        asked = json.loads(request.parameters or "{}")
        if asked.get(_STREAM) is False:
            return False
        if _END in asked:
            _sender(request).send(self._ended(asked[_END]), final=True)
            return True
        name, left = asked.get(_ID, ""), Event()
        if name:
            self._left[name] = left
        self._threads.submit(self._answer, request, name, left)
        return True

    def close(self) -> None:
        """Wait for the last piece."""
        self._threads.shutdown()

    def _ended(self, name: str) -> Any:
        """Have a request's answer end with the piece that is being made; an error without one."""
        left = self._left.get(name)
        if left is None:
            return _refusal(LookupError(f"this instance answers no request {name!r}"))
        left.set()
        return None

    def _answer(self, request: Request, name: str, left: Event) -> None:
        refusal = None
        try:
            self._send_pieces(request, left)
        except BaseException as exc:  # noqa: BLE001 - the model's own: sys.exit() is one, too
            refusal = _refusal(exc)
        finally:
            self._left.pop(name, None)
        _sender(request).send(refusal, final=True)

    def _send_pieces(self, request: Request, left: Event) -> None:
        sender = _sender(request)
        if left.is_set() or sender.is_cancelled:
            return
        with closing(self._model.pieces(request)) as pieces:
            for response in pieces:
                if left.is_set() or sender.is_cancelled:
                    break
                sender.send(response)


def _sender(request: Request) -> Sender:
    if request.sender is None:
        raise AssertionError("a request to a decoupled model has a sender")
    return request.sender


def _parameter(config: dict[str, Any], name: str) -> str:
    said: str = config.get("parameters", {}).get(name, {}).get("string_value", "")
    return said


def _refuse_missing(requirements: Path) -> None:
    """Make sure that what the model was logged with is here: what it imports late would be missed.

    Other versions of it are MLflow's to warn of.

    Raises:
        LoadError: something is not.
    """
    needed = ["mlflow-skinny", "pandas"]
    if requirements.is_file():
        needed += requirements.read_text("utf-8").splitlines()
    missing = [line.strip() for line in needed if not _is_here(line)]
    if missing:
        wanted = " ".join(f"'{each}'" for each in missing)
        raise LoadError(
            f"the server's Python lacks what this model needs: {', '.join(missing)}. Deploy it "
            "with an environment of its own (-C env=pack), install it on the server (pip install "
            f"{wanted}), or start the embedded server with what the model needs "
            "(triton-local --for-model URI)"
        )


def _read_what_numpy_2_pickled() -> None:
    """Give the modules that numpy 2 has renamed their new names, where this is numpy 1.

    Models are pickled with the newest; the Python backend of Tritons up to 24.x needs numpy 1,
    which itself has but some of these names.
    """
    if not np.__version__.startswith("1."):
        return
    for name in ("numeric", "fromnumeric", "function_base", "numerictypes", "records", "umath"):
        new = f"numpy._core.{name}"
        sys.modules.setdefault(new, importlib.import_module(f"numpy.core.{name}"))


def _classes(model: Any) -> Sequence[type]:
    """Those of the model that somebody wrote, its own first; none where MLflow does not show it."""
    try:
        return type(model.get_raw_model()).__mro__
    except (AttributeError, NotImplementedError):
        return ()


def _is_chat(classes: Sequence[type]) -> bool:
    """Whether it takes the first row that it is given, and leaves the others."""
    return any(each.__module__ == _BASES and each.__name__ in _CHATS for each in classes)


def _has_stream(classes: Sequence[type]) -> bool:
    """Whether its predict_stream is its own; MLflow's, which chats have, says only that it is not.

    MLmodel calls every chat streamable.
    """
    owner = next((each for each in classes if "predict_stream" in vars(each)), None)
    return owner is None or owner.__module__ != _BASES


def _is_here(line: str) -> bool:
    """Whether a line of requirements.txt is no requirement of this Python, or is installed."""
    requirement, _, marker = line.partition(";")
    found = re.match(r"\s*([A-Za-z0-9][\w.-]*)", requirement)
    if found is None or (marker and not _applies(marker)):
        return True
    # all of it has what the smaller one has
    names = _MLFLOW if found[1] in _MLFLOW else (found[1],)
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            return bool(metadata.version(name))
    return False


def _applies(marker: str) -> bool:
    try:
        from packaging.markers import Marker  # noqa: PLC0415 - MLflow needs it, too
    except ImportError:
        return False
    return Marker(marker.partition(" #")[0].strip()).evaluate()


class _Trials:
    """Which batches are asked together and one by one, where a user says that they may be joined.

    A model that answers as many rows as it was given does not prove the word by that.
    """

    def __init__(self) -> None:
        self._batches = 0
        self._rows: set[int] = set()

    def are_due(self, members: list[Member]) -> bool:
        """Whether these requests are one of them; counts them."""
        rows = {member.rows for member in members}
        is_new = not rows <= self._rows
        self._rows |= rows
        self._batches += 1
        return is_new or self._batches <= _TRIALS or self._batches % _AGAIN == 0


class Member:
    """One request of a batch."""

    def __init__(self, place: int, arrays: Arrays, parameters: str) -> None:
        self.place = place
        self.arrays = arrays
        self.parameters = parameters

    @property
    def key(self) -> object:
        """What requests that are answered together have in common."""
        shapes = tuple((name, array.shape[1:]) for name, array in self.arrays.items())
        return shapes, self.parameters

    @property
    def rows(self) -> int:
        """How many it has."""
        return len(next(iter(self.arrays.values()), ()))


def _split(outputs: list[NDArray[Any]], members: list[Member]) -> list[list[NDArray[Any]]]:
    """Each request's rows of the outputs for all of them."""
    ends = np.cumsum([member.rows for member in members])
    return [
        [output[end - member.rows : end] for output in outputs]
        for member, end in zip(members, ends, strict=True)
    ]


def _is_of_these_rows(answer: Any, data: Any) -> bool:
    """Whether an answer with an index (pandas') is of the rows that were given."""
    if not hasattr(answer, "iloc") or not hasattr(data, "iloc"):
        return True
    return bool(answer.index.equals(data.index))


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind == "f":
        finite = np.abs(other[np.isfinite(other)])
        scale = float(finite.max()) if finite.size else 0.0
        return bool(np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE * scale, equal_nan=True))
    return bool(np.array_equal(one, other))


def _refusal(exc: BaseException) -> Response:
    try:
        text = str(exc).strip()
    except Exception:  # noqa: BLE001 - a model's exception may fail at that, too
        text = ""
    return Response(error=f"{type(exc).__name__}: {text}" if text else type(exc).__name__)


# -- the process --------------------------------------------------------------------------------


class _Answers:
    """Where the answers to one request go: to the hand-over, with the request's number."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self.is_cancelled = False

    def send(self, response: Response | None, *, final: bool = False) -> None:
        """See `Sender`."""
        message: dict[str, Any] = {"to": self._number, "final": final}
        if response is None:
            message["empty"] = True
        elif response.error is not None:
            message["error"] = response.error
        with suppress(OSError):  # the hand-over is gone, and so is this process at once
            self._channel.send(message, [] if response is None else [*response.arrays.values()])


def main(arguments: Sequence[str]) -> int:
    """Load the model and answer until the hand-over has enough of it, or is gone."""
    parent, connection, *memories = map(int, arguments)
    # the hand-over may have died before this is said, and even while the model is busy
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    # Ctrl-C at the server's terminal, and SIGTERM to its group, are the server's; it asks its
    # models to end
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    for descriptor in (connection, *memories):  # programs that the model starts do not inherit them
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - os'
    # the folder of this file has a `model` that is not the model's
    here = str(Path(__file__).parent)
    sys.path[:] = [path for path in sys.path if path != here]
    wire = _beside("mlflow_triton_channel")
    given, answered = (wire.Memory(each) for each in memories) if memories else (None, None)
    channel: Channel = wire.Channel(socket.socket(fileno=connection), answered, given)
    order, _ = channel.receive()
    try:
        model = Model(order["config"], Path(order["folder"]))
    except BaseException as exc:  # noqa: BLE001 - the model's own: sys.exit() is one, too
        if not isinstance(exc, LoadError):
            traceback.print_exc()
        text = str(exc) if isinstance(exc, LoadError) else _refusal(exc).error
        channel.send({"failed": text})
        return 1
    channel.send({"loaded": True})
    with suppress(EOFError):
        _serve(model, channel)
    return 0


class _Reader:
    """Takes messages in a thread of its own: a request that is busy keeps no cancel waiting.

    Args:
        channel: where they come from.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: SimpleQueue[tuple[dict[str, Any], list[NDArray[Any]]] | None] = (
            SimpleQueue()
        )
        # an entry goes by itself when its request is answered
        self.asking: WeakValueDictionary[int, _Answers] = WeakValueDictionary()
        Thread(target=self._read, daemon=True).start()

    def receive(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """See `Channel.receive`."""
        found = self._requests.get()
        if found is None:
            raise EOFError
        return found

    def _read(self) -> None:
        try:
            while True:
                message, arrays = self._channel.receive()
                sender = self.asking.get(message.get("cancel", -1))
                if sender is not None:
                    sender.is_cancelled = True
                elif "cancel" not in message:
                    self._requests.put((message, arrays))
        finally:
            self._requests.put(None)


def _serve(model: Model, channel: Channel) -> None:
    """Answer until there is nobody to answer to.

    Raises:
        EOFError: the hand-over is gone.
    """
    reader = _Reader(channel) if model.is_decoupled else None
    while True:
        message, arrays = (reader or channel).receive()
        channel.trim()
        if "close" in message:
            model.close()
            return
        rest = iter(arrays)
        requests = [
            Request({name: next(rest) for name in names}, parameters)
            for parameters, names in message["requests"]
        ]
        if reader is not None:
            for request, number in zip(requests, message["numbers"], strict=True):
                sender = _Answers(channel, number)
                request.sender = reader.asking[number] = sender
        responses = model.execute(requests)
        if responses is not None:
            _send(channel, responses)


def _send(channel: Channel, responses: Sequence[Response]) -> None:
    answers = [each.error if each.error is not None else len(each.arrays) for each in responses]
    arrays = [array for each in responses for array in each.arrays.values()]
    channel.send({"answers": answers}, arrays)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
