"""A model that `mlflow.onnx` logged becomes one that Triton loads, with nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from triton_repo.artifact import ModelArtifact
from triton_repo.errors import (
    ArtifactError,
    ConfigError,
    MissingModelFileError,
    TritonRepoError,
    UnsupportedFlavorError,
)
from triton_repo.flavors import SUPPORTED_FLAVORS, choose_flavor, convert
from triton_repo.flavors.onnx import GENERATED_MAX_BATCH_SIZE, generate_config
from triton_repo.flavors.onnx_graph import GraphTensor, OnnxGraph
from triton_repo.joining import Joining, joining_of
from triton_repo.names import check_name
from triton_repo.store import LocalStore
from triton_repo.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from triton_repo.config import ModelConfig
    from triton_repo.entry import RepositoryEntry

WEIGHTS = np.arange(2048, dtype=np.float32).reshape(4, 512)


def value(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def product(**parts: Any) -> onnx.ModelProto:
    """`y = x @ weights`, [batch, 4] to [batch, 512]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        parts.get("inputs", [value("x", ["batch", 4])]),
        parts.get("outputs", [value("y", ["batch", 512])]),
        initializer=[numpy_helper.from_array(WEIGHTS, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


class Logged:
    """An artifact as `mlflow.onnx` writes it."""

    def __init__(self, root: Path, *, data: str = "model.onnx") -> None:
        self.root = root
        self.data = data
        self.signature: dict[str, str] = {}
        self.beside: dict[str, Path] = {}
        root.mkdir()

    def add(self, path: str, content: bytes | str = b"") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def add_model(self, path: str = "model.onnx", **parts: Any) -> None:
        self.add(path, product(**parts).SerializeToString())

    def convert(self, version: int = 3) -> RepositoryEntry:
        document = {"flavors": {"onnx": {"data": self.data}}, "signature": self.signature}
        self.add("MLmodel", yaml.safe_dump(document))
        artifact = ModelArtifact.open(self.root, beside=self.beside)
        return convert(artifact, flavor="onnx", name=check_name("resnet"), version=version)

    def config(self) -> ModelConfig:
        config = self.convert().config
        assert config is not None
        return config


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path / "artifact")


def sources(entry: RepositoryEntry) -> dict[str, Path]:
    """Every planned file, by its path in the model's directory."""
    trees = {f"{number}/": tree for number, tree in entry.versions.items()} | {"": entry.shared}
    return {f"{at}{file.path}": file.source for at, tree in trees.items() for file in tree.files}


# -- the model and its weights ------------------------------------------------------------------


def test_a_model_is_placed_under_the_name_triton_looks_for(logged: Logged) -> None:
    """`model.onnx` in the version directory, whatever it was called."""
    logged.data = "my net.onnx"
    logged.add_model("my net.onnx")
    logged.add("requirements.txt")
    entry = logged.convert(version=7)
    assert sources(entry) == {"7/model.onnx": logged.root / "my net.onnx"}
    assert entry.name == "resnet"
    assert entry.flavor == "onnx"


@pytest.mark.parametrize("data", ["model.onnx", "net/model.onnx", "net/"])
@pytest.mark.parametrize("location", ["0a1b.data", "weights/0a1b.data"])
def test_external_data_comes_along_and_the_placed_model_runs(
    logged: Logged, tmp_path: Path, data: str, location: str
) -> None:
    """ONNX Runtime finds it where the graph says, in the version directory too."""
    logged.data = data
    base = logged.root / (data if data.endswith("/") else str(Path(data).parent))
    (base / location).parent.mkdir(parents=True, exist_ok=True)
    model = product()
    onnx.save(
        model,
        base / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=location,
        size_threshold=0,
    )
    entry = logged.convert()
    assert set(sources(entry)) == {"3/model.onnx", f"3/{location}"}
    (tmp_path / "repository").mkdir()
    LocalStore(tmp_path / "repository").place("resnet/3", entry.versions[3])
    session = onnxruntime.InferenceSession(tmp_path / "repository" / "resnet" / "3" / "model.onnx")
    x = np.ones((2, 4), dtype=np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ WEIGHTS)


def test_a_directory_of_its_own_comes_along_whole(logged: Logged) -> None:
    """Tokenizers and the like; a config.pbtxt in it is not the model's."""
    logged.data = "net"
    logged.add_model("net/model.onnx")
    logged.add("net/vocab/words.txt")
    logged.add("net/config.pbtxt")
    logged.add("requirements.txt")
    assert set(sources(logged.convert())) == {"3/model.onnx", "3/vocab/words.txt"}


def test_a_directory_must_say_which_model_is_meant(logged: Logged) -> None:
    logged.data = "net"
    (logged.root / "net").mkdir()
    with pytest.raises(MissingModelFileError, match=r"holds 0 \.onnx files"):
        logged.convert()
    logged.add_model("net/b.onnx")
    assert set(sources(logged.convert())) == {"3/model.onnx"}
    logged.add_model("net/a.onnx")
    with pytest.raises(MissingModelFileError, match=r"holds 2 \.onnx files"):
        logged.convert()
    logged.add_model("net/model.onnx")
    assert sources(logged.convert())["3/model.onnx"] == logged.root / "net" / "model.onnx"


def test_another_model_under_the_name_triton_looks_for_is_refused(logged: Logged) -> None:
    """MLmodel names one, and Triton would load the other."""
    logged.data = "net/mine.onnx"
    logged.add_model("net/mine.onnx")
    logged.add_model("net/model.onnx")
    with pytest.raises(ArtifactError, match=r"another model\.onnx than mine\.onnx"):
        logged.convert()


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../secret", "a/../../secret", "link", "", ".", "net", "gone"]
)
@pytest.mark.parametrize("data", ["model.onnx", "net"])
def test_external_data_outside_the_model_is_refused(
    logged: Logged, location: str, data: str
) -> None:
    """A graph is text from somebody else, too."""
    (logged.root.parent / "secret").write_text("secret")
    logged.data = data
    model = product()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    base = logged.root / "net" if data == "net" else logged.root
    (logged.root / "net" / "net").mkdir(parents=True)
    (base / "link").symlink_to("/etc/hostname")
    (base / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError):
        logged.convert()


