"""What every customer did in every period: the one table that all key figures are sums over.

It stays in the database. A row is a customer who was known before the period ended; what happened
after the period is not in it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import ibis
import sqlglot

from nextbest.data.contract import History
from nextbest.measure.kpi.settings import FILE, Rates, ReportSettings
from nextbest.measure.log import DecisionLog, answered

__all__ = ["CUSTOMER", "NOT_ANSWERS", "PERIOD", "UNKNOWN", "Period", "Shop", "periods_table"]

CUSTOMER: Final = "customer_id"
PERIOD: Final = "period"
#: Segment of customers of whom a column says nothing.
UNKNOWN: Final = "unknown"
#: Responses that say no, or that say nothing yet; every other type is an answer.
NOT_ANSWERS: Final = (
    "impression", "open", "click", "refusal", "unsubscribe", "complaint", "bounce", "return",
)  # fmt: skip


@dataclass(frozen=True)
class Period:
    """A stretch of time: its name, first instant, and first instant after it (naive UTC)."""

    name: str
    starts_at: datetime
    ends_at: datetime

    @property
    def length(self) -> timedelta:
        """How long it lasts."""
        return self.ends_at - self.starts_at


def periods_table(periods: Sequence[Period], reach: timedelta = timedelta(0)) -> ibis.Table:
    """Return periods as a table of ``period``, ``starts_at``, ``ends_at`` and ``before``.

    ``earliest`` is the first instant that a period's rows look back to: its own length before it,
    or ``reach`` where that is longer.
    """
    rows = {
        PERIOD: [p.name for p in periods],
        "starts_at": [p.starts_at for p in periods],
        "ends_at": [p.ends_at for p in periods],
        "before": [p.starts_at - p.length for p in periods],
        "earliest": [p.starts_at - max(p.length, reach) for p in periods],
    }
    times = ("starts_at", "ends_at", "before", "earliest")
    kinds = {PERIOD: "string"} | dict.fromkeys(times, "timestamp")
    return ibis.memtable(rows, schema=ibis.schema(kinds))


class Shop:
    """A shop's history, prepared once: orders, contacts with their answers, who was known when.

    Parameters
    ----------
    history : the clean tables.
    settings, rates : what ``report.toml`` says, and its costs as numbers.
    scores : (customer_id, clv, ...) as the models see customers now; None without models.
    log : where contacts and responses are taken from; None takes those of the data.
    """

    def __init__(
        self,
        history: History,
        settings: ReportSettings,
        rates: Rates,
        scores: ibis.Table | None = None,
        log: DecisionLog | None = None,
    ) -> None:
        self.history, self.settings, self.rates = history, settings, rates
        self.tables: Mapping[str, ibis.Table] = history.tables
        self.scores, self.log = scores, log
        self.value_basis = self._value_basis()
        self.orders = self.keep(self._orders())
        self.contacts: ibis.Table | None = None
        self.responses: ibis.Table | None = None
        if log is not None:
            self._of_log(log)
        else:
            self.responses = self._responses()
            if "contacts" in self.tables:
                self.contacts = self.keep(self._contacts())
        self.known = self.keep(self._known())
        self.click_source = self._click_source()

    def keep(self, expression: ibis.Table) -> ibis.Table:
        """Compute a table once and keep it in the database, for whoever reads it again."""
        backend = self.history.backend
        name = f"nextbest_report_{uuid.uuid4().hex[:12]}"
        # Spark has no temporary tables.
        kept: ibis.Table = backend.create_table(name, expression, temp=backend.name != "pyspark")
        return kept

    def computed(self, table: ibis.Table, columns: Mapping[str, str]) -> ibis.Table:
        """Return a table with further columns, given as SQL that the rule language has checked."""
        backend = self.history.backend
        name = f"nextbest_report_{uuid.uuid4().hex[:12]}"
        chosen = ", ".join(f"{sql} AS {_quoted(column)}" for column, sql in columns.items())
        source = str(backend.compile(table))
        query = f"SELECT rows_.*, {chosen} FROM rows_"
        made = sqlglot.parse_one(query, dialect="duckdb").sql(dialect=backend.dialect)
        # Ibis 12 cannot ask DuckDB 2 for the columns of a query in SQL, so it is kept as a table.
        backend.raw_sql(f"CREATE TEMPORARY TABLE {name} AS WITH rows_ AS ({source}) {made}")
        kept: ibis.Table = backend.table(name)
        return kept

    def _value_basis(self) -> str:
        """What value is measured in: ``margin`` of each line, ``rate`` of sales, or ``sales``."""
        lines = self.tables["transactions"]
        if "margin" in lines.columns and not bool(lines.margin.isnull().any().to_pyarrow().as_py()):
            return "margin"
        return "rate" if self.rates.margin_rate is not None else "sales"

    def _orders(self) -> ibis.Table:
        """One row per order: when, how much, what it was worth, net of what it took back."""
        t = self.tables["transactions"]
        worth = {
            "margin": lambda: t.margin,
            "rate": lambda: t.amount * self.rates.margin_rate,
            "sales": lambda: t.amount,
        }[self.value_basis]()
        return t.group_by(CUSTOMER, "order_id").aggregate(
            at=t.ordered_at.min(), amount=t.amount.sum(), worth=worth.sum()
        )

    def _contacts(self) -> ibis.Table:
        """One row per contact: whether it was answered within the days, what it cost and earned.

        An answer belongs to the last contact before it with the same offer.
        """
        days = ibis.interval(days=self.settings.period.response_days)
        c = self.tables["contacts"].select(CUSTOMER, "offer_id", "contacted_at", "channel")
        same = ibis.window(group_by=[CUSTOMER, "offer_id"], order_by=["contacted_at", "channel"])
        order = [CUSTOMER, "offer_id", "contacted_at", "channel"]
        c = c.mutate(
            contact=ibis.row_number().over(order_by=order),
            following=c.contacted_at.lead().over(same),
            closes_at=c.contacted_at + days,
        )
        until = ibis.literal(self.history.observed_until, type="timestamp")
        c = c.mutate(
            until=ibis.least(c.closes_at, ibis.coalesce(c.following, c.closes_at)),
            closed=c.closes_at <= until,
        )
        rates = self.rates
        if self.responses is None:
            c = c.mutate(answered=ibis.literal(False), clicked=ibis.literal(False),
                         value=ibis.literal(0.0), incentive=ibis.literal(0.0))  # fmt: skip
        else:
            c = self._answers(c, self.responses)
        # A rate that nobody stated makes the figures that need it absent; see `unpriced`.
        rate = (rates.margin_rate or 0.0) * rates.incremental_share
        return c.select(
            CUSTOMER, "offer_id", "contacted_at", "channel", "contact", "until", "closed",
            "answered", "clicked", "value",
            cost=(rates.contact or 0.0) + c.incentive * rates.incentive_share,
            earned=c.value * rate,
        )  # fmt: skip

    @staticmethod
    def _answers(c: ibis.Table, r: ibis.Table) -> ibis.Table:
        r = r.mutate(
            is_answer=~r.response_type.isin(NOT_ANSWERS), is_click=r.response_type == "click"
        )
        hit = c.inner_join(
            r,
            [c[CUSTOMER] == r[CUSTOMER], c.offer_id == r.offer_id,
             r.responded_at >= c.contacted_at, r.responded_at < c.until],
        )  # fmt: skip
        answers = hit.group_by(answer_to=hit.contact).aggregate(
            answered=hit.is_answer.any(),
            clicked=hit.is_click.any(),
            value=hit.is_answer.ifelse(hit.value, 0.0).sum(),
            incentive=hit.is_answer.ifelse(hit.incentive, 0.0).sum(),
        )
        joined = c.left_join(answers, c.contact == answers.answer_to).drop("answer_to")
        none = {"answered": False, "clicked": False, "value": 0.0, "incentive": 0.0}
        return joined.mutate(**{name: joined[name].fill_null(v) for name, v in none.items()})

    def _responses(self) -> ibis.Table | None:
        """The responses with value and incentive, 0 where the data hold none."""
        if "responses" not in self.tables:
            return None
        r = self.tables["responses"]
        money = {"value": "value", "incentive": "incentive_cost"}
        return r.select(
            CUSTOMER, "offer_id", "responded_at", "response_type",
            **{name: r[c].fill_null(0.0) if c in r.columns else ibis.literal(0.0)
               for name, c in money.items()},
        )  # fmt: skip

    def _of_log(self, log: DecisionLog) -> None:
        """Take contacts and responses from the decision log, with what each offer earned and cost.

        Margin and costs are those that the catalogue stated when the decision was made.
        """
        days = self.settings.period.response_days
        t = answered(log, default_days=days)
        zero = {c: t[c].fill_null(0.0) for c in ("margin", "incentive_cost", "contact_cost")}
        t = t.mutate(**zero)
        until = ibis.literal(self.history.observed_until, type="timestamp")
        order = [CUSTOMER, "offer_id", "decided_at", "decision_id"]
        t = t.select(
            CUSTOMER, "offer_id", "channel", "answered", contacted_at=t.decided_at,
            contact=ibis.row_number().over(order_by=order), until=t.window_ends_at,
            closed=t.window_ends_at <= until, clicked=ibis.literal(False), value=t.sales,
            cost=t.contact_cost + t.answered.ifelse(t.incentive_cost, 0.0),
            earned=t.answered.ifelse(t.margin, 0.0),
        )  # fmt: skip
        o = log.outcomes
        told = o.filter(o.offer_id.notnull()).select(
            CUSTOMER, "offer_id", responded_at=o.occurred_at, response_type=o.outcome_type,
            value=o.value.fill_null(0.0), incentive=ibis.literal(0.0),
        )  # fmt: skip
        # The log may lie in another database; what is needed of it is a few columns.
        self.contacts, self.responses = self._take(t), self._take(told)

    def _take(self, table: ibis.Table) -> ibis.Table:
        name = f"nextbest_report_{uuid.uuid4().hex[:12]}"
        kept: ibis.Table = self.history.backend.create_table(name, table.to_pyarrow(), temp=True)
        return kept

    @property
    def unpriced(self) -> str:
        """What is not known of a contact's cost or earnings, or nothing."""
        if self.log is not None:
            return ""
        for name in ("contact", "margin_rate"):
            if getattr(self.rates, name) is None:
                return f"costs.{name} is not stated in {FILE}"
        return ""

    def _known(self) -> ibis.Table:
        """One row per customer: when they were first known, and when they first bought."""
        people = self.tables["customers"].select(CUSTOMER, "known_at")
        bought = self.orders.filter(self.orders.amount > 0)
        first = bought.group_by(CUSTOMER).aggregate(first_order=bought["at"].min())
        table = people.left_join(first, CUSTOMER).drop(f"{CUSTOMER}_right")
        earliest = [table.known_at, table.first_order]
        if self.contacts is not None:
            reached = self.contacts.group_by(CUSTOMER).aggregate(
                first_contact=self.contacts.contacted_at.min()
            )
            table = table.left_join(reached, CUSTOMER).drop(f"{CUSTOMER}_right")
            earliest = [table.known_at, table.first_order, table.first_contact]
        if "events" in self.tables:
            e = self.tables["events"]
            seen = e.group_by(CUSTOMER).aggregate(first_event=e.event_at.min())
            table = table.left_join(seen, CUSTOMER).drop(f"{CUSTOMER}_right")
            earliest = [*(table[c.get_name()] for c in earliest), table.first_event]
        return table.select(CUSTOMER, "first_order", since=ibis.least(*earliest))

    def _click_source(self) -> str:
        """Where clicks are found: ``responses`` name the contact, ``events`` do not."""
        for name, table, column in (
            ("responses", self.responses, "response_type"),
            ("events", self.tables.get("events"), "event_type"),
        ):
            if table is not None and bool((table[column] == "click").any().to_pyarrow().as_py()):
                return name
        return ""

    def rows(self, periods: Sequence[Period]) -> ibis.Table:
        """Return one row per period and customer known by its end, kept in the database.

        Counts and sums are 0 where nothing happened; flags are true or false.
        """
        when = periods_table(periods, timedelta(days=self.settings.customers.churn_days))
        base = self.known.cross_join(when)
        base = base.filter(base.since < base.ends_at)
        parts = [self._sales(when), *self._reached(when), *self._behaviour(when)]
        filled: dict[str, Any] = {}
        for part in parts:
            base = base.left_join(part, [PERIOD, CUSTOMER])
            base = base.drop(*(c for c in base.columns if c.endswith("_right")))
            filled |= {c: 0.0 for c in part.columns if c not in (PERIOD, CUSTOMER, "last_before",
                                                                 "last_order")}  # fmt: skip
        base = base.mutate(**{c: base[c].fill_null(v) for c, v in filled.items()})
        # A click that a response tells of names its contact; events stand in where none does.
        clicked = {"responses": "clicked", "events": "event_clicks"}.get(self.click_source)
        if clicked in base.columns:
            base = base.mutate(clicks=base[clicked])
        days = ibis.interval(days=self.settings.customers.churn_days)
        flags = {
            "bought": base.orders > 0,
            "again": base.orders > 1,
            "is_new": (base.first_order >= base.starts_at) & (base.first_order < base.ends_at),
            "was_active": base.last_before >= base.starts_at - days,
            "is_active": base.last_order >= base.ends_at - days,
            "bought_before": base.orders_before > 0,
        }
        return base.mutate(**{name: flag.fill_null(False) for name, flag in flags.items()})

    def _sales(self, when: ibis.Table) -> ibis.Table:
        o = self.orders
        t = when.inner_join(o, [o["at"] < when.ends_at, o["at"] >= when.earliest])
        inside, before = t["at"] >= t.starts_at, (t["at"] >= t.before) & (t["at"] < t.starts_at)
        sold = t.amount > 0
        return t.group_by(PERIOD, CUSTOMER).aggregate(
            revenue=inside.ifelse(t.amount, 0.0).sum(),
            worth=inside.ifelse(t.worth, 0.0).sum(),
            orders=(inside & sold).sum().cast("float64"),
            orders_before=(before & sold).sum().cast("float64"),
            last_before=t["at"].max(where=sold & (t["at"] < t.starts_at)),
            last_order=t["at"].max(where=sold),
        )

    def _reached(self, when: ibis.Table) -> list[ibis.Table]:
        if self.contacts is None:
            return []
        c = self.contacts
        t = when.inner_join(c, [c.contacted_at >= when.starts_at, c.contacted_at < when.ends_at])
        # Customers bring their first order, which tells a prospect from a customer.
        t = t.left_join(self.known.select(CUSTOMER, "first_order"), CUSTOMER)
        t = t.drop(f"{CUSTOMER}_right")
        prospect = t.first_order.isnull() | (t.first_order >= t.contacted_at)
        won = prospect & (t.first_order < t.until)

        def total(mask: Any, value: Any) -> Any:
            return mask.fill_null(False).ifelse(value, 0.0).sum()

        return [
            t.group_by(PERIOD, CUSTOMER).aggregate(
                contacts=t.count().cast("float64"),
                closed=t.closed.sum().cast("float64"),
                answered=(t.closed & t.answered).sum().cast("float64"),
                clicked=t.clicked.sum().cast("float64"),
                campaign_cost=total(t.closed, t.cost),
                campaign_profit=total(t.closed, t.earned - t.cost),
                prospect_contacts=total(t.closed & prospect, 1.0),
                prospect_cost=total(t.closed & prospect, t.cost),
                acquired=(t.closed & won).fill_null(False).any().cast("float64"),
            )
        ]

    def _behaviour(self, when: ibis.Table) -> list[ibis.Table]:
        if "events" not in self.tables:
            return []
        e = self.tables["events"]
        t = when.inner_join(e, [e.event_at >= when.starts_at, e.event_at < when.ends_at])
        points = ibis.literal(0.0)
        for kind, weight in self.settings.engagement.items():
            points = points + (t.event_type == kind).ifelse(float(weight), 0.0)
        return [
            t.group_by(PERIOD, CUSTOMER).aggregate(
                points=points.sum(), event_clicks=(t.event_type == "click").sum().cast("float64")
            )
        ]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
