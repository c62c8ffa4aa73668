"""What a command is going to do: from a model's URI to a `Change`; nothing is changed yet."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mlflow_triton_plugin.choice import (
    check_config,
    foreign,
    is_intact,
    is_ours,
    kept_version,
    main_of,
    member_names,
    not_deployed,
    refuse_another_model,
    served_together,
    uri_of,
    warn_of_own_names,
)
from mlflow_triton_plugin.environments import bring_back, environment_for
from mlflow_triton_plugin.fetch import fetched, resolve
from mlflow_triton_plugin.golden import read_example
from mlflow_triton_plugin.options import DEFAULT_KEEP_VERSIONS
from mlflow_triton_plugin.warming import effective_overrides, warmed
from triton_repo.change import Change, Together, plan_change, plan_return
from triton_repo.config import NO_CONFIG
from triton_repo.errors import ArtifactError, ConfigError, DeploymentExistsError
from triton_repo.flavors import ANY_MODEL, check_backend, choose_flavor, convert
from triton_repo.group_change import (
    overrides_of_members,
    plan_members,
    plan_return_of_members,
)
from triton_repo.overrides import JOIN_REQUESTS, WHOLE_CONFIG
from triton_repo.placement import PlaceState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mlflow_triton_plugin.environments import Environment, OwnEnvironment
    from mlflow_triton_plugin.fetch import RemoteArtifacts, ResolvedModel
    from mlflow_triton_plugin.golden import GoldenExample
    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.server import TritonServers
    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.group_change import MemberChange
    from triton_repo.placement import ModelPlace
    from triton_repo.record import Source
    from triton_repo.stock import Stock

__all__ = ["Planned", "Planner"]

#: Overrides that say which backend a model is for.
_NAME_BACKENDS = frozenset({WHOLE_CONFIG, "backend", "platform"})


@dataclass(frozen=True)
class Planned:
    """What is to be done, and what the model is to be asked before anybody else does.

    Attributes:
        change: of the model itself.
        members: what is to be done before it is loaded, in this order.
        example: what it is asked.
        environment: what it runs in, where that is its own.
        falls_back: whether it can be deployed as any model, where its backend is missing or does
            not load it: nobody named this flavor, and nobody is used to it.
    """

    change: Change
    members: tuple[MemberChange, ...] = ()
    example: GoldenExample | None = None
    environment: Environment | OwnEnvironment | None = None
    falls_back: bool = False


@dataclass(frozen=True)
class Planner:
    """Plans changes of one repository, and of the servers that read it; see `Deployer`.

    Attributes:
        servers: see `Deployer`.
        remote: see `Deployer`.
        packs: whether environments are packed; otherwise it is only told that they will be.
        native: whether a backend may be chosen, where nobody names a flavor, that the servers
            perhaps lack.
    """

    servers: TritonServers
    remote: RemoteArtifacts | None = None
    packs: bool = True
    native: bool = True

    @contextmanager
    def creating(
        self,
        place: ModelPlace,
        model_uri: str,
        flavor: str | None,
        options: Options,
        *,
        again: bool,
    ) -> Iterator[Planned]:
        """Plan what `create` does; while the block lasts the model is on this machine.

        Args:
            place: where.
            model_uri: see `create`.
            flavor: see `create`.
            options: see `create`.
            again: whether this very command was interrupted before.
        """
        base = self._base_of_create(place, options, again=again)
        model = resolve(model_uri)
        if place.state_to_change() is PlaceState.DEPLOYED and base is not None:
            refuse_another_model(place, base, model)
        with self._fetching(place, base, model, flavor, options) as planned:
            yield planned

    @contextmanager
    def updating(
        self, place: ModelPlace, model_uri: str | None, flavor: str | None, options: Options
    ) -> Iterator[Planned]:
        """Plan what `update` does; see `creating`."""
        if place.state_to_change() is not PlaceState.DEPLOYED:
            raise not_deployed(place)
        base = place.take_stock()
        together = options.serve_versions
        if model_uri is None and together is None:
            together = _version_there(place, base, options) or served_together(base)
        set_anew = options.tries_apart or options.sets_anew
        if model_uri is None and together is not None and not set_anew:
            chosen = _chosen(place, base, together, options)
            if self.packs:
                bring_back(place, base, chosen.change.serving)
            yield chosen
            return
        model = resolve(model_uri or uri_of(place, base))
        kept = None if set_anew else kept_version(base, model)
        if (
            kept is not None
            and options.version in (None, kept)
            and flavor in (None, base.versions[kept].flavor)
            and is_intact(place, base, kept)
        ):
            change = _returned(base, kept, model.source, options)
            members = plan_return_of_members(place, base, change.serving)
            if members is not None:
                if self.packs:
                    bring_back(place, base, change.serving)
                yield _planned(place, change, members)
                return
        with self._fetching(place, base, model, flavor, options) as planned:
            yield planned

    def _base_of_create(self, place: ModelPlace, options: Options, *, again: bool) -> Stock | None:
        state = place.state_to_change()
        if state is PlaceState.ABSENT:
            self._refuse_another_repository(place)
            return None
        if state is PlaceState.FOREIGN:
            if options.on_conflict == "fail":
                raise foreign(
                    place,
                    "-C on_conflict=adopt keeps its versions beside the new one, "
                    "on_conflict=replace removes it",
                )
            return place.take_stock()
        if not again and self.servers.serve(place.name):
            raise DeploymentExistsError(
                f"{place.name} is deployed already; update it, delete it, or choose another name",
                name=place.name,
            )
        return place.take_stock()

    def _refuse_another_repository(self, place: ModelPlace) -> None:
        """Make sure that the servers do not serve a model of this name from somewhere else.

        Raises:
            DeploymentExistsError: one does; it was left alone.
        """
        if self.servers.serve(place.name):
            raise DeploymentExistsError(
                f"{self.servers.endpoints} serves {place.name}, and {place.store.uri} holds none: "
                "TRITON_MODEL_REPO is not the directory that this server reads (or the "
                "model's was removed by hand: then unload it, or restart the server)",
                name=place.name,
            )

    @contextmanager
    def _fetching(
        self,
        place: ModelPlace,
        base: Stock | None,
        model: ResolvedModel,
        flavor: str | None,
        options: Options,
    ) -> Iterator[Planned]:
        """Bring the model and plan to serve it; see `creating`."""
        keep_base = options.on_conflict != "replace" or is_ours(base)
        if base is not None and keep_base:
            check_config(place, base)
        wanted = options.version or model.source.registered_version
        with fetched(model, self.remote, flavor, options.limits) as found_model:
            artifact = found_model.artifact
            kept = base if keep_base else None
            converted, overrides, falls_back = self._converted(
                artifact, place, kept, flavor, options, version=wanted or 1
            )
            converted = converted.from_origins(found_model.origins)
            environment, overrides = environment_for(
                converted,
                artifact,
                kept,
                overrides=overrides,
                options=options,
                servers=self.servers,
                packs=self.packs,
            )
            if environment is not None:
                converted = environment.beside(converted)
            members = self._members(place, converted, kept, model.source, options)
            converted = converted.with_models({each.member: each.versions for each in members})
            with warmed(converted, artifact, overrides) as (entry, set_now):
                plan = partial(
                    plan_change,
                    entry,
                    model.source,
                    wanted_version=wanted,
                    keep_versions=options.keep_versions or DEFAULT_KEEP_VERSIONS,
                    keep_base=keep_base,
                    together=options.serve_versions,
                    overrides=set_now,
                )
                change = plan(base=base)
                if base is not None and change.reuse is not None:
                    recorded = base.versions[change.reuse].files
                    found = place.digests_of(change.reuse, recorded)
                    if found != recorded:  # damaged: it is placed anew
                        change = plan(base=base.with_files(change.reuse, found))
                _refuse_another_version(place, change, options)
                example = (
                    read_example(artifact, tolerance=options.validate_tolerance)
                    if options.validate == "true"
                    else None
                )
                yield replace(
                    _planned(place, change, members),
                    example=example,
                    environment=environment,
                    falls_back=falls_back,
                )

    def _converted(
        self,
        artifact: ModelArtifact,
        place: ModelPlace,
        kept: Stock | None,
        flavor: str | None,
        options: Options,
        *,
        version: int,
    ) -> tuple[RepositoryEntry, dict[str, str], bool]:
        """The entry, by the flavor asked for or the best one; what is set of its config.pbtxt.

        Returns:
            These, and whether it can be deployed as any model, see `Planned`.

        Raises:
            TritonRepoError: the model is none of that flavor, or its config.pbtxt is for another.
        """
        overrides = effective_overrides(_set_before(kept), options.overrides)
        given = overrides.get(WHOLE_CONFIG)
        before = _flavor_of(kept)
        chosen = choose_flavor(
            artifact,
            flavor,
            before=before,
            # an environment is for the Python backend
            native=self.native and options.env in (None, "auto", "default"),
            config=NO_CONFIG.overridden({WHOLE_CONFIG: given}) if given else None,
        )
        converted = convert(
            artifact,
            flavor=chosen,
            name=place.name,
            version=version,
            batches=_says_it_batches(overrides),
        )
        for each in (converted, *converted.members.values()):
            set_here = overrides if each is converted else {}
            check_backend(each, (each.config or NO_CONFIG).overridden(set_here))
        is_free = flavor is None and chosen not in (before, ANY_MODEL)
        is_named = converted.has_own_config or not _NAME_BACKENDS.isdisjoint(overrides)
        return converted, overrides, is_free and ANY_MODEL in artifact.flavors and not is_named

    def _members(
        self,
        place: ModelPlace,
        entry: RepositoryEntry,
        base: Stock | None,
        source: Source,
        options: Options,
    ) -> list[MemberChange]:
        """Plan what the model needs beside it; see `plan_members`.

        Raises:
            DeploymentExistsError: a member's name is taken, here or on a server.
        """
        prefixed = options.member_names or member_names(base)
        if prefixed == "prefixed":
            warn_of_own_names(entry)
        members = plan_members(
            entry,
            place,
            base,
            source,
            wanted_version=options.version or source.registered_version,
            prefixed=prefixed == "prefixed",
            overrides=_member_overrides(place, entry, base, options),
        )
        for each in members:
            if each.place.state_to_change() is PlaceState.ABSENT:
                self._refuse_another_repository(each.place)
        return members


def _planned(place: ModelPlace, change: Change, members: Iterable[MemberChange] = ()) -> Planned:
    """What is to be done, where it can be.

    Raises:
        StoreError: something of somebody's own is in its way.
    """
    place.refuse_collisions(change)
    for each in members:
        if each.change is not None:
            each.place.refuse_collisions(each.change)
    return Planned(change, tuple(members))


def _says_it_batches(overrides: Mapping[str, str]) -> bool:
    """Whether what is set of config.pbtxt says that the first dimension is a batch."""
    is_joined = overrides.get(JOIN_REQUESTS) == "true"
    return is_joined or overrides.get("max_batch_size", "0") != "0"


def _flavor_of(base: Stock | None) -> str:
    """The flavor that is deployed, or an empty string."""
    main = base.recorded.main if base is not None and base.recorded is not None else None
    return main.flavor if main is not None else ""


def _set_before(base: Stock | None) -> Mapping[str, str]:
    """What was set of config.pbtxt when it was deployed."""
    main = base.recorded.main if base is not None and base.recorded is not None else None
    return main.overrides if main is not None else {}


def _member_overrides(
    place: ModelPlace, entry: RepositoryEntry, base: Stock | None, options: Options
) -> dict[str, dict[str, str]]:
    """What is set of the members' config.pbtxt: what was so far, and what is set now.

    Raises:
        ConfigError: there is no such member.
    """
    for member in options.member_overrides:
        if member not in entry.members:
            there = ", ".join(entry.members) or "none"
            raise ConfigError(
                f"-C member.{member}: the members of {place.name} are {there}", field="member"
            )
    before = overrides_of_members(place, base)
    asked = options.member_overrides
    return {
        member: effective_overrides(before.get(member, {}), asked.get(member, {}))
        for member in entry.members
    }


def _version_there(place: ModelPlace, base: Stock, options: Options) -> Together | None:
    """What `version` says without a model: a version on disk.

    Raises:
        ConfigError: there is none of this number.
    """
    version = options.version
    if version is None:
        return None
    if version not in base.versions:
        there = ", ".join(str(each) for each in sorted(base.versions))
        raise ConfigError(
            f"{place.uri} has no version {version} (there is {there or 'none'}); give --model-uri, "
            f"too, to place a model as version {version}",
            field="version",
        )
    return Together(versions=(version,))


def _refuse_another_version(place: ModelPlace, change: Change, options: Options) -> None:
    """Make sure that the model gets the number that was asked for.

    Raises:
        ConfigError: another model has it, or this one brings versions of its own.
    """
    version = options.version
    if version is None or (len(change.entry.versions) == 1 and version in change.entry.versions):
        return
    if len(change.entry.versions) > 1:
        brought = ", ".join(str(each) for each in sorted(change.entry.versions))
        why = f"the model brings versions of its own ({brought}); leave version out"
    else:
        free = next(iter(change.entry.versions))
        why = f"{place.uri} has another model's version {version}; {free} is free"
    raise ConfigError(f"version={version}: {why}", field="version")


def _chosen(place: ModelPlace, base: Stock, together: Together, options: Options) -> Planned:
    """Plan to serve these versions, from what is on disk; nothing else changes unasked.

    Raises:
        ArtifactError: one of them is not what was placed.
    """
    check_config(place, base)
    version = main_of(base, together)
    serving = together.chosen(version, base.versions)
    for each in serving:
        is_whole = base.can_return(each) and is_intact(place, base, each)
        if not is_whole or plan_return_of_members(place, base, (each,)) is None:
            raise ArtifactError(
                f"version {each} of {place.uri} is not what was placed; `mlflow-triton verify "
                f"{place.name}` names what differs, update -m with its model places it again"
            )
    keep_all = options.keep_versions or len(base.versions)
    options = replace(options, serve_versions=together, keep_versions=keep_all)
    change = _returned(base, version, base.versions[version].source, options)
    return _planned(place, change, plan_return_of_members(place, base, serving) or ())


def _returned(base: Stock, version: int, source: Source, options: Options) -> Change:
    """Plan to serve a version that is on disk; nothing is fetched or copied."""
    return plan_return(
        base,
        version,
        source=source,
        keep_versions=options.keep_versions or DEFAULT_KEEP_VERSIONS,
        together=options.serve_versions,
    )
