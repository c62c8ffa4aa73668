"""Which machines the wheel with `tritonserver` runs on."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from mlflow_triton_plugin.local.errors import UnsupportedPlatformError

__all__ = ["PlatformFacts", "require_supported"]

#: The wheel is tagged manylinux_2_35_x86_64.
_MINIMUM_GLIBC = (2, 35)


@dataclass(frozen=True)
class PlatformFacts:
    """What decides whether the wheel runs here.

    Attributes:
        system: `Linux`, `Darwin`, `Windows`.
        machine: `x86_64`, `arm64`.
        glibc: such as `2.36`; empty where the C library is another one.
    """

    system: str
    machine: str
    glibc: str

    @classmethod
    def detect(cls) -> PlatformFacts:
        """Ask the running interpreter."""
        library, version = platform.libc_ver()
        glibc = version if library == "glibc" else ""
        return cls(platform.system(), platform.machine(), glibc)


def require_supported(facts: PlatformFacts) -> None:
    """Refuse machines that the wheel does not run on.

    Raises:
        UnsupportedPlatformError: it does not; the message says what can be done instead.
    """
    reason = _unsupported_because(facts)
    if reason:
        raise UnsupportedPlatformError(
            f"the embedded Triton needs Linux on x86_64 with glibc 2.35 or newer, {reason}: put a "
            "tritonserver on PATH and ask for it with --tritonserver system, or run the image "
            "nvcr.io/nvidia/tritonserver in Docker and set TRITON_URL to its gRPC address",
            system=facts.system,
            machine=facts.machine,
            glibc=facts.glibc,
        )


def _unsupported_because(facts: PlatformFacts) -> str:
    if facts.system != "Linux":
        return f"and this is {facts.system}"
    if facts.machine not in ("x86_64", "AMD64"):
        return f"and this machine is {facts.machine}"
    if not facts.glibc:
        return "and the C library here is another one"
    major, minor = (int(part) for part in facts.glibc.split(".")[:2])
    if (major, minor) < _MINIMUM_GLIBC:
        return f"and this one has glibc {facts.glibc}"
    return ""
