"""One database: its connections, its transactions, and its faults in our words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from nextbest.errors import StoreError
from nextbest.serve.store.rows import BACKENDS

__all__ = ["Database"]

# Every request thread may read at once (AnyIO runs 40), beside the writer.
POOL = {"pool_size": 8, "max_overflow": 40}
# Of the driver itself: the PRAGMAs of a new connection raise what SQLAlchemy has not wrapped.
FAULTS = (SQLAlchemyError, sqlite3.Error)


class Database:
    """Opens transactions on the database of a URL.

    Parameters
    ----------
    url: an SQLAlchemy URL of SQLite or PostgreSQL.
    busy_timeout_ms: how long to wait for somebody else's lock.

    Raises
    ------
    StoreError: the URL cannot be used, or its folder cannot be made.
    """

    def __init__(self, url: str, busy_timeout_ms: int) -> None:
        try:
            parsed = sa.make_url(url)
            self.where = "store " + parsed.render_as_string(hide_password=True)
            if parsed.get_backend_name() not in BACKENDS:
                raise ArgumentError(f"no support for {parsed.get_backend_name()}")
            if parsed.get_backend_name() == "sqlite":
                self.engine = self._sqlite(parsed, busy_timeout_ms)
            else:
                self.engine = sa.create_engine(parsed, pool_pre_ping=True, **POOL)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise StoreError(
                "store",
                "the database URL cannot be used",
                expected="an SQLite or PostgreSQL URL whose driver is installed",
                got=str(error).split("\n")[0],
                action="Unset NEXTBEST_STORE to use the project's own SQLite file",
            ) from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a connection to read with; a fault becomes a StoreError."""
        with self.told("cannot be read"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Open a transaction to write in, which is on disk when it is left; faults are raw."""
        with self.engine.execution_options(nextbest_write=True).begin() as connection:
            yield connection

    @contextmanager
    def told(self, problem: str) -> Iterator[None]:
        """Turn the database's faults into a StoreError that says what could not be done."""
        try:
            yield
        except FAULTS as error:
            raise self.fault(problem, error) from error

    def write_fault(self, error: Exception) -> Exception:
        """Return a database's fault in writing as a StoreError, and any other as it is."""
        return self.fault("cannot be written", error) if isinstance(error, FAULTS) else error

    def fault(self, problem: str, error: BaseException) -> StoreError:
        """Return the StoreError that tells of ``error``."""
        cause = getattr(error, "orig", None) or error
        return StoreError(
            self.where,
            problem,
            got=str(cause).split("\n")[0],
            action="Check disk space, permissions and other processes that hold it; then try again",
        )

    def _sqlite(self, url: sa.URL, busy_timeout_ms: int) -> sa.Engine:
        try:
            Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.fault("cannot be opened", error) from error
        engine = sa.create_engine(url, **POOL)

        @event.listens_for(engine, "connect")
        def _connect(connection: Any, _: object) -> None:
            # We say BEGIN ourselves (below): the driver's own guess starts transactions too late.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={busy_timeout_ms}")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            # A writer takes the lock at once: upgrading a read in mid-transaction can only fail.
            write = connection.get_execution_options().get("nextbest_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine
