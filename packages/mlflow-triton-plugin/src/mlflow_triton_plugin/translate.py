"""The one table from every error to MLflow's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from mlflow_triton_plugin import errors as ours
from mlflow_triton_plugin.deployment_error import DeploymentError
from mlflow_triton_plugin.local.errors import LocalTritonError
from mlflow_triton_plugin.predict import InvalidInputError
from triton_repo import errors as repo
from triton_repo.masking import without_secrets
from triton_repo.record import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ERROR_CODES", "translated"]

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
    (repo.MemberError, codes.RESOURCE_CONFLICT),
    (RecordError, codes.INVALID_STATE),
    (repo.ObjectNotFoundError, codes.RESOURCE_DOES_NOT_EXIST),
    (repo.StoreAccessError, codes.PERMISSION_DENIED),
    (repo.StoreUnavailableError, codes.TEMPORARILY_UNAVAILABLE),
    (repo.StoreError, codes.INVALID_PARAMETER_VALUE),
    (repo.TritonRepoError, codes.INTERNAL_ERROR),
    (ours.SettingsError, codes.INVALID_PARAMETER_VALUE),
    (InvalidInputError, codes.INVALID_PARAMETER_VALUE),
    (ours.DownloadError, codes.TEMPORARILY_UNAVAILABLE),
    (ours.ServerUnavailableError, codes.TEMPORARILY_UNAVAILABLE),
    (ours.ServerAccessError, codes.PERMISSION_DENIED),
    (ours.ServerTimeoutError, codes.DEADLINE_EXCEEDED),
    (ours.ModelNotReadyError, codes.DEADLINE_EXCEEDED),
    (ours.ModelUnknownError, codes.RESOURCE_DOES_NOT_EXIST),
    (ours.ModelLoadError, codes.INVALID_PARAMETER_VALUE),
    (ours.GoldenCheckError, codes.INVALID_PARAMETER_VALUE),
    (ours.ModelRestartingError, codes.TEMPORARILY_UNAVAILABLE),
    (ours.ModelProcessDiedError, codes.INVALID_STATE),
    (ours.RequestRefusedError, codes.BAD_REQUEST),
    (ours.TritonServerError, codes.INTERNAL_ERROR),
    (LocalTritonError, codes.INVALID_STATE),
    (NotImplementedError, codes.NOT_IMPLEMENTED),
    (OSError, codes.INTERNAL_ERROR),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn every expected error of the block into a `DeploymentError`, keeping its cause."""
    try:
        yield
    except DeploymentError:
        raise
    except MlflowException as exc:
        raise DeploymentError(
            str(exc.message), codes.ErrorCode.Value(exc.error_code)
        ) from _tellable(exc)
    except Exception as exc:
        for kind, code in ERROR_CODES:
            if isinstance(exc, kind):
                raise DeploymentError(str(exc), code) from _tellable(exc)
        raise


def _tellable(exc: BaseException) -> BaseException | None:
    """The cause, unless a traceback of it would tell a password or a signed address."""
    each: BaseException | None = exc
    while each is not None:
        try:
            said = str(each)
        except Exception:  # noqa: BLE001 - tritonclient's fails on an error that is no text
            said = repr(vars(each))
        if without_secrets(said) != said:
            return None
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return exc
