"""What the hand-over and the worker say to each other arrives as it was sent."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from triton_repo.flavors._pyfunc.mlflow_triton_channel import Channel, Memory, make_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

Ends = tuple[Channel, Channel]
LARGE = 3_000_000


@pytest.fixture(params=["memory", "memory kept", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    sockets = socket.socketpair()
    if request.param == "socket":
        yield Channel(sockets[0]), Channel(sockets[1])
    else:
        files = make_memory("one"), make_memory("two")
        copies = request.param == "memory kept"
        # a process has its own mapping
        here, there = ([Memory(os.dup(each)) for each in files] for _ in sockets)
        yield (
            Channel(sockets[0], here[0], here[1], copies=copies),
            Channel(sockets[1], there[1], there[0], copies=copies),
        )
    for each in sockets:
        each.close()


def passed(ends: Ends, message: dict[str, Any], *arrays: Any) -> tuple[dict[str, Any], list[Any]]:
    """What arrives, there and back again."""

    def answer() -> None:
        ends[1].send(*ends[1].receive())

    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        ends[0].send(message, arrays)
        found = ends[0].receive()
        answering.result()
    return found


@pytest.mark.parametrize("size", [0, 1, 7, LARGE])
def test_arrays_arrive_as_they_are(ends: Ends, size: int) -> None:
    numbers = np.arange(size) % 100
    arrays = [
        *(numbers.astype(kind) for kind in ("i1", "u2", "i4", "u8", "f2", "f4", "f8", "?")),
        numbers.reshape(1, -1, 1),
        np.arange(12.0).reshape(3, 4).T,
    ]
    message, found = passed(ends, {"é": [1, None, "x"]}, *arrays)
    assert message == {"é": [1, None, "x"]}
    for one, other in zip(arrays, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_bytes_arrive_as_they_are(ends: Ends) -> None:
    values = [[b"", b"a"], [b"\0\xff", b"x" * LARGE]]
    (found,) = passed(ends, {}, np.array(values, dtype=object))[1]
    assert found.tolist() == values


def test_a_number_has_no_dimension(ends: Ends) -> None:
    (found,) = passed(ends, {}, np.array(2.5))[1]
    assert (found.shape, found.item()) == ((), 2.5)


def test_memory_grows_and_what_is_much_is_given_back(ends: Ends) -> None:
    for size in (LARGE, 100, 40 * LARGE, LARGE):
        (found,) = passed(ends, {}, np.arange(size, dtype=np.uint8))[1]
        assert found.size == size
        assert int(found[-1]) == (size - 1) % 256
        for each in ends:
            each.trim()
            if each._written is not None:
                descriptor = each._written._descriptor
                assert os.fstat(descriptor).st_blocks * 512 <= 64 * 1024 * 1024
    (found,) = passed(ends, {}, np.arange(40 * LARGE, dtype=np.uint8))[1]
    assert int(found[-1]) == (40 * LARGE - 1) % 256


def test_an_end_that_is_gone_is_noticed(ends: Ends) -> None:
    ends[1].close()
    with pytest.raises(EOFError):
        ends[0].receive()
    with pytest.raises(OSError, match="Broken pipe"):
        ends[0].send({}, [])
