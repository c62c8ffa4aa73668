"""Whoever may write to an artifact store chooses every name, link and byte of a model."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from triton_repo.artifact import ModelArtifact
from triton_repo.config import ModelConfig
from triton_repo.errors import ArtifactError, ConfigError, InvalidNameError, TritonRepoError
from triton_repo.flavors import choose_flavor, convert, onnx_graph
from triton_repo.names import check_file_name, check_name
from triton_repo.scan import Limits, Tally, scan_tree
from triton_repo.tensors import TensorSpec
from triton_repo.text import one_line, printable

LOOK_ALIKES = ["\u2215", "\u2044", "\uff0f", "\u29f8", "\\", "\uff3c", "\u2216", "\ufe68", "\u2105"]
NOT_PRINTABLE = ["\n", "\t", "\x1b", "\x7f", "\u0085", "\u202e", "\u2066", "\u200b", "\u00ad"]
NOT_PRINTABLE += ["\u2028", "\ufeff", "\udcff"]


def model(root: Path, config: str = 'backend: "python"') -> Path:
    """An artifact that is fine, to be spoilt."""
    (root / "model" / "1").mkdir(parents=True)
    (root / "model" / "1" / "model.py").write_text("")
    (root / "model" / "config.pbtxt").write_text(config)
    (root / "MLmodel").write_text('{"flavors": {"triton": {"data": "model"}}}')
    return root


def converted(root: Path, limits: Limits | None = None) -> Any:
    artifact = ModelArtifact.open(root, limits=limits)
    return convert(artifact, flavor=choose_flavor(artifact), name=check_name("m"), version=1)


def test_the_artifact_that_the_tests_spoil_is_fine(tmp_path: Path) -> None:
    assert converted(model(tmp_path)).versions[1].names() == ["model.py"]


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", LOOK_ALIKES + NOT_PRINTABLE, ids=ascii)
@pytest.mark.parametrize("where", ["model", "model/1"])
def test_a_name_with_a_character_that_misleads_is_refused_and_escaped(
    tmp_path: Path, where: str, character: str
) -> None:
    (model(tmp_path) / where / f"label{character}s").write_text("")
    with pytest.raises(ArtifactError, match=r"is not printable|looks like a separator") as raised:
        converted(tmp_path)
    assert one_line(raised.value) == str(raised.value)
    assert str(raised.value).isascii()


def test_letters_of_any_script_may_name_a_file(tmp_path: Path) -> None:
    names = [
        "Größe.txt",
        "標籤.txt",
        "метки",
        "a b",
        "نام",
        "paral·lel",
        "نی\u200cم",
        "क्\u200dष",
    ]
    names += [
        "第一\u3000章",
        "完。",
        "and so on…",
        "12\u202f000",
        "a\u00a0b",
        "½",
        "No\u0308l",
        "ノート",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f\u200d\U0001f525",
        "\U0001f469\U0001f3fd\u200d\U0001f680",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f642\u200d\u2194\ufe0f",
    ]
    for name in names:
        (model(tmp_path / name) / "model" / name).write_text("")
        assert name in converted(tmp_path / name).shared.names()


@pytest.mark.parametrize(
    "name",
    [
        "\u2025",
        "\uff0e\uff0e",
        "\uff0e",
        "\u3002\u3002",
        "\u200dab",
        "a\u200d/",
        "a\u3000",
        " ",
        "\u3164",
        "\u2800",
        "\ua4f8\ua4f8",
        "a\u27cbb",
        "a\u2f03b",
        "a\u2f02b",
        "a\u2041b",
        "a\U0001d20fb",
        "\ua60e\ua60e",
        "\u2764\u200da",
        "\u2764\u200c\U0001f525",
        "=\u200d=",
        "a$\u200d$b",
    ],
)
def test_a_name_that_looks_like_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    place = model(tmp_path) / "model" / name
    place.parent.mkdir(exist_ok=True)
    place.mkdir() if name.endswith("/") else place.write_text("")
    with pytest.raises(ArtifactError, match="rename it"):
        converted(tmp_path)


@pytest.mark.parametrize("name", ["", ".. ", ". .", "..\ufe0f", "..\u034f", ".\u0323", ".\u200d."])
def test_a_name_with_dots_in_disguise_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="rename it"):
        check_file_name(name)


@pytest.mark.parametrize("character", LOOK_ALIKES + NOT_PRINTABLE + ["/", "é", "\uff11"], ids=ascii)
def test_such_a_character_is_in_no_deployments_name(character: str) -> None:
    with pytest.raises(InvalidNameError) as raised:
        check_name(f"a{character}b")
    assert printable(str(raised.value)) == str(raised.value)


# -- links, devices -----------------------------------------------------------------------------


def link_out(place: Path) -> None:
    place.symlink_to("/etc/hostname")


def link_up(place: Path) -> None:
    place.symlink_to("../../..")


def link_to_a_link(place: Path) -> None:
    (place.parent / "first").symlink_to("/etc")
    place.symlink_to("first/hostname")


def link_to_nothing(place: Path) -> None:
    place.symlink_to("nothing")


def link_to_itself(place: Path) -> None:
    place.symlink_to(place.name)


def pipe(place: Path) -> None:
    os.mkfifo(place)


def unix_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))


def link_to_a_device(place: Path) -> None:
    place.symlink_to("/dev/zero")


SPOILS = [link_out, link_up, link_to_a_link, link_to_nothing, link_to_itself, pipe, unix_socket]
SPOILS += [link_to_a_device]


@pytest.fixture
def short_path() -> Any:
    """A directory whose path a socket's address has room for."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize(
    "place", ["MLmodel", "model/config.pbtxt", "model/1/model.py", "model/1/x", "model/labels.txt"]
)
def test_what_leaves_the_artifact_or_is_no_file_is_never_opened(
    short_path: Path, place: str, spoil: Any
) -> None:
    """Opening a pipe would wait for ever, and a device never ends."""
    target = model(short_path) / place
    target.unlink(missing_ok=True)
    spoil(target)
    with pytest.raises((ArtifactError, OSError)) as raised:
        converted(short_path)
    assert isinstance(raised.value, ArtifactError)


