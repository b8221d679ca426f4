"""What an arm is reduced to: a handful of sums, which add up over any partition of its customers.

A hundred million customers become one line per arm and segment; every estimator reads only these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["Mean", "Sums"]

#: A spread below a millionth of the size of the values is rounding, not spread.
_ROUNDING: Final = 1e-12


@dataclass(frozen=True)
class Mean:
    """A mean over customers: of how many, and how much one customer varies around it.

    Attributes
    ----------
    n : customers.
    value : the mean, in the outcome's unit.
    variance : variance of one customer's contribution, in that unit squared.
    """

    n: int
    value: float
    variance: float

    @property
    def of_mean(self) -> float:
        """Variance of the mean itself."""
        return self.variance / self.n


@dataclass(frozen=True)
class Sums:
    """The sums over an arm's customers of an outcome ``y`` and of what goes with it, ``x``.

    ``x`` is the value before the experiment (`cuped`) or the denominator of a ratio (`ratio`);
    it is zero where there is neither.

    Attributes
    ----------
    n : customers.
    y, yy, x, xx, xy : sums of y, y², x, x² and x·y.
    binary : every y is 0 or 1.
    """

    n: int
    y: float
    yy: float
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    binary: bool = False

    def __add__(self, other: Sums) -> Sums:
        """Return the sums over the customers of both."""
        return Sums(
            self.n + other.n, self.y + other.y, self.yy + other.yy, self.x + other.x,
            self.xx + other.xx, self.xy + other.xy, self.binary and other.binary,
        )  # fmt: skip

    @property
    def mean(self) -> Mean:
        """Mean of y per customer."""
        return Mean(self.n, self.y / self.n, self.spread("yy"))

    @property
    def ratio(self) -> Mean:
        """Sum of y over sum of x, with the variance of the delta method; x may not sum to zero.

        R = Σy / Σx; one customer contributes (y − R x) / x̄ (Deng, Knoblich & Lu 2018, eq. 3).
        """
        value = self.y / self.x
        around = self.spread("yy") - 2 * value * self.spread("xy") + value**2 * self.spread("xx")
        return Mean(self.n, value, max(0.0, around) / (self.x / self.n) ** 2)

    def spread(self, of: str) -> float:
        """Return the sample variance (``yy``, ``xx``) or covariance (``xy``), n − 1 below."""
        if self.n < 2:
            return math.nan
        first, second = getattr(self, of[0]), getattr(self, of[1])
        around = getattr(self, of) - first * second / self.n
        size = math.sqrt(getattr(self, of[0] * 2) * getattr(self, of[1] * 2))
        return 0.0 if abs(around) <= _ROUNDING * size else around / (self.n - 1)
