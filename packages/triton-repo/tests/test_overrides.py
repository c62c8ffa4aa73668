"""Fields of config.pbtxt that are set otherwise than the model does."""

from __future__ import annotations

import pytest

from triton_repo.config import NO_CONFIG, ModelConfig
from triton_repo.errors import ConfigError
from triton_repo.overrides import contradict

TEXT = """\
# ours
name: "m" # the name
max_batch_size: 4 # four
backend: "python"
dynamic_batching { max_queue_delay_microseconds: 5 }
parameters { key: "a" value { string_value: "1" } }
"""


def overridden(**overrides: str) -> ModelConfig:
    given = {path.replace("__", "."): text for path, text in overrides.items()}
    return ModelConfig.parse(TEXT).overridden(given)


def test_comments_and_other_fields_stay() -> None:
    assert overridden(max_batch_size="8").text == TEXT.replace("size: 4", "size: 8")


def test_what_is_so_already_keeps_its_bytes() -> None:
    assert overridden(max_batch_size="4", parameters__a="1").text == TEXT


def test_a_part_of_a_field_leaves_its_other_parts() -> None:
    text = overridden(dynamic_batching__preferred_batch_size="[4, 8]").text
    assert "max_queue_delay_microseconds: 5" in text
    assert "preferred_batch_size: [4, 8]" in text


def test_parameters_are_set_and_taken_out_by_their_keys() -> None:
    text = overridden(parameters__b="x y").text
    assert 'key: "a"' in text
    assert 'string_value: "x y"' in text
    assert "parameters" not in overridden(parameters__a="").text


def test_each_group_of_instances_is_meant() -> None:
    two = ModelConfig.parse("instance_group [{ count: 1 kind: KIND_CPU }, { count: 1 gpus: [0] }]")
    assert two.overridden({"instance_group.count": "3"}).text.count("count: 3") == 2
    one = NO_CONFIG.overridden({"instance_group.count": "3", "instance_group.gpus": "[0, 1]"})
    assert one.text.count("instance_group") == 1
    assert "gpus: [0, 1]" in one.text


def test_an_empty_text_takes_a_field_out() -> None:
    assert "dynamic_batching" not in overridden(dynamic_batching="").text


def test_another_scheduler_takes_the_place_of_the_one_there_is() -> None:
    config = overridden(sequence_batching="{}")
    assert "sequence_batching" in config.text
    assert "dynamic_batching" not in config.text


def test_a_whole_config_comes_first() -> None:
    config = overridden(max_batch_size="8", config='backend: "onnxruntime" # theirs')
    assert config.text == 'backend: "onnxruntime" # theirs\nmax_batch_size: 8\n'


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("max_batchsize", "8", "did you mean max_batch_size"),
        ("max_batch_size", "x", "cannot be 'x'"),
        ("max_batch_size", '8 name: "other"', "cannot be"),
        ("max_batch_size.x", "8", "a field without parts"),
        ("dynamic_batching.delay", "8", "no field of Triton's ModelDynamicBatching"),
        ("dynamic_batching", "8", "cannot be"),
        ("name", '"x"', "set by deploying"),
        ("version_policy", "{ all {} }", "set by deploying"),
        ("version_policy.all", "{}", "set by deploying"),
        ("parameters", "8", "cannot be"),
        ("", "8", "no field"),
        ("config", "max_batch_size: x", "the config given"),
    ],
)
def test_what_is_no_field_or_no_value_is_refused(path: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig.parse(TEXT).overridden({path: text})


@pytest.mark.parametrize(
    ("one", "other", "is_so"),
    [
        (("join_requests", "true"), ("dynamic_batching", ""), True),
        (("join_requests", "true"), ("max_batch_size", "0"), True),
        (("join_requests", "true"), ("sequence_batching", "{}"), True),
        (("join_requests", "false"), ("dynamic_batching", "{}"), True),
        (("join_requests", "false"), ("dynamic_batching.priority_levels", "3"), True),
        (("dynamic_batching", ""), ("dynamic_batching.preferred_batch_size", "[4]"), True),
        (("join_requests", "true"), ("dynamic_batching", "{}"), False),
        (("join_requests", "true"), ("dynamic_batching.preferred_batch_size", "[4]"), False),
        (("join_requests", "true"), ("max_batch_size", "8"), False),
        (("join_requests", "false"), ("dynamic_batching", ""), False),
        (("join_requests", "false"), ("max_batch_size", "0"), False),
        (("dynamic_batching", "{}"), ("dynamic_batching.preferred_batch_size", "[4]"), False),
        (("dynamic_batching", ""), ("dynamic_batching.preferred_batch_size", ""), False),
    ],
)
def test_overrides_of_which_one_would_undo_the_other(
    one: tuple[str, str], other: tuple[str, str], *, is_so: bool
) -> None:
    assert contradict(one, other) is is_so
    assert contradict(other, one) is is_so