@pytest.mark.parametrize(
    "path",
    ["/etc", "../other", "model/../../other", "", ".", 7, None, ["model"], {}, "m\0"],
)
@pytest.mark.parametrize("flavor", ["triton", "onnx"])
def test_a_path_in_mlmodel_that_leaves_the_artifact_is_refused(
    tmp_path: Path, flavor: str, path: Any
) -> None:
    model(tmp_path)
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {flavor: {"data": path}}}))
    with pytest.raises(ArtifactError):
        converted(tmp_path)


# -- limits -------------------------------------------------------------------------------------


def test_too_many_files_are_refused_without_a_look_at_all_of_them(tmp_path: Path) -> None:
    folder = model(tmp_path) / "model" / "1" / "data"
    folder.mkdir()
    for number in range(60):
        (folder / str(number)).touch()
    assert converted(tmp_path, Limits(files=70)).versions[1]
    with pytest.raises(ArtifactError, match=r"more than 50 files and directories.*max_files"):
        converted(tmp_path, Limits(files=50))


def test_a_sparse_file_counts_with_the_size_that_a_copy_would_have(tmp_path: Path) -> None:
    with (model(tmp_path) / "model" / "1" / "weights").open("wb") as file:
        file.truncate(3 * 10**12)
    with pytest.raises(ArtifactError, match=r"more than 1.0 TB.*max_size"):
        converted(tmp_path)
    assert converted(tmp_path, Limits(size_bytes=4 * 10**12)).size_bytes == 3 * 10**12


def test_directories_may_not_be_nested_without_an_end(tmp_path: Path) -> None:
    (model(tmp_path) / "model" / "1").joinpath(*["d"] * 40).mkdir(parents=True)
    with pytest.raises(ArtifactError, match="more than 32 deep"):
        converted(tmp_path)


def test_links_that_multiply_are_counted_where_they_appear(tmp_path: Path) -> None:
    """Ten links to a directory of ten links, and so on: 10**9 files out of 90 links."""
    below = model(tmp_path) / "model" / "1"
    (below / "d0").mkdir()
    (below / "d0" / "file").touch()
    for level in range(1, 10):
        (below / f"d{level}").mkdir()
        for number in range(10):
            (below / f"d{level}" / str(number)).symlink_to(f"../d{level - 1}")
    with pytest.raises(ArtifactError, match="more than 1000 files"):
        converted(tmp_path, Limits(files=1000))


def test_a_tally_goes_over_all_the_trees_of_a_model(tmp_path: Path) -> None:
    for number in range(1, 6):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(b"x" * 10)
    tally = Tally(Limits(size_bytes=45), tmp_path)
    for number in range(1, 5):
        scan_tree(tmp_path / str(number), inside=tmp_path, tally=tally)
    with pytest.raises(ArtifactError, match="more than 45 B"):
        scan_tree(tmp_path / "5", inside=tmp_path, tally=tally)


