"""Triton servers behind one small interface, whichever protocol they speak."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mlflow_triton_plugin.errors import (
    GoldenCheckError,
    ModelLoadError,
    ModelNotReadyError,
    ServerUnavailableError,
    TritonServerError,
)
from mlflow_triton_plugin.security import OPEN, Access
from mlflow_triton_plugin.server._deadline import Deadline
from mlflow_triton_plugin.server._liveness import can_be_asked, death_of

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Collection,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from numpy.typing import NDArray

    from mlflow_triton_plugin.errors import ModelProcessDiedError
    from mlflow_triton_plugin.predict import ModelSchema
    from mlflow_triton_plugin.settings import Endpoint

__all__ = [
    "InferResult",
    "ModelState",
    "ServerFacts",
    "TritonServer",
    "TritonServers",
    "open_server",
]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Triton's words where its client of S3 got no answer. Triton 2.51 has been seen to ask for a
#: bucket whose name was one odd byte, once in a thousand loads.
_NO_STORE = "Could not get MetaData for bucket"

#: Between two looks at a server that is unloading; unload_model itself returns at once.
_POLL_S = 0.02
#: How long other commands may go on removing files under a server that lists them.
_RACE_S = 5.0
#: A dead process takes a second to be noticed, and many may have died together.
_PINGS_AT_ONCE = 64


@dataclass(frozen=True)
class ModelState:
    """One line of the repository index.

    Attributes:
        name: the model.
        version: the version, or an empty string for a directory that was never loaded.
        state: `READY`, `UNAVAILABLE`, `LOADING`, `UNLOADING`, or an empty string.
        reason: why, in Triton's words.
        endpoint: of the server whose index it is, as messages name it; empty where nobody said so.
    """

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
    endpoint: str = ""


@dataclass(frozen=True)
class InferResult:
    """What a model answered: the version that did, and its outputs by name."""

    version: str
    outputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself.

    Attributes:
        endpoint: how messages name it.
        name: Triton's `--id`, `triton` by default.
        version: Triton's, `2.51.0`.
    """

    endpoint: str
    name: str
    version: str

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers; none where it is no release."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else ()


class TritonServer(Protocol):
    """One Triton server. Every call has a deadline.

    Raises, all of them: `ServerUnavailableError`, `ServerTimeoutError`, `ServerAccessError`, and
    `TritonServerError` where Triton says something unexpected.
    """

    @property
    def endpoint(self) -> str:
        """How messages name the server."""

    @property
    def loads_paths(self) -> bool:
        """Whether a model's name may be a path below the root; Triton's HTTP routes say no."""

    def check(self) -> None:
        """Make sure that a Triton answers here."""

    def facts(self) -> ServerFacts:
        """What it says of itself."""

    def load(self, model: str, config: str | None, timeout_s: float) -> None:
        """Load a model, and wait until Triton has done it.

        Args:
            model: its name.
            config: JSON of a ModelConfig that stands in for config.pbtxt this once, or None.
            timeout_s: deadline.

        Raises:
            ModelLoadError: Triton refused; what was READY before still serves, but for an ensemble
                that does not go with its members.
        """

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        """Ask Triton to unload a model; it goes on serving requests in flight meanwhile.

        Triton answers at once, but for a model that is loading: then when that is done.
        """

    def index(self) -> list[ModelState]:
        """Every model of the repository, with its versions' states."""

    def schema(self, model: str, version: str = "") -> ModelSchema:
        """A model's inputs and outputs, the batch dimension included.

        Raises:
            ModelUnknownError: it is not loaded.
        """

    def infer(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, NDArray[Any]],
        schema: ModelSchema,
        parameters: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> InferResult:
        """Send one request.

        Args:
            model: whom to ask.
            version: which one of those that serve, or an empty string.
            tensors: by input name.
            schema: what the model takes.
            parameters: of the request; for a `python_function` see `predict.request_parameters`.
            timeout_s: deadline; None for that of all requests.

        Raises:
            ModelUnknownError: the model is not loaded.
            RequestRefusedError: Triton or the model refused the request, or one that answers in
                pieces gave another number than one.
        """

    def stream(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, NDArray[Any]],
        schema: ModelSchema,
        parameters: Mapping[str, str] | None = None,
    ) -> Generator[InferResult]:
        """Send one request, and take its answers as they come; see `infer`.

        The request is sent with the first `next`. Who closes the iterator cancels it where the
        server survives that, or has the model end it (see `_stream`). The deadline is for each
        answer.

        Raises:
            RequestRefusedError: also in the midst of it.
        """

    def close(self) -> None:
        """Let the connection go."""


