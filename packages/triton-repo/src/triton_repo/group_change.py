"""Plans where the members of a model go, so that it can be loaded beside what serves.

A member is a model directory like any other. Under its own name a member that changes is one more
version there: several serve while the model that needs it goes from one to the next. Triton has one
config.pbtxt for all of them, so they have to agree about it, and it loads all of them anew when
that changes. Where its name is ours to choose, each has a directory of its own instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING

from triton_repo.change import Change, Together, plan_change, plan_return
from triton_repo.config import NO_CONFIG, ModelConfig
from triton_repo.errors import ConfigError, DeploymentExistsError
from triton_repo.members import MemberVersions
from triton_repo.names import check_name
from triton_repo.overrides import WHOLE_CONFIG
from triton_repo.placement import ModelPlace, PlaceState
from triton_repo.record import RecordError
from triton_repo.store._copy import digest_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from triton_repo.entry import RepositoryEntry, Tree
    from triton_repo.record import FileDigest, Source, VersionRecord
    from triton_repo.stock import Stock

__all__ = [
    "MemberChange",
    "overrides_of_members",
    "plan_kept",
    "plan_members",
    "plan_return_of_members",
]


@dataclass(frozen=True)
class MemberChange:
    """What becomes of one member before the model that needs it is loaded.

    Attributes:
        member: its name in the artifact.
        place: its directory.
        versions: what is needed of it.
        change: what has to be done; None where all of it is there.
        serving: versions that serve afterwards, those that are needed so far among them.
    """

    member: str
    place: ModelPlace
    versions: MemberVersions
    change: Change | None
    serving: tuple[int, ...]


class _UnfitError(Exception):
    """A directory cannot take a member; the text says why.

    Attributes:
        is_taken: whether it is somebody else's; else it has what the member cannot serve beside.
    """

    def __init__(self, why: str, *, is_taken: bool) -> None:
        super().__init__(why)
        self.is_taken = is_taken


def plan_members(
    entry: RepositoryEntry,
    owner: ModelPlace,
    base: Stock | None,
    source: Source,
    *,
    wanted_version: int = 0,
    prefixed: bool = False,
    overrides: Mapping[str, Mapping[str, str]] | None = None,
) -> list[MemberChange]:
    """Plan where the members of a model go.

    Args:
        entry: the model, with its members.
        owner: where it goes itself.
        base: what stands there; None for nothing, or nothing that stays.
        source: where all of them come from.
        wanted_version: the number that a new version should have; 0 for the next free one.
        prefixed: whether members are called `<owner>.<member>.<number>`, a name for each that is
            another; else each keeps its own.
        overrides: fields of the members' config.pbtxt to set otherwise, by the members' names; see
            `triton_repo.overrides`.

    Returns:
        One for each, in the order of loading.

    Raises:
        DeploymentExistsError: a member's own name is taken.
        ConfigError: under its own name a member cannot serve beside its older version.
    """
    needed = base.now.needs(base.serving) if base is not None else {}
    planned: dict[str, MemberChange] = {}
    for member, each in entry.members.items():
        models = {name: before.versions for name, before in planned.items()}
        # all of them are needed by the model that is deployed: a member's record names none
        placed = replace(each.with_models(models), models={}, part_of=owner.name)
        set_now = (overrides or {}).get(member, {})
        _refuse_other_steps(member, each, set_now)
        placing = _Placing(owner, member, placed, source, wanted_version, needed, set_now)
        taken = {owner.name, *(place.name for place in models.values())}
        places = _places_of(member, base)
        choose = placing.apart if prefixed else placing.by_its_name
        planned[member] = choose(places, taken)
    return list(planned.values())


def overrides_of_members(owner: ModelPlace, base: Stock | None) -> dict[str, Mapping[str, str]]:
    """What was set of the config.pbtxt of the members that serve, by the members' names."""
    main = base.now.main if base is not None else None
    found: dict[str, Mapping[str, str]] = {}
    for member, each in main.models.items() if main is not None else ():
        try:
            record = ModelPlace(owner.store, check_name(each.name)).record()
        except RecordError:  # told to who needs more of it
            continue
        seen = record.versions.get(max(each.versions)) if record is not None else None
        if seen is not None:
            found[member] = seen.overrides
    return found


