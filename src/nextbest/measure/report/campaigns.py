"""Offers and channels of a period: whom they reached, how many answered, what they earned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ibis

from nextbest.measure.intervals import Interval
from nextbest.measure.kpi import moments
from nextbest.measure.kpi.read import moments_by
from nextbest.measure.kpi.rows import CUSTOMER, Period, Shop

__all__ = ["Campaign", "campaigns"]


@dataclass(frozen=True)
class Campaign:
    """An offer or channel.

    Attributes
    ----------
    contacts, customers : made in the period, and to how many.
    closed : contacts whose time to answer is over; only these are judged.
    answered : of these.
    response : share answered, with its interval; None where ``why`` says why there is none.
    profit : of the closed contacts; None where costs or margin are not stated.
    profit_per_contact : with its interval.
    """

    name: str
    title: str
    contacts: int
    customers: int
    closed: int
    answered: int
    response: Interval | None
    why: str
    profit: float | None
    profit_per_contact: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        both = ("response", "profit_per_contact")
        return {k: v.to_dict() if k in both and v else v for k, v in vars(self).items()}


def campaigns(
    shop: Shop, period: Period, by: Literal["offer_id", "channel"], alpha: float = 0.05
) -> tuple[Campaign, ...]:
    """Return every offer or channel that somebody was contacted with, the most contacts first.

    What they earned is what responses brought in, not what the contacts caused.
    """
    if shop.contacts is None:
        return ()
    start, end = (ibis.literal(m, type="timestamp") for m in (period.starts_at, period.ends_at))
    c = shop.contacts
    c = c.filter((c.contacted_at >= start) & (c.contacted_at < end))
    closed = c.closed.cast("float64")
    people = c.group_by(by, CUSTOMER).aggregate(
        contacts=c.count(),
        y0=(c.closed & c.answered).cast("float64").sum(), x0=closed.sum(),
        y1=c.closed.ifelse(c.earned - c.cost, 0.0).sum(), x1=closed.sum(),
    )  # fmt: skip
    # Held against no baseline.
    people = people.mutate(**dict.fromkeys(("v0", "u0", "v1", "u1"), ibis.literal(0.0)))
    counted = people.group_by(by).aggregate(contacts=people.contacts.sum(), n=people.count())
    reached = {r[by]: r for r in counted.to_pyarrow().to_pylist()}
    titles = _titles(shop) if by == "offer_id" else {}
    priced = not shop.unpriced and shop.responses is not None
    made = []
    for name, (rate, worth) in moments_by(people, by, 2).items():
        shown = moments.level(rate, alpha, "contacted in time for an answer")
        if not rate.x:
            shown = "too early: no contact's time to answer is over"
        each = moments.level(worth, alpha) if priced else ""
        made.append(
            Campaign(
                str(name), titles.get(str(name), str(name)), int(reached[name]["contacts"]),
                int(reached[name]["n"]), round(rate.x), round(rate.y),
                None if isinstance(shown, str) else shown,
                shown if isinstance(shown, str) else "",
                worth.y if priced else None,
                None if isinstance(each, str) else each,
            )
        )  # fmt: skip
    return tuple(sorted(made, key=lambda m: (-m.contacts, m.name)))


def _titles(shop: Shop) -> dict[str, str]:
    offers = shop.tables.get("offers")
    if offers is None or "name" not in offers.columns:
        return {}
    rows = offers.select("offer_id", "name").to_pyarrow().to_pylist()
    return {r["offer_id"]: r["name"] or r["offer_id"] for r in rows}
