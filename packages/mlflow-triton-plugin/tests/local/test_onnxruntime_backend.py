"""The `onnxruntime` backend, in the real server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlflow_triton_plugin.local import LocalTriton

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    Array = np.ndarray[Any, Any]
    Shape = Sequence[int | str | None] | None

_FLOAT = TensorProto.FLOAT
_STRING = TensorProto.STRING
_ONE_INSTANCE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"


class Served:
    """The server, its repository, and a client."""

    def __init__(self, server: LocalTriton, repository: Path) -> None:
        self.server = server
        self.repository = repository
        self.client = grpcclient.InferenceServerClient(server.grpc_url)

    def write(self, name: str, model: onnx.ModelProto, config: str = "") -> Path:
        """Put a model into the repository; return its version directory."""
        folder = self.repository / name / "1"
        folder.mkdir(parents=True)
        onnx.save(model, folder / "model.onnx")
        if config:
            text = f'backend: "onnxruntime"\n{_ONE_INSTANCE}{config}'
            (folder.parent / "config.pbtxt").write_text(text, "utf-8")
        return folder

    def load(self, name: str, model: onnx.ModelProto, config: str = "") -> dict[str, Any]:
        """Serve a model; return its configuration."""
        self.write(name, model, config)
        return self.loaded(name)

    def load_all(self, *names: str) -> list[dict[str, Any]]:
        """Serve models that are in the repository, side by side; their configurations."""
        with ThreadPoolExecutor(len(names)) as pool:
            return list(pool.map(self.loaded, names))

    def loaded(self, name: str) -> dict[str, Any]:
        self.client.load_model(name)
        answer = self.client.get_model_config(name, as_json=True)
        return dict(answer["config"])

    def refusal(self, name: str, model: onnx.ModelProto, config: str) -> str:
        """Return why a model is not served."""
        self.write(name, model, config)
        with pytest.raises(InferenceServerException) as caught:
            self.client.load_model(name)
        return str(caught.value)

    def infer(self, model: str, inputs: Mapping[str, Array], *outputs: str) -> dict[str, Array]:
        tensors = [_tensor(name, array) for name, array in inputs.items()]
        wanted = [grpcclient.InferRequestedOutput(name) for name in outputs] or None
        result = self.client.infer(model, tensors, outputs=wanted)
        names = [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name) for name in names}


def _tensor(name: str, array: Array) -> grpcclient.InferInput:
    datatype = "BF16" if array.dtype == ml_dtypes.bfloat16 else np_to_triton_dtype(array.dtype)
    tensor = grpcclient.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return tensor


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("models")
    with LocalTriton(repository, extra_args=["--exit-timeout-secs=1"]) as server:
        yield Served(server, repository)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that completes no configuration, and loads each model a second faster."""
    repository = tmp_path_factory.mktemp("strict")
    options = ["--exit-timeout-secs=1", "--disable-auto-complete-config"]
    with LocalTriton(repository, extra_args=options) as server:
        yield Served(server, repository)


def _graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    ins, outs = (
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in some.items()]
        for some in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "graph", ins, outs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _identity(kind: int = _FLOAT, shape: Shape = ("N", 3), out: Shape = ()) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["X"], ["Y"])
    return _graph([node], {"X": (kind, shape)}, {"Y": (kind, shape if out == () else out)})


def _io(x: str, y: str | None = None) -> str:
    return f'input [{{ name: "X" {x} }}]\noutput [{{ name: "Y" {y or x} }}]\n'


_THREE = "data_type: TYPE_FP32 dims: [-1, 3]"


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'