def _refuse_other_steps(member: str, entry: RepositoryEntry, overrides: Mapping[str, str]) -> None:
    """Make sure that nothing says anew which models a member needs: that is for the artifact.

    Raises:
        ConfigError: something does.
    """
    if not (entry.is_told or (entry.config is not None and entry.config.is_ensemble)):
        return
    for path in overrides:
        if path == WHOLE_CONFIG or path.split(".")[0] == "ensemble_scheduling":
            raise ConfigError(
                f"-C member.{member}: {path} of a member that needs others is what its model "
                "brings; log the model with another config.pbtxt",
                field=path,
            )


def _places_of(member: str, base: Stock | None) -> list[str]:
    """Where versions on disk have a member, the main one's first."""
    records = [*base.now.served, *base.versions.values()] if base is not None else []
    found = [seen.models[member].name for seen in records if member in seen.models]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Placing:
    """One member, looking for its place.

    Attributes:
        owner: the model that needs it.
        member: its name in the artifact.
        entry: what it is.
        source: where it comes from.
        wanted_version: see `plan_members`.
        needed: versions that serve the older version of the owner, by directory.
        overrides: see `plan_change`.
    """

    owner: ModelPlace
    member: str
    entry: RepositoryEntry
    source: Source
    wanted_version: int
    needed: Mapping[str, frozenset[int]]
    overrides: Mapping[str, str]

    def by_its_name(self, places: Iterable[str], taken: Collection[str]) -> MemberChange:
        """Plan it under its own name, beside its older versions.

        Args:
            places: where versions of it are.
            taken: names that are given already.

        Raises:
            DeploymentExistsError: the name is somebody else's.
            ConfigError: it cannot serve beside what is there.
        """
        hint = (
            "-C member_names=prefixed gives it a name of its own, such as "
            f"{self.owner.name}.{self.member}.1"
        )
        try:
            return self._at_its_name(places, taken)
        except _UnfitError as exc:
            if not exc.is_taken:
                raise ConfigError(f"{exc}; {hint}", field="member_names") from exc
            raise DeploymentExistsError(
                f"{self.owner.name} needs a model {self.member} beside it, and {exc}; {hint}",
                name=self.member,
            ) from exc

    def apart(self, places: Iterable[str], taken: Collection[str]) -> MemberChange:
        """Plan it in a directory of its own: where it is already, or else in a new one.

        Args:
            places: where versions of it are.
            taken: names that are given already.
        """
        numbers = count(self.wanted_version or 1)
        new = (f"{self.owner.name}.{self.member}.{number}" for number in numbers)
        tuned = None
        for name in chain(places, new):
            place = self._place(name)
            try:
                base = None if name in taken else _own_stock(place, self.entry.part_of)
            except _UnfitError:
                continue
            tuned = tuned or base
            if name == self.member:  # it leaves that name
                continue
            found = self._same(place, base) if base is not None else None
            if found is not None:
                return found
            if base is None and name not in taken:
                return self._new(place, tuned)
        raise AssertionError("numbers have an end")

    def _at_its_name(self, places: Iterable[str], taken: Collection[str]) -> MemberChange:
        """Plan it for the directory of its own name, which may have its older versions.

        Raises:
            _UnfitError: this is somebody else's, or it cannot serve beside what is there.
            ConfigError: config.pbtxt was edited there, and cannot be read.
        """
        if self.member in taken:
            raise _UnfitError("another model of this deployment has that name", is_taken=True)
        place = self._place(self.member)
        base = _own_stock(place, self.entry.part_of)
        if base is None:
            return self._new(place, self._stock_in(places))
        return self._same(place, base) or self._beside(place, base)

    def _place(self, name: str) -> ModelPlace:
        return ModelPlace(self.owner.store, check_name(name))

    def _stock_in(self, places: Iterable[str]) -> Stock | None:
        """What stands in the first of these places that still is the owner's."""
        for name in places:
            try:
                found = _own_stock(self._place(name), self.entry.part_of)
            except _UnfitError:
                continue
            if found is not None:
                return found
        return None

    def _needed_at(self, place: ModelPlace, base: Stock) -> frozenset[int]:
        return self.needed.get(place.name, frozenset()) & base.versions.keys()

    def _new(self, place: ModelPlace, tuned: Stock | None) -> MemberChange:
        """Plan it for a new directory; what was tuned where it is now goes with it."""
        entry = self.entry.renamed(place.name)
        change = plan_change(
            entry,
            self.source,
            base=None,
            wanted_version=self.wanted_version,
            overrides=self.overrides,
            tuned=tuned,
        )
        versions = MemberVersions(place.name, tuple(change.entry.versions))
        return MemberChange(self.member, place, versions, change, change.serving)

    def _same(self, place: ModelPlace, base: Stock) -> MemberChange | None:
        """Plan to use what is there, if it is this very member."""
        numbers = _same_versions(place, self.entry.renamed(place.name), base, self.overrides)
        if not numbers:
            return None
        return _there(self.member, place, base, numbers, self._needed_at(place, base))

    def _beside(self, place: ModelPlace, base: Stock) -> MemberChange:
        """Plan one more version; see `_at_its_name`."""
        if base.broken_config is not None:
            raise base.broken_config
        entry = self.entry.renamed(place.name)
        _refuse_differing(place, entry, base, self.overrides)
        number = self.wanted_version
        if not number or number in base.versions:
            number = max(base.versions) + 1
        beside = sorted(self._needed_at(place, base))
        try:
            change = plan_change(
                entry,
                self.source,
                base=base,
                wanted_version=number,
                keep_versions=len(base.versions) + 1,
                together=Together(versions=(number, *beside)),
                overrides=self.overrides,
            )
        except ConfigError as exc:
            if exc.field != "serve_versions":
                raise
            why = (
                f"the new {place.name} cannot serve beside what is needed until the change is done"
            )
            raise _UnfitError(f"{why}: {exc}", is_taken=False) from exc
        versions = MemberVersions(place.name, (number,))
        return MemberChange(self.member, place, versions, change, change.serving)


