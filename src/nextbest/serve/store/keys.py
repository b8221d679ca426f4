"""API keys, as hashes: added, listed, revoked."""

from __future__ import annotations

from datetime import UTC

import sqlalchemy as sa

from nextbest.serve.records import ApiKey, naive_utc
from nextbest.serve.store.rows import aware, now
from nextbest.serve.store.tables import API_KEYS

__all__ = ["add", "find", "revoke"]


def add(connection: sa.Connection, key: ApiKey) -> None:
    """Keep a new API key."""
    row = {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": " ".join(key.scopes),
        "secret_hash": key.secret_hash,
        "created_at": naive_utc(key.created_at),
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
