"""The note a change leaves in the model's directory while it is under way.

`<model>/_mlflow_triton/journal.json` says what is being done and what stood there before, so that
the next command can finish or undo it. It is removed last.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["OUR_DIRECTORY", "Journal"]

#: Inside a model's directory. Not a number, so no version to Triton; and sorting after the numbers,
#: because Triton's auto-complete looks for the model file in the directory that sorts first.
OUR_DIRECTORY = "_mlflow_triton"


@dataclass(frozen=True)
class Journal:
    """One change under way.

    Attributes:
        operation: `create`, `update` or `delete`.
        model_uri: what the user asked to deploy.
        holder: who does it, for people.
        since: when it began, ISO 8601 in UTC.
        created: whether the model's directory was not there before.
        new_versions: version directories that the change adds.
        replaced_versions: version directories that it exchanges for others of the same number.
        shared_before: files beside config.pbtxt that the change touches, with the sha256 under
            which their content was set aside.
        shared_added: files beside config.pbtxt that were not there before.
        config_before: config.pbtxt before the change, or None.
        config_guard: config.pbtxt while it goes on, where that pins what serves; None where it is
            not touched.
        config_after: config.pbtxt after it; None where it is not known yet, or there is none.
        record_after: the record after it; None until the change is validated.
        doomed_versions: version directories to remove once it is committed.
        doomed_shared: files beside config.pbtxt to remove once it is committed.
        keeps_sent: whether nothing is left of a change but what it had sent, for the same one.
        members: directories of the models that it deploys, or deletes, with this one.
        leaves_members: whether nothing is left of it but these.
    """

    operation: str
    model_uri: str = ""
    holder: str = ""
    since: str = ""
    created: bool = False
    new_versions: tuple[int, ...] = ()
    replaced_versions: tuple[int, ...] = ()
    shared_before: dict[str, str] = field(default_factory=dict)
    shared_added: tuple[str, ...] = ()
    config_before: bytes | None = None
    config_guard: bytes | None = None
    config_after: bytes | None = None
    record_after: bytes | None = None
    doomed_versions: tuple[int, ...] = ()
    doomed_shared: tuple[str, ...] = ()
    keeps_sent: bool = False
    members: tuple[str, ...] = ()
    leaves_members: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the model itself is whole again, finished or undone."""
        return self.keeps_sent or self.leaves_members

    def to_bytes(self) -> bytes:
        """The file's content."""
        document = {
            each.name: _encode(each.name, getattr(self, each.name)) for each in fields(self)
        }
        return json.dumps(document, indent=2).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Journal:
        """Read a journal.

        Raises:
            ValueError: it is none.
        """
        document = json.loads(data)
        known = {each.name for each in fields(cls)}
        try:
            return cls(
                **{key: _decode(key, value) for key, value in document.items() if key in known}
            )
        except (AttributeError, TypeError) as exc:
            raise ValueError(f"not a journal: {exc}") from exc


#: Fields that hold a file's bytes; they travel as base64.
_FILES = frozenset({"config_before", "config_guard", "config_after", "record_after"})


def _encode(name: str, value: Any) -> Any:
    if name in _FILES and value is not None:
        return base64.b64encode(value).decode("ascii")
    return value


def _decode(name: str, value: Any) -> Any:
    if name in _FILES and value is not None:
        return base64.b64decode(value, validate=True)
    return tuple(value) if isinstance(value, list) else value
