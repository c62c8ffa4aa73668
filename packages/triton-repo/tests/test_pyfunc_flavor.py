"""Any MLflow model: what is made of its signature. The plugin's tests run the models."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError, ConfigError
from triton_repo.flavors import choose_flavor, convert
from triton_repo.names import check_name
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from triton_repo.config import ModelConfig
    from triton_repo.entry import RepositoryEntry


def column(name: str | None, kind: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {} if name is None else {"name": name}
    return {**({"type": kind} if isinstance(kind, str) else kind), **named, **more}


def tensor(name: str | None, dtype: str, *shape: int) -> dict[str, Any]:
    spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
    return spec if name is None else {"name": name, **spec}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def entry_of(root: Path, **sides: list[dict[str, Any]]) -> RepositoryEntry:
    signature = {side: json.dumps(columns) for side, columns in sides.items()}
    document = {"flavors": {"python_function": {"loader_module": "x"}}, "signature": signature}
    (root / "MLmodel").write_text(json.dumps(document))
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / "model.pkl").write_bytes(b"model")
    artifact = ModelArtifact.open(root)
    return convert(artifact, flavor=choose_flavor(artifact), name=check_name("m"), version=7)


def test_a_model_that_answers_in_pieces_is_decoupled(tmp_path: Path) -> None:
    def config(flavor: dict[str, Any]) -> ModelConfig:
        signature = {side: json.dumps(LONG) for side in ("inputs", "outputs")}
        document = {"flavors": {"python_function": flavor}, "signature": signature}
        (tmp_path / "MLmodel").write_text(json.dumps(document))
        artifact = ModelArtifact.open(tmp_path)
        entry = convert(artifact, flavor="python_function", name=check_name("m"), version=7)
        assert entry.config is not None
        return entry.config

    assert config({"streamable": True}).is_decoupled
    # by which clients know who answers, too
    assert config({"streamable": True}).parameters["mlflow_streams"] == "32"
    for flavor in ({"streamable": False}, {}):
        assert not config(flavor).is_decoupled
        assert config(flavor).parameters.keys() == {"mlflow_join_requests"}


def config_of(root: Path, **sides: list[dict[str, Any]]) -> ModelConfig:
    config = entry_of(root, **sides).config
    assert config is not None
    return config


LONG = [column("y", "long")]


def test_a_version_is_the_shim_and_the_model_as_it_was_logged(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, inputs=LONG, outputs=LONG)
    assert entry.flavor == "python_function"
    assert list(entry.versions) == [7]
    files = {str(file.path): file.source for file in entry.versions[7].files}
    shim = {
        *("model.py", "mlflow_triton_channel.py"),
        *("mlflow_triton_worker.py", "mlflow_triton_values.py"),
    }
    assert set(files) == shim | {"mlflow/MLmodel", "mlflow/data/model.pkl"}
    assert "class TritonPythonModel" in files["model.py"].read_text()
    assert files["mlflow/data/model.pkl"] == tmp_path / "data" / "model.pkl"
    assert not entry.has_own_config


@pytest.mark.parametrize(
    ("kind", "datatype", "dims"),
    [
        ("boolean", "BOOL", (1,)),
        ("integer", "INT32", (1,)),
        ("long", "INT64", (1,)),
        ("float", "FP32", (1,)),
        ("double", "FP64", (1,)),
        ("string", "BYTES", (1,)),
        ("binary", "BYTES", (1,)),
        ("datetime", "BYTES", (1,)),
        (array({"type": "double"}), "FP64", (-1,)),
        (array(array({"type": "long"})), "INT64", (-1, -1)),
        (array({"type": "string"}), "BYTES", (-1,)),
        ({"type": "object", "properties": {"a": {"type": "long"}}}, "BYTES", (1,)),
        ({"type": "map", "values": {"type": "long"}}, "BYTES", (1,)),
        ({"type": "any"}, "BYTES", (1,)),
        (array({"type": "object", "properties": {}}), "BYTES", (1,)),
    ],
)
def test_a_column_is_a_tensor_with_a_row_a_row(
    tmp_path: Path, kind: Any, datatype: str, dims: tuple[int, ...]
) -> None:
    config = config_of(tmp_path, inputs=[column("x y", kind)], outputs=[column("z", kind)])
    assert config.inputs == (TensorSpec("x y", datatype, dims),)
    assert config.outputs == (TensorSpec("z", datatype, dims),)
    assert config.max_batch_size > 0
    assert config.backend == "python"
    assert not config.is_dynamic  # a python_model may look at all rows


def test_what_is_json_is_said_where_a_client_can_read_it(tmp_path: Path) -> None:
    objects = column("o", {"type": "any"})
    config = config_of(
        tmp_path,
        inputs=[objects, column("x", "string")],
        outputs=[column("x", "string"), objects],
        params=[{"name": "k", "type": "double", "default": 1.0, "shape": None}],
    )
    lists = {key: text for key, text in config.parameters.items() if text.startswith("[")}
    assert {key: json.loads(text) for key, text in lists.items()} == {
        "mlflow_params": ["k"],
        "mlflow_json_inputs": ["o"],
        "mlflow_json_outputs": ["o"],
    }


def test_inputs_that_take_lists_of_objects_are_said(tmp_path: Path) -> None:
    objects = array({"type": "object", "properties": {}})
    inputs = [column("m", objects), column("o", "any"), column("s", array({"type": "string"}))]
    config = config_of(tmp_path, inputs=inputs, outputs=LONG)
    assert json.loads(config.parameters["mlflow_json_inputs"]) == ["m", "o"]
    assert json.loads(config.parameters["mlflow_json_lists"]) == ["m"]


def test_what_bytes_hold_is_said(tmp_path: Path) -> None:
    inputs = [column(kind, kind) for kind in ("string", "binary", "datetime", "any", "long")]
    inputs.append(column("binaries", array(array({"type": "binary"}))))
    types = config_of(tmp_path, inputs=inputs, outputs=LONG).parameters["mlflow_types"]
    assert json.loads(types) == {
        "string": "string",
        "binary": "binary",
        "datetime": "datetime",
        "binaries": "binary",
    }
    tensors = [tensor(dtype, dtype, -1) for dtype in ("str", "object", "bytes", "<U5", "int64")]
    types = config_of(tmp_path, inputs=tensors, outputs=LONG).parameters["mlflow_types"]
    assert json.loads(types) == dict.fromkeys(["str", "object", "bytes", "<U5"], "bytes")


def test_columns_without_names_are_said(tmp_path: Path) -> None:
    def is_said(*inputs: dict[str, Any]) -> bool:
        parameters = config_of(tmp_path, inputs=list(inputs), outputs=LONG).parameters
        return parameters.get("mlflow_unnamed") == "true"

    assert is_said(column(None, "string"))
    assert is_said(column(None, "long"), column(None, "double"))
    assert not is_said(column("x", "string"))
    assert not is_said(tensor(None, "float32", -1, 2))


@pytest.mark.parametrize("name", ["choices", "messages"])
def test_a_chat_answers_one_json_text_whatever_its_keys(tmp_path: Path, name: str) -> None:
    """Triton has no optional outputs, and pieces have other keys than answers."""
    objects = array({"type": "object", "properties": {}})
    outputs = [column("id", "string"), column(name, objects), column("u", "any", required=False)]
    config = config_of(tmp_path, inputs=LONG, outputs=outputs)
    assert config.outputs == (TensorSpec("predictions", "BYTES", (1,)),)
    assert json.loads(config.parameters["mlflow_json_outputs"]) == ["predictions"]
    assert "one JSON text" in config.text


def test_others_keep_their_outputs(tmp_path: Path) -> None:
    outputs = [column("choices", array({"type": "string"})), column("u", "any", required=False)]
    config = config_of(tmp_path, inputs=LONG, outputs=outputs)
    assert [spec.name for spec in config.outputs] == ["choices", "u"]


def test_what_may_be_left_out_is_optional(tmp_path: Path) -> None:
    columns = [column("a", "long"), column("b", "long", required=False)]
    assert [spec.optional for spec in config_of(tmp_path, inputs=columns, outputs=LONG).inputs] == [
        False,
        True,
    ]


def test_tensors_that_begin_with_the_batch_are_batched(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        inputs=[tensor("a", "float32", -1, 4, -1), tensor("b", "uint8", -1)],
        outputs=[tensor(None, "bfloat16", -1, 2)],
    )
    assert config.max_batch_size > 0
    assert config.inputs == (TensorSpec("a", "FP32", (4, -1)), TensorSpec("b", "UINT8", (1,)))
    assert config.outputs == (TensorSpec("predictions", "BF16", (2,)),)


def test_tensors_that_do_not_are_not(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, inputs=[tensor(None, "float32", 3, 4)], outputs=[tensor(None, "float32", -1)]
    )
    assert config.max_batch_size == 0
    assert config.inputs == (TensorSpec("inputs", "FP32", (3, 4)),)
    assert config.outputs == (TensorSpec("predictions", "FP32", (-1,)),)
    assert "dynamic_batching" not in config.text


def test_columns_without_names_have_their_position(tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs=[column(None, "long")] * 2, outputs=[column(None, "long")])
    assert [spec.name for spec in config.inputs] == ["0", "1"]
    assert [spec.name for spec in config.outputs] == ["predictions"]


def test_without_an_output_signature_rows_are_json(tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs=LONG)
    assert config.outputs == (TensorSpec("predictions", "BYTES", (1,)),)
    assert "JSON text" in config.text


def test_without_a_signature_the_line_that_adds_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"mlflow\.models\.set_signature\(model_uri, mlflow"):
        entry_of(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("datetime64[ns]", "ColSpec(\"datetime\", 't')"),
        ("timedelta64[ns]", "ColSpec(\"double\", 't'), in seconds"),
        ("complex64", "two columns of double"),
        ("float128", "ColSpec(\"double\", 't')"),
        ("float8_e4m3fn", "float16"),
        ("void", "no such type"),
    ],
)
def test_what_triton_has_no_type_for_is_named_with_what_to_log_instead(
    tmp_path: Path, dtype: str, advice: str
) -> None:
    columns = [tensor("ok", "float32", -1), tensor("t", dtype, -1), tensor("u", dtype, -1)]
    with pytest.raises(ArtifactError, match=r"signature\.inputs") as caught:
        entry_of(tmp_path, inputs=columns, outputs=LONG)
    said = str(caught.value)
    assert f"column 't' is Tensor({dtype}, (-1,))" in said
    assert "column 'u'" in said
    assert "'ok'" not in said
    assert advice in said


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="'y' more than once"):
        entry_of(tmp_path, inputs=LONG * 2, outputs=LONG)


def test_a_config_of_the_users_keeps_its_bytes(tmp_path: Path) -> None:
    text = '# mine\nbackend: "python" max_batch_size: 8\noutput { name: "y" label_filename: "l" }\n'
    (tmp_path / "extra_files").mkdir()
    (tmp_path / "extra_files" / "config.pbtxt").write_text(text)
    (tmp_path / "extra_files" / "l").write_text("a\n")
    entry = entry_of(tmp_path)
    assert entry.has_own_config
    assert entry.config is not None
    assert entry.config.text == text
    assert [file.path for file in entry.shared.files] == [PurePosixPath("l")]


def test_a_config_for_another_backend_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('backend: "onnxruntime"')
    with pytest.raises(ConfigError, match="'onnxruntime'"):
        entry_of(tmp_path, inputs=LONG)
