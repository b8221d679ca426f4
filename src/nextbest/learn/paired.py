"""Differences between scores on the same rows, and how much of a difference is chance.

Rows are redrawn by customer (a cluster bootstrap, Davison & Hinkley 1997, section 3.8): rows of one
customer rise and fall together, and to redraw them one by one would make intervals too narrow.
Where each customer has one row this is the ordinary paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from nextbest.learn.metrics import LEVEL, TOP_SHARE, Metric
from nextbest.learn.statistics import METRICS, Array, Statistic, clusters

__all__ = [
    "COVERAGE",
    "IDEAL",
    "LESS_IS_BETTER",
    "RESAMPLES",
    "Better",
    "Difference",
    "Rows",
    "figures",
    "goodness",
]

#: Share of outcomes inside the interval that was predicted for them.
COVERAGE: Final = "interval_coverage"
LESS_IS_BETTER: Final = frozenset({"brier", "log_loss", "ece", "mae", "rmse"})
#: Figures with a best value in the middle; coverage against the level of the interval.
IDEAL: Final = {
    "calibration_slope": 1.0,
    "calibration_intercept": 0.0,
    "aggregate_ratio": 1.0,
    COVERAGE: 0.9,
}
RESAMPLES: Final = 2_000
_FEWEST: Final = 500
_CELLS_IN_ALL: Final = 50_000_000  # Beyond it fewer resamples are drawn, so that minutes suffice.
_CELLS_PER_CHUNK: Final = 4_000_000
_CELLS_KEPT: Final = 16_000_000

Better = Literal["better", "worse", "unclear", "same"]


def goodness(metric: str, value: Any) -> Any:
    """Turn a figure into one where more is better: its negative, or minus its distance to ideal."""
    if metric in IDEAL:
        return -np.abs(value - IDEAL[metric])
    return -value if metric in LESS_IS_BETTER else value


@dataclass(frozen=True)
class Difference:
    """One figure of a score less the same figure of another, on the same rows.

    Attributes
    ----------
    difference : first less second, in the metric's own unit, with its interval.
    gain : the same turned so that above 0 the first is better.
    ahead_in : share of redraws in which the first was better; ties count half.
    better : ``better`` or ``worse`` where the interval of the gain, at the level that the number
        of judgements asks for, excludes 0; ``same`` where both are equal in every redraw; else
        ``unclear``.
    """

    difference: Metric
    gain: Metric
    ahead_in: float
    better: Better

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"value", "low", "high", "gain", "ahead_in", "better"}``."""
        return {
            **self.difference.to_dict(),
            "gain": self.gain.to_dict(),
            "ahead_in": self.ahead_in,
            "better": self.better,
        }


