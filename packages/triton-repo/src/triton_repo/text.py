"""How the command lines of this project word things."""

from __future__ import annotations

import reprlib

from triton_repo.masking import without_secrets

__all__ = [
    "as_line",
    "brief",
    "human_size",
    "one_line",
    "printable",
    "shortened",
]


def brief(value: object) -> str:
    """A value as Python shows it, cut short: a few lines of YAML can stand for gigabytes."""
    shown = reprlib.Repr()
    shown.maxlevel = 2
    return shown.repr(value)


def one_line(exc: BaseException) -> str:
    """An error as one line, never an empty one, fit for a terminal and without a secret."""
    return as_line(str(exc)) or type(exc).__name__


def as_line(text: str) -> str:
    """A text as one line, fit for a terminal and without a secret."""
    return printable(without_secrets(" ".join(text.split())))


def printable(text: str) -> str:
    """The text, what is not printable escaped: others choose some of the names in it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shortened(text: str, longest: int = 1000) -> str:
    """The text, or its beginning."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def human_size(size_bytes: int) -> str:
    """Such as `1.9 GB`: decimal prefixes, as disks and MLflow's pages have them."""
    if size_bytes < 1000:  # noqa: PLR2004 - no prefix below
        return f"{size_bytes} B"
    size, units = float(size_bytes), iter("kMGTPE")
    unit = ""
    while size >= 1000:  # noqa: PLR2004 - as above
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}B"
