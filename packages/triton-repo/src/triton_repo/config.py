"""config.pbtxt: parse, build, check, pin. The only door to protobuf.

Field meanings: Triton's `model_configuration.md`; the message is Triton's own `model_config.proto`,
as tritonclient ships it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2  # noqa: TID251 - this is the door

from triton_repo._textproto import edit_messages, set_field
from triton_repo.errors import ConfigError
from triton_repo.joining import JOIN_PARAMETER, asked, decision, refuses
from triton_repo.overrides import JOIN_REQUESTS, NO_FIELDS, WHOLE_CONFIG, set_override
from triton_repo.tensors import DATATYPES, TensorSpec, datatype_of
from triton_repo.text import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["CONFIG_FILENAME", "NO_CONFIG", "ModelConfig"]

CONFIG_FILENAME = "config.pbtxt"

#: Platforms from before `backend:`, and the backend that serves them now.
_PLATFORM_BACKENDS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "ensemble": "ensemble",
}

#: Fields in which two versions of a model cannot differ while both serve; `backend` is one more.
_SEEN_BY_ALL = (
    "max_batch_size",
    "input",
    "output",
    "default_model_filename",
    "ensemble_scheduling",
    "sequence_batching",
    "model_transaction_policy",
    "parameters",
)


#: Those of real models are a hundredth of it, and parsing takes seconds for each megabyte.
_MAX_BYTES = 1_000_000
#: A directory's name below Triton's backends, or none.
_BACKEND = re.compile(r"(?!\.)[\w.+-]*", re.ASCII)
#: Triton's own that only looks at a model.
_AGENTS = ("checksum",)


@dataclass(frozen=True)
class ModelConfig:
    """One config.pbtxt: its text, kept to the byte, and what Triton reads in it.

    Instances are values: the editing methods return another one.
    """

    text: str
    _message: model_config_pb2.ModelConfig = field(repr=False, compare=False)

    # -- making one ---------------------------------------------------------------------------

    @classmethod
    def parse(cls, data: bytes | str, *, where: str = CONFIG_FILENAME) -> ModelConfig:
        """Read a config.pbtxt.

        Args:
            data: the file's content.
            where: how messages name it.

        Raises:
            ConfigError: it is not a text-format `ModelConfig`; `field` is None.
        """
        # surrogateescape: a Latin-1 comment must come back as the same bytes
        text = data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data
        message = model_config_pb2.ModelConfig()
        try:
            text_format.Parse(text, message)
        except (text_format.ParseError, UnicodeError) as exc:
            reason = " ".join(str(exc).split())
            if "has no field named" in reason:  # misspelt, or newer than our protobuf
                reason += " (a field of a newer Triton? then upgrade tritonclient)"
            raise ConfigError(f"{where} is not a Triton model configuration: {reason}") from exc
        return cls(text, message)

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read a file; see `parse`.

        Raises:
            ConfigError: it is no configuration, or far too large for one.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than {human_size(_MAX_BYTES)}, no configuration")
        return cls.parse(data, where=str(path))

    @classmethod
    def build(
        cls,
        *,
        name: str,
        backend: str,
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        max_batch_size: int = 0,
        dynamic_batching: bool = False,
        decoupled: bool = False,
        platform: str = "",
        instances: int = 0,
        parameters: Mapping[str, str] | None = None,
        comment: str = "",
    ) -> ModelConfig:
        """Write a config.pbtxt from its parts.

        Args:
            name: the model's name.
            backend: Triton backend, such as `onnxruntime`.
            inputs: without the batch dimension when `max_batch_size` is over 0. A scalar, shape (),
                becomes `dims: [1] reshape: {}`.
            outputs: the same.
            max_batch_size: 0 means that the model has no batch dimension of Triton's.
            dynamic_batching: let Triton join requests into one batch.
            decoupled: a request may have any number of responses.
            platform: the older spelling of `backend`, where a server still wants it.
            instances: on the CPU, or on each GPU where there are some; 0 leaves it to Triton.
            parameters: of the backend.
            comment: put at the top, a `#` before each line.

        Raises:
            ConfigError: a tensor has no name.
        """
        message = model_config_pb2.ModelConfig(
            name=name, backend=backend, platform=platform, max_batch_size=max_batch_size
        )
        for spec in inputs:
            tensor = message.input.add()
            _fill(tensor, spec, "input")
            tensor.optional = spec.optional
        for spec in outputs:
            _fill(message.output.add(), spec, "output")
        if dynamic_batching:
            message.dynamic_batching.SetInParent()
        if decoupled:
            message.model_transaction_policy.decoupled = True
        if instances:
            message.instance_group.add(count=instances)
        for key, value in (parameters or {}).items():
            message.parameters[key].string_value = value
        head = "".join(f"# {line}\n" for line in comment.splitlines())
        return cls(head + _print(message), message)

    # -- reading it ---------------------------------------------------------------------------

    @property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.text.encode("utf-8", "surrogateescape")

    @property
    def name(self) -> str:
        """The `name` field; empty when the file leaves it to the directory."""
        return cast("str", self._message.name)

    @property
    def backend(self) -> str:
        """The backend that serves the model: `backend`, or what `platform` stands for."""
        return self._message.backend or _PLATFORM_BACKENDS.get(self._message.platform, "")

    @property
    def is_ensemble(self) -> bool:
        """Whether this is an ensemble: steps over other models, with no file of its own."""
        return self.backend == "ensemble" or self._message.HasField("ensemble_scheduling")

    @property
    def steps(self) -> tuple[tuple[str, int], ...]:
        """Of an ensemble: each step's model, and the version of it, -1 for the latest."""
        return tuple(
            (each.model_name, each.model_version) for each in self._message.ensemble_scheduling.step
        )

    @property
    def is_decoupled(self) -> bool:
        """Whether a request may have any number of responses."""
        return bool(self._message.model_transaction_policy.decoupled)

    @property
    def is_dynamic(self) -> bool:
        """Whether Triton joins requests that wait into one batch."""
        return self.max_batch_size > 0 and self._message.HasField("dynamic_batching")

    @property
    def max_batch_size(self) -> int:
        """0, or how many rows one request may have."""
        return cast("int", self._message.max_batch_size)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs as the file gives them: no batch dimension when `max_batch_size` is over 0."""
        return tuple(_spec(tensor, "input") for tensor in self._message.input)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs, in the same form as `inputs`."""
        return tuple(_spec(tensor, "output") for tensor in self._message.output)

    @property
    def parameters(self) -> dict[str, str]:
        """Parameters of the backend."""
        return {key: each.string_value for key, each in self._message.parameters.items()}

    @property
    def pinned_versions(self) -> tuple[int, ...]:
        """The versions `version_policy: { specific }` names; empty under any other policy."""
        return tuple(self._message.version_policy.specific.versions)

    def served(self, on_disk: Iterable[int]) -> tuple[int, ...]:
        """Which version directories Triton serves under this file's version policy."""
        numbers = sorted(on_disk)
        policy = self._message.version_policy
        choice = policy.WhichOneof("policy_choice")
        if choice == "all":
            return tuple(numbers)
        if choice == "specific":
            return tuple(number for number in numbers if number in policy.specific.versions)
        return tuple(numbers[-max(1, policy.latest.num_versions) :])  # 1 is Triton's default

    @property
    def model_filename(self) -> str:
        """`default_model_filename`, or an empty string."""
        return cast("str", self._message.default_model_filename)

    @property
    def named_files(self) -> tuple[tuple[str, str], ...]:
        """Files the config expects beside itself, as (field, path in the model directory).

        Labels, warm-up data and the Python backend's execution environment.
        """
        message = self._message
        labels = [
            (f"output[{index}].label_filename", output.label_filename)
            for index, output in enumerate(message.output)
            if output.label_filename
        ]
        warmups = [
            (f"model_warmup[{index}].inputs[{name}]", f"warmup/{data.input_data_file}")
            for index, sample in enumerate(message.model_warmup)
            for name, data in sorted(sample.inputs.items())
            if data.input_data_file
        ]
        prefix = "$$TRITON_MODEL_DIRECTORY/"
        environment = message.parameters.get("EXECUTION_ENV_PATH")
        path = environment.string_value if environment is not None else ""
        packed = [("parameters[EXECUTION_ENV_PATH]", path[len(prefix) :])]
        return tuple(labels + warmups + (packed if path.startswith(prefix) else []))

    def check_paths(self, *, where: str = CONFIG_FILENAME) -> None:
        """Make sure that a file of somebody else's names nothing outside the model.

        Args:
            where: how messages name the file.

        Raises:
            ConfigError: it does, or asks for an agent that could; `field` names it.
        """
        message = self._message
        libraries = message.model_operations.op_library_filename
        states = [each for state in message.sequence_batching.state for each in state.initial_state]
        named = [
            ("default_model_filename", message.default_model_filename),
            *(("cc_model_filenames", name) for name in message.cc_model_filenames.values()),
            *(("model_operations.op_library_filename", name) for name in libraries),
            *(("initial_state.data_file", each.data_file) for each in states),
            ("runtime", getattr(message, "runtime", "")),  # newer than some tritonclients
            *self.named_files,
        ]
        for field_name, path in named:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ConfigError(
                    f"{where}: {field_name} is {path!r}, outside the model; put the file into it",
                    field=field_name,
                )
        self._check_accelerators(where)
        for field_name in ("backend", "platform"):
            name = getattr(message, field_name)
            if not _BACKEND.fullmatch(name):
                raise ConfigError(
                    f"{where}: {field_name} is {name!r}, which names none", field=field_name
                )
        for agent in message.model_repository_agents.agents:
            if agent.name not in _AGENTS:
                raise ConfigError(
                    f"{where}: model_repository_agents has {agent.name!r}, which may serve files "
                    f"from anywhere; only {', '.join(_AGENTS)} is let through",
                    field="model_repository_agents",
                )

    def _check_accelerators(self, where: str) -> None:
        accelerators = self._message.optimization.execution_accelerators
        for each in (
            *accelerators.gpu_execution_accelerator,
            *accelerators.cpu_execution_accelerator,
        ):
            for name, value in each.parameters.items():  # a cache may well be at an absolute path
                if ".." in PurePosixPath(value).parts:
                    raise ConfigError(
                        f"{where}: accelerator {each.name!r} has {name} {value!r}; say it "
                        "without ..",
                        field="execution_accelerators",
                    )

    def to_json(self) -> str:
        """The message as JSON, the form `load_model(config=…)` takes as an override."""
        as_dict = json_format.MessageToDict(self._message, preserving_proto_field_name=True)
        return json.dumps(as_dict)

    def difference(self, other: ModelConfig) -> str | None:
        """The first field that keeps one file from standing for both; None where either would do.

        Triton has one config.pbtxt for all the versions of a model: those that serve together must
        agree about what a client or the backend sees.
        """
        one, two = self._without_reason(), other._without_reason()
        for name in _SEEN_BY_ALL:
            if getattr(one, name) != getattr(two, name):
                return name
        if decision(self) != decision(other):
            return f"parameters.{JOIN_PARAMETER}"
        return None if self.backend == other.backend else "backend"

    def _without_reason(self) -> model_config_pb2.ModelConfig:
        """The message without why requests are joined or not, which may differ."""
        copy = self._copy()
        copy.parameters.pop(JOIN_PARAMETER, None)
        return copy

    # -- changing it --------------------------------------------------------------------------

    def with_name(self, name: str) -> ModelConfig:
        """The same file where `name`, if it stands there, is `name`; else unchanged."""
        if self.name in ("", name):
            return self
        changed = self._copy()
        changed.name = name
        return self._edited("name", f"name: {_quote(name)}", changed)

    def with_steps(self, move: Callable[[str, int], tuple[str, int]]) -> ModelConfig:
        """The same ensemble of models that are elsewhere, comments and all.

        Args:
            move: gives a step's model and version from those it has here; -1 is the latest.
        """
        changed = self._copy()
        for step in changed.ensemble_scheduling.step:
            step.model_name, step.model_version = move(step.model_name, step.model_version)
        if changed == self._message:
            return self
        steps = iter(changed.ensemble_scheduling.step)

        def moved(text: str) -> str:
            step = next(steps, None)
            if step is None:  # our scanner sees more steps than protobuf does
                return text
            text = set_field(text, "model_name", f"model_name: {_quote(step.model_name)}")
            return set_field(text, "model_version", f"model_version: {step.model_version}")

        text = edit_messages(
            self.text, "ensemble_scheduling", lambda inner: edit_messages(inner, "step", moved)
        )
        return _as_expected(text, changed)

    def pinned(self, versions: Sequence[int]) -> ModelConfig:
        """The same file, serving exactly `versions`.

        Unchanged, to the byte, where it already does.
        """
        if self.pinned_versions == tuple(versions):
            return self
        changed = self._copy()
        changed.version_policy.specific.versions[:] = list(versions)
        numbers = ", ".join(str(version) for version in versions)
        policy = f"version_policy: {{ specific {{ versions: [ {numbers} ] }} }}"
        return self._edited("version_policy", policy, changed)

    def overridden(self, overrides: Mapping[str, str]) -> ModelConfig:
        """The same file with other values; comments outside of these fields stay.

        Args:
            overrides: see `triton_repo.overrides`.

        Raises:
            ConfigError: one is none; `field` names it.
        """
        config = self
        if WHOLE_CONFIG in overrides:
            config = ModelConfig.parse(overrides[WHOLE_CONFIG], where=f"the {WHOLE_CONFIG} given")
            config = config.for_model(self)
        for path, text in overrides.items():
            if path not in NO_FIELDS:
                config = config.with_override(path, text)
        if JOIN_REQUESTS in overrides:
            config = config.joined(is_joined=overrides[JOIN_REQUESTS] == "true")
        return config

    def for_model(self, fresh: ModelConfig, placed: ModelConfig | None = None) -> ModelConfig:
        """Return a user's file for another model, which says whether its requests are joined.

        JOIN_PARAMETER is that of the model, but for a user's own `false`, which mixes no rows.
        `dynamic_batching` is the user's where the user has changed it.

        Args:
            fresh: config.pbtxt as the model brings it, or as it was generated for the model.
            placed: config.pbtxt as it was before the user changed it; None where that is not known.
        """
        config = self
        own = self.parameters.get(JOIN_PARAMETER, "")
        before = placed.parameters.get(JOIN_PARAMETER, "") if placed is not None else None
        is_refused = own != before and refuses(own) and decision(fresh)
        if not is_refused:
            said = fresh.parameters.get(JOIN_PARAMETER, "")
            config = config.with_override(f"parameters.{JOIN_PARAMETER}", said)
        if placed is not None and _batching(self) == _batching(placed):
            config = config._with_batching_of(fresh)  # noqa: SLF001 - the same class
        return config

    def _with_batching_of(self, other: ModelConfig) -> ModelConfig:
        """Return the same file with another one's dynamic_batching, where there is a batch."""
        batching = _batching(other) if self.max_batch_size else None
        scheduler = self._message.WhichOneof("scheduling_choice")  # Triton has one of them at most
        if batching == _batching(self) or scheduler not in (None, "dynamic_batching"):
            return self
        changed = self._copy()
        changed.ClearField("dynamic_batching")
        if batching is not None:
            changed.dynamic_batching.CopyFrom(batching)
        return self._with_field("dynamic_batching", changed)

    def joined(self, *, is_joined: bool) -> ModelConfig:
        """The same file, with requests of several callers joined or not, because a user asks.

        Raises:
            ConfigError: the model has no batch dimension to join them in.
        """
        config = self
        if is_joined and not self.max_batch_size:
            raise ConfigError(
                f"join_requests=true: {CONFIG_FILENAME} has max_batch_size 0, so there is no batch "
                "dimension to join requests in; set join_requests=default, or set max_batch_size",
                field=JOIN_REQUESTS,
            )
        if is_joined != self._message.HasField("dynamic_batching"):
            config = config.with_override("dynamic_batching", "{}" if is_joined else "")
        if is_joined == decision(config) and JOIN_PARAMETER in config.parameters:
            return config
        return config.with_override(f"parameters.{JOIN_PARAMETER}", asked(is_joined=is_joined))

    def with_override(self, path: str, text: str) -> ModelConfig:
        """The same with one other value; see `overridden`."""
        changed = self._copy()
        name = set_override(changed, path, text)
        if changed == self._message:
            return self
        return self._with_field(name, changed)

    def _copy(self) -> model_config_pb2.ModelConfig:
        copy = model_config_pb2.ModelConfig()
        copy.CopyFrom(self._message)
        return copy

    def _with_field(self, name: str, changed: model_config_pb2.ModelConfig) -> ModelConfig:
        """The same text with one field as it is in `changed`, which differs in nothing else."""
        alone = model_config_pb2.ModelConfig()
        alone.CopyFrom(changed)
        for other, _ in changed.ListFields():
            if other.name != name:
                alone.ClearField(other.name)
        return self._edited(name, _print(alone).rstrip(), changed)

    def _edited(
        self, name: str, replacement: str, expected: model_config_pb2.ModelConfig
    ) -> ModelConfig:
        return _as_expected(set_field(self.text, name, replacement), expected)


