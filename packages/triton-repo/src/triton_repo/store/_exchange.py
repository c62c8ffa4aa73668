"""Two directories or files change places: in one step where the file system can, else in three.

Where it cannot (NFS, and FUSE without it), there is a moment in which a reader finds neither. What
is to be done is noted first, beside the second of them, so that whoever comes after a killed
exchange can finish or undo it:

```
_mlflow_triton_swap-…/keys   the two keys           undone from here: nothing has happened
                     /held   what stood at `other`  undone from here: `held` goes back
other                        what stood at `key`    finished from here
key                          what was held
```

The system call is made with ctypes: the packages for it (renameat2, atomicswap) are extension
modules, or bring cffi, for one call.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any

from triton_repo.store._copy import flush_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["SWAP_PREFIX", "exchange", "finish_exchange"]

#: No number in front, and sorted after the versions: see `_local._TEMPORARY`.
SWAP_PREFIX = "_mlflow_triton_swap-"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
#: The kernel, the C library or the file system does not know it.
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def exchange(root: Path, key: str, other: str) -> None:
    """Let what is at `key` and what is at `other` change places, durably.

    Raises:
        OSError: one of them is missing, or cannot be renamed.
    """
    one, two = root / key, root / other
    for path in (one, two):
        path.lstat()
    if key == other:
        return
    if not _exchange_at_once(one, two):
        _swap(root, key, other)
    flush_directory(two.parent)
    if one.parent != two.parent:
        flush_directory(one.parent)


def finish_exchange(root: Path, swap: Path) -> None:
    """Finish or undo an exchange in three steps that was killed; `swap` is what it noted."""
    held = swap / "held"
    if os.path.lexists(held):
        key, other = json.loads((swap / "keys").read_bytes())
        one, two = root / key, root / other
        back = one if os.path.lexists(two) else two
        held.rename(back)
        flush_directory(back.parent)
        flush_directory(swap)
    shutil.rmtree(swap)
    flush_directory(swap.parent)


def _swap(root: Path, key: str, other: str) -> None:
    # a flush after every step: of a file system that needs them, nobody knows in which order
    one, two = root / key, root / other
    swap = two.with_name(f"{SWAP_PREFIX}{uuid.uuid4().hex}")
    swap.mkdir()
    try:
        with (swap / "keys").open("xb") as keys:
            keys.write(json.dumps([key, other]).encode())
            keys.flush()
            os.fsync(keys.fileno())
        _flush(swap, swap.parent)
        two.rename(swap / "held")
        _flush(swap, two.parent)
        one.rename(two)
        _flush(two.parent, one.parent)
    finally:  # what an error leaves is undone like what a kill leaves
        finish_exchange(root, swap)


def _flush(*directories: Path) -> None:
    for directory in directories:
        flush_directory(directory)


def _exchange_at_once(one: Path, two: Path) -> bool:
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    code = renameat2(os.fsencode(one), os.fsencode(two))
    if code in _CANNOT:
        return False
    if code:
        raise OSError(code, os.strerror(code), str(one), None, str(two))
    return True


@cache
def _renameat2() -> Callable[[bytes, bytes], int] | None:
    """The call, which returns its errno; None where the C library does not have it."""
    import ctypes  # noqa: PLC0415 - few commands exchange anything

    function: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return None
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )

    def call(one: bytes, two: bytes) -> int:
        failed = function(_AT_FDCWD, one, _AT_FDCWD, two, _RENAME_EXCHANGE)
        return ctypes.get_errno() if failed else 0

    return call
