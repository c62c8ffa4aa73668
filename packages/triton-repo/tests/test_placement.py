"""`ModelPlace` and the plans it carries out: nothing is lost, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.change import plan_change, plan_return
from triton_repo.config import ModelConfig
from triton_repo.entry import RepositoryEntry, Tree
from triton_repo.errors import ConfigError, LockedError, ObjectNotFoundError, StoreError
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState, StagedChange
from triton_repo.record import DeploymentRecord, NewerRecordError, Source
from triton_repo.scan import scan_tree
from triton_repo.store import LocalStore
from triton_repo.testing import FaultyStore, make_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from triton_repo.change import Change
    from triton_repo.stock import Stock
    from triton_repo.store import Store

    Step = Callable[[ModelPlace], None]
    #: Every path of a model's directory with its content, None for a directory.
    Snapshot = dict[str, bytes | None]

NAME = check_name("resnet")


@dataclass(frozen=True)
class Model:
    """What a user deploys."""

    versions: Mapping[int, Mapping[str, bytes]]
    config: str | None = None
    shared: Mapping[str, bytes] = field(default_factory=dict)


def python_model(text: str, **shared: bytes) -> Model:
    files = {"model.py": text.encode(), "data/weights": text.encode() * 100}
    config = f'# tuned by hand for {text}\nname: "resnet"\nbackend: "python"\n'
    return Model(
        {1: files}, config, {path.replace("__", "/"): data for path, data in shared.items()}
    )


def packed_model(text: str, environment: str, *, brings: bool = True) -> Model:
    """A model whose config.pbtxt names an environment, which need not come with it."""
    value = f"$$TRITON_MODEL_DIRECTORY/env-{environment}"
    parameter = f'key: "EXECUTION_ENV_PATH" value: {{ string_value: "{value}" }}'
    return Model(
        {1: {"model.py": text.encode()}},
        f'name: "resnet"\nbackend: "python"\nparameters {{ {parameter} }}\n',
        {f"env-{environment}": environment.encode()} if brings else {},
    )


MODELS = {
    "one": python_model("one"),
    "two": python_model("two"),
    "three": python_model("three"),
    "bare one": Model({1: {"model.onnx": b"one"}}),
    "bare two": Model({1: {"model.onnx": b"two"}}),
    "cats": python_model("cats", labels=b"cat", vocab__old=b"miaow", same=b"same"),
    "dogs": python_model("dogs", labels=b"dog", words__new=b"woof", same=b"same"),
    **{
        f"cats {number}": Model(
            {1: {"model.py": str(number).encode()}},
            'name: "resnet"\nbackend: "python"\n',
            {"labels": b"cat"},
        )
        for number in (2, 3, 4)
    },
    "packed a": packed_model("1", "a"),
    "packed b": packed_model("2", "b"),
    "without a": packed_model("3", "a", brings=False),
    "set 1-2": Model({1: {"model.py": b"1"}, 2: {"model.py": b"2"}}, 'backend: "python"\n'),
    "set 2-3": Model({2: {"model.py": b"new 2"}, 3: {"model.py": b"3"}}, 'backend: "python"\n'),
    "ensemble": Model({1: {}}, 'platform: "ensemble" # first\n'),
    "ensemble again": Model({1: {}}, 'platform: "ensemble" # second\n'),
}


@dataclass
class Bench:
    """A repository, and the models that can be deployed to it."""

    directory: Path

    def __post_init__(self) -> None:
        self.root = self.directory / "repository"
        self.root.mkdir()
        self.entries = {label: self._entry(label, model) for label, model in MODELS.items()}

    def _entry(self, label: str, model: Model) -> RepositoryEntry:
        sources = self.directory / "sources" / label
        return RepositoryEntry(
            name=NAME,
            flavor="triton",
            versions={
                number: make_tree(sources / str(number), files)
                for number, files in model.versions.items()
            },
            shared=make_tree(sources / "shared", model.shared),
            config=ModelConfig.parse(model.config) if model.config is not None else None,
        )

    @property
    def place(self) -> ModelPlace:
        """A new one, as every command makes it."""
        return ModelPlace(LocalStore(self.root), NAME)

    @property
    def model(self) -> Path:
        return self.root / NAME

    def snapshot(self) -> Snapshot | None:
        if not self.model.exists():
            return None
        return {
            str(path.relative_to(self.model)): None if path.is_dir() else path.read_bytes()
            for path in self.model.rglob("*")
        }

    def keep(self) -> None:
        """Remember what stands there, for `restore`."""
        shutil.rmtree(self.directory / "kept", ignore_errors=True)
        shutil.copytree(self.root, self.directory / "kept")

    def restore(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.directory / "kept", self.root)

    # -- steps: what a command does to a place --------------------------------------------

    def deploy(self, label: str, wanted: int = 0, **options: Any) -> Step:
        def step(place: ModelPlace) -> None:
            change = self.plan(place, label, wanted, **options)
            carry_out(place, change)

        return step

    def plan(self, place: ModelPlace, label: str, wanted: int = 0, **options: Any) -> Change:
        source = Source(f"models:/resnet/{label}", f"models:/resnet/{label}")
        return plan_change(
            self.entries[label], source, base=base_of(place), wanted_version=wanted, **options
        )

    def back_to(self, version: int) -> Step:
        def step(place: ModelPlace) -> None:
            base = base_of(place)
            assert base is not None
            change = plan_return(base, version, source=base.versions[version].source)
            carry_out(place, change)

        return step

    def delete(self, place: ModelPlace) -> None:
        if place.state() is not PlaceState.ABSENT:
            place.begin_delete("me")
            place.remove()

    def foreign(self, _: ModelPlace) -> None:
        """Somebody made a model by hand: two versions, no pin, a label file."""
        for path, content in FOREIGN.items():
            (self.model / path).parent.mkdir(parents=True, exist_ok=True)
            (self.model / path).write_bytes(content)


FOREIGN = {
    "config.pbtxt": b'# by hand \xff\nbackend: "python"\n',
    "labels.txt": b"by hand",
    "1/model.py": b"foreign 1",
    "2/model.py": b"foreign 2",
}


def install(place: ModelPlace, change: Change, **options: Any) -> StagedChange:
    """As far as a change goes before the server is asked to load it."""
    staged = place.stage(change, **{"operation": "update", "holder": "me", **options})
    place.install(staged)
    return staged


def carry_out(place: ModelPlace, change: Change) -> None:
    place.commit(install(place, change))


def base_of(place: ModelPlace) -> Stock | None:
    """What a command starts from."""
    return None if place.state() is PlaceState.ABSENT else place.take_stock()


@pytest.fixture(autouse=True)
def _same_time_and_no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_repo.placement._now", lambda: "2026-01-01T00:00:00+00:00")
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """In memory where there is such a file system: thousands of small directories come and go."""
    memory = "/dev/shm"  # noqa: S108 - a directory of our own in it
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Bench(Path(directory))


def config_of(bench: Bench) -> ModelConfig:
    return ModelConfig.parse((bench.model / "config.pbtxt").read_bytes())


def record_of(bench: Bench) -> DeploymentRecord:
    record = bench.place.record()
    assert record is not None
    return record


def files_of(bench: Bench) -> list[str]:
    return sorted(bench.place.store.list_files(NAME))


# -- create -----------------------------------------------------------------------------------


def test_a_created_model_stands_as_its_files_say(bench: Bench) -> None:
    """Files, config.pbtxt to the byte, and a record that knows every digest."""
    bench.deploy("cats", wanted=7)(bench.place)
    cats = MODELS["cats"]
    assert cats.config is not None
    assert bench.place.state() is PlaceState.DEPLOYED
    assert files_of(bench) == [
        "7/data/weights",
        "7/model.py",
        "config.pbtxt",
        "labels",
        "mlflow-meta.json",
        "same",
        "vocab/old",
    ]
    assert (bench.model / "config.pbtxt").read_bytes() == cats.config.encode()
    record = record_of(bench)
    place = bench.place
    assert record.serving == (7,)
    assert record.triton_model_path == place.uri
    assert record.versions[7].files == {
        path: place.store.digest(f"resnet/7/{path}") for path in cats.versions[1]
    }
    assert record.versions[7].shared == place.digests(cats.shared)
    assert record.versions[7].config == cats.config
    assert record.versions[7].placed_by.startswith("triton-repo ")


def test_a_created_model_is_not_pinned_while_it_is_alone(bench: Bench) -> None:
    """But the load that validates it is: a server may know an older override."""
    change = bench.plan(bench.place, "one", wanted=3)
    assert change.config is not None
    assert change.config.pinned_versions == ()
    assert change.load_config is not None
    assert change.load_config.pinned_versions == (3,)


def test_a_model_without_a_config_is_loaded_plainly_and_gets_none(bench: Bench) -> None:
    assert bench.plan(bench.place, "bare one").load_config is None
    bench.deploy("bare one")(bench.place)
    assert files_of(bench) == ["1/model.onnx", "mlflow-meta.json"]


def test_staging_leaves_config_and_record_alone(bench: Bench) -> None:
    """A create that is being validated has neither; an update has the old ones."""
    change = bench.plan(bench.place, "one")
    install(bench.place, change, operation="create", holder="alice")
    assert bench.place.state() is PlaceState.INTERRUPTED
    assert files_of(bench) == ["1/data/weights", "1/model.py", "_mlflow_triton/journal.json"]
    journal = bench.place.journal()
    assert journal is not None
    assert (journal.operation, journal.holder, journal.created) == ("create", "alice", True)


def test_a_create_that_is_not_committed_is_undone_to_nothing(bench: Bench) -> None:
    install(bench.place, bench.plan(bench.place, "cats"), operation="create", holder="me")
    assert bench.place.recover() == "undone"
    assert list(bench.root.iterdir()) == []


def test_neighbours_sharing_a_prefix_are_left_alone(bench: Bench) -> None:
    """`resnet50` and `resnet.bak` are not `resnet`."""
    for name in ("resnet50", "resnet.bak", "resnet-1"):
        (bench.root / name / "1").mkdir(parents=True)
    bench.deploy("one")(bench.place)
    bench.delete(bench.place)
    assert sorted(path.name for path in bench.root.iterdir()) == [
        "resnet-1",
        "resnet.bak",
        "resnet50",
    ]


# -- update -----------------------------------------------------------------------------------


def test_an_update_adds_its_version_beside_the_old_one_and_pins_it(bench: Bench) -> None:
    bench.deploy("one", wanted=1)(bench.place)
    bench.deploy("two", wanted=2)(bench.place)
    assert bench.place.versions() == (1, 2)
    assert config_of(bench).pinned_versions == (2,)
    assert config_of(bench).text.startswith("# tuned by hand for two\n")
    assert record_of(bench).serving == (2,)
    assert set(record_of(bench).versions) == {1, 2}


def test_the_old_version_is_pinned_before_the_new_directory_appears(bench: Bench) -> None:
    """A server that starts while the new version is validated serves the old one."""
    bench.deploy("one", wanted=1)(bench.place)
    install(bench.place, bench.plan(bench.place, "two", 2))
    assert bench.place.versions() == (1, 2)
    assert config_of(bench).pinned_versions == (1,)
    assert config_of(bench).text.startswith("# tuned by hand for one\n")


def test_an_update_that_is_not_committed_is_undone_to_the_byte(bench: Bench) -> None:
    """A load that failed costs nothing, label files and hand-tuned config included."""
    bench.deploy("cats", wanted=1)(bench.place)
    before = bench.snapshot()
    install(bench.place, bench.plan(bench.place, "dogs", 2))
    assert bench.snapshot() != before
    assert bench.place.recover() == "undone"
    assert bench.snapshot() == before
    assert bench.place.recover() is None


def test_a_number_that_another_model_has_is_not_overwritten(bench: Bench) -> None:
    """Version directories never change once they are visible: the next free number is taken."""
    bench.deploy("one", wanted=5)(bench.place)
    bench.deploy("two", wanted=5)(bench.place)
    assert bench.place.versions() == (5, 6)
    assert (bench.model / "5" / "model.py").read_bytes() == b"one"
    assert record_of(bench).serving == (6,)


def test_the_same_content_is_not_copied_again(bench: Bench) -> None:
    """A model without a registry version that is deployed twice stays one directory."""
    bench.deploy("one")(bench.place)
    change = bench.plan(bench.place, "one")
    assert (change.reuse, dict(change.place), change.size_bytes()) == (1, {}, 0)
    bench.deploy("one")(bench.place)
    assert bench.place.versions() == (1,)


def test_the_same_files_with_another_config_change_only_the_config(bench: Bench) -> None:
    """A config that was tuned since is taken over, and the record knows it."""
    bench.deploy("ensemble")(bench.place)
    bench.deploy("ensemble again")(bench.place)
    assert bench.place.versions() == (1,)
    assert config_of(bench).text == 'platform: "ensemble" # second\n'
    assert record_of(bench).versions[1].config == 'platform: "ensemble" # second\n'


@pytest.mark.parametrize(("keep_versions", "left"), [(1, (4,)), (2, (3, 4)), (9, (1, 2, 3, 4))])
def test_old_versions_are_pruned_down_to_what_may_stay(
    bench: Bench, keep_versions: int, left: tuple[int, ...]
) -> None:
    for number, label in enumerate(("one", "two", "three", "bare one"), start=1):
        bench.deploy(label, number, keep_versions=9 if number < 4 else keep_versions)(bench.place)
    assert bench.place.versions() == left
    assert tuple(record_of(bench).versions) == left
    assert config_of(bench).pinned_versions == (4,)


def test_what_serves_outlives_what_was_placed_later(bench: Bench) -> None:
    """After going back, the next update keeps the version that served, not the youngest."""
    for number, label in enumerate(("one", "two"), start=1):
        bench.deploy(label, number)(bench.place)
    bench.back_to(1)(bench.place)
    bench.deploy("three", 3, keep_versions=2)(bench.place)
    assert bench.place.versions() == (1, 3)


def test_keeping_no_version_is_refused_before_anything_is_written(bench: Bench) -> None:
    bench.deploy("one")(bench.place)
    before = bench.snapshot()
    with pytest.raises(ConfigError, match="keep_versions"):
        bench.deploy("two", keep_versions=0)(bench.place)
    assert bench.snapshot() == before


def test_damage_does_not_become_the_record(bench: Bench) -> None:
    """An update beside a damaged version still knows what that version was."""
    bench.deploy("one", 1)(bench.place)
    bench.deploy("two", 2)(bench.place)
    before = record_of(bench).versions[1].files
    (bench.model / "1" / "model.py").write_bytes(b"damaged")
    bench.deploy("three", 3, keep_versions=9)(bench.place)
    assert record_of(bench).versions[1].files == before
    assert not bench.place.take_stock().can_return(1)


def test_bytecode_beside_a_models_sources_is_no_change(bench: Bench) -> None:
    """Python backends write it as soon as they import a model."""
    bench.deploy("one", 1)(bench.place)
    bench.deploy("two", 2)(bench.place)
    for directory in ("1", "."):
        (bench.model / directory / "__pycache__").mkdir()
        (bench.model / directory / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    stock = bench.place.take_stock()
    assert stock.can_return(1)
    assert stock.versions[1].files == record_of(bench).versions[1].files
    assert not stock.now.shared


# -- going back -------------------------------------------------------------------------------


def test_going_back_moves_no_bytes_and_restores_the_config(bench: Bench) -> None:
    bench.deploy("one", wanted=1)(bench.place)
    bench.deploy("two", wanted=2)(bench.place)
    store = FaultyStore(LocalStore(bench.root))
    bench.back_to(1)(ModelPlace(store, NAME))
    assert not [call for call in store.calls if call.startswith(("place", "copy_file"))]
    assert config_of(bench).pinned_versions == (1,)
    assert config_of(bench).text.startswith(str(MODELS["one"].config).strip())
    assert record_of(bench).serving == (1,)
    assert bench.place.versions() == (1, 2)


def test_shared_files_change_with_the_version_and_come_back(bench: Bench) -> None:
    """There and back as often as one likes."""
    bench.deploy("cats", wanted=1)(bench.place)
    bench.deploy("dogs", wanted=2)(bench.place)
    for _ in range(2):
        assert (bench.model / "labels").read_bytes() == b"dog"
        assert (bench.model / "words" / "new").read_bytes() == b"woof"
        assert not (bench.model / "vocab").exists()
        bench.back_to(1)(bench.place)
        assert (bench.model / "labels").read_bytes() == b"cat"
        assert (bench.model / "vocab" / "old").read_bytes() == b"miaow"
        assert (bench.model / "same").read_bytes() == b"same"
        assert not (bench.model / "words").exists()
        bench.back_to(2)(bench.place)


def test_only_what_a_version_needs_to_come_back_is_kept_aside(bench: Bench) -> None:
    """And nothing once that version is pruned."""
    bench.deploy("cats", wanted=1)(bench.place)
    bench.deploy("dogs", wanted=2)(bench.place)
    aside = bench.model / "_mlflow_triton" / "shared"
    assert sorted(path.read_bytes() for path in aside.iterdir()) == [b"cat", b"miaow"]
    bench.deploy("one", wanted=3)(bench.place)
    assert sorted(path.read_bytes() for path in aside.iterdir()) == [b"dog", b"same", b"woof"]
    bench.deploy("two", wanted=4)(bench.place)
    assert not (bench.model / "_mlflow_triton").exists()


def test_what_config_names_and_the_model_does_not_bring_stays(bench: Bench) -> None:
    """One file for as many versions as name it; it belongs to each, and goes with the last."""
    bench.deploy("packed a", wanted=1)(bench.place)
    placed = (bench.model / "env-a").stat().st_ino
    bench.deploy("without a", wanted=2)(bench.place)
    assert (bench.model / "env-a").stat().st_ino == placed
    assert [list(seen.shared) for seen in record_of(bench).versions.values()] == [["env-a"]] * 2
    bench.deploy("packed b", wanted=3)(bench.place)
    assert not (bench.model / "env-a").exists()
    bench.back_to(2)(bench.place)
    assert (bench.model / "env-a").read_bytes() == b"a"
    assert not (bench.model / "env-b").exists()
    bench.deploy("one", wanted=4, keep_versions=1)(bench.place)
    assert not list(bench.model.glob("**/env-*"))
    assert not (bench.model / "_mlflow_triton").exists()


def test_what_an_older_version_had_is_taken_back_for_a_new_one(bench: Bench) -> None:
    bench.deploy("packed a", wanted=1)(bench.place)
    bench.deploy("packed b", wanted=2)(bench.place)
    base = base_of(bench.place)
    assert base is not None
    assert [base.has_beside(f"env-{each}") for each in "abc"] == [True, True, False]
    change = bench.plan(bench.place, "without a", 3, keep_versions=3)
    assert list(change.shared_restored) == ["env-a"]
    carry_out(bench.place, change)
    assert (bench.model / "env-a").read_bytes() == b"a"
    assert list(record_of(bench).shared) == ["env-a"]


def test_what_was_edited_is_not_what_was_left(bench: Bench) -> None:
    """A file that was made for the model is replaced; what its author wrote stays as edited."""
    bench.deploy("packed a", wanted=1)(bench.place)
    (bench.model / "env-a").write_bytes(b"edited")
    base = base_of(bench.place)
    assert base is not None
    assert not base.has_beside("env-a")
    entry = bench.entries["packed a"]
    derived = [replace(file, is_derived=True) for file in entry.shared.files]
    made = replace(entry, shared=Tree(tuple(derived)))
    assert plan_change(entry, Source(), base=base).shared.names() == []
    change = plan_change(made, Source(), base=base)
    assert change.shared.names() == ["env-a"]
    carry_out(bench.place, change)
    assert (bench.model / "env-a").read_bytes() == b"a"


# -- what somebody did by hand ----------------------------------------------------------------


def test_hand_tuning_survives_as_many_updates_as_come(bench: Bench) -> None:
    """As long as the model's own file stays what it was; and it goes back with its version."""
    bench.deploy("cats 2", 2)(bench.place)
    tuned = b'name: "resnet"\nbackend: "python"\n# tuned\n'
    (bench.model / "config.pbtxt").write_bytes(tuned)
    (bench.model / "labels").write_bytes(b"tuned cat")
    for number in (3, 4):
        bench.deploy(f"cats {number}", number, keep_versions=9)(bench.place)
        assert (bench.model / "config.pbtxt").read_bytes().startswith(tuned)
        assert (bench.model / "labels").read_bytes() == b"tuned cat"
    bench.back_to(3)(bench.place)
    assert (bench.model / "config.pbtxt").read_bytes().startswith(tuned)
    bench.deploy("dogs", 9, keep_versions=9)(bench.place)
    assert (bench.model / "labels").read_bytes() == b"dog"
    bench.back_to(4)(bench.place)
    assert (bench.model / "labels").read_bytes() == b"tuned cat"
    assert (bench.model / "config.pbtxt").read_bytes().startswith(tuned)