def _as_expected(text: str, expected: model_config_pb2.ModelConfig) -> ModelConfig:
    """An edited text, where it says what it should."""
    try:
        edited = ModelConfig.parse(text)
    except ConfigError:
        edited = None
    if edited is not None and edited._message == expected:  # noqa: SLF001 - the same class
        return edited
    # Text that our scanner reads otherwise than protobuf does: correct beats pretty.
    return ModelConfig(_print(expected), expected)


def _batching(config: ModelConfig) -> model_config_pb2.ModelDynamicBatching | None:
    """Return the field dynamic_batching; None where the file has none."""
    message = config._message  # noqa: SLF001 - the same module
    return message.dynamic_batching if message.HasField("dynamic_batching") else None


#: What Triton reads where there is no config.pbtxt.
NO_CONFIG = ModelConfig.parse("")


def _fill(tensor: object, spec: TensorSpec, kind: str) -> None:
    if not spec.name:
        raise ConfigError(f"an {kind} has no name", field=kind)
    filled = cast("model_config_pb2.ModelInput", tensor)
    filled.name = spec.name
    filled.data_type = model_config_pb2.DataType.Value(DATATYPES[spec.datatype].config_name)
    filled.dims.extend(spec.shape or (1,))
    if not spec.shape:  # Triton has no scalars: the model sees [], the client [1]
        filled.reshape.SetInParent()


def _spec(tensor: model_config_pb2.ModelInput, kind: str) -> TensorSpec:
    known = model_config_pb2.DataType.values()
    config_name = (
        model_config_pb2.DataType.Name(tensor.data_type)
        if tensor.data_type in known
        else str(tensor.data_type)  # text format lets any number stand for an enum
    )
    try:
        datatype = datatype_of(config_name=config_name).name
    except ConfigError as exc:
        where = f"{kind}[{tensor.name}].data_type"
        raise ConfigError(f"{where} is {config_name}, no type to serve", field=where) from exc
    optional = kind == "input" and bool(tensor.optional)
    return TensorSpec(tensor.name, datatype, tuple(tensor.dims), optional)


def _print(message: model_config_pb2.ModelConfig) -> str:
    return text_format.MessageToString(message, as_utf8=True, use_short_repeated_primitives=True)


def _quote(text: str) -> str:
    """A text-format string literal."""
    return _print(model_config_pb2.ModelConfig(name=text)).partition(": ")[2].strip()
