"""Whether a store's address can be reached, asked before a client that would retry for minutes."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

__all__ = ["require_reachable", "without_password"]

_PORTS: Final = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def require_reachable(uri: str) -> None:
    """Raise ``OSError`` or ``sqlite3.Error`` at once if nothing answers at this address.

    An SQLite file's folder is made if need be.
    """
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    elif parts.hostname and parts.scheme != "databricks":
        try:
            port = parts.port or _PORTS.get(parts.scheme.partition("+")[0], 80)
        except ValueError as error:
            raise OSError(str(error)) from None
        socket.create_connection((parts.hostname, port), timeout=5).close()


def without_password(uri: str) -> str:
    """The address as it may be shown in a message."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri
