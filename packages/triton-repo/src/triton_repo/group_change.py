"""Plans where the members of a model go, so that it can be loaded beside what serves.

A member is a model directory like any other: its versions never change, and several serve while the
model that needs it goes from one to the next. Its config.pbtxt is one for all of them, so what
cannot serve beside the others gets a directory of its own, where its name is ours to choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from triton_repo.change import Change, Together, plan_change, plan_return
from triton_repo.config import NO_CONFIG, ModelConfig
from triton_repo.errors import ConfigError, DeploymentExistsError
from triton_repo.members import MemberVersions
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState
from triton_repo.store._copy import digest_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from triton_repo.entry import RepositoryEntry, Tree
    from triton_repo.record import FileDigest, Source, VersionRecord
    from triton_repo.stock import Stock

__all__ = ["MemberChange", "plan_kept", "plan_members", "plan_return_of_members"]


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
) -> list[MemberChange]:
    """Plan where the members of a model go.

    Args:
        entry: the model, with its members.
        owner: where it goes itself.
        base: what stands there; None for nothing, or nothing that stays.
        source: where all of them come from.
        wanted_version: the number that a new version should have; 0 for the next free one.
        prefixed: whether members are called `<owner>.<member>`; else each keeps its name.

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
        placing = _Placing(placed, source, wanted_version, needed)
        taken = {owner.name, *(models[name].name for name in models)}
        names = _prefixed(owner.name, member) if prefixed else iter([member])
        planned[member] = _first_fit(placing, owner, member, names, taken)
    return list(planned.values())


def _prefixed(owner: str, member: str) -> Iterator[str]:
    yield f"{owner}.{member}"
    for number in count(2):
        yield f"{owner}.{member}.{number}"


def _first_fit(
    placing: _Placing, owner: ModelPlace, member: str, names: Iterator[str], taken: set[str]
) -> MemberChange:
    """Plan a member under the first name that it can have.

    Raises:
        DeploymentExistsError, ConfigError: it can have none.
    """
    name, why = member, _UnfitError("there is no other name", is_taken=True)
    for name in names:
        if name in taken:
            why = _UnfitError("another model of this deployment has that name", is_taken=True)
            continue
        try:
            return placing.at(member, ModelPlace(owner.store, check_name(name)))
        except _UnfitError as exc:
            why = exc
    hint = f"-C member_names=prefixed gives it a name of its own, such as {owner.name}.{member}"
    if why.is_taken:
        raise DeploymentExistsError(
            f"{owner.name} needs a model {name} beside it, and {why}; {hint}", name=name
        ) from why
    raise ConfigError(f"{why}; {hint}", field="member_names") from why


@dataclass(frozen=True)
class _Placing:
    """One member, looking for its place.

    Attributes:
        entry: the member.
        source: where it comes from.
        wanted_version: see `plan_members`.
        needed: versions that serve the older version of the model that needs it, by directory.
    """

    entry: RepositoryEntry
    source: Source
    wanted_version: int
    needed: Mapping[str, frozenset[int]]

    def at(self, member: str, place: ModelPlace) -> MemberChange:
        """Plan it for one directory.

        Raises:
            _UnfitError: this is somebody else's, or it cannot serve beside what is there.
            ConfigError: the member's config.pbtxt in the repository was edited and cannot be read.
        """
        entry = self.entry.renamed(place.name)
        base = _own_stock(place, entry.part_of)
        if base is None:
            change = plan_change(entry, self.source, base=None, wanted_version=self.wanted_version)
            numbers = tuple(change.entry.versions)
            return MemberChange(
                member, place, MemberVersions(place.name, numbers), change, change.serving
            )
        if base.broken_config is not None:
            raise base.broken_config
        needed = self.needed.get(place.name, frozenset()) & base.versions.keys()
        numbers = _same_versions(place, entry, base)
        if numbers:
            return _there(member, place, base, numbers, needed)
        _refuse_differing(place, entry, base)
        number = self.wanted_version
        if not number or number in base.versions:
            number = max(base.versions) + 1
        change = plan_change(
            entry,
            self.source,
            base=base,
            wanted_version=number,
            keep_versions=len(base.versions) + 1,
            together=Together(versions=(number, *sorted(needed))),
        )
        versions = MemberVersions(place.name, (number,))
        return MemberChange(member, place, versions, change, change.serving)


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


def _same_versions(place: ModelPlace, entry: RepositoryEntry, base: Stock) -> tuple[int, ...]:
    """The versions on disk that are this very model and are whole; none where there are none."""
    if len(entry.versions) > 1:
        same = entry.versions.keys() == base.versions.keys() and all(
            _is_same(place, entry, tree, base, number) for number, tree in entry.versions.items()
        )
        return tuple(entry.versions) if same else ()
    (tree,) = entry.versions.values()
    for number in sorted(base.versions, reverse=True):
        numbered = entry.renumbered(number)
        if base.versions[number].members == 1 and _is_same(place, numbered, tree, base, number):
            return (number,)
    return ()


def _is_same(
    place: ModelPlace, entry: RepositoryEntry, tree: Tree, base: Stock, number: int
) -> bool:
    """Whether a version has these files, and was placed with this config.pbtxt and its files."""
    seen = _brought(base, number)
    return (
        seen.brought_config == entry.config_text
        and _has(entry.shared, seen.brought_shared)
        and _has(tree, seen.files)
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


def _refuse_differing(place: ModelPlace, entry: RepositoryEntry, base: Stock) -> None:
    """Make sure that a new version can serve beside those that are there.

    Raises:
        _UnfitError: it cannot.
    """
    if len(entry.versions) > 1 or any(seen.members > 1 for seen in base.versions.values()):
        why = f"{place.uri} has another set of versions, which is needed until the change is done"
        raise _UnfitError(why, is_taken=False)
    config = entry.config or NO_CONFIG
    for number in sorted(base.versions):
        seen = _brought(base, number)
        differing = config.difference(ModelConfig.parse(seen.config))
        if differing is None and not _has(entry.shared, seen.brought_shared):
            differing = "the files beside it"
        if differing is not None:
            raise _UnfitError(
                f"the new {place.name} cannot serve beside version {number}, which is needed until "
                "the change is done: Triton has one config.pbtxt for both, and they differ in "
                f"{differing}",
                is_taken=False,
            )