def open_server(endpoint: Endpoint, *, timeout_s: float, access: Access = OPEN) -> TritonServer:
    """Make a client for one endpoint; nothing is sent yet.

    Raises:
        SettingsError: the endpoint is an HTTP one, and its client is not installed.
    """
    if endpoint.scheme in ("http", "https"):
        from mlflow_triton_plugin.server._http import HttpServer  # noqa: PLC0415 - an extra

        return HttpServer(endpoint, timeout_s, access)
    from mlflow_triton_plugin.server._grpc import GrpcServer  # noqa: PLC0415 - loads grpc

    return GrpcServer(endpoint, timeout_s, access)


class TritonServers:
    """Servers that share one model repository: each loads every deployment."""

    def __init__(self, servers: Iterable[TritonServer]) -> None:
        self._servers = list(servers)

    @classmethod
    def open(
        cls, endpoints: Iterable[Endpoint], *, timeout_s: float, access: Access = OPEN
    ) -> TritonServers:
        """Make clients for these endpoints; nothing is sent yet.

        Raises:
            SettingsError: one is an HTTP one, and its client is not installed.
        """
        return cls(
            open_server(endpoint, timeout_s=timeout_s, access=access) for endpoint in endpoints
        )

    def reachable(self) -> TritonServers:
        """Those that are there, perhaps none.

        Raises:
            ServerTimeoutError: one is there and does not answer; what it is doing is not known.
        """

        def is_there(server: TritonServer) -> bool:
            try:
                server.check()
            except ServerUnavailableError:
                return False
            return True

        return TritonServers(compress(self._servers, self._each(is_there)))

    @property
    def endpoints(self) -> str:
        """How messages name them."""
        return ", ".join(server.endpoint for server in self._servers)

    def check(self) -> None:
        """Make sure that every one answers.

        Raises:
            ServerUnavailableError: one does not.
        """
        self._each(lambda server: server.check())

    def facts(self) -> list[ServerFacts]:
        """What each says of itself."""
        return self._each(lambda server: server.facts())

    def load(
        self, model: str, *, config: str | None, versions: Sequence[int], timeout_s: float
    ) -> list[ModelState]:
        """Load a model on every server, and see it READY there.

        Args:
            model: its name.
            config: see `TritonServer.load`.
            versions: those that must be READY; empty where any will do.
            timeout_s: deadline for each server.

        Returns:
            The states of its versions, of all servers together.

        Raises:
            ModelLoadError: one server refused.
            ModelNotReadyError: one server accepted it and does not serve it.
        """

        def load(server: TritonServer) -> list[ModelState]:
            _load(server, model, config, timeout_s)
            states = _states_of(server, model)
            if _were_overtaken(states, versions):
                _logger.warning("another load at %s undid that of %s", server.endpoint, model)
                _load(server, model, config, timeout_s)
                states = _states_of(server, model)
            _require_ready(server, model, versions, states)
            return states

        return [state for states in self._each(load) for state in states]

    @property
    def load_paths(self) -> bool:
        """Whether every server takes a path below the root for a model's name."""
        return all(server.loads_paths for server in self._servers)

    def try_apart(
        self,
        model: str,
        apart: str,
        *,
        config: str | None,
        timeout_s: float,
        check: Callable[[TritonServer, str], None],
    ) -> None:
        """Load a model by its path, see whether it is good, and unload it; nobody else meets it.

        Args:
            model: what messages call it.
            apart: the path of its directory below the repository's root.
            config: see `TritonServer.load`.
            timeout_s: deadline of each server's load.
            check: asks it, and raises where it is no good.

        Raises:
            ModelLoadError: one server refused.
        """

        def attempt(server: TritonServer) -> None:
            try:
                _load(server, apart, config, timeout_s)
                check(server, apart)
            except BaseException:
                with suppress(TritonServerError):  # it is the first error that counts
                    server.unload(apart, timeout_s)
                raise
            server.unload(apart, timeout_s)

        try:
            self._each(attempt)
        except ModelLoadError as exc:
            raise type(exc)(
                str(exc).replace(apart, model),
                endpoint=exc.endpoint,
                status=exc.status,
                model=model,
                reason=exc.reason.replace(apart, model),
            ) from exc
        except GoldenCheckError as exc:
            text = str(exc).replace(apart, model)
            raise GoldenCheckError(text, endpoint=exc.endpoint, model=model) from exc

    def leave(self, apart: str, *, timeout_s: float) -> None:
        """Unload what was loaded by its path; where a load of it goes on, wait for its end.

        Raises:
            ServerTimeoutError: one server has not finished by the deadline.
        """
        self._each(lambda server: server.unload(apart, timeout_s))

    def unload(self, model: str, *, timeout_s: float, dead: Collection[ModelState] = ()) -> None:
        """Unload a model everywhere and wait until no version of it is left.

        Args:
            model: its name.
            timeout_s: deadline for each server.
            dead: versions whose process died, see `dead`. Triton 2.51 goes on UNLOADING them for
                ever once they have failed a request, so that nothing is waited for.

        Raises:
            ModelNotReadyError: one server has not finished by the deadline.
        """

        def unload(server: TritonServer) -> None:
            server.unload(model)
            busy = ("READY", "UNLOADING", "LOADING")
            _wait_while(server, model, busy, timeout_s, _versions_on(server, dead))

        self._each(unload)

    def settle(self, model: str, *, timeout_s: float) -> None:
        """Wait until no server is loading the model any more.

        A load goes on in the server when its caller has gone. Files that are removed under it can
        make the Python backend wait for its stub for ever, and the model's name is then lost until
        the server restarts.

        Raises:
            ModelNotReadyError: one server has not finished by the deadline.
        """
        self._each(lambda server: _wait_while(server, model, ("LOADING",), timeout_s))

    def drain(self, model: str, *, timeout_s: float) -> None:
        """Wait until no version that was taken out of service has requests left.

        Raises:
            ModelNotReadyError: one server has not finished by the deadline.
        """
        self._each(lambda server: _wait_while(server, model, ("UNLOADING",), timeout_s))

    def states(self, model: str | None = None) -> dict[str, list[ModelState]]:
        """Every loaded or once loaded version, by model; the states of all servers together."""
        found: dict[str, list[ModelState]] = {}
        for states in self._each(_index):
            for state in states:
                if state.version and model in (None, state.name):
                    found.setdefault(state.name, []).append(state)
        return found

    def dead(self, asked: Collection[ModelState]) -> dict[ModelState, ModelProcessDiedError]:
        """Those whose process died, though Triton calls them READY, and what was said of it.

        Each is asked on its own server, see `ModelState.endpoint`. A server that has no parameters
        of requests is not asked: to its models the question would be a request.

        Args:
            asked: versions whose models answer `server._liveness.ping`.
        """
        places = {server.endpoint: server for server in self._servers}
        wanted = [(places[each.endpoint], each) for each in set(asked) if each.endpoint in places]
        if not wanted:
            return {}
        with ThreadPoolExecutor(min(len(wanted), _PINGS_AT_ONCE)) as pool:
            servers = {server.endpoint: server for server, _ in wanted}
            can_ask = dict(zip(servers, pool.map(can_be_asked, servers.values()), strict=True))
            wanted = [each for each in wanted if can_ask[each[0].endpoint]]
            died = pool.map(lambda each: death_of(each[0], each[1].name, each[1].version), wanted)
            return {state: dead for (_, state), dead in zip(wanted, died, strict=True) if dead}

    def serve(self, model: str) -> bool:
        """Whether one of them has a version of the model READY."""
        return any(state.state == "READY" for state in self.states(model).get(model, []))

    def __iter__(self) -> Iterator[TritonServer]:
        return iter(self._servers)

    def __len__(self) -> int:
        return len(self._servers)

    def _each(self, call: Callable[[TritonServer], _T]) -> list[_T]:
        """Call every server, side by side; the first error is raised once all are done."""
        if len(self._servers) <= 1:
            return [call(server) for server in self._servers]
        with ThreadPoolExecutor(len(self._servers)) as pool:
            futures = [pool.submit(call, server) for server in self._servers]
        return [future.result() for future in futures]


