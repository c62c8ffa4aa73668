"""Deploy an ensemble together with the two models it is made of, through MLflow's Python API.

Run it with `nox -s examples`. A server of its own is started, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from mlflow.deployments import get_deploy_client

from mlflow_triton_plugin.local import LocalTriton
from publish_tools import publish_model

EXAMPLES = Path(__file__).resolve().parent
#: The ensemble, and what its steps name.
MODELS = ("onnx_float32_int32_int32", "python_add_sub", "add_sub_ensemble")


def main() -> None:
    """Publish three models as one, deploy them as one, ask, and delete them as one."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        pipeline = Path(folder, "pipeline")
        for model in MODELS:
            shutil.copytree(EXAMPLES / model, pipeline / model)
        published = publish_model("add_sub", pipeline)
        print("published", published.uri, "of", ", ".join(published.plan.models))

        repository = Path(folder, "models")
        repository.mkdir()
        with LocalTriton(repository) as triton:
            os.environ["TRITON_MODEL_REPO"] = str(repository)
            client = get_deploy_client(f"triton://{triton.grpc_url}")
            deployment = client.create_deployment("add_sub", published.uri)
            print("deployed", deployment["name"], deployment["state"])
            for member, described in deployment["members"].items():
                print("with", member, described["state"])

            given = json.loads((EXAMPLES / "input.json").read_text(encoding="utf-8"))
            expected = EXAMPLES / "expected_output_ensemble.json"
            answer = client.predict("add_sub", given)
            wanted = json.loads(expected.read_text(encoding="utf-8"))["outputs"]
            for name, values in wanted.items():
                np.testing.assert_array_equal(answer["outputs"][name], values)
            print("add_sub answers", answer.to_json())

            client.delete_deployment("add_sub")
            print("left:", [path.name for path in repository.iterdir()] or "nothing")


if __name__ == "__main__":
    main()
