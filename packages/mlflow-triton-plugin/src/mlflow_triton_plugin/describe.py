"""list and get: the records in the repository, joined with what the servers say."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from triton_repo.errors import (
    DeploymentNotFoundError,
    InvalidNameError,
    StoreError,
    TritonRepoError,
)
from triton_repo.model_view import ModelView, PlaceState
from triton_repo.names import check_name
from triton_repo.record import tree_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow_triton_plugin.server import ModelState, TritonServers
    from triton_repo.record import DeploymentRecord, VersionRecord
    from triton_repo.store import Store

__all__ = ["describe", "get_deployment", "list_deployments", "ready_versions"]

_OURS = (PlaceState.DEPLOYED, PlaceState.INTERRUPTED)


def list_deployments(store: Store, servers: TritonServers) -> list[dict[str, Any]]:
    """Every deployment of a repository, whatever its state; other models are left out.

    Raises:
        StoreError, TritonServerError: the repository or a server cannot be asked.
    """
    states = servers.states()
    store = store.snapshot()
    found = []
    for name in store.children(""):
        try:
            view = ModelView(store, check_name(name))
            ours = view.state() in _OURS
        except (InvalidNameError, StoreError):  # not a name of ours, or a directory closed to us
            continue
        if ours:
            found.append(describe(view, states.get(name, []), len(servers)))
    return found


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
    return describe(place, servers.states(name).get(name, []), len(servers))


def ready_versions(states: Iterable[ModelState]) -> tuple[int, ...]:
    """Versions that are READY on at least one server, in order."""
    return tuple(sorted({int(each.version) for each in states if each.state == "READY"}))


def describe(place: ModelView, states: Sequence[ModelState], servers: int) -> dict[str, Any]:
    """One deployment, as `get_deployment` of the plugin documents it.

    Args:
        place: its directory.
        states: what the servers say of its versions, all together.
        servers: how many servers there are.
    """
    try:
        record = place.record()
        trouble = ""
    except TritonRepoError as exc:
        record, trouble = None, str(exc)
    state, reason = _state(place, record, states, servers)
    described: dict[str, Any] = {
        "name": str(place.name),
        "flavor": record.flavor if record else "",
        "triton_model_path": record.triton_model_path if record else place.uri,
        "mlflow_model_uri": record.model_uri if record else "",
        "state": state,
        "reason": trouble or reason,
        "served_versions": list(ready_versions(states)),
        "versions": {
            number: _version(record.versions.get(number) if record else None)
            for number in place.versions()
        },
    }
    return described


def _state(
    place: ModelView,
    record: DeploymentRecord | None,
    states: Sequence[ModelState],
    servers: int,
) -> tuple[str, str]:
    """The deployment's state and, where it is not READY, why."""
    try:
        journal = place.journal()
    except StoreError as exc:
        return "INTERRUPTED", str(exc)
    if journal is not None:
        return "INTERRUPTED", (
            f"{journal.operation} by {journal.holder} since {journal.since} is under way or was "
            f"interrupted; if it was, {journal.operation} again, delete, or mlflow-triton repair"
        )
    wanted = set(record.serving) if record and record.serving else set()
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


def _version(version: VersionRecord | None) -> dict[str, Any]:
    if version is None:
        return {"source": "", "digest": "", "placed_at": ""}
    return {
        "source": version.source.concrete_uri,
        "digest": f"sha256:{tree_digest(version.files)}",
        "placed_at": version.placed_at,
        **({"overrides": dict(version.overrides)} if version.overrides else {}),
    }
