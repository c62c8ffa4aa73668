"""predict beside a raw tritonclient that keeps its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tritonclient.grpc
from common import artifact, heading, median_ms, row, taking_turns
from mlflow.deployments import get_deploy_client

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mlflow_triton_plugin.local import LocalTriton

SIZES = {"1x16 float32": (1, 16), "1 MB": (1, 262_144), "64 MB": (64, 262_144)}


def run(triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the table."""
    heading("predict, gRPC, identity model (median)")
    client = get_deploy_client(f"triton://{triton.grpc_url}")
    client.create_deployment("identity", artifact(folder / "identity"))
    raw = tritonclient.grpc.InferenceServerClient(triton.grpc_url)
    for label, shape in SIZES.items():
        x = np.random.default_rng(0).random(shape, np.float32)
        rounds = max(5, min(2000, 40_000_000 // x.nbytes) // (10 if quick else 1))
        calls = (
            lambda x=x: client.predict("identity", {"x": x})["outputs"]["y"],
            lambda x=x: raw_infer(raw, x),
        )
        assert np.array_equal(calls[0](), calls[1]())
        ours, limit = taking_turns(rounds, *calls)
        row(label, median_ms(ours), median_ms(limit), limit="tritonclient", aim="1.10x")
    client.delete_deployment("identity")


def raw_infer(
    client: tritonclient.grpc.InferenceServerClient, x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What one would write without the plugin."""
    tensor = tritonclient.grpc.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    answer: NDArray[np.float32] = client.infer("identity", [tensor]).as_numpy("y")
    return answer
