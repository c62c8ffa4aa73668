# ruff: noqa: ARG002 - the arguments are MLflow's
"""A model that needs a package of three files that no server has. It goes there by value."""

import textwrap
from typing import Any

from mlflow.pyfunc.model import PythonModel


class Underscored(PythonModel):
    """Answers `my_model` for `MyModel`, and what it was made with."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        import inflection  # noqa: PLC0415 - only the server has it

        return [inflection.underscore(each) + self._suffix for each in model_input["x"]]


class Versions(PythonModel):
    """Answers which numpy and pandas it runs with."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        import inflection  # noqa: PLC0415 - only the server has it
        import numpy as np  # noqa: PLC0415 - goes by value
        import pandas as pd  # noqa: PLC0415 - the same

        words = f"{np.__version__} {pd.__version__}"
        return [f"{words} {inflection.underscore(each)}" for each in model_input["x"]]


#: The same for Triton's Python backend; SUFFIX is replaced.
SOURCE = textwrap.dedent("""
    import inflection
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                given = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
                names = [
                    inflection.underscore(each.decode()) + "SUFFIX" for each in given.reshape(-1)
                ]
                rows = np.array(names, dtype=object).reshape(given.shape)
                output = pb_utils.Tensor("predictions", rows)
                responses.append(pb_utils.InferenceResponse([output]))
            return responses
""")
CONFIG = """\
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "predictions" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
