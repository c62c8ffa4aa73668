"""TLS, restricted protocols and tokens: who may not is told why, and nothing has changed."""

from __future__ import annotations

import html
import json
import logging
import os
import ssl
import threading
import traceback
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import certifi
import grpc
import mlflow
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.errors import SettingsError
from mlflow_triton_plugin.local import LocalTriton
from mlflow_triton_plugin.security import Access, Header
from mlflow_triton_plugin.settings import Settings
from mlflow_triton_plugin.testing.pki import CertificateAuthority
from triton_repo.testing.proxy import FaultyProxy

from . import refusals
from .models import log_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton_plugin.plugin import TritonDeploymentClient
    from mlflow_triton_plugin.testing.pki import KeyPair

ADMIN, READER = "admin-secret-71c1", "reader-secret-0b9f"
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
READER_HEADER = "triton-grpc-protocol-reader-key"
VARIABLES = ("TRITON_TLS_CA", "TRITON_TLS_CERT", "TRITON_TLS_KEY", "TRITON_HEADERS")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("pki") / "theirs")


@pytest.fixture(scope="module")
def shielded(repository: Path, authority: CertificateAuthority) -> Iterator[LocalTriton]:
    """Mutual TLS; one key for who deploys, and another for who asks."""
    with LocalTriton(
        repository,
        extra_args=[
            *tls(authority.issue("localhost"), client_ca=authority.certificate),
            f"--grpc-restricted-protocol=model-repository,model-config:admin-key={ADMIN}",
            f"--grpc-restricted-protocol=inference,metadata:reader-key={READER}",
            f"--http-restricted-api=model-repository,model-config:admin-key={ADMIN}",
        ],
    ) as server:
        yield server


@pytest.fixture(scope="module")
def scale(registered: Callable[[str], str]) -> str:
    name = registered("guarded")
    log_scale(name, 2)
    return f"models:/{name}/1"


@pytest.fixture
def shown(
    shielded: LocalTriton, authority: CertificateAuthority, environment: Callable[..., None]
) -> Callable[..., TritonDeploymentClient]:
    """Connect to the shielded server with everything that it asks for, but for what is given."""
    client = authority.issue("deployer")

    def connect(**changed: str) -> TritonDeploymentClient:
        environment(
            **{
                "TRITON_URL": f"grpcs://localhost:{port(shielded)}",
                "TRITON_TLS_CA": str(authority.certificate),
                "TRITON_TLS_CERT": str(client.certificate),
                "TRITON_TLS_KEY": str(client.key),
                "TRITON_HEADERS": f"{ADMIN_HEADER}={ADMIN},{READER_HEADER}={READER}",
            }
            | changed
        )
        made: TritonDeploymentClient = get_deploy_client("triton")
        return made

    return connect


def tls(pair: KeyPair, *, client_ca: Path | None = None) -> list[str]:
    mutual = ["--grpc-use-ssl-mutual=1", f"--grpc-root-cert={client_ca}"] if client_ca else []
    certificate = [f"--grpc-server-cert={pair.certificate}", f"--grpc-server-key={pair.key}"]
    return ["--grpc-use-ssl=1", *certificate, *mutual]


def port(server: LocalTriton) -> str:
    return server.grpc_url.rpartition(":")[2]


refused = partial(refusals.refused, secrets=(ADMIN, READER))


