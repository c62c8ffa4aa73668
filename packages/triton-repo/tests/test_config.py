"""config.pbtxt: whatever a user wrote survives, but for the one field that has to change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format, text_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from triton_repo.config import ModelConfig
from triton_repo.errors import ConfigError
from triton_repo.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from random import Random

    from google.protobuf.descriptor import Descriptor

_FIELDS = sorted(model_config_pb2.ModelConfig.DESCRIPTOR.fields_by_name)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: 31,
    FieldDescriptor.CPPTYPE_INT64: 63,
    FieldDescriptor.CPPTYPE_UINT32: 32,
    FieldDescriptor.CPPTYPE_UINT64: 64,
}
_CHARACTERS = "ab#{}[]<>:;,\"'\\\n\t\r\0 é日🙂\u2028\u0085name"
#: Text that has tried, elsewhere, to become a field of its own.
_HOSTILE = (
    '"\nbackend: "python',
    "x' name: 'y",
    'a"; version_policy { all {} }; #',
    "\\",
    '\\"',
    "new\nline",
    "tab\t\x00\x7f\x1b",
    "日本語 🙂 \u2028 \u0085",
    "#not a comment",
    "$$TRITON_MODEL_DIRECTORY/x",
)
texts = st.sampled_from(_HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20
)


# -- any message, spelled in any way that text format allows -------------------------------------


def scalar(random: Random, field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return random.choice(field.enum_type.values).number
    if field.cpp_type in _INTEGERS:
        signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
        value = random.choice([1, 7, 2 ** _INTEGERS[field.cpp_type] - 1])
        return -value if signed and random.random() < 0.3 else value
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return random.choice([0.5, -2.5, 1e-3, 1e30, float("inf"), float("-inf")])
    text = "".join(random.choices(_CHARACTERS, k=random.randrange(6)))
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text


def fill(random: Random, message: Any, names: set[str]) -> None:
    """Give the fields of these names some value."""
    for field in message.DESCRIPTOR.fields:
        if field.name not in names:
            continue
        value = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            fill_map(random, value, entry)
        elif field.is_repeated:
            for _ in range(random.randrange(1, 3)):
                if entry is None:
                    value.append(scalar(random, field))
                else:
                    fill_some(random, value.add())
        elif entry is not None:
            value.SetInParent()
            fill_some(random, value)
        else:
            setattr(message, field.name, scalar(random, field))


def fill_map(random: Random, value: Any, entry: Descriptor) -> None:
    key, item = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(random.randrange(1, 3)):
        if item.message_type is not None:
            fill_some(random, value[scalar(random, key)])
        else:
            value[scalar(random, key)] = scalar(random, item)


def fill_some(random: Random, message: Any) -> None:
    names = [field.name for field in message.DESCRIPTOR.fields]
    fill(random, message, {name for name in names if random.random() < 0.4})


class Writer:
    """Prints a message as somebody with peculiar habits would."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def gap(self, *, needed: bool = False) -> str:
        """Space and comments; at least some where two words would run together."""
        comment = f"# {self.random.choice(_COMMENTS)}\n"
        return (
            self.random.choice([" ", "\n", "\t \r\n", comment, f"\n{comment}  {comment}"])
            if (needed or self.random.random() < 0.4)
            else ""
        )

    def fields(self, message: Any) -> list[tuple[str, str]]:
        """Every field as (name, its text)."""
        printed = []
        for field, value in message.ListFields():
            entry = field.message_type
            if entry is not None and entry.GetOptions().map_entry:
                items = [entry._concrete_class(key=key, value=value[key]) for key in value]
                printed += [(field.name, self.field(field, item)) for item in items]
            elif not field.is_repeated:
                printed.append((field.name, self.field(field, value)))
            elif self.random.random() < 0.5:
                values = ",".join(self.gap() + self.value(field, item) for item in value)
                printed.append((field.name, f"{field.name}{self.gap()}:[{values}{self.gap()}]"))
            else:
                printed += [(field.name, self.field(field, item)) for item in value]
        return printed

    def field(self, field: FieldDescriptor, value: Any) -> str:
        colon = ":" if field.message_type is None or self.random.random() < 0.5 else ""
        return f"{field.name}{self.gap()}{colon}{self.gap()}{self.value(field, value)}"

    def value(self, field: FieldDescriptor, value: Any) -> str:
        if field.message_type is not None:
            opening, closing = self.random.choice([("{", "}"), ("<", ">")])
            return f"{opening}{self.gap()}{self.joined(self.fields(value))}{closing}"
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self.string(value)
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return self.random.choice(["true", "t", "1"])
        if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM and self.random.random() < 0.7:
            assert field.enum_type is not None
            return field.enum_type.values_by_number[value].name
        if isinstance(value, float):
            return repr(value)
        return hex(value) if value > 9 and self.random.random() < 0.3 else str(value)

    def string(self, value: str | bytes) -> str:
        """In one piece or two, with either quote."""
        data = value.encode() if isinstance(value, str) else value
        cut = self.random.randrange(len(data) + 1) if self.random.random() < 0.3 else 0
        pieces = [data[:cut], data[cut:]] if cut else [data]
        return self.gap().join(self.quoted(piece) for piece in pieces)

    def quoted(self, data: bytes) -> str:
        quote = self.random.choice("\"'")
        plain = set(b"abcdefghijklmnopqrstuvwxyz#{}[]<>:;, ") | {ord("'\""[quote == "'"])}
        body = "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data)
        return f"{quote}{body}{quote}"

    def joined(self, fields: list[tuple[str, str]]) -> str:
        return "".join(text + self.separator() for _, text in fields)

    def separator(self) -> str:
        mark = self.random.choice(["", "", ";", ","])
        return self.gap() + mark + self.gap(needed=not mark)


