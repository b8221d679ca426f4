"""One database: its connections, its transactions, and its faults in our words."""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from nextbest.errors import StoreError
from nextbest.serve.store import driver
from nextbest.serve.store.checkpoints import Checkpoints
from nextbest.serve.store.faults import TooLateError
from nextbest.serve.store.held import Held
from nextbest.serve.store.rows import BACKENDS
from nextbest.serve.writer import Ways, WriterLateError

__all__ = ["Database"]

# A process of our own may be in the middle of one; more than this and something is wrong.
STATEMENT_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_SECONDS = 5
OVERWRITE_TIMEOUT_MS = 200

# Every request thread may read at once (AnyIO runs 40), beside the writer.
# What the driver was asked to keep is personal, and no error message repeats it.
POOL: dict[str, Any] = {"pool_size": 8, "max_overflow": 40, "hide_parameters": True}
# Of the driver itself: the PRAGMAs of a new connection raise what SQLAlchemy has not wrapped.
FAULTS = (SQLAlchemyError, sqlite3.Error)
# Of new files. A decision's record fits into one page, and few bytes are written for what changes
# beside it.
PAGE_BYTES = 8_192
# The writer waits for what is read of so many at once, which takes no longer than to decide.
FEW = 256
# Advisory locks are numbers, in a space of ours. There are not more of them than a server has room
# for (6,400 by default), however many customers one transaction is about.
_LOCK_SPACE = 0x6E6278
_STRIPES = 1_024
_LOCK = sa.text(
    "SELECT pg_advisory_xact_lock(:space, key) FROM unnest(CAST(:keys AS integer[])) AS key"
)


class Database:
    """Opens transactions on the database of a URL.

    Parameters
    ----------
    url: an SQLAlchemy URL of SQLite or PostgreSQL (``postgresql://`` takes psycopg).
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
                self.engine = _postgresql(parsed, busy_timeout_ms)
            self._checkpoints = Checkpoints(self.engine) if self.is_file else None
            self._held = (
                Held(self.engine, self._checkpoints.committed) if self._checkpoints else None
            )
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise StoreError(
                "store",
                "the database URL cannot be used",
                expected="an SQLite or PostgreSQL URL whose driver is installed",
                got=str(error).split("\n")[0],
                action="For PostgreSQL, `pip install 'nextbest[postgres]'`; "
                "unset NEXTBEST_STORE to use the project's own SQLite file",
            ) from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a connection to read with; a fault becomes a StoreError."""
        with (
            self.told("cannot be read"),
            self.engine.connect() as connection,
            driver.letting_go(connection),
        ):
            yield connection

    @contextmanager
    def read_about(self, names: Sequence[str] | None) -> Iterator[sa.Connection]:
        """Do the same for what every decision reads about customers or keys (None: about all)."""
        few = names is not None and len(names) <= FEW
        if few and self._held is not None:
            with self.told("cannot be read"), self._held.read() as connection:
                if connection is not None:
                    yield connection
                    return
        with self.read() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Open a transaction to write in, which is on disk when it is left; faults are raw."""
        opened = self.engine.begin() if self._held is None else self._held.transaction()
        with opened as connection:
            yield connection

    def close(self) -> None:
        """Let go of every connection."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        self.engine.dispose()

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine, which is read without waiting for anybody."""
        return self.engine.dialect.name == "sqlite"

    @property
    def moment(self) -> int | None:
        """When what is read next is read, for `untouched_since`; None where nobody can tell."""
        return None if self._held is None else self._held.moment

    def untouched_since(self, moment: int | None) -> bool:
        """Tell, in a transaction, whether nobody at all has written since; False if in doubt."""
        return self._held is not None and moment is not None and self._held.untouched_since(moment)

    def lock(self, connection: sa.Connection, names: Iterable[str]) -> None:
        """Keep every other writer away from these names until the transaction ends.

        In SQLite there is one writer at a time, whatever the names. In PostgreSQL writers of the
        same name wait for each other; all take their locks in one order, so that no two wait for
        each other.
        """
        if self.is_file:
            return
        keys = sorted({_stripe(name) for name in names})
        if keys:
            connection.execute(_LOCK, {"space": _LOCK_SPACE, "keys": keys})

    @contextmanager
    def told(self, problem: str) -> Iterator[None]:
        """Turn the database's faults into a StoreError that says what could not be done."""
        try:
            yield
        except FAULTS as error:
            raise self.fault(problem, error) from error

    def overwrite(self) -> bool:
        """Bring what was removed out of SQLite's journal too; False where somebody still reads it.

        Other databases do so in their own time, or when they are told to (``VACUUM``): False.
        """
        if not self.is_file:
            return False
        with self.told("cannot be written"):
            connection = self.engine.raw_connection()
            try:
                cursor = connection.cursor()
                # Writers wait while this waits for readers, so it must not wait for long.
                cursor.execute(f"PRAGMA busy_timeout={OVERWRITE_TIMEOUT_MS}")
                busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                cursor.close()
            finally:
                connection.invalidate()  # it has another patience than the others
        return not busy

    def ways(self) -> Ways[sa.Connection]:
        """Return what a writer has to know of this database."""
        return Ways(lock=self.lock, told=self._told, shared=_is_everybodys)

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, WriterLateError):
            return TooLateError(self.where, str(error), action="Try again")
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
            cursor.execute(f"PRAGMA page_size={PAGE_BYTES}")
            _keep_a_journal_to_write_ahead(cursor, busy_timeout_ms)
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            # What is removed is overwritten: a person who was erased is not in the file any more.
            cursor.execute("PRAGMA secure_delete=ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            own = driver.of(connection)
            if not own.in_transaction:  # or `Held` has begun one
                with driver.letting_go(connection):
                    own.execute("BEGIN").close()

        @event.listens_for(engine, "handle_error")
        def _let_go(context: sa.ExceptionContext) -> None:
            if driver.is_of_the_disk(context.original_exception):
                # What was opened on a read-only disk stays read-only when the disk is not, also
                # for connections to come, as long as one of a process is left.
                context.is_disconnect = True
                if context.execution_context is not None:  # would keep the connection open
                    context.execution_context.cursor.close()
                engine.dispose()

        return engine


def _keep_a_journal_to_write_ahead(cursor: Any, patience_ms: int) -> None:
    """Turn the write-ahead log on, also where others turn it on in the same moment.

    SQLite does not wait by itself here, whatever its ``busy_timeout``: this reads the file and
    then wants to write it, as somebody else may who waits for readers to go; so it gives up.
    """
    until = time.monotonic() + patience_ms / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _postgresql(url: sa.URL, busy_timeout_ms: int) -> sa.Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    # What durability rests on comes last, where no other option overrules it.
    options = (
        f"-c lock_timeout={busy_timeout_ms}",
        f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
        str(url.query.get("options", "")),
        "-c synchronous_commit=on",
    )
    settings: dict[str, Any] = {"options": " ".join(options)}
    if "connect_timeout" not in url.query:
        settings["connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    return sa.create_engine(url, pool_pre_ping=True, connect_args=settings, **POOL)


def _is_everybodys(error: Exception) -> bool:
    """A full disk, a lost connection or a lock would meet the next piece of work as well."""
    return isinstance(error, (OperationalError, sqlite3.OperationalError))


def _stripe(name: str) -> int:
    # The same in every process, which Python's own hash is not.
    return zlib.crc32(name.encode()) % _STRIPES
