"""What stands in one model's directory: whose it is, its record, its versions, what was edited."""

from __future__ import annotations

import enum
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from triton_repo.config import CONFIG_FILENAME, NO_CONFIG, ModelConfig
from triton_repo.errors import ConfigError, ObjectNotFoundError, StoreError
from triton_repo.journal import OUR_DIRECTORY, Journal
from triton_repo.layout import is_bytecode, is_shared_path
from triton_repo.members import placed_config
from triton_repo.record import (
    RECORD_FILENAME,
    DeploymentRecord,
    FileDigest,
    NewerRecordError,
    RecordError,
    Source,
    VersionRecord,
)
from triton_repo.stock import Stock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from triton_repo.names import ModelName
    from triton_repo.store import Store

__all__ = ["ASIDE", "JOURNAL", "ModelView", "PlaceState", "needed_by"]

#: Paths in a model's directory: the journal, and files beside config.pbtxt that were set aside.
JOURNAL = f"{OUR_DIRECTORY}/journal.json"
ASIDE = f"{OUR_DIRECTORY}/shared"

_T = TypeVar("_T")


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

    def needed(self) -> set[str]:
        """Directories of the models that this one needs, or needed before what is under way.

        Raises:
            RecordError, StoreError: its record, or its journal, cannot be read.
        """
        return needed_by(self.record(), self.journal())

    def _record_to_change(self) -> DeploymentRecord | None:
        """The record; None where there is none, or it is damaged and a change will mend it."""
        try:
            return self.record()
        except NewerRecordError:
            raise
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
        """Digests of files of the model, by path, read side by side."""
        listed = list(paths)
        with ThreadPoolExecutor(min(self.store.readers, len(listed) or 1)) as pool:
            keys = [self.key(path) for path in listed]
            return dict(zip(listed, pool.map(self.store.digest, keys), strict=True))

    def take_stock(self) -> Stock:
        """Look at everything once: config.pbtxt, the record, every file's path and size.

        What our record says of a version is kept where its files still have the recorded sizes;
        other versions are read whole. The main version gets the files beside config.pbtxt, and the
        config.pbtxt, that are there now: somebody may have edited them since.

        Raises:
            NewerRecordError: a later release wrote the record.
        """
        recorded = self._record_to_change()
        broken, config, edited = None, None, None
        try:
            config = self.config()
            edited = _edited(config, recorded)
        except ConfigError as exc:
            broken = exc
        listed = self.store.list_files(self.name)
        numbers = self.versions()
        beside = [path for path in listed if is_shared_path(PurePosixPath(path))]
        if recorded is not None and recorded.versions:  # the rest is somebody's own
            known = {path for seen in recorded.versions.values() for path in seen.shared}
            beside = [path for path in beside if path in known]
        shared = self.digests(beside)
        serving = recorded.serving if recorded is not None else ()
        serving = serving or (config or NO_CONFIG).served(numbers)
        versions = {}
        for number in numbers:
            seen = self._stock_of(number, _below(listed, str(number)), recorded, shared)
            if number in serving[:1]:
                seen = replace(seen, shared=shared)
                if edited is not None:
                    main = recorded.main if recorded is not None else None
                    own = main.brought_config if main is not None else None
                    seen = replace(seen, config=edited.text, own_config=own)
            versions[number] = seen
        return Stock(
            now=DeploymentRecord(
                name=self.name,
                flavor=recorded.flavor if recorded else "",
                model_uri=recorded.model_uri if recorded else "",
                triton_model_path=self.uri,
                serving=serving,
                versions=versions,
            ),
            recorded=recorded,
            config=config,
            edited_config=edited,
            broken_config=broken,
            aside=frozenset(_below(listed, ASIDE)),
        )

    def digests_of(self, version: int, paths: Iterable[str]) -> dict[str, FileDigest]:
        """Digests of files of one version, by path in it."""
        return _below(self.digests(f"{version}/{path}" for path in paths), str(version))

    def _stock_of(
        self,
        version: int,
        below: dict[str, int],
        recorded: DeploymentRecord | None,
        shared: dict[str, FileDigest],
    ) -> VersionRecord:
        sizes = {path: size for path, size in below.items() if not is_bytecode(PurePosixPath(path))}
        seen = recorded.versions.get(version) if recorded else None
        if seen is not None and all(
            sizes.get(path) == file.size_bytes for path, file in seen.files.items()
        ):
            return seen  # what else there may be is somebody's own
        files = self.digests_of(version, sizes)
        if seen is not None:  # damaged, or edited
            return replace(seen, files=files)
        uri = recorded.model_uri if recorded else ""
        config = (self.read(CONFIG_FILENAME) or b"").decode("utf-8", "surrogateescape")
        # a record without versions is that of NVIDIA's plugin, which placed what stands here
        placed_by = "mlflow-triton" if recorded and not recorded.versions else ""
        source = Source(uri=uri, concrete_uri=uri)
        return VersionRecord(source, files, shared, config, placed_by=placed_by)

    def read(self, path: str) -> bytes | None:
        """A small file of the model; None where there is none."""
        try:
            return self.store.read(self.key(path))
        except ObjectNotFoundError:
            return None


def needed_by(record: DeploymentRecord | None, journal: Journal | None) -> set[str]:
    """Directories of the models that a deployment needs, or needed before what is under way."""
    names = set(journal.members) if journal is not None else set()
    return names.union(record.needs() if record is not None else ())


def _edited(config: ModelConfig | None, recorded: DeploymentRecord | None) -> ModelConfig | None:
    """The config.pbtxt on disk, where it is not the one we put there."""
    if config is None or recorded is None or recorded.main is None:
        return config
    ours = placed_config(recorded.main)
    pinned = ours.pinned(config.pinned_versions) if config.pinned_versions else ours
    return None if config.data in (ours.data, pinned.data) else config


def _below(files: Mapping[str, _T], directory: str) -> dict[str, _T]:
    """What is known of the files below one directory, by their paths in it."""
    prefix = f"{directory}/"
    return {path[len(prefix) :]: each for path, each in files.items() if path.startswith(prefix)}


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name[0] != "0"
