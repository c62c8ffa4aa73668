# ruff: noqa: INP001 - no part of the package: Triton's stub and the worker import it by themselves
"""What the hand-over in Triton's stub and the model's worker say to each other.

A message is a JSON object and arrays. It goes over a Unix socket; arrays that are large go through
memory that both processes have mapped. That memory has no name: it is gone with the last of the
two, however they end, and nothing of it is in a file system.

Both sides may have another Python and another numpy: this module takes Python 3.8 and any numpy.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import struct
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Channel", "Memory", "make_memory"]

#: The length of the JSON, that of the arrays behind it, and that of the arrays in memory.
_HEADER = struct.Struct("<IQQ")
_MFD_CLOEXEC = 1
#: What is larger goes through memory: a socket copies twice, in pieces.
_LARGE_BYTES = 64 * 1024
#: How much memory is kept between two messages; what is beyond is given back to the system.
_KEPT_BYTES = 64 * 1024 * 1024
_PAGE_BYTES = 1024 * 1024
#: Each array begins at a multiple of it: any type may be read there.
_ALIGNED = 64
#: The type of an array of bytes: lengths, 32 bit each, and then the bytes.
_BYTES = "O"
_LENGTHS = np.dtype("<u4")


def make_memory(name: str) -> int:
    """A file descriptor of memory without a name; `name` is for those who look into /proc.

    Raises:
        OSError: there is none to be had.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    # conda's Python is built for systems whose C library had no such function
    function = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)
    descriptor: int = -1 if function is None else function(name.encode(), _MFD_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "no memory without a name")
    return descriptor


class Memory:
    """Memory that one side writes and the other reads.

    Args:
        descriptor: what `make_memory` gave, here or in the other process.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    def view(self, size: int) -> NDArray[np.uint8]:
        """The memory's first bytes; it grows where it has not as many."""
        if self._map is None or len(self._map) < size:
            has = os.fstat(self._descriptor).st_size
            if has < size:
                has = -(-size // _PAGE_BYTES) * _PAGE_BYTES
                os.ftruncate(self._descriptor, has)
            # arrays that are views of the smaller mapping keep it
            self._map = mmap.mmap(self._descriptor, has)
        return np.frombuffer(self._map, np.uint8, size)

    def trim(self) -> None:
        """Give pages beyond the first 64 MB back to the system; nobody reads them any more."""
        if self._map is not None and len(self._map) > _KEPT_BYTES:
            self._map.madvise(mmap.MADV_REMOVE, _KEPT_BYTES, len(self._map) - _KEPT_BYTES)


class Channel:
    """One end.

    Args:
        connection: the socket.
        written: memory for what this end sends; None where several messages are under way.
        read: memory in which the other end writes, or None.
        copies: whether arrays that are received may be kept; otherwise they are good until the
            next message.
    """

    def __init__(
        self,
        connection: socket.socket,
        written: Memory | None = None,
        read: Memory | None = None,
        *,
        copies: bool = True,
    ) -> None:
        self._connection = connection
        self._written = written
        self._read = read
        self._copies = copies
        self._sending = Lock()
        # what was received and not yet taken: most messages come in one piece
        self._buffer = memoryview(bytearray(_LARGE_BYTES))
        self._begin = self._end = 0

    def send(self, message: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone.
            TypeError: an array has neither numbers nor bytes.
        """
        chunks = [_chunk(array) for array in arrays]
        places: list[tuple[str, tuple[int, ...], int, int]] = []
        total = 0
        for array, chunk in zip(arrays, chunks):  # noqa: B905 - Python 3.8
            kind = _BYTES if array.dtype.kind == "O" else array.dtype.str
            places.append((kind, array.shape, total, len(chunk)))
            total += len(chunk) + -len(chunk) % _ALIGNED
        text = json.dumps([message, places], separators=(",", ":")).encode()
        with self._sending:
            if total > _LARGE_BYTES and self._written is not None:
                memory = self._written.view(total)
                for (_, _, start, size), chunk in zip(places, chunks):  # noqa: B905
                    memory[start : start + size] = chunk
                self._connection.sendall(_HEADER.pack(len(text), 0, total) + text)
                return
            parts = [_HEADER.pack(len(text), total, 0), text]
            for chunk in chunks:
                parts += [chunk.tobytes(), bytes(-len(chunk) % _ALIGNED)]
            self._connection.sendall(b"".join(parts))

    def receive(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Wait for a message.

        Raises:
            EOFError: the other end is gone.
        """
        text_size, inline, shared = _HEADER.unpack(self._exactly(_HEADER.size))
        message, places = json.loads(bytes(self._exactly(text_size)))
        if shared and self._read is not None:
            payload = self._read.view(shared)
            if self._copies:
                payload = payload.copy()
        else:
            payload = np.frombuffer(self._exactly(inline), np.uint8)
        return message, [_array(payload, *place) for place in places]

    def trim(self) -> None:
        """Give memory back: the other end has read what was sent."""
        if self._written is not None:
            self._written.trim()

    def shut(self) -> None:
        """End the connection for both ends; what has arrived can still be read."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let it go; who waits for a message, here or there, waits no more."""
        self.shut()
        self._connection.close()

    def _exactly(self, size: int) -> bytearray:
        received = bytearray(size)
        rest = memoryview(received)
        while rest:
            if self._begin == self._end:
                if len(rest) >= len(self._buffer):
                    rest = rest[self._read_into(rest) :]
                    continue
                self._begin, self._end = 0, self._read_into(self._buffer)
            count = min(len(rest), self._end - self._begin)
            rest[:count] = self._buffer[self._begin : self._begin + count]
            self._begin += count
            rest = rest[count:]
        return received

    def _read_into(self, buffer: memoryview) -> int:
        try:
            count = self._connection.recv_into(buffer)
        except ConnectionError as exc:
            raise EOFError from exc
        if not count:
            raise EOFError
        return count


def _chunk(array: NDArray[Any]) -> NDArray[np.uint8]:
    """An array's bytes."""
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    values = [value.encode() if isinstance(value, str) else bytes(value) for value in array.ravel()]
    lengths = np.fromiter(map(len, values), _LENGTHS, len(values))
    return np.frombuffer(lengths.tobytes() + b"".join(values), np.uint8)


def _array(
    payload: NDArray[np.uint8], kind: str, shape: list[int], start: int, size: int
) -> NDArray[Any]:
    chunk = payload[start : start + size]
    if kind != _BYTES:
        return chunk.view(np.dtype(kind)).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64))
    ends = count * _LENGTHS.itemsize + np.cumsum(chunk[: count * 4].view(_LENGTHS), dtype=np.int64)
    blob, begin = chunk.tobytes(), count * _LENGTHS.itemsize
    values = np.empty(count, object)
    for place, end in enumerate(ends.tolist()):
        values[place] = blob[begin:end]
        begin = end
    return values.reshape(shape)
