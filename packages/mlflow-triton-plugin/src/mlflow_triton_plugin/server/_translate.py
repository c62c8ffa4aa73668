"""From the words of Triton and its clients to our errors; both protocols say the same things."""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from mlflow_triton_plugin.errors import (
    BackendMissingError,
    ModelLoadError,
    ModelProcessDiedError,
    ModelRestartingError,
    ModelUnknownError,
    RequestRefusedError,
    ServerAccessError,
    ServerTimeoutError,
    ServerUnavailableError,
    SettingsError,
    TritonServerError,
)
from mlflow_triton_plugin.security import OPEN
from mlflow_triton_plugin.server._refusals import (
    accepts,
    restricted,
    speaks_http,
    tls_problem,
    unauthorized,
)
from triton_repo.text import printable, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton_plugin.security import Access

__all__ = ["StrangeAnswerError", "as_triton_answers", "named", "raise_translated"]

#: A gateway's page can be long; a traceback of the Python backend is shorter.
_LONGEST_REASON = 2000
#: What may take as long as it likes, and goes on when its caller has gone.
_SLOW = ("load", "unload", "infer")
_LONGEST_PROBLEM = 200
#: What reading raises: no JSON, a gzip that is none, other keys, types and sizes than said.
_STRANGE = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(EOFError, RecursionError, struct.error, zlib.error),
)
_UNKNOWN = re.compile(
    r"unknown model|is not found|not ready|not at ready state|has no available versions"
)

#: The whole reason: python_be.cc and stub_launcher.cc of the Python backend, when the process of an
#: instance has not shown for a second that it lives. Words of a model's own have its exception's
#: name before them.
_PROCESS_DIED = re.compile(
    r"(?:in ensemble '[^']*', )?"
    r"(?:Failed to process the request\(s\) for model instance '[^']*', message: )?"
    r"(?:Stub process (?:'[^']*' )?is not healthy|Failed to obtain the health mutex)\.?"
)
#: The same of `model.py`, when the worker of an instance has died.
_RESTARTING = re.compile(
    r"(?:in ensemble '[^']*', )?the process of this model (?P<how>.*); another one is being started"
)
_NO_BACKEND = re.compile(r"unable to find (?:backend library for )?backend '([^']*)'")


class StrangeAnswerError(ValueError):
    """A server said what Triton would not; `as_triton_answers` adds which server, asked what."""


def raise_translated(
    exc: Exception,
    *,
    access: Access,
    endpoint: str,
    status: str,
    reason: str,
    what: str,
    model: str = "",
    timeout_s: float = 0.0,
) -> NoReturn:
    """Raise ours from the client library's.

    Args:
        exc: what the client library raised.
        access: what the request carried.
        endpoint: the server, with its scheme.
        status: `UNAVAILABLE`, `NOT_FOUND`, … whatever the protocol.
        reason: the server's words.
        what: what was asked: `load`, `infer`, or a phrase for the message.
        model: the model it was about, or one of its versions: `resnet/6`.
        timeout_s: the deadline it had.
    """
    cause = _cause(exc, access)
    words = " ".join(reason.split())
    reason = printable(shortened(access.without_secrets(words), _LONGEST_REASON))
    unknown = bool(model) and (status == "NOT_FOUND" or bool(_UNKNOWN.search(words)))
    refusal = restricted(words, access) or unauthorized(status, reason)
    # Triton says UNAVAILABLE of itself, of a protocol it restricts and of a version it has not
    if status == "UNAVAILABLE" and not unknown and refusal is None:
        refusal = tls_problem(endpoint, words, access)
    if status == "DEADLINE_EXCEEDED" and what not in _SLOW and not accepts(endpoint):
        status, reason = "UNAVAILABLE", "it takes no connection"
    if refusal is not None:
        raise ServerAccessError(
            f"{endpoint} and this client do not get together: {refusal}",
            endpoint=endpoint,
            status=status,
            model=model,
        ) from cause
    if status == "UNAVAILABLE" and not unknown:
        raise ServerUnavailableError(
            _unavailable(endpoint, reason), endpoint=endpoint, status=status, model=model
        ) from cause
    if status == "DEADLINE_EXCEEDED":
        about = f"{what} {model}".strip()
        raise ServerTimeoutError(
            f"{endpoint} did not finish within {timeout_s:g} s: {about}; "
            "give it more time (-C load_timeout, TRITON_REQUEST_TIMEOUT) or look at its log",
            endpoint=endpoint,
            status=status,
            model=model,
        ) from cause
    if what == "load":
        lacks = _NO_BACKEND.search(words)
        raise (BackendMissingError if lacks else ModelLoadError)(
            f"{endpoint} cannot load {model}: {_explained(reason, model)}",
            endpoint=endpoint,
            status=status,
            model=model,
            reason=reason,
        ) from cause
    if unknown:
        raise ModelUnknownError(
            f"{endpoint} serves no {model}: {reason}; "
            "`mlflow deployments list -t triton` shows what is deployed",
            endpoint=endpoint,
            status=status,
            model=model,
        ) from cause
    if what == "infer":
        kind, text = _refused(words, reason, endpoint, model)
        raise kind(text, endpoint=endpoint, status=status, model=model, reason=reason) from cause
    raise TritonServerError(
        f"{endpoint}: {what} failed: {reason}", endpoint=endpoint, status=status, model=model
    ) from cause


