"""One writer at a time: where flock reaches everybody, and where it ends at the host."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from triton_repo.errors import LockedError, StoreError
from triton_repo.store import LocalStore, _lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = ".resnet.mlflow-triton.lock"

#: Seconds, for tests: a lease of many beats, because the machine may be busy.
PACE = {"_BEAT_S": 0.1, "_LEASE_S": 2.0, "_LOOK_S": 0.1, "_SETTLE_S": 0.5}

#: Another process. With `host`, on another machine, on a file system where flock does not reach
#: others. It does what it is told, one line at a time, and says what came of it.
_PROCESS = """
import sys
from pathlib import Path
from triton_repo.errors import LockedError
from triton_repo.store import LocalStore, _lock

root, key, host, pace = *sys.argv[1:4], eval(sys.argv[4])
vars(_lock).update(pace)
if host:
    _lock._boot = lambda: "boot of " + host
    _lock.fcntl.flock = lambda *_: None
store = LocalStore(Path(root))
held = None
print("ready", flush=True)
for line in sys.stdin:
    try:
        if line == "lock\\n":
            held = store.lock(key, host or "neighbour")
            held.__enter__()
        else:
            held.__exit__(None, None, None)
        print("done", flush=True)
    except LockedError as exc:
        print("refused:", exc, flush=True)
"""


class Process:
    """Somebody else who wants the lock."""

    def __init__(self, store: LocalStore, host: str = "") -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, store.uri, KEY, host, repr(PACE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == "ready"

    def ask(self, what: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{what}\n")
        self.popen.stdin.flush()

    def answer(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def do(self, what: str) -> str:
        self.ask(what)
        return self.answer()

    def stop(self) -> None:
        """Ctrl-Z; returns when every thread stands still, what it was writing included."""
        self.popen.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(self.popen.pid, os.WUNTRACED)[1])

    def go_on(self) -> None:
        self.popen.send_signal(signal.SIGCONT)


@contextmanager
def processes(store: LocalStore, *hosts: str) -> Iterator[list[Process]]:
    """One process for each host; an empty name is this one."""
    started: list[Process] = []
    try:
        started.extend(Process(store, host) for host in hosts)
        yield started
    finally:
        for each in started:
            each.popen.kill()
            each.popen.communicate()


@pytest.fixture(autouse=True)
def _pace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in PACE.items():
        monkeypatch.setattr(_lock, name, seconds)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    root = tmp_path / "repository"
    root.mkdir()
    return LocalStore(root)


@pytest.fixture
def file(store: LocalStore) -> Path:
    """Where the lock is."""
    return store.root / KEY


def refused(store: LocalStore) -> LockedError:
    with pytest.raises(LockedError) as caught:
        store.lock(KEY, "me").__enter__()
    return caught.value


def write_note(file: Path, **fields: object) -> None:
    """As this process would sign, but for what is given."""
    here = {
        "holder": "dead@elsewhere",
        "since": "2026-01-01T00:00:00+00:00",
        "claim": "1234",
        "host": socket.gethostname(),
        "boot": _lock._boot(),
        "device": file.parent.stat().st_dev,
        "process": 1,
    }
    file.write_text(json.dumps(here | fields))


@contextmanager
def beating(file: Path) -> Iterator[None]:
    """Somebody on another host keeps the file's time moving."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(PACE["_BEAT_S"]):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    done.set()
    thread.join()


# -- on one host ------------------------------------------------------------------------------


def test_a_lock_leaves_nothing_and_no_thread(store: LocalStore) -> None:
    with store.lock(KEY, "me"):
        assert [path.name for path in store.root.iterdir()] == [KEY]
        assert "lock-beat" in {thread.name for thread in threading.enumerate()}
    assert list(store.root.iterdir()) == []
    deadline = time.monotonic() + 5
    while "lock-beat" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline


def test_the_note_says_who_where_and_since_when(store: LocalStore, file: Path) -> None:
    with store.lock(KEY, "alice"):
        note = json.loads(file.read_bytes())
    assert note["holder"] == "alice"
    assert note["host"] == socket.gethostname()
    assert note["process"] == os.getpid()
    assert note["since"].endswith("+00:00")
    assert note["boot"]


def test_a_stopped_holder_keeps_its_lock(store: LocalStore) -> None:
    """Ctrl-Z is not death, however long it lasts; flock knows."""
    with processes(store, "") as [other]:
        assert other.do("lock") == "done"
        other.stop()
        time.sleep(1.5 * PACE["_LEASE_S"])
        assert refused(store).holder == "neighbour"
        store.sweep("")
        assert refused(store).holder == "neighbour"
        other.go_on()
        assert other.do("unlock") == "done"
        with store.lock(KEY, "me"):
            pass


