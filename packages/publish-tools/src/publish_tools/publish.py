"""From a directory to a registered model version. `publish_model` tells the story in order.

MLflow's own settings say where to: its tracking URI, its registry URI, the active run.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from publish_tools.errors import LabelError, PublishError, RegistrationError, UploadError
from publish_tools.plan import ModelPlan, content_digest, plan_model, plan_repository
from triton_repo.errors import ArtifactError, InvalidNameError, TritonRepoError
from triton_repo.text import one_line

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from mlflow import ActiveRun
    from mlflow.models.model import ModelInfo

    from publish_tools.examples import Example

__all__ = [
    "DIGEST_TAG",
    "Destination",
    "FailedModel",
    "Labels",
    "PublishedModel",
    "check_request",
    "iter_repository",
    "publish_model",
    "publish_repository",
]

#: The tag of a registered version that says what is in it, for `only_if_changed`.
DIGEST_TAG = "publish_tools.sha256"


@dataclass(frozen=True)
class Labels:
    """What is written on the registered version.

    Attributes:
        aliases: names that shall point to it, such as `champion`; they move from older versions.
        tags: by their keys.
        description: Markdown, shown on the version's page.
    """

    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class Destination:
    """The run that logs the model, when none is active.

    Attributes:
        experiment: made if it does not exist; MLflow's own choice when empty.
        run_name: `publish-<model>` when empty.
    """

    experiment: str = ""
    run_name: str = ""


@dataclass(frozen=True)
class PublishedModel:
    """One model, published or found to be there already.

    Attributes:
        name: the registered model.
        version: its version number; None when nothing was published (`planned`).
        status: `published`; `unchanged` when the newest version has the same content; `planned`
            after a dry run.
        plan: what was published.
        digest: SHA-256 over the content; empty after a dry run.
        run_id: the run that logged it; empty unless `published`.
        model_id: MLflow 3's `m-…`; empty on MLflow 2.
    """

    name: str
    version: int | None
    status: Literal["published", "unchanged", "planned"]
    plan: ModelPlan
    digest: str = ""
    run_id: str = ""
    model_id: str = ""

    @property
    def uri(self) -> str:
        """`models:/<name>/<version>`; empty after a dry run."""
        return f"models:/{self.name}/{self.version}" if self.version is not None else ""


@dataclass(frozen=True)
class FailedModel:
    """A model of a repository that could not be published."""

    name: str
    error: TritonRepoError | PublishError | OSError


def publish_model(
    name: str,
    source: str | os.PathLike[str],
    *,
    flavor: str | None = None,
    labels: Labels | None = None,
    destination: Destination | None = None,
    main_model: str = "",
    input_example: Example | None = None,
    output_example: Example | None = None,
    only_if_changed: bool = False,
    dry_run: bool = False,
) -> PublishedModel:
    """Check a model, upload it, register it, label it.

    Args:
        name: the registered model; made if it does not exist.
        source: a directory in Triton's layout, a directory of several models that are deployed as
            one, or an .onnx file or a directory with one.
        flavor: `triton` or `onnx`; see `plan_model` for the default.
        labels: aliases, tags and description of the version.
        destination: experiment and run.
        main_model: of several models the one that clients ask; see `plan_model`.
        input_example: `{name: nested lists or arrays}`, `{"inputs": {…}}`, or a JSON file of it;
            what `mlflow deployments update -C validate=true` asks the model.
        output_example: what the model answers to it, in the same forms with `"outputs"`.
        only_if_changed: publish no second version of what the newest one already holds; labels
            are written all the same.
        dry_run: check only; MLflow is not asked and nothing is changed.

    Raises:
        TritonRepoError: the model, an example or a name is not fit to be published; nothing was
            made in MLflow.
        OSError: it could not be read; nothing was made in MLflow.
        UploadError: nothing was registered; a run marked FAILED may be left.
        RegistrationError: the model was uploaded and not registered.
        LabelError: the version is registered and lacks an alias, tag or description.
    """
    labels, destination = labels or Labels(), destination or Destination()
    check_request(name, labels)
    plan = plan_model(
        source,
        flavor,
        main_model=main_model,
        input_example=input_example,
        output_example=output_example,
    )
    if dry_run:
        return PublishedModel(name, None, "planned", plan)
    digest = content_digest(plan)
    version = _version_with(name, digest) if only_if_changed else None
    if version is not None:
        _label(name, version, labels, tags=labels.tags)
        return PublishedModel(name, version, "unchanged", plan, digest)
    info = _upload(plan, name, destination)
    version = _register(info, name, {**labels.tags, DIGEST_TAG: digest})
    _label(name, version, labels)
    model_id = getattr(info, "model_id", None) or ""
    return PublishedModel(name, version, "published", plan, digest, info.run_id or "", model_id)


def publish_repository(
    repository: str | os.PathLike[str],
    *,
    labels: Labels | None = None,
    destination: Destination | None = None,
    only_if_changed: bool = True,
    dry_run: bool = False,
) -> list[PublishedModel | FailedModel]:
    """Publish every model of a model repository under its directory's name.

    One that fails does not stop the others. A second run publishes only what has changed since, so
    one that was interrupted can be repeated. See `publish_model` for the arguments.

    Raises:
        ArtifactError: this is no model repository.
    """
    return list(
        iter_repository(
            repository,
            labels=labels,
            destination=destination,
            only_if_changed=only_if_changed,
            dry_run=dry_run,
        )
    )


def iter_repository(
    repository: str | os.PathLike[str],
    *,
    labels: Labels | None = None,
    destination: Destination | None = None,
    only_if_changed: bool = True,
    dry_run: bool = False,
) -> Iterator[PublishedModel | FailedModel]:
    """`publish_repository`, one result at a time."""
    root = Path(repository).resolve()
    for path in plan_repository(repository):
        try:
            _check_inside(path, root)
            result: PublishedModel | FailedModel = publish_model(
                path.name,
                path,
                flavor="triton",
                labels=labels,
                destination=destination,
                only_if_changed=only_if_changed,
                dry_run=dry_run,
            )
        except (TritonRepoError, PublishError, OSError) as exc:
            result = FailedModel(path.name, exc)
        yield result


def _check_inside(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root):
        raise ArtifactError(
            f"{path} leads out of the repository; publish it by itself, with --model_directory"
        )


# -- names ------------------------------------------------------------------------------------


def check_request(name: str, labels: Labels) -> None:
    """Refuse what the registry would refuse, before anything is uploaded.

    Raises:
        InvalidNameError: the name, an alias or a tag's key is not one MLflow takes.
    """
    if not name.strip() or not name.isprintable() or set(name) & set("/:") or name in (".", ".."):
        raise InvalidNameError(
            f"{name!r} cannot name a registered model: it must not be empty or hold '/' or ':'",
            name=name,
        )
    for alias in labels.aliases:
        _check_alias(alias)
    for key in labels.tags:
        if not _TAG_KEY.fullmatch(key):
            raise InvalidNameError(
                f"{key!r} is no key for a tag: use up to 250 letters, digits, spaces and _ - . /",
                name=key,
            )


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias):
        raise InvalidNameError(
            f"{alias!r} cannot be an alias: use up to 255 letters, digits, _ and -; 'latest' and "
            "'v1', 'v2', … are MLflow's own",
            name=alias,
        )


# MLflow's rules, from its `utils/validation.py`
_TAG_KEY = re.compile(r"[/\w.\- ]{1,250}")
_ALIAS = re.compile(r"[\w\-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v[0-9]+", re.IGNORECASE)


# -- the steps --------------------------------------------------------------------------------
# Stores and registries raise whatever their own libraries do (botocore, sqlalchemy, requests, …),
# so each step catches everything and says what it leaves behind.


def _version_with(name: str, digest: str) -> int | None:
    """The newest version's number, if that is its content."""
    from mlflow import MlflowClient  # noqa: PLC0415 - 2 s that a dry run does not pay

    quoted = name.replace("'", "''")
    try:
        newest = MlflowClient().search_model_versions(
            f"name = '{quoted}'", max_results=1, order_by=["version_number DESC"]
        )
    except Exception as exc:
        raise UploadError(f"cannot ask the model registry about {name!r}: {_reason(exc)}") from exc
    same = [version for version in newest if version.tags.get(DIGEST_TAG) == digest]
    return int(same[0].version) if same else None


