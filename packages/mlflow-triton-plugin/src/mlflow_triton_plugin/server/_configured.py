"""What a model's configuration says of it that its metadata does not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_triton_plugin.predict import ModelSchema
from triton_repo.flavors import COLUMNS
from triton_repo.flavors.pyfunc import (
    JSON_INPUTS,
    JSON_LISTS,
    JSON_OUTPUTS,
    PARAMS,
    STREAMS,
    TYPES,
    UNNAMED,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from triton_repo.config import ModelConfig
    from triton_repo.tensors import TensorSpec

__all__ = ["Configured", "schema_of"]


@dataclass(frozen=True)
class Configured:
    """The same for both protocols.

    Attributes:
        optional: names of inputs that may be left out.
        max_batch_size: the largest batch, 0 where there is none.
        parameters: the backend's, such as those of `triton_repo.flavors.pyfunc`.
        decoupled: see `ModelSchema`.
    """

    optional: frozenset[str]
    max_batch_size: int
    parameters: Mapping[str, str]
    decoupled: bool | None

    @classmethod
    def unknown(cls, inputs: Iterable[TensorSpec]) -> Configured:
        """For who may ask for predictions only: it is for Triton to check."""
        return cls(frozenset(spec.name for spec in inputs), 0, {}, None)

    def schema(
        self,
        model: str,
        version: str,
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
    ) -> ModelSchema:
        """All that is known of a model, its metadata together with this."""
        return ModelSchema(
            name=model,
            version=version,
            inputs=tuple(replace(spec, optional=spec.name in self.optional) for spec in inputs),
            outputs=tuple(outputs),
            max_batch_size=self.max_batch_size,
            parameters=tuple(self._names(PARAMS)),
            json_inputs=frozenset(self._names(JSON_INPUTS)),
            json_lists=frozenset(self._names(JSON_LISTS)),
            json_outputs=frozenset(self._names(JSON_OUTPUTS)),
            columns=tuple(self._names(COLUMNS)),
            bytes_types=self._texts(TYPES),
            is_unnamed=self.parameters.get(UNNAMED) == "true",
            decoupled=self.decoupled,
            ends_streams=STREAMS in self.parameters,
        )

    def _names(self, key: str) -> list[str]:
        """A list of names in JSON; somebody else's parameter of this name is none."""
        names = self._json(key)
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def _texts(self, key: str) -> dict[str, str]:
        """An object of texts in JSON; somebody else's parameter of this name is none."""
        texts = self._json(key)
        items = texts.items() if isinstance(texts, dict) else ()
        return {name: text for name, text in items if isinstance(text, str)}

    def _json(self, key: str) -> object:
        try:
            return json.loads(self.parameters.get(key, "null"))
        except (ValueError, RecursionError):
            return None


def schema_of(config: ModelConfig, *, model: str) -> ModelSchema:
    """What a model takes by its config.pbtxt, as its server would say it."""
    batch = (-1,) if config.max_batch_size > 0 else ()
    inputs, outputs = (
        tuple(replace(spec, shape=batch + spec.shape) for spec in side)
        for side in (config.inputs, config.outputs)
    )
    optional = frozenset(spec.name for spec in inputs if spec.optional)
    configured = Configured(optional, config.max_batch_size, config.parameters, config.is_decoupled)
    return configured.schema(model, "", inputs, outputs)
