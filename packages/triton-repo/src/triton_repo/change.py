"""Plans how a model's directory gets from what stands there to what is to be served.

Sources and recorded digests are read; nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from triton_repo.config import CONFIG_FILENAME, NO_CONFIG, ModelConfig
from triton_repo.entry import RepositoryEntry, Tree
from triton_repo.errors import ArtifactError, ConfigError
from triton_repo.joining import joining_of
from triton_repo.members import MEMBERS_PARAMETER, moved_config, overridden_config, placed_config
from triton_repo.names import check_name
from triton_repo.store._copy import digest_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from triton_repo.joining import Joining
    from triton_repo.record import DeploymentRecord, FileDigest, Source, VersionRecord
    from triton_repo.stock import Stock

__all__ = ["Change", "Together", "plan_change", "plan_return"]


@dataclass(frozen=True)
class Together:
    """Which versions are to serve beside the one that is deployed.

    Attributes:
        versions: all of them, by number; empty where `latest` says it.
        latest: how many: the one deployed, and of the others those with the highest numbers.
    """

    versions: tuple[int, ...] = ()
    latest: int = 1

    def chosen(self, number: int, on_disk: Iterable[int]) -> tuple[int, ...]:
        """The versions that will serve, `number` first.

        Args:
            number: the version that is deployed.
            on_disk: the version directories there are.

        Raises:
            ConfigError: `number` is left out, or a version is not on disk.
        """
        others = sorted(set(on_disk) - {number}, reverse=True)
        if not self.versions:
            return (number, *others[: self.latest - 1])
        if number not in self.versions:
            raise self._refused(f"leaves out version {number}, the one that is deployed")
        for version in self.versions:
            if version not in (number, *others):
                on_disk_too = f"beside {number} there is {_listed(others) or 'no other'}"
                raise self._refused(f"names version {version}, which is not on disk; {on_disk_too}")
        return (number, *(version for version in self.versions if version != number))

    def _refused(self, why: str) -> ConfigError:
        numbers = ",".join(str(version) for version in self.versions)
        return ConfigError(f"serve_versions={numbers} {why}", field="serve_versions")


@dataclass(frozen=True)
class Change:
    """A planned change of one model's directory.

    Attributes:
        entry: the model to serve.
        source: where it comes from.
        base: what stands there before the change; None for a new deployment.
        place: version directories to copy, by number.
        serving: versions that serve afterwards, first the one that is deployed; empty where the
            model's own policy decides.
        config: config.pbtxt afterwards, pinned where it has to be; None where there is none.
        load_config: what the server is asked to load before the commit; None for a plain load.
        reuse: a version on disk that already has the entry's content, or None.
        replaced: version directories that make room for others of the same number.
        doomed: version directories to remove once committed.
        shared: files beside config.pbtxt to copy.
        shared_kept: files beside config.pbtxt that are right already.
        shared_restored: files beside config.pbtxt to take back from what was set aside.
        shared_gone: files beside config.pbtxt to remove once committed.
        own_config: see `VersionRecord`.
        own_shared: see `VersionRecord`.
        overrides: see `VersionRecord`.
        returns: whether it serves again what has served before, from what is on disk alone.
    """

    entry: RepositoryEntry
    source: Source
    base: Stock | None
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
    own_config: str | None = None
    own_shared: Mapping[str, FileDigest] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    returns: bool = False

    def size_bytes(self, *, apart: bool = False) -> int:
        """How many bytes staging will copy.

        Args:
            apart: whether it is staged apart, though it need not be.
        """
        placed = self.shared.size_bytes + sum(tree.size_bytes for tree in self.place.values())
        return placed + sum(self.copied_apart(apart=apart).values())

    def copied_apart(self, *, apart: bool = False) -> dict[str, int]:
        """What is in its place already, and staged apart all the same: bytes by path.

        What is staged apart is a whole model directory, and these copies go again.

        Args:
            apart: see `size_bytes`.
        """
        if not (apart or self.in_place):
            return {}
        there = {n: tree for n, tree in self.entry.versions.items() if n not in self.place}
        files = {
            f"{n}/{each.path}": each.size_bytes for n in sorted(there) for each in there[n].files
        }
        return files | {path: each.size_bytes for path, each in self.shared_kept.items()}

    @property
    def config_text(self) -> str:
        """The text of config.pbtxt afterwards; empty where there is none."""
        return self.config.text if self.config is not None else ""

    @property
    def joining(self) -> Joining:
        """Whether requests of several callers are joined afterwards."""
        on_disk = self.base.versions if self.base is not None else {}
        reused = on_disk.get(self.reuse) if self.reuse is not None else None
        files = reused.files if reused is not None else None
        return joining_of(self.config or NO_CONFIG, self.entry.flavor, files)

    @property
    def shared_paths(self) -> tuple[str, ...]:
        """Files beside config.pbtxt that will be written."""
        return (*self.shared.names(), *self.shared_restored)

    @property
    def members(self) -> set[str]:
        """Directories of the models that it needs, or its versions on disk do."""
        before = self.base.now.needs().keys() if self.base is not None else ()
        return {each.name for each in self.entry.models.values()}.union(before)

    def config_apart(self, name: str) -> ModelConfig | None:
        """The config.pbtxt under which it can be loaded by another name, beside nothing else."""
        if self.load_config is None:
            return None
        config = self.load_config.with_name(name)
        alone = [each for each in config.pinned_versions if each in self.entry.versions]
        return config.pinned(alone) if alone else config

    @property
    def may_end_what_serves(self) -> bool:
        """Whether a load that fails may end what serves under that name.

        An ensemble that does not go with its members is found out after Triton has let the one
        before it go.
        """
        return self.base is not None and self.config is not None and self.config.is_ensemble

    @property
    def in_place(self) -> bool:
        """Whether files that serve now are overwritten by others that have never served."""
        now = self.base.now.shared if self.base is not None else {}
        overwritten = bool(self.replaced) or any(path in now for path in self.shared_paths)
        return overwritten and not self.returns


def plan_change(
    entry: RepositoryEntry,
    source: Source,
    *,
    base: Stock | None,
    wanted_version: int = 0,
    keep_versions: int = 2,
    keep_base: bool = True,
    together: Together | None = None,
    overrides: Mapping[str, str] | None = None,
    tuned: Stock | None = None,
) -> Change:
    """Plan to serve `entry`.

    Args:
        entry: the model.
        source: where it comes from.
        base: what stands there now; None for nothing. A config.pbtxt that somebody tuned in the
            repository stays in force where the new model brings none of its own, or the same one
            as before.
        wanted_version: the number a single version should have; 0 for the next free one. Where
            another model already has that number, the next free one is taken: version directories
            never change once they are visible. Where it is this very model and its files are no
            longer what they were, they are replaced.
        keep_versions: how many version directories may stay, the new one included.
        keep_base: False to remove everything that stands there once the new model is committed.
        together: what is to serve beside the new model; what serves is never pruned.
        overrides: fields of its config.pbtxt to set otherwise, see `triton_repo.overrides`.
        tuned: where nothing stands there: another place of the model, whose config.pbtxt stays in
            force as that of `base` does.

    Raises:
        ConfigError: `keep_versions` is no count, what `together` names cannot serve together, an
            override is none, or config.pbtxt names a model in a step that is going to be removed.
        ArtifactError: a model with several versions cannot stand beside versions of others.
    """
    brought = entry.config_text
    tuned = base if base is not None and keep_base else tuned
    if tuned is not None:
        entry = _with_edited_config(entry, tuned)
    if overrides:
        overridden = overridden_config(entry.config or NO_CONFIG, overrides, entry.models)
        entry = replace(entry, config=overridden.with_name(entry.name))
    if base is not None and keep_base:
        _refuse_members_that_go(entry, base)
    own = None if entry.config_text == brought else brought
    on_disk = frozenset(base.versions if base else ())
    if len(entry.versions) == 1:
        number, reuse = _choose_version(entry, source, base, wanted_version, keep_base=keep_base)
        serving = (together or Together()).chosen(number, on_disk if keep_base else ())
        if base is not None and keep_base:
            doomed = base.ours - _kept(base, serving, keep_versions)
        else:
            doomed = on_disk - {number}
        single = _plan_single(entry.renumbered(number), source, base, serving, reuse=reuse)
        change = replace(
            single,
            doomed=doomed - single.replaced,
            own_config=own,
            overrides=overrides or {},
        )
        return _checked_together(_with_shared(change, keep_base=keep_base))
    if base is not None and keep_base and not base.ours >= on_disk:
        raise ArtifactError(
            f"{entry.name} brings several versions, and versions that it did not bring "
            f"({_listed(on_disk - base.ours)}) are there; move them, or create it anew with "
            "-C on_conflict=replace"
        )
    numbers = frozenset(entry.versions)
    if together is not None:
        main = max(numbers & set(together.versions) or numbers)
        entry = replace(entry, config=_pinned(entry.config, together.chosen(main, numbers)))
    serving = entry.config.pinned_versions if entry.config else ()
    config = entry.config
    if on_disk - numbers:  # its own policy must not take up what is there until the commit
        serving = serving or (config or NO_CONFIG).served(numbers)
        config = _pinned(config, serving)
    return _with_shared(
        Change(
            entry=entry,
            source=source,
            base=base,
            place=entry.versions,
            serving=serving,
            config=config,
            load_config=config,
            own_config=own,
            overrides=overrides or {},
            replaced=on_disk & numbers,
            doomed=on_disk - numbers,
        ),
        keep_base=keep_base,
    )


def _listed(versions: Iterable[int]) -> str:
    return ", ".join(str(version) for version in sorted(versions))


def _with_edited_config(entry: RepositoryEntry, base: Stock) -> RepositoryEntry:
    """The entry with the config.pbtxt that was edited in the repository, where that suits it."""
    edited, recorded = base.edited_config, base.recorded or base.now
    if edited is None or recorded.flavor not in ("", entry.flavor):
        return entry
    if entry.config is not None and edited.backend != entry.config.backend:
        return entry
    if entry.has_own_config and not _unchanged(entry, recorded):
        return entry
    names = {path for tree in entry.versions.values() for path in tree.names()}
    if edited.model_filename not in ("", *names):
        return entry
    if recorded.main is not None:
        edited = _moved(edited, recorded.main, entry)
    main = base.recorded.main if base.recorded is not None else None
    placed = placed_config(main) if main is not None else None
    edited = edited.for_model(entry.config or NO_CONFIG, placed)
    return replace(entry, config=edited.with_name(entry.name))


def _unchanged(entry: RepositoryEntry, recorded: DeploymentRecord) -> bool:
    """Whether it brings the config.pbtxt that the model which serves brought."""
    return entry.config is not None and any(
        _moved(ModelConfig.parse(seen.brought_config), seen, entry).text == entry.config.text
        for seen in recorded.served
    )


def _moved(config: ModelConfig, seen: VersionRecord, entry: RepositoryEntry) -> ModelConfig:
    """A version's config.pbtxt, as it is where its members are those of the entry."""
    return moved_config(config, seen.models, entry.models, is_told=entry.is_told)


