"""list and get: the records in the repository, joined with what the servers say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.liveness import dead_versions, with_dead
from triton_repo.config import ModelConfig
from triton_repo.errors import (
    ConfigError,
    DeploymentNotFoundError,
    InvalidNameError,
    StoreError,
    TritonRepoError,
)
from triton_repo.joining import joining_of
from triton_repo.model_view import ModelView, PlaceState, needed_by
from triton_repo.names import check_name
from triton_repo.record import tree_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from mlflow_triton_plugin.server import ModelState, TritonServers
    from triton_repo.journal import Journal
    from triton_repo.record import DeploymentRecord, VersionRecord
    from triton_repo.store import Store

__all__ = ["describe", "get_deployment", "list_deployments", "ready_versions"]

_OURS = (PlaceState.DEPLOYED, PlaceState.INTERRUPTED)


def list_deployments(store: Store, servers: TritonServers) -> list[dict[str, Any]]:
    """Every deployment of a repository, whatever its state; other models are left out.

    What is part of another deployment is told there.

    Raises:
        StoreError, TritonServerError: the repository or a server cannot be asked.
    """
    states = servers.states()
    store = store.snapshot()
    looks = []
    for name in store.children(""):
        try:
            view = ModelView(store, check_name(name))
            ours = view.state() in _OURS
        except (InvalidNameError, StoreError):  # not a name of ours, or a directory closed to us
            continue
        if ours:
            looks.append(_Look.at(view))
    records = [(look.view.name, look.record) for look in looks]
    states = with_dead(states, dead_versions(servers, records, states))
    needed = {name for look in looks for name in look.needed}
    return [
        look.described(states, len(servers))
        for look in looks
        if look.view.name not in needed or look.is_its_own
    ]


def get_deployment(store: Store, servers: TritonServers, name: str) -> dict[str, Any]:
    """One deployment.

    Raises:
        DeploymentNotFoundError: there is none of that name.
    """
    place = ModelView(store, check_name(name))
    state = place.state()
    if state is PlaceState.FOREIGN:
        raise DeploymentNotFoundError(
            f"{place.uri} is there and was not deployed by MLflow; create -C on_conflict=adopt "
            "makes it a deployment",
            name=name,
        )
    if state is PlaceState.ABSENT:
        raise DeploymentNotFoundError(
            f"no deployment {name} in {store.uri}; list shows those that are there", name=name
        )
    look = _Look.at(place)
    states = servers.states()
    states = with_dead(states, dead_versions(servers, [(place.name, look.record)], states))
    return look.described(states, len(servers))


def ready_versions(states: Iterable[ModelState]) -> tuple[int, ...]:
    """Versions that are READY on at least one server, in order."""
    return tuple(sorted({int(each.version) for each in states if each.state == "READY"}))


def describe(
    place: ModelView, states: Mapping[str, Sequence[ModelState]], servers: int
) -> dict[str, Any]:
    """One deployment, as `get_deployment` of the plugin documents it.

    Args:
        place: its directory.
        states: what the servers say of each model's versions, all together.
        servers: how many servers there are.
    """
    return _Look.at(place).described(states, servers)


@dataclass(frozen=True)
class _Look:
    """What a deployment's directory says of it, looked at once.

    Attributes:
        view: the directory.
        record: None where there is none that can be read.
        journal: of the change under way, if there is one that can be read.
        unreadable: why the record cannot be read, or an empty string.
        damaged: why the journal cannot, or an empty string.
    """

    view: ModelView
    record: DeploymentRecord | None
    journal: Journal | None
    unreadable: str
    damaged: str

    @classmethod
    def at(cls, view: ModelView) -> _Look:
        record, journal = None, None
        unreadable = damaged = ""
        try:
            record = view.record()
        except TritonRepoError as exc:
            unreadable = str(exc)
        try:
            journal = view.journal()
        except StoreError as exc:
            damaged = str(exc)
        return cls(view, record, journal, unreadable, damaged)

    @property
    def part_of(self) -> str:
        return self.record.part_of if self.record is not None else ""

    @property
    def is_its_own(self) -> bool:
        """Whether nothing says that it is part of another deployment; what has no record may be."""
        return not (self.record is None or self.record.part_of)

    @property
    def needed(self) -> set[str]:
        return needed_by(self.record, self.journal)

    def described(self, states: Mapping[str, Sequence[ModelState]], servers: int) -> dict[str, Any]:
        record = self.record
        own = states.get(self.view.name, [])
        members = _members(record, states, servers)
        state, reason = self._state(own, servers)
        if state == "READY":
            state, reason = _with_members(members)
        described: dict[str, Any] = {
            "name": str(self.view.name),
            "flavor": record.flavor if record else "",
            "triton_model_path": record.triton_model_path if record else self.view.uri,
            "mlflow_model_uri": record.model_uri if record else "",
            "state": state,
            "reason": self.unreadable or reason,
            "served_versions": list(ready_versions(own)),
            "requests": self._requests(),
            "versions": {
                number: _version(record.versions.get(number) if record else None)
                for number in self.view.versions()
            },
        }
        if members:
            described["members"] = members
        if self.part_of:
            described["part_of"] = self.part_of
        return described

    def _requests(self) -> dict[str, object]:
        """Whether requests of several callers are joined, and why; empty where nobody knows."""
        main = self.record.main if self.record is not None else None
        if main is None:
            return {}
        try:
            config = ModelConfig.parse(main.config)
            return joining_of(config, main.flavor, main.files).described()
        except ConfigError:  # edited; the state says so where it matters
            return {}

    def _state(self, states: Sequence[ModelState], servers: int) -> tuple[str, str]:
        """The deployment's state and, where it is not READY, why."""
        if self.damaged:
            return "INTERRUPTED", self.damaged
        journal = self.journal
        if journal is not None:
            return "INTERRUPTED", (
                f"{journal.operation} by {journal.holder} since {journal.since} is under way or "
                f"was interrupted; if it was, {journal.operation} again, delete, or mlflow-triton "
                "repair"
            )
        return _serving_state(self.record.serving if self.record else (), states, servers)


