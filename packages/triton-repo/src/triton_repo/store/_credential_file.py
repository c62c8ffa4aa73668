"""Triton's own file of credentials for cloud storage, which we share with it.

Source: Triton core, `src/filesystem/api.cc`: the entry of the longest matching prefix applies.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from triton_repo.errors import StoreAccessError

__all__ = ["credential_entry"]

_VARIABLE = "TRITON_CLOUD_CREDENTIAL_PATH"


def credential_entry(kind: str, uri: str) -> dict[str, str]:
    """What `TRITON_CLOUD_CREDENTIAL_PATH` says of an address.

    Args:
        kind: `s3` or `as`.
        uri: the address.

    Returns:
        The entry; an empty one where the variable is not set.

    Raises:
        StoreAccessError: the file cannot be read, or names nobody for this address: Triton, which
            reads the same file, could not either.
    """
    path = os.environ.get(_VARIABLE)
    if not path:
        return {}
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        named: dict[str, Any] = document.get(kind, {})
        matching = [prefix for prefix in named if uri.startswith(prefix)]
        if not matching:
            raise StoreAccessError(
                f"{path} ({_VARIABLE}) has no credentials for {uri}; Triton reads it too: add them "
                f'under "{kind}", or unset the variable',
                uri=uri,
            )
        entry = named[max(matching, key=len)]
        return {key: str(value) for key, value in entry.items() if value is not None}
    except (OSError, ValueError, AttributeError) as exc:
        what = exc.strerror if isinstance(exc, OSError) else "it is not what Triton expects there"
        raise StoreAccessError(
            f"{_VARIABLE} names {path}: {what}; see Triton's documentation of cloud storage with a "
            "credential file",
            uri=uri,
        ) from exc
