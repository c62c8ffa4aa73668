"""Who is let in, who is not, and that no secret is told: against the real servers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from mlflow_triton_plugin.testing.containers import MlflowContainer, S3Container, TritonContainer
from mlflow_triton_plugin.testing.pki import CertificateAuthority

from .building import image_of
from .examples import EXAMPLES, MODEL, artifact_of
from .user import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testcontainers.core.network import Network

    from .user import PythonSession, User

ADMIN, READER = "admin-secret-71c1", "reader-secret-0b9f"
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
READER_HEADER = "triton-grpc-protocol-reader-key"
PASSWORD = "tracking-secret-3f0a"  # noqa: S105 - of a server that lives for this test
SECRETS = (ADMIN, READER, PASSWORD)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("pki") / "theirs")


@pytest.fixture(scope="module")
def shielded(
    network: Network, repository: Path, authority: CertificateAuthority
) -> Iterator[TritonContainer]:
    """Mutual TLS; one key for who deploys, another for who asks."""
    server = TritonContainer(image_of("triton"), repository, network=network)
    server.with_tls(
        authority.issue("localhost"), authority.certificate, client=authority.issue("deployer")
    )
    server.with_restricted_protocol("model-repository,model-config", "admin-key", ADMIN)
    with server.with_restricted_protocol("inference", "reader-key", READER):
        yield server


@pytest.fixture(scope="module")
def trusted(local_user: User, shielded: TritonContainer, authority: CertificateAuthority) -> User:
    """A user with everything that the shielded server asks for."""
    own = authority.issue("user")
    return local_user.export(
        TRITON_URL=shielded.url,
        TRITON_TLS_CA=str(authority.certificate),
        TRITON_TLS_CERT=str(own.certificate),
        TRITON_TLS_KEY=str(own.key),
        TRITON_HEADERS=f"{ADMIN_HEADER}={ADMIN},{READER_HEADER}={READER}",
    )


@pytest.fixture(scope="module")
def python(local_user: User) -> Iterator[PythonSession]:
    with local_user.session() as session:
        yield session


def refused(call: Callable[[], object], code: str, *words: str) -> str:
    """The message of an error that has this code and these words, and no secret anywhere."""
    with pytest.raises(RefusedError) as raised:
        call()
    error = raised.value
    assert error.code == code, error.message
    assert "\n" not in error.message
    for word in words:
        assert word in error.message
    assert not [secret for secret in SECRETS if secret in error.told]
    return error.message


# -- TLS ------------------------------------------------------------------------------------------


def test_with_certificates_and_keys_a_model_is_deployed_by_the_command_line(
    trusted: User, published: Callable[[str], str], repository: Path, answer: Any
) -> None:
    """Over mutual TLS with both keys; and nothing that is left holds a secret."""
    made = trusted.deployments("create", "--name", "shielded", "-m", published(MODEL))
    assert made.status == 0, made.err
    asked = trusted.deployments("predict", "--name", "shielded", "-I", EXAMPLES / "input.json")
    assert json.loads(asked.out) == answer
    listed = trusted.deployments("list")
    assert "'shielded'" in listed.out
    written = b"".join(each.read_bytes() for each in repository.rglob("*") if each.is_file())
    told = "".join(each.out + each.err for each in (made, asked, listed)) + repr(written)
    assert not [secret for secret in SECRETS if secret in told]
    assert trusted.deployments("delete", "--name", "shielded").status == 0


@pytest.mark.parametrize("case", ["no certificate", "wrong CA", "another CA's certificate", "host"])
def test_a_stranger_is_told_why_and_nothing_has_changed(
    case: str,
    python: PythonSession,
    trusted: User,
    stranger: CertificateAuthority,
    published: Callable[[str], str],
    repository: Path,
    inputs: Any,
) -> None:
    other = stranger.issue("user")
    changed, words = {
        "no certificate": (
            {"TRITON_TLS_CERT": "", "TRITON_TLS_KEY": ""},
            ("without a certificate", "TRITON_TLS_CERT"),
        ),
        "wrong CA": (
            {"TRITON_TLS_CA": str(stranger.certificate)},
            ("not to be trusted", "TRITON_TLS_CA"),
        ),
        "another CA's certificate": (
            {"TRITON_TLS_CERT": str(other.certificate), "TRITON_TLS_KEY": str(other.key)},
            ("does not take the client's certificate",),
        ),
        "host": (
            {"TRITON_URL": trusted.exported["TRITON_URL"].replace("localhost", "127.0.0.1")},
            ("not to be trusted", "127.0.0.1", "a name in it"),
        ),
    }[case]
    user = trusted.export(**changed)
    uri = published(MODEL)
    for call, *arguments in (
        ("create_deployment", "never", uri),
        ("list_deployments",),
        ("predict", "never", inputs),
    ):
        refused(lambda: python.call(call, *arguments, user=user), "PERMISSION_DENIED", *words)  # noqa: B023
    assert not (repository / "never").exists()


def test_an_expired_certificate_is_told(
    network: Network,
    repository: Path,
    local_user: User,
    python: PythonSession,
    tmp_path: Path,
) -> None:
    """The server is ready by HTTP; its gRPC is one that nobody should trust."""
    authority = CertificateAuthority(tmp_path / "pki")
    server = ExpiredTriton(image_of("triton"), repository, network=network)
    with server.with_tls(authority.issue("localhost", expired=True), authority.certificate):
        user = local_user.export(TRITON_URL=server.url, TRITON_TLS_CA=str(authority.certificate))
        refused(
            lambda: python.call("list_deployments", user=user),
            "PERMISSION_DENIED",
            "certificate has expired",
        )


class ExpiredTriton(TritonContainer):
    """One that no client should trust: its gRPC cannot be asked whether it is ready."""

    def _serves_grpc(self) -> bool:
        return True


def test_tls_and_no_tls_are_told_apart(
    python: PythonSession, trusted: User, triton: TritonContainer, shielded: TritonContainer
) -> None:
    to_plain = trusted.export(TRITON_URL=triton.url.replace("grpc://", "grpcs://"))
    refused(
        lambda: python.call("list_deployments", user=to_plain),
        "PERMISSION_DENIED",
        f"it does not speak TLS; use {triton.url}",
    )
    to_tls = trusted.export(
        TRITON_URL=shielded.url.replace("grpcs://", "grpc://"),
        **dict.fromkeys(("TRITON_TLS_CA", "TRITON_TLS_CERT", "TRITON_TLS_KEY"), ""),
    )
    refused(
        lambda: python.call("list_deployments", user=to_tls),
        "PERMISSION_DENIED",
        f"use {shielded.url}",
    )


# -- restricted protocols -------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "of-somebody-else"], ids=["no key", "wrong key"])
def test_who_may_only_ask_cannot_deploy(
    key: str,
    python: PythonSession,
    trusted: User,
    published: Callable[[str], str],
    repository: Path,
    inputs: Any,
    answer: Any,
) -> None:
    uri = published(MODEL)
    python.call("create_deployment", "guarded", uri, user=trusted)
    headers = f"{READER_HEADER}={READER}" + (f",{ADMIN_HEADER}={key}" if key else "")
    reader = trusted.export(TRITON_HEADERS=headers)
    assert python.call("predict", "guarded", inputs, user=reader) == answer
    for call, *arguments in (
        ("create_deployment", "never", uri),
        ("update_deployment", "guarded", uri),
        ("delete_deployment", "guarded"),
        ("list_deployments",),
    ):
        refused(
            lambda: python.call(call, *arguments, user=reader),  # noqa: B023
            "PERMISSION_DENIED",
            ADMIN_HEADER,
            "not the one sent" if key else "TRITON_HEADERS",
        )
    assert not (repository / "never").exists()
    assert python.call("verify_deployment", "guarded") == []
    deployer = trusted.export(TRITON_HEADERS=f"{ADMIN_HEADER}={ADMIN}")
    refused(
        lambda: python.call("predict", "guarded", inputs, user=deployer),
        "PERMISSION_DENIED",
        READER_HEADER,
    )
    python.call("delete_deployment", "guarded", user=deployer)


def test_keys_may_come_from_a_file(python: PythonSession, trusted: User, tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"{ADMIN_HEADER}: {ADMIN}\n{READER_HEADER}: {READER}\n")
    user = trusted.export(TRITON_HEADERS="", TRITON_HEADERS_FILE=str(headers))
    assert isinstance(python.call("list_deployments", user=user), list)


def test_no_secret_is_in_the_list_of_processes(
    trusted: User, published: Callable[[str], str]
) -> None:
    """Looked at as long as the command runs, with all that it starts."""
    process = trusted.start(
        "mlflow", "deployments", "create", "-t", "triton", "--name", "seen", "-m", published(MODEL)
    )
    looked, told = 0, b""
    while process.poll() is None:
        looked += 1
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                if b"tritonserver" not in (command := line.read_bytes()):  # the keys' own server
                    told += command
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert looked > 1
    assert b"deployments\0create" in told
    assert not [secret for secret in SECRETS if secret.encode() in told or secret in out + err]
    assert trusted.deployments("delete", "--name", "seen").status == 0


# -- MLflow's basic auth --------------------------------------------------------------------------


def test_the_tracking_server_asks_for_a_password(
    network: Network, local_user: User, repository: Path
) -> None:
    with MlflowContainer(image_of("mlflow"), network=network).with_basic_auth(
        "admin", PASSWORD
    ) as server:
        admin = local_user.export(
            MLFLOW_TRACKING_URI=server.url,
            MLFLOW_TRACKING_USERNAME="admin",
            MLFLOW_TRACKING_PASSWORD=PASSWORD,
        )
        published = admin.publish("kept-apart", EXAMPLES / MODEL)
        assert published.status == 0, published.err
        uri = "models:/kept-apart/1"
        inline = admin.export(
            MLFLOW_TRACKING_URI=server.url.replace("://", "://admin:of-somebody-else@"),
            MLFLOW_TRACKING_USERNAME="",
            MLFLOW_TRACKING_PASSWORD="",
        )
        wrong = admin.export(MLFLOW_TRACKING_PASSWORD="of-somebody-else")  # noqa: S106
        with admin.session() as python:
            for user in (wrong, inline):
                with pytest.raises(RefusedError) as raised:
                    python.call("create_deployment", "never", uri, user=user)
                assert "not authenticated" in raised.value.message.lower()
                assert "of-somebody-else" not in raised.value.told
                assert not (repository / "never").exists()
            python.call("create_deployment", "kept-apart", uri)
            assert PASSWORD not in repr(python.call("get_deployment", "kept-apart"))
            python.call("delete_deployment", "kept-apart")


# -- S3 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_s3(network: Network) -> Iterator[tuple[S3Container, dict[str, dict[str, str]]]]:
    """An S3 that looks at who asks; and a writer's, a reader's and nobody's variables."""
    with S3Container(image_of("s3"), network=network) as server:
        server.make_bucket("models")
        server.put_object("/models/production/README", b"A model repository.")
        iam = boto3.client(
            "iam", endpoint_url=server.endpoint_url, region_name="us-east-1",
            aws_access_key_id="testing", aws_secret_access_key="testing",  # noqa: S106
        )  # fmt: skip
        # moto has names of its own for HEAD; in AWS, Get and List allow it
        people = {
            "writer": _member(iam, "writer", ["s3:*"]),
            "reader": _member(iam, "reader", ["s3:Get*", "s3:List*", "s3:Head*"]),
            "nobody": {
                "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
                "AWS_SECRET_ACCESS_KEY": "of-somebody-else",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
        }
        server.check_policies()
        yield server, people


def _member(iam: Any, name: str, actions: list[str]) -> dict[str, str]:
    iam.create_user(UserName=name)
    policy = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def test_s3_lets_in_who_may_write_and_nobody_else(
    strict_s3: tuple[S3Container, dict[str, dict[str, str]]],
    network: Network,
    local_user: User,
    published: Callable[[str], str],
    inputs: Any,
    answer: Any,
) -> None:
    s3, people = strict_s3
    uri = published(MODEL)
    server = TritonContainer(
        image_of("triton"), f"{s3.internal_uri}/models/production", network=network
    )
    with server.with_envs(**people["reader"]):  # all that Triton has to be allowed
        user = local_user.export(
            TRITON_URL=server.url, TRITON_MODEL_REPO=f"{s3.uri}/models/production"
        )
        writer, reader, nobody = (
            user.export(**people[each]) for each in ("writer", "reader", "nobody")
        )
        with user.session() as python:
            for each in (reader, nobody):
                with pytest.raises(RefusedError) as raised:
                    python.call("create_deployment", "never", uri, user=each)
                assert raised.value.code == "PERMISSION_DENIED", raised.value.message
                assert each.exported["AWS_SECRET_ACCESS_KEY"] not in raised.value.told
            python.call("create_deployment", "kept", uri, user=writer)
            assert python.call("predict", "kept", inputs, user=reader) == answer
            listed = python.call("list_deployments", user=reader)
            assert [each["name"] for each in listed] == ["kept"]
            with pytest.raises(RefusedError, match="PERMISSION_DENIED"):
                python.call("update_deployment", "kept", uri, user=reader)
            with pytest.raises(RefusedError, match="PERMISSION_DENIED"):
                python.call("delete_deployment", "kept", user=reader)
            assert python.call("verify_deployment", "kept", user=reader) == []
            assert python.call("predict", "kept", inputs, user=reader) == answer
            python.call("delete_deployment", "kept", user=writer)


# -- untrusted artifacts --------------------------------------------------------------------------


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A model as MLflow saves it, whose files the test spoils."""
    return artifact_of(tmp_path / "artifact")


def _leave(artifact: Path) -> None:
    (artifact / "MLmodel").write_text('{"flavors": {"triton": {"data": "../../etc"}}}')


def _link(artifact: Path) -> None:
    (artifact / "model" / "labels.txt").symlink_to("/etc/passwd")


def _pipe(artifact: Path) -> None:
    import os  # noqa: PLC0415 - for this one

    os.mkfifo(artifact / "model" / "labels.txt")


def _newline(artifact: Path) -> None:
    (artifact / "model" / "labels\n.txt").write_text("x")


def _look_alike(artifact: Path) -> None:
    (artifact / "model" / "labels\u2215x").write_text("x")


def _injection(artifact: Path) -> None:
    config = artifact / "model" / "config.pbtxt"
    config.write_text(config.read_text() + '\ndefault_model_filename: "../../../etc/passwd"\n')


def _bomb(artifact: Path) -> None:
    with (artifact / "model" / "1" / "weights").open("wb") as file:
        file.truncate(2 * 10**9)


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (_leave, {}, "leaves the model"),
        (_link, {}, "leads out of the model"),
        (_pipe, {}, "neither a file"),
        (_newline, {}, "labels\\n.txt"),
        (_look_alike, {}, "\\u2215"),
        (_injection, {}, "default_model_filename"),
        (_bomb, {"max_size": "1GB"}, "max_size"),
        (_bomb, {"max_files": "2"}, "max_files"),
    ],
    ids=["path", "link", "pipe", "newline", "look-alike", "config", "size", "files"],
)
def test_an_artifact_that_nobody_should_trust_is_refused(
    spoil: Callable[[Path], None],
    options: dict[str, str],
    words: str,
    artifact: Path,
    python: PythonSession,
    local_user: User,
    repository: Path,
) -> None:
    spoil(artifact)
    before = sorted(repository.rglob("*"))
    message = refused(
        lambda: python.call(
            "create_deployment", "untrusted", str(artifact), config=options, user=local_user
        ),
        "INVALID_PARAMETER_VALUE",
        words,
    )
    assert message.isprintable()
    assert sorted(repository.rglob("*")) == before
    listed = python.call("list_deployments", user=local_user)
    assert "untrusted" not in {each["name"] for each in listed}