def _refuse_members_that_go(entry: RepositoryEntry, base: Stock) -> None:
    """Make sure that no step names what came with the model that serves, and goes with it.

    Raises:
        ConfigError: one does: somebody set the steps, and that was for another model.
    """
    before = {name for seen in base.now.served for name in seen.models}
    before |= base.now.needs(base.serving).keys()
    stay = {each.name for each in entry.models.values()}
    for name, _ in entry.config.steps if entry.config is not None else ():
        if name in before - stay:
            raise ConfigError(
                f"{CONFIG_FILENAME} as it was set names model {name!r} in a step, which is part of "
                f"what is deployed and not of the new model; that has "
                f"{', '.join(entry.models) or 'no members'}: set others, or take back what was set "
                "(-C config=default)",
                field="ensemble_scheduling",
            )


def _choose_version(
    entry: RepositoryEntry,
    source: Source,
    base: Stock | None,
    wanted_version: int,
    *,
    keep_base: bool,
) -> tuple[int, int | None]:
    """The number a single version gets, and the same again where it is on disk already."""
    (tree,) = entry.versions.values()
    same = _same_content(tree, base, wanted_version)
    if same is not None and base is not None and base.versions[same].models == entry.models:
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
    base: Stock | None,
    serving: tuple[int, ...],
    *,
    reuse: int | None,
) -> Change:
    number = serving[0]
    on_disk = frozenset(base.versions if base else ())
    crowded = bool(on_disk - {number})
    return Change(
        entry=entry,
        source=source,
        base=base,
        place=entry.versions if reuse is None else {},
        serving=serving,
        config=_pinned(entry.config, serving) if crowded else entry.config,
        load_config=_load_config(entry.config, serving, crowded=crowded),
        reuse=reuse,
        replaced=on_disk & {number} if reuse is None else frozenset(),
    )


