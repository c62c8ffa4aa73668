"""One writer at a time, by an object that is written only where there is none (`If-None-Match`).

While the lock is held its object is written anew, the beat, each time only over the one that this
holder wrote (`If-Match`). How old the object is, is read off the store's own clock, so that nobody
else's matters:

```
no object             written by one of those who try: held
younger than a lease  the holder lives: LockedError; unless it was a process of this very machine,
                      and there is no such process any more
older                 the holder is dead, or has stood still: written over, by one of those who try
                      (`If-Match`); and after a moment, in which a request of its that is on its way
                      may still come through, held
```

A holder that stands still for a whole lease loses the lock to whoever asks, and finds out before it
writes anything else: `Lease.check`. Only a request that was on its way when it stood still may come
through later. A store that takes no notice of conditions is found out when the lock is written a
second time, and refused: two writers could not be kept apart.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_repo.errors import ObjectNotFoundError, StoreError
from triton_repo.store._bucket import ConditionError
from triton_repo.store._locked import LOCK_SUFFIX, taken_over, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from triton_repo.store._bucket import Bucket

__all__ = ["Lease", "hold", "remove_dead"]

#: How often a holder writes, and how long it may be silent.
_BEAT_S = 5.0
_LEASE_S = 30.0
#: A lock that nobody asks for stays for so long, though its holder be silent.
_FORGOTTEN_S = 24 * 3600.0
#: After taking over: what the former holder had sent already comes through before that.
_SETTLE_S = 2.0
#: Between the first two attempts, while somebody waits for the holder.
_SHORTEST_WAIT_S = 0.2


@dataclass(frozen=True)
class _Note:
    """Who holds a lock.

    Attributes:
        holder: for people.
        since: for people, ISO 8601 in UTC.
        claim: no two are alike.
        machine: the boot of its kernel and its process namespace; empty where they are not known.
        process: its number there.
        started: when the process began, by its kernel's clock: numbers are used again.
        beat: how often it was written.
    """

    holder: str
    since: str
    claim: str
    machine: str
    process: int
    started: str
    beat: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> _Note | None:
        """None for what is no note of ours."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def is_dead_here(self) -> bool:
        """Whether it was a process of this machine, and is no more; or this one, and it let go."""
        here = bool(self.machine) and self.machine == _machine()
        return self.claim in _LET_GO or (here and _has_ended(self.process, self.started))


class Lease:
    """A lock that is held; its object is written anew until `release`."""

    def __init__(self, bucket: Bucket, key: str, note: _Note, etag: str) -> None:
        self._bucket, self._key = bucket, key
        self._impatient: Bucket | None = None
        self._note, self._etag = note, etag
        self._written_s = _now_s()
        self._taker: _Note | None = None
        self._writing = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock-beat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _beat(self) -> None:
        while not self._done.wait(_BEAT_S):
            with suppress(StoreError), self._writing:  # the next one may come through
                self._renew()
            if self._taker is not None:
                return

    def check(self) -> None:
        """Make sure that the lock is still ours, before something is written under it.

        Nothing is asked for while the beat goes on; but who was stopped, or could not reach the
        store, finds out here.

        Raises:
            LockedError: somebody else has taken it over.
            StoreError: the store does not say.
        """
        if not self._is_fresh():
            with self._writing:
                if not self._is_fresh():
                    self._renew()
        if self._taker is not None:
            raise taken_over(self._key, self._taker, _LEASE_S)

    def _is_fresh(self) -> bool:
        return self._taker is not None or _now_s() - self._written_s <= _LEASE_S / 2

    def _renew(self) -> None:
        began_s = _now_s()
        if self._impatient is None:
            self._impatient = self._bucket.impatient()
        following = replace(self._note, beat=self._note.beat + 1)
        for _ in range(2):  # an answer that was lost may hide that the last beat was written
            try:
                self._etag = self._impatient.put(
                    self._key, following.to_bytes(), replacing=self._etag
                )
            except (ConditionError, ObjectNotFoundError):
                self._taker = self.taker(self._impatient)
                if self._taker is not None:
                    return
            else:
                self._note, self._written_s = following, began_s
                return

    def taker(self, bucket: Bucket | None = None) -> _Note | None:
        """Who has taken the lock over, and perhaps given it back; None where it is still ours."""
        try:
            found = (bucket or self._bucket).get(self._key)
        except ObjectNotFoundError:
            return _GONE
        note = _Note.parse(found.data)
        if note is not None and note.claim == self._note.claim:
            self._etag = found.etag
            return None
        return note or _UNKNOWN

    def release(self) -> _Note | None:
        """Let go; returns who has taken the lock over, if somebody has."""
        self._done.set()
        self._thread.join(_BEAT_S)  # should it write later, what it replaces is not there any more
        try:
            return self._release()
        except StoreError:  # it is a dead holder's, from now on
            _LET_GO.add(self._note.claim)
            return None

    def _release(self) -> _Note | None:
        if not self._is_fresh():
            self._taker = self.taker()
        for _ in range(2):
            if self._taker is not None:
                return self._taker
            try:
                self._bucket.delete_replaced(self._key, self._etag)
            except (ConditionError, ObjectNotFoundError):  # an answer was lost: a beat's, or this
                taker = self.taker()
                if taker is _GONE:
                    return None
                self._taker = taker
            else:
                return None
        return self._taker


