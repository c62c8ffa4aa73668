"""One change of one model's directory and of the servers that read it: done whole, or put back."""

from __future__ import annotations

import getpass
import logging
import os
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlflow_triton_plugin.describe import ready_versions
from mlflow_triton_plugin.errors import (
    ModelLoadError,
    ModelRestartingError,
    ServerUnavailableError,
    TritonServerError,
)
from mlflow_triton_plugin.liveness import dead_versions
from mlflow_triton_plugin.progress import copying
from triton_repo.errors import LockedError, StoreError, StoreUnavailableError, TritonRepoError
from triton_repo.placement import PlaceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_triton_plugin.golden import GoldenExample
    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.server import ModelState, TritonServers
    from triton_repo.change import Change
    from triton_repo.placement import ModelPlace, StagedChange

__all__ = ["PUT_BACK_TIMEOUT_S", "Changer", "MemberLockedError", "holder", "is_staged_apart"]

_logger = logging.getLogger(__name__)

#: Putting back is worth waiting for, but not as long as the load that failed.
PUT_BACK_TIMEOUT_S = 60.0


class MemberLockedError(LockedError):
    """Another writer is changing a member, and not the model that needs it."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Changer:
    """Carries out changes; the caller holds the lock of the place.

    Attributes:
        servers: all that read the repository.
    """

    servers: TritonServers

    def apply(
        self,
        place: ModelPlace,
        change: Change,
        options: Options,
        *,
        operation: str,
        example: GoldenExample | None = None,
        loads: bool = True,
        bring: Callable[[], None] = _nothing,
        commit_brought: Callable[[], None] = _nothing,
    ) -> list[ModelState]:
        """Stage, validate, commit; or put everything back.

        Args:
            place: where.
            change: from `plan_change` or `plan_return`.
            options: of the command.
            operation: `create` or `update`, for the journal.
            example: what the model is to be asked before anybody else does.
            loads: whether servers load it before it is committed; otherwise none does.
            bring: what the model needs in order to be loaded; called once it is staged.
            commit_brought: commits that; called once the model is loaded.

        Returns:
            The states of its versions, of all servers together; none where it was not loaded.

        Raises:
            TritonRepoError, TritonServerError: nothing was changed.
        """
        staged, states = None, []
        may_end = loads and change.may_end_what_serves
        was_served = may_end and self.servers.serve(place.name)
        dead = self._dead(place) if loads else []
        try:
            staged = self._stage(place, change, options, operation)
            self._replace_dead(place, change, dead, options)
            bring()
            self._try_apart(place, staged, options, example)
            place.install(staged)
            if loads:
                states = self._load(place, change, options)
            commit_brought()
            # where the model's own policy decides, the server has just said what it serves
            place.commit(staged, serving=change.serving or ready_versions(states))
        except BaseException as exc:  # Ctrl-C too: what was begun is put back before it goes on
            if staged is not None:
                staged.abandon()
            if type(exc) is LockedError:  # taken over: it is for others to put it right
                raise
            finished = self.put_back(place, was_served=was_served)
            if not (finished and isinstance(exc, StoreError)):
                raise
            _logger.warning("%s; it was committed, and is finished now", exc)
        return states

    def begin(
        self, place: ModelPlace, change: Change, options: Options, *, operation: str
    ) -> StagedChange:
        """Stage a change and load it; the caller commits it, or has `recover` undo it.

        Raises:
            TritonRepoError, TritonServerError: it is for `recover`.
        """
        staged = self._stage(place, change, options, operation)
        try:
            self._try_apart(place, staged, options)
            place.install(staged)
            self._load(place, change, options)
        except BaseException:
            staged.abandon()
            raise
        return staged

    def _stage(
        self, place: ModelPlace, change: Change, options: Options, operation: str
    ) -> StagedChange:
        apart = is_staged_apart(change, options, self.servers)
        size_bytes = change.size_bytes(apart=apart)
        with copying(place.name, size_bytes) as on_copied:
            return place.stage(
                change,
                operation=operation,
                holder=holder(),
                apart=apart,
                on_copied=on_copied,
            )

    def _replace_dead(
        self,
        place: ModelPlace,
        change: Change,
        dead: Iterable[ModelState],
        options: Options,
    ) -> None:
        """Start the processes again that died, of versions that the change takes out of service.

        Triton never ends the unload of a version that has failed a request in this way. With a new
        process, it does; it loads what is there again since staging has written beside it.
        """
        if all(int(state.version) in change.serving for state in dead):
            return  # loaded again by the change itself
        _logger.warning("a process of %s died; starting it again before the change", place.uri)
        try:
            self.servers.load(
                place.name, config=None, versions=(), timeout_s=options.load_timeout_s
            )
        except ModelLoadError as exc:  # the change itself may mend it
            _logger.warning("%s", exc)

    def _load(self, place: ModelPlace, change: Change, options: Options) -> list[ModelState]:
        return self.servers.load(
            place.name,
            config=change.load_config.to_json() if change.load_config else None,
            versions=change.serving,
            timeout_s=options.load_timeout_s,
        )

    def remove(
        self,
        place: ModelPlace,
        timeout_s: float,
        *,
        members: Iterable[str] = (),
        remove_members: Callable[[], None] = _nothing,
    ) -> None:
        """Unload a model everywhere, and remove its directory.

        Args:
            place: where.
            timeout_s: for the servers.
            members: directories of the models that go with it.
            remove_members: removes them; called once nobody needs them any more.

        Raises:
            TritonRepoError, TritonServerError: the same call goes on where this one stopped.
        """
        dead = self._dead(place)
        try:
            place.begin_delete(holder(), members)
        except StoreUnavailableError as exc:  # a full disk: deleting is what makes room
            _logger.warning("%s; deleting without a note of it", exc)
        self.servers.settle(place.name, timeout_s=timeout_s)
        self.servers.unload(place.name, timeout_s=timeout_s, dead=dead)
        remove_members()
        place.remove()

    def _dead(self, place: ModelPlace) -> list[ModelState]:
        """Versions whose processes died for good; none where no record says whom to ask."""
        try:
            record = place.record()
        except TritonRepoError:
            return []
        states = self.servers.states(place.name)
        dead = dead_versions(self.servers, [(place.name, record)], states)
        return [each for each, told in dead.items() if not isinstance(told, ModelRestartingError)]

    def recover(self, place: ModelPlace, timeout_s: float, *, keep_sent: bool = False) -> str:
        """Finish or undo an interrupted change that is no delete, on disk and on the servers.

        Args:
            place: where.
            timeout_s: for the servers.
            keep_sent: see `ModelPlace.recover`.

        Returns:
            `finished` or `undone`.

        Raises:
            TritonRepoError, TritonServerError: the same call goes on where this one stopped.
        """
        _settle(self.servers, place, timeout_s)  # it may be at it still
        outcome = place.recover(keep_sent=keep_sent) or "undone"
        _logger.warning("an interrupted change of %s was %s", place.uri, outcome)
        _agree(self.servers, place, timeout_s)
        return outcome

    def put_back(self, place: ModelPlace, *, was_served: bool) -> bool:
        """Undo a change that failed, as far as that can be done now.

        What remains is named in a warning, and the next command goes on with it.

        Args:
            place: where.
            was_served: whether it served before the change, which may have ended that.

        Returns:
            Whether it was committed already, and has been finished instead.
        """
        finished = False
        try:
            self.with_those_there(lambda servers: _settle_aloud(servers, place))
            finished = place.recover() == "finished"
            if not finished:
                self.with_those_there(
                    lambda servers: _agree(
                        servers, place, PUT_BACK_TIMEOUT_S, was_served=was_served
                    )
                )
        except (TritonRepoError, TritonServerError) as exc:
            _logger.warning(
                "%s could not be put back wholly: %s; run the command again", place.uri, exc
            )
        return finished

    def with_those_there(self, act: Callable[[TritonServers], None]) -> None:
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

    def _try_apart(
        self,
        place: ModelPlace,
        staged: StagedChange,
        options: Options,
        example: GoldenExample | None = None,
    ) -> None:
        """Load what is staged apart, by its path, and ask it what is to be asked."""
        if not (staged.apart and self.servers.load_paths):
            return
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
    _settle(servers, place, PUT_BACK_TIMEOUT_S)


def is_staged_apart(change: Change, options: Options, servers: TritonServers) -> bool:
    """Whether a change is staged apart though its files need not be, to be loaded there first."""
    needed = change.may_end_what_serves and not change.returns
    return options.tries_apart or (needed and servers.load_paths)


def _agree(
    servers: TritonServers, place: ModelPlace, timeout_s: float, *, was_served: bool = False
) -> None:
    """Make the servers serve what is on disk, after a change was undone there."""
    if place.state_to_change() is PlaceState.ABSENT:
        servers.unload(place.name, timeout_s=timeout_s)
    elif was_served or servers.serve(place.name):
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
