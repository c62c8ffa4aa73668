"""Every form that inputs come in means the same tensors, in Python and through the CLI's file."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from mlflow_triton_plugin.predict import (
    InvalidInputError,
    ModelSchema,
    request_parameters,
    to_tensors,
)
from triton_repo.tensors import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

ReadJson = Callable[[object], pd.DataFrame]


@pytest.fixture
def read_json(tmp_path: Path) -> ReadJson:
    """What MLflow's CLI makes of a file: a bare `pd.read_json(input_path)`."""

    def read(content: object) -> pd.DataFrame:
        path = tmp_path / "input.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return pd.read_json(path)

    return read


def model(*inputs: TensorSpec, max_batch_size: int = 8) -> ModelSchema:
    return ModelSchema("m", "1", inputs, (), max_batch_size)


def fp32(name: str, *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, "FP32", shape, optional)


AB = model(fp32("A", -1, 2), fp32("B", -1, 2))
ONE = model(fp32("x", -1, 2))
COLUMNS = model(TensorSpec("n", "INT64", (-1, 1)), TensorSpec("s", "BYTES", (-1, 1)))
ROWS: list[list[float]] = [[1, 2], [3, 4], [5, 6]]


def lists(inputs: object, schema: ModelSchema) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in to_tensors(inputs, schema).items()}


def refusal(inputs: object, schema: ModelSchema) -> str:
    with pytest.raises(InvalidInputError) as caught:
        to_tensors(inputs, schema)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- in Python and from a file ---------------------------------------------------------------------


def kserve(name: str, data: object, shape: list[int], datatype: str = "FP32") -> dict[str, object]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


