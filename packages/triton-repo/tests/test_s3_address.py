"""Addresses as Triton spells them, and the credentials it would take for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from triton_repo.errors import StoreAccessError, StoreError
from triton_repo.store import open_store
from triton_repo.store._s3_address import S3Address, S3Credentials, read_credentials

if TYPE_CHECKING:
    from pathlib import Path

    Write = pytest.MonkeyPatch


@pytest.mark.parametrize(
    ("address", "endpoint", "bucket", "prefix"),
    [
        ("s3://bucket", "", "bucket", ""),
        ("s3://bucket/", "", "bucket", ""),
        ("s3://bucket/prefix", "", "bucket", "prefix/"),
        ("s3://bucket/prefix/", "", "bucket", "prefix/"),
        ("s3://bucket//a///b//", "", "bucket", "a/b/"),
        ("s3:///bucket/a", "", "bucket", "a/"),
        ("s3://My_Old.Bucket-1/Team=ML/v1.2_x", "", "My_Old.Bucket-1", "Team=ML/v1.2_x/"),
        ("s3://bucket/with space/ü/100%/a+b", "", "bucket", "with space/ü/100%/a+b/"),
        ("s3://http://host:9000/bucket/a", "http://host:9000", "bucket", "a/"),
        ("s3://http://127.0.0.1:9000/bucket", "http://127.0.0.1:9000", "bucket", ""),
        ("s3://https://minio.example.com/b-1/x", "https://minio.example.com", "b-1", "x/"),
        ("s3://https://minio.example.com/b-1", "https://minio.example.com", "b-1", ""),
        ("s3://https://host:9000//bucket//a/", "https://host:9000", "bucket", "a/"),
        ("s3://http://[::1]:9000/bucket/a", "http://[::1]:9000", "bucket", "a/"),
        ("s3://https://[fe80::1%25eth0]/bucket", "https://[fe80::1%25eth0]", "bucket", ""),
        ("s3://host:9000/bucket/a", "http://host:9000", "bucket", "a/"),
        ("s3://my_minio:9000/bucket", "http://my_minio:9000", "bucket", ""),
    ],
)
def test_every_spelling_is_read(address: str, endpoint: str, bucket: str, prefix: str) -> None:
    assert S3Address.parse(address) == S3Address(endpoint, bucket, prefix)


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket//a//", "s3://bucket/a"),
        ("s3://host:9000/bucket", "s3://http://host:9000/bucket"),
        ("s3://https://host/bucket/a/", "s3://https://host/bucket/a"),
    ],
)
def test_an_address_is_named_without_slashes_too_many(address: str, uri: str) -> None:
    parsed = S3Address.parse(address)
    assert parsed.uri == uri
    assert S3Address.parse(parsed.uri) == parsed


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3:///",
        "s3://a",
        "s3://-b/x",
        "s3://b ucket/x",
        "s3://http://host:9000",
        "s3://é/x",
    ],
)
def test_what_names_no_bucket_is_refused(address: str) -> None:
    with pytest.raises(StoreError, match=r"names no bucket; use s3://bucket/prefix or"):
        S3Address.parse(address)


@pytest.mark.parametrize(
    "address", ["s3://http://host:99999/bucket", "s3://http://host:port/bucket", "s3://http://:1/b"]
)
def test_what_is_no_endpoint_is_refused(address: str) -> None:
    with pytest.raises(StoreError, match=r"names no host:port of an S3 endpoint"):
        S3Address.parse(address)


@pytest.mark.parametrize("prefix", ["..", "a/../b", ".", "a/."])
def test_a_prefix_does_not_climb(prefix: str) -> None:
    with pytest.raises(StoreError, match=r"cannot hold \. or \.\."):
        S3Address.parse(f"s3://bucket/{prefix}")


@pytest.mark.parametrize(
    "address",
    [
        "s3://http://me:hunter2@host:9000/bucket",
        "s3://http://me:hun/ter2@host:9000/bucket",
        "s3://http://hunter2:1234/5@host:9000/bucket",
        "s3://http://me:h@hunter2/x@host/bucket",
        "s3://me:hunter2@host:9000/bucket",
        "s3://me:hunter2/x@host:9000/bucket",
        "s3://bucket/prefix?X-Amz-Signature=hunter2",
        "as://account/container?sv=2020&sig=hunter2",
        "as://account/container/models?sv=2020&sig=hunter2",
        "as://me:hunter2@account/container",
        "file://me:hunter2@host/models",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    """Not a part of it either: secret keys may hold slashes."""
    with pytest.raises(StoreError) as caught:
        open_store(address)
    for said in (str(caught.value), caught.value.uri):
        assert "hun" not in said


@pytest.mark.parametrize(
    ("address", "readable"),
    [
        ("s3://Any_Thing/Team=ML", True),
        ("s3://http://host:9000/bucket/a_b", True),
        ("s3://https://host/bucket", False),  # no port: it takes "https:" for the bucket
        ("s3://http://[::1]:9000/bucket", False),
        ("s3://http://host:9000/Bucket", False),
        ("s3://http://host:9000/bucket/a=b", False),
    ],
)
def test_what_triton_itself_misreads_is_known(address: str, *, readable: bool) -> None:
    """Its pattern for addresses with an endpoint is narrower than S3."""
    assert S3Address.parse(address).is_readable_by_triton is readable


# -- TRITON_CLOUD_CREDENTIAL_PATH -------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "credentials.json"
    monkeypatch.setenv("TRITON_CLOUD_CREDENTIAL_PATH", str(path))
    return path


def test_without_a_file_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_CLOUD_CREDENTIAL_PATH", raising=False)
    assert read_credentials("s3://bucket/a") == S3Credentials()


def test_the_longest_match_wins(file: Path) -> None:
    file.write_text(
        json.dumps(
            {
                "gs": {"": "/somewhere"},
                "s3": {
                    "": {"key_id": "any", "secret_key": "1"},
                    "s3://bucket": {"key_id": "bucket", "secret_key": "2", "region": "eu-west-1"},
                    "s3://bucket/a": {"profile": "a"},
                },
            }
        )
    )
    assert read_credentials("s3://other") == S3Credentials("any", "1")
    assert read_credentials("s3://bucket/b") == S3Credentials("bucket", "2", region="eu-west-1")
    assert read_credentials("s3://bucket/a/b") == S3Credentials(profile="a")


def test_credentials_are_never_shown() -> None:
    assert "hunter2" not in repr(S3Credentials("me", "hunter2"))


@pytest.mark.parametrize("content", ["", "[]", '{"s3": []}', '{"s3": {"": "x"}}', "{"])
def test_a_file_that_is_something_else_is_said(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(StoreAccessError, match="TRITON_CLOUD_CREDENTIAL_PATH") as caught:
        read_credentials("s3://bucket")
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_said(file: Path) -> None:
    with pytest.raises(StoreAccessError, match="No such file"):
        read_credentials("s3://bucket")


def test_a_file_that_says_nothing_of_the_address_is_said(file: Path) -> None:
    file.write_text(json.dumps({"s3": {"s3://other": {"profile": "a"}}}))
    with pytest.raises(StoreAccessError, match=r"has no credentials for s3://bucket"):
        read_credentials("s3://bucket")
