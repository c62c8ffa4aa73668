"""One logged MLflow model: a local directory and its parsed `MLmodel`. The only door to its YAML.

Format: MLflow's "MLmodel file" documentation; `signature` holds JSON inside YAML strings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from triton_repo.errors import ArtifactError, MissingModelFileError
from triton_repo.scan import Limits, Tally, check_member
from triton_repo.signature import columns_of
from triton_repo.text import brief, human_size, one_line

if TYPE_CHECKING:
    from triton_repo.signature import Column
    from triton_repo.tensors import TensorSpec

__all__ = ["MLMODEL_FILENAME", "OUTPUT_EXAMPLE", "ModelArtifact"]

MLMODEL_FILENAME = "MLmodel"

#: What MLflow has no file for: the outputs that belong to its input example, as its scoring
#: server would answer them, `{"outputs": {name: values}}`.
OUTPUT_EXAMPLE = "output_example.json"


@dataclass(frozen=True)
class ModelArtifact:
    """A model as MLflow saved it. Nothing in its directory is ever moved or changed.

    Attributes:
        root: the directory that holds `MLmodel`.
        flavors: each flavor's own settings, by its name.
        run_id: the run that logged it, or an empty string.
        model_id: `m-…` on MLflow 3, `model_uuid` on older ones, or an empty string.
        artifact_path: where in the run it was logged, such as `triton`, or an empty string.
        beside: files that were logged beside the model and belong to it (see `fetch`), by the
            path they would have in it.
        limits: how much it may hold.
    """

    root: Path
    flavors: Mapping[str, Mapping[str, Any]]
    run_id: str = ""
    model_id: str = ""
    artifact_path: str = ""
    beside: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    _signature: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        beside: Mapping[str, Path] | None = None,
        limits: Limits | None = None,
    ) -> ModelArtifact:
        """Read `root/MLmodel`.

        Raises:
            MissingModelFileError: there is no MLmodel.
            ArtifactError: it is not one.
        """
        document = _read_mlmodel(root)
        flavors = document.get("flavors")
        if not isinstance(flavors, Mapping) or not flavors:
            raise ArtifactError(f"{root / MLMODEL_FILENAME} names no flavors; log the model again")
        return cls(
            root=root,
            flavors={
                str(name): settings if isinstance(settings, Mapping) else {}
                for name, settings in flavors.items()
            },
            run_id=_text(document, "run_id"),
            model_id=_text(document, "model_id") or _text(document, "model_uuid"),
            artifact_path=_text(document, "artifact_path"),
            beside=beside or {},
            limits=limits or Limits(),
            _signature=_mapping(document.get("signature")),
        )

    def tally(self) -> Tally:
        """A new count of what it holds."""
        return Tally(self.limits, self.root)

    def path(self, relative: str, *, said_by: str = MLMODEL_FILENAME) -> Path:
        """A file or directory of the model that some text names.

        Args:
            relative: the path as the text gives it.
            said_by: which text that is, for messages.

        Raises:
            ArtifactError: the path leaves the model.
            MissingModelFileError: nothing is there.
        """
        if not isinstance(relative, str) or not relative or "\0" in relative:
            raise ArtifactError(f"{said_by} gives {brief(relative)} where a path belongs")
        found = self.root / relative
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise ArtifactError(f"{said_by} names {relative!r}, which leaves the model")
        if not os.path.lexists(found):
            raise MissingModelFileError(
                f"{said_by} names {relative!r}, which is not in the model at {self.root}",
                path=relative,
            )
        check_member(found, self.root.resolve())
        return found

    def find(self, *names: str) -> Path | None:
        """The first of `names` that is a file of the model or was logged beside it."""
        for name in names:
            if name in self.beside:
                return self.beside[name]
            if (self.root / name).exists():
                found = self.path(name)  # a pipe is refused, and not passed over
                if found.is_file():
                    return found
        return None

    def signature_columns(self, side: str) -> list[Column]:
        """One side of the signature, what Triton has no type for among it; empty where it has none.

        Args:
            side: `inputs` or `outputs`.

        Raises:
            ArtifactError: the signature is damaged.
        """
        return columns_of(self._signature_list(side))

    def signature_tensors(self, side: str) -> dict[str, TensorSpec]:
        """The signature's tensors by name, batch dimension included.

        A single unnamed tensor has the name ''. What has no Triton datatype is left out: whether
        that matters is for the flavor to say.
        """
        specs = (column.spec for column in self.signature_columns(side))
        return {spec.name: spec for spec in specs if spec is not None}

    @property
    def signature_params(self) -> list[str]:
        """The names of the parameters that `predict` takes beside its inputs."""
        names = (
            each.get("name") for each in self._signature_list("params") if isinstance(each, Mapping)
        )
        return [name for name in names if isinstance(name, str)]

    def _signature_list(self, side: str) -> list[object]:
        where = self.root / MLMODEL_FILENAME
        try:
            document = json.loads(self._signature.get(side) or "[]")
        except (TypeError, ValueError, RecursionError) as exc:
            raise ArtifactError(f"{where}: signature.{side} is not JSON: {exc}") from exc
        if document is None:
            return []
        if not isinstance(document, list):
            raise ArtifactError(f"{where}: signature.{side} is no list of columns")
        return document


#: A signature with thousands of columns takes a tenth of it.
_MAX_MLMODEL_BYTES = 10_000_000


#: MLflow writes about a hundred.
_MAX_VALUES = 100_000
#: Of what is no text: `1:1:1:…` is a number in base 60, and takes Python minutes.
_MAX_SCALAR = 100
_LONGEST_REASON = 300


class _Loader(yaml.SafeLoader):
    """YAML that is not made to fill the memory: no merge keys, no endless numbers or values."""

    values = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse `<<`: a few lines of it can stand for more than any memory holds."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it merges mappings (<<), which MLflow never does")

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        if self.values > _MAX_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MAX_VALUES} values")
        node = super().compose_node(parent, index)
        is_text = getattr(node, "tag", "") == self.DEFAULT_SCALAR_TAG
        if isinstance(node, yaml.ScalarNode) and not is_text and len(node.value) > _MAX_SCALAR:
            raise yaml.YAMLError(f"a value of {len(node.value)} characters is no text in it")
        return node


def _read_mlmodel(root: Path) -> Mapping[str, Any]:
    path = root / MLMODEL_FILENAME
    if not os.path.lexists(path):
        raise MissingModelFileError(
            f"{root} is no MLflow model: it has no {path.name}", path=path.name
        )
    check_member(path, root.resolve())
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_MLMODEL_BYTES + 1)
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror}") from exc
    if len(text) > _MAX_MLMODEL_BYTES:
        raise ArtifactError(f"{path} is larger than {human_size(_MAX_MLMODEL_BYTES)}")
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except Exception as exc:  # a tag on the wrong text gives any: `!!bool x` a KeyError
        raise ArtifactError(f"{path} is not YAML: {one_line(exc)[:_LONGEST_REASON]}") from exc
    if not isinstance(document, Mapping):
        raise ArtifactError(f"{path} is not a mapping; log the model again")
    return document


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""
