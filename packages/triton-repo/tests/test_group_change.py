"""Where members go: beside what is there if they can, elsewhere if they may, or nowhere."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from triton_repo.artifact import ModelArtifact
from triton_repo.change import plan_change
from triton_repo.errors import ConfigError, DeploymentExistsError, InvalidNameError, LockedError
from triton_repo.flavors import convert
from triton_repo.group_change import MemberChange, plan_kept, plan_members, plan_return_of_members
from triton_repo.members import MEMBERS_PARAMETER, MemberVersions
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace, PlaceState
from triton_repo.record import Source
from triton_repo.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from triton_repo.change import Change
    from triton_repo.entry import RepositoryEntry
    from triton_repo.stock import Stock

OWNER = check_name("pipeline")
STEP = """  step {{ model_name: "{0}" model_version: -1
    input_map {{ key: "x" value: "{1}" }} output_map {{ key: "y" value: "{2}" }} }}
"""


def ensemble(*steps: str) -> str:
    tensors = ["x", *(f"t{place}" for place in range(1, len(steps))), "y"]
    lines = "".join(
        STEP.format(step, tensors[at], tensors[at + 1]) for at, step in enumerate(steps)
    )
    return f'platform: "ensemble"\nensemble_scheduling {{\n{lines}}}\n'


def python(source: str, config: str = "", **files: str) -> dict[str, str]:
    """The files of a Python model; those with `_` for `.` are beside config.pbtxt."""
    beside = {name.replace("_", "."): text for name, text in files.items()}
    return {"1/model.py": source, "config.pbtxt": f'backend: "python"\n{config}', **beside}


@dataclass
class Repository:
    """A repository, and what is deployed to it without a server."""

    folder: Path
    artifacts: int = 0

    @property
    def store(self) -> LocalStore:
        (self.folder / "repository").mkdir(exist_ok=True)
        return LocalStore(self.folder / "repository")

    def place(self, name: str = OWNER) -> ModelPlace:
        return ModelPlace(self.store, check_name(name))

    def entry(self, models: Mapping[str, Mapping[str, str]], **settings: Any) -> RepositoryEntry:
        """What an artifact with these models converts to."""
        self.artifacts += 1
        root = self.folder / f"artifact-{self.artifacts}"
        for model, files in models.items():
            for path, text in files.items():
                (root / "models" / model / path).parent.mkdir(parents=True, exist_ok=True)
                (root / "models" / model / path).write_text(text)
        flavor = {"data": "models", **settings}
        (root / "MLmodel").write_text(json.dumps({"flavors": {"triton": flavor}}))
        return convert(ModelArtifact.open(root), flavor="triton", name=OWNER, version=1)

    def plan(
        self, entry: RepositoryEntry, version: int = 0, *, prefixed: bool = False
    ) -> list[MemberChange]:
        place = self.place()
        base = place.take_stock() if place.state() is PlaceState.DEPLOYED else None
        source = Source("u", f"models:/pipeline/{version}", "pipeline", version, "", "", "")
        return plan_members(entry, place, base, source, wanted_version=version, prefixed=prefixed)

    def deploy(
        self, entry: RepositoryEntry, version: int, *, prefixed: bool = False
    ) -> list[MemberChange]:
        """Bring the members, and commit the model itself."""
        members = self.plan(entry, version, prefixed=prefixed)
        for each in members:
            if each.change is not None:
                self.apply(each.place, each.change)
        place = self.place()
        base = place.take_stock() if place.state() is PlaceState.DEPLOYED else None
        entry = entry.with_models({each.member: each.versions for each in members})
        source = Source("u", f"models:/pipeline/{version}", "pipeline", version, "", "", "")
        self.apply(place, plan_change(entry, source, base=base, wanted_version=version))
        place.settled()
        return members

    def apply(self, place: ModelPlace, change: Change) -> None:
        staged = place.stage(change, operation="update", holder="test")
        place.install(staged)
        place.commit(staged, serving=change.serving)

    def stock(self, name: str = OWNER) -> Stock:
        return self.place(name).take_stock()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def pipeline(one: str = "1", two: str = "2", config: str = "", **files: str) -> dict[str, Any]:
    return {
        "tokens": python(one, config, **files),
        "bert": python(two),
        "all": {"config.pbtxt": ensemble("tokens", "bert"), "1/.gitkeep": ""},
    }


def test_members_keep_their_names_and_get_the_version_asked_for(repository: Repository) -> None:
    members = repository.plan(repository.entry(pipeline()), 7)
    assert {each.member: each.versions for each in members} == {
        "tokens": MemberVersions("tokens", (7,)),
        "bert": MemberVersions("bert", (7,)),
    }
    for each in members:
        assert each.change is not None
        assert each.change.entry.part_of == OWNER
        assert each.serving == (7,)


def test_what_needs_them_names_them_with_their_versions(repository: Repository) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    config = repository.place().config()
    assert config is not None
    assert config.steps == (("tokens", 7), ("bert", 7))
    record = repository.place().record()
    assert record is not None
    assert record.needs() == {"tokens": {7}, "bert": {7}}
    member = repository.place("bert").record()
    assert member is not None
    assert (member.part_of, member.needs()) == (OWNER, {})


def test_a_member_that_is_the_same_is_left_alone(repository: Repository) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    tokens, bert = repository.plan(repository.entry(pipeline(one="new")), 8)
    if tokens.member != "tokens":
        tokens, bert = bert, tokens
    assert tokens.versions == MemberVersions("tokens", (8,))
    assert set(tokens.serving) == {7, 8}  # the older one serves what serves
    assert bert.change is None
    assert (bert.versions, bert.serving) == (MemberVersions("bert", (7,)), (7,))


def test_a_number_that_is_taken_is_not_given_again(repository: Repository) -> None:
    """By the same model at another time, say."""
    repository.deploy(repository.entry(pipeline()), 7)
    members = {each.member: each for each in repository.plan(repository.entry(pipeline("x")), 7)}
    assert members["tokens"].versions == MemberVersions("tokens", (8,))


def test_a_version_whose_files_are_damaged_is_not_the_same(repository: Repository) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    (repository.folder / "repository" / "bert" / "7" / "model.py").write_text("X")
    members = {each.member: each for each in repository.plan(repository.entry(pipeline()), 8)}
    assert members["bert"].versions == MemberVersions("bert", (8,))
    assert members["tokens"].change is None


@pytest.mark.parametrize(
    ("changed", "differing"),
    [
        (pipeline(config="max_batch_size: 4\n"), "max_batch_size"),
        (pipeline(config='parameters { key: "a" value { string_value: "b" } }\n'), "parameters"),
        (pipeline(labels_txt="dog"), "the files beside it"),
    ],
)
def test_what_cannot_serve_beside_the_older_one_goes_elsewhere_or_is_refused(
    repository: Repository, changed: dict[str, Any], differing: str
) -> None:
    repository.deploy(repository.entry(pipeline(labels_txt="cat")), 7)
    if "labels.txt" not in changed["tokens"]:
        changed = {**changed, "tokens": {**changed["tokens"], "labels.txt": "cat"}}
    entry = repository.entry(changed)
    with pytest.raises(
        ConfigError, match=rf"version 7.*differ in {differing}; -C member_names"
    ) as e:
        repository.plan(entry, 8)
    assert e.value.field == "member_names"
    places = {each.member: each.versions for each in repository.plan(entry, 8, prefixed=True)}
    assert places == {
        "tokens": MemberVersions("pipeline.tokens.8", (8,)),
        "bert": MemberVersions("pipeline.bert.8", (8,)),
    }


def test_other_instances_are_no_reason(repository: Repository) -> None:
    """What only Triton sees may differ; the newest has the word."""
    repository.deploy(repository.entry(pipeline()), 7)
    changed = repository.entry(pipeline(config="instance_group [ { count: 2 } ]\n"))
    members = {each.member: each for each in repository.plan(changed, 8)}
    assert members["tokens"].versions == MemberVersions("tokens", (8,))


def test_prefixed_members_have_a_directory_each_time_that_they_change(
    repository: Repository,
) -> None:
    """Called after the version that they came with: what serves is not loaded again for them."""
    repository.deploy(repository.entry(pipeline()), 1, prefixed=True)
    for number in (2, 3):
        entry = repository.entry(pipeline(one=str(number)))
        members = repository.deploy(entry, number, prefixed=True)
        places = {each.member: each.versions for each in members}
        assert places["tokens"] == MemberVersions(f"pipeline.tokens.{number}", (number,))
        assert places["bert"] == MemberVersions("pipeline.bert.1", (1,))
    # and find the one again that they had
    members = repository.plan(repository.entry(pipeline(one="2")), 4, prefixed=True)
    places = {each.member: each.versions for each in members}
    assert places["tokens"] == MemberVersions("pipeline.tokens.2", (2,))


def test_a_prefixed_name_that_is_taken_is_passed_over(repository: Repository) -> None:
    """By somebody else's directory, or by another member."""
    models = {
        "a.2": python("a.2"),
        "a": python("a"),
        "all": {"config.pbtxt": ensemble("a", "a.2"), "1/x": ""},
    }

    def places(version: int) -> dict[str, str]:
        planned = repository.plan(repository.entry(models), version, prefixed=True)
        return {each.member: each.versions.name for each in planned}

    (repository.folder / "repository").mkdir()
    (repository.folder / "repository" / "pipeline.a.2.2" / "1").mkdir(parents=True)
    assert places(2) == {"a": "pipeline.a.2", "a.2": "pipeline.a.2.3"}
    repository.deploy(repository.entry(models), 2, prefixed=True)
    (repository.folder / "repository" / "pipeline.a.3" / "1").mkdir(parents=True)
    models["a"] = python("changed")
    assert places(3) == {"a": "pipeline.a.4", "a.2": "pipeline.a.2.3"}


