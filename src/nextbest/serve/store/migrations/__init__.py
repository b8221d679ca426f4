"""How a store of an earlier version becomes one of today's, run by Alembic.

Revisions are numbered like schema versions. They add, and take away indexes at most: a process of
an earlier version that is still running goes on writing while a newer one has upgraded the store.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from nextbest.serve.store.tables import revision

__all__ = ["config", "upgrade"]


def config(connection: sa.Connection) -> Config:
    """Return Alembic's configuration of our revisions for an open connection."""
    made = Config()
    made.set_main_option("script_location", "nextbest.serve.store:migrations")
    made.attributes["connection"] = connection
    return made


def upgrade(connection: sa.Connection, version: int) -> None:
    """Bring a store of schema ``version`` (0: an empty one) up to date, in its transaction."""
    settings = config(connection)
    if version:
        # What made a store says so in `schema_version`; Alembic keeps a note of its own.
        command.stamp(settings, revision(version))
    command.upgrade(settings, "head")
