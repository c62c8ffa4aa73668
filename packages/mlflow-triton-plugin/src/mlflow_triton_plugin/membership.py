"""The members of a deployment: brought before it is loaded, and afterwards only those it needs."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_triton_plugin.changing import MemberLockedError, holder
from mlflow_triton_plugin.errors import ModelNotReadyError
from mlflow_triton_plugin.planning import serves
from triton_repo.errors import LockedError
from triton_repo.group_change import plan_kept
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from mlflow_triton_plugin.changing import Changer
    from mlflow_triton_plugin.options import Options
    from triton_repo.group_change import MemberChange

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

    @property
    def _options(self) -> Options:
        """The same for a member: nobody asks its new version yet, so it need not be tried apart."""
        return replace(self.options, validate="false")

    def bring(self, changes: Iterable[MemberChange]) -> None:
        """Let members serve beside what serves; nobody asks them yet.

        Raises:
            MemberLockedError: another command is at one, or has been since this was planned.
            TritonRepoError, TritonServerError: one cannot be brought; `keep_needed` removes the
                others again.
        """
        for each in changes:
            with self._locked(each.place):
                if each.change is None:
                    self._load(each)
                    continue
                _refuse_changed(each)
                operation = "create" if each.change.base is None else "update"
                self.changer.apply(each.place, each.change, self._options, operation=operation)

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
        for name in sorted({*names, *kept}):
            place = self._place(name)
            with self._locked(place):
                self._recover(place)
                if self._is_mine(place):
                    self._keep(place, kept.get(name, frozenset()), serving.get(name, frozenset()))
        self.owner.settled()

    def remove(self, names: Iterable[str]) -> None:
        """Unload members, and remove them.

        Args:
            names: their directories.

        Raises:
            TritonRepoError, TritonServerError: the same call goes on where this one stopped.
        """
        for name in sorted(names):
            place = self._place(name)
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
            place = self._place(name)
            with self._locked(place):
                self._recover(place, keep_sent=True)

    def _place(self, name: str) -> ModelPlace:
        return ModelPlace(self.owner.store, check_name(name))

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

    def _load(self, each: MemberChange) -> None:
        """Load what is on disk where a server does not serve it."""
        servers = self.changer.servers
        states = servers.states(each.place.name).get(each.place.name, [])
        ready = [int(state.version) for state in states if state.state == "READY"]
        if not all(ready.count(version) >= len(servers) for version in each.serving):
            servers.load(
                each.place.name,
                config=None,
                versions=each.serving,
                timeout_s=self.options.load_timeout_s,
            )

    def _keep(self, place: ModelPlace, keep: frozenset[int], serving: frozenset[int]) -> None:
        servers = self.changer.servers
        if not keep:
            self._drain()
            self.changer.remove(place, self.options.load_timeout_s)
            return
        is_served = serves(servers, place)
        if is_served and not serving:
            self._drain()
            servers.unload(place.name, timeout_s=self.options.load_timeout_s)
        for loads in (is_served and bool(serving), False):  # then about the repository alone
            change = plan_kept(place.take_stock(), keep, serving)
            if change is None:
                return
            self._drain()
            self.changer.apply(place, change, self._options, operation="update", loads=loads)

    def _drain(self) -> None:
        """Let what no longer serves answer the requests that it has: it may ask its members."""
        try:
            self.changer.servers.drain(self.owner.name, timeout_s=_DRAIN_TIMEOUT_S)
        except ModelNotReadyError as exc:
            _logger.warning("%s; its members go all the same", exc)


def _refuse_changed(each: MemberChange) -> None:
    """Make sure that a member's directory is as it was when its change was planned.

    Raises:
        LockedError: somebody has changed it.
    """
    base = each.change.base if each.change is not None else None
    state = each.place.state_to_change()
    same = state is PlaceState.ABSENT
    if base is not None:
        same = state is PlaceState.DEPLOYED and each.place.record() == base.recorded
    if not same:
        raise LockedError(
            f"{each.place.uri} was changed by somebody else just now; run the command again",
            holder="",
            since="",
        )
