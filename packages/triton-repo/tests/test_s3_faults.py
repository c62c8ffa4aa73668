"""An S3 that answers errors, resets, stalls or truncates: at every request of every operation."""

from __future__ import annotations

import hashlib
import itertools
import os
import ssl
import zlib
from typing import TYPE_CHECKING, Any

import botocore.retries.standard
import pytest
import trustme

from triton_repo.errors import (
    ObjectNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from triton_repo.record import FileDigest
from triton_repo.store import _s3, open_store
from triton_repo.testing import make_tree
from triton_repo.testing.proxy import (
    INTERNAL_ERROR,
    SLOW_DOWN,
    Fault,
    FaultyProxy,
    Refusal,
)
from triton_repo.testing.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from triton_repo.store import Store

    Operation = Callable[[Store, Path], Any]

_numbers = itertools.count()

#: Each with what it needs there, and what is there when it is done.
OPERATIONS: dict[str, tuple[Operation, dict[str, bytes]]] = {
    "read": (lambda store, _: store.read("m/old/a"), {}),
    "list": (lambda store, _: store.list_files("m"), {}),
    "children": (lambda store, _: store.children("m"), {}),
    "snapshot": (lambda store, _: store.snapshot().children(""), {}),
    "digest": (lambda store, _: store.digest("m/old/a"), {}),
    "write": (lambda store, _: store.write("m/new", b"1"), {"m/new": b"1"}),
    "place": (
        lambda store, path: store.place(
            "m/1", make_tree(path, {"a": b"1", "b/c": b"22"}, ["none"])
        ).digests(),
        {"m/1/a": b"1", "m/1/b/c": b"22"},
    ),
    "move": (lambda store, _: store.move("m/old", "m/new"), {"m/new/a": b"old a", "m/new/b": b"b"}),
    "exchange": (
        lambda store, _: store.exchange([("m/old", "m/other")]),
        {"m/old/a": b"other", "m/other/a": b"old a", "m/other/b": b"b"},
    ),
    "copy": (lambda store, _: store.copy_file("m/old/a", "m/c"), {"m/c": b"old a"}),
    "remove": (lambda store, _: store.remove("m/old"), {}),
    "sweep": (lambda store, _: store.sweep("m"), {}),
    "check": (lambda store, _: store.check(), {}),
    "lock": (lambda store, _: _lock(store), {}),
}
#: What an operation takes away.
GONE = {"move": ("m/old/a", "m/old/b"), "remove": ("m/old/a", "m/old/b"), "exchange": ("m/old/b",)}
BEFORE = {"m/old/a": b"old a", "m/old/b": b"b", "m/other/a": b"other"}


def name(fault: Fault) -> str:
    return fault.code if isinstance(fault, Refusal) else fault


def digest_of(data: bytes) -> FileDigest:
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())


def _lock(store: Store) -> None:
    with store.lock(".m.lock", "me"):
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def shared_proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.url) as running:
        yield running


