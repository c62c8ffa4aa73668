"""A server that fails while a command is at it: what stands there before, and the fault itself."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.local import LocalTriton
from mlflow_triton_plugin.server import _grpc
from triton_repo.model_view import PlaceState

from ..servers import kill  # noqa: TID252 - tests have no name to be imported by
from .hammer import Board, Tally, hammer_with_threads, raw_client
from .storm_agreement import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .hammer_models import StampModel

NAME = "faulty"

#: The calls of a command to its server.
CALLS = ("check", "load", "unload", "index")

#: Seconds in which a command whose server died must have ended.
ENDS_WITHIN_S = 20.0


@dataclass(frozen=True)
class Scenario:
    """One command.

    Attributes:
        before: the versions that are deployed before it, one after the other.
        method: of the deployment client.
        version: the version that it deploys; None for delete.
    """

    before: tuple[int, ...]
    method: str
    version: int | None

    @property
    def old(self) -> int | None:
        """The version that serves before."""
        return self.before[-1] if self.before else None

    def run(
        self, client: TritonDeploymentClient, stamp: StampModel, **options: str
    ) -> dict[str, Any] | None:
        uri = () if self.version is None else (stamp.uri(self.version),)
        done: dict[str, Any] | None = getattr(client, self.method)(NAME, *uri, config=options)
        return done


SCENARIOS = {
    "create": Scenario((), "create_deployment", 1),
    "update": Scenario((1,), "update_deployment", 2),
    "roll-back": Scenario((1, 2), "update_deployment", 1),
    "delete": Scenario((1, 2), "delete_deployment", None),
}
#: Those that load.
LOADING = {label: each for label, each in SCENARIOS.items() if each.version is not None}
#: Those with an old version that must serve on.
UPDATES = {label: each for label, each in LOADING.items() if each.old is not None}


@dataclass
class Rig:
    """A repository, one server on it at a time, and what each scenario starts from."""

    repository: Path
    templates: Path
    stamp: StampModel
    log: Path
    _triton: LocalTriton | None = None

    @property
    def triton(self) -> LocalTriton:
        assert self._triton is not None, "the server is not started"
        return self._triton

    @property
    def pid(self) -> int:
        assert self.triton.pid is not None
        return self.triton.pid

    def client(self) -> TritonDeploymentClient:
        made: TritonDeploymentClient = get_deploy_client(f"triton://{self.triton.grpc_url}")
        return made

    def witness(self) -> Witness:
        return Witness.of(self.repository, self.triton.grpc_url)

    # -- the server ---------------------------------------------------------------------------

    def start(self, *, grpc_port: int = 0) -> None:
        """Start a fresh server, which serves what is on disk."""
        self._triton = LocalTriton(
            self.repository,
            grpc_port=grpc_port,
            log_file=self.log,
            extra_args=[
                "--disable-auto-complete-config",
                "--load-model=*",
                "--exit-on-error=false",
                "--strict-readiness=false",
            ],
        ).start()

    def kill(self) -> None:
        """Kill the server and wait until it is gone; fine where it is already."""
        if self._triton is not None:
            kill(self._triton)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The server is stopped (SIGSTOP) when the block begins, and goes on after it."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    # -- what stands there before -------------------------------------------------------------

    def prepare(self, scenario: Scenario) -> dict[str, bytes]:
        """Begin anew with what a scenario starts from, and a fresh server that serves it.

        Returns:
            Every file of the deployment.
        """
        self.kill()
        self.stamp.take_back()
        self._empty()
        template = self.templates / ("-".join(map(str, scenario.before)) or "none")
        if not template.exists():
            self.start()
            self._make(scenario, template)
            self.kill()
            self._empty()
        shutil.copytree(template, self.repository, dirs_exist_ok=True)
        self.start()
        assert self.witness().agrees(NAME) == scenario.old
        return self.snapshot()

    def _make(self, scenario: Scenario, template: Path) -> None:
        client = self.client()
        for version in scenario.before:
            command = client.update_deployment if version != scenario.before[0] else None
            (command or client.create_deployment)(NAME, self.stamp.uri(version))
        shutil.copytree(self.repository, template)

    def _empty(self) -> None:
        for path in self.repository.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def snapshot(self) -> dict[str, bytes]:
        """Every file in the repository, with its content."""
        return {
            path.relative_to(self.repository).as_posix(): path.read_bytes()
            for path in self.repository.rglob("*")
            if path.is_file()
        }

    # -- what must be true afterwards ---------------------------------------------------------

    def check_whole_or_interrupted(self, scenario: Scenario, before: dict[str, bytes]) -> None:
        """The server serves what was committed, and `list` shows how the deployment stands."""
        witness, after = self.witness(), self.snapshot()
        listed = [each["state"] for each in witness.client.list_deployments()]
        if after == before:
            assert witness.agrees(NAME) == scenario.old
            assert {path.name for path in self.repository.iterdir()} == {
                path.split("/")[0] for path in before
            }
            return
        if listed == ["INTERRUPTED"]:
            self._check_interrupted(scenario, before, after)
            return
        assert witness.agrees(NAME) == scenario.version
        witness.nothing_stray([NAME])

    def _check_interrupted(
        self, scenario: Scenario, before: dict[str, bytes], after: dict[str, bytes]
    ) -> None:
        """config.pbtxt and the record are untouched, and so what served serves."""
        committed = [f"{NAME}/config.pbtxt", f"{NAME}/mlflow-meta.json"]
        assert [after.get(path) for path in committed] == [before.get(path) for path in committed]
        assert self.witness().view(NAME).state() is PlaceState.INTERRUPTED
        if scenario.old is not None:
            self.witness().answers(NAME, scenario.old)

    def check_can_be_repeated(self, scenario: Scenario, **options: str) -> None:
        """The same command again succeeds, and leaves nothing stray."""
        scenario.run(self.client(), self.stamp, **options)
        assert self.witness().agrees(NAME) == scenario.version
        self.witness().nothing_stray([] if scenario.version is None else [NAME])


def refused(call: Callable[[], object], *codes: str, within_s: float) -> str:
    """The one line of an error with one of these codes, which comes in time."""
    begun_s = time.monotonic()
    with pytest.raises(MlflowException) as raised:
        call()
    took_s = time.monotonic() - begun_s
    message = str(raised.value)
    assert raised.value.error_code in codes, message
    assert "\n" not in message
    assert raised.value.__cause__ is not None
    assert took_s < within_s, f"it took {took_s:.1f} s: {message}"
    return message


#: The looks at a server that is unloading are alike: of more in a row these are tried.
_ALIKE = 3


@dataclass
class Tripwire:
    """Counts a command's calls to its server, and does something at one of them.

    Attributes:
        at: the call's number, from 1; 0 for none.
        before: what happens before that call.
        calls: the calls so far; of more in a row that are alike the first ones.
    """

    at: int = 0
    before: Callable[[str], None] = lambda _: None
    calls: list[str] = field(default_factory=list)

    @property
    def tripped(self) -> bool:
        return 0 < self.at <= len(self.calls)

    @contextmanager
    def laid(self) -> Iterator[Tripwire]:
        """Watch the calls for as long as the block lasts."""
        with pytest.MonkeyPatch.context() as patch:
            for method in CALLS:
                patch.setattr(_grpc.GrpcServer, method, self._watched(method))
            yield self

    def _watched(self, method: str) -> Callable[..., Any]:
        call = getattr(_grpc.GrpcServer, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.calls[-_ALIKE:] != [method] * _ALIKE:
                self.calls.append(method)
                if len(self.calls) == self.at:
                    self.before(method)
            return call(*args, **kwargs)

        return watched


@contextmanager
def meanwhile(what: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread while the block runs; its failure is the test's."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            what()
        except BaseException as exc:  # noqa: BLE001 - raised below
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(ENDS_WITHIN_S * 3)
    assert not thread.is_alive(), "it did not end"
    for exc in failed:
        raise exc


@contextmanager
def asked_all_the_time(rig: Rig, version: int, folder: Path) -> Iterator[Board]:
    """Two threads ask the deployment without pause; only this version may answer, always."""
    with asked(rig, folder, version) as (board, tallies):
        yield board
    (tally,) = tallies
    assert tally.failures == 0, tally.told
    assert tally.versions[version] == tally.requests > 0


@contextmanager
def asked(rig: Rig, folder: Path, *targets: int) -> Iterator[tuple[Board, list[Tally]]]:
    """Two threads ask the deployment without pause; what they saw is there after the block.

    Args:
        rig: the server.
        folder: for the board.
        targets: the versions that are deployed, one after another; see `Board`.
    """
    board, tallies = Board(folder / "board", targets), list[Tally]()
    asking, ready = raw_client(rig.triton.grpc_url, NAME), threading.Event()

    def run() -> None:
        tallies.append(hammer_with_threads(asking, board, 2, on_ready=ready.set))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(ENDS_WITHIN_S), "the deployment does not answer"
        yield board, tallies
    finally:
        board.stop()
        thread.join(ENDS_WITHIN_S)
    assert not thread.is_alive(), "a request never ended"
