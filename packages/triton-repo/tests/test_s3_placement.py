"""`ModelPlace` on an object store: what an interrupted change has sent is not sent again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.change import plan_change
from triton_repo.config import ModelConfig
from triton_repo.entry import RepositoryEntry
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState
from triton_repo.record import Source
from triton_repo.store import open_store
from triton_repo.testing import make_tree
from triton_repo.testing.proxy import INTERNAL_ERROR, FaultyProxy, Request
from triton_repo.testing.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = check_name("resnet")
_numbers = itertools.count()
FILES = {f"weights-{number}": bytes([number]) * 50_000 for number in range(8)}
#: What a deployment's directory holds when nothing is left of any attempt.
PLACED = sorted([*(f"1/{path}" for path in FILES), "config.pbtxt", "mlflow-meta.json"])


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.url) as running:
        yield running


@pytest.fixture
def repository(server: S3Server, proxy: FaultyProxy) -> str:
    bucket = f"bucket-{next(_numbers)}"
    server.make_bucket(bucket)
    return f"s3://{proxy.url}/{bucket}/models"


@pytest.fixture
def entry(tmp_path: Path) -> RepositoryEntry:
    return RepositoryEntry(
        name=NAME,
        flavor="triton",
        versions={1: make_tree(tmp_path / "source", FILES)},
        config=ModelConfig.parse('backend: "python"'),
    )


def sent_bytes(proxy: FaultyProxy) -> int:
    """What came through since the requests were forgotten, of weights."""
    return sum(each.size_bytes for each in proxy.requests if each.size_bytes >= 50_000)


def dies_after(files: int) -> Any:
    """Every change fails once so many weights were sent; so do those that would put it right."""
    sent = itertools.count(1)
    state = {"dead": False}

    def fault(_: int, request: Request) -> Any:
        if request.size_bytes >= 50_000 and next(sent) > files:
            state["dead"] = True
        return INTERNAL_ERROR if state["dead"] else None

    return fault


def deploy(repository: str, entry: RepositoryEntry) -> None:
    """As a command does it: with what the one before it has sent."""
    place = ModelPlace(open_store(repository), NAME)
    source = Source("models:/resnet/1", "models:/resnet/1")
    with place.lock("me"):
        place.recover(keep_sent=True)
        there = place.state_to_change() is not PlaceState.ABSENT
        change = plan_change(entry, source, base=place.take_stock() if there else None)
        staged = place.stage(change, operation="create", holder="me")
        place.install(staged)
        place.commit(staged)


@pytest.mark.parametrize("parallel", [1, 4])
def test_what_was_sent_is_not_sent_again(
    repository: str,
    entry: RepositoryEntry,
    proxy: FaultyProxy,
    parallel: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by a third attempt; and at the end nothing of it is left."""
    monkeypatch.setattr("triton_repo.store._s3.S3Bucket.parallel", parallel)
    for files in (3, 2):
        proxy.fault = dies_after(files)
        with pytest.raises(Exception, match="InternalError"):
            deploy(repository, entry)
    proxy.fault = lambda *_: None
    proxy.requests.clear()
    deploy(repository, entry)
    assert sent_bytes(proxy) == 50_000 * (len(FILES) - 5)
    store = open_store(repository)
    assert sorted(store.list_files("resnet")) == PLACED
    assert all(store.read(f"resnet/1/{path}") == content for path, content in FILES.items())


@pytest.mark.parametrize("files", [2, 4])
def test_two_attempts_may_have_sent_different_files(
    repository: str,
    entry: RepositoryEntry,
    proxy: FaultyProxy,
    files: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of several requests at once any can come through before the store fails."""
    monkeypatch.setattr("triton_repo.store._s3.S3Bucket.parallel", 1)
    proxy.fault = dies_after(3)
    with pytest.raises(Exception, match="InternalError"):
        deploy(repository, entry)
    tree = entry.versions[1]
    backwards = replace(entry, versions={1: replace(tree, files=tree.files[::-1])})
    proxy.fault = dies_after(files)
    with pytest.raises(Exception, match="InternalError"):
        deploy(repository, backwards)
    proxy.fault = lambda *_: None
    proxy.requests.clear()
    deploy(repository, entry)
    assert sent_bytes(proxy) == 50_000 * (len(FILES) - 3 - files)
    assert sorted(open_store(repository).list_files("resnet")) == PLACED


def test_what_was_sent_goes_when_the_change_is_not_wanted_any_more(
    repository: str, entry: RepositoryEntry, proxy: FaultyProxy
) -> None:
    """And until then the model is said to be interrupted."""
    proxy.fault = dies_after(3)
    with pytest.raises(Exception, match="InternalError"):
        deploy(repository, entry)
    proxy.fault = lambda *_: None
    place = ModelPlace(open_store(repository), NAME)
    assert place.recover(keep_sent=True) == "undone"
    assert place.state() is PlaceState.INTERRUPTED
    assert place.state_to_change() is PlaceState.ABSENT
    assert place.recover() == "undone"
    assert place.state() is PlaceState.ABSENT
    assert open_store(repository).children("") == []


def test_a_server_that_starts_during_a_create_finds_no_version_to_serve(
    repository: str, entry: RepositoryEntry
) -> None:
    """config.pbtxt pins one that is not there, from before the first file to the commit."""
    place = ModelPlace(open_store(repository), NAME)
    seen: list[tuple[int, ...]] = []

    def look(_: int) -> None:
        config = ModelConfig.parse(open_store(repository).read("resnet/config.pbtxt"))
        seen.append(config.served(map(int, open_store(repository).children("resnet")[:1])))

    with place.lock("me"):
        change = plan_change(entry, Source("models:/resnet/1", "models:/resnet/1"), base=None)
        staged = place.stage(change, operation="create", holder="me", on_copied=look)
        assert seen == [()] * len(FILES)
        place.install(staged)
        place.commit(staged)
    config = ModelConfig.parse(open_store(repository).read("resnet/config.pbtxt"))
    assert config.served([1]) == (1,)


def test_keys_that_no_file_could_have_go_with_the_model(
    repository: str, entry: RepositoryEntry, server: S3Server
) -> None:
    """Another program put them there; S3 takes anything."""
    deploy(repository, entry)
    bucket = repository.split("/")[-2]
    for key in ("resnet//x", "resnet/./y", "resnet/../z", "resnet/1//w"):
        server.client().put_object(Bucket=bucket, Key=f"models/{key}", Body=b"")
    place = ModelPlace(open_store(repository), NAME)
    with place.lock("me"):
        place.begin_delete("me")
        place.remove()
    assert open_store(repository).children("") == []
