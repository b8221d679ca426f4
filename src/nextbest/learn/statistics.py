"""Each quality figure as a function of row weights, so that resampling is arithmetic.

A figure's value uses weight 1 everywhere; a bootstrap resample uses the number of times that each
row was drawn. Rows are sorted once, so that a resample of AUC costs one cumulative sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from nextbest.errors import DataError, UsageError

__all__ = [
    "BINS",
    "EPSILON",
    "METRICS",
    "Array",
    "Statistic",
    "binary",
    "bins",
    "clusters",
    "descending",
    "ece_by_chance",
    "fit_logistic",
    "pair",
    "probability",
]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
#: Maps weights (resamples, n) to one figure per resample; NaN where a resample has none.
Statistic = Callable[[Array], Array]

BINS: Final = 10
#: Probabilities are kept this far from 0 and 1 before a logarithm, as scikit-learn does.
EPSILON: Final = float(np.finfo(np.float64).eps)


# ------------------------------------------------------------------ checking what comes in


def column(values: npt.ArrayLike, name: str) -> Array:
    where = f"metrics: {name}"
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(where, "some values are not numbers", got=str(error)) from None
    if array.ndim != 1:
        got = f"an array with shape {array.shape}"
        raise DataError(where, "wrong shape", expected="one column of numbers", got=got)
    if array.size == 0:
        action = "Check the time split: no row fell into this slice."
        raise DataError(where, "there are no rows", expected="at least 1", got="0", action=action)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        got = f"{bad.size} of {array.size} that are not, the first in row {bad[0]}"
        raise DataError(where, "some values are missing", expected="finite in every row", got=got)
    return array


def pair(y: npt.ArrayLike, score: npt.ArrayLike) -> tuple[Array, Array]:
    """Return both as equally long finite float columns, or raise ``DataError``."""
    first, second = column(y, "y"), column(score, "score")
    if first.size != second.size:
        got = f"{first.size} and {second.size} rows"
        raise DataError("metrics", "y and score differ in length", expected="equal", got=got)
    return first, second


def binary(y: Array) -> Array:
    """Return ``y`` if it holds 0 and 1, each at least once; else raise ``DataError``."""
    odd = np.flatnonzero((y != 0) & (y != 1))
    if odd.size:
        got = f"{y[odd[0]]:g} in row {odd[0]}"
        raise DataError("metrics: y", "the label is not binary", expected="0 or 1", got=got)
    positives = int(y.sum())
    if positives in (0, y.size):
        raise DataError(
            "metrics: y",
            "only one class is present",
            expected="at least one positive and one negative row",
            got=f"{positives} positive of {y.size} rows",
            action="Widen the time slice or the label window.",
        )
    return y


def probability(score: Array) -> Array:
    """Return ``score`` if it lies in 0-1; else raise ``DataError``."""
    if score.min() < 0 or score.max() > 1:
        got = f"{score.min():g} to {score.max():g}"
        raise DataError("metrics: score", "not probabilities", expected="from 0 to 1", got=got)
    return score


def clusters(customers: npt.ArrayLike | None, n: int) -> tuple[Index, int]:
    """Return each of n rows' customer as a number, and how many customers there are.

    Without customers each row is one of its own. Numbers rise in the order of appearance.
    """
    if customers is None:
        return np.arange(n), n
    import pandas as pd

    codes, found = pd.factorize(np.asarray(customers, dtype=object))
    if codes.size != n:
        got = f"{codes.size} and {n} rows"
        raise DataError("metrics", "customers and y differ in length", expected="equal", got=got)
    return np.asarray(codes, dtype=np.intp), len(found)


# ------------------------------------------------------------------ statistics of the ranking


def descending(score: Array) -> Index | None:
    """Stable order by falling score, or None where the rows already lie so."""
    if bool(np.all(score[:-1] >= score[1:])):
        return None
    return np.argsort(-score, kind="stable")


def _auc(y: Array, score: Array, share: float) -> Statistic:
    positive = np.flatnonzero(binary(y) == 1)
    negative = np.flatnonzero(y == 0)
    negative = negative[np.argsort(score[negative], kind="stable")]
    below = np.searchsorted(score[negative], score[positive], side="left")
    up_to = np.searchsorted(score[negative], score[positive], side="right")
    tied = bool(np.any(below != up_to))

    def statistic(weights: Array) -> Array:
        beaten = np.zeros((len(weights), negative.size + 1))
        np.cumsum(weights[:, negative], axis=1, out=beaten[:, 1:])
        won = beaten[:, below]
        if tied:
            won = (won + beaten[:, up_to]) / 2
        mine = weights[:, positive]
        return np.asarray((mine * won).sum(axis=1) / (mine.sum(axis=1) * beaten[:, -1]))

    return statistic


def _average_precision(y: Array, score: Array, share: float) -> Statistic:
    order = descending(score)
    ranked = y if order is None else y[order]
    falling = -score if order is None else -score[order]
    positive = np.flatnonzero(binary(ranked) == 1)
    # A tie is one threshold: precision is taken where the tied rows end.
    last = np.searchsorted(falling, falling[positive], side="right") - 1
    last_positive = np.searchsorted(positive, last, side="right") - 1

    def statistic(weights: Array) -> Array:
        in_order = weights if order is None else weights[:, order]
        chosen = np.cumsum(in_order, axis=1)[:, last]
        mine = in_order[:, positive]
        hits = np.cumsum(mine, axis=1)
        # A row drawn 0 times may stand before every drawn row: 0 of 0 chosen, and it counts 0.
        precision = hits[:, last_positive] / np.maximum(chosen, 1.0)
        return np.asarray((mine * precision).sum(axis=1) / hits[:, -1])

    return statistic


def _top(amount: Array, score: Array, share: float) -> Callable[[Array], tuple[Array, Array]]:
    """Weights -> (mean amount per row in the top ``share`` of rows, mean amount over all rows).

    Rows tied at the edge count in proportion: what a random order among them gives on average.
    """
    if not 0 < share <= 1:
        raise UsageError("metrics", "share is out of range", expected="in (0, 1]", got=f"{share:g}")
    order = descending(score)
    falling = -score if order is None else -score[order]
    ranked = amount if order is None else amount[order]
    first = np.searchsorted(falling, falling, side="left")
    last = np.searchsorted(falling, falling, side="right") - 1

    def statistic(weights: Array) -> tuple[Array, Array]:
        in_order = weights if order is None else weights[:, order]
        rows = np.cumsum(in_order, axis=1)
        gained = np.cumsum(in_order * ranked, axis=1)
        inside = np.empty(len(weights))
        for i, wanted in enumerate(share * rows[:, -1]):
            edge = np.searchsorted(rows[i], wanted, side="left")
            start, end = first[edge], last[edge]
            rows_before, before = (
                (rows[i, start - 1], gained[i, start - 1]) if start else (0.0, 0.0)
            )
            part = (wanted - rows_before) / (rows[i, end] - rows_before)
            inside[i] = (before + part * (gained[i, end] - before)) / wanted
        return inside, gained[:, -1] / rows[:, -1]

    return statistic


def _lift_at_10(y: Array, score: Array, share: float) -> Statistic:
    top = _top(binary(y), score, 0.1)

    def statistic(weights: Array) -> Array:
        inside, overall = top(weights)
        return inside / overall

    return statistic


def _precision_at_top_share(y: Array, score: Array, share: float) -> Statistic:
    top = _top(binary(y), score, share)
    return lambda weights: top(weights)[0]


def _value_capture(y: Array, score: Array, share: float) -> Statistic:
    top = _top(y, score, share)

    def statistic(weights: Array) -> Array:
        inside, overall = top(weights)
        return np.where(overall > 0, share * inside / overall, np.nan)

    return statistic


# ------------------------------------------------------------------ statistics of probabilities


def _mean_of(loss: Array) -> Statistic:
    return lambda weights: np.asarray(weights @ loss / weights.sum(axis=1))


def _brier(y: Array, score: Array, share: float) -> Statistic:
    return _mean_of((binary(y) - probability(score)) ** 2)


def _log_loss(y: Array, score: Array, share: float) -> Statistic:
    p = np.clip(probability(score), EPSILON, 1 - EPSILON)
    return _mean_of(-np.where(binary(y) == 1, np.log(p), np.log1p(-p)))


def bins(score: Array) -> Index:
    """Bin of each row: about equal counts, equal scores never parted."""
    edges = np.unique(np.quantile(score, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    return np.searchsorted(edges, score, side="left")


def _members(score: Array) -> list[Index]:
    group = bins(score)
    return [np.flatnonzero(group == k) for k in np.unique(group)]


def _ece(y: Array, score: Array, share: float) -> Statistic:
    error = binary(y) - probability(score)
    members = _members(score)

    def statistic(weights: Array) -> Array:
        gaps = [np.abs(weights[:, rows] @ error[rows]) for rows in members]
        return np.asarray(np.sum(gaps, axis=0) / weights.sum(axis=1))

    return statistic


def ece_by_chance(score: Array, draws: int, seed: int) -> Array:
    """Return ``draws`` calibration errors that perfectly calibrated scores would show by chance.

    Each bin's sum of errors is about normal with variance sum p (1 - p).
    """
    spread = [np.sqrt((score[rows] * (1 - score[rows])).sum()) for rows in _members(score)]
    normal = np.random.default_rng(seed).standard_normal((draws, len(spread)))
    return np.asarray((np.abs(normal) * spread).sum(axis=1) / score.size)


def fit_logistic(design: Array, target: Array, offset: Array | None = None) -> Array | None:
    """Fit log-odds = design @ coefficients (+ offset) by maximum likelihood (damped Newton).

    Parameters: ``design`` (n, k); ``target`` (n,) between 0 and 1. Returns the k coefficients, or
    None where no finite best fit exists (the classes are separated, or a column is constant).
    """
    base = np.zeros(len(target)) if offset is None else offset
    coef = np.zeros(design.shape[1])

    def loss_of(z: Array) -> float:
        return float(np.logaddexp(0, z).sum() - target @ z)

    loss = loss_of(base)
    for _ in range(100):
        p = expit(base + design @ coef)
        gradient = design.T @ (target - p)
        hessian = (design * (p * (1 - p))[:, None]).T @ design
        if np.linalg.cond(hessian) > 1e13:
            return None
        step = np.linalg.solve(hessian, gradient)
        while (new_loss := loss_of(base + design @ (coef + step))) > loss + 1e-9 * abs(loss):
            step = step / 2
        coef, loss = coef + step, new_loss
        if np.abs(step).max() < 1e-9 * (1 + np.abs(coef).max()):
            return coef if loss > 1e-6 else None
    return None


def _undefined(weights: Array) -> Array:
    return np.full(len(weights), np.nan)


def _calibration_slope(y: Array, score: Array, share: float) -> Statistic:
    x = logit(np.clip(probability(score), EPSILON, 1 - EPSILON))
    coef = fit_logistic(np.column_stack([np.ones_like(x), x]), binary(y))
    if coef is None:
        return _undefined
    p = expit(coef[0] + coef[1] * x)
    v = p * (1 - p)
    terms = np.column_stack([y - p, (y - p) * x, v, v * x, v * x * x])

    def statistic(weights: Array) -> Array:
        # One Newton step from the whole-sample fit: its error is far below the interval's width.
        g0, g1, h00, h01, h11 = (weights @ terms).T
        return np.asarray(coef[1] + (h00 * g1 - h01 * g0) / (h00 * h11 - h01 * h01))

    return statistic


def _calibration_intercept(y: Array, score: Array, share: float) -> Statistic:
    x = logit(np.clip(probability(score), EPSILON, 1 - EPSILON))
    coef = fit_logistic(np.ones((x.size, 1)), binary(y), x)
    if coef is None:
        return _undefined
    p = expit(coef[0] + x)
    terms = np.column_stack([y - p, p * (1 - p)])

    def statistic(weights: Array) -> Array:
        gradient, curvature = (weights @ terms).T
        return np.asarray(coef[0] + gradient / curvature)

    return statistic


# ------------------------------------------------------------------ statistics of values


def _mae(y: Array, score: Array, share: float) -> Statistic:
    return _mean_of(np.abs(y - score))


def _rmse(y: Array, score: Array, share: float) -> Statistic:
    mean_square = _mean_of((y - score) ** 2)
    return lambda weights: np.sqrt(mean_square(weights))


def _pearson_r(y: Array, score: Array, share: float) -> Statistic:
    if np.ptp(y) == 0 or np.ptp(score) == 0:
        return _undefined
    # Centred first: the textbook formula on raw moments loses its digits to cancellation.
    a, b = (y - y.mean()) / y.std(), (score - score.mean()) / score.std()
    terms = np.column_stack([a, b, a * b, a * a, b * b])

    def statistic(weights: Array) -> Array:
        ma, mb, mab, maa, mbb = (weights @ terms).T / weights.sum(axis=1)
        spread = np.sqrt(np.maximum(maa - ma * ma, 0) * np.maximum(mbb - mb * mb, 0))
        return np.asarray((mab - ma * mb) / spread)

    return statistic


def _aggregate_ratio(y: Array, score: Array, share: float) -> Statistic:
    terms = np.column_stack([score, y])

    def statistic(weights: Array) -> Array:
        predicted, actual = (weights @ terms).T
        return np.where(actual > 0, predicted / actual, np.nan)

    return statistic


#: Name -> (y, score, share) -> statistic. The calibration slope is that of the logistic
#: regression of y on the score's log-odds, the intercept that of the same with the slope held at
#: 1 (calibration in the large; Van Calster et al. 2016). ``ece`` uses ten bins of equal counts.
METRICS: Final[Mapping[str, Callable[[Array, Array, float], Statistic]]] = {
    "auc": _auc,
    "average_precision": _average_precision,
    "brier": _brier,
    "log_loss": _log_loss,
    "lift_at_10": _lift_at_10,
    "ece": _ece,
    "calibration_slope": _calibration_slope,
    "calibration_intercept": _calibration_intercept,
    "precision_at_top_share": _precision_at_top_share,
    "value_capture": _value_capture,
    "mae": _mae,
    "rmse": _rmse,
    "pearson_r": _pearson_r,
    "aggregate_ratio": _aggregate_ratio,
}
