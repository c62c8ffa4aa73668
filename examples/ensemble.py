"""Deploy an ensemble and the two models it is made of, through MLflow's Python API.

Run it with `nox -s examples`. A server of its own is started, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from mlflow.deployments import get_deploy_client

from mlflow_triton_plugin.local import LocalTriton
from publish_tools import FailedModel, publish_repository

EXAMPLES = Path(__file__).resolve().parent
# An ensemble loads only when the models of its steps are there.
MODELS = ("onnx_float32_int32_int32", "python_add_sub", "add_sub_ensemble")


def main() -> None:
    """Publish the whole example repository, deploy the ensemble, ask it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        for result in publish_repository(EXAMPLES):
            print(result.name, "failed" if isinstance(result, FailedModel) else result.status)

        repository = Path(folder, "models")
        repository.mkdir()
        with LocalTriton(repository) as triton:
            os.environ["TRITON_MODEL_REPO"] = str(repository)
            client = get_deploy_client(f"triton://{triton.grpc_url}")
            for model in MODELS:
                deployment = client.create_deployment(model, f"models:/{model}/1")
                print("deployed", deployment["name"], deployment["state"])

            given = json.loads((EXAMPLES / "input.json").read_text(encoding="utf-8"))
            expected = EXAMPLES / "expected_output_ensemble.json"
            answer = client.predict("add_sub_ensemble", given)
            wanted = json.loads(expected.read_text(encoding="utf-8"))["outputs"]
            for name, values in wanted.items():
                np.testing.assert_array_equal(answer["outputs"][name], values)
            print("add_sub_ensemble answers", answer.to_json())

            for model in reversed(MODELS):
                client.delete_deployment(model)


if __name__ == "__main__":
    main()
