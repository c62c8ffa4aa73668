"""`verify`: everything that is not as it was placed is named, and nothing else is."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_repo import integrity
from triton_repo.change import plan_change, plan_return
from triton_repo.config import ModelConfig
from triton_repo.entry import RepositoryEntry
from triton_repo.errors import DeploymentNotFoundError, InvalidNameError, StoreError
from triton_repo.integrity import Finding, deployed, recorded_bytes, verify, verify_repository
from triton_repo.model_view import ModelView
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState
from triton_repo.record import Source
from triton_repo.store import LocalStore
from triton_repo.testing import FaultyStore, make_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from triton_repo.change import Change
    from triton_repo.record import FileDigest
    from triton_repo.store import Store

NAME = check_name("resnet")
#: Many small directories come and go.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - our own below it
PYTHON = 'backend: "python"\n'
CATS = {"labels.txt": b"cat", "vocab/old": b"miaow", "same": b"same"}
DOGS = {"labels.txt": b"dog", "words/new": b"woof", "same": b"same"}


@dataclass(frozen=True)
class Bench:
    """A repository with one deployment, `resnet`."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "repository"

    @property
    def model(self) -> Path:
        return self.root / NAME

    @property
    def place(self) -> ModelPlace:
        return ModelPlace(LocalStore(self.root), NAME)

    def plan(
        self,
        text: str,
        wanted: int,
        *,
        versions: Mapping[int, Mapping[str, bytes]] | None = None,
        config: str | None = PYTHON,
        shared: Mapping[str, bytes] | None = None,
    ) -> Change:
        trees = versions or {1: {"model.py": text.encode(), "data/weights": text.encode() * 100}}
        sources = self.directory / "sources" / text
        shutil.rmtree(sources, ignore_errors=True)
        entry = RepositoryEntry(
            name=NAME,
            flavor="triton",
            versions={
                number: make_tree(sources / str(number), dict(files))
                for number, files in trees.items()
            },
            shared=make_tree(sources / "shared", dict(shared or {})),
            config=ModelConfig.parse(config) if config is not None else None,
        )
        source = Source(f"models:/resnet/{text}", f"models:/resnet/{text}")
        base = None if self.place.state() is PlaceState.ABSENT else self.place.take_stock()
        return plan_change(entry, source, base=base, wanted_version=wanted)

    def carry_out(self, change: Change) -> None:
        staged = self.place.stage(change, operation="update", holder="alice")
        self.place.install(staged)
        self.place.commit(staged)

    def deploy(
        self,
        text: str,
        wanted: int,
        *,
        versions: Mapping[int, Mapping[str, bytes]] | None = None,
        config: str | None = PYTHON,
        shared: Mapping[str, bytes] | None = None,
    ) -> None:
        self.carry_out(self.plan(text, wanted, versions=versions, config=config, shared=shared))

    def back_to(self, version: int) -> None:
        base = self.place.take_stock()
        source = base.versions[version].source
        self.carry_out(plan_return(base, version, source=source))

    def verify(self, store: Store | None = None) -> tuple[Finding, ...]:
        return verify(ModelView(store or LocalStore(self.root), NAME)).findings

    def findings(self) -> list[tuple[str, str]]:
        """Path and problem of each."""
        return [(finding.path, finding.problem) for finding in self.verify()]

    def write(self, path: str, data: bytes) -> None:
        (self.model / path).parent.mkdir(parents=True, exist_ok=True)
        (self.model / path).write_bytes(data)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_PAUSE_S", 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with TemporaryDirectory(dir=MEMORY) as directory:
        (Path(directory) / "repository").mkdir()
        yield Bench(Path(directory))


@pytest.fixture
def deployment(bench: Bench) -> Bench:
    """Version 2 serves, version 1 can come back: its label files were set aside."""
    updated(bench)
    return bench


# -- whole ------------------------------------------------------------------------------------


def created(bench: Bench) -> None:
    bench.deploy("one", 7, shared=CATS)


