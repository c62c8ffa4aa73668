"""What a user edited stays in force; what was said of the model before does not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from triton_repo.change import plan_change
from triton_repo.config import ModelConfig
from triton_repo.entry import RepositoryEntry, Tree
from triton_repo.joining import JOIN_PARAMETER, joining_of
from triton_repo.names import check_name
from triton_repo.record import DeploymentRecord, Source, VersionRecord
from triton_repo.stock import Stock
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton_repo.change import Change

NAME = check_name("m")
FLAVOR = "python_function"
KNOWN = "true: scikit-learn answers each row by itself"
UNKNOWN = "false: a python_model may look at all rows of a request"


def generated(said: str, *, max_batch_size: int = 64) -> ModelConfig:
    """A config.pbtxt as it is generated for a model, of which JOIN_PARAMETER says this."""
    spec = TensorSpec("x", "FP64", (1,))
    return ModelConfig.build(
        name=NAME,
        backend="python",
        inputs=[spec],
        outputs=[replace(spec, name="y")],
        max_batch_size=max_batch_size,
        dynamic_batching=said.startswith("true"),
        parameters={JOIN_PARAMETER: said, "mine": "1"},
        comment="Generated from the model's signature.",
    )


def deployed(
    brought: ModelConfig, config: ModelConfig, overrides: Mapping[str, str] | None = None
) -> Stock:
    """A deployment whose config.pbtxt a user has edited since."""
    placed = VersionRecord(
        Source(), {}, config=brought.text, flavor=FLAVOR, placed_by="t", overrides=overrides or {}
    )
    recorded = DeploymentRecord(NAME, FLAVOR, "", "", serving=(1,), versions={1: placed})
    edited = VersionRecord(
        Source(), {}, config=config.text, own_config=brought.text, flavor=FLAVOR, placed_by="t"
    )
    now = DeploymentRecord(NAME, FLAVOR, "", "", serving=(1,), versions={1: edited})
    return Stock(now=now, recorded=recorded, config=config, edited_config=config)


def update(
    stock: Stock | None, config: ModelConfig, overrides: Mapping[str, str] | None = None
) -> ModelConfig:
    """The config.pbtxt after an update to a model that this one was generated for."""
    entry = RepositoryEntry(NAME, FLAVOR, {1: Tree()}, config=config)
    change: Change = plan_change(
        entry, Source(), base=stock, wanted_version=2, overrides=overrides or {}
    )
    assert change.config is not None
    return change.config


def tuned(config: ModelConfig, before: str = "64", after: str = "7  # tuned") -> ModelConfig:
    text = config.text.replace(f"max_batch_size: {before}", f"max_batch_size: {after}")
    assert text != config.text
    return ModelConfig.parse(text)


def word(config: ModelConfig) -> str:
    return config.parameters[JOIN_PARAMETER]


def test_an_edited_config_does_not_say_of_another_model_that_its_rows_are_joined() -> None:
    known = generated(KNOWN)
    after = update(deployed(known, tuned(known)), generated(UNKNOWN))
    assert "max_batch_size: 7  # tuned" in after.text
    assert word(after) == UNKNOWN
    assert not after.is_dynamic
    assert not joining_of(after, FLAVOR).is_joined


def test_nor_that_they_are_not() -> None:
    unknown = generated(UNKNOWN)
    after = update(deployed(unknown, tuned(unknown)), generated(KNOWN))
    assert (after.max_batch_size, word(after), after.is_dynamic) == (7, KNOWN, True)


def test_an_edited_batcher_stays_and_each_request_is_asked_by_itself() -> None:
    known = generated(KNOWN)
    edited = ModelConfig.parse(
        known.text.replace("dynamic_batching {\n}", "dynamic_batching { priority_levels: 3 } # me")
    )
    assert edited != known
    after = update(deployed(known, edited), generated(UNKNOWN))
    assert "dynamic_batching { priority_levels: 3 } # me" in after.text
    assert word(after) == UNKNOWN
    assert not joining_of(after, FLAVOR).is_joined


def test_a_batcher_that_a_user_took_out_stays_out() -> None:
    known = generated(KNOWN)
    edited = known.with_override("dynamic_batching", "")
    after = update(deployed(known, edited), known)
    assert not after.is_dynamic
    assert not joining_of(after, FLAVOR).is_joined


def test_a_user_who_edited_that_requests_are_not_joined_is_heeded() -> None:
    """It mixes no rows; the other way round the new model decides."""
    known, unknown = generated(KNOWN), generated(UNKNOWN)
    said = known.with_override(f"parameters.{JOIN_PARAMETER}", "false: mine")
    assert word(update(deployed(known, said), known)) == "false: mine"
    said = unknown.with_override(f"parameters.{JOIN_PARAMETER}", "true: mine")
    assert word(update(deployed(unknown, said), unknown)) == UNKNOWN


def test_no_batcher_is_taken_over_where_a_user_took_the_batch_dimension_out() -> None:
    unknown = generated(UNKNOWN)
    after = update(deployed(unknown, tuned(unknown, after="0")), generated(KNOWN))
    assert "dynamic_batching" not in after.text


def test_nor_is_one_where_a_user_chose_another_scheduler() -> None:
    unknown = generated(UNKNOWN)
    edited = ModelConfig.parse(unknown.text + "sequence_batching { } # mine\n")
    after = update(deployed(unknown, edited), generated(KNOWN))
    assert "sequence_batching { } # mine" in after.text
    assert not after.is_dynamic


def test_what_an_option_set_goes_with_it() -> None:
    """An edited file has what an earlier option set; a command that takes it back is heeded."""
    unknown, overrides = generated(UNKNOWN), {"join_requests": "true"}
    edited = tuned(unknown.overridden(overrides))
    stock = deployed(unknown, edited, overrides)
    kept = update(stock, unknown, overrides)
    assert joining_of(kept, FLAVOR).is_joined
    assert word(kept).startswith("asked")
    back = update(stock, unknown)
    assert (back.max_batch_size, word(back), back.is_dynamic) == (7, UNKNOWN, False)


@pytest.mark.parametrize("fresh", [UNKNOWN, KNOWN])
def test_a_file_that_stands_for_config_pbtxt_does_not_say_it_either(fresh: str) -> None:
    file = tuned(generated(KNOWN))
    after = update(None, generated(fresh), {"config": file.text})
    assert "max_batch_size: 7  # tuned" in after.text
    assert word(after) == fresh
    assert after.is_dynamic
    assert joining_of(after, FLAVOR).is_joined == (fresh == KNOWN)


def test_an_option_comes_after_that_file() -> None:
    file = tuned(generated(KNOWN))
    overrides = {"config": file.text, "join_requests": "true"}
    assert word(update(None, generated(UNKNOWN), overrides)).startswith("asked")


def test_a_config_that_was_there_before_keeps_its_own_batcher() -> None:
    """Nobody knows what of it was generated."""
    known = generated(KNOWN)
    seen = VersionRecord(Source(), {}, config=known.text)
    now = DeploymentRecord(NAME, "", "", "", serving=(1,), versions={1: seen})
    stock = Stock(now=now, config=known, edited_config=known)
    after = update(stock, generated(UNKNOWN))
    assert (after.is_dynamic, word(after)) == (True, UNKNOWN)
