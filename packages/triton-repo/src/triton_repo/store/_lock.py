"""One writer at a time, by a lock file: among processes, and among hosts that share a directory.

The lock is a file, held by `flock` for as long as its holder lives. It reaches other hosts on NFSv4
and on cluster file systems, and on some others it does not. So the file also carries a note: who
holds it since when, and on which host; and while the lock is held its time stamp moves, the beat.
Whoever gets the flock looks at the note that it finds:

```
no file before         created by this call alone (O_EXCL): signed, held
of this very host      flock reaches there, and it was free: the holder is dead; signed, held
of another host        flock may not have reached it. The file is watched for one lease:
                         it moves      the holder lives: LockedError
                         it is gone    the holder is done: from the start
                         it stays      the holder is dead: signed; and after a moment, in which
                                       another taker's note would have come, held
```

"This very host" is the same host name, boot and device of the file system. A restarted machine is
another host: names such as `localhost` are not unique, and once after a crash a lease is cheap. So
is a container with another name, even on the same machine: its mount may be one of its own, whose
flock ends there; that is also why the device counts.

What the file system must give: O_EXCL that creates once; and, where flock does not reach other
hosts, a file that is opened shows the newest time and content (NFS: close-to-open, the default). A
holder there that stands still for a whole lease (stopped, out of reach) loses the lock to whoever
asks, and is told when it ends.

Nothing here is flushed to the disk: after a power cut nobody holds anything, and a lock file that
is gone, empty or old means just that.

filelock's UnixFileLock is flock alone, its SoftFileLease lets a paused holder of the same host lose
the lock, and neither can say who has it since when: so this is our own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from triton_repo.store._locked import OUR_SUFFIX, taken_over, wait_for

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["HeldLock", "remove_dead_lock", "take_lock"]

#: How often a holder moves the file's time, and how long others watch it stand still.
_BEAT_S = 5.0
_LEASE_S = 30.0
#: Between two looks at another host's lock.
_LOOK_S = 1.0
#: After taking over from another host: longer than from another taker's last look to its note.
_SETTLE_S = 2.0
#: Sweepers hold a dead holder's lock for an instant: a living holder's is still held after this.
_BLOCKED_S = 0.1
#: Nobody takes longer from creating the file to signing it.
_UNSIGNED_S = 1.0
_STEP_S = 0.02
#: Between the first two attempts, while somebody waits for the holder.
_SHORTEST_WAIT_S = 0.05
#: Another host's lock that nobody asks for goes when its time is this old: no two hosts' clocks
#: differ by so much.
_FORGOTTEN_S = 24 * 3600.0

#: The size of a note, or of a part of one whose holder has a long name.
_NOTE_BYTES = 1024

_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class _Note:
    """Who holds a lock.

    Attributes:
        holder: for people.
        since: for people, ISO 8601 in UTC.
        claim: no two are alike.
        host: the holder's host name.
        boot: the boot of its kernel; empty where it is not known, which is like no other.
        device: the number its kernel has for the file system.
        process: its number, for people.
    """

    holder: str
    since: str
    claim: str
    host: str
    boot: str
    device: int
    process: int

    def within_reach_of(self, other: _Note) -> bool:
        """Whether `other` asked the same kernel for its flock, on the same file system."""
        here = (self.host, self.boot, self.device)
        return bool(self.boot) and here == (other.host, other.boot, other.device)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> _Note | None:
        """None for what is no note: not written yet, half written, or not ours."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


#: A holder who has not signed: a moment ago, or because the disk is full.
_UNKNOWN = _Note("another process", "a moment ago", "", "", "", 0, 0)


@dataclass(frozen=True)
class _Seen:
    """A lock file at one moment; a living holder's is never the same for long."""

    inode: int
    modified_ns: int
    note: _Note | None


class HeldLock:
    """A lock that is held until the `with` block ends."""

    def __init__(self, path: Path, descriptor: int, note: _Note) -> None:
        self._path = path
        self._descriptor = descriptor
        self._note = note
        self._signed = _sign(descriptor, note)
        self._done = threading.Event()

    def __enter__(self) -> None:
        # a descriptor of its own: it can outlive the lock, if the file system hangs
        arguments = (os.dup(self._descriptor), self._done)
        threading.Thread(target=_beat, args=arguments, name="lock-beat", daemon=True).start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        taker = self._release()
        if taker is not None and value is None:
            raise taken_over(self._path.name, taker, _LEASE_S)

    def _release(self) -> _Note | None:
        """Remove the file, if it is still ours, and let go; else who has taken it over."""
        self._done.set()
        taker = None
        try:
            # a file that cannot be removed is a dead holder's, from now on
            with suppress(OSError):
                taker = self.taker()
                if taker is None and _is_at(self._path, self._descriptor):
                    # still locked: nobody can take a file that is going away
                    self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)
        return taker

    def taker(self) -> _Note | None:
        """Who has taken the lock over; None where it is still ours."""
        seen = _look(self._path)
        if not self._signed or seen is None or seen.note is None:
            return None
        return None if seen.note.claim == self._note.claim else seen.note


