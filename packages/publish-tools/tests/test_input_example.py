"""Models published with examples: what MLflow reads back, what is deployed, what is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
import pytest
from hypothesis import given, settings
from mlflow.models import Model

from mlflow_triton_plugin.predict import ModelSchema, to_tensors
from mlflow_triton_plugin.response import Prediction, outputs_from_json
from publish_tools import onnx_file as onnx_flavor
from publish_tools import plan_model, publish_model, save_model
from publish_tools.cli import main
from publish_tools.examples import INPUT_EXAMPLE
from publish_tools.plan import content_digest
from triton_repo.artifact import OUTPUT_EXAMPLE
from triton_repo.errors import ArtifactError
from triton_repo.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

X = {"X": [[1.0, 2.5, 3.0, 4.0]]}
Y = {"Y": [["a"]]}


def loaded(path: Path) -> Any:
    return Model.load(str(path)).load_input_example(str(path))


def config(datatype: str) -> str:
    name = DATATYPES[datatype].config_name
    return (
        f'backend: "python" input {{ name: "X" data_type: {name} dims: -1 }} '
        f'output {{ name: "Y" data_type: {name} dims: -1 }}'
    )


def schema(datatype: str, shape: tuple[int, ...] = (-1,)) -> ModelSchema:
    return ModelSchema(
        "m", "1", (TensorSpec("X", datatype, shape),), (TensorSpec("Y", datatype, shape),)
    )


@pytest.mark.parametrize("form", ["names", "arrays", "wrapped", "a file of names", "a file"])
def test_every_form_is_saved_as_the_same_two_files(
    python_model: Path, tmp_path: Path, form: str
) -> None:
    given_x: Any = X
    given_y: Any = Y
    if form == "arrays":
        given_x = {"X": np.array(X["X"], np.float32)}
        given_y = Prediction(
            {"Y": np.array([[b"a"]], dtype=object)}, model_name="m", model_version="1"
        )
    if form in ("wrapped", "a file"):
        given_x, given_y = {"inputs": X}, {"outputs": Y}
    if form.startswith("a file"):
        for name, document in (("in", given_x), ("out", given_y)):
            (tmp_path / name).write_text(json.dumps(document))
        given_x, given_y = tmp_path / "in", str(tmp_path / "out")
    save_model(python_model, tmp_path / "saved", input_example=given_x, output_example=given_y)
    assert (tmp_path / "saved" / INPUT_EXAMPLE).read_bytes() == b'{"X":[[1.0,2.5,3.0,4.0]]}'
    assert (tmp_path / "saved" / OUTPUT_EXAMPLE).read_bytes() == b'{"outputs":{"Y":[["a"]]}}'
    assert np.array_equal(loaded(tmp_path / "saved")["X"], X["X"])


VALUES: dict[str, st.SearchStrategy[Any]] = {
    name: hnp.arrays(datatype.numpy, st.integers(1, 5))
    for name, datatype in DATATYPES.items()
    if name not in ("BYTES", "BF16")
}
VALUES["BYTES"] = st.lists(st.binary() | st.text().map(str.encode), min_size=1, max_size=5).map(
    lambda values: np.array([*values, None], dtype=object)[:-1]
)
VALUES["BF16"] = VALUES["FP32"].map(lambda array: array.astype(ml_dtypes.bfloat16))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(DATATYPES)))
def test_the_deployment_sends_and_expects_exactly_what_was_given(
    data: st.DataObject, datatype: str
) -> None:
    """Through MLflow's reader, for every datatype: large integers, NaN, infinity, bytes."""
    array = data.draw(VALUES[datatype])
    with tempfile.TemporaryDirectory() as folder:
        source, saved = Path(folder, "m"), Path(folder, "saved")
        (source / "1").mkdir(parents=True)
        (source / "1" / "model.py").touch()
        (source / "config.pbtxt").write_text(config(datatype))
        save_model(source, saved, input_example={"X": array}, output_example={"Y": array})
        sent = to_tensors(loaded(saved), schema(datatype))["X"]
        expected = outputs_from_json((saved / OUTPUT_EXAMPLE).read_bytes(), {"Y": datatype})["Y"]
    wanted = to_tensors({"X": array}, schema(datatype))["X"]
    for found in (sent, expected):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("values", [[1.5], [None], ["1"], [2**31]])
def test_values_of_another_type_are_not_cast_behind_the_deployments_back(
    python_model: Path, tmp_path: Path, values: list[Any]
) -> None:
    """MLflow would make 1.5 the integer 1 before the deployment could refuse it."""
    (python_model / "config.pbtxt").write_text(config("INT32"))
    save_model(python_model, tmp_path / "saved", input_example={"X": values})
    assert loaded(tmp_path / "saved")["X"] == values


@pytest.mark.usefixtures("registry")
def test_the_onnx_flavors_example_goes_straight_into_mlflows_own_predict(
    onnx_file: Path, tmp_path: Path
) -> None:
    """Logging does not run the model, though: MLflow does where there is an example to serve."""
    example = {"inputs": {"X": [list(range(128))]}}
    with mlflow.start_run():
        info = onnx_flavor.log_model(
            onnx_file, input_example=example, output_example={"Y": example["inputs"]["X"]}
        )
    model = mlflow.pyfunc.load_model(info.model_uri)
    answer = model.predict(model.input_example)
    raw = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(tmp_path)))
    wanted = outputs_from_json((raw / OUTPUT_EXAMPLE).read_bytes(), {"Y": "FP32"})
    assert np.array_equal(answer["Y"], wanted["Y"])
    tensors = to_tensors(loaded(raw), schema("FP32", (-1, 128)))
    assert tensors["X"].shape == (1, 128)
    assert Model.load(str(raw)).get_serving_input(str(raw)) is None


