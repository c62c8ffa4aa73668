"""The `pytorch` flavor: TorchScript, in Triton's PyTorch backend.

MLflow pickles a module unless it is TorchScript, which `torch.jit.save` writes as an archive with
the code in it. A pickle needs Python, and is left to `python_function`.

Source: Triton's pytorch_backend, its README (names of tensors, the file's name) and
`libtorch_utils.cc` (types).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import ModelConfig
from triton_repo.errors import ArtifactError
from triton_repo.flavors._features import features_of, width_of
from triton_repo.flavors._files import one_file_entry
from triton_repo.flavors.torch_script import is_in_training, is_torch_script
from triton_repo.joining import JOIN_PARAMETER, Joining
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry
    from triton_repo.names import ModelName
    from triton_repo.signature import Column

__all__ = ["convert", "suits"]

BACKEND = "pytorch"
_MODEL_FILENAME = "model.pt"
#: As for ONNX: nothing is reserved for it.
GENERATED_MAX_BATCH_SIZE = 1024
_FLOATS = ("FP16", "FP32", "FP64")
#: What the backend has a type of torch's for.
_DATATYPES = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", *_FLOATS)
#: What modules answer that is no fraction, where nobody asked them for another type.
_USUAL = ("BOOL", "INT64")


def suits(artifact: ModelArtifact) -> bool:
    """Whether the backend can load it, and answers what MLflow's model does."""
    _script(artifact)
    takes, answers = _tensors(artifact)
    taken, answered = (artifact.signature_columns(side)[0] for side in ("inputs", "outputs"))
    return (
        len(takes) == len(answers) == 1
        and (taken.is_tensor or features_of(artifact).can_be_fp32)
        and _is_sure(answers[0], takes[0], is_tensor=answered.is_tensor)
    )


def _is_sure(answer: TensorSpec, taken: TensorSpec, *, is_tensor: bool) -> bool:
    """Whether a signature is likely to have the type that the module answers.

    Signatures are written by hand, too, and `double` is what people call the FP32 of a module, and
    `integer` its INT64. Triton refuses each answer of another type than config.pbtxt has.
    """
    if answer.datatype in _FLOATS:
        return answer.datatype == (taken.datatype if taken.datatype in _FLOATS else "FP32")
    return is_tensor or answer.datatype in _USUAL


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
    if not is_torch_script(path):
        raise ArtifactError(
            "the model is no TorchScript, which is what Triton's PyTorch backend reads; log "
            "torch.jit.script(model) or torch.jit.trace(model, example), or deploy it with "
            "--flavor python_function"
        )
    if is_in_training(path):
        raise ArtifactError(
            "the TorchScript is in training mode, which MLflow ends when it loads it, and Triton's "
            "PyTorch backend does not; call model.eval() before torch.jit.script or "
            "torch.jit.trace and log it again, or deploy it with --flavor python_function"
        )
    return path


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
    joining = Joining(
        is_joined=batched,
        why="PyTorch answers each row of a batch"
        if batched
        else "the signature has no batch dimension",
    )
    return ModelConfig.build(
        name=name,
        backend=BACKEND,
        platform="pytorch_libtorch",
        inputs=inputs,
        outputs=outputs,
        max_batch_size=GENERATED_MAX_BATCH_SIZE if batched else 0,
        dynamic_batching=batched,
        parameters={
            **(features.parameters if features is not None else {}),
            JOIN_PARAMETER: joining.text,
        },
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
    inputs = (
        _as_they_are(takes)
        if takes[0].is_tensor
        else [TensorSpec("", "FP32", (-1, features_of(artifact).count))]  # as MLflow makes it
    )
    outputs = _as_they_are(answers) if answers[0].is_tensor else [_matrix(artifact, answers)]
    unknown = [each.datatype for each in (*inputs, *outputs) if each.datatype not in _DATATYPES]
    if unknown:
        raise ArtifactError(
            f"Triton's PyTorch backend has no {unknown[0]}; it has {', '.join(_DATATYPES)}: deploy "
            "the model with --flavor python_function"
        )
    return inputs, outputs


def _as_they_are(columns: list[Column]) -> list[TensorSpec]:
    specs = [each.spec for each in columns if each.is_tensor and each.spec is not None]
    if len(specs) < len(columns):
        raise _no_tensors(columns)
    return specs


def _matrix(artifact: ModelArtifact, columns: list[Column]) -> TensorSpec:
    """Columns that the model answers, which are one tensor to it."""
    width = width_of(artifact)
    if not width:
        raise _no_tensors(columns)
    datatypes = {each.spec.datatype for each in columns if each.spec is not None}
    if len(datatypes) > 1:
        raise ArtifactError(
            f"the model answers columns of different types ({_listed(columns)}), and TorchScript "
            "one tensor; deploy it with --flavor python_function"
        )
    return TensorSpec("", datatypes.pop(), (-1, width))


def _no_tensors(columns: list[Column]) -> ArtifactError:
    return ArtifactError(
        f"TorchScript has tensors of numbers only, and the model has {_listed(columns)}"
    )


def _listed(columns: list[Column]) -> str:
    return ", ".join(each.type for each in columns)
