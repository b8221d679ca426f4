"""Behaviour in real time, an audit trail, erasures, limits of keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add tables and columns; nothing that is there changes."""
    op.create_table(
        "customer_events",
        sa.Column("event_id", sa.String(128), primary_key=True),
        sa.Column("customer_id", sa.String(128), nullable=False),
        sa.Column("event_type", sa.String(64), nullable=False),
        sa.Column("event_at", sa.DateTime, nullable=False),
        sa.Column("item", sa.String(128)),
        sa.Column("category", sa.String(128)),
        sa.Column("channel", sa.String(128)),
        sa.Column("session_id", sa.String(128)),
        sa.Column("value", sa.Float(53)),
        sa.Column("received_at", sa.DateTime, nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
    )
    op.create_index("customer_events_by_customer", "customer_events", ["customer_id", "event_at"])
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
    )
    op.create_table(
        "erasures",
        sa.Column("customer_hash", sa.String(64), primary_key=True),
        sa.Column("erased_at", sa.DateTime, nullable=False),
    )
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer))
    op.execute("UPDATE schema_version SET version = 3")
