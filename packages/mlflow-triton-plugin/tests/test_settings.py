"""Addresses and options are parsed at the edge, and refused there by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.errors import SettingsError
from mlflow_triton_plugin.options import OPTIONS, Options, parse_options
from mlflow_triton_plugin.plugin import target_help
from mlflow_triton_plugin.settings import VARIABLES, Settings
from mlflow_triton_plugin.warming import effective_overrides


def endpoints(target: str, **environment: str) -> list[str]:
    return [str(each) for each in Settings.read(target, environment).endpoints]


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("localhost:8001", "grpc://localhost:8001"),
        ("triton-host", "grpc://triton-host:8001"),
        ("grpc://h:9", "grpc://h:9"),
        ("grpcs://h", "grpcs://h:8001"),
        ("http://h", "http://h:8000"),
        ("http://h:8000/prefix/", "http://h:8000/prefix"),
        ("https://h", "https://h:443"),
        ("[::1]:8001", "grpc://[::1]:8001"),
        ("http://[fe80::1]", "http://[fe80::1]:8000"),
        (" h:1 ", "grpc://h:1"),
    ],
)
def test_every_spelling_of_an_address_is_read(text: str, endpoint: str) -> None:
    assert endpoints("triton", TRITON_URL=text) == [endpoint]


def test_the_default_address_is_tritons_grpc_port() -> None:
    assert endpoints("triton") == ["grpc://localhost:8001"]
    assert endpoints("triton", TRITON_URL="") == ["grpc://localhost:8001"]


def test_the_target_uri_overrides_the_environment() -> None:
    """`triton://otherhost:9000` must not connect to localhost."""
    assert endpoints("triton://other:9000", TRITON_URL="h:1") == ["grpc://other:9000"]
    assert endpoints("triton://a:1,b:2/") == ["grpc://a:1", "grpc://b:2"]


@pytest.mark.parametrize(
    "text",
    ["ftp://h:1", "h:99999", "h:0", "h:x", "h p:1", "grpc://h:1/path", "a:1,,b:2", "u:p@h:1"],
)
def test_what_is_no_address_is_refused_naming_the_variable(text: str) -> None:
    with pytest.raises(SettingsError, match="TRITON_URL") as raised:
        Settings.read("triton", {"TRITON_URL": text})
    assert raised.value.setting == "TRITON_URL"


@pytest.mark.parametrize(
    "target",
    [
        "triton:/prod:8001",
        "triton:prod:8001",
        "triton:",
        "triton://",
        "tritons://h",
        "prod:8001",
        "",
    ],
)
def test_a_target_that_names_no_server_never_means_the_default_one(target: str) -> None:
    """`triton:/prod:8001` must not connect to localhost."""
    with pytest.raises(SettingsError, match=r"neither triton.*nor triton://host:port") as raised:
        Settings.read(target, {"TRITON_URL": "h:1"})
    assert raised.value.setting == "the target URI"


def test_a_wrong_target_is_mlflows_invalid_parameter() -> None:
    for target in ("triton:/prod:8001", "triton:u:hunter2@prod"):
        with pytest.raises(MlflowException, match="the target URI is neither") as raised:
            get_deploy_client(target)
        assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan", "1e300", "100000001"])
def test_a_timeout_is_a_number_of_seconds(text: str) -> None:
    with pytest.raises(SettingsError, match="TRITON_REQUEST_TIMEOUT"):
        Settings.read("triton", {"TRITON_REQUEST_TIMEOUT": text})


def test_options_are_read_from_strings_and_from_real_types() -> None:
    wanted = Options(on_conflict="adopt", keep_versions=3, load_timeout_s=1.5)
    strings = {"on_conflict": "adopt", "keep_versions": "3", "load_timeout": "1.5"}
    types = {"on_conflict": "adopt", "keep_versions": 3, "load_timeout": 1.5}
    assert parse_options(strings, command="create") == wanted
    assert parse_options(types, command="create") == wanted
    assert parse_options(None, command="create") == Options()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keep_versions", "0"),
        ("keep_versions", "two"),
        ("keep_versions", True),
        ("keep_versions", 1.5),
        ("load_timeout", "0"),
        ("load_timeout", None),
        ("on_conflict", "overwrite"),
        ("on_conflict", ["fail"]),
        ("keep_versions", 10**400),
        ("validate_tolerance", 10**400),
        ("load_timeout", 10**400),
        ("load_timeout", "1e300"),
        ("load_timeout", 1e8 + 1),
        ("lock_timeout", "1e300"),
        ("lock_timeout", "-1"),
    ],
)
def test_a_wrong_value_is_refused_naming_the_option(key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"-C {key} is") as raised:
        parse_options({key: value}, command="create")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "key",
    ["on_conflict", "keep_versions", "serve_versions", "validate", "max_size", "load_timeout"],
)
def test_a_number_with_more_digits_than_python_writes_is_refused(key: str) -> None:
    for value in (10**5000, [10**5000]):
        with pytest.raises(SettingsError, match=f"-C {key} is a number with thousands of digits"):
            parse_options({key: value}, command="create")
    with pytest.raises(SettingsError, match="is not an option of create"):
        parse_options({10**5000: 1}, command="create")  # type: ignore[dict-item]


@pytest.mark.parametrize("key", ["grpc_port", "http_port"])
def test_a_port_is_one_that_there_is(key: str) -> None:
    for value in ("0", 65535):
        parse_options({key: value}, command="run-local")
    for value in ("65536", 99999, "-1", "http"):
        with pytest.raises(SettingsError, match=f"-C {key} is .*from 0 to 65535 belongs there"):
            parse_options({key: value}, command="run-local")


@pytest.mark.parametrize("config", ["abc", "", [("keep_versions", 3)], 5, False])
def test_a_config_is_a_dict(config: Any) -> None:
    with pytest.raises(SettingsError, match=r"^config is .*; a dict of options") as raised:
        parse_options(config, command="create")
    assert raised.value.setting == "config"


def test_a_timeout_may_be_long_and_a_tolerance_may_be_large() -> None:
    config = {"load_timeout": "1e8", "lock_timeout": 0, "validate_tolerance": 1e300}
    assert parse_options(config, command="create").load_timeout_s == 1e8
    assert Settings.read("triton", {"TRITON_REQUEST_TIMEOUT": "1e8"}).request_timeout_s == 1e8


def test_an_option_of_another_command_is_refused() -> None:
    with pytest.raises(SettingsError, match="not an option of delete"):
        parse_options({"keep_versions": "3"}, command="delete")


def test_help_says_every_option_and_variable() -> None:
    page = target_help()
    for name in (*OPTIONS, *VARIABLES):
        assert name in page


def test_without_the_http_extra_an_http_address_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['tritonclient.http'] = None\n"
        "from mlflow.deployments import get_deploy_client\n"
        "try:\n"
        "    get_deploy_client('triton')\n"
        "except Exception as exc:\n"
        "    print(type(exc).__name__, exc)\n"
    )
    environment = {"TRITON_URL": "http://h:1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith("DeploymentError")
    assert "pip install 'mlflow-triton-plugin[http]'" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        {"join_requests": "true", "dynamic_batching": "false"},
        {"join_requests": True, "config.dynamic_batching": ""},
        {"join_requests": "false", "dynamic_batching": "true"},
        {"join_requests": "false", "priority_levels": 3},
        {"dynamic_batching": "false", "preferred_batch_size": [4, 8]},
        {"join_requests": "true", "max_batch_size": 0},
        {"member.m.join_requests": "true", "member.m.dynamic_batching": "false"},
    ],
)
def test_options_of_one_command_that_contradict_each_other_are_refused(
    options: dict[str, Any],
) -> None:
    one, other = options
    with pytest.raises(SettingsError, match="contradict each other; give one") as raised:
        parse_options(options, command="update")
    assert f"-C {one}=" in str(raised.value)
    assert f"-C {other}=" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_options_of_two_members_do_not_contradict_each_other() -> None:
    options = {"member.m.join_requests": "true", "member.n.dynamic_batching": "false"}
    assert parse_options(options, command="update").member_overrides.keys() == {"m", "n"}


@pytest.mark.parametrize(
    ("before", "asked", "wanted"),
    [
        ({"join_requests": "true"}, {"dynamic_batching": ""}, {"dynamic_batching": ""}),
        ({"dynamic_batching": ""}, {"join_requests": "true"}, {"join_requests": "true"}),
        ({"join_requests": "false"}, {"dynamic_batching": "{}"}, {"dynamic_batching": "{}"}),
        ({"join_requests": "true"}, {"max_batch_size": "0"}, {"max_batch_size": "0"}),
        (
            {"join_requests": "false", "gpus": "0"},
            {"dynamic_batching.priority_levels": "3"},
            {"gpus": "0", "dynamic_batching.priority_levels": "3"},
        ),
        (
            {"join_requests": "true"},
            {"dynamic_batching": None},
            {"join_requests": "true"},
        ),
    ],
)
def test_an_option_undoes_those_of_earlier_commands_that_contradict_it(
    before: dict[str, str], asked: dict[str, str | None], wanted: dict[str, str]
) -> None:
    assert effective_overrides(before, asked) == wanted


def test_options_are_set_in_the_order_in_which_they_were_given() -> None:
    """A field of a field that is set as a whole later goes with it."""
    before = {"instance_group": "[]", "instance_group.count": "2"}
    found = effective_overrides(before, {"instance_group": "{ count: 3 }"})
    assert list(found) == ["instance_group.count", "instance_group"]
