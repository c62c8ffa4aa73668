"""What stands in a model's directory, looked at once: the value that changes are planned from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton_repo.config import ModelConfig
    from triton_repo.errors import ConfigError
    from triton_repo.record import DeploymentRecord, FileDigest, VersionRecord

__all__ = ["Stock"]


@dataclass(frozen=True)
class Stock:
    """What stands in one model's directory; see `ModelView.take_stock`.

    Attributes:
        now: a record of what is there, whoever put it.
        recorded: what the last command recorded; None where it recorded nothing that can be read.
        config: config.pbtxt; None where there is none, or it cannot be read.
        edited_config: the same, where it is not the one that was put there; None where it is,
            or there is none.
        broken_config: why config.pbtxt cannot be read, if it cannot.
        aside: sha256 of the files beside config.pbtxt that were set aside for older versions.
    """

    now: DeploymentRecord
    recorded: DeploymentRecord | None = None
    config: ModelConfig | None = None
    edited_config: ModelConfig | None = None
    broken_config: ConfigError | None = None
    aside: frozenset[str] = frozenset()

    @property
    def versions(self) -> Mapping[int, VersionRecord]:
        """Every version directory, by its number."""
        return self.now.versions

    @property
    def serving(self) -> tuple[int, ...]:
        """The versions that serve, the main one first."""
        return self.now.serving

    @property
    def config_text(self) -> str:
        """The text of config.pbtxt; empty where there is none."""
        return self.config.text if self.config is not None else ""

    @property
    def ours(self) -> frozenset[int]:
        """Version directories that one of our commands placed; only these are ever pruned."""
        return frozenset(number for number, seen in self.versions.items() if seen.placed_by)

    @property
    def shared_before(self) -> Mapping[str, FileDigest]:
        """The files beside config.pbtxt that the last command left there, if they were ours."""
        recorded = self.recorded
        ours = recorded is not None and all(seen.placed_by for seen in recorded.served)
        return recorded.shared if recorded is not None and ours else {}

    def left_beside(self, path: str) -> FileDigest | None:
        """A file beside config.pbtxt that the last command left there, if it is as it was left."""
        digest = self.shared_before.get(path)
        return digest if digest is not None and self.now.shared.get(path) == digest else None

    def aside_for(self, path: str) -> FileDigest | None:
        """What a version on disk had at a path beside config.pbtxt where nothing is now."""
        if path in self.now.shared:
            return None
        had = (seen.shared.get(path) for seen in self.versions.values())
        return next((digest for digest in had if digest and digest.sha256 in self.aside), None)

    def has_beside(self, path: str) -> bool:
        """Whether a plan can name a file beside config.pbtxt without bringing it."""
        return self.left_beside(path) is not None or self.aside_for(path) is not None

    def with_files(self, version: int, files: Mapping[str, FileDigest]) -> Stock:
        """The same, knowing what a version's files really are."""
        seen = replace(self.versions[version], files=files)
        return replace(self, now=replace(self.now, versions={**self.versions, version: seen}))

    def can_return(self, version: int) -> bool:
        """Whether everything that a version on disk needs in order to serve again is still here."""
        recorded = self.recorded
        if recorded is None or version not in recorded.versions:
            return False
        seen = self.versions[version]
        needed = self.now.set_aside_of(seen).values()
        return seen.files == recorded.versions[version].files and all(
            digest.sha256 in self.aside for digest in needed
        )
