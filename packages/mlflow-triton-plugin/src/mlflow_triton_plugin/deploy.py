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
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.choice import foreign, not_deployed
from mlflow_triton_plugin.describe import describe, ready_versions
from mlflow_triton_plugin.errors import (
    BackendMissingError,
    ModelLoadError,
    ServerUnavailableError,
    SettingsError,
    TritonServerError,
)
from mlflow_triton_plugin.planning import Planner, serves
from mlflow_triton_plugin.preview import preview
from mlflow_triton_plugin.progress import copying
from triton_repo.errors import (
    LockedError,
    StoreError,
    StoreUnavailableError,
    TritonRepoError,
    UnsupportedFlavorError,
)
from triton_repo.flavors import ANY_MODEL, NATIVE_FLAVORS
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState
from triton_repo.record import RECORD_FILENAME
from triton_repo.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_plugin.fetch import RemoteArtifacts
    from mlflow_triton_plugin.golden import GoldenExample
    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.planning import Planned
    from mlflow_triton_plugin.server import TritonServers
    from triton_repo.journal import Journal
    from triton_repo.placement import StagedChange
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

            def attempt(flavor: str | None) -> dict[str, Any]:
                planning = self._planner.creating(place, model_uri, flavor, options, again=again)
                with planning as planned:
                    return self._apply(place, planned, options, operation="create")

            return _falling_back(flavor, attempt)

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

            def attempt(flavor: str | None) -> dict[str, Any]:
                with self._planner.updating(place, model_uri, flavor, options) as planned:
                    return self._apply(place, planned, options, operation="update")

            return _falling_back(flavor, attempt)

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
        _refuse_interrupted(place)
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
            plan = preview(place, planned.change, self.servers, options, operation)
            environment = planned.environment
            falls_back = flavor is None and plan["flavor"] in NATIVE_FLAVORS
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

    def _apply(
        self, place: ModelPlace, planned: Planned, options: Options, *, operation: str
    ) -> dict[str, Any]:
        """Stage, validate, commit; or put everything back."""
        change = planned.change
        staged, states = None, []
        try:
            size_bytes = change.size_bytes(apart=options.tries_apart)
            with copying(place.name, size_bytes) as on_copied:
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


def _refuse_interrupted(place: ModelPlace) -> None:
    if place.state() is not PlaceState.INTERRUPTED:
        return
    journal = place.journal()
    raise LockedError(
        f"a change of {place.uri} is under way or was interrupted; when no command is at it, "
        f"mlflow-triton repair {place.name} puts it right",
        holder=journal.holder if journal else "",
        since=journal.since if journal else "",
    )


def _falling_back(
    flavor: str | None, attempt: Callable[[str | None], dict[str, Any]]
) -> dict[str, Any]:
    """Deploy by the flavor chosen; as any model where nobody named one and its backend is missing.

    No protocol of Triton's says which backends it has: it is known once it loads a model.

    Raises:
        BackendMissingError: the model has no other flavor, or this one was asked for.
    """
    try:
        return attempt(flavor)
    except BackendMissingError as exc:
        if flavor is not None:
            raise
        _logger.warning("%s; it is deployed as %s instead", exc, ANY_MODEL)
        try:
            return attempt(ANY_MODEL)
        except UnsupportedFlavorError:
            raise exc from None


def _is(journal: Journal | None, wanted: tuple[str, str] | None) -> bool:
    """Whether a journal is that of this operation and model URI."""
    return journal is not None and (journal.operation, journal.model_uri) == wanted


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
    elif serves(servers, place):
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
