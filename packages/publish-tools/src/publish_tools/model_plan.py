"""A model that is fit to be published: the value that plans are, and MLflow's own names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from publish_tools.examples import INPUT_EXAMPLE, Examples
from triton_repo.artifact import OUTPUT_EXAMPLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from publish_tools.signature import Tensors
    from triton_repo.config import ModelConfig
    from triton_repo.entry import Tree

__all__ = ["MLFLOW_FILES", "ModelPlan"]

#: What MLflow itself, or the deployment, looks for at the top of an artifact.
MLFLOW_FILES = frozenset({
    INPUT_EXAMPLE,
    "MLmodel",
    OUTPUT_EXAMPLE,
    "conda.yaml",
    "extra_files",
    "metadata",
    "python_env.yaml",
    "registered_model_meta",
    "requirements.txt",
    "serving_input_example.json",
})  # fmt: skip


@dataclass(frozen=True)
class ModelPlan:
    """One model that is fit to be published.

    Attributes:
        flavor: `triton` or `onnx`.
        source: the directory, or the .onnx file.
        tree: every file, by its path in the artifact; MLflow's own files and examples left out.
        settings: the keys that the flavor gets in MLmodel.
        tensors: inputs and outputs for the signature.
        config: the config.pbtxt that goes along, if there is one.
        versions: version directories; empty for `onnx`. Of several models, the main one's.
        models: of a directory of several models their names, in the order of loading, the main one
            last; else empty.
        examples: an input example, and the answer to it.
    """

    flavor: str
    source: Path
    tree: Tree
    settings: Mapping[str, Any]
    tensors: Tensors
    config: ModelConfig | None = None
    versions: tuple[int, ...] = ()
    models: tuple[str, ...] = ()
    examples: Examples = field(default_factory=Examples)

    @property
    def size_bytes(self) -> int:
        """How many bytes will be uploaded."""
        return self.tree.size_bytes + sum(map(len, self.examples.files.values()))

    @property
    def files(self) -> list[str]:
        """The paths in the artifact of what will be uploaded, examples included."""
        return [*(str(file.path) for file in self.tree.files), *self.examples.files]
