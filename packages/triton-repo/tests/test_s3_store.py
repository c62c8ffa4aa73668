"""The store's contract on S3, and what is so only there."""

from __future__ import annotations

import _thread
import hashlib
import itertools
import json
import logging
import os
import threading
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import urllib3

from triton_repo.entry import EntryFile, RemoteFile, Tree
from triton_repo.errors import StoreError
from triton_repo.record import FileDigest
from triton_repo.store import Store, _s3, _s3_uploads, open_store
from triton_repo.store._objects import DIRECTORY_FILENAME
from triton_repo.testing import StoreContract, make_tree
from triton_repo.testing.proxy import FaultyProxy, Refusal, Request
from triton_repo.testing.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from triton_repo.store._objects import ObjectStore

_numbers = itertools.count()
#: S3's own are ten times as large, and what they hold takes ten times as long.
_PAGE = 100


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(_PAGE) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new and empty one."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    made = f"bucket-{next(_numbers)}"
    server.make_bucket(made)
    return made


@pytest.fixture
def address(server: S3Server, bucket: str) -> str:
    return f"s3://{server.url}/{bucket}/some/prefix"


class TestS3Store(StoreContract):
    keys_in_a_page = _PAGE

    @pytest.fixture
    def store(self, address: str) -> Store:
        return open_store(address)


class TestWholeBucket(StoreContract):
    """A repository without a prefix."""

    keys_in_a_page = _PAGE

    @pytest.fixture
    def store(self, server: S3Server, bucket: str) -> Store:
        return open_store(f"s3://{server.url}/{bucket}")


@pytest.fixture
def store(address: str) -> ObjectStore:
    opened: Any = open_store(address)
    return opened  # type: ignore[no-any-return]


@pytest.fixture
def keys(server: S3Server, bucket: str) -> Callable[[], list[str]]:
    """Every key in the bucket, asked for by another client."""

    def ask() -> list[str]:
        pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    return ask


@pytest.fixture
def calls(store: ObjectStore) -> list[str]:
    """What the store asks S3, as it happens."""
    seen: list[str] = []
    client: Any = store.bucket.client  # type: ignore[attr-defined]
    client.meta.events.register(
        "before-send.s3", lambda event_name, **_: seen.append(event_name.rpartition(".")[2])
    )
    return seen


# -- the bucket as others see it ----------------------------------------------------------------


def test_a_prefix_is_there_for_triton_before_any_model_is(
    store: ObjectStore, keys: Callable[[], list[str]]
) -> None:
    """Triton does not start on a prefix without objects; and it is no file to anybody here."""
    store.check()
    assert keys() == [f"some/prefix/{DIRECTORY_FILENAME}"]
    assert store.list_files("") == {}
    store.check()
    assert len(keys()) == 1


def test_directories_of_other_programs_are_directories(
    store: ObjectStore, server: S3Server, bucket: str
) -> None:
    """Amazon's console makes an object whose key ends in a slash."""
    for key in ("ensemble/", "ensemble/1/"):
        server.client().put_object(Bucket=bucket, Key=f"some/prefix/{key}", Body=b"")
    store.write("ensemble/config.pbtxt", b"x")
    assert store.children("") == ["ensemble"]
    assert store.children("ensemble") == ["1"]
    assert store.list_files("ensemble") == {"config.pbtxt": 1}
    store.move("ensemble/1", "ensemble/2")
    assert store.children("ensemble") == ["2"]
    store.remove("ensemble")
    assert store.children("") == []


def test_more_objects_than_are_deleted_at_once_go_whole(
    store: ObjectStore, keys: Callable[[], list[str]], server: S3Server, bucket: str
) -> None:
    """And their neighbours stay. S3 deletes a thousand at once."""
    names = [f"model/1/{number}" for number in range(1_000)] + ["model/config.pbtxt"]
    others = ["model_1/1/x", "model2/1/x", "model.bak/1/x"]
    with urllib3.PoolManager(headers={"Authorization": "moto does not look at it"}) as http:
        for name in [*names, *others]:  # boto3 takes three times as long
            answer = http.request("PUT", f"{server.url}/{bucket}/some/prefix/{name}", body=b"")
            assert answer.status == 200
    assert len(store.list_files("model")) == 1_001
    store.remove("model")
    assert sorted(keys()) == sorted(f"some/prefix/{name}" for name in others)