def test_a_killed_holder_of_this_host_is_followed_at_once(store: LocalStore, file: Path) -> None:
    """Its file stays behind, and nobody watches it for a lease."""
    with processes(store, "") as [other]:
        assert other.do("lock") == "done"
        other.popen.kill()
        other.popen.wait()
        assert file.exists()
        began = time.monotonic()
        with store.lock(KEY, "me"):
            assert time.monotonic() - began < PACE["_LEASE_S"]
            assert refused(store).holder == "me"
    assert not file.exists()


def test_one_of_many_neighbours_gets_the_lock(store: LocalStore) -> None:
    """Round after round, whether there is a file of a dead holder or none."""
    with processes(store, "", "", "") as others:
        for round_ in range(20):
            if round_ % 2:
                write_note(store.root / KEY)
            for other in others:
                other.ask("lock")
            answers = [other.answer() for other in others]
            assert sorted(answer[:7] for answer in answers) == ["done", "refused", "refused"]
            assert all("neighbour" in answer for answer in answers if answer != "done")
            assert others[answers.index("done")].do("unlock") == "done"


def test_a_lock_file_that_is_a_link_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    for target in ("precious", "missing"):
        (tmp_path / "precious").write_text("content")
        (store.root / KEY).symlink_to(tmp_path / target)
        with pytest.raises(StoreError):
            store.lock(KEY, "me").__enter__()
        store.sweep("")
        (store.root / KEY).unlink()
    assert (tmp_path / "precious").read_text() == "content"
    assert not (tmp_path / "missing").exists()


def test_a_removed_lock_file_is_not_missed_and_anothers_is_left(store: LocalStore) -> None:
    """Somebody may clean up by hand: who comes then is not robbed, and we are told."""
    with store.lock(KEY, "me"):
        (store.root / KEY).unlink()
    with processes(store, "") as [other]:
        mine = store.lock(KEY, "me")
        mine.__enter__()
        (store.root / KEY).unlink()
        assert other.do("lock") == "done"
        with pytest.raises(LockedError, match="neighbour took over"):
            mine.__exit__(None, None, None)
        assert refused(store).holder == "neighbour"
        assert other.do("unlock") == "done"


@pytest.mark.parametrize("wait_s", [0, 60])
def test_ctrl_c_ends_the_waiting(store: LocalStore, file: Path, wait_s: float) -> None:
    """For another holder, and for the beat of another host."""
    if not wait_s:
        write_note(file, host="elsewhere")
    with processes(store, "") as [other]:
        if wait_s:
            assert other.do("lock") == "done"
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            store.lock(KEY, "me", wait_s).__enter__()
        assert time.monotonic() - began < (wait_s or PACE["_LEASE_S"])


# -- where flock ends at the host -------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"host": "elsewhere"}, {"boot": "before"}, {"device": 0}, {"boot": ""}],
    ids=["another host", "before a restart", "another mount", "an unknown kernel"],
)
def test_who_does_not_beat_elsewhere_is_followed_after_a_lease(
    store: LocalStore, file: Path, fields: dict[str, object]
) -> None:
    write_note(file, **fields)
    began = time.monotonic()
    with store.lock(KEY, "me"):
        assert time.monotonic() - began >= PACE["_LEASE_S"]
        assert refused(store).holder == "me"
    assert not file.exists()


def test_who_beats_elsewhere_keeps_the_lock(store: LocalStore, file: Path) -> None:
    """Although flock says that it is free; and the note stays as it is."""
    write_note(file, holder="alice@elsewhere", host="elsewhere")
    note = file.read_bytes()
    with beating(file):
        error = refused(store)
        assert (error.holder, error.since) == ("alice@elsewhere", "2026-01-01T00:00:00+00:00")
        with pytest.raises(LockedError, match="waited"):
            store.lock(KEY, "me", wait_s=1).__enter__()
    assert file.read_bytes() == note


def test_who_is_done_elsewhere_while_being_watched_is_followed(
    store: LocalStore, file: Path
) -> None:
    write_note(file, host="elsewhere")
    threading.Timer(0.3, file.unlink).start()
    began = time.monotonic()
    with store.lock(KEY, "me"):
        assert time.monotonic() - began < PACE["_LEASE_S"]


