"""Triton over its HTTP protocol, tensors in binary. The only door to `tritonclient.http`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from gzip import BadGzipFile
from http.client import HTTPException
from string import punctuation
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from tritonclient.utils import InferenceServerException

from mlflow_triton_plugin.errors import (
    RequestRefusedError,
    ServerAccessError,
    ServerUnavailableError,
    SettingsError,
    TritonServerError,
)
from mlflow_triton_plugin.security import Tls
from mlflow_triton_plugin.server import InferResult, ServerFacts
from mlflow_triton_plugin.server._configured import Configured
from mlflow_triton_plugin.server._refusals import speaks_http
from mlflow_triton_plugin.server._states import listed
from mlflow_triton_plugin.server._tensors import answered, as_sent, by_name, described, from_http
from mlflow_triton_plugin.server._translate import (
    StrangeAnswerError,
    as_triton_answers,
    named,
    raise_translated,
)
from triton_repo.flavors.pyfunc import NAMES, PARAMS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator, Iterator, Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict import ModelSchema
    from mlflow_triton_plugin.security import Access
    from mlflow_triton_plugin.server import ModelState
    from mlflow_triton_plugin.settings import Endpoint
    from triton_repo.tensors import TensorSpec

__all__ = ["HttpServer"]

try:
    from geventhttpclient.response import HTTPConnectionClosed
    from tritonclient import http as triton_http  # noqa: TID251 - this is the door
except (ImportError, RuntimeError) as exc:  # RuntimeError is what tritonclient raises
    raise SettingsError(
        "http:// and https:// addresses need another client: "
        "pip install 'mlflow-triton-plugin[http]', or use Triton's gRPC port",
        setting="TRITON_URL",
    ) from exc

#: HTTP statuses, in the words of gRPC.
_STATUSES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "499": "DEADLINE_EXCEEDED"}
_STATUSES |= {"401": "UNAUTHENTICATED", "403": "PERMISSION_DENIED"}
_STATUSES |= {"502": "UNAVAILABLE", "503": "UNAVAILABLE", "504": "DEADLINE_EXCEEDED"}


class HttpServer:
    """See `TritonServer`."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, access: Access) -> None:
        self._endpoint = str(endpoint)
        self._timeout_s = timeout_s
        self._access = access
        host, slash, path = endpoint.address.partition("/")
        self._address = f"{host}{slash}{quote(path, safe=punctuation)}"
        self._ssl = endpoint.scheme == "https"
        self._client = self._connect(timeout_s)

    def _connect(self, timeout_s: float) -> Any:
        # The HTTP client has one deadline for all its calls; a load gets a client of its own.
        return triton_http.InferenceServerClient(
            self._address,
            ssl=self._ssl,
            ssl_context_factory=partial(_ssl_context, self._access) if self._ssl else None,
            connection_timeout=min(timeout_s, self._timeout_s),
            network_timeout=timeout_s,
        )

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @property
    def loads_paths(self) -> bool:
        return False

    def check(self) -> None:
        with self._translated("check"):
            self._client.get_server_metadata(headers=self._headers())

    def facts(self) -> ServerFacts:
        with self._translated("the metadata of the server"):
            said = self._client.get_server_metadata(headers=self._headers())
            return ServerFacts(self._endpoint, str(said.get("name")), str(said.get("version")))

    def load(self, model: str, config: str | None, timeout_s: float) -> None:
        client = self._connect(timeout_s)
        try:
            with self._translated("load", model, timeout_s):
                client.load_model(model, headers=self._headers(), config=config)
        finally:
            client.close()

    def unload(self, model: str, timeout_s: float | None = None) -> None:  # noqa: ARG002 - its own
        with self._translated("unload", model):
            self._client.unload_model(model, headers=self._headers())

    def index(self) -> list[ModelState]:
        with self._translated("the repository index"):
            index = self._client.get_model_repository_index(headers=self._headers())
            return [
                listed(each["name"], *(each.get(key, "") for key in ("version", "state", "reason")))
                for each in index
            ]

    def schema(self, model: str, version: str = "") -> ModelSchema:
        with self._translated("the metadata of", named(model, version)):
            metadata = self._client.get_model_metadata(model, version, headers=self._headers())
            inputs, outputs = (
                [
                    described(each["name"], each["datatype"], each["shape"])
                    for each in metadata[side]
                ]
                for side in ("inputs", "outputs")
            )
        return self._configured(model, version, inputs).schema(model, version, inputs, outputs)

    def _configured(self, model: str, version: str, inputs: list[TensorSpec]) -> Configured:
        try:
            with self._translated("the configuration of", named(model, version)):
                config = self._client.get_model_config(model, version, headers=self._headers())
                parameters = config.get("parameters", {})
                return Configured(
                    optional=frozenset(
                        each["name"] for each in config.get("input", ()) if each.get("optional")
                    ),
                    max_batch_size=int(config.get("max_batch_size", 0)),
                    parameters={
                        key: str(each.get("string_value", "")) for key, each in parameters.items()
                    },
                    decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled")),
                )
        except ServerAccessError:
            return Configured.unknown(inputs)

    def infer(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, NDArray[Any]],
        schema: ModelSchema,
        params: str = "",
        *,
        names: str = "",
        timeout_s: float | None = None,
    ) -> InferResult:
        if schema.decoupled:
            self._refuse_stream(model)
        inputs = []
        datatypes = schema.inputs_by_name
        for name, array in tensors.items():
            datatype = datatypes[name].datatype
            tensor = triton_http.InferInput(name, array.shape, datatype)
            tensor.set_data_from_numpy(as_sent(array, datatype), binary_data=True)
            inputs.append(tensor)
        given = {key: text for key, text in ((PARAMS, params), (NAMES, names)) if text}
        client = self._client if timeout_s is None else self._connect(timeout_s)
        with ExitStack() as stack, self._translated("infer", named(model, version), timeout_s):
            if timeout_s is not None:
                stack.callback(client.close)
            result = client.infer(
                model,
                inputs,
                model_version=version,
                headers=self._headers(),
                parameters=given or None,
            )
            answer = result.get_response()
            # the protocol lets the version out where there is only one
            return InferResult(str(answer.get("model_version", "")), _outputs(answer, result))

    def stream(
        self,
        model: str,
        version: str,  # noqa: ARG002 - see `TritonServer`
        tensors: Mapping[str, NDArray[Any]],  # noqa: ARG002
        schema: ModelSchema,  # noqa: ARG002
        params: str = "",  # noqa: ARG002
        *,
        names: str = "",  # noqa: ARG002
    ) -> Generator[InferResult]:
        self._refuse_stream(model)

    def _refuse_stream(self, model: str) -> NoReturn:
        raise RequestRefusedError(
            f"{model} answers in pieces, which takes gRPC: set TRITON_URL to Triton's gRPC port, "
            "or deploy it with -C stream=false",
            endpoint=self._endpoint,
            status="UNIMPLEMENTED",
            model=model,
            reason="decoupled",
        )

    def close(self) -> None:
        self._client.close()

    def _headers(self) -> dict[str, str]:
        return {header.name: header.value for header in self._access.headers()}

    @contextmanager
    def _translated(
        self, what: str, model: str = "", timeout_s: float | None = None
    ) -> Iterator[None]:
        try:
            yield
        except (SettingsError, TritonServerError):
            raise  # ours already, some of them ValueErrors
        except (InferenceServerException, OSError, HTTPConnectionClosed) as exc:
            with as_triton_answers(self._access, self._endpoint, what, model):
                _refuse_unreadable(exc)
            status, reason = _said(exc)
            raise_translated(
                exc,
                access=self._access,
                endpoint=self._endpoint,
                status=status,
                reason=reason,
                what=what,
                model=model,
                timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            )
        except HTTPException as exc:
            self._raise_broken(exc, what, model)
        except Exception as exc:
            with as_triton_answers(self._access, self._endpoint, what, model):
                raise exc from None

    def _raise_broken(self, exc: HTTPException, what: str, model: str) -> NoReturn:
        """Raise ours for what the client's parser makes nothing of.

        It does not say whether it had read a status line by then. So that is asked once more: who
        speaks HTTP has sent half an answer, who does not speaks something else.
        """
        if speaks_http(self._endpoint, self._access):
            with as_triton_answers(self._access, self._endpoint, what, model):
                raise StrangeAnswerError(_parser_said(exc)) from exc
        raise ServerUnavailableError(
            f"{self._endpoint} does not answer in HTTP; if it is Triton's gRPC port, use "
            f"{'grpcs' if self._ssl else 'grpc'}://{self._address.partition('/')[0]}",
            endpoint=self._endpoint,
            model=model,
        ) from exc


