"""A scikit-learn model as `python_function` beside itself in process and `mlflow models serve`."""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import tritonclient.grpc
from common import heading
from mlflow.deployments import get_deploy_client
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from mlflow_triton_plugin.local import LocalTriton, model_packages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROWS = (1, 100, 10_000)
CLIENTS = 8
_DEADLINE_S = 120


def run(_triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the tables."""
    heading("python_function: scikit-learn, 4 columns; p50 and p99 of one client, rows/s of 8")
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(max(ROWS), 4)), columns=list("abcd"))
    model = LogisticRegression().fit(frame, frame["a"] > 0)
    requirements = [
        f"mlflow=={mlflow.__version__}",
        f"scikit-learn=={version('scikit-learn')}",
        "skops",
    ]
    info = mlflow.sklearn.log_model(
        model,
        name="bench",
        signature=infer_signature(frame, model.predict(frame)),
        pip_requirements=requirements,
    )
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    repository = folder / "pyfunc"
    repository.mkdir()
    with (
        LocalTriton(repository, packages=model_packages(requirements)) as triton,
        _scoring_server(info.model_uri) as port,
    ):
        os.environ["TRITON_MODEL_REPO"] = str(repository)
        scoring = _Scoring(port)
        client = get_deploy_client(f"triton://{triton.grpc_url}")
        client.create_deployment("bench", info.model_uri)
        for rows in ROWS:
            data = frame[:rows]
            body = json.dumps({"dataframe_split": data.to_dict("split", index=False)}).encode()
            ways: dict[str, Callable[[], Any]] = {
                "in process": partial(loaded.predict, data),
                "Triton": partial(_predicted, client, data),
                "mlflow models serve": partial(scoring.predict, body),
            }
            wanted = [np.asarray(way()).reshape(-1).tolist() for way in ways.values()]
            assert wanted[0] == wanted[1] == wanted[2]
            before = _counted(triton)
            _print(rows, ways, seconds=2.0 if quick else 8.0)
            executions, counted, _ = (
                new - old for new, old in zip(_counted(triton), before, strict=True)
            )
            joined = counted / rows / max(executions, 1)
            sys.stdout.write(f"{'':>12} {joined:.1f} requests joined at a time\n")
            _print_shim(triton, client, loaded, data)
        client.delete_deployment("bench")


def _predicted(client: Any, data: pd.DataFrame) -> Any:
    return client.predict("bench", data)["outputs"]["predictions"]


def _print(rows: int, ways: dict[str, Callable[[], Any]], *, seconds: float) -> None:
    rates = {}
    for label, way in ways.items():
        alone = _hammer(way, 1, seconds)
        many = _hammer(way, CLIENTS, seconds) if label != "in process" else alone
        rates[label] = len(many) * rows / seconds
        p50, p99 = (1000 * np.quantile(alone, [0.5, 0.99])).tolist()
        sys.stdout.write(
            f"{rows:>6} rows  {label:<20} p50 {p50:8.2f} ms  p99 {p99:8.2f} ms  "
            f"{rates[label]:>12,.0f} rows/s\n"
        )
    ratio = rates["Triton"] / rates["mlflow models serve"]
    sys.stdout.write(f"{'':>12} Triton beside mlflow models serve: {ratio:.1f}x (aim 3x)\n")


def _hammer(call: Callable[[], Any], clients: int, seconds: float) -> list[float]:
    """How long each call took that so many threads managed in that time."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    def work() -> None:
        while (begin := time.perf_counter()) < end:
            call()
            taken.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def _counted(triton: LocalTriton) -> tuple[int, int, int]:
    """What Triton has counted: executions, rows, and nanoseconds in `model.py`."""
    with tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client:
        (seen,) = client.get_inference_statistics("bench").model_stats
    return seen.execution_count, seen.inference_count, seen.inference_stats.compute_infer.ns


def _print_shim(triton: LocalTriton, client: Any, loaded: Any, data: pd.DataFrame) -> None:
    """What `model.py`, and Triton's way to it and back, add to the model's own time."""
    before = _counted(triton)
    shim, alone = [], []
    for _ in range(50):
        begin = time.perf_counter()
        loaded.predict(data)
        alone.append(time.perf_counter() - begin)
        was = _counted(triton)
        _predicted(client, data)
        shim.append((_counted(triton)[2] - was[2]) / 1e9)
    assert _counted(triton)[0] == before[0] + 50
    ours, model = (1000 * statistics.median(each) for each in (shim, alone))
    sys.stdout.write(
        f"{'':>12} in the Python backend {ours:.2f} ms, the model in process {model:.2f} ms: "
        f"{ours - model:.2f} ms more\n"
    )


@contextmanager
def _scoring_server(model_uri: str) -> Iterator[int]:
    """`mlflow models serve` on this machine; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri]
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "-p", str(port), "-h", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + _DEADLINE_S
    while True:
        try:
            _Scoring(port).get("/ping")
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


class _Scoring(threading.local):
    """A connection to the scoring server, kept by each thread."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        return self._connection.getresponse().read()

    def predict(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        try:
            self._connection.request("POST", "/invocations", body, headers)
            answer = self._connection.getresponse()
        except ConnectionError:  # it hangs up on who was silent for five seconds
            self._connection.close()
            self._connection.request("POST", "/invocations", body, headers)
            answer = self._connection.getresponse()
        return json.loads(answer.read())["predictions"]
