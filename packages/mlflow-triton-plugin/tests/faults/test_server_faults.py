"""The server fails while a command is at it: killed, stopped, slow, refusing, never done.

What `test_errors.py` has is left out: a server that is down from the start, a create that is slower
than its deadline; and `test_deployments.py`: a create that is refused.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin import changing

from .hammer_models import CONFIG, register_directory, register_stamp, write_artifact
from .points import chosen
from .server_faults import (
    ENDS_WITHIN_S,
    LOADING,
    NAME,
    SCENARIOS,
    UPDATES,
    Rig,
    Scenario,
    Tripwire,
    asked,
    asked_all_the_time,
    meanwhile,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Long enough that the server is in the midst of a step when something happens to it.
STEP_S = 1.0
#: TRITON_REQUEST_TIMEOUT where a server does not answer.
REQUEST_TIMEOUT_S = 2.0
LOAD_TIMEOUT_S = 1.0
#: A load that takes longer than LOAD_TIMEOUT_S.
SLOW_S = 3.0
#: The part of a command that waits for nobody: resolving, copying, writing. A second, and room for
#: a busy machine; it has to be less than ENDS_WITHIN_S, which is what a command would wait.
OWN_WORK_S = 12.0
#: How long a server is away, and how soon a client that tried all the while finds it again. gRPC
#: waits longer and longer between two attempts to connect: six seconds by then, two minutes later.
OUTAGE_S = 10.0
FOUND_AGAIN_WITHIN_S = 3.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faulty")


@pytest.fixture(scope="module")
def shared_rig(
    repository: Path, registered: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    stamp = register_stamp(registered("stamp"), folder)
    rig = Rig(repository, folder / "templates", stamp, folder / "tritonserver.log")
    yield rig
    rig.kill()


@pytest.fixture
def rig(shared_rig: Rig, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("TRITON_MODEL_REPO", str(repository))
    yield shared_rig
    shared_rig.stamp.take_back()


# -- killed -----------------------------------------------------------------------------------


@pytest.mark.timeout(240)
@pytest.mark.parametrize("label", SCENARIOS)
def test_a_server_killed_before_any_call_costs_nothing(
    rig: Rig, label: str, count: Callable[[str, str, int], None]
) -> None:
    """One line, in time; a fresh server serves what was committed; the command again succeeds."""
    scenario, points = SCENARIOS[label], 0
    calls = calls_of(rig, scenario)
    assert len(calls) >= 3, "a check, the load or unload, and a look at what became of it"
    for at, _ in walked(calls, label):
        before = rig.prepare(scenario)
        client = rig.client()
        with Tripwire(at, before=lambda _: rig.kill()).laid() as wire:
            message = refused(
                lambda: scenario.run(client, rig.stamp),  # noqa: B023 - run at once
                "TEMPORARILY_UNAVAILABLE",
                within_s=ENDS_WITHIN_S,
            )
        assert wire.tripped
        assert rig.triton.grpc_url in message, f"{wire.calls}: {message}"
        rig.start()
        rig.check_whole_or_interrupted(scenario, before)
        rig.check_can_be_repeated(scenario)
        points += 1
    count("server killed before a call", label, points)


def calls_of(rig: Rig, scenario: Scenario) -> list[str]:
    """Return the calls to its server of a command that nothing disturbs."""
    rig.prepare(scenario)
    with Tripwire().laid() as wire:
        scenario.run(rig.client(), rig.stamp)
    return wire.calls


def walked(calls: list[str], label: str) -> list[tuple[int, str]]:
    """Return the calls, with their numbers from 1, that a server is killed before."""
    return chosen(
        enumerate(calls, 1),
        list(SCENARIOS).index(label),
        between=1,
        kind=lambda numbered: numbered[1],
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("label", LOADING)
def test_a_server_killed_before_any_call_of_a_refused_command_costs_nothing(
    rig: Rig, label: str, count: Callable[[str, str, int], None]
) -> None:
    """The calls by which what was refused is put back are among them."""
    scenario, points = LOADING[label], 0
    assert scenario.version is not None
    calls = calls_of_refused(rig, scenario)
    assert len(calls) > calls.index("load") + 1, "there are calls to put it back"
    for at, _ in walked(calls, label):
        before = rig.prepare(scenario)
        rig.stamp.order(scenario.version, "initialize", "raise no such weights")
        client = rig.client()
        with Tripwire(at, before=lambda _: rig.kill()).laid() as wire:
            refused(
                lambda: scenario.run(client, rig.stamp),  # noqa: B023 - run at once
                "TEMPORARILY_UNAVAILABLE",
                "INVALID_PARAMETER_VALUE",  # the reason why it was refused
                within_s=ENDS_WITHIN_S,
            )
        assert wire.tripped
        rig.stamp.take_back()
        rig.start()
        rig.check_whole_or_interrupted(scenario, before)
        rig.check_can_be_repeated(scenario)
        points += 1
    count("server killed before a call of a refused command", label, points)


def calls_of_refused(rig: Rig, scenario: Scenario) -> list[str]:
    """Return the calls to its server of a command whose model does not load."""
    rig.prepare(scenario)
    assert scenario.version is not None
    rig.stamp.order(scenario.version, "initialize", "raise no such weights")
    with Tripwire().laid() as wire:
        refused(
            lambda: scenario.run(rig.client(), rig.stamp),
            "INVALID_PARAMETER_VALUE",
            within_s=ENDS_WITHIN_S,
        )
    return wire.calls


@pytest.mark.timeout(120)
@pytest.mark.parametrize("label", SCENARIOS)
def test_a_server_killed_while_it_loads_or_unloads_costs_nothing(
    rig: Rig, label: str, count: Callable[[str, str, int], None]
) -> None:
    """The same, with the model's initialize or finalize begun and not done."""
    scenario = SCENARIOS[label]
    before = rig.prepare(scenario)
    step = "finalize" if scenario.version is None else "initialize"
    version = scenario.version or scenario.old
    assert version is not None
    rig.stamp.order(version, step, f"sleep {STEP_S + ENDS_WITHIN_S}")
    client = rig.client()

    def kill() -> None:
        rig.stamp.wait_until_begun(version, step)
        rig.kill()

    with meanwhile(kill):
        message = refused(
            lambda: scenario.run(client, rig.stamp),
            "TEMPORARILY_UNAVAILABLE",
            within_s=ENDS_WITHIN_S,
        )
    assert rig.triton.grpc_url in message
    rig.stamp.take_back()
    rig.start()
    rig.check_whole_or_interrupted(scenario, before)
    rig.check_can_be_repeated(scenario)
    count(f"server killed in the midst of {step}", label, 1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("label", UPDATES)
def test_a_server_killed_while_the_old_version_unloads_after_the_new_one_serves(
    rig: Rig, label: str
) -> None:
    """Triton unloads the old version when the new one is READY; the update is not held up."""
    scenario = UPDATES[label]
    before = rig.prepare(scenario)
    assert scenario.old is not None
    rig.stamp.order(scenario.old, "finalize", f"sleep {ENDS_WITHIN_S}")
    begun_s = time.monotonic()
    scenario.run(rig.client(), rig.stamp)
    assert time.monotonic() - begun_s < OWN_WORK_S
    rig.stamp.wait_until_begun(scenario.old, "finalize")
    rig.kill()
    rig.stamp.take_back()
    rig.start()
    assert rig.snapshot() != before
    assert rig.witness().agrees(NAME) == scenario.version
    rig.check_can_be_repeated(scenario)


@pytest.mark.timeout(120)
def test_the_same_client_goes_on_once_its_server_is_back(rig: Rig) -> None:
    """A program that keeps its client, and tries again and again, need not be restarted."""
    scenario = SCENARIOS["update"]
    rig.prepare(scenario)
    client, port = rig.client(), int(rig.triton.grpc_url.rpartition(":")[2])
    rig.kill()
    back_s = time.monotonic() + OUTAGE_S
    while time.monotonic() < back_s:
        refused(
            lambda: scenario.run(client, rig.stamp),
            "TEMPORARILY_UNAVAILABLE",
            within_s=ENDS_WITHIN_S,
        )
        time.sleep(0.2)
    rig.start(grpc_port=port)
    deadline = time.monotonic() + FOUND_AGAIN_WITHIN_S
    while said := trouble(lambda: scenario.run(client, rig.stamp)):
        assert time.monotonic() < deadline, f"the server is there, and yet: {said}"
        time.sleep(0.05)
    assert rig.witness().agrees(NAME) == scenario.version


def trouble(call: Callable[[], object]) -> str:
    """What the call's error says; empty where it succeeds."""
    try:
        call()
    except MlflowException as exc:
        return str(exc)
    return ""


# -- stopped ----------------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("midst", [False, True], ids=["before the load", "in the midst of it"])
@pytest.mark.parametrize("label", LOADING)
def test_a_server_stopped_during_the_load_does_not_hold_the_command_up(
    rig: Rig,
    label: str,
    midst: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command ends in time, and the same command again succeeds once the server goes on."""
    monkeypatch.setenv("TRITON_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    monkeypatch.setattr(changing, "PUT_BACK_TIMEOUT_S", REQUEST_TIMEOUT_S)
    scenario, at = LOADING[label], load_call(rig, label)
    before = rig.prepare(scenario)
    assert scenario.version is not None
    version, client = scenario.version, rig.client()
    if midst:
        rig.stamp.order(version, "initialize", f"sleep {STEP_S}")
    stopped = rig.stopped()

    def stop(_: str = "") -> None:
        if midst:
            rig.stamp.wait_until_begun(version, "initialize")
        stopped.__enter__()

    def run() -> str:
        return refused(
            lambda: scenario.run(client, rig.stamp, load_timeout=str(LOAD_TIMEOUT_S)),
            "DEADLINE_EXCEEDED",
            within_s=LOAD_TIMEOUT_S + changing.PUT_BACK_TIMEOUT_S + OWN_WORK_S,
        )

    try:
        if midst:
            with meanwhile(stop):
                message = run()
        else:
            with Tripwire(at, before=stop).laid() as wire:
                message = run()
            assert wire.calls[at - 1] == "load"
    finally:
        stopped.__exit__(None, None, None)
    assert NAME in message
    assert f"{LOAD_TIMEOUT_S:g} s" in message
    rig.stamp.take_back()
    # nobody could ask the server, so nothing was taken away that it may be loading
    assert [each["state"] for each in rig.client().list_deployments()] == ["INTERRUPTED"]
    record, config = f"{NAME}/mlflow-meta.json", rig.witness().view(NAME).config()
    assert rig.snapshot().get(record) == before.get(record)
    if scenario.old is not None:  # pinned, so that a server that starts now serves it
        assert config is not None
        assert config.served((1, 2, 3)) == (scenario.old,)
    rig.check_can_be_repeated(scenario)


def load_call(rig: Rig, label: str) -> int:
    """The number of the call by which a scenario loads, tried out."""
    return calls_of(rig, LOADING[label]).index("load") + 1


# -- refused ----------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("label", UPDATES)
def test_a_load_that_the_model_refuses_changes_nothing(
    rig: Rig, label: str, tmp_path: Path
) -> None:
    """Its reason is told, and the old version answers throughout."""
    scenario = UPDATES[label]
    before = rig.prepare(scenario)
    assert scenario.version is not None
    assert scenario.old is not None
    rig.stamp.order(scenario.version, "initialize", "raise no such weights: layer_7")
    with asked_all_the_time(rig, scenario.old, tmp_path):
        message = refused(
            lambda: scenario.run(rig.client(), rig.stamp),
            "INVALID_PARAMETER_VALUE",
            within_s=ENDS_WITHIN_S,
        )
        assert "no such weights: layer_7" in message
        assert rig.snapshot() == before
        rig.witness().agrees(NAME)
    rig.stamp.take_back()
    rig.check_can_be_repeated(scenario)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", ["create", "update"])
def test_an_onnx_file_that_is_none_changes_nothing(
    rig: Rig, command: str, tmp_path: Path, registered: Callable[[str], str]
) -> None:
    """Triton's reason is told."""
    scenario = SCENARIOS[command]
    before = rig.prepare(scenario)
    config = CONFIG.replace('backend: "python"', 'backend: "onnxruntime"')
    name = registered("garbage")
    rig_client = rig.client()
    garbage = write_artifact(tmp_path / "garbage", b"this is no ONNX", config=config)
    mlflow.MlflowClient().create_registered_model(name)
    uri = f"models:/{name}/{register_directory(name, garbage)}"

    def attempt() -> None:
        message = refused(
            lambda: getattr(rig_client, scenario.method)(NAME, uri),
            "INVALID_PARAMETER_VALUE",
            within_s=ENDS_WITHIN_S,
        )
        assert "rotobuf" in message, message  # ONNX Runtime's words: Protobuf parsing failed
        assert rig.snapshot() == before
        assert rig.witness().agrees(NAME) == scenario.old

    if scenario.old is None:
        attempt()
        rig.witness().nothing_stray([])
        return
    with asked_all_the_time(rig, scenario.old, tmp_path):
        attempt()


# -- slow -------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("label", UPDATES)
def test_a_load_slower_than_its_deadline_changes_nothing(
    rig: Rig, label: str, tmp_path: Path
) -> None:
    """No request fails, and once the command has ended the old version answers."""
    scenario = UPDATES[label]
    before = rig.prepare(scenario)
    version, old = scenario.version, scenario.old
    assert version is not None
    assert old is not None
    rig.stamp.order(version, "initialize", f"sleep {SLOW_S}")
    with asked(rig, tmp_path, old, version, old) as (board, tallies):
        board.start_update()
        message = refused(
            lambda: scenario.run(rig.client(), rig.stamp, load_timeout=str(LOAD_TIMEOUT_S)),
            "DEADLINE_EXCEEDED",
            within_s=SLOW_S + ENDS_WITHIN_S,
        )
        board.start_update()  # now it is the old one's turn again: both may have begun
        board.end_update()
        board.end_update()
        assert "load_timeout" in message
        assert rig.snapshot() == before
        assert rig.witness().agrees(NAME) == old
    (tally,) = tallies
    assert tally.failures == 0, tally.told
    rig.check_can_be_repeated(scenario, load_timeout=str(SLOW_S + ENDS_WITHIN_S))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("label", UPDATES)
def test_a_version_whose_load_apart_was_too_slow_never_answers(
    rig: Rig, label: str, tmp_path: Path
) -> None:
    """Triton cannot be told to give up a load; apart, nobody meets what comes of it."""
    scenario = UPDATES[label]
    rig.prepare(scenario)
    assert scenario.version is not None
    assert scenario.old is not None
    rig.stamp.order(scenario.version, "initialize", f"sleep {SLOW_S}")
    with asked_all_the_time(rig, scenario.old, tmp_path):
        refused(
            lambda: scenario.run(
                rig.client(), rig.stamp, load_timeout=str(LOAD_TIMEOUT_S), validate="load"
            ),
            "DEADLINE_EXCEEDED",
            within_s=SLOW_S + ENDS_WITHIN_S,
        )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("label", LOADING)
def test_a_load_that_outlasts_the_putting_back_is_left_interrupted(
    rig: Rig,
    label: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its files stay, for Triton is at them; a warning says what to do, and that succeeds."""
    monkeypatch.setattr(changing, "PUT_BACK_TIMEOUT_S", 1.0)
    scenario = LOADING[label]
    before = rig.prepare(scenario)
    assert scenario.version is not None
    rig.stamp.order(scenario.version, "initialize", f"sleep {ENDS_WITHIN_S}")
    client = rig.client()
    refused(
        lambda: scenario.run(client, rig.stamp, load_timeout=str(LOAD_TIMEOUT_S)),
        "DEADLINE_EXCEEDED",
        within_s=LOAD_TIMEOUT_S + changing.PUT_BACK_TIMEOUT_S + OWN_WORK_S,
    )
    assert "run the command again" in caplog.text
    (listed,) = client.list_deployments()
    assert listed["state"] == "INTERRUPTED"
    after = rig.snapshot()
    assert after.keys() >= before.keys()
    assert f"{NAME}/{scenario.version}/model.py" in after
    if scenario.old is not None:
        rig.witness().answers(NAME, scenario.old)
    rig.stamp.take_back()  # the load ends
    rig.check_can_be_repeated(scenario)


# -- never done -------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_an_unload_that_never_ends_does_not_hold_delete_up_nor_anybody_else(
    rig: Rig, tmp_path: Path
) -> None:
    """A request is in flight: delete says what it waited for, is listed, and goes on later."""
    scenario = SCENARIOS["delete"]
    rig.prepare(scenario)
    old, other = scenario.old, f"{NAME}-other"
    assert old is not None
    client, asking = rig.client(), rig.client()
    client.create_deployment(other, rig.stamp.uri(1))
    rig.stamp.order(old, "execute", f"sleep {3 * ENDS_WITHIN_S}")
    answers: list[list[float]] = []

    def ask() -> None:
        answered = asking.predict(NAME, {"x": np.ones(2, np.float32)})
        answers.append(answered["outputs"]["stamp"].tolist())

    with meanwhile(ask):
        rig.stamp.wait_until_begun(old, "execute")
        message = refused(
            lambda: client.delete_deployment(NAME, config={"load_timeout": "2"}),
            "DEADLINE_EXCEEDED",
            within_s=2 + OWN_WORK_S,
        )
        for words in (f"still busy with {NAME} after 2 s", "UNLOADING", "again"):
            assert words in message
        states = {each["name"]: each["state"] for each in client.list_deployments()}
        assert states == {NAME: "INTERRUPTED", other: "READY"}
        begun_s = time.monotonic()
        client.update_deployment(other, rig.stamp.uri(3))
        assert time.monotonic() - begun_s < OWN_WORK_S, "another deployment was held up"
        assert rig.witness().agrees(other) == 3
        assert not answers, "the request is over, and should not be"
        rig.stamp.take_back()
    assert answers == [[3 * old + 1] * 2], "the request in flight was answered, and wholly"
    client.delete_deployment(NAME)
    assert rig.witness().agrees(NAME) is None
    rig.witness().nothing_stray([other])
