"""The harness keeps its word: nothing is left, nothing is open to others, failures are told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testcontainers.core.network import Network

from mlflow_triton_plugin.testing import containers
from mlflow_triton_plugin.testing.containers import (
    LABEL,
    ContainerNotReadyError,
    MlflowContainer,
    S3Container,
    ServerContainer,
    TritonContainer,
    owner,
)

from .building import BUILT, image_of
from .examples import eventually
from .leftovers import remove_of_the_dead

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

ROOT = Path(__file__).parent.parent
_DEADLINE_S = 120
_MAX_IMAGE_BYTES = 1_000_000_000


def containers_of(engine: docker.DockerClient, pid: int) -> list[str]:
    label = owner().rpartition(":")[0] + f":{pid}"
    found = engine.containers.list(
        all=True, filters={"label": f"{LABEL}={label}"}, ignore_removed=True
    )
    return [str(each.name) for each in found]


def networks_of(engine: docker.DockerClient, pid: int) -> list[str]:
    label = owner().rpartition(":")[0] + f":{pid}"
    return [str(each.name) for each in engine.networks.list(filters={"label": f"{LABEL}={label}"})]


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[str]]:
    """A pytest session of this suite's, in the midst of a test with a container, until a signal."""
    test = ROOT / "integration" / f"test_waits_{os.getpid()}.py"
    test.write_text(
        "import signal\n"
        "from mlflow_triton_plugin.testing.containers import S3Container\n"
        "from .building import image_of\n"
        "def test_waits(network, capfd):\n"
        "    with S3Container(image_of('s3'), network=network), capfd.disabled():\n"
        "        print('waiting', flush=True)\n"
        "        signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        test.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_session_that_is_interrupted_leaves_nothing(
    number: signal.Signals, waiting: subprocess.Popen[str], engine: docker.DockerClient
) -> None:
    """A second signal, as nox adds one to the terminal's, does not keep it from removing."""
    assert waiting.stdout is not None
    said = iter(waiting.stdout.readline, "")
    assert any("waiting" in line for line in said)
    assert containers_of(engine, waiting.pid)
    assert networks_of(engine, waiting.pid)
    os.killpg(waiting.pid, number)
    eventually(lambda: not containers_of(engine, waiting.pid) or waiting.poll() is not None)
    if waiting.poll() is None:
        os.killpg(waiting.pid, number)
    out, _ = waiting.communicate(timeout=_DEADLINE_S)
    assert waiting.returncode == pytest.ExitCode.INTERRUPTED, out
    assert not containers_of(engine, waiting.pid)
    assert not networks_of(engine, waiting.pid)


def test_what_a_killed_session_left_goes_with_the_next(
    waiting: subprocess.Popen[str], engine: docker.DockerClient
) -> None:
    assert waiting.stdout is not None
    assert any("waiting" in line for line in iter(waiting.stdout.readline, ""))
    waiting.kill()
    waiting.communicate()
    assert containers_of(engine, waiting.pid)
    remove_of_the_dead(engine)
    assert not containers_of(engine, waiting.pid)
    assert not networks_of(engine, waiting.pid)


class InterruptedContainer(S3Container):
    """Ctrl-C comes after Docker has made it, and before anybody knows its id."""

    def _configure(self) -> None:
        create = self.get_docker_client().create

        def interrupted(*arguments: object, **options: object) -> object:
            create(*arguments, **options)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        self.get_docker_client().create = interrupted  # type: ignore[method-assign, assignment]


def test_ctrl_c_while_a_container_is_made_leaves_none(engine: docker.DockerClient) -> None:
    before = containers_of(engine, os.getpid())
    with pytest.raises(KeyboardInterrupt):
        InterruptedContainer(image_of("s3")).start()
    assert containers_of(engine, os.getpid()) == before


#: So many starts are interrupted, each a little later than the one before.
_MOMENTS = 16
_INTERRUPTED = """
import signal, sys, time
from mlflow_triton_plugin.testing.containers import S3Container

image, moments = sys.argv[1], int(sys.argv[2])
begun = time.monotonic()
with S3Container(image):
    begins_within_s = (time.monotonic() - begun) / 10  # made; the rest is the server's own start
signal.signal(signal.SIGALRM, signal.default_int_handler)  # Ctrl-C, to the millisecond
for moment in range(moments):
    signal.setitimer(signal.ITIMER_REAL, begins_within_s * (moment + 1) / moments)
    try:
        S3Container(image).start()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
sys.stdin.read()
"""


def test_ctrl_c_leaves_no_container_whenever_it_comes(engine: docker.DockerClient) -> None:
    """Docker makes what it was asked for, also where nobody waits for its answer any more."""
    command = [sys.executable, "-c", _INTERRUPTED, image_of("s3"), str(_MOMENTS)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(_MOMENTS)]
            assert said == ["interrupted\n"] * _MOMENTS
            assert containers_of(engine, process.pid) == []
        finally:
            process.kill()
            process.wait()
            remove_of_the_dead(engine)


def test_arguments_for_docker_are_added_to_what_a_server_has(engine: docker.DockerClient) -> None:
    """Without its labels nobody would find it, and it would stay."""
    before = containers_of(engine, os.getpid())
    server = S3Container(image_of("s3")).with_kwargs(mem_limit="1g", labels={"team": "ours"})
    with server.with_kwargs(hostname="storage", labels=["temporary"]):
        (name,) = set(containers_of(engine, os.getpid())) - set(before)
        made = engine.containers.get(name)
        assert made.labels["team"] == "ours"
        assert made.labels["temporary"] == ""
        assert made.attrs["HostConfig"]["Memory"] == 2**30
        assert made.attrs["HostConfig"]["Init"]
        assert made.attrs["Config"]["Hostname"] == "storage"
    assert containers_of(engine, os.getpid()) == before


