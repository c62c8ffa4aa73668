"""Directories and files change places, any number of them in one step.

The kernel exchanges one pair at once (`renameat2`). For several there is a moment, the same for
all, in which one link changes:

```
_mlflow_triton_swap-…/pairs     the keys
                     /new/0     what stood at `key`
                     /links/0   a link to now/0; it takes the place of what stands at `other`
                     /old/0     what stood at `other`: a file's second name, made before; of a
                                directory a link to ../links/0, with which it trades places
                     /now    →  old, and in the one step → new
```

While a reader finds links at the others, they lead to the old content; after the one step, to the
new. Then the new content takes the links' places. What a killed exchange left is finished after
that step, and undone before it.

Where the file system cannot trade two names at once (NFS, and FUSE without it), a directory's trade
is two renames, between which a reader finds nothing there.

The system call is made with ctypes: the packages for it (renameat2, atomicswap) are extension
modules, or bring cffi, for one call.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_repo.store._copy import copy_file, flush_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["SWAP_PREFIX", "exchange", "finish_exchange"]

#: No number in front, and sorted after the versions: see `_local._TEMPORARY`.
SWAP_PREFIX = "_mlflow_triton_swap-"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
#: The kernel, the C library or the file system does not know it.
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
#: The file system has no hard links.
_NO_SECOND_NAMES = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def exchange(root: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Let what is at each `key` and what is at its `other` change places, durably.

    Args:
        root: what the keys are relative to.
        pairs: `key` and `other`; nothing in a pair is inside anything of another one.

    Raises:
        OSError: something is missing, or cannot be renamed; nothing has changed.
    """
    for path in (root / key for pair in pairs for key in pair):
        path.lstat()
    pairs = [(key, other) for key, other in pairs if key != other]
    if len(pairs) == 1 and _trade_at_once(root / pairs[0][0], root / pairs[0][1]):
        _flush(root / key for key in pairs[0])
        return
    if pairs:
        _exchange_by_links(root, pairs)


def finish_exchange(root: Path, swap: Path) -> None:
    """Finish or undo an exchange that was killed; `swap` is the directory that it left."""
    try:
        pairs = json.loads((swap / "pairs").read_bytes())
    except (FileNotFoundError, ValueError):  # it was killed before it had moved anything
        pairs = []
    _flush([swap / "pairs"])  # what a power cut could still take back decides nothing
    is_new = (swap / "now").is_symlink() and (swap / "now").readlink() == Path("new")
    for number, (key, other) in enumerate(pairs):
        place = _Place(swap, number, root / other)
        place.settle("new" if is_new else "old")
        away = place.old if is_new else place.new
        if os.path.lexists(away) and not os.path.lexists(root / key):
            away.rename(root / key)
    _flush(root / key for pair in pairs for key in pair)
    shutil.rmtree(swap)
    flush_directory(swap.parent)


def _exchange_by_links(root: Path, pairs: Sequence[tuple[str, str]]) -> None:
    swap = (root / pairs[0][1]).with_name(f"{SWAP_PREFIX}{uuid.uuid4().hex}")
    swap.mkdir()
    try:
        with (swap / "pairs").open("xb") as file:
            file.write(json.dumps(pairs).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        places = [_Place(swap, number, root / other) for number, (_, other) in enumerate(pairs)]
        for name in ("links", "old", "new"):
            (swap / name).mkdir()
        (swap / "now").symlink_to("old")
        for place in places:
            place.prepare()
        _flush([swap, swap / "now", *(swap / name / "0" for name in ("links", "old", "new"))])
        for (key, _), place in zip(pairs, places, strict=True):
            (root / key).rename(place.new)
        _flush([swap / "new" / "0", *(root / key for key, _ in pairs)])
        for place in places:
            place.become_link()
        _flush([swap / "links" / "0", *(place.path for place in places)])
        (swap / "next").symlink_to("new")
        (swap / "next").rename(swap / "now")  # this is the step
    finally:  # what an error leaves is undone like what a kill leaves
        finish_exchange(root, swap)


@dataclass(frozen=True)
class _Place:
    """One of the names that get other content, and what belongs to it in the swap directory."""

    swap: Path
    number: int
    path: Path

    @property
    def link(self) -> Path:
        return self.swap / "links" / str(self.number)

    @property
    def new(self) -> Path:
        return self.swap / "new" / str(self.number)

    @property
    def old(self) -> Path:
        """What stood here: a file by its second name, a directory once it has traded places."""
        second = self.swap / "old" / str(self.number)
        return self.link if second.is_symlink() else second

    def prepare(self) -> None:
        """Make the link, and the old content reachable through it."""
        now = os.path.relpath(self.swap / "now" / str(self.number), self.path.parent)
        self.link.symlink_to(now)
        second = self.swap / "old" / str(self.number)
        if self.path.is_dir():
            second.symlink_to(f"../links/{self.number}")
        else:
            _second_name(self.path, second)

    def become_link(self) -> None:
        """Put the link in its place; a reader goes on finding the old content."""
        if self.path.is_dir():
            _trade(self.link, self.path)
        else:
            self.link.rename(self.path)

    def settle(self, which: str) -> None:
        """Put the old or the new content where the link is, if it is there."""
        for directory in ("links", "new"):
            _finish_trade(self.swap / directory / str(self.number), self.path)
        if not (self.path.is_symlink() and self.swap.name in self.path.readlink().parts):
            return
        content = self.new if which == "new" else self.old
        if content.is_dir():
            _trade(content, self.path)
        else:
            content.rename(self.path)


def _second_name(path: Path, second: Path) -> None:
    try:
        os.link(path, second)
    except OSError as exc:
        if exc.errno not in _NO_SECOND_NAMES:
            raise
        copy_file(path, second)


# -- one pair ---------------------------------------------------------------------------------


def _trade(one: Path, two: Path) -> None:
    """Let a directory and a link to it change places, in one step where the file system can."""
    if _trade_at_once(one, two):
        return
    held = _held(one)
    two.rename(held)
    one.rename(two)
    held.rename(one)


def _finish_trade(one: Path, two: Path) -> None:
    """Undo a trade of several steps that was killed, or finish it."""
    held = _held(one)
    if os.path.lexists(held):
        held.rename(one if os.path.lexists(two) else two)


def _held(one: Path) -> Path:
    return one.with_name(f"{one.name}.held")


def _flush(paths: Iterable[Path]) -> None:
    """Flush the directories that these are in."""
    for directory in sorted({path.parent for path in paths}):
        if directory.is_dir():
            flush_directory(directory)


def _trade_at_once(one: Path, two: Path) -> bool:
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
