"""Triton, MLflow and an S3 in containers, in testcontainers' idiom.

```python
with Network() as network, S3Container("motoserver/moto:5.1.18", network=network) as s3:
    s3.make_bucket("models")
    s3.put_object("/models/production/README", b"Triton starts on no empty prefix")
    inside = f"{s3.internal_uri}/models/production"
    image = "nvcr.io/nvidia/tritonserver:24.10-py3"
    with TritonContainer(image, inside, network=network) as triton:
        os.environ["TRITON_URL"] = triton.url
        os.environ["TRITON_MODEL_REPO"] = f"{s3.uri}/models/production"
```

Each listens on this machine's loopback only, gets nothing of the caller's environment, and is
ready when its `with` block begins. One that does not get ready is removed, and its error ends with
what it said. Whatever happens between a container's creation and its start, Ctrl-C among it, none
is left.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import time
import urllib.request
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import grpc
from docker.errors import APIError, NotFound
from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import WaitStrategy, WaitStrategyTarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from docker.models.containers import Container
    from testcontainers.core.network import Network
    from typing_extensions import Self, Unpack

    from mlflow_triton_plugin.testing.pki import KeyPair

__all__ = [
    "LABEL",
    "ContainerNotReadyError",
    "MlflowContainer",
    "S3Container",
    "ServerContainer",
    "ServerOptions",
    "TritonContainer",
    "owner",
    "remove_container",
]

#: Every container's; its value is `owner()` of the process that started it.
LABEL = "mlflow-triton-testing"
_OWN_LABEL = "mlflow-triton-testing-container"
_START_S = 90
#: How long Docker may take to make a container, once it was asked to.
_CREATION_S = 5.0
#: How long it may take to remove one.
_REMOVAL_S = 60.0
_POLL_S = 0.1
_PROBE_S = 2.0
_TAIL_LINES = 30
#: `status: SERVING` of a HealthCheckResponse (grpc.health.v1), on the wire.
_SERVING = b"\x08\x01"


class ContainerNotReadyError(RuntimeError):
    """A container ended, or was not ready in time; the message ends with what it said."""


def owner() -> str:
    """Who starts containers: this machine's name and this process's id."""
    return f"{socket.gethostname()}:{os.getpid()}"


class _Ready(WaitStrategy):
    """Ask until it is; and give up at once on a container that has ended."""

    def __init__(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        super().__init__()
        self._is_ready = is_ready
        self._startup_timeout = timeout_s
        self._poll_interval = _POLL_S

    def wait_until_ready(self, container: WaitStrategyTarget) -> None:
        def check() -> bool:
            container.reload()
            if container.status in ("exited", "dead"):
                raise StopIteration
            return self._is_ready()

        if not self._poll(check):
            raise TimeoutError(f"status {container.status}")


class ServerOptions(TypedDict, total=False):
    """What every server can be told.

    Attributes:
        network: where other containers find it, under `alias`.
        alias: its name in that network; one that nobody else has when not given.
        timeout_s: how long it may take to get ready; 90.
    """

    network: Network | None
    alias: str
    timeout_s: float


class ServerContainer(DockerContainer):
    """A server on loopback that is ready when it is started, and gone when it is stopped.

    Args:
        image: its image.
        options: see `ServerOptions`.
    """

    #: What it listens on, inside.
    PORTS: ClassVar[tuple[int, ...]] = ()

    def __init__(self, image: str, **options: Unpack[ServerOptions]) -> None:
        network = options.get("network")
        self._mark = uuid.uuid4().hex
        super().__init__(
            image, network=network, labels={LABEL: owner(), _OWN_LABEL: self._mark}, init=True
        )
        self.alias = options.get("alias") or f"server-{self._mark[:8]}"
        if network is not None:
            self.with_network_aliases(self.alias)
        for port in self.PORTS:
            # docker-py takes an address with a port, testcontainers' types do not say so
            self.ports[str(port)] = ("127.0.0.1", None)  # type: ignore[assignment]
        self.waiting_for(_Ready(self.is_ready, options.get("timeout_s", _START_S)))

    def with_kwargs(self, **kwargs: Any) -> Self:
        """More arguments for Docker, such as `mem_limit="1g"`; those given before stay.

        Labels are added to its own, without which it could not be found and removed.
        """
        more = kwargs.get("labels", {})
        if not isinstance(more, Mapping):  # Docker takes a list of names, too
            more = dict.fromkeys(more, "")
        labels = {**more, **self._kwargs["labels"]}
        return super().with_kwargs(**{**self._kwargs, **kwargs, "labels": labels})

    def is_ready(self) -> bool:
        """Whether it serves."""
        raise NotImplementedError

    def start(self) -> Self:
        """Create it, start it, and wait until it serves.

        Raises:
            ContainerNotReadyError: it does not; it is removed.
        """
        try:
            return super().start()
        except TimeoutError as exc:
            said = self.logs_tail(_TAIL_LINES)
            self.stop()
            raise ContainerNotReadyError(
                f"{self.image} is not ready ({exc}); the end of what it said:\n{said}"
            ) from exc
        except Exception:
            self.stop()
            raise
        except BaseException:
            self._wait_for_creation()
            self.stop()
            raise

    def _wait_for_creation(self) -> None:
        """Docker goes on to make what it was asked for, though Ctrl-C has cut the call short."""
        deadline = time.monotonic() + _CREATION_S
        while not self._made() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _made(self) -> list[Container]:
        """It, by its own label: its id is not known before the call that makes it is back."""
        client = self.get_docker_client().client
        label = f"{_OWN_LABEL}={self._mark}"
        return client.containers.list(all=True, filters={"label": label}, ignore_removed=True)

    def stop(self, force: bool = True, delete_volume: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002
        """Remove it with its volumes, also where Ctrl-C came before Docker had said its id."""
        for container in self._made():
            remove_container(container)
        self.get_docker_client().client.close()

    def address(self, port: int) -> str:
        """`localhost:N` of one of its ports; another one after a restart."""
        container = self.get_wrapped_container()
        container.reload()
        bound = container.attrs["NetworkSettings"]["Ports"].get(f"{port}/tcp")
        if not bound:
            raise ConnectionError(f"{self.image} has no port {port} on this machine now")
        return f"localhost:{bound[0]['HostPort']}"

    def logs_tail(self, lines: int = _TAIL_LINES) -> str:
        """The end of what it said, if it was ever created."""
        try:
            said: bytes = self.get_wrapped_container().logs(tail=lines)
        except (RuntimeError, APIError) as exc:
            return f"({exc})"
        return said.decode(errors="replace")

    def processes(self) -> list[str]:
        """The command lines of what runs in it, as everybody on this machine may see them."""
        shown = self.get_wrapped_container().top(ps_args="-o pid,args")
        return [arguments for _pid, arguments in shown["Processes"]]

    # -- what may happen to a server ----------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL; `restart` brings it back."""
        self.get_wrapped_container().kill()

    def pause(self) -> None:
        """Freeze it, as SIGSTOP would: connections stay, nobody answers."""
        self.get_wrapped_container().pause()

    def unpause(self) -> None:
        """Let it go on."""
        self.get_wrapped_container().unpause()

    def restart(self) -> None:
        """Start it anew, from whatever state, and wait until it serves."""
        self.get_wrapped_container().restart(timeout=10)
        self.wait_until_ready()

    def disconnect(self) -> None:
        """Take it off its network, this machine's side included."""
        self._required_network().disconnect(self.get_container_id())

    def reconnect(self) -> None:
        """Put it back under its name, and wait until it serves."""
        self._required_network().connect(self.get_container_id(), aliases=[self.alias])
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it serves.

        Raises:
            ContainerNotReadyError: it does not; it is left as it is.
        """
        if self._wait_strategy is None:
            return
        try:
            self._wait_strategy.wait_until_ready(self)
        except TimeoutError as exc:
            raise ContainerNotReadyError(
                f"{self.image} is not ready ({exc}); the end of what it said:\n{self.logs_tail()}"
            ) from exc

    def _required_network(self) -> Any:
        if self._network is None:
            raise ValueError(f"{self.image} was started without a network of its own")
        return self.get_docker_client().client.networks.get(self._network.name)


class TritonContainer(ServerContainer):
    """Triton Inference Server in explicit mode; ready by gRPC's health service, and HTTP's.

    Args:
        image: NVIDIA's, or one with a `tritonserver` on its PATH.
        model_repository: a directory of this machine, mounted at `/models` so that the server can
            read it, or an address as Triton itself spells it (`s3://…`).
        options: see `ServerOptions`.
    """

    GRPC_PORT = 8001
    HTTP_PORT = 8000
    PORTS = (GRPC_PORT, HTTP_PORT)

    def __init__(
        self, image: str, model_repository: str | Path, **options: Unpack[ServerOptions]
    ) -> None:
        super().__init__(image, **options)
        # what the server's user writes into a mounted repository, this machine's may not remove
        self.with_env("PYTHONDONTWRITEBYTECODE", "1")
        self._options = ["--model-control-mode=explicit"]
        self._authority: Path | None = None
        self._client: KeyPair | None = None
        if not isinstance(model_repository, str):
            self.with_volume_mapping(model_repository, "/models", "rw")
            model_repository = "/models"
        self.with_option(f"--model-repository={model_repository}")
        if str(model_repository).startswith("s3://"):
            # the server's S3 client asks for a region, whoever's S3 it is
            self.with_env("AWS_DEFAULT_REGION", "us-east-1")

    def with_option(self, *options: str) -> Self:
        """More of tritonserver's options, such as `--strict-readiness=false`."""
        self._options += options
        return self.with_command(["tritonserver", *self._options])

    def with_load_all(self) -> Self:
        """Load whatever is in the repository when it starts, and start whatever fails."""
        return self.with_option(
            "--load-model=*", "--exit-on-error=false", "--strict-readiness=false"
        )

    def with_restricted_protocol(self, protocols: str, name: str, value: str) -> Self:
        """Ask for a header: over gRPC `triton-grpc-protocol-<name>`, over HTTP `<name>`.

        Args:
            protocols: Triton's own names, such as `model-repository,model-config`.
            name: the key's name.
            value: the key.
        """
        return self.with_option(
            f"--grpc-restricted-protocol={protocols}:{name}={value}",
            f"--http-restricted-api={protocols}:{name}={value}",
        )

    def with_tls(self, server: KeyPair, authority: Path, *, client: KeyPair | None = None) -> Self:
        """Serve gRPC over TLS; files are copied into the container.

        Args:
            server: what it shows, for `localhost`.
            authority: who signed it, and the clients' certificates.
            client: one of those; ask clients for them (mutual TLS).
        """
        self._authority, self._client = authority, client
        self.with_copy_into_container(server.certificate.read_bytes(), "/tls.pem", 0o644)
        self.with_copy_into_container(server.key.read_bytes(), "/tls.key", 0o600)
        self.with_option("--grpc-use-ssl=1", "--grpc-server-cert=/tls.pem")
        self.with_option("--grpc-server-key=/tls.key")
        if client is not None:
            self.with_copy_into_container(authority.read_bytes(), "/tls-ca.pem", 0o644)
            self.with_option("--grpc-use-ssl-mutual=1", "--grpc-root-cert=/tls-ca.pem")
        return self

    @property
    def url(self) -> str:
        """For TRITON_URL: `grpc://localhost:N`, or `grpcs://…` with TLS."""
        scheme = "grpc" if self._authority is None else "grpcs"
        return f"{scheme}://{self.address(self.GRPC_PORT)}"

    @property
    def http_url(self) -> str:
        """`http://localhost:N`."""
        return f"http://{self.address(self.HTTP_PORT)}"

    @property
    def version(self) -> str:
        """What the server calls itself, such as `2.51.0`."""
        with urllib.request.urlopen(f"{self.http_url}/v2", timeout=_PROBE_S) as answer:  # noqa: S310
            return str(json.load(answer)["version"])

    def is_ready(self) -> bool:
        """Whether both protocols say so; HTTP begins a little later."""
        return self._serves_grpc() and _answers(f"{self.http_url}/v2/health/ready")

    def _serves_grpc(self) -> bool:
        address = self.address(self.GRPC_PORT)
        with self._channel(address) as channel:
            check: Callable[..., bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
            try:
                said = check(b"", timeout=_PROBE_S)
            except grpc.RpcError:
                return False
        return said == _SERVING

    def _channel(self, address: str) -> grpc.Channel:
        if self._authority is None:
            return grpc.insecure_channel(address)
        authority = self._authority.read_bytes()
        own = (self._client.key, self._client.certificate) if self._client is not None else ()
        credentials = grpc.ssl_channel_credentials(authority, *(each.read_bytes() for each in own))
        return grpc.secure_channel(address, credentials)


class MlflowContainer(ServerContainer):
    """An MLflow tracking server on SQLite that serves artifacts itself; ready by `/health`.

    Args:
        image: MLflow's own, or another with an `mlflow` on its PATH.
        options: see `ServerOptions`.
    """

    PORT = 5000
    PORTS = (PORT,)

    def __init__(self, image: str, **options: Unpack[ServerOptions]) -> None:
        super().__init__(image, **options)
        self.with_tmpfs_mount("/mlflow")
        self.with_envs(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ALLOWED_HOSTS="*")
        self.with_envs(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        self._options = ["--artifacts-destination", "/mlflow/artifacts"]
        self._serve()

    def with_s3_artifacts(self, uri: str, s3: S3Container) -> Self:
        """Have clients keep artifacts in S3 by themselves: nothing goes through this server.

        Args:
            uri: such as `s3://bucket/path`.
            s3: where; clients set MLFLOW_S3_ENDPOINT_URL to its `endpoint_url`.
        """
        self._options = ["--no-serve-artifacts", "--default-artifact-root", uri]
        self.with_envs(MLFLOW_S3_ENDPOINT_URL=s3.internal_endpoint_url, **s3.credentials)
        return self._serve()

    def with_basic_auth(self, username: str, password: str) -> Self:
        """Ask for a user name and a password; this one is the administrator's."""
        lines = (
            "[mlflow]",
            "default_permission = NO_PERMISSIONS",
            "database_uri = sqlite:////mlflow/auth.db",
            f"admin_username = {username}",
            f"admin_password = {password}",
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        )
        self.with_copy_into_container("\n".join(lines).encode(), "/auth.ini", 0o600)
        self.with_env("MLFLOW_AUTH_CONFIG_PATH", "/auth.ini")
        self.with_env("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_hex())
        self._options += ["--app-name", "basic-auth"]
        return self._serve()

    def _serve(self) -> Self:
        where = ["--host", "0.0.0.0", "--port", str(self.PORT), "--workers", "1"]  # noqa: S104 - inside
        database = ["--backend-store-uri", "sqlite:////mlflow/mlflow.db"]
        return self.with_command(["mlflow", "server", *where, *database, *self._options])

    @property
    def url(self) -> str:
        """For MLFLOW_TRACKING_URI: `http://localhost:N`."""
        return f"http://{self.address(self.PORT)}"

    def is_ready(self) -> bool:
        """Whether it answers."""
        return _answers(f"{self.url}/health")


class S3Container(ServerContainer):
    """moto's S3, which forgets everything when it ends; ready when it lists its buckets.

    Args:
        image: moto's own, or another that listens on port 5000.
        options: see `ServerOptions`.
    """

    PORT = 5000
    PORTS = (PORT,)
    #: moto counts down from here before it looks at who asks and what for.
    _UNCHECKED_ACTIONS = 1_000_000_000

    def __init__(self, image: str, **options: Unpack[ServerOptions]) -> None:
        super().__init__(image, **options)
        self.with_env("INITIAL_NO_AUTH_ACTION_COUNT", str(self._UNCHECKED_ACTIONS))

    @property
    def credentials(self) -> dict[str, str]:
        """AWS's own variables, for whoever uses it."""
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def endpoint_url(self) -> str:
        """For AWS_ENDPOINT_URL and MLFLOW_S3_ENDPOINT_URL on this machine."""
        return f"http://{self.address(self.PORT)}"

    @property
    def internal_endpoint_url(self) -> str:
        """The same for other containers of its network."""
        return f"http://{self.alias}:{self.PORT}"

    @property
    def uri(self) -> str:
        """`s3://http://localhost:N`, as Triton spells it; `/bucket/prefix` follows."""
        return f"s3://{self.endpoint_url}"

    @property
    def internal_uri(self) -> str:
        """The same for other containers of its network."""
        return f"s3://{self.internal_endpoint_url}"

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self._send("PUT", f"/{name}")

    def put_object(self, path: str, content: bytes) -> None:
        """Put one object at `/bucket/key`."""
        self._send("PUT", path, content)

    def check_policies(self, *, after: int = 0) -> None:
        """From now on, refuse wrong keys and what their owner's policies do not allow.

        Args:
            after: so many more requests are not looked at.
        """
        self._send("POST", "/moto-api/reset-auth", str(after).encode())

    def is_ready(self) -> bool:
        """Whether it lists its buckets."""
        return _answers(f"{self.endpoint_url}/")

    def _send(self, method: str, path: str, body: bytes | None = None) -> None:
        plain = {"Content-Type": "text/plain"}  # a form would be read as one of AWS's requests
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.endpoint_url}{path}", body, plain, method=method
        )
        with urllib.request.urlopen(request, timeout=_PROBE_S):  # noqa: S310 - as above
            pass


def remove_container(container: Container) -> None:
    """Kill and remove it; where somebody else is at that, as a call cut short, wait for its end.

    Raises:
        APIError: Docker cannot remove it.
    """
    deadline = time.monotonic() + _REMOVAL_S
    while True:
        try:
            container.remove(force=True, v=True)
        except NotFound:
            return
        except APIError as exc:
            if exc.status_code != http.client.CONFLICT or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    """Whether there is 200 to be had."""
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_S) as answer:  # noqa: S310 - ours, above
            return bool(answer.status == http.client.OK)
    except (OSError, http.client.HTTPException):
        return False
