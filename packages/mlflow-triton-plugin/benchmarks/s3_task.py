"""One task against an S3 with a slow network, in a process of its own: seconds, memory, requests.

A script: `python s3_task.py TASK ADDRESS FOLDER`. Every request waits for 20 ms before it is sent,
in the thread that sends it, so that the delay costs neither client nor server any work.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import boto3
import boto3.s3.transfer

from triton_repo.entry import EntryFile, RemoteFile, Tree
from triton_repo.scan import scan_tree
from triton_repo.store import open_store
from triton_repo.store._record_cache import RECORDS_FILENAME
from triton_repo.store._s3_address import S3Address

if TYPE_CHECKING:
    from collections.abc import Callable

DELAY_S = 0.020


class Network:
    """What goes over it, and how long that takes."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.sent_bytes = 0
        self.received_bytes = 0
        self._counting = threading.Lock()

    def join(self, client: Any) -> None:
        client.meta.events.register("before-send.s3", self._send)
        client.meta.events.register("after-call.s3", self._receive)

    def _send(self, request: Any, event_name: str, **_: Any) -> None:
        with self._counting:
            self.requests[event_name.rpartition(".")[2]] += 1
            self.sent_bytes += int(request.headers.get("Content-Length") or 0)
        time.sleep(DELAY_S)

    def _receive(self, http_response: Any, event_name: str, **_: Any) -> None:
        if event_name.endswith(".GetObject"):
            with self._counting:
                self.received_bytes += int(http_response.headers.get("Content-Length") or 0)


def one_after_another(address: S3Address, folder: Path, network: Network) -> Callable[[], object]:
    client = boto3.client("s3", endpoint_url=address.endpoint)
    network.join(client)

    def task() -> None:
        for path in sorted(folder.iterdir()):
            client.put_object(
                Bucket=address.bucket, Key=f"{address.prefix}{path.name}", Body=path.read_bytes()
            )

    return task


def transfer_manager(address: S3Address, folder: Path, network: Network) -> Callable[[], object]:
    client = boto3.client("s3", endpoint_url=address.endpoint)
    network.join(client)

    def task() -> None:
        manager = boto3.s3.transfer.create_transfer_manager(
            client, boto3.s3.transfer.TransferConfig()
        )
        with manager:
            for path in sorted(folder.iterdir()):
                manager.upload(str(path), address.bucket, f"{address.prefix}{path.name}")

    return task


def ours(address: S3Address, folder: Path, network: Network) -> Callable[[], object]:
    store: Any = open_store(address.uri)
    network.join(store.bucket.client)
    return lambda: store.place("model", scan_tree(folder, inside=folder)).digests()


def server_side_copy(address: S3Address, folder: Path, network: Network) -> Callable[[], object]:
    """Of what lies in the bucket `artifacts`: the names and sizes of the folder's files."""
    store: Any = open_store(address.uri)
    network.join(store.bucket.client)

    def refuse() -> None:
        raise AssertionError("it came through this machine")

    files = [
        EntryFile(
            PurePosixPath(path.name),
            path,
            path.stat().st_size,
            RemoteFile(f"s3://artifacts/{folder.name}/{path.name}", address.endpoint, refuse),
        )
        for path in sorted(folder.iterdir())
    ]
    return lambda: store.place("model", Tree(tuple(files))).digests()


def read_all_records(address: S3Address, _folder: Path, network: Network) -> Callable[[], object]:
    """What `list` reads of a repository."""
    from mlflow_triton_plugin.describe import list_deployments  # noqa: PLC0415 - a second's import

    store: Any = open_store(address.uri)
    network.join(store.bucket.client)

    class NoServers:
        def states(self) -> dict[str, list[Any]]:
            return {}

        def __len__(self) -> int:
            return 1

    def task() -> None:
        servers: Any = NoServers()
        found = list_deployments(store, servers)
        assert len(found) > 1

    return task


def same_requests(address: S3Address, _folder: Path, network: Network) -> Callable[[], object]:
    """What a listing with the record cache asks for, by boto3 alone."""
    client = boto3.client("s3", endpoint_url=address.endpoint)
    network.join(client)

    def task() -> None:
        client.get_object(Bucket=address.bucket, Key=RECORDS_FILENAME)["Body"].read()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=address.bucket):
            assert page["Contents"]

    return task


TASKS = {
    each.__name__: each
    for each in (
        *(one_after_another, transfer_manager, ours),
        *(server_side_copy, read_all_records, same_requests),
    )
}


def peak_bytes() -> int:
    """The most memory that this process had resident."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def main() -> None:
    name, address, folder = sys.argv[1:]
    network = Network()
    task = TASKS[name](S3Address.parse(address), Path(folder), network)
    # not ru_maxrss: that of a child begins with its parent's
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before_bytes = peak_bytes()
    begin = time.perf_counter()
    task()
    said = {
        "seconds": time.perf_counter() - begin,
        "memory_bytes": peak_bytes() - before_bytes,
        "requests": network.requests,
        "sent_bytes": network.sent_bytes,
        "received_bytes": network.received_bytes,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
