"""Where model repositories live: one protocol, one function that opens what an address names."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from triton_repo.errors import StoreError
from triton_repo.store._bucket import without_secrets
from triton_repo.store._local import LocalStore
from triton_repo.store._s3_address import S3Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from triton_repo.entry import Tree
    from triton_repo.record import FileDigest

__all__ = ["LocalStore", "PlacedTree", "Store", "open_store"]


class PlacedTree(Protocol):
    """A tree that was placed, and may still be on its way to the disk."""

    def digests(self) -> Mapping[str, FileDigest]:
        """Wait until every file is durable; their digests, by path in the tree.

        Raises:
            StoreError: a file could not be flushed or read back.
        """

    def abandon(self) -> None:
        """Stop working on it: the tree is going to be removed."""


class Store(Protocol):
    """A model repository: files under `/`-separated keys, such as `resnet/7/model.onnx`.

    Every method raises `StoreError` or one of its subclasses: `ObjectNotFoundError` where a key to
    read is missing, `StoreAccessError` where we are not let, `StoreUnavailableError` where the
    repository is out of reach or full. Keys are whole path segments: `resnet` never means
    `resnet2`.
    """

    @property
    def uri(self) -> str:
        """How messages name the repository; never with credentials."""

    @property
    def readers(self) -> int:
        """How many files are worth reading at once."""

    @property
    def places_whole(self) -> bool:
        """Whether a directory that is placed appears with everything in it, in one step."""

    @property
    def resumes(self) -> bool:
        """Whether what an interrupted `place` has sent is worth keeping for the next one."""

    @property
    def can_fill_up(self) -> bool:
        """Whether a small file may find no room, and should have it before all depends on it."""

    def copies_from(self, uri: str, endpoint: str) -> bool:
        """Whether files there might be placed without coming through this machine.

        Args:
            uri: such as `s3://bucket/path`.
            endpoint: of that store, or an empty string for the default.
        """

    def check(self) -> None:
        """Make sure that the repository exists and can be written."""

    def snapshot(self) -> Store:
        """The same to read from, for somebody who wants to see all of it at once.

        Where every look is a request, nearly everything is asked for now, in as few as can be, and
        later changes are not seen.
        """

    def children(self, key: str) -> list[str]:
        """Names of the directories right below `key` (`""`: the root), sorted."""

    def list_files(self, key: str) -> dict[str, int]:
        """Every file below `key`, by its path relative to it, with its size in bytes."""

    def exists(self, key: str) -> bool:
        """Whether there is a file or directory at `key`."""

    def read(self, key: str) -> bytes:
        """A whole small file."""

    def digest(self, key: str) -> FileDigest:
        """Size and sha256 of a file."""

    def write(self, key: str, data: bytes) -> None:
        """Put a small file; a reader sees the old content or the new one, never a part."""

    def place(
        self,
        key: str,
        tree: Tree,
        on_copied: Callable[[int], None] | None = None,
        *,
        sent: str = "",
    ) -> PlacedTree:
        """Copy a tree to the new directory `key`.

        Where the store can rename, the directory appears whole; elsewhere its files appear one
        after another. On return the files can be read; that they are durable is certain only once
        their digests are there.

        Args:
            key: a directory that is not there yet.
            tree: what to copy.
            on_copied: called with the number of bytes after each piece.
            sent: a directory with files that were sent before, by the same paths: where `resumes`,
                those with the same content need not be sent again.

        Returns:
            The way to the digests.
        """

    def move(self, key: str, to: str) -> None:
        """Move a file (over another) or a directory (to where nothing is)."""

    def exchange(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Let directories or files change places, pair by pair; nothing is inside anything else.

        All of them in one step where the store can; elsewhere a reader may for a moment find some
        exchanged and others not, or a directory missing. `sweep` finishes or undoes a call that was
        killed. It finds it from any directory that the first pair's second is in, so that one
        should be in a directory whose lock the caller holds. Only one of a pair may be right at
        the root.

        Raises:
            ObjectNotFoundError: one of them is not there; nothing has changed.
        """

    def copy_file(self, key: str, to: str) -> None:
        """Put the same content at `to`, without moving bytes where the store can avoid it."""

    def remove(self, key: str) -> None:
        """Remove a file or a whole directory; what is not there is fine."""

    def sweep(self, key: str) -> None:
        """Remove what a call that was killed left half-made below `key`; undo what it half did.

        Only the holder of `key`'s lock may ask for it: to anybody else, a call that is under way
        looks the same.

        With `""`, which anybody may ask for at any time, look at the files right at the root and
        nowhere else, and remove only these: locks (keys that end in `.lock`) whose holders are
        dead for certain, and temporary files of ours that are an hour old. A lock that a dead
        holder on another host left goes when it is a day old, or when somebody takes it over.
        """

    def lock(self, key: str, holder: str, wait_s: float = 0.0) -> AbstractContextManager[None]:
        """Hold the one writer's place for `key`, on all hosts that share the repository.

        A dead holder's place is taken over. That a holder on another host is dead may take half a
        minute to find out, however short `wait_s` is.

        Args:
            key: the lock, such as `.resnet.mlflow-triton.lock`; it ends in `.lock` if `sweep` is
                to remove what is left of it.
            holder: who asks, for the message that others get.
            wait_s: how many seconds to wait for another holder to finish.

        Raises:
            LockedError: somebody else holds it, and still did after `wait_s`. Or, as the block
                ends, and in an object store before anything else is written: this process stood
                still for so long that another host took it over.
        """


def open_store(address: str) -> Store:
    """Open the repository that TRITON_MODEL_REPO names.

    Args:
        address: a path, a `file://` URI, `s3://…` or `as://…` as Triton spells them.

    Raises:
        StoreError: the address is of a kind that is not served, or cannot be read.
    """
    scheme, separator, _ = address.partition("://")
    if scheme == "s3" and separator:
        return _open_s3(address)
    if scheme == "as" and separator:
        return _open_azure(address)
    parts = urlsplit(address)
    if len(parts.scheme) < 2:  # noqa: PLR2004 - no scheme
        return LocalStore(Path(address))
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(
                "a file:// address names no host; use file:///path", uri=without_secrets(address)
            )
        return LocalStore(Path(unquote(parts.path)))
    raise StoreError(
        f"model repositories at {parts.scheme}:// cannot be written; use s3://, as:// or a "
        "directory that Triton also reads",
        uri=address,
    )


def _open_s3(address: str) -> Store:
    with _installed("s3", address):
        from triton_repo.store._objects import ObjectStore  # noqa: PLC0415 - a second's import
        from triton_repo.store._s3 import S3Bucket  # noqa: PLC0415 - the same
    return ObjectStore(S3Bucket(S3Address.parse(address)))


def _open_azure(address: str) -> Store:
    with _installed("azure", address):
        from triton_repo.store._azure import AzureAddress, AzureBucket  # noqa: PLC0415 - the same
        from triton_repo.store._objects import ObjectStore  # noqa: PLC0415 - the same
    return ObjectStore(AzureBucket(AzureAddress.parse(address)))


@contextmanager
def _installed(extra: str, address: str) -> Iterator[None]:
    """Say which extra is missing, where one is."""
    try:
        yield
    except ModuleNotFoundError as exc:
        raise StoreError(
            f"{exc.name} is not installed, and {address.partition('://')[0]}:// needs it: "
            f"pip install 'triton-repo[{extra}]' (or 'mlflow-triton-plugin[{extra}]')",
            uri=without_secrets(address),
        ) from exc