@pytest.mark.parametrize("kind", ["foreign", "deployed", "another's"])
def test_a_name_that_somebody_has_is_refused(repository: Repository, kind: str) -> None:
    entry = repository.entry(pipeline())
    bert = entry.members["bert"]
    if kind == "foreign":
        (repository.folder / "repository" / "bert" / "1").mkdir(parents=True)
    else:
        part_of = "other" if kind == "another's" else ""
        change = plan_change(replace(bert, part_of=part_of), Source("u", "c"), base=None)
        repository.apply(repository.place("bert"), change)
    with pytest.raises(DeploymentExistsError, match="needs a model bert beside it, and .* such as "
                       r"pipeline\.bert\.1") as told:  # fmt: skip
        repository.plan(entry, 1)
    assert told.value.name == "bert"
    names = {each.versions.name for each in repository.plan(entry, 1, prefixed=True)}
    assert names == {"pipeline.tokens.1", "pipeline.bert.1"}


def test_a_member_of_the_deployments_own_name_is_refused(repository: Repository) -> None:
    models = {
        OWNER: python("1"),
        "all": {"config.pbtxt": ensemble(OWNER), "1/x": ""},
    }
    entry = repository.entry(models)
    with pytest.raises(DeploymentExistsError, match="another model of this deployment"):
        repository.plan(entry, 1)
    assert repository.plan(entry, 1, prefixed=True)[0].versions.name == f"pipeline.{OWNER}.1"