_COMMENTS = (
    "tuned",
    'name: "commented out"',
    "{ [ <",
    "it's",
    '"',
    "\\",
    "version_policy: { }",
    "",
)


class Written:
    """A message, its text, and where in the text each top-level field stands."""

    def __init__(self, random: Random, names: set[str]) -> None:
        self.message = model_config_pb2.ModelConfig()
        fill(random, self.message, names)
        writer = Writer(random)
        self.text = writer.gap()
        self.places: dict[str, tuple[int, int]] = {}
        fields = writer.fields(self.message)
        order = [name for name, _ in fields]
        random.shuffle(order)  # of the names: the items of a list keep their order
        for name in order:
            text = fields.pop(next(at for at, field in enumerate(fields) if field[0] == name))[1]
            start = len(self.text)
            self.text += text
            self.places.setdefault(name, (start, len(self.text)))
            self.text += writer.separator()

    def around(self, name: str) -> tuple[str, str]:
        """The text before and after a field; all of it before one that is not there."""
        start, end = self.places.get(name, (len(self.text), len(self.text)))
        return self.text[:start], self.text[end:]


configs = st.builds(
    Written,
    st.randoms(use_true_random=True),
    st.sets(st.sampled_from(_FIELDS), max_size=6).map(
        lambda names: names | ({"name"} if len(names) % 2 else {"version_policy"})
    ),
)


def parsed(text: str) -> model_config_pb2.ModelConfig:
    """What Triton's own protobuf reads."""
    message = model_config_pb2.ModelConfig()
    text_format.Parse(text, message)
    return message


def copy_of(message: model_config_pb2.ModelConfig) -> model_config_pb2.ModelConfig:
    copied = model_config_pb2.ModelConfig()
    copied.CopyFrom(message)
    return copied


@given(configs)
def test_a_config_is_kept_to_the_byte(written: Written) -> None:
    """Parsing changes nothing, however it is spelled."""
    assert parsed(written.text) == written.message
    config = ModelConfig.parse(written.text.encode())
    assert config.data == written.text.encode()
    assert config.name == written.message.name


@given(configs, texts)
def test_renaming_changes_the_name_and_no_other_byte(written: Written, name: str) -> None:
    """Comments, order and spelling of everything else stay."""
    renamed = ModelConfig.parse(written.text).with_name(name)
    if written.message.name in ("", name):
        assert renamed.text == written.text
        return
    expected = copy_of(written.message)
    expected.name = name
    assert parsed(renamed.text) == expected
    before, after = written.around("name")
    assert renamed.text.startswith(before)
    assert renamed.text.endswith(after)
    assert "\n" not in renamed.text[len(before) : len(renamed.text) - len(after)]


@given(configs, st.lists(st.integers(1, 2**62), min_size=1, max_size=3, unique=True))
def test_pinning_changes_the_policy_and_no_other_byte(
    written: Written, versions: list[int]
) -> None:
    pinned = ModelConfig.parse(written.text).pinned(versions)
    expected = copy_of(written.message)
    expected.version_policy.specific.versions[:] = versions
    assert parsed(pinned.text) == expected
    assert pinned.pinned_versions == tuple(versions)
    before, after = written.around("version_policy")
    assert pinned.text.startswith(before)
    assert pinned.text.endswith(after) or not after
    assert pinned.pinned(versions) is pinned


