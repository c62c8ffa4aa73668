"""Copying gives the same bytes and their digest, whatever the size, in the same memory."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from triton_repo.store import _copy
from triton_repo.store._copy import copy_file, digest_file

if TYPE_CHECKING:
    from pathlib import Path

_BORDER = 4 * 1024 * 1024  # below, one thread; from here on, two
SIZES = [
    0,
    1,
    1024 * 1024 - 1,
    1024 * 1024,
    1024 * 1024 + 1,
    _BORDER - 1,
    _BORDER,
    _BORDER + 1,
    2 * _BORDER,
    2 * _BORDER + 1,
    20_000_003,
]


def content_of(size_bytes: int) -> bytes:
    """No two pieces of it are alike."""
    return np.arange(size_bytes // 4 + 1, dtype="<u4").tobytes()[:size_bytes]


@pytest.fixture(params=["kernel", "no kernel copy", "short writes"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways to copy: the kernel's own, reading and writing, and a device that takes less."""
    if request.param == "kernel":
        return

    def across_file_systems(*_: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", across_file_systems)
    if request.param == "short writes":
        real_write = os.write
        monkeypatch.setattr(os, "write", lambda to, data: real_write(to, data[:700_001]))


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.usefixtures("_way")
def test_a_copy_is_whole_and_its_digest_right(tmp_path: Path, size_bytes: int) -> None:
    """Around the border between small and large, and around every buffer's size."""
    content = content_of(size_bytes)
    (tmp_path / "source").write_bytes(content)
    pieces: list[int] = []
    digest = copy_file(tmp_path / "source", tmp_path / "target", pieces.append)
    assert (tmp_path / "target").read_bytes() == content
    assert digest.size_bytes == size_bytes == sum(pieces)
    assert digest.sha256 == hashlib.sha256(content).hexdigest()
    assert digest_file(tmp_path / "target") == digest


def test_a_file_with_holes_is_copied_as_the_zeros_it_is(tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb") as file:
        file.truncate(10_000_000)
        file.seek(9_000_000)
        file.write(b"end")
    digest = copy_file(tmp_path / "source", tmp_path / "target")
    expected = bytes(9_000_000) + b"end" + bytes(999_997)
    assert (tmp_path / "target").read_bytes() == expected
    assert digest.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_file_that_can_be_run_stays_so(tmp_path: Path) -> None:
    """Whatever else its mode says, the umask decides who may read."""
    before = os.umask(0o022)
    try:
        for mode, expected in ((0o700, 0o744), (0o755, 0o755), (0o600, 0o644), (0o444, 0o644)):
            source = tmp_path / f"source-{mode:o}"
            source.touch()
            source.chmod(mode)
            copy_file(source, tmp_path / f"target-{mode:o}")
            copied = (tmp_path / f"target-{mode:o}").stat()
            assert stat.S_IMODE(copied.st_mode) == expected
    finally:
        os.umask(before)


@pytest.mark.parametrize("there", ["file", "link", "directory"])
def test_nothing_is_written_over_or_through_a_link(tmp_path: Path, there: str) -> None:
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "precious").write_bytes(b"old")
    if there == "link":
        (tmp_path / "target").symlink_to("precious")
    elif there == "directory":
        (tmp_path / "target").mkdir()
    else:
        (tmp_path / "target").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "precious").read_bytes() == b"old"


@pytest.mark.parametrize("size_bytes", [10, 2 * _BORDER])
def test_a_failure_midway_is_raised_and_no_thread_stays(tmp_path: Path, size_bytes: int) -> None:
    """From the callback, from reading, and from the thread that hashes."""
    (tmp_path / "source").write_bytes(bytes(size_bytes))

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_file(tmp_path / "source", tmp_path / "target", stop)
    assert "sha256" not in running_threads()


def test_a_failure_to_read_back_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest that could not be taken is no digest."""
    (tmp_path / "source").write_bytes(bytes(2 * _BORDER))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_copy, "_hash_to_end", broken)
    with pytest.raises(OSError, match="Input/output"):
        copy_file(tmp_path / "source", tmp_path / "target")
    assert "sha256" not in running_threads()


def running_threads() -> set[str]:
    import threading  # noqa: PLC0415 - only here

    return {thread.name for thread in threading.enumerate()}


def test_a_vanished_source_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        copy_file(tmp_path / "gone", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


_GROWTH = """
import resource, sys
from pathlib import Path
from triton_repo.store._copy import copy_file

def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

copy_file(Path(sys.argv[1]), Path(sys.argv[3]))
before = peak_kb()
copy_file(Path(sys.argv[2]), Path(sys.argv[4]))
print(peak_kb() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 256 MB costs no more than one of 16 MB did."""
    for name, size_bytes in (("small", 16 * 1024**2), ("large", 256 * 1024**2)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size_bytes)
    paths = [str(tmp_path / name) for name in ("small", "large", "to-small", "to-large")]
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, *paths], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4 * 1024
    (tmp_path / "to-large").unlink()
