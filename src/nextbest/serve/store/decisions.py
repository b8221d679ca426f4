"""Decisions and the contacts that they made: kept all or none, once for each idempotency key.

What their records have in common is kept once, before the decisions that name it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from nextbest.decide.packed import Shared
from nextbest.serve.records import DecisionRecord, Kept, Seen, StoredDecision
from nextbest.serve.store.faults import HistoryChangedError
from nextbest.serve.store.rows import WANTED, columns_of, insert_rows, rows_in
from nextbest.serve.store.tables import CONTACTS, DECISIONS, OUTCOMES, SHARED
from nextbest.serve.writer import Refused

__all__ = [
    "as_stored",
    "by_keys",
    "chosen",
    "decided_at",
    "find",
    "keep",
    "keeper",
    "kept",
    "names_of",
    "request_hashes",
    "rows_about",
    "stored",
]


def names_of(records: Sequence[DecisionRecord]) -> list[str]:
    """Return what no other writer may touch meanwhile: the customers, and the keys of requests."""
    keys = [record.idempotency_key for record in records if record.idempotency_key is not None]
    return [record.customer_id for record in records] + keys


_ROWS_ABOUT = sa.union_all(
    *(
        sa.select(table.c.customer_id, sa.func.count())
        .where(table.c.customer_id.in_(WANTED))
        .group_by(table.c.customer_id)
        for table in (CONTACTS, OUTCOMES)
    )
)
_NAMED = DECISIONS.c
STORED = (
    _NAMED.decision_id, _NAMED.customer_id, _NAMED.request_hash,
    _NAMED.record, _NAMED.numbers, _NAMED.shared,
)  # fmt: skip
"""The columns of which `stored` makes decisions."""
_BY_KEYS = sa.select(_NAMED.idempotency_key, *STORED).where(_NAMED.idempotency_key.in_(WANTED))
_SHARED = sa.select(SHARED.c.hash, SHARED.c.content).where(SHARED.c.hash.in_(WANTED))


def as_stored(record: DecisionRecord) -> StoredDecision:
    """Return a decision as the store holds it once it is kept."""
    return StoredDecision(record.decision_id, record.customer_id, record.request_hash, record.kept)


def keeper(
    records: Sequence[DecisionRecord],
    seen: Seen | None,
    untouched_since: Callable[[int | None], bool],
) -> Callable[[sa.Connection], list[StoredDecision] | Refused]:
    """Return work for a writer: keep these decisions, unless more is known than was ``seen``.

    ``untouched_since`` tells whether it is certain that there is no more (`Database`).
    """
    rows = [record.row() for record in records]

    def work(connection: sa.Connection) -> list[StoredDecision] | Refused:
        if seen is None or untouched_since(seen.moment):
            return keep(connection, records, rows)
        if rows_about(connection, list(seen.rows)) != Counter(seen.rows):
            return Refused(HistoryChangedError())
        return keep(connection, records, rows)

    return work


def keep(
    connection: sa.Connection, records: Sequence[DecisionRecord], rows: Sequence[tuple[Any, ...]]
) -> list[StoredDecision]:
    """Insert decisions, given also as rows, and return what the store now holds for each."""
    if not records:
        return []
    shared = {one for one in (record.kept.shared for record in records) if one is not None}
    if shared:
        # In one order for all: writers of two that are new would wait for each other.
        insert_rows(connection, SHARED, sorted(shared))
    insert_rows(connection, DECISIONS, rows)
    # Read back who holds each key: another request, or another server, may have been first.
    keys = [record.idempotency_key for record in records if record.idempotency_key is not None]
    holders = by_keys(connection, keys) if keys else {}
    kept = [holders.get(record.idempotency_key or "") or as_stored(record) for record in records]
    contacts = [
        row
        for record, holder in zip(records, kept, strict=True)
        if holder.decision_id == record.decision_id
        for row in record.contact_rows()
    ]
    if contacts:
        insert_rows(connection, CONTACTS, contacts)
    return kept


def find(connection: sa.Connection, decision_id: str) -> StoredDecision | None:
    """Return one stored decision, or None."""
    query = sa.select(*STORED).where(_NAMED.decision_id == decision_id)
    found = stored(connection, connection.execute(query).all())
    return found[0] if found else None


def by_keys(connection: sa.Connection, keys: Sequence[str]) -> dict[str, StoredDecision]:
    """Return the decisions made under these idempotency keys, by key."""
    taken, *columns = columns_of(connection, _BY_KEYS, keys)
    found = stored(connection, list(zip(*columns, strict=True)))
    return dict(zip(taken, found, strict=True))


def request_hashes(connection: sa.Connection, decision_ids: Sequence[str]) -> dict[str, str]:
    """Return, for each decision that is kept, the hash of the question that it answers."""
    query = sa.select(DECISIONS.c.decision_id, DECISIONS.c.request_hash)
    found = rows_in(connection, query, DECISIONS.c.decision_id, decision_ids)
    return {row.decision_id: row.request_hash for row in found}


def chosen(
    connection: sa.Connection, decision_ids: Sequence[str]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return, for each known decision, its customer and the offers it chose by rank."""
    owners = sa.select(DECISIONS.c.decision_id, DECISIONS.c.customer_id)
    found: dict[str, tuple[str, list[str]]] = {
        row.decision_id: (row.customer_id, [])
        for row in rows_in(connection, owners, DECISIONS.c.decision_id, decision_ids)
    }
    offers = sa.select(CONTACTS.c.decision_id, CONTACTS.c.offer_id)
    offers = offers.order_by(CONTACTS.c.decision_id, CONTACTS.c.rank)
    for row in rows_in(connection, offers, CONTACTS.c.decision_id, list(found)):
        found[row.decision_id][1].append(row.offer_id)
    return {key: (customer, tuple(ranked)) for key, (customer, ranked) in found.items()}


def decided_at(connection: sa.Connection, decision_ids: Sequence[str]) -> dict[str, datetime]:
    """Return when each of the known decisions was made (aware UTC)."""
    query = sa.select(DECISIONS.c.decision_id, DECISIONS.c.decided_at)
    found = rows_in(connection, query, DECISIONS.c.decision_id, decision_ids)
    return {row.decision_id: row.decided_at.replace(tzinfo=UTC) for row in found}


def rows_about(connection: sa.Connection, customer_ids: Sequence[str]) -> Counter[str]:
    """Return how many contacts and outcomes there are of each customer.

    Inside a transaction that holds the lock of these customers this stays true until it commits.
    """
    rows: Counter[str] = Counter()
    for customer_id, n in zip(*columns_of(connection, _ROWS_ABOUT, customer_ids), strict=True):
        rows[customer_id] += n
    return rows


def stored(connection: sa.Connection, rows: Sequence[Any]) -> list[StoredDecision]:
    """Return rows of the columns `STORED` as decisions."""
    records = kept(connection, [row[3:] for row in rows])
    return [
        StoredDecision(row[0], row[1], row[2], one) for row, one in zip(rows, records, strict=True)
    ]


def kept(
    connection: sa.Connection, rows: Sequence[tuple[str, bytes | None, str | None]]
) -> list[Kept]:
    """Return records, given their text, their numbers and the hash of what they share."""
    hashes = {shared for _, _, shared in rows if shared is not None}
    found = zip(*columns_of(connection, _SHARED, list(hashes)), strict=True) if hashes else ()
    contents = dict(found)
    return [
        Kept(text, numbers, None if shared is None else Shared(shared, contents.get(shared, "")))
        for text, numbers, shared in rows
    ]