@pytest.mark.parametrize("data", ["/etc/hostname", "../secret", "gone.onnx", "", None])
def test_a_model_file_outside_the_model_is_refused(logged: Logged, data: Any) -> None:
    (logged.root.parent / "secret").write_bytes(product().SerializeToString())
    logged.data = data
    with pytest.raises(ArtifactError, match="MLmodel's onnx flavor"):
        logged.convert()


# -- the user's config ------------------------------------------------------------------------

CONFIG = '# tuned\nbackend:"onnxruntime"; max_batch_size : 8 # why 8\n'


@pytest.mark.parametrize("where", ["config.pbtxt", "extra_files/config.pbtxt", "beside"])
def test_a_users_config_is_found_and_keeps_its_bytes(logged: Logged, where: str) -> None:
    """In the model, among its extra files, or logged beside it with mlflow.log_artifact."""
    logged.add_model()
    if where == "beside":
        logged.beside["config.pbtxt"] = logged.root.parent / "config.pbtxt"
        logged.beside["config.pbtxt"].write_text(CONFIG)
    else:
        logged.add(where, CONFIG)
    assert logged.config().text == CONFIG


def test_what_was_logged_last_counts(logged: Logged) -> None:
    """Beside the model comes after it, and the model's own before its extra files."""
    logged.add_model()
    logged.add("extra_files/config.pbtxt", "# extra")
    assert logged.config().text == "# extra"
    logged.add("config.pbtxt", "# own")
    assert logged.config().text == "# own"
    logged.beside["config.pbtxt"] = logged.add("../beside", "# beside")
    assert logged.config().text == "# beside"