class Rows:
    """Rows with a known outcome, and any score's figures on them over the same redraws.

    Parameters
    ----------
    y : (n,) outcomes: 0 or 1, or amounts.
    customers : (n,) whose row it is; None where each row is a customer of its own.
    value : (n,) future value behind a 0/1 outcome, for ``value_capture``.
    share : top share of rows for the metrics that use one.
    resamples : how often the customers are redrawn; fewer where there are very many rows.
    seed : makes the redraws repeatable.
    """

    def __init__(
        self,
        y: Array,
        customers: npt.NDArray[Any] | None = None,
        *,
        value: Array | None = None,
        share: float = TOP_SHARE,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.y = np.asarray(y, dtype=np.float64)
        self._group, self.n_customers = clusters(customers, self.y.size)
        self._value = value
        self._share = share
        self._seed = seed
        affordable = max(_FEWEST, _CELLS_IN_ALL // max(1, self.y.size))
        self.resamples = min(resamples, affordable)
        self._weights: list[Array] = []
        self._known: dict[tuple[str, bytes], tuple[float, Array]] = {}

    def value_of(self, metric: str, score: Array) -> float:
        """Return one figure of a score on all rows (NaN where it has none)."""
        return self._figure(metric, score)[0]

    def metric(self, metric: str, score: Array, level: float = LEVEL) -> Metric | None:
        """Return one figure of a score with its interval, or None where it has none."""
        value, draws = self._figure(metric, score)
        return _interval(value, draws, level, mirrored=metric == "ece")

    def difference(
        self, metric: str, first: Array, second: Array, *, among: int = 1
    ) -> Difference | None:
        """Return first less second in one figure, or None where one of them has no such figure.

        Parameters: ``among`` how many such differences are judged together; the verdict (not the
        interval) is then held to the stricter level that keeps chance to 5% for all of them
        (Bonferroni).
        """
        (a, draws_a), (b, draws_b) = self._figure(metric, first), self._figure(metric, second)
        mirrored = metric == "ece"
        plain = _interval(a - b, draws_a - draws_b, LEVEL, mirrored=mirrored)
        gains = goodness(metric, draws_a) - goodness(metric, draws_b)
        value = float(goodness(metric, a) - goodness(metric, b))
        gain = _interval(value, gains, LEVEL, mirrored=mirrored)
        strict = _interval(value, gains, 1 - (1 - LEVEL) / among, mirrored=mirrored)
        if plain is None or gain is None or strict is None:
            return None
        usable = gains[np.isfinite(gains)]
        ahead = float((usable > 0).mean() + (usable == 0).mean() / 2)
        return Difference(plain, gain, ahead, _judged(strict, usable))

    def _figure(self, metric: str, score: Array) -> tuple[float, Array]:
        key = (metric, np.ascontiguousarray(score).tobytes())
        if key not in self._known:
            statistic = self._statistic(metric, np.asarray(score, dtype=np.float64))
            with np.errstate(invalid="ignore", divide="ignore"):
                value = float(statistic(np.ones((1, self.y.size)))[0])
                draws = [statistic(weights) for weights in self._redraws()]
            self._known[key] = value, np.concatenate(draws)
        return self._known[key]

    def _statistic(self, metric: str, score: Array) -> Statistic:
        if metric == COVERAGE:
            return lambda weights: np.asarray(weights @ score / weights.sum(axis=1))
        outcome = self.y
        if metric == "value_capture" and self._value is not None:
            outcome = self._value
        return METRICS[metric](outcome, score, self._share)

    def _redraws(self) -> Iterator[Array]:
        """Weights (resamples, n): how often each row was drawn; the same at every call."""
        if self._weights:
            yield from self._weights
            return
        keep = self.resamples * self.y.size <= _CELLS_KEPT
        rng = np.random.default_rng(self._seed)
        chunk = max(1, _CELLS_PER_CHUNK // self.y.size)
        made: list[Array] = []
        for start in range(0, self.resamples, chunk):
            weights = np.empty((min(chunk, self.resamples - start), self.y.size))
            for row in weights:
                drawn = rng.integers(0, self.n_customers, self.n_customers, dtype=np.uint32)
                row[:] = np.bincount(drawn, minlength=self.n_customers)[self._group]
            if keep:
                made.append(weights)
            yield weights
        self._weights = made


def _interval(value: float, draws: Array, level: float, *, mirrored: bool) -> Metric | None:
    usable = draws[np.isfinite(draws)]
    if not np.isfinite(value) or usable.size < draws.size / 2:
        return None
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    if mirrored:  # Absolute gaps grow with resampling noise: the draws lie as far off as the value.
        low, high = 2 * value - high, 2 * value - low
    return Metric(value, float(low), float(high))


def _judged(gain: Metric, draws: Array) -> Better:
    if gain.value == 0 and not np.any(draws):
        return "same"
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "unclear"


def figures(names: Sequence[str], rows: Rows, score: Array) -> dict[str, Metric]:
    """Return those of the named figures that a score has on these rows."""
    found = {name: rows.metric(name, score) for name in names}
    return {name: metric for name, metric in found.items() if metric is not None}