def test_a_warning_where_triton_reads_another_address(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.make_bucket("another-bucket")
    with caplog.at_level(logging.WARNING):
        open_store(f"s3://{server.url}/another-bucket/a=b").check()
    assert f"Triton itself cannot read s3://{server.url}/another-bucket/a=b" in caplog.text


# -- large files --------------------------------------------------------------------------------


@pytest.fixture
def parts_of_5_mb(monkeypatch: pytest.MonkeyPatch) -> int:
    """As small as S3 allows parts to be."""
    size_bytes = 5 * 1024 * 1024
    monkeypatch.setattr(_s3_uploads, "PART_BYTES", size_bytes)
    monkeypatch.setattr(_s3, "_COPY_BYTES", size_bytes)
    return size_bytes


@pytest.mark.usefixtures("parts_of_5_mb")
def test_a_large_file_goes_in_parts_and_stays_whole(
    store: ObjectStore, tmp_path: Path, calls: list[str]
) -> None:
    """Uploaded, moved, copied and exchanged; its digest costs no download."""
    content = os.urandom(12_000_000)
    digest = FileDigest(len(content), hashlib.sha256(content).hexdigest())
    told: list[int] = []
    tree = make_tree(tmp_path / "large", {"weights": content})
    placed = store.place("m/1", tree, told.append)
    assert placed.digests() == {"weights": digest}
    assert sum(told) == len(content)
    assert calls.count("UploadPart") == 3
    store.move("m/1", "m/2")
    assert calls.count("UploadPartCopy") == 3
    store.copy_file("m/2/weights", "m/3/weights")
    store.exchange([("m/2", "m/3")])
    calls.clear()
    assert store.digest("m/2/weights") == store.digest("m/3/weights") == digest
    assert set(calls) == {"HeadObject"}
    assert store.read("m/2/weights") == content


@pytest.mark.usefixtures("parts_of_5_mb")
def test_an_upload_that_is_stopped_leaves_no_parts(
    store: ObjectStore, tmp_path: Path, server: S3Server, bucket: str
) -> None:
    """Nor does one of a process that died: the next holder of the lock drops them."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    tree = make_tree(tmp_path / "large", {"weights": bytes(12_000_000)})
    with pytest.raises(KeyboardInterrupt):
        store.place("m/1", make_tree(tmp_path / "small", {"a": b"x"}), interrupt)
    (tree.files[0].source).unlink()
    with pytest.raises(StoreError):
        store.place("m/1", tree)
    client = server.client()
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    for key in ("m/1/weights", "m2/1/weights"):
        client.create_multipart_upload(Bucket=bucket, Key=f"some/prefix/{key}")
    store.sweep("m")
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["some/prefix/m2/1/weights"]


@pytest.mark.usefixtures("parts_of_5_mb")
def test_ctrl_c_in_the_midst_of_a_large_upload_leaves_nothing(
    tmp_path: Path, keys: Callable[[], list[str]], server: S3Server, bucket: str
) -> None:
    """It is over when it has been reported: no part comes through later."""
    with FaultyProxy(server.url) as proxy:

        def interrupt(_: int, request: Request) -> None:
            if "partNumber=2" in request.path:
                _thread.interrupt_main()

        proxy.fault = interrupt
        store = open_store(f"s3://{proxy.url}/{bucket}/some/prefix")
        files = {f"weights-{number}": bytes(12_000_000) for number in range(3)}
        with pytest.raises(KeyboardInterrupt):
            store.place("m/1", make_tree(tmp_path / "large", files))
        assert keys() == []
        assert "Uploads" not in server.client().list_multipart_uploads(Bucket=bucket)


@pytest.mark.usefixtures("parts_of_5_mb")
def test_what_is_left_of_uploads_stops_nobody(
    store: ObjectStore, server: S3Server, bucket: str, address: str
) -> None:
    """One that is gone already, as after a lost answer; or a store that cannot list them."""
    client = server.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key="some/prefix/m/1/w")["UploadId"]

    def abort(**_: Any) -> None:
        client.abort_multipart_upload(Bucket=bucket, Key="some/prefix/m/1/w", UploadId=upload)

    opened: Any = open_store(address)
    opened.bucket.client.meta.events.register("before-send.s3.AbortMultipartUpload", abort)
    opened.sweep("m")
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    not_implemented = Refusal(501, "NotImplemented")
    with FaultyProxy(server.url) as proxy:
        proxy.fault = lambda _, request: not_implemented if "?uploads" in request.path else None
        open_store(f"s3://{proxy.url}/{bucket}/some/prefix").sweep("m")
        assert [each for each in proxy.requests if "?uploads" in each.path]


# -- fences ---------------------------------------------------------------------------------------


class FencedError(Exception):
    """Not let through."""


def test_nothing_is_changed_behind_a_fence(
    store: ObjectStore, tmp_path: Path, keys: Callable[[], list[str]], server: S3Server
) -> None:
    """No request of any call."""
    store.write("m/a", b"a")
    store.write("m/b/c", b"c")
    before = keys()

    def refuse() -> None:
        raise FencedError

    store.bucket.fence(refuse)
    bucket: Any = store.bucket
    tree = make_tree(tmp_path / "tree", {"small": b"1", "large": bytes(9_000_000)})
    calls: list[Callable[[], object]] = [
        lambda: store.write("m/new", b""),
        lambda: store.place("m/1", tree),
        lambda: store.copy_file("m/a", "m/new"),
        lambda: store.move("m/b", "m/new"),
        lambda: store.exchange([("m/a", "m/b")]),
        lambda: store.remove("m/a"),
        lambda: store.remove("m"),
        lambda: bucket.delete_replaced("m/a", "x"),
    ]
    for call in calls:
        with pytest.raises(FencedError):
            call()
    assert keys() == before
    store.bucket.fence(None)
    store.write("m/new", b"")
    assert len(keys()) == len(before) + 1


@pytest.mark.usefixtures("parts_of_5_mb")
def test_a_large_upload_ends_at_a_fence(
    store: ObjectStore, tmp_path: Path, keys: Callable[[], list[str]], server: S3Server, bucket: str
) -> None:
    """That came up in its midst; its parts are dropped."""
    asked = itertools.count(1)

    def refuse() -> None:
        if next(asked) > 2:
            raise FencedError

    store.bucket.fence(refuse)
    with pytest.raises(FencedError):
        store.place("m/1", make_tree(tmp_path / "tree", {"large": bytes(30_000_000)}))
    assert keys() == []
    assert "Uploads" not in server.client().list_multipart_uploads(Bucket=bucket)


# -- digests --------------------------------------------------------------------------------------


def test_what_somebody_else_wrote_is_read_to_its_end(
    store: ObjectStore, tmp_path: Path, server: S3Server, bucket: str
) -> None:
    """An overwritten object has lost the digest that was noted with it."""
    store.place("m/1", make_tree(tmp_path / "source", {"a": b"ours"}))
    server.client().put_object(Bucket=bucket, Key="some/prefix/m/1/a", Body=b"theirs")
    wanted = FileDigest(6, hashlib.sha256(b"theirs").hexdigest())
    assert store.digest("m/1/a") == wanted


# -- copies from MLflow's artifact store --------------------------------------------------------


@pytest.fixture
def artifact(server: S3Server, tmp_path: Path) -> Callable[..., EntryFile]:
    """An object in another bucket, as a file to place; downloading it is counted in `fetched`."""
    client = server.client()
    if "artifacts" not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket="artifacts")

    def make(content: bytes, endpoint: str = server.url, bucket: str = "artifacts") -> EntryFile:
        key = f"run/ü {next(_numbers)}+%41"
        client.put_object(
            Bucket="artifacts", Key=key, Body=content, Metadata={"mlflow-triton-digest": "wrong"}
        )
        stands_for_it = tmp_path / key.replace("/", "-")
        with stands_for_it.open("wb") as file:
            file.truncate(len(content))
        origin = RemoteFile(
            f"s3://{bucket}/{key}",
            endpoint,
            lambda: fetched.append(stands_for_it.write_bytes(content)),
        )
        return EntryFile(PurePosixPath("weights"), stands_for_it, len(content), origin)

    fetched: list[int] = []
    make.fetched = fetched  # type: ignore[attr-defined]
    return make


def test_an_artifact_in_the_same_s3_does_not_come_here(
    store: ObjectStore, artifact: Any, calls: list[str]
) -> None:
    """The digest is what S3 computed."""
    content = os.urandom(100_000)
    told: list[int] = []
    placed = store.place("m/1", Tree((artifact(content),)), told.append)
    digest = FileDigest(len(content), hashlib.sha256(content).hexdigest())
    assert placed.digests() == {"weights": digest}
    assert told == [len(content)]
    assert artifact.fetched == []
    assert "PutObject" not in calls
    assert "GetObject" not in calls
    assert store.digest("m/1/weights") == digest
    assert store.read("m/1/weights") == content


def test_an_artifact_too_large_for_one_copy_is_copied_in_parts(
    store: ObjectStore, artifact: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sha256 is not to be had without reading it; what it is known by stays with it."""
    monkeypatch.setattr(_s3, "_COPY_AT_MOST_BYTES", 1)
    monkeypatch.setattr(_s3, "_COPY_BYTES", 5 * 1024 * 1024)
    content = os.urandom(12_000_000)
    placed = store.place("m/1", Tree((artifact(content),))).digests()["weights"]
    assert placed.sha256.startswith("etag:")
    assert calls.count("UploadPartCopy") == 3
    assert artifact.fetched == []
    assert store.digest("m/1/weights") == placed
    store.move("m/1", "m/2")
    assert store.digest("m/2/weights") == placed
    store.write("m/2/weights", content[::-1])
    assert store.digest("m/2/weights") != placed


@pytest.mark.parametrize(
    "place", [{"endpoint": "http://127.0.0.1:9"}, {"bucket": "not-for-us"}], ids=["else", "denied"]
)
def test_an_artifact_that_cannot_be_copied_comes_through_this_machine(
    store: ObjectStore, artifact: Any, place: dict[str, str]
) -> None:
    content = os.urandom(100_000)
    store.place("m/1", Tree((artifact(content, **place),)))
    assert artifact.fetched == [len(content)]
    assert store.read("m/1/weights") == content


def test_a_copied_artifact_keeps_its_sha256_when_it_is_moved_in_parts(
    store: ObjectStore, artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 knows none of what was put together of parts."""
    monkeypatch.setattr(_s3, "_COPY_BYTES", 5 * 1024 * 1024)
    content = os.urandom(12_000_000)
    placed = store.place("m/1", Tree((artifact(content),))).digests()["weights"]
    assert placed.sha256 == hashlib.sha256(content).hexdigest()
    store.move("m/1", "m/2")
    assert store.digest("m/2/weights") == placed


# -- how often S3 is asked ----------------------------------------------------------------------


def test_who_holds_a_lock_asks_once(store: ObjectStore, calls: list[str]) -> None:
    """One listing answers every question about the model; what is read once is remembered."""
    store.write("m/config.pbtxt", b"x")
    store.write("m/1/a", b"x")
    with store.lock(".m.lock", "me"):
        calls.clear()
        assert store.exists("m/1")
        assert not store.exists("m/2")
        assert store.children("m") == ["1"]
        assert store.read("m/config.pbtxt") == store.read("m/config.pbtxt") == b"x"
        store.write("m/config.pbtxt", b"yy")
        assert store.read("m/config.pbtxt") == b"yy"
        store.remove("m/1")
        assert store.list_files("m") == {"config.pbtxt": 2}
    asked = [call for call in calls if call.startswith(("List", "Get", "Head"))]
    assert asked == ["ListObjectsV2", "GetObject"]


def test_a_snapshot_reads_all_records_in_two_requests(
    store: ObjectStore, calls: list[str], keys: Callable[[], list[str]]
) -> None:
    """Those that were written under a lock; another one is asked for by itself, old ones never."""
    for number in range(3):
        with store.lock(f".m{number}.lock", "me"):
            store.write(f"m{number}/mlflow-meta.json", f"record {number}".encode())
    store.write("m1/mlflow-meta.json", b"another")  # by a program that knows nothing of the cache
    calls.clear()
    seen = store.snapshot()
    assert seen.children("") == ["m0", "m1", "m2"]
    assert [seen.read(f"m{number}/mlflow-meta.json") for number in range(3)] == [
        b"record 0",
        b"another",
        b"record 2",
    ]
    assert sorted(calls) == ["GetObject", "GetObject", "ListObjectsV2"]
    for number in range(3):
        with store.lock(f".m{number}.lock", "me"):
            store.remove(f"m{number}")
    assert keys() == []


def test_writers_at_once_all_find_their_way_into_the_record_cache(
    address: str, store: ObjectStore, calls: list[str]
) -> None:
    def write(number: int) -> None:
        mine = open_store(address)
        with mine.lock(f".m{number}.lock", "me"):
            mine.write(f"m{number}/mlflow-meta.json", b"{}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.snapshot()
    assert calls.count("GetObject") <= 2  # who is overtaken too often leaves its entry old


def test_a_damaged_record_cache_is_no_harm(
    store: ObjectStore, server: S3Server, bucket: str
) -> None:
    with store.lock(".m.lock", "me"):
        store.write("m/mlflow-meta.json", b"{}")
    key = "some/prefix/.mlflow-triton-records.json"
    for content in (b"", b"x", json.dumps({"m/mlflow-meta.json": 1}).encode()):
        server.client().put_object(Bucket=bucket, Key=key, Body=content)
        assert store.snapshot().read("m/mlflow-meta.json") == b"{}"


# -- credentials ----------------------------------------------------------------------------------


def test_tritons_credential_file_goes_before_the_environment(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials.json"
    entry = {"key_id": "theirs", "secret_key": "s", "session_token": "t", "region": "eu-west-3"}
    file.write_text(json.dumps({"s3": {address.rpartition("/")[0]: entry}}))
    monkeypatch.setenv("TRITON_CLOUD_CREDENTIAL_PATH", str(file))
    opened: Any = open_store(address)
    signing = opened.bucket.client._request_signer._credentials
    assert (signing.access_key, signing.secret_key, signing.token) == ("theirs", "s", "t")
    assert opened.bucket.client.meta.region_name == "eu-west-3"
    opened.write("m/file", b"x")
    assert opened.read("m/file") == b"x"


def test_a_profile_with_its_addressing_style_is_boto3s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that boto3 knows stays in force."""
    config = tmp_path / "config"
    config.write_text(
        "[profile far]\nregion = ap-south-1\naws_access_key_id = a\naws_secret_access_key = b\n"
        "max_attempts = 2\ns3 =\n    addressing_style = virtual\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "far")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    opened: Any = open_store("s3://some-bucket/models")
    client = opened.bucket.client
    assert client.meta.region_name == "ap-south-1"
    assert client.meta.config.s3["addressing_style"] == "virtual"
    assert client.meta.config.retries["total_max_attempts"] == 2
    url = boto3.session.Session().client("s3").meta.endpoint_url
    assert client.meta.endpoint_url == url


def test_a_role_is_taken_on_with_a_web_identity(
    server: S3Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pods do: its credentials carry a session token."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text("a token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/deployer")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
    store: Any = open_store(address)
    tokens: list[str] = []

    def look(request: Any, **_: Any) -> None:
        tokens.append(request.headers["X-Amz-Security-Token"])

    store.bucket.client.meta.events.register("before-send.s3", look)
    store.write("m/a", b"x")
    assert store.read("m/a") == b"x"
    assert len(tokens) == 2
    assert all(tokens)
