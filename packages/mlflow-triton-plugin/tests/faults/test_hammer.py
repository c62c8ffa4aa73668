"""Never a failed request: while clients hammer a deployment, updates and roll-backs go by."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.server import _grpc

from . import hammer as hammer_script
from .hammer import Board, Tally
from .hammer_models import register_stamp
from .points import are_all_walked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Tell
    from .hammer_models import StampModel

#: `nox -s faults` has more.
SWITCHES = 50 if are_all_walked() else 15
#: Processes that ask, and threads in each.
CLIENTS = ("raw", "raw", "plugin")
THREADS = 2
#: Updates and roll-backs that cannot be: each in between two that can.
REFUSED = 12 if are_all_walked() else 4
UPDATE_S = 60.0

FOURTH = 4


@pytest.fixture(scope="module")
def stamp(registered: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> StampModel:
    """Version 4 never loads."""
    model = register_stamp(registered("stamp"), tmp_path_factory.mktemp("stamp"), versions=FOURTH)
    model.order(FOURTH, "initialize", "raise no such weights")
    return model


@contextmanager
def hammered(address: str, name: str, board: Board, path: Path) -> Iterator[Tally]:
    """Clients hammer the deployment for as long as the block lasts; then their tally is whole."""
    script, total = hammer_script.__file__, Tally()
    processes = [
        subprocess.Popen(
            [sys.executable, script, kind, address, name, str(path), str(THREADS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in CLIENTS
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "a client had no first answer"
        yield total
        board.stop()
        for process in processes:
            said, _ = process.communicate(timeout=hammer_script.TIMEOUT_S + 10)
            assert process.returncode == 0
            total.add(Tally.from_json(said))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def a_third_now_and_then(switches: int) -> list[int]:
    """1, 2, 1, 2, … and every seventh time 3, for which an older version has to go."""
    plan, last = [], 1
    for number in range(1, switches + 1):
        wanted = 3 if number % 7 == 0 else 2 if last == 1 else 1
        plan.append(wanted)
        last = wanted
    return plan


@pytest.mark.timeout(600)
def test_no_request_fails_or_mixes_versions_while_updates_and_roll_backs_go_by(
    client: TritonDeploymentClient,
    name: str,
    stamp: StampModel,
    triton: LocalTriton,
    tmp_path: Path,
    tell: Tell,
) -> None:
    """And what is asked after an update has returned is answered by the new version."""
    plan = a_third_now_and_then(SWITCHES)
    board = Board(tmp_path / "board", [1, *plan])
    client.create_deployment(name, stamp.uri(1))
    copied = pruned = 0
    begun_s = time.monotonic()
    with hammered(triton.grpc_url, name, board, tmp_path / "board") as tally:
        on_disk = {1}
        for version in plan:
            board.start_update()
            updated = client.update_deployment(name, stamp.uri(version))
            board.end_update()
            assert updated["served_versions"] == [version]
            copied += version not in on_disk
            pruned += len(on_disk - set(updated["versions"]))
            on_disk = set(updated["versions"])
    took_s = time.monotonic() - begun_s
    tell(
        "hammer",
        {
            "requests": tally.requests,
            "updates": board.done,
            "failures": tally.failures,
            "copies": copied,
            "prunes": pruned,
            "s the slowest request": f"{tally.slowest_s:.2f}",
            "s": f"{took_s:.0f}",
        },
    )
    assert tally.failures == 0, tally.told
    assert board.done == SWITCHES
    assert min(copied, pruned) > SWITCHES // 10
    assert set(tally.versions) == {1, 2, 3}
    # so many that each update had requests in flight from every client
    assert tally.requests > 10 * SWITCHES * len(CLIENTS) * THREADS


@pytest.mark.timeout(600)
def test_no_request_fails_while_updates_are_refused(
    client: TritonDeploymentClient,
    name: str,
    stamp: StampModel,
    triton: LocalTriton,
    tmp_path: Path,
    tell: Tell,
) -> None:
    """The old version answers everything, before, during and after an update that fails."""
    plan: list[tuple[int, bool]] = []  # the version asked for, and whether it can be had
    targets = [1]
    for number in range(REFUSED):
        plan += [(FOURTH, False), (1 + targets[-1] % 2, True)]
        targets += [targets[-1], 1 + targets[-1] % 2]
        if number % 3 == 2:  # a roll-back is refused as well
            plan.append((1 + targets[-1] % 2, False))
            targets.append(targets[-1])
    board = Board(tmp_path / "board", targets)
    # a refused fourth version must not push out the one that is gone back to
    keep = {"keep_versions": "3"}
    client.create_deployment(name, stamp.uri(1))
    refused = 0
    with hammered(triton.grpc_url, name, board, tmp_path / "board") as tally:
        for (version, possible), after in zip(plan, targets[1:], strict=True):
            if not possible:
                stamp.order(version, "initialize", "raise no such weights")
            board.start_update()
            if possible:
                client.update_deployment(name, stamp.uri(version), config=keep)
            else:
                with pytest.raises(MlflowException, match="no such weights") as raised:
                    client.update_deployment(name, stamp.uri(version), config=keep)
                assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
                refused += 1
            board.end_update()
            if not possible and version != FOURTH:
                (stamp.control / f"{version}.initialize").unlink()
            assert client.get_deployment(name)["served_versions"] == [after]
    tell(
        "hammer, refused updates in between",
        {
            "requests": tally.requests,
            "updates": board.done - refused,
            "refused": refused,
            "failures": tally.failures,
            "s the slowest request": f"{tally.slowest_s:.2f}",
        },
    )
    assert tally.failures == 0, tally.told
    assert refused > REFUSED
    assert set(tally.versions) == {1, 2}
    assert tally.requests > 10 * board.done * len(CLIENTS) * THREADS


@pytest.mark.timeout(60)
def test_threads_that_share_a_client_all_get_a_typed_error_when_the_deployment_goes(
    client: TritonDeploymentClient,
    name: str,
    stamp: StampModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both learn at the same time that what the client remembered is out of date."""
    client.create_deployment(name, stamp.uri(1))
    inputs = {"x": np.ones(2, np.float32)}
    client.predict(name, inputs)
    get_deploy_client("triton").delete_deployment(name)
    together, raised = threading.Barrier(2, timeout=UPDATE_S), list[BaseException]()
    infer = _grpc.GrpcServer.infer

    def fail_together(*args: object) -> object:
        try:
            return infer(*args)  # type: ignore[arg-type]
        finally:
            together.wait()

    def predict() -> None:
        try:
            client.predict(name, inputs)
        except BaseException as exc:  # noqa: BLE001 - it is looked at below
            raised.append(exc)

    monkeypatch.setattr(_grpc.GrpcServer, "infer", fail_together)
    threads = [threading.Thread(target=predict) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [getattr(each, "error_code", repr(each)) for each in raised] == (
        ["RESOURCE_DOES_NOT_EXIST"] * 2
    )
