"""The audit trail: entries that are only ever added, each with the hash of the one before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC
from typing import Any

import sqlalchemy as sa

from nextbest.serve.audit import GENESIS, AuditEntry, Change, link
from nextbest.serve.records import naive_utc
from nextbest.serve.store.rows import now
from nextbest.serve.store.tables import AUDIT

__all__ = ["TRAIL", "append", "append_if_new", "entries"]

# What a writer of the trail locks (`Database.lock`).
TRAIL = "the audit trail"


def append(connection: sa.Connection, change: Change) -> AuditEntry:
    """Add an entry after the last one.

    Whoever calls holds the name `TRAIL`, so that no two writers follow the same entry; and in any
    database a number is taken only once.
    """
    query = sa.select(AUDIT.c.number, AUDIT.c.hash).order_by(AUDIT.c.number.desc()).limit(1)
    last = connection.execute(query).first()
    number, previous = (0, GENESIS) if last is None else (last.number, last.hash)
    entry = link(change, number + 1, now().replace(tzinfo=UTC), previous)
    connection.execute(sa.insert(AUDIT), {**vars(entry), "at": naive_utc(entry.at)})
    return entry


def append_if_new(connection: sa.Connection, change: Change) -> AuditEntry | None:
    """Add an entry unless the last one of this action says the same of the same subject.

    So that of many servers that take up one change the first tells of it, and the others do not.
    """
    query = (
        sa.select(AUDIT.c.detail)
        .where(AUDIT.c.action == change.action, AUDIT.c.subject == change.subject)
        .order_by(AUDIT.c.number.desc())
        .limit(1)
    )
    last = connection.execute(query).scalar()
    if last is not None and json.loads(last) == change.detail:
        return None
    return append(connection, change)


def entries(connection: sa.Connection) -> Iterator[AuditEntry]:
    """Yield every entry by number."""
    for row in connection.execute(sa.select(AUDIT).order_by(AUDIT.c.number)):
        found: dict[str, Any] = row._asdict()
        yield AuditEntry(**{**found, "at": row.at.replace(tzinfo=UTC)})