# -- MLmodel ------------------------------------------------------------------------------------


def test_a_bomb_of_merge_keys_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x0: 1, x1: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    (tmp_path / "MLmodel").write_text("\n".join(lines))
    with pytest.raises(ArtifactError, match="merges mappings"):
        ModelArtifact.open(tmp_path)


def test_a_bomb_of_aliases_is_not_spelt_out(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    for key in ("data", "versions"):
        model(tmp_path / key)
        flavor = {"data": "model", key: "*a29"}
        said = ", ".join(f"{name}: {value}" for name, value in flavor.items())
        text = "\n".join([*lines, f"flavors: {{triton: {{{said}}}}}"])
        (tmp_path / key / "MLmodel").write_text(text)
        with pytest.raises(ArtifactError) as raised:
            converted(tmp_path / key)
        assert len(str(raised.value)) < 1000


def test_a_huge_mlmodel_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with (tmp_path / "MLmodel").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(ArtifactError, match=r"larger than 10\.0 MB"):
        ModelArtifact.open(tmp_path)


def test_an_mlmodel_nested_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="is not YAML"):
        ModelArtifact.open(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + ":".join(["1"] * 3_000_000),
        "a: " + "9" * 3_000_000,
        "[" + ",".join(["1"] * 200_000) + "]",
        "a: !!bool x",
        "a: !!int ''",
        "a: !!timestamp 2001-99-99",
        "a: &a [*a]",
        "? [a]\n: b",
        "flavors: {triton: {data: &a [*a]}}",
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.timeout(30)
def test_yaml_that_no_mlflow_writes_is_refused_at_once(tmp_path: Path, text: str) -> None:
    (model(tmp_path) / "MLmodel").write_text(text)
    with pytest.raises(ArtifactError) as raised:
        converted(tmp_path)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("dim", [1e999, 10**23, -(10**23), "x", None])
def test_a_dimension_without_an_end_has_no_type(tmp_path: Path, dim: Any) -> None:
    column = {"name": "x", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [dim]}}
    text = yaml.safe_dump({"flavors": {"a": {}}, "signature": {"inputs": json.dumps([column])}})
    (tmp_path / "MLmodel").write_text(text)
    assert ModelArtifact.open(tmp_path).signature_tensors("inputs") == {}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below),
    max_leaves=8,
)
DOCUMENTS = VALUES | st.fixed_dictionaries(
    {
        "flavors": VALUES
        | st.fixed_dictionaries({
            "triton": VALUES
            | st.fixed_dictionaries({"data": VALUES | st.just("model"), "versions": VALUES}),
        })
        | st.fixed_dictionaries({"onnx": VALUES | st.fixed_dictionaries({"data": VALUES})}),
    },
    optional={"signature": VALUES | st.fixed_dictionaries({"inputs": VALUES, "outputs": VALUES})},
)  # fmt: skip


@given(document=DOCUMENTS)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_mlmodel_says_the_error_is_ours(tmp_path: Path, document: Any) -> None:
    if not (tmp_path / "model").exists():
        model(tmp_path)
    (tmp_path / "MLmodel").write_text(yaml.safe_dump(document))
    with suppress(TritonRepoError):
        artifact = ModelArtifact.open(tmp_path)
        for side in ("inputs", "outputs"):
            with suppress(TritonRepoError):
                artifact.signature_tensors(side)
        converted(tmp_path)


# -- config.pbtxt -------------------------------------------------------------------------------


ENVIRONMENT = """
parameters {
  key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/../other/env.tar.gz" }
}
"""
WARMUP = """
model_warmup {
  name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 input_data_file: "../../x" } }
}
"""


