"""A directory in Triton's layout, read and checked: `config.pbtxt`, `<version>/…`, other files.

Rules: Triton's `model_repository.md`, "Repository Layout".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from triton_repo.config import CONFIG_FILENAME, ModelConfig
from triton_repo.entry import Tree
from triton_repo.errors import ArtifactError, ConfigError, MissingModelFileError
from triton_repo.journal import OUR_DIRECTORY
from triton_repo.record import RECORD_FILENAME
from triton_repo.scan import UNLIMITED, Tally, check_member, scan_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ModelDirectory", "is_bytecode", "is_litter", "is_shared_path", "version_number"]

#: What each backend looks for in a version directory when the config names no file; any one will
#: do. Backends that are not here (FIL, DALI, vLLM, …) choose by parameters: they check themselves.
_DEFAULT_FILENAMES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("model.onnx",),
    "tensorrt": ("model.plan",),
    "pytorch": ("model.pt", "model.py"),
    "openvino": ("model.xml", "model.onnx", "model.pdmodel", "model.tflite"),
    "tensorflow": ("model.savedmodel", "model.graphdef"),
    "python": ("model.py",),
}

#: Litter that no model needs, and that would make two identical models differ.
_LITTER = re.compile(r"__pycache__|\.DS_Store|\.ipynb_checkpoints|\.gitkeep")


def version_number(name: str) -> int | None:
    """The version a directory's name stands for, or None when it is no version directory.

    Raises:
        ArtifactError: Triton would read a number in it that its writer did not mean. It takes the
            leading digits (`stoll`), so `3.tmp` counts as 3, and 0 or 007 is not a version.
    """
    if re.fullmatch(r"[1-9][0-9]{0,17}", name):
        return int(name)
    if re.match(r"\s*[+-]?[0-9]", name):
        raise ArtifactError(
            f"directory {name!r} begins with a digit, and Triton would misread it as a version; "
            "version directories are 1, 2, 3, …: rename it"
        )
    return None


def is_litter(name: str) -> bool:
    """Whether a file or directory of this name is nothing that a model needs."""
    return _LITTER.fullmatch(name) is not None


def is_bytecode(path: PurePosixPath) -> bool:
    """Whether Triton's Python backend wrote it, when it imported a model's sources."""
    return path.parent.name == "__pycache__" and ".pyc" in path.name


def is_shared_path(path: PurePosixPath) -> bool:
    """Whether a file may stand at `path`, beside config.pbtxt, as one that versions share.

    Not outside the model, in a directory that Triton takes for a version, hidden, in the place of
    config.pbtxt or the record, or the bytecode of some source.
    """
    if not path.parts or path.is_absolute() or ".." in path.parts or is_bytecode(path):
        return False
    top = path.parts[0]
    in_version = len(path.parts) > 1 and re.match(r"\s*[+-]?[0-9]", top)
    ours = top in _OURS or top.startswith(OUR_DIRECTORY)  # staging areas begin with its name
    return not in_version and not top.startswith(".") and not ours


@dataclass(frozen=True)
class ModelDirectory:
    """One model in Triton's layout.

    Attributes:
        root: the directory.
        config: its config.pbtxt, or None where it relies on Triton's auto-complete.
        versions: the version directories' content, by number. An ensemble's is empty.
        shared: everything beside them, config.pbtxt left out.
    """

    root: Path
    config: ModelConfig | None
    versions: Mapping[int, Tree]
    shared: Tree

    @classmethod
    def read(
        cls,
        root: Path,
        *,
        inside: Path | None = None,
        versions: Iterable[int] = (),
        tally: Tally | None = None,
    ) -> ModelDirectory:
        """Read a directory and check that Triton could load it.

        Args:
            root: the model's directory.
            inside: what links may not leave; `root` when not given.
            versions: version directories that are known to exist although they may be missing
                here: object stores lose empty directories.
            tally: counts what is in it; without a limit when not given.

        Raises:
            ArtifactError: it is not a directory, has no versions, a link leaves it, a name in it
                is misleading, or it holds more than the tally allows.
            MissingModelFileError: a file that config.pbtxt names is missing.
            ConfigError: config.pbtxt does not parse.
        """
        if not root.is_dir():
            raise ArtifactError(f"{root} is not a directory")
        config_path = root / CONFIG_FILENAME
        inside = inside or root
        tally = tally or Tally(UNLIMITED, root)
        config = _read_config(config_path, inside) if os.path.lexists(config_path) else None
        trees = _version_trees(root, inside, tally)
        for version in versions:
            trees.setdefault(version, Tree())
        if not trees and config is not None and config.is_ensemble:
            trees[1] = Tree()  # an artifact store dropped the empty directory
        found = cls(root, config, dict(sorted(trees.items())), _shared_tree(root, inside, tally))
        found.check()
        return found

    def check(self) -> None:
        """Check versions and named files; see `read` for what is raised."""
        if not self.versions:
            raise ArtifactError(
                f"{self.root} has no version directory; put the model's files in {self.root}/1"
            )
        if self.config is None:
            return
        self.config.check_paths(where=str(self.root / CONFIG_FILENAME))
        _ = self.config.inputs, self.config.outputs  # every data_type must be one Triton has
        shared = set(self.shared.names())
        for field, path in self.config.named_files:
            if path not in shared:
                raise MissingModelFileError(
                    f"{self.root / CONFIG_FILENAME}: {field} names {path!r}, which is not there",
                    path=path,
                )
        for version in self.config.pinned_versions:
            if version not in self.versions:
                raise ConfigError(
                    f"{self.root / CONFIG_FILENAME}: version_policy names version {version}, "
                    f"and there is {_numbers(self.versions)}",
                    field="version_policy",
                )
        for version, tree in self.versions.items():
            self._check_model_file(self.config, version, tree, shared)

    def _check_model_file(
        self, config: ModelConfig, version: int, tree: Tree, shared: set[str]
    ) -> None:
        named = config.model_filename
        wanted = (named,) if named else _DEFAULT_FILENAMES.get(config.backend, ())
        if not wanted or config.is_ensemble:
            return
        present = {part for name in tree.names() for part in _leading_paths(name)}
        if config.backend == "python":  # newer servers also take one model.py for all versions
            present |= shared
        if present.isdisjoint(wanted):
            raise MissingModelFileError(
                f"{self.root / str(version)} has no {' or '.join(wanted)}, which the "
                f"{config.backend} backend loads; add it or set default_model_filename",
                path=f"{version}/{wanted[0]}",
            )


def _read_config(path: Path, inside: Path) -> ModelConfig:
    check_member(path, inside.resolve())
    try:
        return ModelConfig.read(path)
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror}") from exc


def _version_trees(root: Path, inside: Path, tally: Tally) -> dict[int, Tree]:
    trees: dict[int, Tree] = {}
    for path in sorted(root.iterdir()):
        version = version_number(path.name) if path.is_dir() else None
        if version is not None:
            trees[version] = scan_tree(path, inside=inside, keep=_wanted, tally=tally)
    return trees


def _shared_tree(root: Path, inside: Path, tally: Tally) -> Tree:
    def keep(path: PurePosixPath) -> bool:
        top = path.parts[0]
        is_version = (root / top).is_dir() and version_number(top) is not None
        # a leading dot: version control, staging areas and our own bookkeeping
        return _wanted(path) and not is_version and not top.startswith(".") and top not in _OURS

    return scan_tree(root, inside=inside, keep=keep, tally=tally)


#: At the top of a model directory these are not the user's shared files.
_OURS = frozenset({CONFIG_FILENAME, RECORD_FILENAME, OUR_DIRECTORY})


def _wanted(path: PurePosixPath) -> bool:
    return not is_litter(path.name)


def _leading_paths(name: str) -> list[str]:
    """`a/b/c` → `a`, `a/b`, `a/b/c`: a model may be a directory."""
    parts = PurePosixPath(name).parts
    return [str(PurePosixPath(*parts[: end + 1])) for end in range(len(parts))]


def _numbers(versions: Iterable[int]) -> str:
    return "only " + ", ".join(str(version) for version in sorted(versions))
