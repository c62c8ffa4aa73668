"""What uv and pip say of what went wrong, in one line: what failed, and what caused it.

```
error: Failed to build `six`              × Building wheel for six did not run successfully.
  cause: Call to … failed                 │ exit code: 1
         [stderr]                         ╰─> [12 lines of output]
         RuntimeError: no compiler            RuntimeError: no compiler
hint: …                                       [end of output]
```

uv since 0.13 on the left, pip on the right. uv before that has the right one's signs, too.
"""  # noqa: RUF002 - it is their sign

from __future__ import annotations

import re

__all__ = ["is_full_disk", "reason_of"]

#: How uv words what led to its error, before 0.10, before 0.13 and since; pip of a conflict.
_CAUSE = re.compile(r" (?:(?:caused by|cause):|[├╰]─[▶>]) ", re.IGNORECASE)
_HEAD = re.compile(r"error|× ", re.IGNORECASE)  # noqa: RUF001 - as above
_SIGNS = re.compile(r"^(?:error: |[×│] ?)", re.IGNORECASE)  # noqa: RUF001 - as above
#: Where the output of what they ran begins, and ends.
_BEGINS, _ENDS, _ABOVE = ("[stdout]", "[stderr]"), "[end of output]", "See above for output."
#: What they add.
_ADVICE = ("note:", "[notice]")
_LAST_ADVICE = ("hint:", "To fix this you could try to:")
#: Where pip found a requirement, or what it says in its place.
_FOUND_IN = re.compile(r" \(from -r .*? \(line \d+\)\)")
_FOUND = re.compile(r"-r .*? \(line \d+\)")
#: Said last by pip, and nothing of what did not fit.
_NO_REASON = "ERROR: ResolutionImpossible"
_EXCEPTION = "ERROR: Exception:"
#: Linux's words, and the numbers of ENOSPC and EDQUOT where they are in another language.
_FULL_DISK = re.compile(
    r"No space left on device|Disk quota exceeded|\[Errno (?:28|122)\]|\(os error (?:28|122)\)"
)


def is_full_disk(output: str) -> bool:
    """Whether it is for want of room."""
    return bool(_FULL_DISK.search(output))


def reason_of(output: str) -> str:
    """What went wrong, as an installer says it.

    Args:
        output: all that it printed.
    """
    lines = _without_advice(_FOUND.sub("one of these", _FOUND_IN.sub("", output)))
    said = _of_what_it_ran(lines) or _of_its_own_fault(lines) or _of_its_errors(lines)
    return said or (lines or ["no reason given"])[-1]


def _without_advice(output: str) -> list[str]:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_ADVICE)]
    for place, line in enumerate(lines):
        if line.startswith(_LAST_ADVICE) and any(map(_HEAD.match, lines[:place])):
            return lines[:place]
    return lines


def _of_what_it_ran(lines: list[str]) -> str:
    """The last line of a build's or of git's own output; empty where none is there."""
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place]
        if line == _ENDS:
            return f"{_failed(lines[:place])}: {lines[place - 1]}"
        if line in _BEGINS and place + 1 < len(lines):
            return f"{_failed(lines[:place])}: {lines[-1]}"
    if any(line.endswith(_ABOVE) for line in lines):
        first = next((place for place, line in enumerate(lines) if _HEAD.match(line)), 0)
        return f"{_failed(lines)}: {lines[first - 1]}" if first else ""
    return ""


def _failed(lines: list[str]) -> str:
    """What their last heading says, which in a narrow terminal goes on in the next lines."""
    for place in range(len(lines) - 1, -1, -1):
        if _HEAD.match(lines[place]) and not lines[place].startswith("error: subprocess"):
            return _joined(lines[place:])[0]
    return "it failed"


def _of_its_own_fault(lines: list[str]) -> str:
    return lines[-1] if _EXCEPTION in lines else ""


def _of_its_errors(lines: list[str]) -> str:
    errors = [
        place
        for place, line in enumerate(lines)
        if _HEAD.match(line) and not line.startswith(_NO_REASON)
    ]
    if not errors:
        return ""
    failed, *causes = _joined(lines[errors[-1] :])
    return f"{failed}: {causes[-1]}" if causes else _SIGNS.sub("", lines[errors[-1]])


def _joined(lines: list[str]) -> list[str]:
    """A heading and its causes, each in one line."""
    text = " ".join(_SIGNS.sub("", line) for line in lines if not line.startswith(_NO_REASON))
    return [each.rstrip(":") for each in _CAUSE.split(text)]
