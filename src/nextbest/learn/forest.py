"""A LightGBM model's own text, read strictly into arrays that other code can score from.

Only numbers come in: whatever is not exactly what LightGBM writes is refused by name. Splits are
those of LightGBM's ``Tree::NumericalDecision`` and ``Tree::CategoricalDecision`` (``tree.h``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_LEAVES", "ZERO", "Forest", "Nodes", "Unsupported", "read_forest"]

Array = npt.NDArray[np.float64]
Masks = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

#: The reachable leaves of a tree are the bits of one machine word.
MAX_LEAVES: Final = 64
#: LightGBM takes numbers this close to zero for zero: its single-precision 1e-35.
ZERO: Final = float(np.float32(1e-35))
#: Bits of a node's flags: where a missing value goes, whether 0 is missing, splits by category.
MISSING_LEFT: Final = 1
ZERO_IS_MISSING: Final = 2
CATEGORICAL: Final = 4

_OBJECTIVE_IDENTITY: Final = frozenset(("regression", "regression_l1", "huber", "fair", "mape"))
_OF_A_SPLIT: Final = ("split_feature", "threshold", "decision_type", "left_child", "right_child")


class Unsupported(Exception):
    """The text is sound, but only LightGBM itself can score it; the message says why."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """The splits of some trees, tree by tree.

    Attributes
    ----------
    start : (trees + 1,) where the splits of each tree begin.
    threshold : (n,) a value goes left where it is at most this.
    keep : (n, 2) leaves that stay reachable where the value goes right, and where it goes left.
    meta : (n, 5) tree, column, flags, and for a split by category where its bits begin and end.
    bits : sets of categories that go left, 32 to a word.
    """

    start: Ints
    threshold: Array
    keep: Masks
    meta: Words
    bits: Words

    def of_columns(self, position: Ints) -> Nodes:
        """Return the splits on columns whose ``position`` is not negative, counted by it."""
        kept = self._only(position[self.meta[:, 1]] >= 0)
        kept.meta[:, 1] = position[kept.meta[:, 1]]
        return kept

    def parted(self) -> tuple[Nodes, Nodes]:
        """Return the plain splits (no categories, and 0 is a number like others), and the rest."""
        plain = self.meta[:, 2] <= MISSING_LEFT
        return self._only(plain), self._only(~plain)

    def _only(self, kept: npt.NDArray[np.bool_]) -> Nodes:
        meta = self.meta[kept]
        sizes = np.bincount(meta[:, 0], minlength=len(self.start) - 1)
        return Nodes(_starts(sizes), self.threshold[kept], self.keep[kept], meta, self.bits)


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees of up to 64 leaves, in order; leaves are numbered from left to right.

    Attributes
    ----------
    n_columns : columns that the trees read.
    nodes : every split.
    leaf_start, leaf_value : the leaves of tree t begin at ``leaf_start[t]``.
    full : (trees,) all leaves of each tree.
    divisor : what the sum of the trees is divided by (1 but in a random forest).
    sigmoid : slope of the logistic function that ends it; None where the sum is the answer.
    """

    n_columns: int
    nodes: Nodes
    leaf_start: Ints
    leaf_value: Array
    full: Masks
    divisor: float
    sigmoid: float | None

    def __len__(self) -> int:
        return len(self.full)


def read_forest(text: str) -> Forest:
    """Read LightGBM's text.

    Raises ``ValueError`` where it is not what LightGBM writes, ``Unsupported`` where only LightGBM
    can score it: trees of more than 64 leaves or with linear models in their leaves, several
    outputs, another objective than binary or plain regression.
    """
    body, end, _rest = text.partition("\nend of trees")
    head, *blocks = re.split(r"\nTree=\d+\n", body)
    if not end or not text.startswith("tree\n"):
        raise ValueError("it is not LightGBM's text of a whole model")
    header = _pairs(head)
    n_columns = _integer(header, "max_feature_idx") + 1
    numbers = [int(n) for n in re.findall(r"\nTree=(\d+)\n", body)]
    if numbers != list(range(len(blocks))):
        raise ValueError(f"its trees are numbered {numbers[:5]}...")
    trees = [_tree(_pairs(block), number, n_columns) for number, block in enumerate(blocks)]
    if (outputs := _integer(header, "num_tree_per_iteration")) != 1:
        raise Unsupported(f"it has {outputs} outputs")
    return _joined(
        trees,
        n_columns,
        divisor=float(len(trees)) if "average_output" in header and trees else 1.0,
        sigmoid=_sigmoid(header.get("objective", "")),
    )


