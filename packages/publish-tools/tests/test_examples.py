from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from publish_tools import PublishedModel, publish_repository

EXAMPLES = Path(__file__).parents[3] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="not in a checkout")


def test_the_example_files_are_what_their_generator_writes() -> None:
    command = [sys.executable, str(EXAMPLES / "make_models.py"), "--check"]
    subprocess.run(command, check=True, timeout=60)


def test_every_example_model_is_fit_to_be_published() -> None:
    results = publish_repository(EXAMPLES, dry_run=True)
    planned = {result.name: result for result in results if isinstance(result, PublishedModel)}
    assert len(planned) == len(results) == 4
    for result in planned.values():
        assert [spec.name for spec in result.plan.tensors.inputs] == ["INPUT0", "INPUT1"]
        assert [spec.shape for spec in result.plan.tensors.outputs] == [(-1, 16)] * 2
