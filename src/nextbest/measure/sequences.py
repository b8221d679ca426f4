"""Intervals that stay true however often, and whenever, somebody looks.

A 95% interval read daily, until it first excludes zero, is wrong far more often than 5%. A
confidence sequence holds the truth at all looks together with 95%, and is wider for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betaln, expit, xlog1py, xlogy

from nextbest.measure.intervals import Interval
from nextbest.measure.sums import Mean

__all__ = [
    "critical", "evidence_against_equal_rates", "means", "means_p", "rates", "rates_p",
]  # fmt: skip

Array = npt.NDArray[np.float64]

_TUNED_FOR: Final = 0.05
#: ρ² times the planned customers: the sequence is narrowest when they are reached
#: (Waudby-Smith et al., section 2.3: ρ² t = −2 log α + log(−2 log α + 1)).
_AT_PLANNED: Final = -2 * math.log(_TUNED_FOR) + math.log(-2 * math.log(_TUNED_FOR) + 1)
#: Conversions that the prior of `rates` counts as seen; it is narrowest at about eight times it.
_PRIOR_CONVERSIONS: Final = 100.0


def critical(progress: float, alpha: float) -> float:
    """Return how many standard errors the sequence reaches to either side; 1.96 for one look.

    Normal mixture, √((1 + 1/k) log((k + 1) / α²)) with k = ρ² t (Waudby-Smith, Arbour, Sinha,
    Kennedy & Ramdas 2024, "Time-uniform central limit theory and asymptotic confidence
    sequences", Annals of Statistics 52, theorem 2.2).

    Parameters
    ----------
    progress : customers so far over the customers planned; the plan may not follow the results.
    alpha : chance of ever being wrong, 0-1.
    """
    k = _AT_PLANNED * progress
    return math.sqrt((1 + 1 / k) * math.log((k + 1) / alpha**2))


def means(a: Mean, b: Mean, alpha: float, progress: float) -> Interval:
    """Return a less b with its interval at this look of any number of looks."""
    apart = a.value - b.value
    half = critical(progress, alpha) * math.sqrt(a.of_mean + b.of_mean)
    return Interval(apart, apart - half, apart + half)


def means_p(a: Mean, b: Mean, progress: float) -> float:
    """Return the smallest alpha whose sequence excludes zero at this look."""
    z = (a.value - b.value) / math.sqrt(a.of_mean + b.of_mean)
    k = _AT_PLANNED * progress
    return min(1.0, math.sqrt(k + 1) * math.exp(-z * z * k / (2 * (k + 1))))


def evidence_against_equal_rates(k1: Any, k0: Any, share: Any) -> Any:
    """Return the logarithm of a bet's winnings against "both arms convert alike".

    Of customers who convert, each is from the first arm with chance ``share`` if both arms
    convert alike. A Beta-Bernoulli mixture bets on other shares (Robbins 1970; Lindon & Malek
    2022, "Anytime-valid inference for multinomial count data"). If there is no difference it
    ever reaches log(1 / α) with probability at most α, whatever the counts: no normal
    approximation. Arguments may be arrays.
    """
    return _winnings(np.asarray(k1), np.asarray(k0), np.asarray(share), np.asarray(share))


def _winnings(k1: Any, k0: Any, prior: Any, share: Any) -> Any:
    a, b = _PRIOR_CONVERSIONS * prior, _PRIOR_CONVERSIONS * (1 - prior)
    return betaln(a + k1, b + k0) - betaln(a, b) - xlogy(k1, share) - xlog1py(k0, -share)


def rates_p(k1: float, k0: float, share: float) -> float:
    """Return the smallest alpha at which the bet has won by now."""
    return min(1.0, math.exp(-float(evidence_against_equal_rates(k1, k0, share))))


def rates(k1: float, n1: int, k0: float, n0: int, alpha: float, share: float) -> Interval:
    """Return the first rate over the second with its interval at this look of any number of looks.

    Exact at any count, zero included; a bound that the data cannot give is 0 or infinite.

    Parameters
    ----------
    k1, n1, k0, n0 : conversions and customers of either arm.
    share : planned share of the first arm among the customers of both.
    """
    value = (k1 / n1) / (k0 / n0) if k0 else (math.inf if k1 else math.nan)
    same = math.log(share / (1 - share))

    def lead(log_odds: float) -> float:
        return float(_winnings(k1, k0, share, expit(log_odds))) + math.log(alpha)

    # Of the shares that the data leave possible the best is that of the conversions themselves.
    best = same if k1 + k0 == 0 else math.log((k1 + 0.5) / (k0 + 0.5))
    if k1 and k0:
        best = math.log(k1 / k0)
    low = math.exp(_edge(lead, best, -1) - same) if k1 else 0.0
    high = math.exp(_edge(lead, best, 1) - same) if k0 else math.inf
    return Interval(value, low, high)


def _edge(lead: Callable[[float], float], best: float, side: int) -> float:
    """Return where the bet reaches its goal, away from ``best`` to one side (log-odds)."""
    step = 1.0
    while lead(best + side * step) < 0:
        step *= 2
    found: float = brentq(lead, *sorted((best, best + side * step)), xtol=1e-12)
    return found
