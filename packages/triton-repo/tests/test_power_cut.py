"""A power cut leaves the old state or the new one, and after success the new one.

A disk keeps what was flushed; of what was not, it may keep any part. Here every flush of a real
command is recorded, and from that every moment's worst cases are built: directories as they were
when they were last flushed, or after any number of the changes since; files with the content of
their last flush, or today's; what was never flushed, empty.

Beyond flushing, a file system is asked to bring the changes of one directory to the disk in their
order; and, only where versions are exchanged in place, to do a rename from one directory to another
as a whole. ext4, XFS, Btrfs and ZFS do both. After success neither is needed: every directory and
every file has been flushed by itself.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.errors import TritonRepoError
from triton_repo.store import _copy, _exchange

from .test_placement import NAME, SCENARIOS, Bench, Rehearsal, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .test_placement import Snapshot

    #: A directory as a dict of what is in it, a file as its content.
    Disk = dict[str, Any]

#: Inode numbers are never used again there.
_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
#: Of the disks between the least and the most that may be there; `nox -s faults` tries more.
_MIXES = 30 if os.environ.get("FAULTS_EVERY_POINT") else 8
#: One moment in so many begins a recovery that is cut off too.
_STRIDE = 5 if os.environ.get("FAULTS_EVERY_POINT") else 15
#: What changes a directory, or makes a change durable. Files that are made or written to by other
#: calls are seen at the next of these.
_CALLS = (
    *("mkdir", "rename", "replace", "unlink", "rmdir", "symlink", "link", "open"),
    *("fsync", "fdatasync"),
)


class Link(bytes):
    """Where a symbolic link leads; on the disk as soon as its name is."""


@dataclass(frozen=True)
class Moment:
    """What had been done when a call was about to be made, and how much of it was flushed.

    Attributes:
        call: the call, and what it was given.
        changes: by directory, how many changes it had seen.
        flushed: by directory, how many of them are on the disk, where renames are whole.
        flushed_alone: the same, where only a directory's own flush counts.
        contents: by file, its content.
        flushed_contents: by file, its content at its last flush.
    """

    call: str
    changes: dict[int, int]
    flushed: dict[int, int]
    flushed_alone: dict[int, int]
    contents: dict[int, bytes]
    flushed_contents: dict[int, bytes]


@dataclass
class Recorder:
    """Watches the directory `root` while something is done to it.

    Directories and files go by their inode numbers.
    """

    root: Path
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.top = self.root.stat().st_ino
        self.entries: dict[int, dict[str, int]] = {}
        self.contents: dict[int, bytes] = {}
        #: By directory, its changes in their order: the names that each of them changed.
        self.changes: defaultdict[int, list[dict[str, int | None]]] = defaultdict(list)
        #: Changes of several directories at once: by directory, which of its changes it was.
        self.renames: list[dict[int, int]] = []
        self.look()
        self.flushed = {each: len(made) for each, made in self.changes.items()}
        self.flushed_alone = dict(self.flushed)
        self.flushed_contents = dict(self.contents)

    def look(self) -> None:
        """Compare the tree with what was last seen; what differs is one change."""
        entries: dict[int, dict[str, int]] = {}
        self._scan(self.root, entries)
        rename: dict[int, int] = {}
        for directory, now in entries.items():
            before = self.entries.get(directory, {})
            names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
            if names:
                rename[directory] = len(self.changes[directory])
                self.changes[directory].append({name: now.get(name) for name in names})
        if len(rename) > 1:
            self.renames.append(rename)
        self.entries.update(entries)

    def _scan(self, directory: Path, entries: dict[int, dict[str, int]]) -> None:
        found = entries[directory.stat().st_ino] = {}
        with os.scandir(directory) as below:
            for entry in below:
                found[entry.name] = entry.inode()
                if entry.is_symlink():
                    self.contents[entry.inode()] = Link(os.fsencode(Path(entry.path).readlink()))
                elif entry.is_dir(follow_symlinks=False):
                    self._scan(Path(entry.path), entries)
                else:
                    self.contents[entry.inode()] = Path(entry.path).read_bytes()

    def note(self, call: str) -> None:
        """This is a moment at which the power may fail."""
        self.look()
        self.moments.append(
            Moment(
                call,
                {each: len(made) for each, made in self.changes.items()},
                dict(self.flushed),
                dict(self.flushed_alone),
                dict(self.contents),
                dict(self.flushed_contents),
            )
        )

    def flush(self, descriptor: int) -> None:
        """What a descriptor is open for is on the disk."""
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.flushed_alone[status.st_ino] = len(self.changes[status.st_ino])
            self.flushed[status.st_ino] = len(self.changes[status.st_ino])
            self._complete(self.flushed)
        elif status.st_ino in self.contents:
            self.flushed_contents[status.st_ino] = self.contents[status.st_ino]

    def _complete(self, kept: dict[int, int]) -> None:
        """Let every rename that one directory keeps be kept by the other as well."""
        again = True
        while again:
            again = False
            for rename in self.renames:
                if any(kept.get(each, 0) > place for each, place in rename.items()):
                    for each, place in rename.items():
                        again = again or kept.get(each, 0) <= place
                        kept[each] = max(kept.get(each, 0), place + 1)

    def worst_cases(self, moment: Moment, *, alone: bool = False) -> Iterator[Disk]:
        """What may be on the disk: as little as may be, as much as may be, and some in between.

        Args:
            moment: when the power fails.
            alone: of a rename, either directory may keep its half without the other.
        """
        least = moment.flushed_alone if alone else moment.flushed
        by_chance = random.Random(moment.call)  # noqa: S311 - the same in every run

        def any_of_them(low: int, high: int) -> int:
            return by_chance.choice((low, high, by_chance.randint(low, high)))

        picks: list[Callable[[int, int], int]] = [min, max, *[any_of_them] * _MIXES]
        for pick in picks:
            kept = {each: pick(least.get(each, 0), made) for each, made in moment.changes.items()}
            if not alone:
                self._complete(kept)
            contents = {
                each: now
                if isinstance(now, Link)
                else (moment.flushed_contents.get(each, b""), now)[pick(0, 1)]
                for each, now in moment.contents.items()
            }
            yield self._tree(self.top, kept, contents)

    def _tree(self, directory: int, kept: dict[int, int], contents: dict[int, bytes]) -> Disk:
        names: dict[str, int | None] = {}
        for changed in self.changes[directory][: kept.get(directory, 0)]:
            names.update(changed)
        return {
            name: contents[inode] if inode in contents else self._tree(inode, kept, contents)
            for name, inode in names.items()
            if inode is not None
        }


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Record what is done to `root` in this block; the last moment is its end."""
    recorder = Recorder(root)

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            with recorder.lock:
                recorder.note(f"{name} {' '.join(map(str, arguments))} #{len(recorder.moments)}")
                result = real(*arguments, **options)
                recorder.look()
                if "sync" in name:
                    recorder.flush(arguments[0])
                return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        exchanging = _exchange._renameat2()
        if exchanging is not None:
            replacement = watched("renameat2", exchanging)
            patch.setattr(_exchange, "_renameat2", lambda: replacement)
        yield recorder
    recorder.note("success")


