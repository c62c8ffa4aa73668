"""A repository with its server for each kind of store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import pytest

from mlflow_triton_plugin.local import LocalTriton
from triton_repo.testing.s3 import S3Server

from .commands import Zygote
from .harness import Bench, Repository
from .points import are_all_walked
from .scenarios import register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Count = Callable[[str, str, int], None]

    class Tell(Protocol):
        """See `tell`."""

        def __call__(self, what: str, numbers: dict[str, object], *lines: str) -> None: ...


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the module's own: what is broken here is nobody else's."""
    return tmp_path_factory.mktemp("broken")


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository, extra_args=["--disable-auto-complete-config"]) as server:
        yield server


@pytest.fixture(scope="session")
def models(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The registered models that the scenarios deploy."""
    register(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def zygote(
    tracking: str, models: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Zygote]:
    log_file = tmp_path_factory.mktemp("zygote") / "log"
    with log_file.open("wb") as log, Zygote(log) as running:
        yield running


@pytest.fixture(scope="session")
def make_bench(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Repository], Bench]]:
    """Benches on other repositories; their servers are killed at the end."""
    made: list[Bench] = []

    def make(repository: Repository) -> Bench:
        log_file = tmp_path_factory.mktemp("triton") / "log"
        made.append(Bench(repository, zygote, log_file))
        return made[-1]

    yield make
    for bench in made:
        bench.crash()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for the session; this process and those it starts may talk to it."""
    with S3Server() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="session", params=["local", "s3"])
def shared_bench(
    request: pytest.FixtureRequest,
    make_bench: Callable[[Repository], Bench],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    """A bench on each kind of store; here is where another kind joins."""

    def local() -> Repository:
        return Repository(str(tmp_path_factory.mktemp("faults")))

    def s3() -> Repository:
        server: S3Server = request.getfixturevalue("s3_server")
        address = f"{server.make_bucket('faults')}/models"
        return Repository(address, environment=server.environment, exchanges_at_once=False)

    return make_bench({"local": local, "s3": s3}[request.param]())


@pytest.fixture
def use_bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bench], Bench]:
    """Make the clients of this process use a bench's repository."""

    def use(chosen: Bench) -> Bench:
        monkeypatch.setenv("TRITON_MODEL_REPO", chosen.repository.address)
        return chosen

    return use


@pytest.fixture
def bench(shared_bench: Bench, use_bench: Callable[[Bench], Bench]) -> Bench:
    return use_bench(shared_bench)


@pytest.fixture
def count(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Count:
    """Note how many points a walk had, for the summary."""
    chosen = getattr(request.node, "callspec", None)
    store = chosen.params.get("shared_bench", "local") if chosen else "local"

    def note(kind: str, label: str, points: int) -> None:
        where = "" if store == "local" else f" ({store})"
        record_property("fault points", [kind, f"{label}{where}", points])

    return note


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Say in the summary what was measured; a line of numbers, and more lines."""

    def tell(what: str, numbers: dict[str, object], *lines: str) -> None:
        line = ", ".join(f"{value} {key}" for key, value in numbers.items())
        record_property("measured", [f"{what}: {line}", *lines])

    return tell


@pytest.hookimpl(trylast=True)  # after pytest's own ordering by parameters
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what an object store would only do again, ten times slower.

    There a walk has a point for each request, with a fresh server after it. How the plugin takes a
    failing store or a failing server is the same whatever the store is. Each kind of command is
    walked once; `nox -s faults` walks it both ways.
    """
    walked = {
        ("fresh_server", label) for label in ("create", "update that prunes", "update of a set")
    } | {("lets_us_in_again", label) for label in ("roll-back", "delete")}
    if are_all_walked():
        walked |= {("fresh_server", label) for label in ("roll-back", "delete")}
        walked |= {("lets_us_in_again", label) for label in ("create", "update of shared files")}
    left_out = [
        item
        for item in items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and item.callspec.params.get("shared_bench") == "s3"
        and not any(
            word in item.name and item.callspec.params.get("label") == label
            for word, label in walked
        )
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = _longest_first([item for item in items if item not in left_out])


def _longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Put walks on S3, minutes each, at the beginning of what each test process gets.

    pytest-xdist gives every process a stretch of the list, and whoever is done first takes from the
    end of another's.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if "[s3-" in item.name]
    others = [item for item in items if item not in long]
    stretches: list[pytest.Item] = []
    for number in range(processes):
        stretches += long[number::processes]
        end = len(items) * (number + 1) // processes
        stretches += [others.pop(0) for _ in range(min(end - len(stretches), len(others)))]
    return stretches
