"""One model's directory in a repository, and how it changes: stage, commit, undo, remove.

A change goes through these steps, and the journal says how far it came:

```
stage      journal.json          what is to be done, and what stood here before
           config.pbtxt          pinned to the versions that serve, before another one appears
           N/                    the new version directory
           (the server validates it: a pinned load; see mlflow_triton_plugin.deploy)
commit     journal.json          what config.pbtxt and the record will be: from here on the change
                                 is finished, not undone, whoever comes next
           config.pbtxt          one atomic replacement
           mlflow-meta.json
finish     old versions go, then journal.json
```
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from triton_repo._version import WRITER
from triton_repo.change import shared_now
from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.errors import ConfigError, ObjectNotFoundError, StoreError
from triton_repo.journal import OUR_DIRECTORY, Journal
from triton_repo.layout import is_shared_path
from triton_repo.record import (
    RECORD_FILENAME,
    DeploymentRecord,
    FileDigest,
    RecordError,
    Source,
    VersionRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from triton_repo.change import Change
    from triton_repo.entry import ModelName
    from triton_repo.store import PlacedTree, Store

__all__ = ["ModelPlace", "PlaceState", "StagedChange"]

_JOURNAL = f"{OUR_DIRECTORY}/journal.json"
_INCOMING = f"{OUR_DIRECTORY}/incoming"
_REPLACED = f"{OUR_DIRECTORY}/replaced"
_ASIDE = f"{OUR_DIRECTORY}/shared"

#: What Triton reads where there is no config.pbtxt.
_NO_CONFIG = ModelConfig.parse("")


class PlaceState(enum.Enum):
    """Whose a directory is, and whether it is whole."""

    ABSENT = "absent"
    FOREIGN = "foreign"  # a model that no MLflow command deployed
    DEPLOYED = "deployed"
    INTERRUPTED = "interrupted"  # there is a journal: a change is under way, or was


@dataclass(frozen=True)
class StagedChange:
    """A change whose files are in their places, not committed yet.

    Attributes:
        change: what was planned.
        versions: the version directories that were placed, by number.
        shared: the files beside config.pbtxt that were placed, if there were any.
    """

    change: Change
    versions: Mapping[int, PlacedTree]
    shared: PlacedTree | None

    def version_digests(self) -> dict[int, Mapping[str, FileDigest]]:
        """Wait until the version directories are durable; their files' digests."""
        return {version: tree.digests() for version, tree in self.versions.items()}

    def shared_digests(self) -> dict[str, FileDigest]:
        """Wait until the files beside config.pbtxt are durable; the digests of all of them."""
        placed = self.shared.digests() if self.shared else {}
        return {**placed, **self.change.shared_restored, **self.change.shared_kept}

    def abandon(self) -> None:
        """Stop what goes on in the background, before the change is undone."""
        for tree in (*self.versions.values(), *([self.shared] if self.shared else [])):
            tree.abandon()