_VALUES: dict[str, tuple[int, Array]] = {
    "BOOL": (TensorProto.BOOL, np.array([[True, False, True]])),
    "UINT8": (TensorProto.UINT8, np.array([[0, 1, 255]], np.uint8)),
    "UINT16": (TensorProto.UINT16, np.array([[0, 1, 65535]], np.uint16)),
    "UINT32": (TensorProto.UINT32, np.array([[0, 1, 2**32 - 1]], np.uint32)),
    "UINT64": (TensorProto.UINT64, np.array([[0, 1, 2**64 - 1]], np.uint64)),
    "INT8": (TensorProto.INT8, np.array([[-128, 1, 127]], np.int8)),
    "INT16": (TensorProto.INT16, np.array([[-(2**15), 1, 2**15 - 1]], np.int16)),
    "INT32": (TensorProto.INT32, np.array([[-(2**31), 1, 2**31 - 1]], np.int32)),
    "INT64": (TensorProto.INT64, np.array([[-(2**63), 1, 2**63 - 1]], np.int64)),
    "FP16": (TensorProto.FLOAT16, np.array([[-1.5, np.inf, 65504]], np.float16)),
    "FP32": (_FLOAT, np.array([[-1.5, -0.0, 3e38]], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([[-1.5, 1e-300, 1e300]], np.float64)),
    "BF16": (TensorProto.BFLOAT16, np.array([[-1.5, 3e38, 0.5]], ml_dtypes.bfloat16)),
    "BYTES": (_STRING, np.array([[b"a", "\u00fc\0x".encode(), b""]], np.object_)),
}


def _identities(names: Sequence[str]) -> onnx.ModelProto:
    shape: Shape = (None, 3)
    return _graph(
        [helper.make_node("Identity", [f"IN_{name}"], [f"OUT_{name}"]) for name in names],
        {f"IN_{name}": (_VALUES[name][0], shape) for name in names},
        {f"OUT_{name}": (_VALUES[name][0], shape) for name in names},
    )


@pytest.mark.parametrize("left_out", ["BF16", "BYTES"])
def test_each_datatype_passes_unchanged_and_is_named_in_the_completed_configuration(
    served: Served, left_out: str
) -> None:
    names = [name for name in _VALUES if name != left_out]
    config = served.load(f"all_but_{left_out}", _identities(names))
    named = {tensor["name"]: tensor["data_type"] for tensor in config["input"]}
    assert named == {
        f"IN_{name}": "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}" for name in names
    }
    sent = {f"IN_{name}": _VALUES[name][1] for name in names}
    answer = served.infer(f"all_but_{left_out}", sent)
    for name in names:
        assert answer[f"OUT_{name}"].shape == _VALUES[name][1].shape
        assert answer[f"OUT_{name}"].tolist() == _VALUES[name][1].tolist(), name


def test_bfloat16_and_strings_in_one_model_are_refused(served: Served) -> None:
    """ONNX Runtime's Python API takes the one only as its own values, and the other never so."""
    reason = served.refusal("mixed", _identities(["BF16", "BYTES"]), "max_batch_size: 4\n")
    assert "both bfloat16 and string" in reason


def test_variable_first_dimensions_become_the_batch(served: Served) -> None:
    """Triton's own rule: at most 4, batched dynamically."""
    config = served.load("batchable", _identity(shape=("N", 3, None)))
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config
    assert config["input"] == [{"name": "X", "data_type": "TYPE_FP32", "dims": ["3", "-1"]}]
    assert config["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": ["3", "-1"]}]


def test_one_fixed_first_dimension_forbids_batching(served: Served) -> None:
    config = served.load("fixed", _identity(shape=(2, 3)))
    assert "max_batch_size" not in config
    assert config["input"][0]["dims"] == ["2", "3"]
    x = np.ones((2, 3), np.float32)
    assert served.infer("fixed", {"X": x})["Y"].tolist() == x.tolist()


def test_a_given_batch_size_and_given_inputs_are_kept(served: Served) -> None:
    config = 'max_batch_size: 16\ninput [{ name: "X" data_type: TYPE_FP32 dims: [3] }]\n'
    completed = served.load("half", _identity(), config)
    assert completed["max_batch_size"] == 16
    assert completed["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": ["3"]}]
    assert "dynamic_batching" in completed


def test_a_batch_size_for_a_model_that_cannot_batch_is_refused(served: Served) -> None:
    reason = served.refusal("unbatchable", _identity(shape=(2, 3)), "max_batch_size: 8\n")
    assert "does not support batching" in reason


def test_a_scalar_is_a_tensor_of_one_element(served: Served) -> None:
    served.load("scalar", _identity(shape=()))
    answer = served.infer("scalar", {"X": np.array([2.5], np.float32)})["Y"]
    assert answer.tolist() == [2.5]


def test_one_number_a_row_is_a_column(served: Served, strict: Served) -> None:
    served.load("column", _identity(shape=("N",)))
    x = np.array([[1], [2]], np.float32)
    assert served.infer("column", {"X": x})["Y"].tolist() == x.tolist()
    reshaped = f"max_batch_size: 4\n{_io('data_type: TYPE_FP32 dims: [1]')}"
    strict.load("column_by_hand", _identity(shape=("N",)), reshaped)
    assert strict.infer("column_by_hand", {"X": x})["Y"].tolist() == x.tolist()


