"""What customers did since the last refresh, as callers report it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from nextbest.serve.records import CustomerEvent, Events, ReportStatus, naive_utc
from nextbest.serve.store.once import keep_once
from nextbest.serve.store.rows import WANTED, columns, columns_of
from nextbest.serve.store.tables import CUSTOMER_EVENTS

__all__ = ["keep", "since"]


_TOLD = CUSTOMER_EVENTS.c
_SINCE = (
    sa.select(_TOLD.customer_id, _TOLD.event_type, _TOLD.event_at, _TOLD.event_id)
    .where(_TOLD.event_at >= sa.bindparam("start"))
    .order_by(_TOLD.event_at, _TOLD.event_id)
)
_SINCE_OF = _SINCE.where(_TOLD.customer_id.in_(WANTED))


def keep(connection: sa.Connection, reports: Sequence[CustomerEvent]) -> list[ReportStatus]:
    """Keep events once each and return the status of each, in order."""
    rows = [report.row() for report in reports]
    return keep_once(connection, CUSTOMER_EVENTS, CUSTOMER_EVENTS.c.event_id, rows)


def since(
    connection: sa.Connection, customer_ids: Sequence[str] | None, moment: datetime
) -> Events:
    """Return events of these customers (None: of all) from a moment on, oldest first."""
    start = naive_utc(moment)
    if customer_ids is None:
        return Events(*columns(list(connection.execute(_SINCE, {"start": start})), 4))
    return Events(*columns_of(connection, _SINCE_OF, customer_ids, start=start))