def _index(server: TritonServer) -> list[ModelState]:
    """What a server says of all models.

    Triton lists the repository's root and then looks at each entry. What another command removes
    in between, its lock or a whole model, makes the call fail, and means nothing.
    """
    deadline = Deadline(_RACE_S)
    while True:
        try:
            return [replace(state, endpoint=server.endpoint) for state in server.index()]
        except TritonServerError as exc:
            if "failed to stat file" not in str(exc) or deadline.passed:
                raise
        deadline.sleep(_POLL_S)


def _versions_on(server: TritonServer, states: Iterable[ModelState]) -> set[str]:
    """Return the versions that these states are about, on one server."""
    return {each.version for each in states if each.endpoint == server.endpoint}


def _load(server: TritonServer, model: str, config: str | None, timeout_s: float) -> None:
    """Load a model; once more where Triton did not get to its store, which is no fault of a model.

    Raises:
        ModelLoadError: the server refused.
    """
    try:
        server.load(model, config, timeout_s)
    except ModelLoadError as exc:
        if _NO_STORE not in exc.reason:
            raise
        _logger.warning("%s did not get to its model repository; loading again", server.endpoint)
        server.load(model, config, timeout_s)


def _were_overtaken(states: Iterable[ModelState], versions: Sequence[int]) -> bool:
    """Whether a load that had begun before took away what was just loaded.

    Triton 2.51 loads ensembles anew with each load of another model, as they were when that load
    began.
    """
    wanted = {str(version) for version in versions}
    return any(
        state.version in wanted and (state.state, state.reason) == ("UNAVAILABLE", "unloaded")
        for state in states
    )


