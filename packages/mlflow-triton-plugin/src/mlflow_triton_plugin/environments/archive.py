"""The archive that Triton's Python backend unpacks: a gzipped tar with `bin/activate` in it.

No times, owners or folders of this machine are in it. venv-pack and conda-pack are not used: the
one writes the path of this machine's Python, which the server may not have, and the other needs a
conda environment.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton_plugin.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ACTIVATE", "checked_digest", "digest_of", "write_archive"]

ACTIVATE = "bin/activate"
_CHUNK_BYTES = 2**20
_ACTIVATE_SOURCE = Path(__file__).with_name("activate.sh")
#: 1980-01-01: some tools take no earlier time.
_TIME = 315_532_800
#: What a virtual environment has of this machine: its Python, and what leads there.
_OURS = (
    "pyvenv.cfg",
    ".lock",
    ".gitignore",
    "lib64",
    "bin/python*",
    "bin/[Aa]ctivate*",
    "bin/*.bat",
    "include",
)


def write_archive(root: Path, archive: Path, *, python: str) -> None:
    """Pack a virtual environment, or a folder like one.

    Args:
        root: the environment, `lib/python3.11/site-packages` and `bin` in it.
        archive: the file to write; it is not there yet.
        python: the minor version that its packages are for, `3.11`.

    Raises:
        OSError: it could not be written.
    """
    activate = _ACTIVATE_SOURCE.read_text("utf-8").replace("@PYTHON@", python).encode()
    with (
        archive.open("xb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0, compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        info = tarfile.TarInfo(ACTIVATE)
        info.size, info.mtime, info.mode = len(activate), _TIME, 0o644
        tar.addfile(info, io.BytesIO(activate))
        for path in _packed(root):
            _add(tar, path, root)


def checked_digest(archive: Path) -> str:
    """The sha256 of an archive that Triton can unpack, and start a model with.

    Raises:
        SettingsError: it is no gzipped tar, or has no `bin/activate`.
    """
    try:
        # to its end: Triton that breaks off in an archive unpacks none any more, until a restart
        with tarfile.open(archive, "r:gz") as tar:
            names = {member.name.removeprefix("./") for member in tar}
    except (OSError, EOFError, zlib.error, tarfile.TarError) as exc:
        raise SettingsError(
            f"-C env: {archive} is no tar.gz archive ({exc}); conda-pack and venv-pack make one",
            setting="-C env",
        ) from exc
    if ACTIVATE not in names:
        raise SettingsError(
            f"-C env: {archive} has no {ACTIVATE}, which Triton's Python backend runs; make it "
            "with conda-pack or venv-pack",
            setting="-C env",
        )
    return digest_of(archive)


def digest_of(archive: Path) -> str:
    """The sha256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _packed(root: Path) -> Iterator[Path]:
    left_out = {path for pattern in _OURS for path in root.glob(pattern)}
    for path in sorted(root.rglob("*")):
        if path not in left_out and left_out.isdisjoint(path.parents):
            yield path


def _add(tar: tarfile.TarFile, path: Path, root: Path) -> None:
    info = tar.gettarinfo(path, str(path.relative_to(root)))
    if info.islnk():  # the installer's cache may have linked two files
        info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = _TIME
    info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
    if not info.isreg():
        tar.addfile(info)
        return
    with path.open("rb") as file:
        if path.parent == root / "bin":
            data = _relocatable(file.read(), root)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        else:
            tar.addfile(info, file)


def _relocatable(script: bytes, root: Path) -> bytes:
    """A program of a package, run by whichever Python comes first on PATH."""
    first, newline, rest = script.partition(b"\n")
    ours = first.startswith(b"#!") and str(root).encode() in first
    return b"#!/usr/bin/env python3" + newline + rest if ours else script