def plan_return_of_members(
    owner: ModelPlace, base: Stock, serving: tuple[int, ...]
) -> list[MemberChange] | None:
    """Plan to let the members of versions on disk serve again; nothing is fetched.

    Args:
        owner: the model that needs them.
        base: what stands there.
        serving: those of its versions that are going to serve.

    Returns:
        One for each member; None where not all of them are on disk as they were placed.
    """
    wanted: dict[str, tuple[str, frozenset[int]]] = {}
    for version in serving:
        for member, each in base.versions[version].models.items():
            _, before = wanted.get(each.name, (member, frozenset()))
            wanted[each.name] = (member, before.union(each.versions))
    needed = base.now.needs(base.serving)
    planned = []
    for name, (member, versions) in wanted.items():
        place = ModelPlace(owner.store, check_name(name))
        try:
            stock = _own_stock(place, owner.name)
        except _UnfitError:
            return None
        if stock is None or not all(_is_whole(place, stock, each) for each in versions):
            return None
        numbers = tuple(sorted(versions, reverse=True))
        now = needed.get(name, frozenset()) & stock.versions.keys()
        planned.append(_there(member, place, stock, numbers, now))
    return planned


def plan_kept(base: Stock, keep: frozenset[int], serving: frozenset[int]) -> Change | None:
    """Plan to keep nothing of a member but what is needed.

    A version that is left alone needs no pin any more, once the others are gone: that is another
    change, to be planned after this one.

    Args:
        base: what stands in its directory.
        keep: versions that are needed.
        serving: those of them that serve; perhaps none.

    Returns:
        None where nothing has to change on disk.
    """
    keep = keep & base.versions.keys()
    if not keep or any(base.versions[number].members > 1 for number in keep):
        return None
    serving = serving & keep or frozenset(base.serving) & keep or frozenset({max(keep)})
    main, *others = sorted(serving, reverse=True)
    change = plan_return(
        base,
        main,
        source=base.versions[main].source,
        keep=keep,
        together=Together(versions=(main, *others)),
    )
    is_so = {*base.serving} == serving and change.config_text == base.config_text
    return None if is_so and not change.doomed else change


def _own_stock(place: ModelPlace, owner: str) -> Stock | None:
    """What stands in a member's directory; None for nothing.

    Raises:
        _UnfitError: it is none of this owner's.
        LockedError: a command is at it, or was killed.
    """
    state = place.state_to_change()
    if state is PlaceState.ABSENT:
        return None
    if state is PlaceState.FOREIGN:
        why = f"{place.uri} is there and was not deployed by MLflow"
        raise _UnfitError(why, is_taken=True)
    if state is PlaceState.INTERRUPTED:
        place.refuse_interrupted()
    base = place.take_stock()
    part_of = base.recorded.part_of if base.recorded is not None else ""
    if part_of != owner:
        whose = f"is part of deployment {part_of}" if part_of else "is a deployment of its own"
        raise _UnfitError(f"{place.uri} {whose}", is_taken=True)
    return base