TWO_INPUTS = {
    "named": {"A": ROWS, "B": ROWS},
    "wrapped, the reference's input.json": {"inputs": {"A": ROWS, "B": ROWS}},
    "kserve": {"inputs": [kserve("A", ROWS, [3, 2]), kserve("B", ROWS, [3, 2])]},
    "kserve, flat": {
        "inputs": [kserve("A", [1, 2, 3, 4, 5, 6], [3, 2]), kserve("B", ROWS, [3, 2], "FP64")]
    },
    "kserve, the usual company": {
        "id": "42",
        "inputs": [kserve("A", ROWS, [3, 2]), kserve("B", ROWS, [3, 2])],
        "outputs": [{"name": "C"}, {"name": "D"}],
    },
    "instances of dicts": {"instances": [{"A": row, "B": row} for row in ROWS]},
    "dataframe_records": {"dataframe_records": [{"A": row, "B": row} for row in ROWS]},
    "records": [{"A": row, "B": row} for row in ROWS],
    "dataframe_split": {
        "dataframe_split": {"columns": ["A", "B"], "data": [[row, row] for row in ROWS]}
    },
    "dataframe_split with an index": {
        "dataframe_split": {
            "columns": ["A", "B"], "index": [0, 1, 2], "data": [[row, row] for row in ROWS]
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("form", TWO_INPUTS)
def test_a_form_means_the_same_in_python_and_from_a_file(form: str, read_json: ReadJson) -> None:
    assert lists(TWO_INPUTS[form], AB) == {"A": ROWS, "B": ROWS}
    assert lists(read_json(TWO_INPUTS[form]), AB) == {"A": ROWS, "B": ROWS}


ONE_INPUT = {
    "named": {"x": ROWS},
    "list": ROWS,
    "inputs": {"inputs": ROWS},
    "instances": {"instances": ROWS},
    "instances, signature named": {"signature_name": "serving_default", "instances": ROWS},
    "feature records": [{"a": a, "b": b} for a, b in ROWS],
    "feature records, wrapped": {"dataframe_records": [{"a": a, "b": b} for a, b in ROWS]},
    "feature split": {"dataframe_split": {"columns": ["a", "b"], "data": ROWS}},
    "feature columns": {"dataframe_split": {"columns": [0, 1], "data": ROWS}},
}


@pytest.mark.parametrize("form", ONE_INPUT)
def test_one_input_needs_no_name_in_python_or_in_a_file(form: str, read_json: ReadJson) -> None:
    assert lists(ONE_INPUT[form], ONE) == {"x": ROWS}
    assert lists(read_json(ONE_INPUT[form]), ONE) == {"x": ROWS}


def test_bare_split_is_read_in_python_for_any_number_of_rows() -> None:
    assert lists({"columns": ["a", "b"], "data": ROWS}, ONE) == {"x": ROWS}


def test_bare_split_is_read_from_a_file_where_pandas_reads_it(read_json: ReadJson) -> None:
    """`pandas.read_json` itself refuses it unless there are as many rows as columns."""
    square = {"columns": ["a", "b"], "index": [0, 1], "data": ROWS[:2]}
    assert lists(read_json(square), ONE) == {"x": ROWS[:2]}


def test_scalars_in_records_are_rows_of_inputs_of_shape_1(read_json: ReadJson) -> None:
    content = [{"n": 1, "s": "a"}, {"n": 2, "s": "b"}]
    expected = {"n": [[1], [2]], "s": [[b"a"], [b"b"]]}
    for form in (content, {"instances": content}, {"dataframe_records": content}):
        assert lists(form, COLUMNS) == expected
        assert lists(read_json(form), COLUMNS) == expected


def test_a_column_is_a_vector_where_the_input_is_one(read_json: ReadJson) -> None:
    schema = model(fp32("a", -1), fp32("b", -1, 1, 1))
    content = [{"a": 1.5, "b": 2.5}, {"a": 3.5, "b": 4.5}]
    assert lists(read_json(content), schema) == {"a": [1.5, 3.5], "b": [[[2.5]], [[4.5]]]}


def test_a_bare_list_from_a_file_is_a_vector_or_a_column_as_the_input_is(
    read_json: ReadJson,
) -> None:
    assert lists(read_json([1, 2, 3]), model(fp32("x", -1))) == {"x": [1, 2, 3]}
    assert lists(read_json([1, 2, 3]), model(fp32("x", -1, 1))) == {"x": [[1], [2], [3]]}
    deep = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert lists(read_json(deep), model(fp32("x", -1, 2, 2))) == {"x": deep}


@pytest.mark.parametrize("kind", [tuple, np.array, pd.DataFrame, range])
def test_a_single_input_is_anything_array_like(kind: Callable[[Any], object]) -> None:
    if kind is range:
        assert lists(range(3), model(fp32("x", -1))) == {"x": [0, 1, 2]}
    else:
        assert lists(kind(ROWS), ONE) == {"x": ROWS}
        assert lists({"x": kind(ROWS)}, ONE) == {"x": ROWS}


def test_a_list_of_arrays_is_stacked() -> None:
    assert lists([np.array(row, np.float64) for row in ROWS], ONE) == {"x": ROWS}


def test_cells_of_arrays_are_stacked() -> None:
    frame = pd.DataFrame({"A": [np.array(r) for r in ROWS], "B": [tuple(r) for r in ROWS]})
    assert lists(frame, AB) == {"A": ROWS, "B": ROWS}


def test_scalars_in_a_wrapping_are_refused_with_a_shape_to_send(read_json: ReadJson) -> None:
    for form in ({"inputs": {"n": 1, "s": 2}}, read_json({"inputs": {"n": 1, "s": 2}})):
        assert "1 is a single value, send nested lists" in refusal(form, COLUMNS)


# -- what pandas does to values --------------------------------------------------------------------


def test_text_that_pandas_made_a_number_of_is_refused_and_the_remedy_works(
    read_json: ReadJson,
) -> None:
    frame = read_json([{"n": 1, "s": "00123"}])
    assert "123 at [0, 0] is a number, and s takes BYTES" in refusal(frame, COLUMNS)
    remedy = read_json({"inputs": {"n": [[1]], "s": [["00123"]]}})
    assert lists(remedy, COLUMNS) == {"n": [[1]], "s": [[b"00123"]]}


def test_numbers_that_pandas_made_dates_of_are_refused_and_the_remedy_works(
    read_json: ReadJson,
) -> None:
    schema = model(TensorSpec("timestamp", "INT64", (-1, 1)))
    assert "is a date, and timestamp takes INT64" in refusal(
        read_json([{"timestamp": 1700000000}]), schema
    )
    remedy = read_json({"inputs": {"timestamp": [[1700000000]]}})
    assert lists(remedy, schema) == {"timestamp": [[1700000000]]}


def test_a_date_column_is_iso_8601_text(read_json: ReadJson) -> None:
    schema = model(TensorSpec("date", "BYTES", (-1, 1)))
    frame = read_json([{"date": "2020-01-02"}, {"date": "2020-01-03T04:05:06"}])
    assert [row[0][:10] for row in lists(frame, schema)["date"]] == [b"2020-01-02", b"2020-01-03"]
    assert lists(pd.DataFrame({"date": [pd.Timestamp("2020-01-02")]}), schema) == {
        "date": [[b"2020-01-02T00:00:00"]]
    }


@pytest.mark.parametrize(
    "content", ['[{"x": null}, {"x": 1.5}]', '[{"x": NaN}, {"x": 1.5}]', '{"x": [NaN, 1.5]}',
                '{"inputs": {"x": [null, 1.5]}}', '{"inputs": {"x": [NaN, 1.5]}}']
)  # fmt: skip
def test_null_and_nan_in_a_file_are_nan_for_floats_and_refused_for_integers(
    content: str, read_json: ReadJson
) -> None:
    tensor = to_tensors(read_json(content), model(fp32("x", -1)))["x"]
    assert np.isnan(tensor[0])
    assert tensor[1] == 1.5
    assert " at [0] is a missing value" in refusal(
        read_json(content), model(TensorSpec("x", "INT32", (-1,)))
    )


def test_null_text_in_a_file_is_refused_with_its_row(read_json: ReadJson) -> None:
    frame = read_json([{"n": 1, "s": "a"}, {"n": 2, "s": None}])
    # pandas 3 makes it NaN, pandas 2 leaves it None
    assert re.search(r"input s: \w+ at \[1, 0\] is a missing value", refusal(frame, COLUMNS))


def test_nullable_columns_give_their_values() -> None:
    frame = pd.DataFrame({"n": pd.array([1, 2], "Int64"), "s": pd.array(["a", "b"], "string")})
    assert lists(frame, COLUMNS) == {"n": [[1], [2]], "s": [[b"a"], [b"b"]]}


def test_uint64_survives_a_file(read_json: ReadJson) -> None:
    schema = model(TensorSpec("x", "UINT64", (-1,)))
    top = 2**64 - 1
    assert lists(read_json({"inputs": {"x": [top, 1]}}), schema) == {"x": [top, 1]}
    assert lists(read_json([{"x": top}, {"x": 1}]), schema) == {"x": [top, 1]}


def test_a_name_of_digits_survives_a_file(read_json: ReadJson) -> None:
    schema = model(fp32("0", -1), fp32("1", -1))
    assert lists(read_json({"inputs": {"1": [5], "0": [3]}}), schema) == {"1": [5], "0": [3]}


# -- inputs whose names are wrappers' keys ---------------------------------------------------------


@pytest.mark.parametrize("name", ["inputs", "instances", "dataframe_records", "data", "columns"])
def test_an_input_named_like_a_wrapper_is_itself(name: str, read_json: ReadJson) -> None:
    schema = model(fp32(name, -1, 2))
    for form in ({name: ROWS}, {"inputs": {name: ROWS}}, {"inputs": [kserve(name, ROWS, [3, 2])]}):
        assert lists(form, schema) == {name: ROWS}
        assert lists(read_json(form), schema) == {name: ROWS}


def test_two_inputs_named_like_wrappers_are_themselves(read_json: ReadJson) -> None:
    for names in (("inputs", "instances"), ("columns", "data"), ("inputs", "id")):
        schema = model(*(fp32(name, -1, 2) for name in names))
        form = dict.fromkeys(names, ROWS)
        assert lists(form, schema) == form
        assert lists(read_json(form), schema) == form
        assert lists(read_json({"inputs": form}), schema) == form


def test_a_frames_own_index_is_not_taken_for_names() -> None:
    frame = pd.DataFrame({"inputs": [1.0, 2.0]}, index=["r1", "r2"])
    assert lists(frame, model(fp32("inputs", -1))) == {"inputs": [1.0, 2.0]}


def test_a_wrapper_beside_an_input_is_an_unknown_name() -> None:
    assert 'no input "inputs"' in refusal({"A": ROWS, "inputs": ROWS}, AB)


# -- series ----------------------------------------------------------------------------------------


def test_a_series_is_a_column_for_the_one_input() -> None:
    assert lists(pd.Series([1, 2]), model(fp32("x", -1, 1))) == {"x": [[1], [2]]}
    assert lists(pd.Series(ROWS), ONE) == {"x": ROWS}


def test_a_series_whose_name_is_an_input_is_that_input() -> None:
    schema = model(fp32("a", -1, optional=True), fp32("b", -1, optional=True))
    assert lists(pd.Series([1, 2], name="b"), schema) == {"b": [1, 2]}


def test_a_series_indexed_by_inputs_is_named() -> None:
    assert lists(pd.Series({"A": ROWS, "B": ROWS}), AB) == {"A": ROWS, "B": ROWS}


# -- refusals --------------------------------------------------------------------------------------


def test_values_without_a_name_are_refused_where_there_are_several_inputs() -> None:
    message = refusal(ROWS, AB)
    assert "m/1 has 2 inputs (A, B), and the values do not say which they are for" in message
    assert message == refusal(pd.DataFrame(ROWS), AB) == refusal(pd.Series([1]), AB)


def test_values_without_a_name_are_for_the_one_input_that_is_not_optional() -> None:
    schema = model(fp32("x", -1, 2), fp32("y", -1, optional=True))
    assert lists(ROWS, schema) == lists(pd.DataFrame(ROWS), schema) == {"x": ROWS}


@pytest.mark.parametrize("key", ["params", "parameters"])
def test_request_parameters_are_refused_rather_than_ignored(key: str, read_json: ReadJson) -> None:
    wrapped = {"dataframe_split": {"columns": ["a", "b"], "data": ROWS}}
    for form in ({**wrapped, key: {"top_k": 3}}, read_json({**wrapped, key: {"top_k": 3}})):
        assert f'"{key}" is not supported' in refusal(form, ONE)
    assert lists({**wrapped, key: {}}, ONE) == {"x": ROWS}


def test_a_split_row_of_another_length_is_refused_by_its_number() -> None:
    split = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3]]}}
    assert '"data"[1] has 1 values for 2 columns (a, b)' in refusal(split, ONE)


