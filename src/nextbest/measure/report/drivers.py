"""What moved revenue: more customers, more of them buying, more often, or more at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Driver", "drivers"]

_NAMES: Final = ("customers", "share who bought", "orders per buyer", "revenue per order")


@dataclass(frozen=True)
class Driver:
    """One of the factors of revenue, in the baseline and now, and what its change brought."""

    name: str
    before: float
    now: float
    effect: float

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return dict(vars(self))


def drivers(
    before: tuple[float, float, float, float], now: tuple[float, float, float, float]
) -> tuple[Driver, ...]:
    """Split the change of revenue into the parts that each factor brought; they add up to it.

    Parameters
    ----------
    before, now : customers, buyers, orders and revenue; empty where any is not above 0.

    Revenue = customers × (buyers / customers) × (orders / buyers) × (revenue / orders). A factor's
    effect is L(R, R₀) · ln(f / f₀), with the logarithmic mean L(a, b) = (a − b) / ln(a / b) (the
    additive LMDI-I of Ang 2005): nothing is left over, whatever the order.
    """
    if min(*before, *now) <= 0:
        return ()
    old, new = before[3], now[3]
    mean = old if math.isclose(old, new) else (new - old) / math.log(new / old)
    factors = [
        (b, n) if i == 0 else (b / before[i - 1], n / now[i - 1])
        for i, (b, n) in enumerate(zip(before, now, strict=True))
    ]
    return tuple(
        Driver(name, b, n, mean * math.log(n / b))
        for name, (b, n) in zip(_NAMES, factors, strict=True)
    )