def _sigmoid(objective: str) -> float | None:
    name, *settings = objective.split() or [""]
    if name == "binary" and len(settings) == 1 and settings[0].startswith("sigmoid:"):
        return float(settings[0].removeprefix("sigmoid:"))
    if name in _OBJECTIVE_IDENTITY and not settings:
        return None
    raise Unsupported(f"its objective is {objective!r}")


@dataclass(frozen=True)
class _Tree:
    threshold: Array
    keep: Masks
    meta: Words
    bits: Words
    leaves: Array


def _tree(block: Mapping[str, str], number: int, n_columns: int) -> _Tree:
    where = f"tree {number}"
    n_leaves = _integer(block, "num_leaves")
    if n_leaves < 1:
        raise ValueError(f"{where} has {n_leaves} leaves")
    values = _row(block, "leaf_value", n_leaves, where)
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has a leaf that is not a number")
    if block.get("is_linear", "0") != "0":
        raise Unsupported(f"{where} has linear leaves")
    if n_leaves > MAX_LEAVES:
        raise Unsupported(f"{where} has {n_leaves} leaves")
    n = n_leaves - 1
    if n == 0:
        nothing = np.zeros((0, 2), np.uint64), np.zeros((0, 5), np.uint32)
        return _Tree(np.empty(0), *nothing, np.zeros(0, np.uint32), values)
    column, threshold, decision, left, right = (_row(block, k, n, where) for k in _OF_A_SPLIT)
    whole = [_whole(v, where) for v in (column, decision, left, right)]
    if whole[0].min() < 0 or whole[0].max() >= n_columns:
        raise ValueError(f"{where} reads a column beyond the {n_columns} of the model")
    order, keep = _leaf_order(whole[2], whole[3], n_leaves, where)
    meta = np.zeros((n, 5), np.uint32)
    meta[:, 0], meta[:, 1] = number, whole[0]
    meta[:, 2], meta[:, 3:], bits = _decisions(block, whole[1], threshold, where)
    return _Tree(threshold, keep, meta, bits, values[order])


def _decisions(
    block: Mapping[str, str], decision: Ints, threshold: Array, where: str
) -> tuple[Words, Words, Words]:
    """Turn LightGBM's decision types into flags and sets of categories."""
    missing_type = decision >> 2
    if decision.min() < 0 or missing_type.max() > 2 or np.isnan(threshold).any():
        raise ValueError(f"{where} has an unknown kind of split")
    default_left = (decision & 2) != 0
    # Where nothing counts as missing, LightGBM reads unknown as 0.
    missing_left = np.where(missing_type == 0, threshold >= 0.0, default_left)
    flags = missing_left * MISSING_LEFT + (missing_type == 1) * ZERO_IS_MISSING
    categorical = (decision & 1) != 0
    flags = np.where(categorical, CATEGORICAL, flags).astype(np.uint32)
    places = np.zeros((len(decision), 2), np.uint32)
    n_sets = _integer(block, "num_cat")
    if n_sets != categorical.sum():
        raise ValueError(f"{where} has {categorical.sum()} splits by category, not {n_sets}")
    if not n_sets:
        return flags, places, np.zeros(0, np.uint32)
    bounds = _whole(_row(block, "cat_boundaries", n_sets + 1, where), where)
    words = _row(block, "cat_threshold", int(bounds[-1]), where)
    if bounds[0] != 0 or (np.diff(bounds) < 0).any() or words.min() < 0 or words.max() >= 2**32:
        raise ValueError(f"{where} has sets of categories that do not fit")
    chosen = _whole(threshold[categorical], where)
    if chosen.min() < 0 or chosen.max() >= n_sets:
        raise ValueError(f"{where} names a set of categories that it does not have")
    places[categorical] = np.column_stack([bounds[chosen], bounds[chosen + 1]])
    return flags, places, words.astype(np.uint32)


