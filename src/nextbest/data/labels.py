"""Labels: what came after each moment, counted only where the whole window has been seen.

A label window that runs past the end of the data is *immature*; one that opened before the data
begin is *left-truncated*. Both are left out and counted, never taken for negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis import _

from nextbest.data.contract import History
from nextbest.data.features import Entity, total
from nextbest.errors import DataError, did_you_mean

IMMATURE = "immature: the label window runs past the data"
LEFT_TRUNCATED = "left-truncated: the label window opens before the data"
CLOSED = "closed: the contact came when its label window was over"


@dataclass(frozen=True)
class Examples:
    """Labelled moments: a table with keys, ``label_end`` and ``label``, and how many were left out.

    The table may carry ``future_value`` (currency) beside the label, for value metrics.
    """

    table: ir.Table
    left_out: dict[str, int]


class Label(Protocol):
    """What a model predicts. ``entity`` says whether its rows are customers or customer × offer."""

    @property
    def entity(self) -> Entity: ...

    @property
    def meaning(self) -> str: ...

    @property
    def horizon_days(self) -> float | None: ...

    def examples(self, history: History, as_of: Sequence[datetime]) -> Examples: ...

    def population(self, history: History, as_of: datetime) -> ir.Table: ...


def _moments(history: History, as_of: Sequence[datetime]) -> ir.Table:
    moments = pa.array([t.replace(tzinfo=None) for t in as_of], pa.timestamp("us"))
    return ibis.memtable(pa.table({"as_of": moments}))


def _active(history: History, as_of: Sequence[datetime], active_days: int | None) -> ir.Table:
    """Customers × moments where the customer has bought before (within ``active_days``)."""
    t = history.tables["transactions"]
    bought = t.filter(t.amount >= 0)
    m = _moments(history, as_of)
    rows = bought.join(m, [bought.ordered_at < m.as_of, bought.known_at < m.as_of])
    if active_days is not None:
        rows = rows.filter(rows.ordered_at >= rows.as_of - ibis.interval(days=active_days))
    return rows.select("customer_id", "as_of").distinct()


def _mature(as_of: Sequence[datetime], horizon_days: int, until: datetime) -> list[datetime]:
    end = until.replace(tzinfo=None)
    return [t for t in as_of if t.replace(tzinfo=None) + timedelta(days=horizon_days) <= end]


def _future(history: History, spine: ir.Table, horizon_days: int) -> ir.Table:
    """Purchases of each spine row inside its label window: orders and value."""
    t = history.tables["transactions"]
    value = t.margin if "margin" in t.columns else t.amount
    t = t.select("customer_id", "ordered_at", "order_id", "amount", value=value)
    rows = spine.inner_join(t, "customer_id")
    rows = rows.filter(
        (rows.ordered_at >= rows.as_of)
        & (rows.ordered_at < rows.as_of + ibis.interval(days=horizon_days))
    )
    return rows.group_by("customer_id", "as_of").aggregate(
        orders=_.order_id.nunique(where=_.amount >= 0), future_value=total(_.value)
    )


def _with_future(history: History, spine: ir.Table, horizon_days: int) -> ir.Table:
    future = _future(history, spine, horizon_days)
    both = spine.left_join(future, ["customer_id", "as_of"])
    return both.select(
        "customer_id",
        "as_of",
        label_end=both.as_of + ibis.interval(days=horizon_days),
        orders=both.orders.fill_null(0),
        future_value=both.future_value.fill_null(0.0),
    )


def _count_left_out(
    history: History, as_of: Sequence[datetime], kept: Sequence[datetime], active_days: int | None
) -> dict[str, int]:
    dropped = [t for t in as_of if t not in kept]
    if not dropped:
        return {}
    return {IMMATURE: int(_active(history, dropped, active_days).count().execute())}


@dataclass(frozen=True)
class NoPurchase:
    """Churn: the customer, active until now, buys nothing in the next ``horizon_days``.

    Parameters
    ----------
    horizon_days : length of the label window in days.
    active_days : only customers with a purchase in the last so many days are asked about; None
        asks about everyone who has bought before.
    """

    horizon_days: int = 60
    active_days: int | None = 90
    entity: Entity = "customer"

    @property
    def meaning(self) -> str:
        asked = f" in the last {self.active_days}" if self.active_days is not None else " before"
        return (
            f"no purchase in the next {self.horizon_days} days, among customers who bought{asked}"
        )

    def population(self, history: History, as_of: datetime) -> ir.Table:
        """Return the customers that the label asks about at one moment."""
        return _active(history, [as_of], self.active_days)

    def examples(self, history: History, as_of: Sequence[datetime]) -> Examples:
        """Return the labelled moments whose window has been seen whole."""
        kept = _mature(as_of, self.horizon_days, history.observed_until)
        out = _count_left_out(history, as_of, kept, self.active_days)
        t = _with_future(history, _active(history, kept, self.active_days), self.horizon_days)
        return Examples(t.mutate(label=(t.orders == 0).cast("float64")).drop("orders"), out)


@dataclass(frozen=True)
class BuysCategory:
    """Cross-sell: the customer buys from one category in the next ``horizon_days``.

    Parameters
    ----------
    category : as the transactions name it.
    horizon_days : length of the label window in days.
    active_days : only customers with a purchase in the last so many days are asked about; None
        asks about everyone who has bought before.
    """

    category: str
    horizon_days: int = 30
    active_days: int | None = 90
    entity: Entity = "customer"

    @property
    def meaning(self) -> str:
        return f'buys from the category "{self.category}" in the next {self.horizon_days} days'

    def population(self, history: History, as_of: datetime) -> ir.Table:
        """Return the customers that the label asks about at one moment."""
        return _active(history, [as_of], self.active_days)

    def examples(self, history: History, as_of: Sequence[datetime]) -> Examples:
        """Return the labelled moments whose window has been seen whole.

        Raises
        ------
        DataError : the transactions have no categories, or none of that name.
        """
        t = history.tables["transactions"]
        if "category" not in t.columns:
            raise DataError(
                "label BuysCategory",
                'the transactions lack the column "category"',
                expected="a category for each line",
                action="Return it from training/sources.py.",
            )
        t = t.filter(t.category == self.category, t.amount > 0)
        if not t.count().execute():
            known = history.tables["transactions"].category.topk(20).to_pandas().iloc[:, 0]
            raise DataError(
                "label BuysCategory",
                f'no purchase has the category "{self.category}"',
                expected="one of the data's own names",
                action=did_you_mean(self.category, [c for c in known if isinstance(c, str)]),
            )
        kept = _mature(as_of, self.horizon_days, history.observed_until)
        out = _count_left_out(history, as_of, kept, self.active_days)
        asked = _active(history, kept, self.active_days)
        asked = asked.mutate(label_end=asked.as_of + ibis.interval(days=self.horizon_days))
        bought = asked.inner_join(t.select("customer_id", "ordered_at"), "customer_id")
        bought = bought.filter(_.ordered_at >= _.as_of, _.ordered_at < _.label_end)
        bought = bought.select("customer_id", "as_of").distinct().mutate(hit=1.0)
        both = asked.left_join(bought, ["customer_id", "as_of"])
        table = both.select("customer_id", "as_of", "label_end", label=both.hit.fill_null(0.0))
        return Examples(table, out)


@dataclass(frozen=True)
class TopShareOfValue:
    """High value: the customer is in the top ``share`` of future value over ``horizon_days``.

    Value is margin where the data hold it, otherwise amount: never the number of orders.

    Parameters
    ----------
    horizon_days : length of the label window in days.
    share : top share of the customers asked about, 0-1.
    active_days : only customers with a purchase in the last so many days are asked about.
    """

    horizon_days: int = 90
    share: float = 0.2
    active_days: int = 90
    entity: Entity = "customer"

    @property
    def meaning(self) -> str:
        return f"in the top {self.share:.0%} of value over the next {self.horizon_days} days"

    def population(self, history: History, as_of: datetime) -> ir.Table:
        """Return the customers that the label asks about at one moment."""
        return _active(history, [as_of], self.active_days)

    def examples(self, history: History, as_of: Sequence[datetime]) -> Examples:
        """Return the labelled moments whose window has been seen whole."""
        kept = _mature(as_of, self.horizon_days, history.observed_until)
        out = _count_left_out(history, as_of, kept, self.active_days)
        t = _with_future(history, _active(history, kept, self.active_days), self.horizon_days)
        # Rank by value, ties by id, so that exactly the share is positive and reruns agree.
        order = ibis.window(group_by="as_of", order_by=[t.future_value.desc(), t.customer_id])
        n = t.customer_id.count().over(ibis.window(group_by="as_of"))
        # A hair more, because 0.29 * 100 is 28.999999999999996 in floating point.
        top = (ibis.row_number().over(order) + 1) <= (n * self.share + 1e-9)
        return Examples(t.mutate(label=top.cast("float64")).drop("orders"), out)


@dataclass(frozen=True)
class FutureValue:
    """Value and purchases of every known customer over the next ``horizon_days``."""

    horizon_days: int = 365
    entity: Entity = "customer"

    @property
    def meaning(self) -> str:
        return f"value over the next {self.horizon_days} days"

    def population(self, history: History, as_of: datetime) -> ir.Table:
        """Return every customer with a purchase before the moment."""
        return _active(history, [as_of], None)

    def examples(self, history: History, as_of: Sequence[datetime]) -> Examples:
        """Return the labelled moments; ``label`` is the future value, in currency."""
        kept = _mature(as_of, self.horizon_days, history.observed_until)
        out = _count_left_out(history, as_of, kept, None)
        t = _with_future(history, _active(history, kept, None), self.horizon_days)
        return Examples(t.mutate(label=t.future_value), out)


@dataclass(frozen=True)
class Response:
    """Propensity: the customer responds to the offer inside its window after the contact.

    Parameters
    ----------
    window_days : response window in days; None takes each offer's own end.
    """

    window_days: int | None = None
    entity: Entity = "pair"

    @property
    def horizon_days(self) -> float | None:
        return self.window_days

    @property
    def meaning(self) -> str:
        span = f"within {self.window_days} days" if self.window_days else "before the offer ends"
        return f"the customer responds {span}, once contacted"

    def population(self, history: History, as_of: datetime) -> ir.Table:
        """Return every customer known at one moment."""
        return _active(history, [as_of], None)

    def examples(self, history: History, as_of: Sequence[datetime]) -> Examples:
        """Return one row per contact; ``as_of`` (the contact's own time) is not asked for.

        Raises
        ------
        DataError : there are no contacts or responses, or no window to judge a response by.
        """
        for need in ("contacts", "responses", "offers"):
            if need not in history.tables:
                raise DataError(
                    "label response",
                    f'table "{need}" is missing',
                    expected="contacts, responses and offers",
                    action="Return it from training/sources.py.",
                )
        contacts, responses = history.tables["contacts"], history.tables["responses"]
        offers = history.tables["offers"]
        c = contacts.select("customer_id", "offer_id", as_of=contacts.contacted_at)
        c = c.group_by("customer_id", "offer_id").aggregate(as_of=_.as_of.min())
        if self.window_days is not None:
            c = c.mutate(label_end=c.as_of + ibis.interval(days=self.window_days))
        elif "ends_at" in offers.columns:
            c = c.inner_join(offers.select("offer_id", label_end=offers.ends_at), "offer_id")
        else:
            raise DataError(
                "label response",
                "no response window",
                expected="window_days, or a column ends_at in the offers table",
            )
        until = history.observed_until.replace(tzinfo=None)
        start = history.data_start.replace(tzinfo=None)
        # An offer without an end never closes its window.
        immature = (c.label_end > ibis.literal(until)).fill_null(True)
        closed = ~immature & (c.as_of >= c.label_end)
        truncated = ~immature & ~closed & (c.as_of < ibis.literal(start))
        counts = c.aggregate(i=immature.sum(), t=truncated.sum(), c=closed.sum())
        found = counts.execute().iloc[0]
        c = c.filter(~immature & ~closed & ~truncated)
        r = c.inner_join(
            responses.select("customer_id", "offer_id", "responded_at"), ["customer_id", "offer_id"]
        )
        r = r.filter((r.responded_at >= r.as_of) & (r.responded_at < r.label_end))
        r = r.select("customer_id", "offer_id").distinct().mutate(hit=1.0)
        both = c.left_join(r, ["customer_id", "offer_id"])
        table = both.select(
            "customer_id", "offer_id", "as_of", "label_end", label=both.hit.fill_null(0.0)
        )
        out = {
            IMMATURE: int(found.i or 0),
            LEFT_TRUNCATED: int(found.t or 0),
            CLOSED: int(found.c or 0),
        }
        return Examples(table, {k: v for k, v in out.items() if v})