def created_without_a_config(bench: Bench) -> None:
    bench.deploy("one", 7, config=None)


def updated(bench: Bench) -> None:
    bench.deploy("one", 1, shared=CATS)
    bench.deploy("two", 2, shared=DOGS)


def updated_without_a_config(bench: Bench) -> None:
    """There is one then, and all it says is which version serves."""
    bench.deploy("one", 1, config=None)
    bench.deploy("two", 2, config=None)


def gone_back(bench: Bench) -> None:
    updated(bench)
    bench.back_to(1)


def pruned(bench: Bench) -> None:
    for number, text in enumerate(("one", "two", "three"), 1):
        bench.deploy(text, number, shared={"labels.txt": text.encode()})


def an_ensemble(bench: Bench) -> None:
    bench.deploy("all", 1, versions={1: {}}, config='platform: "ensemble"\n')


def a_set(bench: Bench) -> None:
    bench.deploy("set", 0, versions={1: {"model.py": b"1"}, 2: {"model.py": b"2"}})


def a_set_replaced(bench: Bench) -> None:
    a_set(bench)
    bench.deploy("again", 0, versions={2: {"model.py": b"b"}, 3: {"a/b": b"3"}})


def adopted(bench: Bench) -> None:
    """A model that somebody made by hand, with a label file that no version of ours brings."""
    for path, data in {"1/model.py": b"1", "2/model.py": b"2", "names.txt": b"hers"}.items():
        bench.write(path, data)
    bench.write("config.pbtxt", b"# by hand \xff\n" + PYTHON.encode())
    bench.deploy("ours", 3)


def tuned(bench: Bench) -> None:
    """config.pbtxt and labels are edited, and an update takes them over."""
    bench.deploy("one", 1, shared=CATS)
    bench.write("config.pbtxt", PYTHON.encode() + b"max_batch_size: 4\n")
    bench.write("labels.txt", b"lynx")
    bench.deploy("two", 2, shared=CATS)


HISTORIES = (
    created,
    created_without_a_config,
    updated,
    updated_without_a_config,
    gone_back,
    pruned,
    an_ensemble,
    a_set,
    a_set_replaced,
    adopted,
    tuned,
)


@pytest.mark.parametrize("history", HISTORIES)
def test_what_our_commands_leave_is_as_recorded(
    bench: Bench, history: Callable[[Bench], None]
) -> None:
    history(bench)
    assert bench.verify() == ()


def test_a_change_that_was_undone_leaves_what_was_recorded(deployment: Bench) -> None:
    deployment.place.stage(deployment.plan("three", 3), operation="update", holder="me")
    assert deployment.place.recover() == "undone"
    assert deployment.verify() == ()


def test_every_file_is_read_and_counted(deployment: Bench) -> None:
    """Version directories, what is beside config.pbtxt, and what was set aside."""
    reported: list[int] = []
    result = verify(deployment.place, reported.append)
    files = deployment.place.store.list_files(NAME)
    counted = {path: size for path, size in files.items() if path not in UNREAD}
    assert (result.files, result.size_bytes) == (len(counted), sum(counted.values()))
    assert sum(reported) == result.size_bytes == recorded_bytes(deployment.place)


UNREAD = ("config.pbtxt", "mlflow-meta.json")


def test_verifying_writes_nothing(deployment: Bench) -> None:
    store = FaultyStore(LocalStore(deployment.root))
    (deployment.model / "2" / "model.py").write_bytes(b"changed")
    before = sorted(deployment.root.rglob("*"))
    assert deployment.verify(store)
    assert store.calls == []
    assert sorted(deployment.root.rglob("*")) == before


def test_bytecode_of_tritons_python_backend_is_no_finding(deployment: Bench) -> None:
    """Its interpreter writes it when it imports the model."""
    deployment.write("2/__pycache__/model.cpython-312.pyc", b"")
    deployment.write("2/__pycache__/model.cpython-312.pyc.140231", b"")
    assert deployment.verify() == ()
    deployment.write("2/__pycache__/model.so", b"")
    assert deployment.findings() == [("2/__pycache__/model.so", "extra")]


