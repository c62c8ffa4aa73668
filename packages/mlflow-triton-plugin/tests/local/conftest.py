"""What the tests of the embedded Triton share: small ONNX graphs and looking at processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_DEADLINE_S = 30.0


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something is so."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"still not so after {_DEADLINE_S} s"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def descendants() -> Callable[[int], set[int]]:
    """List a process's children and theirs."""

    def children(pid: int) -> set[int]:
        found: set[int] = set()
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            found |= {int(child) for child in listing.read_text("utf-8").split()}
        return found.union(*(children(child) for child in found))

    return children


@pytest.fixture(scope="session")
def is_alive() -> Callable[[int], bool]:
    """Tell whether a process runs; a zombie does not."""

    def alive(pid: int) -> bool:
        try:
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text("utf-8")
        except OSError:
            return False

    return alive


@pytest.fixture(scope="session")
def regions_of() -> Callable[[int], set[str]]:
    """Name the shared memory regions a process has mapped."""

    def regions(pid: int) -> set[str]:
        maps = Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines()
        return {os.path.basename(line.split()[-1]) for line in maps if "/dev/shm/" in line}  # noqa: PTH119, S108

    return regions


@pytest.fixture
def python_model() -> Callable[[Path, str], None]:
    """Write a model of Triton's Python backend into a repository; what it answers is `body`."""

    def write(folder: Path, body: str) -> None:
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(
            'backend: "python"\n'
            'output [{ name: "OUT" data_type: TYPE_STRING dims: [1] }]\n'
            "instance_group [{ count: 1 kind: KIND_CPU }]\n",
            "utf-8",
        )
        (folder / "1" / "model.py").write_text(
            "import os, sys\n"
            "import numpy as np\n"
            "import triton_python_backend_utils as pb_utils\n"
            "class TritonPythonModel:\n"
            "    def execute(self, requests):\n"
            f"        answer = np.array([str({body})], dtype=object)\n"
            "        tensor = pb_utils.Tensor('OUT', answer)\n"
            "        return [pb_utils.InferenceResponse([tensor]) for _ in requests]\n",
            "utf-8",
        )

    return write
