from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import mlflow
import mlflow.onnx
import mlflow.pyfunc
import numpy as np
import pytest
from mlflow.models import Model

from publish_tools import onnx_file as flavor
from triton_repo.artifact import ModelArtifact
from triton_repo.errors import ArtifactError
from triton_repo.flavors import convert
from triton_repo.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.usefixtures("registry")
def test_a_logged_file_is_what_mlflow_itself_loads_and_runs(onnx_file: Path) -> None:
    with mlflow.start_run():
        info = flavor.log_model(onnx_file)
    x = np.arange(256, dtype=np.float32).reshape(2, 128)
    answer = mlflow.pyfunc.load_model(info.model_uri).predict({"X": x})
    assert np.array_equal(answer["Y"], x)
    loaded = mlflow.onnx.load_model(info.model_uri)
    assert [tensor.name for tensor in loaded.graph.input] == ["X"]


def test_mlmodel_says_what_mlflows_own_flavor_says(onnx_file: Path, tmp_path: Path) -> None:
    flavor.save_model(onnx_file, tmp_path / "ours")
    model = mlflow.onnx.load_model(str(tmp_path / "ours"))
    mlflow.onnx.save_model(model, tmp_path / "theirs", pip_requirements=["onnx"])
    ours, theirs = (Model.load(str(tmp_path / name)) for name in ("ours", "theirs"))
    assert ours.flavors["python_function"] == theirs.flavors["python_function"]
    assert {**theirs.flavors["onnx"], **ours.flavors["onnx"]} == ours.flavors["onnx"]
    names = {path.name for path in (tmp_path / "theirs").iterdir() if path.suffix != ".data"}
    assert names <= {path.name for path in (tmp_path / "ours").iterdir()}


def test_the_bytes_are_uploaded_as_they_are(onnx_file: Path, tmp_path: Path) -> None:
    flavor.save_model(onnx_file, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.onnx").read_bytes() == onnx_file.read_bytes()


def test_a_config_beside_the_file_reaches_the_repository_entry(
    onnx_file: Path, tmp_path: Path
) -> None:
    text = (
        '# mine\nmax_batch_size: 16\ninput { name: "X" data_type: TYPE_FP32 dims: 128 }\n'
        'output { name: "Y" data_type: TYPE_FP32 dims: 128 label_filename: "labels.txt" }\n'
    )
    (onnx_file.parent / "config.pbtxt").write_text(text)
    (onnx_file.parent / "labels.txt").write_text("a\n")
    flavor.save_model(onnx_file, tmp_path / "saved")
    artifact = ModelArtifact.open(tmp_path / "saved")
    entry = convert(artifact, flavor="onnx", name=check_name("net"), version=1)
    assert entry.config is not None
    assert entry.config.text == text
    assert entry.shared.names() == ["labels.txt"]
    assert entry.versions[1].names() == ["model.onnx", "weights/w.bin"]


def test_a_file_that_is_no_model_makes_nothing_in_mlflow(
    nothing_made: Callable[[], bool], tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ArtifactError):
        flavor.log_model(tmp_path / "x.onnx")
    assert nothing_made()


MEASURE = """
import resource, sys
from pathlib import Path
from publish_tools import onnx_file
from publish_tools._single_files import plan_onnx
from publish_tools.plan import content_digest

def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

source = Path(sys.argv[1])
plan_onnx(source)  # imports onnx
before = peak_kb()
content_digest(plan_onnx(source))
onnx_file.save_model(source, sys.argv[2])
print(peak_kb() - before)
"""


def test_memory_does_not_grow_with_the_weights(onnx_file: Path, tmp_path: Path) -> None:
    with (onnx_file.parent / "weights" / "w.bin").open("r+b") as file:
        file.truncate(300_000_000)
    arguments = [sys.executable, "-c", MEASURE, str(onnx_file), str(tmp_path / "saved")]
    result = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=120)
    assert int(result.stdout) < 50_000
