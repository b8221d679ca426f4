"""Making a store, and telling whether this nextbest can work with the one that is there."""

from __future__ import annotations

import sqlalchemy as sa

from nextbest.errors import StoreError
from nextbest.serve.store.tables import METADATA, SCHEMA, SCHEMA_VERSION

__all__ = ["prepare"]


def prepare(connection: sa.Connection, where: str) -> None:
    """Make the tables where there are none.

    Raises
    ------
    StoreError: the store was made by another version of nextbest.
    """
    METADATA.create_all(connection)
    found = connection.execute(sa.select(sa.func.max(SCHEMA.c.version))).scalar()
    if found is None:
        connection.execute(sa.insert(SCHEMA), {"version": SCHEMA_VERSION})
    elif found > SCHEMA_VERSION:
        raise StoreError(
            where,
            "it was made by a newer nextbest",
            expected=f"schema version {SCHEMA_VERSION} or older",
            got=str(found),
            action="Upgrade nextbest, or point NEXTBEST_STORE at another store",
        )
    elif found < SCHEMA_VERSION:
        raise StoreError(
            where,
            "it was made by an earlier nextbest, before the first release",
            expected="at least schema version 2",
            got=str(found),
            action="Move it away to begin a new one, or point NEXTBEST_STORE at another store",
        )
