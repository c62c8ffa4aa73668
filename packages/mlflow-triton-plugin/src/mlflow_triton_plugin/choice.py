"""What a command is about: whose the deployment is, which version is meant, and what is refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from triton_repo.change import Together
from triton_repo.errors import (
    ArtifactError,
    DeploymentExistsError,
    DeploymentNotFoundError,
    MemberError,
)
from triton_repo.members import MEMBERS_PARAMETER
from triton_repo.model_view import ModelView
from triton_repo.names import check_name
from triton_repo.placement import PlaceState
from triton_repo.record import RecordError

if TYPE_CHECKING:
    from mlflow_triton_plugin.fetch import ResolvedModel
    from mlflow_triton_plugin.options import MemberNames
    from triton_repo.entry import RepositoryEntry
    from triton_repo.placement import ModelPlace
    from triton_repo.stock import Stock

__all__ = [
    "check_config",
    "foreign",
    "is_intact",
    "is_ours",
    "kept_version",
    "main_of",
    "member_names",
    "not_deployed",
    "refuse_another_model",
    "refuse_member",
    "served_together",
    "uri_of",
    "warn_of_own_names",
]

_logger = logging.getLogger(__name__)


def is_ours(base: Stock | None) -> bool:
    """Whether a command of ours deployed what stands there: on_conflict is about others'."""
    return base is not None and base.recorded is not None


def served_together(base: Stock) -> Together | None:
    """The versions that serve together, where somebody chose them."""
    chosen = len(base.serving) > 1 and all(seen.members == 1 for seen in base.now.served)
    return Together(versions=base.serving) if chosen else None


def is_intact(place: ModelPlace, base: Stock, version: int) -> bool:
    """Whether a version's files are what was placed; they are read whole."""
    files = base.versions[version].files
    return place.digests_of(version, files) == files


def check_config(place: ModelPlace, base: Stock) -> None:
    """Make sure that the config.pbtxt that is going to be kept or replaced can be read.

    Raises:
        ConfigError: it was edited and no longer parses.
    """
    if base.broken_config is not None:
        raise base.broken_config
    if base.edited_config is not None and base.recorded is not None:
        _logger.warning("%s/config.pbtxt was edited; it stays where it suits", place.uri)


def main_of(base: Stock, together: Together) -> int:
    """Which of the versions that are to serve is the one that is deployed.

    The one that is already, where it stays; else the highest that is on disk.

    Raises:
        ConfigError: nothing of it is on disk.
    """
    wanted = together.versions or base.serving
    for version in (*base.serving[:1], *sorted(wanted, reverse=True)):
        if version in wanted and version in base.versions:
            return version
    return together.chosen(next(iter(wanted), 0), base.versions)[0]


def kept_version(base: Stock, model: ResolvedModel) -> int | None:
    """A version on disk that is certainly the model asked for, and not the one that serves.

    What serves is fetched and compared instead: its config.pbtxt may have been logged since. So is
    a model that brought several versions: they belong together.
    """
    if any(seen.source.same_model(model.source) for seen in base.now.served):
        return None
    for number, seen in base.versions.items():
        if seen.members == 1 and seen.source.same_model(model.source):
            return number if base.can_return(number) else None
    return None


def refuse_another_model(place: ModelPlace, base: Stock, model: ResolvedModel) -> None:
    """Create loads again what is deployed and does not serve; another model is for update.

    Raises:
        DeploymentExistsError: it is another registered model.
    """
    names = {seen.source.registered_name for seen in base.now.served} - {""}
    if names and model.source.registered_name not in names:
        raise DeploymentExistsError(
            f"{place.name} is deployed already, from {base.now.model_uri}, though no server has it "
            "loaded; update it, or delete it first",
            name=place.name,
        )


def member_names(base: Stock | None) -> MemberNames:
    """How the members of what is deployed are called; by their own names where there are none."""
    models = base.now.main.models if base is not None and base.now.main is not None else {}
    is_own = all(each.name == member for member, each in models.items())
    return "own" if is_own else "prefixed"


def warn_of_own_names(entry: RepositoryEntry) -> None:
    """Say which models ask others by names that these are not going to have."""
    for name, each in {entry.name: entry, **entry.members}.items():
        asked = sorted(each.asks & entry.members.keys())
        if asked and not each.is_told:
            _logger.warning(
                "a source of %s names %s, which will be called otherwise; if it asks that model, "
                "it has to read its name from the parameter %s (see README)",
                name,
                ", ".join(asked),
                MEMBERS_PARAMETER,
            )


def refuse_member(place: ModelPlace) -> None:
    """Make sure that a model is not there for another one, which would be left without it.

    Raises:
        MemberError: it is.
    """
    try:
        record = place.record()
    except RecordError:  # told to who needs to know what it says
        return
    if record is None or not record.part_of:
        return
    owner = ModelView(place.store, check_name(record.part_of))
    try:
        is_needed = place.name in owner.needed()
    except RecordError:  # nobody can say that it is not
        is_needed = True
    if is_needed:
        raise MemberError(
            f"{place.name} is part of deployment {owner.name}, and comes, changes and goes with "
            f"it; name {owner.name} instead",
            name=place.name,
            owner=owner.name,
        )


def uri_of(place: ModelPlace, base: Stock) -> str:
    """Where what is deployed came from.

    Raises:
        ArtifactError: nobody knows.
    """
    known = [seen.source.concrete_uri for seen in base.now.served] + [base.now.model_uri]
    for uri in known:
        if uri:
            return uri
    raise ArtifactError(f"the record of {place.uri} does not say its model; give --model-uri")


def not_deployed(place: ModelPlace) -> DeploymentNotFoundError:
    """The error for a name under which nothing is deployed."""
    if place.state() is PlaceState.FOREIGN:
        hint = (
            "its directory is there, but was not deployed by MLflow; create adopts or replaces it"
        )
    else:
        hint = "create it first"
    return DeploymentNotFoundError(
        f"no deployment {place.name} in {place.store.uri}: {hint}", name=place.name
    )


def foreign(place: ModelPlace, hint: str) -> DeploymentExistsError:
    """The error for a model that no MLflow command deployed."""
    return DeploymentExistsError(
        f"{place.uri} is there and was not deployed by MLflow; {hint}", name=place.name
    )
