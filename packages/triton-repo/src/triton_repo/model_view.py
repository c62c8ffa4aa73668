"""What stands in one model's directory: whose it is, its record, its versions, what was edited."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.change import shared_now
from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.errors import ConfigError, ObjectNotFoundError, StoreError
from triton_repo.journal import OUR_DIRECTORY, Journal
from triton_repo.layout import is_bytecode, is_shared_path
from triton_repo.record import (
    RECORD_FILENAME,
    DeploymentRecord,
    FileDigest,
    RecordError,
    Source,
    VersionRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from triton_repo.entry import ModelName
    from triton_repo.store import Store

__all__ = ["ASIDE", "JOURNAL", "NO_CONFIG", "ModelView", "PlaceState"]

#: Paths in a model's directory: the journal, and files beside config.pbtxt that were set aside.
JOURNAL = f"{OUR_DIRECTORY}/journal.json"
ASIDE = f"{OUR_DIRECTORY}/shared"

#: What Triton reads where there is no config.pbtxt.
NO_CONFIG = ModelConfig.parse("")


class PlaceState(enum.Enum):
    """Whose a directory is, and whether it is whole."""

    ABSENT = "absent"
    FOREIGN = "foreign"  # a model that no MLflow command deployed
    DEPLOYED = "deployed"
    INTERRUPTED = "interrupted"  # there is a journal: a change is under way, or was


@dataclass(frozen=True)
class ModelView:
    """The directory of one model in a repository, as it is now. Nothing here writes.

    Methods raise `StoreError` when the store does.
    """

    store: Store
    name: ModelName

    def key(self, path: str) -> str:
        """The store's key of a path in the model's directory."""
        return f"{self.name}/{path}"

    @property
    def uri(self) -> str:
        """How messages and the record name the directory."""
        return f"{self.store.uri}/{self.name}"

    def state(self) -> PlaceState:
        """Whose the directory is; one look, no lock."""
        if self.store.exists(self.key(JOURNAL)):
            return PlaceState.INTERRUPTED
        if self.store.exists(self.key(RECORD_FILENAME)):
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
        data = self.read(JOURNAL)
        try:
            return Journal.parse(data) if data is not None else None
        except ValueError as exc:
            key = self.key(JOURNAL)
            raise StoreError(
                f"{self.uri}/{JOURNAL} is damaged: {exc}; remove it if no command is running",
                uri=self.store.uri,
                key=key,
            ) from exc

    def record(self) -> DeploymentRecord | None:
        """The deployment record, or None.

        Raises:
            RecordError: there is one that cannot be read.
        """
        data = self.read(RECORD_FILENAME)
        where = f"{self.uri}/{RECORD_FILENAME}"
        return DeploymentRecord.parse(data, where=where) if data is not None else None

    def readable_record(self) -> DeploymentRecord | None:
        """The deployment record; None where there is none, or it cannot be read."""
        try:
            return self.record()
        except RecordError:
            return None

    def config(self) -> ModelConfig | None:
        """The config.pbtxt on disk, or None.

        Raises:
            ConfigError: there is one that does not parse.
        """
        data = self.read(CONFIG_FILENAME)
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
        return {path: self.store.digest(self.key(path)) for path in paths}

    def take_stock(self) -> DeploymentRecord:
        """A record of what stands here now, whoever put it. Nothing is written.

        What our record says of a version is kept where its files still have the recorded sizes;
        other versions are read whole. The main version gets the files beside config.pbtxt, and the
        config.pbtxt, that are there now: somebody may have edited them since.
        """
        known = self.readable_record()
        serving = self._serving(known)
        shared = self.digests(self.shared_files())
        try:
            edited = self.edited_config()
        except ConfigError:
            edited = None
        versions = {}
        for version in self.versions():
            seen = self._stock_of(version, known, shared)
            if version in serving[:1]:
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
        listed = self.store.list_files(self.key(str(version)))
        below = {
            path: size for path, size in listed.items() if not is_bytecode(PurePosixPath(path))
        }
        seen = known.versions.get(version) if known else None
        if seen is not None and below == {
            path: each.size_bytes for path, each in seen.files.items()
        }:
            return seen
        files = {path: self.store.digest(self.key(f"{version}/{path}")) for path in below}
        if seen is not None:  # damaged, or edited
            return replace(seen, files=files)
        uri = known.model_uri if known else ""
        config = (self.read(CONFIG_FILENAME) or b"").decode("utf-8", "surrogateescape")
        # a record without versions is that of NVIDIA's plugin, which placed what stands here
        placed_by = "mlflow-triton" if known and not known.versions else ""
        source = Source(uri=uri, concrete_uri=uri)
        return VersionRecord(source, files, shared, config, placed_by=placed_by)

    def edited_config(self) -> ModelConfig | None:
        """The config.pbtxt on disk, where it is not the one we put there; None where it is.

        Raises:
            ConfigError: it was edited and no longer parses.
        """
        config, record = self.config(), self.readable_record()
        if config is None or record is None or record.main is None:
            return config
        ours = ModelConfig.parse(record.main.config)
        pinned = ours.pinned(config.pinned_versions) if config.pinned_versions else ours
        return None if config.data in (ours.data, pinned.data) else config

    def can_return(self, base: DeploymentRecord, version: int) -> bool:
        """Whether everything that a version on disk needs in order to serve again is still here.

        Args:
            base: from `take_stock`.
            version: one of its versions.
        """
        known = self.readable_record()
        if known is None or version not in known.versions:
            return False
        now, seen = shared_now(base), base.versions[version]
        return seen.files == known.versions[version].files and all(
            now.get(path) == digest or self.store.exists(self.key(f"{ASIDE}/{digest.sha256}"))
            for path, digest in seen.shared.items()
        )

    def _serving(self, known: DeploymentRecord | None) -> tuple[int, ...]:
        if known is not None and known.serving:
            return known.serving
        try:
            config = self.config()
        except ConfigError:  # nothing serves, and what it was meant to serve nobody can say
            config = None
        return (config or NO_CONFIG).served(self.versions())

    def read(self, path: str) -> bytes | None:
        """A small file of the model; None where there is none."""
        try:
            return self.store.read(self.key(path))
        except ObjectNotFoundError:
            return None


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name[0] != "0"
