"""Several models deployed as one: an ensemble and its members come, change and go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .groups import add_ensemble, add_scale, register_group

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

ONE = np.ones(1, np.float32)


def answer(client: TritonDeploymentClient, name: str) -> float:
    return float(client.predict(name, {"x": ONE})["outputs"]["y"][0])


def test_an_ensemble_comes_changes_and_goes_with_its_members(
    client: TritonDeploymentClient,
    name: str,
    registered: Callable[[str], str],
    tmp_path: Path,
    repository: Path,
) -> None:
    model = registered("pipeline")
    one, two = f"{name}a", f"{name}b"
    uris = []
    for number, factors in enumerate([(2, 3), (5, 3)]):
        root = tmp_path / str(number) / "models"
        add_scale(root, one, factors[0])
        add_scale(root, two, factors[1])
        add_ensemble(root, "all", one, two)
        uris.append(register_group(model, root.parent))
    created = client.create_deployment(name, uris[0])
    print(created)
    assert answer(client, name) == 6
    updated = client.update_deployment(name, uris[1])
    print(updated)
    assert answer(client, name) == 15
    print((repository / name / "config.pbtxt").read_text())
    print([str(p.relative_to(repository)) for p in repository.rglob("*")])
    print((repository / two / "_mlflow_triton/journal.json").read_text())
    back = client.update_deployment(name, uris[0])
    assert answer(client, name) == 6
    print(back, [e["name"] for e in client.list_deployments()])
    client.delete_deployment(name)
    assert [p for p in repository.iterdir()] == []
