"""Model files as XGBoost, LightGBM and torch write them, as far as they are read here."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

_LIGHTGBM = """tree
version=v4
num_class={classes}
num_tree_per_iteration=1
label_index=0
max_feature_idx={last}
objective={objective}
feature_names=width age is_new
feature_infos={infos}
tree_sizes=300

{trees}
end of trees

pandas_categorical:{categories}
"""
_TREE = """Tree={number}
num_leaves=2
num_cat=0
split_feature={columns}
split_gain=1
threshold={thresholds}
decision_type=2
leaf_value=1 2


"""


def xgboost_document(
    booster: str = "gbtree", *, rounds: int = 3, trees: int = 1, best: int | None = None
) -> dict[str, Any]:
    """What XGBoost 3 saves; its keys are sorted.

    Args:
        booster: how it was boosted.
        rounds: how often.
        trees: of one round.
        best: the round that was best, where training stopped early.
    """
    model: dict[str, Any] = {
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(rounds * trees)},
        "iteration_indptr": [trees * each for each in range(rounds + 1)],
        "tree_info": [each % trees for each in range(rounds * trees)],
        "trees": [{"id": each, "split_conditions": [0.5]} for each in range(rounds * trees)],
    }
    gradient_booster: dict[str, Any] = {"model": model, "name": booster}
    if booster == "dart":
        gradient_booster = {"gbtree": gradient_booster, "name": "dart", "weight_drop": [1.0]}
    if booster == "gblinear":
        gradient_booster["model"] = {"boosted_rounds": rounds, "weights": [0.5, 1.0]}
    attributes = {} if best is None else {"best_iteration": str(best), "best_score": "0.5"}
    learner = {"attributes": attributes, "feature_names": ["trees", 'a"b']}
    return {"learner": learner | {"gradient_booster": gradient_booster}, "version": [3, 2, 0]}


def xgboost_file(document: dict[str, Any], suffix: str) -> bytes:
    """A document in the format that the suffix stands for."""
    return json.dumps(document).encode() if suffix == "json" else ubjson(document)


def ubjson(value: Any) -> bytes:
    """As XGBoost writes it: numbers of one type together, each text with its length before it."""
    if isinstance(value, dict):
        return b"{" + b"".join(_text(key) + ubjson(each) for key, each in value.items()) + b"}"
    if isinstance(value, list) and value and isinstance(value[0], float):
        return b"[$d#" + _length(len(value)) + struct.pack(f">{len(value)}f", *value)
    if isinstance(value, list):
        return b"[#" + _length(len(value)) + b"".join(map(ubjson, value))
    if isinstance(value, str):
        return b"S" + _text(value)
    return b"l" + struct.pack(">i", value)


def _text(value: str) -> bytes:
    return _length(len(value.encode())) + value.encode()


def _length(count: int) -> bytes:
    return b"L" + struct.pack(">q", count)


def lightgbm_text(
    objective: str = "regression",
    *,
    classes: int = 1,
    last: int = 2,
    categories: str = "[]",
    infos: str = "[-2:2] [0:90] [0:1]",
    splits: tuple[tuple[int, float], ...] = ((0, 0.25), (1, 18.5)),
) -> str:
    """A LightGBM model.

    Args:
        objective: and what is set of it.
        classes: how many.
        last: the number of its last column.
        categories: of pandas.
        infos: what training saw of each column.
        splits: columns and thresholds, each in a tree of its own.
    """
    trees = "".join(
        _TREE.format(number=number, columns=column, thresholds=repr(threshold))
        for number, (column, threshold) in enumerate(splits)
    )
    return _LIGHTGBM.format(
        objective=objective,
        classes=classes,
        last=last,
        categories=categories,
        infos=infos,
        trees=trees,
    )


def torch_archive(pickled: bytes, *members: str) -> bytes:
    """A zip as `torch.jit.save` writes it.

    Args:
        pickled: its data.pkl.
        members: what it holds; by default code, constants and data.pkl.
    """
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in members or ("model/data.pkl", "model/constants.pkl", "model/code/__torch__.py"):
            archive.writestr(name, pickled if name.endswith("/data.pkl") else b"x")
    return data.getvalue()
