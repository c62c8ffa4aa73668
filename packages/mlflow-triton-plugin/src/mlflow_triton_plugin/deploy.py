"""create, update, delete: the way of a model from its URI to a server that serves it.

```
resolve → fetch → convert → plan → stage → (try it apart) → install → load, pinned → commit
```

Until the commit nothing has changed for anyone: a failure on the way puts everything back. What is
to be validated, or would overwrite what serves, is first loaded apart: by the path of its staging
area, as a model that no client knows of.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.choice import (
    check_config,
    foreign,
    is_intact,
    is_ours,
    kept_version,
    main_of,
    not_deployed,
    refuse_another_model,
    served_together,
    uri_of,
)
from mlflow_triton_plugin.describe import describe, ready_versions
from mlflow_triton_plugin.errors import (
    ModelLoadError,
    ServerUnavailableError,
    SettingsError,
    TritonServerError,
)
from mlflow_triton_plugin.fetch import fetched, resolve
from mlflow_triton_plugin.golden import read_example
from mlflow_triton_plugin.preview import preview
from mlflow_triton_plugin.progress import copying
from mlflow_triton_plugin.settings import DEFAULT_KEEP_VERSIONS
from triton_repo.change import Change, Together, plan_change, plan_return
from triton_repo.entry import check_name
from triton_repo.errors import (
    ArtifactError,
    DeploymentExistsError,
    LockedError,
    StoreError,
    StoreUnavailableError,
    TritonRepoError,
)
from triton_repo.flavors import choose_flavor, convert
from triton_repo.placement import ModelPlace, PlaceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton_plugin.fetch import RemoteArtifacts, ResolvedModel
    from mlflow_triton_plugin.golden import GoldenExample
    from mlflow_triton_plugin.server import TritonServers
    from mlflow_triton_plugin.settings import Options
    from triton_repo.journal import Journal
    from triton_repo.placement import StagedChange
    from triton_repo.record import Source
    from triton_repo.stock import Stock
    from triton_repo.store import Store

__all__ = ["Deployer"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deployer:
    """Deploys to one model repository and the servers that read it.

    Attributes:
        store: the repository.
        servers: all that read it.
        remote: which artifacts the repository may copy by itself; None for none.
    """

    store: Store
    servers: TritonServers
    remote: RemoteArtifacts | None = None

    # -- the three commands -------------------------------------------------------------------

    def create(
        self, name: str, model_uri: str, flavor: str | None, options: Options
    ) -> dict[str, Any]:
        """Deploy a model under a new name.

        A deployment of that name that does not serve is deployed anew; an interrupted one is
        finished.

        Returns:
            The deployment as `describe` gives it.

        Raises:
            DeploymentExistsError: the name is taken.
            TritonRepoError, TritonServerError, MlflowException: nothing was changed.
        """
        place = ModelPlace(self.store, check_name(name))
        self._check(options)
        with place.lock(holder(), options.lock_timeout_s):
            wanted = ("create", model_uri)
            interrupted, _ = self._recover(place, options.load_timeout_s, wanted)
            again = _is(interrupted, wanted)
            with self._creating(place, model_uri, flavor, options, again=again) as planned:
                return self._apply(place, planned, options, operation="create")

    def update(
        self, name: str, model_uri: str | None, flavor: str | None, options: Options
    ) -> dict[str, Any]:
        """Serve another model, or another version, under a deployed name.

        Without `model_uri` what is deployed is loaded again; with `serve_versions`, those versions
        from what is on disk.

        Returns:
            The deployment as `describe` gives it.

        Raises:
            DeploymentNotFoundError: there is no such deployment.
            TritonRepoError, TritonServerError, MlflowException: the old version still serves.
        """
        place = ModelPlace(self.store, check_name(name))
        self._check(options)
        with place.lock(holder(), options.lock_timeout_s):
            wanted = ("update", model_uri) if model_uri is not None else None
            self._recover(place, options.load_timeout_s, wanted)
            with self._updating(place, model_uri, flavor, options) as planned:
                return self._apply(place, planned, options, operation="update")

    def delete(self, name: str, options: Options) -> bool:
        """Unload a deployment and remove it whole; what is not there is fine.

        Returns:
            Whether there was anything to delete.

        Raises:
            DeploymentExistsError: a directory of that name was not deployed by MLflow.
            TritonRepoError, TritonServerError: the same command goes on where this one stopped.
        """
        place = ModelPlace(self.store, check_name(name))
        self._check(options)
        with place.lock(holder(), options.lock_timeout_s):
            # what was interrupted may be the adoption of somebody else's directory
            interrupted, _ = self._recover(place, options.load_timeout_s)
            state = place.state()
            if state is PlaceState.ABSENT:
                return interrupted is not None
            if state is PlaceState.FOREIGN:
                raise foreign(place, "remove its directory by hand if nobody needs it")
            try:
                place.begin_delete(holder())
            except StoreUnavailableError as exc:  # a full disk: deleting is what makes room
                _logger.warning("%s; deleting without a note of it", exc)
            self.servers.settle(name, timeout_s=options.load_timeout_s)
            self.servers.unload(name, timeout_s=options.load_timeout_s)
            place.remove()
            return True

    # -- the plan before the deed -------------------------------------------------------------

    def plan(
        self, name: str, model_uri: str | None, flavor: str | None, options: Options
    ) -> dict[str, Any]:
        """What `create`, or of a deployed name `update`, would do now; nothing is changed.

        Returns:
            See `preview`.

        Raises:
            LockedError: a change is under way, or was interrupted.
            DeploymentNotFoundError: there is no such deployment, and no model URI.
            TritonRepoError, TritonServerError, MlflowException: what the command would raise.
        """
        place = ModelPlace(self.store, check_name(name))
        operation = self.next_operation(name)
        self._check_servers(options)
        if operation == "update":
            planning = self._updating(place, model_uri, flavor, options)
        elif model_uri is None:
            raise not_deployed(place)
        else:
            planning = self._creating(place, model_uri, flavor, options, again=False)
        with planning as planned:
            return preview(place, planned.change, self.servers, options, operation)

    def next_operation(self, name: str) -> str:
        """What a name can be given to now: `update` where it is deployed, else `create`.

        Raises:
            LockedError: a change is under way, or was interrupted.
        """
        place = ModelPlace(self.store, check_name(name))
        state = place.state()
        if state is PlaceState.INTERRUPTED:
            journal = place.journal()
            raise LockedError(
                f"a change of {place.uri} is under way or was interrupted; when no command is at "
                f"it, mlflow-triton repair {name} puts it right",
                holder=journal.holder if journal else "",
                since=journal.since if journal else "",
            )
        return "update" if state is PlaceState.DEPLOYED else "create"

    # -- repair -------------------------------------------------------------------------------

    def repair(self, name: str, options: Options) -> str | None:
        """Finish or undo what an interrupted command left, and nothing else.

        Returns:
            `finished`, `undone`, or None where nothing was interrupted.

        Raises:
            LockedError: the command is still running.
            TritonRepoError, TritonServerError: the same call goes on where this one stopped.
        """
        place = ModelPlace(self.store, check_name(name))
        self._check(options)
        with place.lock(holder(), options.lock_timeout_s):
            return self._recover(place, options.load_timeout_s)[1]

    def sweep(self) -> None:
        """Remove what dead commands left at the repository's root, their locks."""
        self.store.check()
        self.store.sweep("")

    # -- the steps ----------------------------------------------------------------------------

    def _check(self, options: Options) -> None:
        self.store.check()
        self._check_servers(options)
        self.store.sweep("")

    def _check_servers(self, options: Options) -> None:
        self.servers.states()  # not only there, but ready to take orders from this client
        if options.tries_apart and not self.servers.load_paths:
            raise SettingsError(
                f"validate={options.validate} needs Triton's gRPC protocol, and "
                f"{self.servers.endpoints} is HTTP; set TRITON_URL to the gRPC address "
                "(port 8001 by default)",
                setting="-C validate",
            )

    def _recover(
        self, place: ModelPlace, timeout_s: float, wanted: tuple[str, str] | None = None
    ) -> tuple[Journal | None, str | None]:
        """Finish or undo what an interrupted command left, on disk and on the servers.

        Args:
            place: where.
            timeout_s: for the servers.
            wanted: operation and model URI of what is going to be done: if that was interrupted, it
                need not send again what it had sent.

        Returns:
            What was interrupted and what became of it, or None for both.
        """
        if place.state() is not PlaceState.INTERRUPTED:
            place.recover()  # temporary files of a command that came no further
            return None, None
        interrupted = place.journal()
        _settle(self.servers, place, timeout_s)  # it may be at it still
        if interrupted is not None and interrupted.operation == "delete":
            self.servers.unload(place.name, timeout_s=timeout_s)
        outcome = place.recover(keep_sent=_is(interrupted, wanted)) or "undone"
        _logger.warning("an interrupted change of %s was %s", place.uri, outcome)
        _agree(self.servers, place, timeout_s)
        return interrupted, outcome

    @contextmanager
    def _creating(
        self,
        place: ModelPlace,
        model_uri: str,
        flavor: str | None,
        options: Options,
        *,
        again: bool,
    ) -> Iterator[_Planned]:
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
    def _updating(
        self, place: ModelPlace, model_uri: str | None, flavor: str | None, options: Options
    ) -> Iterator[_Planned]:
        """Plan what `update` does; see `_creating`."""
        if place.state_to_change() is not PlaceState.DEPLOYED:
            raise not_deployed(place)
        base = place.take_stock()
        together = options.serve_versions or (served_together(base) if model_uri is None else None)
        if model_uri is None and together is not None and not options.tries_apart:
            yield _Planned(_chosen(place, base, together, options))
            return
        model = resolve(model_uri or uri_of(place, base))
        kept = None if options.tries_apart else kept_version(base, model)
        if (
            kept is not None
            and flavor in (None, base.versions[kept].flavor)
            and is_intact(place, base, kept)
        ):
            yield _Planned(_returned(base, kept, model.source, options))
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
        if not again and _serves(self.servers, place):
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
        if _serves(self.servers, place):
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
    ) -> Iterator[_Planned]:
        """Bring the model and plan to serve it; see `_creating`."""
        keep_base = options.on_conflict != "replace" or is_ours(base)
        if base is not None and keep_base:
            check_config(place, base)
        wanted = model.source.registered_version
        with fetched(model, self.remote, flavor, options.limits) as found_model:
            artifact = found_model.artifact
            entry = convert(
                artifact,
                flavor=choose_flavor(artifact, flavor),
                name=place.name,
                version=wanted or 1,
            ).from_origins(found_model.origins)
            plan = partial(
                plan_change,
                entry,
                model.source,
                wanted_version=wanted,
                keep_versions=options.keep_versions or DEFAULT_KEEP_VERSIONS,
                keep_base=keep_base,
                together=options.serve_versions,
            )
            change = plan(base=base)
            if base is not None and change.reuse is not None:
                recorded = base.versions[change.reuse].files
                found = place.digests_of(change.reuse, recorded)
                if found != recorded:  # damaged: it is placed anew
                    change = plan(base=base.with_files(change.reuse, found))
            example = (
                read_example(artifact, tolerance=options.validate_tolerance)
                if options.validate == "true"
                else None
            )
            yield _Planned(change, example)

    def _apply(
        self, place: ModelPlace, planned: _Planned, options: Options, *, operation: str
    ) -> dict[str, Any]:
        """Stage, validate, commit; or put everything back."""
        change = planned.change
        staged, states = None, []
        try:
            with copying(place.name, change.size_bytes) as on_copied:
                staged = place.stage(
                    change,
                    operation=operation,
                    holder=holder(),
                    apart=options.tries_apart,
                    on_copied=on_copied,
                )
            if staged.apart and self.servers.load_paths:
                self._try_apart(place, staged, options, planned.example)
            place.install(staged)
            states = self.servers.load(
                place.name,
                config=change.load_config.to_json() if change.load_config else None,
                versions=change.serving,
                timeout_s=options.load_timeout_s,
            )
            # where the model's own policy decides, the server has just said what it serves
            place.commit(staged, serving=change.serving or ready_versions(states))
        except BaseException as exc:  # Ctrl-C too: what was begun is put back before it goes on
            if staged is not None:
                staged.abandon()
            if isinstance(exc, LockedError):  # taken over: it is for others to put it right
                raise
            finished = self._put_back(place)
            if not (finished and isinstance(exc, StoreError)):
                raise
            _logger.warning("%s; it was committed, and is finished now", exc)
        return describe(place, states, len(self.servers))

    def _try_apart(
        self,
        place: ModelPlace,
        staged: StagedChange,
        options: Options,
        example: GoldenExample | None,
    ) -> None:
        config = staged.change.config_apart(staged.apart)
        self.servers.try_apart(
            place.name,
            staged.apart,
            config=config.to_json() if config else None,
            timeout_s=options.load_timeout_s,
            check=partial(example.check, versions=config.pinned_versions if config else ())
            if example
            else lambda *_: None,
        )

    def _put_back(self, place: ModelPlace) -> bool:
        """Undo a change that failed, as far as that can be done now.

        What remains is named in a warning, and the next command goes on with it.

        Returns:
            Whether it was committed already, and has been finished instead.
        """
        finished = False
        try:
            self._with_those_there(lambda servers: _settle_aloud(servers, place))
            finished = place.recover() == "finished"
            if not finished:
                self._with_those_there(lambda servers: _agree(servers, place, _PUT_BACK_TIMEOUT_S))
        except (TritonRepoError, TritonServerError) as exc:
            _logger.warning(
                "%s could not be put back wholly: %s; run the command again", place.uri, exc
            )
        return finished

    def _with_those_there(self, act: Callable[[TritonServers], None]) -> None:
        """Do something with the servers that are there; one that is down starts from the disk.

        Raises:
            TritonServerError: one is there, and it failed.
        """
        for tries_left in range(len(self.servers), -1, -1):
            try:
                act(self.servers.reachable())
            except ServerUnavailableError:  # it went away just now
                if not tries_left:
                    raise
            else:
                return


