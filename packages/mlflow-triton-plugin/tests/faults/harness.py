"""A repository, a server on it, and the walk of one scenario through all its points.

The repository is known by its address, and its content is read through `Store` alone: the same
walks serve every kind of store.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.local import LocalTriton
from mlflow_triton_plugin.local.errors import LocalTritonError
from triton_repo.errors import StoreError
from triton_repo.store import open_store

from ..servers import kill  # noqa: TID252 - tests have no name to be imported by
from .points import are_all_walked, chosen
from .scenarios import (
    ALL_SCENARIOS,
    NAME,
    NEIGHBOUR,
    NEIGHBOUR_ANSWER,
    NEIGHBOUR_CREATED,
    Scenario,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient
    from triton_repo.store import Store

    from .commands import Command, Fault, Outcome, Zygote

__all__ = ["Bench", "Repository", "Walk", "difference", "is_store_call"]

#: So many points are walked beside the first or the last one of a walk.
_BETWEEN = 1
#: The words before a step's name and number in the name of a point.
_STEP = re.compile(r"(\w+) (?:call|request) \d+, (\w+)")

#: Files by their path with their bytes, directories by their path and a slash.
Content = dict[str, bytes]

_T = TypeVar("_T")
_TIME = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)?")
_INDEX_TIMEOUT_S = 10
#: A start takes a quarter of a second.
_START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Repository:
    """A model repository, as the client and Triton name it.

    Attributes:
        address: what TRITON_MODEL_REPO and Triton's --model-repository say.
        lock_lasts_s: how many seconds the lock of a killed process may keep the next one out.
        environment: what a process needs to get there.
        exchanges_at_once: whether what overwrites something that serves takes its place in one
            step; else a server that starts meanwhile may load some old files and some new ones.
    """

    address: str
    lock_lasts_s: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    exchanges_at_once: bool = True

    @cached_property
    def store(self) -> Store:
        return open_store(self.address)

    def content(self, *, times: bool = True) -> Content:
        """Everything that is there; without the points in time that records speak of."""
        store = self.store.snapshot()
        found = {path: store.read(path) for path in store.list_files("")}
        if not times:
            found = {path: _TIME.sub(b"(time)", data) for path, data in found.items()}
        return {**found, **dict.fromkeys(_directories(store, ""), b"")}

    def clear(self) -> None:
        for name in [*self.store.children(""), *self.store.list_files("")]:
            self.store.remove(name)


def _directories(store: Store, key: str) -> Iterator[str]:
    for name in store.children(key):
        below = f"{key}/{name}" if key else name
        yield f"{below}/"
        yield from _directories(store, below)


def difference(seen: Content, wanted: Content) -> str:
    """How two contents differ, for a message; empty where they do not."""
    said = [f"{path} is left" for path in sorted(seen.keys() - wanted.keys())]
    said += [f"{path} is missing" for path in sorted(wanted.keys() - seen.keys())]
    said += [
        f"{path} is {_excerpt(seen[path], wanted[path])}"
        for path in sorted(seen.keys() & wanted.keys())
        if seen[path] != wanted[path]
    ]
    return "; ".join(said)


def _excerpt(seen: bytes, wanted: bytes) -> str:
    """Where two contents begin to differ."""
    pairs = enumerate(zip(seen, wanted, strict=False))
    at = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(seen), len(wanted)))
    near = slice(max(0, at - 20), at + 100)
    return f"{seen[near]!r} at byte {at}, not {wanted[near]!r}"


def is_store_call(call: str) -> bool:
    """Whether a counted call is one of the store's, not the server's."""
    return call.split(maxsplit=1)[0] not in ("load", "unload")


@dataclass(frozen=True)
class Rehearsal:
    """What an undisturbed run of a scenario did.

    Attributes:
        before: the repository before it.
        after: what it may be afterwards: as after one run, or as after two. They differ where a
            version that no longer has another beside it needs no pin any more.
        calls: the changing calls of one run.
        requests: its requests that change something, where the store is one of objects.
    """

    before: Content
    after: tuple[Content, Content]
    calls: tuple[str, ...]
    requests: tuple[str, ...]


@dataclass
class Bench:
    """One repository with a server on it, and the ways to run commands there."""

    repository: Repository
    zygote: Zygote
    log_file: Path
    _triton: LocalTriton | None = None
    _client: TritonDeploymentClient | None = None
    _rehearsals: dict[str, Rehearsal] = field(default_factory=dict)

    # -- the server ---------------------------------------------------------------------------

    def start(self, *, strictly: bool = False) -> None:
        """Start the server.

        Args:
            strictly: it ends at the first model that does not load, as by Triton's default; else it
                loads whatever it can.

        Raises:
            StartError: it ended, or is not ready in time.
        """
        # not ready as a whole where one model is not: what is READY is asked model by model
        lenient = ("--exit-on-error=false", "--strict-readiness=false")
        self._triton = LocalTriton(
            self.repository.address,
            log_file=self.log_file,
            # auto-complete would cost a second a model; see tests/conftest.py
            extra_args=[
                "--disable-auto-complete-config",
                "--load-model=*",
                *(() if strictly else lenient),
            ],
            startup_timeout_s=_START_TIMEOUT_S,
        )
        self._triton.start()
        self._client = get_deploy_client(f"triton://{self._triton.grpc_url}")

    def restart(self, *, strictly: bool) -> None:
        """Kill the server and start another; see `start`."""
        self.crash()
        self.start(strictly=strictly)

    def crash(self) -> None:
        """Kill the server, without giving it time for anything."""
        if self._client is not None:
            for server in self._client._servers:
                server.close()
        if self._triton is not None:
            kill(self._triton)
        self._triton = self._client = None

    @property
    def client(self) -> TritonDeploymentClient:
        assert self._client is not None, "the server is not started"
        return self._client

    def ready(self) -> dict[str, set[int]]:
        """The versions of each model that Triton's own index calls READY."""
        assert self._triton is not None, "the server is not started"
        url = f"{self._triton.http_url}/v2/repository/index"
        with urllib.request.urlopen(  # noqa: S310 - of our own server
            urllib.request.Request(url, method="POST"),  # noqa: S310 - the same
            timeout=_INDEX_TIMEOUT_S,
        ) as answer:
            index = json.load(answer)
        found: dict[str, set[int]] = {}
        for each in index:
            if each.get("state") == "READY":
                found.setdefault(each["name"], set()).add(int(each["version"]))
        return found

    def listed(self) -> dict[str, str]:
        """Every deployment's state, as `list` tells it."""
        return {each["name"]: each["state"] for each in self.client.list_deployments()}

    def answer(self, name: str) -> float:
        """What a deployment answers to 1."""
        return float(self.client.predict(name, {"x": np.ones(1, np.float32)})["outputs"]["y"][0])

    # -- commands -----------------------------------------------------------------------------

    def run(self, *commands: Command) -> None:
        """Run commands here, undisturbed."""
        for command in commands:
            command.run(self.client)

    def run_apart(
        self, command: Command, fault: Fault | None = None, *, obey_permissions: bool = False
    ) -> Outcome:
        """Run a command in a process of its own, which may be killed."""
        assert self._triton is not None, "the server is not started"
        environment = {
            "TRITON_URL": self._triton.grpc_url,
            "TRITON_MODEL_REPO": self.repository.address,
            **self.repository.environment,
        }
        return self.zygote.run(
            command,
            environment,
            fault,
            server_log=self.log_file,
            obey_permissions=obey_permissions,
        )

    def run_again(self, command: Command) -> None:
        """Run the command of a process that was killed, as soon as its lock lets us.

        A create that was whole already is refused, as any create of a name that serves.
        """
        created = command.method == "create_deployment"
        whole = created and self.listed().get(command.name) == "READY"
        deadline = time.monotonic() + self.repository.lock_lasts_s
        while True:
            try:
                self.run(command)
            except MlflowException as exc:
                if whole and exc.error_code == "RESOURCE_ALREADY_EXISTS":
                    return
                if exc.error_code != "RESOURCE_CONFLICT" or time.monotonic() >= deadline:
                    raise AssertionError(f"the same command again: {exc}") from exc
                time.sleep(0.1)
            else:
                return

    # -- states -------------------------------------------------------------------------------

    def prepare(self, scenario: Scenario) -> None:
        """Begin anew: an empty repository, a new server, the neighbour, what stands before."""
        self.crash()
        self.repository.clear()
        self.repository.store.check()  # Triton does not start where there is nothing at all
        self.start()
        self.run(NEIGHBOUR_CREATED, *scenario.before)

    def restore(self, scenario: Scenario) -> None:
        """Bring back what stood there before the command."""
        if scenario.restore is None:
            self.prepare(scenario)
        else:
            self.run(*scenario.restore)

    def rehearse(self, label: str, scenario: Scenario) -> Rehearsal:
        """Prepare a scenario, having run it once undisturbed."""
        self.prepare(scenario)
        if label not in self._rehearsals:
            before = self.repository.content(times=False)
            outcome = self.run_apart(scenario.command)
            assert outcome.succeeded, f"{label} fails by itself: {outcome}"
            once = self.repository.content(times=False)
            self.run_again(scenario.command)
            twice = self.repository.content(times=False)
            self.restore(scenario)
            wrong = difference(self.repository.content(times=False), before)
            assert not wrong, f"{label}: what stood there before does not come back: {wrong}"
            self._rehearsals[label] = Rehearsal(
                before, (once, twice), outcome.calls, outcome.requests
            )
        return self._rehearsals[label]


