"""`mlflow-triton`: what MLflow's own command line has no command for.

Results go to stdout, one line a finding; messages, the summary and progress go to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.errors import SettingsError
from mlflow_triton_plugin.options import Options
from mlflow_triton_plugin.progress import copying
from mlflow_triton_plugin.settings import Settings
from triton_repo.errors import DeploymentNotFoundError, TritonRepoError
from triton_repo.integrity import NO_MODELS, Integrity, deployed, recorded_bytes, verify
from triton_repo.store import open_store
from triton_repo.text import human_size, one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_triton_plugin.deploy import Deployer
    from triton_repo.model_view import ModelView
    from triton_repo.store import Store

__all__ = ["main"]

_PROGRAM = "mlflow-triton"
_FOUND = 1
_CANNOT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_EPILOG = """\
environment:
  TRITON_MODEL_REPO  the model repository: a path, a file:// URI, s3://… or as://…
  TRITON_URL         where Triton listens; all but verify ask it

examples:
  mlflow-triton plan resnet -m models:/resnet@champion
  mlflow-triton verify                     # every deployment
  mlflow-triton verify resnet bert         # these two
  mlflow-triton verify | grep ': changed'
  mlflow-triton verify --json | jq -r '.deployments[] | select(.findings != []) | .name'
  mlflow-triton repair
  mlflow-triton predict-stream chat --input-path prompt.json

Exit status: 0 all is well; 1 verify found something, or repair left something interrupted; 2 wrong
usage, no such deployment, what is planned would be refused, a request was, or the repository or a
server is out of reach; 130 after Ctrl-C.
"""

_PLAN = """\
Say what `mlflow deployments create`, or of a deployed name `update`, would do with the same
arguments, and change nothing in the repository or on the servers: which files are copied, what
becomes of config.pbtxt, which versions are removed, and what is loaded where. What would be refused
is refused here, and so is a plan while another command is at the deployment. The model is brought
to this machine as far as the command would bring it. Where no tracking URI is set and the model is
asked for by models:/ or runs:/, MLflow makes its own mlflow.db in the working directory, as it does
with every command.
"""

_PREDICT_STREAM = """\
Send one request to a deployment that answers in pieces, and print each as it comes, one JSON
document a line: what `mlflow deployments predict` prints of one answer. The input is the same, too,
but that text stays text, where pandas makes numbers and dates of it. Ctrl-C ends the request, and
the model is told.
"""

_VERIFY = """\
Read every file of the deployments and compare it with the sha256 in their records; in S3 and Azure,
ask for the digest that is kept with each. Needs no server and writes nothing. What differs is
printed, one line each:

  resnet/3/model.onnx: changed (…)   its bytes are not those that were placed
  resnet/3/: missing (…)             it was placed, and is gone
  resnet/labels.txt.bak: extra (…)   nobody recorded it
  resnet: unreadable (…)             the file system, or a damaged record, does not let us judge
  resnet: interrupted (…)            a command is at it, or was killed: see repair
  resnet: unrecorded (…)             another plugin deployed it, and recorded no digests

