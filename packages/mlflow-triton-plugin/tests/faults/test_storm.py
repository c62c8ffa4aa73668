"""Many processes change the same few deployments; afterwards everything agrees."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.exceptions import MlflowException

from triton_repo.names import check_name
from triton_repo.placement import ModelPlace
from triton_repo.store import open_store

from . import storm
from .hammer_models import register_stamp
from .points import are_all_walked
from .storm_agreement import Witness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Tell
    from .hammer_models import StampModel

#: `nox -s faults` has the long ones.
LASTS_S = 60.0 if are_all_walked() else 10.0
PROCESSES = 16 if are_all_walked() else 8
SHORT_S = 20.0 if are_all_walked() else 10.0
KILL_EVERY_S = 2.0 if are_all_walked() else 1.0
NAMES = ("storm-a", "storm-b", "storm-c", "storm-d")
#: Of those that are changed afterwards, one command after another.
CHANGED_AFTER = NAMES if are_all_walked() else NAMES[:1]
#: After the last command has begun, each child ends it; a load on two busy cores takes its time.
GRACE_S = 120.0
#: A lock's new holder signs it at once; until then the file still has the old one's name. Cores
#: that storms share let it wait for its turn.
SIGNED_WITHIN_S = 5.0
#: At Triton's index, while a lock comes and goes.
LOOKS = 500 if are_all_walked() else 100

#: What may be said, and why it is honest. Anything else is a failure.
EXPECTED = {
    "create": {
        "RESOURCE_CONFLICT",  # somebody else is changing it
        "RESOURCE_ALREADY_EXISTS",  # somebody else has created it
    },
    "update": {
        "RESOURCE_CONFLICT",
        "RESOURCE_DOES_NOT_EXIST",  # nobody has created it yet, or it was deleted
    },
    "delete": {"RESOURCE_CONFLICT"},  # what is not there is fine
    "get": {"RESOURCE_DOES_NOT_EXIST"},
    "list": set[str](),  # reads; what comes and goes meanwhile is listed or not
    "predict": {"RESOURCE_DOES_NOT_EXIST"},
}


@pytest.fixture(scope="module")
def stamp(registered: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> StampModel:
    return register_stamp(registered("stamp"), tmp_path_factory.mktemp("stamp"))


@pytest.fixture
def witness(repository: Path, triton: LocalTriton) -> Witness:
    return Witness.of(repository, triton.grpc_url)


def run_storm(
    folder: Path, stamp: StampModel, *, lasts_s: float, kill_every_s: float = 0
) -> list[dict[str, Any]]:
    """Run it; a dict for each command that ended."""
    settings = storm.Settings(
        folder=str(folder),
        names=list(NAMES),
        uris=[stamp.uri(version) for version in (1, 2, 3)],
        processes=PROCESSES,
        lasts_s=lasts_s,
        kill_every_s=kill_every_s,
        seed=20261122,
    )
    with subprocess.Popen(
        [sys.executable, storm.__file__, json.dumps(vars(settings))],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        try:
            _, said = parent.communicate(timeout=lasts_s + GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(parent.pid, 9)  # with its children
            raise
    assert parent.returncode == 0, f"{parent.returncode} children died:\n{said}"
    return [line for path in sorted(folder.glob("child-*.jsonl")) for line in lines_of(path)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A report; the last line of a killed child may be half there."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def unexpected(lines: list[dict[str, Any]]) -> list[str]:
    return [
        f"{line['command']} {line['name']}: {line['outcome']}\n{line.get('cause', '')}"
        f"{line['message']}"
        for line in lines
        if line["outcome"] not in {"success", *EXPECTED[line["command"]]}
    ]


def not_one_line(lines: list[dict[str, Any]]) -> list[str]:
    typed = [line for line in lines if line["outcome"] != "success"]
    return [line["message"] for line in typed if "\n" in line["message"].strip()]


def report(tell: Tell, what: str, lines: list[dict[str, Any]]) -> None:
    counts = sorted(Counter((line["command"], line["outcome"]) for line in lines).items())
    by_command = [
        f"{command}: "
        + ", ".join(f"{outcome} {count}" for (of, outcome), count in counts if of == command)
        for command in storm.COMMANDS
    ]
    tell(what, {"commands": len(lines), "failures": len(unexpected(lines))}, *by_command)


def still_works(
    client: TritonDeploymentClient, witness: Witness, stamp: StampModel, name: str
) -> None:
    """Create, update, go back and delete; after each of them all agree."""
    client.delete_deployment(name)
    assert witness.agrees(name) is None
    client.create_deployment(name, stamp.uri(1))
    assert witness.agrees(name) == 1
    for version in (3, 1):
        client.update_deployment(name, stamp.uri(version))
        assert witness.agrees(name) == version
    client.delete_deployment(name)
    assert witness.agrees(name) is None


@pytest.mark.timeout(LASTS_S + 2 * GRACE_S + 120)
def test_after_a_storm_repository_records_and_server_agree_and_nothing_is_stray(
    client: TritonDeploymentClient,
    witness: Witness,
    stamp: StampModel,
    tmp_path: Path,
    tell: Tell,
) -> None:
    """And every error on the way is a typed one, of a kind that is to be expected."""
    lines = run_storm(tmp_path, stamp, lasts_s=LASTS_S)
    report(tell, "storm", lines)
    states = {name: witness.agrees(name) for name in NAMES}
    witness.nothing_stray(NAMES)
    for name in CHANGED_AFTER:
        still_works(client, witness, stamp, name)
    for name in NAMES:
        client.delete_deployment(name)
    witness.nothing_stray([])
    assert unexpected(lines) == []
    assert not_one_line(lines) == []
    done = {(line["command"], line["name"]) for line in lines if line["outcome"] == "success"}
    assert {command for command, _ in done} == set(storm.COMMANDS), states
    assert {name for _, name in done} == set(NAMES), states
    if are_all_walked():  # a short storm may leave one of them out
        assert done == {(command, name) for command in storm.COMMANDS for name in NAMES}, states


@pytest.mark.timeout(SHORT_S + 2 * GRACE_S + 120)
def test_after_a_storm_with_killed_processes_one_command_a_name_makes_all_agree(
    client: TritonDeploymentClient,
    witness: Witness,
    stamp: StampModel,
    tmp_path: Path,
    tell: Tell,
) -> None:
    """And nobody is kept out by a lock whose holder is dead."""
    lines = run_storm(tmp_path, stamp, lasts_s=SHORT_S, kill_every_s=KILL_EVERY_S)
    kills = {line["pid"]: line["killed_s"] for line in lines_of(tmp_path / "kills.jsonl")}
    left = {name: witness.view(name).state().name for name in NAMES}
    locks = sorted(path.name for path in witness.repository.iterdir() if path.is_file())
    report(tell, f"storm with {len(kills)} killed, {left}, {locks}", lines)
    # the first command after the storm, one kind a name; it may be refused, and mends all the same
    for name, command in zip(NAMES, ("update", "delete", "create", "update"), strict=True):
        code = first_command(client, command, name, stamp.uri(2))
        assert code in {"success", *EXPECTED[command]} - {"RESOURCE_CONFLICT"}, (command, name)
        served = witness.agrees(name)
        if command == "delete":
            assert served is None
        elif code == "success":
            assert served == 2
    witness.nothing_stray(NAMES)
    for name in CHANGED_AFTER:
        still_works(client, witness, stamp, name)
    for name in NAMES:
        client.delete_deployment(name)
    witness.nothing_stray([])
    assert unexpected(lines) == []
    assert kept_out_by_the_dead(lines, kills) == []
    # in the end all of them, and before that one now and then: how often depends on the machine
    assert len(kills) > PROCESSES
    # at least one of those that were killed last was in the midst of it
    assert "INTERRUPTED" in left.values() or locks
    changes = {
        line["command"]
        for line in lines
        if line["outcome"] == "success" and line["begun_s"] > min(kills.values())
    }
    wanted = {"create", "update", "delete"}
    assert (
        changes >= wanted if are_all_walked() else changes & wanted
    )  # a short one leaves some out


def first_command(client: TritonDeploymentClient, command: str, name: str, uri: str) -> str:
    """Run one command; `success` or its error code."""
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: client.create_deployment(name, uri),
        "update": lambda: client.update_deployment(name, uri),
        "delete": lambda: client.delete_deployment(name),
    }
    try:
        calls[command]()
    except MlflowException as exc:
        return str(exc.error_code)
    return "success"


def kept_out_by_the_dead(lines: list[dict[str, Any]], kills: dict[int, float]) -> list[str]:
    """Conflicts that name a holder who had been dead for a while when the command began."""
    found = []
    for line in lines:
        named = re.search(r"\(process (\d+)\)", line.get("message", ""))
        if line["outcome"] != "RESOURCE_CONFLICT" or named is None:
            continue
        killed_s = kills.get(int(named[1]))
        if killed_s is not None and line["begun_s"] > killed_s + SIGNED_WITHIN_S:
            found.append(line["message"])
    return found


@pytest.mark.timeout(120)
def test_a_lock_that_comes_and_goes_disturbs_no_other_deployment(
    client: TritonDeploymentClient, witness: Witness, stamp: StampModel
) -> None:
    """Triton looks at every file at the repository's root, and fails where one has just gone."""
    name, other = NAMES[0], ModelPlace(open_store(str(witness.repository)), check_name(NAMES[1]))
    client.create_deployment(name, stamp.uri(1))
    done = threading.Event()

    def lock_again_and_again() -> None:
        while not done.is_set():
            with other.lock("somebody else"):
                pass

    thread = threading.Thread(target=lock_again_and_again)
    thread.start()
    try:
        failed = Counter(trouble(client.list_deployments) for _ in range(LOOKS))
        for version in (2, 1, 3, 1):
            update = functools.partial(client.update_deployment, name, stamp.uri(version))
            failed[trouble(update)] += 1
        failed[trouble(functools.partial(client.delete_deployment, name))] += 1
    finally:
        done.set()
        thread.join()
    client.delete_deployment(name)
    assert failed == {"": LOOKS + 5}


def trouble(call: Callable[[], object]) -> str:
    """What the call's error says; empty where it succeeds."""
    try:
        call()
    except MlflowException as exc:
        return str(exc)
    return ""
