# ruff: noqa: INP001 - no part of the package: Triton's stub imports it by itself, as `model`
"""A model of Triton's Python backend: hands requests over to the model's own process, the worker.

Placed by triton-repo as `model.py` of a version whose `mlflow/` is the model. It runs in Triton's
stub and needs nothing but the stub's own Python (3.8 or newer) and its numpy. The worker,
`mlflow_triton_worker.py`, has the model. It comes and goes with the stub: it dies when the stub
does, however that ends. One that dies by itself fails the requests that it had, and is started
again, with a pause that grows.

What the worker prints is a line of Triton's log with the model's name before it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils
from mlflow_triton_channel import Channel, Memory, make_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    #: A request's parameters, as JSON, and its tensors; what it is answered: an error, or outputs.
    _Request = tuple[str, dict[str, NDArray[Any]]]
    _Answer = tuple[str | None, list[NDArray[Any]]]

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
#: What is wrong with the environment that was packed for this model: its `bin/activate` sets it.
_UNFIT = "MLFLOW_TRITON_ENVIRONMENT"
#: The parameter of a request with the values of MLflow's `params`, and the value that only asks
#: whether the model's process lives.
_PARAMS, _PING = "mlflow_params", "mlflow-triton-ping"
#: Names the Python of an environment that was made for the model, where there is one.
_ENVIRONMENT = "mlflow_triton_environment.json"
#: Seconds until a worker that died is started again: at first, and at most. It is the first one
#: again where it lived for so many times the last one.
_PAUSE_S, _LONGEST_PAUSE_S, _LIVED_PAUSES = 0.1, 60.0, 20
#: How long a worker may take to end when it is told to.
_ENDS_WITHIN_S = 10.0
#: How long its last words are waited for when it has ended; a child of its may have its stdout.
_TELLS_WITHIN_S = 1.0
#: The longest line of a worker's that reaches the log in one piece.
_LINE_BYTES = 16 * 1024


class TritonPythonModel:
    """What the Python backend makes one of for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the worker, and wait until it has loaded the model.

        Args:
            args: `model_config` as JSON, `model_repository` (the deployment's directory, on this
                machine), `model_version`, and the instance's kind and device.

        Raises:
            TritonModelException: the model does not load; in the worker's words.
        """
        if _UNFIT in os.environ:
            raise pb_utils.TritonModelException(os.environ[_UNFIT])
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        self._outputs = [each["name"] for each in config["output"]]
        decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
        self._streams = _Streams(self) if decoupled else None
        python, environ = _python(folder)
        self._worker = _Worker(
            name=config["name"],
            command=[*python, str(folder / "mlflow_triton_worker.py")],
            order={"config": config, "folder": str(folder / "mlflow")},
            environ={**environ, **_devices(args)},
            listener=self._streams,
        )
        failure = self._worker.start()
        if failure:
            raise pb_utils.TritonModelException(failure)

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Have the worker answer requests.

        Args:
            requests: what Triton has joined.

        Returns:
            One response a request, in the same order; None where they are sent as they come.
        """
        if self._streams is not None:
            self._streams.ask(requests, self._worker)
            return None
        responses, asked = self.readable(requests)
        if not asked:
            return responses
        try:
            answers = self._worker.ask([each for _, each in asked])
        except _WorkerDiedError as exc:
            answers = [refusal(str(exc)) for _ in asked]
        else:
            answers = [self.response(error, arrays) for error, arrays in answers]
        for (place, _), response in zip(asked, answers):  # noqa: B905 - Python 3.8
            responses[place] = response
        return responses

    def is_ready(self) -> bool:
        """Whether there is a worker to answer; Tritons of 26.x ask it."""
        return not self._worker.problem

    def finalize(self) -> None:
        """End the worker when it has answered what it was asked."""
        self._worker.close()

    def readable(self, requests: Sequence[Any]) -> tuple[list[Any], list[tuple[int, _Request]]]:
        """What requests say, with their places, and the responses of those that have theirs."""
        responses: list[Any] = [None] * len(requests)
        asked = []
        for place, request in enumerate(requests):
            try:
                # servers before 23.07 have no parameters of requests
                parameters = getattr(request, "parameters", str)() or ""
                if _PING in parameters and json.loads(parameters).get(_PARAMS) == _PING:
                    responses[place] = self._alive()
                    continue
                tensors = {each.name(): each.as_numpy() for each in request.inputs()}
                asked.append((place, (parameters, tensors)))
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is this request's
                responses[place] = refusal(f"{type(exc).__name__}: {exc}")
        return responses, asked

    def response(self, error: str | None, arrays: Sequence[NDArray[Any]]) -> Any:
        """Triton's response of what the worker answered."""
        if error is not None:
            return refusal(error)
        tensors = [pb_utils.Tensor(*each) for each in zip(self._outputs, arrays)]  # noqa: B905
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _alive(self) -> Any:
        problem = self._worker.problem
        # an error only where there is a problem: Triton counts errors, and many wake people
        return refusal(problem) if problem else pb_utils.InferenceResponse(output_tensors=[])