def test_with_certificate_and_keys_a_model_is_deployed_and_asked(
    shown: Callable[..., TritonDeploymentClient], scale: str, name: str
) -> None:
    client = shown()
    client.create_deployment(name, scale, config={"validate": "load"})
    assert client.get_deployment(name)["state"] == "READY"
    assert name in {each["name"] for each in client.list_deployments()}
    answer = client.predict(name, {"x": np.ones((1, 4), np.float32)})
    assert answer["outputs"]["y"].tolist() == [[2.0] * 4]
    client.delete_deployment(name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            {"TRITON_TLS_CERT": "", "TRITON_TLS_KEY": ""},
            ["without a certificate", "TLS_CERT"],
        ),
        ({"TRITON_TLS_CA": "stranger"}, ["not to be trusted", "TRITON_TLS_CA"]),
        ({"TRITON_TLS_CA": ""}, ["not to be trusted", "TRITON_TLS_CA"]),
        (
            {"TRITON_TLS_CERT": "stranger", "TRITON_TLS_KEY": "stranger"},
            ["does not take the client's certificate"],
        ),
        ({"TRITON_URL": "127.0.0.1"}, ["not to be trusted", "127.0.0.1", "a name in it"]),
    ],
    ids=["no certificate", "wrong CA", "public CAs", "certificate of another CA", "wrong host"],
)
def test_a_stranger_is_told_what_is_wrong_and_changes_nothing(
    shown: Callable[..., TritonDeploymentClient],
    shielded: LocalTriton,
    stranger: CertificateAuthority,
    scale: str,
    repository: Path,
    spoil: dict[str, str],
    words: list[str],
) -> None:
    other = stranger.issue("deployer")
    values = {
        "TRITON_TLS_CA": stranger.certificate,
        "TRITON_TLS_CERT": other.certificate,
        "TRITON_TLS_KEY": other.key,
    }
    changed = {
        name: str(values[name]) if value == "stranger" else value for name, value in spoil.items()
    }
    if "TRITON_URL" in changed:
        changed["TRITON_URL"] = f"grpcs://127.0.0.1:{port(shielded)}"
    client = shown(**changed)
    for call in (
        lambda: client.create_deployment("guarded", scale),
        client.list_deployments,
        lambda: client.predict("guarded", {"x": np.ones((1, 4), np.float32)}),
    ):
        refused(call, "PERMISSION_DENIED", "grpcs://", *words)
    assert not (repository / "guarded").exists()


def test_an_expired_certificate_is_told(
    repository: Path, authority: CertificateAuthority, environment: Callable[..., None]
) -> None:
    with LocalTriton(
        repository, extra_args=tls(authority.issue("localhost", expired=True))
    ) as server:
        environment(
            TRITON_URL=f"grpcs://localhost:{port(server)}", TRITON_TLS_CA=str(authority.certificate)
        )
        client = get_deploy_client("triton")
        refused(client.list_deployments, "PERMISSION_DENIED", "certificate has expired")


def test_the_wrong_scheme_is_told_both_ways(
    triton: LocalTriton,
    shown: Callable[..., TritonDeploymentClient],
    shielded: LocalTriton,
    environment: Callable[..., None],
) -> None:
    to_plain = shown(TRITON_URL=f"grpcs://{triton.grpc_url}")
    refused(
        to_plain.list_deployments, "PERMISSION_DENIED", f"use grpc://{triton.grpc_url} in TRITON_"
    )
    environment(**dict.fromkeys(VARIABLES, ""), TRITON_URL=f"grpc://localhost:{port(shielded)}")
    to_tls = get_deploy_client("triton")
    refused(to_tls.list_deployments, "PERMISSION_DENIED", f"grpcs://localhost:{port(shielded)}")


def test_certificates_are_never_left_aside_for_a_plain_address() -> None:
    with pytest.raises(SettingsError, match=r"not encrypted.*use grpcs://h:1"):
        Settings.read("triton://h:1", {"TRITON_TLS_CA": certifi.where()})


def test_a_server_that_is_down_is_unavailable_with_tls_too(
    shown: Callable[..., TritonDeploymentClient], tmp_path: Path, authority: CertificateAuthority
) -> None:
    (tmp_path / "other").mkdir()
    with LocalTriton(tmp_path / "other", extra_args=tls(authority.issue("localhost"))) as server:
        gone = port(server)
    client = shown(TRITON_URL=f"grpcs://localhost:{gone}")
    refused(client.list_deployments, "TEMPORARILY_UNAVAILABLE", f"grpcs://localhost:{gone}")