def test_hidden_files_beside_the_config_are_nobodys_business(deployment: Bench) -> None:
    deployment.write(".nfs0001", b"")
    deployment.write(".git/HEAD", b"")
    assert deployment.verify() == ()


# -- not whole --------------------------------------------------------------------------------

RECORDED = (
    "1/model.py",
    "1/data/weights",
    "2/model.py",
    "2/data/weights",
    "labels.txt",
    "words/new",
    "same",
)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60)
@given(path=st.sampled_from(RECORDED), data=st.data())
def test_a_flipped_bit_is_found_wherever_it_is(path: str, data: st.DataObject) -> None:
    """The size stays the same, and nothing else is named."""
    with a_deployment() as bench:
        content = bytearray((bench.model / path).read_bytes())
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        bench.write(path, bytes(content))
        assert bench.findings() == [(path, "changed")]


@settings(max_examples=30)
@given(paths=st.sets(st.sampled_from(RECORDED), min_size=1, max_size=3))
def test_deleted_files_are_missing_and_nothing_else_is(paths: set[str]) -> None:
    with a_deployment() as bench:
        for path in paths:
            (bench.model / path).unlink()
        assert bench.findings() == [(path, "missing") for path in sorted(paths)]


@settings(max_examples=60)
@given(
    folder=st.sampled_from(("1/", "2/", "2/data/", "2/new/", "words/", "")),
    name=NAMES.filter(lambda name: name not in {".", "..", "model.py", "weights", "new", "data"}),
)
def test_an_added_file_is_extra_and_nothing_else_is(folder: str, name: str) -> None:
    """Every file that Triton could see."""
    if not folder:
        name = f"x{name}"
    if len(name.encode()) > 255:
        return
    with a_deployment() as bench:
        bench.write(f"{folder}{name}", b"?")
        assert bench.findings() == [(f"{folder}{name}", "extra")]
        assert str(bench.verify()[0]).isprintable()


@contextmanager
def a_deployment() -> Iterator[Bench]:
    """A copy of `deployment`, for tests that hypothesis calls many times."""
    with TemporaryDirectory(dir=MEMORY) as directory:
        shutil.copytree(_template().root, Path(directory) / "repository")
        yield Bench(Path(directory))


@functools.cache
def _template() -> Bench:
    directory = TemporaryDirectory(dir=MEMORY)
    atexit.register(directory.cleanup)
    bench = Bench(Path(directory.name))
    bench.root.mkdir()
    updated(bench)
    return bench


def test_a_version_directory_that_is_gone_is_named_once(deployment: Bench) -> None:
    shutil.rmtree(deployment.model / "2")
    (finding,) = deployment.verify()
    assert str(finding) == "resnet/2/: missing (the whole version directory, 2 files)"


def test_an_ensembles_empty_directory_must_be_there(bench: Bench) -> None:
    an_ensemble(bench)
    (bench.model / "1").rmdir()
    assert bench.findings() == [("1/", "missing")]


@pytest.mark.parametrize("name", ["3", "3.tmp", "007", "+4"])
def test_what_triton_takes_for_a_version_is_named_as_a_directory(
    deployment: Bench, name: str
) -> None:
    """It reads the leading digits: `3.tmp` counts as 3."""
    deployment.write(f"{name}/model.py", b"?")
    deployment.write(f"{name}/data/weights", b"?")
    assert deployment.findings() == [(f"{name}/", "extra")]


def test_an_empty_unknown_version_directory_is_extra(deployment: Bench) -> None:
    (deployment.model / "9").mkdir()
    assert deployment.findings() == [("9/", "extra")]


