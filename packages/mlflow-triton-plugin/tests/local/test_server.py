"""`LocalTriton` against the real server."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tritonclient.grpc as grpcclient

from mlflow_triton_plugin.local import LocalTriton, StartError
from mlflow_triton_plugin.local.provisioning import cache_folder, ensure_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    Eventually = Callable[[Callable[[], object]], None]
    Pids = Callable[[int], set[int]]
    PythonModel = Callable[[Path, str], None]


#: The configs are complete, and to complete one Triton starts its model twice, and sleeps a second.
STRICT = ["--disable-auto-complete-config"]


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of servers that failed are kept: here they go with the test's folder."""
    folder = tmp_path.with_name(f"{tmp_path.name}-tmp")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def _ask(server: LocalTriton, model: str) -> str:
    client = grpcclient.InferenceServerClient(server.grpc_url)
    client.load_model(model)
    answer = client.infer(model, []).as_numpy("OUT")
    client.close()
    return str(answer[0].decode())


def test_a_started_server_is_ready_over_grpc_and_http(tmp_path: Path) -> None:
    with LocalTriton(tmp_path) as server:
        assert grpcclient.InferenceServerClient(server.grpc_url).is_server_ready()
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready") as answer:  # noqa: S310
            assert answer.status == 200
        assert server.poll() is None
        assert server.metrics_url is None


def test_leaving_the_block_ends_the_server_its_stubs_and_their_shared_memory(
    tmp_path: Path,
    python_model: PythonModel,
    descendants: Pids,
    is_alive: Callable[[int], bool],
    regions_of: Callable[[int], set[str]],
) -> None:
    python_model(tmp_path / "model", "1")
    with LocalTriton(tmp_path, extra_args=STRICT) as server:
        _ask(server, "model")
        assert server.pid
        stubs = descendants(server.pid)
        regions = regions_of(server.pid)
        assert stubs
        assert regions
        log_path = server.log_path
        assert log_path
    assert not any(is_alive(pid) for pid in (server.pid, *stubs))
    assert not any(Path("/dev/shm", region).exists() for region in regions)  # noqa: S108
    assert not log_path.exists()
    assert "Started HTTPService" in "\n".join(server.log_tail())


def test_stopping_twice_and_starting_again_are_both_fine(tmp_path: Path) -> None:
    server = LocalTriton(tmp_path).start()
    assert server.is_running
    server.stop()
    server.stop()
    assert server.poll() is None
    with server, pytest.raises(StartError, match="runs already"):
        server.start()


