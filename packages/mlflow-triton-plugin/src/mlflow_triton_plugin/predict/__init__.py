"""What the caller sends, as the tensors that the model takes.

```
inputs ──named──▶ {name: values} ──array_of──▶ arrays ──shape──▶ checked ──cast──▶ tensors
```

No I/O, no server: `ModelSchema` says what the model takes. `_forms` has the table of the forms,
`_cast` the table of what may become what.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.predict._arrays import array_of
from mlflow_triton_plugin.predict._cast import cast, shown
from mlflow_triton_plugin.predict._forms import named, parameters
from mlflow_triton_plugin.predict._json import (
    json_texts,
    json_values,
    request_parameters,
)
from mlflow_triton_plugin.predict._schema import InvalidInputError, ModelSchema
from triton_repo.tensors import shape_fits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from triton_repo.tensors import TensorSpec

__all__ = [
    "InvalidInputError",
    "ModelSchema",
    "json_values",
    "request_parameters",
    "to_tensors",
]


def to_tensors(inputs: object, schema: ModelSchema) -> dict[str, NDArray[Any]]:
    """Turn what was given to `predict` into the tensors of one request.

    Args:
        inputs: a dict of arrays, lists or scalars; one array or list for a model with one input; a
            pandas frame or series; what MLflow's chats take; MLflow's, TensorFlow Serving's and
            KServe v2's JSON as Python holds it or as `pandas.read_json` delivers it. `_forms` lists
            them.
        schema: what the model takes.

    Returns:
        C-ordered arrays of the model's types, by input name. An array that was right already is in
        there itself, not a copy. BYTES are object arrays of `bytes`.

    Raises:
        InvalidInputError: an input is missing or unknown, a shape does not fit, or a value would
            not survive the cast; nothing was sent.
    """
    if not schema.parameters:
        parameters(inputs, schema)  # refused, not ignored
    values = named(inputs, schema)
    _check_names(values, schema)
    specs = schema.inputs_by_name
    tensors = {name: _tensor(value, specs[name], schema) for name, value in values.items()}
    if schema.max_batch_size > 0:
        _check_batch(tensors, schema)
    return tensors


def _tensor(value: object, spec: TensorSpec, schema: ModelSchema) -> NDArray[Any]:
    if spec.name in schema.json_inputs:
        return json_texts(value, spec)
    array = array_of(value, spec.name)
    if array.ndim == 1 and _is_one_value_a_row(spec):
        array = array.reshape(-1, *spec.shape[1:])
    _check_shape(array, spec, schema)
    bytes_type = schema.bytes_types.get(spec.name, "")
    return cast(array, spec, rounds=bool(schema.columns), bytes_type=bytes_type)


# -- names -----------------------------------------------------------------------------------------


def _check_names(values: Mapping[str, object], schema: ModelSchema) -> None:
    given, specs = values.keys(), schema.inputs_by_name
    if not given <= specs.keys():
        raise _unknown(next(name for name in given if name not in specs), schema)
    missing = schema.required - given
    if missing:
        first = next(spec for spec in schema.inputs if spec.name in missing)
        needed = ", ".join(str(spec) for spec in schema.inputs if spec.name in missing)
        raise InvalidInputError(
            f"{schema} also needs {needed}; given: {', '.join(values) or 'nothing'}",
            input=first.name,
        )


def _unknown(name: str, schema: ModelSchema) -> InvalidInputError:
    folded = {known.casefold(): known for known in schema.inputs_by_name}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    hint = f' (did you mean "{folded[near[0]]}"?)' if near else ""
    takes = ", ".join(map(str, schema.inputs)) or "nothing"
    return InvalidInputError(f'{schema} has no input "{name}"{hint}; it takes {takes}', input=name)


def _is_one_value_a_row(spec: TensorSpec) -> bool:
    """Whether a flat list can only mean rows: [-1, 1], as a column has it."""
    return len(spec.shape) > 1 and spec.shape[0] == -1 and set(spec.shape[1:]) == {1}


# -- shapes ----------------------------------------------------------------------------------------


def _check_shape(array: NDArray[Any], spec: TensorSpec, schema: ModelSchema) -> None:
    if shape_fits(array.shape, spec.shape):
        return
    hint = _shape_hint(array, spec, schema) or "-1 stands for any size"
    got, wanted = list(array.shape), list(spec.shape)
    raise InvalidInputError(
        f"input {spec.name}: shape {got} is not the model's {wanted}; {hint}", input=spec.name
    )


def _shape_hint(array: NDArray[Any], spec: TensorSpec, schema: ModelSchema) -> str | None:
    """What is missing or too much, where one dimension or the nesting is all that is wrong."""
    shape, wanted = array.shape, spec.shape
    first = "batch dimension" if schema.max_batch_size > 0 else "first dimension"
    if not shape:
        ones = [max(size, 1) for size in wanted]
        given = shown(array.item())
        return f"{given} is a single value, send nested lists or an array of shape such as {ones}"
    if wanted[:1] == (-1,) and shape_fits(shape, wanted[1:]):
        return f"the {first} is missing, send {[1, *shape]} (array[numpy.newaxis])"
    if shape[0] == 1 and shape_fits(shape[1:], wanted):
        return "there is one dimension too many, drop the first (array[0])"
    return None


def _check_batch(tensors: Mapping[str, NDArray[Any]], schema: ModelSchema) -> None:
    sizes = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise InvalidInputError(
            f"the batch dimensions differ: {said} rows; every input needs the same number"
        )
    for name, size in sizes.items():
        if not size:  # Triton takes it for one row whose bytes are missing
            raise InvalidInputError(
                f"input {name} has no rows; {schema} is asked for one at least", input=name
            )
        if size > schema.max_batch_size:
            raise InvalidInputError(
                f"input {name}: {size} rows are more than {schema} takes at once "
                f"(max_batch_size {schema.max_batch_size}); send them in several requests",
                input=name,
            )
