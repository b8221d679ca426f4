"""What happened with customers so far: what caps, pauses and exclusions look back on."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from nextbest.serve.records import Contacts, Outcomes
from nextbest.serve.store.rows import WANTED, columns, columns_of
from nextbest.serve.store.tables import CONTACTS, DECISIONS, OUTCOMES

__all__ = ["history"]

_CONTACTS = sa.select(
    CONTACTS.c.customer_id,
    CONTACTS.c.offer_id,
    CONTACTS.c.channel,
    CONTACTS.c.contacted_at,
    CONTACTS.c.decision_id,
).order_by(CONTACTS.c.contacted_at, CONTACTS.c.decision_id, CONTACTS.c.rank)
_OUTCOMES = (
    sa.select(
        OUTCOMES.c.customer_id,
        OUTCOMES.c.offer_id,
        DECISIONS.c.channel,
        OUTCOMES.c.outcome_type,
        OUTCOMES.c.occurred_at,
        OUTCOMES.c.decision_id,
    )
    .outerjoin(DECISIONS, DECISIONS.c.decision_id == OUTCOMES.c.decision_id)
    .order_by(OUTCOMES.c.occurred_at, OUTCOMES.c.outcome_id)
)
_CONTACTS_WITH = _CONTACTS.where(CONTACTS.c.customer_id.in_(WANTED))
_OUTCOMES_OF = _OUTCOMES.where(OUTCOMES.c.customer_id.in_(WANTED))


def history(
    connection: sa.Connection, customer_ids: Sequence[str] | None
) -> tuple[Contacts, Outcomes]:
    """Return past contacts and outcomes of these customers (None: of all), oldest first."""
    if customer_ids is None:
        said = columns(list(connection.execute(_CONTACTS)), 5)
        seen = columns(list(connection.execute(_OUTCOMES)), 6)
    else:
        said = columns_of(connection, _CONTACTS_WITH, customer_ids)
        seen = columns_of(connection, _OUTCOMES_OF, customer_ids)
    return Contacts(*said), Outcomes(*seen)
