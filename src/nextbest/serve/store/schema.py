"""Making a store, and bringing one that an earlier nextbest made up to date."""

from __future__ import annotations

import sqlalchemy as sa

from nextbest.errors import StoreError
from nextbest.serve.store.tables import (
    ALEMBIC,
    METADATA,
    OLDEST_VERSION,
    SCHEMA,
    SCHEMA_VERSION,
    revision,
)

__all__ = ["prepare", "touch"]


def prepare(connection: sa.Connection, where: str) -> int | None:
    """Make the tables where there are none, and what is missing in an earlier store.

    Whoever calls holds the store's lock, so that of processes that start at once one does it and
    the others find it done. All of it happens in the connection's transaction, or nothing.

    Returns
    -------
    int or None: the version that an upgraded store had; None where nothing had to be upgraded.

    Raises
    ------
    StoreError: the store was made by a newer nextbest, or by one from before the first release.
    """
    found = _version(connection)
    if found is None:
        METADATA.create_all(connection)
        connection.execute(sa.insert(SCHEMA), {"version": SCHEMA_VERSION})
        connection.execute(sa.insert(ALEMBIC), {"version_num": revision(SCHEMA_VERSION)})
    elif found > SCHEMA_VERSION:
        raise StoreError(
            where,
            "it was made by a newer nextbest",
            expected=f"schema version {SCHEMA_VERSION} or older",
            got=str(found),
            action="Upgrade nextbest, or point NEXTBEST_STORE at another store",
        )
    elif found < OLDEST_VERSION:
        raise StoreError(
            where,
            "it was made by an earlier nextbest, before the first release",
            expected=f"at least schema version {OLDEST_VERSION}",
            got=str(found),
            action="Move it away to begin a new one, or point NEXTBEST_STORE at another store",
        )
    elif found < SCHEMA_VERSION:
        # Alembic is imported where there is something to do: a server starts quicker without.
        from nextbest.serve.store.migrations import upgrade

        upgrade(connection, found)
        return found
    return None


def touch(connection: sa.Connection) -> None:
    """Write something and change nothing: a lock alone would be given on a full disk, too."""
    # There and back, because SQLite writes no page that an update leaves as it was.
    for step in (1, -1):
        connection.execute(sa.update(SCHEMA).values(version=SCHEMA.c.version + step))


def _version(connection: sa.Connection) -> int | None:
    if not sa.inspect(connection).has_table(SCHEMA.name):
        return None
    return connection.execute(sa.select(sa.func.max(SCHEMA.c.version))).scalar()
