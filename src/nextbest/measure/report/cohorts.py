"""Who still buys, month by month after the first purchase."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from nextbest.measure.intervals import wilson
from nextbest.measure.kpi.calendar import Calendar, steps
from nextbest.measure.kpi.rows import CUSTOMER, PERIOD, Period, Shop, periods_table

__all__ = ["Cohort", "cohorts"]

_FEWEST: Final = 30
_ALPHA: Final = 0.05


@dataclass(frozen=True)
class Cohort:
    """Customers who first bought in one month, and the share who bought so many months later.

    Attributes
    ----------
    complete : False for the first month of the data: nobody knows who of it had bought before.
    shares : (months later, share, low, high), the interval at 95% (Wilson 1927).
    """

    month: str
    customers: int
    complete: bool
    shares: tuple[tuple[int, float, float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        names = ("months_later", "share", "low", "high")
        return {**vars(self), "shares": [dict(zip(names, s, strict=True)) for s in self.shares]}


def cohorts(shop: Shop, calendar: Calendar) -> tuple[Cohort, ...]:
    """Return the cohorts of all whole months of the data, those with too few customers left out."""
    begin = shop.history.data_start - timedelta(days=1)
    whole = Period("all", begin, calendar.current.ends_at)
    months = list(steps(calendar, whole, "month"))
    if not months:
        return ()
    o = shop.orders
    o = o.filter(o.amount > 0)
    when = periods_table(months)
    bought = when.inner_join(o, [o["at"] >= when.starts_at, o["at"] < when.ends_at])
    bought = bought.select(PERIOD, CUSTOMER).distinct()
    k = shop.known
    first = when.inner_join(k, [k.first_order >= when.starts_at, k.first_order < when.ends_at])
    first = first.select(CUSTOMER, cohort=first[PERIOD])
    both = first.inner_join(bought, CUSTOMER)
    rows = both.group_by("cohort", PERIOD).aggregate(n=both.count()).to_pyarrow().to_pylist()
    at = {m.name: i for i, m in enumerate(months)}
    seen = {(at[r["cohort"]], at[r[PERIOD]]): int(r["n"]) for r in rows}
    made = []
    for i, month in enumerate(months):
        size = seen.get((i, i), 0)
        if size < _FEWEST:
            continue
        shares = []
        for j in range(i + 1, len(months)):
            back = seen.get((i, j), 0)
            found = wilson(back, size, _ALPHA)
            shares.append((j - i, found.value, found.low, found.high))
        name = f"{calendar.day(month.starts_at):%Y-%m}"
        made.append(Cohort(name, size, i > 0, tuple(shares)))
    return tuple(made)