def test_a_stub_left_by_a_killed_server_goes_with_it(
    tmp_path: Path,
    python_model: PythonModel,
    descendants: Pids,
    is_alive: Callable[[int], bool],
    regions_of: Callable[[int], set[str]],
) -> None:
    python_model(tmp_path / "model", "1")
    with LocalTriton(tmp_path, extra_args=STRICT) as server:
        _ask(server, "model")
        assert server.pid
        stubs, regions = descendants(server.pid), regions_of(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait(30) == 128 + signal.SIGKILL
        assert not any(is_alive(pid) for pid in stubs)
        assert not any(Path("/dev/shm", region).exists() for region in regions)  # noqa: S108
    assert server.log_path
    assert server.log_path.exists(), "the log of a server that died is kept"


def test_a_server_whose_supervisor_is_killed_ends_too(
    tmp_path: Path,
    python_model: PythonModel,
    descendants: Pids,
    is_alive: Callable[[int], bool],
    eventually: Eventually,
) -> None:
    python_model(tmp_path / "model", "1")
    with LocalTriton(tmp_path, extra_args=STRICT) as server:
        _ask(server, "model")
        assert server.pid
        everyone = {server.pid, *descendants(server.pid)}
        status = Path(f"/proc/{server.pid}/status").read_text("utf-8")
        supervisor = next(line for line in status.splitlines() if line.startswith("PPid:"))
        os.kill(int(supervisor.split()[1]), signal.SIGKILL)
        eventually(lambda: not any(is_alive(pid) for pid in everyone))
        assert server.wait(30) != 0


_PARENT = """
    import sys, time, threading
    import tritonclient.grpc as grpcclient
    from mlflow_triton_plugin.local import LocalTriton
    server = LocalTriton(sys.argv[1], extra_args=["--disable-auto-complete-config"])
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    grpcclient.InferenceServerClient(server.grpc_url).load_model("model")
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_server_does_not_outlive_the_process_that_started_it(
    number: signal.Signals,
    tmp_path: Path,
    python_model: PythonModel,
    descendants: Pids,
    regions_of: Callable[[int], set[str]],
    is_alive: Callable[[int], bool],
    eventually: Eventually,
) -> None:
    """Also not when it was started by a thread that has ended since."""
    python_model(tmp_path / "models" / "model", "1")
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(_PARENT), str(tmp_path / "models")]
    environ = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        everyone = descendants(parent.pid)
        assert pid in everyone
        assert len(everyone) > 2, "supervisor, server, stub"
        regions = regions_of(pid)
        assert regions
        assert is_alive(pid)
        parent.send_signal(number)
    eventually(lambda: not any(is_alive(pid) for pid in everyone))
    assert not any(Path("/dev/shm", region).exists() for region in regions)  # noqa: S108
    assert not list((tmp_path / "tmp").glob("mlflow-triton-*"))


def test_a_forked_child_that_lives_on_does_not_keep_the_server(tmp_path: Path) -> None:
    """It holds the pipe to the supervisor too, so that closing our end says nothing."""
    server = LocalTriton(tmp_path).start()
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    try:
        server.stop()
        assert not server.is_running
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_extra_arguments_reach_the_server(tmp_path: Path) -> None:
    with LocalTriton(tmp_path, extra_args=["--id", "of-mine", "--log-verbose=1"]) as server:
        client = grpcclient.InferenceServerClient(server.grpc_url)
        assert client.get_server_metadata().name == "of-mine"


def test_without_http_the_grpc_port_tells_that_the_server_is_up(tmp_path: Path) -> None:
    with LocalTriton(tmp_path, extra_args=["--allow-http=false"]) as server:
        assert grpcclient.InferenceServerClient(server.grpc_url).is_server_ready()


def test_options_with_an_argument_of_their_own_are_refused_among_the_extra_ones() -> None:
    with pytest.raises(ValueError, match="say grpc_port="):
        LocalTriton("models", extra_args=["--grpc-port=8001"])


def test_models_see_the_variables_given_and_no_foreign_packages(
    tmp_path: Path, python_model: PythonModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/with/numpy-2")
    python_model(tmp_path / "model", 'os.environ["SAID"] + os.environ.get("PYTHONPATH", "")')
    with LocalTriton(tmp_path, env={"SAID": "this"}, extra_args=STRICT) as server:
        assert _ask(server, "model") == "this"


def test_model_directories_stay_as_they_are(tmp_path: Path, python_model: PythonModel) -> None:
    """No `__pycache__`, which would end up in deployments and their digests."""
    python_model(tmp_path / "model", "1")
    before = sorted(tmp_path.rglob("*"))
    with LocalTriton(tmp_path) as server:
        _ask(server, "model")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_repository_with_spaces_in_its_path_serves_python_models(
    tmp_path: Path, python_model: PythonModel
) -> None:
    """The Python backend starts its stubs through a shell, and does not quote."""
    repository = tmp_path / "my models; 'all' of $them"
    python_model(repository / "model", "1")
    with LocalTriton(repository, extra_args=STRICT) as server:
        assert _ask(server, "model") == "1"


def test_an_environment_with_spaces_in_its_path_works_too(
    tmp_path: Path, python_model: PythonModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stubs are in it, and the same shell starts them."""
    (tmp_path / "my cache").symlink_to(cache_folder(), target_is_directory=True)
    monkeypatch.setenv("MLFLOW_TRITON_CACHE", str(tmp_path / "my cache"))
    python_model(tmp_path / "models" / "model", "1")
    with LocalTriton(tmp_path / "models", extra_args=STRICT) as server:
        assert _ask(server, "model") == "1"


def test_an_ipv6_address_is_fine(tmp_path: Path) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with LocalTriton(tmp_path, host="::1") as server:
        assert server.grpc_url.startswith("[::1]:")
        assert grpcclient.InferenceServerClient(server.grpc_url).is_server_ready()


def test_metrics_have_a_port_of_their_own_when_asked_for(tmp_path: Path) -> None:
    with LocalTriton(tmp_path, metrics_port=0) as server:
        assert server.metrics_url
        with urllib.request.urlopen(server.metrics_url) as page:  # noqa: S310
            assert b"nv_" in page.read()


def test_a_log_file_of_the_users_is_kept_and_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n", "utf-8")
    with LocalTriton(tmp_path, log_file=log) as server:
        assert server.log_path == log
    lines = log.read_text("utf-8").splitlines()
    assert lines[0] == "before"
    assert lines[-len(server.log_tail(3)) :] == server.log_tail(3)


def test_a_server_that_ends_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    server = LocalTriton(tmp_path, model_control_mode="none")
    with pytest.raises(StartError) as caught:
        server.start()
    assert caught.value.returncode == 1
    assert "exit code 1" in str(caught.value)
    assert "error: creating server" in str(caught.value)
    assert caught.value.log_path
    assert caught.value.log_path.read_text("utf-8").splitlines()[-1] == caught.value.log_tail[-1]
    assert not server.is_running


def test_a_wrong_option_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="unrecognized option '--nonsense'"):
        LocalTriton(tmp_path, extra_args=["--nonsense"]).start()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is taken: .* http port"):
            LocalTriton(tmp_path, http_port=port).start()