#: Putting back is worth waiting for, but not as long as the load that failed.
_PUT_BACK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class _Planned:
    """What is to be done, and what the model is to be asked before anybody else does."""

    change: Change
    example: GoldenExample | None = None


def _chosen(place: ModelPlace, base: Stock, together: Together, options: Options) -> Change:
    """Plan to serve these versions, from what is on disk; nothing else changes unasked.

    Raises:
        ArtifactError: one of them is not what was placed.
    """
    check_config(place, base)
    version = main_of(base, together)
    serving = together.chosen(version, base.versions)
    for each in serving:
        if not (base.can_return(each) and is_intact(place, base, each)):
            raise ArtifactError(
                f"version {each} of {place.uri} is not what was placed; `mlflow-triton verify "
                f"{place.name}` names what differs, update -m with its model places it again"
            )
    keep_all = options.keep_versions or len(base.versions)
    options = replace(options, serve_versions=together, keep_versions=keep_all)
    return _returned(base, version, base.versions[version].source, options)


def _returned(base: Stock, version: int, source: Source, options: Options) -> Change:
    """Plan to serve a version that is on disk; nothing is fetched or copied."""
    return plan_return(
        base,
        version,
        source=source,
        keep_versions=options.keep_versions or DEFAULT_KEEP_VERSIONS,
        together=options.serve_versions,
    )