def test_a_name_that_gets_too_long_is_refused_at_once(repository: Repository) -> None:
    long = "m" * 195
    models = {long: python("1"), "all": {"config.pbtxt": ensemble(long), "1/x": ""}}
    with pytest.raises(InvalidNameError):
        repository.plan(repository.entry(models), 1, prefixed=True)


def test_a_member_that_a_command_is_at_is_locked(repository: Repository) -> None:
    entry = repository.entry(pipeline())
    for each in repository.plan(entry, 1):
        if each.member == "bert":
            assert each.change is not None
            each.place.stage(each.change, operation="create", holder="somebody")
    with pytest.raises(LockedError, match="mlflow-triton repair bert") as told:
        repository.plan(entry, 1)
    assert told.value.holder == "somebody"


def test_a_set_of_versions_is_kept_or_goes_elsewhere(repository: Repository) -> None:
    def models(one: str) -> dict[str, Any]:
        made = pipeline()
        made["tokens"] |= {"1/model.py": one, "3/model.py": "3"}
        return made

    repository.deploy(repository.entry(models("1")), 7)
    config = repository.place().config()
    assert config is not None
    assert config.steps[0] == ("tokens", -1)
    members = {each.member: each for each in repository.plan(repository.entry(models("1")), 8)}
    assert members["tokens"].change is None
    assert members["tokens"].versions == MemberVersions("tokens", (1, 3))
    changed = repository.entry(models("new"))
    with pytest.raises(ConfigError, match="another set of versions"):
        repository.plan(changed, 8)
    members = {each.member: each for each in repository.plan(changed, 8, prefixed=True)}
    assert members["tokens"].versions == MemberVersions("pipeline.tokens.8", (1, 3))


def test_a_model_that_asks_is_told_where_the_others_are(repository: Repository) -> None:
    models = {
        "tokens": python("1"),
        "asks": python(f"ask('tokens', {MEMBERS_PARAMETER!r})", "# mine\n"),
    }
    repository.deploy(repository.entry(models), 7, prefixed=True)
    config = repository.place().config()
    assert config is not None
    assert json.loads(config.parameters[MEMBERS_PARAMETER]) == {
        "tokens": {"name": "pipeline.tokens.7", "version": 7}
    }
    assert "# mine\n" in config.text


def test_going_back_brings_the_members_of_that_version(repository: Repository) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    repository.deploy(repository.entry(pipeline(one="new")), 8)
    for keep in ({7, 8}, {8}):
        change = plan_kept(repository.stock("tokens"), frozenset(keep), frozenset({8}))
        if change is not None:
            repository.apply(repository.place("tokens"), change)
        back = plan_return_of_members(repository.place(), repository.stock(), (7,))
        if 7 not in keep:
            assert back is None  # it has to be fetched
            continue
        assert back is not None
        members = {each.member: each for each in back}
        assert members["tokens"].versions == MemberVersions("tokens", (7,))
        assert set(members["tokens"].serving) == {7, 8}
        assert members["bert"].change is None


