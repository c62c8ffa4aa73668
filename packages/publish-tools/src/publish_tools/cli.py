"""`publish-model`: arguments to a call, results to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from publish_tools.errors import PublishError
from publish_tools.plan import FLAVORS, plan_model, plan_repository
from publish_tools.publish import (
    Destination,
    FailedModel,
    Labels,
    PublishedModel,
    iter_repository,
    publish_model,
)
from triton_repo.errors import InvalidNameError, TritonRepoError
from triton_repo.names import check_name
from triton_repo.text import human_size, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from publish_tools.model_plan import ModelPlan
    from triton_repo.tensors import TensorSpec

__all__ = ["main"]

_PROGRAM = "publish-model"
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when everything was published, 1 when something could not be, 130 after Ctrl-C. Usage
        errors leave through `SystemExit(2)`, as argparse does it.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        request = _request(parser, arguments)
        _look(request)
        if not request.dry_run:
            _connect(arguments)
        return _report(_publish(request), request)
    except KeyboardInterrupt:
        _say("interrupted; a run that had begun is left, marked FAILED")
        return _INTERRUPTED
    except (TritonRepoError, PublishError, OSError) as exc:
        _say(one_line(exc))
        return 1


# -- arguments --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """The parsed command line. `name` is empty for a whole repository."""

    name: str
    source: Path
    flavor: str | None
    main_model: str
    input_example: Path | None
    output_example: Path | None
    labels: Labels
    destination: Destination
    only_if_changed: bool
    dry_run: bool
    as_json: bool

    @property
    def is_repository(self) -> bool:
        return not self.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        allow_abbrev=False,
        description="Check a model and publish it to the MLflow Model Registry, for Triton.",
        epilog="Exit codes: 0 published, 1 failed, 2 wrong usage, 130 interrupted.",
    )
    _add_source(parser)
    _add_labels(parser)
    _add_destination(parser)
    _flag(parser, "dry_run", "check, and say what would be done; MLflow is not asked", switch=True)
    _flag(parser, "json", "print the result as JSON", switch=True)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to publish")
    _flag(group, "model_name", "registered model; default: the name of the directory", "NAME")
    _flag(
        group,
        "model_directory",
        "directory in Triton's layout, or of several models that are deployed as one (an ensemble "
        "and its members), or a single file: .onnx, .plan, .engine, .xml, .pt",
        "PATH",
    )
    _flag(
        group,
        "main_model",
        "of several models the one that clients ask; default: the one that no other needs",
        "NAME",
    )
    _flag(group, "model_repository", "publish every model of a model repository by itself", "DIR")
    _flag(group, "input_example", "JSON to ask the model, as predict takes it", "FILE")
    _flag(group, "output_example", "what it answers to that, as predict writes it", "FILE")
    _flag(group, "republish", "with --model_repository: unchanged models, too", switch=True)
    group.set_defaults(model_name=None)  # not given, which is something else than empty
    help_text = "default: onnx for an .onnx file, otherwise triton"
    group.add_argument("--flavor", choices=FLAVORS, help=help_text)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to write on the version")
    alias, tag = "alias to point to it; repeatable", "tag; repeatable"
    group.add_argument("--alias", action="append", default=[], metavar="NAME", help=alias)
    group.add_argument(
        "--tag", action="append", default=[], type=_tag, metavar="KEY=VALUE", help=tag
    )
    _flag(group, "description", "text for the version's page", "TEXT")


def _add_destination(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where to")
    _flag(group, "tracking_uri", "default: MLFLOW_TRACKING_URI", "URI")
    _flag(group, "registry_uri", "default: MLFLOW_REGISTRY_URI, or the tracking URI", "URI")
    _flag(group, "experiment", "experiment of the run; made if it does not exist", "NAME")
    _flag(group, "run_name", "default: publish-<model>", "NAME")


def _flag(
    parser: argparse._ActionsContainer,
    name: str,
    help_text: str,
    metavar: str = "",
    *,
    switch: bool = False,
) -> None:
    """Add a flag in the spelling of the reference, `--model_name`, and the dashed one."""
    spellings = list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))
    if switch:
        parser.add_argument(*spellings, action="store_true", help=help_text)
    else:
        parser.add_argument(*spellings, default="", metavar=metavar, help=help_text)


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key.strip(), value


def _request(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> _Request:
    if bool(arguments.model_directory) == bool(arguments.model_repository):
        parser.error("give --model_directory or --model_repository")
    if arguments.output_example and not arguments.input_example:
        parser.error("--output_example is the answer to --input_example; give that, too")
    if arguments.model_repository:
        if arguments.model_name or arguments.flavor == "onnx":
            parser.error("--model_repository publishes triton models under their own names")
        if arguments.input_example or arguments.output_example:
            parser.error("--input_example and --output_example go with --model_directory")
        if arguments.main_model:
            parser.error("--main_model goes with --model_directory")
        source, name = Path(arguments.model_repository), ""
    else:
        if arguments.model_name == "":  # an unset variable of the shell's
            parser.error("--model_name is empty")
        source = Path(arguments.model_directory)
        name = arguments.model_name or source.resolve().name
        if source.is_file() and not arguments.model_name:
            parser.error("--model_name is needed for a single file")
        if arguments.republish:
            parser.error("--republish goes with --model_repository; a single model always is")
    return _Request(
        name=name,
        source=source,
        flavor=arguments.flavor,
        main_model=arguments.main_model,
        input_example=Path(arguments.input_example) if arguments.input_example else None,
        output_example=Path(arguments.output_example) if arguments.output_example else None,
        labels=Labels(tuple(arguments.alias), dict(arguments.tag), arguments.description),
        destination=Destination(arguments.experiment, arguments.run_name),
        only_if_changed=not arguments.republish,
        dry_run=arguments.dry_run,
        as_json=arguments.json,
    )


def _look(request: _Request) -> None:
    """Find what is wrong with the source in the time before mlflow is imported."""
    if request.is_repository:
        plan_repository(request.source)
    else:
        plan_model(
            request.source,
            request.flavor,
            main_model=request.main_model,
            input_example=request.input_example,
            output_example=request.output_example,
        )


def _connect(arguments: argparse.Namespace) -> None:
    # MLflow's seven retries take four minutes to say that nobody answers
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    import mlflow  # noqa: PLC0415 - 2 s that --help, wrong usage and a dry run do not pay

    if arguments.tracking_uri:
        mlflow.set_tracking_uri(arguments.tracking_uri)
    if arguments.registry_uri:
        mlflow.set_registry_uri(arguments.registry_uri)


# -- the call ---------------------------------------------------------------------------------

_Result = PublishedModel | FailedModel


def _publish(request: _Request) -> Iterator[_Result]:
    """The results, one at a time, in the words of the library."""
    if request.is_repository:
        yield from iter_repository(
            request.source,
            labels=request.labels,
            destination=request.destination,
            only_if_changed=request.only_if_changed,
            dry_run=request.dry_run,
        )
        return
    yield publish_model(
        request.name,
        request.source,
        flavor=request.flavor,
        labels=request.labels,
        destination=request.destination,
        main_model=request.main_model,
        input_example=request.input_example,
        output_example=request.output_example,
        dry_run=request.dry_run,
    )


# -- the answer -------------------------------------------------------------------------------


def _report(results: Iterator[_Result], request: _Request) -> int:
    """Print each result as it comes; as JSON, one document at the end."""
    seen = []
    for result in _quietly(results):
        seen.append(result)
        _warn(result)
        if isinstance(result, PublishedModel) and not request.as_json:
            _print(_sentence(result))
    if request.as_json:
        _print(json.dumps(_document(seen, request), indent=2))
    elif request.is_repository:
        _print(_summary(seen))
    return int(any(isinstance(result, FailedModel) for result in seen))


def _quietly(results: Iterator[_Result]) -> Iterator[_Result]:
    """The same results; what MLflow prints while it works ("View run …") goes to stderr."""
    while True:
        with contextlib.redirect_stdout(sys.stderr):
            result = next(results, None)
        if result is None:
            return
        yield result


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{_PROGRAM}: {text}\n")


def _warn(result: _Result) -> None:
    if isinstance(result, FailedModel):
        _say(f"{result.name}: {one_line(result.error)}")
        return
    for warning in _warnings(result):
        _say(f"warning: {warning}")


def _warnings(result: PublishedModel) -> list[str]:
    warnings = [f"{result.name}: {note}" for note in result.plan.tensors.notes]
    config = result.plan.config
    if config is not None and config.name not in ("", result.name) and not result.plan.models:
        warnings.append(
            f"config.pbtxt says name: {config.name!r}, and the model is published as "
            f"{result.name!r}; the deployment's name will replace it"
        )
    return warnings


def _sentence(result: PublishedModel) -> str:
    what = _description(result.plan)
    if result.version is None:
        return f"would publish {result.name} as a new version: {what}"
    verb = "published" if result.status == "published" else "is unchanged"
    return f"{result.uri} {verb} ({what}); deploy it: {_next_command(result)}"


def _description(plan: ModelPlan) -> str:
    count = len(plan.files)
    parts = [
        plan.flavor,
        f"models {' '.join(plan.models)}" if plan.models else "",
        f"version{_s(len(plan.versions))} {' '.join(map(str, plan.versions))}",
        f"{count} file{_s(count)}",
        human_size(plan.size_bytes),
    ]
    return ", ".join(part for part in parts if part not in ("", "versions "))


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _next_command(result: PublishedModel) -> str:
    name, uri = shlex.quote(_deployable(result.name)), shlex.quote(result.uri)
    command = f"mlflow deployments create -t triton --name {name} -m {uri}"
    # nobody knows here whether an older version is deployed
    return command if result.version == 1 else f"{command} (update, where it is deployed already)"


def _deployable(name: str) -> str:
    """The name, or a placeholder where a deployment cannot have it."""
    try:
        return check_name(name)
    except InvalidNameError:
        return "NAME"


def _summary(results: Sequence[_Result]) -> str:
    counts = Counter(
        "failed" if isinstance(result, FailedModel) else result.status for result in results
    )
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _document(results: Sequence[_Result], request: _Request) -> dict[str, Any]:
    documents = [_result_document(result, request.labels) for result in results]
    if not request.is_repository:
        return documents[0]
    failed = sum(isinstance(result, FailedModel) for result in results)
    return {"models": documents, "failed": failed}


def _result_document(result: _Result, labels: Labels) -> dict[str, Any]:
    if isinstance(result, FailedModel):
        return {"name": result.name, "status": "failed", "error": one_line(result.error)}
    tensors = result.plan.tensors
    return {
        "name": result.name,
        "status": result.status,
        "version": result.version,
        "model_uri": result.uri or None,
        "flavor": result.plan.flavor,
        "source": str(result.plan.source),
        "versions": list(result.plan.versions),
        "models": list(result.plan.models),
        "size_bytes": result.plan.size_bytes,
        "files": result.plan.files,
        "inputs": [_tensor_document(spec) for spec in tensors.inputs],
        "outputs": [_tensor_document(spec) for spec in tensors.outputs],
        "sha256": result.digest or None,
        "run_id": result.run_id or None,
        "model_id": result.model_id or None,
        "aliases": list(labels.aliases),
        "tags": dict(labels.tags),
        "description": labels.description,
        "warnings": _warnings(result),
    }


def _tensor_document(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