def take_lock(path: Path, holder: str, wait_s: float = 0.0) -> HeldLock:
    """Take the lock whose file is `path`, in a directory that is there.

    Args:
        path: the lock file.
        holder: who asks, for the message that others get.
        wait_s: how long to wait for a holder to finish. Finding out whether a holder on another
            host lives can take one lease longer.

    Raises:
        LockedError: somebody else holds it.
        OSError: the file cannot be written.
    """
    return wait_for(
        path.name, lambda: _attempt(path, holder), wait_s=wait_s, pause_s=_SHORTEST_WAIT_S
    )


def remove_dead_lock(path: Path) -> None:
    """Remove a lock file whose holder is dead; any other file, and what is in doubt, stays.

    Nothing is watched: another host's file goes when its time has stood still for a day, and so
    does one that is empty, which is what a power cut may leave.

    Raises:
        OSError: it cannot be opened, locked or removed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen = _look(path)
        if seen is None or not _is_at(path, descriptor):
            return
        forgotten = time.time() - seen.modified_ns / 1e9 > _FORGOTTEN_S
        if seen.note is None:
            empty = os.fstat(descriptor).st_size == 0
            dead = forgotten and empty and path.name.endswith(OUR_SUFFIX)
        else:
            dead = forgotten or seen.note.within_reach_of(_note(descriptor, ""))
        if dead:
            path.unlink()
    finally:
        os.close(descriptor)


def _attempt(path: Path, holder: str) -> tuple[HeldLock | None, _Note | None]:
    """The lock, or the note of who has it; neither where the file went away meanwhile."""
    descriptor, created = _open(path)
    with ExitStack() as unless_held:
        unless_held.callback(os.close, descriptor)
        flocked = _flock(descriptor, path, created=created)
        seen = _look(path)
        if flocked is False:
            return None, (seen.note or _UNKNOWN) if seen else None
        if seen is None or not _is_at(path, descriptor):
            return None, None
        mine = _note(descriptor, holder)
        reached = flocked and seen.note is not None and seen.note.within_reach_of(mine)
        doubt = not created and not reached
        if doubt and (now := _watch(path, seen)) != seen:
            return None, (now.note or _UNKNOWN) if now else None
        held = HeldLock(path, descriptor, mine)
        if doubt:
            time.sleep(_SETTLE_S)
            if (taker := held.taker()) is not None:
                return None, taker
        unless_held.pop_all()
        return held, None


def _open(path: Path) -> tuple[int, bool]:
    """The lock file, and whether this call has created it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):  # removed in between
            return os.open(path, flags), False


def _flock(descriptor: int, path: Path, *, created: bool) -> bool | None:
    """Whether the flock is ours; None where the file system has none.

    It is asked for again for a moment: who only looks at a file holds it for an instant, and who
    has created it goes first.
    """
    began = time.monotonic()
    while True:
        flocked = _flock_now(descriptor)
        if created and flocked is not False:
            return flocked
        seen = _look(path)
        signed = seen is not None and seen.note is not None
        waited_s = time.monotonic() - began
        if flocked is not False:
            if signed or seen is None or waited_s >= _UNSIGNED_S:
                return flocked
            if flocked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        elif waited_s >= (_BLOCKED_S if signed else _UNSIGNED_S):
            return False
        time.sleep(_STEP_S)


def _flock_now(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # SMB says the latter
        return False
    except OSError as exc:
        if exc.errno not in _NO_FLOCK:
            raise
        return None
    return True


def _look(path: Path) -> _Seen | None:
    """What is in the lock file now; None where there is none."""
    try:
        # opened anew every time: only then a network file system asks its server
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            note = _Note.parse(file.read())
    except FileNotFoundError:
        return None
    except PermissionError:  # on SMB nobody can read what is locked
        status, note = path.stat(), None
    return _Seen(status.st_ino, status.st_mtime_ns, note)


def _watch(path: Path, seen: _Seen) -> _Seen | None:
    """Look at a lock file for one lease, or until it is not as it was; what was seen last.

    Looks are counted, not seconds: while the server does not answer, or this process is stopped,
    a living holder's beat does not come through either.
    """
    for _ in range(math.ceil(_LEASE_S / _LOOK_S)):
        time.sleep(_LOOK_S)
        now = _look(path)
        if now != seen:
            return now
    return seen


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _note(descriptor: int, holder: str) -> _Note:
    return _Note(
        holder=holder,
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        claim=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_boot(),
        device=os.fstat(descriptor).st_dev,
        process=os.getpid(),
    )


@cache
def _boot() -> str:
    """One boot of one kernel; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _sign(descriptor: int, note: _Note) -> bool:
    """Write the note; False where that failed.

    The disk may be full: then others are told less, but what frees space can still be done.
    """
    data = note.to_bytes()
    # Two who sign at once write equally much, each in one call: one of the notes stays, whole.
    data = data.ljust(_NOTE_BYTES * math.ceil(len(data) / _NOTE_BYTES))
    try:
        os.pwrite(descriptor, data, 0)  # first: on a full disk there is room for what was there
        os.ftruncate(descriptor, len(data))
        os.close(os.dup(descriptor))  # a network file system sends what was written on any close
    except OSError:
        return False
    return True


def _beat(descriptor: int, done: threading.Event) -> None:
    try:
        while not done.wait(_BEAT_S):
            with suppress(OSError):  # the next one may come through
                os.utime(descriptor)
    finally:
        os.close(descriptor)
