"""What a TorchScript archive says of itself; neither torch nor the pickles in it are run.

`torch.jit.save` writes a zip: the code, and in `data.pkl` every module's attributes. One of these
is `training`, which code such as a Dropout's goes by. MLflow calls `eval()` on what it has loaded,
Triton's PyTorch backend does not (its `libtorch.cc`).
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["is_in_training", "is_torch_script"]

_CODE, _CONSTANTS, _ATTRIBUTES = "code", "constants.pkl", "data.pkl"
_FLAG = "training"
#: A module takes some thirty opcodes, of 3 bytes on the average.
_MOST_BYTES, _MOST_OPCODES = 64 * 1024 * 1024, 4_000_000
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
#: Would push a text that is not followed here; torch writes neither.
_NOT_FOLLOWED = ("DUP", "MEMOIZE")
_BOOLEANS = {"NEWTRUE": True, "NEWFALSE": False}


def is_torch_script(path: Path) -> bool:
    """Whether it is an archive of `torch.jit.save`, and no pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [PurePosixPath(name).parts[1:] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return (_CONSTANTS,) in members and any(parts[:1] == (_CODE,) for parts in members)


def is_in_training(path: Path) -> bool:
    """Whether any module of an archive is in training mode.

    What `torch.jit.freeze` has made has no such attribute, and no code that could go by it.

    Raises:
        ArtifactError: it cannot be told.
    """
    try:
        return any(_flags(_attributes(path)))
    except Exception as exc:  # a damaged pickle or zip raises any
        raise ArtifactError(
            f"{path.name} does not say whether its modules are in training mode ({exc}); save it "
            "again with torch.jit.save, or deploy it with --flavor python_function"
        ) from exc


def _attributes(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        (name,) = (
            each for each in archive.namelist() if PurePosixPath(each).parts[1:] == (_ATTRIBUTES,)
        )
        with archive.open(name) as file:
            pickled = file.read(_MOST_BYTES + 1)
    if len(pickled) > _MOST_BYTES:
        raise ValueError(f"{_ATTRIBUTES} is too large")
    return pickled


def _flags(pickled: bytes) -> Iterator[bool]:
    """What follows each `training` in a pickle, which torch writes once and then refers to."""
    memo: set[object] = set()
    is_flag = False
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count > _MOST_OPCODES or opcode.name in _NOT_FOLLOWED:
            raise ValueError(f"{_ATTRIBUTES} is too long, or none of torch's")
        if opcode.name in _PUT:
            (memo.add if is_flag else memo.discard)(argument)
            continue
        if is_flag and opcode.name in _BOOLEANS:
            yield _BOOLEANS[opcode.name]
        is_flag = argument in memo if opcode.name in _GET else argument == _FLAG
