"""What is told of a secret: nothing."""

from __future__ import annotations

import pytest

from triton_repo.masking import has_secret, without_secrets


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://user:secret@h/x", "http://***@h/x"),
        ("http://token-secret@h/x", "http://***@h/x"),
        ("http://u:se'cr@et@h/x", "http://***@h/x"),
        ("http://u:my secret@h/x", "http://***@h/x"),
        ("http://u:p@b/secret@h/x", "http://***@h/x"),
        ("postgresql://u:se/cr@et@h:1/db is down", "postgresql://***@h:1/db is down"),
        ("postgresql+psycopg2://u:1/secret@h/db", "postgresql+psycopg2://***@h/db"),
        ("s3://http://key:secret@h:9000/b/p", "s3://http://***@h:9000/b/p"),
        ("https://h/x?X-Amz-Signature=secret", "https://h/x"),
        ("wasbs://c@a.host/p?sv=1&sig=secret", "wasbs://c@a.host/p"),
        ("s3://AKIA:0123/secret@bucket/m", "s3://***@bucket/m"),
        ("mlflow-artifacts://secret@h/p", "mlflow-artifacts://***@h/p"),
        ("git+https://secret@h/p", "git+https://***@h/p"),
        ("https://secret@databricks/p", "https://***@databricks/p"),
    ],
)
def test_an_address_with_a_secret_is_known_and_told_without(text: str, told: str) -> None:
    assert has_secret(text)
    assert without_secrets(text) == told
    assert without_secrets(f"'{text}' is gone") == f"'{told}' is gone"


def test_a_fragment_may_hold_a_token() -> None:
    assert has_secret("https://h/x#access_token=secret")
    assert without_secrets("https://h/x#access_token=secret") == "https://h/x#access_token=***"


@pytest.mark.parametrize(
    "address",
    [
        "models:/m@champion",
        "models://scope:prefix@databricks/m/1",
        "s3://http://host:9000/bucket/key@x",
        "s3://http://[::1]:9000/b/p@q",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/a/path@v1",
        "wasbs://container@account.host/p",
        "sftp://user@host/p",
        "file:///what?/m",
        "/a/what?/m@x",
        "grpc://a:8001,grpc://b:8001/x@y",
        "mlflow-artifacts://h:5000/1/a@b",
        "git+https://h:443/a/b@v1",
        "C:\\models@v1",
        "registry/image:1@sha256:abc",
        "10:20 http://h:5000/a and b@c",
        "at http://h:5000: no model models:/m@champion",
    ],
)
def test_an_address_without_a_secret_is_told_as_it_is(address: str) -> None:
    assert without_secrets(address) == address
    assert not has_secret(address)


def test_a_path_may_look_like_an_address() -> None:
    assert not has_secret("/data/x://a:b@c")
    assert not has_secret("file:///data/x://a:b@c")


@pytest.mark.parametrize(
    "text",
    [
        "Max retries exceeded with url: /k?X-Amz-Credential=secret&X-Amz-Signature=secret (Caused",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=secret==;",
        "GET /x?sv=1&sig=secret HTTP/1.1",
        "{'Signature=secret', 'token=secret'}",
        "X-Goog-Signature=secret&X-Amz-Signature%3Dsecret",
        "{'X-Amz-Security-Token': 'secret', 'Authorization': 'Bearer secret'}",
        "host=h password='secret' dbname=m; Authorization: secret",
        "password='a&b, secret'",
        "Invalid header value b'secret\\n'",
        "or return character(s) in header value: 'Bearer secret\n'",
        "sent Bearer secret, and Basic secret",
        "Invalid endpoint: AK:secret@minio:9000",
        "api_key=secret AWS_SESSION_TOKEN=secret MLFLOW_TRACKING_PASSWORD: secret",
        "{'x-api-key': 'secret', \"access_token\": \"secret\"}",
    ],
)
def test_what_is_known_as_a_secret_is_masked_by_its_name(text: str) -> None:
    assert "secret" not in without_secrets(text)
    assert "***" in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "Basic authentication is off, a Bearer token is missing",
        "unexpected token: '}' at line 3",
        "models:/m@champion and file:relative@x",
        "status code=404, design=old",
    ],
)
def test_what_is_no_secret_is_told(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", ["a://", "s3://a:1/", "a:b@", "header value '", "a_token"])
def test_masking_takes_no_longer_for_what_was_made_to_take_long(unit: str) -> None:
    # seconds; a quadratic search would take many minutes
    text = unit * (1_000_000 // len(unit))
    assert len(without_secrets(text)) <= len(text)