def test_a_file_that_nobody_placed_stays_whatever_is_deployed(bench: Bench) -> None:
    """It belongs to no version, and may be edited at any time."""
    bench.deploy("cats", 1)(bench.place)
    (bench.model / "notes.txt").write_bytes(b"mine")
    (bench.model / "1" / "notes.txt").write_bytes(b"mine, too")
    for step in (
        bench.deploy("dogs", 2),
        bench.back_to(1),
        bench.deploy("one", 3, keep_versions=9),
        bench.deploy("cats", 1, keep_versions=9),
    ):
        step(bench.place)
        assert (bench.model / "notes.txt").read_bytes() == b"mine"
        assert (bench.model / "1" / "notes.txt").read_bytes() == b"mine, too"
    assert all("notes.txt" not in seen.shared for seen in record_of(bench).versions.values())


def test_what_somebody_put_where_a_change_was_going_to_be_installed_stays(bench: Bench) -> None:
    """It is named, and undoing the change leaves it alone."""
    bench.deploy("cats", 1)(bench.place)
    change = bench.plan(bench.place, "dogs", 2)
    staged = bench.place.stage(change, operation="update", holder="me", apart=True)
    (bench.model / "2").mkdir()
    (bench.model / "2" / "mine").write_bytes(b"mine")
    with pytest.raises(StoreError, match="2 is in the way"):
        bench.place.install(staged)
    assert bench.place.recover() == "undone"
    assert (bench.model / "2" / "mine").read_bytes() == b"mine"
    assert (bench.model / "labels").read_bytes() == b"cat"


