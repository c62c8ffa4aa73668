"""create, update, delete: the way of a model from its URI to a server that serves it.

```
resolve → fetch → convert → plan → stage → (try it apart) → install → load, pinned → commit
```

What the model needs beside it (see `membership`) is brought between stage and install. Until the
commit nothing has changed for anyone: a failure on the way puts everything back. What is
to be validated, or would overwrite what serves, is first loaded apart: by the path of its staging
area, as a model that no client knows of.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.changing import Changer, holder
from mlflow_triton_plugin.choice import foreign, not_deployed, refuse_member
from mlflow_triton_plugin.describe import describe
from mlflow_triton_plugin.errors import (
    BackendMissingError,
    ModelLoadError,
    SettingsError,
    TritonServerError,
)
from mlflow_triton_plugin.membership import Members
from mlflow_triton_plugin.planning import Planner
from mlflow_triton_plugin.preview import preview
from triton_repo.errors import LockedError, StoreError, TritonRepoError
from triton_repo.flavors import ANY_MODEL, NATIVE_FLAVORS
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState
from triton_repo.record import RECORD_FILENAME, RecordError
from triton_repo.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from contextlib import AbstractContextManager

    from mlflow_triton_plugin.fetch import RemoteArtifacts
    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.planning import Planned
    from mlflow_triton_plugin.server import TritonServers
    from triton_repo.journal import Journal
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
        native: see `Planner`.
    """

    store: Store
    servers: TritonServers
    remote: RemoteArtifacts | None = None
    native: bool = True

    @property
    def _planner(self) -> Planner:
        return Planner(self.servers, self.remote, native=self.native)

    @property
    def _changer(self) -> Changer:
        return Changer(self.servers)

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
            refuse_member(place)
            interrupted, _ = self._recover(place, options, wanted)
            again = _is(interrupted, wanted)

            def planning(flavor: str | None) -> AbstractContextManager[Planned]:
                return self._planner.creating(place, model_uri, flavor, options, again=again)

            return self._deploy(place, planning, flavor, options, operation="create")

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
            refuse_member(place)
            self._recover(place, options, wanted)

            def planning(flavor: str | None) -> AbstractContextManager[Planned]:
                return self._planner.updating(place, model_uri, flavor, options)

            return self._deploy(place, planning, flavor, options, operation="update")

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
            refuse_member(place)
            # what was interrupted may be the adoption of somebody else's directory
            interrupted, _ = self._recover(place, options)
            state = place.state()
            if state is PlaceState.ABSENT:
                return interrupted is not None
            if state is PlaceState.FOREIGN:
                raise foreign(place, "remove its directory by hand if nobody needs it")
            try:
                members = place.needed()
            except RecordError as exc:
                _logger.warning("%s; if it came with other models, delete each by its name", exc)
                members = set()
            self._remove(place, members, options)
            return True

    # -- the plan before the deed -------------------------------------------------------------

    def plan(
        self, name: str, model_uri: str | None, flavor: str | None, options: Options
    ) -> dict[str, Any]:
        """What `create`, or of a deployed name `update`, would do now; nothing is changed.

        No lock is taken: what another command does meanwhile may make it untrue.

        Returns:
            See `preview`.

        Raises:
            LockedError: a change is under way, or was interrupted.
            DeploymentNotFoundError: there is no such deployment, and no model URI.
            TritonRepoError, TritonServerError, MlflowException: what the command would raise.
        """
        place = ModelPlace(self.store, check_name(name))
        self._check_servers(options)
        place.refuse_busy(options.lock_timeout_s)
        place.refuse_interrupted()
        refuse_member(place)
        operation = self.next_operation(name)
        planner = replace(self._planner, packs=False)
        if operation == "update":
            planning = planner.updating(place, model_uri, flavor, options)
        elif model_uri is None:
            raise not_deployed(place)
        else:
            planning = planner.creating(place, model_uri, flavor, options, again=False)
        with planning as planned:
            place.refuse_damaged(planned.change)
            for each in planned.members:
                each.place.refuse_busy(options.lock_timeout_s)
            plan = preview(place, planned, self.servers, options, operation)
            environment = planned.environment
            falls_back = planned.falls_back and plan["flavor"] in NATIVE_FLAVORS
            return plan | {
                "environment": environment.described() if environment else None,
                "falls_back": ANY_MODEL if falls_back else None,
            }

    def next_operation(self, name: str) -> str:
        """What a name can be given to now: `update` where it is deployed, else `create`.

        Raises:
            StoreAccessError: the repository is not there, or cannot be written.
        """
        place = ModelPlace(self.store, check_name(name))
        if isinstance(self.store, LocalStore):  # an object store's check may put an object
            self.store.check()
        return "update" if self.store.exists(place.key(RECORD_FILENAME)) else "create"

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
            return self._recover(place, options)[1]

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
        self, place: ModelPlace, options: Options, wanted: tuple[str, str] | None = None
    ) -> tuple[Journal | None, str | None]:
        """Finish or undo what an interrupted command left, on disk and on the servers.

        Args:
            place: where.
            options: of this command.
            wanted: operation and model URI of what is going to be done: if that was interrupted, it
                need not send again what it had sent.

        Returns:
            What was interrupted and what became of it, or None for both.
        """
        if place.state() is not PlaceState.INTERRUPTED:
            place.recover()  # temporary files of a command that came no further
            return None, None
        interrupted = place.journal()
        names = interrupted.members if interrupted is not None else ()
        members = Members(place, self._changer, options)
        if interrupted is not None and interrupted.operation == "delete":
            self._remove(place, names, options)
            return interrupted, "finished"
        outcome, keep_sent = "finished", _is(interrupted, wanted)
        if interrupted is None or not interrupted.leaves_members:
            outcome = self._changer.recover(place, options.load_timeout_s, keep_sent=keep_sent)
        if names and keep_sent and place.store.resumes:
            members.recover(names)
        elif names:
            members.keep_needed(names)
        return interrupted, outcome

    def _deploy(
        self,
        place: ModelPlace,
        planning: Callable[[str | None], AbstractContextManager[Planned]],
        flavor: str | None,
        options: Options,
        *,
        operation: str,
    ) -> dict[str, Any]:
        """Deploy by the flavor chosen, or as any model where its backend is missing or fails.

        No protocol of Triton's says which backends it has, and which formats of which libraries
        these read depends on their release: it is known once one loads a model.

        Raises:
            ModelLoadError: the model has no other way, or this one was asked for.
        """
        with planning(flavor) as planned:
            try:
                return self._apply(place, planned, options, operation=operation)
            except ModelLoadError as exc:
                is_native = planned.change.entry.flavor in NATIVE_FLAVORS
                if not planned.falls_back or not (
                    is_native or isinstance(exc, BackendMissingError)
                ):
                    raise
                _logger.warning("%s; it is deployed as %s instead", exc, ANY_MODEL)
        with planning(ANY_MODEL) as planned:
            return self._apply(place, planned, options, operation=operation)

    def _apply(
        self, place: ModelPlace, planned: Planned, options: Options, *, operation: str
    ) -> dict[str, Any]:
        """Bring what the model needs, stage, validate, commit; or put everything back."""
        members = Members(place, self._changer, options)
        names = planned.change.members
        try:
            with ExitStack() as locks:
                states = self._changer.apply(
                    place,
                    planned.change,
                    options,
                    operation=operation,
                    example=planned.example,
                    bring=partial(members.bring, planned.members, locks),
                    commit_brought=members.commit,
                )
        except BaseException as exc:
            members.abandon()
            if names and type(exc) is not LockedError:  # taken over: it is for others
                self._put_members_back(place, names, options)
            raise
        if names:
            self._keep_needed(members, names)
        joining = planned.change.joining
        if joining.is_older:
            _logger.warning("requests to %s are joined: %s", place.name, joining.why)
        known = self.servers.states() if names else {str(place.name): states}
        return describe(place, known, len(self.servers))

    def _keep_needed(self, members: Members, names: Collection[str]) -> None:
        """Remove what nobody needs any more; the command itself has succeeded."""
        try:
            try:
                members.keep_needed(names)
            except StoreError as exc:
                _logger.warning("%s; trying once more", exc)
                members.keep_needed(names)
        except (TritonRepoError, TritonServerError) as exc:
            name = members.owner.name
            _logger.warning(
                "%s serves, and what it no longer needs could not be removed: %s; mlflow-triton "
                "repair %s goes on with it",
                name,
                exc,
                name,
            )

    def _put_members_back(
        self, place: ModelPlace, names: Collection[str], options: Options
    ) -> None:
        """Remove what was brought for a change that failed, as far as that can be done now."""
        try:
            self._changer.with_those_there(
                lambda servers: Members(place, Changer(servers), options).keep_needed(names)
            )
        except (TritonRepoError, TritonServerError) as exc:
            _logger.warning(
                "what was brought for %s could not be removed: %s; run the command again",
                place.uri,
                exc,
            )

    def _remove(self, place: ModelPlace, names: Iterable[str], options: Options) -> None:
        members = Members(place, self._changer, options)
        self._changer.remove(
            place,
            options.load_timeout_s,
            members=names,
            remove_members=partial(members.remove, names),
        )


def _is(journal: Journal | None, wanted: tuple[str, str] | None) -> bool:
    """Whether a journal is that of this operation and model URI."""
    return journal is not None and (journal.operation, journal.model_uri) == wanted
