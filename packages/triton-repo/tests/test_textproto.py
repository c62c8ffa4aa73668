"""The scanner finds top-level fields where protobuf does, and edits nothing else.

`test_config.py` holds the same against whole random messages; these are the corners by name.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_repo._textproto import edit_messages, set_field, top_level_fields


def spans(text: str) -> list[tuple[str, str]]:
    return [(field.name, text[field.start : field.end]) for field in top_level_fields(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# only a comment", []),
        ('name: "a"', [("name", 'name: "a"')]),
        ("name: 'it\\'s'", [("name", "name: 'it\\'s'")]),
        ('a: "x" # "\n "y" b: 1', [("a", 'a: "x" # "\n "y"'), ("b", "b: 1")]),
        ('a: "}" b { c: "{" }', [("a", 'a: "}"'), ("b", 'b { c: "{" }')]),
        ("a < b < > > c: [ 1, 2 ]", [("a", "a < b < > >"), ("c", "c: [ 1, 2 ]")]),
        ("a [ { b: [1] }, < > ] c: TYPE_X", [("a", "a [ { b: [1] }, < > ]"), ("c", "c: TYPE_X")]),
        ("a: -1; b: - 2, c: 0x1F", [("a", "a: -1"), ("b", "b: - 2"), ("c", "c: 0x1F")]),
        ("a{name:1}name:2", [("a", "a{name:1}"), ("name", "name:2")]),
        ("a:1.5e-3 b:.5", [("a", "a:1.5e-3"), ("b", "b:.5")]),
        ("a: { # }\n }", [("a", "a: { # }\n }")]),
    ],
)
def test_fields_are_found_whole(text: str, expected: list[tuple[str, str]]) -> None:
    assert spans(text) == expected


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ('name: "a"; b: 1', "name: X; b: 1"),
        ('name:"a"b:1', "name: Xb:1"),
        ("b { name: 1 }", "b { name: 1 }\nname: X\n"),
        ("# name: 1", "# name: 1\nname: X\n"),
        ("", "name: X\n"),
        ("b: 1\n", "b: 1\nname: X\n"),
    ],
)
def test_a_field_is_replaced_in_its_place_or_appended(text: str, replaced: str) -> None:
    assert set_field(text, "name", "name: X") == replaced


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('name: "a"', ""),
        ('name: "a"; b: 1', " b: 1"),
        ('name: "a" # why\n , # this\n b: 1', " # why\n  # this\n b: 1"),
        ('b: 1; name: "a";', "b: 1; "),
        ("b: 1", "b: 1"),
    ],
)
def test_a_field_is_taken_out_with_its_separator(text: str, left: str) -> None:
    """A `;` without a field before it is no text format; the comments around it stay."""
    assert set_field(text, "name", "") == left


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("step { a: 1 }", "step {+}"),
        ("step: < a: 1 > b { step { } }", "step: <+> b { step { } }"),
        ("step [ { a { } }, # {\n { } ] step {}", "step [ {+}, # {\n {+} ] step {+}"),
        ("step: [ ] other { step {} }", "step: [ ] other { step {} }"),
        ('step { a: "}" } # }', "step {+} # }"),
    ],
)
def test_messages_are_edited_where_they_are(text: str, edited: str) -> None:
    assert edit_messages(text, "step", lambda _: "+") == edited
    assert edit_messages(text, "step", lambda inner: inner) == text


@given(st.text())
def test_no_text_breaks_the_scanner(text: str) -> None:
    """What is malformed is protobuf's to report; fields lie in order and inside the text."""
    at = 0
    for field in top_level_fields(text):
        assert at <= field.start < field.end <= len(text)
        at = field.end