def test_what_somebody_put_into_a_half_made_model_stays(bench: Bench) -> None:
    install(bench.place, bench.plan(bench.place, "cats"), operation="create", holder="me")
    (bench.model / "mine").write_bytes(b"mine")
    assert bench.place.recover() == "undone"
    assert files_of(bench) == ["mine"]
    assert bench.place.state() is PlaceState.FOREIGN


def test_a_version_that_nobody_of_us_placed_is_never_pruned(bench: Bench) -> None:
    """Nor once it has served."""
    bench.foreign(bench.place)
    bench.deploy("one", 3)(bench.place)
    bench.back_to(2)(bench.place)
    for number, label in enumerate(("two", "three"), start=4):
        bench.deploy(label, number, keep_versions=1)(bench.place)
    assert bench.place.versions() == (1, 2, 5)


def test_a_file_edited_while_the_model_was_fetched_is_not_set_aside_as_what_it_was(
    bench: Bench,
) -> None:
    """Its version cannot come back from it then; it is placed again instead."""
    bench.deploy("cats", 1)(bench.place)
    change = bench.plan(bench.place, "dogs", 2)
    (bench.model / "labels").write_bytes(b"edited meanwhile")
    carry_out(bench.place, change)
    stock = bench.place.take_stock()
    assert not stock.can_return(1)
    bench.deploy("cats", 1)(bench.place)
    assert (bench.model / "labels").read_bytes() == b"cat"


