"""Outcomes: kept once each, contradictions named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import sqlalchemy as sa

from nextbest.serve.records import Outcome, ReportStatus
from nextbest.serve.store.once import keep_once
from nextbest.serve.store.rows import now
from nextbest.serve.store.tables import OUTCOMES

__all__ = ["find", "keep", "outcome_of"]


def keep(connection: sa.Connection, outcomes: Sequence[Outcome]) -> list[ReportStatus]:
    """Keep outcomes once each and return the status of each, in order."""
    received_at = now()
    rows = [{**outcome.row(), "received_at": received_at} for outcome in outcomes]
    return keep_once(connection, OUTCOMES, OUTCOMES.c.outcome_id, rows)


def find(
    connection: sa.Connection, customer_id: str | None, decision_id: str | None
) -> list[Outcome]:
    """Return the outcomes of a customer or of a decision, oldest first."""
    query = sa.select(OUTCOMES).order_by(OUTCOMES.c.occurred_at, OUTCOMES.c.outcome_id)
    if customer_id is not None:
        query = query.where(OUTCOMES.c.customer_id == customer_id)
    if decision_id is not None:
        query = query.where(OUTCOMES.c.decision_id == decision_id)
    return [outcome_of(row) for row in connection.execute(query)]


def outcome_of(row: sa.Row[Any]) -> Outcome:
    """Return what a row of the table says."""
    return Outcome(
        outcome_id=row.outcome_id,
        customer_id=row.customer_id,
        offer_id=row.offer_id,
        outcome_type=row.outcome_type,
        occurred_at=row.occurred_at.replace(tzinfo=UTC),
        value=row.value,
        decision_id=row.decision_id,
    )
