"""Many processes that create, update, delete, list and ask the same few deployments at once.

`python storm.py SETTINGS` imports MLflow and the plugin once and forks: no gRPC channel and no
connection to the tracking database is there yet. Every child writes a JSON line for each command
as it ends, into a file of its own, so that a killed child's lines are not lost. With `kill_every_s`
a child is killed that often and another one takes its place, and at the end all of them are killed
at once, one of them in the midst of a change; the kills are in `kills.jsonl`.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

import mlflow_triton_plugin.server._grpc  # noqa: F401 - no channel is made yet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: The commands, and how often each is chosen.
COMMANDS = {"create": 4, "update": 6, "delete": 2, "get": 2, "list": 1, "predict": 4}
#: The longest pause between two commands of a child. Without any, those that are kept out take the
#: processors from the one that works: 2 cores did 26 changes a minute so, and 254 with it.
PAUSE_S = 0.4
#: A process that is told to stop has done so by then.
_STOPS_WITHIN_S = 0.05


@dataclass(frozen=True)
class Settings:
    """What the test asks for.

    Attributes:
        folder: where the reports go.
        names: the deployments.
        uris: the models that they serve in turn.
        processes: children at a time.
        lasts_s: for how long they go on.
        kill_every_s: seconds between two kills; 0 for none.
        seed: of every random choice.
    """

    folder: str
    names: list[str]
    uris: list[str]
    processes: int
    lasts_s: float
    kill_every_s: float
    seed: int


class Child:
    """One client, and its random sequence of commands."""

    def __init__(self, settings: Settings, number: int, report: IO[str]) -> None:
        self._settings = settings
        self._number = number
        self._random = random.Random(f"{settings.seed} {number}")  # noqa: S311 - a seeded sequence
        self._report = report
        self._client: Any = get_deploy_client("triton")

    def run(self, until_s: float) -> None:
        commands, weights = list(COMMANDS), list(COMMANDS.values())
        while time.monotonic() < until_s:
            (command,) = self._random.choices(commands, weights)
            self._one(command, self._random.choice(self._settings.names))
            time.sleep(self._random.uniform(0, PAUSE_S))

    def _one(self, command: str, name: str) -> None:
        call = self._call(command, name)
        begun_s = time.monotonic()
        line = {"command": command, "name": name, "pid": os.getpid(), "begun_s": begun_s}
        try:
            call()
        except MlflowException as exc:
            line |= {"outcome": exc.error_code, "message": str(exc)}
            line |= {"cause": "".join(traceback.format_exception(exc))}
        except BaseException as exc:  # noqa: BLE001 - the report is the point
            line |= {"outcome": f"untyped {type(exc).__name__}", "message": traceback.format_exc()}
        else:
            line |= {"outcome": "success"}
        line |= {"took_s": time.monotonic() - begun_s}
        self._report.write(f"{json.dumps(line)}\n")
        self._report.flush()

    def _call(self, command: str, name: str) -> Callable[[], object]:
        uri = self._random.choice(self._settings.uris)
        config = {"keep_versions": str(self._random.randint(1, 3))}
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: self._client.create_deployment(name, uri, config=config),
            "update": lambda: self._client.update_deployment(name, uri, config=config),
            "delete": lambda: self._client.delete_deployment(name),
            "get": lambda: self._get(name),
            "list": self._list,
            "predict": lambda: self._predict(name),
        }
        return calls[command]

    def _get(self, name: str) -> None:
        assert self._client.get_deployment(name)["name"] == name

    def _list(self) -> None:
        listed = [each["name"] for each in self._client.list_deployments()]
        assert set(listed) <= set(self._settings.names)
        assert len(listed) == len(set(listed))

    def _predict(self, name: str) -> None:
        """Whichever version answers, the whole answer is its own."""
        x = np.arange(1, 9, dtype=np.float32)
        result = self._client.predict(name, {"x": x})
        factor = 3 * int(result["model_version"]) + 1
        assert result["outputs"]["stamp"].tolist() == [factor] * len(x)
        assert result["outputs"]["y"].tolist() == (x * factor).tolist()


def fork_child(settings: Settings, number: int, until_s: float) -> int:
    """Fork one client; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with Path(settings.folder, f"child-{number}.jsonl").open("w") as report:
            Child(settings, number, report).run(until_s)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run in here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def warm_up(folder: Path) -> None:
    """Import what every child would otherwise import by itself, for two seconds each.

    MLflow does it when a database is first asked; it is one that nobody uses afterwards.
    """
    uri = f"sqlite:///{folder}/unused.db"
    mlflow.MlflowClient(uri, uri).search_registered_models()


def main(settings: Settings) -> int:
    """Run the storm; the number of children that did not end as they should."""
    warm_up(Path(settings.folder))
    until_s = time.monotonic() + settings.lasts_s
    # those that are going to be killed go on until they are
    child_until_s = float("inf") if settings.kill_every_s else until_s
    children = [fork_child(settings, each, child_until_s) for each in range(settings.processes)]
    if settings.kill_every_s:
        with Path(settings.folder, "kills.jsonl").open("w") as kills:
            _kill_now_and_then(settings, children, until_s, kills)
            return sum(not _kill(pid, kills) for pid in children)
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in children)


def _kill_now_and_then(
    settings: Settings, children: list[int], until_s: float, kills: IO[str]
) -> None:
    chooser = random.Random(settings.seed)  # noqa: S311 - a seeded sequence
    forked = len(children)
    while time.monotonic() + settings.kill_every_s < until_s:
        time.sleep(settings.kill_every_s)
        at = _working(settings, children, chooser)
        _kill(children[at], kills)
        children[at] = fork_child(settings, forked, float("inf"))
        forked += 1
    _stop_all(settings, children)


def _stop_all(settings: Settings, children: list[int]) -> None:
    """Stop all at once, at a moment at which one is in the midst of a change."""
    while True:
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(_STOPS_WITHIN_S)
        if _holders(settings.names) & {*children}:
            return
        for pid in children:
            os.kill(pid, signal.SIGCONT)
        time.sleep(_STOPS_WITHIN_S)


def _kill(pid: int, kills: IO[str]) -> bool:
    """Kill a child; False where it had ended before."""
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    kills.write(json.dumps({"pid": pid, "killed_s": time.monotonic()}) + "\n")
    kills.flush()
    return os.WIFSIGNALED(status)


def _working(settings: Settings, children: list[int], chooser: random.Random) -> int:
    """The place of a child that is in the midst of a change, else of any."""
    holders = _holders(settings.names)
    working = [at for at, pid in enumerate(children) if pid in holders]
    return chooser.choice(working or range(len(children)))


def _holders(names: Iterable[str]) -> set[int]:
    """The processes that are in the midst of a change."""
    repository = Path(os.environ["TRITON_MODEL_REPO"])
    found = set()
    for lock in [repository / f".{name}.mlflow-triton.lock" for name in names]:
        with suppress(OSError, ValueError):  # it comes and goes
            holder = re.search(r"\(process (\d+)\)$", json.loads(lock.read_bytes())["holder"])
            found |= {int(holder[1])} if holder else set()
    return found


if __name__ == "__main__":
    sys.exit(main(Settings(**json.loads(sys.argv[1]))))
