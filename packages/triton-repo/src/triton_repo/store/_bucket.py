"""What an object store must do for `ObjectStore` to make a model repository of it.

Keys are relative to the repository's root. Methods raise the store's errors as `Store` says them;
a condition that does not hold is `ConditionError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from triton_repo.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from triton_repo.entry import EntryFile
    from triton_repo.record import FileDigest

__all__ = [
    "Bucket",
    "ConditionError",
    "Content",
    "ObjectInfo",
    "Uploads",
    "prefix_of",
    "without_secrets",
]


_NAMELESS = "the repository's address"


class ConditionError(Exception):
    """What a request was to depend on is not so: somebody else was there first."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing says of an object.

    Attributes:
        size_bytes: its size.
        etag: another one whenever its content was written; never empty.
    """

    size_bytes: int
    etag: str


@dataclass(frozen=True)
class Content:
    """An object that was read.

    Attributes:
        data: all of it.
        etag: as in listings.
        age_s: how long ago it was written, by the store's own clock, which says whole seconds.
    """

    data: bytes
    etag: str
    age_s: float


def without_secrets(address: str) -> str:
    """An address for a message; nothing of it where it may hold a password or a signature."""
    return _NAMELESS if {"@", "?"} & set(address) else address


def prefix_of(address: str, path: str) -> str:
    """What every key of a repository begins with: `a//b/` as `a/b/`, or an empty string.

    Args:
        address: of the repository, for the message.
        path: what it says behind the bucket.

    Raises:
        StoreError: it holds `.` or `..`, which some clients resolve and others do not.
    """
    segments = [segment for segment in path.split("/") if segment]
    if not {".", ".."}.isdisjoint(segments):
        raise StoreError(f"{without_secrets(address)}: a prefix cannot hold . or ..", uri=_NAMELESS)
    return "".join(f"{segment}/" for segment in segments)


class Uploads(Protocol):
    """Files on their way into the bucket, side by side."""

    def send(self, key: str, file: EntryFile, sent: str = "") -> None:
        """Send one file; what went wrong may be raised by a later call.

        Args:
            key: where to.
            file: what.
            sent: an object of the same size; if it has the same content, it is copied instead.
        """

    def results(self) -> dict[str, FileDigest]:
        """Wait for all of them; their digests, by key."""


class Bucket(Protocol):
    """Objects by key, and nothing else: no directories, no renames."""

    @property
    def uri(self) -> str:
        """How messages name the repository; never with credentials."""

    @property
    def has_prefix(self) -> bool:
        """Whether the repository is not the whole bucket, and so is only there with an object."""

    @property
    def parallel(self) -> int:
        """How many requests at once are worth while."""

    def fence(self, check: Callable[[], None] | None) -> None:
        """Call `check` before every request that changes something, until another one is named."""

    def impatient(self) -> Bucket:
        """The same for beats: not fenced, and no call takes longer than half a minute."""

    def copies_from(self, uri: str, endpoint: str) -> bool:
        """Whether an object there can be copied inside the store, if the credentials let us."""

    def check(self) -> None:
        """Warn of what would go wrong only later, elsewhere; nothing is asked."""

    def objects(self, prefix: str, limit: int | None = None) -> Iterator[tuple[str, ObjectInfo]]:
        """The objects whose keys begin with `prefix`, in the order of their keys' bytes."""

    def directories(self, prefix: str) -> tuple[list[str], bool]:
        """What follows `prefix` up to the next `/`, and whether there is any object at all."""

    def get(self, key: str) -> Content:
        """A whole small object.

        Raises:
            ObjectNotFoundError: there is none.
        """

    def put(self, key: str, data: bytes, *, new: bool = False, replacing: str = "") -> str:
        """Write a small object in one step.

        Args:
            key: where.
            data: its content.
            new: write only where there is none.
            replacing: write only over the object with this etag.

        Returns:
            Its etag.

        Raises:
            ConditionError: there is one, or it is another one; nothing was written.
        """

    def uploads(self, on_copied: Callable[[int], None] | None) -> AbstractContextManager[Uploads]:
        """Send files; leaving the block by an exception stops what is on its way."""

    def digest(self, key: str) -> FileDigest:
        """Size and sha256 of an object."""

    def copy(self, key: str, to: str, size_bytes: int = 0) -> None:
        """Copy inside the store; no bytes come here.

        Args:
            key: an object.
            to: where to.
            size_bytes: its size, where that is known: large ones go in parts, side by side.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are fine."""

    def delete_replaced(self, key: str, etag: str) -> None:
        """Delete an object if it is still the one with this etag, as far as the store can tell.

        Raises:
            ConditionError: it is another one.
        """

    def abort_uploads(self, prefix: str) -> None:
        """Drop what is left of interrupted uploads of large objects."""
