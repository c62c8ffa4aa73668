# ruff: noqa: ARG002 - the arguments are MLflow's
"""A model that needs a package of three files that no server has. It goes there by value."""

from typing import Any

from mlflow.pyfunc.model import PythonModel


class Underscored(PythonModel):
    """Answers `my_model` for `MyModel`, and what it was made with."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        import inflection  # noqa: PLC0415 - only the server has it

        return [inflection.underscore(each) + self._suffix for each in model_input["x"]]