def _there(
    member: str, place: ModelPlace, base: Stock, numbers: tuple[int, ...], needed: frozenset[int]
) -> MemberChange:
    """Plan to let versions serve that are on disk, beside those that are needed so far."""
    versions = MemberVersions(place.name, numbers)
    if any(base.versions[number].members > 1 for number in numbers):  # its own policy decides
        return MemberChange(member, place, versions, None, base.serving)
    serving = (*numbers, *sorted(needed - {*numbers}))
    if {*serving} == {*base.serving}:
        return MemberChange(member, place, versions, None, base.serving)
    change = plan_return(
        base,
        serving[0],
        source=base.versions[serving[0]].source,
        keep=base.versions.keys(),
        together=Together(versions=serving),
    )
    return MemberChange(member, place, versions, change, change.serving)


# -- what is there already ----------------------------------------------------------------------


def _same_versions(
    place: ModelPlace, entry: RepositoryEntry, base: Stock, overrides: Mapping[str, str]
) -> tuple[int, ...]:
    """The versions on disk that are this very model and are whole; none where there are none."""
    if len(entry.versions) > 1:
        same = entry.versions.keys() == base.versions.keys() and all(
            _is_same(place, entry, base, number, overrides) for number in entry.versions
        )
        return tuple(entry.versions) if same else ()
    alone = [number for number, seen in base.versions.items() if seen.members == 1]
    for number in sorted(alone, reverse=True):
        if _is_same(place, entry.renumbered(number), base, number, overrides):
            return (number,)
    return ()


def _is_same(
    place: ModelPlace,
    entry: RepositoryEntry,
    base: Stock,
    number: int,
    overrides: Mapping[str, str],
) -> bool:
    """Whether a version has these files, and was placed with this config.pbtxt and its files."""
    seen = _brought(base, number)
    return (
        seen.brought_config == entry.config_text
        and seen.overrides == overrides
        and _has(entry.shared, seen.brought_shared)
        and _has(entry.versions[number], seen.files)
        and _is_whole(place, base, number)
    )


def _brought(base: Stock, number: int) -> VersionRecord:
    """What is recorded of a version, where anything is: its files may have been edited since."""
    known = base.recorded.versions if base.recorded is not None else {}
    return known.get(number, base.versions[number])


def _has(tree: Tree, digests: Mapping[str, FileDigest]) -> bool:
    sizes = {str(file.path): file.size_bytes for file in tree.files}
    if sizes != {path: each.size_bytes for path, each in digests.items()}:
        return False
    return all(digest_file(file.local()) == digests[str(file.path)] for file in tree.files)


def _is_whole(place: ModelPlace, base: Stock, number: int) -> bool:
    """Whether a version is there, with everything that it needs, as it was placed."""
    if number not in base.versions or not base.can_return(number):
        return False
    files = base.versions[number].files
    return place.digests_of(number, files) == files


def _refuse_differing(
    place: ModelPlace, entry: RepositoryEntry, base: Stock, overrides: Mapping[str, str]
) -> None:
    """Make sure that a new version can serve beside those that are there.

    Raises:
        _UnfitError: it cannot.
    """
    if len(entry.versions) > 1 or any(seen.members > 1 for seen in base.versions.values()):
        why = f"{place.uri} has another set of versions, which is needed until the change is done"
        raise _UnfitError(why, is_taken=False)
    config = (entry.config or NO_CONFIG).overridden(overrides)
    for number in sorted(base.versions):
        seen = _brought(base, number)
        # what was edited since is kept, or not, for both of them
        before = ModelConfig.parse(seen.brought_config).overridden(seen.overrides)
        differing = config.difference(before)
        if differing is None and not _has(entry.shared, seen.brought_shared):
            differing = "the files beside it"
        if differing is not None:
            raise _UnfitError(
                f"the new {place.name} cannot serve beside version {number}, which is needed until "
                "the change is done: Triton has one config.pbtxt for both, and they differ in "
                f"{differing}",
                is_taken=False,
            )