@pytest.mark.parametrize("damage", ["file", "directory", "owner"])
def test_members_that_are_not_what_was_placed_do_not_come_back(
    repository: Repository, damage: str
) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    repository.deploy(repository.entry(pipeline(one="new")), 8)
    tokens = repository.folder / "repository" / "tokens"
    if damage == "file":
        (tokens / "7" / "model.py").write_text("2")
    elif damage == "directory":
        repository.store.remove("tokens")
    else:
        record = json.loads((tokens / "mlflow-meta.json").read_text()) | {"part_of": "other"}
        (tokens / "mlflow-meta.json").write_text(json.dumps(record))
    assert plan_return_of_members(repository.place(), repository.stock(), (7,)) is None


def test_what_is_kept_is_what_is_needed_and_in_the_end_without_a_pin(
    repository: Repository,
) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    before = repository.place("tokens").config()
    repository.deploy(repository.entry(pipeline(one="new")), 8)
    place = repository.place("tokens")
    assert plan_kept(repository.stock("tokens"), frozenset({7, 8}), frozenset({7, 8})) is None
    steps = 0
    while change := plan_kept(repository.stock("tokens"), frozenset({7}), frozenset({7})):
        repository.apply(place, change)
        steps += 1
    assert steps == 2
    assert place.versions() == (7,)
    assert place.config() == before


def test_what_serves_nobody_may_stay(repository: Repository) -> None:
    """A version on disk needs it, and does not serve."""
    repository.deploy(repository.entry(pipeline()), 7)
    stock = repository.stock("tokens")
    assert plan_kept(stock, frozenset({7}), frozenset()) is None
    assert plan_kept(stock, frozenset(), frozenset()) is None


def test_a_note_stays_until_the_members_are_settled(repository: Repository) -> None:
    """Whoever comes next knows which they are."""
    entry = repository.entry(pipeline())
    for each in repository.plan(entry, 1):
        assert each.change is not None
        repository.apply(each.place, each.change)
    place = repository.place()
    models = {each.member: each.versions for each in repository.plan(entry, 1)}
    change = plan_change(entry.with_models(models), Source("u", "c"), base=None)
    staged = place.stage(change, operation="create", holder="test")
    journal = place.journal()
    assert journal is not None
    assert journal.members == ("bert", "tokens")
    place.install(staged)
    place.commit(staged)
    assert place.state() is PlaceState.INTERRUPTED
    assert place.state_to_change() is PlaceState.DEPLOYED
    assert place.needed() == {"bert", "tokens"}
    assert place.recover() is None
    journal = place.journal()
    assert journal is not None
    assert (journal.members, journal.leaves_members) == (("bert", "tokens"), True)
    place.settled()
    assert place.state() is PlaceState.DEPLOYED
    place.settled()


def test_an_undone_create_leaves_a_note_of_its_members_and_then_nothing(
    repository: Repository,
) -> None:
    entry = repository.entry(pipeline())
    models = {each.member: each.versions for each in repository.plan(entry, 1)}
    place = repository.place()
    change = plan_change(entry.with_models(models), Source("u", "c"), base=None)
    place.stage(change, operation="create", holder="test")
    assert place.recover() == "undone"
    assert place.state_to_change() is PlaceState.ABSENT
    assert place.needed() == {"bert", "tokens"}
    place.settled()
    assert place.state() is PlaceState.ABSENT
    assert not (repository.folder / "repository" / OWNER).exists()


def test_steps_tuned_by_hand_follow_the_members(repository: Repository) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    config = repository.folder / "repository" / OWNER / "config.pbtxt"
    config.write_text(config.read_text() + "# measured\nmax_batch_size: 0\n")
    repository.deploy(repository.entry(pipeline(one="new")), 8)
    tuned = repository.place().config()
    assert tuned is not None
    assert tuned.steps == (("tokens", 8), ("bert", 7))
    assert "# measured\n" in tuned.text


def test_a_pipeline_that_brings_another_config_takes_the_place_of_a_tuned_one(
    repository: Repository,
) -> None:
    repository.deploy(repository.entry(pipeline()), 7)
    config = repository.folder / "repository" / OWNER / "config.pbtxt"
    config.write_text(config.read_text() + "# measured\n")
    models = pipeline(one="new")
    models["all"]["config.pbtxt"] += "# another way\n"
    repository.deploy(repository.entry(models), 8)
    text = config.read_text()
    assert "# another way\n" in text
    assert "# measured\n" not in text
