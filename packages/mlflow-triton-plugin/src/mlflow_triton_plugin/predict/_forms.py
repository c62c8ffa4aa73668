"""The forms inputs come in, each brought to `{input name: values}`.

| form | as Python holds it | as `pd.read_json`, hence the CLI, delivers it |
| --- | --- | --- |
| named | `{"A": [[…]], "B": [[…]]}` | a column an input, cells hold rows |
| wrapped | `{"inputs": {"A": [[…]]}}` | one column `inputs`, the index holds the names |
| single | `[[…]]`; `{"inputs": [[…]]}`; `{"instances": [[…]]}` | columns 0…N-1; one column |
| records | `{"instances": [{"A": 1}, …]}`; `{"dataframe_records": […]}`; bare | cells hold dicts |
| split | `{"dataframe_split": {"columns": […], "data": […]}}`; bare | index holds the keys |
| KServe v2 | `{"inputs": [{"name", "shape", "datatype", "data"}, …]}` | cells hold dicts |
| columns | a frame: a column an input, or N feature columns for one input `[-1, N]` | the same |
| chat | `{"messages": [{…}, …], "temperature": 0.5}`, MLflow's chats | a message a row |

Where the model's configuration names the feature columns (`mlflow_columns`), they are put in its
order, a dict of them is a table too, and other names are refused; without, it is the frame's order
that counts. So it is where MLflow's model has columns without names (`mlflow_unnamed`): it is given
the table's own names, as in process.

A dict is one row, as it is to MLflow, where its values cannot be read otherwise: it has a list of
no lists for an input that takes a list in each row. To all other models a list is rows.

A frame that pandas made of a wrapping is first given the spelling it had in the file, so that each
form is understood in one place. A wrapping's key that is also an input's name is the input, unless
what it holds cannot be a tensor (a dict of names, a list of KServe v2 tensors).

Sources: MLflow's scoring protocol ("Local Inference Server Spec"), TensorFlow Serving's REST API,
the Open Inference Protocol ("Inference Request JSON Object").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np

from mlflow_triton_plugin.predict._arrays import array_of, is_frame, is_series
from mlflow_triton_plugin.predict._cast import is_bytes_object
from mlflow_triton_plugin.predict._schema import InvalidInputError
from triton_repo.tensors import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from mlflow_triton_plugin.predict._schema import ModelSchema
    from triton_repo.tensors import TensorSpec

__all__ = ["column_names", "named", "parameters"]

_WRAPPERS = ("inputs", "instances", "dataframe_split", "dataframe_records")
#: What may stand beside a wrapper's key. Ignoring a choice of outputs is harmless: all come back.
_BESIDE = {"id", "signature_name", "model_name", "model_version", "outputs"}
#: What changes the result, and so is refused, rather than ignored, where the model has none.
_PARAMETERS = {"params", "parameters"}


def text_of(label: object) -> str:
    """Return a name as text: of an Enum that is a string, its value."""
    return str.__str__(label) if isinstance(label, str) else str(label)


def named(inputs: object, schema: ModelSchema) -> Mapping[str, object]:
    """Bring any of the forms to values by input name; neither types nor shapes are looked at yet.

    Raises:
        InvalidInputError: the form is not one of those above, or contradicts itself.
    """
    if isinstance(inputs, Mapping):
        return _of_mapping(inputs, schema)
    if is_frame(inputs):
        spelled = _as_it_was_in_the_file(inputs, schema) or _as_a_chat(inputs, schema)
        return _of_mapping(spelled, schema) if spelled else _of_table(_Frame(inputs), schema)
    if is_series(inputs):
        return _of_series(inputs, schema)
    return _of_values(inputs, schema)


def parameters(inputs: object, schema: ModelSchema) -> Mapping[str, object]:
    """What stands beside the inputs as MLflow's `params`, for a `python_function`.

    Raises:
        InvalidInputError: the model takes no such parameter, or none at all.
    """
    if is_frame(inputs):
        if _PARAMETERS.isdisjoint(map(str, inputs.columns)):
            return {}
        inputs = _as_it_was_in_the_file(inputs, schema)
    if not isinstance(inputs, Mapping) or _wrapper(inputs, schema) is None:
        return {}
    found = [(key, inputs[key]) for key in sorted(_PARAMETERS & set(inputs)) if inputs[key]]
    return {name: value for key, given in found for name, value in _known(key, given, schema)}


def column_names(inputs: object, schema: ModelSchema) -> Sequence[object]:
    """The names of a table's columns, for a model whose own have none; empty for what is no table.

    Columns that pandas has numbered have numbers.
    """
    if not schema.is_unnamed:
        return ()
    if is_frame(inputs):
        inputs = _as_it_was_in_the_file(inputs, schema) or inputs
    wrapper = _wrapper(inputs, schema) if isinstance(inputs, Mapping) else None
    if isinstance(inputs, Mapping) and wrapper is not None:
        content = inputs if wrapper == "columns" else inputs[wrapper]
        if wrapper in ("columns", "dataframe_split") and isinstance(content, Mapping):
            return list(content["columns"])
        inputs = content
    return _labels(inputs, schema)


def _labels(values: object, schema: ModelSchema) -> Sequence[object]:
    if is_frame(values):
        labels: Sequence[object] = values.columns.tolist()
        # read_json makes a column of the wrapper's key, which is also what we call the input
        return [] if labels == ["inputs"] else labels
    if is_series(values):
        return [] if values.name is None else [values.name]
    if _is_list_of_dicts(values) and not _are_objects(values, schema):
        return [] if all(map(is_bytes_object, values)) else list(values[0])
    if isinstance(values, Mapping) and not is_bytes_object(values):
        return [] if schema.inputs_by_name.keys() >= values.keys() else list(values)
    return []


def _known(key: str, given: object, schema: ModelSchema) -> Iterator[tuple[str, object]]:
    if not schema.parameters:
        raise InvalidInputError(
            f'"{key}" is not supported: this model takes tensors only; leave it out, or send its '
            "values as inputs"
        )
    takes = ", ".join(schema.parameters)
    if not isinstance(given, Mapping):
        raise InvalidInputError(f'"{key}" holds an object, name and value; {schema} takes {takes}')
    for name, value in given.items():
        if name not in schema.parameters:
            raise InvalidInputError(f'{schema} takes no parameter "{name}"; it takes {takes}')
        yield name, value


def _of_mapping(inputs: Mapping[Any, object], schema: ModelSchema) -> Mapping[str, object]:
    wrapper = _wrapper(inputs, schema)
    if wrapper is None:
        return _of_names(inputs, schema)
    if wrapper == "columns":
        return _of_split(inputs, schema)
    return _of_wrapped(wrapper, inputs[wrapper], schema)


def _wrapper(inputs: Mapping[Any, object], schema: ModelSchema) -> str | None:
    """The key that wraps everything else, or None where the keys are the inputs' names."""
    key, names = _outer_key(set(inputs)), schema.inputs_by_name
    if key == "columns":
        return None if set(inputs) <= set(names) else key
    return None if key in names and not _cannot_be_a_tensor(inputs[key]) else key