def test_a_file_that_became_a_directory_is_unreadable_and_what_is_in_it_extra(
    deployment: Bench,
) -> None:
    (deployment.model / "2" / "model.py").unlink()
    deployment.write("2/model.py/inner", b"?")
    assert deployment.findings() == [("2/model.py", "unreadable"), ("2/model.py/inner", "extra")]


def test_what_was_set_aside_must_be_there_and_be_what_it_was(deployment: Bench) -> None:
    """Without it the older version cannot come back."""
    kept = sorted((deployment.model / "_mlflow_triton" / "shared").iterdir())
    assert len(kept) == 2
    kept[0].unlink()
    kept[1].write_bytes(b"something else")
    below = "_mlflow_triton/shared"
    assert deployment.findings() == [
        (f"{below}/{kept[0].name}", "missing"),
        (f"{below}/{kept[1].name}", "changed"),
    ]
    assert "version 1 needs it, as " in str(deployment.verify()[0])


def test_a_killed_commands_leftover_is_named_with_what_removes_it(deployment: Bench) -> None:
    deployment.write("_mlflow_triton_tmp-00ff/model.py", b"")
    (finding,) = deployment.verify()
    assert (finding.path, finding.problem) == ("_mlflow_triton_tmp-00ff/model.py", "extra")
    assert "mlflow-triton repair removes it" in finding.detail


def test_both_digests_are_told(deployment: Bench) -> None:
    recorded = deployment.place.store.digest("resnet/2/model.py").sha256
    deployment.write("2/model.py", b"new")
    found = deployment.place.store.digest("resnet/2/model.py").sha256
    (finding,) = deployment.verify()
    assert str(finding) == (
        f"resnet/2/model.py: changed (3 bytes, sha256 {found}; recorded 3 bytes, sha256 {recorded})"
    )


# -- config.pbtxt -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PYTHON + "max_batch_size: 4\n", "not the recorded text"),
        (PYTHON, "pins version none; recorded as serving: 2"),
        (ModelConfig.parse(PYTHON).pinned([1]).text, "pins version 1; recorded as serving: 2"),
        ("backend: {", "is not a Triton model configuration"),
    ],
)
def test_an_edited_config_is_changed(deployment: Bench, text: str, problem: str) -> None:
    """A pin that is gone is an edit too: a restarted server would serve another version."""
    wanted = ModelConfig.parse(PYTHON).pinned([2]).text
    assert (deployment.model / "config.pbtxt").read_text() == wanted
    if problem.startswith("pins version none"):
        deployment.back_to(1)  # version 2, the newest, is what a missing pin means
        problem = "pins version none; recorded as serving: 1"
    deployment.write("config.pbtxt", text.encode())
    (finding,) = deployment.verify()
    assert (finding.path, finding.problem) == ("config.pbtxt", "changed")
    assert problem in finding.detail


def test_a_config_that_is_gone_is_missing(deployment: Bench) -> None:
    (deployment.model / "config.pbtxt").unlink()
    assert deployment.findings() == [("config.pbtxt", "missing")]


def test_a_config_where_none_was_recorded_is_extra(bench: Bench) -> None:
    created_without_a_config(bench)
    bench.write("config.pbtxt", PYTHON.encode())
    assert bench.findings() == [("config.pbtxt", "extra")]


def test_a_pin_that_is_gone_is_missing_where_another_version_would_serve(bench: Bench) -> None:
    """The model has no config of its own; only the pin was there."""
    updated_without_a_config(bench)
    bench.back_to(1)
    (bench.model / "config.pbtxt").unlink()
    assert bench.findings() == [("config.pbtxt", "missing")]


# -- what cannot be judged --------------------------------------------------------------------