def test_tensors_without_elements_pass(strict: Served) -> None:
    for name, kind, onnx_kind, dtype in (
        ("empty", "FP32", _FLOAT, np.float32),
        ("empty_text", "STRING", _STRING, np.object_),
        ("empty_bfloat16", "BF16", TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    ):
        config = _io(f"data_type: TYPE_{kind} dims: [-1, -1]")
        strict.load(name, _identity(onnx_kind, ("N", None)), config)
        assert strict.infer(name, {"X": np.zeros((2, 0), dtype)})["Y"].shape == (2, 0)


def test_a_graph_that_says_nothing_of_a_shape_is_served_with_a_configuration(
    strict: Served,
) -> None:
    strict.load(
        "shapeless", _identity(shape=None, out=None), _io("data_type: TYPE_FP32 dims: [-1, 2]")
    )
    x = np.ones((5, 2), np.float32)
    assert strict.infer("shapeless", {"X": x})["Y"].tolist() == x.tolist()


def _counting() -> onnx.ModelProto:
    """Returns its input, and how many rows the whole run had."""
    return _graph(
        [
            helper.make_node("Identity", ["X"], ["Y"]),
            helper.make_node("Shape", ["X"], ["shape"], start=0, end=1),
            helper.make_node("Unsqueeze", ["shape", "zero"], ["row"]),
            helper.make_node("Shape", ["X"], ["rows"], start=0, end=1),
            helper.make_node("Concat", ["rows", "one"], ["target"], axis=0),
            helper.make_node("Expand", ["row", "target"], ["COUNT"]),
        ],
        {"X": (_FLOAT, ("N", "M"))},
        {"Y": (_FLOAT, ("N", "M")), "COUNT": (TensorProto.INT64, ("N", 1))},
        [
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        ],
    )


def _together(served: Served, model: str, inputs: Sequence[Array]) -> list[Any]:
    """Send requests at once; return results or errors in their order."""
    answers: list[Any] = [None] * len(inputs)
    missing = threading.Semaphore(0)

    def keep(index: int, result: Any, error: Any) -> None:
        answers[index] = error or result
        missing.release()

    for index, array in enumerate(inputs):
        served.client.async_infer(
            model,
            [_tensor("X", array)],
            lambda result, error, index=index: keep(index, result, error),
        )
    for _ in inputs:
        assert missing.acquire(timeout=30)
    return answers


_WAITING = "dynamic_batching { max_queue_delay_microseconds: 2000000 preferred_batch_size: [8] }\n"


def test_requests_of_equal_shape_run_as_one_batch_and_get_their_own_rows(strict: Served) -> None:
    config = (
        f"max_batch_size: 8\n{_WAITING}"
        'input [{ name: "X" data_type: TYPE_FP32 dims: [-1] }]\n'
        'output [{ name: "Y" data_type: TYPE_FP32 dims: [-1] },'
        ' { name: "COUNT" data_type: TYPE_INT64 dims: [1] }]\n'
    )
    strict.load("counting", _counting(), config)
    inputs = [np.full((rows, 3), rows, np.float32) for rows in (1, 2, 5)]
    answers = _together(strict, "counting", inputs)
    for array, answer in zip(inputs, answers, strict=True):
        assert answer.as_numpy("Y").tolist() == array.tolist()
        assert answer.as_numpy("COUNT").tolist() == [[8]] * len(array)


def test_requests_of_different_shapes_are_answered_side_by_side(strict: Served) -> None:
    config = (
        f"max_batch_size: 8\n{_WAITING}"
        'input [{ name: "X" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }]\n'
        'output [{ name: "Y" data_type: TYPE_FP32 dims: [-1] }]\n'
    )
    strict.load("ragged", _counting(), config)
    inputs = [np.full((2, width), width, np.float32) for width in (1, 2, 2, 5)]
    answers = _together(strict, "ragged", inputs)
    shapes = [answer.as_numpy("Y").shape for answer in answers]
    assert shapes == [(2, 1), (2, 2), (2, 2), (2, 5)]


def _dividing() -> onnx.ModelProto:
    """Gathers from two rows: fails for a row number over 1."""
    table = helper.make_tensor("table", _FLOAT, [2, 1], [10.0, 20.0])
    node = helper.make_node("GatherND", ["table", "X"], ["Y"])
    return _graph([node], {"X": (TensorProto.INT64, ("N", 1))}, {"Y": (_FLOAT, ("N", 1))}, [table])


def test_a_request_that_fails_in_a_batch_fails_alone_with_onnx_runtimes_words(
    strict: Served,
) -> None:
    config = f"max_batch_size: 8\n{_WAITING}" + _io(
        "data_type: TYPE_INT64 dims: [1]", "data_type: TYPE_FP32 dims: [1]"
    )
    strict.load("failing", _dividing(), config)
    inputs = [np.array(rows, np.int64) for rows in ([[0], [1]], [[7]], [[1]] * 5)]
    good, bad, other = _together(strict, "failing", inputs)
    assert good.as_numpy("Y").tolist() == [[10.0], [20.0]]
    assert "GatherND" in str(bad)
    assert other.as_numpy("Y").tolist() == [[20.0]] * 5


def test_only_what_is_asked_for_is_returned(strict: Served) -> None:
    config = (
        'input [{ name: "X" data_type: TYPE_FP32 dims: [-1, -1] }]\n'
        'output [{ name: "Y" data_type: TYPE_FP32 dims: [-1, -1] },'
        ' { name: "COUNT" data_type: TYPE_INT64 dims: [-1, 1] }]\n'
    )
    strict.load("choosing", _counting(), config)
    x = np.ones((1, 2), np.float32)
    assert list(strict.infer("choosing", {"X": x}, "COUNT")) == ["COUNT"]
    assert sorted(strict.infer("choosing", {"X": x})) == ["COUNT", "Y"]


def test_an_input_with_a_default_can_be_left_out(strict: Served) -> None:
    default = helper.make_tensor("B", _FLOAT, [1], [10.0])
    model = _graph(
        [helper.make_node("Add", ["X", "B"], ["Y"])],
        {"X": (_FLOAT, ("N", 1)), "B": (_FLOAT, (1,))},
        {"Y": (_FLOAT, ("N", 1))},
        [default],
    )
    config = (
        'input [{ name: "X" data_type: TYPE_FP32 dims: [-1, 1] },'
        ' { name: "B" data_type: TYPE_FP32 dims: [1] optional: true }]\n'
        'output [{ name: "Y" data_type: TYPE_FP32 dims: [-1, 1] }]\n'
    )
    strict.load("optional", model, config)
    x, b = np.array([[1]], np.float32), np.array([2], np.float32)
    assert strict.infer("optional", {"X": x})["Y"].tolist() == [[11.0]]
    assert strict.infer("optional", {"X": x, "B": b})["Y"].tolist() == [[3.0]]


def test_weights_beside_the_graph_are_found(strict: Served) -> None:
    weights = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "W")
    model = _graph(
        [helper.make_node("Add", ["X", "W"], ["Y"])],
        {"X": (_FLOAT, ("N", 3))},
        {"Y": (_FLOAT, ("N", 3))},
        [weights],
    )
    folder = strict.repository / "external" / "1"
    folder.mkdir(parents=True)
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    assert (folder / "w").is_file()
    config = f'backend: "onnxruntime"\n{_ONE_INSTANCE}{_io(_THREE)}'
    (folder.parent / "config.pbtxt").write_text(config, "utf-8")
    strict.loaded("external")
    answer = strict.infer("external", {"X": np.zeros((1, 3), np.float32)})
    assert answer["Y"].tolist() == [[0.0, 1.0, 2.0]]


