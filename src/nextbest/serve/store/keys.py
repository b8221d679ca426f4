"""API keys, as hashes: added, listed, revoked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import sqlalchemy as sa

from nextbest.serve.records import ApiKey, naive_utc
from nextbest.serve.store.rows import aware, now
from nextbest.serve.store.tables import API_KEYS

__all__ = ["add", "find", "note_use", "revoke"]


def add(connection: sa.Connection, key: ApiKey) -> None:
    """Keep a new API key."""
    row = {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": " ".join(key.scopes),
        "secret_hash": key.secret_hash,
        "created_at": naive_utc(key.created_at),
        "requests_per_minute": key.requests_per_minute,
    }
    connection.execute(sa.insert(API_KEYS), row)


def find(connection: sa.Connection, key_id: str | None) -> list[ApiKey]:
    """Return every API key (or the one of this id), oldest first, revoked ones included."""
    query = sa.select(API_KEYS).order_by(API_KEYS.c.created_at, API_KEYS.c.key_id)
    if key_id is not None:
        query = query.where(API_KEYS.c.key_id == key_id)
    return [
        ApiKey(
            key_id=row.key_id,
            name=row.name,
            scopes=tuple(row.scopes.split()),
            secret_hash=row.secret_hash,
            created_at=row.created_at.replace(tzinfo=UTC),
            revoked_at=aware(row.revoked_at),
            last_used_at=aware(row.last_used_at),
            requests_per_minute=row.requests_per_minute,
        )
        for row in connection.execute(query)
    ]


def revoke(connection: sa.Connection, key_id: str) -> bool:
    """Revoke a key; False when no key of that id was still valid."""
    change = (
        sa.update(API_KEYS)
        .where(API_KEYS.c.key_id == key_id, API_KEYS.c.revoked_at.is_(None))
        .values(revoked_at=now())
    )
    return connection.execute(change).rowcount == 1


def note_use(connection: sa.Connection, used: Mapping[str, datetime]) -> None:
    """Keep when keys were last used, unless another server has seen them later."""
    column = API_KEYS.c.last_used_at
    for key_id, moment in used.items():
        at = naive_utc(moment)
        newer = (API_KEYS.c.key_id == key_id) & (column.is_(None) | (column < at))
        connection.execute(sa.update(API_KEYS).where(newer).values(last_used_at=at))