def flat(disk: Disk, below: str = "") -> Snapshot:
    """As `Bench.snapshot` says it."""
    found: Snapshot = {}
    for name, content in disk.items():
        found[below + name] = None if isinstance(content, dict) else content
        if isinstance(content, dict):
            found.update(flat(content, f"{below}{name}/"))
    return found


def rebuild(root: Path, disk: Snapshot) -> None:
    """Put on a new disk what the power cut left."""
    shutil.rmtree(root)
    root.mkdir()
    for path, content in sorted(disk.items()):
        if content is None:
            (root / path).mkdir()
        elif isinstance(content, Link):
            (root / path).symlink_to(os.fsdecode(content))
        else:
            (root / path).write_bytes(content)


def in_memory() -> bool:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(_MEMORY)], capture_output=True, text=True, check=False
    )
    return kind.stdout.strip() == "tmpfs" and os.access(_MEMORY, os.W_OK)


@pytest.fixture
def bench() -> Iterator[Bench]:
    if not in_memory():
        pytest.skip(f"{_MEMORY} is no tmpfs: inode numbers may be used again")
    with TemporaryDirectory(dir=_MEMORY) as directory:
        yield Bench(Path(directory))


@pytest.fixture(autouse=True)
def _same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_repo.placement._now", lambda: "2026-01-01T00:00:00+00:00")