@given(configs)
def test_the_override_json_means_the_same_message(written: Written) -> None:
    """`load_model(config=…)` gets what config.pbtxt says."""
    config = ModelConfig.parse(written.text)
    back = json_format.Parse(config.to_json(), model_config_pb2.ModelConfig())
    assert back == written.message


# -- building ---------------------------------------------------------------------------------

specs = st.builds(
    TensorSpec,
    texts,
    st.sampled_from(sorted(DATATYPES)),
    st.lists(st.sampled_from([-1, 1, 3, 224, 2**40]), max_size=4).map(tuple),
    st.booleans(),
)


@given(texts, st.lists(specs, max_size=3), st.lists(specs, max_size=3), st.integers(0, 2**31 - 1))
def test_what_is_built_parses_back_to_its_parts(
    name: str, inputs: list[TensorSpec], outputs: list[TensorSpec], max_batch_size: int
) -> None:
    """No quote, newline or control character in a name becomes a field."""
    config = ModelConfig.build(
        name=name,
        backend="onnxruntime",
        inputs=inputs,
        outputs=outputs,
        max_batch_size=max_batch_size,
        comment=name,
    )
    message = parsed(config.text)
    assert (message.name, message.backend) == (name, "onnxruntime")
    assert message.max_batch_size == max_batch_size
    known = {"name", "backend", "max_batch_size", "input", "output"}
    assert {field.name for field, _ in message.ListFields()} <= known
    assert [tensor.name for tensor in message.input] == [spec.name for spec in inputs]
    assert [tensor.name for tensor in message.output] == [spec.name for spec in outputs]
    again = ModelConfig.parse(config.data)
    assert [spec.datatype for spec in again.inputs] == [spec.datatype for spec in inputs]
    assert [spec.shape for spec in again.outputs] == [spec.shape or (1,) for spec in outputs]
    assert [spec.optional for spec in again.inputs] == [spec.optional for spec in inputs]


def test_a_scalar_is_reshaped() -> None:
    """Triton has no scalars: the client sends [1], the model sees []."""
    spec = TensorSpec("x", "FP32", ())
    config = ModelConfig.build(name="m", backend="b", inputs=[spec], outputs=[spec])
    for tensor in (*parsed(config.text).input, *parsed(config.text).output):
        assert list(tensor.dims) == [1]
        assert tensor.HasField("reshape")
        assert list(tensor.reshape.shape) == []


def test_a_tensor_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="input has no name") as caught:
        ModelConfig.build(name="m", backend="b", inputs=[TensorSpec("", "FP32", (1,))], outputs=[])
    assert caught.value.field == "input"


@pytest.mark.parametrize("comment", ["two\nlines", "a\rb", "a\x0bb\x0cc", "a\u2028b", "#", ""])
def test_a_comment_stays_a_comment(comment: str) -> None:
    config = ModelConfig.build(name="m", backend="b", inputs=[], outputs=[], comment=comment)
    assert parsed(config.text) == model_config_pb2.ModelConfig(name="m", backend="b")


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "name",
        'name: "x',
        'nmae: "x"',
        "max_batch_size: many",
        "input {",
        "}",
        "<html>",
        'name: "a" name: "b"',
        'name: "\udcff"',
        "\0",
        "max_batch_size: 99999999999",
        '{"name": "json"}',
    ],
)
def test_what_is_no_config_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"over there/config\.pbtxt is not a Triton model"):
        ModelConfig.parse(text, where="over there/config.pbtxt")


@settings(max_examples=200)
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_a_config_or_a_config_error(data: bytes) -> None:
    try:
        config = ModelConfig.parse(data)
    except ConfigError:
        return
    assert config.data == data


def test_a_comment_in_another_encoding_keeps_its_bytes() -> None:
    """A Latin-1 umlaut in a comment is nobody's error, and survives an edit."""
    data = b"# gr\xf6\xdfer\nname: 'a' # \xff\n"
    edited = ModelConfig.parse(data).with_name("b").pinned([3])
    assert edited.data.startswith(b'# gr\xf6\xdfer\nname: "b" # \xff\n')