def _serving_state(
    wanted: Collection[int], states: Sequence[ModelState], servers: int
) -> tuple[str, str]:
    """How far the servers serve the versions that they should; any will do where none is named."""
    ready = [each for each in states if each.state == "READY"]
    counts = Counter(int(each.version) for each in ready)
    if ready and all(count >= servers for count in (counts[each] for each in wanted or counts)):
        return "READY", ""
    relevant = [each for each in states if not wanted or int(each.version) in wanted]
    for each in sorted(relevant, key=lambda each: each.state == "READY"):
        if each.state != "READY" and each.reason != "unloaded":
            return each.state, each.reason
    if ready:
        return "PARTLY_READY", "not every server or version is ready; update loads it again"
    return "NOT_LOADED", (
        "the server has not loaded it (a server in explicit mode starts empty); "
        "update or create loads it"
    )


def _members(
    record: DeploymentRecord | None, states: Mapping[str, Sequence[ModelState]], servers: int
) -> dict[str, dict[str, Any]]:
    """The models that came with what serves, by their names in the artifact."""
    found: dict[str, dict[str, Any]] = {}
    for seen in record.served if record is not None else ():
        for member, each in seen.models.items():
            state, reason = _serving_state(each.versions, states.get(each.name, []), servers)
            found[member] = {
                "name": each.name,
                "versions": list(each.versions),
                "state": state,
                "reason": reason,
            }
    return found


def _with_members(members: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The state of a deployment that is READY itself."""
    for each in members.values():
        if each["state"] != "READY":
            reason = each["reason"] or "update loads it again"
            return "PARTLY_READY", f"{each['name']}, which it needs, is {each['state']}: {reason}"
    return "READY", ""


def _version(version: VersionRecord | None) -> dict[str, Any]:
    if version is None:
        return {"source": "", "digest": "", "placed_at": ""}
    return {
        "source": version.source.concrete_uri,
        "digest": f"sha256:{tree_digest(version.files)}",
        "placed_at": version.placed_at,
        **({"overrides": dict(version.overrides)} if version.overrides else {}),
    }
