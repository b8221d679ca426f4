"""The whole log, part by part: what measuring reads without ever holding all of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from nextbest.serve.records import LoggedContact, LoggedDecision, Outcome
from nextbest.serve.store import decisions
from nextbest.serve.store.outcomes import outcome_of
from nextbest.serve.store.rows import rows_in
from nextbest.serve.store.tables import CONTACTS, DECISIONS, OUTCOMES

__all__ = ["decisions_after", "outcomes_after", "span"]


def span(connection: sa.Connection) -> tuple[int, datetime | None, datetime | None]:
    """Return how many decisions there are, and the first and last moment of the log (naive UTC)."""
    at = DECISIONS.c.decided_at
    count, first, last = connection.execute(
        sa.select(sa.func.count(), sa.func.min(at), sa.func.max(at))
    ).one()
    told = connection.execute(sa.select(sa.func.max(OUTCOMES.c.occurred_at))).scalar()
    return count, first, max((t for t in (last, told) if t is not None), default=None)


def decisions_after(
    connection: sa.Connection,
    last: str,
    size: int,
    since: datetime | None,
    until: datetime | None,
) -> list[LoggedDecision]:
    """Return the next decisions in the order of their ids, from one moment to before another.

    Parameters
    ----------
    last: id of the last decision seen; empty for none.
    since, until: naive UTC; None for no limit.
    """
    named = DECISIONS.c
    query = sa.select(
        named.decision_id,
        named.customer_id,
        named.decided_at,
        named.channel,
        named.arm,
        named.record,
        named.numbers,
        named.shared,
    ).where(named.decision_id > last)
    if since is not None:
        query = query.where(named.decided_at >= since)
    if until is not None:
        query = query.where(named.decided_at < until)
    rows = connection.execute(query.order_by(named.decision_id).limit(size)).all()
    made = _contacts(connection, [row.decision_id for row in rows])
    records = decisions.kept(connection, [row[5:] for row in rows])
    return [
        LoggedDecision(*row[:5], record, tuple(made.get(row.decision_id, ())))
        for row, record in zip(rows, records, strict=True)
    ]


def _contacts(
    connection: sa.Connection, decision_ids: Sequence[str]
) -> dict[str, list[LoggedContact]]:
    named = CONTACTS.c
    query = sa.select(
        named.decision_id, named.rank, named.offer_id, named.propensity, named.window_ends_at
    ).order_by(named.decision_id, named.rank)
    found: dict[str, list[LoggedContact]] = {}
    for row in rows_in(connection, query, named.decision_id, decision_ids):
        found.setdefault(row.decision_id, []).append(LoggedContact(*row[1:]))
    return found


def outcomes_after(connection: sa.Connection, last: str, size: int) -> list[Outcome]:
    """Return the next outcomes in the order of their ids; ``last`` as in `decisions_after`."""
    named = OUTCOMES.c
    query = sa.select(OUTCOMES).where(named.outcome_id > last).order_by(named.outcome_id)
    return [outcome_of(row) for row in connection.execute(query.limit(size))]