def refusal(text: str) -> Any:
    """Triton's response of an error."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(readable))


class _Streams:
    """Requests that are answered in pieces: who waits for which.

    Args:
        model: whose requests.
    """

    def __init__(self, model: TritonPythonModel) -> None:
        self._model = model
        self._lock = Lock()
        self._senders: dict[int, Any] = {}
        self._cancelled: set[int] = set()
        self._number = 0

    def ask(self, requests: Sequence[Any], worker: _Worker) -> None:
        """Hand requests over; their answers come to `take`."""
        responses, asked = self._model.readable(requests)
        for request, response in zip(requests, responses):  # noqa: B905
            if response is not None:
                _finish(request.get_response_sender(), response)
        numbers = []
        with self._lock:
            for place, _ in asked:
                self._number += 1
                numbers.append(self._number)
                self._senders[self._number] = requests[place].get_response_sender()
        if not asked:
            return
        try:
            worker.hand_over([each for _, each in asked], numbers)
        except _WorkerDiedError as exc:
            for number in numbers:
                self._end(number, str(exc))

    def take(self, message: dict[str, Any], arrays: list[NDArray[Any]]) -> int | None:
        """Send an answer, or a piece of it; the number of a request that wants no more of it."""
        number, error = message["to"], message.get("error")
        with self._lock:
            sender = self._senders.get(number)
        if sender is None:
            return None
        # servers before 23.10 do not know
        with suppress(Exception):  # the backend's own; whether the caller left is then not known
            if not message["final"] and getattr(sender, "is_cancelled", bool)():
                return self._no_more_of(number)
        if error is not None or message.get("empty"):
            self._end(number, error)
            return None
        try:
            sender.send(self._model.response(None, arrays))
        except Exception as exc:  # noqa: BLE001 - the backend's own
            self._end(number, f"{type(exc).__name__}: {exc}")
            return self._no_more_of(number)
        if message["final"]:
            self._end(number, None)
        return None

    def fail(self, text: str) -> None:
        """Answer all that wait: nobody else will."""
        with self._lock:
            numbers = list(self._senders)
        for number in numbers:
            self._end(number, text)

    def _no_more_of(self, number: int) -> int | None:
        with self._lock:
            if number in self._cancelled:
                return None
            self._cancelled.add(number)
        return number

    def _end(self, number: int, error: str | None) -> None:
        with self._lock:
            sender = self._senders.pop(number, None)
            self._cancelled.discard(number)
        if sender is not None:
            with suppress(Exception):  # the caller cannot be told
                sender.send(None if error is None else refusal(error), flags=_FINAL)


def _finish(sender: Any, response: Any) -> None:
    """Send a request's only response, and then that it was the last.

    In two steps: a sender that fails at the last one (memory is short) takes nothing more, and
    Triton never unloads a version that has a request without its end.
    """
    problem = None
    try:
        sender.send(response)
    except Exception as exc:  # noqa: BLE001 - the backend's own
        problem = refusal(f"{type(exc).__name__}: {exc}")
    sender.send(problem, flags=_FINAL)


class _WorkerDiedError(Exception):
    """Nobody answers: the worker died, and another one is not there yet."""


class _Life:
    """One process of a worker: from its start to its end.

    Args:
        command: what runs it, without the descriptors.
        environ: its environment.
        name: of the model.
        has_memory: whether large arrays go through memory: for one message at a time.
    """

    def __init__(
        self, command: list[str], environ: dict[str, str], name: str, *, has_memory: bool
    ) -> None:
        ours, its = socket.socketpair()
        descriptors = [its.fileno()]
        memories: list[Memory] = []
        opened: list[int] = []
        if has_memory:
            with suppress(OSError):  # without memory, the socket carries large arrays, too
                opened += [make_memory(f"{name}-given")]
                opened += [make_memory(f"{name}-answered")]
                memories = [Memory(descriptor) for descriptor in opened]
                descriptors += opened
        self.channel = Channel(ours, *memories, copies=False)
        self._opened = opened
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own script
                [*command, str(os.getpid()), *map(str, descriptors)],
                env=environ,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except BaseException:
            self.close()
            raise
        finally:
            its.close()
        self._last: deque[str] = deque(maxlen=1)
        self._log = Thread(target=_log, args=(self.process.stdout, name, self._last), daemon=True)
        self._log.start()

    def last_words(self) -> str:
        """The last line that it printed, where it has ended."""
        self._log.join(_TELLS_WITHIN_S)
        return self._last[0] if self._last else ""

    def end(self, within_s: float) -> str:
        """Wait until it has ended, and kill it if it has not; how it ended."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return _described(code)

    def close(self) -> None:
        """Let go of what it was reached by."""
        self.channel.close()
        for descriptor in self._opened:
            os.close(descriptor)
        self._opened = []