def _checked_together(change: Change) -> Change:
    """Let a change through whose serving versions can share one config.pbtxt and its files.

    Raises:
        ConfigError: they cannot.
    """
    main, *others = change.serving
    config = change.config or NO_CONFIG
    shared = change.shared.names()
    for version in others:
        seen = change.base.versions[version] if change.base else None
        if seen is None:
            continue
        differing = config.difference(ModelConfig.parse(seen.config))
        if differing is None and (shared or change.shared_restored or change.shared_gone):
            differing = ", ".join([*shared, *change.shared_restored, *change.shared_gone])
        if differing is None and seen.models != change.entry.models:
            raise ConfigError(
                f"versions {version} and {main} cannot serve together: they ask other models by "
                "their names, and these have other versions for each of them; have their sources "
                f"read the parameter {MEMBERS_PARAMETER}, or deploy one of them under another name",
                field="serve_versions",
            )
        if differing is not None:
            raise ConfigError(
                f"versions {version} and {main} cannot serve together: Triton has one config.pbtxt "
                f"and one set of files beside it for both, and they differ in {differing}; deploy "
                "one of them under another name",
                field="serve_versions",
            )
    return change


def plan_return(
    base: Stock,
    version: int,
    *,
    source: Source,
    keep_versions: int = 2,
    keep: Collection[int] | None = None,
    together: Together | None = None,
) -> Change:
    """Plan to serve a version that is still on disk: nothing is copied from the model's source.

    Args:
        base: what stands there now.
        version: one of `base.versions`.
        source: what was asked for this time.
        keep_versions: how many version directories may stay.
        keep: which ones, where it is known; what serves stays in any case.
        together: what is to serve beside it; what serves is never pruned.

    Raises:
        ConfigError: what `together` names cannot serve together.
    """
    serving = (together or Together()).chosen(version, base.versions)
    kept = _kept(base, serving, keep_versions) if keep is None else {*serving, *keep}
    seen = base.versions[version]
    config = ModelConfig.parse(seen.config) if seen.config else None
    entry = RepositoryEntry(
        name=check_name(base.now.name),
        flavor=seen.flavor or base.now.flavor,
        versions={version: Tree()},
        config=config,
        models=seen.models,
        part_of=base.recorded.part_of if base.recorded is not None else "",
    )
    restored = base.now.set_aside_of(seen)
    single = _plan_single(entry, source, base, serving, reuse=version)
    return _checked_together(
        replace(
            single,
            doomed=base.ours - kept - _companions(base, version),
            shared_kept={path: each for path, each in seen.shared.items() if path not in restored},
            shared_restored=restored,
            shared_gone=_gone(base, set(seen.shared)),
            own_config=seen.own_config,
            own_shared=seen.own_shared,
            overrides=seen.overrides,
            returns=True,
        )
    )


