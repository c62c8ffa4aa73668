"""What can go wrong once MLflow is involved; each error says what it left behind.

Before that, a model that is not fit to be published raises `triton_repo.errors`.

```
PublishError
├ UploadError         .run_id               no model was registered
├ RegistrationError   .run_id .model_uri    uploaded, not registered
└ LabelError          .model_uri            registered, an alias, tag or description is missing
```
"""

from __future__ import annotations

__all__ = ["LabelError", "PublishError", "RegistrationError", "UploadError"]


class PublishError(Exception):
    """MLflow, or what it stores models in, did not do what it was asked to."""


class UploadError(PublishError):
    """The files could not be uploaded; no model version was registered.

    Attributes:
        run_id: the run that is left, marked FAILED; empty when none was made.
    """

    def __init__(self, message: str, *, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class RegistrationError(PublishError):
    """The model was uploaded and could not be registered.

    Attributes:
        run_id: the run that logged it.
        model_uri: where it is; it can be registered from there.
    """

    def __init__(self, message: str, *, run_id: str, model_uri: str) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.model_uri = model_uri


class LabelError(PublishError):
    """The version is registered and can be deployed; an alias, tag or description is missing.

    Attributes:
        model_uri: the version, `models:/<name>/<number>`.
    """

    def __init__(self, message: str, *, model_uri: str) -> None:
        super().__init__(message)
        self.model_uri = model_uri
