"""The estimators: each turns logged rows into rows whose mean is the target policy's value.

Notation of the papers: w = π(a|x) / μ(a|x), the target's probability of the logged choice over
the logged one; r the reward; q(x, a) the reward model. The direct method trusts the model alone,
which a policy that was picked by a model flatters; so there is no function for it alone, and
`estimate` returns all of them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from nextbest.learn.metrics import Metric
from nextbest.measure.ope.intervals import interval
from nextbest.measure.ope.log import Array, LoggedPolicy

__all__ = ["MEANINGS", "PRIMARY", "Estimate", "clip_level", "estimate", "row_values",
           "switch_threshold"]  # fmt: skip

#: The estimator that the verdict goes by.
PRIMARY: Final = "dr"
MEANINGS: Final = {
    "ips": "inverse probability weighting",
    "clipped_ips": "weights cut off at the square root of n",
    "snips": "weights scaled to mean 1",
    "dm": "reward model alone: never trust it by itself",
    "dr": "reward model, corrected by weighted errors",
    "switch_dr": "the same; model alone where weights are large",
}
_GRID: Final = 21


@dataclass(frozen=True)
class Estimate:
    """What the target policy would have earned per decision, by one estimator.

    Attributes
    ----------
    value : per decision, with its 95% interval.
    difference : the same less the mean of the logged rewards on the same rows, with its interval.
    """

    name: str
    value: Metric
    difference: Metric

    def to_dict(self) -> dict[str, object]:
        """Return the estimate as plain JSON types."""
        return {"value": self.value.to_dict(), "difference": self.difference.to_dict()}


def clip_level(n: int) -> float:
    """Return where weights are cut off: √n, so that the bias fades faster than chance.

    Ionides 2008, "Truncated importance sampling", equation 2 (mean weight 1).
    """
    return math.sqrt(n)


def estimate(log: LoggedPolicy, target: Array, q: Array) -> dict[str, Estimate]:
    """Return every estimator's value of the target policy, in a fixed order.

    Parameters
    ----------
    target : (n, m + 1) probabilities of the target policy.
    q : (n, m + 1) predicted reward of each action, from a model that did not see the row.
    """
    clusters = log.clusters
    found = {}
    lost = _lost_to_clipping(log, target)
    for name, rows in row_values(log, target, q).items():
        value, difference = interval(rows, clusters), interval(rows - log.reward, clusters)
        if name == "clipped_ips":
            value, difference = _widened(value, lost), _widened(difference, lost)
        found[name] = Estimate(name, value, difference)
    return found


def row_values(log: LoggedPolicy, target: Array, q: Array) -> dict[str, Array]:
    """Return (n,) rows for each estimator; their mean is the estimate, their spread its error.

    - ips: w r (Horvitz & Thompson 1952)
    - clipped_ips: min(w, √n) r (Ionides 2008)
    - snips: V + w (r - V) / mean(w) with V = Σ w r / Σ w (Swaminathan & Joachims 2015), linearised
    - dr: Σ π q + w (r - q) (Dudík, Langford & Li 2011, equation 4)
    - dm: Σ π q; its error is that of dr, to which it is equivalent if the model is right
      (Hahn 1998), and says nothing about a wrong model
    - switch_dr: Σ π q + w (r - q) where w is at most a threshold (Wang, Agarwal & Dudík 2017)
    """
    w, r = log.weights(target), log.reward
    mean_w = w.mean()
    snips = float(w @ r / w.sum()) if mean_w > 0 else math.nan
    direct = (target * q).sum(axis=1)
    error = w * (r - q[np.arange(len(log)), log.action])
    dr = direct + error
    threshold = switch_threshold(log, target, q)
    return {
        "ips": w * r,
        "clipped_ips": np.minimum(w, clip_level(len(log))) * r,
        "snips": snips + w * (r - snips) / mean_w,
        "dm": dr - dr.mean() + direct.mean(),
        "dr": dr,
        "switch_dr": direct + np.where(w <= threshold, error, 0.0),
    }


def switch_threshold(log: LoggedPolicy, target: Array, q: Array) -> float:
    """Return the weight above which the reward model is trusted more than the log.

    It minimises variance plus the square of the largest possible bias, which is the reward's
    largest size times the target's share of choices above the threshold (Wang, Agarwal & Dudík
    2017, section 3.2). As there, candidates are 21 weights, evenly spaced on a log scale between
    their 5% and 95% quantiles; the largest weight, which is plain dr, is one more.
    """
    w, r = log.weights(target), log.reward
    positive = w[w > 0]
    if positive.size == 0:
        return math.inf
    low, high = np.quantile(positive, [0.05, 0.95])
    candidates = np.append(np.geomspace(low, high, _GRID), positive.max())
    direct = (target * q).sum(axis=1)
    error = w * (r - q[np.arange(len(log)), log.action])
    largest = float(np.abs(r).max())
    risks = []
    for threshold in candidates:
        rows = direct + np.where(w <= threshold, error, 0.0)
        bias = largest * _share_above(log, target, w, threshold)
        risks.append(rows.var() / rows.size + bias**2)
    # Of equal risks the largest threshold: what need not be left to the model is not.
    best = len(risks) - 1 - int(np.argmin(risks[::-1]))
    return float(candidates[best])


def _share_above(log: LoggedPolicy, target: Array, w: Array, threshold: float) -> float:
    """Share of the target's choices whose weight would lie above the threshold."""
    if log.probabilities is None:
        return float(np.where(w > threshold, w, 0.0).mean())
    above = target > threshold * log.probabilities
    return float(np.where(above, target, 0.0).sum(axis=1).mean())


def _lost_to_clipping(log: LoggedPolicy, target: Array) -> tuple[float, float]:
    """How far the cut-off weights could move the value down and up (Bottou et al. 2013, 4.3)."""
    w = log.weights(target)
    mass = float((w - np.minimum(w, clip_level(len(log)))).mean())
    return mass * min(float(log.reward.min()), 0.0), mass * max(float(log.reward.max()), 0.0)


def _widened(metric: Metric, by: tuple[float, float]) -> Metric:
    return Metric(metric.value, metric.low + by[0], metric.high + by[1])