class Trouble(LocalStore):
    """A store that calls `on_digest` before every digest."""

    def __init__(self, root: Path, on_digest: Callable[[str], None]) -> None:
        super().__init__(root)
        self.on_digest = on_digest

    def digest(self, key: str) -> FileDigest:
        with self.translated(key):
            self.on_digest(key)
        return super().digest(key)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    deployment: Bench, number: int
) -> None:
    """The others are checked all the same."""

    def fail(key: str) -> None:
        if key.endswith("2/model.py"):
            raise OSError(number, "the reason")

    deployment.write("labels.txt", b"changed")
    label, model = sorted(
        deployment.verify(Trouble(deployment.root, fail)), key=lambda each: each.problem
    )
    assert (label.path, label.problem) == ("labels.txt", "changed")
    assert str(model) == "resnet/2/model.py: unreadable (the reason)"


def test_a_closed_directory_is_a_finding(
    deployment: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a version: the recorded files are read as far as that goes. Root reads everything."""

    class Closed(LocalStore):
        def list_files(self, key: str) -> dict[str, int]:
            with self.translated(key):
                raise PermissionError(errno.EACCES, "closed", str(self.root / key / "2"))

        def children(self, key: str) -> list[str]:
            with self.translated(key):
                if shut and key:
                    raise PermissionError(errno.EACCES, "shut")
            return super().children(key)

    shut = False
    deployment.write("2/extra", b"")
    deployment.write("2/model.py", b"")
    store = Closed(deployment.root)
    whole, model = deployment.verify(store)
    assert str(whole) == "resnet: unreadable (what is extra cannot be told: closed)"
    assert (model.path, model.problem) == ("2/model.py", "changed")
    shut = True
    assert [str(each) for each in deployment.verify(store)] == ["resnet: unreadable (shut)"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "is not JSON"),
        (b"{}", "it has no name"),
        (b'{"name": "resnet", "versions": {"x": 1}}', "is damaged"),
        (b'{"name": "resnet", "schema_version": 99}', "schema version 99"),
    ],
)
def test_a_damaged_record_is_unreadable(deployment: Bench, data: bytes, reason: str) -> None:
    deployment.write("mlflow-meta.json", data)
    (finding,) = deployment.verify()
    assert (finding.path, finding.problem) == ("mlflow-meta.json", "unreadable")
    assert reason in finding.detail


def test_a_record_that_does_not_know_what_serves_says_so(deployment: Bench) -> None:
    """Version directories are checked all the same."""
    record = (deployment.model / "mlflow-meta.json").read_text()
    assert '"serving": [\n    2\n  ]' in record
    edited = record.replace('"serving": [\n    2\n  ]', '"serving": [8]')
    deployment.write("mlflow-meta.json", edited.encode())
    deployment.write("2/model.py", b"changed")
    model, unknown = deployment.verify()
    assert (model.path, model.problem) == ("2/model.py", "changed")
    assert (unknown.path, unknown.problem) == ("mlflow-meta.json", "unreadable")


def test_what_nvidias_plugin_deployed_is_unrecorded(bench: Bench) -> None:
    """It keeps a record, without digests."""
    bench.write("1/model.onnx", b"")
    bench.write("mlflow-meta.json", b'{"name": "resnet", "flavor": "onnx"}')
    assert bench.findings() == [("", "unrecorded")]


def test_an_interrupted_change_is_told_with_its_holder(deployment: Bench) -> None:
    """Nothing else is said of the deployment: what is there is half old and half new."""
    deployment.place.stage(deployment.plan("three", 3), operation="update", holder="alice@here")
    deployment.write("1/model.py", b"changed")
    (finding,) = deployment.verify()
    assert (finding.path, finding.problem) == ("", "interrupted")
    assert finding.detail.startswith("update by alice@here since 20")


def test_a_change_that_died_before_its_first_note_is_interrupted(bench: Bench) -> None:
    (bench.model / "_mlflow_triton").mkdir(parents=True)
    assert bench.findings() == [("", "interrupted")]


def test_a_damaged_journal_is_interrupted(deployment: Bench) -> None:
    deployment.write("_mlflow_triton/journal.json", b"{")
    (finding,) = deployment.verify()
    assert (finding.path, finding.problem) == ("_mlflow_triton/journal.json", "interrupted")


# -- commands that run meanwhile --------------------------------------------------------------


def once(do: Callable[[], None]) -> Callable[[str], None]:
    waiting = [do]

    def call(_: str) -> None:
        if waiting:
            waiting.pop()()

    return call


def test_an_update_that_is_made_meanwhile_raises_no_alarm(deployment: Bench) -> None:
    """It prunes version 1, which the first look expected."""
    update = once(lambda: deployment.deploy("three", 3, shared=CATS))
    assert deployment.verify(Trouble(deployment.root, update)) == ()
    assert deployment.place.versions() == (2, 3)


def test_an_update_that_is_undone_meanwhile_raises_no_alarm(deployment: Bench) -> None:
    """The record is the same before and after."""

    def stage() -> None:
        deployment.place.stage(deployment.plan("three", 3), operation="update", holder="me")

    def undo(_: int) -> None:
        if deployment.place.state() is PlaceState.INTERRUPTED:
            deployment.place.recover()

    view = ModelView(Trouble(deployment.root, once(stage)), NAME)
    assert verify(view, undo).findings == ()


def test_damage_is_found_although_an_update_is_made_meanwhile(deployment: Bench) -> None:
    deployment.write("2/model.py", b"twO")
    update = once(lambda: deployment.deploy("three", 3))
    findings = deployment.verify(Trouble(deployment.root, update))
    assert [(each.path, each.problem) for each in findings] == [("2/model.py", "changed")]
    assert deployment.place.versions() == (2, 3)


def test_a_deployment_that_never_rests_is_not_called_damaged(deployment: Bench) -> None:
    path, one_at_a_time = deployment.model / "mlflow-meta.json", threading.Lock()

    def touch(_: str) -> None:
        with one_at_a_time:
            deployment.place.store.write("resnet/mlflow-meta.json", path.read_bytes() + b" ")

    (finding,) = deployment.verify(Trouble(deployment.root, touch))
    assert (finding.problem, finding.path) == ("interrupted", "")
    assert "verify it again" in finding.detail


def test_a_deployment_that_is_deleted_meanwhile_is_no_deployment(deployment: Bench) -> None:
    delete = once(deployment.place.remove)
    with pytest.raises(DeploymentNotFoundError, match="no deployment resnet in"):
        deployment.verify(Trouble(deployment.root, delete))
    store = Trouble(deployment.root, once(deployment.place.remove))
    deployment.deploy("one", 1)
    assert verify_repository(store) == []


# -- repositories -----------------------------------------------------------------------------


def test_every_deployment_is_checked_and_other_models_are_left_out(deployment: Bench) -> None:
    for name in ("byhand/1", ".git", "lost+found", "not a name"):
        (deployment.root / name).mkdir(parents=True)
    (deployment.root / "half" / "_mlflow_triton").mkdir(parents=True)
    deployment.write("2/model.py", b"changed")
    store = LocalStore(deployment.root)
    assert [str(view.name) for view in deployed(store)] == ["half", "resnet"]
    found = verify_repository(store)
    assert [(each.deployment, each.path) for each in found] == [
        ("half", ""),
        ("resnet", "2/model.py"),
    ]
    assert verify_repository(store, ["resnet", "resnet"]) == found[1:]


@pytest.mark.parametrize("name", ["byhand", "nothing", "resne"])
def test_a_name_without_a_deployment_is_refused(deployment: Bench, name: str) -> None:
    (deployment.root / "byhand" / "1").mkdir(parents=True)
    with pytest.raises(DeploymentNotFoundError, match=f"no deployment {name} in"):
        verify_repository(LocalStore(deployment.root), ["resnet", name])


def test_a_name_that_is_none_is_refused(deployment: Bench) -> None:
    with pytest.raises(InvalidNameError):
        verify_repository(LocalStore(deployment.root), ["../resnet"])


def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist; TRITON_MODEL_REPO"):
        verify_repository(LocalStore(tmp_path / "nowhere"))
