from __future__ import annotations

import os
import uuid
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from hypothesis import settings
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.local import LocalTriton
from mlflow_triton_plugin.server import TritonServers

from .crashes import (  # noqa: F401 - two are pytest's hooks
    name_reruns,
    pytest_report_teststatus,
    pytest_runtest_protocol,
)
from .faults.points import are_all_walked
from .groups import Pipelines
from .servers import kill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient
    from mlflow_triton_plugin.server import ModelState

# CI draws the same examples each time: a failure there belongs to the change under test.
settings.register_profile("mlflow-triton-plugin", derandomize=bool(os.environ.get("CI")))
settings.load_profile("mlflow-triton-plugin")


@pytest.fixture(scope="session", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow on SQLite, artifacts in a folder, for the whole session and its subprocesses."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(folder)
        mlflow.set_tracking_uri(uri)
        mlflow.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("tests")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
        yield uri


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="session")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """A real Triton on the session's repository.

    Auto-complete is off: what is deployed must not need it, and Triton sleeps a second for each
    model that it completes. `test_auto_complete.py` has a server with it. It is killed at the end:
    models that still go would get ten seconds for it.
    """
    log_file = tmp_path_factory.mktemp("triton") / "log"
    arguments = ["--disable-auto-complete-config"]
    with LocalTriton(repository, log_file=log_file, extra_args=arguments) as server:
        yield server
        kill(server)


@pytest.fixture
def address(triton: LocalTriton) -> str:
    """TRITON_URL; the modules that run over both protocols override it."""
    return triton.grpc_url


@pytest.fixture
def environment(
    address: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Set TRITON_URL and TRITON_MODEL_REPO; call it to set others."""

    def set_to(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_to(TRITON_URL=address, TRITON_MODEL_REPO=str(repository))
    return set_to


@pytest.fixture
def client(environment: Callable[..., None]) -> TritonDeploymentClient:
    made: TritonDeploymentClient = get_deploy_client("triton")
    return made


@pytest.fixture
def name(client: TritonDeploymentClient) -> Iterator[str]:
    """A deployment name of this test alone, deleted afterwards."""
    unique = f"m{uuid.uuid4().hex[:12]}"
    yield unique
    with nullcontext() if may_have_members(client, unique) else unloads_not_waited_for():
        client.delete_deployment(unique)


def may_have_members(client: TritonDeploymentClient, name: str) -> bool:
    """Whether a deployment's state is unknown, or it is one of several models.

    Their unloads are waited for: the next test's commands would meet them in Triton's graph of
    ensembles.
    """
    try:
        return bool(client.get_deployment(name).get("members"))
    except MlflowException:
        return True


@contextmanager
def unloads_not_waited_for() -> Iterator[None]:
    """Let deletes of this block go on while Triton unloads, which takes it a second a model.

    For clearing up behind a test: no later test uses the names. That a delete waits is what
    `faults/test_server_faults.py` and `test_deployments.py` hold.
    """

    def unload(
        self: TritonServers, model: str, *, timeout_s: float, dead: Iterable[ModelState] = ()
    ) -> None:
        for server in self:
            server.unload(model)
        self.settle(model, timeout_s=timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TritonServers, "unload", unload)
        yield


@pytest.fixture
def snapshot(repository: Path) -> Callable[[str], dict[str, bytes]]:
    """Every file below one model's directory, with its content."""

    def take(model: str) -> dict[str, bytes]:
        files = [path for path in (repository / model).rglob("*") if path.is_file()]
        return {str(path.relative_to(repository)): path.read_bytes() for path in files}

    return take


@pytest.fixture(scope="session")
def registered() -> Callable[[str], str]:
    """A name for a registered model that nobody else uses."""
    return lambda stem: f"{stem}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def pipelines(name: str, registered: Callable[[str], str], tmp_path: Path) -> Pipelines:
    return Pipelines(registered("pipeline"), tmp_path, f"{name}_a", f"{name}_b")


@pytest.fixture
def standing(repository: Path, name: str) -> Callable[[], dict[str, bytes]]:
    """Every file of the deployments of this test, directories by their path and a slash."""

    def look() -> dict[str, bytes]:
        return {
            str(path.relative_to(repository)) + ("/" if path.is_dir() else ""): (
                b"" if path.is_dir() else path.read_bytes()
            )
            for path in repository.rglob("*")
            if path.relative_to(repository).parts[0].startswith(name)
        }

    return look


def error_of(raised: pytest.ExceptionInfo[Any]) -> tuple[str, str]:
    """MLflow's error code and the message."""
    return raised.value.error_code, str(raised.value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests ran again, how many points `faults/` had, and what was measured there.

    Here, and by way of the reports, since those who run the tests may be other processes.
    """
    name_reruns(terminalreporter)
    passed = terminalreporter.stats.get("passed", [])
    noted = [each for report in passed for each in getattr(report, "user_properties", [])]
    points: dict[str, dict[str, int]] = {}
    for name, value in noted:
        if name == "fault points":
            kind, label, number = value
            points.setdefault(kind, {})[label] = number
    measured = [value for name, value in noted if name == "measured"]
    if points or measured:
        terminalreporter.section("faults")
        if not are_all_walked():
            terminalreporter.write_line(
                "one point in a few; nox -s faults goes through all of them"
            )
    for kind, by_scenario in points.items():
        listed = ", ".join(f"{label} {number}" for label, number in sorted(by_scenario.items()))
        terminalreporter.write_line(f"{kind}: {listed}; {sum(by_scenario.values())} in all")
    for lines in measured:
        terminalreporter.write_line("\n  ".join(lines))
