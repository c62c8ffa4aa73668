from __future__ import annotations

import json
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given
from mlflow.models import ModelSignature

from publish_tools import plan_model
from publish_tools.signature import Tensors, config_tensors, model_signature
from triton_repo.config import ModelConfig
from triton_repo.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPECS = st.builds(
    TensorSpec,
    name=st.text(min_size=1, max_size=20),
    datatype=st.sampled_from(sorted(set(DATATYPES) - {"BF16"})),
    shape=st.lists(st.just(-1) | st.integers(1, 4096), max_size=4).map(tuple),
)
SIDES = st.lists(SPECS, max_size=4, unique_by=lambda spec: spec.name).map(tuple)


@given(inputs=SIDES, outputs=SIDES)
def test_a_signature_survives_mlflows_own_writing_and_reading(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    signature = model_signature(Tensors(inputs, outputs))
    if signature is None:
        assert not inputs
        assert not outputs
        return
    written = signature.to_dict()
    assert ModelSignature.from_dict(written) == signature
    said = [column["name"] for column in json.loads(written["inputs"] or "[]")]
    assert said == [spec.name for spec in inputs]


def test_a_batched_config_has_the_batch_dimension_in_front() -> None:
    config = ModelConfig.parse(
        'max_batch_size: 8 input { name: "X" data_type: TYPE_FP32 dims: [ 3, -1 ] }'
    )
    assert config_tensors(config).inputs == (TensorSpec("X", "FP32", (-1, 3, -1)),)


def test_an_unbatched_config_has_its_dims() -> None:
    config = ModelConfig.parse('input { name: "X" data_type: TYPE_INT8 dims: [ 3, 2 ] }')
    assert config_tensors(config).inputs == (TensorSpec("X", "INT8", (3, 2)),)


def test_strings_are_str_in_mlflows_words() -> None:
    signature = model_signature(Tensors((TensorSpec("X", "BYTES", (-1,)),)))
    assert signature is not None
    assert json.loads(signature.to_dict()["inputs"])[0]["tensor-spec"]["dtype"] == "str"


def test_an_optional_input_is_listed_like_the_others() -> None:
    """MLflow's TensorSpec has no word for optional."""
    config = ModelConfig.parse('input { name: "X" data_type: TYPE_FP32 dims: 1 optional: true }')
    signature = model_signature(config_tensors(config))
    assert signature is not None
    assert signature.inputs.input_names() == ["X"]


def test_a_side_with_bf16_is_left_out_and_the_other_kept() -> None:
    """An MLmodel that names bfloat16 cannot be opened where ml_dtypes is not imported."""
    config = ModelConfig.parse(
        'input { name: "X" data_type: TYPE_BF16 dims: 1 } '
        'output { name: "Y" data_type: TYPE_FP32 dims: 1 }'
    )
    tensors = config_tensors(config)
    signature = model_signature(tensors)
    assert signature is not None
    assert signature.inputs is None
    assert signature.outputs.input_names() == ["Y"]
    assert "BF16" in tensors.notes[0]


def test_a_directory_without_config_takes_the_onnx_graphs_tensors(
    tmp_path: Path, make_onnx: Callable[..., Path]
) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    make_onnx(tmp_path / "net" / "1" / "model.onnx")
    tensors = plan_model(tmp_path / "net").tensors
    assert tensors.inputs == (TensorSpec("X", "FP32", (-1, 128)),)
    assert tensors.outputs == (TensorSpec("Y", "FP32", (-1, 128)),)


def test_a_directory_that_says_nothing_has_no_signature(python_model: Path) -> None:
    (python_model / "config.pbtxt").write_text('backend: "python"')
    assert model_signature(plan_model(python_model).tensors) is None


@pytest.mark.parametrize("config", [True, False])
def test_a_shape_that_the_graph_leaves_open_comes_from_the_config(
    tmp_path: Path, make_onnx: Callable[..., Path], *, config: bool
) -> None:
    path = make_onnx(tmp_path / "net.onnx", rank=False)
    if config:
        (tmp_path / "config.pbtxt").write_text(
            'max_batch_size: 2 input { name: "X" data_type: TYPE_FP32 dims: 128 } '
            'output { name: "Y" data_type: TYPE_FP32 dims: 128 }'
        )
    tensors = plan_model(path).tensors
    assert tensors.inputs == ((TensorSpec("X", "FP32", (-1, 128)),) if config else ())
    assert bool(tensors.notes) != config
