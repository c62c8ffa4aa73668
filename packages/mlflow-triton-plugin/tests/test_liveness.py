"""A dead process speaks for its own server only, and only servers that understand are asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from mlflow_triton_plugin.errors import (
    ModelNotReadyError,
    ModelProcessDiedError,
    TritonServerError,
)
from mlflow_triton_plugin.predict import ModelSchema
from mlflow_triton_plugin.server import ModelState, ServerFacts, TritonServer, TritonServers

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Server:
    """Stands in for a Triton of which the process of a model died, or did not."""

    endpoint: str
    state: str = "READY"
    is_dead: bool = False
    version: str | None = "2.51.0"
    asked: list[str] = field(default_factory=list)

    def index(self) -> list[ModelState]:
        return [ModelState("m", "1", self.state)]

    def facts(self) -> ServerFacts:
        if self.version is None:
            raise TritonServerError("restricted", endpoint=self.endpoint)
        return ServerFacts(self.endpoint, "triton", self.version)

    def unload(self, model: str) -> None:
        assert model == "m"

    def schema(self, model: str, version: str) -> ModelSchema:
        assert (model, version) == ("m", "1")
        return ModelSchema("m", "1", (), ())

    def infer(self, model: str, version: str, *_: Any, **__: Any) -> None:
        self.asked.append(f"{model}/{version}")
        if self.is_dead:
            raise ModelProcessDiedError(
                "died", endpoint=self.endpoint, status="", model=model, reason="died"
            )


def servers_of(*servers: Server) -> TritonServers:
    return TritonServers(cast("Sequence[TritonServer]", servers))


def dead(*servers: Server) -> list[str]:
    both = servers_of(*servers)
    return [state.endpoint for state in both.dead(both.states()["m"])]


def test_a_dead_process_is_that_of_its_own_server() -> None:
    one, other = Server("a", is_dead=True), Server("b")
    assert dead(one, other) == ["a"]
    assert (one.asked, other.asked) == (["m/1"], ["m/1"])


def test_an_unload_is_waited_for_on_the_server_whose_process_lives() -> None:
    """Only the server whose process died never ends it."""
    both = servers_of(Server("a", state="UNLOADING"), Server("b", state="UNLOADING"))
    died = [ModelState("m", "1", "READY", endpoint="a")]
    with pytest.raises(ModelNotReadyError, match="b is still busy"):
        both.unload("m", timeout_s=0.1, dead=died)
    servers_of(Server("a", state="UNLOADING")).unload("m", timeout_s=0.1, dead=died)


@pytest.mark.parametrize("version", ["2.35.0", "2.9.0", "main", "", None])
def test_a_triton_without_parameters_of_requests_is_not_asked(version: str | None) -> None:
    """The model itself would answer. So it is where the release is not known."""
    server = Server("a", is_dead=True, version=version)
    assert dead(server) == []
    assert server.asked == []


@pytest.mark.parametrize("version", ["2.36.0", "3.0.0"])
def test_a_newer_triton_is(version: str) -> None:
    assert dead(Server("a", is_dead=True, version=version)) == ["a"]
