"""What callers report under ids of their own: kept once each, contradictions named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nextbest.serve.records import ReportStatus
from nextbest.serve.store.rows import insert_new, rows_in

__all__ = ["keep_once"]


def keep_once(
    connection: sa.Connection,
    table: sa.Table,
    key: sa.Column[str],
    reports: Sequence[Mapping[str, Any]],
) -> list[ReportStatus]:
    """Keep rows once each and return the status of each, in order.

    Parameters
    ----------
    key: the column of the caller's id. Each row also has a ``content_hash``, by which a repeat is
        told from a contradiction; of two rows with one id the first stays.
    """
    if not reports:
        return []
    rows: dict[str, dict[str, Any]] = {}
    for report in reports:
        rows.setdefault(report[key.name], dict(report))
    write = insert_new(connection, table).returning(key)
    new = set(connection.execute(write, list(rows.values())).scalars())
    query = sa.select(key, table.c.content_hash)
    kept = {name: content for name, content in rows_in(connection, query, key, list(rows))}
    statuses: list[ReportStatus] = []
    for report in reports:
        if kept[report[key.name]] != report["content_hash"]:
            statuses.append("conflict")
        elif report[key.name] in new:
            statuses.append("stored")
            new.discard(report[key.name])
        else:
            statuses.append("duplicate")
    return statuses