@pytest.mark.parametrize("content", [[1, 2], {"columns": ["a"]}, "x", None])
def test_a_split_that_is_none_is_refused_with_what_it_holds(content: object) -> None:
    assert '{"columns": ["A", …]' in refusal({"dataframe_split": content}, ONE)


def test_records_that_are_none_are_refused_with_what_they_hold() -> None:
    assert "holds a list of objects" in refusal({"dataframe_records": [1]}, ONE)


def test_a_record_without_a_key_that_others_have_is_refused_by_its_number() -> None:
    records = [{"A": [1, 2], "B": [1, 2]}, {"A": [1, 2]}]
    assert "record 1 has no B" in refusal(records, AB)


def test_a_kserve_tensor_without_data_is_refused() -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
    assert 'input x: has no "data"' in refusal({"inputs": [tensor]}, ONE)


@pytest.mark.parametrize(
    ("data", "shape"), [([1, 2, 3], [1, 2]), ([[1], [2]], [1, 2]), ([1, 2], [-1, -2])]
)
def test_kserve_data_that_is_not_of_its_shape_is_refused(data: object, shape: list[int]) -> None:
    assert f"the request says {shape}" in refusal({"inputs": [kserve("x", data, shape)]}, ONE)


def test_an_unknown_kserve_datatype_is_refused() -> None:
    request = {"inputs": [kserve("x", ROWS, [3, 2], "FLOAT")]}
    assert "input x: FLOAT is no datatype; known are BOOL, UINT8" in refusal(request, ONE)


