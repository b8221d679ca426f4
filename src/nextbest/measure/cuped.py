"""CUPED: what customers were worth before takes noise out of what they were worth since.

Deng, Xu, Kohavi & Walker (2013), "Improving the sensitivity of online controlled experiments by
utilizing pre-experiment data". Nobody's arm can have changed the past, so the estimate stays
unbiased; it only gets narrower.
"""

from __future__ import annotations

from dataclasses import dataclass

from nextbest.measure.sums import Mean, Sums

__all__ = ["Cuped", "adjust"]


@dataclass(frozen=True)
class Cuped:
    """Two arms after the adjustment.

    Attributes
    ----------
    first, second : the arms' adjusted means.
    theta : how much of a unit of the value before carries over; the same for both arms.
    variance_reduction : share of the difference's variance that is gone, 0-1.
    """

    first: Mean
    second: Mean
    theta: float
    variance_reduction: float


def adjust(a: Sums, b: Sums) -> Cuped | None:
    """Return both arms adjusted for ``x``, or None where ``x`` is the same for everybody.

    y − θ (x − x̄) with one θ = pooled cov(x, y) / pooled var(x) within the arms, and x̄ over all.
    """

    def pooled(of: str) -> float:
        return ((a.n - 1) * a.spread(of) + (b.n - 1) * b.spread(of)) / (a.n + b.n - 2)

    if pooled("xx") == 0:
        return None
    theta = pooled("xy") / pooled("xx")
    centre = (a.x + b.x) / (a.n + b.n)

    def mean(arm: Sums) -> Mean:
        left = arm.spread("yy") - 2 * theta * arm.spread("xy") + theta**2 * arm.spread("xx")
        return Mean(arm.n, arm.y / arm.n - theta * (arm.x / arm.n - centre), max(0.0, left))

    first, second = mean(a), mean(b)
    before = a.mean.of_mean + b.mean.of_mean
    reduction = 1 - (first.of_mean + second.of_mean) / before if before else 0.0
    return Cuped(first, second, theta, reduction)
