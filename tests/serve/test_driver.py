"""SQLite asked directly, and through SQLAlchemy: the same is written, the same is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from nextbest.serve.store import decisions, driver, events, history
from nextbest.serve.store.rows import columns, columns_of, insert_new
from nextbest.serve.store.tables import CONTACTS, CUSTOMER_EVENTS, DECISIONS, OUTCOMES, SHARED

# Few of them, so that keys meet; with what a text may hold: nothing, a NUL, what is not Latin.
TEXTS = st.sampled_from(["", "a", "b", "a\x00b", "ä", "\U0001f600", "'", "1", "c\ud7ff"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=3
)
VALUES: dict[type, st.SearchStrategy[Any]] = {
    sa.Integer: st.integers(-(2**63), 2**63 - 1),
    sa.Float: st.floats() | st.integers(-3, 3),
    sa.DateTime: st.datetimes() | st.just(datetime(1, 1, 1)) | st.just(datetime(2026, 1, 1)),
    sa.String: TEXTS,
    sa.LargeBinary: st.binary(max_size=9),
}


def rows_of(table: sa.Table) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Rows of a table, in the order of its columns."""
    cells = [
        st.none() | VALUES[_kind(c)] if c.nullable and not c.primary_key else VALUES[_kind(c)]
        for c in table.c
    ]
    return st.lists(st.tuples(*cells), min_size=1, max_size=13)


def _kind(column: sa.Column[Any]) -> type:
    return next(kind for kind in VALUES if isinstance(column.type, kind))


@contextmanager
def database() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        for table in (SHARED, DECISIONS, CONTACTS, OUTCOMES, CUSTOMER_EVENTS):
            table.create(connection)
        yield connection
    engine.dispose()


def through_sqlalchemy(
    connection: sa.Connection, table: sa.Table, rows: list[tuple[Any, ...]]
) -> None:
    names = table.c.keys()
    named = [dict(zip(names, row, strict=True)) for row in rows]
    connection.execute(insert_new(connection, table), named)


def as_kept(connection: sa.Connection, table: sa.Table) -> list[Any]:
    """What is in the file, and as what."""
    names = table.c.keys()
    cells = ", ".join(f'"{name}", typeof("{name}")' for name in names)
    return driver.of(connection).execute(f'SELECT {cells} FROM "{table.name}"').fetchall()


@pytest.mark.parametrize("table", [SHARED, DECISIONS, CONTACTS], ids=lambda table: table.name)
@settings(max_examples=60)
@given(data=st.data())
def test_the_same_rows_are_kept(table: sa.Table, data: st.DataObject) -> None:
    rows = data.draw(rows_of(table))
    with database() as one, database() as other:
        driver.insert(one, table, rows)
        through_sqlalchemy(other, table, rows)
        assert as_kept(one, table) == as_kept(other, table) != []


@settings(max_examples=60)
@given(
    made=rows_of(DECISIONS),
    contacts=rows_of(CONTACTS),
    told=rows_of(OUTCOMES),
    done=rows_of(CUSTOMER_EVENTS),
    wanted=st.lists(TEXTS, min_size=1, max_size=9),
    start=st.datetimes(),
)
def test_the_same_rows_are_read(
    made: Any, contacts: Any, told: Any, done: Any, wanted: list[str], start: datetime
) -> None:
    tables = {DECISIONS: made, CONTACTS: contacts, OUTCOMES: told, CUSTOMER_EVENTS: done}
    with database() as connection:
        for table, rows in tables.items():
            through_sqlalchemy(connection, table, rows)
        # Of whom there is something, and of whom there is not.
        people = [*wanted, *(row[2] for row in contacts + told), made[0][1], done[0][1]]
        keys = [*wanted, *(row[6] for row in made if row[6] is not None)]
        for query, values, more in (
            (history._CONTACTS_WITH, people, {}),
            (history._OUTCOMES_OF, people, {}),
            (events._SINCE_OF, people, {"start": start}),
            (events._SINCE_OF, people, {"start": datetime(1, 1, 1)}),
            (decisions._ROWS_ABOUT, people, {}),
            (decisions._BY_KEYS, keys, {}),
        ):
            asked = connection.execute(query, {"wanted": values, **more})
            expected = columns([tuple(row) for row in asked], len(query.selected_columns))
            assert columns_of(connection, query, values, **more) == expected


def test_a_text_that_is_no_unicode_is_refused_alike() -> None:
    bad = "a\ud800"
    row = (bad, 1, "c", "o", "web", datetime(2026, 1, 1), None, 0.5, None, None, None)
    with database() as connection:
        for write in (driver.insert, through_sqlalchemy):
            with pytest.raises(UnicodeEncodeError):
                write(connection, CONTACTS, [row])
        with pytest.raises(UnicodeEncodeError):
            connection.execute(history._CONTACTS_WITH, {"wanted": [bad]})
        with pytest.raises(UnicodeEncodeError):
            columns_of(connection, history._CONTACTS_WITH, [bad])


def test_more_rows_and_names_than_one_statement_takes() -> None:
    rows = [
        (f"d{i}", 1, f"c{i}", "o", "web", datetime(2026, 1, 1, i % 24), None, 0.5, None, None, None)
        for i in range(2 * driver.ROWS_AT_ONCE + 77)
    ]
    people = [f"c{i}" for i in range(driver.IN_LIMIT + 3)]
    with database() as connection:
        driver.insert(connection, CONTACTS, rows)
        assert len(columns_of(connection, history._CONTACTS_WITH, people)[0]) == len(rows)
        limit = 32_766  # SQLite's own, where whoever built it has not raised it
        driver.of(connection).setlimit(9, limit)  # SQLITE_LIMIT_VARIABLE_NUMBER
        assert decisions.rows_about(connection, people) == {row[2]: 1 for row in rows}


def test_only_moments_are_kept_as_something_else() -> None:
    """A column of another such type would need the same care as a moment (`driver.as_text`).

    SQLAlchemy makes floats of what goes into a column of floats, and so does the column (above).
    """
    dialect = sqlite.dialect()
    for table in (SHARED, DECISIONS, CONTACTS, OUTCOMES, CUSTOMER_EVENTS):
        for column in table.c:
            kind = column.type.dialect_impl(dialect)
            moment = isinstance(column.type, sa.DateTime)
            written = kind.bind_processor(dialect) is not None
            assert written == (moment or isinstance(column.type, sa.Float)), column
            assert (kind.result_processor(dialect, None) is not None) == moment, column