ACCELERATOR = """
optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt"
  parameters { key: "trt_engine_cache_path" value: "cache/../../x" } } } }
"""
STATE = """
sequence_batching { state { input_name: "a" output_name: "b" data_type: TYPE_FP32 dims: 1
  initial_state { name: "s" data_type: TYPE_FP32 dims: 1 data_file: "../../x" } } }
"""


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('default_model_filename: "../../etc/passwd"', "default_model_filename"),
        ('default_model_filename: "/etc/passwd"', "default_model_filename"),
        ('cc_model_filenames { key: "7.5" value: "../x" }', "cc_model_filenames"),
        ('model_operations { op_library_filename: "/lib/x.so" }', "op_library_filename"),
        ('model_operations { op_library_filename: "a/../../x.so" }', "op_library_filename"),
        ('output { name: "y" data_type: TYPE_FP32 dims: 1 label_filename: "../x" }', "label_file"),
        (ENVIRONMENT, "EXECUTION_ENV_PATH"),
        (WARMUP, "model_warmup"),
        (STATE, "initial_state"),
        (ACCELERATOR, "trt_engine_cache_path"),
        ('model_repository_agents { agents { name: "relocation" } }', "model_repository_agents"),
        ('backend: "../../tmp/evil"', "backend"),
        ('backend: "a/b"', "backend"),
        ('backend: ".."', "backend"),
        ('platform: "../x"', "platform"),
    ],
)
def test_a_config_that_reaches_out_of_the_model_is_refused(
    tmp_path: Path, line: str, field: str
) -> None:
    model(tmp_path, line if line.startswith("backend") else f'backend: "python"\n{line}\n')
    with pytest.raises(ConfigError, match=field):
        converted(tmp_path)


def test_triton_own_agent_that_checks_sums_is_let_through(tmp_path: Path) -> None:
    agent = 'model_repository_agents { agents { name: "checksum" } }'
    assert converted(model(tmp_path, f'backend: "python"\n{agent}\n')).config is not None


def test_a_huge_config_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with (model(tmp_path) / "model" / "config.pbtxt").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(ConfigError, match=r"larger than 1\.0 MB"):
        converted(tmp_path)


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=3, unique=True), st.text())
@settings(max_examples=300, deadline=None)
def test_no_name_of_a_tensor_gets_out_of_its_quotes(names: list[str], comment: str) -> None:
    """A name such as `x" } backend: "evil` stays one."""
    names = [*names, 'x" } ] backend: "evil', "y\n} #", "back\\slash"]
    specs = [TensorSpec(name, "FP32", (4,)) for name in dict.fromkeys(names)]
    built = ModelConfig.build(
        name="m", backend="onnxruntime", inputs=specs, outputs=specs, comment=comment
    )
    read = ModelConfig.parse(built.data)
    assert read.inputs == read.outputs == tuple(specs)
    assert (read.name, read.backend) == ("m", "onnxruntime")
    pinned = read.pinned([3]).with_name("other")
    assert (pinned.inputs, pinned.backend, pinned.name) == (tuple(specs), "onnxruntime", "other")


# -- ONNX ---------------------------------------------------------------------------------------


def onnx_model(root: Path, location: str | None = None, data: str = "model.onnx") -> Path:
    """A model as MLflow logs it, perhaps with weights in another file."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    if location is not None:
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    root.mkdir(exist_ok=True)
    (root / "MLmodel").write_text(json.dumps({"flavors": {"onnx": {"data": data}}}))
    (root / data).write_bytes(helper.make_model(graph).SerializeToString())
    return root


def test_limits_hold_for_mlflows_own_layout(tmp_path: Path) -> None:
    onnx_model(tmp_path, "weights")
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(3 * 10**12)
    with pytest.raises(ArtifactError, match=r"more than 1.0 TB.*max_size"):
        converted(tmp_path)
    assert converted(tmp_path, Limits(size_bytes=4 * 10**12)).size_bytes > 3 * 10**12
    with pytest.raises(ArtifactError, match=r"more than 1 files and directories.*max_files"):
        converted(tmp_path, Limits(files=1, size_bytes=4 * 10**12))


def test_limits_hold_for_the_files_that_a_config_names(tmp_path: Path) -> None:
    output = 'output { name: "y" data_type: TYPE_FP32 dims: 1 label_filename: "labels" }'
    (onnx_model(tmp_path) / "config.pbtxt").write_text(f'backend: "onnxruntime" {output}')
    with (tmp_path / "labels").open("wb") as file:
        file.truncate(3 * 10**12)
    with pytest.raises(ArtifactError, match=r"more than 1.0 TB.*max_size"):
        converted(tmp_path)


@pytest.mark.parametrize("character", LOOK_ALIKES + NOT_PRINTABLE, ids=ascii)
@pytest.mark.parametrize("part", ["model file", "weights", "named by the config"])
def test_names_that_mislead_are_refused_in_mlflows_own_layout(
    tmp_path: Path, part: str, character: str
) -> None:
    name = f"a{character}b"
    if part == "model file":
        onnx_model(tmp_path, data="model.onnx")
        quoted = json.dumps(name, ensure_ascii=False) if character != "\udcff" else '"a\\377b"'
        (tmp_path / "config.pbtxt").write_text(f"default_model_filename: {quoted}")
    elif part == "weights" and character != "\udcff":
        (onnx_model(tmp_path, name) / name).write_text("")
    else:
        label = f"label_filename: {json.dumps(os.fsencode(name).decode('latin-1'))}"
        label = label.replace("\\u00", "\\x")
        output = f'output {{ name: "y" data_type: TYPE_FP32 dims: 1 {label} }}'
        (onnx_model(tmp_path) / "config.pbtxt").write_text(output)
        (tmp_path / name).write_text("")
    with pytest.raises((ArtifactError, ConfigError)):
        converted(tmp_path)


def encoded(tag: int, data: bytes) -> bytes:
    """A field of a message, as protobuf has it."""
    size, head = len(data), bytearray([tag])
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + data


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a\x00" * 60_000,  # nodes
        b"\x5a\x00" * 10_000,  # inputs
        encoded(0x0A, b"\x0d1234\x0a\x00" * 60_000),  # inputs' names, numbers in between
        b"".join(encoded(0x2A, encoded(0x42, b"%d" % n)) for n in range(6_000)),  # initializers
    ],
    ids=["nodes", "inputs", "names", "initializers"],
)
@pytest.mark.timeout(120)
def test_a_graph_of_nothing_but_graph_is_given_up(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds are a hundredth of the real ones, which take seconds to get to."""
    monkeypatch.setattr(onnx_graph, "_MAX_FIELDS", onnx_graph._MAX_FIELDS // 100)
    monkeypatch.setattr(onnx_graph, "_MAX_KEPT_BYTES", onnx_graph._MAX_KEPT_BYTES // 100)
    onnx_model(tmp_path)
    (tmp_path / "model.onnx").write_bytes(encoded(0x3A, content))
    with pytest.raises(ArtifactError, match=r"more than 50000 nodes|more names than any model"):
        converted(tmp_path)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../../outside", "a/../../../outside", "", ".", "link", "m\0"]
)
def test_weights_outside_the_artifact_are_refused(tmp_path: Path, location: str) -> None:
    onnx_model(tmp_path, location)
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError):
        converted(tmp_path)


