"""Uploads, copies inside S3 and `list`, on a loopback S3 whose every request takes 20 ms longer."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import heading
from rclone import RcloneServer

from triton_repo.store._record_cache import note_records
from triton_repo.testing.s3 import S3Server

if TYPE_CHECKING:
    from mlflow_triton_plugin.local import LocalTriton

TASK = Path(__file__).with_name("s3_task.py")
MB = 1_000_000


def run(_triton: LocalTriton, folder: Path, *, quick: bool) -> None:
    """Print the tables."""
    rounds = 1 if quick else 3
    with RcloneServer(folder / "rclone") as server:
        os.environ.update(server.environment)
        uploads(server, folder, "200 files of 1 MB", count=200, size_bytes=MB, rounds=rounds)
        large = 100 * MB if quick else 2000 * MB
        what = f"one file of {large // MB} MB"
        uploads(server, folder, what, count=1, size_bytes=large, rounds=rounds)
    with S3Server() as server:
        os.environ.update(server.environment)
        copies(server, folder, rounds)
    with S3Server() as server:
        listing(server, 100 if quick else 1000, rounds)


def uploads(
    server: RcloneServer, folder: Path, what: str, *, count: int, size_bytes: int, rounds: int
) -> None:
    heading(f"upload of {what}, 20 ms a request (median of {rounds})")
    source = make_files(folder / what.replace(" ", "-"), count, size_bytes)
    taken: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        for task in ("one_after_another", "transfer_manager", "ours"):
            bucket = server.make_bucket(f"upload-{count}-{number}-{task.replace('_', '-')}")
            taken.setdefault(task, []).append(measure(task, bucket, source))
            empty(server, bucket)
    table(taken)
    ours_s, limit_s, slow_s = (
        statistics.median(each["seconds"] for each in taken[task])
        for task in ("ours", "transfer_manager", "one_after_another")
    )
    print(
        f"ours is {slow_s / ours_s:.1f}x as fast as one after another, and takes "
        f"{ours_s / limit_s:.2f}x the time of the transfer manager"
    )


def copies(server: S3Server, folder: Path, rounds: int) -> None:
    heading(f"artifacts that lie in S3, 20 ms a request (median of {rounds})")
    server.make_bucket("artifacts")
    client = server.client()
    for size_bytes in (10 * MB, 200 * MB):
        source = make_files(folder / f"copy-{size_bytes}", 1, size_bytes)
        for path in source.iterdir():
            client.upload_file(str(path), "artifacts", f"{source.name}/{path.name}")
        taken = [
            measure("server_side_copy", server.make_bucket(f"copies-{size_bytes}-{number}"), source)
            for number in range(rounds)
        ]
        table({f"server-side copy, {size_bytes // MB} MB": taken})


def listing(server: S3Server, deployments: int, rounds: int) -> None:
    heading(f"list, {deployments} deployments, 20 ms a request (median of {rounds})")
    address = server.make_bucket("listed")
    client: Any = server.client()
    records: dict[str, tuple[str, bytes] | None] = {}
    for number in range(deployments):
        name = f"model-{number:04}"
        for path in ("config.pbtxt", "1/model.py", "1/weights.bin"):
            client.put_object(Bucket="listed", Key=f"{name}/{path}", Body=b"x")
        record = json.dumps(record_of(name, address)).encode()
        key = f"{name}/mlflow-meta.json"
        records[key] = client.put_object(Bucket="listed", Key=key, Body=record)["ETag"], record
    cold = [measure("read_all_records", address, Path()) for _ in range(rounds)]
    from triton_repo.store import open_store  # noqa: PLC0415 - after the environment is set

    store: Any = open_store(address)
    note_records(store.bucket, records)
    warm = [measure("read_all_records", address, Path()) for _ in range(rounds)]
    limit = [measure("same_requests", address, Path()) for _ in range(rounds)]
    table({"with the record cache": warm, "its requests, raw boto3": limit, "without": cold})


def record_of(name: str, address: str) -> dict[str, Any]:
    digest = {"size_bytes": 1, "sha256": "0" * 64}
    version = {
        "source": {"uri": f"models:/{name}/1", "concrete_uri": f"models:/{name}/1"},
        "files": {"model.py": digest, "weights.bin": digest},
        "placed_at": "2026-01-01T00:00:00+00:00",
        "placed_by": "bench",
    }
    return {
        "name": name,
        "triton_model_path": f"{address}/{name}",
        "mlflow_model_uri": f"models:/{name}/1",
        "flavor": "triton",
        "schema_version": 1,
        "versions": {"1": version},
    }


def make_files(folder: Path, count: int, size_bytes: int) -> Path:
    folder.mkdir(parents=True)
    piece = os.urandom(MB)
    for number in range(count):
        with (folder / f"weights-{number:03}").open("wb") as file:
            for _ in range(size_bytes // MB):
                file.write(piece)
    return folder


def empty(server: RcloneServer, address: str) -> None:
    """Free the disk."""
    client = server.client()
    bucket = address.rpartition("/")[2]
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def measure(task: str, address: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(TASK), task, address, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def table(taken: dict[str, list[dict[str, Any]]]) -> None:
    for label, rounds in taken.items():
        seconds = statistics.median(each["seconds"] for each in rounds)
        memory = statistics.median(each["memory_bytes"] for each in rounds) / MB
        last = rounds[-1]
        asked = ", ".join(f"{count} {name}" for name, count in last["requests"].items())
        print(
            f"{label.replace('_', ' '):<26} {seconds:7.2f} s   memory +{memory:.0f} MB   sent "
            f"{last['sent_bytes'] / MB:.1f} MB, received {last['received_bytes'] / MB:.1f} MB   "
            f"{asked}",
            flush=True,
        )
