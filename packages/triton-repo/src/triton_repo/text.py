"""How the command lines of this project word things."""

from __future__ import annotations

__all__ = ["human_size", "one_line"]


def one_line(exc: BaseException) -> str:
    """An error as one line, never an empty one."""
    return " ".join(str(exc).split()) or type(exc).__name__


def human_size(size_bytes: int) -> str:
    """Such as `1.9 GB`: decimal prefixes, as disks and MLflow's pages have them."""
    if size_bytes < 1000:  # noqa: PLR2004 - no prefix below
        return f"{size_bytes} B"
    size, units = float(size_bytes), iter("kMGTPE")
    unit = ""
    while size >= 1000:  # noqa: PLR2004 - as above
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}B"
