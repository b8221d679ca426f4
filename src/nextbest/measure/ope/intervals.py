"""How far chance may have moved a mean, where rows of one customer move together.

The interval is Student's t around the mean with the cluster-robust variance (Liang & Zeger 1986),
times G / (G - 1) for G customers. Importance weights make some customers count far more than
others; the variance is then itself uncertain, and degrees of freedom follow from the kurtosis of
the customers' parts: 2 G / (kurtosis - 1), which is G for a normal distribution (Satterthwaite
1946, with the variance of a sample variance from Cramér 1946, section 27.4). Weighted rewards are
also skewed: many zeros, few large. The interval is moved by skewness (2 t² + 1) / (6 √G) standard
errors (Hall 1992, section 3.5), or its upper end would miss the truth far oftener than its lower.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from nextbest.learn.metrics import Metric
from nextbest.measure.ope.log import Array

__all__ = ["LEVEL", "interval", "largest_share"]

LEVEL = 0.95


def interval(rows: Array, clusters: npt.NDArray[np.intp], level: float = LEVEL) -> Metric:
    """Return the mean of ``rows`` (n,) with its interval; ``clusters`` (n,) number the customers.

    With a single customer nothing is known about chance: the interval is infinite.
    """
    value = float(rows.mean())
    parts = _parts(rows, clusters)
    count = parts.size
    if count < 2:
        return Metric(value, -math.inf, math.inf)
    square = float(parts @ parts)
    if square == 0:
        return Metric(value, value, value)
    error = math.sqrt(square * count / (count - 1)) / rows.size
    kurtosis = count * float((parts**4).sum()) / square**2
    skewness = math.sqrt(count) * float((parts**3).sum()) / square**1.5
    freedom = max(1.0, min(count - 1.0, 2 * count / max(kurtosis - 1, 1e-12)))
    beyond, normal = stdtrit([freedom, count - 1.0], (1 + level) / 2)
    reach = float(beyond) * error
    moved = error * skewness * (2 * float(normal) ** 2 + 1) / (6 * math.sqrt(count))
    moved = min(max(moved, -reach), reach)  # The estimate stays inside its interval.
    return Metric(value, value - reach + moved, value + reach + moved)


def largest_share(rows: Array, clusters: npt.NDArray[np.intp]) -> float:
    """Return the share of the variance that is due to one customer alone (0 to 1)."""
    squares = _parts(rows, clusters) ** 2
    total = float(squares.sum())
    return float(squares.max()) / total if total > 0 else 0.0


def _parts(rows: Array, clusters: npt.NDArray[np.intp]) -> Array:
    return np.bincount(clusters, weights=rows - rows.mean()).astype(np.float64)
