"""What Alembic runs around the revisions: they use the connection that the store has open."""

from __future__ import annotations

from alembic import context

from nextbest.serve.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
