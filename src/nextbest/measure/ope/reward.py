"""The reward model: what each action would earn, predicted by a model that did not see the row.

Cross-fitting (Chernozhukov et al. 2018): customers are dealt into folds, and each fold's rewards
are predicted by a model fitted on the others. Without it the model would know the very rewards
that correct it, and the doubly robust interval would be too narrow.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import DataError, FitError
from nextbest.measure.ope.log import Array, LoggedPolicy

__all__ = ["FOLDS", "default_model", "folds", "predict"]

FOLDS: Final = 5


def folds(customer_ids: npt.NDArray[Any], count: int = FOLDS) -> npt.NDArray[np.int64]:
    """Return (n,) the fold of each row: a customer has one fold, whatever the order of the rows."""
    names, place = np.unique(customer_ids.astype(str), return_inverse=True)
    if len(names) < count:
        raise DataError(
            "decision log", "too few customers for cross-fitting", expected=f"{count} or more",
            got=str(len(names)),
        )  # fmt: skip
    hashed = [hashlib.sha256(str(name).encode()).digest() for name in names]
    order = sorted(range(len(names)), key=hashed.__getitem__)
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % count
    return fold[place.reshape(-1)]


def default_model(reward: Array) -> Any:
    """Return the estimator used where none is given: shallow boosted trees, slow to learn.

    A classifier where rewards are 0 and 1, else a regressor; both take missing values.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    binary = bool(np.isin(reward, (0, 1)).all())
    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    return kind(
        learning_rate=0.05, max_iter=60, max_leaf_nodes=8, min_samples_leaf=50,
        l2_regularization=10.0, early_stopping=False, random_state=0,
    )  # fmt: skip


def predict(log: LoggedPolicy, model: Any = None, count: int = FOLDS) -> Array:
    """Return (n, m + 1) the predicted reward of every action in every decision.

    Parameters
    ----------
    model : a scikit-learn regressor, or a classifier for rewards of 0 and 1; it is cloned for
        each fold. Its columns are the context, then the slot (where there are several), then one
        0/1 column for each action. None takes `default_model`.
    count : number of folds.

    Raises
    ------
    FitError: the model cannot be fitted to these rewards.
    """
    from sklearn.base import clone

    model = default_model(log.reward) if model is None else model
    fold = folds(log.customer_ids, count)
    known = _known(log)
    q = np.empty((len(log), log.n_actions))
    for k in range(count):
        rows, others = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        seen = known[:, ~np.isnan(known[others]).all(axis=0)]
        design = np.hstack([seen[others], np.eye(log.n_actions)[log.action[others]]])
        if np.ptp(log.reward[others]) == 0:
            q[rows] = log.reward[others[0]]  # All the same: there is nothing to fit.
            continue
        try:
            fitted = clone(model).fit(design, log.reward[others])
            for action in range(log.n_actions):
                q[rows, action] = _predicted(fitted, seen[rows], action, log.n_actions)
        except (ValueError, TypeError) as error:
            raise FitError(
                "reward model", f"{type(model).__name__} could not be fitted or predict",
                expected="a scikit-learn regressor, or a classifier for rewards of 0 and 1",
                got=str(error).splitlines()[0],
            ) from error  # fmt: skip
    return q


def _known(log: LoggedPolicy) -> Array:
    parts = [np.empty((len(log), 0))]
    if log.context is not None:
        parts.append(log.context)
    if log.position is not None:
        parts.append(np.equal.outer(log.position, np.unique(log.position)).astype(np.float64))
    return np.hstack(parts)


def _predicted(fitted: Any, known: Array, action: int, n_actions: int) -> Array:
    chosen = np.zeros((len(known), n_actions))
    chosen[:, action] = 1
    design = np.hstack([known, chosen])
    if hasattr(fitted, "predict_proba"):
        return np.asarray(fitted.predict_proba(design) @ fitted.classes_, dtype=np.float64)
    return np.asarray(fitted.predict(design), dtype=np.float64)
