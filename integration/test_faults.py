"""What breaks while a command runs: it ends in time with one clear line, and nothing half done."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton_plugin.testing.containers import MlflowContainer, S3Container, TritonContainer
from triton_repo.testing.proxy import FaultyProxy, Request

from .building import image_of
from .examples import EXAMPLES, MODEL, artifact_of, eventually

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from testcontainers.core.network import Network

    from triton_repo.testing.proxy import Fault

    from .user import PythonSession, User

#: TRITON_REQUEST_TIMEOUT and -C load_timeout where a server does not answer.
PATIENCE_S = 3
#: A command's end, its own start and the tries of MLflow and boto3 included.
DEADLINE_S = 90
#: A model that takes so long to load that something happens meanwhile; what waits is the server.
SLOW_MODEL = """
import time
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        time.sleep(600)
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


@pytest.fixture
def own_triton(network: Network, tmp_path: Path) -> Iterator[TritonContainer]:
    """A server of this test alone, to be broken, on `tmp_path/repository`."""
    (tmp_path / "repository").mkdir()
    where = tmp_path / "repository"
    with TritonContainer(image_of("triton"), where, network=network).with_load_all() as server:
        yield server


@pytest.fixture
def user(local_user: User, own_triton: TritonContainer, tmp_path: Path) -> User:
    (tmp_path / "scratch").mkdir()
    return local_user.export(
        TRITON_URL=own_triton.url,
        TRITON_MODEL_REPO=str(tmp_path / "repository"),
        TRITON_REQUEST_TIMEOUT=str(PATIENCE_S),
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        TMPDIR=str(tmp_path / "scratch"),
    )


def starts(user: User, name: str, uri: str, *options: str) -> subprocess.Popen[str]:
    """`create`, on its way."""
    wanted = ("-t", "triton", "--name", name, "-m", uri)
    return user.start("mlflow", "deployments", "create", *wanted, *options)


def failed(process: subprocess.Popen[str], *words: str) -> str:
    """The one line that a command ends with, in time."""
    try:
        _, err = process.communicate(timeout=DEADLINE_S)
    except BaseException:
        process.kill()
        raise
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert process.returncode == 1, err
    assert len(errors) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in errors[0], errors[0]
    return errors[0]