def _upload(plan: ModelPlan, name: str, destination: Destination) -> ModelInfo:
    """Log the model in the active run, or in one of its own that ends here."""
    run_id = ""
    try:
        with _run(name, destination) as run:
            run_id = run.info.run_id
            return _log(plan)
    except Exception as exc:
        left = f"run {run_id} is left" if run_id else "no run was made"
        raise UploadError(
            f"cannot upload {plan.source}: {_reason(exc)}; nothing was registered, {left}",
            run_id=run_id,
        ) from exc


def _log(plan: ModelPlan) -> ModelInfo:
    from publish_tools import onnx_file, triton  # noqa: PLC0415 - they import mlflow

    inputs, outputs = plan.examples.inputs, plan.examples.outputs
    if plan.flavor == "onnx":
        return onnx_file.log_model(plan.source, input_example=inputs, output_example=outputs)
    return triton.log_model(
        plan.source,
        main_model=plan.settings.get("main_model", ""),
        input_example=inputs,
        output_example=outputs,
    )


@contextmanager
def _run(name: str, destination: Destination) -> Iterator[ActiveRun]:
    import mlflow  # noqa: PLC0415 - 2 s that a dry run does not pay

    active = mlflow.active_run()
    if active is not None:
        yield active
        return
    run_name = destination.run_name or f"publish-{name}"
    experiment_id = _experiment_id(destination.experiment)
    with mlflow.start_run(experiment_id=experiment_id, run_name=run_name) as run:
        yield run