@dataclass(frozen=True)
class ModelPlace:
    """The directory of one model in a repository.

    Methods raise `StoreError` when the store does; each says what it leaves behind.
    """

    store: Store
    name: ModelName

    def _key(self, path: str) -> str:
        return f"{self.name}/{path}"

    @property
    def uri(self) -> str:
        """How messages and the record name the directory."""
        return f"{self.store.uri}/{self.name}"

    # -- what is there ------------------------------------------------------------------------

    def state(self) -> PlaceState:
        """Whose the directory is; one look, no lock."""
        if self.store.exists(self._key(_JOURNAL)):
            return PlaceState.INTERRUPTED
        if self.store.exists(self._key(RECORD_FILENAME)):
            return PlaceState.DEPLOYED
        if not self.store.exists(self.name):
            return PlaceState.ABSENT
        below = self.store.children(self.name)
        if set(below) <= {OUR_DIRECTORY}:  # a change died before its first note, or after its last
            files = self.store.list_files(self.name)
            if all(path.startswith(f"{OUR_DIRECTORY}/") for path in files):
                return PlaceState.INTERRUPTED if below else PlaceState.ABSENT
        return PlaceState.FOREIGN

    def journal(self) -> Journal | None:
        """The change under way, or None.

        Raises:
            StoreError: the journal is damaged.
        """
        data = self._read(_JOURNAL)
        try:
            return Journal.parse(data) if data is not None else None
        except ValueError as exc:
            key = self._key(_JOURNAL)
            raise StoreError(
                f"{self.uri}/{_JOURNAL} is damaged: {exc}; remove it if no command is running",
                uri=self.store.uri,
                key=key,
            ) from exc

    def record(self) -> DeploymentRecord | None:
        """The deployment record, or None.

        Raises:
            RecordError: there is one that cannot be read.
        """
        data = self._read(RECORD_FILENAME)
        where = f"{self.uri}/{RECORD_FILENAME}"
        return DeploymentRecord.parse(data, where=where) if data is not None else None

    def config(self) -> ModelConfig | None:
        """The config.pbtxt on disk, or None.

        Raises:
            ConfigError: there is one that does not parse.
        """
        data = self._read(CONFIG_FILENAME)
        where = f"{self.uri}/{CONFIG_FILENAME}"
        return ModelConfig.parse(data, where=where) if data is not None else None

    def versions(self) -> tuple[int, ...]:
        """Numbers of the version directories on disk, in order."""
        if not self.store.exists(self.name):
            return ()
        names = self.store.children(self.name)
        return tuple(sorted(int(name) for name in names if _is_version(name)))

    def shared_files(self) -> dict[str, int]:
        """The files beside config.pbtxt, with their sizes in bytes."""
        if not self.store.exists(self.name):
            return {}
        files = self.store.list_files(self.name)
        return {path: size for path, size in files.items() if is_shared_path(PurePosixPath(path))}

    def digests(self, paths: Iterable[str]) -> dict[str, FileDigest]:
        """Digests of files of the model, by path."""
        return {path: self.store.digest(self._key(path)) for path in paths}

    def take_stock(self) -> DeploymentRecord:
        """A record of what stands here now, whoever put it. Nothing is written.

        What our record says of a version is kept where its files still have the recorded sizes;
        other versions are read whole. The version that serves gets the files beside config.pbtxt,
        and the config.pbtxt, that are there now: somebody may have edited them since.
        """
        try:
            known = self.record()
        except RecordError:
            known = None
        serving = self._serving(known)
        shared = self.digests(self.shared_files())
        edited = self.edited_config()
        versions = {}
        for version in self.versions():
            seen = self._stock_of(version, known, shared)
            if version in serving:
                config = edited.text if edited else seen.config
                seen = replace(seen, shared=shared, config=config)
            versions[version] = seen
        return DeploymentRecord(
            name=self.name,
            flavor=known.flavor if known else "",
            model_uri=known.model_uri if known else "",
            triton_model_path=self.uri,
            serving=serving,
            versions=versions,
        )

    def _stock_of(
        self, version: int, known: DeploymentRecord | None, shared: dict[str, FileDigest]
    ) -> VersionRecord:
        below = self.store.list_files(self._key(str(version)))
        seen = known.versions.get(version) if known else None
        if seen is not None and below == {
            path: each.size_bytes for path, each in seen.files.items()
        }:
            return seen
        files = {path: self.store.digest(self._key(f"{version}/{path}")) for path in below}
        if seen is not None:  # damaged, or edited
            return replace(seen, files=files)
        uri = known.model_uri if known else ""
        config = (self._read(CONFIG_FILENAME) or b"").decode("utf-8", "surrogateescape")
        return VersionRecord(Source(uri=uri, concrete_uri=uri), files, shared, config)

    def edited_config(self) -> ModelConfig | None:
        """The config.pbtxt on disk, where it is not the one we put there; None where it is."""
        try:
            config, record = self.config(), self.record()
        except (ConfigError, RecordError):
            return None
        if config is None or record is None:
            return config
        served = [record.versions[each] for each in record.serving if each in record.versions]
        if not served:
            return config
        ours = ModelConfig.parse(served[0].config)
        pinned = ours.pinned(config.pinned_versions) if config.pinned_versions else ours
        return None if config.data in (ours.data, pinned.data) else config

    def can_return(self, base: DeploymentRecord, version: int) -> bool:
        """Whether everything that a version on disk needs in order to serve again is still here.

        Args:
            base: from `take_stock`.
            version: one of its versions.
        """
        try:
            known = self.record()
        except RecordError:
            return False
        if known is None or version not in known.versions:
            return False
        now, seen = shared_now(base), base.versions[version]
        return seen.files == known.versions[version].files and all(
            now.get(path) == digest or self.store.exists(self._key(f"{_ASIDE}/{digest.sha256}"))
            for path, digest in seen.shared.items()
        )

    def _serving(self, known: DeploymentRecord | None) -> tuple[int, ...]:
        if known is not None and known.serving:
            return known.serving
        try:
            config = self.config()
        except ConfigError:  # nothing serves, and what it was meant to serve nobody can say
            config = None
        return (config or _NO_CONFIG).served(self.versions())

    def _read(self, path: str) -> bytes | None:
        try:
            return self.store.read(self._key(path))
        except ObjectNotFoundError:
            return None

    # -- how it changes -----------------------------------------------------------------------

    def lock(self, holder: str) -> AbstractContextManager[None]:
        """Be the only writer of this model.

        Raises:
            LockedError: somebody else is.
        """
        # A file at the root is nothing to Triton, and it survives the model's directory.
        return self.store.lock(f".{self.name}.mlflow-triton.lock", holder)

    def stage(
        self,
        change: Change,
        *,
        operation: str,
        holder: str,
        on_copied: Callable[[int], None] | None = None,
    ) -> StagedChange:
        """Put everything in its place, except config.pbtxt and the record.

        Args:
            change: from `plan_change` or `plan_return`.
            operation: `create` or `update`, for the journal.
            holder: who does it, for the journal.
            on_copied: told the number of bytes after each piece.

        Returns:
            What to commit once the server has validated it. Large files are flushed and digested
            in the background meanwhile.

        Raises:
            StoreError: something could not be written; call `recover`.
        """
        aside = self._shared_in_the_way(change)
        journal = Journal(
            operation=operation,
            model_uri=change.source.uri,
            holder=holder,
            since=_now(),
            created=not self.store.exists(self.name),
            new_versions=tuple(change.place),
            replaced_versions=tuple(sorted(change.replaced)),
            shared_before=aside,
            shared_added=tuple(path for path in change.shared_paths if path not in aside),
            config_before=self._read(CONFIG_FILENAME),
        )
        self._write_journal(journal)
        self._set_aside(aside)
        self._guard(change)
        versions = self._place_versions(change, on_copied)
        return StagedChange(change, versions, self._place_shared(change, on_copied))

    def _shared_in_the_way(self, change: Change) -> dict[str, str]:
        """Shared files the change overwrites or removes, with their sha256."""
        present = self.shared_files()
        touched = [path for path in (*change.shared_paths, *change.shared_gone) if path in present]
        return {path: digest.sha256 for path, digest in self.digests(touched).items()}

    def _set_aside(self, aside: Mapping[str, str]) -> None:
        for path, sha256 in aside.items():
            kept = self._key(f"{_ASIDE}/{sha256}")
            if not self.store.exists(kept):
                self.store.copy_file(self._key(path), kept)

    def _guard(self, change: Change) -> None:
        """Pin what serves, so that a server that starts now does not take up the new directory."""
        if change.base is None or not change.base.serving or change.replaced or not change.place:
            return
        try:
            config = self.config() or _NO_CONFIG
        except ConfigError:  # no server that starts now can load it
            return
        if not config.pinned_versions:
            self._write(CONFIG_FILENAME, config.pinned(change.base.serving).data)

    def _place_versions(
        self, change: Change, on_copied: Callable[[int], None] | None
    ) -> dict[int, PlacedTree]:
        if not change.replaced:
            return {
                version: self.store.place(self._key(str(version)), tree, on_copied)
                for version, tree in change.place.items()
            }
        # Everything is copied before anything is moved: the window in which a reader may see the
        # old and the new set mixed is that of a few renames.
        placed = {
            version: self.store.place(self._key(f"{_INCOMING}/{version}"), tree, on_copied)
            for version, tree in change.place.items()
        }
        for version in sorted(change.replaced):
            self.store.move(self._key(str(version)), self._key(f"{_REPLACED}/{version}"))
        for version in placed:
            self.store.move(self._key(f"{_INCOMING}/{version}"), self._key(str(version)))
        return placed

    def _place_shared(
        self, change: Change, on_copied: Callable[[int], None] | None
    ) -> PlacedTree | None:
        placed = None
        if change.shared.files:
            incoming = f"{_INCOMING}/shared"
            placed = self.store.place(self._key(incoming), change.shared, on_copied)
            for path in change.shared.names():
                self.store.move(self._key(f"{incoming}/{path}"), self._key(path))
        for path, digest in change.shared_restored.items():
            self.store.copy_file(self._key(f"{_ASIDE}/{digest.sha256}"), self._key(path))
        return placed

    def _record_of(
        self,
        change: Change,
        files: Mapping[int, Mapping[str, FileDigest]],
        shared: Mapping[str, FileDigest],
    ) -> DeploymentRecord:
        before = dict(change.base.versions) if change.base else {}
        gone = change.replaced | change.doomed
        versions = {number: seen for number, seen in before.items() if number not in gone}
        config = change.entry.config.text if change.entry.config else ""
        new = VersionRecord(change.source, {}, shared, config, _now(), WRITER)
        for number, digests in files.items():
            versions[number] = replace(new, files=digests)
        if change.reuse is not None:  # its bytes are as old as they were
            seen = before[change.reuse]
            versions[change.reuse] = replace(
                seen, source=change.source, shared=shared, config=config, placed_by=WRITER
            )
        return DeploymentRecord(
            name=self.name,
            flavor=change.entry.flavor,
            model_uri=change.source.uri,
            triton_model_path=self.uri,
            serving=change.serving or (change.config or _NO_CONFIG).served(versions),
            versions=versions,
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
        record = self._record_of(change, staged.version_digests(), staged.shared_digests())
        if serving:
            record = replace(record, serving=serving)
        journal = self.journal() or Journal(operation="update")
        committed = replace(
            journal,
            config_after=change.config.data if change.config else None,
            record_after=record.to_bytes(),
            doomed_versions=tuple(sorted(change.doomed)),
            doomed_shared=change.shared_gone,
        )
        self._write_journal(committed)
        self._finish(committed)

    def begin_delete(self, holder: str) -> None:
        """Note that the model is going to be deleted; nothing else changes."""
        journal = self.journal()
        if journal is None or journal.operation != "delete":
            self._write_journal(Journal(operation="delete", holder=holder, since=_now()))

    def remove(self) -> None:
        """Remove the whole directory, record and journal last: what remains is recognised.

        Raises:
            StoreError: something could not be removed; the same call goes on where it stopped.
        """
        if not self.store.exists(self.name):
            return
        paths = {path.split("/")[0] for path in self.store.list_files(self.name)}
        below = (paths | set(self.store.children(self.name))) - {OUR_DIRECTORY}
        for path in sorted(below, key=lambda path: (path == RECORD_FILENAME, path)):
            self.store.remove(self._key(path))
        for path in self.store.children(self._key(OUR_DIRECTORY)) if paths else ():
            self.store.remove(self._key(f"{OUR_DIRECTORY}/{path}"))
        self.store.remove(self.name)

    def recover(self) -> str | None:
        """Finish or undo what an interrupted change left.

        Returns:
            `finished`, `undone`, or None where there was nothing to do.

        Raises:
            StoreError: something could not be written; the same call goes on where it stopped.
        """
        self.store.sweep(self.name)
        journal = self.journal()
        if journal is None:
            self._tidy()
            return None
        if journal.operation == "delete":
            self.remove()
            return "finished"
        if journal.record_after is not None:
            self._finish(journal)
            return "finished"
        self._undo(journal)
        return "undone"

    def _tidy(self) -> None:
        """Remove the empty directories of a change that died before its first note."""
        for key in (self._key(OUR_DIRECTORY), self.name):
            empty = self.store.exists(key) and not self.store.children(key)
            if empty and not self.store.list_files(key):
                self.store.remove(key)

    def _finish(self, journal: Journal) -> None:
        if journal.record_after is None:
            raise ValueError("only a validated change can be finished")
        if journal.config_after is None:
            self.store.remove(self._key(CONFIG_FILENAME))
        else:
            self._write(CONFIG_FILENAME, journal.config_after)
        self._write(RECORD_FILENAME, journal.record_after)
        for version in journal.doomed_versions:
            self.store.remove(self._key(str(version)))
        for path in journal.doomed_shared:
            self._remove_shared(path)
        self._clean(DeploymentRecord.parse(journal.record_after))

    def _undo(self, journal: Journal) -> None:
        if journal.created:
            self.remove()
            return
        self._put_back_versions(journal)
        self._put_back_shared(journal)
        if journal.config_before is None:
            self.store.remove(self._key(CONFIG_FILENAME))
        else:
            self._write(CONFIG_FILENAME, journal.config_before)
        try:
            record = self.record()
        except RecordError:  # a later release's, perhaps: nobody can say what it needs
            self._clean(None, keep_aside=True)
        else:
            self._clean(record)

    def _put_back_versions(self, journal: Journal) -> None:
        for version in journal.new_versions:
            if version not in journal.replaced_versions:
                self.store.remove(self._key(str(version)))
        for version in journal.replaced_versions:
            kept = self._key(f"{_REPLACED}/{version}")
            if self.store.exists(kept):  # else it was never moved away
                self.store.remove(self._key(str(version)))
                self.store.move(kept, self._key(str(version)))

    def _put_back_shared(self, journal: Journal) -> None:
        for path, sha256 in journal.shared_before.items():
            kept = self._key(f"{_ASIDE}/{sha256}")
            if self.store.exists(kept):  # else it was never touched
                self.store.copy_file(kept, self._key(path))
        for path in journal.shared_added:
            self._remove_shared(path)

    def _remove_shared(self, path: str) -> None:
        """Remove a file beside config.pbtxt, and the directories that only it was in."""
        self.store.remove(self._key(path))
        for directory in list(PurePosixPath(path).parents)[:-1]:
            key = self._key(str(directory))
            if self.store.exists(key) and not self.store.list_files(key):
                self.store.remove(key)

    def _clean(self, record: DeploymentRecord | None, *, keep_aside: bool = False) -> None:
        """Remove what the change set aside, but not what a kept version needs to come back."""
        self.store.remove(self._key(_INCOMING))
        self.store.remove(self._key(_REPLACED))
        wanted = _set_aside_for(record) if record else set()
        aside = self._key(_ASIDE)
        kept = self.store.list_files(aside) if self.store.exists(aside) else {}
        for sha256 in kept:
            if sha256 not in wanted and not keep_aside:
                self.store.remove(f"{aside}/{sha256}")
        # the journal last, and with it what is left of our directory
        empty = wanted.isdisjoint(kept) and not (keep_aside and kept)
        self.store.remove(self._key(OUR_DIRECTORY if empty else _JOURNAL))

    def _write_journal(self, journal: Journal) -> None:
        self._write(_JOURNAL, journal.to_bytes())

    def _write(self, path: str, data: bytes) -> None:
        """Write unless the content is there already: a file's time stamp means something."""
        if self._read(path) != data:
            self.store.write(self._key(path), data)


def _set_aside_for(record: DeploymentRecord) -> set[str]:
    """The sha256 of what a version on disk had beside config.pbtxt, where something else is now."""
    now = shared_now(record)
    return {
        digest.sha256
        for seen in record.versions.values()
        for path, digest in seen.shared.items()
        if now.get(path) != digest
    }


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name[0] != "0"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
