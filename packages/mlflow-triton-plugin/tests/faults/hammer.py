"""Clients that ask one deployment without pause, and tell every answer that is not right.

A script of its own, and a module: `python hammer.py raw|plugin ADDRESS NAME BOARD THREADS` runs
until the board says stop, and prints `ready` after the first answer of every thread, and at the end
one JSON line.
"""

from __future__ import annotations

import json
import mmap
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

#: Failures that are told in words, each once; all are counted.
_TOLD = 20
TIMEOUT_S = 60.0


class Answer(NamedTuple):
    """What came back, and which version says that it answered."""

    version: int
    y: NDArray[np.float32]
    stamp: NDArray[np.int32]


class Board:
    """What updater and clients, in several processes, know of each other.

    A file: how many updates have begun, how many have returned, whether to stop, and then, for each
    number of updates, the version that is deployed after them; 8 bytes each, so that each is
    written and read at once.
    """

    def __init__(self, path: Path, targets: Sequence[int] = ()) -> None:
        if targets:
            path.write_bytes(np.array([0, 0, 0, *targets], np.int64).tobytes())
        with path.open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    @property
    def started(self) -> int:
        return self._cells[0]

    @property
    def done(self) -> int:
        return self._cells[1]

    @property
    def stopped(self) -> bool:
        return bool(self._cells[2])

    def start_update(self) -> None:
        self._cells[0] += 1

    def end_update(self) -> None:
        self._cells[1] += 1

    def stop(self) -> None:
        self._cells[2] = 1

    def allowed(self, done_before: int, started_after: int) -> set[int]:
        """The versions that may answer a request.

        Args:
            done_before: updates that had returned when it began.
            started_after: updates that had begun when it ended.
        """
        return set(self._cells[3 + done_before : 4 + started_after])


@dataclass
class Tally:
    """What one client saw."""

    requests: int = 0
    failures: int = 0
    told: list[str] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def fail(self, what: str) -> None:
        self.failures += 1
        if len(self.told) < _TOLD and what not in self.told:
            self.told.append(what)

    def add(self, other: Tally) -> None:
        self.requests += other.requests
        self.failures += other.failures
        self.told += [what for what in other.told if what not in self.told]
        self.versions += other.versions
        self.slowest_s = max(self.slowest_s, other.slowest_s)

    def to_json(self) -> str:
        return json.dumps({**vars(self), "versions": dict(self.versions)})

    @classmethod
    def from_json(cls, text: str) -> Tally:
        document = json.loads(text)
        versions = {int(version): count for version, count in document.pop("versions").items()}
        return cls(**document, versions=Counter(versions))


def wrong(x: NDArray[np.float32], answer: Answer, allowed: set[int]) -> str | None:
    """What is wrong with an answer: a version that may not answer, or a mixture of versions."""
    if answer.version not in allowed:
        return f"version {answer.version} answered; only {sorted(allowed)} may"
    factor = 3 * answer.version + 1
    if answer.y.shape != x.shape or answer.stamp.shape != x.shape:
        return f"shapes {answer.y.shape} and {answer.stamp.shape} for {x.shape}"
    if not (answer.stamp == factor).all() or not (answer.y == x * np.float32(factor)).all():
        return f"version {answer.version} answered y={answer.y} stamp={answer.stamp} for x={x}"
    return None


def raw_client(address: str, name: str) -> Callable[[NDArray[np.float32]], Answer]:
    """Requests through tritonclient, without anything of ours."""
    from tritonclient.grpc import InferenceServerClient, InferInput  # noqa: PLC0415 - one of two

    client = InferenceServerClient(address)

    def ask(x: NDArray[np.float32]) -> Answer:
        tensor = InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        result = client.infer(name, [tensor], client_timeout=TIMEOUT_S)
        version = result.get_response().model_version
        return Answer(int(version), result.as_numpy("y"), result.as_numpy("stamp"))

    return ask


def plugin_client(address: str, name: str) -> Callable[[NDArray[np.float32]], Answer]:
    """Requests through the plugin; the threads of a process share one client."""
    from mlflow.deployments import get_deploy_client  # noqa: PLC0415 - one of two

    client = get_deploy_client(f"triton://{address}")

    def ask(x: NDArray[np.float32]) -> Answer:
        result = client.predict(name, {"x": x})
        outputs = result["outputs"]
        return Answer(int(result["model_version"]), outputs["y"], outputs["stamp"])

    return ask


def hammer(
    ask: Callable[[NDArray[np.float32]], Answer],
    board: Board,
    *,
    seed: int,
    on_first: Callable[[], Any] = lambda: None,
) -> Tally:
    """Ask without pause until the board says stop."""
    random = np.random.default_rng(seed)
    tally = Tally()
    while not board.stopped:
        x = random.integers(1, 1000, size=random.integers(2, 64)).astype(np.float32)
        done, begun_s = board.done, time.monotonic()
        try:
            answer = ask(x)
        except Exception as exc:  # noqa: BLE001 - no error at all is allowed
            tally.fail(f"{type(exc).__name__}: {exc}")
        else:
            problem = wrong(x, answer, board.allowed(done, board.started))
            if problem:
                tally.fail(problem)
            tally.versions[answer.version] += 1
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - begun_s)
        tally.requests += 1
        if tally.requests == 1:
            on_first()
    return tally


def hammer_with_threads(
    ask: Callable[[NDArray[np.float32]], Answer],
    board: Board,
    threads: int,
    *,
    on_ready: Callable[[], Any] = lambda: None,
) -> Tally:
    """Ask from several threads at once; what they saw, together."""
    tallies: list[Tally] = []
    first = threading.Barrier(threads, action=on_ready)

    def run(seed: int) -> None:
        tallies.append(hammer(ask, board, seed=seed, on_first=first.wait))

    running = [threading.Thread(target=run, args=(seed,)) for seed in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    total = Tally()
    for tally in tallies:
        total.add(tally)
    if len(tallies) != threads:
        total.fail(f"{threads - len(tallies)} of {threads} threads died")
    return total


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(kind: str, address: str, name: str, board: str, threads: str) -> None:
    ask = {"raw": raw_client, "plugin": plugin_client}[kind](address, name)
    tally = hammer_with_threads(
        ask, Board(Path(board)), int(threads), on_ready=lambda: _tell("ready")
    )
    _tell(tally.to_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
