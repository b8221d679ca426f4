"""What a key figure is reduced to in two periods, and what may be said about its change.

A figure is a ratio Σy / Σx over customers, in the period (y, x) and in the baseline (v, u). Most
customers are in both, so the two are not independent: the sums of all products are kept, and the
change is judged from them alone. No customer's row is needed, however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from scipy.stats import t as student

from nextbest.measure.intervals import Interval, wilson

__all__ = [
    "FEWEST", "FEWEST_EVENTS", "PRODUCTS", "Change", "Moments", "Swing", "change", "level",
    "swing",
]  # fmt: skip

#: Customers in a denominator below which no interval is to be trusted.
FEWEST: Final = 30
#: Customers who did it, and who did not, in both periods together.
FEWEST_EVENTS: Final = 20
PRODUCTS: Final = ("yy", "xx", "vv", "uu", "xy", "yv", "yu", "xv", "xu", "uv")
#: Mean moving range of two neighbours over the standard deviation (Shewhart's d2 for n = 2).
_D2: Final = 1.128
#: Baseline steps that an estimate of the swing needs.
_FEWEST_STEPS: Final = 8

Noise = Literal["customers", "time"]


@dataclass(frozen=True)
class Moments:
    """Sums over customers of a figure's numerator and denominator, now and in the baseline.

    Attributes
    ----------
    n, n_before, n_either : customers with a part in the figure: now, in the baseline, in either.
    y, x, v, u : sums of numerator and denominator now, and of both in the baseline.
    products : sums of products, by the names in ``PRODUCTS``.
    active, active_before : customers whose numerator is not zero.
    binary : every customer's numerator and denominator is 0 or 1.
    """

    n: int
    n_before: int
    n_either: int
    y: float
    x: float
    v: float
    u: float
    products: Mapping[str, float]
    active: int
    active_before: int
    binary: bool

    @property
    def value(self) -> float | None:
        """The figure now; None where there is nothing to divide by."""
        return self.y / self.x if self.x else None

    @property
    def before(self) -> float | None:
        """The figure in the baseline."""
        return self.v / self.u if self.u else None


@dataclass(frozen=True)
class Swing:
    """How much a figure differs from one step of time to the next by itself.

    Attributes
    ----------
    spread : standard deviation of one step's figure, from the mean moving range.
    steps : steps of the baseline that it was taken from.
    """

    spread: float
    steps: int

    @property
    def freedom(self) -> float:
        """Degrees of freedom of a spread from moving ranges (Bissell 1969: about 0.62 each)."""
        return 0.62 * (self.steps - 1)


@dataclass(frozen=True)
class Change:
    """How far a figure lies from its baseline.

    Attributes
    ----------
    difference : now less baseline, with its interval.
    relative : the difference as a share of the baseline; None where that is not above 0.
    p_value : chance of a difference this large where nothing has changed.
    noise : which chance was the larger: between ``customers``, or from one step of ``time`` to
        the next.
    """

    difference: Interval
    relative: float | None
    p_value: float
    noise: Noise

    def to_dict(self) -> dict[str, Any]:
        """Return the change as plain JSON types."""
        return {**vars(self), "difference": self.difference.to_dict()}


def level(m: Moments, alpha: float, who: str = "") -> Interval | str:
    """Return the figure now with its interval, or why there is none.

    Parameters: ``who`` says which customers have a part in the figure, for messages.

    Where every customer counts once as yes or no it is Wilson's score interval (1927); else that
    of a ratio of means by the delta method (Deng, Knoblich & Lu 2018, eq. 3), with Student's t.
    """
    if m.n < FEWEST:
        return _few(m.n, who)
    if m.x <= 0:
        return f"the denominator adds up to {m.x:g}; it must be above 0"
    value = m.y / m.x
    if m.binary and m.x == m.n:
        return wilson(m.y, m.n, alpha)
    around = m.products["yy"] - 2 * value * m.products["xy"] + value**2 * m.products["xx"]
    half = _half(around, m.n, m.x, alpha)
    return Interval(value, value - half, value + half)


def _half(around: float, n: int, x: float, alpha: float) -> float:
    spread = math.sqrt(max(0.0, around) * n / (n - 1)) / x
    return float(student.isf(alpha / 2, n - 1)) * spread


def _few(n: int, who: str, when: str = "") -> str:
    people = "no customer" if n == 0 else "only 1 customer" if n == 1 else f"only {n} customers"
    return f"{' '.join(w for w in (people, who, when) if w)}; {FEWEST} are needed"


def change(
    m: Moments,
    alpha: float,
    *,
    swings: Swing | None = None,
    steps: int = 1,
    total: bool = False,
    who: str = "",
) -> Change | str:
    """Return how far the figure has moved, or why nobody can say.

    Parameters
    ----------
    alpha : of the interval.
    swings : how the figure moves by itself from step to step; None where that is not known. A
        change must exceed both this and the chance between customers.
    steps : steps of time in the period, and as many in the baseline.
    total : the figure of a period is the sum of its steps' figures, and not their mean.

    The difference R − R₀ has the variance n / (n − 1) · Σ d², where one customer's share is
    d = (y − R x) / Σx − (v − R₀ u) / Σu: the delta method for two ratios on the same customers.
    """
    reason = _cannot(m, who)
    if reason or m.value is None or m.before is None:
        return reason
    r, s, p = m.value, m.before, m.products
    now = p["yy"] - 2 * r * p["xy"] + r * r * p["xx"]
    then = p["vv"] - 2 * s * p["uv"] + s * s * p["uu"]
    both = p["yv"] - s * p["yu"] - r * p["xv"] + r * s * p["xu"]
    squares = now / m.x**2 + then / m.u**2 - 2 * both / (m.x * m.u)
    size = now / m.x**2 + then / m.u**2
    if squares <= 1e-12 * size or size == 0:
        return f"it does not vary between customers: {r:g} now, {s:g} in the baseline"
    variance = squares * m.n_either / (m.n_either - 1)
    noise: Noise = "customers"
    freedom: float = m.n_either - 1
    if swings is not None:
        moving = 2 * swings.spread**2 * (steps if total else 1 / steps)
        if moving > variance:
            variance, noise, freedom = moving, "time", swings.freedom
    spread = math.sqrt(variance)
    half = float(student.isf(alpha / 2, freedom)) * spread
    apart = r - s
    return Change(
        Interval(apart, apart - half, apart + half),
        apart / s if s > 0 else None,
        float(2 * student.sf(abs(apart) / spread, freedom)),
        noise,
    )


def _cannot(m: Moments, who: str) -> str:
    for n, x, when in ((m.n, m.x, "in the period"), (m.n_before, m.u, "in the baseline")):
        if n < FEWEST:
            return _few(n, who, when)
        if x <= 0:
            return f"the denominator adds up to {x:g} {when}; it must be above 0"
    did = m.active + m.active_before
    if m.binary:
        did = min(did, m.n + m.n_before - did)
    if did < FEWEST_EVENTS:
        side = "on the rarer side of a yes or no" if m.binary else "did it"
        return f"only {did} customers {side} in both periods together; {FEWEST_EVENTS} are needed"
    return ""


def swing(values: list[float | None]) -> Swing | None:
    """Return how a figure moves from step to step, or None where the steps are too few.

    Parameters: ``values`` the figure of each step of the baseline, in order; None where unknown.

    The spread is the mean moving range over 1.128, as on a chart of individual values (Shewhart
    1931; Wheeler & Chambers 1992): a slow trend does not count as noise.
    """
    known = [v for v in values if v is not None]
    if len(known) < _FEWEST_STEPS or len(known) < len(values):
        return None
    ranges = [abs(b - a) for a, b in pairwise(known)]
    spread = sum(ranges) / len(ranges) / _D2
    return Swing(spread, len(known)) if spread > 0 else None
