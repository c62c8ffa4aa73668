"""How a refusal has to look."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["refused"]


def refused(
    call: Callable[[], object], code: str, *words: str, secrets: tuple[str, ...] = ()
) -> str:
    """The one line of an error that has this code, these words, a cause, and no secret anywhere."""
    with pytest.raises(MlflowException) as raised:
        call()
    message = str(raised.value)
    assert raised.value.error_code == code, message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert raised.value.__cause__ is not None
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value.__dict__)
    assert not [secret for secret in secrets if secret in told]
    return message
