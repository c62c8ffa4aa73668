"""The `-C` options of the commands: one table that parses them, and that `help` prints."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlflow_triton_plugin._values import (
    as_text,
    at_least_0,
    batch_sizes,
    choice,
    config_file,
    count,
    counts,
    environment,
    kind,
    literal,
    port,
    python_version,
    resources,
    seconds,
    seconds_or_none,
    shown,
    size,
    switch,
    texted,
    together,
)
from mlflow_triton_plugin.environments import ENV_PARAMETER
from mlflow_triton_plugin.errors import SettingsError
from triton_repo.config import NO_CONFIG
from triton_repo.errors import ConfigError
from triton_repo.overrides import JOIN_REQUESTS, WARMUP, contradict
from triton_repo.scan import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from triton_repo.change import Together

__all__ = [
    "CONFIGURING",
    "DEFAULT_KEEP_VERSIONS",
    "MEMBER_OPTION",
    "OPTIONS",
    "OVERRIDES",
    "OVERRIDE_PREFIXES",
    "MemberNames",
    "OnConflict",
    "Options",
    "Validate",
    "parse_options",
]

MemberNames = Literal["own", "prefixed"]
OnConflict = Literal["fail", "adopt", "replace"]
Validate = Literal["false", "load", "true"]

DEFAULT_KEEP_VERSIONS = 2

#: An option as the user gave it, the path of the field that it sets, and the text that it sets.
_Given: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True)
class Options:
    """What `-C` (or `config=` in Python) said, with defaults filled in; see `OPTIONS`.

    `overrides` are fields of config.pbtxt, see `triton_repo.overrides`; None takes one back.
    `member_overrides` are those of the members that come with it, by their names.
    """

    on_conflict: OnConflict = "fail"
    keep_versions: int | None = None
    serve_versions: Together | None = None
    version: int | None = None
    member_names: MemberNames | None = None
    validate: Validate = "false"
    validate_tolerance: float = 1e-3
    max_files: int = Limits.files
    max_size_bytes: int = Limits.size_bytes
    env: Literal["auto", "pack", "default"] | Path | None = None
    env_python: str = ""
    load_timeout_s: float = 600.0
    lock_timeout_s: float = 0.0
    overrides: Mapping[str, str | None] = field(default_factory=dict)
    member_overrides: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    grpc_port: int = 8001
    http_port: int = 8000

    @property
    def limits(self) -> Limits:
        """How much a model may hold."""
        return Limits(files=self.max_files, size_bytes=self.max_size_bytes)

    @property
    def sets_anew(self) -> bool:
        """Whether config.pbtxt is to be another one, though the model may be the same."""
        return (
            bool(self.overrides)
            or bool(self.member_overrides)
            or self.env is not None
            or bool(self.env_python)
            or self.member_names is not None
        )

    @property
    def tries_apart(self) -> bool:
        """Whether a model is loaded apart before it serves anybody."""
        return self.validate != "false"


@dataclass(frozen=True)
class _Option:
    """One row: how it is parsed, which commands take it, and what `help` says."""

    field: str
    parse: Callable[[Any, str], Any]
    commands: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class _Override:
    """One row for a field of config.pbtxt: its path in `triton_repo.overrides`, and the same."""

    path: str
    parse: Callable[[Any, str], str]
    help: str


#: The commands that a config.pbtxt is made by.
CONFIGURING = ("create", "update", "run-local")
#: Fields of config.pbtxt. What was set stays set when an update does not name it.
OVERRIDES: dict[str, _Override] = {
    "max_batch_size": _Override(
        "max_batch_size", texted(count(0)), "rows that a request or a joined batch may have"
    ),
    "dynamic_batching": _Override(
        "dynamic_batching", switch("{}"), "whether Triton joins requests that wait: true or false"
    ),
    "join_requests": _Override(
        JOIN_REQUESTS,
        switch("true", "false"),
        "whether requests of several callers are answered together: true for a model that answers "
        "each row by itself; default true only where that is known (forests, scikit-learn, "
        "XGBoost, LightGBM, CatBoost, PyTorch, Keras, and ONNX whose first dimension is named as "
        "a batch)",
    ),
    "max_queue_delay_microseconds": _Override(
        "dynamic_batching.max_queue_delay_microseconds",
        texted(count(0)),
        "how long a request waits for others to be joined with",
    ),
    "preferred_batch_size": _Override(
        "dynamic_batching.preferred_batch_size", counts, "batches that are sent at once, 4,8"
    ),
    "priority_levels": _Override(
        "dynamic_batching.priority_levels", texted(count(0)), "how many priorities requests have"
    ),
    "default_priority_level": _Override(
        "dynamic_batching.default_priority_level",
        texted(count(0)),
        "the priority of a request that names none",
    ),
    "instance_count": _Override(
        "instance_group.count", texted(count(1)), "instances of the model, on each GPU it is on"
    ),
    "instance_kind": _Override(
        "instance_group.kind", kind, "where they are: auto, cpu, gpu or model"
    ),
    "rate_limiter_resources": _Override(
        "instance_group.rate_limiter.resources",
        resources,
        "what an instance takes of the server's --rate-limit-resource while it runs, R1=4,R2=1",
    ),
    "rate_limiter_priority": _Override(
        "instance_group.rate_limiter.priority",
        texted(count(1)),
        "its share where instances of several models wait for resources: 1 is served most",
    ),
    "gpus": _Override("instance_group.gpus", counts, "the GPUs that they are on, 0,1"),
    "stream": _Override(
        "model_transaction_policy.decoupled",
        switch("true"),
        "whether the model answers in pieces (decoupled): true by itself for a python_function "
        "that has predict_stream; false for clients that take one answer, such as those of HTTP",
    ),
    "response_cache": _Override(
        "response_cache.enable",
        switch("true"),
        "whether answers are kept for the same request; the server needs --cache-config",
    ),
    "warmup": _Override(
        WARMUP,
        batch_sizes,
        "what the server asks the model while it loads: the first row of the input example that it "
        "was logged with, in batches of these sizes, 1,8; true for one row",
    ),
    "config": _Override(
        "config",
        config_file,
        "a config.pbtxt on this machine, in the place of the model's own; where nobody names a "
        "flavor, it is one of the backend that this names",
    ),
}
#: Any other field: what an option begins with, how `help` calls it, and what it is.
OVERRIDE_PREFIXES = {
    "parameters.": ("parameters.KEY", "a parameter of the backend"),
    "config.": (
        "config.FIELD",
        (
            "any other field of config.pbtxt, in protobuf's text format, such as "
            "config.instance_group.rate_limiter.priority=2"
        ),
    ),
}
#: Takes an override back: the model's own value counts again.
DEFAULT = "default"
#: How the options begin that set fields of a member's config.pbtxt.
MEMBER_PREFIX = "member."
#: How `help` calls them.
MEMBER_OPTION = f"{MEMBER_PREFIX}NAME.OPTION"
#: What only the model itself has: an input example.
_NOT_OF_MEMBERS = ("warmup",)

OPTIONS: dict[str, _Option] = {
    "on_conflict": _Option(
        "on_conflict",
        choice(OnConflict),
        ("create",),
        "what to do with a model of this name that is in the repository and was not deployed by "
        "MLflow: fail (default), adopt (its versions stay beside the new one) or replace (it is "
        "removed once the new one serves)",
    ),
    "keep_versions": _Option(
        "keep_versions",
        count(1),
        ("create", "update"),
        "how many version directories may stay on disk, those that serve included; default 2. "
        "What serves always stays; update -C serve_versions without a model URI keeps all",
    ),
    "serve_versions": _Option(
        "serve_versions",
        together,
        ("create", "update"),
        "serve several versions at once: their numbers (6,7), or latest:2 for the one deployed and "
        "the highest of the others; update without a model URI changes nothing else. predict asks "
        "one of them as NAME/6. Default: the version deployed, alone",
    ),
    "version": _Option(
        "version",
        count(1),
        ("create", "update"),
        "the number of the model's version directory; default the registry's version, or the next "
        "free one. update without a model URI serves this version again, from what is on disk",
    ),
    "member_names": _Option(
        "member_names",
        choice(MemberNames),
        ("create", "update", "run-local"),
        "of several models that are deployed as one (an ensemble and its members): own, the "
        "members keep their names, which nobody else may have; or prefixed, each that changes gets "
        "a directory of its own, NAME.member.7, so that anything can change, and nothing that "
        "serves is loaded again. An update keeps it; default own",
    ),
    "validate": _Option(
        "validate",
        choice(Validate, ignore_case=True),
        ("create", "update"),
        "load: before the model serves anybody, load it apart, under a name that no client knows. "
        "true: also send it the input example it was logged with; errors, wrong names, shapes or "
        "types and values that are not finite refuse it, and so do other values than those of a "
        "logged output_example.json. Both take a second load, and gRPC. Default false",
    ),
    "validate_tolerance": _Option(
        "validate_tolerance",
        at_least_0,
        ("create", "update"),
        "how far validate lets a floating-point value be from the logged one, relatively and "
        "absolutely; default 0.001",
    ),
    "max_size": _Option(
        "max_size_bytes",
        size,
        ("create", "update", "run-local"),
        "how large a model may be before it is refused, such as 20GB; default 1TB",
    ),
    "max_files": _Option(
        "max_files",
        count(1),
        ("create", "update", "run-local"),
        f"how many files and directories it may have; default {Limits.files}",
    ),
    "env": _Option(
        "env",
        environment,
        ("create", "update", "run-local"),
        "the packages that a model of the Python backend runs with. auto, the default: a "
        "python_function on an embedded server of this machine that lacks what its "
        "requirements.txt names has an environment of its own, made once in the cache. pack: what "
        "requirements.txt names, packed beside the model; or the path of a tar.gz that conda-pack "
        "or venv-pack made; an update keeps these, and packs anew for other requirements. "
        "default: the server's own",
    ),
    "env_python": _Option(
        "env_python",
        python_version,
        ("create", "update", "run-local"),
        "the Python that the server's models run in, 3.12, where env=pack cannot know it: the "
        "embedded server says it, and NVIDIA's images have 3.10 from 23.05 and 3.12 from 24.11",
    ),
    "load_timeout": _Option(
        "load_timeout_s",
        seconds,
        ("create", "update", "delete", "run-local"),
        "seconds that Triton may take to load or unload the model; default 600",
    ),
    "lock_timeout": _Option(
        "lock_timeout_s",
        seconds_or_none,
        ("create", "update", "delete"),
        "seconds to wait for another command that is changing the same deployment; default 0",
    ),
    "grpc_port": _Option(
        "grpc_port", port, ("run-local",), "port of the local server; 0 for any; default 8001"
    ),
    "http_port": _Option(
        "http_port", port, ("run-local",), "port of the local server; 0 for any; default 8000"
    ),
}


def parse_options(config: Mapping[str, Any] | None, *, command: str) -> Options:
    """Read the options of one command.

    Args:
        config: strings from the CLI, or real types from Python.
        command: `create`, `update`, `delete` or `run-local`.

    Raises:
        SettingsError: an option is unknown, not for this command, or its value is wrong.
    """
    if config is not None and not isinstance(config, Mapping):
        raise SettingsError(
            f"config is {shown(config)}; a dict of options belongs there, such as "
            "{'keep_versions': 3}",
            setting="config",
        )
    parsed: dict[str, Any] = {}
    overrides: dict[str, str | None] = {}
    of_members: dict[str, dict[str, str | None]] = {}
    given: dict[str, list[_Given]] = {}
    for key, value in (config or {}).items():
        option = OPTIONS.get(key)
        member, of_member = _member_option(key) if command in CONFIGURING else ("", "")
        set_here: dict[str, str | None] = {}
        if option is not None and command in option.commands:
            parsed[option.field] = option.parse(value, f"-C {key}")
        elif command in CONFIGURING and _is_override(key):
            set_here = _overridden(key, value)
            overrides |= set_here
        elif member:
            set_here = _overridden(of_member, value, f"-C {key}")
            of_members.setdefault(member, {}).update(set_here)
        else:
            raise SettingsError(_unknown_option(as_text(key), command), setting=as_text(key))
        given.setdefault(member, []).extend(
            (f"{key}={as_text(value).lower()}", path, text)
            for path, text in set_here.items()
            if text is not None
        )
    if parsed.get("env") is not None and ENV_PARAMETER in overrides:
        raise SettingsError(
            f"-C env and -C {ENV_PARAMETER} both say which packages the model runs with; give one",
            setting="-C env",
        )
    _refuse_contradictions(given)
    return Options(**parsed, overrides=overrides, member_overrides=of_members)


def _refuse_contradictions(given: Mapping[str, Sequence[_Given]]) -> None:
    """Make sure that no option of a command undoes another one of the same command.

    Args:
        given: the options that set fields of one model, by the member's name.

    Raises:
        SettingsError: one does.
    """
    for options in given.values():
        for first, second in combinations(options, 2):
            if contradict(first[1:], second[1:]):
                raise SettingsError(
                    f"-C {first[0]} and -C {second[0]} contradict each other; give one",
                    setting=f"-C {second[0].partition('=')[0]}",
                )


def _member_option(key: Any) -> tuple[str, str]:
    """Which member an option is for, and which one it is of it; empty where it is for none.

    Both a model's name and a field's path may have dots: the first that fits decides.
    """
    if not isinstance(key, str) or not key.startswith(MEMBER_PREFIX):
        return "", ""
    parts = key.removeprefix(MEMBER_PREFIX).split(".")
    for at in range(1, len(parts)):
        member, option = ".".join(parts[:at]), ".".join(parts[at:])
        if member and option not in _NOT_OF_MEMBERS and _is_override(option):
            return member, option
    return "", ""


def _is_override(key: Any) -> bool:
    return (
        key in OVERRIDES
        or (
            isinstance(key, str)
            and any(key.startswith(each) and key != each for each in OVERRIDE_PREFIXES)
        )
        or key == "parameters"
    )


def _overridden(key: str, value: Any, setting: str = "") -> dict[str, str | None]:
    """The fields of config.pbtxt that one option sets; None for the model's own value."""
    setting = setting or f"-C {key}"
    if key == "parameters":  # from Python
        if not isinstance(value, Mapping):
            raise SettingsError(
                f"{setting} is {shown(value)}; a dict belongs there, or parameters.KEY=VALUE",
                setting=setting,
            )
        given = {f"parameters.{name}": literal(each, setting) for name, each in value.items()}
        return _checked(given, setting)
    override = OVERRIDES.get(key)
    path = override.path if override is not None else key.removeprefix("config.")
    if value == DEFAULT:
        return {path: None}
    parse = override.parse if override is not None else literal
    return _checked({path: parse(value, setting)}, setting)


def _checked(overrides: dict[str, str], setting: str) -> dict[str, str | None]:
    """Make sure that these are fields and values of Triton's own configuration.

    Raises:
        SettingsError: one is not.
    """
    try:
        # whether requests can be joined is for the model to say
        NO_CONFIG.overridden(
            {path: each for path, each in overrides.items() if path != JOIN_REQUESTS}
        )
    except ConfigError as exc:
        raise SettingsError(f"{setting}: {exc}", setting=setting) from exc
    return {**overrides}


def _unknown_option(key: str, command: str) -> str:
    if key.replace("-", "_") == "dry_run":  # MLflow's command line would say that it was created
        return f"-C {key} is no option; `mlflow-triton plan` shows what {command} would do"
    known = [name for name, option in OPTIONS.items() if command in option.commands]
    if command in CONFIGURING:
        known += [*OVERRIDES, *(name for name, _ in OVERRIDE_PREFIXES.values()), MEMBER_OPTION]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
    return f"-C {key} is not an option of {command}; {hint}"
