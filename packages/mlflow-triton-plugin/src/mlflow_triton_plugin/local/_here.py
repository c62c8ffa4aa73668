"""What tells this machine, as a process sees it, from every other."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["mark_of_here"]

_DIGITS = 12
#: Since when the kernel runs, and which of its file systems a process sees: a container has others.
_BOOT, _MOUNTS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/mnt")


def mark_of_here() -> str:
    """A digest that one user's processes share if they see the same files; empty where unknown."""
    try:
        seen = f"{_BOOT.read_text('ascii').strip()} {_MOUNTS.readlink()} {os.geteuid()}"
    except OSError:
        return ""
    return hashlib.sha256(seen.encode()).hexdigest()[:_DIGITS]
