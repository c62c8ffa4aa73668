"""What will be published, found and checked before MLflow hears of it. Reads; never writes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from publish_tools._directories import plan_triton
from publish_tools._single_files import is_bare, plan_bare, plan_onnx
from publish_tools.examples import read_examples
from publish_tools.model_plan import ModelPlan
from publish_tools.signature import Tensors, config_tensors
from triton_repo.config import CONFIG_FILENAME
from triton_repo.errors import ArtifactError, UnsupportedFlavorError
from triton_repo.group import is_group

if TYPE_CHECKING:
    import os

    from publish_tools.examples import Example

__all__ = [
    "FLAVORS",
    "ModelPlan",
    "content_digest",
    "plan_model",
    "plan_repository",
]

FLAVORS = ("triton", "onnx")

_CHUNK_BYTES = 1 << 20


def plan_model(
    source: str | os.PathLike[str],
    flavor: str | None = None,
    *,
    main_model: str = "",
    input_example: Example | None = None,
    output_example: Example | None = None,
) -> ModelPlan:
    """Find out and check what would be published.

    Args:
        source: a model directory in Triton's layout, a directory of several that are deployed as
            one, an .onnx file or a directory with one, or a single file of another backend
            (.plan, .engine, .xml, .pt).
        flavor: when not given, `onnx` for a file that ends in .onnx, otherwise `triton`.
        main_model: of several models the one that clients ask; the one that no other needs when
            not given.
        input_example: `{name: nested lists or arrays}`, `{"inputs": {…}}`, or a JSON file of it.
        output_example: what the model answers to it, in the same forms with `"outputs"`.

    Raises:
        ArtifactError: it is not there, or Triton could not load it, or an example does not fit it;
            `UnsupportedFlavorError` for a flavor that cannot be published.
        ConfigError: config.pbtxt does not parse.
    """
    plan = _plan_flavor(Path(source), flavor, main_model)
    known = config_tensors(plan.config) if plan.config is not None else Tensors()
    examples = read_examples(
        input_example,
        output_example,
        inputs=known.inputs or plan.tensors.inputs,  # config.pbtxt says which are optional
        outputs=known.outputs or plan.tensors.outputs,
    )
    return replace(plan, examples=examples)


def _plan_flavor(path: Path, flavor: str | None, main_model: str) -> ModelPlan:
    flavor = flavor or ("onnx" if path.suffix == ".onnx" and path.is_file() else "triton")
    if main_model and not (flavor == "triton" and is_group(path)):
        raise ArtifactError(
            f"{path} is one model; main_model chooses among several that are deployed as one"
        )
    if flavor == "triton":
        return plan_bare(path) if is_bare(path) else plan_triton(path, main_model)
    if flavor == "onnx":
        return plan_onnx(path)
    raise UnsupportedFlavorError(
        f"flavor {flavor!r} cannot be published; use one of {', '.join(FLAVORS)}",
        flavor=flavor,
        supported=FLAVORS,
    )


def plan_repository(repository: str | os.PathLike[str]) -> list[Path]:
    """The model directories of a model repository, sorted.

    Raises:
        ArtifactError: it is not a directory, has no models, or is itself a model.
    """
    root = Path(repository)
    if not root.is_dir():
        raise ArtifactError(f"{root} is not a directory")
    if (root / CONFIG_FILENAME).exists():
        raise ArtifactError(f"{root} is one model, not a repository of them; use --model_directory")
    # a leading dot: version control and other tools' bookkeeping
    models = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not models:
        raise ArtifactError(f"{root} holds no model directories")
    return sorted(models)


def content_digest(plan: ModelPlan) -> str:
    """SHA-256 over what would be uploaded: flavor, paths, contents. Memory stays constant."""
    lines = [f"flavor {plan.flavor}"]
    lines += [f"directory {path}" for path in plan.tree.empty_directories]
    lines += [f"file {file.path} {_file_digest(file.source)}" for file in plan.tree.files]
    lines += [
        f"file {name} {hashlib.sha256(data).hexdigest()}"
        for name, data in plan.examples.files.items()
    ]
    text = "\0".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
