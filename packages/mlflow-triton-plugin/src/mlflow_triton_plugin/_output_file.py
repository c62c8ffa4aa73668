"""Writing a result to where the user said: in one step, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from mlflow_triton_plugin.deployment_error import DeploymentError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OutputFileError", "write"]

#: Targets that are another program's, not files to be replaced, even where a link makes them one.
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


class OutputFileError(DeploymentError):
    """The result could not be written; a file that was there before is as it was.

    MLflow's CLI calls `to_json` itself: nobody would translate another error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, INVALID_PARAMETER_VALUE)


def write(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> None:
    """Write the chunks to a file, so that a reader sees the old content or the new, never a part.

    A file that is there keeps its permissions (not its owner), a link to it stays a link. Streams
    such as `/dev/stdout`, pipes and devices are written directly.

    Raises:
        OutputFileError: the path is a directory or cannot be written; what was there is unchanged.
    """
    target = Path(path)
    try:
        if _is_stream(target):
            _append(target, chunks)
        else:
            _replace(target.resolve(), chunks)
    except OSError as exc:
        raise OutputFileError(
            f"the prediction could not be written to {target}: {exc.strerror or exc}; name a file "
            "in a directory that exists and that you can write to"
        ) from exc


def _is_stream(target: Path) -> bool:
    if str(target.absolute()).startswith(_STREAMS):
        return True
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _append(target: Path, chunks: Iterable[bytes]) -> None:
    # Behind /dev/stdout there can be a file (`>> log`): opened otherwise, its content would go.
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_APPEND), "wb") as stream:
        stream.writelines(chunks)


def _replace(target: Path, chunks: Iterable[bytes]) -> None:
    """Write a file beside the target and give it the target's name."""
    mode = _mode_to_keep(target)
    temporary = target.with_name(f".prediction-{secrets.token_hex(8)}.tmp")
    # 0o666 less the umask, as for any new file; mkstemp would make it 0o600
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.writelines(chunks)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _mode_to_keep(target: Path) -> int | None:
    """The permissions of the file that is there, if there is one and it may be written."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not os.access(target, os.W_OK):  # a rename would not ask whether it is read-only
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(mode)