@contextmanager
def as_triton_answers(access: Access, endpoint: str, what: str, model: str = "") -> Iterator[None]:
    """Whatever goes wrong in reading an answer means that it is not one of Triton's.

    Raises:
        ServerUnavailableError: it did. What is an error of this project's already stays as it is.
    """
    try:
        yield
    except (SettingsError, TritonServerError):
        raise  # some of them are ValueErrors
    except _STRANGE as exc:
        about = f"{what} {model}".strip()
        words = " ".join(_why(exc).split())
        why = printable(shortened(access.without_secrets(words), _LONGEST_PROBLEM))
        raise ServerUnavailableError(
            f"{endpoint} answers, but not as Triton does ({about}: {why}); "
            "set TRITON_URL to its address",
            endpoint=endpoint,
            model=model,
        ) from _cause(exc, access)


def _refused(
    words: str, reason: str, endpoint: str, model: str
) -> tuple[type[RequestRefusedError], str]:
    """Which error a request ends in, and what it says."""
    restarting = _RESTARTING.fullmatch(words)
    if restarting is not None:
        return ModelRestartingError, (
            f"{model} cannot answer at {endpoint}: its process {restarting['how']}; another one is "
            "being started, so ask again in a moment; Triton's log may say more"
        )
    if _PROCESS_DIED.fullmatch(words):
        name = model.partition("/")[0]
        return ModelProcessDiedError, (
            f"{model} cannot answer at {endpoint}: its process died ({reason}); "
            f"`mlflow deployments update -t triton --name {name}` starts it again, and Triton's "
            "log may say why it died"
        )
    return RequestRefusedError, f"{model} refused the request: {reason}"


def _cause(exc: Exception, access: Access) -> Exception | None:
    """None where a gateway repeated what it was sent: so would a traceback."""
    return exc if access.without_secrets(str(exc)) == str(exc) else None


def _why(exc: Exception) -> str:
    """What is wrong with an answer, of a reader that did not look before it took."""
    if isinstance(exc, KeyError):
        return f"{exc} is missing"
    if isinstance(exc, (TypeError, AttributeError, LookupError)):
        return "its JSON has another form"
    return str(exc) or type(exc).__name__


def named(model: str, version: str) -> str:
    """How messages name a model or one of its versions."""
    return f"{model}/{version}" if version else model


def _explained(reason: str, model: str) -> str:
    """Triton's reason without what our message says already, and with what Triton leaves out."""
    reason = reason.removeprefix(f"failed to load '{model}', ")
    if _NO_BACKEND.search(reason):
        return (
            f"{reason.rstrip('; ')} (it has not this backend: install it there, or deploy the "
            "model with --flavor python_function, if it has that)"
        )
    if reason != "failed to poll from model repository":
        return reason
    return (
        f"{reason}; either TRITON_MODEL_REPO is not the directory that this server reads, or it "
        "cannot make a configuration of what is there: its log says which"
    )


def _unavailable(endpoint: str, reason: str) -> str:
    scheme, _, address = endpoint.partition("://")
    if scheme.startswith("grpc") and speaks_http(f"http://{address}", OPEN):
        return (
            f"{endpoint} answers HTTP, not gRPC: use http://{address} "
            "or Triton's gRPC port (8001 by default) in TRITON_URL"
        )
    if reason.startswith("HTTP "):
        return (
            f"{endpoint} answers, but not as Triton does ({reason}); start what is behind it, or "
            "set TRITON_URL to Triton's HTTP address"
        )
    return (
        f"no Triton server answers at {endpoint} ({reason}); start it, or set TRITON_URL to its "
        f"{'gRPC' if scheme.startswith('grpc') else 'HTTP'} address"
    )
