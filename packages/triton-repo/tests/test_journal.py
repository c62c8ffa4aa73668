"""The note of a change under way is read back exactly, or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_repo.journal import OUR_DIRECTORY, Journal
from triton_repo.layout import version_number

texts = st.text(max_size=20) | st.sampled_from(["!base64", "null", "[]"])
numbers = st.lists(st.integers(1, 2**62), max_size=3).map(tuple)
paths = st.lists(texts, max_size=3).map(tuple)
files = st.none() | st.binary(max_size=50)
journals = st.builds(
    Journal,
    operation=st.sampled_from(["create", "update", "delete"]),
    model_uri=texts,
    holder=texts,
    since=texts,
    created=st.booleans(),
    new_versions=numbers,
    replaced_versions=numbers,
    shared_before=st.dictionaries(texts, texts, max_size=3),
    shared_added=paths,
    config_before=files,
    config_after=files,
    record_after=files,
    doomed_versions=numbers,
    doomed_shared=paths,
    keeps_sent=st.booleans(),
    members=paths,
    leaves_members=st.booleans(),
)


@given(journals)
def test_a_journal_is_read_as_it_was_written(journal: Journal) -> None:
    """Files to the byte, an empty one told from none, and names whatever they are."""
    assert Journal.parse(journal.to_bytes()) == journal


def test_our_directory_is_no_version_and_sorts_after_the_versions() -> None:
    """Triton's auto-complete looks for the model file in the directory that sorts first."""
    assert version_number(OUR_DIRECTORY) is None
    assert max("1", "99", OUR_DIRECTORY) == OUR_DIRECTORY


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b"\xff",
        b'{"holder": "me"}',
        b'{"operation": "update", "config_before": "no base64!"}',
        b'{"operation": "update", "record_after": 7}',
    ],
)
def test_what_is_no_journal_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is Python's
        Journal.parse(data)


@given(journals)
def test_what_a_later_release_adds_is_left_aside(journal: Journal) -> None:
    document = json.loads(journal.to_bytes()) | {"added_later": [1, 2]}
    assert Journal.parse(json.dumps(document).encode()) == journal
