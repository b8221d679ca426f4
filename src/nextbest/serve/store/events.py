"""What customers did since the last refresh, as callers report it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from nextbest.serve.records import CustomerEvent, Events, ReportStatus, naive_utc
from nextbest.serve.store.once import keep_once
from nextbest.serve.store.rows import columns, rows_in
from nextbest.serve.store.tables import CUSTOMER_EVENTS

__all__ = ["keep", "since"]


def keep(connection: sa.Connection, reports: Sequence[CustomerEvent]) -> list[ReportStatus]:
    """Keep events once each and return the status of each, in order."""
    rows = [report.row() for report in reports]
    return keep_once(connection, CUSTOMER_EVENTS, CUSTOMER_EVENTS.c.event_id, rows)


def since(
    connection: sa.Connection, customer_ids: Sequence[str] | None, moment: datetime
) -> Events:
    """Return events of these customers (None: of all) from a moment on, oldest first."""
    told = CUSTOMER_EVENTS.c
    query = (
        sa.select(told.customer_id, told.event_type, told.event_at, told.event_id)
        .where(told.event_at >= naive_utc(moment))
        .order_by(told.event_at, told.event_id)
    )
    return Events(*columns(list(rows_in(connection, query, told.customer_id, customer_ids)), 4))
