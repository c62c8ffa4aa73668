"""The exception that MLflow's command line shows as one line."""

from __future__ import annotations

import click
from mlflow.exceptions import MlflowException

from triton_repo.text import as_line

__all__ = ["DeploymentError"]


# both bases keep a .message, and it is the same text
class DeploymentError(MlflowException, click.ClickException):  # type: ignore[misc]
    """An MlflowException that MLflow's CLI prints as one line, `Error: …`, with exit status 1.

    The CLI prints a traceback for every exception but click's own. Addresses in it have lost their
    passwords and queries, whoever worded it.
    """

    def __init__(self, message: str, error_code: int) -> None:
        super().__init__(as_line(message), error_code=error_code)