def test_only_a_clashing_name_and_a_pin_are_changed(logged: Logged) -> None:
    """Triton refuses a name that is not the directory's, and a version that is not there."""
    logged.add_model()
    logged.add("config.pbtxt", 'name: "old" # mine\nversion_policy { specific { versions: 1 } }\n')
    assert logged.config().text == (
        'name: "resnet" # mine\nversion_policy: { specific { versions: [ 3 ] } }\n'
    )


def test_a_broken_config_is_refused_by_its_path(logged: Logged) -> None:
    logged.add_model()
    logged.add("config.pbtxt", "max_batch_size: many")
    with pytest.raises(ConfigError, match=str(logged.root / "config.pbtxt")):
        logged.convert()


def test_the_users_file_name_is_the_one_placed(logged: Logged) -> None:
    logged.add_model()
    logged.add("config.pbtxt", 'default_model_filename: "sub/net.onnx"')
    assert set(sources(logged.convert())) == {"3/sub/net.onnx"}


def test_another_backend_gets_the_file_under_its_own_name(logged: Logged) -> None:
    """OpenVINO and TensorRT read ONNX too."""
    logged.data = "net.onnx"
    logged.add_model("net.onnx")
    logged.add("config.pbtxt", 'backend: "openvino"')
    assert set(sources(logged.convert())) == {"3/net.onnx"}


@pytest.mark.parametrize("name", ["../../other/1/model.onnx", "/etc/x", "a/../../x", ".."])
def test_a_file_name_outside_the_version_is_refused(logged: Logged, name: str) -> None:
    """It would be written there."""
    logged.add_model()
    logged.add("config.pbtxt", f'default_model_filename: "{name}"')
    with pytest.raises(ConfigError, match="outside the model") as caught:
        logged.convert()
    assert caught.value.field == "default_model_filename"


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("labels.txt", "labels.txt"),
        ("text/labels.txt", "text/labels.txt"),
        ("extra_files/labels.txt", "labels.txt"),
        ("extra_files/text/labels.txt", "text/labels.txt"),
        ("extra_files/labels.txt", "text/labels.txt"),
        ("beside", "labels.txt"),
    ],
)
def test_label_files_are_found_and_placed_where_the_config_names_them(
    logged: Logged, where: str, name: str
) -> None:
    logged.add_model()
    path = logged.add("../labels-beside" if where == "beside" else where, b"cat\ndog\n")
    if where == "beside":
        logged.beside[name] = path
    logged.add("config.pbtxt", f'output [{{ name: "y" label_filename: "{name}" }}]')
    planned = sources(logged.convert())
    assert planned[name].read_bytes() == b"cat\ndog\n"
    assert set(planned) == {"3/model.onnx", name}


def test_two_outputs_may_share_a_label_file(logged: Logged) -> None:
    logged.add_model()
    logged.add("labels.txt")
    logged.add(
        "config.pbtxt",
        'output [{ label_filename: "labels.txt" }, { label_filename: "labels.txt" }]',
    )
    assert logged.convert().shared.names() == ["labels.txt"]


def test_a_label_file_that_was_not_logged_is_named_with_what_to_do(logged: Logged) -> None:
    logged.add_model()
    logged.add("config.pbtxt", 'output { label_filename: "labels.txt" }')
    with pytest.raises(MissingModelFileError, match="add it with extra_files") as caught:
        logged.convert()
    assert caught.value.path == "labels.txt"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/hostname",
        "../secret",
        "config.pbtxt",
        "mlflow-meta.json",
        "1/model.onnx",
        "3.tmp/labels",
        ".hidden",
        "_mlflow_triton/journal.json",
    ],
)
def test_a_label_file_in_a_wrong_place_is_refused(logged: Logged, name: str) -> None:
    """It would be written over the record, the journal or a version directory."""
    logged.add_model()
    if not name.startswith(("/", "..")):
        logged.add(name)
    logged.add("config.pbtxt", f'output {{ label_filename: "{name}" }}')
    with pytest.raises(ConfigError) as caught:
        logged.convert()
    assert caught.value.field == "output[0].label_filename"