def _pinned(config: ModelConfig | None, versions: Iterable[int]) -> ModelConfig:
    return (config or NO_CONFIG).pinned(sorted(versions))


def _load_config(
    config: ModelConfig | None, serving: tuple[int, ...], *, crowded: bool
) -> ModelConfig | None:
    """The override that makes the server load exactly these, before config.pbtxt says so."""
    if config is None and not crowded:
        return None  # the only directory, and the server completes the config by itself
    return _pinned(config, serving)


def _same_content(tree: Tree, base: Stock | None, wanted_version: int) -> int | None:
    """A version on disk with the same files; only the wanted one where one is wanted."""
    if base is None:
        return None
    sizes = {str(file.path): file.size_bytes for file in tree.files}
    candidates = [wanted_version] if wanted_version else sorted(base.versions, reverse=True)
    for number in candidates:
        seen = base.versions.get(number)
        if seen is None or sizes != {path: each.size_bytes for path, each in seen.files.items()}:
            continue
        if all(digest_file(file.local()) == seen.files[str(file.path)] for file in tree.files):
            return number
    return None


def _companions(base: Stock, version: int) -> set[int]:
    """The versions that the same model brought; they stay as long as one of them does."""
    if base.versions[version].members == 1:
        return set()
    return {number for number, seen in base.versions.items() if seen.members > 1}


