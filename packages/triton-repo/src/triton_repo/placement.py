"""One model's directory in a repository, and how it changes: stage, install, commit, undo, remove.

A change goes through these steps, and the journal says how far it came:

```
stage      journal.json          what is to be done, and what stood here before
           config.pbtxt          pinned to the versions that serve, before another one appears
           N/                    the new version directory; or, apart, incoming/N/
install    incoming/… ⇄ …        what was staged apart changes places with what it replaces,
                                 config.pbtxt among it, in one step
           (the server validates it: a pinned load; see mlflow_triton_plugin.deploy)
commit     journal.json          what config.pbtxt and the record will be: from here on the change
                                 is finished, not undone, whoever comes next
           config.pbtxt          one atomic replacement
           mlflow-meta.json
finish     old versions go, then journal.json
```

Where a model needs others that are deployed with it (see `group_change`), they are brought between
stage and install, each as a change of its own, and journal.json stays, as a note of them, until
nothing is left of those that nobody needs any more.

A new version directory and one rename of config.pbtxt is all that most changes are. What overwrites
something that serves (a version of the same number, a label file) is staged apart: `incoming/` is
then a whole model directory, which the server can be asked to load under a name of its own before
anything in the model's place is touched.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo._version import WRITER
from triton_repo.config import CONFIG_FILENAME, NO_CONFIG
from triton_repo.errors import ConfigError, LockedError, ObjectNotFoundError, StoreError
from triton_repo.journal import OUR_DIRECTORY, Journal
from triton_repo.model_view import ASIDE, JOURNAL, ModelView, PlaceState
from triton_repo.record import (
    RECORD_FILENAME,
    DeploymentRecord,
    FileDigest,
    RecordError,
    VersionRecord,
)
from triton_repo.store._locked import OUR_SUFFIX, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from triton_repo.change import Change
    from triton_repo.entry import Tree
    from triton_repo.store import PlacedTree

__all__ = ["ModelPlace", "PlaceState", "StagedChange"]

#: A model directory of its own while a change is staged apart; Triton can load it by this path.
_INCOMING = f"{OUR_DIRECTORY}/incoming"
#: Says `yes` once what is incoming has changed places with what it overwrites; it goes with it.
_INSTALLED = f"{OUR_DIRECTORY}/installed"
_MARK = f"{OUR_DIRECTORY}-mark"
#: Version directories that an interrupted change had sent, in whole or in part.
_SENT = f"{OUR_DIRECTORY}/sent"
#: What a commit will write, written before: a disk that fills up must not stop it halfway.
_READY = f"{OUR_DIRECTORY}/ready"


#: Between the first two looks at a lock, while somebody waits for its holder.
_LOOK_S = 0.2
#: A process that began so much later than a lock is not the one that took it.
_CLOCKS_DIFFER_S = 5.0


@dataclass(frozen=True)
class _LockHolder:
    """What a lock says of its holder; every store's has these fields.

    Attributes:
        holder: for people.
        since: ISO 8601 in UTC.
        machine: host name and boot of its kernel, and perhaps more.
        process: its number there.
    """

    holder: str
    since: str
    machine: str
    process: int

    @classmethod
    def parse(cls, data: bytes) -> _LockHolder | None:
        """None for what is not signed, by us."""
        try:
            note = json.loads(data)
            machine = note["machine"] if "machine" in note else f"{note['host']}/{note['boot']}"
            datetime.fromisoformat(note["since"])
            return cls(note["holder"], note["since"], machine, int(note["process"]))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None

    def has_ended(self) -> bool:
        """Whether it was a process of this very machine, and is no more."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return False
        if self.machine.split("/")[:2] != [socket.gethostname(), boot]:
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # somebody else's
            pass
        return self._began_later()

    def _began_later(self) -> bool:
        """Whether the process of this number is a later one: containers count from 1 again."""
        try:
            status = Path(f"/proc/{self.process}/stat").read_text(
                encoding="ascii", errors="replace"
            )
            state, *fields = status.rpartition(")")[2].split()
            began_s = int(fields[18]) / os.sysconf("SC_CLK_TCK")
            age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began_s
        except (OSError, ValueError, IndexError, AttributeError):
            return False
        locked_s = time.time() - datetime.fromisoformat(self.since).timestamp()
        return state in ("Z", "X") or age_s + _CLOCKS_DIFFER_S < locked_s


