"""Decisions say how many offers they chose, and only those without any are listed by customer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add a column and exchange an index; earlier rows count as without offers, and are listed."""
    op.add_column("decisions", sa.Column("offers", sa.Integer, nullable=False, server_default="0"))
    without = sa.text("offers = 0")
    op.create_index(
        "decisions_without_offers",
        "decisions",
        ["customer_id"],
        sqlite_where=without,
        postgresql_where=without,
    )
    op.drop_index("decisions_by_customer", "decisions")
    op.execute("UPDATE schema_version SET version = 4")
