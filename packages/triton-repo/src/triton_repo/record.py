"""The deployment record, `<model>/mlflow-meta.json`.

It keeps the four keys that NVIDIA's plugin writes, so that deployments are recognised both ways.
That plugin reads the file with `ast.literal_eval`: the record therefore holds no null, true or
false; what is unknown is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from triton_repo.errors import TritonRepoError
from triton_repo.members import MemberVersions

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "RECORD_FILENAME",
    "SCHEMA_VERSION",
    "DeploymentRecord",
    "FileDigest",
    "NewerRecordError",
    "RecordError",
    "Source",
    "VersionRecord",
    "tree_digest",
]

RECORD_FILENAME = "mlflow-meta.json"
#: The highest that is read. A record is written with the lowest that says all of it: 2 says whose
#: members are where, which a release that does not know it would lose.
SCHEMA_VERSION = 2
_WITHOUT_MEMBERS = 1


class RecordError(TritonRepoError, ValueError):
    """mlflow-meta.json is not a deployment record."""


class NewerRecordError(RecordError):
    """A later release wrote it; writing it anew would lose what this one does not know."""


@dataclass(frozen=True)
class FileDigest:
    """What a placed file was."""

    size_bytes: int
    sha256: str


def tree_digest(files: Mapping[str, FileDigest]) -> str:
    """One sha256 over the digests of all the files of a directory, as `sha256sum` lists them."""
    lines = "".join(f"{seen.sha256}  {path}\n" for path, seen in sorted(files.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Source:
    """Where a version came from, resolved as far as it can be.

    Attributes:
        uri: the URI the user gave; empty where nobody knows (an adopted version).
        concrete_uri: one that will always mean the same model: `models:/name/7`, `models:/m-…`,
            `runs:/…` or a location.
        registered_name: the registered model, if there is one.
        registered_version: its version in the registry, if there is one.
        alias: the alias asked for (`champion` in `models:/name@champion`), if one was.
        run_id: the run that logged it, if known.
        model_id: MLflow 3's `m-…`, or the older `model_uuid`, if known.
    """

    uri: str = ""
    concrete_uri: str = ""
    registered_name: str = ""
    registered_version: int = 0
    alias: str = ""
    run_id: str = ""
    model_id: str = ""

    def same_model(self, other: Source) -> bool:
        """Whether both are certainly one logged model: the same id, under the same address."""
        return (
            bool(self.model_id)
            and self.model_id == other.model_id
            and self.registered_name == other.registered_name
            and self.registered_version == other.registered_version
        )


@dataclass(frozen=True)
class VersionRecord:
    """One version directory on disk.

    Attributes:
        source: where it came from.
        files: every file in the version directory, by its path in it.
        shared: every file beside config.pbtxt that this version was placed with.
        config: its config.pbtxt before any pin; empty where it has none.
        own_config: the one that its model brought, where another one was tuned in the repository
            and stays in force; None where `config` is the model's own.
        own_shared: the same of files beside config.pbtxt: what the model brought.
        overrides: fields of config.pbtxt that were set otherwise when it was deployed, see
            `triton_repo.overrides`; `config` has them.
        flavor: the MLflow flavor it was made from.
        members: how many versions its model brought; several belong together.
        models: the models that were deployed with it because it needs them, by the names that they
            had in the artifact.
        placed_at: when the command that placed it began, ISO 8601 in UTC.
        placed_by: which package and version wrote it.
    """

    source: Source
    files: Mapping[str, FileDigest]
    shared: Mapping[str, FileDigest] = field(default_factory=dict)
    config: str = ""
    placed_at: str = ""
    placed_by: str = ""
    flavor: str = ""
    members: int = 1
    own_config: str | None = None
    own_shared: Mapping[str, FileDigest] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, MemberVersions] = field(default_factory=dict)

    @property
    def brought_config(self) -> str:
        """The config.pbtxt that its model brought; empty where it brought none."""
        return self.config if self.own_config is None else self.own_config

    @property
    def brought_shared(self) -> Mapping[str, FileDigest]:
        """The files beside config.pbtxt as its model brought them."""
        return {**self.shared, **self.own_shared}


@dataclass(frozen=True)
class DeploymentRecord:
    """What is deployed under one name.

    Attributes:
        name: the deployment.
        flavor: of the version that serves.
        model_uri: as the user gave it, for the version that serves.
        triton_model_path: where the model stands, as NVIDIA's plugin writes it.
        serving: versions that serve, first the one whose config.pbtxt and files beside it are in
            place. Empty in a record of NVIDIA's plugin.
        versions: every version on disk that was placed by us, by number.
        part_of: the deployment that this model was deployed for; empty where it is one itself.
    """

    name: str
    flavor: str
    model_uri: str
    triton_model_path: str
    serving: tuple[int, ...] = ()
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)
    part_of: str = ""

    @property
    def served(self) -> tuple[VersionRecord, ...]:
        """What is known of the versions that serve."""
        return tuple(self.versions[each] for each in self.serving if each in self.versions)

    @property
    def main(self) -> VersionRecord | None:
        """What is known of the version whose config.pbtxt is in place; None where nothing is."""
        return next(iter(self.served), None)

    @property
    def shared(self) -> Mapping[str, FileDigest]:
        """The files beside config.pbtxt, as the main version was placed with them."""
        return self.main.shared if self.main is not None else {}

    def needs(self, numbers: Iterable[int] | None = None) -> dict[str, frozenset[int]]:
        """The versions of other models that this one needs, by these models' directories.

        Args:
            numbers: of those of its versions that count; all when not given.
        """
        found: dict[str, frozenset[int]] = {}
        for number in self.versions if numbers is None else numbers:
            seen = self.versions.get(number)
            for each in seen.models.values() if seen is not None else ():
                found[each.name] = found.get(each.name, frozenset()).union(each.versions)
        return found

    def set_aside_of(self, version: VersionRecord) -> dict[str, FileDigest]:
        """What a version had beside config.pbtxt where the main one has something else, or nothing.

        It needs them back to serve again; until then they are kept aside, by their sha256.
        """
        now = self.shared
        return {path: digest for path, digest in version.shared.items() if now.get(path) != digest}

    def to_bytes(self) -> bytes:
        """The file's content."""
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION if self._has_members else _WITHOUT_MEMBERS,
            "name": self.name,
            "triton_model_path": self.triton_model_path,
            "mlflow_model_uri": self.model_uri,
            "flavor": self.flavor,
            "serving": list(self.serving),
            "versions": {
                str(number): _version_document(version)
                for number, version in sorted(self.versions.items())
            },
        }
        if self.part_of:
            document["part_of"] = self.part_of
        return (json.dumps(document, indent=2) + "\n").encode("ascii")

    @property
    def _has_members(self) -> bool:
        return bool(self.part_of) or any(seen.models for seen in self.versions.values())

    @classmethod
    def parse(cls, data: bytes, *, where: str = RECORD_FILENAME) -> DeploymentRecord:
        """Read a record, ours or one of NVIDIA's plugin.

        Raises:
            RecordError: it is neither, or a later release wrote it.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise RecordError(f"{where} is not JSON: {exc}") from exc
        if not isinstance(document, Mapping) or not isinstance(document.get("name"), str):
            raise RecordError(f"{where} is not a deployment record: it has no name")
        schema_version = document.get("schema_version", 0)
        if not isinstance(schema_version, int) or schema_version > SCHEMA_VERSION:
            raise NewerRecordError(
                f"{where} has schema version {schema_version!r}, this release reads up to "
                f"{SCHEMA_VERSION}; upgrade triton-repo"
            )
        try:
            return cls(
                name=document["name"],
                flavor=_text(document, "flavor"),
                model_uri=_text(document, "mlflow_model_uri"),
                triton_model_path=_text(document, "triton_model_path"),
                serving=tuple(int(number) for number in document.get("serving", ())),
                versions={
                    int(number): _parse_version(version)
                    for number, version in document.get("versions", {}).items()
                },
                part_of=_text(document, "part_of"),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise RecordError(f"{where} is damaged: {type(exc).__name__} {exc}") from exc


def _version_document(version: VersionRecord) -> dict[str, Any]:
    source = {key: value for key, value in vars(version.source).items() if value}
    own: dict[str, Any] = {}
    if version.own_config is not None:
        own["own_config"] = version.own_config
    if version.own_shared:
        own["own_shared"] = _digests_document(version.own_shared)
    if version.overrides:
        own["overrides"] = dict(version.overrides)
    if version.models:
        own["models"] = {
            member: {"name": each.name, "versions": list(each.versions)}
            for member, each in version.models.items()
        }
    return {
        "source": source,
        "files": _digests_document(version.files),
        "shared": _digests_document(version.shared),
        "config": version.config,
        "placed_at": version.placed_at,
        "placed_by": version.placed_by,
        "flavor": version.flavor,
        "members": version.members,
        **own,
    }


def _digests_document(digests: Mapping[str, FileDigest]) -> dict[str, Any]:
    return {
        path: {"size_bytes": digest.size_bytes, "sha256": digest.sha256}
        for path, digest in sorted(digests.items())
    }


def _parse_version(document: Mapping[str, Any]) -> VersionRecord:
    return VersionRecord(
        source=Source(**document["source"]),
        files=_parse_digests(document["files"]),
        shared=_parse_digests(document["shared"]),
        config=_text(document, "config"),
        placed_at=_text(document, "placed_at"),
        placed_by=_text(document, "placed_by"),
        flavor=_text(document, "flavor"),
        members=int(document.get("members", 1)),
        own_config=_text(document, "own_config") if "own_config" in document else None,
        own_shared=_parse_digests(document.get("own_shared", {})),
        overrides={str(path): str(text) for path, text in document.get("overrides", {}).items()},
        models={
            str(member): MemberVersions(
                str(each["name"]), tuple(int(number) for number in each["versions"])
            )
            for member, each in document.get("models", {}).items()
        },
    )


def _parse_digests(document: Mapping[str, Any]) -> dict[str, FileDigest]:
    return {
        path: FileDigest(int(digest["size_bytes"]), str(digest["sha256"]))
        for path, digest in document.items()
    }


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key, "")
    return value if isinstance(value, str) else ""
