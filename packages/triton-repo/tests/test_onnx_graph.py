"""An ONNX file is skimmed without its weights, and says the same as when it is read whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from triton_repo.errors import ArtifactError
from triton_repo.flavors.onnx_graph import GraphTensor, OnnxGraph, read_graph
from triton_repo.tensors import datatype_of

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = 64 * 1024  # runs of bytes up to this long are kept while skimming


def varint(number: int) -> bytes:
    return onnx.ModelProto(ir_version=number).SerializeToString()[1:]


def varint_tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def external(name: str, location: str) -> onnx.TensorProto:
    """A tensor whose content is in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def value(name: str, shape: list[Any] | None = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(*nodes: Any, **parts: Any) -> onnx.ModelProto:
    """A model of these nodes; by default from `x` to `y`."""
    functions = parts.pop("functions", [])
    inputs = parts.pop("inputs", [value("x", ["batch", 4])])
    outputs = parts.pop("outputs", [value("y", ["batch", 4])])
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Identity", ["x"], ["y"])], "g", inputs, outputs, **parts
    )
    return helper.make_model(graph, functions=functions)


def branch(tensor: Any) -> Any:
    """A subgraph whose output is a constant."""
    constant = helper.make_node("Constant", [], [tensor.name], value=tensor)
    return helper.make_graph([constant], "branch", [], [value(tensor.name, [4])])