def _outer_key(keys: set[Any]) -> str | None:
    if {"columns", "data"} <= keys <= {"columns", "index", "data"}:
        return "columns"
    return next((k for k in _WRAPPERS if k in keys and keys - {k} <= _BESIDE | _PARAMETERS), None)


def _cannot_be_a_tensor(value: object) -> bool:
    return (isinstance(value, Mapping) and not is_bytes_object(value)) or _is_kserve(value)


def _is_kserve(value: object) -> TypeGuard[Sequence[Mapping[Any, Any]]]:
    return _is_list_of_dicts(value) and all(
        "name" in tensor and not {"shape", "datatype"}.isdisjoint(tensor) for tensor in value
    )


def _is_list_of_dicts(value: object) -> TypeGuard[Sequence[Mapping[Any, Any]]]:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, Mapping) for item in value)
    )


def _of_wrapped(wrapper: str, content: object, schema: ModelSchema) -> Mapping[str, object]:
    if wrapper == "dataframe_split":
        return _of_split(content, schema)
    if wrapper == "dataframe_records":
        if not _is_list_of_dicts(content):
            raise InvalidInputError('"dataframe_records" holds a list of objects: [{"A": 1}, …]')
        return _of_table(_records(content), schema)
    if isinstance(content, Mapping) and not is_bytes_object(content):
        return _of_names(content, schema)
    if wrapper == "inputs" and _is_kserve(content):
        return _of_kserve(content)
    return _of_values(content, schema)


def _of_names(values: Mapping[Any, object], schema: ModelSchema) -> Mapping[str, object]:
    """Inputs by their names, or the columns of the one input there is by theirs."""
    named = {text_of(name): value for name, value in values.items()}
    if any(_has_no_lists(named[name]) for name in schema.json_lists & named.keys()):
        return {name: [value] for name, value in named.items()}
    is_table = schema.columns or schema.is_unnamed
    if is_table and named and schema.inputs_by_name.keys().isdisjoint(named):
        return _of_table(_Columns(named), schema)
    return named