def _experiment_id(name: str) -> str | None:
    import mlflow  # noqa: PLC0415 - the same

    if not name:
        return None
    found = mlflow.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else mlflow.create_experiment(name))


def _register(info: ModelInfo, name: str, tags: Mapping[str, str]) -> int:
    import mlflow  # noqa: PLC0415 - the same

    try:
        version = mlflow.register_model(info.model_uri, name, tags=dict(tags))
    except Exception as exc:
        raise RegistrationError(
            f"cannot register {name!r}: {_reason(exc)}; the model is uploaded as {info.model_uri} "
            f"(run {info.run_id}): register it from there, or publish again{_left(name)}",
            run_id=info.run_id or "",
            model_uri=info.model_uri,
        ) from exc
    return int(version.version)


def _left(name: str) -> str:
    """A registered model without versions, which a failed registration can leave."""
    from mlflow import MlflowClient  # noqa: PLC0415 - the same

    try:
        model = MlflowClient().get_registered_model(name)
    except Exception:  # noqa: BLE001 - the registry fails: that is what we are reporting
        return ""
    return "" if model.latest_versions else f"; {name!r} is registered, with no version so far"


def _label(
    name: str, version: int, labels: Labels, *, tags: Mapping[str, str] | None = None
) -> None:
    """Write the labels; aliases last, since they are what deployments follow."""
    from mlflow import MlflowClient  # noqa: PLC0415 - the same

    client, number = MlflowClient(), str(version)
    try:
        for key, value in (tags or {}).items():
            client.set_model_version_tag(name, number, key, value)
        if labels.description:
            client.update_model_version(name, number, labels.description)
        for alias in labels.aliases:
            client.set_registered_model_alias(name, alias, number)
    except Exception as exc:
        uri = f"models:/{name}/{version}"
        raise LabelError(
            f"{uri} is registered, but not labelled: {_reason(exc)}; set the alias, tag or "
            "description on MLflow's page",
            model_uri=uri,
        ) from exc


def _reason(exc: Exception) -> str:
    """One line of what a library said, which may be an address with a password."""
    text = one_line(exc)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


#: A proxy's error page would fill the terminal otherwise.
_LONGEST_REASON = 500