def test_the_file_can_have_another_name_or_be_in_a_directory(served: Served) -> None:
    for name, file, config in (
        ("renamed", "net.onnx", 'default_model_filename: "net.onnx"\n'),
        ("nested", "model.onnx/model.onnx", ""),
        ("by_capability", "c.onnx", 'cc_model_filenames [{ key: "8.0" value: "c.onnx" }]\n'),
    ):
        path = served.repository / name / "1" / file
        path.parent.mkdir(parents=True)
        onnx.save(_identity(), path)
        text = f'backend: "onnxruntime"\n{_ONE_INSTANCE}{config}'
        (served.repository / name / "config.pbtxt").write_text(text, "utf-8")
    for completed in served.load_all("renamed", "nested", "by_capability"):
        assert completed["max_batch_size"] == 4


def test_labels_name_the_classes(strict: Served) -> None:
    """The core does it, by the file that `label_filename` names."""
    x = "data_type: TYPE_FP32 dims: [3]"
    config = "max_batch_size: 4\n" + _io(x, f'{x} label_filename: "labels.txt"')
    folder = strict.write("labelled", _identity(), config)
    (folder.parent / "labels.txt").write_text("cat\ndog\nfox\n", "utf-8")
    strict.loaded("labelled")
    wanted = grpcclient.InferRequestedOutput("Y", class_count=2)
    tensor = _tensor("X", np.array([[0.1, 0.2, 0.7]], np.float32))
    classes = strict.client.infer("labelled", [tensor], outputs=[wanted]).as_numpy("Y")
    named = [text.decode().split(":") for text in classes.flat]
    assert [(index, label) for _, index, label in named] == [("2", "fox"), ("1", "dog")]