REFUSED: dict[str, tuple[object, object, str]] = {
    "no JSON": ("{", None, "in: it is not JSON: "),
    "no object": ([1], None, 'in: expected {"inputs": {name: values}}'),
    "nothing": ({}, None, 'in: expected {"inputs": {name: values}}'),
    "another wrapping": ({"instances": [[1]]}, None, 'has no input "instances"; it has X FP32'),
    "an unknown name": ({"Z": 1, **X}, None, 'has no input "Z"; it has X FP32[-1, 4]'),
    "no names": ({"inputs": {}}, None, 'in: expected {"inputs": {name: values}}'),
    "ragged rows": ({"X": [[1, 2], [3]]}, None, "input X is ragged"),
    "no batch": ({"X": [1, 2, 3, 4]}, None, "has shape [4], and the model has X FP32[-1, 4]"),
    "an object": ({"X": [{"a": 1}]}, None, "input X holds a value of type dict"),
    "an unknown answer": (X, {"outputs": {"Q": []}}, 'out: the model has no output "Q"'),
    "an answer only": (None, {"outputs": Y}, "give that (input_example), too"),
}


@pytest.mark.parametrize("label", REFUSED)
def test_an_example_that_does_not_fit_is_one_line_and_makes_nothing_in_mlflow(
    nothing_made: Callable[[], bool],
    python_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments: dict[str, str] = {}
    for kind, document in zip(("in", "out"), REFUSED[label][:2], strict=True):
        if document is not None:
            text = document if isinstance(document, str) else json.dumps(document)
            Path(kind).write_text(text)
            arguments[f"{kind}put_example"] = kind
    with pytest.raises(ArtifactError) as caught:
        publish_model("identity", python_model, **arguments)  # type: ignore[arg-type]
    assert REFUSED[label][2] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert nothing_made()


def test_a_needed_input_must_be_there_and_an_optional_one_need_not(python_model: Path) -> None:
    two = config("FP32") + ' input { name: "W" data_type: TYPE_BF16 dims: 1 {more} }'
    path = python_model / "config.pbtxt"
    path.write_text(two.replace("{more}", ""))
    with pytest.raises(ArtifactError, match=r"W BF16\[1\] is missing"):
        plan_model(python_model, input_example={"X": [1.0]})
    path.write_text(two.replace("{more}", "optional: true"))
    assert plan_model(python_model, input_example={"X": [1.0]}).examples.inputs == {"X": [1.0]}


def test_names_are_the_users_own_where_nothing_says_them(python_model: Path) -> None:
    (python_model / "config.pbtxt").write_text('backend: "python"')
    plan = plan_model(python_model, input_example={"anything": 1}, output_example={"Q": 2})
    assert list(plan.examples.files) == [INPUT_EXAMPLE, OUTPUT_EXAMPLE]


def test_a_date_is_no_value_of_a_tensor(python_model: Path) -> None:
    for values in (np.array([["2020-01-01"] * 4], "datetime64[ns]"), [[object()] * 4]):
        with pytest.raises(ArtifactError, match="which a tensor cannot"):
            plan_model(python_model, input_example={"X": values})


@pytest.mark.usefixtures("registry")
def test_another_example_is_a_change(python_model: Path) -> None:
    def publish(**examples: Any) -> int | None:
        return publish_model("identity", python_model, only_if_changed=True, **examples).version

    assert [publish(), publish(input_example=X), publish(input_example={"inputs": X})] == [1, 2, 2]
    assert publish(input_example=X, output_example=Y) == 3
    assert publish(input_example=X, output_example={"outputs": {"Y": [["b"]]}}) == 4
    without = content_digest(plan_model(python_model))
    assert content_digest(plan_model(python_model, input_example=X)) != without


@pytest.mark.usefixtures("registry")
def test_the_command_publishes_both_and_lists_them(
    python_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, document in (("in.json", {"inputs": X}), ("out.json", {"outputs": Y})):
        (tmp_path / name).write_text(json.dumps(document))
    arguments = ["--model_directory", str(python_model), "--json"]
    arguments += ["--input_example", str(tmp_path / "in.json")]
    arguments += ["--output-example", str(tmp_path / "out.json")]
    files = ["identity/config.pbtxt", "identity/1/model.py", INPUT_EXAMPLE, OUTPUT_EXAMPLE]
    for extra in (["--dry_run"], []):
        assert main([*arguments, *extra]) == 0
        assert json.loads(capsys.readouterr().out)["files"] == files
    raw = Path(mlflow.artifacts.download_artifacts("models:/identity/1", dst_path=str(tmp_path)))
    assert (raw / OUTPUT_EXAMPLE).read_bytes() == b'{"outputs":{"Y":[["a"]]}}'
    assert to_tensors(loaded(raw), schema("FP32", (-1, 4)))["X"].tolist() == X["X"]


def test_a_file_that_is_not_there_is_one_line(
    python_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model_directory", str(python_model), "--input-example", "missing.json"]
    assert main(arguments) == 1
    said = "publish-model: missing.json: it cannot be read: No such file or directory\n"
    assert capsys.readouterr().err == said
