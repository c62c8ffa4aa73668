"""Values of options and variables, as text has them and as Python has them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlflow_triton_plugin.errors import SettingsError
from triton_repo.change import Together
from triton_repo.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LAST_PORT",
    "as_text",
    "at_least_0",
    "batch_sizes",
    "choice",
    "config_file",
    "count",
    "counts",
    "environment",
    "kind",
    "literal",
    "port",
    "python_version",
    "resources",
    "seconds",
    "seconds_or_none",
    "shown",
    "size",
    "switch",
    "texted",
    "together",
]

#: The highest port there is.
LAST_PORT = 65535
#: What is said of a value that is refused.
_SHOWN_CHARACTERS = 80


def as_text(value: Any) -> str:
    """What a value reads like; empty for a number with more digits than Python writes."""
    try:
        return str(value)
    except ValueError:
        return ""


def shown(value: Any) -> str:
    """A value as messages have it, no longer than a line takes."""
    try:
        shown = repr(value)
    except ValueError:
        return "a number with thousands of digits"
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"


def number(
    what: str, *, least: float, most: float = sys.float_info.max
) -> Callable[[Any, str], float]:
    def parse(value: Any, setting: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if isinstance(value, bool) or not least <= number <= most:
            raise SettingsError(
                f"{setting} is {shown(value)}; {what} belongs there", setting=setting
            )
        return number

    return parse


#: Three years. Clocks and threads take no more than a few hundred, and fail when they are asked.
_MOST_SECONDS = 1e8
_A_TIME = f"a number of seconds, {_MOST_SECONDS:.0f} at most,"
seconds = number(_A_TIME, least=sys.float_info.min, most=_MOST_SECONDS)
seconds_or_none = number(_A_TIME, least=0.0, most=_MOST_SECONDS)
at_least_0 = number("a number of at least 0", least=0.0)


def choice(choices: object, *, ignore_case: bool = False) -> Callable[[Any, str], Any]:
    """One of a `Literal`'s strings."""

    def parse(value: Any, setting: str) -> Any:
        text = as_text(value).strip().lower() if ignore_case else value  # Python's True, too
        if text not in get_args(choices):
            raise SettingsError(
                f"{setting} is {shown(value)}; use {', '.join(get_args(choices))}", setting=setting
            )
        return text

    return parse


def together(value: Any, setting: str) -> Together:
    """`6,7`, `latest:2`; from Python also `[6, 7]` and `7`."""
    listed = isinstance(value, (list, tuple))
    text = ",".join(as_text(each) for each in value) if listed else as_text(value).replace(" ", "")
    latest = re.fullmatch(r"latest:([1-9]\d{0,8})", text)
    if latest:
        return Together(latest=int(latest[1]))
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d{0,17}(,[1-9]\d{0,17})*", text):
        raise SettingsError(
            f"{setting} is {shown(value)}; version numbers belong there, such as 6,7, or latest:2",
            setting=setting,
        )
    return Together(versions=tuple(dict.fromkeys(int(number) for number in text.split(","))))


def count(least: int, most: int = 999_999_999) -> Callable[[Any, str], int]:
    def parse(value: Any, setting: str) -> int:
        text = as_text(value).strip()
        number = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
        if isinstance(value, bool) or not least <= number <= most:
            raise SettingsError(
                f"{setting} is {shown(value)}; a whole number from {least} to {most} belongs there",
                setting=setting,
            )
        return number

    return parse


port = count(0, LAST_PORT)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(value: Any, setting: str) -> int:
    """`500MB`, `1.5 GB`; a number is bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?) ?([KMGT]?)B?", as_text(value).strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if isinstance(value, bool) or size < 1:
        raise SettingsError(
            f"{setting} is {shown(value)}; a size belongs there, such as 500MB or 20GB",
            setting=setting,
        )
    return size


def texted(parse: Callable[[Any, str], Any]) -> Callable[[Any, str], str]:
    return lambda value, setting: as_text(parse(value, setting))


def counts(value: Any, setting: str) -> str:
    """`4,8`; from Python also `[4, 8]` and `4`."""
    listed = value if isinstance(value, (list, tuple)) else as_text(value).split(",")
    return f"[{', '.join(str(count(0)(each, setting)) for each in listed)}]"


def batch_sizes(value: Any, setting: str) -> str:
    """`1,8`, in ascending order; true is 1, false is none: an empty text."""
    said = as_text(value).strip().lower()
    if said in ("true", "false"):
        return "1" if said == "true" else ""
    listed = value if isinstance(value, (list, tuple)) else said.split(",")
    return ",".join(str(size) for size in sorted({count(1)(each, setting) for each in listed}))


def resources(value: Any, setting: str) -> str:
    """`R1=4,R2=1` of Triton's rate limiter; from Python also `{"R1": 4}`."""
    if isinstance(value, Mapping):
        pairs = [(as_text(name), each) for name, each in value.items()]
    else:
        pairs = (
            [(name, each) for name, _, each in (text.partition("=") for text in value.split(","))]
            if isinstance(value, str)
            else []
        )
    if not pairs or not all(re.fullmatch(r"[\w.-]+", name) for name, _ in pairs):
        raise SettingsError(
            f"{setting} is {shown(value)}; names and counts belong there, such as R1=4,R2=1",
            setting=setting,
        )
    listed = (f'{{ name: "{name}" count: {count(1)(each, setting)} }}' for name, each in pairs)
    return f"[{', '.join(listed)}]"


def switch(on: str, off: str = "") -> Callable[[Any, str], str]:
    """Return a parser of true and false: the texts `on` and `off`; an empty one unsets it."""

    def parse(value: Any, setting: str) -> str:
        said = choice(Literal["true", "false"], ignore_case=True)(value, setting)
        return on if said == "true" else off

    return parse


def kind(value: Any, setting: str) -> str:
    kind = choice(Literal["auto", "cpu", "gpu", "model"], ignore_case=True)(value, setting)
    return f"KIND_{kind.upper()}"


def config_file(value: Any, setting: str) -> str:
    """The text of a config.pbtxt."""
    try:
        return ModelConfig.read(Path(value)).text
    except (OSError, TypeError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise SettingsError(f"{setting} is {shown(value)}: {why}", setting=setting) from exc


def environment(value: Any, setting: str) -> Any:
    """`auto`, `pack`, `default`, or an archive on this machine."""
    if value in ("auto", "pack", "default"):
        return value
    if isinstance(value, (str, Path)) and str(value) and Path(value).is_file():
        return Path(value).absolute()
    raise SettingsError(
        f"{setting} is {shown(value)}, and no such file is there; use auto, pack, default, or an "
        "archive that conda-pack or venv-pack made",
        setting=setting,
    )


def python_version(value: Any, setting: str) -> str:
    text = as_text(value).strip()
    if not re.fullmatch(r"3\.\d{1,2}", text):
        raise SettingsError(
            f"{setting} is {shown(value)}; a minor version belongs there, such as 3.12",
            setting=setting,
        )
    return text


def literal(value: Any, setting: str) -> str:
    """A value in protobuf's text format; from Python numbers and booleans, too."""
    if isinstance(value, (bool, int, float, str)):
        return as_text(value).lower() if isinstance(value, bool) else as_text(value)
    raise SettingsError(f"{setting} is {shown(value)}; a text belongs there", setting=setting)
