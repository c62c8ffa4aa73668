"""`triton-local`: the embedded Triton from the command line, until Ctrl-C.

Addresses go to stdout, one line that starts with `ready`, and lines to paste into a shell; all
else goes to stderr.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mlflow_triton_plugin.local._packages import (
    model_packages,
    read_requirements,
    requirements_of,
)
from mlflow_triton_plugin.local.errors import LocalTritonError
from mlflow_triton_plugin.local.server import SYSTEM_TRITONSERVER, LocalTriton
from triton_repo.errors import TritonRepoError
from triton_repo.store import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

__all__ = ["check_repository", "main"]

_EPILOG = f"""\
examples:
  triton-local --model-repository models
  triton-local --model-repository models --grpc-port 0 --http-port 0
  triton-local --model-repository s3://bucket/models --log-verbose=1
  triton-local --model-repository models --tritonserver {SYSTEM_TRITONSERVER}
  triton-local --model-repository models --for-model models:/churn/7
  triton-local --prepare

The first start makes the server's environment in the user's cache folder (about 300 MB;
MLFLOW_TRITON_CACHE names another folder). Models are loaded on demand (explicit mode): deploy one
with "mlflow deployments create -t triton", or load all there are with --load-model='*'.
Exit status: 0 when stopped by Ctrl-C or SIGTERM, 1 when the server failed, 2 for a wrong option.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `triton-local`.

    Args:
        argv: the arguments without the program's name; the process's own by default.

    Returns:
        The exit status.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    extra_args = [arg for arg in rest if arg != "--"]
    # SIGTERM ends as Ctrl-C does: the block that holds the server is left in order
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.prepare:
            return _prepare(_packages(options))
        if options.model_repository is None:
            parser.error("--model-repository is needed (or --prepare)")
        server = _server(parser, options, extra_args, _packages(options))
        check_repository(options.model_repository)
        return _serve(server)
    except KeyboardInterrupt:
        return 0
    except (LocalTritonError, TritonRepoError) as error:
        _say(f"triton-local: {error}")
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-local",
        usage="%(prog)s --model-repository DIR [options] [tritonserver options ...]",
        description="Run a real Triton Inference Server here, without Docker, root or a GPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # an abbreviated option may be one of tritonserver's
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-repository", metavar="DIR", help="the models' directory, or an s3:// or as:// URI")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--grpc-port", type=int, default=8001, metavar="N", help="%(default)s; 0 for a free one")
    add("--http-port", type=int, default=8000, metavar="N", help="%(default)s; 0 for a free one")
    add("--metrics-port", type=int, metavar="N", help="turn metrics on; 0 for a free port")
    add("--log-file", metavar="F", help="keep the server's log there")
    add(
        "--model-control-mode",
        choices=("explicit", "none", "poll"),
        default="explicit",
        help="%(default)s; none loads every model at the start, poll follows changes",
    )
    add(
        "--tritonserver",
        metavar="PATH",
        help=f"run this tritonserver; '{SYSTEM_TRITONSERVER}' means the one on PATH",
    )
    add(
        "--startup-timeout-s",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to wait until the server is ready (%(default)s)",
    )
    add(
        "--requirements",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="requirements.txt of a model to install for python_function models; may be repeated",
    )
    add(
        "--for-model",
        metavar="URI",
        action="append",
        default=[],
        help="the same of an MLflow model, such as models:/churn/7; may be repeated",
    )
    add(
        "--prepare",
        action="store_true",
        help="only make the server's environment, for an image or a CI cache",
    )
    return parser


def _server(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    extra_args: Sequence[str],
    packages: Sequence[str],
) -> LocalTriton:
    for arg in extra_args[:1]:
        # tritonserver itself would print two hundred lines of usage
        if not arg.startswith("-"):
            parser.error(f"unexpected argument {arg}")
    try:
        return LocalTriton(
            options.model_repository,
            host=options.host,
            grpc_port=options.grpc_port,
            http_port=options.http_port,
            metrics_port=options.metrics_port,
            log_file=options.log_file,
            model_control_mode=options.model_control_mode,
            tritonserver=options.tritonserver,
            extra_args=extra_args,
            packages=packages,
            startup_timeout_s=options.startup_timeout_s,
        )
    except ValueError as error:
        parser.error(str(error))


def check_repository(address: str) -> None:
    """Make sure that a repository in S3 is there, and that Triton can start on it.

    Triton takes a minute to say less, and takes a prefix without objects for none.

    Raises:
        TritonRepoError: it cannot be reached, or is not what its address says.
    """
    if address.startswith("s3://"):
        store = open_store(address)
        if not store.children(""):
            store.check()


def _serve(server: LocalTriton) -> int:
    with server:
        _announce(server)
        try:
            returncode = server.wait()
        except KeyboardInterrupt:
            _say("stopping")
            return 0
        tail = "\n".join(f"  {line}" for line in server.log_tail())
        _say(f"tritonserver ended with exit code {returncode}; {server.log_path} ends:\n{tail}")
        return 1


def _announce(server: LocalTriton) -> None:
    metrics = f" metrics {server.metrics_url}" if server.metrics_url else ""
    repository = server.model_repository
    if "://" not in repository:
        repository = str(Path(repository).absolute())
    lines = [
        f"ready: gRPC {server.grpc_url} HTTP {server.http_url}{metrics}",
        f"export TRITON_URL={shlex.quote(server.grpc_url)}",
        f"export TRITON_MODEL_REPO={shlex.quote(repository)}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    _say(f"log: {server.log_path}; Ctrl-C stops the server")


def _packages(options: argparse.Namespace) -> list[str]:
    """What --requirements and --for-model ask for; nothing without either."""
    if not (options.requirements or options.for_model):
        return []
    lines = [line for path in options.requirements for line in read_requirements(path)]
    lines += [line for uri in options.for_model for line in requirements_of(uri)]
    return model_packages(lines)


def _prepare(packages: Sequence[str]) -> int:
    from mlflow_triton_plugin.local.provisioning import ensure_environment  # noqa: PLC0415

    environment = ensure_environment(packages=packages)
    sys.stdout.write(f"{environment.root}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
