"""Several models deployed as one: an ensemble and its members come, change and go together."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.deployments import get_deploy_client

from .groups import (
    Pipelines,
    add_asking,
    add_ensemble,
    add_scale,
    answer,
    asked_meanwhile,
    register_group,
)
from .models import log_scale, python_source
from .refusals import refused
from .waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

BROKEN = "raise ValueError('never')"


@pytest.fixture(autouse=True)
def _nothing_is_left(repository: Path, name: str, client: TritonDeploymentClient) -> Iterator[None]:
    yield
    client.delete_deployment(name)
    assert [path.name for path in repository.iterdir() if path.name.startswith(name)] == []

    def serving() -> list[str]:
        states = client._servers.states()
        return [
            each
            for each in states
            if each.startswith(name) and any(s.state == "READY" for s in states[each])
        ]

    wait_until(lambda: not serving(), timeout_s=30)


def versions(repository: Path, name: str) -> list[int]:
    return sorted(int(path.name) for path in (repository / name).iterdir() if path.name.isdecimal())


# -- the way of an ensemble -----------------------------------------------------------------------


def test_an_ensemble_comes_changes_and_goes_with_its_members(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    one, two = pipelines.make(2, 3), pipelines.make(5, 3)
    created = client.create_deployment(name, one)
    assert (created["state"], created["served_versions"]) == ("READY", [1])
    assert created["members"] == {
        pipelines.first: _member(pipelines.first, 1),
        pipelines.second: _member(pipelines.second, 1),
    }
    assert answer(client, name) == 6

    updated = client.update_deployment(name, two)
    assert updated == client.get_deployment(name)
    assert (updated["state"], updated["served_versions"]) == ("READY", [2])
    assert updated["members"] == {
        pipelines.first: _member(pipelines.first, 2),
        pipelines.second: _member(pipelines.second, 1),  # it has not changed
    }
    assert answer(client, name) == 15
    assert versions(repository, pipelines.first) == [1, 2]
    assert versions(repository, pipelines.second) == [1]
    # what no longer serves is not asked, and stays for going back
    assert client.get_deployment(pipelines.first)["served_versions"] == [2]
    text = (repository / name / "config.pbtxt").read_text()
    assert text.startswith("# the way from x to y\n")
    assert "model_version: 2" in text

    assert [each["name"] for each in client.list_deployments() if name in each["name"]] == [name]
    assert client.verify_deployment() == []
    client.delete_deployment(name)
    assert not (repository / pipelines.first).exists()


def _member(name: str, *numbers: int) -> dict[str, Any]:
    return {"name": name, "versions": [*numbers], "state": "READY", "reason": ""}


def test_going_back_copies_nothing(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    one, two = pipelines.make(2, 3), pipelines.make(5, 7)
    client.create_deployment(name, one)
    client.update_deployment(name, two)
    shutil.rmtree(pipelines.folder)  # nothing can be fetched any more
    before = (repository / pipelines.first / "1" / "model.py").stat()
    assert client.update_deployment(name, one)["served_versions"] == [1]
    assert answer(client, name) == 6
    assert (repository / pipelines.first / "1" / "model.py").stat().st_ino == before.st_ino
    assert client.update_deployment(name, config={"version": 2})["state"] == "READY"
    assert answer(client, name) == 35
    assert client.verify_deployment() == []


def test_members_stay_as_long_as_a_version_on_disk_needs_them(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    uris = [pipelines.make(number, 1) for number in (2, 3, 4)]
    client.create_deployment(name, uris[0])
    for uri in uris[1:]:
        client.update_deployment(name, uri)
    assert versions(repository, name) == versions(repository, pipelines.first) == [2, 3]
    assert versions(repository, pipelines.second) == [1]
    client.update_deployment(name, uris[2], config={"keep_versions": 1})
    assert versions(repository, pipelines.first) == [3]


def test_a_pipeline_within_a_pipeline(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines
) -> None:
    """What it is made of is named by its config.pbtxt, so each version has a directory."""
    prefixed = {"member_names": "prefixed"}
    created = client.create_deployment(name, pipelines.make(2, 3, nested=True), config=prefixed)
    order = list(created["members"])
    assert order.index(pipelines.first) < order.index(f"{pipelines.first}_in")
    assert answer(client, name) == 6
    updated = client.update_deployment(name, pipelines.make(5, 3, nested=True))
    assert answer(client, name) == 15
    inner = updated["members"][f"{pipelines.first}_in"]["name"]
    assert inner == f"{name}.{pipelines.first}_in.2"
    assert answer(client, inner) == 5
    client.update_deployment(name, pipelines.made[0])
    assert answer(client, name) == 6


def test_a_model_that_asks_others_comes_with_them(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines
) -> None:
    """By their own names, as its source has them."""
    for factor in (2, 5):
        root = pipelines.root
        add_scale(root, pipelines.first, factor)
        add_scale(root, pipelines.second, 3)
        add_asking(root, "asks", pipelines.first, pipelines.second)
        pipelines.registered(root)
    client.create_deployment(name, pipelines.made[0])
    assert answer(client, name) == 6
    client.update_deployment(name, pipelines.made[1])
    assert answer(client, name) == 15


def test_a_deployment_may_become_a_pipeline_and_a_single_model_again(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    repository: Path,
    registered: Callable[[str], str],
) -> None:
    single = registered("single")
    add_scale(pipelines.folder / "single", "models", 11)
    uri = register_group(single, pipelines.folder / "single")
    pipelines.make(1, 1)  # version 1, as the single model has
    client.create_deployment(name, uri)
    client.update_deployment(name, pipelines.make(2, 3))
    assert answer(client, name) == 6
    back = client.update_deployment(name, uri)
    assert answer(client, name) == 11
    assert "members" not in back
    # version 2 is still there, and would need them
    assert versions(repository, pipelines.first) == [2]
    states = client._servers.states(pipelines.first)[pipelines.first]
    assert "READY" not in [each.state for each in states]
    client.update_deployment(name, pipelines.made[1])
    assert answer(client, name) == 6
    client.update_deployment(name, uri, config={"keep_versions": 1})
    assert not (repository / pipelines.first).exists()


@pytest.fixture
def loads(triton: LocalTriton, name: str) -> Callable[[], dict[str, int]]:
    """How often Triton has loaded each version of the members since it was last asked.

    The pipeline itself has no weights, and is loaded apart, and whenever it is looked at.
    """
    assert triton.log_path is not None
    log = triton.log_path
    seen = log.stat().st_size

    def count() -> dict[str, int]:
        nonlocal seen
        with log.open() as file:
            file.seek(seen)
            found = re.findall(rf'"loading: {name}([^"/]*)"', file.read())
            seen = file.tell()
        return dict(Counter(each for each in found if each[0] != ":"))

    return count


def test_each_member_is_loaded_once_and_one_that_has_not_changed_is_not(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    loads: Callable[[], dict[str, int]],
) -> None:
    """Prefixed; Triton looks at all of them whenever it loads the pipeline."""
    prefixed = {"member_names": "prefixed"}
    client.create_deployment(name, pipelines.make(2, 3), config=prefixed)
    first, second = f".{pipelines.first}", f".{pipelines.second}"
    assert loads() == {f"{first}.1:1": 1, f"{second}.1:1": 1}
    client.update_deployment(name, pipelines.make(5, 3))
    assert loads() == {f"{first}.2:2": 1}
    client.update_deployment(name, pipelines.made[0])
    assert loads() == {f"{first}.1:1": 1}
    client.update_deployment(name)
    assert loads() == {}


def test_under_its_own_name_a_member_that_changes_is_loaded_beside_its_older_version(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    loads: Callable[[], dict[str, int]],
) -> None:
    """Triton loads every version of a model whose config.pbtxt changes; the other member stays."""
    client.create_deployment(name, pipelines.make(2, 3))
    loads()
    client.update_deployment(name, pipelines.make(5, 3))
    assert loads() == {"_a:1": 1, "_a:2": 2}
    client.update_deployment(name, pipelines.make(7, 3))
    assert loads() == {"_a:2": 1, "_a:3": 2}


# -- all or nothing -------------------------------------------------------------------------------


def test_a_member_that_does_not_load_leaves_nothing(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    root = pipelines.root
    add_scale(root, pipelines.first, 2)
    add_scale(root, pipelines.second, 3)
    (root / pipelines.second / "1" / "model.py").write_text(BROKEN)
    add_ensemble(root, "all", pipelines.first, pipelines.second)
    uri = pipelines.registered(root)
    refused(
        lambda: client.create_deployment(name, uri),
        "INVALID_PARAMETER_VALUE",
        pipelines.second,
        "never",
    )
    assert standing() == {}


@pytest.mark.parametrize("broken", ["first", "second", "all"])
def test_an_update_that_fails_anywhere_changes_nothing(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
    broken: str,
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    before = standing()
    root = pipelines.root
    add_scale(root, pipelines.first, 5)
    add_scale(root, pipelines.second, 7)
    add_ensemble(root, "all", pipelines.first, pipelines.second)
    if broken == "all":  # a tensor that nobody makes
        config = root / "all" / "config.pbtxt"
        config.write_text(
            config.read_text().replace('value: "between_1" }\n    },', 'value: "nobody" }\n    },')
        )
    else:
        (root / getattr(pipelines, broken) / "1" / "model.py").write_text(BROKEN)
    uri = pipelines.registered(root)
    refused(lambda: client.update_deployment(name, uri), "INVALID_PARAMETER_VALUE")
    assert standing() == before
    assert answer(client, name) == 6
    assert client.get_deployment(name)["state"] == "READY"
    assert answer(client, pipelines.first) == 2


def misfit(pipelines: Pipelines) -> str:
    """A pipeline that asks its last member for what that has not; its members are sound."""
    root = pipelines.root
    add_scale(root, pipelines.first, 5)
    add_scale(root, pipelines.second, 7)
    add_ensemble(root, "all", pipelines.first, pipelines.second)
    config = root / "all" / "config.pbtxt"
    config.write_text(config.read_text().replace('key: "y" value: "y"', 'key: "zz" value: "y"'))
    return pipelines.registered(root)


@pytest.mark.parametrize("names", ["own", "prefixed"])
def test_an_ensemble_that_does_not_go_with_its_members_never_takes_the_place_of_one(
    client: TritonDeploymentClient,
    address: str,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
    names: str,
) -> None:
    """Triton finds that out once it has let the one before it go: it is loaded apart first."""
    client.create_deployment(name, pipelines.make(2, 3), config={"member_names": names})
    before, uri = standing(), misfit(pipelines)
    with asked_meanwhile(address, name) as answers:
        for _ in range(2):
            refused(
                lambda: client.update_deployment(name, uri),
                "INVALID_PARAMETER_VALUE",
                f"cannot load {name}",
                "non-existing output zz",
            )
    assert set(answers) == {6}
    assert standing() == before
    assert client.get_deployment(name)["state"] == "READY"


def test_over_http_what_an_ensemble_that_does_not_fit_took_out_of_service_comes_back(
    triton: LocalTriton, client: TritonDeploymentClient, name: str, pipelines: Pipelines
) -> None:
    """Nothing can be loaded apart there."""
    over_http = get_deploy_client(f"triton://{triton.http_url}")
    over_http.create_deployment(name, pipelines.make(2, 3))
    uri = misfit(pipelines)
    refused(lambda: over_http.update_deployment(name, uri), "INVALID_PARAMETER_VALUE", "zz")
    assert answer(client, name) == 6


@pytest.mark.parametrize("conflict", ["adopt", "replace"])
def test_a_model_of_somebody_else_serves_on_where_an_ensemble_does_not_fit(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    repository: Path,
    standing: Callable[[], dict[str, bytes]],
    conflict: str,
) -> None:
    add_scale(repository, name, 50)
    client._servers.load(name, config=None, versions=(), timeout_s=60)
    before, uri = standing(), misfit(pipelines)
    config = {"on_conflict": conflict}
    refused(
        lambda: client.create_deployment(name, uri, config=config), "INVALID_PARAMETER_VALUE", "zz"
    )
    assert standing() == before
    assert answer(client, name) == 50
    client._servers.unload(name, timeout_s=60)
    shutil.rmtree(repository / name)


def test_a_pipeline_is_loaded_again_after_a_restart(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    for model in (name, pipelines.first, pipelines.second):
        client._servers.unload(model, timeout_s=30)
    assert client.get_deployment(name)["state"] == "NOT_LOADED"
    client.update_deployment(name)
    assert answer(client, name) == 6
    client._servers.unload(pipelines.second, timeout_s=30)
    assert client.get_deployment(name)["state"] != "READY"
    client.update_deployment(name)
    assert answer(client, name) == 6


def test_a_member_that_is_gone_is_told_and_brought_again(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    shutil.rmtree(repository / pipelines.second)
    found = client.verify_deployment(name)
    assert [(each["problem"], each["path"]) for each in found] == [("missing", "")]
    assert pipelines.second in found[0]["detail"]
    client.update_deployment(name, pipelines.made[0])
    assert client.verify_deployment(name) == []
    assert answer(client, name) == 6


def test_a_damaged_member_is_placed_anew(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    (repository / pipelines.first / "1" / "model.py").write_text(python_source("x * 99"))
    client.update_deployment(name, pipelines.made[0])
    assert answer(client, name) == 6
    assert client.verify_deployment() == []


# -- names ----------------------------------------------------------------------------------------


def test_a_members_name_that_is_taken_is_refused_and_prefixed_on_request(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    registered: Callable[[str], str],
    standing: Callable[[], dict[str, bytes]],
) -> None:
    taken = registered("scale")
    log_scale(taken, 4)
    client.create_deployment(pipelines.first, f"models:/{taken}/1")
    try:
        before = standing()
        uri = pipelines.make(2, 3)
        refused(
            lambda: client.create_deployment(name, uri),
            "RESOURCE_ALREADY_EXISTS",
            "is a deployment of its own",
            "-C member_names=prefixed gives it a name of its own",
            f"such as {name}.{pipelines.first}.1",
        )
        assert standing() == before
        created = client.create_deployment(name, uri, config={"member_names": "prefixed"})
        assert created["members"] == {
            member: _member(f"{name}.{member}.1", 1)
            for member in (pipelines.first, pipelines.second)
        }
        assert answer(client, name) == 6
        # an update keeps it
        client.update_deployment(name, pipelines.make(5, 3))
        assert answer(client, name) == 15
    finally:
        client.delete_deployment(pipelines.first)


def test_two_deployments_of_one_pipeline_need_names_of_their_own(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines
) -> None:
    uri = pipelines.make(2, 3)
    client.create_deployment(name, uri)
    other = f"{name}_other"
    refused(
        lambda: client.create_deployment(other, uri),
        "RESOURCE_ALREADY_EXISTS",
        f"is part of deployment {name}",
        "member_names=prefixed",
    )
    client.create_deployment(other, uri, config={"member_names": "prefixed"})
    try:
        assert answer(client, other) == answer(client, name) == 6
    finally:
        client.delete_deployment(other)
    assert answer(client, name) == 6


def test_what_cannot_serve_beside_the_old_one_needs_another_name(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    repository: Path,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    """Triton has one config.pbtxt for all the versions of a model."""
    client.create_deployment(name, pipelines.make(2, 3))
    before = standing()
    other = 'parameters { key: "THREADS" value { string_value: "2" } }\n'
    uri = pipelines.make(5, 3, config=other)
    refused(
        lambda: client.update_deployment(name, uri),
        "INVALID_PARAMETER_VALUE",
        f"the new {pipelines.first} cannot serve beside version 1",
        "differ in parameters",
        "-C member_names=prefixed",
    )
    assert standing() == before
    prefixed = {"member_names": "prefixed"}
    client.update_deployment(name, uri, config=prefixed)
    assert answer(client, name) == 15
    # and so does the next one, which is as different
    client.update_deployment(name, pipelines.make(7, 3, config=other.replace("2", "3")))
    assert answer(client, name) == 21
    members = client.get_deployment(name)["members"]
    assert members[pipelines.first] == _member(f"{name}.{pipelines.first}.3", 3)
    assert members[pipelines.second] == _member(f"{name}.{pipelines.second}.2", 2)
    client.update_deployment(name, pipelines.made[1])
    assert answer(client, name) == 15
    # names of their own again, once nobody needs what was in the way
    client.update_deployment(name, config={"member_names": "own", "keep_versions": 1})
    assert answer(client, name) == 15
    assert sorted(path.name for path in repository.iterdir() if path.name.startswith(name)) == [
        *(name, pipelines.first, pipelines.second)
    ]


def test_a_model_is_told_what_the_others_are_called(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines
) -> None:
    for factor in (2, 5):
        root = pipelines.root
        add_scale(root, pipelines.first, factor)
        add_scale(root, pipelines.second, 3)
        add_asking(root, "asks", pipelines.first, pipelines.second, told=True)
        pipelines.registered(root)
    client.create_deployment(name, pipelines.made[0], config={"member_names": "prefixed"})
    assert answer(client, name) == 6
    client.update_deployment(name, pipelines.made[1])
    assert answer(client, name) == 15
    client.update_deployment(name, pipelines.made[0])
    assert answer(client, name) == 6


def test_a_model_that_is_not_told_is_warned_of(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = pipelines.root
    add_scale(root, pipelines.first, 2)
    add_asking(root, "asks", pipelines.first)
    uri = pipelines.registered(root)
    client.create_deployment(name, uri, config={"member_names": "prefixed"})
    assert f"names {pipelines.first}, which will be called otherwise" in caplog.text
    assert "mlflow_members" in caplog.text


# -- members are not deployments ------------------------------------------------------------------


def test_a_member_is_changed_with_its_deployment_alone(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    registered: Callable[[str], str],
    standing: Callable[[], dict[str, bytes]],
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    scale = registered("scale")
    log_scale(scale, 4)
    uri = f"models:/{scale}/1"
    before = standing()
    for call in (
        lambda: client.create_deployment(pipelines.first, uri, config={"on_conflict": "replace"}),
        lambda: client.update_deployment(pipelines.first, uri),
        lambda: client.delete_deployment(pipelines.first),
        lambda: client.plan_deployment(pipelines.first, uri),
    ):
        message = refused(call, "RESOURCE_CONFLICT", f"is part of deployment {name}")
        assert message.endswith(f"name {name} instead")
    assert standing() == before
    assert client.get_deployment(pipelines.first)["part_of"] == name
    assert answer(client, f"{pipelines.first}/1") == 2


def test_a_member_that_nobody_needs_is_a_deployment_like_others(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    """The directory of the one that needed it was removed by hand."""
    client.create_deployment(name, pipelines.make(2, 3))
    shutil.rmtree(repository / name)
    client._servers.unload(name, timeout_s=30)
    listed = {each["name"] for each in client.list_deployments()}
    assert {pipelines.first, pipelines.second} <= listed
    for member in (pipelines.first, pipelines.second):
        client.delete_deployment(member)


def test_the_plan_shows_the_members_and_changes_nothing(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    one, two = pipelines.make(2, 3), pipelines.make(5, 3)
    planned = client.plan_deployment(name, one)
    assert standing() == {}
    assert [(each["name"], each["operation"]) for each in planned["members"]] == [
        (pipelines.first, "create"),
        (pipelines.second, "create"),
    ]
    client.create_deployment(name, one)
    before = standing()
    planned = client.plan_deployment(name, two, config={"keep_versions": 1})
    assert standing() == before
    assert planned["tried_apart"]
    first, second = planned["members"]
    assert (first["operation"], first["versions"], list(first["files"])) == (
        *("update", [2]),
        ["2/model.py"],
    )
    assert (second["operation"], second["versions"], second["files"]) == ("keep", [1], {})
    assert planned["removes_members"] == [f"{pipelines.first}/1/"]
    client.update_deployment(name, two, config={"keep_versions": 1})
    after = standing()
    assert f"{pipelines.first}/2/model.py" in after
    assert f"{pipelines.first}/1/" not in after


# -- what was tuned by hand -----------------------------------------------------------------------


def test_an_ensemble_tuned_in_the_repository_stays_tuned(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    config = repository / name / "config.pbtxt"
    tuned = "# why: measured\nresponse_cache { enable: false }\n"
    config.write_text(config.read_text() + tuned)
    client.update_deployment(name, pipelines.make(5, 3))
    assert answer(client, name) == 15
    assert tuned in config.read_text()


def test_a_member_tuned_in_the_repository_stays_tuned(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    client.create_deployment(name, pipelines.make(2, 3))
    for member in (pipelines.first, pipelines.second):
        config = repository / member / "config.pbtxt"
        config.write_text(config.read_text() + "# measured\n")
    client.update_deployment(name, pipelines.make(5, 3))
    assert answer(client, name) == 15
    for member in (pipelines.first, pipelines.second):
        assert "# measured\n" in (repository / member / "config.pbtxt").read_text()


def test_a_field_tuned_in_a_member_stays_through_every_update(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    """Also where the versions it goes through are to agree about it, and where names change."""

    def config() -> Path:
        place = client.get_deployment(name)["members"][pipelines.first]["name"]
        return repository / str(place) / "config.pbtxt"

    client.create_deployment(name, pipelines.make(2, 3), config={"member_names": "prefixed"})
    tuned = 'parameters { key: "tuned" value { string_value: "yes" } }'
    config().write_text(f"{config().read_text()}{tuned}\n")
    for factor in (7, 11):
        client.update_deployment(name, pipelines.make(factor, 3))
        assert answer(client, name) == factor * 3
        assert '"tuned"' in config().read_text()
    client.update_deployment(name, config={"member_names": "own"})
    assert '"tuned"' in config().read_text()
    client.update_deployment(name, pipelines.made[-2])
    assert answer(client, name) == 21
    assert client.verify_deployment() == []


# -- what is set when it is deployed --------------------------------------------------------------


def test_options_of_a_member_are_kept_and_taken_back(
    client: TritonDeploymentClient, name: str, pipelines: Pipelines, repository: Path
) -> None:
    def count() -> list[str]:
        members = client.get_deployment(name)["members"]
        return [
            re.findall(r"count: (\d)", (repository / each["name"] / "config.pbtxt").read_text())[0]
            for each in (members[pipelines.first], members[pipelines.second])
        ]

    option = f"member.{pipelines.first}.instance_count"
    config = {"member_names": "prefixed", option: 2}
    client.create_deployment(name, pipelines.make(2, 3), config=config)
    assert count() == ["2", "1"]
    client.update_deployment(name, pipelines.make(5, 3))
    assert answer(client, name) == 15
    assert count() == ["2", "1"]
    client.update_deployment(name, config={option: "default"})
    assert count() == ["1", "1"]
    assert answer(client, name) == 15
    assert client.verify_deployment() == []


def test_options_of_a_member_that_is_not_there_are_refused(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    uri = pipelines.make(2, 3)
    for option, words in {
        "member.other.instance_count": f"members of {name} are",
        f"member.{pipelines.first}.instance_cuont": "is not an option of create",
        f"member.{pipelines.first}.warmup": "is not an option of create",
        "member.": "is not an option of create",
        f"member.{pipelines.first}.config.cuont": "no field",
    }.items():
        config = {option: "2"}
        refused(
            lambda: client.create_deployment(name, uri, config=config),  # noqa: B023 - at once
            "INVALID_PARAMETER_VALUE",
            option.rpartition(".")[0] if "other" in option else option,
            words,
        )
    assert standing() == {}


@pytest.mark.parametrize("names", ["own", "prefixed"])
def test_steps_that_are_set_are_moved_to_the_members(
    client: TritonDeploymentClient,
    address: str,
    name: str,
    pipelines: Pipelines,
    repository: Path,
    tmp_path: Path,
    names: str,
) -> None:
    """They name members as the model does, and stay in force when these change."""
    one, two = pipelines.make(2, 3), pipelines.make(5, 7)
    whole = tmp_path / "whole.pbtxt"
    artifact = pipelines.folder / "0" / "models" / "all" / "config.pbtxt"
    whole.write_text(f"{artifact.read_text()}# mine\n")
    config = {"config": str(whole), "member_names": names}
    client.create_deployment(name, one, config=config)
    assert answer(client, name) == 6
    with asked_meanwhile(address, name) as answers:
        client.update_deployment(name, two)
    assert set(answers) <= {6, 35}
    assert answer(client, name) == 35
    assert "# mine" in (repository / name / "config.pbtxt").read_text()
    assert client.verify_deployment() == []
    client.update_deployment(name, one)
    assert answer(client, name) == 6
    refused(
        lambda: client.update_deployment(name, config={"serve_versions": "1,2"}),
        "INVALID_PARAMETER_VALUE",
        "ensemble_scheduling",
    )


def test_steps_that_are_set_for_other_members_are_refused(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    """What they name would go with the version that brought it."""
    one = pipelines.make(2, 3)
    whole = pipelines.folder / "0" / "models" / "all" / "config.pbtxt"
    client.create_deployment(name, one, config={"config": str(whole)})
    root = pipelines.root
    add_scale(root, pipelines.first, 5)
    add_scale(root, f"{name}_c", 7)
    add_ensemble(root, "all", pipelines.first, f"{name}_c")
    other, before = pipelines.registered(root), standing()
    refused(
        lambda: client.update_deployment(name, other),
        "INVALID_PARAMETER_VALUE",
        f"names model '{pipelines.second}' in a step",
        "-C config=default",
    )
    assert standing() == before
    assert answer(client, name) == 6
    client.update_deployment(name, other, config={"config": "default"})
    assert answer(client, name) == 35


def test_a_member_with_members_keeps_its_steps(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    standing: Callable[[], dict[str, bytes]],
) -> None:
    uri = pipelines.make(2, 3, nested=True)
    inner = pipelines.folder / "0" / "models" / f"{pipelines.first}_in" / "config.pbtxt"
    option = f"member.{pipelines.first}_in.config"
    refused(
        lambda: client.create_deployment(name, uri, config={option: str(inner)}),
        "INVALID_PARAMETER_VALUE",
        "member that needs others",
    )
    assert standing() == {}


@pytest.mark.parametrize("told", [False, True])
def test_versions_that_ask_other_members_do_not_serve_together(
    client: TritonDeploymentClient,
    name: str,
    pipelines: Pipelines,
    told: bool,  # noqa: FBT001 - a parameter
) -> None:
    for factor in (2, 5):
        root = pipelines.root
        add_scale(root, pipelines.first, factor)
        add_asking(root, "asks", pipelines.first, told=told)
        pipelines.registered(root)
    client.create_deployment(name, pipelines.made[0])
    together = {"serve_versions": "1,2"}
    refused(
        lambda: client.update_deployment(name, pipelines.made[1], config=together),
        "INVALID_PARAMETER_VALUE",
        "cannot serve together",
        "parameters" if told else "mlflow_members",
    )
    assert answer(client, name) == 2