def python_artifact(folder: Path, source: str) -> str:
    (folder / "model" / "1").mkdir(parents=True)
    (folder / "model" / "1" / "model.py").write_text(source)
    (folder / "model" / "config.pbtxt").write_text(
        'backend: "python"\ninstance_group [{ count: 1 kind: KIND_CPU }]\n'
        'input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]\n'
        'output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]\n'
    )
    (folder / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return str(folder)


def is_clean(tmp_path: Path, *names: str) -> bool:
    """Whether the repository holds these models whole, and nothing else; nor the scratch folder."""
    models = sorted(path.name for path in (tmp_path / "repository").iterdir() if path.is_dir())
    ours = [path for name in names for path in (tmp_path / "repository" / name).iterdir()]
    assert not [path for path in ours if path.name.startswith("_mlflow_triton")], ours
    assert not list((tmp_path / "scratch").glob("mlflow-triton-*"))
    assert models == sorted(names)
    return True


# -- Triton ---------------------------------------------------------------------------------------


def test_a_server_killed_during_a_load_costs_nothing(
    own_triton: TritonContainer,
    user: User,
    tmp_path: Path,
    published: Callable[[str], str],
    inputs: Any,
    answer: Any,
) -> None:
    with user.session() as python:
        python.call("create_deployment", "kept", published(MODEL))
        process = starts(user, "slow", python_artifact(tmp_path / "slow", SLOW_MODEL))
        eventually(lambda: "loading: slow:1" in own_triton.logs_tail(20))
        url = own_triton.url
        own_triton.kill()
        failed(process, url)
        own_triton.restart()
        user = user.export(TRITON_URL=own_triton.url)
        python.call("repair_deployment", "slow", user=user)
        assert is_clean(tmp_path, "kept")
        assert python.call("predict", "kept", inputs, user=user) == answer
        assert python.call("verify_deployment", user=user) == []


@pytest.mark.parametrize("how", ["paused", "off the network"])
def test_a_server_that_does_not_answer_is_given_up(
    how: str,
    own_triton: TritonContainer,
    user: User,
    tmp_path: Path,
    published: Callable[[str], str],
    inputs: Any,
    answer: Any,
) -> None:
    """What was deployed stays as it is, and answers again when the server is back."""
    first, second = published(MODEL), published(f"{MODEL}_v2")
    with user.session() as python:
        python.call("create_deployment", "kept", first)
        before = python.call("get_deployment", "kept")
        stop, go_on = {
            "paused": (own_triton.pause, own_triton.unpause),
            "off the network": (own_triton.disconnect, own_triton.reconnect),
        }[how]
        stop()
        try:
            for command, *arguments in (
                ("update_deployment", "kept", second),
                ("create_deployment", "never", second),
                ("predict", "kept", inputs),
                ("delete_deployment", "kept"),
            ):
                begun = time.monotonic()
                with pytest.raises(Exception, match=r"DEADLINE_EXC|TEMPORARILY_UNAV") as raised:
                    python.call(command, *arguments)
                assert user.exported["TRITON_URL"] in str(raised.value)
                assert time.monotonic() - begun < DEADLINE_S
        finally:
            go_on()
        user = user.export(TRITON_URL=own_triton.url)
        assert is_clean(tmp_path, "kept")
        assert python.call("predict", "kept", inputs, user=user) == answer
        assert python.call("get_deployment", "kept", user=user) == before
        python.call("update_deployment", "kept", second, user=user)
        python.call("delete_deployment", "kept", user=user)


def test_one_client_goes_on_when_its_server_is_back(
    own_triton: TritonContainer,
    user: User,
    published: Callable[[str], str],
    inputs: Any,
    answer: Any,
) -> None:
    """Paused and let go on: the same command, on the same address, now succeeds."""
    with user.session() as python:
        python.call("create_deployment", "kept", published(MODEL))
        own_triton.pause()
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            python.call("update_deployment", "kept")
        own_triton.unpause()
        python.call("update_deployment", "kept")
        assert python.call("predict", "kept", inputs) == answer


def test_a_server_without_room_for_the_model_says_so(
    network: Network, s3: S3Container, local_user: User, tmp_path: Path
) -> None:
    """Triton copies a model from S3 to its own disk; where that is full, nothing is deployed."""
    s3.put_object("/models/crowded/README", b"A model repository.")
    where = f"{s3.internal_uri}/models/crowded"
    server = TritonContainer(image_of("triton"), where, network=network)
    server.with_tmpfs_mount("/tmp", "size=8m")  # noqa: S108 - the container's
    artifact = artifact_of(tmp_path / "large")
    (artifact / "model" / "1" / "vocabulary").write_bytes(os.urandom(16_000_000))
    # Triton copies in the order of names, and notices nothing: what is cut off must be the model
    (artifact / "model" / "1" / "model.onnx").rename(artifact / "model" / "1" / "weights.onnx")
    config = artifact / "model" / "config.pbtxt"
    config.write_text(config.read_text() + '\ndefault_model_filename: "weights.onnx"\n')
    with server.with_envs(**s3.credentials), local_user.session() as python:
        there = local_user.export(
            TRITON_URL=server.url,
            TRITON_MODEL_REPO=f"{s3.uri}/models/crowded",
            **s3.credentials,
        )
        with pytest.raises(Exception, match="INVALID_PARAMETER_VALUE") as raised:
            python.call("create_deployment", "large", str(artifact), user=there)
        assert "cannot load large" in str(raised.value)
        assert python.call("list_deployments", user=there) == []
        assert python.call("verify_deployment", user=there) == []
        # it is the room that is missing: elsewhere the same artifact is served
        assert python.call("create_deployment", "large", str(artifact))["state"] == "READY"
        python.call("delete_deployment", "large")


def test_a_repository_without_room_is_left_as_it_was(
    own_triton: TritonContainer,
    user: User,
    tmp_path: Path,
    published: Callable[[str], str],
    inputs: Any,
    answer: Any,
) -> None:
    """The user's disk is full: a tmpfs over the repository, that this command alone sees."""
    with user.session() as python:
        python.call("create_deployment", "kept", published(MODEL))
        artifact = artifact_of(tmp_path / "large")
        (artifact / "model" / "1" / "vocabulary").write_bytes(os.urandom(16_000_000))
        full = 'mount -t tmpfs -o size=8m none "$TRITON_MODEL_REPO" && exec "$@" && exit 9'
        shell = ("--user", "--map-root-user", "--mount", "sh", "-c", full, "sh")
        command = ("deployments", "create", "-t", "triton", "--name", "large", "-m", artifact)
        process = user.start("/usr/bin/unshare", *shell, user.python.parent / "mlflow", *command)
        failed(process, "large", "No space left")
        assert is_clean(tmp_path, "kept")
        assert python.call("predict", "kept", inputs) == answer


# -- the tracking server --------------------------------------------------------------------------


def large_model(user: User, tmp_path: Path, name: str) -> str:
    """Publish one of 64 MB."""
    shutil.copytree(EXAMPLES / MODEL, tmp_path / name)
    (tmp_path / name / "1" / "vocabulary").write_bytes(os.urandom(64_000_000))
    done = user.publish(name, tmp_path / name)
    assert done.status == 0, done.err
    return f"models:/{name}/1"


def test_a_download_that_breaks_off_changes_nothing(
    user: User, tmp_path: Path, own_triton: TritonContainer
) -> None:
    """Every answer with the large file is cut in half, however often it is asked for."""
    uri = large_model(user, tmp_path, "broken")

    def cut(_number: int, request: Request) -> Fault | None:
        return "truncated" if request.path.endswith("/vocabulary") else None

    with FaultyProxy(user.exported["MLFLOW_TRACKING_URI"], cut) as front:
        process = starts(user.export(MLFLOW_TRACKING_URI=front.url), "broken", uri)
        failed(process, "vocabulary")
        assert [each for each in front.requests if each.path.endswith("/vocabulary")]
    assert is_clean(tmp_path)


def test_a_tracking_server_that_is_stopped_in_the_middle_is_named(
    network: Network, user: User, tmp_path: Path, own_triton: TritonContainer
) -> None:
    """It is killed while the large file is on its way."""
    with MlflowContainer(image_of("mlflow"), network=network) as tracking:
        own = user.export(MLFLOW_TRACKING_URI=tracking.url)
        uri = large_model(own, tmp_path, "stopped")
        with FaultyProxy(
            tracking.url,
            lambda _number, request: kill_once(tracking, request),
        ) as front:
            process = starts(own.export(MLFLOW_TRACKING_URI=front.url), "stopped", uri)
            failed(process)
            assert [each for each in front.requests if each.path.endswith("/vocabulary")]
    assert is_clean(tmp_path)


def kill_once(tracking: MlflowContainer, request: Request) -> Fault | None:
    if request.path.endswith("/vocabulary"):
        container = tracking.get_wrapped_container()
        container.reload()
        if container.status == "running":
            tracking.kill()
    return "reset" if tracking.get_wrapped_container().status != "running" else None


# -- S3 -------------------------------------------------------------------------------------------


def behind(front: FaultyProxy, user: User) -> User:
    """The same user, whose repository is reached through the proxy."""
    repository = user.exported["TRITON_MODEL_REPO"]
    return user.export(TRITON_MODEL_REPO=repository.replace(front.upstream, front.url))


def test_an_s3_that_drops_every_third_connection_is_no_matter(
    s3_user: User, s3: S3Container, inputs: Any, answer: Any
) -> None:
    with FaultyProxy(
        s3.endpoint_url, lambda number, _request: "reset" if number % 3 == 0 else None
    ) as front:
        user = behind(front, s3_user)
        assert s3_user.publish("dropped", EXAMPLES / MODEL).status == 0
        with user.session() as python:
            python.call("create_deployment", "dropped", "models:/dropped/1")
            assert python.call("predict", "dropped", inputs) == answer
            assert python.call("verify_deployment", "dropped") == []
            python.call("delete_deployment", "dropped")
        assert len(front.requests) > 3 * 3


def test_an_s3_that_drops_every_connection_from_some_moment_on_is_named(
    s3_user: User, s3: S3Container
) -> None:
    """In the midst of the upload; once it is back, one command undoes what was begun."""
    gone: list[int] = []

    def drop(number: int, request: Request) -> Fault | None:
        if request.method == "PUT" and "/1/" in request.path:
            gone.append(number)
        return "reset" if gone else None

    with FaultyProxy(s3.endpoint_url, drop) as front:
        user = behind(front, s3_user)
        process = starts(user, "cut-off", str(artifact_of(s3_user.home / "cut-off")))
        failed(process, front.url)
        assert gone
    with s3_user.session() as python:
        eventually(lambda: repaired(python, "cut-off"))
        assert "cut-off" not in {each["name"] for each in python.call("list_deployments")}
        assert python.call("verify_deployment") == []


def repaired(python: PythonSession, name: str) -> bool:
    """Whether what was left is gone; the lock of the one that was cut off lasts for a while."""
    try:
        python.call("repair_deployment", name)
    except Exception as exc:
        if "RESOURCE_CONFLICT" in str(exc):
            return False
        raise
    return True
