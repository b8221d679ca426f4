"""The first version that a store may have: decisions, contacts, outcomes, API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table("schema_version", sa.Column("version", sa.Integer, nullable=False))
    op.execute("INSERT INTO schema_version (version) VALUES (2)")
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.String(64), primary_key=True),
        sa.Column("customer_id", sa.String(128), nullable=False),
        sa.Column("decided_at", sa.DateTime, nullable=False),
        sa.Column("channel", sa.String(128), nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.String(160), unique=True),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("decisions_by_customer", "decisions", ["customer_id", "decided_at"])
    op.create_table(
        "contacts",
        sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.decision_id")),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("customer_id", sa.String(128), nullable=False),
        sa.Column("offer_id", sa.String(128), nullable=False),
        sa.Column("channel", sa.String(128), nullable=False),
        sa.Column("contacted_at", sa.DateTime, nullable=False),
        sa.Column("batch", sa.String(64)),
        sa.Column("propensity", sa.Float(53)),
        sa.Column("window_ends_at", sa.DateTime),
        sa.Column("loss_if_ignored", sa.Float(53)),
        sa.Column("loss_if_answered", sa.Float(53)),
        sa.PrimaryKeyConstraint("decision_id", "rank"),
    )
    op.create_index("contacts_by_customer", "contacts", ["customer_id", "contacted_at"])
    op.create_index(
        "contacts_by_offer",
        "contacts",
        [
            "offer_id",
            "contacted_at",
            "window_ends_at",
            "batch",
            "propensity",
            "loss_if_ignored",
        ],
    )
    op.create_table(
        "outcomes",
        sa.Column("outcome_id", sa.String(128), primary_key=True),
        sa.Column("decision_id", sa.String(64)),
        sa.Column("customer_id", sa.String(128), nullable=False),
        sa.Column("offer_id", sa.String(128)),
        sa.Column("outcome_type", sa.String(32), nullable=False),
        sa.Column("occurred_at", sa.DateTime, nullable=False),
        sa.Column("value", sa.Float(53)),
        sa.Column("received_at", sa.DateTime, nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
    )
    op.create_index("outcomes_by_customer", "outcomes", ["customer_id", "occurred_at"])
    op.create_index("outcomes_by_decision", "outcomes", ["decision_id"])
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("scopes", sa.String(128), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("revoked_at", sa.DateTime),
    )