def test_the_administrators_password_is_on_no_command_line(network: Network) -> None:
    password = "admin-secret-5d20"  # noqa: S105 - of a server that lives for this test
    server = MlflowContainer(image_of("mlflow"), network=network)
    with server.with_basic_auth("admin", password):
        lines = server.processes()
        assert any("basic-auth" in line for line in lines), lines
        assert not [line for line in lines if password in line]


def test_a_server_that_does_not_start_is_told_by_its_log_and_removed(
    engine: docker.DockerClient, tmp_path: Path
) -> None:
    before = containers_of(engine, os.getpid())
    server = TritonContainer(image_of("triton"), tmp_path)
    server.with_option("--grpc-restricted-protocol=no-such-protocol:a=b")
    begun = time.monotonic()
    with pytest.raises(ContainerNotReadyError, match="no-such-protocol"):
        server.start()
    assert time.monotonic() - begun < _DEADLINE_S / 4  # it ended, and was not waited for
    assert containers_of(engine, os.getpid()) == before


def test_one_that_hangs_is_given_up_in_time(engine: docker.DockerClient, tmp_path: Path) -> None:
    before = containers_of(engine, os.getpid())
    server = TritonContainer(image_of("triton"), tmp_path, timeout_s=2)
    with pytest.raises(ContainerNotReadyError, match="status running"):
        server.with_command(["sh", "-c", "echo hello; sleep 600"]).start()
    assert containers_of(engine, os.getpid()) == before


def test_servers_listen_on_loopback_only(
    triton: TritonContainer, tracking: MlflowContainer, s3: S3Container
) -> None:
    for server, number in ((triton, 2), (tracking, 1), (s3, 1)):
        container = server.get_wrapped_container()
        container.reload()
        bound = [each for each in container.attrs["NetworkSettings"]["Ports"].values() if each]
        assert len(bound) == number
        assert {host["HostIp"] for each in bound for host in each} == {"127.0.0.1"}


def test_servers_inherit_nothing_of_the_callers_environment(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "TRITON_HEADERS"):
        monkeypatch.setenv(name, "of-the-caller")
    with S3Container(image_of("s3"), network=network) as server:
        seen = server.exec(["env"]).output.decode()
    assert "of-the-caller" not in seen


def test_the_images_are_small(engine: docker.DockerClient) -> None:
    for name, image in BUILT.items():
        if not os.environ.get(image.variable or "-"):
            size_bytes = engine.images.get(image_of(name)).attrs["Size"]
            assert size_bytes < _MAX_IMAGE_BYTES, (name, size_bytes)


def test_images_and_versions_are_named_in_one_place() -> None:
    """No test or Dockerfile names a registry, or a release of an image's package."""
    pinned = re.compile(r"nvcr\.io|ghcr\.io|motoserver/|nvidia-pytriton|FROM (?!\$\{|python)\w")
    places = [*ROOT.glob("integration/**/*"), *ROOT.glob("noxfile.py")]
    named = {
        path.name
        for path in places
        if path.is_file() and path.suffix != ".pyc" and pinned.search(path.read_text())
    }
    assert named == {"building.py", "README.md", "Dockerfile", Path(__file__).name}
    for path in ROOT.glob("integration/images/*/Dockerfile"):
        instructions = [line for line in path.read_text().splitlines() if line.startswith("FROM")]
        assert all(line.split()[1] in ("${BASE_IMAGE}", "python") for line in instructions)


@pytest.mark.parametrize("name", ["triton", "mlflow", "s3"])
def test_a_variable_names_another_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUILT[name].variable, BUILT[name].published)
    assert image_of(name) == BUILT[name].published


def test_the_example_of_the_containers_runs(
    monkeypatch: pytest.MonkeyPatch, engine: docker.DockerClient
) -> None:
    """As it is printed, with whatever images are tested here."""
    assert containers.__doc__ is not None
    code = containers.__doc__.split("```python\n")[1].split("```")[0]
    for name in ("s3", "triton"):
        code = re.sub(
            rf'"{re.escape(BUILT[name].published.partition(":")[0])}:[^"]+"',
            repr(image_of(name)),
            code,
        )
    code += "        served = triton.is_ready()\n"
    for name in ("TRITON_URL", "TRITON_MODEL_REPO"):
        monkeypatch.setenv(name, "")
    names = {**vars(containers), "Network": Network, "os": os}
    exec(code, names)  # noqa: S102 - our own
    assert names["served"]
    assert os.environ["TRITON_URL"].startswith("grpc://localhost:")


def session_without_docker(**variables: str) -> subprocess.CompletedProcess[str]:
    test = "integration/test_harness.py::test_the_images_are_small"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=_DEADLINE_S,
        env={**os.environ, "DOCKER_HOST": "tcp://127.0.0.1:9", **variables},
    )  # fmt: skip


def test_without_docker_the_suite_is_skipped_and_says_why() -> None:
    done = session_without_docker(REQUIRE_DOCKER="0")
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "needs Docker, which does not answer" in done.stdout


def test_without_docker_ci_fails() -> None:
    done = session_without_docker(REQUIRE_DOCKER="1")
    assert done.returncode == 1, done.stdout
    assert "REQUIRE_DOCKER is set, and Docker does not answer" in done.stdout + done.stderr


def test_a_wait_says_what_it_waited_for(triton: TritonContainer) -> None:
    """Every class has a check of its own."""
    for kind in (TritonContainer, MlflowContainer, S3Container):
        assert kind.is_ready is not ServerContainer.is_ready
    assert triton.is_ready()
    triton.pause()
    try:
        assert not triton.is_ready()
    finally:
        triton.unpause()
    triton.wait_until_ready()
    assert triton.is_ready()