def _ssl_context(access: Access) -> ssl.SSLContext:
    from gevent.ssl import SSLContext  # noqa: PLC0415 - the client's sockets are gevent's

    return (access.tls or Tls()).context(SSLContext)


def _parser_said(exc: HTTPException) -> str:
    """Its words, of `('Invalid character in chunk size', 12)`, too."""
    return str(exc.args[0]) if exc.args else type(exc).__name__


def _refuse_unreadable(exc: Exception) -> None:
    """What looks like an error of the connection's or of Triton's, and is an answer without sense.

    Raises:
        StrangeAnswerError: it is that.
    """
    if isinstance(exc, BadGzipFile):  # an OSError
        raise StrangeAnswerError(str(exc)) from exc
    if isinstance(exc, InferenceServerException):
        if isinstance(exc.__context__, UnicodeError):  # in an answer with status 200
            raise StrangeAnswerError("it is no UTF-8") from exc
        if not isinstance(exc.message(), str):
            raise StrangeAnswerError("its error is no text") from exc


#: tritonclient's words for an answer in which it finds no `{"error": …}`.
_NO_ERROR = (
    "client received an empty response",
    "an exception occurred in the client while decoding the response",
)


def _said(exc: InferenceServerException | OSError | HTTPConnectionClosed) -> tuple[str, str]:
    """The status, in gRPC's words, and the reason that an error of the HTTP client gives."""
    if isinstance(exc, TimeoutError):
        return "DEADLINE_EXCEEDED", str(exc)
    if isinstance(exc, HTTPConnectionClosed):
        return "UNAVAILABLE", "it hung up and gave no answer"
    if isinstance(exc, OSError):
        return "UNAVAILABLE", exc.strerror or str(exc)
    status, message, body = str(exc.status() or ""), exc.message(), exc.debug_details()
    if not message.startswith(_NO_ERROR):
        return _STATUSES.get(status, status), message
    # a gateway's page, not Triton's JSON
    return _STATUSES.get(status, "UNAVAILABLE"), f"HTTP {status}: {body or 'no text'}"


def _outputs(answer: Mapping[str, Any], result: Any) -> dict[str, NDArray[Any]]:
    outputs = answer["outputs"]
    tensors = [answered(each["name"], each["datatype"], each["shape"]) for each in outputs]
    return by_name(
        (tensor, from_http(tensor, output, result))
        for tensor, output in zip(tensors, outputs, strict=True)
    )
