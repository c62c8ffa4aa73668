"""mlflow-meta.json: ours, and readable to and from NVIDIA's plugin."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_repo.members import MemberVersions
from triton_repo.record import (
    SCHEMA_VERSION,
    DeploymentRecord,
    FileDigest,
    RecordError,
    Source,
    VersionRecord,
)

texts = st.text(max_size=20)
#: A config.pbtxt that is no UTF-8 is text with lone surrogates.
config_texts = st.binary(max_size=30).map(lambda data: data.decode("utf-8", "surrogateescape"))
digests = st.dictionaries(
    st.text(min_size=1, max_size=10),
    st.builds(
        FileDigest, st.integers(0, 2**63), st.text("0123456789abcdef", min_size=64, max_size=64)
    ),
    max_size=3,
)
#: Models that a version needs, by the names that they came with.
models = st.dictionaries(
    texts,
    st.builds(
        MemberVersions, texts, st.lists(st.integers(1, 2**62), min_size=1, max_size=3).map(tuple)
    ),
    max_size=2,
)
sources = st.builds(Source, texts, texts, texts, st.integers(0, 2**31), texts, texts, texts)
records = st.builds(
    DeploymentRecord,
    name=texts,
    flavor=texts,
    model_uri=texts,
    triton_model_path=texts,
    serving=st.lists(st.integers(1, 2**62), max_size=3, unique=True).map(tuple),
    versions=st.dictionaries(
        st.integers(1, 2**62),
        st.builds(
            VersionRecord, sources, digests, digests, config_texts, texts, texts, models=models
        ),
        max_size=3,
    ),
    part_of=texts,
)


@given(records)
def test_a_record_is_read_as_it_was_written(record: DeploymentRecord) -> None:
    """Whatever is in its names and texts."""
    assert DeploymentRecord.parse(record.to_bytes()) == record


@given(records)
def test_nvidias_plugin_reads_every_record(record: DeploymentRecord) -> None:
    """With `ast.literal_eval`, which knows no null, true or false."""
    document = ast.literal_eval(record.to_bytes().decode("utf-8"))
    expected = {
        "name": record.name,
        "flavor": record.flavor,
        "mlflow_model_uri": record.model_uri,
        "triton_model_path": record.triton_model_path,
    }
    # JSON writes 🙂 as two surrogates, and Python leaves them two
    joined = {
        key: document[key].encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        for key in expected
    }
    assert joined == expected


@given(records)
def test_a_record_is_plain_ascii_json_of_this_schema(record: DeploymentRecord) -> None:
    document = json.loads(record.to_bytes().decode("ascii"))
    has_members = record.part_of or any(seen.models for seen in record.versions.values())
    assert document["schema_version"] == (SCHEMA_VERSION if has_members else 1)
    assert record.to_bytes().endswith(b"}\n")


def test_a_record_of_nvidias_plugin_is_read() -> None:
    """It names no versions: what is on disk says."""
    data = json.dumps(
        {
            "name": "resnet",
            "triton_model_path": "/models/resnet",
            "mlflow_model_uri": "models:/resnet/1",
            "flavor": "onnx",
        }
    )
    assert DeploymentRecord.parse(data.encode()) == DeploymentRecord(
        name="resnet",
        flavor="onnx",
        model_uri="models:/resnet/1",
        triton_model_path="/models/resnet",
    )


@pytest.mark.parametrize("key", ["triton_model_path", "mlflow_model_uri", "flavor"])
@pytest.mark.parametrize("value", [None, 7, ["x"]])
def test_a_null_where_text_belongs_is_as_good_as_nothing(key: str, value: Any) -> None:
    """A JSON null crashed the plugin that wrote it."""
    document = {"name": "m", "triton_model_path": "p", "mlflow_model_uri": "u", "flavor": "f"}
    record = DeploymentRecord.parse(json.dumps(document | {key: value}).encode())
    assert record.name == "m"
    assert "" in (record.triton_model_path, record.model_uri, record.flavor)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"name"',
        b"{}",
        b'{"name": null}',
        b'{"name": 7}',
        b"{'name': 'm'}",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_is_no_record_is_refused_by_its_place(data: bytes) -> None:
    with pytest.raises(RecordError, match=r"^/models/m/mlflow-meta\.json is not"):
        DeploymentRecord.parse(data, where="/models/m/mlflow-meta.json")


@pytest.mark.parametrize(
    "damage",
    [
        {"serving": None},
        {"serving": ["x"]},
        {"serving": 7},
        {"versions": None},
        {"versions": []},
        {"versions": {"x": {}}},
        {"versions": {"1": {}}},
        {"versions": {"1": None}},
        {"versions": {"1": {"source": {"surprise": 1}, "files": {}, "shared": {}}}},
        {"versions": {"1": {"source": {}, "files": [], "shared": {}}}},
        {"versions": {"1": {"source": {}, "files": {"a": {}}, "shared": {}}}},
        {"versions": {"1": {"source": {}, "files": {"a": {"size_bytes": "x", "sha256": ""}}}}},
        {"versions": {"1": {"source": {}, "files": {}, "shared": {}, "models": {"a": {}}}}},
        {"versions": {"1": {"source": {}, "files": {}, "shared": {}, "models": ["a"]}}},
    ],
)
def test_a_damaged_record_is_a_record_error(damage: dict[str, Any]) -> None:
    document = {"name": "m", "schema_version": 1} | damage
    with pytest.raises(RecordError, match="damaged"):
        DeploymentRecord.parse(json.dumps(document).encode())


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99, "1", None, 1.5])
def test_a_later_releases_record_is_not_guessed_at(version: Any) -> None:
    document = {"name": "m", "schema_version": version}
    with pytest.raises(RecordError, match="upgrade triton-repo"):
        DeploymentRecord.parse(json.dumps(document).encode())


def test_keys_of_a_later_release_of_this_schema_are_left_aside() -> None:
    document = {"name": "m", "schema_version": SCHEMA_VERSION, "note": {"new": None}}
    assert DeploymentRecord.parse(json.dumps(document).encode()).name == "m"


@given(st.binary(max_size=100))
def test_any_bytes_are_a_record_or_a_record_error(data: bytes) -> None:
    with pytest.raises(RecordError):
        DeploymentRecord.parse(data)


def test_what_serves_is_told_in_the_records_order_and_only_where_it_is_known() -> None:
    one, two = (VersionRecord(Source(uri, "c"), {}) for uri in "ab")
    record = DeploymentRecord("m", "f", "u", "p", (2, 9, 1), {1: one, 2: two})
    assert record.served == (two, one)
    assert DeploymentRecord("m", "f", "u", "p").served == ()


def test_what_is_needed_is_told_by_directory_for_some_versions_or_for_all() -> None:
    def version(**models: tuple[str, tuple[int, ...]]) -> VersionRecord:
        places = {member: MemberVersions(*place) for member, place in models.items()}
        return VersionRecord(Source(), {}, models=places)

    record = DeploymentRecord(
        *("m", "f", "u", "p"),
        serving=(2,),
        versions={
            1: version(tokens=("tokens", (1,)), old=("m.old", (1,))),
            2: version(tokens=("tokens", (2,)), sets=("sets", (1, 3))),
            3: version(),
        },
    )
    assert record.needs() == {"tokens": {1, 2}, "m.old": {1}, "sets": {1, 3}}
    assert record.needs(record.serving) == {"tokens": {2}, "sets": {1, 3}}
    assert record.needs([3, 9]) == {}


def test_a_record_that_names_no_members_is_read_by_releases_that_know_none() -> None:
    """And one that does is refused by them: they would lose it."""
    plain = DeploymentRecord("m", "f", "u", "p")
    assert json.loads(plain.to_bytes())["schema_version"] == 1
    member = DeploymentRecord("m", "f", "u", "p", part_of="pipeline")
    assert json.loads(member.to_bytes())["schema_version"] == 2


def test_only_the_same_id_at_the_same_address_is_the_same_model() -> None:
    """What is not known is never the same."""
    source = Source("u", "c", "resnet", 7, "", "run", "m-1")
    assert source.same_model(Source("other", "c2", "resnet", 7, "champion", "", "m-1"))
    assert not source.same_model(Source("u", "c", "resnet", 8, "", "run", "m-1"))
    assert not source.same_model(Source("u", "c", "resnet", 7, "", "run", "m-2"))
    assert not source.same_model(Source("u", "c", "other", 7, "", "run", "m-1"))
    assert not Source("u", "c").same_model(Source("u", "c"))
