"""A real disk that is full, and real permissions that are lost: repositories in a directory."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from itertools import count as counting
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .commands import Fault
from .harness import Repository, Walk, difference
from .points import are_all_walked
from .scenarios import NAME, SCENARIOS
from .test_failing_store import store_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .harness import Bench

#: What a file takes at least.
_PAGE_BYTES = 4096
_DISK_BYTES = 2 * 1024 * 1024


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of our own."""
    mount = tmp_path_factory.mktemp("disk")
    options = f"size={_DISK_BYTES},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture(scope="module")
def small_bench(disk: Path, make_bench: Callable[[Repository], Bench]) -> Iterator[Bench]:
    """A bench on the small disk; its server is gone before the disk is."""
    repository = disk / "repository"
    repository.mkdir()
    bench = make_bench(Repository(str(repository)))
    yield bench
    bench.crash()


@contextmanager
def pages_free(disk: Path, pages: int) -> Iterator[None]:
    """Leave this much room on the disk while the block lasts."""
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    taken = status.f_bavail * status.f_frsize - pages * _PAGE_BYTES
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, taken)
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("label", SCENARIOS)
def test_a_command_on_a_full_disk_changes_nothing_until_there_is_room(
    small_bench: Bench,
    use_bench: Callable[[Bench], Bench],
    disk: Path,
    label: str,
    count: Callable[[str, str, int], None],
) -> None:
    """From no page free to as many as the command needs: real ENOSPC, wherever it strikes.

    A delete needs none: it is what makes room.
    """
    scenario = SCENARIOS[label]
    walk = Walk(use_bench(small_bench), label, scenario)
    # where not all are walked, another one in three for each scenario
    step = 1 if are_all_walked() else 3
    begins = list(SCENARIOS).index(label) % step if scenario.new is not None else 0
    for pages in counting(begins, step):
        with walk.point(f"{pages} pages free"):
            before = small_bench.repository.content()
            with pages_free(disk, pages):
                outcome = small_bench.run_apart(scenario.command)
            if outcome.succeeded:
                walk.check_new()
                break
            walk.check_refused(outcome, "TEMPORARILY_UNAVAILABLE")
            assert "make room" in outcome.message, outcome.message
            left = difference(small_bench.repository.content(), before)
            if left:  # wrong; is it at least put right by the same command, once there is room?
                walk.check_can_be_repeated()
                walk.restore()
            assert not left, f"left behind, until the same command put it right: {left}"
            walk.check_old()
        assert pages < _DISK_BYTES // _PAGE_BYTES, "the command never succeeds"
    count("steps of a full disk", label, walk.points)
    walk.conclude()
    assert scenario.new is not None or walk.points == 1, "a full disk kept delete from making room"


def set_modes(directory: Path, mode: int) -> None:
    """Give a directory and those below it this mode."""
    directory.chmod(0o755)
    for path in [*directory.rglob("*"), directory]:
        if path.is_dir():
            path.chmod(mode)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("label", [label for label in SCENARIOS if label != "create"])
def test_a_command_on_a_directory_that_may_not_be_written_changes_nothing(
    bench: Bench, label: str
) -> None:
    """And says so, a delete, too. Once it may be written the same command succeeds."""
    scenario = SCENARIOS[label]
    walk = Walk(bench, label, scenario)
    directory = Path(bench.repository.address, NAME)
    with walk.point("the model's directory is read-only"):
        before = bench.repository.content()
        set_modes(directory, 0o555)
        outcome = bench.run_apart(scenario.command, obey_permissions=True)
        set_modes(directory, 0o755)
        walk.check_refused(outcome, "PERMISSION_DENIED")
        walk.check_unchanged(before)
        walk.check_can_be_repeated()
    walk.conclude()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("label", ["create", "update of shared files", "delete"])
def test_permission_that_is_lost_on_the_way_is_put_right_by_the_same_command(
    bench: Bench, label: str, count: Callable[[str, str, int], None]
) -> None:
    """The whole repository becomes read-only before a call; what then fails is the real thing.

    Every scenario has the same walk with an error that is made up, in `test_failing_store.py`.
    """
    scenario = SCENARIOS[label]
    walk = Walk(bench, label, scenario)
    root = Path(bench.repository.address)
    for where, number in walk.chosen(store_calls(walk.calls)):
        with walk.point(f"the repository is read-only {where}"):
            fault = Fault("lose-permission", number, (str(root),))
            outcome = bench.run_apart(scenario.command, fault, obey_permissions=True)
            set_modes(root, 0o755)
            if not outcome.succeeded:
                walk.check_refused(outcome, "PERMISSION_DENIED")
                walk.check_neighbour()
                if scenario.is_update:
                    walk.check_served()
                walk.check_can_be_repeated()
            walk.check_new()
            walk.restore()
    count("calls from which all is really read-only", label, walk.points)
    walk.conclude()
