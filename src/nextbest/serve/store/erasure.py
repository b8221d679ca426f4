"""Everything that the store holds of one person: gathered, or removed for good.

`erasures` keeps no name. A row holds a salted hash: of a customer whose profile must not be served
although a bundle still has it, or (``went:``) of a decision that went with its customer, so
that who asks for it learns why it is gone. One row (``salt:``) holds the salt.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from nextbest.serve.records import Erased, Person
from nextbest.serve.store import decisions
from nextbest.serve.store.rows import insert_new, now, portions
from nextbest.serve.store.tables import (
    CONTACTS,
    CUSTOMER_EVENTS,
    DECISIONS,
    ERASURES,
    OUTCOMES,
    WITHOUT_OFFERS,
)

__all__ = ["erase", "erased", "erased_decision", "lift", "person"]

# In this order after all hexadecimal digits: one range of the key holds customers and salt.
SALT, DECISION = "salt:", "went:"
_HASH = ERASURES.c.customer_hash
# Beside decisions, which most of the time only their contacts lead to.
_PERSONAL = {"outcomes": OUTCOMES, "contacts": CONTACTS, "events": CUSTOMER_EVENTS}
# What says how we keep a row, and nothing of the person.
_OURS = ("content_hash", "batch")


def erased(connection: sa.Connection) -> Erased:
    """Return the people whose profiles are not served."""
    query = sa.select(_HASH).where(_HASH < DECISION)
    hashes = connection.execute(query).scalars().all()
    salts = [one for one in hashes if one.startswith(SALT)]
    return Erased("".join(salts), frozenset(hashes) - frozenset(salts))


def erase(connection: sa.Connection, customer_id: str) -> dict[str, int]:
    """Remove every row about a person; return how many there were, by kind.

    Nobody else may erase meanwhile, or both make up a salt: whoever calls holds the audit trail.
    """
    known = erased(connection)
    if not known.salt:
        known = Erased(SALT + secrets.token_hex(16))
        _add(connection, [known.salt])
    # Before their contacts go, which most of them are found by.
    gone = connection.execute(_decisions_of(customer_id)).scalars().all()
    _add(connection, [known.hash_of(customer_id), *(_of(known, one) for one in gone)])
    removed = {
        name: connection.execute(
            sa.delete(table).where(table.c.customer_id == customer_id)
        ).rowcount
        for name, table in _PERSONAL.items()
    }
    made = DECISIONS.c.decision_id
    deletes = (sa.delete(DECISIONS).where(made.in_(some)) for some in portions(gone))
    removed["decisions"] = sum(connection.execute(delete).rowcount for delete in deletes)
    return removed


def erased_decision(connection: sa.Connection, decision_id: str) -> datetime | None:
    """Return when a decision was erased with its customer; None where it was not."""
    wanted = _HASH.in_([_of(erased(connection), decision_id)])
    query = sa.select(ERASURES.c.erased_at).where(wanted)
    at = connection.execute(query).scalar()
    return None if at is None else at.replace(tzinfo=UTC)


def lift(connection: sa.Connection, hashes: Iterable[str]) -> None:
    """Forget who was erased and whom no bundle holds any more."""
    for one in hashes:
        connection.execute(sa.delete(ERASURES).where(_HASH.in_([one])))


def person(connection: sa.Connection, customer_id: str) -> Person:
    """Return all that there is of a person, oldest first."""
    rows = {
        name: tuple(_plain(row) for row in connection.execute(_about(table, customer_id)))
        for name, table in _PERSONAL.items()
    }
    found = connection.execute(_stored_of(customer_id)).all()
    return Person(tuple(decisions.stored(connection, found)), **rows)


def _about(table: sa.Table, customer_id: str) -> sa.Select[Any]:
    times = [c for c in table.c if c.name in ("contacted_at", "occurred_at", "event_at")]
    query = sa.select(table).order_by(*times, *table.primary_key)
    return query.where(table.c.customer_id == customer_id)


def _stored_of(customer_id: str) -> sa.Select[Any]:
    made = DECISIONS.c
    query = sa.select(*decisions.STORED).where(made.decision_id.in_(_decisions_of(customer_id)))
    return query.order_by(made.decided_at, made.decision_id)


def _decisions_of(customer_id: str) -> sa.CompoundSelect[Any]:
    """All decisions about a person: those that chose offers are known by their contacts."""
    made, told = DECISIONS.c, CONTACTS.c
    return sa.union(
        sa.select(made.decision_id).where(made.customer_id == customer_id, WITHOUT_OFFERS),
        sa.select(told.decision_id).where(told.customer_id == customer_id),
    )


def _plain(row: sa.Row[Any]) -> Mapping[str, Any]:
    found = {name: value for name, value in row._asdict().items() if name not in _OURS}
    return {
        name: value.isoformat() + "Z" if isinstance(value, datetime) else value
        for name, value in found.items()
    }


def _of(known: Erased, decision_id: str) -> str:
    return DECISION + known.hash_of(decision_id)[:48]


def _add(connection: sa.Connection, hashes: Iterable[str]) -> None:
    rows = [{"customer_hash": one, "erased_at": now()} for one in hashes]
    connection.execute(insert_new(connection, ERASURES), rows)
