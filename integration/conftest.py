"""The stack, started once a run and as far as it is needed; and what is said of a run."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest
from docker.errors import DockerException
from testcontainers.core.network import Network

from mlflow_triton_plugin.testing.containers import (
    LABEL,
    MlflowContainer,
    S3Container,
    TritonContainer,
    owner,
)

from .building import image_of
from .examples import EXAMPLES, expected, given_inputs
from .leftovers import remove_of_the_dead, remove_ours
from .user import User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_TAIL_LINES = 40
_BUCKET = "models"


# -- Docker ---------------------------------------------------------------------------------------


def _why_not() -> str:
    """Why there is no Docker to run this on; empty where there is."""
    try:
        client = docker.from_env(timeout=30)
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as exc:
        return " ".join(str(exc).split())
    return ""


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C, or SIGTERM as CI sends it, ends the run; nothing keeps it from removing containers.

    That takes seconds, and whoever runs this adds a signal of their own to the terminal's.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_not()
    if not reason:
        return
    if os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.exit(f"REQUIRE_DOCKER is set, and Docker does not answer: {reason}", returncode=1)
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(
            pytest.mark.skip(f"needs Docker, which does not answer: {reason} (REQUIRE_DOCKER=1 "
                             "makes this a failure)")
        )  # fmt: skip


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """Docker; at the end nothing of this session is left there."""
    client = docker.from_env(timeout=120)
    remove_of_the_dead(client)
    try:
        yield client
    finally:
        remove_ours(client)
        client.close()


@pytest.fixture(scope="session")
def network(engine: docker.DockerClient) -> Network:
    """Of this session alone; `engine` removes it, once nothing is in it."""
    return Network(docker_network_kw={"labels": {LABEL: owner()}}).create()


# -- servers --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3(network: Network) -> Iterator[S3Container]:
    with S3Container(image_of("s3"), network=network, alias="s3") as server:
        server.make_bucket(_BUCKET)
        yield server


@pytest.fixture(scope="session")
def tracking(network: Network) -> Iterator[MlflowContainer]:
    """MLflow that serves artifacts itself."""
    with MlflowContainer(image_of("mlflow"), network=network) as server:
        yield server


@pytest.fixture(scope="session")
def tracking_s3(network: Network, s3: S3Container) -> Iterator[MlflowContainer]:
    """MLflow whose clients keep artifacts in S3 by themselves."""
    server = MlflowContainer(image_of("mlflow"), network=network)
    with server.with_s3_artifacts(f"s3://{_BUCKET}/artifacts", s3):
        yield server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="session")
def triton(network: Network, repository: Path) -> Iterator[TritonContainer]:
    """Triton on a directory of this machine."""
    with TritonContainer(image_of("triton"), repository, network=network) as server:
        yield server


@pytest.fixture(scope="session")
def triton_s3(network: Network, s3: S3Container) -> Iterator[TritonContainer]:
    """Triton on S3; an empty prefix is no repository to it, so something is there first."""
    s3.put_object(f"/{_BUCKET}/repository/README", b"A model repository.")
    where = f"{s3.internal_uri}/{_BUCKET}/repository"
    server = TritonContainer(image_of("triton"), where, network=network)
    with server.with_envs(**s3.credentials):
        yield server


# -- users ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def somebody(tmp_path_factory: pytest.TempPathFactory) -> User:
    """Somebody with the wheels, and nothing exported yet."""
    python = os.environ.get("INTEGRATION_PYTHON")
    if not python:
        pytest.exit("INTEGRATION_PYTHON is not set; run `nox -s integration`", returncode=1)
    return User(Path(python), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def local_user(
    somebody: User, tracking: MlflowContainer, triton: TritonContainer, repository: Path
) -> User:
    """Who deploys to a directory, from a tracking server that serves artifacts."""
    return somebody.export(
        MLFLOW_TRACKING_URI=tracking.url,
        TRITON_URL=triton.url.removeprefix("grpc://"),
        TRITON_MODEL_REPO=str(repository),
    )


@pytest.fixture(scope="session")
def s3_user(
    somebody: User, tracking_s3: MlflowContainer, triton_s3: TritonContainer, s3: S3Container
) -> User:
    """Who deploys to S3, from artifacts in the same S3."""
    return somebody.export(
        MLFLOW_TRACKING_URI=tracking_s3.url,
        MLFLOW_S3_ENDPOINT_URL=s3.endpoint_url,
        TRITON_URL=triton_s3.url,
        TRITON_MODEL_REPO=f"{s3.uri}/{_BUCKET}/repository",
        **s3.credentials,
    )


@pytest.fixture(scope="session")
def published(local_user: User) -> Callable[[str], str]:
    """Publish one of the examples to the tracking server, once, and say its URI."""
    known: dict[str, str] = {}

    def publish(example: str) -> str:
        if example not in known:
            said = local_user.publish(f"of-{example}", EXAMPLES / example)
            assert said.status == 0, said.err
            known[example] = f"models:/of-{example}/1"
        return known[example]

    return publish


@pytest.fixture(scope="session")
def inputs() -> Any:
    """What the examples are asked."""
    return given_inputs()


@pytest.fixture(scope="session")
def answer() -> Any:
    """What the first version of the example answers."""
    return expected()


# -- what is said of a run ------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed and not isinstance(getattr(call.excinfo, "value", None), KeyboardInterrupt):
        report.sections += _tails()
    return report  # type: ignore[return-value]


def _tails() -> list[tuple[str, str]]:
    """What every container of this session said last."""
    try:
        client = docker.from_env(timeout=30)
        found = client.containers.list(
            all=True, filters={"label": f"{LABEL}={owner()}"}, ignore_removed=True
        )
        return [
            (f"{each.name}, {each.status}: {each.attrs['Config']['Image']}",
             each.logs(tail=_TAIL_LINES).decode(errors="replace"))
            for each in found
        ]  # fmt: skip
    except DockerException as exc:
        return [("containers", f"their logs are not to be had: {exc}")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of each area did what."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            area = Path(report.nodeid.partition("::")[0]).stem.removeprefix("test_")
            counts.setdefault(area, Counter())[outcome] += 1
    if counts:
        terminalreporter.section("by area")
    for area, numbers in sorted(counts.items()):
        said = ", ".join(f"{number} {outcome}" for outcome, number in numbers.items())
        terminalreporter.write_line(f"{area}: {said}")
