"""Model URI → concrete source → artifact on this machine. The only door to MLflow's artifacts.

What lies on a local disk is read where it is and never touched: `download_artifacts` would return
the same live directory, and write `registered_model_meta` into it.
"""

from __future__ import annotations

import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from mlflow_triton_plugin.errors import DownloadError, SettingsError
from triton_repo.artifact import MLMODEL_FILENAME, ModelArtifact
from triton_repo.config import CONFIG_FILENAME
from triton_repo.entry import RemoteFile
from triton_repo.errors import ArtifactError, MissingModelFileError, TritonRepoError
from triton_repo.flavors import ANY_MODEL, refuse_flavor
from triton_repo.masking import has_secret, without_secrets
from triton_repo.names import check_file_name
from triton_repo.record import Source
from triton_repo.scan import Limits, Tally, scan_tree
from triton_repo.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from mlflow_triton_plugin.settings import Settings

__all__ = ["FetchedModel", "RemoteArtifacts", "ResolvedModel", "fetched", "resolve"]

_logger = logging.getLogger(__name__)


#: Files below this are downloaded in any case: conversions read some of them.
_LARGE_BYTES = 1024 * 1024
#: And so are these, whatever their size.
_READ_WHOLE = {".json", ".pbtxt", ".yaml"}
#: And these, for the flavors that are made from them; they need not be uploaded again.
_CONVERTED = {
    "onnx": {".onnx"},
    "sklearn": {".pkl", ".skops"},
    "xgboost": {".ubj", ".pkl"},
    "lightgbm": {".lgb", ".txt", ".pkl"},
    "catboost": {".pkl"},
    "pytorch": {".pth"},
}
_DOWNLOADS = 8


@dataclass(frozen=True)
class S3Place:
    """Where artifacts lie.

    Attributes:
        uri: such as `s3://bucket/path`.
        endpoint: of that S3, or an empty string for the default.
    """

    uri: str
    endpoint: str


@dataclass(frozen=True)
class RemoteArtifacts:
    """Which artifacts a repository may be able to copy by itself.

    Attributes:
        copies_from: the store's, see `Store`.
        settings: where MLflow's artifact stores are, as this machine knows it.
    """

    copies_from: Callable[[str, str], bool]
    settings: Settings

    def locate(self, location: str) -> S3Place | None:
        """Where artifacts really lie; None where that is not known, or of no use."""
        uri = location
        parts = urlsplit(location)
        if parts.scheme == "mlflow-artifacts":
            destination = self.settings.artifacts_destination.rstrip("/")
            uri = f"{destination}/{parts.path.strip('/')}" if destination else ""
        place = S3Place(uri, self.settings.s3_endpoint)
        return place if self.copies_from(place.uri, place.endpoint) else None


@dataclass(frozen=True)
class FetchedModel:
    """A model as far as it is on this machine.

    Attributes:
        artifact: its directory.
        origins: where files lie that were not downloaded, by the path of what stands for them.
    """

    artifact: ModelArtifact
    origins: Mapping[Path, RemoteFile]


@dataclass(frozen=True)
class ResolvedModel:
    """A model URI, resolved as far as the tracking server and the registry can.

    Attributes:
        source: what the record will say.
        location: where the artifacts lie.
        beside: where artifacts that were logged beside the model may lie, or an empty string:
            `log_artifact("config.pbtxt", "triton")` on MLflow 3 puts them into the run, which is
            no longer where the model is.
    """

    source: Source
    location: str
    beside: str = ""


def resolve(model_uri: str) -> ResolvedModel:
    """Find out which model a URI means now.

    Args:
        model_uri: `models:/name/7`, `models:/name@alias`, `models:/name/latest`, `models:/m-…`,
            `runs:/…`, a path, or any location MLflow has an artifact repository for.

    Raises:
        MlflowException: MLflow knows no such model, or cannot be asked.
        DownloadError: the same, where MLflow has no words for it.
        SettingsError: the URI has a secret in it, which would be recorded.
    """
    if has_secret(model_uri):
        raise SettingsError(
            f"the URI of the model ({model_uri.partition(':')[0]}:…) holds a password or a "
            "signature, and what is deployed is recorded; leave it out and give MLflow its "
            "credentials in the environment",
            setting="model_uri",
        )
    with _downloading(model_uri):
        return _resolve(model_uri)


def _resolve(model_uri: str) -> ResolvedModel:
    scheme = urlsplit(model_uri).scheme
    if scheme == "models":
        return _resolve_models_uri(model_uri)
    if scheme == "runs":
        return _resolve_runs_uri(model_uri)
    if is_local_uri(model_uri):
        location = str(Path(local_file_uri_to_path(model_uri)).absolute())
        return ResolvedModel(Source(model_uri, location), location)
    return ResolvedModel(Source(model_uri, model_uri), model_uri)


