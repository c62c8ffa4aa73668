"""The `pytorch` flavor: TorchScript, in Triton's PyTorch backend.

MLflow pickles a module unless it is TorchScript, which `torch.jit.save` writes as an archive with
the code in it. A pickle needs Python, and is left to `python_function`.

Source: the README of Triton's pytorch_backend (names of tensors, the file's name).
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import ModelConfig
from triton_repo.errors import ArtifactError
from triton_repo.flavors._features import features_of, width_of
from triton_repo.flavors._files import one_file_entry
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.names import ModelName
    from triton_repo.signature import Column

__all__ = ["convert", "suits"]

BACKEND = "pytorch"
_MODEL_FILENAME = "model.pt"
#: As for ONNX: nothing is reserved for it.
GENERATED_MAX_BATCH_SIZE = 1024


def suits(artifact: ModelArtifact) -> bool:
    """Whether the backend can load it, and answers what MLflow's model does."""
    _script(artifact)
    takes, answers = _tensors(artifact)
    return len(takes) == len(answers) == 1


def convert(artifact: ModelArtifact, name: ModelName, version: int) -> RepositoryEntry:
    """Plan the entry of a TorchScript model; see `flavors.convert` for the arguments and errors."""
    return one_file_entry(
        artifact,
        name=name,
        version=version,
        flavor="pytorch",
        backend=BACKEND,
        source=_script(artifact),
        path=PurePosixPath(_MODEL_FILENAME),
        generate=lambda: _config(artifact, name),
    )


def _script(artifact: ModelArtifact) -> Path:
    said_by = "MLmodel's pytorch flavor"
    data = artifact.path(str(artifact.flavors["pytorch"].get("model_data", "")), said_by=said_by)
    path = data / "model.pth" if data.is_dir() else data
    if not _is_torch_script(path):
        raise ArtifactError(
            "the model is no TorchScript, which is what Triton's PyTorch backend reads; log "
            "torch.jit.script(model) or torch.jit.trace(model, example), or deploy it with "
            "--flavor python_function"
        )
    return path


def _is_torch_script(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [PurePosixPath(name).parts[1:] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return ("constants.pkl",) in members and any(parts[:1] == ("code",) for parts in members)


def _config(artifact: ModelArtifact, name: str) -> ModelConfig:
    takes, answers = _tensors(artifact)
    features = None if artifact.signature_columns("inputs")[0].is_tensor else features_of(artifact)
    batched = all(spec.shape[:1] == (-1,) and len(spec.shape) > 1 for spec in (*takes, *answers))
    inputs, outputs = (
        [
            TensorSpec(
                f"{prefix}__{place}", spec.datatype, spec.shape[1:] if batched else spec.shape
            )
            for place, spec in enumerate(side)
        ]
        for prefix, side in (("INPUT", takes), ("OUTPUT", answers))
    )
    return ModelConfig.build(
        name=name,
        backend=BACKEND,
        platform="pytorch_libtorch",
        inputs=inputs,
        outputs=outputs,
        max_batch_size=GENERATED_MAX_BATCH_SIZE if batched else 0,
        dynamic_batching=batched,
        parameters=features.parameters if features is not None else {},
        comment="Generated from the model's signature. Log a config.pbtxt with it to use your own.",
    )


def _tensors(artifact: ModelArtifact) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """What the module takes and gives, by position, rows included."""
    takes, answers = (artifact.signature_columns(side) for side in ("inputs", "outputs"))
    if not takes or not answers:
        raise ArtifactError(
            "the model was logged without a signature of its inputs and outputs, and TorchScript "
            "says neither types nor shapes; mlflow.models.set_signature adds one, or log a "
            "config.pbtxt with it"
        )
    return _side(takes, features_of(artifact).count if not takes[0].is_tensor else 0), _side(
        answers, width_of(artifact) if not answers[0].is_tensor else 0
    )


def _side(columns: list[Column], width: int) -> list[TensorSpec]:
    """Tensors as they are; columns as one matrix, which MLflow makes FP32."""
    if width:
        return [TensorSpec("", "FP32", (-1, width))]
    specs = [each.spec for each in columns if each.is_tensor and each.spec is not None]
    if len(specs) < len(columns) or any(spec.datatype == "BYTES" for spec in specs):
        told = ", ".join(each.type for each in columns)
        raise ArtifactError(f"TorchScript has tensors of numbers only, and the model has {told}")
    return specs
