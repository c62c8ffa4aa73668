"""Heads of model files: read whatever comes first in them, refused in bounded time and memory."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.errors import ArtifactError
from triton_repo.flavors.torch_script import is_in_training
from triton_repo.flavors.xgboost_file import Boosting, read_boosting

from .model_files import torch_archive, ubjson, xgboost_document, xgboost_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.ubj"


@pytest.mark.parametrize("suffix", ["ubj", "json"])
@pytest.mark.parametrize(
    ("boosting", "expected"),
    [
        ({"rounds": 4}, Boosting(has_trees=True, rounds=4)),
        ({"rounds": 4, "trees": 6, "best": 1}, Boosting(has_trees=True, rounds=4, best=2)),
        ({"booster": "dart", "best": 2}, Boosting(has_trees=True, rounds=3, best=3)),
        ({"booster": "gblinear"}, Boosting(has_trees=False)),
    ],
)
def test_boosting_is_read(
    tmp_path: Path, suffix: str, boosting: dict[str, Any], expected: Boosting
) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(xgboost_file(xgboost_document(**boosting), suffix))
    assert read_boosting(path) == expected


@pytest.mark.parametrize("suffix", ["ubj", "json"])
def test_files_of_older_releases_count_their_trees(tmp_path: Path, suffix: str) -> None:
    document = xgboost_document(rounds=5, trees=6, best=1)
    model = document["learner"]["gradient_booster"]["model"]
    del model["iteration_indptr"]
    model["gbtree_model_param"]["num_parallel_tree"] = "2"
    model["tree_info"] = [0, 0, 1, 1, 2, 2] * 5
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(xgboost_file(document, suffix))
    assert read_boosting(path) == Boosting(has_trees=True, rounds=5, best=2)


def test_trees_are_not_read(path: Path) -> None:
    data = ubjson(xgboost_document())
    path.write_bytes(data[: data.index(b"trees[") + 6] + b"\xff damaged")
    os.truncate(path, 10**9)
    assert read_boosting(path).rounds == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{L",
        b"binf\x00\x00",
        b"{" * 5000,
        b"{" + b"U\x01a[" * 5000,
        ubjson({"learner": {}}),
        ubjson({"learner": [1]}),
        ubjson(xgboost_document() | {"learner": {"gradient_booster": {"model": "text"}}}),
        b"{L" + b"\x7f" + b"\xff" * 7,  # a name of 2**63 bytes
        b"{U\x01a[$d#L" + b"\x7f" + b"\xff" * 7,  # as many numbers
        b"{U\x01a[#L" + b"\x7f" + b"\xff" * 7 + b"Z" * 100,
        b"{U\x01a[$Z#L" + b"\x7f" + b"\xff" * 7,
        b"{L" + b"\xff" * 8,
    ],
)
def test_what_xgboost_does_not_write_is_told(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="is not what XGBoost writes") as raised:
        read_boosting(path)
    assert "--flavor python_function" in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[[" * 5000, '{"a": "', '{"trees": []}', json.dumps({"learner": "text"}), "}"]
)
def test_json_that_xgboost_does_not_write_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match="is not what XGBoost writes"):
        read_boosting(path)


def test_only_the_head_of_a_large_file_is_read(path: Path) -> None:
    path.write_bytes(b"{U\x01a[" + b"U\x00" * 100)
    os.truncate(path, 10**10)
    tracemalloc.start()
    with pytest.raises(ArtifactError):
        read_boosting(path)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


def test_an_archive_s_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "model.pth"
    path.write_bytes(torch_archive(pickle.dumps({"bomb": Bomb(), "training": True}, 2)))
    assert is_in_training(path)
    assert not (tmp_path / "made").exists()


def test_a_pickle_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("m/data.pkl", "w", force_zip64=True) as file,
    ):
        for _ in range(100):
            file.write(b"N" * 10**6)
    with pytest.raises(ArtifactError, match="is too large"):
        is_in_training(path)


def test_a_pickle_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(torch_archive(b"\x80\x02" + b"N" * 5_000_000))
    with pytest.raises(ArtifactError, match="is too long"):
        is_in_training(path)
