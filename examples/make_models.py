"""Write the ONNX models and the request and response files of this directory.

Needs `onnx`. What it writes is the same on every machine, to the byte: `--check` says whether the
files here are what it would write.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from onnx import ModelProto, TensorProto, helper

HERE = Path(__file__).parent
COLUMNS = 16
INPUT0 = [float(column) for column in range(COLUMNS)]
INPUT1 = [float(2 * column + 1) for column in range(COLUMNS)]

#: The version of the format: old enough for every Triton of the last years.
OPSET, IR_VERSION = 13, 8


def add_sub(factor: float) -> ModelProto:
    """OUTPUT0 = (INPUT0 + INPUT1) · factor, OUTPUT1 = (INPUT0 - INPUT1) · factor, as int32."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["sum"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["difference"]),
        helper.make_node("Mul", ["sum", "factor"], ["scaled_sum"]),
        helper.make_node("Mul", ["difference", "factor"], ["scaled_difference"]),
        helper.make_node("Cast", ["scaled_sum"], ["OUTPUT0"], to=TensorProto.INT32),
        helper.make_node("Cast", ["scaled_difference"], ["OUTPUT1"], to=TensorProto.INT32),
    ]
    shape: list[str | int | None] = ["batch", COLUMNS]
    graph = helper.make_graph(
        nodes,
        "add_sub",
        [helper.make_tensor_value_info(f"INPUT{i}", TensorProto.FLOAT, shape) for i in (0, 1)],
        [helper.make_tensor_value_info(f"OUTPUT{i}", TensorProto.INT32, shape) for i in (0, 1)],
        initializer=[helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def outputs(factor: int) -> dict[str, list[list[int]]]:
    """What the models answer to the request in input.json."""
    pairs = list(zip(INPUT0, INPUT1, strict=True))
    return {
        "OUTPUT0": [[int(a + b) * factor for a, b in pairs]],
        "OUTPUT1": [[int(a - b) * factor for a, b in pairs]],
    }


def contents() -> dict[str, bytes]:
    """Every file that this script writes, by its path."""
    request = {"inputs": {"INPUT0": [INPUT0], "INPUT1": [INPUT1]}}
    doubled = {"OUTPUT0": [[int(2 * a) for a in INPUT0]], "OUTPUT1": [[int(2 * b) for b in INPUT1]]}
    return {
        "onnx_float32_int32_int32/1/model.onnx": add_sub(1).SerializeToString(deterministic=True),
        "onnx_float32_int32_int32_v2/1/model.onnx": add_sub(10).SerializeToString(
            deterministic=True
        ),
        "input.json": _json(request),
        "expected_output.json": _json({"outputs": outputs(1)}),
        "expected_output_v2.json": _json({"outputs": outputs(10)}),
        "expected_output_ensemble.json": _json({"outputs": doubled}),
    }


def _json(document: object) -> bytes:
    # as predict writes it, so that the files can be compared byte by byte
    return json.dumps(document, separators=(",", ":")).encode()


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = []
    for name, data in contents().items():
        path = HERE / name
        if check:
            stale += [name] if not path.is_file() or path.read_bytes() != data else []
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if stale:
        print(f"not what make_models.py writes: {', '.join(stale)}", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