def test_a_graph_nested_without_an_end_is_refused(tmp_path: Path) -> None:
    """2,000 graphs, each in an attribute of the one around it."""
    data = b""
    for _ in range(2000):
        # GraphProto.node = 1 > NodeProto.attribute = 5 > AttributeProto.g = 6
        for tag in (0x32, 0x2A, 0x0A):
            data = encoded(tag, data)
    (tmp_path / "model.onnx").write_bytes(encoded(0x3A, data))
    (tmp_path / "MLmodel").write_text('{"flavors": {"onnx": {"data": "model.onnx"}}}')
    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        converted(tmp_path)


@given(st.binary(max_size=200))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_bytes_an_onnx_file_has_the_error_is_ours(tmp_path: Path, data: bytes) -> None:
    whole = onnx.ModelProto(ir_version=9).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(whole + data)
    (tmp_path / "MLmodel").write_text('{"flavors": {"onnx": {"data": "model.onnx"}}}')
    with suppress(TritonRepoError):
        converted(tmp_path)


@pytest.mark.parametrize("spoil", [link_out, pipe, link_to_a_device], ids=lambda f: f.__name__)
@pytest.mark.parametrize("data", ["net", "net/model.onnx"])
@pytest.mark.timeout(30)
def test_an_onnx_file_that_is_none_is_never_opened(tmp_path: Path, data: str, spoil: Any) -> None:
    (tmp_path / "net").mkdir()
    spoil(tmp_path / "net" / "model.onnx")
    (tmp_path / "MLmodel").write_text(f'{{"flavors": {{"onnx": {{"data": "{data}"}}}}}}')
    with pytest.raises(ArtifactError):
        converted(tmp_path)


def test_a_name_in_a_graph_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [x], [y])
    data = (
        helper.make_model(graph).SerializeToString().replace(b"\x0a\x01x\x12", b"\x0a\x01\xff\x12")
    )
    (tmp_path / "model.onnx").write_bytes(data)
    (tmp_path / "MLmodel").write_text('{"flavors": {"onnx": {"data": "model.onnx"}}}')
    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        converted(tmp_path)


# -- what is told -------------------------------------------------------------------------------


def test_an_error_is_one_printable_line() -> None:
    error = ArtifactError("a\nb \x1b[31mred\u202e \udcff é")
    assert one_line(error) == "a b \\x1b[31mred\\u202e \\udcff é"
    assert PurePosixPath(one_line(error)).as_posix().isprintable()