def _kind_of_step(point: tuple[str, object]) -> str:
    """Return what is disturbed, and how, such as `before move`."""
    found = _STEP.search(point[0])
    assert found is not None, f"{point[0]!r} names no step"
    return " ".join(found.groups())


@dataclass
class Walk:
    """One scenario, disturbed at one point after another, and what must be true after each.

    A point that goes wrong is noted, and the walk goes on from a new beginning: one run says all.
    """

    bench: Bench
    label: str
    scenario: Scenario
    points: int = 0
    problems: list[str] = field(default_factory=list)
    _left: int = 0

    def __post_init__(self) -> None:
        self.rehearsal = self.bench.rehearse(self.label, self.scenario)

    @property
    def calls(self) -> tuple[str, ...]:
        """The changing calls of an undisturbed run."""
        return self.rehearsal.calls

    @property
    def requests(self) -> tuple[str, ...]:
        """Its changing requests to an object store."""
        return self.rehearsal.requests

    def chosen(self, points: Iterable[tuple[str, _T]]) -> list[tuple[str, _T]]:
        """Return those of its points that are walked, see `points.chosen`.

        Args:
            points: each with its name.
        """
        turn = list(ALL_SCENARIOS).index(self.label)
        if not self.bench.repository.exchanges_at_once:
            turn //= 2  # about every other scenario is walked there, see `conftest.py`
        found = chosen(points, turn, between=_BETWEEN, kind=_kind_of_step)
        self._left = len(found)
        return found

    @contextmanager
    def point(self, where: str) -> Iterator[None]:
        """Count one point, and note what goes wrong there."""
        self.points += 1
        self._left -= 1
        try:
            yield
        except (AssertionError, MlflowException, LocalTritonError, StoreError) as exc:
            self.problems.append(f"{where}: {exc}")
            self.bench.prepare(self.scenario)

    def conclude(self) -> None:
        """Fail where any point went wrong."""
        listed = "\n".join(f"- {each}" for each in self.problems)
        assert not self.problems, (
            f"{self.label}: {len(self.problems)} of {self.points} points went wrong\n{listed}"
        )

    # -- what must be true --------------------------------------------------------------------

    def check_neighbour(self) -> None:
        """The deployment that nobody touched serves."""
        assert self.bench.ready().get(NEIGHBOUR) == {3}, f"{NEIGHBOUR} is not READY"
        self._check_answer(NEIGHBOUR, (NEIGHBOUR_ANSWER,))

    def check_old_or_new(self) -> None:
        """What was committed serves, and the deployment is absent, whole, or said interrupted."""
        self.check_neighbour()
        listed = self.bench.listed()
        state = listed.pop(NAME, "absent")
        assert listed == {NEIGHBOUR: "READY"}, f"listed besides {NAME}: {listed}"
        allowed = {"READY", "INTERRUPTED"} | (set() if self.scenario.is_update else {"absent"})
        assert state in allowed, f"{NAME} is {state}: {self._described()}"
        if state == "READY" or self.scenario.is_update:
            self.check_served()

    def check_served(self) -> None:
        """Triton serves the deployment's old or its new version."""
        assert self.bench.ready().get(NAME), f"{NAME} is not READY in Triton's index"
        self._check_answer(NAME, self._answers)

    def check_old(self) -> None:
        """The server serves what it served before the command."""
        self.check_neighbour()
        if self.scenario.old is not None:
            self._check_answer(NAME, (self.scenario.old,))
        else:
            assert NAME not in self.bench.ready(), f"{NAME} serves, and was refused"

    def check_refused(self, outcome: Outcome, *codes: str) -> None:
        """The command ended with one line that the caller can catch by its code."""
        assert outcome.code in codes, f"not one of {codes}: {outcome}"
        assert outcome.message.strip(), "an error without words"
        assert "\n" not in outcome.message, f"more than a line: {outcome.message}"

    def check_unchanged(self, before: Content) -> None:
        """Every byte is what it was, and so is what serves."""
        done = self.bench.repository.content(times=False) in self.rehearsal.after
        assert not done or before == self.bench.repository.content(), (
            "the command said that it failed, and did everything"
        )
        wrong = difference(self.bench.repository.content(), before)
        assert not wrong, f"the command failed and has changed something: {wrong}"
        self.check_old()

    def check_new(self) -> None:
        """But for times the repository is as after an undisturbed run, and so is what serves."""
        seen = self.bench.repository.content(times=False)
        wrong = seen not in self.rehearsal.after and difference(seen, self.rehearsal.after[0])
        assert not wrong, f"not as after an undisturbed run: {wrong}"
        self.check_neighbour()
        state = self.bench.listed().get(NAME, "absent")
        if self.scenario.new is None:
            assert state == "absent", f"{NAME} is {state}"
            assert NAME not in self.bench.ready(), f"{NAME} is deleted and serves"
        else:
            assert state == "READY", f"{NAME} is {state}: {self._described()}"
            self._check_answer(NAME, (self.scenario.new,))

    def check_can_be_repeated(self) -> None:
        """The same command again succeeds and leaves nothing stray."""
        self.bench.run_again(self.scenario.command)
        self.check_new()

    def restore(self) -> None:
        """Bring back what stood there before the command, and see that it is the same.

        After the last of a few points it is left out: the next walk begins anew.
        """
        if self._left == 0 and not are_all_walked():
            return
        self.bench.restore(self.scenario)
        wrong = difference(self.bench.repository.content(times=False), self.rehearsal.before)
        assert not wrong, f"not brought back by ordinary commands: {wrong}"

    # -- looks --------------------------------------------------------------------------------

    @property
    def _answers(self) -> tuple[float, ...]:
        mixed = () if self.bench.repository.exchanges_at_once else self.scenario.mixed
        both = (self.scenario.old, self.scenario.new, *mixed)
        return tuple(each for each in both if each is not None)

    def _check_answer(self, name: str, allowed: tuple[float, ...]) -> None:
        answer = self.bench.answer(name)
        assert answer in allowed, f"{name} answers {answer}, not one of {allowed}"

    def _described(self) -> Mapping[str, object] | str:
        try:
            found: Mapping[str, object] = self.bench.client.get_deployment(NAME)
        except MlflowException as exc:
            return str(exc)
        return found