Versions that do not serve are checked too: an update can go back to them. Bytecode that Triton's
Python backend writes (__pycache__) is left out, and so are models that MLflow did not deploy.
"""

_REPAIR = """\
Finish or undo what killed commands left, on disk and on the servers, and remove their leftovers. It
takes no command's work away: what a live one is at is named and left alone. One line is printed for
each deployment that was put right.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mlflow-triton`.

    Args:
        argv: the arguments without the program's name; the process's own by default.

    Returns:
        The exit status: 0 all is well, 1 verify found something or repair left something, 2 the
        repository or a server is out of reach, 130 after Ctrl-C. Wrong usage leaves through
        `SystemExit(2)`, as argparse does it.
    """
    _write_everything()
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except (TritonRepoError, SettingsError, OSError) as exc:
        _say(one_line(exc))
        return _CANNOT


def _parser() -> argparse.ArgumentParser:
    parser = _described(
        argparse.ArgumentParser, "Look after deployments that MLflow made on Triton.", prog=_PROGRAM
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    planning = _described(
        commands.add_parser, _PLAN, name="plan", help="what create or update would do"
    )
    planning.add_argument("name", metavar="NAME", help="the deployment")
    planning.add_argument("-m", "--model-uri", help="as in mlflow deployments create and update")
    planning.add_argument("-f", "--flavor", help="the same")
    planning.add_argument(
        "-C",
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=_option,
        help="the same; may be given several times",
    )
    planning.add_argument("--json", action="store_true", help="print one JSON document")
    planning.set_defaults(run=_plan)
    checking = _described(commands.add_parser, _VERIFY, name="verify", help="check every file")
    checking.add_argument("--json", action="store_true", help="print one JSON document")
    checking.set_defaults(run=_verify)
    mending = _described(
        commands.add_parser, _REPAIR, name="repair", help="put right what killed commands left"
    )
    mending.set_defaults(run=_repair)
    streaming = _described(
        commands.add_parser, _PREDICT_STREAM, name="predict-stream", help="an answer in pieces"
    )
    streaming.add_argument("name", metavar="NAME", help="the deployment, or one version: NAME/6")
    streaming.add_argument(
        "-I", "--input-path", required=True, help="a JSON file, as in mlflow deployments predict"
    )
    streaming.set_defaults(run=_predict_stream)
    for command in (checking, mending):
        command.add_argument(
            "names", nargs="*", metavar="NAME", help="a deployment; every one when not given"
        )
    return parser


def _described(
    make: Callable[..., argparse.ArgumentParser], description: str, **arguments: Any
) -> argparse.ArgumentParser:
    return make(
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **arguments,
    )


# -- plan -------------------------------------------------------------------------------------


def _options(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """All of them; MLflow's own commands refuse one that is given twice, too."""
    options: dict[str, str] = {}
    for key, value in given:
        if key in options:
            raise SettingsError(f"-C {key} is given twice; give it once", setting=f"-C {key}")
        options[key] = value
    return options


def _option(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _plan(arguments: argparse.Namespace) -> int:
    # 3 s of mlflow and the server's client, which verify and wrong usage do not pay
    from mlflow_triton_plugin.deployment_error import DeploymentError  # noqa: PLC0415
    from mlflow_triton_plugin.plugin import TritonDeploymentClient  # noqa: PLC0415
    from mlflow_triton_plugin.preview import as_lines  # noqa: PLC0415

    options = _options(arguments.config)
    try:
        plan = TritonDeploymentClient("triton").plan_deployment(
            arguments.name, arguments.model_uri, arguments.flavor, options
        )
    except DeploymentError as exc:
        _say(exc.message)
        return _CANNOT
    if arguments.json:
        _print(json.dumps(plan, indent=2))
    for line in as_lines(plan) if not arguments.json else ():
        _print(printable(line))  # config.pbtxt is somebody else's text
    return 0


# -- predict-stream ---------------------------------------------------------------------------


def _predict_stream(arguments: argparse.Namespace) -> int:
    from mlflow_triton_plugin.deployment_error import DeploymentError  # noqa: PLC0415 - see _plan
    from mlflow_triton_plugin.plugin import TritonDeploymentClient  # noqa: PLC0415

    try:
        inputs = json.loads(Path(arguments.input_path).read_bytes())
    except ValueError as exc:
        _say(f"{arguments.input_path} is not JSON: {one_line(exc)}")
        return _CANNOT
    try:
        client = TritonDeploymentClient("triton")
        for piece in client.predict_stream(arguments.name, _as_pandas_reads(inputs)):
            _print(piece.to_json())
    except DeploymentError as exc:
        _say(exc.message)
        return _CANNOT
    return 0


def _as_pandas_reads(document: Any) -> Any:
    """A frame of what is a table to pandas alone; other JSON means the same as it is.

    That is what pandas writes by default, {"column": {"0": value}}, and a value for all rows beside
    lists.
    """
    columns = list(document.values()) if isinstance(document, dict) else []
    by_row = [isinstance(each, dict) and all(map(str.isdecimal, each)) for each in columns]
    in_lists = [isinstance(each, list) for each in columns]
    if not columns or not (all(by_row) or any(in_lists)) or all(in_lists):
        return document
    import pandas as pd  # noqa: PLC0415 - the plugin has it by now

    with suppress(ValueError):  # lists of several lengths, or objects beside them: no table
        frame = pd.DataFrame(document)
        return frame.set_axis(frame.index.astype(int), axis=0) if all(by_row) else frame
    return document


# -- verify -----------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace) -> int:
    store = open_store(Settings.read("triton").required_repository())
    views = deployed(store, arguments.names)
    others = [] if arguments.names else _others(store, views)
    results = []
    with copying("verify", sum(recorded_bytes(view) for view in views)) as on_read:
        for view in views:
            result = _verified(view, on_read, named=bool(arguments.names))
            if result is None:
                continue
            results.append(result)
            for finding in result.findings if not arguments.json else ():
                _print(str(finding))
    if arguments.json:
        _print(json.dumps(_document(store, results, others), indent=2))
    _say(_summary(results))
    if others:
        _say(f"left out, not deployed by MLflow: {', '.join(others)}")
    return _FOUND if any(result.findings for result in results) else 0


def _others(store: Store, views: Sequence[ModelView]) -> list[str]:
    """What Triton may serve from this repository, and no record vouches for."""
    names = {str(view.name) for view in views} | NO_MODELS
    return [name for name in store.children("") if name not in names and name[0] != "."]


def _verified(
    view: ModelView, on_read: Callable[[int], None] | None, *, named: bool
) -> Integrity | None:
    """What one deployment is; None where nobody asked for it by name, and it was deleted since."""
    try:
        return verify(view, on_read)
    except DeploymentNotFoundError:
        if named:
            raise
        return None


def _document(store: Store, results: Sequence[Integrity], others: Sequence[str]) -> dict[str, Any]:
    return {
        "repository": store.uri,
        "deployments": [
            {
                "name": result.deployment,
                "files": result.files,
                "size_bytes": result.size_bytes,
                "findings": [
                    {"path": each.path, "problem": each.problem, "detail": each.detail}
                    for each in result.findings
                ],
            }
            for result in results
        ],
        "findings": sum(len(result.findings) for result in results),
        "not_deployed": list(others),
    }


def _summary(results: Sequence[Integrity]) -> str:
    found = sum(len(result.findings) for result in results)
    size = human_size(sum(result.size_bytes for result in results))
    return (
        f"checked {_count(len(results), 'deployment')}: "
        f"{_count(sum(result.files for result in results), 'file')}, {size}, are as recorded; "
        f"{_count(found, 'problem') if found else 'no problems'}"
    )


# -- repair -----------------------------------------------------------------------------------


def _repair(arguments: argparse.Namespace) -> int:
    # 3 s of mlflow and the server's client, which verify and wrong usage do not pay
    from mlflow_triton_plugin.deploy import Deployer  # noqa: PLC0415
    from mlflow_triton_plugin.deployment_error import DeploymentError  # noqa: PLC0415
    from mlflow_triton_plugin.server import TritonServers  # noqa: PLC0415
    from mlflow_triton_plugin.translate import translated  # noqa: PLC0415

    settings = Settings.read("triton")
    store = open_store(settings.required_repository())
    try:
        with translated():
            servers = TritonServers.open(
                settings.endpoints, timeout_s=settings.request_timeout_s, access=settings.access
            )
            views = deployed(store, arguments.names)
            deployer = Deployer(store, servers)
            deployer.sweep()  # first: Triton does not start on a prefix without objects
            servers.check()
    except DeploymentError as exc:
        _say(exc.message)
        return _CANNOT
    left = 0
    for view in views:
        try:
            with translated():
                _put_right(deployer, view)
        except DeploymentError as exc:
            _say(f"{view.name} is left as it is: {exc.message}")
            left += 1
    _say(f"looked at {_count(len(views), 'deployment')}; {left or 'none'} left interrupted")
    return _FOUND if left else 0


def _put_right(deployer: Deployer, view: ModelView) -> None:
    outcome = deployer.repair(view.name, Options())
    if outcome is not None:
        _print(f"{view.name}: an interrupted change was {outcome}")


# -- words ------------------------------------------------------------------------------------


def _write_everything() -> None:
    """Let a terminal that lacks a character get it as an escape, rather than no result at all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{_PROGRAM}: {text}\n")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