def test_a_free_port_that_is_taken_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our looking for a port and the server's binding it another process may come."""
    from mlflow_triton_plugin.local import _ports  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as taken:
        answers = iter([taken.getsockname()[1]])
        real = _ports.free_port
        monkeypatch.setattr(_ports, "free_port", lambda host: next(answers, 0) or real(host))
        with LocalTriton(tmp_path) as server:
            assert grpcclient.InferenceServerClient(server.grpc_url).is_server_ready()


def test_no_two_of_its_ports_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may pick one twice, for nobody listens there yet; one that was asked for, too."""
    from mlflow_triton_plugin.local import _ports  # noqa: PLC0415

    wanted, twice = _ports.free_port("127.0.0.1"), _ports.free_port("127.0.0.1")
    picked = [wanted, twice, twice]
    real = _ports.free_port
    monkeypatch.setattr(_ports, "free_port", lambda host: picked.pop(0) if picked else real(host))
    with LocalTriton(tmp_path, http_port=wanted, metrics_port=0) as server:
        urls = [server.grpc_url, server.http_url, str(server.metrics_url)]
        ports = {int(re.findall(r":(\d+)", url)[-1]) for url in urls}
        assert picked == []
        assert {wanted, twice} < ports
        assert len(ports) == 3


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1"):
        LocalTriton(tmp_path, host="192.0.2.1").start()


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="nowhere is not a directory"):
        LocalTriton(tmp_path / "nowhere").start()


def test_a_server_that_does_not_become_ready_is_given_up(tmp_path: Path) -> None:
    """What it was waited for, how long, and what it said are in the error; nothing is left."""
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho 'I am thinking'\nexec sleep 600\n", "utf-8")
    silent.chmod(0o755)
    server = LocalTriton(tmp_path, tritonserver=str(silent), startup_timeout_s=0.3)
    with pytest.raises(StartError, match=r"not ready after 0 s .*v2/health/ready") as caught:
        server.start()
    assert caught.value.log_tail == ("I am thinking",)
    assert caught.value.waited_s > 0.3
    assert not server.is_running


def test_waiting_for_a_running_server_can_time_out(tmp_path: Path) -> None:
    with LocalTriton(tmp_path) as server, pytest.raises(TimeoutError, match=r"after 0\.1 s"):
        server.wait(0.1)
    with pytest.raises(StartError, match="not started"):
        server.wait()


def test_a_tritonserver_on_path_can_be_used_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is provisioned then, and its backend directory is its own."""
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\nexec {ensure_environment().tritonserver} "$@"\n', "utf-8")
    binary.chmod(0o755)
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("PATH", str(binary.parent), prepend=os.pathsep)
    monkeypatch.setenv("MLFLOW_TRITON_CACHE", str(tmp_path / "cache"))
    with LocalTriton(tmp_path / "models", tritonserver="system") as server:
        assert grpcclient.InferenceServerClient(server.grpc_url).is_server_ready()
        assert server.pid
        arguments = Path(f"/proc/{server.pid}/cmdline").read_text("utf-8")
        assert "--backend-directory" not in arguments
    assert not (tmp_path / "cache").exists()


def test_a_missing_tritonserver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match="no tritonserver on PATH"):
        LocalTriton(tmp_path, tritonserver="system").start()
    with pytest.raises(StartError, match="not a program"):
        LocalTriton(tmp_path, tritonserver=str(tmp_path)).start()


def test_importing_is_light() -> None:
    """Neither MLflow nor a Triton client comes with it."""
    code = (
        "import sys, mlflow_triton_plugin.local;"
        "print([m for m in ('mlflow', 'tritonclient', 'numpy', 'filelock') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
