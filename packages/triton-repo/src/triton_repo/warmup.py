"""Warm-up: what a server asks a model, before anybody else does, as config.pbtxt has it.

Format: Triton's `model_warmup`; the values of an input are a file below `warmup/`, beside
config.pbtxt, in the protocol's "raw" form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2  # noqa: TID251 - the messages alone

from triton_repo.tensors import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from triton_repo.tensors import TensorSpec

__all__ = ["MODEL_WARMUP", "WARMUP_FOLDER", "WarmupInput", "model_warmup"]

#: The field of config.pbtxt.
MODEL_WARMUP = "model_warmup"
WARMUP_FOLDER = PurePosixPath("warmup")


@dataclass(frozen=True)
class WarmupInput:
    """One input of the request.

    Attributes:
        spec: its name, datatype and shape, without a batch dimension.
        filename: the file of its values, below `WARMUP_FOLDER`.
    """

    spec: TensorSpec
    filename: str


def model_warmup(name: str, inputs: Iterable[WarmupInput], batch_sizes: Iterable[int]) -> str:
    """The text of `model_warmup`, as `triton_repo.overrides` takes it.

    Args:
        name: what the server's log calls it.
        inputs: of one row, or of the whole request where the model does not batch.
        batch_sizes: a request for each; Triton repeats the row.
    """
    each_input = tuple(inputs)
    samples = []
    for size in batch_sizes:
        sample = model_config_pb2.ModelWarmup(name=f"{name}_{size}", batch_size=size)
        for each in each_input:
            data = sample.inputs[each.spec.name]
            data.data_type = model_config_pb2.DataType.Value(
                DATATYPES[each.spec.datatype].config_name
            )
            data.dims.extend(each.spec.shape)
            data.input_data_file = each.filename
        text = text_format.MessageToString(sample, as_one_line=True, as_utf8=True)
        samples.append(f"{{ {text} }}")
    return f"[{', '.join(samples)}]"
