"""Everything `triton_repo` raises on purpose.

```
TritonRepoError
├ ArtifactError
│ ├ MissingModelFileError      .path
│ └ UnsupportedFlavorError     .flavor .supported
├ InvalidNameError (ValueError)  .name
├ ConfigError (ValueError)       .field
├ DeploymentExistsError          .name
├ DeploymentNotFoundError        .name
├ LockedError                    .holder .since
├ MemberError                    .name .owner
└ StoreError                     .uri .key
  ├ ObjectNotFoundError
  ├ StoreAccessError
  └ StoreUnavailableError
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ArtifactError",
    "ConfigError",
    "DeploymentExistsError",
    "DeploymentNotFoundError",
    "InvalidNameError",
    "LockedError",
    "MemberError",
    "MissingModelFileError",
    "ObjectNotFoundError",
    "StoreAccessError",
    "StoreError",
    "StoreUnavailableError",
    "TritonRepoError",
    "UnsupportedFlavorError",
]


class TritonRepoError(Exception):
    """Base class of every error this package raises on purpose."""


class ArtifactError(TritonRepoError):
    """The MLflow model (or model directory) itself is not usable; nothing was written."""


class MissingModelFileError(ArtifactError):
    """A file that MLmodel, config.pbtxt or the ONNX graph names is not in the artifact."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class UnsupportedFlavorError(ArtifactError):
    """The flavor asked for is not one this project serves, or the model does not have it."""

    def __init__(self, message: str, *, flavor: str | None, supported: Sequence[str]) -> None:
        super().__init__(message)
        self.flavor = flavor
        self.supported = tuple(supported)


class InvalidNameError(TritonRepoError, ValueError):
    """A name that cannot be one directory at the root of a model repository."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class ConfigError(TritonRepoError, ValueError):
    """config.pbtxt (or an option that ends up in it) does not say something Triton can serve."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class DeploymentExistsError(TritonRepoError):
    """The name is taken: by a deployment, or by a directory that is not one."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class DeploymentNotFoundError(TritonRepoError):
    """No deployment has this name in this repository."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class LockedError(TritonRepoError):
    """Another writer is changing this deployment."""

    def __init__(self, message: str, *, holder: str, since: str) -> None:
        super().__init__(message)
        self.holder = holder
        self.since = since


class MemberError(TritonRepoError):
    """A model belongs to another deployment, and cannot be changed by itself."""

    def __init__(self, message: str, *, name: str, owner: str) -> None:
        super().__init__(message)
        self.name = name
        self.owner = owner


class StoreError(TritonRepoError):
    """The model repository could not be read or written."""

    def __init__(self, message: str, *, uri: str, key: str = "") -> None:
        super().__init__(message)
        self.uri = uri
        self.key = key


class ObjectNotFoundError(StoreError):
    """The file or directory is not in the repository."""


class StoreAccessError(StoreError):
    """The repository is there, and does not let us read or write."""


class StoreUnavailableError(StoreError):
    """The repository is out of reach or out of space."""
