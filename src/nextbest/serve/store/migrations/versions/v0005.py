"""Records are packed: numbers as bytes, and what many have in common in a table of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add a table and two columns; earlier records stay what they are, in full and as text."""
    op.create_table(
        "shared_inputs",
        sa.Column("hash", sa.String(32), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
    )
    op.add_column("decisions", sa.Column("numbers", sa.LargeBinary))
    # In SQL: Alembic adds a foreign key by itself, and SQLite takes it with its column alone.
    op.execute(
        "ALTER TABLE decisions ADD COLUMN shared VARCHAR(32) REFERENCES shared_inputs (hash)"
    )
    op.execute("UPDATE schema_version SET version = 5")
