"""The customers of an experiment from the decision log: one row each, all outcomes on it.

A customer enters with the first decision about them and is watched for the same number of days as
everybody else. Who entered too late to be watched so long is left out and counted: their silence
says nothing yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import ibis
from ibis import _

from nextbest.errors import DataError, Fault, UsageError, did_you_mean
from nextbest.measure.collect import ARM, UNIT
from nextbest.measure.log import ANSWERS, SALES, DecisionLog, heard_of, offers_made
from nextbest.measure.tables import OUTCOMES

__all__ = ["BEFORE", "NOBODY", "OFFER", "PROFILE", "Entered", "Entry", "enter"]

#: Column with the customer's value before the experiment.
BEFORE: Final = "value_before"
#: Segments by the offer that the first decision chose, or would have chosen for the held out.
OFFER: Final = "offer"
#: What stands for no offer among the segments by offer.
NOBODY: Final = "no offer"
#: What comes before the name of a column that was logged with the decision.
PROFILE: Final = "profile_"
_OF_THE_DECISION: Final = ("channel", "placement")
_UNKNOWN: Final = "unknown"
_TIERS: Final = 5
_FEW: Final = 10
_WITHOUT_OFFERS: Final = ("holdout", "no_contact")
_FEWEST_BUYERS: Final = 20

Purchases = Literal["log", "data"]


@dataclass(frozen=True)
class Entry:
    """Who is watched, how long, and where purchases come from.

    Parameters
    ----------
    days : each customer is watched so many days from their first decision.
    until : what happened before this moment is known (naive UTC).
    since : the experiment began at this moment; None with the log.
    retained_days : who bought in the last so many of the days is retained.
    purchases : ``log`` takes those that were reported to the API, ``data`` the transactions.
    margin_share : margin as a share of reported purchases; None where it is not known.

    Raises
    ------
    UsageError : a number is impossible.
    """

    days: float
    until: datetime
    since: datetime | None = None
    retained_days: float = 14
    purchases: Purchases = "log"
    margin_share: float | None = None

    def __post_init__(self) -> None:
        faults = []
        for name, value in (("days", self.days), ("retained days", self.retained_days)):
            if not 0 < value <= 36_500:
                faults.append(Fault(f"experiment: {name}", "impossible", "above 0, up to 36,500",
                                    f"{value:g}"))  # fmt: skip
        if self.purchases not in ("log", "data"):
            faults.append(Fault("experiment: purchases", "unknown", "log or data",
                                str(self.purchases)))  # fmt: skip
        share = self.margin_share
        if share is not None and not 0 < share <= 1:
            faults.append(Fault("experiment: margin share", "no share", "above 0, up to 1",
                                f"{share:g}"))  # fmt: skip
        if share is not None and self.purchases == "data":
            faults.append(Fault("experiment: margin share", "it is for reported purchases",
                                "left out", action="Transactions have their own."))  # fmt: skip
        if faults:
            raise UsageError(faults=faults)


@dataclass(frozen=True)
class Entered:
    """The table that `nextbest.measure.collect.collect` reads, and who is not in it.

    Attributes
    ----------
    table : a row for each customer: arm, outcomes, segments, value before.
    strangers : customers whom nobody knew when deciding; they were drawn into no arm.
    unfinished : customers who entered too late to be watched for all the days.
    notes : what the reader must know to judge the figures.
    """

    table: ibis.Table
    strangers: int
    unfinished: int
    notes: tuple[str, ...]


def enter(
    log: DecisionLog,
    entry: Entry,
    outcomes: Sequence[str],
    by: Sequence[str] = (),
    *,
    before: str | None = None,
    sales: ibis.Table | None = None,
    people: ibis.Table | None = None,
) -> Entered:
    """Return one row per customer who entered the experiment and could be watched to the end.

    Parameters
    ----------
    outcomes : as in `nextbest.measure.tables.customers`. ``response`` is reported to the API.
        ``margin`` is that of purchases, less the incentives of answered offers, less the cost of
        every contact, as the records say; ``clv`` adds ``people.clv_remainder``.
    by : segments known at entry: ``offer``, ``channel``, ``placement``, a column of ``people``, or
        one that was logged (``profile_NAME`` in the log). Numbers are divided into fifths.
    before : a logged number for CUPED; None takes the revenue of as many days before entry where
        purchases come from the data, and else nothing.
    sales : transactions (customer_id, ordered_at, amount, margin) in the log's backend.
    people : customers (customer_id and more) in the log's backend.

    Raises
    ------
    DataError : the log is empty or lacks what was asked for; all faults at once.
    """
    _check(log, entry, outcomes, by, before, sales, people)
    units, strangers, unfinished = _units(log, entry, by, before)
    if people is not None:
        wanted = [c for c in people.columns if c in by or c == "clv_remainder"]
        units = units.left_join(people.select(UNIT, *wanted), UNIT).drop(f"{UNIT}_right")
    # What follows reads the customers several times over.
    units = log.decisions.get_backend().create_table("entrants", units, overwrite=True)
    sums, notes = _sums(log, entry, units, outcomes, sales)
    found = units
    for part in sums:
        found = found.left_join(part, UNIT).drop(f"{UNIT}_right")
    counts = [c for c in found.columns if c.startswith("_")]
    found = found.mutate(**{c: found[c].fill_null(0.0) for c in counts})
    values = {name: _value(found, name, entry) for name in outcomes}
    segments = {name: _segment(found, name) for name in by}
    if before is not None:
        values[BEFORE] = found["before"]
    elif entry.purchases == "data":
        values[BEFORE] = found["_before"]
    if entry.purchases == "log" and "_bought" in found.columns:
        _one_sided(found)
    table = found.select(UNIT, ARM, **segments, **values)
    return Entered(table, strangers, unfinished, tuple(notes))


def _check(
    log: DecisionLog, entry: Entry, outcomes: Sequence[str], by: Sequence[str],
    before: str | None, sales: ibis.Table | None, people: ibis.Table | None,
) -> None:  # fmt: skip
    where, faults = "experiment", []
    known = [c.removeprefix(PROFILE) for c in log.decisions.columns if c.startswith(PROFILE)]
    known += [*_OF_THE_DECISION, OFFER, *(people.columns if people is not None else ())]
    for name in (*by, *([before] if before else [])):
        if name not in known:
            one_of = "one of " + ", ".join(sorted(known))
            faults.append(Fault(where, f'no column "{name}" in the log', one_of,
                                action=did_you_mean(name, known)))  # fmt: skip
    for name in outcomes:
        if name not in OUTCOMES:
            faults.append(Fault(where, f'unknown outcome "{name}"', ", ".join(OUTCOMES)))
    money = {"margin", "clv"} & set(outcomes)
    if money and entry.purchases == "data" and sales is not None and "margin" not in sales.columns:
        faults.append(Fault(where, "margin is not in the transactions", "transactions.margin",
                            action="Map it in training/sources.py."))  # fmt: skip
    if money and entry.purchases == "log" and entry.margin_share is None:
        faults.append(Fault(
            where, "what the held out bought has no margin in the log", "a margin for both sides",
            action="Take purchases from the transactions (--purchases data), or say the margin's "
            "share of what was reported (--margin-share)",
        ))  # fmt: skip
    if "clv" in outcomes and (people is None or "clv_remainder" not in people.columns):
        faults.append(Fault(
            where, 'outcome "clv" needs what customers are worth after the window',
            f"customers.clv_remainder, or profiles as of {entry.until} or later",
            action="Run `nextbest refresh` once the window is over",
        ))  # fmt: skip
    if "retention" in outcomes and entry.retained_days >= entry.days:
        faults.append(Fault(where, 'outcome "retention" looks at all days', "fewer --retained-days",
                            f"{entry.retained_days:g} of {entry.days:g}"))  # fmt: skip
    if faults:
        raise DataError(faults=faults)


def _units(
    log: DecisionLog, entry: Entry, by: Sequence[str], before: str | None
) -> tuple[ibis.Table, int, int]:
    """One row per customer: when they entered, their arm, and what was known of them then."""
    rows = log.decisions.filter(_.decided_at < entry.until)
    if entry.since is not None:
        rows = rows.filter(_.decided_at >= entry.since)
    is_known = rows.known.fill_null(False)
    units = rows.group_by(UNIT).aggregate(
        entered_at=rows.decided_at.min(where=is_known),
        # A change of arm is never hidden.
        arm=rows.arm.min(where=is_known),
        last_arm=rows.arm.max(where=is_known),
    )
    complete = units.entered_at + _span(entry.days) <= ibis.literal(entry.until, type="timestamp")
    counts = units.aggregate(
        customers=units.count(),
        strangers=units.entered_at.isnull().sum(),
        unfinished=(units.entered_at.notnull() & ~complete).sum(),
        moved=(complete & (units.arm != units.last_arm)).sum(),
    )
    told = counts.to_pyarrow().to_pylist()[0]
    if not told["customers"]:
        raise DataError("experiment", "there are no decisions in the log", expected="1 or more",
                        got=f"none from {entry.since or 'its start'} to {entry.until}")  # fmt: skip
    if told["moved"]:
        raise DataError(
            "experiment", "customers are in two arms", got=f"{told['moved']:,} customers",
            action="Shares or salts were changed on the way; read from after that (--from)",
        )  # fmt: skip
    strangers, unfinished = int(told["strangers"] or 0), int(told["unfinished"] or 0)
    if strangers + unfinished == told["customers"]:
        raise DataError(
            "experiment", "nobody could be watched to the end",
            expected=f"customers who entered {entry.days:g} days before {entry.until} or earlier",
            got=f"{unfinished:,} who entered later, {strangers:,} of whom nothing was known",
            action="Wait, or watch them for fewer --days",
        )  # fmt: skip
    units = units.filter(complete).drop("last_arm")
    described = _at_entry(rows.filter(is_known), units, by, before)
    if described is not None:
        units = units.left_join(described, UNIT).drop(f"{UNIT}_right")
    return units, strangers, unfinished


def _at_entry(
    rows: ibis.Table, units: ibis.Table, by: Sequence[str], before: str | None
) -> ibis.Table | None:
    """What the first decision logged of each customer; None where nothing is asked for."""
    first = rows.inner_join(units.select(UNIT, "entered_at"), UNIT)
    first = first.filter(first.decided_at == first.entered_at)
    wanted: dict[str, Any] = {}
    for name in by:
        if name == OFFER:
            wanted[OFFER] = first.would_offer_id.fill_null(NOBODY)
        elif name in _OF_THE_DECISION or PROFILE + name in rows.columns:
            at = first[name if name in _OF_THE_DECISION else PROFILE + name]
            wanted[name] = at.fill_null(_UNKNOWN)
    if before is not None:
        wanted["before"] = first[PROFILE + before].try_cast("float64").fill_null(0.0)
    if not wanted:
        return None
    # Of several decisions at one moment always the same one, in whichever order they are read.
    order = ibis.struct({"id": first.decision_id, "rank": first["rank"]})
    found: ibis.Table = first.group_by(UNIT).aggregate(
        **{name: value.argmin(order) for name, value in wanted.items()}
    )
    return found


def _span(days: float) -> Any:
    return ibis.interval(microseconds=round(days * 86_400e6))


def _sums(
    log: DecisionLog, entry: Entry, units: ibis.Table, outcomes: Sequence[str],
    sales: ibis.Table | None,
) -> tuple[list[ibis.Table], list[str]]:  # fmt: skip
    """Per customer: what the outcomes asked for are made of."""
    parts, notes = [], []
    if "response" in outcomes:
        told = _watched(log.outcomes, "occurred_at", units, entry)
        told = told.filter(_.outcome_type.isin(ANSWERS))
        parts.append(told.group_by(UNIT).aggregate(_responses=_.count().cast("float64")))
    if {"margin", "clv"} & set(outcomes):
        parts += _costs(log, entry, units)
    if set(outcomes) - {"response"} or entry.purchases == "data":
        if entry.purchases == "log":
            notes.append(
                "Purchases are those reported to the API: right only if they are reported for "
                "customers without an offer too."
            )
            bought = log.outcomes.filter(_.outcome_type.isin(SALES))
            amount = (bought.outcome_type == "return").ifelse(-bought.value.abs(), bought.value)
            sales = bought.select(UNIT, ordered_at=bought.occurred_at,
                                  amount=amount.fill_null(0.0),
                                  bought=bought.outcome_type != "return")  # fmt: skip
        elif sales is not None:
            sales = sales.mutate(bought=sales.amount > 0)
        if sales is not None:
            parts.append(_sales(sales, entry, units))
    return parts, notes


def _watched(
    table: ibis.Table, time: str, units: ibis.Table, entry: Entry, days_before: float = 0.0
) -> ibis.Table:
    """Rows of watched customers, from their entry (or some days before) to their last day."""
    entered = units.select(UNIT, "entered_at")
    both = table.inner_join(entered, UNIT)
    start = both.entered_at - _span(days_before) if days_before else both.entered_at
    return both.filter((both[time] >= start) & (both[time] < both.entered_at + _span(entry.days)))


def _costs(log: DecisionLog, entry: Entry, units: ibis.Table) -> list[ibis.Table]:
    """What contacts and the incentives of those that were answered cost; the latter are few."""
    made = _watched(offers_made(log), "decided_at", units, entry)
    contacts = made.group_by(UNIT).aggregate(
        _contacts=made.contact_cost.sum(), unknown_contacts=made.contact_cost.isnull().any()
    )
    heard = heard_of(log, entry.days).filter(_.answered).select("decision_id", "offer_id")
    taken = offers_made(log).inner_join(heard, ["decision_id", "offer_id"])
    taken = _watched(taken, "decided_at", units, entry)
    incentives = taken.group_by(UNIT).aggregate(
        _incentives=taken.incentive_cost.sum(),
        unknown_incentives=taken.incentive_cost.isnull().any(),
    )
    return [contacts, incentives]


def _sales(sales: ibis.Table, entry: Entry, units: ibis.Table) -> ibis.Table:
    before = entry.days if entry.purchases == "data" else 0.0
    rows = _watched(sales, "ordered_at", units, entry, before)
    since = rows.ordered_at >= rows.entered_at
    late = rows.ordered_at >= rows.entered_at + _span(entry.days) - _span(entry.retained_days)
    bought = since & rows.bought
    margin = rows.margin if "margin" in rows.columns else ibis.null("float64")
    return rows.group_by(UNIT).aggregate(
        _revenue=since.ifelse(rows.amount, 0.0).sum().cast("float64"),
        _before=since.ifelse(0.0, rows.amount).sum().cast("float64"),
        _margin=since.ifelse(margin, 0.0).sum().cast("float64"),
        unknown_margin=(since & margin.isnull()).any(),
        _bought=bought.any().cast("float64"),
        _retained=(bought & late).any().cast("float64"),
    )


def _value(found: ibis.Table, name: str, entry: Entry) -> Any:
    if name in ("margin", "clv"):
        if entry.margin_share is not None:
            margin, unknown = found["_revenue"] * entry.margin_share, ibis.literal(False)
        else:
            margin, unknown = found["_margin"], found.unknown_margin.fill_null(False)
        for cost in ("contacts", "incentives"):
            unknown |= found[f"unknown_{cost}"].fill_null(False)
        net = margin - found["_contacts"] - found["_incentives"]
        net = unknown.ifelse(ibis.null("float64"), net)
        return net if name == "margin" else net + found.clv_remainder.cast("float64")
    return {
        "response": lambda: found["_responses"] > 0,
        "conversion": lambda: found["_bought"] > 0,
        "revenue": lambda: found["_revenue"],
        "retention": lambda: found["_retained"] > 0,
    }[name]()


def _segment(found: ibis.Table, name: str) -> Any:
    """A column of segments; numbers of many values become fifths of the customers."""
    column = found[name]
    if column.type().is_string():
        text = column.nullif(_UNKNOWN)
        number = text.try_cast("float64")
        is_number = ~(text.notnull() & number.isnull()).any() & number.notnull().any()
        if not found.aggregate(is_number=is_number).to_pyarrow().to_pylist()[0]["is_number"]:
            return column
        column = number
    if not column.type().is_numeric():
        return column
    kinds = found.aggregate(kinds=column.nunique()).to_pyarrow().to_pylist()[0]["kinds"]
    if kinds <= _FEW:
        return column
    ends = {f"q{i}": column.quantile(i / _TIERS) for i in range(1, _TIERS)}
    edges = sorted(set(found.aggregate(**ends).to_pyarrow().to_pylist()[0].values()))
    label = ibis.literal(f"{len(edges) + 1}: over {edges[-1]:,.4g}")
    for i in range(len(edges) - 1, -1, -1):
        low = f"over {edges[i - 1]:,.4g} to " if i else "up to "
        label = (column <= edges[i]).ifelse(f"{i + 1}: {low}{edges[i]:,.4g}", label)
    return column.isnull().ifelse(_UNKNOWN, label)


def _one_sided(found: ibis.Table) -> None:
    """Refuse reported purchases that come from the contacted alone: the others went unasked."""
    counts = found.group_by(ARM).aggregate(n=_.count(), bought=_["_bought"].sum())
    rows = {row[ARM]: row for row in counts.to_pyarrow().to_pylist()}
    silent = [arm for arm in _WITHOUT_OFFERS if arm in rows and not rows[arm]["bought"]]
    others = int(sum(row["bought"] for row in rows.values()))
    if silent and others >= _FEWEST_BUYERS:
        told = ", ".join(f"none of {rows[arm]['n']:,} in {arm}" for arm in silent)
        raise DataError(
            "experiment", "purchases are reported for one side only",
            expected="those of customers without an offer too",
            got=f"{told}, {others:,} customers elsewhere",
            action="Report purchases of held-out customers with the decision_id of theirs, or take "
            "them from the transactions (--purchases data)",
        )  # fmt: skip
