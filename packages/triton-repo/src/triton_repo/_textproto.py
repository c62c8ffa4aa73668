"""Finds the top-level fields of a text-format protobuf, so that one of them can be edited in place.

protobuf's own `text_format` drops comments, order and spelling. A hand-tuned config.pbtxt keeps
them here: only the bytes of the field that has to change are replaced.
Syntax: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Field", "edit_messages", "set_field", "top_level_fields"]

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|\#[^\n]*)
    | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    | (?P<word>[A-Za-z0-9_.+-]+)
    | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSES = {"{": "}", "<": ">", "[": "]"}


@dataclass(frozen=True)
class Field:
    """One top-level field: its name and where it stands in the text, `text[start:end]`.

    `separator` is where the `;` or `,` after it stands, -1 where there is none.
    """

    name: str
    start: int
    end: int
    separator: int = -1


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind != "space":
            yield _Token(kind, match.group(), match.start(), match.end())


def top_level_fields(text: str) -> list[Field]:
    """Every top-level field of a text-format message, in order.

    The text must already have been parsed by protobuf: what is malformed is not reported here.
    """
    fields: list[Field] = []
    tokens = list(_tokens(text))
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.kind != "word":  # a separator between fields
            at += 1
            continue
        last = _value_end(tokens, at + 1)
        at = last + 1
        separated = at < len(tokens) and tokens[at].text in (";", ",")
        separator = tokens[at].start if separated else -1
        fields.append(Field(token.text, token.start, tokens[last].end, separator))
    return fields


def _value_end(tokens: list[_Token], at: int) -> int:
    """Index of the last token of the value that starts at `at` (a colon may stand before it)."""
    if at < len(tokens) and tokens[at].text == ":":
        at += 1
    if at >= len(tokens):
        return len(tokens) - 1
    if tokens[at].text in _CLOSES:
        return _block_end(tokens, at)
    if tokens[at].text == "-":  # "- 1" is one value
        at += 1
    while at + 1 < len(tokens) and tokens[at].kind == tokens[at + 1].kind == "string":
        at += 1  # adjacent strings are one value
    return min(at, len(tokens) - 1)


def _block_end(tokens: list[_Token], at: int) -> int:
    open_marks: list[str] = []
    for index in range(at, len(tokens)):
        token = tokens[index]
        if token.kind != "mark":
            continue
        if token.text in _CLOSES:
            open_marks.append(_CLOSES[token.text])
        elif open_marks and token.text == open_marks[-1]:
            open_marks.pop()
            if not open_marks:
                return index
    return len(tokens) - 1


def set_field(text: str, name: str, replacement: str) -> str:
    """Replace every top-level field called `name` by `replacement`, or append it at the end.

    Args:
        text: a text-format message.
        name: the field, as protobuf spells it.
        replacement: the whole field, such as `name: "resnet"`; empty to take the field out.
    """
    found = [field for field in top_level_fields(text) if field.name == name]
    if not found:
        newline = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{newline}{replacement}\n" if replacement else text
    pieces: list[str] = []
    at = 0
    for index, field in enumerate(found):
        kept = replacement if index == 0 else ""
        pieces += [text[at : field.start], kept]
        at = field.end
        if not kept and field.separator >= 0:  # a separator without its field is no text format
            pieces.append(text[at : field.separator])
            at = field.separator + 1
    return "".join(pieces) + text[at:]


def edit_messages(text: str, name: str, edit: Callable[[str], str]) -> str:
    """Edit the text of every message in the top-level fields called `name`, in order.

    Args:
        text: a text-format message.
        name: a field of messages, as protobuf spells it: each is `{…}` or `<…>`, by itself or in a
            list.
        edit: gets what is between the braces, and gives what belongs there.
    """
    pieces: list[str] = []
    at = 0
    for field in top_level_fields(text):
        if field.name != name:
            continue
        for start, end in _messages(text[field.start : field.end]):
            pieces += [
                text[at : field.start + start],
                edit(text[field.start + start :][: end - start]),
            ]
            at = field.start + end
    return "".join(pieces) + text[at:]


def _messages(field: str) -> Iterator[tuple[int, int]]:
    """Where the texts of a field's messages begin and end."""
    tokens = list(_tokens(field))
    at = 1
    while at < len(tokens):
        if tokens[at].text not in ("{", "<"):  # a colon, a list's bracket or comma
            at += 1
            continue
        last = _block_end(tokens, at)
        yield tokens[at].end, tokens[last].start
        at = last + 1
