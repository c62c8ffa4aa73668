"""Going back to a version on disk, beside the load that Triton needs for it in any case."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tritonclient.grpc
from common import artifact, heading, median_ms, row, taking_turns
from mlflow.deployments import get_deploy_client

from publish_tools.publish import publish_model
from triton_repo.config import ModelConfig

if TYPE_CHECKING:
    from mlflow_triton_plugin.local import LocalTriton

SIZES = {"10 kB": 10_000, "500 MB": 500_000_000}


def run(triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the table: the size of the model should make no difference."""
    heading("roll-back beside Triton's own load (median)")
    client = get_deploy_client("triton")
    for label, size_bytes in SIZES.items():
        name = label.replace(" ", "")
        for version in (1, 2):
            uri = artifact(folder / f"{name}-{version}", size_bytes // (20 if quick else 1))
            publish_model(name, Path(uri, "model"))
        for deployment in (name, f"{name}-raw"):
            client.create_deployment(deployment, f"models:/{name}/1")
            client.update_deployment(deployment, f"models:/{name}/2")
        ours, limit = taking_turns(5 if quick else 15, *_calls(triton, client, name))
        row(label, median_ms(ours), median_ms(limit), limit="Triton's load", aim="-")
        for deployment in (name, f"{name}-raw"):
            client.delete_deployment(deployment)


def _calls(triton: LocalTriton, client: Any, name: str) -> tuple[Any, Any]:
    """One deployment goes to and fro with ours, its twin with nothing but Triton's load."""
    config = ModelConfig.parse(Path(triton.model_repository, name, "config.pbtxt").read_bytes())
    twin = config.with_name(f"{name}-raw")
    raw = tritonclient.grpc.InferenceServerClient(triton.grpc_url)
    ours, theirs = cycle([1, 2]), cycle([1, 2])

    def back() -> None:
        client.update_deployment(name, f"models:/{name}/{next(ours)}")

    def load() -> None:
        raw.load_model(f"{name}-raw", config=twin.pinned([next(theirs)]).to_json())

    return back, load
