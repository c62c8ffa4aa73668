# ruff: noqa: ARG002 - the arguments are MLflow's
"""Models of every kind that `mlflow.pyfunc` takes. They go to the server by value.

Annotations are objects here, not strings: cloudpickle, when it loads a class that this process
defined, gives it the methods of the pickle, whose globals are only what they use.
"""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel


class Echo(PythonModel):
    """Answers what it was given."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input


class Described(PythonModel):
    """Answers its columns' names, and each row as Python writes it."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        rows = zip(
            *(model_input.iloc[:, place] for place in range(model_input.shape[1])), strict=True
        )
        return [f"{model_input.columns.tolist()} {list(row)}" for row in rows]


class Scaled(PythonModel):
    """Multiplies by a parameter, and refuses what is negative."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        if (model_input["x"] < 0).any():
            raise ValueError(f"x is {model_input['x'].min():g}, and must not be negative")
        return model_input["x"] * params["factor"] + sum(params["more"])


class Tallied(PythonModel):
    """Doubles each row, and leaves a file in a folder that is named by how many it was given."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        Path(self._folder, str(len(model_input))).touch()
        return (model_input["a"] * 2).to_numpy()


class Exploding(PythonModel):
    """Answers each row as many times as it says, so that sums of rows may fit by chance."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return [float(each) for each in model_input["a"] for _ in range(int(each) % 3)]


class Ranks(PythonModel):
    """Answers the rank of each row among all that it was given."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input["a"].rank().to_numpy()


class Mean(PythonModel):
    """Answers one row, whatever it is given."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input.mean(axis=0)[None]


class Counting(PythonModel):
    """Says which of its columns it was given values for."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        given = model_input.notna().sum(axis=1)
        return given.astype(np.int64)


class Shaped(PythonModel):
    """Answers the same two values in the form that a parameter names."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        p, q = model_input["a"].to_numpy() * 2, model_input["a"].to_numpy() + 0.5
        return _FORMS[params["form"]](p, q)


def _nullable(p: Any, q: Any) -> Any:
    return pd.DataFrame({"p": pd.array(p, dtype="Float64"), "q": pd.array(q, dtype="Float64")})


_FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "frame": lambda p, q: pd.DataFrame({"p": p, "q": q}),
    "dict": lambda p, q: {"p": p, "q": q},
    "records": lambda ps, qs: [{"p": p, "q": q} for p, q in zip(ps, qs, strict=True)],
    "nullable": _nullable,
}


class Upper(PythonModel):
    """A function with type hints takes and gives lists."""

    def predict(self, model_input: list[str]) -> list[str]:  # type: ignore[override]
        return [text.upper() for text in model_input]


class Lookup(PythonModel):
    """Objects in, objects out."""

    def predict(  # type: ignore[override]
        self, model_input: list[dict[str, int]]
    ) -> list[dict[str, Any]]:
        return [{"sum": sum(each.values()), "keys": sorted(each)} for each in model_input]


class Needy(PythonModel):
    """Never asked: its requirements are not there."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input


class Noting(PythonModel):
    """Appends what it is asked to a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        with open(self._path, "a", encoding="utf-8") as file:  # noqa: PTH123 - goes by value
            file.write(model_input.to_json(orient="split", index=False) + "\n")
        return np.zeros(len(model_input))


class Telling(PythonModel):
    """Answers a text whole, or word by word; `gate` holds back all but the first.

    Where `gate` is a file's path, the other words wait until the file is there; `<gate>.end` says
    how many words there were when the generator ended, however it did.
    """

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return [each.upper() for each in model_input["prompt"]]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        gate = (params or {}).get("gate", "")
        place = 0
        try:
            for place, word in enumerate(model_input["prompt"].split()):
                if word == "bad":
                    raise ValueError(f"word {place} is bad")
                yield word.upper()
                while gate and not Path(gate).exists():
                    time.sleep(0.01)
        finally:
            if gate:
                part = Path(f"{gate}.{uuid.uuid4().hex}")
                part.write_text(str(place + 1))
                part.replace(f"{gate}.end")


class Pieces(PythonModel):
    """Gives pieces with two outputs, as many as it is asked for."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return [_piece(int(count)) for count in model_input["count"]]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        for each in range(int(model_input["count"])):
            yield _piece(each)


def _piece(each: int) -> dict[str, Any]:
    return {"token": f"t{each} é", "logprob": -0.5 * each}


class Rows(PythonModel):
    """Gives rows with the batch dimension or without it."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return rows()[0]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        yield from rows()


def rows() -> list[Any]:
    """What `Rows` gives."""
    first, second = np.array([1, 2, 3], np.float32), np.array([[4, 5, 6]], np.float32)
    return [first, second, [7.0, 8.0, 9.0], np.ones((2, 3))]


class NotFinite(PythonModel):
    """Answers numbers that JSON has not, beside text that looks like them."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return [NOT_FINITE for _ in model_input["x"]]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        yield NOT_FINITE


NOT_FINITE = {
    "a": float("nan"),
    "b": [1, float("inf"), np.float32("-inf"), None, 2**70],
    "NaN": ["NaN", "Infinity", '"NaN"', "\\u004eaN", "-Infinity, NaN", "\ud83d"],
}


class Ticking(PythonModel):
    """Goes on until it is closed, and then notes it in a folder."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input["folder"]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        try:
            while True:
                yield "tick"
                time.sleep(0.01)
        finally:
            Path(model_input["folder"], uuid.uuid4().hex).touch()


class Generating(PythonModel):
    """Its predict is a generator."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return (each * 2.0 for each in model_input["x"])


class Odd(PythonModel):
    """Answers what its signature has no place for, as a parameter says."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return {
            "huge": np.full(len(model_input), 1e300),
            "nothing": None,
            "ragged": [[1.0] * (1 + each) for each in range(len(model_input))],
            "text": ["no number"] * len(model_input),
        }[params["form"]]


class Sums(PythonModel):
    """Adds its columns up."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input.sum(axis=1).to_numpy(np.float32)


class Leaving(PythonModel):
    """Raises what no `except Exception` catches."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        if (model_input["how"] != "stays").any():
            raise _WAYS[next(each for each in model_input["how"] if each != "stays")]
        return model_input["how"]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        yield "first"
        if model_input["how"] != "stays":
            raise _WAYS[model_input["how"]]


class Wordless(Exception):  # noqa: N818 - it is a name to be told
    """Has no words, and those it would have are no text."""

    def __str__(self) -> str:
        raise ValueError


_WAYS: dict[str, BaseException] = {
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "Wordless": Wordless(),
    "UnicodeError": UnicodeError("lone \ud800"),
}


class Shouting(PythonModel):
    """Prints."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        print("a line of the model")  # noqa: T201 - what it is for
        return model_input["x"]


class Dying(PythonModel):
    """Ends its process when a value is negative."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        import os  # noqa: PLC0415 - goes by value

        if (model_input["x"] < 0).any():
            os._exit(1)
        return model_input["x"]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        yield self.predict(context, model_input)