class _Worker:
    """The model's process, and the next one when it dies.

    Args:
        name: of the model, for the log.
        command: what runs it, without the descriptors.
        order: its first message.
        environ: its environment.
        listener: takes answers as they come; None where each batch waits for its own.
    """

    def __init__(
        self,
        *,
        name: str,
        command: list[str],
        order: dict[str, Any],
        environ: dict[str, str],
        listener: _Streams | None,
    ) -> None:
        self._command = command
        self._name = name
        self._order = order
        self._environ = environ
        self._listener = listener
        #: The one that answers, and the one that was started last.
        self._life: _Life | None = None
        self._newest: _Life | None = None
        self._ended = ""
        self._lived_s = 0.0
        self._started, self._closing = Event(), Event()
        # it starts every process: the system ends them with the thread that did
        self._keeper = Thread(target=self._keep, daemon=True)

    @property
    def problem(self) -> str:
        """Why it cannot answer now; empty where it can."""
        life = self._life
        if life is not None and life.process.poll() is None:
            return ""
        return self._died(self._ended)

    def start(self) -> str:
        """Start it and wait until the model is loaded; why it is not, or an empty string."""
        self._keeper.start()
        self._started.wait()
        return "" if self._life is not None else self._ended

    def ask(self, requests: list[_Request]) -> list[_Answer]:
        """Ask it and wait; an error or the outputs for each request.

        Raises:
            _WorkerDiedError: it died before it had answered, or is not there.
        """
        life = self._alive()
        try:
            life.channel.trim()
            life.channel.send(*_message(requests))
            message, arrays = life.channel.receive()
        except (OSError, EOFError) as exc:
            raise _WorkerDiedError(self._died(life.end(_ENDS_WITHIN_S))) from exc
        except BaseException:  # memory is short: its next answer would be to this question
            life.process.kill()
            life.channel.shut()
            raise
        rest = iter(arrays)
        return [
            (answer, []) if isinstance(answer, str) else (None, [next(rest) for _ in range(answer)])
            for answer in message["answers"]
        ]

    def hand_over(self, requests: list[_Request], numbers: list[int]) -> None:
        """Ask it; the answers, by these numbers, come to the listener.

        Raises:
            _WorkerDiedError: it is not there.
        """
        life = self._alive()
        message, arrays = _message(requests)
        try:
            life.channel.send({**message, "numbers": numbers}, arrays)
        except OSError as exc:
            raise _WorkerDiedError(self._died(life.end(_ENDS_WITHIN_S))) from exc

    def close(self) -> None:
        """Have it end when it has answered."""
        self._closing.set()
        life = self._life
        if life is None:
            if self._newest is not None:
                self._newest.process.kill()
        else:
            with suppress(OSError):
                life.channel.send({"close": True})
            if self._listener is None:  # otherwise pieces are on their way that somebody waits for
                life.end(_ENDS_WITHIN_S)
        self._keeper.join()

    def _alive(self) -> _Life:
        life = self._life
        if life is None:
            raise _WorkerDiedError(self._died(self._ended))
        return life

    def _died(self, how: str) -> str:
        return f"the process of this model {how}; another one is being started"

    def _keep(self) -> None:
        """Start it, again and again."""
        pause_s = _PAUSE_S
        while not self._closing.is_set():
            self._lived_s = 0.0
            try:
                self._ended = self._live_once()
            except Exception as exc:  # noqa: BLE001 - no process, thread or memory to be had
                self._ended = f"does not start: {type(exc).__name__}: {exc}"
            if self._listener is not None:
                self._listener.fail(self._died(self._ended))
            if self._closing.is_set():
                return
            if not self._started.is_set():  # Triton is told, and wants no more of it
                self._started.set()
                return
            if self._lived_s > _LIVED_PAUSES * pause_s:
                pause_s = _PAUSE_S
            text = f"the model's process {self._ended}; another one starts in {pause_s:g} s"
            _say(self._name, text)
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _live_once(self) -> str:
        """Start a process and wait for its end; how it was.

        Raises:
            OSError: there is none to be had.
        """
        has_memory = self._listener is None
        life = self._newest = _Life(self._command, self._environ, self._name, has_memory=has_memory)
        try:
            if self._closing.is_set():  # since the loop asked; nobody waits for this process
                life.process.kill()
            failure = self._load(life)
            if failure is not None:
                return f"does not start: {failure}" if self._started.is_set() else failure
            began_s = time.monotonic()
            self._life = life
            self._started.set()
            if self._closing.is_set():  # since then; nobody has told this process to end
                life.process.kill()
            how = self._live(life)
            self._lived_s = time.monotonic() - began_s
            return how
        finally:
            self._life = None
            life.process.kill()  # it has ended, unless an error brought us here
            life.close()

    def _load(self, life: _Life) -> str | None:
        """Have it load the model; why it does not."""
        try:
            life.channel.send(self._order)
            message, _ = life.channel.receive()
        except (OSError, EOFError):
            how, words = life.end(_ENDS_WITHIN_S), life.last_words()
            return f"{how}: {words}" if words else how
        failure: str | None = message.get("failed")
        if failure is not None:
            life.end(_ENDS_WITHIN_S)
        return failure

    def _live(self, life: _Life) -> str:
        """Wait for its end; how it was."""
        if self._listener is None:
            life.process.wait()
        else:
            # a child of its that outlives it would keep the socket open
            Thread(target=_shut_at_end, args=(life,), daemon=True).start()
            with suppress(OSError, EOFError):
                while True:
                    number = self._listener.take(*life.channel.receive())
                    if number is not None:
                        # not here: who sends may wait for the worker, and that for who reads here
                        Thread(target=_cancel, args=(life, number), daemon=True).start()
        return life.end(_ENDS_WITHIN_S)


