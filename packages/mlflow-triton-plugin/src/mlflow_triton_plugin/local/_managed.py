"""A directory that is made once, by one process at a time, and is complete or not there.

It is made in a sibling and renamed, so that a reader sees all of it or nothing. Whoever is
interrupted leaves a sibling, which the next one removes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.local._progress import Progress

__all__ = ["CACHE_VARIABLE", "ensure_directory"]

#: Names the folder that such directories are kept in.
CACHE_VARIABLE = "MLFLOW_TRITON_CACHE"


def ensure_directory(
    path: Path,
    *,
    make: Callable[[Path], None],
    is_complete: Callable[[Path], bool],
    progress: Progress,
) -> None:
    """Make `path`, unless it is there and complete.

    Args:
        path: the directory wanted.
        make: fills the empty directory it is given, which is a sibling of `path` and is renamed
            to it afterwards.
        is_complete: tells a directory that can be used from a damaged one.
        progress: told when another process is being waited for.

    Raises:
        OSError: the parent directory cannot be written; `path` is as it was.
    """
    if is_complete(path):  # the common case: neither a lock nor write access is needed
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say(f"another process is making {path}; waiting for it")
        lock.acquire()
    try:
        if not is_complete(path):
            _remake(path, make)
    finally:
        lock.release()


def _remake(path: Path, make: Callable[[Path], None]) -> None:
    _remove_leftovers(path)
    staging = _new_sibling(path)
    try:
        make(staging)
        if path.is_dir():
            # moved first, then removed: a server that still runs from it keeps its open files,
            # and nobody sees half of it
            path.rename(_new_sibling(path) / "damaged")
        staging.rename(path)
    finally:
        _remove_leftovers(path)


def _new_sibling(path: Path) -> Path:
    sibling = type(path)(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    sibling.chmod(0o777 & ~_umask())
    return sibling


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f"{path.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