def _has_no_lists(values: object) -> bool:
    return isinstance(values, (list, tuple)) and not any(
        isinstance(each, (list, tuple, np.ndarray)) for each in values
    )


def _of_values(value: object, schema: ModelSchema) -> Mapping[str, object]:
    if is_frame(value):
        return _of_table(_Frame(value), schema)
    if is_series(value):
        return _of_series(value, schema)
    are_bytes = isinstance(value, (list, tuple)) and all(map(is_bytes_object, value))
    if (
        _is_list_of_dicts(value)
        and ("b64" in schema.inputs_by_name or not are_bytes)
        and not _are_objects(value, schema)
    ):
        return _of_table(_records(value), schema)
    return {_only_input(schema).name: value}


def _are_objects(records: Iterable[Mapping[Any, object]], schema: ModelSchema) -> bool:
    """Whether these are values of the one input there is, which takes objects, and no rows."""
    names = schema.inputs_by_name.keys()
    return (
        len(names) == 1
        and names <= schema.json_inputs
        and any(names.isdisjoint(record) for record in records)
    )


def _only_input(schema: ModelSchema) -> TensorSpec:
    """The input that values without a name are for."""
    candidates = [spec for spec in schema.inputs if not spec.optional] or list(schema.inputs)
    if len(candidates) != 1:
        names = ", ".join(spec.name for spec in schema.inputs) or "none"
        raise InvalidInputError(
            f"{schema} has {len(schema.inputs)} inputs ({names}), and the values do not say which "
            "they are for; send {name: values}"
        )
    return candidates[0]


# -- frames as pandas.read_json makes them of a wrapping -------------------------------------------


def _as_it_was_in_the_file(frame: pd.DataFrame, schema: ModelSchema) -> dict[str, object] | None:
    """The dict that `pandas.read_json` made this frame of; None for an ordinary frame."""
    columns = [text_of(column) for column in frame.columns]
    key = _outer_key(set(columns))
    if key is None or len(set(columns)) < len(columns):
        return None
    by_name: dict[str, pd.Series[Any]] = {c: frame.iloc[:, i] for i, c in enumerate(columns)}
    spelled: dict[str, object] = {c: series.dropna().tolist() for c, series in by_name.items()}
    content = by_name[key] if key != "columns" else None
    for beside in _PARAMETERS & set(spelled):  # their names are in the index, too
        cells = by_name[beside].dropna()
        spelled[beside] = dict(zip(cells.index.tolist(), cells.tolist(), strict=True))
        if content is not None:
            content = content[content.notna() | by_name[beside].isna()]
    if content is not None:
        spelled[key] = _content(content, key, schema)
    return spelled if _wrapper(spelled, schema) else None


def _content(series: pd.Series[Any], key: str, schema: ModelSchema) -> object:
    """An object in the file has its keys as index; a list has its positions."""
    labels = series.index.tolist()
    names = [text_of(label) for label in labels]  # read_json makes numbers of names like "0"
    are_inputs = set(names) <= schema.inputs_by_name.keys() | set(schema.columns)
    are_text = all(isinstance(label, str) for label in labels)
    if names and (are_inputs or (are_text and key not in schema.inputs_by_name)):
        return dict(zip(names, series.tolist(), strict=True))
    return series.tolist()


def _as_a_chat(frame: pd.DataFrame, schema: ModelSchema) -> dict[str, object] | None:
    """The dict that `pandas.read_json` made this frame of: messages are rows, the rest is repeated.

    Raises:
        InvalidInputError: the rest is not the same everywhere.
    """
    columns = {text_of(name): series.tolist() for name, series in frame.items()}
    lists = [columns[name] for name in schema.json_lists & columns.keys()]
    if frame.empty or not any(map(_has_no_lists, lists)):
        return None
    spelled: dict[str, object] = {}
    for name, cells in columns.items():
        spec = schema.inputs_by_name.get(name)
        takes_a_list = name in schema.json_lists or (spec is not None and spec.shape[1:] == (-1,))
        if takes_a_list and _has_no_lists(cells):
            spelled[name] = cells
            continue
        if any(cell != cells[0] for cell in cells):
            raise InvalidInputError(
                f"input {name}: has other values beside other messages; a chat has one", input=name
            )
        spelled[name] = cells[0]
    return spelled


