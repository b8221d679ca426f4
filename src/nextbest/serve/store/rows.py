"""Small things that every table needs: rows by key, inserts that leave alone what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from nextbest.serve.records import naive_utc
from nextbest.serve.store import driver
from nextbest.serve.store.driver import IN_LIMIT

__all__ = [
    "BACKENDS",
    "WANTED",
    "aware",
    "columns",
    "columns_of",
    "insert_new",
    "insert_rows",
    "now",
    "portions",
    "rows_in",
]

_INSERTS: Mapping[str, Callable[[sa.Table], Any]] = {
    "sqlite": lambda table: sqlite.insert(table).on_conflict_do_nothing(),
    "postgresql": lambda table: postgresql.insert(table).on_conflict_do_nothing(),
}
BACKENDS = tuple(_INSERTS)


def insert_new(connection: sa.Connection, table: sa.Table) -> Any:
    """Return an insert that leaves alone the rows whose key is already there."""
    return _insert_new(connection.dialect.name, table)


@cache
def _insert_new(backend: str, table: sa.Table) -> Any:
    return _INSERTS[backend](table)


def insert_rows(
    connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows, each in the order of the table's columns, but for those whose key is there."""
    if driver.is_sqlite(connection):
        driver.insert(connection, table, rows)
    else:
        names = table.c.keys()
        named = [dict(zip(names, row, strict=True)) for row in rows]
        connection.execute(insert_new(connection, table), named)


WANTED: sa.BindParameter[str] = sa.bindparam("wanted", expanding=True)
"""Stands for values in a query that is built once; building one takes longer than asking it."""


def columns_of(
    connection: sa.Connection,
    query: sa.Select[Any] | sa.CompoundSelect[Any],
    values: Sequence[str],
    **more: Any,
) -> tuple[tuple[Any, ...], ...]:
    """Return the columns of a query with `WANTED`, asked in portions that a database accepts.

    ``more`` are the values of its other parameters.
    """
    asked = portions(values)
    if driver.is_sqlite(connection):
        rows = [row for some in asked for row in driver.fetch(connection, query, some, more)]
        return driver.moments(query, columns(rows, _width(query)))
    told = (connection.execute(query, {"wanted": some, **more}) for some in asked)
    return columns([row for some in told for row in some], _width(query))


def rows_in(
    connection: sa.Connection,
    query: sa.Select[Any],
    column: sa.ColumnElement[Any],
    values: Sequence[str] | None,
) -> Iterator[Any]:
    """Yield the rows whose column is among the values (None: all), in portions that a database
    accepts.
    """
    if values is None:
        yield from connection.execute(query)
        return
    for some in portions(values):
        yield from connection.execute(query.where(column.in_(some)))


def portions(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield values in as many parts as a database needs to accept them."""
    for start in range(0, len(values), IN_LIMIT):
        yield values[start : start + IN_LIMIT]


@cache
def _width(query: sa.Select[Any] | sa.CompoundSelect[Any]) -> int:
    return len(query.selected_columns)


def columns(rows: Sequence[Any], width: int) -> tuple[tuple[Any, ...], ...]:
    """Return rows as ``width`` equally long columns."""
    return tuple(zip(*rows, strict=True)) if rows else ((),) * width


def now() -> datetime:
    """Return the present moment as naive UTC."""
    return naive_utc(datetime.now(UTC))


def aware(moment: datetime | None) -> datetime | None:
    """Return a stored moment (naive UTC) as aware UTC."""
    return None if moment is None else moment.replace(tzinfo=UTC)