def _resolve_models_uri(model_uri: str) -> ResolvedModel:
    client = mlflow.MlflowClient()
    base_uri, below = ModelsArtifactRepository.split_models_uri(model_uri)
    found = get_model_name_and_version(client, base_uri)
    if len(found) == 1:
        model = client.get_logged_model(found[0])
        source = Source(model_uri, f"models:/{found[0]}", run_id=model.source_run_id or "")
        source = replace(source, model_id=found[0])
        return ResolvedModel(source, _below(model.artifact_location, below), _beside(client, model))
    name, version = found
    registered = client.get_model_version(name, version)
    model_id = _model_id(registered)
    source = Source(
        uri=model_uri,
        concrete_uri=f"models:/{name}/{version}",
        registered_name=name,
        registered_version=int(version),
        alias=base_uri.rpartition("@")[2] if "@" in base_uri else "",
        run_id=registered.run_id or "",
        # Without a model id the registry's own source tells two models apart.
        model_id=model_id or without_secrets(registered.source or ""),
    )
    beside = _beside(client, client.get_logged_model(model_id)) if model_id else ""
    location = client.get_model_version_download_uri(name, version)
    return ResolvedModel(source, _below(location, below), beside)


def _model_id(registered: Any) -> str:
    """MLflow 3's id of a registered version; in some releases only `source` has it."""
    source = registered.source or ""
    if source.startswith("models:/m-"):
        return str(source).removeprefix("models:/")
    return getattr(registered, "model_id", None) or ""


def _resolve_runs_uri(model_uri: str) -> ResolvedModel:
    run_id, path = RunsArtifactRepository.parse_runs_uri(model_uri)
    client = mlflow.MlflowClient()
    model = _logged_model(client, run_id, path or "")
    if model is not None:
        source = Source(model_uri, f"models:/{model.model_id}", run_id=run_id)
        source = replace(source, model_id=model.model_id)
        return ResolvedModel(source, model.artifact_location, _beside(client, model))
    location = RunsArtifactRepository.get_underlying_uri(model_uri)
    return ResolvedModel(Source(model_uri, model_uri, run_id=run_id), location)


def _logged_model(client: Any, run_id: str, name: str) -> Any | None:
    """The youngest model that a run logged under a name; None where the run itself holds it."""
    if not name or not hasattr(client, "search_logged_models"):  # MLflow 2
        return None
    experiment_id = client.get_run(run_id).info.experiment_id
    token = None
    while True:
        page = client.search_logged_models(
            [experiment_id], filter_string=f"source_run_id = '{run_id}'", page_token=token
        )
        for model in page:
            if model.name == name:
                return model
        token = page.token
        if not token:
            return None


def _beside(client: Any, model: Any) -> str:
    if not model.source_run_id or not model.name:
        return ""
    try:
        root = client.get_run(model.source_run_id).info.artifact_uri
    except MlflowException:  # the run was deleted; the model was not
        return ""
    return _below(root, model.name)


def _below(location: str, path: str) -> str:
    return f"{location.rstrip('/')}/{path}" if path else location


