"""What the warehouse knows of the last days before a refresh, as tables in memory."""

from __future__ import annotations

from datetime import datetime, timedelta

import ibis
import pandas as pd

from nextbest.data.contract import TABLES, History
from nextbest.data.live import KIND_COLUMNS, Window

__all__ = ["COLUMNS", "before", "recent"]

COLUMNS = ("customer_id", "offer_id", "channel", "type", "at", "decision_id")


def recent(history: History, days: float) -> pd.DataFrame:
    """Return contacts and responses of the last days, one row each, in a fixed order.

    ``type`` is "contact" or the response's own type; ``channel`` and ``decision_id`` may be null;
    ``at`` is naive UTC. Days count back from the instant up to which the data are complete.
    """
    since = history.observed_until - timedelta(days=days)
    parts = []
    for name, time in (("contacts", "contacted_at"), ("responses", "responded_at")):
        if name in history.tables:
            t = history.tables[name]
            nothing = ibis.null("string")
            rows = t.filter(t[time] > since).select(
                customer_id=t.customer_id,
                offer_id=t.offer_id,
                channel=t.channel.cast("string") if name == "contacts" else nothing,
                type=ibis.literal("contact") if name == "contacts" else t.response_type,
                at=t[time],
                decision_id=t.decision_id if "decision_id" in t.columns else nothing,
            )
            parts.append(rows.to_pandas())
    if not parts:
        return pd.DataFrame({name: [] for name in COLUMNS})
    found: pd.DataFrame = pd.concat(parts).sort_values(list(COLUMNS), ignore_index=True)
    return found


def before(history: History, table: str, kept: Window, as_of: datetime) -> pd.DataFrame:
    """Return a table's rows that features as of a moment may count: ``customer_id, at, kind``.

    Those are the rows of the window that had happened, and were known, before it (naive UTC).
    """
    t = history.tables[table]
    at, kind = t[str(TABLES[table].event_time)], KIND_COLUMNS[table]
    rows = t.filter((at < as_of) & (t.known_at.isnull() | (t.known_at < as_of)))
    if kept.days is not None:
        # Ages are floats of seconds; a second more than the window keeps a rounded one inside.
        rows = rows.filter(at >= as_of - timedelta(days=kept.days, seconds=1))
    found: pd.DataFrame = rows.select(
        customer_id=rows.customer_id,
        at=rows[str(TABLES[table].event_time)],
        kind=rows[kind],
    ).to_pandas()
    return found