def _shut_at_end(life: _Life) -> None:
    life.process.wait()
    life.channel.shut()


def _cancel(life: _Life, number: int) -> None:
    with suppress(OSError):
        life.channel.send({"cancel": number})


def _message(requests: list[_Request]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    message = {"requests": [[parameters, [*tensors]] for parameters, tensors in requests]}
    return message, [array for _, tensors in requests for array in tensors.values()]


def _python(folder: Path) -> tuple[list[str], dict[str, str]]:
    """What runs the worker of a version, and the environment variables that it has.

    Raises:
        TritonModelException: the Python that was made for the model is not here.
    """
    try:
        own = json.loads((folder / _ENVIRONMENT).read_text("utf-8"))["python"]
    except FileNotFoundError:
        return [_python_of_stub(), "-u"], {**os.environ}
    if not os.access(own, os.X_OK):
        raise pb_utils.TritonModelException(
            f"the environment that was made for this model, {own}, is not on the server's machine "
            "any more: update the deployment with the model's URI, which makes it again"
        )
    root = Path(own).parents[1]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ.update(VIRTUAL_ENV=str(root), PATH=f"{root / 'bin'}{os.pathsep}{environ['PATH']}")
    # the embedded server's stubs find their libpython there
    kept = [path for path in libraries if Path(path).name != "libpython"]
    environ["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    # nothing is compiled into the repository, nor into what other environments share
    return [own, "-I", "-u", "-X", f"pycache_prefix={root / 'bytecode'}"], environ


def _python_of_stub() -> str:
    """The Python of this stub, as a program: the stub itself is none."""
    names = (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3")
    for name in names:
        beside = os.path.join(sys.prefix, "bin", name)  # noqa: PTH118 - as it is, not resolved
        if os.access(beside, os.X_OK):
            return beside
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise pb_utils.TritonModelException(
            f"there is no {names[0]} in {sys.prefix}/bin or on PATH to run the model in"
        )
    return found


def _devices(args: dict[str, str]) -> dict[str, str]:
    """The GPU that Triton gave this instance, as the only one that the worker sees."""
    if args.get("model_instance_kind") != "GPU":
        return {}
    device = args.get("model_instance_device_id", "0")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen:
        with suppress(IndexError, ValueError):
            device = seen.split(",")[int(device)].strip()
    return {"CUDA_VISIBLE_DEVICES": device}


def _described(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (is memory short?)" if -code == signal.SIGKILL else "")


def _log(pipe: Any, name: str, last: deque[str]) -> None:
    """Bring what a worker prints to Triton's log, line by line."""
    with pipe:
        for line in iter(lambda: pipe.readline(_LINE_BYTES), b""):
            text = line.decode("utf-8", "replace").rstrip("\n")
            _say(name, text)
            if text.strip():
                last.append(text.strip())


def _say(name: str, text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{name}: {text}\n".encode("utf-8", "replace"))
