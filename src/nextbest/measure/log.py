"""The decision log for measuring: decisions, and what came of each contact within its window.

Whoever copies the log out of the store decides where it lies; here it is two tables of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import ibis
from ibis import _

from nextbest.errors import DataError

__all__ = [
    "ANSWERS",
    "SALES",
    "DecisionLog",
    "answered",
    "heard_of",
    "offers_made",
    "unoffered_sales",
]

#: Outcomes that answer an offer, and those that bring in money.
ANSWERS: Final = ("response", "conversion")
SALES: Final = ("conversion", "purchase", "return")
_MEMORY: Final = "1GB"


@dataclass(frozen=True)
class DecisionLog:
    """The logged decisions and the outcomes that were reported.

    Attributes
    ----------
    decisions : one row for each offer that a decision made, and one with rank 0 where it made none
        (`nextbest.serve.logged.write_log` says which columns).
    outcomes : one row for each outcome.
    """

    decisions: ibis.Table
    outcomes: ibis.Table

    @classmethod
    def open(cls, folder: Path, memory: str = _MEMORY) -> DecisionLog:
        """Open the two Parquet files of a folder; what does not fit into memory goes to disk.

        Raises
        ------
        DataError : a file is missing or cannot be read.
        """
        spill = folder / "spill"
        backend = ibis.duckdb.connect(
            memory_limit=memory, temp_directory=str(spill), preserve_insertion_order=False
        )
        tables = []
        for name in ("decisions", "outcomes"):
            path = folder / f"{name}.parquet"
            try:
                tables.append(backend.read_parquet(path, table_name=name))
            except Exception as error:  # DuckDB has many kinds; the user must know which file
                reason = str(error).strip().partition("\n")[0]
                raise DataError(str(path), "cannot be read", got=reason) from error
        return cls(*tables)

    def last_policy(self) -> str | None:
        """Content hash of the policy that decided last; None where the log is empty."""
        rows = self.decisions.filter(_.policy.notnull())
        latest = ibis.struct({"at": rows.decided_at, "id": rows.decision_id})
        found: str | None = rows.policy.argmax(latest).to_pyarrow().as_py()
        return found

    @property
    def until(self) -> datetime | None:
        """The last moment that the log knows of (naive UTC); None where it is empty."""
        ends = [self.decisions.decided_at.max(), self.outcomes.occurred_at.max()]
        known = [end for end in (e.to_pyarrow().as_py() for e in ends) if end is not None]
        return max(known, default=None)


def answered(log: DecisionLog, default_days: float | None = None) -> ibis.Table:
    """Return every offer made, with what came of it within its window.

    An outcome counts for the decision that it names, or else for the customer's last contact with
    that offer before it.

    Parameters
    ----------
    default_days : window of offers that have none of their own; None leaves them out of every
        count (``answered`` is null).

    Returns
    -------
    The rows of ``log.decisions`` with a rank above 0, and ``window_ends_at`` filled in,
    ``answered`` and ``sold`` (booleans), ``sales`` (sum of the values reported).
    """
    made = offers_made(log, default_days)
    both = made.left_join(heard_of(log, default_days), ["decision_id", "offer_id"])
    both = both.drop("decision_id_right", "offer_id_right")
    no_window = both.window_ends_at.isnull()
    return both.mutate(
        answered=no_window.ifelse(ibis.null("boolean"), both.answered.fill_null(False)),
        sold=no_window.ifelse(ibis.null("boolean"), both.sold.fill_null(False)),
        sales=no_window.ifelse(ibis.null("float64"), both.sales.fill_null(0.0)),
    )


def offers_made(log: DecisionLog, default_days: float | None = None) -> ibis.Table:
    """Return the rows with an offer, and until when an answer to it counts."""
    made = log.decisions.filter(_["rank"] > 0)
    if default_days is None:
        return made
    own = made.decided_at + ibis.interval(microseconds=round(default_days * 86_400e6))
    return made.mutate(window_ends_at=ibis.coalesce(made.window_ends_at, own))


def heard_of(log: DecisionLog, default_days: float | None = None) -> ibis.Table:
    """Return the contacts of which something was reported in time; few of all (see `answered`)."""
    made = offers_made(log, default_days)
    told = log.outcomes.filter(_.outcome_type.isin([*ANSWERS, *SALES]) & _.offer_id.notnull())
    columns = ("decision_id", "offer_id", "outcome_type", "occurred_at", "value")
    seen = told.filter(_.decision_id.notnull()).select(*columns)
    others = told.filter(_.decision_id.isnull())
    if others.count().to_pyarrow().as_py():
        places = made.select("customer_id", "offer_id", "decided_at", made_in=_.decision_id)
        places = places.semi_join(others, ["customer_id", "offer_id"])
        found = others.drop("decision_id").asof_join(
            places, others.occurred_at >= places.decided_at, ["customer_id", "offer_id"]
        )
        found = found.filter(_.made_in.notnull()).mutate(decision_id=_.made_in)
        seen = seen.union(found.select(*columns))
    windows = made.select("decision_id", "offer_id", "decided_at", "window_ends_at")
    seen = seen.join(windows, ["decision_id", "offer_id"])
    seen = seen.filter((_.occurred_at <= _.window_ends_at) & (_.occurred_at >= _.decided_at))
    signed = (_.outcome_type == "return").ifelse(-_.value.abs(), _.value)
    counted: dict[str, Any] = {
        "answered": _.outcome_type.isin(ANSWERS).any(),
        "sold": _.outcome_type.isin(["conversion", "purchase"]).any(),
        "sales": (_.outcome_type.isin(SALES)).ifelse(signed.fill_null(0.0), 0.0).sum(),
    }
    found_in_time: ibis.Table = seen.group_by(["decision_id", "offer_id"]).aggregate(**counted)
    return found_in_time


def unoffered_sales(log: DecisionLog, window: timedelta) -> dict[str, float]:
    """Return what was bought after decisions that made no offer, by decision_id.

    Only purchases that were reported with the id of such a decision count, within the window.
    """
    none = log.decisions.filter(_["rank"] == 0).select("decision_id", "decided_at")
    told = log.outcomes.filter(_.outcome_type.isin(SALES)).select(
        "decision_id", "outcome_type", "occurred_at", "value"
    )
    seen = told.inner_join(none, "decision_id")
    end = seen.decided_at + ibis.interval(microseconds=round(window.total_seconds() * 1e6))
    seen = seen.filter((seen.occurred_at >= seen.decided_at) & (seen.occurred_at <= end))
    signed = (_.outcome_type == "return").ifelse(-_.value.abs(), _.value).fill_null(0.0)
    sums = seen.group_by("decision_id").aggregate(sales=signed.sum()).to_pyarrow()
    names, sales = sums.column("decision_id").to_pylist(), sums.column("sales").to_pylist()
    return dict(zip(names, sales, strict=True))
