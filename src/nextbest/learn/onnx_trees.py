"""scikit-learn's tree ensembles as the arrays of one ONNX ``TreeEnsemble``, in double precision.

skl2onnx 1.20 writes them in single precision, sends unknown values down the wrong branch and fails
on histogram gradient boosting; ``onnx`` puts these arrays in its place. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["TREES", "Forest", "grow"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Forest:
    """Trees whose leaves add up to ``total``, and what turns the total into a probability.

    Attributes
    ----------
    attributes : of ``TreeEnsemble`` (ai.onnx.ml 5), numpy arrays by name.
    single_input : scikit-learn rounds its input to single precision before it compares.
    offset : added to the sum of the leaves.
    sigmoid_scale : the probability is ``sigmoid(scale × total)``; None where it is the total.
    """

    attributes: Mapping[str, npt.NDArray[Any]]
    single_input: bool
    offset: float = 0.0
    sigmoid_scale: float | None = None


@dataclass(frozen=True)
class _Tree:
    """One tree by node: an inner node's split and children, a leaf's value."""

    is_leaf: npt.NDArray[np.bool_]
    feature: npt.NDArray[np.int64]
    threshold: Array
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    unknown_left: npt.NDArray[np.bool_]
    value: Array


def _from_cart(estimator: Any, value: Array) -> _Tree:
    tree = estimator.tree_
    return _Tree(
        is_leaf=tree.children_left < 0,
        feature=tree.feature,
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        unknown_left=np.asarray(tree.missing_go_to_left, dtype=bool),
        value=value,
    )


def _from_histogram(nodes: Any) -> _Tree:
    return _Tree(
        is_leaf=nodes["is_leaf"].astype(bool),
        feature=nodes["feature_idx"].astype(np.int64),
        threshold=nodes["num_threshold"].astype(np.float64),
        left=nodes["left"].astype(np.int64),
        right=nodes["right"].astype(np.int64),
        unknown_left=nodes["missing_go_to_left"].astype(bool),
        value=nodes["value"].astype(np.float64),
    )


def _arrays(trees: Sequence[_Tree]) -> dict[str, npt.NDArray[Any]]:
    """Lay the trees' inner nodes and leaves end to end, numbered through."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    n_inner = n_leaves = 0

    def add(**columns: npt.NDArray[Any]) -> None:
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)

    for tree in map(_rooted, trees):
        inner, leaves = np.flatnonzero(~tree.is_leaf), np.flatnonzero(tree.is_leaf)
        number = np.empty(len(tree.is_leaf), dtype=np.int64)
        number[inner] = n_inner + np.arange(len(inner))
        number[leaves] = n_leaves + np.arange(len(leaves))
        add(
            nodes_splits=tree.threshold[inner],
            nodes_featureids=tree.feature[inner],
            nodes_truenodeids=number[tree.left[inner]],
            nodes_trueleafs=tree.is_leaf[tree.left[inner]],
            nodes_falsenodeids=number[tree.right[inner]],
            nodes_falseleafs=tree.is_leaf[tree.right[inner]],
            nodes_missing_value_tracks_true=tree.unknown_left[inner],
            leaf_weights=tree.value[leaves],
            tree_roots=number[:1],
        )
        n_inner += len(inner)
        n_leaves += len(leaves)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    joined = {
        name: values if name in ("nodes_splits", "leaf_weights") else values.astype(np.int64)
        for name, values in joined.items()
    }
    # Mode 0 is "value <= split"; every leaf counts towards the one target.
    joined["nodes_modes"] = np.zeros(n_inner, dtype=np.uint8)
    joined["leaf_targetids"] = np.zeros(n_leaves, dtype=np.int64)
    return joined


def _rooted(tree: _Tree) -> _Tree:
    """A tree that is one leaf gets a root that leads to it either way: ONNX knows no other."""
    if len(tree.is_leaf) > 1:
        return tree
    zero = np.zeros(3, dtype=np.int64)
    return _Tree(
        is_leaf=np.array([False, True, True]),
        feature=zero,
        threshold=zero.astype(np.float64),
        left=np.array([1, -1, -1]),
        right=np.array([2, -1, -1]),
        unknown_left=zero.astype(bool),
        value=np.repeat(tree.value, 3),
    )


def _share_of_ones(estimator: Any) -> Array:
    value = estimator.tree_.value[:, 0, :]
    return np.asarray(value[:, 1] / value.sum(axis=1))


def _tree(estimator: Any) -> Forest:
    return Forest(_arrays([_from_cart(estimator, _share_of_ones(estimator))]), True)


def _forest(estimator: Any) -> Forest:
    members = estimator.estimators_
    trees = [_from_cart(m, _share_of_ones(m) / len(members)) for m in members]
    return Forest(_arrays(trees), True)


def _gradient_boosting(estimator: Any) -> Forest:
    if estimator.init not in (None, "zero"):
        raise ValueError("its init is an estimator of its own; leave init out")
    rate, members = float(estimator.learning_rate), estimator.estimators_[:, 0]
    trees = [_from_cart(m, rate * m.tree_.value[:, 0, 0]) for m in members]
    # What the trees start from is the same for every row; scikit-learn has no public name for it.
    row = np.zeros((1, estimator.n_features_in_))
    start = float(estimator.decision_function(row)[0])
    start -= rate * sum(float(m.predict(row)[0]) for m in members)
    return Forest(_arrays(trees), True, start, 2.0 if estimator.loss == "exponential" else 1.0)


def _histogram_gradient_boosting(estimator: Any) -> Forest:
    if estimator.is_categorical_ is not None:
        raise ValueError("it splits by categories; let FeatureEncoder encode them")
    trees = [_from_histogram(predictor.nodes) for (predictor,) in estimator._predictors]
    start = float(np.ravel(estimator._baseline_prediction)[0])
    return Forest(_arrays(trees), False, start, 1.0)


#: ``package.Class`` -> how its trees are laid out.
TREES: Final[Mapping[str, Callable[[Any], Forest]]] = {
    "sklearn.DecisionTreeClassifier": _tree,
    "sklearn.ExtraTreeClassifier": _tree,
    "sklearn.ExtraTreesClassifier": _forest,
    "sklearn.GradientBoostingClassifier": _gradient_boosting,
    "sklearn.HistGradientBoostingClassifier": _histogram_gradient_boosting,
    "sklearn.RandomForestClassifier": _forest,
}


def grow(name: str, estimator: Any) -> Forest:
    """Lay out a fitted tree ensemble; ``ValueError`` says why it cannot be."""
    return TREES[name](estimator)
