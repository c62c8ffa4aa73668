"""A caller's rows never meet another caller's, unless each row is answered by itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlflow.sklearn
import numpy as np
import onnx
import pandas as pd
from mlflow.models import infer_signature
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from ..faults.points import are_all_walked  # noqa: TID252 - tests have no name to be imported by
from ..models import log_model, log_onnx, log_pyfunc  # noqa: TID252 - the same
from . import custom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    from .conftest import Deploy

CALLERS = 10
#: All of them in `nox -s faults`.
ROUNDS = 1000 if are_all_walked() else 40
FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.5]})
SIGNATURE = infer_signature(FRAME, np.array([1.0]))


def foreign(
    client: TritonDeploymentClient,
    name: str,
    given: Callable[[int], Any],
    wanted: Callable[[int], Any],
) -> list[Any]:
    """Answers that callers at the same time got, and that are not those of their own rows."""

    def ask(caller: int) -> list[Any]:
        wrong = []
        for turn in range(ROUNDS):
            number = caller * ROUNDS + turn
            answered = client.predict(name, given(number))["outputs"]
            array = next(iter(answered.values()))
            if array.reshape(-1).tolist() != wanted(number):
                wrong.append((number, array.tolist()))
        return wrong

    with ThreadPoolExecutor(CALLERS) as pool:
        return [each for wrong in pool.map(ask, range(CALLERS)) for each in wrong]


def test_the_rank_of_a_row_is_that_in_its_own_table(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient
) -> None:
    """Also where a user asks for joining: the first batches show that rows depend on each other."""
    name, uri = deploy(custom.Ranks(), signature=SIGNATURE)

    def table(number: int) -> Any:
        return pd.DataFrame({"a": [(number * 7 + row * 3) % 11 + 0.5 * row for row in range(6)]})

    def ranks(number: int) -> list[float]:
        found: list[float] = table(number)["a"].rank().tolist()
        return found

    assert foreign(pyfunc_client, name, table, ranks) == []
    pyfunc_client.update_deployment(name, uri, config={"join_requests": "true"})
    assert pyfunc_client.get_deployment(name)["requests"]["joined"] is True
    assert foreign(pyfunc_client, name, table, ranks) == []


def test_sums_along_a_sequence_are_of_ones_own(
    pyfunc_client: TritonDeploymentClient, pyfunc_name: str
) -> None:
    """ONNX whose first dimension is called `seq` has no batch that requests could be joined in."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["seq", 4]) for n in "xy")
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [0])
    node = helper.make_node("CumSum", ["x", "axis"], ["y"])
    graph = helper.make_graph([node], "sums", [x], [y], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    pyfunc_client.create_deployment(pyfunc_name, log_onnx(model).model_uri)
    requests = pyfunc_client.get_deployment(pyfunc_name)["requests"]
    assert requests == {
        "joined": False,
        "why": "the first dimensions ('seq') are no batch by their names",
    }

    def rows(number: int) -> Any:
        return np.full((1 + number % 4, 4), float(number), np.float32)

    def sums(number: int) -> list[float]:
        found: list[float] = np.cumsum(rows(number), axis=0).reshape(-1).tolist()
        return found

    assert foreign(pyfunc_client, pyfunc_name, rows, sums) == []


def test_a_model_that_answers_each_row_by_itself_is_joined_because_a_user_says_so(
    deploy: Deploy, pyfunc_client: TritonDeploymentClient, tmp_path: Path
) -> None:
    def most_rows() -> int:
        with ThreadPoolExecutor(16) as pool:
            answers = pool.map(lambda _: pyfunc_client.predict(name, FRAME), range(200))
            for each in answers:
                assert each["outputs"]["predictions"].reshape(-1).tolist() == [2.0, 4.0, 7.0]
        return max(int(path.name) for path in tmp_path.iterdir())

    name, uri = deploy(custom.Tallied(str(tmp_path)), signature=SIGNATURE)
    assert most_rows() == len(FRAME)
    pyfunc_client.update_deployment(name, uri, config={"join_requests": "true"})
    assert most_rows() > len(FRAME)
    pyfunc_client.update_deployment(name, uri)
    asked = {"joined": True, "why": "-C join_requests=true asks for it"}
    assert pyfunc_client.get_deployment(name)["requests"] == asked
    plan = pyfunc_client.plan_deployment(name, uri, config={"join_requests": "default"})
    assert plan["requests"] == {
        "joined": False,
        "why": "a python_model may look at all rows of a request",
    }


def test_scikit_learn_is_joined_by_itself(
    pyfunc_client: TritonDeploymentClient, pyfunc_name: str
) -> None:
    model = LinearRegression().fit(FRAME, FRAME["a"] * 3)
    logged = log_model(
        mlflow.sklearn, sk_model=model, signature=SIGNATURE, pip_requirements=["scikit-learn"]
    )
    pyfunc_client.create_deployment(pyfunc_name, logged.model_uri)
    requests = pyfunc_client.get_deployment(pyfunc_name)["requests"]
    assert requests == {"joined": True, "why": "scikit-learn answers each row by itself"}
    table = pd.DataFrame({"a": [2.0, 3.0, 4.0]})
    answered = pyfunc_client.predict(pyfunc_name, table)["outputs"]["predictions"]
    np.testing.assert_allclose(answered.reshape(-1), [6.0, 9.0, 12.0])


def test_the_plan_says_it_as_json_can(pyfunc_client: TritonDeploymentClient) -> None:
    uri = log_pyfunc(custom.Ranks(), signature=SIGNATURE).model_uri
    for value in (True, False):
        config = {"join_requests": str(value).lower()}
        plan = pyfunc_client.plan_deployment("planned", uri, config=config)
        assert json.loads(json.dumps(plan["requests"]))["joined"] is value
