"""What both clients need to make of our arrays, and of Triton's descriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tritonclient.utils import triton_to_np_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["as_sent"]


def as_sent(array: NDArray[Any], datatype: str) -> NDArray[Any]:
    """The array in the dtype that this release of tritonclient serialises.

    BF16 is float32 to us. tritonclient takes float32 too, or from 26.06 on only
    `ml_dtypes.bfloat16`; the values are on BF16's grid already.
    """
    if datatype != "BF16":
        return array
    return array.astype(triton_to_np_dtype("BF16"), copy=False)