def test_a_kserve_input_that_comes_twice_is_refused() -> None:
    tensor = kserve("x", ROWS, [3, 2])
    assert "input x: is in the request twice" in refusal({"inputs": [tensor, tensor]}, ONE)


def test_a_column_that_is_there_twice_is_refused() -> None:
    frame = pd.DataFrame([[1.0, 2.0]], columns=["n", "n"])
    assert 'column "n" is there more than once' in refusal(frame, COLUMNS)


def test_another_number_of_features_is_refused_with_both_numbers() -> None:
    frame = pd.DataFrame({"a": [1], "b": [2], "c": [3]})
    assert "input x: takes 2 feature columns, the frame has 3 (a, b, c)" in refusal(frame, ONE)


def test_a_column_of_lists_under_a_wrong_name_is_an_unknown_input(read_json: ReadJson) -> None:
    frame = read_json({"xx": ROWS})
    assert 'm/1 has no input "xx" (did you mean "x"?)' in refusal(frame, ONE)


def test_features_for_an_input_that_is_no_matrix_are_unknown_inputs() -> None:
    frame = pd.DataFrame({"a": [1.0], "b": [2.0]})
    assert 'm/1 has no input "a"' in refusal(frame, model(fp32("x", -1, 2, 2)))


def test_a_feature_that_is_text_is_refused_with_its_row_and_column() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["3", "4"]})
    assert "input x: '3' at [0, 1] is text" in refusal(frame, ONE)