# -- tables ----------------------------------------------------------------------------------------


class _Table(Protocol):
    @property
    def names(self) -> list[str]: ...
    def column(self, position: int) -> object: ...
    def matrix(self) -> object: ...


@dataclass(frozen=True)
class _Frame:
    frame: pd.DataFrame

    @property
    def names(self) -> list[str]:
        return [text_of(column) for column in self.frame.columns]

    def column(self, position: int) -> object:
        return self.frame.iloc[:, position]

    def matrix(self) -> object:
        return self.frame


@dataclass(frozen=True)
class _Columns:
    values: Mapping[str, object]

    @property
    def names(self) -> list[str]:
        return list(self.values)

    def column(self, position: int) -> object:
        return list(self.values.values())[position]

    def matrix(self) -> object:
        return _joined([array_of(value, name) for name, value in self.values.items()])


@dataclass(frozen=True)
class _Rows:
    names: list[str]
    rows: list[Sequence[object]]

    def column(self, position: int) -> object:
        return [row[position] for row in self.rows]

    def matrix(self) -> object:
        return self.rows


def _of_split(content: object, schema: ModelSchema) -> Mapping[str, object]:
    if not isinstance(content, Mapping) or not {"columns", "data"} <= content.keys():
        raise InvalidInputError(
            '"dataframe_split" holds {"columns": ["A", …], "data": [[1, …], …]}'
        )
    names, rows = [text_of(name) for name in content["columns"]], list(content["data"])
    for position, row in enumerate(rows):
        if not isinstance(row, (list, tuple, np.ndarray)) or len(row) != len(names):
            given = len(row) if isinstance(row, (list, tuple, np.ndarray)) else 1
            raise InvalidInputError(
                f'"data"[{position}] has {given} values for {len(names)} columns '
                f"({', '.join(names)}); every row needs one value a column"
            )
    return _of_table(_Rows(names, rows), schema)


def _records(records: Sequence[Mapping[Any, object]]) -> _Rows:
    keys = list(dict.fromkeys(key for record in records for key in record))
    for position, record in enumerate(records):
        absent = [text_of(key) for key in keys if key not in record]
        if absent:
            raise InvalidInputError(
                f"record {position} has no {', '.join(absent)}; every record needs the same keys"
            )
    rows: list[Sequence[object]] = [[record[key] for key in keys] for record in records]
    return _Rows([text_of(key) for key in keys], rows)


def _of_table(table: _Table, schema: ModelSchema) -> Mapping[str, object]:
    names, specs = table.names, schema.inputs_by_name
    if schema.is_unnamed and specs.keys().isdisjoint(names):
        return _by_position(table, schema)
    if specs.keys().isdisjoint(names):
        features = _feature_matrix(table, schema)
        if features is not None:
            return features
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise InvalidInputError(
            f'column "{repeated}" is there more than once; rename or drop all but one',
            input=repeated,
        )
    return {
        name: _cells(table.column(position), specs[name], schema) if name in specs else None
        for position, name in enumerate(names)
    }


def _by_position(table: _Table, schema: ModelSchema) -> Mapping[str, object]:
    """The columns for inputs whose names are but positions.

    Raises:
        InvalidInputError: there are more or fewer.
    """
    names, specs = table.names, schema.inputs
    if len(names) != len(specs):
        raise InvalidInputError(
            f"{schema} takes {len(specs)} column{'s'[: len(specs) != 1]} without names, the table "
            f"has {len(names)} ({_shortened(names)}); send as many as that, in the order of the "
            "signature"
        )
    return {
        spec.name: _cells(table.column(position), spec, schema)
        for position, spec in enumerate(specs)
    }


def _cells(values: object, spec: TensorSpec, schema: ModelSchema) -> object:
    return values if spec.name in schema.json_inputs else _column(values, spec)


def _column(values: object, spec: TensorSpec) -> NDArray[Any]:
    """One value a row for an input that takes [-1, 1] is a column of it."""
    array = array_of(values, spec.name)
    if array.ndim == 1 and all(size == 1 for size in spec.shape[1:]):
        return array.reshape(len(array), *spec.shape[1:])
    return array


