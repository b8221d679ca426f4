"""The customers of an experiment from the project's own tables: one row each, all outcomes on it.

Everybody is watched over the same window, from the first day of the experiment to its last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import ibis

from nextbest.data.contract import History
from nextbest.errors import DataError, Fault, UsageError
from nextbest.measure.collect import ARM, UNIT

__all__ = ["BEFORE", "OUTCOMES", "REMAINDER", "Watch", "customers"]

#: Outcome by name with the columns it needs beyond the tables that every project has.
OUTCOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "response": ("responses.customer_id",),
    "conversion": (),
    "revenue": (),
    "margin": ("transactions.margin",),
    "retention": (),
    "clv": ("transactions.margin", "customers.clv_remainder"),
}
#: Column of the customers table with the value that the CLV model expects after the window.
REMAINDER: Final = "clv_remainder"
#: Column with the revenue of as many days before the experiment as it has lasted.
BEFORE: Final = "revenue_before"


@dataclass(frozen=True)
class Watch:
    """Over which time customers are watched, and what contacts cost.

    Parameters
    ----------
    starts_at, ends_at : first instant of the experiment and first one after it (naive UTC).
    contact_cost : cost of one contact in the shop's currency; needed for margin and clv.
    retained_days : a customer who bought in the last so many days of the window is retained.

    Raises
    ------
    UsageError : the window is empty, or a number is impossible.
    """

    starts_at: datetime
    ends_at: datetime
    contact_cost: float | None = None
    retained_days: int = 60

    def __post_init__(self) -> None:
        faults = []
        if self.ends_at <= self.starts_at:
            faults.append(Fault("experiment: window", "it is empty", "an end after its start",
                                f"{self.starts_at} to {self.ends_at}"))  # fmt: skip
        if self.contact_cost is not None and not 0 <= self.contact_cost < float("inf"):
            faults.append(Fault("experiment: contact cost", "not a cost", "0 or more",
                                f"{self.contact_cost:g}"))  # fmt: skip
        if self.retained_days < 1:
            faults.append(Fault("experiment: retained days", "wrong", "1 or more",
                                f"{self.retained_days}"))  # fmt: skip
        if faults:
            raise UsageError(faults=faults)

    @property
    def before(self) -> datetime:
        """First instant of the time before, which is as long as the window."""
        return self.starts_at - (self.ends_at - self.starts_at)


def customers(
    history: History, watch: Watch, outcomes: Sequence[str], by: Sequence[str] = ()
) -> ibis.Table:
    """Return one row per customer of the experiment: arm, outcomes, value before, segments.

    The arm is ``customers.arm``, the ledger's, and everybody with one counts, contacted or not.
    Without that column it is ``contacts.arm``, and everybody in the contact log counts: right only
    where the log also holds those who would have been contacted and were held out.

    outcomes: ``response`` (any response), ``conversion`` (any purchase), ``revenue``, ``margin``
    (margin of purchases − incentives taken − contacts × contact cost), ``retention`` (a purchase
    in the last days of the window), ``clv`` (margin + ``customers.clv_remainder``).

    Raises
    ------
    DataError : a table or column that an outcome, a segment or the arm needs is missing, or the
        window runs past the data; all at once.
    """
    _check(history, watch, outcomes, by)
    tables = history.tables
    units = _units(tables, watch, by)
    bought = _sales(tables["transactions"], watch)
    units = units.left_join(bought, UNIT).drop(f"{UNIT}_right")
    for name in ("contacts", "responses"):
        counted = _counted(tables, name, watch)
        units = units.left_join(counted, UNIT).drop(f"{UNIT}_right")
    filled = {c: units[c].fill_null(0.0) for c in units.columns if c.startswith("_")}
    units = units.mutate(**filled)
    values = {name: _value(units, name, watch) for name in outcomes}
    return units.select(UNIT, ARM, *by, **values, **{BEFORE: units["_before"]})


def _check(history: History, watch: Watch, outcomes: Sequence[str], by: Sequence[str]) -> None:
    tables = history.tables
    where = "experiment"
    faults = []
    if watch.ends_at > history.observed_until:
        faults.append(Fault(where, "the window runs past the data",
                            f"an end by {history.observed_until}", f"{watch.ends_at}"))  # fmt: skip
    for name in outcomes:
        if name not in OUTCOMES:
            faults.append(Fault(where, f'unknown outcome "{name}"', ", ".join(OUTCOMES)))
            continue
        for need in OUTCOMES[name]:
            table, _, column = need.partition(".")
            if table not in tables or column not in tables[table].columns:
                faults.append(Fault(where, f'outcome "{name}" needs {need}', "in the tables",
                                    action="Map it in training/sources.py."))  # fmt: skip
        if name in ("margin", "clv") and watch.contact_cost is None:
            faults.append(Fault(where, f'outcome "{name}" is net of contact cost',
                                "--contact-cost, 0 where a contact is free"))  # fmt: skip
    for name in by:
        if name not in tables["customers"].columns:
            faults.append(Fault(where, f'no column "{name}" in customers', "a column of customers",
                                ", ".join(tables["customers"].columns)))  # fmt: skip
    with_arm = [n for n in ("customers", "contacts") if n in tables and ARM in tables[n].columns]
    if not with_arm:
        faults.append(Fault(where, "nobody has an arm", "a column arm in customers or contacts",
                            action="Take it from the ledger in training/sources.py."))  # fmt: skip
    if faults:
        raise DataError(faults=faults)


def _units(tables: Mapping[str, ibis.Table], watch: Watch, by: Sequence[str]) -> ibis.Table:
    people = tables["customers"]
    has_remainder = REMAINDER in people.columns
    remainder = people[REMAINDER].cast("float64") if has_remainder else ibis.literal(0.0)
    described = people.select(UNIT, *by, remainder=remainder)
    if ARM in people.columns:
        arms = people.filter(people[ARM].notnull()).select(UNIT, arm=people[ARM].cast("string"))
    else:
        log = _within(tables["contacts"], "contacted_at", watch)
        log = log.filter(log[ARM].notnull())
        # A customer with two arms stays twice, and `collect` refuses the table for it.
        arms = log.select(UNIT, ARM).distinct()
    return arms.inner_join(described, UNIT)


def _within(table: ibis.Table, time: str, watch: Watch) -> ibis.Table:
    start, end = (ibis.literal(t, type="timestamp") for t in (watch.starts_at, watch.ends_at))
    return table.filter((table[time] >= start) & (table[time] < end))


def _sales(lines: ibis.Table, watch: Watch) -> ibis.Table:
    at = lines.ordered_at
    first, start, end, late = (
        ibis.literal(t, type="timestamp")
        for t in (watch.before, watch.starts_at, watch.ends_at,
                  watch.ends_at - timedelta(days=watch.retained_days))
    )  # fmt: skip
    since, earlier = (at >= start) & (at < end), (at >= first) & (at < start)
    bought = since & (lines.amount > 0)
    margin = lines.margin if "margin" in lines.columns else ibis.null("float64")
    return lines.group_by(UNIT).aggregate(
        _revenue=since.ifelse(lines.amount, 0.0).sum(),
        _before=earlier.ifelse(lines.amount, 0.0).sum(),
        # Where one line's margin is unknown the customer's is, and `collect` says how many.
        margin_sum=since.ifelse(margin, 0.0).sum(),
        margin_unknown=(since & margin.isnull()).any(),
        _bought=bought.any().cast("float64"),
        _retained=(bought & (at >= late)).any().cast("float64"),
    )


def _counted(tables: Mapping[str, ibis.Table], name: str, watch: Watch) -> ibis.Table:
    """Rows of contacts or responses per customer in the window; none where there is no table."""
    time = {"contacts": "contacted_at", "responses": "responded_at"}[name]
    if name not in tables:
        people = tables["customers"]
        empty = {f"_{name}": ibis.literal(0.0)}
        return people.select(UNIT, **empty | ({"_incentives": ibis.literal(0.0)}
                                              if name == "responses" else {}))  # fmt: skip
    rows = _within(tables[name], time, watch)
    found: dict[str, Any] = {f"_{name}": rows.count().cast("float64")}
    if name == "responses":
        cost = rows.incentive_cost if "incentive_cost" in rows.columns else ibis.literal(0.0)
        found["_incentives"] = cost.fill_null(0.0).sum()
    return rows.group_by(UNIT).aggregate(**found)


def _value(units: ibis.Table, name: str, watch: Watch) -> Any:
    margin = units.margin_unknown.fill_null(False).ifelse(
        ibis.null("float64"), units.margin_sum.fill_null(0.0)
    )
    net = margin - units["_incentives"] - units["_contacts"] * (watch.contact_cost or 0.0)
    return {
        "response": units["_responses"] > 0,
        "conversion": units["_bought"] > 0,
        "revenue": units["_revenue"],
        "margin": net,
        "retention": units["_retained"] > 0,
        "clv": net + units.remainder,
    }[name]
