"""Plans how a model's directory gets from what stands there to what is to be served.

Sources and recorded digests are read; nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from triton_repo.config import ModelConfig
from triton_repo.entry import RepositoryEntry, Tree, check_name
from triton_repo.errors import ArtifactError, ConfigError
from triton_repo.store._copy import digest_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from triton_repo.record import DeploymentRecord, FileDigest, Source

__all__ = ["Change", "plan_change", "plan_return", "shared_now"]


@dataclass(frozen=True)
class Change:
    """A planned change of one model's directory.

    Attributes:
        entry: the model to serve.
        source: where it comes from.
        base: the record before the change; None for a new deployment.
        place: version directories to copy, by number.
        serving: versions that serve afterwards; empty where the model's own policy decides.
        config: config.pbtxt afterwards, pinned where it has to be; None where there is none.
        load_config: what the server is asked to load before the commit; None for a plain load.
        reuse: a version on disk that already has the entry's content, or None.
        replaced: version directories that make room for others of the same number.
        doomed: version directories to remove once committed.
        shared: files beside config.pbtxt to copy.
        shared_kept: files beside config.pbtxt that are right already.
        shared_restored: files beside config.pbtxt to take back from what was set aside.
        shared_gone: files beside config.pbtxt to remove once committed.
    """

    entry: RepositoryEntry
    source: Source
    base: DeploymentRecord | None
    place: Mapping[int, Tree]
    serving: tuple[int, ...]
    config: ModelConfig | None
    load_config: ModelConfig | None
    reuse: int | None = None
    replaced: frozenset[int] = frozenset()
    doomed: frozenset[int] = frozenset()
    shared: Tree = field(default_factory=Tree)
    shared_kept: Mapping[str, FileDigest] = field(default_factory=dict)
    shared_restored: Mapping[str, FileDigest] = field(default_factory=dict)
    shared_gone: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """How many bytes staging will copy."""
        return self.shared.size_bytes + sum(tree.size_bytes for tree in self.place.values())

    @property
    def shared_paths(self) -> tuple[str, ...]:
        """Files beside config.pbtxt that will be written."""
        return (*self.shared.names(), *self.shared_restored)


def plan_change(
    entry: RepositoryEntry,
    source: Source,
    *,
    base: DeploymentRecord | None,
    wanted_version: int = 0,
    keep_versions: int = 2,
    keep_base: bool = True,
    recorded: DeploymentRecord | None = None,
    edited_config: ModelConfig | None = None,
) -> Change:
    """Plan to serve `entry`.

    Args:
        entry: the model.
        source: where it comes from.
        base: what stands there now, every version directory included; None for nothing.
        wanted_version: the number a single version should have; 0 for the next free one. Where
            another model already has that number, the next free one is taken: version directories
            never change once they are visible. Where it is this very model and its files are no
            longer what they were, they are replaced.
        keep_versions: how many version directories may stay, the new one included.
        keep_base: False to remove everything that stands there once the new model is committed.
        recorded: what the last command recorded; `base` where nothing was edited since.
        edited_config: the config.pbtxt that somebody tuned in the repository. It stays in force
            where the new model brings none of its own, or the same one as before.

    Raises:
        ConfigError: `keep_versions` is no count.
        ArtifactError: a model with several versions cannot stand beside versions of others.
    """
    recorded = base if recorded is None else recorded
    if edited_config is not None and keep_base and _stays(edited_config, entry, recorded):
        entry = replace(entry, config=edited_config.with_name(entry.name))
    if len(entry.versions) == 1:
        number, reuse = _choose_version(entry, source, base, wanted_version, keep_base=keep_base)
        on_disk = frozenset(base.versions if base else ())
        if base is not None and keep_base:
            doomed = _ours(base) - _kept(base, number, keep_versions)
        else:
            doomed = on_disk - {number}
        single = _plan_single(entry.renumbered(number), source, base, reuse=reuse, doomed=doomed)
        return _with_shared(single, recorded, keep_base=keep_base)
    on_disk = frozenset(base.versions if base else ())
    if base is not None and keep_base and not _ours(base) >= on_disk:
        raise ArtifactError(
            f"{entry.name} brings several versions, and versions that it did not bring "
            f"({_listed(on_disk - _ours(base))}) are there; move them, or create it anew with "
            "-C on_conflict=replace"
        )
    numbers = frozenset(entry.versions)
    return _with_shared(
        Change(
            entry=entry,
            source=source,
            base=base,
            place=entry.versions,
            serving=entry.config.pinned_versions if entry.config else (),
            config=entry.config,
            load_config=entry.config,
            replaced=on_disk & numbers,
            doomed=on_disk - numbers,
        ),
        recorded,
        keep_base=keep_base,
    )


def _ours(base: DeploymentRecord) -> frozenset[int]:
    """Version directories that one of our commands placed; only these are ever pruned."""
    return frozenset(number for number, seen in base.versions.items() if seen.placed_by)


def _listed(versions: Iterable[int]) -> str:
    return ", ".join(str(version) for version in sorted(versions))


def _stays(edited: ModelConfig, entry: RepositoryEntry, recorded: DeploymentRecord | None) -> bool:
    """Whether a config.pbtxt that was edited in the repository suits the new model as well."""
    if recorded is not None and recorded.flavor not in ("", entry.flavor):
        return False
    if entry.config is not None and edited.backend != entry.config.backend:
        return False
    if entry.has_own_config and (entry.config is None or not _unchanged(entry.config, recorded)):
        return False
    names = {path for tree in entry.versions.values() for path in tree.names()}
    return edited.model_filename in ("", *names)


def _unchanged(config: ModelConfig, recorded: DeploymentRecord | None) -> bool:
    """Whether this is the config.pbtxt that the model which serves brought."""
    return recorded is not None and any(seen.config == config.text for seen in recorded.served)


def _choose_version(
    entry: RepositoryEntry,
    source: Source,
    base: DeploymentRecord | None,
    wanted_version: int,
    *,
    keep_base: bool,
) -> tuple[int, int | None]:
    """The number a single version gets, and the same again where it is on disk already."""
    (tree,) = entry.versions.values()
    same = _same_content(tree, base, wanted_version)
    if same is not None:
        return same, same
    on_disk = frozenset(base.versions if base else ())
    following = max(on_disk, default=0) + 1
    if base is None or wanted_version not in on_disk or not keep_base:
        return wanted_version or following, None
    damaged = base.versions[wanted_version].source.same_model(source)
    return (wanted_version if damaged else following), None


def _plan_single(
    entry: RepositoryEntry,
    source: Source,
    base: DeploymentRecord | None,
    *,
    reuse: int | None,
    doomed: frozenset[int],
) -> Change:
    (number,) = entry.versions
    on_disk = frozenset(base.versions if base else ())
    replaced = on_disk & {number} if reuse is None else frozenset()
    crowded = bool(on_disk - {number})
    return Change(
        entry=entry,
        source=source,
        base=base,
        place=entry.versions if reuse is None else {},
        serving=(number,),
        config=_pinned(entry.config, number) if crowded else entry.config,
        load_config=_load_config(entry.config, number, crowded=crowded),
        reuse=reuse,
        replaced=replaced,
        doomed=doomed - replaced,
    )


def plan_return(
    base: DeploymentRecord,
    version: int,
    *,
    source: Source,
    keep_versions: int = 2,
    recorded: DeploymentRecord | None = None,
) -> Change:
    """Plan to serve a version that is still on disk: nothing is copied from the model's source.

    Args:
        base: what stands there now.
        version: one of `base.versions`.
        source: what was asked for this time.
        keep_versions: how many version directories may stay.
        recorded: what the last command recorded; `base` where nothing was edited since.
    """
    seen = base.versions[version]
    config = ModelConfig.parse(seen.config) if seen.config else None
    entry = RepositoryEntry(
        name=check_name(base.name),
        flavor=seen.flavor or base.flavor,
        versions={version: Tree()},
        config=config,
    )
    crowded = len(base.versions) > 1
    now = shared_now(base)
    restored = {path: digest for path, digest in seen.shared.items() if now.get(path) != digest}
    return Change(
        entry=entry,
        source=source,
        base=base,
        place={},
        serving=(version,),
        config=_pinned(config, version) if crowded else config,
        load_config=_load_config(config, version, crowded=crowded),
        reuse=version,
        doomed=_ours(base) - _kept(base, version, keep_versions),
        shared_kept={path: digest for path, digest in seen.shared.items() if path not in restored},
        shared_restored=restored,
        shared_gone=_gone(now, recorded or base, set(seen.shared)),
    )


def _pinned(config: ModelConfig | None, version: int) -> ModelConfig:
    return (config or ModelConfig.parse("")).pinned([version])


def _load_config(config: ModelConfig | None, version: int, *, crowded: bool) -> ModelConfig | None:
    """The override that makes the server load exactly this version, before config.pbtxt says so."""
    if config is None and not crowded:
        return None  # the only directory, and the server completes the config by itself
    return _pinned(config, version)


def _same_content(tree: Tree, base: DeploymentRecord | None, wanted_version: int) -> int | None:
    """A version on disk with the same files; only the wanted one where one is wanted."""
    if base is None:
        return None
    sizes = {str(file.path): file.size_bytes for file in tree.files}
    candidates = [wanted_version] if wanted_version else sorted(base.versions, reverse=True)
    for number in candidates:
        seen = base.versions.get(number)
        if seen is None or sizes != {path: each.size_bytes for path, each in seen.files.items()}:
            continue
        if all(digest_file(file.source) == seen.files[str(file.path)] for file in tree.files):
            return number
    return None


def _kept(base: DeploymentRecord, number: int, keep_versions: int) -> frozenset[int]:
    """`number`, what serves now, and the youngest others, as many as may stay."""
    if keep_versions < 1:
        raise ConfigError(
            f"keep_versions is {keep_versions}; it must be at least 1", field="keep_versions"
        )
    by_age = sorted(
        _ours(base) - {number},
        key=lambda other: (other in base.serving, base.versions[other].placed_at, other),
        reverse=True,
    )
    return frozenset([number, *by_age[: keep_versions - 1]])


def shared_now(base: DeploymentRecord | None) -> Mapping[str, FileDigest]:
    """The files beside config.pbtxt, as the record has them for the version that serves."""
    return base.served[0].shared if base is not None and base.served else {}


def _with_shared(change: Change, recorded: DeploymentRecord | None, *, keep_base: bool) -> Change:
    """Add what happens to the files beside config.pbtxt."""
    now, was = shared_now(change.base), shared_now(recorded)
    kept: dict[str, FileDigest] = {}
    fresh = []
    for file in change.entry.shared.files:
        path = str(file.path)
        # right already; or edited in the repository, while the model's own is what it was
        if path in now and digest_file(file.source) in (now[path], was.get(path)):
            kept[path] = now[path]
        else:
            fresh.append(file)
    wanted = set(change.entry.shared.names())
    wanted |= {path for _, path in change.config.named_files} if change.config else set()
    gone = _gone(now, recorded, wanted) if keep_base else tuple(now.keys() - wanted)
    return replace(change, shared=Tree(tuple(fresh)), shared_kept=kept, shared_gone=gone)


def _gone(
    now: Mapping[str, FileDigest], recorded: DeploymentRecord | None, wanted: set[str]
) -> tuple[str, ...]:
    """Files beside config.pbtxt that an older version brought, and that nobody wants any more.

    Those that somebody else put there stay.
    """
    ours = recorded is not None and all(seen.placed_by for seen in recorded.served)
    was = shared_now(recorded) if ours else {}
    return tuple(path for path in was if path in now and path not in wanted)