def _leaf_order(left: Ints, right: Ints, n_leaves: int, where: str) -> tuple[Ints, Masks]:
    """Number the leaves from left to right, and give each split the leaves that it keeps."""
    order: list[int] = []
    middle = np.full(n_leaves - 1, -1)
    first, last = np.zeros_like(middle), np.zeros_like(middle)
    todo: list[tuple[int, str]] = [(0, "down")]
    while todo:
        node, step = todo.pop()
        if node < 0:
            order.append(~node)
        elif step == "down":
            if node >= n_leaves - 1 or middle[node] >= 0:
                raise ValueError(f"{where} is not a tree")
            middle[node], first[node] = 0, len(order)
            todo += [(node, "up"), (int(right[node]), "down"), (node, "across")]
            todo.append((int(left[node]), "down"))
        elif step == "across":
            middle[node] = len(order)
        else:
            last[node] = len(order)
    if sorted(order) != list(range(n_leaves)) or (middle < 0).any():
        raise ValueError(f"{where} is not a tree")
    keep = [
        [_all(n_leaves) & ~_span(a, b), _all(n_leaves) & ~_span(b, c)]
        for a, b, c in zip(first.tolist(), middle.tolist(), last.tolist(), strict=True)
    ]
    return np.array(order, np.int32), np.array(keep, np.uint64).reshape(-1, 2)


def _all(n: int) -> int:
    return (1 << n) - 1


def _span(start: int, stop: int) -> int:
    return _all(stop) & ~_all(start)


def _joined(trees: list[_Tree], n_columns: int, divisor: float, sigmoid: float | None) -> Forest:
    words = _starts([len(t.bits) for t in trees])
    metas = []
    for tree, first in zip(trees, words[:-1], strict=True):
        meta = tree.meta.copy()
        meta[(meta[:, 2] & CATEGORICAL) != 0, 3:] += np.uint32(first)
        metas.append(meta)
    nodes = Nodes(
        _starts([len(t.threshold) for t in trees]),
        np.concatenate([np.empty(0), *(t.threshold for t in trees)]),
        np.concatenate([np.zeros((0, 2), np.uint64), *(t.keep for t in trees)]),
        np.concatenate([np.zeros((0, 5), np.uint32), *metas]),
        np.concatenate([np.zeros(0, np.uint32), *(t.bits for t in trees)]),
    )
    return Forest(
        n_columns,
        nodes,
        _starts([len(t.leaves) for t in trees]),
        np.concatenate([np.empty(0), *(t.leaves for t in trees)]),
        np.array([_all(len(t.leaves)) for t in trees], np.uint64),
        divisor,
        sigmoid,
    )


def _starts(sizes: npt.ArrayLike) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


# ------------------------------------------------------------------ lines


def _pairs(block: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in block.split("\n"):
        key, _equals, value = line.partition("=")
        if key in found and key:
            raise ValueError(f"it states {key!r} twice")
        found[key] = value
    return found


def _text(block: Mapping[str, str], key: str) -> str:
    if key not in block:
        raise ValueError(f"it lacks {key!r}")
    return block[key]


def _integer(block: Mapping[str, str], key: str) -> int:
    text = _text(block, key)
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise ValueError(f"its {key!r} is {text[:20]!r}, not a whole number")
    return int(text)


def _row(block: Mapping[str, str], key: str, n: int, where: str) -> Array:
    words = _text(block, key).split(" ") if block.get(key) else []
    if len(words) != n:
        raise ValueError(f"{where}: its {key!r} has {len(words)} numbers, not {n}")
    if "_" in block[key]:
        raise ValueError(f"{where}: its {key!r} is not made of numbers")
    return np.array([float(word) for word in words], dtype=np.float64)


def _whole(values: Array, where: str) -> Any:
    if not (np.abs(values) < 2**31).all() or (values != np.floor(values)).any():
        raise ValueError(f"{where} has a fraction where a whole number belongs")
    return values.astype(np.int32)
