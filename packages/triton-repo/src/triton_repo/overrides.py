"""Fields of config.pbtxt that somebody deploying a model sets otherwise than the model does.

An override is a path and a text: `max_batch_size` and `8`,
`dynamic_batching.preferred_batch_size` and `[4, 8]`, `parameters.THREADS` and `2`,
`instance_group.count` and `2` (of each group). The text is the field's value in protobuf's text
format; an empty one takes the field out. The path `config` has a whole config.pbtxt as text, which
stands in the place of the model's. The path `warmup` is no field: it says from what batch sizes
`model_warmup` was made of the model's input example, and is kept for the next model's. The path
`join_requests` is `true` or `false`: whether requests of several callers are joined.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format

from triton_repo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JOIN_REQUESTS", "NO_FIELDS", "WARMUP", "WHOLE_CONFIG", "contradict", "set_override"]

WHOLE_CONFIG, WARMUP, JOIN_REQUESTS = "config", "warmup", "join_requests"
#: Paths that no field has.
NO_FIELDS = frozenset({WHOLE_CONFIG, WARMUP, JOIN_REQUESTS})
#: The field that has Triton join requests, and the one of a scheduler that takes its place.
_BATCHING, _SEQUENCES = "dynamic_batching", "sequence_batching"
#: What deploying itself decides.
_OURS = ("name", "version_policy")


def contradict(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Return whether one of two overrides undoes the other, whichever is set last.

    Args:
        one: its path, and its text.
        other: the same.
    """
    return _undoes(*one, *other) or _undoes(*other, *one)


def _undoes(path: str, text: str, other: str, other_text: str) -> bool:
    """Return whether an override that is about joining requests leaves no sense to another one."""
    is_part = other.startswith(f"{_BATCHING}.")
    if path == _BATCHING:
        return not text and is_part and bool(other_text)
    if path != JOIN_REQUESTS:
        return False
    if text == "false":
        return (other == _BATCHING or is_part) and bool(other_text)
    is_sequences = other == _SEQUENCES or other.startswith(f"{_SEQUENCES}.")
    return (
        (other == _BATCHING and not other_text)
        or (other == "max_batch_size" and other_text == "0")
        or (is_sequences and bool(other_text))
    )


def set_override(message: Any, path: str, text: str) -> str:
    """Set one field of a `ModelConfig` message.

    Args:
        message: changed in place.
        path: which field.
        text: its value.

    Returns:
        The name of the top-level field that has changed.

    Raises:
        ConfigError: there is no such field, it is not for overriding, or this is no value of it.
    """
    field, _, rest = path.partition(".")
    if field in _OURS:
        raise ConfigError(f"{path} is set by deploying; it cannot be overridden", field=path)
    if field == "parameters" and rest:
        if text:
            message.parameters[rest].string_value = text
        else:
            message.parameters.pop(rest, None)
        return field
    try:
        _set(message, field, rest, text)
    except text_format.ParseError as exc:
        reason = " ".join(str(exc).split())
        raise ConfigError(f"{path} cannot be {text!r}: {reason}", field=path) from exc
    return field


def _set(message: Any, name: str, rest: str, text: str) -> None:
    fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    field = fields.get(name)
    if field is None or (rest and field.message_type is None):
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"; did you mean {near[0]}?" if near and field is None else ""
        what = "no field" if field is None else "a field without parts"
        raise ConfigError(
            f"{name} is {what} of Triton's {message.DESCRIPTOR.name}{hint}", field=name
        )
    if not rest:
        alone = type(message)()
        if text:
            text_format.Merge(f"{name}: {text}", alone)
        if any(other.name != name for other, _ in alone.ListFields()):
            raise ConfigError(f"{name} cannot be {text!r}: that is more than a value", field=name)
        message.ClearField(name)
        message.MergeFrom(alone)
        return
    below, _, deeper = rest.partition(".")
    held = getattr(message, name)
    if hasattr(held, "add"):  # repeated: each of them, or the first one
        for each in list(held) or [held.add()]:
            _set(each, below, deeper, text)
    else:
        held.SetInParent()
        _set(held, below, deeper, text)