def test_a_file_that_nobody_has_signed_is_somebodys_for_a_lease(
    store: LocalStore, file: Path
) -> None:
    """A holder whose disk is full cannot sign, but it beats."""
    file.touch()
    with beating(file):
        assert refused(store).holder == "another process"
    with store.lock(KEY, "me"):
        assert refused(store).holder == "me"


def test_a_file_system_without_flock_is_served_by_the_beat_alone(
    store: LocalStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a dead neighbour is watched like a dead stranger."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with store.lock(KEY, "me"):
        assert refused(store).holder == "me"
        store.sweep("")
        assert refused(store).holder == "me"
    assert not file.exists()
    write_note(file)
    with store.lock(KEY, "me"):
        assert refused(store).holder == "me"


def test_a_host_that_stood_still_for_a_lease_has_lost_the_lock_and_is_told(
    store: LocalStore, file: Path
) -> None:
    with processes(store, "far") as [other]:
        assert other.do("lock") == "done"
        assert refused(store).holder == "far"
        other.stop()
        with store.lock(KEY, "me"):
            other.go_on()
            answer = other.do("unlock")
            assert answer.startswith("refused: me took over the lock of resnet at ")
            assert file.exists()


def test_one_of_two_hosts_gets_a_dead_hosts_lock(store: LocalStore, file: Path) -> None:
    """Both have watched the same note, and sign at the same moment."""
    with processes(store, "far", "farther") as hosts:
        for _ in range(3):
            write_note(file, host="elsewhere")
            for host in hosts:
                host.ask("lock")
            answers = [host.answer() for host in hosts]
            assert sorted(answer[:7] for answer in answers) == ["done", "refused"]
            assert hosts[answers.index("done")].do("unlock") == "done"
            assert not file.exists()


def test_one_of_two_hosts_creates_the_lock(store: LocalStore, file: Path) -> None:
    """The other one finds its beat."""
    with processes(store, "far", "farther") as hosts:
        for _ in range(10):
            for host in hosts:
                host.ask("lock")
            answers = [host.answer() for host in hosts]
            assert sorted(answer[:7] for answer in answers) == ["done", "refused"]
            assert hosts[answers.index("done")].do("unlock") == "done"
            assert not file.exists()


# -- sweeping the root ------------------------------------------------------------------------


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def test_what_the_dead_left_at_the_root_is_swept(store: LocalStore, file: Path) -> None:
    """This host's dead at once; other hosts' and temporary files when they are old enough."""
    write_note(file)
    for name, hours in (("far", 25.0), ("near", 23.0)):
        write_note(store.root / f".{name}.lock", host="elsewhere")
        age(store.root / f".{name}.lock", hours)
    for name, hours in (("empty", 25.0), ("new", 23.0)):
        (store.root / f".{name}.mlflow-triton.lock").touch()
        age(store.root / f".{name}.mlflow-triton.lock", hours)
    for name, hours in (("1", 2.0), ("2", 0.5)):
        (store.root / f"_mlflow_triton_tmp-{name}").write_bytes(b"half")
        age(store.root / f"_mlflow_triton_tmp-{name}", hours)
    store.sweep("")
    assert sorted(path.name for path in store.root.iterdir()) == [
        ".near.lock",
        ".new.mlflow-triton.lock",
        "_mlflow_triton_tmp-2",
    ]


def test_sweeping_the_root_looks_at_its_files_alone(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories, other files, and everything below stay; nothing is walked."""
    store.write("m/_mlflow_triton_tmp-1", b"somebody else's, who may be writing it")
    (store.root / "_mlflow_triton_tmp-2").mkdir()
    (store.root / ".dir.lock").mkdir()
    os.mkfifo(store.root / ".pipe.lock")
    for name, content in {".a.lock": b"", "b.lock": b"{}", "c": b"c", "d.lock": b"\xff"}.items():
        (store.root / name).write_bytes(content)
    for path in store.root.iterdir():
        age(path, 100)
    before = sorted(store.root.rglob("*"))
    monkeypatch.setattr(os, "walk", None)
    store.sweep("")
    assert sorted(store.root.rglob("*")) == before


def test_a_sweep_never_keeps_anybody_from_the_lock(store: LocalStore) -> None:
    """Every command sweeps: thousands of them, while the lock is taken and given back."""
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            LocalStore(store.root).sweep("")

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        for round_ in range(200):
            if round_ % 2:
                write_note(store.root / "new")
                (store.root / "new").rename(store.root / KEY)
            with store.lock(KEY, "me"):
                if not round_ % 20:
                    assert refused(store).holder == "me"
    finally:
        done.set()
        for sweeper in sweepers:
            sweeper.join()