# -- restricted protocols -----------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "of-somebody-else"], ids=["no key", "wrong key"])
def test_who_may_only_ask_cannot_deploy(
    shown: Callable[..., TritonDeploymentClient],
    scale: str,
    name: str,
    snapshot: Callable[[str], dict[str, bytes]],
    value: str,
) -> None:
    shown().create_deployment(name, scale)
    before = snapshot(name)
    admin = f",{ADMIN_HEADER}={value}" if value else ""
    reader = shown(TRITON_HEADERS=f"{READER_HEADER}={READER}{admin}")
    answer = reader.predict(name, {"x": np.ones((1, 4), np.float32)})
    assert answer["outputs"]["y"].tolist() == [[2.0] * 4]
    for call in (
        lambda: reader.create_deployment(f"{name}b", scale),
        lambda: reader.update_deployment(name, scale),
        lambda: reader.delete_deployment(name),
        reader.list_deployments,
    ):
        message = refused(call, "PERMISSION_DENIED", ADMIN_HEADER)
        assert ("not the one sent" if value else "TRITON_HEADERS") in message
    assert snapshot(name) == before
    assert not snapshot(f"{name}b")
    shown().delete_deployment(name)


def test_who_may_only_deploy_cannot_ask(
    shown: Callable[..., TritonDeploymentClient], scale: str, name: str
) -> None:
    shown().create_deployment(name, scale)
    deployer = shown(TRITON_HEADERS=f"{ADMIN_HEADER}={ADMIN}")
    refused(lambda: deployer.predict(name, np.ones((1, 4))), "PERMISSION_DENIED", READER_HEADER)
    shown().delete_deployment(name)


def test_headers_come_from_a_file_too(
    shown: Callable[..., TritonDeploymentClient], tmp_path: Path, scale: str, name: str
) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"# of the cluster\n\n{ADMIN_HEADER.upper()}: {ADMIN}\n")
    client = shown(TRITON_HEADERS=f"{READER_HEADER}={READER}", TRITON_HEADERS_FILE=str(headers))
    client.create_deployment(name, scale)
    headers.write_text(f"{ADMIN_HEADER}: of-somebody-else\n")  # a key that was changed
    refused(client.list_deployments, "PERMISSION_DENIED", "not the one sent")
    headers.write_text("")  # being written
    refused(client.list_deployments, "PERMISSION_DENIED", ADMIN_HEADER)
    headers.write_text(f"{ADMIN_HEADER}: {ADMIN}\n")
    client.delete_deployment(name)


def test_http_is_restricted_and_encrypted_alike(
    shielded: LocalTriton,
    authority: CertificateAuthority,
    stranger: CertificateAuthority,
    shown: Callable[..., TritonDeploymentClient],
    scale: str,
    name: str,
) -> None:
    gateway = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    gateway.verify_mode = ssl.CERT_REQUIRED
    gateway.load_cert_chain(*authority.issue("localhost"))
    with FaultyProxy(shielded.http_url, tls=gateway) as front:
        https = front.url.replace("127.0.0.1", "localhost")
        client = shown(TRITON_URL=https, TRITON_HEADERS=f"admin-key={ADMIN}")
        client.create_deployment(name, scale)
        answer = client.predict(name, {"x": np.ones((1, 4), np.float32)})
        assert answer["outputs"]["y"].tolist() == [[2.0] * 4]
        unkeyed = shown(TRITON_URL=https, TRITON_HEADERS="")
        refused(unkeyed.list_deployments, "PERMISSION_DENIED", "header admin-key")
        assert unkeyed.predict(name, np.ones((1, 4), np.float32))["outputs"]["y"].shape == (1, 4)
        wrong = shown(TRITON_URL=https, TRITON_TLS_CA=str(stranger.certificate))
        refused(wrong.list_deployments, "PERMISSION_DENIED", "not to be trusted")
        wrong_host = shown(TRITON_URL=front.url, TRITON_TLS_CA=str(authority.certificate))
        refused(wrong_host.list_deployments, "PERMISSION_DENIED", "not to be trusted")
        client = shown(TRITON_URL=https, TRITON_HEADERS=f"admin-key={ADMIN}")
        client.delete_deployment(name)