@pytest.mark.parametrize("spelled", ["TYPE_INVALID", "0", "99", "-1"])
def test_a_type_that_triton_has_not_is_named(spelled: str) -> None:
    """Text format lets any number stand for an enum."""
    config = ModelConfig.parse(f'input {{ name: "x" data_type: {spelled} dims: 1 }}')
    with pytest.raises(ConfigError, match=r"input\[x\]\.data_type") as caught:
        _ = config.inputs
    assert caught.value.field == "input[x].data_type"


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", (4,)),
        ("version_policy { latest { num_versions: 2 } }", (2, 4)),
        ("version_policy { latest { num_versions: 9 } }", (1, 2, 4)),
        ("version_policy { all {} }", (1, 2, 4)),
        ("version_policy { specific { versions: [2, 7] } }", (2,)),
    ],
)
def test_the_policy_says_which_versions_serve(policy: str, served: tuple[int, ...]) -> None:
    """Triton's `model_configuration.md`, "Version Policy"; the default is the latest one."""
    assert ModelConfig.parse(policy).served([4, 1, 2]) == served


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ('backend: "python"', "python"),
        ('platform: "onnxruntime_onnx"', "onnxruntime"),
        ('platform: "ensemble"', "ensemble"),
        ('platform: "unheard of"', ""),
        ('backend: "a" platform: "tensorrt_plan"', "a"),
        ("", ""),
    ],
)
def test_the_backend_is_found_under_both_spellings(text: str, backend: str) -> None:
    config = ModelConfig.parse(text)
    assert config.backend == backend
    assert config.is_ensemble == (backend == "ensemble")
    assert ModelConfig.parse("ensemble_scheduling { }").is_ensemble


def test_named_files_are_found_wherever_the_config_names_them() -> None:
    config = ModelConfig.parse("""
        output [{ name: "a" label_filename: "labels.txt" }, { name: "b" }]
        model_warmup { name: "w" inputs { key: "x" value { input_data_file: "x.bin" } } }
        parameters { key: "EXECUTION_ENV_PATH"
                     value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }
    """)
    assert config.named_files == (
        ("output[0].label_filename", "labels.txt"),
        ("model_warmup[0].inputs[x]", "warmup/x.bin"),
        ("parameters[EXECUTION_ENV_PATH]", "env.tar.gz"),
    )
    elsewhere = 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/opt/env.tgz" } }'
    assert ModelConfig.parse(elsewhere).named_files == ()


def test_what_the_plugin_reads_in_json_is_what_triton_would_print() -> None:
    config = ModelConfig.parse('name: "m" version_policy { specific { versions: 3 } }')
    assert json.loads(config.to_json()) == {
        "name": "m",
        "version_policy": {"specific": {"versions": ["3"]}},
    }


def test_steps_move_and_the_rest_stays() -> None:
    """Comments within the steps, too."""
    text = (
        "# tuned by hand\n"
        'platform: "ensemble"\n'
        "ensemble_scheduling { # the way\n"
        '  step [ { model_name: "a" model_version: 2 # the tokens\n'
        '           input_map { key: "x" value: "a" } },\n'
        '         { model_name: "b"; } ]\n'
        '  step < model_name: "c", model_version: -1 >\n'
        "}\n"
        "max_batch_size: 8  # rows\n"
    )
    config = ModelConfig.parse(text)
    assert config.steps == (("a", 2), ("b", 0), ("c", -1))
    moved = config.with_steps(lambda name, version: (f'{name}."', version + 7))
    assert moved.steps == (('a."', 9), ('b."', 7), ('c."', 6))
    assert moved.text == (
        "# tuned by hand\n"
        'platform: "ensemble"\n'
        "ensemble_scheduling { # the way\n"
        '  step [ { model_name: "a.\\"" model_version: 9 # the tokens\n'
        '           input_map { key: "x" value: "a" } },\n'
        '         { model_name: "b.\\""; \nmodel_version: 7\n} ]\n'
        '  step < model_name: "c.\\"", model_version: 6 >\n'
        "}\n"
        "max_batch_size: 8  # rows\n"
    )
    assert ModelConfig.parse(moved.text).to_json() == moved.to_json()
    assert config.with_steps(lambda name, version: (name, version)) is config


def test_a_model_without_steps_moves_none() -> None:
    config = ModelConfig.parse('backend: "python"')
    assert config.steps == ()
    assert config.with_steps(lambda name, _: (f"{name}2", 3)) is config
