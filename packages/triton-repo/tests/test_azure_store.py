"""The store's contract on Azure Blob Storage, and its addresses and errors."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from azure.storage.blob import ContainerClient

from triton_repo.errors import StoreAccessError, StoreError, StoreUnavailableError
from triton_repo.record import FileDigest
from triton_repo.store import Store, _azure, open_store
from triton_repo.store._azure import AzureAddress
from triton_repo.testing import StoreContract, make_tree
from triton_repo.testing.azure import AzureServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[AzureServer]:
    with AzureServer() as running:
        yield running


@pytest.fixture
def address(server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new and empty repository."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string)
    return f"{server.make_container(f'container-{next(_numbers)}')}/some/prefix"


@pytest.fixture
def store(address: str) -> Store:
    return open_store(address)


class TestAzureStore(StoreContract):
    refused_names = ("back\\slash",)
    keys_in_a_page = 5  # each is one request

    @pytest.fixture(autouse=True)
    def pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Azure's own hold 5,000 keys; here are as many as a client asks for."""
        given = ContainerClient.list_blobs

        def list_blobs(container: Any, *, results_per_page: int | None, **arguments: Any) -> Any:
            size = results_per_page or self.keys_in_a_page
            return given(container, results_per_page=size, **arguments)

        monkeypatch.setattr(ContainerClient, "list_blobs", list_blobs)

    @pytest.fixture
    def store(self, address: str) -> Store:
        return open_store(address)


def test_a_large_file_goes_in_parts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(_azure, "_PART_BYTES", 1024 * 1024)
    store = open_store(address)
    content = os.urandom(5_000_000)
    told: list[int] = []
    placed = store.place("m/1", make_tree(tmp_path / "large", {"weights": content}), told.append)
    digest = FileDigest(len(content), hashlib.sha256(content).hexdigest())
    assert placed.digests() == {"weights": digest}
    assert sum(told) == len(content)
    store.move("m/1", "m/2")
    assert store.digest("m/2/weights") == digest
    assert store.read("m/2/weights") == content


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("as://account/container", AzureAddress("account", "container", "")),
        ("as://account/container/a//b/", AzureAddress("account", "container", "a/b/")),
        (
            "as://account.blob.core.windows.net/container/a",
            AzureAddress("account", "container", "a/"),
        ),
    ],
)
def test_every_spelling_is_read(address: str, parsed: AzureAddress) -> None:
    assert AzureAddress.parse(address) == parsed
    assert AzureAddress.parse(parsed.uri) == parsed


@pytest.mark.parametrize("address", ["as://", "as://account", "as://account/", "as://a/Cont/x"])
def test_what_names_no_container_is_refused(address: str) -> None:
    with pytest.raises(StoreError, match="use as://account/container/path"):
        open_store(address)


def test_tritons_credentials_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file goes before the environment."""
    file = tmp_path / "credentials.json"
    key = "c2VjcmV0"
    entry = {"account_str": "other", "account_key": key}
    file.write_text(json.dumps({"as": {"as://account": entry}}))
    monkeypatch.setenv("TRITON_CLOUD_CREDENTIAL_PATH", str(file))
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "not asked for")
    container = _azure._container(AzureAddress.parse("as://account/container"))
    assert container.account_name == "other"
    assert container.credential.account_key == key
    monkeypatch.delenv("TRITON_CLOUD_CREDENTIAL_PATH")
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_KEY", key)
    container = _azure._container(AzureAddress.parse("as://account/container"))
    assert container.url == "https://account.blob.core.windows.net/container"
    monkeypatch.setenv("AZURE_STORAGE_KEY", "no base64!")
    with pytest.raises(StoreAccessError, match="no base64"):
        open_store("as://account/container")


def test_what_is_wrong_is_one_line(
    server: AzureServer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreAccessError, match="there is no container 'nowhere'"):
        open_store("as://devstoreaccount1/nowhere").check()
    key = server.connection_string.partition("AccountKey=")[2].partition(";")[0]
    wrong = server.connection_string.replace(key, "c2VjcmV0")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
    with pytest.raises(StoreAccessError, match=r"denied \(AuthorizationFailure\)") as caught:
        open_store(address).check()
    assert "\n" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)
    nobody = "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=http://127.0.0.1:9/a;"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", nobody)
    monkeypatch.setattr(_azure, "_RETRIES", 0)
    with pytest.raises(StoreUnavailableError, match="nothing answers there"):
        open_store(address).check()
