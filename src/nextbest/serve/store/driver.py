"""What is asked for every decision, put to SQLite's own driver without SQLAlchemy in between.

The statements are those of SQLAlchemy, compiled to text once: the tables are defined in one place
and the SQL is written in one place. To execute one through SQLAlchemy takes several times as long
as SQLite itself needs for it.

Lists are bound value by value, in statements for 1, 2, 4, 8, ... values, so that few texts serve
all and the driver finds them prepared. An array in JSON would be one value, but SQLite ends a text
in it at a NUL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from itertools import chain
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

__all__ = [
    "IN_LIMIT",
    "as_moment",
    "as_text",
    "fetch",
    "insert",
    "is_of_the_disk",
    "is_sqlite",
    "letting_go",
    "moments",
    "of",
]

# SQLite allows 32,766 bound values in one statement, other databases fewer than 65,536; a statement
# may name its list twice.
IN_LIMIT = 10_000
# Each call of SQLite lets go of Python's lock, and somebody else may take it: rows go in together.
ROWS_AT_ONCE = 64
_DIALECT = sqlite.dialect()
# Primary result codes; the rest of a code says more about it.
_OF_THE_DISK = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


@dataclass(frozen=True)
class _Select:
    """A query with so many values wanted: its text, and the names of its parameters in order."""

    text: str
    names: Sequence[str]
    wanted: Sequence[str]


def is_sqlite(connection: sa.Connection) -> bool:
    """Tell whether there is a driver here to speak to."""
    return connection.dialect.name == "sqlite"


def of(connection: sa.Connection) -> sqlite3.Connection:
    """Return the driver's own connection."""
    return cast(sqlite3.Connection, connection.connection.driver_connection)


@contextmanager
def letting_go(connection: sa.Connection) -> Iterator[None]:
    """Let go of every connection where the driver itself meets a fault of the disk.

    What SQLAlchemy meets it is told of by an event (`Database`).
    """
    try:
        yield
    except sqlite3.Error as error:
        if is_of_the_disk(error):
            connection.invalidate(error)
            connection.engine.dispose()
        raise


def is_of_the_disk(error: BaseException) -> bool:
    """Tell whether the disk refuses, perhaps for as long as a connection is open."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_DISK


@lru_cache  # a group of decisions has one moment, or few
def as_text(moment: datetime | None) -> str | None:
    """Return a moment (naive UTC) as SQLAlchemy keeps it in SQLite."""
    return None if moment is None else moment.isoformat(" ", "microseconds")


def as_moment(text: str | None) -> datetime | None:
    """Return the moment that SQLAlchemy keeps as this text."""
    return None if text is None else datetime.fromisoformat(text)


def fetch(
    connection: sa.Connection,
    query: sa.Select[Any] | sa.CompoundSelect[Any],
    wanted: Sequence[str],
    more: Mapping[str, Any],
) -> list[tuple[Any, ...]]:
    """Return the rows of a query with `rows.WANTED`, times as SQLite keeps them (see `moments`).

    Parameters
    ----------
    query: one that is built once.
    wanted: from one value to `IN_LIMIT`.
    more: the values of its other parameters.
    """
    # The next power of two, filled up with what is wanted already: it is found once all the same.
    size = min(IN_LIMIT, 1 << (len(wanted) - 1).bit_length())
    select = _select(query, size, tuple(more))
    bound = {name: _bound(value) for name, value in more.items()}
    bound.update(zip(select.wanted, wanted, strict=False))
    last = wanted[-1]
    values = [bound.get(name, last) for name in select.names]
    own = of(connection)
    if not own.in_transaction:
        connection.begin()  # all that is read on a connection is of one moment
    with closing(own.cursor()) as cursor:
        return cursor.execute(select.text, values).fetchall()


def moments(
    query: sa.Select[Any] | sa.CompoundSelect[Any], columns: Sequence[tuple[Any, ...]]
) -> tuple[tuple[Any, ...], ...]:
    """Return the columns of a query that `fetch` answered, with times as such."""
    times = _times_of_query(query)
    return tuple(
        tuple(map(as_moment, column)) if i in times else column for i, column in enumerate(columns)
    )


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, each in the order of the table's columns, but for those whose key is there."""
    width, times = len(table.c), _times_of_table(table)
    with closing(of(connection).cursor()) as cursor:
        for part in _portions(rows):
            values = list(chain.from_iterable(part))
            for i in times:
                values[i::width] = map(as_text, values[i::width])
            cursor.execute(_insert(table, len(part)), values)


def _portions(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Yield rows by powers of two, so that few statements are prepared.

    The last is filled up with a row that is in it: it is inserted once all the same.
    """
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        size = 1 << (len(part) - 1).bit_length()
        yield [*part, *[part[-1]] * (size - len(part))]


@cache
def _select(
    query: sa.Select[Any] | sa.CompoundSelect[Any], size: int, more: tuple[str, ...]
) -> _Select:
    compiled = query.compile(dialect=_DIALECT)
    state = compiled.construct_expanded_state({"wanted": [""] * size, **dict.fromkeys(more)})
    names = state.positiontup or ()
    return _Select(state.statement, names, [f"wanted_{i}" for i in range(1, size + 1)])


@cache
def _insert(table: sa.Table, size: int) -> str:
    row: dict[str, None] = dict.fromkeys(table.c.keys())
    new = sqlite.insert(table).values([row] * size).on_conflict_do_nothing()
    return str(new.compile(dialect=_DIALECT))


@cache
def _times_of_query(query: sa.Select[Any] | sa.CompoundSelect[Any]) -> frozenset[int]:
    return _times(query.selected_columns)


@cache
def _times_of_table(table: sa.Table) -> frozenset[int]:
    return _times(table.c)


def _times(columns: Any) -> frozenset[int]:
    return frozenset(i for i, c in enumerate(columns) if isinstance(c.type, sa.DateTime))


def _bound(value: Any) -> Any:
    return as_text(value) if isinstance(value, datetime) else value
