"""How good a model is, each figure with an interval.

Intervals are percentiles of the figure over rows drawn again with replacement (Efron & Tibshirani
1993, chapter 13). Where customers are named, customers are drawn with all their rows (Davison &
Hinkley 1997, section 3.8): rows of one customer rise and fall together. A seed makes them
repeatable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import DataError, UsageError, did_you_mean
from nextbest.learn.statistics import (
    METRICS,
    Array,
    Statistic,
    binary,
    bins,
    clusters,
    descending,
    ece_by_chance,
    pair,
    probability,
)

__all__ = [
    "METRICS",
    "Metric",
    "curves",
    "evaluate",
    "in_top_share",
    "is_and_becoming",
    "paired_difference",
    "point",
    "probability_metrics",
    "top_share_metrics",
    "value_metrics",
]

RESAMPLES: Final = 500
LEVEL: Final = 0.95
TOP_SHARE: Final = 0.2
_CELLS_PER_CHUNK: Final = 4_000_000
_CURVE_POINTS: Final = 200


@dataclass(frozen=True)
class Metric:
    """A figure with its interval: the truth lies inside in about 95 of 100 samples."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return ``{"value", "low", "high"}``."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, d: Mapping[str, float]) -> Metric:
        """Rebuild a metric from what ``to_dict`` returned."""
        return cls(float(d["value"]), float(d["low"]), float(d["high"]))


_PROBABILITY: Final = (
    "auc", "average_precision", "brier", "log_loss", "lift_at_10", "ece",
    "calibration_slope", "calibration_intercept",
)  # fmt: skip
_VALUE: Final = ("mae", "rmse", "pearson_r", "aggregate_ratio")
#: Figures that some honest predictions do not have: a constant score has no slope and no r.
_MAY_BE_UNDEFINED: Final = frozenset({"calibration_slope", "calibration_intercept", "pearson_r"})


def _build(name: str, y: Array, score: Array, share: float) -> Statistic:
    if name not in METRICS:
        known = ", ".join(METRICS)
        raise UsageError(
            "metrics",
            f'no metric "{name}"',
            expected=f"one of {known}",
            action=did_you_mean(name, METRICS),
        )
    return METRICS[name](y, score, share)


def _whole(statistic: Statistic, n: int) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(statistic(np.ones((1, n)))[0])


