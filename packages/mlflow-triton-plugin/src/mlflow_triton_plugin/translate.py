"""The one table from every error to MLflow's, and the exception that carries it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from mlflow_triton_plugin import errors as ours
from mlflow_triton_plugin.local.errors import LocalTritonError
from mlflow_triton_plugin.predict import InvalidInputError
from triton_repo import errors as repo
from triton_repo.record import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ERROR_CODES", "DeploymentError", "translated"]

#: The first row that fits decides.
ERROR_CODES: tuple[tuple[type[Exception], int], ...] = (
    (repo.MissingModelFileError, codes.RESOURCE_DOES_NOT_EXIST),
    (repo.UnsupportedFlavorError, codes.INVALID_PARAMETER_VALUE),
    (repo.ArtifactError, codes.INVALID_PARAMETER_VALUE),
    (repo.InvalidNameError, codes.INVALID_PARAMETER_VALUE),
    (repo.ConfigError, codes.INVALID_PARAMETER_VALUE),
    (repo.DeploymentExistsError, codes.RESOURCE_ALREADY_EXISTS),
    (repo.DeploymentNotFoundError, codes.RESOURCE_DOES_NOT_EXIST),
    (repo.LockedError, codes.RESOURCE_CONFLICT),
    (RecordError, codes.INVALID_STATE),
    (repo.ObjectNotFoundError, codes.RESOURCE_DOES_NOT_EXIST),
    (repo.StoreAccessError, codes.PERMISSION_DENIED),
    (repo.StoreUnavailableError, codes.TEMPORARILY_UNAVAILABLE),
    (repo.StoreError, codes.INVALID_PARAMETER_VALUE),
    (repo.TritonRepoError, codes.INTERNAL_ERROR),
    (ours.SettingsError, codes.INVALID_PARAMETER_VALUE),
    (InvalidInputError, codes.INVALID_PARAMETER_VALUE),
    (ours.ServerUnavailableError, codes.TEMPORARILY_UNAVAILABLE),
    (ours.ServerTimeoutError, codes.DEADLINE_EXCEEDED),
    (ours.ModelNotReadyError, codes.DEADLINE_EXCEEDED),
    (ours.ModelUnknownError, codes.RESOURCE_DOES_NOT_EXIST),
    (ours.ModelLoadError, codes.INVALID_PARAMETER_VALUE),
    (ours.RequestRefusedError, codes.BAD_REQUEST),
    (ours.TritonServerError, codes.INTERNAL_ERROR),
    (LocalTritonError, codes.INVALID_STATE),
    (NotImplementedError, codes.NOT_IMPLEMENTED),
    (OSError, codes.INTERNAL_ERROR),
)


class DeploymentError(MlflowException, click.ClickException):  # type: ignore[misc]  # .message
    """An MlflowException that MLflow's CLI prints as one line, `Error: …`, with exit status 1.

    The CLI prints a traceback for every exception but click's own.
    """

    def __init__(self, message: str, error_code: int) -> None:
        one_line = " ".join(message.split())
        MlflowException.__init__(self, one_line, error_code=error_code)


@contextmanager
def translated() -> Iterator[None]:
    """Turn every expected error of the block into a `DeploymentError`, keeping its cause."""
    try:
        yield
    except DeploymentError:
        raise
    except MlflowException as exc:
        raise DeploymentError(str(exc.message), codes.ErrorCode.Value(exc.error_code)) from exc
    except Exception as exc:
        for kind, code in ERROR_CODES:
            if isinstance(exc, kind):
                raise DeploymentError(str(exc), code) from exc
        raise