# -- the generated config ---------------------------------------------------------------------


def parsed(config: ModelConfig) -> model_config_pb2.ModelConfig:
    """What Triton's own protobuf reads."""
    message = model_config_pb2.ModelConfig()
    text_format.Parse(config.text, message)
    return message


def test_a_config_is_generated_from_the_graph(logged: Logged) -> None:
    """Complete, so that the model also loads where auto-complete is off."""
    logged.add_model()
    message = parsed(logged.config())
    assert (message.name, message.backend) == ("resnet", "onnxruntime")
    assert message.platform == "onnxruntime_onnx"
    assert message.max_batch_size == GENERATED_MAX_BATCH_SIZE
    assert message.HasField("dynamic_batching")
    assert [(each.name, list(each.dims)) for each in message.input] == [("x", [4])]
    assert [(each.name, list(each.dims)) for each in message.output] == [("y", [512])]


names = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10
) | st.sampled_from(['"quoted"', "new\nline", "it's", "back\\slash", "日本語", "{", "# x", "a:0"])
tensors = st.builds(
    GraphTensor,
    names,
    st.sampled_from(sorted(DATATYPES)),
    st.lists(st.just(-1) | st.integers(1, 2**40), max_size=4).map(tuple),
    st.sampled_from(["", "batch", "N"]),
).map(
    lambda tensor: (
        tensor
        if tensor.shape and tensor.shape[0] == -1
        else GraphTensor(tensor.name, tensor.datatype, tensor.shape)
    )
)


@given(st.lists(tensors, max_size=3), st.lists(tensors, min_size=1, max_size=3))
def test_every_dimension_of_every_tensor_is_generated_right(
    inputs: list[GraphTensor], outputs: list[GraphTensor]
) -> None:
    """Triton puts the batch in front of `dims` when `max_batch_size` is over 0."""
    graph = OnnxGraph(tuple(inputs), tuple(outputs), ())
    message = parsed(generate_config(graph, name="m"))
    for tensor, config in zip((*inputs, *outputs), (*message.input, *message.output), strict=True):
        assert config.name == tensor.name
        assert model_config_pb2.DataType.Name(config.data_type) == (
            DATATYPES[tensor.datatype].config_name
        )
        batch = (-1,) if message.max_batch_size else ()
        served = config.reshape.shape if config.HasField("reshape") else config.dims
        assert (*batch, *served) == tensor.shape
        assert len(config.dims) > 0
    assert message.HasField("dynamic_batching") == (message.max_batch_size > 0)


def test_a_sequence_is_not_taken_for_a_batch(logged: Logged) -> None:
    """Requests joined along it would be one longer sequence to the model."""
    logged.add_model(inputs=[value("x", ["seq", 4])], outputs=[value("y", ["seq", 4])])
    config = logged.config()
    assert (config.max_batch_size, config.is_dynamic) == (0, False)
    assert [spec.shape for spec in (*config.inputs, *config.outputs)] == [(-1, 4), (-1, 4)]
    joining = joining_of(config, "onnx")
    assert (joining.is_joined, joining.why) == (
        False,
        "the first dimensions ('seq') are no batch by their names",
    )


@pytest.mark.parametrize("names", [["seq", "seq"], ["s0", "s0"], ["a", "b"]])
def test_a_user_may_say_that_the_first_dimension_is_a_batch(names: list[str]) -> None:
    x, y = (GraphTensor(each, "FP32", (-1, 4), each) for each in names)
    graph = OnnxGraph((x,), (replace(y, name="y"),), ())
    config = generate_config(graph, name="m", batches=True)
    assert (config.max_batch_size > 0, config.is_dynamic) == (True, False)
    joined = config.overridden({"join_requests": "true"})
    assert joining_of(joined, "onnx") == Joining(
        is_joined=True, why="-C join_requests=true asks for it"
    )
    assert joined.is_dynamic


