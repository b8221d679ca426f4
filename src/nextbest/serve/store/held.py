"""One connection to an SQLite file that is held: it stays warm, and tells whether others wrote.

To check a connection out of the pool, begin, commit and give it back takes SQLAlchemy longer than
SQLite needs to write a decision. And each connection has a cache of its own, which SQLite empties
when another one has written: whoever reads where this process writes finds the pages there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import event

from nextbest.serve.store import driver
from nextbest.serve.store.checkpoints import BACKSTOP_PAGES

__all__ = ["Held"]

PRAGMAS = (
    # In KiB: a decision touches indexes anywhere, and SQLite's own 2 MB of them are soon too few.
    "PRAGMA cache_size=-16384",
    # What SQLite notes of each page to undo one statement is small, and a file of its own is slow.
    "PRAGMA temp_store=MEMORY",
    # Whoever commits is not to wait for `Checkpoints`' work, unless that cannot keep up.
    f"PRAGMA wal_autocheckpoint={BACKSTOP_PAGES}",
)


class Held:
    """Lends one connection to one thread at a time; after any fault the next gets a new one.

    Parameters
    ----------
    engine: where connections come from; when it is disposed of, ours goes too.
    committed: told of each transaction how many rows it has changed.
    """

    def __init__(self, engine: sa.Engine, committed: Callable[[int], None]) -> None:
        self._engine = engine
        self._committed = committed
        self._lent = threading.Lock()
        self._connection: sa.Connection | None = None
        self._disposed = False
        self._version: int | None = None
        self._moment = 0
        self._changes = 0
        event.listen(engine, "engine_disposed", self._dispose)

    @property
    def moment(self) -> int:
        """A number that changes with everything that is committed to the file.

        That others have committed something it tells when our next transaction has begun.
        """
        return self._moment

    def untouched_since(self, moment: int) -> bool:
        """Tell, in `transaction`, whether what was read after ``moment`` is all that there is.

        Nobody has committed since, neither here nor in another process, and nothing was written in
        this transaction yet.
        """
        connection = self._connection
        if connection is None or moment != self._moment:
            return False
        return driver.of(connection).total_changes == self._changes

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Open a transaction to write in, which is on disk when it is left."""
        with self._lent, self._kept() as connection:
            own = driver.of(connection)
            own.execute("BEGIN IMMEDIATE")
            # From here on nobody else can write.
            ((version,),) = own.execute("PRAGMA data_version").fetchall()
            if version != self._version:
                self._version = version
                self._moment += 1
            self._changes = own.total_changes
            yield connection
            _end(connection)
            self._moment += 1
            self._committed(own.total_changes - self._changes)

    @contextmanager
    def read(self) -> Iterator[sa.Connection | None]:
        """Lend the connection to read with, all of one moment; None while somebody else has it.

        Whoever writes waits for it to be given back.
        """
        if not self._lent.acquire(blocking=False):
            yield None
            return
        try:
            with self._kept() as connection:
                driver.of(connection).execute("BEGIN")
                yield connection
                _end(connection)
        finally:
            self._lent.release()

    @contextmanager
    def _kept(self) -> Iterator[sa.Connection]:
        try:
            if self._disposed:
                self._let_go()
            if self._connection is None:
                self._disposed = False
                self._connection = self._engine.connect()
                for pragma in PRAGMAS:
                    driver.of(self._connection).execute(pragma)
            with driver.letting_go(self._connection):
                yield self._connection
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        connection, self._connection, self._version = self._connection, None, None
        if connection is not None:
            connection.invalidate()  # closes the file, which a pool would keep
            connection.close()

    def _dispose(self, engine: sa.Engine) -> None:
        self._disposed = True
        if self._lent.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._lent.release()


def _end(connection: sa.Connection) -> None:
    """Commit what has begun with the driver, and what SQLAlchemy has begun in it."""
    if connection.in_transaction():
        connection.commit()
    own = driver.of(connection)
    if own.in_transaction:
        own.execute("COMMIT")