def _states_of(server: TritonServer, model: str) -> list[ModelState]:
    return [state for state in _index(server) if state.name == model and state.version]


def _require_ready(
    server: TritonServer, model: str, versions: Sequence[int], states: Iterable[ModelState]
) -> None:
    """Make sure of a model that was just loaded.

    Raises:
        ModelNotReadyError: a wanted version is not READY, or none is.
    """
    ready = {state.version for state in states if state.state == "READY"}
    missing = [version for version in versions if str(version) not in ready]
    if ready and not missing:
        return
    named = {str(version) for version in missing}
    seen = next((each for each in states if each.version in named), ModelState(model))
    what = f"version {', '.join(sorted(named))}" if named else "any version"
    raise ModelNotReadyError(
        f"{server.endpoint} accepted {model} and does not serve {what} of it: "
        f"{seen.state or 'no state'} {seen.reason}".rstrip(),
        endpoint=server.endpoint,
        model=model,
        state=seen.state,
        waited_s=0.0,
    )


def _wait_while(
    server: TritonServer,
    model: str,
    states: tuple[str, ...],
    timeout_s: float,
    dead: Collection[str] = (),
) -> None:
    """Wait until no version of the model is in one of these states; the dead may stay UNLOADING."""
    deadline = Deadline(timeout_s)
    while True:
        busy = [
            each
            for each in _states_of(server, model)
            if each.state in states and not (each.state == "UNLOADING" and each.version in dead)
        ]
        if not busy:
            return
        if deadline.passed:
            raise ModelNotReadyError(
                f"{server.endpoint} is still busy with {model} after {timeout_s:g} s: version "
                f"{busy[0].version} is {busy[0].state}; run the command again to go on waiting, or "
                "restart Triton first if the model's process died",
                endpoint=server.endpoint,
                model=model,
                state=busy[0].state,
                waited_s=timeout_s,
            )
        deadline.sleep(_POLL_S)
