"""Brings what was committed from SQLite's write-ahead log into its file, beside the writer.

SQLite by itself does so in the commit that fills the log: whoever waits for that one waits for the
pages of all since the last time, too. Here a thread of its own does it, a little at a time, while
nobody waits: committed is committed, whether it is read from the log or from the file.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["BACKSTOP_PAGES", "Checkpoints"]

# After so many rows. To write more at once would keep the disk from the commits meanwhile.
ROWS = 256
# The log starts anew where all of it is in the file, and nobody commits in between: not so often.
ATTEMPTS = 3
BACKSTOP_PAGES = 4_096
"""A log as long as this is brought into the file by the commit that made it so."""


class Checkpoints:
    """A thread that waits for enough to be committed.

    Parameters
    ----------
    engine: where its connections come from, one each time: they close with the others.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._rows = 0
        self._due = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="store-checkpoints", daemon=True)
        self._thread.start()

    def committed(self, rows: int) -> None:
        """Take note of rows that a commit has changed, by one thread at a time; never waits."""
        self._rows += rows
        if self._rows >= ROWS:
            self._rows = 0
            self._due.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._due.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._closed:
                return
            # The next commit meets the same disk, and says so.
            with suppress(SQLAlchemyError, sqlite3.Error):
                self._write()

    def _write(self) -> None:
        connection = self._engine.raw_connection()
        try:
            cursor, before = connection.cursor(), None
            for _ in range(ATTEMPTS):
                row = cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if row == before:  # nobody has committed since
                    return
                before = row
        finally:
            connection.invalidate()
