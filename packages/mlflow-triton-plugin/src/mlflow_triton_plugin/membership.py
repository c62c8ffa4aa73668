"""The members of a deployment: brought before it is loaded, and afterwards only those it needs.

Triton looks at the members of an ensemble whenever it loads that, and loads anew, all its versions,
each whose directory has changed since it last did. So whatever is written into a member's directory
is written before it is loaded for the last time, or after the ensemble is.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlflow_triton_plugin.changing import MemberLockedError, holder
from mlflow_triton_plugin.errors import ModelNotReadyError
from triton_repo.errors import LockedError
from triton_repo.group_change import plan_kept
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from mlflow_triton_plugin.changing import Changer
    from mlflow_triton_plugin.options import Options
    from triton_repo.group_change import MemberChange
    from triton_repo.placement import StagedChange

__all__ = ["Members"]

_logger = logging.getLogger(__name__)

#: How long requests in flight may go on asking what is going to be unloaded.
_DRAIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Members:
    """The models that one deployment needs; the caller holds the deployment's own lock.

    Attributes:
        owner: the deployment's directory.
        changer: carries out changes of each.
        options: of the command.
    """

    owner: ModelPlace
    changer: Changer
    options: Options
    _begun: list[tuple[ModelPlace, StagedChange]] = field(default_factory=list)

    def bring(self, changes: Iterable[MemberChange], locks: ExitStack) -> None:
        """Let members serve beside what serves; nobody asks them yet.

        A directory that was not there before is committed at once. A new version in one that is
        there waits for `commit`.

        Args:
            changes: in this order.
            locks: of those that wait; they are let go where this is closed.

        Raises:
            MemberLockedError: another command is at one, or has been since this was planned.
            TritonRepoError, TritonServerError: one cannot be brought; `keep_needed` puts all back.
        """
        for each in changes:
            if each.change is None or each.change.base is None:
                with self._locked(each.place):
                    self._place(each)
                    self._load(each.place, each.serving)
            else:
                locks.enter_context(self._locked(each.place))
                _refuse_changed(each)
                staged = self.changer.begin(
                    each.place, each.change, self._untried, operation="update"
                )
                self._begun.append((each.place, staged))

    def commit(self) -> None:
        """Commit the versions that were brought.

        Raises:
            TritonRepoError: not all of them were; `keep_needed` puts all back.
        """
        for place, staged in self._begun:
            place.commit(staged, serving=staged.change.serving)

    def abandon(self) -> None:
        """Stop what goes on in the background, before `keep_needed` undoes it."""
        for _, staged in self._begun:
            staged.abandon()

    def keep_needed(self, names: Collection[str]) -> None:
        """Keep of the members what the deployment needs, as it is on disk, and say that it is so.

        Args:
            names: directories of those that it needs, or has needed.

        Raises:
            TritonRepoError, TritonServerError: the same call goes on where this one stopped.
        """
        record = self.owner.record()
        kept = record.needs() if record is not None else {}
        serving = record.needs(record.serving) if record is not None else {}
        locked = None
        for name in sorted({*names, *kept}):
            place = self._at(name)
            try:
                with self._locked(place):
                    self._recover(place)
                    if self._is_mine(place):
                        self._keep(place, kept.get(name, frozenset()), serving.get(name, ()))
            except MemberLockedError as exc:  # the others need not wait for it
                locked = exc
        if locked is not None:
            raise locked
        self.owner.settled()

    def remove(self, names: Iterable[str]) -> None:
        """Unload members, and remove them.

        Args:
            names: their directories.

        Raises:
            TritonRepoError, TritonServerError: the same call goes on where this one stopped.
        """
        for name in sorted(names):
            place = self._at(name)
            with self._locked(place):
                self._recover(place)
                if self._is_mine(place):
                    self.changer.remove(place, self.options.load_timeout_s)

    def recover(self, names: Iterable[str]) -> None:
        """Finish or undo what was interrupted, and keep the rest for the same command again.

        Args:
            names: their directories.

        Raises:
            TritonRepoError, TritonServerError: the same call goes on where this one stopped.
        """
        for name in sorted(names):
            place = self._at(name)
            with self._locked(place):
                self._recover(place, keep_sent=True)

    def _at(self, name: str) -> ModelPlace:
        return ModelPlace(self.owner.store, check_name(name))

    @property
    def _untried(self) -> Options:
        """The options for what is loaded under its own name anyway before anybody asks it."""
        return replace(self.options, validate="false")

    @contextmanager
    def _locked(self, place: ModelPlace) -> Iterator[None]:
        try:
            with place.lock(holder(), self.options.lock_timeout_s):
                yield
        except LockedError as exc:
            raise MemberLockedError(str(exc), holder=exc.holder, since=exc.since) from exc

    def _recover(self, place: ModelPlace, *, keep_sent: bool = False) -> None:
        if place.state() is not PlaceState.INTERRUPTED:
            return
        journal = place.journal()
        if journal is not None and journal.operation == "delete":
            self.changer.remove(place, self.options.load_timeout_s)
        else:
            self.changer.recover(place, self.options.load_timeout_s, keep_sent=keep_sent)

    def _is_mine(self, place: ModelPlace) -> bool:
        record = place.record()
        return record is not None and record.part_of == self.owner.name

    def _place(self, each: MemberChange) -> None:
        """Place a member in a directory of its own; a server that starts now finds it whole."""
        if each.change is None:
            return
        _refuse_changed(each)
        self.changer.apply(each.place, each.change, self.options, operation="create", loads=False)

    def _load(self, place: ModelPlace, versions: Sequence[int]) -> None:
        """Load what is on disk, where a server does not serve it."""
        servers = self.changer.servers
        states = servers.states(place.name).get(place.name, [])
        ready = [int(state.version) for state in states if state.state == "READY"]
        if not ready or any(ready.count(version) < len(servers) for version in versions):
            self._load_anew(place, versions)

    def _load_anew(self, place: ModelPlace, versions: Sequence[int]) -> None:
        self.changer.servers.load(
            place.name,
            config=None,
            versions=versions,
            timeout_s=self.options.load_timeout_s,
        )

    def _keep(self, place: ModelPlace, keep: frozenset[int], serving: Collection[int]) -> None:
        if not keep:
            self._drain()
            self.changer.remove(place, self.options.load_timeout_s)
            return
        is_served = self.changer.servers.serve(place.name)
        if is_served and not serving:
            self._drain()
            self.changer.servers.unload(place.name, timeout_s=self.options.load_timeout_s)
        if self._prune(place, keep, serving) and is_served and serving:
            self._load_anew(place, [*serving])

    def _prune(self, place: ModelPlace, keep: frozenset[int], serving: Collection[int]) -> bool:
        """Remove what is not needed from the repository; whether there was anything."""
        # a version that is left alone needs no pin any more, once the others are gone
        for step in range(2):
            change = plan_kept(place.take_stock(), keep, frozenset(serving))
            if change is None:
                return step > 0
            self._drain()
            self.changer.apply(place, change, self._untried, operation="update", loads=False)
        return True

    def _drain(self) -> None:
        """Let what no longer serves answer the requests that it has: it may ask its members."""
        try:
            self.changer.servers.drain(self.owner.name, timeout_s=_DRAIN_TIMEOUT_S)
        except ModelNotReadyError as exc:
            _logger.warning("%s; its members go all the same", exc)


def _refuse_changed(each: MemberChange) -> None:
    """Make sure that a member's directory is as it was when its change was planned.

    Raises:
        MemberLockedError: somebody has changed it.
    """
    base = each.change.base if each.change is not None else None
    state = each.place.state_to_change()
    same = state is PlaceState.ABSENT
    if base is not None:
        same = state is PlaceState.DEPLOYED and each.place.record() == base.recorded
    if not same:
        raise MemberLockedError(
            f"{each.place.uri} was changed by somebody else just now; run the command again",
            holder="",
            since="",
        )
