"""The server asks a model what its input example says, before anybody else asks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, Schema

from ..models import log_pyfunc  # noqa: TID252 - tests have no name to be imported by
from . import custom

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient


@pytest.mark.parametrize(
    ("join_requests", "sizes"), [(False, [1, 1, 1, 1]), (True, [1, 1, 1, 1, 3])]
)
def test_in_batches_of_the_sizes_asked_for(
    pyfunc_client: TritonDeploymentClient,
    pyfunc_name: str,
    tmp_path: Path,
    join_requests: bool,  # noqa: FBT001
    sizes: list[int],
) -> None:
    """Text, numbers, and a column that the example leaves out.

    Triton makes a batch of as many requests: a model whose requests are not joined is asked for
    each of them, and one that is to be joined is tried both ways at first.
    """
    notes = tmp_path / "notes"
    notes.touch()
    example = pd.DataFrame({"s": ["über", "b"], "x": [1.5, 2.5]})
    inputs = Schema(
        [
            ColSpec(DataType.string, "s"),
            ColSpec(DataType.double, "x"),
            ColSpec(DataType.long, "left out", required=False),
        ]
    )
    outputs = infer_signature(example, pd.Series([0.0])).outputs
    info = log_pyfunc(
        custom.Noting(str(notes)),
        signature=ModelSignature(inputs, outputs),
        input_example=example,
    )
    notes.write_text("")  # MLflow asks it, too
    pyfunc_client.create_deployment(
        pyfunc_name, info.model_uri, config={"warmup": [1, 3], "join_requests": join_requests}
    )
    asked = [json.loads(line) for line in notes.read_text().splitlines()]
    row = dict(zip(asked[0]["columns"], asked[0]["data"][0], strict=True))
    assert {"s": "über", "x": 1.5}.items() <= row.items()
    assert sorted(len(each["data"]) for each in asked) == sizes
    assert all(data == asked[0]["data"][0] for each in asked for data in each["data"])
