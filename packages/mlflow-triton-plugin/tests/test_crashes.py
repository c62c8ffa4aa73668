from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import sys
sys.path.insert(0, {tests!r})
from tests.crashes import *
from tests.crashes import name_reruns as pytest_terminal_summary
"""
SUITE = """
import os
import signal
import urllib.request
from pathlib import Path

import pytest
from mlflow_triton_plugin.local import LocalTriton

runs = []

@pytest.fixture(scope="session")
def triton(tmp_path_factory):
    with LocalTriton(tmp_path_factory.mktemp("repository")) as server:
        yield server

def test_it(triton):
    runs.append(1)
    if len(runs) <= {crashes}:
        os.kill(triton.pid, signal.{signal})
        triton.wait(10)
    urllib.request.urlopen(triton.http_url + "/v2/health/live").close()

def test_another(triton):
    urllib.request.urlopen(triton.http_url + "/v2/health/live").close()
"""


@pytest.mark.parametrize(
    ("crashes", "signal", "outcome"),
    [
        (1, "SIGSEGV", "2 passed, 1 rerun"),
        (2, "SIGSEGV", "1 failed, 1 passed, 2 rerun"),
        (1, "SIGKILL", "2 failed"),
    ],
)
def test_only_a_server_that_crashed_gives_a_test_a_second_run(
    tmp_path: Path, crashes: int, signal: str, outcome: str
) -> None:
    tests = str(Path(__file__).parents[1])
    (tmp_path / "conftest.py").write_text(CONFTEST.format(tests=tests))
    (tmp_path / "test_suite.py").write_text(SUITE.format(crashes=crashes, signal=signal))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, str(tmp_path)], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert f" {outcome} in " in done.stdout, done.stdout
    said = "test_it: tritonserver died of a SIGSEGV in its call"
    assert (said in done.stdout) == (signal == "SIGSEGV")
