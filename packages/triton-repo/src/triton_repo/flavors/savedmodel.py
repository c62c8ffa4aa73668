"""The `tensorflow` flavor: a SavedModel, in Triton's TensorFlow backend.

Triton's images have that backend up to 25.02: it is for who asks for it. The backend completes the
configuration from the SavedModel's own signature.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import ModelConfig
from triton_repo.entry import RepositoryEntry, Tree
from triton_repo.errors import ArtifactError
from triton_repo.flavors._files import ModelFiles, entry_of, own_config
from triton_repo.scan import scan_tree

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.names import ModelName

__all__ = ["convert"]

BACKEND = "tensorflow"
_MODEL_FOLDER = PurePosixPath("model.savedmodel")
_GRAPH = "saved_model.pb"


def convert(artifact: ModelArtifact, name: ModelName, version: int) -> RepositoryEntry:
    """Plan the entry of a SavedModel; see `flavors.convert` for the arguments and errors."""
    said_by = "MLmodel's tensorflow flavor"
    settings = artifact.flavors["tensorflow"]
    named = settings.get("saved_model_dir") or settings.get("data") or ""
    root = artifact.path(str(named), said_by=said_by)
    if root.is_dir() and not (root / _GRAPH).is_file():
        root = next(iter(sorted(each.parent for each in root.glob(f"*/{_GRAPH}"))), root)
    if not (root / _GRAPH).is_file():
        raise ArtifactError(
            "the model is no SavedModel, which is what Triton's TensorFlow backend reads; log "
            "it with mlflow.tensorflow.log_model(tf.Module, …) or keras' SavedModel format, or "
            "deploy it with --flavor python_function"
        )
    config = own_config(artifact, BACKEND, version)
    model_files = ModelFiles(artifact, artifact.tally())
    whole = scan_tree(root, inside=artifact.root, tally=model_files.tally)
    tree = Tree(
        tuple(replace(file, path=_MODEL_FOLDER / file.path) for file in whole.files),
        tuple(_MODEL_FOLDER / path for path in whole.empty_directories),
    )
    generated = ModelConfig.build(
        name=name,
        backend=BACKEND,
        platform="tensorflow_savedmodel",
        inputs=[],
        outputs=[],
        comment="Triton completes it from the SavedModel. Log a config.pbtxt to use your own.",
    )
    return entry_of(
        model_files,
        name=name,
        version=version,
        flavor="tensorflow",
        tree=tree,
        config=config or generated,
        has_own_config=config is not None,
    )
