"""Outcomes: kept once each, contradictions named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import sqlalchemy as sa

from nextbest.serve.records import Outcome, OutcomeStatus
from nextbest.serve.store.rows import insert_new, now, rows_in
from nextbest.serve.store.tables import OUTCOMES

__all__ = ["find", "keep"]


def keep(connection: sa.Connection, outcomes: Sequence[Outcome]) -> list[OutcomeStatus]:
    """Keep outcomes once each and return the status of each, in order."""
    if not outcomes:
        return []
    received_at = now()
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.outcome_id, {**outcome.row(), "received_at": received_at})
    write = insert_new(connection, OUTCOMES).returning(OUTCOMES.c.outcome_id)
    new = set(connection.execute(write, list(rows.values())).scalars())
    query = sa.select(OUTCOMES.c.outcome_id, OUTCOMES.c.content_hash)
    kept = {
        row.outcome_id: row.content_hash
        for row in rows_in(connection, query, OUTCOMES.c.outcome_id, list(rows))
    }
    statuses: list[OutcomeStatus] = []
    for outcome in outcomes:
        if kept[outcome.outcome_id] != outcome.content_hash:
            statuses.append("conflict")
        elif outcome.outcome_id in new:
            statuses.append("stored")
            new.discard(outcome.outcome_id)
        else:
            statuses.append("duplicate")
    return statuses


def find(
    connection: sa.Connection, customer_id: str | None, decision_id: str | None
) -> list[Outcome]:
    """Return the outcomes of a customer or of a decision, oldest first."""
    query = sa.select(OUTCOMES).order_by(OUTCOMES.c.occurred_at, OUTCOMES.c.outcome_id)
    if customer_id is not None:
        query = query.where(OUTCOMES.c.customer_id == customer_id)
    if decision_id is not None:
        query = query.where(OUTCOMES.c.decision_id == decision_id)
    return [
        Outcome(
            outcome_id=row.outcome_id,
            customer_id=row.customer_id,
            offer_id=row.offer_id,
            outcome_type=row.outcome_type,
            occurred_at=row.occurred_at.replace(tzinfo=UTC),
            value=row.value,
            decision_id=row.decision_id,
        )
        for row in connection.execute(query)
    ]