def _kept(base: Stock, serving: tuple[int, ...], keep_versions: int) -> frozenset[int]:
    """What is going to serve, what serves now, and the youngest others, as many as may stay."""
    if keep_versions < 1:
        raise ConfigError(
            f"keep_versions is {keep_versions}; it must be at least 1", field="keep_versions"
        )
    by_age = sorted(
        base.ours - set(serving),
        key=lambda other: (other in base.serving, base.versions[other].placed_at, other),
        reverse=True,
    )
    return frozenset([*serving, *by_age[: max(0, keep_versions - len(serving))]])


def _with_shared(change: Change, *, keep_base: bool) -> Change:
    """Add what happens to the files beside config.pbtxt."""
    base = change.base
    now = base.now.shared if base is not None else {}
    main = base.recorded.main if base is not None and base.recorded is not None else None
    was = main.brought_shared if main is not None else now
    kept: dict[str, FileDigest] = {}
    own: dict[str, FileDigest] = {}
    fresh = []
    for file in change.entry.shared.files:
        path = str(file.path)
        brought = digest_file(file.local()) if path in now else None
        # right already; or edited in the repository, while the model's own is what it was
        original = None if file.is_derived else was.get(path)
        if brought is not None and brought in (now[path], original):
            kept[path] = now[path]
            if brought != now[path]:
                own[path] = brought
        else:
            fresh.append(file)
    wanted = set(change.entry.shared.names())
    named = {path for _, path in change.config.named_files} if change.config else set()
    restored: dict[str, FileDigest] = {}
    if base is not None and keep_base:
        # what its model does not bring, and is here from before: an environment
        for path in sorted(named - wanted):
            left, aside = base.left_beside(path), base.aside_for(path)
            if left is not None:
                kept[path] = left
            elif aside is not None:
                restored[path] = aside
    wanted |= named
    gone = _gone(base, wanted) if base is not None and keep_base else tuple(now.keys() - wanted)
    return replace(
        change,
        shared=Tree(tuple(fresh)),
        shared_kept=kept,
        shared_restored=restored,
        shared_gone=gone,
        own_shared=own,
    )


def _gone(base: Stock, wanted: set[str]) -> tuple[str, ...]:
    """Files beside config.pbtxt that an older version brought, and that nobody wants any more.

    Those that somebody else put there stay.
    """
    now = base.now.shared
    return tuple(path for path in base.shared_before if path in now and path not in wanted)