def test_pandas_is_not_imported_for_those_who_do_not_use_it() -> None:
    script = """
import sys, numpy
from mlflow_triton_plugin.predict import ModelSchema, to_tensors
from triton_repo.tensors import TensorSpec
to_tensors([[1, 2]], ModelSchema("m", "1", (TensorSpec("x", "FP32", (-1, 2)),), ()))
assert "pandas" not in sys.modules
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# -- columns by position, whose names are known ----------------------------------------------------


TABLE = ModelSchema("m", "1", (fp32("input__0", -1, 3),), (), 8, columns=("w", "h", "new"))
TABLE_ROWS = [[1.0, 4.0, 1.0], [2.0, 5.0, 0.0]]
TABLE_FORMS: list[object] = [
    {"w": [1, 2], "h": [4.0, 5.0], "new": [True, False]},
    {"new": [True, False], "w": [1, 2], "h": [4.0, 5.0]},
    {"inputs": {"h": [4, 5], "w": [1, 2], "new": [1, 0]}},
    {"dataframe_split": {"columns": ["h", "w", "new"], "data": [[4, 1, True], [5, 2, False]]}},
    {"dataframe_records": [{"h": 4, "new": 1, "w": 1}, {"h": 5, "new": 0, "w": 2}]},
    {"instances": [{"h": 4, "new": 1, "w": 1}, {"h": 5, "new": 0, "w": 2}]},
    [{"h": 4, "new": 1, "w": 1}, {"h": 5, "new": 0, "w": 2}],
    {"instances": TABLE_ROWS},
    {"input__0": TABLE_ROWS},
    TABLE_ROWS,
]


@pytest.mark.parametrize("form", TABLE_FORMS)
def test_columns_are_put_where_the_model_has_them(form: Any, read_json: ReadJson) -> None:
    assert lists(form, TABLE) == {"input__0": TABLE_ROWS}
    assert lists(read_json(form), TABLE) == {"input__0": TABLE_ROWS}


def test_a_frame_in_another_order_means_the_same() -> None:
    frame = pd.DataFrame({"new": [True, False], "h": [4, 5], "w": [1.0, 2.0]})
    assert lists(frame, TABLE) == lists(frame[["w", "h", "new"]], TABLE) == {"input__0": TABLE_ROWS}
    assert lists(pd.DataFrame(TABLE_ROWS), TABLE) == {"input__0": TABLE_ROWS}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"w": [1], "h": [2]}, "missing: new"),
        ({"w": [1], "h": [2], "new": [1], "hue": [3]}, "unknown: hue"),
        ({"a": [1], "b": [2], "c": [3]}, "missing: w, h, new; unknown: a, b, c"),
        (pd.DataFrame([[1, 2, 3, 4]], columns=["w", "h", "new", "w"]), "is there twice"),
        ({"w": [1, 2], "h": [2], "new": [1]}, "different numbers of rows (1, 2)"),
        (pd.DataFrame({"a": [1.0], "b": [1.0], "c": [1.0]}), "takes the columns w, h, new"),
    ],
)
def test_other_columns_are_refused_by_name(given: object, words: str) -> None:
    assert words in refusal(given, TABLE)


@pytest.mark.parametrize(
    "rows",
    [
        {"w": [2**24 + 1, 3], "h": [2**60 + 1, 5], "new": [1, 0]},
        {"w": [2**24 + 1, 3], "h": [2**60 + 1, 5], "new": [True, False]},
        {"w": [2**24 + 1, 3], "h": np.array([2**60 + 1, 5], np.uint64), "new": [1.0, None]},
    ],
)
def test_integers_of_a_table_are_rounded(rows: Any) -> None:
    """Forests take them so; elsewhere 2**24 + 1 would be another id, and is refused."""
    (found,) = to_tensors(rows, TABLE).values()
    assert found.dtype == np.float32
    assert found[:, :2].tolist() == [[2**24, 2**60], [3, 5]]
    assert "has no exact FP32" in refusal([[2**24 + 1, 4, 0]], replace(TABLE, columns=()))
    assert "too large for FP32" in refusal({"w": [10**400], "h": [1], "new": [1]}, TABLE)


# -- chats: a dict is one row ----------------------------------------------------------------------


CHAT = ModelSchema(
    "m",
    "1",
    (
        TensorSpec("messages", "BYTES", (-1, 1)),
        TensorSpec("tools", "BYTES", (-1, 1), optional=True),
        TensorSpec("custom", "BYTES", (-1, 1), optional=True),
        TensorSpec("stop", "BYTES", (-1, -1), optional=True),
        TensorSpec("temperature", "FP64", (-1, 1), optional=True),
    ),
    (),
    8,
    json_inputs=frozenset(["messages", "tools", "custom"]),
    json_lists=frozenset(["messages", "tools"]),
)
MESSAGES = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


def chat_rows(inputs: object) -> dict[str, Any]:
    """What the model gets, JSON read."""
    found = lists(inputs, CHAT)
    for name in CHAT.json_inputs & found.keys():
        found[name] = [[json.loads(text) for text in row] for row in found[name]]
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_the_messages_of_a_chat_are_one_row(count: int, read_json: ReadJson) -> None:
    messages = MESSAGES[:count]
    bare = {"messages": messages, "temperature": 0.5}
    wanted = {"messages": [[messages]], "temperature": [[0.5]]}
    for form in (bare, {"inputs": bare}, [bare], {"dataframe_records": [bare]}):
        assert chat_rows(form) == wanted
        assert chat_rows(read_json(form)) == wanted
    # what they were before, rows of lists
    assert chat_rows({"messages": [messages], "temperature": [0.5]}) == wanted
    assert chat_rows(pd.DataFrame([bare])) == wanted


def test_everything_beside_them_is_of_the_same_row() -> None:
    bare = {"messages": MESSAGES, "tools": [{"a": 1}], "custom": {"b": [2]}, "stop": ["x", "y"]}
    assert chat_rows(bare) == {
        "messages": [[MESSAGES]],
        "tools": [[[{"a": 1}]]],
        "custom": [[{"b": [2]}]],
        "stop": [[b"x", b"y"]],
    }


def test_lists_beside_them_survive_a_file_where_pandas_reads_it(read_json: ReadJson) -> None:
    bare = {"messages": MESSAGES, "stop": ["x", "y"]}
    assert chat_rows(read_json(bare)) == {"messages": [[MESSAGES]], "stop": [[b"x", b"y"]]}


def test_a_chat_has_one_value_beside_its_messages(read_json: ReadJson) -> None:
    words = refusal(read_json({"messages": MESSAGES, "temperature": [0.5, 0.75]}), CHAT)
    assert "temperature" in words
    assert "a chat has one" in words


def test_several_chats_are_rows_of_lists() -> None:
    two = {"messages": [MESSAGES, MESSAGES[:1]], "temperature": [0.5, 1.0]}
    wanted = {"messages": [[MESSAGES], [MESSAGES[:1]]], "temperature": [[0.5], [1.0]]}
    assert chat_rows(two) == wanted
    assert chat_rows(pd.DataFrame(two)) == wanted


# -- columns without names -------------------------------------------------------------------------

UNNAMED = ModelSchema("m", "1", (TensorSpec("inputs", "BYTES", (-1, 1)),), (), 8, is_unnamed=True)
PAIR = ModelSchema("m", "1", (fp32("0", -1, 1), fp32("1", -1, 1)), (), 8, is_unnamed=True)


def read(content: object) -> pd.DataFrame:
    return pd.read_json(io.StringIO(json.dumps(content)))


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"text": ["a", "b"]}),
        pd.Series(["a", "b"], name="text"),
        {"dataframe_split": {"columns": ["text"], "data": [["a"], ["b"]]}},
        {"columns": ["text"], "index": [0, 1], "data": [["a"], ["b"]]},
        {"dataframe_records": [{"text": "a"}, {"text": "b"}]},
        {"text": ["a", "b"]},
        [{"text": "a"}, {"text": "b"}],
        read([{"text": "a"}, {"text": "b"}]),
        read({"dataframe_split": {"columns": ["text"], "data": [["a"], ["b"]]}}),
    ],
)
def test_the_names_of_a_table_are_sent_where_the_model_has_none(table: Any) -> None:
    assert to_tensors(table, UNNAMED)["inputs"].tolist() == [[b"a"], [b"b"]]
    assert json.loads(request_parameters(table, UNNAMED)["mlflow_names"]) == ["text"]
    assert not request_parameters(table, replace(UNNAMED, is_unnamed=False))


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        [["a"], ["b"]],
        np.array([["a"], ["b"]]),
        pd.DataFrame(["a", "b"]),
        pd.Series(["a", "b"]),
        {"inputs": ["a", "b"]},
        read({"inputs": ["a", "b"]}),
        read([["a"], ["b"]]),
    ],
)
def test_what_has_no_names_sends_none(values: Any) -> None:
    assert to_tensors(values, UNNAMED)["inputs"].tolist() == [[b"a"], [b"b"]]
    assert not request_parameters(values, UNNAMED)


def test_several_columns_without_names_are_in_the_tables_order() -> None:
    frame = pd.DataFrame({"w": [1.0, 2.0], "h": [3.0, 4.0]})
    for table in (frame, frame.to_dict("list"), frame.to_dict("records")):
        tensors = to_tensors(table, PAIR)
        assert {name: array.tolist() for name, array in tensors.items()} == {
            "0": [[1.0], [2.0]],
            "1": [[3.0], [4.0]],
        }
        assert json.loads(request_parameters(table, PAIR)["mlflow_names"]) == ["w", "h"]
    assert not request_parameters({"0": [1.0], "1": [2.0]}, PAIR)


def test_another_number_of_columns_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"takes 2 columns without names, the table has 1"):
        to_tensors(pd.DataFrame({"w": [1.0]}), PAIR)