def test_what_was_set_aside_is_checked_before_it_comes_back(bench: Bench) -> None:
    bench.deploy("cats", 1)(bench.place)
    bench.deploy("dogs", 2)(bench.place)
    for path in (bench.model / "_mlflow_triton" / "shared").iterdir():
        path.write_bytes(b"xxx" if path.read_bytes() == b"cat" else path.read_bytes())
    before = bench.snapshot()
    with pytest.raises(StoreError, match="damaged"):
        bench.back_to(1)(bench.place)
    bench.place.recover()
    assert bench.snapshot() == before


# -- several versions of a model's own --------------------------------------------------------


def test_a_set_keeps_its_own_numbers_and_policy(bench: Bench) -> None:
    bench.deploy("set 1-2", wanted=9)(bench.place)
    assert bench.place.versions() == (1, 2)
    assert config_of(bench).pinned_versions == ()
    assert record_of(bench).serving == (2,)  # Triton's default policy


def test_a_set_is_replaced_as_a_set(bench: Bench) -> None:
    """{1, 2} by {2, 3}: nothing of the old set stays to be served."""
    bench.deploy("set 1-2")(bench.place)
    bench.deploy("set 2-3")(bench.place)
    assert bench.place.versions() == (2, 3)
    assert (bench.model / "2" / "model.py").read_bytes() == b"new 2"
    assert not (bench.model / "_mlflow_triton").exists()


