"""Small models that the tests log, each telling by its answer which one it is."""

from __future__ import annotations

import inspect
import textwrap
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

#: One instance instead of Triton's two: loads take half the time.
ONE_INSTANCE = "instance_group [ { count: 1 kind: KIND_CPU } ]\n"


def scale_model(factor: float, *, weights: int = 4) -> onnx.ModelProto:
    """An ONNX model, `y = x * factor`, x and y FP32[batch, weights]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weights])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights])
    factors = numpy_helper.from_array(np.full((weights,), factor, np.float32), "factors")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factors"], ["y"])], "scale", [x], [y], [factors]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def log_onnx(model: onnx.ModelProto, *, registered: str | None = None, **options: Any) -> Any:
    """`mlflow.onnx.log_model` on MLflow 2 and 3, without the slow guess at requirements.

    In a run of its own where none is active: MLflow 2 keeps the model in the run, and the next one
    of the same name would overwrite it.
    """
    return log_model(
        mlflow.onnx,
        onnx_model=model,
        registered_model_name=registered,
        pip_requirements=["onnxruntime"],
        **options,
    )


def log_pyfunc(model: Any, **options: Any) -> Any:
    """The same of a `PythonModel`, with `mlflow.pyfunc.log_model`."""
    options = {"pip_requirements": [f"mlflow-skinny=={mlflow.__version__}"], **options}
    return log_model(mlflow.pyfunc, python_model=model, **options)


def log_model(flavor: Any, **options: Any) -> Any:
    """`log_model` of a flavor, on MLflow 2 and 3."""
    parameters = inspect.signature(flavor.log_model).parameters
    where = "name" if "name" in parameters else "artifact_path"
    with nullcontext() if mlflow.active_run() else mlflow.start_run():
        return flavor.log_model(**{where: "triton"}, **options)


def log_scale(registered: str, *factors: float) -> None:
    """Register one version of the scale model for each factor: version N has the N-th factor."""
    for factor in factors:
        log_onnx(scale_model(factor), registered=registered)


PYTHON_CONFIG = """\
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


def python_source(expression: str) -> str:
    """A Python-backend model.py whose y is `expression` of the array x."""
    return textwrap.dedent(f"""
        import numpy as np
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def execute(self, requests):
                responses = []
                for request in requests:
                    x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
                    y = np.asarray({expression}, dtype=np.float32)
                    responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
                return responses
    """)


def python_directory(
    directory: Path, *sources: str, config: str = PYTHON_CONFIG + ONE_INSTANCE
) -> Path:
    """A model in Triton's layout, a version directory for each source."""
    for number, source in enumerate(sources, 1):
        version = directory / str(number)
        version.mkdir(parents=True)
        (version / "model.py").write_text(source)
    (directory / "config.pbtxt").write_text(config)
    return directory
