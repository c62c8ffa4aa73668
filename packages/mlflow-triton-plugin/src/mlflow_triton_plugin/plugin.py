"""The MLflow deployments target `triton`: MLflow's plugin contract, and nothing else.

MLflow looks in this module for `run_local`, `target_help` and exactly one subclass of
`BaseDeploymentClient`, imports included. Source: `mlflow.deployments.base` and `.interface`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mlflow.deployments import base as deployments_base

from mlflow_triton_plugin import describe
from mlflow_triton_plugin.deploy import Deployer
from mlflow_triton_plugin.fetch import RemoteArtifacts
from mlflow_triton_plugin.options import parse_options
from mlflow_triton_plugin.predicting import Predictor
from mlflow_triton_plugin.server import TritonServers
from mlflow_triton_plugin.settings import Settings
from mlflow_triton_plugin.target_help import help_text
from mlflow_triton_plugin.translate import translated
from triton_repo.integrity import verify_repository
from triton_repo.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton_plugin.response import Prediction
    from triton_repo.store import Store

__all__ = ["TritonDeploymentClient", "run_local", "target_help"]

_logger = logging.getLogger(__name__)


class TritonDeploymentClient(deployments_base.BaseDeploymentClient):
    """Deploys MLflow models to NVIDIA Triton Inference Server.

    Every error is an `MlflowException` with MLflow's error code and its cause attached. Use
    `mlflow.deployments.get_deploy_client("triton")`.

    Args:
        target_uri: `triton`, or `triton://host:port` to override TRITON_URL.

    Raises:
        MlflowException: INVALID_PARAMETER_VALUE where the address is none.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        with translated():
            self._settings = Settings.read(target_uri)
            self._servers = TritonServers.open(
                self._settings.endpoints,
                timeout_s=self._settings.request_timeout_s,
                access=self._settings.access,
            )
        self._predictor = Predictor(self._servers)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a model; on return it serves, and a restarted server will serve it too.

        Args:
            name: the deployment; also the model's name on Triton.
            model_uri: `models:/name/7`, `models:/name@alias`, `runs:/…`, `models:/m-…`, a path.
            flavor: `triton` or `onnx`; the best one the model has when not given.
            config: options, see `mlflow deployments help -t triton`.
            endpoint: not supported.

        Returns:
            The deployment, as `get_deployment` gives it.

        Raises:
            MlflowException: nothing was changed. RESOURCE_ALREADY_EXISTS where the name is taken.
        """
        with translated():
            _refuse_endpoint(endpoint)
            options = parse_options(config, command="create")
            return self._deployer().create(name, model_uri, flavor, options)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Serve another version or model under a deployed name.

        Args:
            name: the deployment.
            model_uri: as in `create_deployment`; without it what is deployed is loaded again.
            flavor: as in `create_deployment`.
            config: options, see `mlflow deployments help -t triton`.
            endpoint: not supported.

        Returns:
            The deployment, as `get_deployment` gives it.

        Raises:
            MlflowException: the old version still serves. RESOURCE_DOES_NOT_EXIST where there is
                no such deployment.
        """
        with translated():
            _refuse_endpoint(endpoint)
            options = parse_options(config, command="update")
            return self._deployer().update(name, model_uri, flavor, options)

    def delete_deployment(
        self,
        name: str,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> None:
        """Unload a deployment and remove its directory; what is not there is fine.

        Args:
            name: the deployment.
            config: options, see `mlflow deployments help -t triton`.
            endpoint: not supported.

        Raises:
            MlflowException: the same call goes on where this one stopped.
        """
        with translated():
            _refuse_endpoint(endpoint)
            options = parse_options(config, command="delete")
            if not self._deployer().delete(name, options):
                _logger.warning("there was no deployment %s", name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Every deployment in the repository, whatever its state.

        Args:
            endpoint: not supported.

        Returns:
            One dict a deployment, see `get_deployment`.
        """
        with translated():
            _refuse_endpoint(endpoint)
            return describe.list_deployments(self._store(), self._servers)

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One deployment.

        Args:
            name: the deployment.
            endpoint: not supported.

        Returns:
            `name`, `flavor`, `mlflow_model_uri`, `triton_model_path`, `state` (Triton's, or
            `NOT_LOADED`, `PARTLY_READY`, `INTERRUPTED`), `reason`, `served_versions`, and
            `versions`: those on disk, each with its source, digest and time, and what options have
            set of its config.pbtxt (`overrides`), if any.

        Raises:
            MlflowException: RESOURCE_DOES_NOT_EXIST where there is none.
        """
        with translated():
            _refuse_endpoint(endpoint)
            return describe.get_deployment(self._store(), self._servers, name)

    def predict(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> Prediction:
        """Send one request.

        Args:
            deployment_name: the deployment; `resnet/6` for one version of several that serve.
            inputs: a dict of arrays or lists, one array for a model with one input, a frame, or
                what `pandas.read_json` makes of the JSON forms that MLflow, Triton and KServe use.
            endpoint: not supported.

        Returns:
            A dict: `["outputs"][name]` is an ndarray; `to_json` is exact.

        Raises:
            MlflowException: RESOURCE_DOES_NOT_EXIST where nothing serves under this name;
                INVALID_PARAMETER_VALUE where the inputs are not what the model takes; BAD_REQUEST
                where Triton or the model refused them.
        """
        with translated():
            _refuse_endpoint(endpoint)
            return self._predictor.predict(deployment_name, inputs)

    def predict_stream(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> Iterator[Prediction]:
        """Send one request to a model that answers in pieces, and take them as they come.

        Args:
            deployment_name: as in `predict`.
            inputs: as in `predict`; MLflow's models take one row.
            endpoint: not supported.

        Returns:
            One prediction a piece, once the first has come; see `predict`. Closing the iterator,
            or letting it go, ends the request: the model is told.

        Raises:
            MlflowException: those of `predict`, and BAD_REQUEST where the model answers at once.
                It also comes in the midst of the pieces, where the model raises there.
        """
        with translated():
            _refuse_endpoint(endpoint)
            predictions = self._predictor.predict_stream(deployment_name, inputs)
        return _translated_each(predictions)

    def verify_deployment(self, name: str | None = None) -> list[dict[str, str]]:
        """Compare every file with the sha256 in its deployment's record; no server is asked.

        Args:
            name: the deployment; every one when not given.

        Returns:
            What differs, nothing where all is as recorded: `deployment`, `path`, `problem`
            (`missing`, `changed`, `extra`; `unreadable`, `interrupted` and `unrecorded` where that
            cannot be said) and `detail`. `mlflow-triton verify` prints the same.

        Raises:
            MlflowException: RESOURCE_DOES_NOT_EXIST where there is no such deployment.
        """
        with translated():
            findings = verify_repository(self._store(), (name,) if name is not None else ())
            return [vars(finding).copy() for finding in findings]

    def repair_deployment(self, name: str, config: dict[str, Any] | None = None) -> str | None:
        """Finish or undo what an interrupted command left, and nothing else.

        Args:
            name: the deployment.
            config: options, see `mlflow deployments help -t triton`.

        Returns:
            `finished`, `undone`, or None where nothing was interrupted.

        Raises:
            MlflowException: RESOURCE_CONFLICT where that command is still running.
        """
        with translated():
            options = parse_options(config, command="delete")
            return self._deployer().repair(name, options)

    def plan_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What create, or of a deployed name update, would do now; nothing is changed.

        Args:
            name: the deployment.
            model_uri: as in `create_deployment` and `update_deployment`.
            flavor: as in `create_deployment`.
            config: options, see `mlflow deployments help -t triton`.

        Returns:
            See `mlflow_triton_plugin.preview.preview`; `mlflow-triton plan --json` prints the same.

        Raises:
            MlflowException: what the command would raise. RESOURCE_CONFLICT where a change is under
                way, or was interrupted.
        """
        with translated():
            deployer = self._deployer()
            options = parse_options(config, command=deployer.next_operation(name))
            return deployer.plan(name, model_uri, flavor, options)

    def _store(self) -> Store:
        return open_store(self._settings.required_repository())

    def _deployer(self) -> Deployer:
        store = self._store()
        return Deployer(store, self._servers, RemoteArtifacts(store.copies_from, self._settings))


def _translated_each(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    with translated():
        yield from predictions


def _refuse_endpoint(endpoint: str | None) -> None:
    if endpoint is not None:
        raise NotImplementedError(
            f"endpoints are not supported by the triton target (got {endpoint!r}); "
            "leave --endpoint out and use --name"
        )


def run_local(
    name: str,
    model_uri: str,
    flavor: str | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """Serve one model on an embedded Triton until Ctrl-C.

    Args:
        name: the model's name on Triton.
        model_uri: as in `create_deployment`.
        flavor: as in `create_deployment`.
        config: options, see `mlflow deployments help -t triton`.

    Raises:
        MlflowException: the server or the model could not be started; nothing is left running.
    """
    from mlflow_triton_plugin.run_local import serve_until_interrupted  # noqa: PLC0415 - rarely used

    with translated():
        serve_until_interrupted(name, model_uri, flavor, parse_options(config, command="run-local"))


def target_help() -> str:
    """What `mlflow deployments help -t triton` prints."""
    return help_text()