def test_a_set_does_not_serve_a_higher_version_of_the_one_it_replaces(bench: Bench) -> None:
    """{2, 3} by {1, 2}: until 3 is removed the policy "latest" would take it up."""
    bench.deploy("set 2-3")(bench.place)
    change = bench.plan(bench.place, "set 1-2")
    assert change.load_config is not None
    assert change.load_config.pinned_versions == change.serving == (2,)
    carry_out(bench.place, change)
    assert (bench.place.versions(), record_of(bench).serving) == ((1, 2), (2,))
    assert config_of(bench).pinned_versions == (2,)


def test_a_set_that_is_not_committed_leaves_the_old_set(bench: Bench) -> None:
    bench.deploy("set 1-2")(bench.place)
    before = bench.snapshot()
    install(bench.place, bench.plan(bench.place, "set 2-3"))
    assert bench.place.versions() == (1, 2, 3)
    assert bench.place.recover() == "undone"
    assert bench.snapshot() == before


# -- directories that are not ours --------------------------------------------------------------


def test_a_directory_that_nobody_deployed_is_foreign(bench: Bench) -> None:
    assert bench.place.state() is PlaceState.ABSENT
    bench.foreign(bench.place)
    assert bench.place.state() is PlaceState.FOREIGN
    assert bench.place.recover() is None
    assert bench.snapshot() is not None


def test_an_adopted_directory_keeps_its_versions_and_its_files(bench: Bench) -> None:
    bench.foreign(bench.place)
    bench.deploy("two", keep_versions=9)(bench.place)
    assert bench.place.versions() == (1, 2, 3)
    assert config_of(bench).pinned_versions == (3,)
    assert (bench.model / "labels.txt").read_bytes() == b"by hand"


def test_an_adopted_version_can_be_gone_back_to(bench: Bench) -> None:
    """With its config.pbtxt to the byte, the one that was no UTF-8 included, but for the pin."""
    bench.foreign(bench.place)
    bench.deploy("two", keep_versions=9)(bench.place)
    bench.back_to(2)(bench.place)
    assert (bench.model / "config.pbtxt").read_bytes().startswith(FOREIGN["config.pbtxt"])
    assert config_of(bench).pinned_versions == (2,)


def test_a_replaced_directory_leaves_nothing_of_itself(bench: Bench) -> None:
    bench.foreign(bench.place)
    bench.deploy("one", wanted=1, keep_base=False)(bench.place)
    assert files_of(bench) == ["1/data/weights", "1/model.py", "config.pbtxt", "mlflow-meta.json"]
    assert (bench.model / "1" / "model.py").read_bytes() == b"one"


def test_a_replaced_directory_comes_back_when_the_new_model_fails(bench: Bench) -> None:
    bench.foreign(bench.place)
    before = bench.snapshot()
    change = bench.plan(bench.place, "one", wanted=1, keep_base=False)
    install(bench.place, change, operation="create", holder="me")
    bench.place.recover()
    assert bench.snapshot() == before
    assert bench.place.state() is PlaceState.FOREIGN


