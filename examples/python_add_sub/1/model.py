"""A model for Triton's Python backend that needs nothing but numpy."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """OUTPUT0 is the sum of the inputs, OUTPUT1 their difference: int32, `[batch, 16]`."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        left = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        right = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
        outputs = [
            pb_utils.Tensor("OUTPUT0", left + right),
            pb_utils.Tensor("OUTPUT1", left - right),
        ]
        return pb_utils.InferenceResponse(output_tensors=outputs)
