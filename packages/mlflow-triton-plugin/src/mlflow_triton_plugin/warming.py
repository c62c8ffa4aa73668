"""Warm-up from a model's input example, written beside its config.pbtxt."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.golden import input_example
from mlflow_triton_plugin.predict import InvalidInputError, to_tensors
from mlflow_triton_plugin.server._configured import schema_of
from mlflow_triton_plugin.server._tensors import to_bytes
from triton_repo.config import NO_CONFIG
from triton_repo.entry import EntryFile, Tree
from triton_repo.errors import ArtifactError, ConfigError
from triton_repo.overrides import WARMUP, contradict
from triton_repo.tensors import TensorSpec
from triton_repo.warmup import MODEL_WARMUP, WARMUP_FOLDER, WarmupInput, model_warmup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict import ModelSchema
    from triton_repo.artifact import ModelArtifact
    from triton_repo.entry import RepositoryEntry

__all__ = ["effective_overrides", "warmed"]

_NAME = "input_example"


def effective_overrides(
    before: Mapping[str, str], asked: Mapping[str, str | None]
) -> dict[str, str]:
    """What is set of config.pbtxt: what was when it was deployed, and what is set now.

    What was set before goes where what is set now contradicts it. The rest comes in the order in
    which it was set: a field that is set as a whole takes its parts along.

    Args:
        before: of the version that serves.
        asked: of this command; None takes one back.
    """
    # what the option made of the last model's example; `warmed` makes it anew
    made = {MODEL_WARMUP} if WARMUP in before else set()
    set_now = [(path, text) for path, text in asked.items() if text is not None]
    kept = {
        path: text
        for path, text in before.items()
        if path not in made | asked.keys()
        and not any(contradict((path, text), each) for each in set_now)
    }
    wanted: dict[str, str | None] = {**kept, **asked}
    if asked.get(MODEL_WARMUP) is not None:
        wanted[WARMUP] = None
    return {path: text for path, text in wanted.items() if text is not None}


@contextmanager
def warmed(
    entry: RepositoryEntry, artifact: ModelArtifact, overrides: Mapping[str, str]
) -> Iterator[tuple[RepositoryEntry, Mapping[str, str]]]:
    """Add what the option `warmup` asks for, where it asks; the files last as long as the block.

    Yields:
        The entry with the files of its input example, and the overrides with `model_warmup`.

    Raises:
        ArtifactError: the model has no input example, or one that it does not take.
        ConfigError: it has no config.pbtxt that names its inputs, or no batches of such sizes.
    """
    if not overrides.get(WARMUP):
        yield entry, overrides
        return
    config = (entry.config or NO_CONFIG).overridden(overrides)
    schema = schema_of(config, model=entry.name)
    sizes = [int(size) for size in overrides[WARMUP].split(",")]
    _check(schema, sizes)
    with TemporaryDirectory(prefix="mlflow-triton-warmup-") as folder:
        inputs, files = [], []
        for place, (name, array) in enumerate(sorted(_rows(artifact, schema).items())):
            datatype = schema.inputs_by_name[name].datatype
            filename = f"{_NAME}.{place}"
            file = Path(folder, filename)
            file.write_bytes(to_bytes(array, datatype))
            spec = TensorSpec(name, datatype, array.shape)
            inputs.append(WarmupInput(spec, filename))
            files.append(EntryFile(WARMUP_FOLDER / filename, file, file.stat().st_size))
        names = {file.path for file in files}
        own = tuple(each for each in entry.shared.files if each.path not in names)
        yield (
            replace(entry, shared=Tree((*own, *files), entry.shared.empty_directories)),
            {**overrides, MODEL_WARMUP: model_warmup(_NAME, inputs, sizes)},
        )


def _check(schema: ModelSchema, sizes: list[int]) -> None:
    if not schema.inputs:
        raise ConfigError(
            "warmup needs to know the model's inputs, and it has no config.pbtxt that names them; "
            "log one with it, or leave warmup out",
            field=WARMUP,
        )
    most = schema.max_batch_size or 1
    if max(sizes) > most:
        why = f"takes {most} rows at most" if schema.max_batch_size else "has no batches"
        raise ConfigError(
            f"warmup={','.join(map(str, sizes))}: the model {why} (max_batch_size)", field=WARMUP
        )


def _rows(artifact: ModelArtifact, schema: ModelSchema) -> dict[str, NDArray[Any]]:
    """The first row of the example, or all of it where the model does not batch."""
    example = input_example(artifact, needed_by="warmup")
    try:
        tensors = to_tensors(example, schema)
    except InvalidInputError as exc:
        raise ArtifactError(f"warmup: the model's input example is refused: {exc}") from exc
    if not schema.max_batch_size:
        return tensors
    if not all(len(array) for array in tensors.values()):
        raise ArtifactError("warmup: the model's input example has no rows")
    return {name: array[0] for name, array in tensors.items()}
