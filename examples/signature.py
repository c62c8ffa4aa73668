"""Log an ONNX model with a signature, deploy it by its alias, send it a pandas frame.

Run it with `nox -s examples`. The model has a weight file beside it (MLflow stores large tensors
so), no config.pbtxt, and feature columns as input.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import onnx
import pandas as pd
from mlflow.deployments import get_deploy_client
from onnx import TensorProto, helper, numpy_helper

from mlflow_triton_plugin.local import LocalTriton

FEATURES = 512


def linear_model() -> onnx.ModelProto:
    """A linear model: `features` FP32[batch, 512] → `score` FP32[batch, 1]."""
    weights = np.linspace(-1, 1, FEATURES, dtype=np.float32).reshape(FEATURES, 1)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weights"], ["score"])],
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    """Log, alias, deploy, predict."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.onnx.log_model(linear_model(), name="model", registered_model_name="linear")
        mlflow.MlflowClient().set_registered_model_alias("linear", "champion", "1")

        repository = Path(folder, "models")
        repository.mkdir()
        with LocalTriton(repository) as triton:
            os.environ["TRITON_MODEL_REPO"] = str(repository)
            client = get_deploy_client(f"triton://{triton.grpc_url}")
            client.create_deployment("linear", "models:/linear@champion")
            print((repository / "linear" / "config.pbtxt").read_text(encoding="utf-8"))

            table = np.random.default_rng(0).random((3, FEATURES), np.float32)
            frame = pd.DataFrame(table, columns=[f"f{number}" for number in range(FEATURES)])
            scores = client.predict("linear", frame)["outputs"]["score"]
            expected = table @ np.linspace(-1, 1, FEATURES, dtype=np.float32).reshape(-1, 1)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
            print("scores", scores.ravel())
            client.delete_deployment("linear")


if __name__ == "__main__":
    main()