@contextmanager
def fetched(
    model: ResolvedModel,
    remote: RemoteArtifacts | None = None,
    flavor: str | None = None,
    limits: Limits | None = None,
) -> Iterator[FetchedModel]:
    """Have the model on this machine for as long as the block lasts.

    Args:
        model: from `resolve`.
        flavor: which one is wanted; None for the best.
        remote: which artifacts the repository may be able to copy by itself: their large files
            are not downloaded, and something of the same size stands for each.
        limits: how much it may hold; more is refused before it is downloaded.

    Raises:
        ArtifactError: there is no model at its location, or it is not whole.
        DownloadError: the artifact store refuses, or breaks off.
        MlflowException: the same, where MLflow has words for it.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow-triton-") as scratch:
        directory = Path(scratch, "model")
        origins: dict[Path, RemoteFile] = {}
        limits = limits or Limits()
        where = remote.locate(model.location) if remote is not None else None
        with _downloading(model.location):
            if where is not None:
                root = directory
                origins = _download_small(model.location, where, directory, flavor, limits)
            else:
                root = _local_directory(model.location, model.source.uri, directory, limits)
        artifact = ModelArtifact.open(root, limits=limits)
        if model.beside and artifact.find(CONFIG_FILENAME) is None:
            with _downloading(model.beside):
                beside = _files_beside(model.beside, Path(scratch, "beside"), limits)
            artifact = replace(artifact, beside=beside)
        yield FetchedModel(artifact, origins)


@contextmanager
def _downloading(location: str) -> Iterator[None]:
    """Say of what fails in MLflow's artifact stores where it was, and nothing secret.

    They raise what the libraries below them do.
    """
    try:
        yield
    except (TritonRepoError, DownloadError):
        raise
    except MlflowException as exc:
        said = without_secrets(str(exc.message))
        raise MlflowException(said, codes.ErrorCode.Value(exc.error_code)) from exc
    except Exception as exc:
        said = one_line(exc)
        raise DownloadError(f"{without_secrets(location)} could not be read: {said}") from exc


def _download_small(
    location: str, where: S3Place, root: Path, flavor: str | None, limits: Limits
) -> dict[Path, RemoteFile]:
    """Download what a conversion may have to read; the large files, by where they will be."""
    repository = get_artifact_repository(location)
    root.mkdir()
    told = without_secrets(location)
    listed = dict(_walk(repository, "", Tally(limits, told)))
    if MLMODEL_FILENAME not in listed:
        raise MissingModelFileError(
            f"{told} is no MLflow model: it has no {MLMODEL_FILENAME}", path=MLMODEL_FILENAME
        )
    repository.download_artifacts(MLMODEL_FILENAME, dst_path=str(root))
    artifact = ModelArtifact.open(root)
    refuse_flavor(artifact, flavor)
    # a python_function is one of the model's other flavors: their files tell how it answers
    candidates = artifact.flavors if flavor is None or flavor == ANY_MODEL else (flavor,)
    converted = {suffix for each in candidates for suffix in _CONVERTED.get(each, ())}

    def download(path: str) -> None:
        (root / path).unlink(missing_ok=True)
        repository.download_artifacts(path, dst_path=str(root))

    large: dict[Path, RemoteFile] = {}
    small: list[str] = []
    for path, size_bytes in listed.items():
        if path == MLMODEL_FILENAME:
            continue
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        is_read = target.suffix in converted
        if size_bytes >= _LARGE_BYTES and target.suffix not in _READ_WHOLE:
            uri = f"{where.uri.rstrip('/')}/{path}"
            fetch = partial(download, path)
            large[target] = RemoteFile(uri, where.endpoint, fetch, is_here=is_read)
        else:
            is_read = True
        if is_read:
            small.append(path)
            continue
        with target.open("xb") as file:  # no blocks of the disk are written
            file.truncate(size_bytes)
    _logger.info("%s: %d large files are copied where they lie", told, len(large))
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        list(pool.map(download, small))
    return large


def _walk(repository: ArtifactRepository, path: str, tally: Tally) -> Iterator[tuple[str, int]]:
    """Every file of an artifact by its path, with its size; counted as they come."""
    for each in repository.list_artifacts(path or None):
        # whoever may write there chooses the names
        if not {"", ".", ".."}.isdisjoint(each.path.split("/")):
            raise ArtifactError(
                f"{without_secrets(repository.artifact_uri)} lists {each.path!r}, which leaves the "
                "model; remove it"
            )
        check_file_name(PurePosixPath(each.path).name)
        size_bytes = 0 if each.is_dir else max(0, each.file_size or 0)
        tally.add(PurePosixPath(each.path), size_bytes)
        if each.is_dir:
            yield from _walk(repository, each.path, tally)
        else:
            yield each.path, size_bytes


def _local_directory(location: str, model_uri: str, scratch: Path, limits: Limits) -> Path:
    if not is_local_uri(location):
        _logger.info("downloading %s", model_uri)
        return _download(location, scratch, limits)
    directory = Path(local_file_uri_to_path(location))
    if not directory.is_dir() and not model_uri.startswith(("models:", "runs:")):
        raise ArtifactError(
            f"there is no directory {directory}; give models:/name/version, models:/name@alias, "
            "runs:/… or the directory of a logged model (publish-model --flavor onnx makes one of "
            "an .onnx file)"
        )
    if not directory.is_dir():
        raise ArtifactError(
            f"{model_uri} should be in {directory}, and there is no such directory on this "
            "machine; use a tracking server that serves artifacts, or log the model again"
        )
    return directory


def _download(location: str, scratch: Path, limits: Limits) -> Path:
    """Bring a whole artifact, once it is seen to hold no more than it may.

    Raises:
        ArtifactError: it holds more, or names that lead astray.
    """
    scratch.mkdir()
    told = without_secrets(location)
    for _ in _walk(get_artifact_repository(location), "", Tally(limits, told)):
        pass
    directory = Path(mlflow.artifacts.download_artifacts(location, dst_path=str(scratch)))
    # some stores list no sizes, or other ones
    scan_tree(directory, inside=directory, tally=Tally(limits, told))
    return directory


def _files_beside(location: str, scratch: Path, limits: Limits) -> dict[str, Path]:
    """Files logged under the model's name in its run, if config.pbtxt is among them."""
    names = _listed(location)
    if CONFIG_FILENAME not in names or MLMODEL_FILENAME in names:
        return {}
    if is_local_uri(location):
        directory = Path(local_file_uri_to_path(location))
    else:
        directory = _download(location, scratch, limits)
    return {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if path.is_file() and path.resolve().is_relative_to(directory.resolve())
    }


def _listed(location: str) -> set[str]:
    try:
        return {each.path for each in get_artifact_repository(location).list_artifacts()}
    except (MlflowException, OSError):  # nothing was logged there
        return set()
