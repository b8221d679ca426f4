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

__all__ = ["alone", "append", "append_if_new", "entries"]


def alone(connection: sa.Connection) -> None:
    """Let nobody else add an entry until this transaction ends; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE audit IN EXCLUSIVE MODE")


def append(connection: sa.Connection, change: Change) -> AuditEntry:
    """Add an entry after the last one.

    Two writers cannot both follow the same entry: SQLite has one at a time, PostgreSQL makes the
    second wait here, and in any database the number is taken only once.
    """
    alone(connection)
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
    alone(connection)
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