def test_a_deployment_of_nvidias_plugin_is_ours(bench: Bench) -> None:
    """It is recognised, and can be updated and deleted."""
    bench.foreign(bench.place)
    meta = "{'name': 'resnet', 'triton_model_path': 'x', 'mlflow_model_uri': 'u', 'flavor': 'onnx'}"
    (bench.model / "mlflow-meta.json").write_text(meta.replace("'", '"'))
    assert bench.place.state() is PlaceState.DEPLOYED
    assert bench.place.take_stock().now.flavor == "onnx"
    bench.deploy("two")(bench.place)
    assert config_of(bench).pinned_versions == (3,)
    bench.delete(bench.place)
    assert list(bench.root.iterdir()) == []


def test_look_alike_digits_are_no_versions(bench: Bench) -> None:
    """Triton reads ASCII digits; `٣` is a name like any other."""
    bench.foreign(bench.place)
    for name in ("٣", "3.tmp", "007", "0", ".staging-3"):
        (bench.model / name).mkdir()
    assert bench.place.versions() == (1, 2)


# -- delete and locks ---------------------------------------------------------------------------


def test_delete_leaves_nothing_behind(bench: Bench) -> None:
    bench.deploy("cats", 1)(bench.place)
    bench.deploy("dogs", 2)(bench.place)
    with bench.place.lock("me"):
        bench.delete(bench.place)
    assert list(bench.root.iterdir()) == []


def test_an_interrupted_delete_is_recognised_and_finished(bench: Bench) -> None:
    bench.deploy("one")(bench.place)
    bench.place.begin_delete("alice")
    assert bench.place.state() is PlaceState.INTERRUPTED
    assert bench.place.recover() == "finished"
    assert bench.place.state() is PlaceState.ABSENT


def test_a_model_has_one_writer_and_a_neighbour_another(bench: Bench) -> None:
    other = ModelPlace(bench.place.store, check_name("resnet2"))
    with bench.place.lock("alice"), other.lock("bob"):
        with pytest.raises(LockedError, match="resnet is being changed by alice"):
            bench.place.lock("bob").__enter__()
        assert bench.place.state() is PlaceState.ABSENT