def _feature_matrix(table: _Table, schema: ModelSchema) -> Mapping[str, object] | None:
    """Columns none of which is an input, as the features of the one input there is."""
    names = table.names
    if schema.columns and set(names) & set(schema.columns):
        return {_only_input(schema).name: _in_order(table, schema)}
    unnamed = names == [str(position) for position in range(len(names))]
    if schema.columns and not unnamed:
        raise _other_columns(names, schema)
    if not names or (len(schema.inputs) != 1 and not unnamed):
        return None
    spec = _only_input(schema)
    if unnamed:  # a bare list in the file
        one_a_row = len(names) == 1 and len(spec.shape) == 1
        return {spec.name: table.column(0) if one_a_row else table.matrix()}
    row_and_feature = 2
    if len(spec.shape) != row_and_feature:
        return None
    matrix = array_of(table.matrix(), spec.name)
    if matrix.ndim != row_and_feature:  # cells hold lists: these are inputs with wrong names
        return None
    if spec.shape[1] not in (-1, len(names)):
        raise InvalidInputError(
            f"input {spec.name}: takes {spec.shape[1]} feature columns, the frame has {len(names)} "
            f"({_shortened(names)}); send as many as that, or one column {spec.name} of lists",
            input=spec.name,
        )
    return {spec.name: matrix}


def _in_order(table: _Table, schema: ModelSchema) -> NDArray[Any]:
    """The columns that the model was trained on, in their order.

    Raises:
        InvalidInputError: one is missing, too much or there twice.
    """
    names = table.names
    if sorted(names) != sorted(schema.columns):
        raise _other_columns(names, schema)
    places = [names.index(name) for name in schema.columns]
    return _joined(
        [
            array_of(table.column(place), name)
            for name, place in zip(schema.columns, places, strict=True)
        ]
    )


def _joined(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array [rows, columns]; a value alone is a row."""
    sizes = {np.atleast_1d(column).shape[:1] for column in columns}
    if len(sizes) > 1:
        told = ", ".join(str(size[0]) for size in sorted(sizes))
        raise InvalidInputError(f"the columns have different numbers of rows ({told})")
    return np.stack([np.reshape(column, (-1,)) for column in columns], axis=1)


def _other_columns(names: Sequence[str], schema: ModelSchema) -> InvalidInputError:
    spec = _only_input(schema)
    missing = [name for name in schema.columns if name not in names]
    extra = [name for name in names if name not in schema.columns]
    told = f"missing: {_shortened(missing)}" if missing else ""
    if extra:
        told = "; ".join(each for each in (told, f"unknown: {_shortened(extra)}") if each)
    return InvalidInputError(
        f"input {spec.name}: takes the columns {_shortened(schema.columns)}; "
        f"{told or 'one of them is there twice'}",
        input=missing[0] if missing else extra[0] if extra else spec.name,
    )


def _shortened(names: Sequence[str]) -> str:
    most = 8
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _of_series(series: pd.Series[Any], schema: ModelSchema) -> Mapping[str, object]:
    specs = schema.inputs_by_name
    labels = series.index.tolist()
    if labels and all(label in specs for label in labels):
        return dict(zip(labels, series.tolist(), strict=True))
    name = text_of(series.name)
    spec = specs[name] if name in specs else _only_input(schema)
    return {spec.name: _column(series, spec)}


# -- KServe v2 -------------------------------------------------------------------------------------


def _of_kserve(tensors: Sequence[Mapping[Any, Any]]) -> Mapping[str, object]:
    values: dict[str, object] = {}
    for tensor in tensors:
        name = text_of(tensor["name"])
        if name in values:
            raise InvalidInputError(f"input {name}: is in the request twice", input=name)
        values[name] = _of_kserve_tensor(name, tensor)
    return values


def _of_kserve_tensor(name: str, tensor: Mapping[Any, Any]) -> NDArray[Any]:
    """The values in the tensor's shape; they are cast to the model's type, not the one declared."""
    if "data" not in tensor:
        raise InvalidInputError(
            f'input {name}: has no "data"; JSON cannot hold binary tensors, send the values',
            input=name,
        )
    datatype = tensor.get("datatype")
    if datatype is not None and datatype not in DATATYPES:
        raise InvalidInputError(
            f"input {name}: {datatype} is no datatype; known are {', '.join(DATATYPES)}",
            input=name,
        )
    array = array_of(tensor["data"], name)
    shape = tuple(tensor.get("shape", array.shape))
    flat = array.ndim == 1 and array.size == math.prod(shape) and min(shape, default=0) >= 0
    if array.shape != shape and not flat:
        raise InvalidInputError(
            f"input {name}: the data has shape {list(array.shape)}, and the request says "
            f"{list(shape)}; nest it like that, or send it flat",
            input=name,
        )
    return array.reshape(shape)