#: Claims of this process that could not be removed.
_LET_GO: set[str] = set()
#: A lock that somebody wrote who is not of our kind.
_UNKNOWN = _Note("somebody else", "an unknown time", "", "", 0, "")
#: Who took a lock over that is not there any more.
_GONE = replace(_UNKNOWN, claim="gone")


@contextmanager
def hold(bucket: Bucket, key: str, holder: str, wait_s: float = 0.0) -> Iterator[Lease]:
    """See `Store.lock`; what is written under it is to ask `Lease.check` first."""
    lock = wait_for(
        key, lambda: _attempt(bucket, key, holder), wait_s=wait_s, pause_s=_SHORTEST_WAIT_S
    )
    lock.start()
    try:
        yield lock
    except BaseException:
        lock.release()
        raise
    taker = lock.release()
    if taker is not None:
        raise taken_over(key, taker, _LEASE_S)


def remove_dead(bucket: Bucket) -> None:
    """Remove the locks at the root whose holders are dead."""
    for key, _ in list(bucket.objects(".")):
        if "/" in key or not key.endswith(LOCK_SUFFIX):
            continue
        with suppress(ObjectNotFoundError, ConditionError):
            found = bucket.get(key)
            note = _Note.parse(found.data)
            if note is not None and (found.age_s > _FORGOTTEN_S or note.is_dead_here()):
                bucket.delete_replaced(key, found.etag)


def _attempt(bucket: Bucket, key: str, holder: str) -> tuple[Lease | None, _Note | None]:
    """The lock, or the note of who has it; neither where it went away meanwhile."""
    note = _Note(
        holder=holder,
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        claim=uuid.uuid4().hex,
        machine=_machine(),
        process=os.getpid(),
        started=_started(os.getpid()),
    )
    with suppress(ConditionError):
        lock = Lease(bucket, key, note, bucket.put(key, note.to_bytes(), new=True))
        try:
            _refuse_without_conditions(bucket, key, note)
        except BaseException:
            _LET_GO.add(note.claim)
            raise
        return lock, None
    try:
        found = bucket.get(key)
    except ObjectNotFoundError:
        return None, None
    holding = _Note.parse(found.data)
    if holding is not None and holding.claim == note.claim:  # it was ours; the answer was lost
        return Lease(bucket, key, note, found.etag), None
    if found.age_s <= _LEASE_S and not (holding is not None and holding.is_dead_here()):
        return None, holding or _UNKNOWN
    return _take_over(bucket, key, note, found.etag)


def _take_over(
    bucket: Bucket, key: str, note: _Note, etag: str
) -> tuple[Lease | None, _Note | None]:
    """The lock of a dead holder, or the note of who was faster."""
    lock = Lease(bucket, key, note, etag)
    try:
        lock = Lease(bucket, key, note, bucket.put(key, note.to_bytes(), replacing=etag))
    except ConditionError:  # perhaps because of ourselves: an answer was lost
        pass
    except ObjectNotFoundError:
        return None, None
    time.sleep(_SETTLE_S)
    taker = lock.taker()
    if taker is None:
        return lock, None
    return None, None if taker is _GONE else taker


def _refuse_without_conditions(bucket: Bucket, key: str, note: _Note) -> None:
    """Make sure that the store keeps two writers apart.

    Raises:
        StoreError: it writes although the object is there, or is another one.
    """
    if bucket.uri in _CONDITIONAL:
        return
    for header, condition in _PROBES.items():
        with suppress(ConditionError):
            bucket.put(key, note.to_bytes(), **condition)
            bucket.delete([key])
            raise StoreError(
                f"{bucket.uri} takes no notice of {header}: two commands at once could not be kept "
                "apart there; use a store with conditional writes (Amazon S3, MinIO, Ceph, R2 have "
                "them)",
                uri=bucket.uri,
                key=key,
            )
    _CONDITIONAL.add(bucket.uri)


#: Conditions that do not hold while the lock is held.
_PROBES: dict[str, Any] = {
    "If-None-Match": {"new": True},
    "If-Match": {"replacing": '"0123456789abcdef0123456789abcdef"'},
}


#: Repositories that were seen to keep conditions.
_CONDITIONAL: set[str] = set()


def _now_s() -> float:
    """A clock that also counts while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@cache
def _machine() -> str:
    """One boot of one kernel, and one numbering of processes in it; empty where not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _has_ended(process: int, started: str) -> bool:
    """Whether a process of this machine is no more; not so where we are not let see it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's
        pass
    now = _started(process)
    return now == _ENDED or bool(now and started and now != started)


#: Of a process that has ended, and nobody has asked how.
_ENDED = "ended"


def _started(process: int) -> str:
    """When a process began, by its kernel's clock; empty where that cannot be seen."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()
    return _ENDED if state in ("Z", "X") else fields[18]
