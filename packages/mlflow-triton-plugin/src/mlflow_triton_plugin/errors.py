"""What this package raises, and the one table from every error to MLflow's error codes.

```
TritonServerError                                .endpoint .status .model
├ ServerUnavailableError (ConnectionError)
├ ServerAccessError
├ ServerTimeoutError (TimeoutError)
├ ModelLoadError                                 .reason: Triton's own words
├ GoldenCheckError
├ ModelNotReadyError (TimeoutError)              .state .waited_s
├ ModelUnknownError
└ RequestRefusedError                            .reason: Triton's own words
  └ ModelProcessDiedError
    └ ModelRestartingError
SettingsError (ValueError)                       .setting
DownloadError
```

`triton_repo.errors` has those of the repository, `predict.InvalidInputError` those of the data.
"""

from __future__ import annotations

__all__ = [
    "DownloadError",
    "GoldenCheckError",
    "ModelLoadError",
    "ModelNotReadyError",
    "ModelProcessDiedError",
    "ModelRestartingError",
    "ModelUnknownError",
    "RequestRefusedError",
    "ServerAccessError",
    "ServerTimeoutError",
    "ServerUnavailableError",
    "SettingsError",
    "TritonServerError",
]


class SettingsError(ValueError):
    """An environment variable, a target URI or a `-C` option does not say what it should."""

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.setting = setting


class DownloadError(Exception):
    """MLflow's artifact store does not hand out a model."""


class TritonServerError(Exception):
    """A call to a Triton server failed.

    Attributes:
        endpoint: the server that was asked.
        status: the gRPC or HTTP status, as the client library gives it.
        model: the model it was about, or an empty string.
    """

    def __init__(self, message: str, *, endpoint: str, status: str = "", model: str = "") -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.status = status
        self.model = model


class ServerUnavailableError(TritonServerError, ConnectionError):
    """Nothing that speaks the expected protocol answers at the endpoint."""


class ServerAccessError(TritonServerError):
    """The server does not let this client in, or is not one that this client trusts."""


class ServerTimeoutError(TritonServerError, TimeoutError):
    """The server did not answer within the deadline; what it does meanwhile is not known."""


class ModelUnknownError(TritonServerError):
    """The server has no such model loaded."""


class ModelLoadError(TritonServerError):
    """Triton refused to load the model."""

    def __init__(
        self, message: str, *, endpoint: str, status: str, model: str, reason: str
    ) -> None:
        super().__init__(message, endpoint=endpoint, status=status, model=model)
        self.reason = reason


class BackendMissingError(ModelLoadError):
    """The server has not the backend that the model is for."""


class GoldenCheckError(TritonServerError):
    """A model does not answer its own input example as it should."""


class RequestRefusedError(TritonServerError):
    """Triton, or the model, refused a request."""

    def __init__(
        self, message: str, *, endpoint: str, status: str, model: str, reason: str
    ) -> None:
        super().__init__(message, endpoint=endpoint, status=status, model=model)
        self.reason = reason


class ModelProcessDiedError(RequestRefusedError):
    """The process in which the Python backend runs the model has died; Triton calls it READY."""


class ModelRestartingError(ModelProcessDiedError):
    """The worker of a `python_function` has died, and another one is being started."""


class ModelNotReadyError(TritonServerError, TimeoutError):
    """The model did not reach the wanted state within the deadline."""

    def __init__(
        self, message: str, *, endpoint: str, model: str, state: str, waited_s: float
    ) -> None:
        super().__init__(message, endpoint=endpoint, model=model)
        self.state = state
        self.waited_s = waited_s
