"""Which deployments the servers call READY though their processes died."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from triton_repo.flavors import ANY_MODEL
from triton_repo.flavors.pyfunc import SHIM_FILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlflow_triton_plugin.server import ModelState, TritonServers
    from triton_repo.record import DeploymentRecord

__all__ = ["dead_versions", "with_dead"]

_REASON = "its process died, and Triton does not say so; update starts it again"


def dead_versions(
    servers: TritonServers,
    records: Iterable[tuple[str, DeploymentRecord | None]],
    states: Mapping[str, Sequence[ModelState]],
) -> list[ModelState]:
    """The READY versions whose processes died; one a server that has one.

    All are asked side by side, and nothing but what the record calls ours: other models would take
    the question for a request.

    Args:
        servers: asked.
        records: of the deployments, by name.
        states: what the servers say of them.
    """
    return servers.dead(
        [
            state
            for name, record in records
            for state in states.get(name, ())
            if record is not None and state.state == "READY" and _has_shim(record, state.version)
        ]
    )


def with_dead(
    states: Mapping[str, Sequence[ModelState]], dead: Iterable[ModelState]
) -> dict[str, list[ModelState]]:
    """The states as they are: a version whose process died is UNAVAILABLE."""
    found = {name: list(each) for name, each in states.items()}
    for state in dead:
        place = found[state.name].index(state)
        found[state.name][place] = replace(state, state="UNAVAILABLE", reason=_REASON)
    return found


def _has_shim(record: DeploymentRecord, version: str) -> bool:
    placed = record.versions.get(int(version))
    return (
        placed is not None
        and (placed.flavor or record.flavor) == ANY_MODEL
        and placed.files.keys() >= set(SHIM_FILES)
    )