# -- a gateway that wants a token ---------------------------------------------------------------


class Gateway(grpc.GenericRpcHandler):
    """A gRPC server that looks at tokens, as a gateway before Triton; it repeats what it saw."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._lock = threading.Lock()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        metadata = dict(details.invocation_metadata)

        def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._lock:
                self.seen.append(str(metadata.get("authorization")))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{metadata} is not known here")
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def gateway() -> Iterator[tuple[Gateway, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    gateway = Gateway()
    server.add_generic_rpc_handlers((gateway,))
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield gateway, f"127.0.0.1:{number}"
    server.stop(None).wait()


def test_a_token_that_rotates_is_sent_as_it_is_now_and_never_told(
    gateway: tuple[Gateway, str],
    environment: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_triton_plugin")
    seen, address = gateway[0].seen, gateway[1]
    token = tmp_path / "token"
    token.write_text("first-token-4711\n")
    environment(TRITON_URL=address, TRITON_TOKEN_FILE=str(token))
    client = get_deploy_client("triton")
    for value in ("first-token-4711", "second-token-4712"):
        new = tmp_path / "new"
        new.write_text(value)
        new.replace(token)
        with pytest.raises(MlflowException) as raised:
            client.list_deployments()
        assert raised.value.error_code == "PERMISSION_DENIED"
        assert "UNAUTHENTICATED" in str(raised.value)
        assert "***" in str(raised.value)
        told = "".join(traceback.format_exception(raised.value)) + caplog.text
        assert value not in told
        assert seen[-1] == f"Bearer {value}"
    token.unlink()  # gone for a moment: the last one still holds
    with pytest.raises(MlflowException, match="UNAUTHENTICATED"):
        client.list_deployments()
    assert seen[-1] == "Bearer second-token-4712"


@pytest.mark.parametrize(
    "written",
    [
        str,
        lambda value: " ".join(value.split()),
        json.dumps,
        lambda value: json.dumps(value).replace("&", "\\u0026").replace("<", "\\u003c"),
        lambda value: json.dumps(value).replace("/", "\\/"),
        quote,
        quote_plus,
        html.escape,
    ],
)
def test_a_value_is_masked_however_a_gateway_writes_it(written: Callable[[str], str]) -> None:
    value = 'one  two/"three"\\&<four'
    access = Access(fixed=(Header("x-key", value),))
    access.headers()
    assert access.without_secrets(f"not {written(value)}!") in ("not ***!", 'not "***"!')


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "content", "words"),
    [
        ("TRITON_TOKEN_FILE", b"", "one line of printable ASCII"),
        ("TRITON_TOKEN_FILE", b"hidden\nhidden", "one line of printable ASCII"),
        ("TRITON_TOKEN_FILE", b"hidden\xff\xfe", "one line of printable ASCII"),
        ("TRITON_TOKEN_FILE", None, "cannot be read"),
        ("TRITON_HEADERS_FILE", b"a: 1\nhidden", "line 2 is not Name: value"),
        ("TRITON_HEADERS_FILE", b"na me: hidden", "line 1 is not Name: value"),
        ("TRITON_HEADERS_FILE", b"a: hidden\xc3\xa4", "line 1 has a value that is"),
        (
            "TRITON_HEADERS_FILE",
            b"a: hidden\na: hidden",
            "sets one header twice, as number 1 and 2",
        ),
        ("TRITON_HEADERS_FILE", None, "cannot be read"),
        ("TRITON_HEADERS", b"hidden", "entry 1 is not name=value"),
        ("TRITON_HEADERS", b"a=1,b=hidden%0a", "entry 2 has a value that"),
        ("TRITON_HEADERS", b"a=hid,den=hidden,hidden=\x7f", "entry 3 has a value"),
        ("TRITON_HEADERS", b"a=1,hidden-bin=1", "entry 2 sets a header that belongs"),
        ("TRITON_HEADERS", b"a=1,hidden=1,hidden=2", "as number 2 and 3"),
        ("TRITON_HEADERS", b"content-type=hidden", "belongs to the protocol"),
        ("TRITON_HEADERS", b"grpc-timeout=hidden", "belongs to the protocol"),
        ("TRITON_HEADERS", b"x-bin=hidden", "belongs to the protocol"),
        ("TRITON_TLS_CA", b"hidden", "certificate"),
        ("TRITON_TLS_CA", b"-----BEGIN CERTIFICATE-----\nhidden\n-----END CERTIFICATE-----", "PEM"),
        ("TRITON_TLS_CA", None, "cannot be read"),
        ("TRITON_TLS_CERT", b"hidden", "TRITON_TLS_KEY is not"),
        ("TRITON_TLS_KEY", b"hidden", "TRITON_TLS_CERT is not"),
    ],
)
def test_what_is_no_setting_is_refused_by_name_without_its_content(
    tmp_path: Path, variable: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    value = content.decode() if variable == "TRITON_HEADERS" and content else str(path)
    with pytest.raises(SettingsError, match=words) as raised:
        Settings.read("triton://h", {variable: value})
    assert variable in str(raised.value)
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value.__dict__)
    assert "hidden" not in told


def test_a_damaged_certificate_in_a_bundle_is_refused(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    good = authority.certificate.read_text()
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(good + good.replace("MII", "M!!", 1))
    with pytest.raises(SettingsError, match="TRITON_TLS_CA"):
        Settings.read("triton://grpcs://h", {"TRITON_TLS_CA": str(bundle)})


def test_a_key_of_another_certificate_is_refused(authority: CertificateAuthority) -> None:
    one, another = authority.issue("one"), authority.issue("another")
    variables = {"TRITON_TLS_CERT": str(one.certificate), "TRITON_TLS_KEY": str(another.key)}
    with pytest.raises(SettingsError, match="key values mismatch"):
        Settings.read("triton://grpcs://h", variables)


def test_a_header_that_is_said_twice_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hidden-token")
    variables = {"TRITON_HEADERS": "Authorization=hidden", "TRITON_TOKEN_FILE": str(token)}
    with pytest.raises(
        SettingsError, match="TRITON_TOKEN_FILE sets a header that TRITON_HEADERS sets"
    ):
        Settings.read("triton", variables)


def test_a_value_may_have_a_comma_and_equals_signs() -> None:
    access = Access.read({"TRITON_HEADERS": "A=x%2Cy, b=c==,"})
    assert access.headers() == [Header("a", "x,y"), Header("b", "c==")]


def test_settings_never_show_a_secret(tmp_path: Path, authority: CertificateAuthority) -> None:
    pair = authority.issue("deployer")
    token = tmp_path / "token"
    token.write_text("hidden-token")
    settings = Settings.read(
        "triton://grpcs://h",
        {
            "TRITON_TLS_CERT": str(pair.certificate),
            "TRITON_TLS_KEY": str(pair.key),
            "TRITON_HEADERS": "x=hidden-header",
            "TRITON_TOKEN_FILE": str(token),
        },
    )
    shown = repr(settings) + str(settings) + repr(settings.access.headers())
    assert "hidden" not in shown
    assert "PRIVATE" not in shown


def test_a_token_may_be_a_shells_substitution() -> None:
    """What `<(…)` makes is a pipe: it can be read once."""
    reading, writing = os.pipe()
    os.write(writing, b"from-a-pipe")
    os.close(writing)
    access = Access(token_file=Path(f"/dev/fd/{reading}"))
    access.check()
    assert access.headers() == access.headers() == [Header("authorization", "Bearer from-a-pipe")]
    os.close(reading)


def test_a_key_may_be_a_pipe_or_gone_by_the_time_it_is_needed(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    pair = authority.issue("deployer")
    reading, writing = os.pipe()
    os.write(writing, pair.key.read_bytes())
    os.close(writing)
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(pair.certificate.read_bytes().rstrip())
    variables = {"TRITON_TLS_CERT": str(certificate), "TRITON_TLS_KEY": f"/dev/fd/{reading}"}
    tls = Access.read(variables).tls
    os.close(reading)
    certificate.unlink()
    assert tls is not None
    assert tls.context().verify_mode == ssl.CERT_REQUIRED
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["h:1", "grpc://10.0.0.1", "http://h", "grpcs://a,grpc://h"])
def test_a_token_does_not_leave_the_machine_as_plain_text(tmp_path: Path, address: str) -> None:
    token = tmp_path / "token"
    token.write_text("hidden-token")
    variables = {"TRITON_TOKEN_FILE": str(token), "TRITON_URL": "grpcs://gateway"}
    for target, more in ((f"triton://{address}", {}), ("triton", {"TRITON_URL": address})):
        with pytest.raises(SettingsError, match=r"is not encrypted, and TRITON_TOKEN_FILE is set"):
            Settings.read(target, variables | more)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:1", "http://[::1]", "grpcs://h"])
def test_a_token_may_be_sent_with_tls_and_on_this_machine(tmp_path: Path, address: str) -> None:
    token = tmp_path / "token"
    token.write_text("hidden-token")
    settings = Settings.read("triton", {"TRITON_TOKEN_FILE": str(token), "TRITON_URL": address})
    assert settings.access.has_headers


def test_headers_for_an_encrypted_server_are_not_sent_to_one_that_is_not() -> None:
    with pytest.raises(SettingsError, match=r"has grpc://b:8001, which is not encrypted"):
        Settings.read("triton://grpcs://a,grpc://b", {"TRITON_HEADERS": "x=hidden"})
    assert len(Settings.read("triton://grpcs://a,grpc://b", {}).endpoints) == 2
    assert Settings.read("triton://a,b", {"TRITON_HEADERS": "x=y"}).access.has_headers


# -- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "given"),
    [
        ("TRITON_URL", "http://user:hidden@h"),
        ("TRITON_URL", "user:hidden@h:1"),
        ("TRITON_URL", "https://user:hidden,rest@h:1"),
        ("TRITON_URL", "https://h/x?token=hidden"),
        ("TRITON_MODEL_REPO", "s3://user:hidden@bucket/p"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(
    environment: Callable[..., None], variable: str, given: str
) -> None:
    environment(**{variable: given})

    def list_them() -> None:
        get_deploy_client("triton").list_deployments()

    with pytest.raises(MlflowException, match=variable) as raised:
        list_them()
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "hidden" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://user:hidden@bucket/model",
        "https://h/model?X-Amz-Signature=hidden",
        "http://user:1234#hidden@h/model",
        "models:/m/7?hidden",
    ],
)
def test_a_model_uri_with_a_secret_is_refused_for_it_would_be_recorded(
    client: TritonDeploymentClient, repository: Path, uri: str
) -> None:
    with pytest.raises(MlflowException, match="recorded") as raised:
        client.create_deployment("secretive", uri)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "hidden" not in "".join(traceback.format_exception(raised.value))
    assert not (repository / "secretive").exists()


@pytest.mark.parametrize(
    "uri",
    ["postgresql://mlflow:hidden@127.0.0.1:1/db", "http://user:hidden@127.0.0.1:1"],
)
def test_the_tracking_servers_password_is_never_told(
    client: TritonDeploymentClient, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with pytest.raises(MlflowException) as raised:
            client.create_deployment("secretive", "models:/m/1")
    finally:
        mlflow.set_tracking_uri(before)
    assert "hidden" not in "".join(traceback.format_exception(raised.value))