def _is(journal: Journal | None, wanted: tuple[str, str] | None) -> bool:
    """Whether a journal is that of this operation and model URI."""
    return journal is not None and (journal.operation, journal.model_uri) == wanted


def _serves(servers: TritonServers, place: ModelPlace) -> bool:
    states = servers.states(place.name).get(place.name, [])
    return any(state.state == "READY" for state in states)


def _settle(servers: TritonServers, place: ModelPlace, timeout_s: float) -> None:
    """Wait until no server is loading from what is going to be removed or moved."""
    servers.settle(place.name, timeout_s=timeout_s)
    if servers.load_paths and place.store.exists(place.apart):
        servers.leave(place.apart, timeout_s=timeout_s)


def _settle_aloud(servers: TritonServers, place: ModelPlace) -> None:
    states = servers.states(place.name).get(place.name, [])
    if any(state.state == "LOADING" for state in states):
        _logger.warning(
            "putting %s back as it was, as soon as Triton ends the load it began", place.uri
        )
    _settle(servers, place, _PUT_BACK_TIMEOUT_S)


def _agree(servers: TritonServers, place: ModelPlace, timeout_s: float) -> None:
    """Make the servers serve what is on disk, after a change was undone there."""
    if place.state_to_change() is PlaceState.ABSENT:
        servers.unload(place.name, timeout_s=timeout_s)
    elif _serves(servers, place):
        try:
            servers.load(place.name, config=None, versions=(), timeout_s=timeout_s)
        except ModelLoadError as exc:  # what serves goes on; the command itself may mend it
            _logger.warning("%s", exc)


def holder() -> str:
    """Who this is, for the people whom a lock keeps out."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"