def test_a_warm_up_runs_before_the_model_is_ready(strict: Served) -> None:
    warm_up = (
        'model_warmup [{ name: "zeros" batch_size: 2 inputs { key: "X" value: '
        "{ data_type: TYPE_FP32 dims: [3] zero_data: true } } }]\n"
    )
    config = f"max_batch_size: 4\n{_io('data_type: TYPE_FP32 dims: [3]')}{warm_up}"
    strict.load("warm", _identity(), config)
    assert strict.infer("warm", {"X": np.ones((1, 3), np.float32)})["Y"].tolist() == [[1.0] * 3]
    log = strict.server.log_path
    assert log
    assert "failed to run warmup" not in log.read_text("utf-8")


def test_strings_that_are_no_utf8_are_refused_with_the_reason(strict: Served) -> None:
    config = _io("data_type: TYPE_STRING dims: [-1, 1]")
    strict.load("text", _identity(_STRING, ("N", 1)), config)
    with pytest.raises(InferenceServerException, match="not UTF-8"):
        strict.infer("text", {"X": np.array([[b"\xff\xfe"]], np.object_)})


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        (
            "wrong_input",
            _io(_THREE).replace('"X"', '"Z"'),
            "needs input 'X', which the configuration does not name",
        ),
        (
            "wrong_output",
            _io(_THREE).replace('"Y"', '"Z"'),
            "names output 'Z', and the model has no such output; it has Y",
        ),
        (
            "wrong_type",
            _io("data_type: TYPE_INT64 dims: [-1, 3]"),
            "says TYPE_INT64 for input 'X', and the model has TYPE_FP32",
        ),
        (
            "wrong_dims",
            _io("data_type: TYPE_FP32 dims: [-1, 4]"),
            "says dims [-1, 4] for input 'X', and the model has [-1, 3]",
        ),
        (
            "wrong_rank",
            f"max_batch_size: 4\n{_io(_THREE)}",
            "a batch dimension before them, and the model has [-1, 3]",
        ),
        (
            "wrong_threads",
            _io(_THREE) + _parameter("intra_op_thread_count", "many"),
            "intra_op_thread_count must be a whole number, and is 'many'",
        ),
        (
            "wrong_arena",
            _io(_THREE) + _parameter("enable_mem_arena", "perhaps"),
            "enable_mem_arena must be true, false, 1 or 0, and is 'perhaps'",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_the_reason(
    strict: Served, name: str, config: str, reason: str
) -> None:
    assert reason in strict.refusal(name, _identity(), config)


def test_triton_s_parameters_are_understood(strict: Served) -> None:
    values = {
        "intra_op_thread_count": "2",
        "inter_op_thread_count": "1",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
        "session.intra_op.allow_spinning": "0",
    }
    config = _io(_THREE) + "".join(_parameter(key, value) for key, value in values.items())
    strict.load("tuned", _identity(), config + "optimization { graph { level: 1 } }\n")
    assert strict.infer("tuned", {"X": np.ones((1, 3), np.float32)})["Y"].shape == (1, 3)


def test_a_file_that_is_no_model_is_refused_with_onnx_runtimes_words(served: Served) -> None:
    folder = served.repository / "corrupt" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"this is no model")
    with pytest.raises(InferenceServerException, match=r"ONNX Runtime cannot load .*Protobuf"):
        served.client.load_model("corrupt")


def test_an_output_that_is_no_tensor_is_left_out(served: Served) -> None:
    """Classifiers of skl2onnx return a list of maps beside the label, unless told not to."""
    sequence = helper.make_tensor_sequence_value_info("S", _FLOAT, None)
    model = _identity()
    model.graph.node.append(helper.make_node("SequenceConstruct", ["X"], ["S"]))
    model.graph.output.append(sequence)
    config = served.load("sequence", model)
    assert [output["name"] for output in config["output"]] == ["Y"]


def test_a_complete_configuration_needs_no_completion(strict: Served) -> None:
    config = f"max_batch_size: 4\n{_io('data_type: TYPE_FP32 dims: [3]')}"
    strict.load("complete", _identity(), config)
    x = np.ones((1, 3), np.float32)
    assert strict.infer("complete", {"X": x})["Y"].tolist() == x.tolist()


def test_the_version_directory_stays_as_it_is(served: Served) -> None:
    served.load("clean", _identity())
    found = [path.name for path in (served.repository / "clean").rglob("*")]
    assert sorted(found) == ["1", "model.onnx"]
