"""Where the models are that another one needs, and how its config.pbtxt says so.

An ensemble's steps name them, with their versions: so two versions of an ensemble can each have
their own, and replacing its config.pbtxt is all that it takes to go from one to the other. A Python
model is told by a parameter, where its sources ask for that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton_repo.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton_repo.record import VersionRecord

__all__ = [
    "MEMBERS_PARAMETER",
    "MemberVersions",
    "config_with",
    "moved_config",
    "overridden_config",
    "placed_config",
]

#: The parameter of a Python model whose sources mention it: JSON, `{"tokens": {"name":
#: "pipeline.tokens", "version": 7}}`; the version is -1 where it is the latest.
MEMBERS_PARAMETER = "mlflow_members"


@dataclass(frozen=True)
class MemberVersions:
    """Where one model is that another one needs.

    Attributes:
        name: its directory at the root of the repository.
        versions: those that are needed: one, or all of a set.
    """

    name: str
    versions: tuple[int, ...]

    def step(self, version: int = -1) -> tuple[str, int]:
        """What an ensemble's step names: the model, and the version of it.

        Args:
            version: what the step has named so far; of a set it stays.
        """
        return self.name, self.versions[0] if len(self.versions) == 1 else version


def config_with(
    config: ModelConfig, models: Mapping[str, MemberVersions], *, is_told: bool
) -> ModelConfig:
    """A config.pbtxt as the model brought it, for members that are elsewhere.

    Args:
        config: its steps have the members' own names.
        models: where each is, by that name.
        is_told: whether the model's sources read `MEMBERS_PARAMETER`.
    """

    def move(name: str, version: int) -> tuple[str, int]:
        return models[name].step(version) if name in models else (name, version)

    config = config.with_steps(move)
    return _told(config, models) if is_told and models else config


def moved_config(
    config: ModelConfig,
    before: Mapping[str, MemberVersions],
    after: Mapping[str, MemberVersions],
    *,
    is_told: bool,
) -> ModelConfig:
    """A config.pbtxt for members that were in one place and are in another.

    Args:
        config: for the first.
        before: where each was, by the name that it has in the artifact.
        after: where each is.
        is_told: whether the model's sources read `MEMBERS_PARAMETER`.
    """
    members = {each.name: member for member, each in before.items()}

    def move(name: str, version: int) -> tuple[str, int]:
        place = after.get(members.get(name, ""))
        return place.step(version) if place is not None else (name, version)

    config = config.with_steps(move)
    return _told(config, after) if is_told and after else config


def overridden_config(
    config: ModelConfig, overrides: Mapping[str, str], models: Mapping[str, MemberVersions]
) -> ModelConfig:
    """A config.pbtxt with fields set otherwise, which may be its steps.

    Args:
        config: for members that are where `models` says.
        overrides: see `triton_repo.overrides`; members have the names there that they brought.
        models: where each is, by that name.
    """
    is_told = MEMBERS_PARAMETER in config.parameters
    return config_with(config.overridden(overrides), models, is_told=is_told)


def placed_config(version: VersionRecord) -> ModelConfig:
    """The config.pbtxt that a command placed for a version, without a pin."""
    brought = ModelConfig.parse(version.brought_config)
    return overridden_config(brought, version.overrides, version.models)


def _told(config: ModelConfig, models: Mapping[str, MemberVersions]) -> ModelConfig:
    places = {member: each.step() for member, each in models.items()}
    said = {member: {"name": name, "version": number} for member, (name, number) in places.items()}
    return config.with_override(f"parameters.{MEMBERS_PARAMETER}", json.dumps(said))
