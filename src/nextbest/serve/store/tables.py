"""The tables of the store, once for every database: what the migrations must arrive at."""

from __future__ import annotations

import sqlalchemy as sa

__all__ = [
    "ALEMBIC",
    "API_KEYS",
    "AUDIT",
    "CONTACTS",
    "CUSTOMER_EVENTS",
    "DECISIONS",
    "ERASURES",
    "METADATA",
    "OLDEST_VERSION",
    "OUTCOMES",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SHARED",
    "WITHOUT_OFFERS",
    "revision",
]

SCHEMA_VERSION = 5
# Earlier ones were never released, and cannot be upgraded.
OLDEST_VERSION = 2

# As text, because databases know the condition of an index by its words.
WITHOUT_OFFERS = sa.text("offers = 0")

METADATA = sa.MetaData()
SCHEMA = sa.Table("schema_version", METADATA, sa.Column("version", sa.Integer, nullable=False))
# Alembic's own note, which says the same; made here so that a new store needs no Alembic.
ALEMBIC = sa.Table(
    "alembic_version",
    METADATA,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
# What the records of many decisions have in common, under its hash; it is about nobody, and stays.
SHARED = sa.Table(
    "shared_inputs",
    METADATA,
    sa.Column("hash", sa.String(32), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
)
DECISIONS = sa.Table(
    "decisions",
    METADATA,
    sa.Column("decision_id", sa.String(64), primary_key=True),
    sa.Column("customer_id", sa.String(128), nullable=False),
    sa.Column("decided_at", sa.DateTime, nullable=False),
    sa.Column("channel", sa.String(128), nullable=False),
    sa.Column("arm", sa.String(64), nullable=False),
    # How many it chose, each a row of `contacts`; 0 also where an earlier nextbest wrote the row.
    sa.Column("offers", sa.Integer, nullable=False, server_default="0"),
    sa.Column("idempotency_key", sa.String(160), unique=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    # All of it as JSON, or with what is no text beside it (`nextbest.decide.packed`).
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("numbers", sa.LargeBinary),
    sa.Column("shared", sa.String(32), sa.ForeignKey("shared_inputs.hash")),
    # The others are found by their contacts: an index in the order of customers costs a decision
    # another page on its way to disk, and nobody asks for it but who exports or erases a person.
    sa.Index(
        "decisions_without_offers",
        "customer_id",
        sqlite_where=WITHOUT_OFFERS,
        postgresql_where=WITHOUT_OFFERS,
    ),
)
# One row for each offer that a decision chose: the contact log that caps and cool-offs read.
CONTACTS = sa.Table(
    "contacts",
    METADATA,
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
    sa.Index("contacts_by_customer", "customer_id", "contacted_at"),
    # All that `tallies` reads of contacts that nobody answered, so that it need not read the rows.
    sa.Index(
        "contacts_by_offer",
        "offer_id",
        "contacted_at",
        "window_ends_at",
        "batch",
        "propensity",
        "loss_if_ignored",
    ),
)
OUTCOMES = sa.Table(
    "outcomes",
    METADATA,
    sa.Column("outcome_id", sa.String(128), primary_key=True),
    sa.Column("decision_id", sa.String(64)),
    sa.Column("customer_id", sa.String(128), nullable=False),
    sa.Column("offer_id", sa.String(128)),
    sa.Column("outcome_type", sa.String(32), nullable=False),
    sa.Column("occurred_at", sa.DateTime, nullable=False),
    sa.Column("value", sa.Float(53)),
    sa.Column("received_at", sa.DateTime, nullable=False),
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Index("outcomes_by_customer", "customer_id", "occurred_at"),
    sa.Index("outcomes_by_decision", "decision_id"),
)
API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("scopes", sa.String(128), nullable=False),
    sa.Column("secret_hash", sa.String(64), nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("revoked_at", sa.DateTime),
    sa.Column("last_used_at", sa.DateTime),
    sa.Column("requests_per_minute", sa.Integer),
)
CUSTOMER_EVENTS = sa.Table(
    "customer_events",
    METADATA,
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
    sa.Index("customer_events_by_customer", "customer_id", "event_at"),
)
# Each entry carries the hash of the one before it, so that none can be changed or left out.
AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
)
ERASURES = sa.Table(
    "erasures",
    METADATA,
    sa.Column("customer_hash", sa.String(64), primary_key=True),
    sa.Column("erased_at", sa.DateTime, nullable=False),
)


def revision(version: int) -> str:
    """Return the name of the migration that leads to a schema version."""
    return f"{version:04}"