def skimmed(path: Path, model: onnx.ModelProto) -> OnnxGraph:
    path.write_bytes(model.SerializeToString())
    return read_graph(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# -- the same as onnx's own reading ---------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
kinds = st.sampled_from(
    [TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BFLOAT16]
)
shapes = st.none() | st.lists(
    st.none() | st.integers(0, 2**40) | st.sampled_from(["batch", "N"]), max_size=4
)
sizes = st.sampled_from([0, 1, _KEPT - 1, _KEPT, _KEPT + 1, 3 * _KEPT])


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Inputs of any type and shape, some of them initialized, with small and large weights."""
    found = draw(st.lists(names, min_size=2, max_size=6, unique=True))
    cut = draw(st.integers(0, len(found) - 1))
    weights = [
        TensorProto(
            name=name, data_type=TensorProto.UINT8, raw_data=bytes(draw(sizes)), doc_string="w"
        )
        for name in draw(st.lists(st.sampled_from(found) | names, max_size=3, unique=True))
    ]
    model = model_of(
        inputs=[value(name, draw(shapes), draw(kinds)) for name in found[:cut]],
        outputs=[value(name, draw(shapes), draw(kinds)) for name in found[cut:]],
        initializer=[
            *weights,
            *(external(name, name) for name in draw(st.lists(names, max_size=2))),
        ],
        doc_string="d" * draw(sizes),
    )
    model.metadata_props.add(key="weights", value="v" * draw(sizes))
    return model


def read_whole(model: onnx.ModelProto) -> tuple[list[Any], list[Any], set[str]]:
    """What onnx's own classes say."""
    initialized = {tensor.name for tensor in model.graph.initializer}

    def outside(found: Any) -> GraphTensor:
        kind = found.type.tensor_type
        shape = [
            dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value else -1
            for dim in kind.shape.dim
        ]
        first = kind.shape.dim[0].dim_param if kind.shape.dim else ""
        known = tuple(shape) if kind.HasField("shape") else None
        return GraphTensor(found.name, datatype_of(onnx=kind.elem_type).name, known, first)

    return (
        [outside(each) for each in model.graph.input if each.name not in initialized],
        [outside(each) for each in model.graph.output],
        {tensor.name for tensor in model.graph.initializer if tensor.external_data},
    )


@given(models())
def test_skimming_finds_what_reading_finds(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto
) -> None:
    graph = skimmed(tmp_path_factory.getbasetemp() / "model.onnx", model)
    inputs, outputs, locations = read_whole(model)
    assert list(graph.inputs) == inputs
    assert list(graph.outputs) == outputs
    assert list(graph.external_files) == sorted({str(PurePosixPath(name)) for name in locations})


@given(models(), st.data())
def test_a_file_that_ends_early_is_refused_or_was_whole_enough(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto, data: st.DataObject
) -> None:
    """Never half a graph: it stands in the file as one piece, its length before it."""
    path = tmp_path_factory.getbasetemp() / "model.onnx"
    whole = skimmed(path, model)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        assert read_graph(path) == whole
    except ArtifactError as exc:
        assert str(path) in str(exc)  # noqa: PT017 - either outcome is right


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_no_model(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        read_graph(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a model",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"<html></html>",
        b"\xff" * 100,
        b"\x3a\xff\xff\xff\xff\x0f",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=["empty", "text", "png", "zip", "html", "ones", "length", "lfs pointer"],
)
def test_other_files_are_refused_as_no_model(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        read_graph(path)


def test_a_file_nested_without_end_is_refused(path: Path) -> None:
    """Subgraphs in subgraphs: Python's stack is finite."""
    data = b""
    for _ in range(3000):  # GraphProto.node, NodeProto.attribute, AttributeProto.g
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size, length = len(data), bytearray()
            while size >= 0x80:
                length.append(size & 0x7F | 0x80)
                size >>= 7
            data = tag + bytes(length) + bytes([size]) + data
    path.write_bytes(
        b"\x3a" + onnx.ModelProto(producer_name="x" * len(data)).SerializeToString()[1:]
    )
    path.write_bytes(path.read_bytes()[: -len(data)] + data)
    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        read_graph(path)


def test_a_missing_file_is_an_artifact_error(path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        read_graph(path)


# -- external data ----------------------------------------------------------------------------


def test_external_data_is_found_wherever_it_stands(path: Path) -> None:
    """In initializers, constants, branches of If, bodies of Loop, and functions."""
    inner = helper.make_node(
        "If",
        ["c"],
        ["i"],
        then_branch=branch(external("t", "inner/then")),
        else_branch=branch(external("e", "inner/else")),
    )
    body = helper.make_graph(
        [inner, helper.make_node("Identity", ["k"], ["k2"])],
        "body",
        [value("n", [], TensorProto.INT64), value("k", [], TensorProto.BOOL)],
        [value("k2", [], TensorProto.BOOL)],
        initializer=[external("b", "body")],
    )
    function = helper.make_function(
        "local",
        "f",
        ["a"],
        ["b"],
        [helper.make_node("Constant", [], ["b"], value=external("b", "function"))],
        [helper.make_opsetid("", 21)],
    )
    sparse = onnx.SparseTensorProto(
        values=external("s", "sparse/values"), indices=external("si", "sparse/indices"), dims=[4]
    )
    several = onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS)
    several.tensors.extend([external("m1", "many/1"), external("m2", "many/2")])
    node = helper.make_node("Custom", ["x"], ["z"], domain="mine")
    node.attribute.append(several)
    model = model_of(
        helper.make_node("Constant", [], ["w"], value=external("w", "constant")),
        helper.make_node("Loop", ["", ""], [], body=body),
        node,
        initializer=[external("i", "initializer"), external("i2", "initializer")],
        sparse_initializer=[sparse],
        functions=[function],
    )
    assert skimmed(path, model).external_files == (
        "body",
        "constant",
        "function",
        "initializer",
        "inner/else",
        "inner/then",
        "many/1",
        "many/2",
        "sparse/indices",
        "sparse/values",
    )


@pytest.mark.parametrize("location", [None, TensorProto.DEFAULT])
def test_weights_that_came_back_inside_need_no_file(path: Path, location: Any) -> None:
    """ONNX goes by `data_location`; what is said of the file besides may be left over."""
    inside, outside = external("a", "gone.bin"), external("b", "there.bin")
    inside.ClearField("data_location")
    if location is not None:
        inside.data_location = location
    inside.raw_data = b"\0" * 16
    assert skimmed(path, model_of(initializer=[inside, outside])).external_files == ("there.bin",)


def test_the_last_data_location_counts(path: Path) -> None:
    tensor = external("a", "w.bin").SerializeToString()
    for last, files in ((0, ()), (1, ("w.bin",))):
        graph = field(5, tensor + bytes([14 << 3, 1 - last, 14 << 3, last])) + OUTPUT
        path.write_bytes(field(7, graph))
        assert read_graph(path).external_files == files


@pytest.mark.parametrize(
    ("last", "files"),
    [(7, ("w.bin",)), (2**32 + 1, ("w.bin",)), (2**32, ())],
    ids=["none of the enum", "1 in its lower 32 bits", "0 in its lower 32 bits"],
)
def test_the_data_location_is_read_as_protobuf_reads_it(
    path: Path, last: int, files: tuple[str, ...]
) -> None:
    tensor = external("a", "w.bin").SerializeToString() + bytes([14 << 3]) + varint(last)
    assert bool(files) == (TensorProto.FromString(tensor).data_location == TensorProto.EXTERNAL)
    path.write_bytes(field(7, field(5, tensor) + OUTPUT))
    assert read_graph(path).external_files == files


def test_the_last_name_of_a_tensor_counts(path: Path) -> None:
    """One that was overridden hides no input."""
    inputs = b"".join(field(11, value(name, [1]).SerializeToString()) for name in "xw")
    tensor = field(8, b"x") + field(8, b"w")
    path.write_bytes(field(7, field(5, tensor) + inputs + OUTPUT))
    assert [each.name for each in read_graph(path).inputs] == ["x"]


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


OUTPUT = (
    b"\x62"
    + bytes([len(value("y", [1]).SerializeToString())])
    + (value("y", [1]).SerializeToString())
)


def test_groups_are_stepped_over(path: Path) -> None:
    """No field of ONNX is one, but protobuf reads what it does not know."""
    inner = bytes([2 << 3 | 3, 1 << 3, 7, 2 << 3 | 4])
    group = varint(100 << 3 | 3) + inner + field(3, b"x") + varint(100 << 3 | 4)
    path.write_bytes(group + field(7, group + OUTPUT) + group)
    assert [tensor.name for tensor in read_graph(path).outputs] == ["y"]


@pytest.mark.parametrize(
    "group",
    [
        varint_tag(100, 3),
        varint_tag(100, 3) + varint_tag(101, 4),
        varint_tag(100, 4),
        varint_tag(100, 3) * 5000 + varint_tag(100, 4) * 5000,
    ],
)
def test_groups_that_do_not_end_are_refused(path: Path, group: bytes) -> None:
    path.write_bytes(field(7, OUTPUT) + group)
    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        read_graph(path)


def test_an_input_that_takes_a_megabyte_is_refused(path: Path) -> None:
    """In memory it would be forty times as much."""
    shape = field(2, b"\x0a\x00" * 1_000_000)
    tensor = field(1, b"z") + field(2, field(1, b"\x08\x01" + shape))
    path.write_bytes(field(7, field(12, tensor)))
    with pytest.raises(ArtifactError, match=r"has 20000\d\d bytes"):
        read_graph(path)


def test_a_forest_of_millions_of_nodes_is_no_crafted_file(path: Path) -> None:
    """Each node of its trees has numbers, and the name of its comparison."""
    node = field(9, b"BRANCH_LEQ") + field(9, b"LEAF") + b"\x40\x01\x3d1234"
    path.write_bytes(field(7, field(1, field(5, node * 2_600_000)) + OUTPUT))
    assert [each.name for each in read_graph(path).outputs] == ["y"]


def test_more_numbers_than_any_forest_has_are_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes each, they would take half a minute in a file of 2 GB."""
    limit = 1_000_000
    monkeypatch.setattr("triton_repo.flavors.onnx_graph._MAX_NUMBER_BYTES", limit)
    for numbers, fits in ((limit, True), (limit + 2, False)):
        path.write_bytes(field(7, field(1, b"\x08\x01" * (numbers // 2)) + OUTPUT))
        if fits:
            assert read_graph(path).outputs
        else:
            with pytest.raises(ArtifactError, match="more than 1000000 bytes of numbers"):
                read_graph(path)


def test_a_file_larger_than_protobuf_writes_is_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # a hole: no disk is filled
    with pytest.raises(ArtifactError, match="2 GB"):
        read_graph(path)


def test_initializers_are_no_inputs(path: Path) -> None:
    """Older exporters list every weight as an input too; sparse ones as well."""
    sparse = onnx.SparseTensorProto(values=TensorProto(name="s", data_type=1, dims=[1]), dims=[4])
    model = model_of(
        inputs=[value("x", [1]), value("w", [4]), value("s", [4])],
        initializer=[TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])],
        sparse_initializer=[sparse],
    )
    assert [tensor.name for tensor in skimmed(path, model).inputs] == ["x"]


def test_what_a_subgraph_calls_its_own_is_an_input_all_the_same(path: Path) -> None:
    values = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[1])
    inner = helper.make_graph(
        [],
        "inner",
        [],
        [value("x", [1])],
        [values],
        sparse_initializer=[onnx.SparseTensorProto(values=values, dims=[4])],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    assert [tensor.name for tensor in skimmed(path, model_of(node)).inputs] == ["x"]


# -- types and shapes -------------------------------------------------------------------------


def test_values_that_are_no_tensors_are_refused_by_name(path: Path) -> None:
    """ZipMap's sequence of maps, which scikit-learn's converter adds by default."""
    floats = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(1, []))
    zipmap = helper.make_value_info("probabilities", helper.make_sequence_type_proto(floats))
    optional = helper.make_value_info(
        "maybe", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [1]))
    )
    for odd in (zipmap, optional, onnx.ValueInfoProto(name="untyped")):
        with pytest.raises(ArtifactError, match=f"'{odd.name}'.*tensors only") as caught:
            skimmed(path, model_of(outputs=[odd]))
        assert "ZipMap" in str(caught.value)


def test_types_that_triton_has_not_are_refused_by_name(path: Path) -> None:
    for kind in (TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, 0, 999):
        with pytest.raises(ArtifactError, match=r"'z'.*no datatype"):
            skimmed(path, model_of(inputs=[value("z", [1], kind)]))


def test_a_graph_without_outputs_is_no_model(path: Path) -> None:
    with pytest.raises(ArtifactError, match="no outputs"):
        skimmed(path, model_of(outputs=[]))


@pytest.mark.parametrize(
    ("inputs", "outputs", "batched"),
    [
        ([["batch", 4]], [["batch", 2]], True),
        ([["batch", 4], ["batch"]], [["batch", 2]], True),
        ([[None, 4]], [[None, 2]], True),
        ([[None, 4]], [["batch", 2]], True),
        ([["batch_size", 4]], [["batch_size", 2]], True),
        ([["N", 4]], [["N", 2]], True),
        ([["unk__6", 4]], [["unk__7", 2]], True),
        ([["None", 4]], [["None", 2]], True),
        ([["seq", 4]], [["seq", 4]], False),
        ([["time", 4]], [["time", 2]], False),
        ([["length", 4]], [["length", 2]], False),
        ([["num_tokens", 4]], [["num_tokens", 2]], False),
        ([["nodes", 4]], [["nodes", 2]], False),
        ([["n_frames", 4]], [["n_frames", 2]], False),
        ([["batch_seq", 4]], [["batch_seq", 2]], False),
        ([["s0", 4]], [["s0", 2]], False),
        ([["samples", 4]], [["samples", 4]], False),
        ([["num_rows", 4]], [["num_rows", 4]], False),
        ([["batch", 4], [None, 4]], [["batch", 2]], False),
        ([["batch", 4]], [["N", 2]], False),
        ([["seq", 4]], [[None, 2]], False),
        ([["a", 4]], [["b", 2]], False),
        ([["batch", 4], ["sequence", 4]], [["batch", 2]], False),
        ([[1, 4]], [[1, 2]], False),
        ([["batch", 4]], [[1, 2]], False),
        ([["batch", 4], [4]], [["batch", 2]], False),
        ([["batch", 4], []], [["batch", 2]], False),
        ([["batch", 4], None], [["batch", 2]], False),
        ([], [["batch", 2]], False),
    ],
)
def test_the_batch_is_what_every_tensor_begins_with(
    path: Path, inputs: list[Any], outputs: list[Any], *, batched: bool
) -> None:
    """A variable first dimension that is a batch by its name, the same in every tensor."""
    model = model_of(
        inputs=[value(f"x{number}", shape) for number, shape in enumerate(inputs)],
        outputs=[value(f"y{number}", shape) for number, shape in enumerate(outputs)],
    )
    assert skimmed(path, model).has_batch_dimension is batched


# -- memory -----------------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")

_GROWTH = """
import re, sys
from pathlib import Path
from triton_repo.flavors.onnx_graph import read_graph

def peak_kb():
    # not getrusage's, which begins with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

read_graph(Path(sys.argv[1]))
before = peak_kb()
graph = read_graph(Path(sys.argv[2]))
assert [tensor.name for tensor in graph.inputs + graph.outputs] == ["x", "y"]
print(peak_kb() - before)
"""


@needs_proc
def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """A file of 256 MB, its weights inside, is skimmed in a few MB."""
    small = model_of()
    (tmp_path / "small.onnx").write_bytes(small.SerializeToString())
    weights_bytes = 256 * 1024**2
    # by hand, each message with its length before it; the weights are a hole at the end
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8).SerializeToString()
    tensor += b"\x4a" + varint(weights_bytes)  # raw_data
    graph = small.graph.SerializeToString()
    graph += b"\x2a" + varint(len(tensor) + weights_bytes) + tensor  # initializer
    small.ClearField("graph")
    model = small.SerializeToString() + b"\x3a" + varint(len(graph) + weights_bytes) + graph
    with (tmp_path / "large.onnx").open("wb") as file:
        file.write(model)
        file.truncate(len(model) + weights_bytes)
    assert growth_kb(tmp_path) < 4 * 1024


@needs_proc
def test_memory_does_not_grow_with_the_numbers_in_nodes(tmp_path: Path) -> None:
    """They are read, and then the part of the file that holds them is let go."""
    small = model_of()
    (tmp_path / "small.onnx").write_bytes(small.SerializeToString())
    (tmp_path / "large.onnx").write_bytes(
        small.SerializeToString() + field(7, field(1, field(5, b"\x3d1234" * 30_000_000)))
    )
    assert growth_kb(tmp_path) < 32 * 1024


def growth_kb(folder: Path) -> int:
    """How much more memory `large.onnx` takes than `small.onnx`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, folder / "small.onnx", folder / "large.onnx"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)