@dataclass(frozen=True)
class StagedChange:
    """A change whose files are in the repository, not committed yet.

    Attributes:
        change: what was planned.
        journal: the note of it.
        versions: the version directories that were placed, by number.
        shared: the files beside config.pbtxt that were placed, if there were any.
        apart: the name under which a server can load it before it is installed; an empty string
            where it was not staged apart.
    """

    change: Change
    journal: Journal
    versions: Mapping[int, PlacedTree]
    shared: PlacedTree | None
    apart: str = ""

    def version_digests(self) -> dict[int, Mapping[str, FileDigest]]:
        """Wait until the version directories are durable; their files' digests."""
        return {version: self.versions[version].digests() for version in self.change.place}

    def shared_digests(self) -> dict[str, FileDigest]:
        """Wait until the files beside config.pbtxt are durable; the digests of all of them."""
        placed = self.shared.digests() if self.shared else {}
        return {**placed, **self.change.shared_restored, **self.change.shared_kept}

    def abandon(self) -> None:
        """Stop what goes on in the background, before the change is undone."""
        for tree in (*self.versions.values(), *([self.shared] if self.shared else [])):
            tree.abandon()


@dataclass(frozen=True)
class ModelPlace(ModelView):
    """The directory of one model in a repository, and its one writer.

    Methods raise `StoreError` when the store does; each says what it leaves behind.
    """

    def lock(self, holder: str, wait_s: float = 0.0) -> AbstractContextManager[None]:
        """Be the only writer of this model.

        Args:
            holder: who asks, for the message that others get.
            wait_s: how many seconds to wait for another writer.

        Raises:
            LockedError: somebody else is.
        """
        return self.store.lock(self._lock_key, holder, wait_s)

    def refuse_busy(self, wait_s: float = 0.0) -> None:
        """Make sure that nobody else is changing this model, for who only wants to know.

        The lock is looked at, not taken, and nothing is written. So whoever died on this machine is
        seen to be dead, and a holder on another one counts as alive until somebody takes the lock.

        Args:
            wait_s: how many seconds to wait for another writer.

        Raises:
            LockedError: somebody else is, in the words of `lock`.
        """
        wait_for(self._lock_key, self._look_at_lock, wait_s=wait_s, pause_s=_LOOK_S)

    def refuse_interrupted(self) -> None:
        """Make sure that no change is under way, and none was left by a killed command.

        Raises:
            LockedError: one is.
        """
        if self.state() is not PlaceState.INTERRUPTED:
            return
        journal = self.journal()
        raise LockedError(
            f"a change of {self.uri} is under way or was interrupted; when no command is at it, "
            f"mlflow-triton repair {self.name} puts it right",
            holder=journal.holder if journal else "",
            since=journal.since if journal else "",
        )

    @property
    def _lock_key(self) -> str:
        # A file at the root is nothing to Triton, and it survives the model's directory.
        return f".{self.name}{OUR_SUFFIX}"

    def _look_at_lock(self) -> tuple[bool | None, _LockHolder | None]:
        """Whether it is free, or who has it."""
        try:
            holder = _LockHolder.parse(self.store.read(self._lock_key))
        except ObjectNotFoundError:
            return True, None
        return (True, None) if holder is None or holder.has_ended() else (None, holder)

    @property
    def apart(self) -> str:
        """The name under which a server can load what is staged apart: a path below the root."""
        return self.key(_INCOMING)

    def stage(
        self,
        change: Change,
        *,
        operation: str,
        holder: str,
        apart: bool = False,
        on_copied: Callable[[int], None] | None = None,
    ) -> StagedChange:
        """Copy everything into the repository; nothing that serves is touched.

        Args:
            change: from `plan_change` or `plan_return`.
            operation: `create` or `update`, for the journal.
            holder: who does it, for the journal.
            apart: stage a whole model directory of its own, even where a new version directory
                would do.
            on_copied: told the number of bytes after each piece.

        Returns:
            What to install. Large files are flushed and digested in the background meanwhile.

        Raises:
            StoreError: something could not be written; call `recover`.
        """
        self.refuse_collisions(change)  # anew: fetching took its time
        aside = self._shared_in_the_way(change)
        journal = Journal(
            operation=operation,
            model_uri=change.source.uri,
            holder=holder,
            since=_now(),
            created=self.state_to_change() is PlaceState.ABSENT,
            new_versions=tuple(change.place),
            replaced_versions=tuple(sorted(change.replaced)),
            shared_before=aside,
            shared_added=tuple(path for path in change.shared_paths if path not in aside),
            config_before=self.read(CONFIG_FILENAME),
            config_guard=self._guard(change),
            members=tuple(sorted(change.members)),
        )
        self._write_journal(journal)
        if apart or change.in_place:
            return self._stage_apart(change, journal, on_copied)
        self._put_guard(journal)
        versions = {
            version: self._place(str(version), version, tree, on_copied)
            for version, tree in change.place.items()
        }
        return StagedChange(change, journal, versions, self._place_shared(change, on_copied))

    def _stage_apart(
        self, change: Change, journal: Journal, on_copied: Callable[[int], None] | None
    ) -> StagedChange:
        """Make `incoming/` the model directory to be, config.pbtxt left out."""
        shared = self._place_shared(change, on_copied)
        for path, digest in change.shared_restored.items():
            self._take_back(path, digest)
        for path, digest in change.shared_kept.items():
            self.store.copy_file(self.key(path), self.key(f"{_INCOMING}/{path}"))
            if on_copied is not None:
                on_copied(digest.size_bytes)
        versions = {
            version: self._place(f"{_INCOMING}/{version}", version, tree, on_copied)
            for version, tree in change.entry.versions.items()
        }
        return StagedChange(change, journal, versions, shared, apart=self.apart)

    def _place(
        self, path: str, version: int, tree: Tree, on_copied: Callable[[int], None] | None
    ) -> PlacedTree:
        sent = self.key(f"{_SENT}/{version}")
        return self.store.place(self.key(path), tree, on_copied, sent=sent)

    def refuse_damaged(self, change: Change) -> None:
        """Make sure that what the change takes back is what was set aside; nothing is written.

        Raises:
            StoreError: it is damaged, or gone.
        """
        for path, digest in change.shared_restored.items():
            self._kept(path, digest)

    def _take_back(self, path: str, digest: FileDigest) -> None:
        """Copy a file that was set aside to where it can be installed from."""
        self.store.copy_file(self._kept(path, digest), self.key(f"{_INCOMING}/{path}"))

    def _kept(self, path: str, digest: FileDigest) -> str:
        """The key of a file that was set aside.

        Raises:
            StoreError: it is damaged, or gone.
        """
        kept = self.key(f"{ASIDE}/{digest.sha256}")
        if self.store.digest(kept) != digest:
            raise StoreError(
                f"{self.store.uri}/{kept}, which {path} was set aside as, is damaged; update with "
                "-C validate=load places the model's own again",
                uri=self.store.uri,
                key=kept,
            )
        return kept

    def install(self, staged: StagedChange) -> None:
        """Put everything in its place, so that the server can load it from there.

        What overwrites something that serves comes with its config.pbtxt, all in one step where
        the store has that: a server that starts right then serves the old model or the new one.

        Raises:
            StoreError: something could not be written; call `recover`.
        """
        change, journal = staged.change, staged.journal
        self._set_aside(journal.shared_before)
        self._put_guard(journal)
        for path, digest in change.shared_restored.items():
            if not self.store.exists(self.key(f"{_INCOMING}/{path}")):
                self._take_back(path, digest)
        new = sorted(set(change.place) - change.replaced) if staged.apart else ()
        added = sorted(set(change.shared_paths) - journal.shared_before.keys())
        for path in (*map(str, new), *added):
            if self.store.exists(self.key(path)):  # since the plan was made
                raise self._in_the_way(path)
            self.store.move(self.key(f"{_INCOMING}/{path}"), self.key(path))
        if change.replaced or not journal.shared_before.keys().isdisjoint(change.shared_paths):
            self._exchange(staged)

    def _exchange(self, staged: StagedChange) -> None:
        """Let what is incoming and what it overwrites change places."""
        # All is durable before a reader finds it, and the record has room before anything moves.
        if self.store.can_fill_up:
            self._write(f"{_READY}/{RECORD_FILENAME}", self._record_of(staged).to_bytes())
        config = staged.change.config
        if config is not None and self.read(CONFIG_FILENAME) is not None:
            self._write(f"{_INCOMING}/{CONFIG_FILENAME}", config.data)
        self._write(_INSTALLED, b"no")
        self._write(f"{_INCOMING}/{_MARK}", b"yes")
        self._change_places(staged.journal)

    def _change_places(self, journal: Journal) -> None:
        """Exchange what a change overwrites, and the mark that says so; the same undoes it."""
        paths = [*map(str, journal.replaced_versions), *journal.shared_before, CONFIG_FILENAME]
        pairs = [(_INSTALLED, f"{_INCOMING}/{_MARK}")]
        pairs += [(path, f"{_INCOMING}/{path}") for path in paths]
        there = [pair for pair in pairs if self.store.exists(self.key(pair[1]))]
        self.store.exchange([(self.key(incoming), self.key(path)) for path, incoming in there])

    def refuse_collisions(self, change: Change) -> None:
        """Make sure that what the change adds is not there: an undo would take it away.

        A plan asks it, and `stage` does once more.

        Raises:
            StoreError: something is in the way; nothing was written.
        """
        for version in change.place:
            if version not in change.replaced and self.store.exists(self.key(str(version))):
                raise self._in_the_way(str(version))
        present = self.shared_files()
        known = change.base.now.shared if change.base else {}
        for path in change.shared_paths:
            if path not in known and self.store.exists(self.key(path)):
                raise self._in_the_way(path)
            for parent in list(PurePosixPath(path).parents)[:-1]:
                if str(parent) in present:
                    raise self._in_the_way(str(parent))

    def _in_the_way(self, path: str) -> StoreError:
        return StoreError(
            f"{self.uri}/{path} is in the way of the model's own; move or rename it",
            uri=self.store.uri,
            key=self.key(path),
        )

    def _shared_in_the_way(self, change: Change) -> dict[str, str]:
        """Shared files the change overwrites or removes, with their sha256.

        Fetching took its time, and somebody may have edited one since stock was taken.
        """
        present = self.shared_files()
        touched = [path for path in (*change.shared_paths, *change.shared_gone) if path in present]
        return {path: digest.sha256 for path, digest in self.digests(touched).items()}

    def _set_aside(self, aside: Mapping[str, str]) -> None:
        for path, sha256 in aside.items():
            kept = self.key(f"{ASIDE}/{sha256}")
            if not self.store.exists(kept):
                self.store.copy_file(self.key(path), kept)

    def _guard(self, change: Change) -> bytes | None:
        """The config.pbtxt that pins what serves, so that no server takes up the new directory.

        Where nothing serves yet and a directory does not appear whole, it pins a version that is
        never there. None where there is nothing to guard.
        """
        if change.base is None and change.load_config is not None and not self.store.places_whole:
            return change.load_config.pinned([max(change.place) + 1]).data
        if change.base is None or not change.base.serving or not change.place:
            return None
        try:
            config = self.config() or NO_CONFIG
        except ConfigError:  # no server that starts now can load it
            return None
        return None if config.pinned_versions else config.pinned(change.base.serving).data

    def _put_guard(self, journal: Journal) -> None:
        if journal.config_guard is not None:
            self._write(CONFIG_FILENAME, journal.config_guard)

    def _place_shared(
        self, change: Change, on_copied: Callable[[int], None] | None
    ) -> PlacedTree | None:
        """Copy the new files beside config.pbtxt to `incoming/`."""
        if not change.shared.files:
            return None
        return self.store.place(self.key(_INCOMING), change.shared, on_copied)

    def _record_of(self, staged: StagedChange) -> DeploymentRecord:
        change, files, shared = staged.change, staged.version_digests(), staged.shared_digests()
        before = dict(change.base.versions) if change.base else {}
        known = change.base.recorded if change.base else None
        for number, was in known.versions.items() if known else ():
            if number in before and number != change.reuse:  # damage must not become the record
                before[number] = replace(before[number], files=was.files)
        gone = change.replaced | change.doomed
        versions = {number: seen for number, seen in before.items() if number not in gone}
        config = change.entry.config_text
        members = len(change.entry.versions)
        flavor = change.entry.flavor
        new = VersionRecord(
            change.source,
            {},
            shared,
            config,
            staged.journal.since,  # the same whenever it is asked for
            WRITER,
            flavor,
            members,
            change.own_config,
            change.own_shared,
            change.overrides,
            change.entry.models,
        )
        for number, digests in files.items():
            versions[number] = replace(new, files=digests)
        if change.reuse is not None:  # its bytes are as old as they were
            seen = before[change.reuse]
            versions[change.reuse] = replace(
                seen,
                source=change.source,
                shared=shared,
                config=config,
                flavor=flavor,
                own_config=change.own_config,
                own_shared=change.own_shared,
                overrides=change.overrides,
                models=change.entry.models,
            )
        return DeploymentRecord(
            name=self.name,
            flavor=change.entry.flavor,
            model_uri=change.source.uri,
            triton_model_path=self.uri,
            serving=change.serving or (change.config or NO_CONFIG).served(versions),
            versions=versions,
            part_of=change.entry.part_of,
        )

    def commit(self, staged: StagedChange, serving: tuple[int, ...] = ()) -> None:
        """Make a staged and validated change the state that every later server start sees.

        Args:
            staged: from `stage`.
            serving: the versions that the server says it serves, where it was asked.

        Raises:
            StoreError: something could not be written. The change may have been committed: call
                `recover`, which finishes or undoes it.
        """
        change = staged.change
        record = self._record_of(staged)
        if serving:
            record = replace(record, serving=serving)
        committed = replace(
            staged.journal,
            config_after=change.config.data if change.config else None,
            record_after=record.to_bytes(),
            doomed_versions=tuple(sorted(change.doomed)),
            doomed_shared=change.shared_gone,
        )
        for path, data in _committed_files(committed) if self.store.can_fill_up else ():
            if self.read(path) != data:
                self._write(f"{_READY}/{path}", data)
        self._write_journal(committed)
        self._finish(committed)

    def begin_delete(self, holder: str, members: Iterable[str] = ()) -> None:
        """Note that the model is going to be deleted; nothing else changes.

        Args:
            holder: who does it.
            members: directories of the models that go with it, before it.
        """
        journal = self.journal()
        if journal is None or journal.operation != "delete":
            note = Journal("delete", holder=holder, since=_now(), members=tuple(sorted(members)))
            self._write_journal(note)

    def remove(self) -> None:
        """Remove the whole directory, record and journal last: what remains is recognised.

        Raises:
            StoreError: something could not be removed; the same call goes on where it stopped.
        """
        if not self.store.exists(self.name):
            return
        paths = {path.split("/")[0] for path in self.store.list_files(self.name)}
        below = (paths | set(self.store.children(self.name))) - {OUR_DIRECTORY}
        below -= {"", ".", ".."}  # others' keys in an object store: they go with the rest
        for path in sorted(below, key=lambda path: (path == RECORD_FILENAME, path)):
            self.store.remove(self.key(path))
        ours = self.key(OUR_DIRECTORY)
        for path in self.store.children(ours) if self.store.exists(ours) else ():
            self.store.remove(self.key(f"{OUR_DIRECTORY}/{path}"))
        self.store.remove(self.name)

    def state_to_change(self) -> PlaceState:
        """`state`, for who goes on with what `recover` has left: the model itself is whole."""
        journal = self.journal()
        if journal is None or not journal.is_over:
            return self.state()
        if self.store.exists(self.key(RECORD_FILENAME)):
            return PlaceState.DEPLOYED
        files = self.store.list_files(self.name)
        ours = all(path.startswith(f"{OUR_DIRECTORY}/") for path in files)
        return PlaceState.ABSENT if ours else PlaceState.FOREIGN

    def recover(self, *, keep_sent: bool = False) -> str | None:
        """Finish or undo what an interrupted change left.

        Args:
            keep_sent: keep what was sent of new versions, where that saves sending it again: the
                same change comes next. Until it is done the model counts as interrupted.

        Returns:
            `finished`, `undone`, or None where there was nothing to do. Where the change had
            members, a note of them is left: see `settled`.

        Raises:
            StoreError: something could not be written; the same call goes on where it stopped.
        """
        self.store.sweep(self.name)
        journal = self.journal()
        if journal is None:
            self._tidy()
            return None
        if journal.leaves_members:
            return None
        if journal.operation == "delete":
            self.remove()
            return "finished"
        if journal.record_after is not None:
            self._finish(journal)
            return "finished"
        self._undo(journal, keep_sent=keep_sent and self.store.resumes)
        return "undone"

    def settled(self) -> None:
        """Say that the members of a change that is over are in order: its last step.

        Raises:
            StoreError: something could not be written; the same call goes on where it stopped.
        """
        journal = self.journal()
        if journal is not None and journal.leaves_members:
            self._undone(replace(journal, members=()))

    def _tidy(self) -> None:
        """Remove the empty directories of a change that died before its first note."""
        for key in (self.key(OUR_DIRECTORY), self.name):
            empty = self.store.exists(key) and not self.store.children(key)
            if empty and not self.store.list_files(key):
                self.store.remove(key)

    def _finish(self, journal: Journal) -> None:
        if journal.record_after is None:
            raise ValueError("only a validated change can be finished")
        if journal.config_after is None:
            self.store.remove(self.key(CONFIG_FILENAME))
        for path, data in _committed_files(journal):
            if self.read(path) != data and self.read(f"{_READY}/{path}") == data:
                self.store.move(self.key(f"{_READY}/{path}"), self.key(path))
            else:
                self._write(path, data)
        for version in journal.doomed_versions:
            self.store.remove(self.key(str(version)))
        for path in journal.doomed_shared:
            self._remove_shared(path)
        self._clean(journal, DeploymentRecord.parse(journal.record_after))

    def _undo(self, journal: Journal, *, keep_sent: bool) -> None:
        self.store.remove(self.key(_READY))  # the disk may be full, and what follows writes
        if self.read(_INSTALLED) == b"yes":
            self._change_places(journal)
        self._remove_additions(journal, keep_sent=keep_sent)
        self._put_back_config(journal)
        if keep_sent and self.store.exists(self.key(_SENT)):
            self._write_journal(replace(_note_of(journal), keeps_sent=True))
            return
        self._undone(journal)

    def _undone(self, journal: Journal) -> None:
        """Clean up after a change that was undone, or after one whose members are in order."""
        try:
            record = self.record()
        except RecordError:  # a later release's, perhaps: nobody can say what it needs
            self._clean(journal, None, keep_aside=True)
        else:
            self._clean(journal, record)
        if journal.created and not journal.members:
            self._tidy()  # whole, unless somebody has put something of their own there

    def _remove_additions(self, journal: Journal, *, keep_sent: bool) -> None:
        for version in sorted(set(journal.new_versions) - set(journal.replaced_versions)):
            if self._was_installed(str(version)):
                self._remove_version(str(version), version, keep=keep_sent)
        for path in journal.shared_added:
            if self._was_installed(path):
                self._remove_shared(path)
        for version in (*journal.new_versions, *journal.replaced_versions) if keep_sent else ():
            self._remove_version(f"{_INCOMING}/{version}", version, keep=True)
        self.store.remove(self.key(_INCOMING))

    def _remove_version(self, path: str, version: int, *, keep: bool) -> None:
        """Remove a version directory, or put it where the next change finds it."""
        key, sent = self.key(path), self.key(f"{_SENT}/{version}")
        if keep and self.store.exists(key):
            self._keep_sent(key, sent)
        self.store.remove(key)

    def _keep_sent(self, key: str, sent: str) -> None:
        """Put the files at `key` with those of an earlier attempt, which may be other ones.

        An attempt begins with copies of what the one before it has sent, several at once, and may
        die before the last of them.
        """
        now = self.store.list_files(key)
        before = self.store.list_files(sent) if self.store.exists(sent) else {}
        if sum(now.values()) > sum(before.values()):
            self._move_missing(sent, before, key, now)
            self.store.remove(sent)
            self.store.move(key, sent)
        else:
            self._move_missing(key, now, sent, before)

    def _move_missing(
        self, key: str, files: Mapping[str, int], to: str, there: Mapping[str, int]
    ) -> None:
        for path in sorted(files.keys() - there.keys()):
            self.store.move(f"{key}/{path}", f"{to}/{path}")

    def _put_back_config(self, journal: Journal) -> None:
        if journal.config_guard is None or self.read(CONFIG_FILENAME) != journal.config_guard:
            return  # we did not change it, or somebody has edited it since
        if journal.config_before is None:
            self.store.remove(self.key(CONFIG_FILENAME))
        else:
            self._write(CONFIG_FILENAME, journal.config_before)

    def _was_installed(self, path: str) -> bool:
        """Whether what stands at a path that a change adds is the change's own, or nothing.

        What is still incoming was not put there, and somebody else may have put something there.
        """
        incoming, place = self.key(f"{_INCOMING}/{path}"), self.key(path)
        if not self.store.exists(incoming) or not self.store.exists(place):
            return True
        return self._content(incoming) == self._content(place)  # a rename that a power cut halved

    def _content(self, key: str) -> dict[str, FileDigest]:
        try:
            below = self.store.list_files(key)
        except StoreError:  # a file
            return {"": self.store.digest(key)}
        return {path: self.store.digest(f"{key}/{path}") for path in below}

    def _remove_shared(self, path: str) -> None:
        """Remove a file beside config.pbtxt, and the directories that only it was in."""
        self.store.remove(self.key(path))
        for directory in list(PurePosixPath(path).parents)[:-1]:
            key = self.key(str(directory))
            if self.store.exists(key) and not self.store.list_files(key):
                self.store.remove(key)

    def _clean(
        self, journal: Journal, record: DeploymentRecord | None, *, keep_aside: bool = False
    ) -> None:
        """Remove what the change set aside, but not what a kept version needs to come back.

        Args:
            journal: of the change, which is over; of its members a note is left.
            record: of what stands there now.
            keep_aside: whether to keep all that was set aside.
        """
        for path in (_INCOMING, _READY, _INSTALLED, _SENT):
            self.store.remove(self.key(path))
        wanted = _set_aside_for(record) if record else set()
        aside = self.key(ASIDE)
        kept = self.store.list_files(aside) if self.store.exists(aside) else {}
        for sha256 in kept:
            if sha256 not in wanted and not keep_aside:
                self.store.remove(f"{aside}/{sha256}")
        if journal.members:
            self._write_journal(replace(_note_of(journal), leaves_members=True))
            return
        # the journal last, and with it what is left of our directory
        empty = wanted.isdisjoint(kept) and not (keep_aside and kept)
        self.store.remove(self.key(OUR_DIRECTORY if empty else JOURNAL))

    def _write_journal(self, journal: Journal) -> None:
        self._write(JOURNAL, journal.to_bytes())

    def _write(self, path: str, data: bytes) -> None:
        """Write unless the content is there already: a file's time stamp means something."""
        if self.read(path) != data:
            self.store.write(self.key(path), data)


def _note_of(journal: Journal) -> Journal:
    """What is left of the note of a change once that is over, where anything is."""
    return Journal(
        journal.operation,
        journal.model_uri,
        journal.holder,
        journal.since,
        created=journal.created,
        members=journal.members,
    )


def _committed_files(journal: Journal) -> list[tuple[str, bytes]]:
    """config.pbtxt, if there is going to be one, and the record: in the order of the commit."""
    files = [(CONFIG_FILENAME, journal.config_after), (RECORD_FILENAME, journal.record_after)]
    return [(path, data) for path, data in files if data is not None]


def _set_aside_for(record: DeploymentRecord) -> set[str]:
    """The sha256 of what a version on disk had beside config.pbtxt, where something else is now."""
    return {
        digest.sha256
        for seen in record.versions.values()
        for digest in record.set_aside_of(seen).values()
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