def test_a_graph_without_a_batch_cannot_be_joined() -> None:
    x = GraphTensor("x", "FP32", (2, 4))
    config = generate_config(OnnxGraph((x,), (replace(x, name="y"),), ()), name="m", batches=True)
    with pytest.raises(ConfigError, match="no batch dimension to join requests in"):
        config.overridden({"join_requests": "true"})


def test_a_tensor_that_is_only_its_batch_keeps_its_shape() -> None:
    """[N] without the batch would have no dims, which Triton refuses."""
    lonely = GraphTensor("x", "FP32", (-1,), "N")
    wide = GraphTensor("y", "FP32", (-1, 2), "N")
    message = parsed(generate_config(OnnxGraph((lonely,), (wide,), ()), name="m"))
    assert message.max_batch_size == 0
    assert [list(each.dims) for each in (*message.input, *message.output)] == [[-1], [-1, 2]]


def tensor_column(name: str, shape: str) -> str:
    named = f'"name": "{name}", ' if name else ""
    spec = f'"tensor-spec": {{"dtype": "float32", "shape": {shape}}}'
    return f'[{{{named}"type": "tensor", {spec}}}]'


@pytest.mark.parametrize("name", ["x", ""])
def test_a_shape_that_the_graph_leaves_open_comes_from_the_signature(
    logged: Logged, name: str
) -> None:
    """By name, or the only one there is."""
    logged.add_model(inputs=[value("x", None)])
    logged.signature = {"inputs": tensor_column(name, "[-1, 4]")}
    message = parsed(logged.config())
    assert message.max_batch_size == GENERATED_MAX_BATCH_SIZE
    assert list(message.input[0].dims) == [4]


@pytest.mark.parametrize("signature", [{}, {"inputs": tensor_column("other", "[-1, 4]")}])
def test_a_shape_that_nobody_knows_is_asked_for(logged: Logged, signature: dict[str, str]) -> None:
    logged.add_model(inputs=[value("x", None)])
    logged.signature = signature
    with pytest.raises(ConfigError, match="gives no shape for 'x'; log the model with a signature"):
        logged.convert()


def test_the_graph_is_believed_before_the_signature(logged: Logged) -> None:
    """A signature may be of the client's side; the graph is what is run."""
    logged.add_model()
    logged.signature = {"inputs": tensor_column("x", "[7, 7, 7]")}
    assert logged.config().inputs == (TensorSpec("x", "FP32", (4,)),)


# -- choosing a flavor ------------------------------------------------------------------------


def artifact_with(tmp_path: Path, *flavors: str) -> ModelArtifact:
    return ModelArtifact(tmp_path, {flavor: {} for flavor in flavors})


def test_what_was_made_for_triton_comes_first(tmp_path: Path) -> None:
    both = artifact_with(tmp_path, "python_function", "onnx", "triton")
    assert choose_flavor(both) == "triton"
    assert choose_flavor(both, "onnx") == "onnx"
    assert choose_flavor(artifact_with(tmp_path, "python_function", "onnx")) == "onnx"
    assert choose_flavor(artifact_with(tmp_path, "sklearn", "python_function")) == "python_function"


@pytest.mark.parametrize("asked", [None, "onnx", "sklearn", ""])
def test_a_flavor_that_cannot_be_served_is_refused_with_those_that_can(
    tmp_path: Path, asked: str | None
) -> None:
    with pytest.raises(UnsupportedFlavorError, match=r"sklearn.*triton, onnx") as caught:
        choose_flavor(artifact_with(tmp_path, "sklearn"), asked)
    assert caught.value.flavor == asked
    assert caught.value.supported == SUPPORTED_FLAVORS
    assert {"triton", "onnx", "python_function"} < set(SUPPORTED_FLAVORS)
    assert isinstance(caught.value, TritonRepoError)
