"""How far apart two arms are, with an interval: read once, at the end that was planned.

Means are compared by Welch's t. Two rates are compared by Newcombe's hybrid score interval: it
keeps its level where successes are few or none, which in marketing is the rule, never leaves
[-1, 1], and needs no iteration; a Wald interval fails in all three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from nextbest.measure.sums import Mean

__all__ = ["Interval", "newcombe", "newcombe_p", "relative", "welch", "welch_p", "wilson"]


@dataclass(frozen=True)
class Interval:
    """An estimate and the range that holds the truth at the level asked for."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return ``{"value", "low", "high"}``; a bound that does not exist is null."""
        return {k: v if math.isfinite(v) else None for k, v in vars(self).items()}


def _freedom(a: Mean, b: Mean) -> float:
    """Welch-Satterthwaite degrees of freedom."""
    parts = a.of_mean**2 / (a.n - 1) + b.of_mean**2 / (b.n - 1)
    return (a.of_mean + b.of_mean) ** 2 / parts


def welch(a: Mean, b: Mean, alpha: float) -> Interval:
    """Return a less b with its interval (Welch 1947); at least one of them must vary."""
    apart = a.value - b.value
    half = float(student.isf(alpha / 2, _freedom(a, b))) * math.sqrt(a.of_mean + b.of_mean)
    return Interval(apart, apart - half, apart + half)


def welch_p(a: Mean, b: Mean) -> float:
    """Return the chance of a difference this large between equal means."""
    t = (a.value - b.value) / math.sqrt(a.of_mean + b.of_mean)
    return float(2 * student.sf(abs(t), _freedom(a, b)))


def _wilson(successes: float, n: int, z: float) -> tuple[float, float]:
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def wilson(successes: float, n: int, alpha: float) -> Interval:
    """Return a share with its score interval (Wilson 1927)."""
    low, high = _wilson(successes, n, float(-ndtri(alpha / 2)))
    return Interval(successes / n, max(low, 0.0), min(high, 1.0))


def _newcombe(k1: float, n1: int, k0: float, n0: int, z: float) -> Interval:
    p1, p0 = k1 / n1, k0 / n0
    (low1, high1), (low0, high0) = _wilson(k1, n1, z), _wilson(k0, n0, z)
    apart = p1 - p0
    return Interval(
        apart, apart - math.hypot(p1 - low1, high0 - p0), apart + math.hypot(high1 - p1, p0 - low0)
    )


def newcombe(k1: float, n1: int, k0: float, n0: int, alpha: float) -> Interval:
    """Return the first rate less the second with its interval (Newcombe 1998, method 10).

    Parameters: ``k1`` of ``n1`` and ``k0`` of ``n0`` customers did it.
    """
    return _newcombe(k1, n1, k0, n0, float(-ndtri(alpha / 2)))


def newcombe_p(k1: float, n1: int, k0: float, n0: int) -> float:
    """Return the alpha at which Newcombe's interval first touches zero, so that both agree."""
    if k1 / n1 == k0 / n0:
        return 1.0

    def nearest(z: float) -> float:
        found = _newcombe(k1, n1, k0, n0, z)
        return found.low if found.value > 0 else -found.high

    # Beyond 38 standard errors the p-value is below every float.
    edge = 38.0 if nearest(38.0) > 0 else float(brentq(nearest, 0.0, 38.0, xtol=1e-12))
    return float(2 * ndtr(-edge))


def relative(a: Mean, b: Mean, alpha: float) -> Interval | str:
    """Return a over b with its interval, or why there is none (delta method on the logarithm).

    Var log(a / b) ≈ Var(a) / a² + Var(b) / b² (Katz et al. 1978 for rates).
    """
    if a.value <= 0 or b.value <= 0:
        return f"no ratio: a mean is not above zero ({a.value:.6g} against {b.value:.6g})"
    shaky = max(math.sqrt(mean.of_mean) / mean.value for mean in (a, b))
    if shaky > 1 / 3:
        return f"no ratio: a mean is within 3 standard errors of zero ({1 / shaky:.1f})"
    spread = math.sqrt(a.of_mean / a.value**2 + b.of_mean / b.value**2)
    half = float(-ndtri(alpha / 2)) * spread
    value = a.value / b.value
    return Interval(value, value * math.exp(-half), value * math.exp(half))
