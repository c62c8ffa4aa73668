"""Which deployments the servers call READY though their processes died."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_triton_plugin.errors import ModelRestartingError
from triton_repo.flavors import ANY_MODEL
from triton_repo.flavors.pyfunc import SHIM_FILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlflow_triton_plugin.errors import ModelProcessDiedError
    from mlflow_triton_plugin.server import ModelState, TritonServers
    from triton_repo.record import DeploymentRecord

__all__ = ["dead_versions", "with_dead"]

_DIED = "its process died, and Triton does not say so; update starts it again"
_RESTARTING = "its process died, and another one is being started"


def dead_versions(
    servers: TritonServers,
    records: Iterable[tuple[str, DeploymentRecord | None]],
    states: Mapping[str, Sequence[ModelState]],
) -> dict[ModelState, ModelProcessDiedError]:
    """The READY versions whose processes died, and what was said of it; one a server that has one.

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
    states: Mapping[str, Sequence[ModelState]], dead: Mapping[ModelState, ModelProcessDiedError]
) -> dict[str, list[ModelState]]:
    """The states as they are: a version whose process died is UNAVAILABLE."""
    found = {name: list(each) for name, each in states.items()}
    for state, told in dead.items():
        place = found[state.name].index(state)
        reason = _RESTARTING if isinstance(told, ModelRestartingError) else _DIED
        found[state.name][place] = replace(state, state="UNAVAILABLE", reason=reason)
    return found


def _has_shim(record: DeploymentRecord, version: str) -> bool:
    placed = record.versions.get(int(version))
    return (
        placed is not None
        and (placed.flavor or record.flavor) == ANY_MODEL
        and placed.files.keys() >= set(SHIM_FILES)
    )