@pytest.fixture
def proxy(shared_proxy: FaultyProxy) -> FaultyProxy:
    """One that has seen nothing and spoils nothing."""
    shared_proxy.fault = lambda _number, _request: None
    shared_proxy.requests.clear()
    return shared_proxy


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once, and do not wait for a minute."""
    monkeypatch.setattr(
        botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0
    )
    monkeypatch.setattr(_s3, "_READ_TIMEOUT_S", 0.3)


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    made = f"bucket-{next(_numbers)}"
    server.make_bucket(made)
    return made


def content(store: Store) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.list_files("")}


class Bench:
    """A repository, a store that reaches it, and one whose answers are spoiled."""

    def __init__(self, direct: Store, proxy: FaultyProxy, bucket: str, folder: Path) -> None:
        self.direct = direct
        # a client that has failed often does not try again so often: each test has a new one
        self.spoiled = open_store(f"s3://{proxy.url}/{bucket}/p")
        self.proxy = proxy
        self.folder = folder

    def points(self, operation: str, fault: Fault) -> list[int]:
        """Return the requests of an undisturbed run, counted from 1, that a fault is tried at.

        The first, the last, and one between them: another one for each pair of operation and fault.
        Of a server that does not answer at all, one of the first three.
        `nox -s faults` tries every request.
        """
        assert self.run(operation, lambda _: None) is None
        assert self.content() == after(operation)
        count = len(self.proxy.requests)
        assert count
        if os.environ.get("FAULTS_EVERY_POINT") or (count < 3 and fault != "stall"):
            return [*range(1, count + 1)]
        turn = zlib.crc32(f"{operation} {name(fault)}".encode())
        if fault == "stall":  # each is waited for
            return [1 + turn % min(count, 3)]
        return [1, 2 + turn % (count - 2), count]

    def run(self, operation: str, fault: Callable[[int], Fault | None]) -> StoreError | None:
        """Run an operation on what was there before; what it raised."""
        if self.content() != BEFORE:
            for key in (*self.direct.children(""), *self.direct.list_files("")):
                self.direct.remove(key)
            for key, data in BEFORE.items():
                self.direct.write(key, data)
        self.proxy.requests.clear()
        self.proxy.fault = lambda number, _: fault(number)
        try:
            OPERATIONS[operation][0](self.spoiled, self.folder / f"source-{next(_numbers)}")
        except StoreError as exc:
            return exc
        return None

    def content(self) -> dict[str, bytes]:
        return {path: self.direct.read(path) for path in self.direct.list_files("")}


@pytest.fixture(scope="module")
def direct(server: S3Server, bucket: str) -> Store:
    return open_store(f"s3://{server.url}/{bucket}/p")


@pytest.fixture
def bench(direct: Store, proxy: FaultyProxy, bucket: str, tmp_path: Path) -> Bench:
    return Bench(direct, proxy, bucket, tmp_path)


def after(operation: str) -> dict[str, bytes]:
    wanted = {**BEFORE, **OPERATIONS[operation][1]}
    return {key: data for key, data in wanted.items() if key not in GONE.get(operation, ())}


@pytest.mark.parametrize(
    "fault", [INTERNAL_ERROR, SLOW_DOWN, "reset", "lost", "truncated"], ids=name
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_fails_once_is_done_all_the_same(bench: Bench, operation: str, fault: Fault) -> None:
    """At whatever request it is."""
    for at in bench.points(operation, fault):
        error = bench.run(operation, lambda number, at=at: fault if number == at else None)  # type: ignore[misc]
        asked = bench.proxy.requests
        where = f"request {at} of {len(asked)}: {asked[at - 1 : at]}"
        assert error is None, f"{where}: {error}"
        assert bench.content() == after(operation), where


@pytest.mark.parametrize("fault", [INTERNAL_ERROR, "reset", "truncated"], ids=name)
def test_what_another_program_put_there_is_read_again_where_its_body_breaks_off(
    server: S3Server, bench: Bench, bucket: str, fault: Fault
) -> None:
    """S3 and we know no digest of it: it has to be read."""
    server.client().put_object(Bucket=bucket, Key="p/m/foreign", Body=b"foreign" * 1000)
    bench.proxy.fault = lambda number, _: fault if number == 2 else None
    assert bench.spoiled.digest("m/foreign") == digest_of(b"foreign" * 1000)
    assert [each.method for each in bench.proxy.requests] == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize("fault", [INTERNAL_ERROR, "reset", "stall"], ids=name)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_fails_for_good_is_one_line_and_the_next_sweep_leaves_nothing_half_done(
    bench: Bench, operation: str, fault: Fault
) -> None:
    """From whatever request on: a move or an exchange is done or not, and all else is as before."""
    for at in [each for each in bench.points(operation, fault) if fault != "stall" or each < 4]:
        error = bench.run(operation, lambda number, at=at: fault if number >= at else None)  # type: ignore[misc]
        if error is not None:
            assert isinstance(error, StoreUnavailableError)
            assert "\n" not in str(error)
            assert bench.spoiled.uri in str(error)
        bench.direct.sweep("m")
        if operation in ("place", "remove"):  # what the placement removes again, or goes on with
            bench.direct.remove("m/1" if operation == "place" else "m/old")
        seen = bench.content()
        seen.pop(".m.lock", None)
        assert seen in (BEFORE, after(operation)), f"from request {at} on"


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        (Refusal(404, "NoSuchBucket"), StoreAccessError, r"there is no bucket '{bucket}' at http"),
        (
            Refusal(403, "AccessDenied"),
            StoreAccessError,
            r"m/file: denied; .* need s3:PutObject on arn:aws:s3:::{bucket}/p/m/file",
        ),
        (Refusal(403, "InvalidAccessKeyId"), StoreAccessError, r"set AWS_ACCESS_KEY_ID"),
        (Refusal(403, "SignatureDoesNotMatch"), StoreAccessError, r"AWS_SECRET_ACCESS_KEY"),
        (Refusal(400, "ExpiredToken"), StoreAccessError, r"renew AWS_SESSION_TOKEN"),
        (Refusal(403, "RequestTimeTooSkewed"), StoreAccessError, r"clock is wrong"),
        (
            Refusal(
                400, "IllegalLocationConstraintException", {"x-amz-bucket-region": "eu-west-9"}
            ),
            StoreAccessError,
            r"in the region eu-west-9; set AWS_DEFAULT_REGION",
        ),
        (Refusal(507, "InsufficientStorage"), StoreUnavailableError, r"On demand \(Insuff"),
    ],
    ids=lambda each: getattr(each, "code", ""),
)
def test_a_refusal_says_what_where_and_what_next(
    bucket: str,
    proxy: FaultyProxy,
    refusal: Refusal,
    kind: type[StoreError],
    words: str,
) -> None:
    proxy.fault = lambda _number, _request: refusal
    store = open_store(f"s3://{proxy.url}/{bucket}/p")
    with pytest.raises(StoreError, match=words.format(bucket=bucket)) as caught:
        store.write("m/file", b"x")
    assert type(caught.value) is kind
    assert bucket in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "testing-secret-key" not in str(caught.value)


def test_what_is_not_there_is_told_from_what_is_denied(bucket: str, proxy: FaultyProxy) -> None:
    """HEAD has no body, and so no words."""
    store = open_store(f"s3://{proxy.url}/{bucket}/p")
    with pytest.raises(ObjectNotFoundError):
        store.digest("m/file")
    proxy.fault = lambda _number, _request: Refusal(403, "")
    with pytest.raises(StoreAccessError, match="s3:GetObject on arn"):
        store.digest("m/file")


@pytest.mark.usefixtures("server")
def test_an_endpoint_where_nothing_answers_is_said() -> None:
    with pytest.raises(
        StoreUnavailableError, match=r"nothing answers at http://127.0.0.1:9; is it"
    ):
        open_store("s3://http://127.0.0.1:9/bucket").check()


def test_without_credentials_the_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreAccessError, match=r"no credentials were found; set AWS_ACCESS_KEY_ID"):
        open_store("s3://http://127.0.0.1:9/bucket").check()


def test_a_profile_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreAccessError, match=r"nobody.*AWS_PROFILE must name one"):
        open_store("s3://bucket")


def test_a_ca_of_our_own_is_trusted_when_it_is_named(
    server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By boto3's own variable; without it nothing is sent."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with FaultyProxy(server.url, tls=tls) as proxy:
        address = f"s3://{proxy.url}/{bucket}"
        with pytest.raises(
            StoreUnavailableError, match=r"could not be verified; AWS_CA_BUNDLE names a file"
        ):
            open_store(address).check()
        assert proxy.requests == []
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        store = open_store(address)
        with store.lock(".m.lock", "me"):
            store.write("m/a", b"x")
        assert open_store(f"s3://{server.url}/{bucket}").read("m/a") == b"x"
    plain = server.url.replace("http", "https")
    with pytest.raises(StoreUnavailableError, match=rf"{plain} speaks no TLS; use s3://http://"):
        open_store(f"s3://{plain}/{bucket}").check()