def test_a_damaged_journal_is_named(bench: Bench) -> None:
    bench.deploy("one")(bench.place)
    (bench.model / "_mlflow_triton").mkdir()
    (bench.model / "_mlflow_triton" / "journal.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        bench.place.recover()


def test_files_of_another_releases_record_are_not_thrown_away(bench: Bench) -> None:
    """Undoing under a record that this release cannot read keeps what was set aside."""
    bench.deploy("cats", 1)(bench.place)
    bench.deploy("dogs", 2)(bench.place)
    install(bench.place, bench.plan(bench.place, "one", 3))
    record = bench.model / "mlflow-meta.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"schema_version": 99}))
    bench.place.recover()
    aside = bench.model / "_mlflow_triton" / "shared"
    assert {path.read_bytes() for path in aside.iterdir()} >= {b"cat", b"miaow"}


def test_a_later_releases_record_is_not_written_over(bench: Bench) -> None:
    bench.deploy("one", 1)(bench.place)
    record = bench.model / "mlflow-meta.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"schema_version": 99}))
    before = bench.snapshot()
    with pytest.raises(NewerRecordError, match="upgrade"):
        bench.deploy("two", 2)(bench.place)
    assert bench.snapshot() == before


# -- interrupted anywhere ---------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A change and what stands there before it.

    `in_place` says that version directories or files change places with others of that name.
    """

    before: Callable[[Bench], list[Step]]
    change: Callable[[Bench], Step]
    in_place: bool = False


SCENARIOS = {
    "create": Scenario(lambda _: [], lambda bench: bench.deploy("cats", 1)),
    "create without a config": Scenario(lambda _: [], lambda bench: bench.deploy("bare one")),
    "create a set": Scenario(lambda _: [], lambda bench: bench.deploy("set 1-2")),
    "update": Scenario(
        lambda bench: [bench.deploy("one", 1)], lambda bench: bench.deploy("two", 2)
    ),
    "update without a config": Scenario(
        lambda bench: [bench.deploy("bare one", 1)], lambda bench: bench.deploy("bare two", 2)
    ),
    "update to no config": Scenario(
        lambda bench: [bench.deploy("one", 1)],
        lambda bench: bench.deploy("bare two", 2, keep_versions=1),
    ),
    "update and prune": Scenario(
        lambda bench: [bench.deploy("one", 1), bench.deploy("two", 2)],
        lambda bench: bench.deploy("three", 3),
    ),
    "update of shared files": Scenario(
        lambda bench: [bench.deploy("cats", 1)],
        lambda bench: bench.deploy("dogs", 2),
        in_place=True,
    ),
    "update that keeps what it does not bring": Scenario(
        lambda bench: [bench.deploy("packed a", 1)], lambda bench: bench.deploy("without a", 2)
    ),
    "update that takes back what it does not bring": Scenario(
        lambda bench: [bench.deploy("packed a", 1), bench.deploy("packed b", 2)],
        lambda bench: bench.deploy("without a", 3, keep_versions=3),
        in_place=True,
    ),
    "update of the config alone": Scenario(
        lambda bench: [bench.deploy("ensemble")], lambda bench: bench.deploy("ensemble again")
    ),
    "update of a set": Scenario(
        lambda bench: [bench.deploy("set 1-2")],
        lambda bench: bench.deploy("set 2-3"),
        in_place=True,
    ),
    "update of one version by a set": Scenario(
        lambda bench: [bench.deploy("one", 2)],
        lambda bench: bench.deploy("set 2-3"),
        in_place=True,
    ),
    "update of a set by one version": Scenario(
        lambda bench: [bench.deploy("set 1-2")], lambda bench: bench.deploy("three", 3)
    ),
    "return": Scenario(
        lambda bench: [bench.deploy("one", 1), bench.deploy("two", 2)],
        lambda bench: bench.back_to(1),
    ),
    "return of shared files": Scenario(
        lambda bench: [bench.deploy("cats", 1), bench.deploy("dogs", 2)],
        lambda bench: bench.back_to(1),
        in_place=True,
    ),
    "adopt": Scenario(
        lambda bench: [bench.foreign], lambda bench: bench.deploy("two", keep_versions=9)
    ),
    "replace": Scenario(
        lambda bench: [bench.foreign],
        lambda bench: bench.deploy("one", 1, keep_base=False),
        in_place=True,
    ),
    "delete": Scenario(
        lambda bench: [bench.deploy("cats", 1), bench.deploy("dogs", 2)],
        lambda bench: bench.delete,
    ),
}


@dataclass
class Rehearsal:
    """One scenario: the directory before, after, and after doing it twice."""

    bench: Bench
    scenario: Scenario

    def __post_init__(self) -> None:
        for step in self.scenario.before(self.bench):
            step(self.bench.place)
        self.bench.keep()
        self.change = self.scenario.change(self.bench)
        self.old = self.bench.snapshot()
        self.old_served = self.served()
        store = FaultyStore(LocalStore(self.bench.root))
        self.change(ModelPlace(store, NAME))
        self.calls = store.calls
        self.new = self.bench.snapshot()
        self.new_served = self.served()
        self.new_again = self._again()

    def _again(self) -> Snapshot | None:
        self.change(self.bench.place)
        return self.bench.snapshot()

    def served(self) -> dict[str, Any] | None:
        """What a server that starts now would serve; None where it would find nothing."""
        versions = self.bench.place.versions()
        if not versions:
            return None
        config = self.bench.place.config()
        pinned = config.pinned_versions if config else ()
        found = {str(number): self._content(number) for number in pinned or versions[-1:]}
        labels = self.bench.model / "labels"
        return found | {"labels": labels.read_bytes() if labels.exists() else None}

    def _content(self, number: int) -> Any:
        directory = self.bench.model / str(number)
        tree = scan_tree(directory, inside=directory)
        return {str(file.path): file.source.read_bytes() for file in tree.files}

    def check_whole(self, where: str) -> None:
        """The directory is exactly the old or the new one, and the same command works."""
        now = self.bench.snapshot()
        if now != self.old:
            assert now == self.new, f"neither the old nor the new state: {where}"
        assert not list(self.bench.root.rglob("journal.json")), where
        assert not list(self.bench.root.rglob("*_mlflow_triton_tmp*")), where
        self.change(self.bench.place)
        assert self.bench.snapshot() in (self.new, self.new_again), f"not repeatable: {where}"

    def check_readers(self, where: str) -> None:
        """Whoever reads in between finds a version that was committed, whole."""
        if self.old_served is None or self.new is None:  # a delete: less and less is there
            return
        assert self.served() in [self.old_served, self.new_served], where

    def faults(self) -> Iterator[tuple[str, FaultyStore]]:
        """The old state, and a store that will fail at one of the calls, for each of them."""
        for fail_at, call in enumerate(self.calls, start=1):
            for after in (False, True):
                self.bench.restore()
                where = f"{'after' if after else 'before'} call {fail_at}, {call}"
                yield where, FaultyStore(LocalStore(self.bench.root), fail_at, after)

    def interrupt(self, store: Store) -> None:
        with pytest.raises(StoreError, match="failed on demand"):
            self.change(ModelPlace(store, NAME))


@pytest.fixture(params=SCENARIOS)
def rehearsal(request: pytest.FixtureRequest, bench: Bench) -> Rehearsal:
    return Rehearsal(bench, SCENARIOS[request.param])


def test_a_change_interrupted_at_any_store_call_is_finished_or_undone(
    rehearsal: Rehearsal, record_property: Callable[[str, object], None]
) -> None:
    """The directory is exactly the old or the new one, and the same command then succeeds."""
    points = 0
    for where, store in rehearsal.faults():
        points += 1
        rehearsal.interrupt(store)
        rehearsal.check_readers(where)
        rehearsal.bench.place.recover()
        rehearsal.check_whole(where)
    record_property("fault_points", points)
    print(f"{points} fault points")  # noqa: T201 - shown with -rP
    assert points == 2 * len(rehearsal.calls)


def test_a_recovery_interrupted_at_any_store_call_is_recovered_from(
    rehearsal: Rehearsal, record_property: Callable[[str, object], None]
) -> None:
    """Whatever fails while a failure is put right."""
    points = 0
    # what stood there before a call is what stood there after the last
    begun = [(where, store) for where, store in rehearsal.faults() if store.after]
    stride = 1 if os.environ.get("FAULTS_EVERY_POINT") else 3
    for where, store in begun[len(begun) % min(stride, len(begun)) :: stride]:
        rehearsal.bench.restore()
        rehearsal.interrupt(store)
        broken = rehearsal.bench.directory / "broken"
        shutil.copytree(rehearsal.bench.root, broken)
        for fail_at in count(1):
            shutil.rmtree(rehearsal.bench.root)
            shutil.copytree(broken, rehearsal.bench.root)
            failing = FaultyStore(LocalStore(rehearsal.bench.root), fail_at)
            try:
                ModelPlace(failing, NAME).recover()
            except StoreError:
                points += 1
            else:
                break
            rehearsal.bench.place.recover()
            rehearsal.check_whole(f"{where}; then recovery before call {fail_at}")
        shutil.rmtree(broken)
    record_property("fault_points", points)
    print(f"{points} fault points")  # noqa: T201 - shown with -rP
    assert points


#: What changes a directory; a process can die right before each of these calls.
_SYSTEM_CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


def killed_at(number: int, call: Callable[[], None]) -> bool:
    """Run `call` in a child that dies at its `number`-th changing system call, with no clean-up.

    Returns:
        Whether it died; False when it was through before.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    calls = count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def die_or_do(*arguments: Any, **options: Any) -> Any:
            if next(calls) == number:
                os._exit(9)
            return real(*arguments, **options)

        return die_or_do

    for name in _SYSTEM_CALLS:
        setattr(os, name, dying(getattr(os, name)))
    try:
        call()
    finally:
        os._exit(0)


@pytest.mark.parametrize(
    "label", ["create", "update", "update of shared files", "update of a set", "replace", "delete"]
)
def test_a_process_killed_at_any_system_call_leaves_what_can_be_recovered(
    bench: Bench, label: str, record_property: Callable[[str, object], None]
) -> None:
    """No half-made file, no staging area and no lock of the dead stays."""
    rehearsal = Rehearsal(bench, SCENARIOS[label])

    def change() -> None:
        with bench.place.lock("the dead"):
            rehearsal.change(bench.place)

    for number in count(1):
        bench.restore()
        if not killed_at(number, change):
            break
        where = f"killed at system call {number}"
        rehearsal.check_readers(where)
        with bench.place.lock("the living"):
            bench.place.recover()
        rehearsal.check_whole(where)
    record_property("fault_points", number - 1)
    print(f"{number - 1} system calls to die at")  # noqa: T201 - shown with -rP
    assert number > len(rehearsal.calls)


def test_a_version_that_cannot_come_back_is_said_so_and_changes_nothing(bench: Bench) -> None:
    """Somebody emptied our directory: the label file that version 1 needs is gone."""
    bench.deploy("cats", 1)(bench.place)
    bench.deploy("dogs", 2)(bench.place)
    shutil.rmtree(bench.model / "_mlflow_triton")
    before = bench.snapshot()
    with pytest.raises(ObjectNotFoundError):
        bench.back_to(1)(bench.place)
    bench.place.recover()
    assert bench.snapshot() == before


@pytest.mark.parametrize("label", ["cats", "set 1-2"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("before", [None, "the same", "dogs"])
def test_as_many_bytes_are_copied_as_were_planned(
    bench: Bench, label: str, *, apart: bool, before: str | None
) -> None:
    """Staged apart, a version that is on disk already is copied, too."""
    if before is not None:
        bench.deploy(label if before == "the same" else before, keep_base=False)(bench.place)
    change = bench.plan(bench.place, label, keep_base=before != "dogs")
    copied: list[int] = []
    install(bench.place, change, apart=apart, on_copied=copied.append)
    assert sum(copied) == change.size_bytes(apart=apart)
    if before == "the same" and apart:
        assert sum(copied) == bench.entries[label].size_bytes > 0


def test_who_only_looks_at_a_lock_is_told_what_a_taker_is_told(bench: Bench) -> None:
    place = bench.place
    place.refuse_busy()
    with place.lock("alice@here (process 1)"):
        before = {path: path.stat().st_mtime_ns for path in bench.root.rglob("*")}
        with pytest.raises(LockedError) as taking, bench.place.lock("bob"):
            pass
        with pytest.raises(LockedError, match="resnet is being changed by alice@here") as looking:
            place.refuse_busy()
        assert str(looking.value) == str(taking.value)
        with pytest.raises(LockedError, match=r"waited 0[.]3"):
            place.refuse_busy(0.3)
        assert {path: path.stat().st_mtime_ns for path in bench.root.rglob("*")} == before
    place.refuse_busy()


@pytest.mark.parametrize("how", ["its number is free", "its number is another's now"])
def test_a_lock_of_the_dead_is_seen_through_and_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place = bench.place
    child = os.fork()
    if not child:
        with place.lock("the dead"):
            os._exit(9)
    os.waitpid(child, 0)
    (lock,) = bench.root.iterdir()
    if how != "its number is free":
        note = json.loads(lock.read_bytes())
        note |= {"process": os.getpid(), "since": "2000-01-01T00:00:00+00:00"}
        lock.write_text(json.dumps(note))
    before = lock.read_bytes()
    place.refuse_busy()
    assert lock.read_bytes() == before
    monkeypatch.setattr("socket.gethostname", lambda: "another-machine")
    with pytest.raises(LockedError, match="the dead"):  # nobody can tell from there
        place.refuse_busy()
    lock.write_bytes(b"")
    place.refuse_busy()


def test_what_cannot_be_taken_back_is_found_before_anything_is_written(bench: Bench) -> None:
    bench.deploy("cats", 1)(bench.place)
    bench.deploy("dogs", 2)(bench.place)
    base = base_of(bench.place)
    assert base is not None
    change = plan_return(base, 1, source=base.versions[1].source)
    bench.place.refuse_damaged(change)
    for kept in (bench.model / "_mlflow_triton" / "shared").iterdir():
        kept.write_bytes(b"damaged")
    before = bench.snapshot()
    with pytest.raises(StoreError, match="is damaged"):
        bench.place.refuse_damaged(change)
    assert bench.snapshot() == before


def test_a_collision_is_found_without_writing(bench: Bench) -> None:
    bench.deploy("one", 1)(bench.place)
    (bench.model / "labels").write_bytes(b"somebody's own")
    change, before = bench.plan(bench.place, "cats", 2), bench.snapshot()
    with pytest.raises(StoreError, match="resnet/labels is in the way") as looking:
        bench.place.refuse_collisions(change)
    with pytest.raises(StoreError) as staging:
        install(bench.place, change)
    assert str(looking.value) == str(staging.value)
    assert bench.snapshot() == before