def _resampled(
    statistics: Sequence[Statistic],
    n: int,
    resamples: int,
    seed: int,
    customers: npt.ArrayLike | None = None,
) -> list[Array]:
    """Each statistic over the same ``resamples`` draws of n rows, or of customers, with all of
    their rows, with replacement."""
    rng = np.random.default_rng(seed)
    group, drawn = clusters(customers, n)
    chunk = max(1, _CELLS_PER_CHUNK // n)
    figures: list[list[Array]] = [[] for _ in statistics]
    for start in range(0, resamples, chunk):
        weights = np.empty((min(chunk, resamples - start), n))
        for row in weights:
            times = np.bincount(rng.integers(0, drawn, drawn, dtype=np.uint32), minlength=drawn)
            row[:] = times[group]
        with np.errstate(invalid="ignore", divide="ignore"):
            for known, statistic in zip(figures, statistics, strict=True):
                known.append(statistic(weights))
    return [np.concatenate(known) for known in figures]


def _no_value(name: str) -> DataError:
    return DataError(
        f"metrics: {name}",
        "it has no finite value on these rows",
        expected="a score and outcome that vary and do not separate the classes perfectly",
        action="Look for a constant score, a label that leaks into the features, or too few rows.",
    )


def _interval(name: str, value: float, draws: Array, level: float) -> Metric:
    usable = draws[np.isfinite(draws)]
    if not np.isfinite(value) or usable.size < draws.size / 2:
        raise _no_value(name)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Metric(value, float(low), float(high))


def _unshifted(ece: Metric, chance: Array, level: float) -> Metric:
    """Absolute gaps grow with resampling noise, so the draws lie too high: mirror them.

    Where perfect calibration shows as much by chance, 0 cannot be excluded.
    """
    v = ece.value
    low = 0.0 if v <= np.quantile(chance, level) else max(0.0, 2 * v - ece.high)
    return Metric(v, min(v, low), max(v, 2 * v - ece.low))


def point(name: str, y: npt.ArrayLike, score: npt.ArrayLike, *, share: float = TOP_SHARE) -> float:
    """Return one metric's value without an interval, for tuning loops.

    Parameters: ``name`` a key of ``METRICS``; ``y`` (n,) outcomes; ``score`` (n,) scores;
    ``share`` the top share of rows for the metrics that use one. Raises ``DataError`` where the
    rows cannot answer (empty, one class, not finite).
    """
    a, b = pair(y, score)
    value = _whole(_build(name, a, b, share), a.size)
    if not np.isfinite(value):
        raise _no_value(name)
    return value


def evaluate(
    names: Sequence[str],
    y: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    share: float = TOP_SHARE,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    customers: npt.ArrayLike | None = None,
) -> dict[str, Metric]:
    """Return the named metrics with bootstrap intervals, all over the same resamples.

    Parameters: ``names`` keys of ``METRICS``; ``y`` (n,) outcomes; ``score`` (n,) scores;
    ``share`` the top share of rows for the metrics that use one; ``resamples`` number of draws;
    ``level`` of the interval, 0-1; ``seed`` makes the result repeatable; ``customers`` (n,) whose
    row each is, where rows repeat customers. Raises ``DataError`` where the rows cannot answer:
    empty, not finite, one class, or no finite figure.
    """
    a, b = pair(y, score)
    order = descending(b)
    if order is not None:
        a, b = a[order], b[order]
        customers = clusters(customers, a.size)[0][order]
    statistics = [_build(name, a, b, share) for name in names]
    values = [_whole(statistic, a.size) for statistic in statistics]
    draws = _resampled(statistics, a.size, resamples, seed, customers)
    out = {
        name: _interval(name, value, d, level)
        for name, value, d in zip(names, values, draws, strict=True)
    }
    if "ece" in out:
        out["ece"] = _unshifted(out["ece"], ece_by_chance(b, resamples, seed), level)
    return out


def _bundle(
    names: Sequence[str],
    y: npt.ArrayLike,
    score: npt.ArrayLike,
    resamples: int,
    seed: int,
    customers: npt.ArrayLike | None,
) -> dict[str, Metric]:
    a, b = pair(y, score)
    defined = [
        name
        for name in names
        if name not in _MAY_BE_UNDEFINED
        or np.isfinite(_whole(_build(name, a, b, TOP_SHARE), a.size))
    ]
    return evaluate(defined, a, b, resamples=resamples, seed=seed, customers=customers)


def probability_metrics(
    y: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    customers: npt.ArrayLike | None = None,
) -> dict[str, Metric]:
    """Return how well probabilities rank and match outcomes, each figure with its interval.

    Parameters: ``y`` (n,) 0 or 1; ``score`` (n,) probabilities 0-1; ``customers`` (n,) whose row
    each is, where rows repeat customers. The calibration slope and
    intercept are left out where no finite one exists (a constant score, or perfect separation).
    Raises ``DataError`` as ``evaluate`` does.
    """
    return _bundle(_PROBABILITY, y, score, resamples, seed, customers)


def value_metrics(
    y: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    customers: npt.ArrayLike | None = None,
) -> dict[str, Metric]:
    """Return how close predicted amounts come to real ones, each figure with its interval.

    Parameters: ``y`` (n,) real amounts; ``score`` (n,) predicted amounts, same unit;
    ``customers`` as above.
    ``aggregate_ratio`` is predicted total / real total. ``pearson_r`` is left out where one side
    is constant. Raises ``DataError`` as ``evaluate`` does.
    """
    return _bundle(_VALUE, y, score, resamples, seed, customers)


def top_share_metrics(
    flag: npt.ArrayLike,
    score: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    share: float = TOP_SHARE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    customers: npt.ArrayLike | None = None,
) -> dict[str, Metric]:
    """Return how many of the customers ranked on top are truly high-value, and what they hold.

    Parameters: ``flag`` (n,) 1 for customers in the true top; ``score`` (n,); ``value`` (n,)
    future value in currency; ``share`` in (0, 1]. ``precision_at_top_share`` is the share of
    flagged customers in the top by score, ``value_capture`` their share of all future value.
    """

    def one(name: str, outcome: npt.ArrayLike) -> Mapping[str, Metric]:
        return evaluate(
            [name], outcome, score,
            share=share, resamples=resamples, seed=seed, customers=customers,
        )  # fmt: skip

    return {**one("precision_at_top_share", flag), **one("value_capture", value)}


def paired_difference(
    name: str,
    y: npt.ArrayLike,
    score_a: npt.ArrayLike,
    score_b: npt.ArrayLike,
    *,
    share: float = TOP_SHARE,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    customers: npt.ArrayLike | None = None,
) -> Metric:
    """Return metric(a) - metric(b) on the same rows, with an interval for the difference.

    Both scores see the same resamples, so what makes a row hard for both cancels out. An interval
    that excludes 0 is a real difference. Parameters and errors as in ``evaluate``.
    """
    (outcome, a), (_, b) = pair(y, score_a), pair(y, score_b)
    first, second = _build(name, outcome, a, share), _build(name, outcome, b, share)
    value = _whole(first, a.size) - _whole(second, a.size)
    draws_a, draws_b = _resampled([first, second], a.size, resamples, seed, customers)
    return _interval(name, value, draws_a - draws_b, level)


# ------------------------------------------------------------------ high value: is and becoming


def in_top_share(values: npt.ArrayLike, share: float) -> npt.NDArray[np.bool_]:
    """Return (n,) which rows are in the top ``share`` (0-1) by value; ties go to earlier rows."""
    known = np.asarray(values, dtype=np.float64)
    # A hair more, because 0.29 * 100 is 28.999999999999996 in floating point.
    chosen = np.argsort(-known, kind="stable")[: int(known.size * share + 1e-9)]
    mask = np.zeros(known.size, dtype=np.bool_)
    mask[chosen] = True
    return mask


def is_and_becoming(
    flag: npt.ArrayLike, score: npt.ArrayLike, past: npt.ArrayLike, *, share: float = TOP_SHARE
) -> dict[str, tuple[int, Metric | None]]:
    """Return how many of those predicted high-value are so already, and how often each is right.

    Parameters: ``flag`` (n,) 1 for customers in the true top; ``score`` (n,) predictions; ``past``
    (n,) value so far, or a score that ranks by it; ``share`` in (0, 1]. ``is``: in the top by
    score and by the past; ``becoming``: by score alone; ``slipping``: by the past alone. Each has
    its number of customers and the share truly in the top, with Wilson's 95% interval; None where
    there is nobody. Raises ``DataError`` on empty input or values that are not finite.
    """
    truth, predicted = pair(flag, score)
    _, before = pair(flag, past)
    ahead, today = in_top_share(predicted, share), in_top_share(before, share)
    groups = {"is": ahead & today, "becoming": ahead & ~today, "slipping": today & ~ahead}
    return {
        name: (int(g.sum()), _wilson(int(g.sum()), float(truth[g].mean())) if g.any() else None)
        for name, g in groups.items()
    }


def _wilson(n: int, rate: float) -> Metric:
    """A share of n rows with Wilson's 95% interval (Wilson 1927)."""
    z = 1.959963984540054
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Metric(rate, float(centre - half), float(centre + half))


# ------------------------------------------------------------------ curves as data


def _reliability(y: Array, score: Array) -> dict[str, list[float]]:
    """Observed rate per bin with its interval."""
    groups = bins(score)
    out: dict[str, list[float]] = {k: [] for k in ("mean_score", "observed", "low", "high", "rows")}
    for k in np.unique(groups):
        inside = groups == k
        m = _wilson(int(inside.sum()), float(y[inside].mean()))
        figures = (float(score[inside].mean()), m.value, m.low, m.high, float(inside.sum()))
        for name, figure in zip(out, figures, strict=True):
            out[name].append(float(figure))
    return out


def curves(y: npt.ArrayLike, score: npt.ArrayLike) -> dict[str, dict[str, list[float]]]:
    """Return ROC, precision-recall, gain, lift and reliability curves as plain numbers.

    Parameters: ``y`` (n,) 0 or 1; ``score`` (n,) probabilities. Each curve is a dict of equally
    long columns with at most about 200 points; ``gain`` is the share of responders reached by
    contacting the top ``share`` of rows, ``lift`` the same over ``share``. Raises ``DataError`` on
    empty or one-class input.
    """
    a, b = pair(y, score)
    probability(b)
    binary(a)
    order = np.argsort(-b, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(b[order])), b.size - 1)
    ends = ends[np.unique(np.linspace(0, ends.size - 1, _CURVE_POINTS).round().astype(int))]
    hits = np.cumsum(a[order])[ends]
    chosen = (ends + 1).astype(np.float64)
    recall, false_rate = hits / a.sum(), (chosen - hits) / (a.size - a.sum())
    share = chosen / a.size

    def from_zero(values: Array) -> list[float]:
        return [0.0, *values.tolist()]

    return {
        "roc": {
            "false_positive_rate": from_zero(false_rate),
            "true_positive_rate": from_zero(recall),
        },
        "pr": {"recall": recall.tolist(), "precision": (hits / chosen).tolist()},
        "gain": {"share": from_zero(share), "captured": from_zero(recall)},
        "lift": {"share": share.tolist(), "lift": (recall / share).tolist()},
        "reliability": _reliability(a, b),
    }
