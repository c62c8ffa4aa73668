"""Several models in one directory that are deployed as one: an ensemble and what it is made of.

Such a directory is a small model repository, a directory a model. One of them, the main one, is
asked by clients; the others are there because it needs them. Who needs whom is read from the steps
of ensembles (Triton's `ensemble_models.md`) and from the sources of Python models, which ask others
by name (the Python backend's "Business Logic Scripting").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from triton_repo.config import CONFIG_FILENAME
from triton_repo.errors import ArtifactError, ConfigError, InvalidNameError
from triton_repo.layout import ModelDirectory, is_litter, version_number
from triton_repo.members import MEMBERS_PARAMETER
from triton_repo.names import check_name
from triton_repo.scan import UNLIMITED, Tally
from triton_repo.text import brief

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

__all__ = ["ModelGroup", "is_group"]

#: Sources of Python models are a hundredth of it; what is larger is data.
_LARGEST_SOURCE = 1_000_000


def is_group(root: Path) -> bool:
    """Whether a directory holds models, and is none itself; what it holds is not looked at."""
    if not root.is_dir() or _is_model(root):
        return False
    return any(_is_model(path) for path in _directories(root))


@dataclass(frozen=True)
class ModelGroup:
    """Models that are deployed together.

    Attributes:
        root: the directory they are in.
        models: each by its name, in the order of loading: what a model needs comes before it, and
            the main model is the last.
        needs: the names of what each model needs, itself; those of the main model are all the
            others that nobody else needs, too.
        asks: the names of models that the sources of each Python model quote.
        told: the Python models whose sources read `MEMBERS_PARAMETER`.
    """

    root: Path
    models: Mapping[str, ModelDirectory]
    needs: Mapping[str, frozenset[str]]
    asks: Mapping[str, frozenset[str]]
    told: frozenset[str]

    @property
    def main(self) -> str:
        """The name of the model that clients ask."""
        return list(self.models)[-1]

    @classmethod
    def read(
        cls,
        root: Path,
        main: str = "",
        *,
        inside: Path | None = None,
        versions: Mapping[str, Iterable[int]] | None = None,
        tally: Tally | None = None,
    ) -> ModelGroup:
        """Read a directory of models and check that Triton could load them, one after another.

        Files beside the directories are nothing to Triton, and left out.

        Args:
            root: the directory.
            main: the model that clients ask; where it is not given, the one that no other needs.
            inside: what links may not leave; `root` when not given.
            versions: of each model, see `ModelDirectory.read`.
            tally: counts what is in it; without a limit when not given.

        Raises:
            ArtifactError: there is no main model, or not just one; or a model is none.
            ConfigError: an ensemble names a model or a version that is not there, or models need
                each other in a circle; or a config.pbtxt is wrong.
            MissingModelFileError: a file that a config.pbtxt names is missing.
        """
        if not root.is_dir():
            raise ArtifactError(f"{root} is not a directory")
        tally = tally or Tally(UNLIMITED, root)
        found = {}
        for path in _directories(root):
            _check_model_name(path)
            known = (versions or {}).get(path.name, ())
            model = ModelDirectory.read(path, inside=inside or root, versions=known, tally=tally)
            _check_own_name(model)
            found[path.name] = model
        needs = {name: _steps(model, found) for name, model in found.items()}
        _refuse_circles(root, needs)
        sources = {name: _sources(model) for name, model in found.items()}
        asks = {name: _quoted(texts, found) - {name} for name, texts in sources.items()}
        _add_asked(needs, asks, main)
        main = _main_of(root, main, needs)
        needs[main] |= found.keys() - {main}.union(*needs.values())
        order = TopologicalSorter({name: sorted(needs[name]) for name in sorted(needs)})
        parameter = MEMBERS_PARAMETER.encode("ascii")
        return cls(
            root,
            {name: found[name] for name in order.static_order()},
            {name: frozenset(each) for name, each in needs.items()},
            asks,
            frozenset(
                name for name, texts in sources.items() if any(parameter in t for t in texts)
            ),
        )


def _directories(root: Path) -> list[Path]:
    """Those that Triton takes for models; hidden ones are version control, and the like."""
    return [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and not path.name.startswith(".") and not is_litter(path.name)
    ]


def _is_model(path: Path) -> bool:
    if (path / CONFIG_FILENAME).is_file():
        return True
    return any(_is_version(each) for each in path.iterdir())


def _is_version(path: Path) -> bool:
    try:
        return path.is_dir() and version_number(path.name) is not None
    except ArtifactError:  # Triton would misread it as one, which is told to who reads the model
        return True


def _check_model_name(path: Path) -> None:
    try:
        check_name(path.name)
    except InvalidNameError as exc:
        raise ArtifactError(f"directory {path.name!a} cannot be a model's: {exc}") from exc


def _check_own_name(model: ModelDirectory) -> None:
    name = model.config.name if model.config is not None else ""
    if name not in ("", model.root.name):
        raise ConfigError(
            f"{model.root / CONFIG_FILENAME}: name is {brief(name)}, and the directory that other "
            f"models know it by is {model.root.name!r}; give both the same name",
            field="name",
        )


def _steps(model: ModelDirectory, models: Mapping[str, ModelDirectory]) -> set[str]:
    """The models that an ensemble is made of.

    Raises:
        ConfigError: one is not there, or not in that version.
    """
    where = model.root / CONFIG_FILENAME
    steps = model.config.steps if model.config is not None else ()
    for place, (name, version) in enumerate(steps):
        field = f"ensemble_scheduling.step[{place}]"
        if name not in models:
            raise ConfigError(
                f"{where}: {field} names model {name!r}, and there is {', '.join(models)}; put it "
                "beside them",
                field=f"{field}.model_name",
            )
        if version > 0 and version not in models[name].versions:
            numbers = ", ".join(map(str, models[name].versions))
            raise ConfigError(
                f"{where}: {field} names version {version} of {name}, which has {numbers}",
                field=f"{field}.model_version",
            )
    return {name for name, _ in steps}


def _refuse_circles(root: Path, needs: Mapping[str, Collection[str]]) -> None:
    """Refuse ensembles that lead to each other: Triton would load none of them.

    Raises:
        ConfigError: there are such.
    """
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as exc:
        circle = " → ".join(reversed(exc.args[1]))
        raise ConfigError(
            f"{root}: models need each other in a circle: {circle}",
            field="ensemble_scheduling.step",
        ) from exc


def _add_asked(needs: dict[str, set[str]], asks: Mapping[str, Collection[str]], main: str) -> None:
    """Let Python models need those whose names their sources quote, as far as that is no circle.

    A quoted name may mean something else, or a model that is asked long after both were loaded.
    """
    for name, asked in asks.items():
        for other in sorted(asked):
            if other != main and name not in _reached(other, needs):
                needs[name].add(other)


def _sources(model: ModelDirectory) -> list[bytes]:
    """The Python files of a model that Python runs."""
    if model.config is not None and model.config.backend not in ("", "python"):
        return []
    files = [file for tree in (model.shared, *model.versions.values()) for file in tree.files]
    return [
        file.source.read_bytes()
        for file in files
        if file.path.suffix == ".py" and file.size_bytes <= _LARGEST_SOURCE
    ]


def _quoted(sources: Iterable[bytes], names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if any(_quotes(source, name) for source in sources))


def _quotes(source: bytes, name: str) -> bool:
    return re.search(rb"(['\"])" + re.escape(name.encode("utf-8")) + rb"\1", source) is not None


def _reached(name: str, needs: Mapping[str, Collection[str]]) -> set[str]:
    """A model, and all that it needs."""
    reached: set[str] = set()
    ahead = [name]
    while ahead:
        at = ahead.pop()
        if at not in reached:
            reached.add(at)
            ahead += needs[at]
    return reached


def _main_of(root: Path, main: str, needs: Mapping[str, Collection[str]]) -> str:
    """The model that clients ask.

    Raises:
        ArtifactError: it is not there, another one needs it, or there is a choice.
    """
    if main:
        if main not in needs:
            raise ArtifactError(
                f"{root} has no model {main!r} to be the main one; there is {', '.join(needs)}"
            )
        above = [name for name, each in needs.items() if main in each]
        if above:
            raise ArtifactError(
                f"{root}: {main!r} cannot be the main model, because {', '.join(above)} needs it; "
                "name that one, or leave it out"
            )
        return main
    needed = set().union(*needs.values())
    candidates = [name for name in needs if name not in needed]
    if len(candidates) != 1:
        raise ArtifactError(
            f"{root} has {len(candidates)} models that no other needs: {', '.join(candidates)}; "
            "say which one clients ask (main_model)"
        )
    return candidates[0]