@dataclass
class PowerCut:
    """Something that is done to a model, recorded, and what is checked of each disk it may leave.

    Attributes:
        rehearsal: says what is old and what is new.
        command: is done.
    """

    rehearsal: Rehearsal
    command: Callable[[], object]

    def __post_init__(self) -> None:
        self.bench = self.rehearsal.bench
        with recording(self.bench.root) as self.recorder:
            self.command()
        self.reported = self.bench.snapshot()
        self.disks = 0
        self.seen: set[frozenset[tuple[str, bytes | None]]] = set()

    def wrong(self) -> list[str]:
        """What no power cut may leave."""
        return [*self._lost(), *self._mixed()]

    def _lost(self) -> Iterator[str]:
        """What a success has reported and a power cut then takes."""
        expected: Snapshot = {}
        if self.reported is not None:
            expected = {NAME: None, **prefixed(self.reported)}
        for disk in self.recorder.worst_cases(self.recorder.moments[-1], alone=True):
            self.disks += 1
            found = flat(disk)
            yield from (
                f"after success: {path}: {found.get(path)!r} instead of {expected.get(path)!r}"
                for path in sorted({**found, **expected})
                if path not in found or path not in expected or found[path] != expected[path]
            )

    def _mixed(self) -> Iterator[str]:
        """What is neither old nor new after a power cut before the success."""
        alone = not self.rehearsal.scenario.in_place
        for moment in self.recorder.moments[:-1]:
            for disk in self.recorder.worst_cases(moment, alone=alone):
                self.disks += 1
                found = flat(disk)
                if frozenset(found.items()) in self.seen:
                    continue
                self.seen.add(frozenset(found.items()))
                rebuild(self.bench.root, found)
                try:
                    self._check(moment.call)
                except (AssertionError, LookupError, OSError, ValueError, TritonRepoError) as exc:
                    yield f"power cut before {moment.call}: {exc!r}; on the disk: {sorted(found)}"

    def _check(self, where: str) -> None:
        """A server that starts now serves what was committed; a command that comes now recovers."""
        if _exchange._renameat2() or not self.rehearsal.scenario.in_place:
            self.rehearsal.check_readers(where)  # else there is a moment with neither old nor new
        self.bench.place.recover()
        now = self.bench.snapshot()
        if now != self.rehearsal.old:
            assert now == self.rehearsal.new, "neither old nor new"
        assert not list(self.bench.root.rglob("journal.json")), "journal"
        assert not list(self.bench.root.rglob("_mlflow_triton_[ts]*")), "temporary files"


def prefixed(snapshot: Snapshot) -> Snapshot:
    return {f"{NAME}/{path}": content for path, content in snapshot.items()}


@pytest.fixture(params=["small files", "large files", "three-step exchange"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways to the disk: at once, in the background, and without renameat2."""
    if request.param == "large files":
        monkeypatch.setattr(_copy, "_SMALL_BYTES", 1)
    if request.param == "three-step exchange":
        monkeypatch.setattr(_exchange, "_renameat2", lambda: None)


@pytest.fixture(params=SCENARIOS)
def scenario(request: pytest.FixtureRequest) -> Scenario:
    found: Scenario = SCENARIOS[request.param]
    return found


@pytest.mark.usefixtures("_way")
def test_a_power_cut_leaves_the_old_state_or_the_new_and_after_success_the_new(
    bench: Bench, scenario: Scenario, record_property: Callable[[str, object], None]
) -> None:
    rehearsal = Rehearsal(bench, scenario)
    bench.restore()
    cut = PowerCut(rehearsal, lambda: rehearsal.change(bench.place))
    wrong = cut.wrong()
    assert cut.reported == rehearsal.new
    counts = f"{len(cut.recorder.moments)} moments, {cut.disks} disks, {len(cut.seen)} unlike"
    record_property("power_cuts", counts)
    print(counts)  # noqa: T201 - shown with -rP
    assert not wrong, "\n".join([f"{len(wrong)}, the first of them:", *wrong[:5]])


def test_a_power_cut_while_another_one_is_recovered_from_is_recovered_from(
    bench: Bench, scenario: Scenario, record_property: Callable[[str, object], None]
) -> None:
    """At some of the moments, one of the disks; then at every moment of the recovery, all."""
    rehearsal = Rehearsal(bench, scenario)
    bench.restore()
    first = PowerCut(rehearsal, lambda: rehearsal.change(bench.place))
    moments = disks = 0
    begun = first.recorder.moments[3:-1]
    for moment in begun[len(begun) % min(_STRIDE, len(begun)) :: _STRIDE]:
        disk = list(first.recorder.worst_cases(moment))[-1]
        rebuild(bench.root, flat(disk))
        cut = PowerCut(rehearsal, bench.place.recover)
        wrong = cut.wrong()
        moments += len(cut.recorder.moments)
        disks += cut.disks
        where = f"{len(wrong)} after a power cut before {moment.call}, the first of them:"
        assert not wrong, "\n".join([where, *wrong[:5]])
    record_property("power_cuts", f"{moments} moments, {disks} disks")
    print(f"{moments} moments, {disks} disks")  # noqa: T201 - shown with -rP
