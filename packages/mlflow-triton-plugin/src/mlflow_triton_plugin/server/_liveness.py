"""Whether the process of a `python_function` lives, which Triton itself does not say.

Triton 2.51 shows a model as READY, in the index and to ModelReady, when the process in which the
Python backend runs it has died. Only a request tells: the backend refuses it after a second without
a sign of life.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_triton_plugin.errors import ModelProcessDiedError, TritonServerError
from triton_repo.flavors.pyfunc import PARAMS, PING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict import ModelSchema
    from mlflow_triton_plugin.server import TritonServer

__all__ = ["can_be_asked", "death_of"]

#: Triton 23.07: the Python backend of older releases has no parameters of requests.
_HAS_PARAMETERS = (2, 36)

#: The backend takes one to two seconds to notice, and serves one request after the other meanwhile.
_TIMEOUT_S = 3.0


def can_be_asked(server: TritonServer) -> bool:
    """Return whether a server hands the question to `model.py`; False where that is not known.

    Without the parameter the question is a request like any other, and the model itself answers.
    """
    try:
        return server.facts().release >= _HAS_PARAMETERS
    except TritonServerError:  # it may tell others only
        return False


def death_of(server: TritonServer, model: str, version: str) -> ModelProcessDiedError | None:
    """Why a version cannot answer, where its process died; None where it lives.

    The model itself is not asked: its `model.py` answers. A busy process answers late, or not
    within the deadline. That says nothing, and counts as alive, and so does whatever else fails.
    Of several instances Triton chooses one: where one of them died, some calls find it out.
    """
    try:
        schema = server.schema(model, version)
        server.infer(model, version, _row(schema), schema, {PARAMS: PING}, timeout_s=_TIMEOUT_S)
    except ModelProcessDiedError as exc:
        return exc
    except TritonServerError:
        return None
    return None


def _row(schema: ModelSchema) -> Mapping[str, NDArray[Any]]:
    """Tensors that Triton lets pass: one row, or one value where there are no rows."""
    row = {}
    for name in schema.required:
        spec = schema.inputs_by_name[name]
        row[name] = np.zeros([1 if dim < 0 else dim for dim in spec.shape], spec.dtype)
        if spec.datatype == "BYTES":
            row[name].fill(b"")
    return row
