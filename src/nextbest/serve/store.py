"""What was decided and what came of it, kept durably: the only module that speaks to a database.

SQLite in WAL mode by default, any other database that SQLAlchemy knows by URL. A write is durable
when the call returns: the commit has reached the disk. Writes of one process share transactions
(``writer.py``), because the disk's flush, not the insert, is what a decision waits for.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from nextbest.errors import StoreError
from nextbest.serve.records import (
    ApiKey,
    Contacts,
    DecisionRecord,
    Outcome,
    Outcomes,
    OutcomeStatus,
    StoredDecision,
    Tally,
    naive_utc,
)
from nextbest.serve.writer import GroupWriter, WriterClosedError, WriterFullError

__all__ = ["HistoryChangedError", "Store"]

SCHEMA_VERSION = 2
BUSY_TIMEOUT_MS = 5_000
# SQLite allows 32,766 bound values in one statement; other databases fewer than 65,536.
IN_LIMIT = 10_000

T = TypeVar("T")

_METADATA = sa.MetaData()
_SCHEMA = sa.Table("schema_version", _METADATA, sa.Column("version", sa.Integer, nullable=False))
_DECISIONS = sa.Table(
    "decisions",
    _METADATA,
    sa.Column("decision_id", sa.String(64), primary_key=True),
    sa.Column("customer_id", sa.String(128), nullable=False),
    sa.Column("decided_at", sa.DateTime, nullable=False),
    sa.Column("channel", sa.String(128), nullable=False),
    sa.Column("arm", sa.String(64), nullable=False),
    sa.Column("idempotency_key", sa.String(160), unique=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Index("decisions_by_customer", "customer_id", "decided_at"),
)
# One row for each offer that a decision chose: the contact log that caps and cool-offs read.
_CONTACTS = sa.Table(
    "contacts",
    _METADATA,
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
_OUTCOMES = sa.Table(
    "outcomes",
    _METADATA,
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
_KEYS = sa.Table(
    "api_keys",
    _METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("scopes", sa.String(128), nullable=False),
    sa.Column("secret_hash", sa.String(64), nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("revoked_at", sa.DateTime),
)


class HistoryChangedError(Exception):
    """Somebody recorded something about a customer after we had read what was known."""


class Store:
    """Decisions, outcomes and API keys behind one door; safe to share between threads.

    Parameters
    ----------
    url: an SQLAlchemy database URL, e.g. ``sqlite:////srv/shop/.nextbest/store.db``.

    Raises
    ------
    StoreError: the database cannot be opened, written or read, is held by somebody else for more
        than five seconds, or was made by another version of nextbest.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = sa.make_url(url)
            self._where = "store " + self._url.render_as_string(hide_password=True)
            self._insert = _insert_for(self._url.get_backend_name())
            self._engine = self._make_engine()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise StoreError(
                "store",
                "the database URL cannot be used",
                expected="an SQLite or PostgreSQL URL whose driver is installed",
                got=str(error).split("\n")[0],
                action="Unset NEXTBEST_STORE to use the project's own SQLite file",
            ) from error
        try:
            self._create()
        except BaseException:
            self._engine.dispose()
            raise
        self._writer = GroupWriter(self._transaction)

    @classmethod
    def at(cls, path: Path) -> Store:
        """Open (or make) the SQLite store in the file ``path``."""
        url = sa.URL.create("sqlite", database=str(path.absolute()))
        return cls(url.render_as_string(hide_password=False))

    # --- decisions ---------------------------------------------------------------------------

    def record_decisions(
        self, records: Sequence[DecisionRecord], seen: Mapping[str, int] | None = None
    ) -> list[StoredDecision]:
        """Keep decisions, all or none, and return what the store now holds for each.

        Where an idempotency key was already taken the earlier decision comes back instead: its
        ``decision_id`` differs from the one offered and its ``request_hash`` tells whether the
        question was the same.

        Parameters
        ----------
        seen: number of rows (contacts and outcomes) that `history` gave for each customer. Where
            another process has added one since, nothing is kept; None does not look.

        Raises
        ------
        HistoryChangedError: decide again, with what is known now.
        """
        rows = [record.row() for record in records]

        def keep(to: sa.Connection) -> list[StoredDecision] | None:
            if seen is not None and _rows_about(to, list(seen)) != Counter(seen):
                return None
            return _keep_decisions(to, self._insert, records, rows)

        kept = self._write(keep)
        if kept is None:
            raise HistoryChangedError
        return kept

    def decision(self, decision_id: str) -> StoredDecision | None:
        """Return one stored decision, or None."""
        with self._read() as connection:
            query = sa.select(_DECISIONS).where(_DECISIONS.c.decision_id == decision_id)
            row = connection.execute(query).first()
        return None if row is None else _stored(row)

    def decisions_by_keys(self, keys: Sequence[str]) -> dict[str, StoredDecision]:
        """Return the decisions made under these idempotency keys, by key."""
        with self._read() as connection:
            return _by_key(connection, keys)

    def request_hashes(self, decision_ids: Sequence[str]) -> dict[str, str]:
        """Return, for each decision that is kept, the hash of the question that it answers."""
        query = sa.select(_DECISIONS.c.decision_id, _DECISIONS.c.request_hash)
        with self._read() as connection:
            found = _rows_in(connection, query, _DECISIONS.c.decision_id, decision_ids)
            return {row.decision_id: row.request_hash for row in found}

    def chosen(self, decision_ids: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return, for each known decision, its customer and the offers it chose by rank."""
        with self._read() as connection:
            owners = sa.select(_DECISIONS.c.decision_id, _DECISIONS.c.customer_id)
            found: dict[str, tuple[str, list[str]]] = {
                row.decision_id: (row.customer_id, [])
                for row in _rows_in(connection, owners, _DECISIONS.c.decision_id, decision_ids)
            }
            offers = sa.select(_CONTACTS.c.decision_id, _CONTACTS.c.offer_id)
            offers = offers.order_by(_CONTACTS.c.decision_id, _CONTACTS.c.rank)
            for row in _rows_in(connection, offers, _CONTACTS.c.decision_id, list(found)):
                found[row.decision_id][1].append(row.offer_id)
        return {key: (customer, tuple(ranked)) for key, (customer, ranked) in found.items()}

    def history(self, customer_ids: Sequence[str] | None) -> tuple[Contacts, Outcomes]:
        """Return past contacts and outcomes of these customers (None: of all), oldest first."""
        contacts = sa.select(
            _CONTACTS.c.customer_id,
            _CONTACTS.c.offer_id,
            _CONTACTS.c.channel,
            _CONTACTS.c.contacted_at,
            _CONTACTS.c.decision_id,
        ).order_by(_CONTACTS.c.contacted_at, _CONTACTS.c.decision_id, _CONTACTS.c.rank)
        outcomes = (
            sa.select(
                _OUTCOMES.c.customer_id,
                _OUTCOMES.c.offer_id,
                _DECISIONS.c.channel,
                _OUTCOMES.c.outcome_type,
                _OUTCOMES.c.occurred_at,
                _OUTCOMES.c.decision_id,
            )
            .outerjoin(_DECISIONS, _DECISIONS.c.decision_id == _OUTCOMES.c.decision_id)
            .order_by(_OUTCOMES.c.occurred_at, _OUTCOMES.c.outcome_id)
        )
        with self._read() as connection:
            said = list(_rows_in(connection, contacts, _CONTACTS.c.customer_id, customer_ids))
            seen = list(_rows_in(connection, outcomes, _OUTCOMES.c.customer_id, customer_ids))
        return Contacts(*_columns(said, 5)), Outcomes(*_columns(seen, 6))

    def tallies(
        self, answers: Sequence[str], at: datetime, *, without_batch: str | None = None
    ) -> dict[str, Tally]:
        """Return how each offer has done, over all customers.

        Parameters
        ----------
        answers: outcome types that count as an answer. Each contact is answered once at most,
            however often and however late it is reported. An outcome that names no decision answers
            the customer's contacts with the offer before it; its money counts for the last of them.
        at: contacts and outcomes after this moment do not count.
        without_batch: neither do contacts of this batch.
        """
        query = _tallies(answers, naive_utc(at), without_batch)
        with self._read() as connection:
            return {
                row.offer_id: Tally(
                    contacts=int(row.contacts),
                    responses=int(row.responses),
                    settled=int(row.settled),
                    settled_responses=int(row.settled_responses),
                    expected_responses=float(row.expected_responses),
                    explored=int(row.explored),
                    loss=float(row.loss),
                    loss_squared=float(row.loss_squared),
                )
                for row in connection.execute(query)
            }

    def contacts_by_offer(self, until: datetime) -> dict[str, int]:
        """Return how often each offer was made up to a moment."""
        made = _CONTACTS.c
        query = sa.select(made.offer_id, sa.func.count()).group_by(made.offer_id)
        with self._read() as connection:
            rows = connection.execute(query.where(made.contacted_at <= naive_utc(until)))
            return {offer: count for offer, count in rows}

    # --- outcomes ----------------------------------------------------------------------------

    def record_outcomes(self, outcomes: Sequence[Outcome]) -> list[OutcomeStatus]:
        """Keep outcomes once each and return the status of each, in order."""
        return self._write(lambda to: _keep_outcomes(to, self._insert, outcomes))

    def outcomes(
        self, *, customer_id: str | None = None, decision_id: str | None = None
    ) -> list[Outcome]:
        """Return the outcomes of a customer or of a decision, oldest first."""
        query = sa.select(_OUTCOMES).order_by(_OUTCOMES.c.occurred_at, _OUTCOMES.c.outcome_id)
        if customer_id is not None:
            query = query.where(_OUTCOMES.c.customer_id == customer_id)
        if decision_id is not None:
            query = query.where(_OUTCOMES.c.decision_id == decision_id)
        with self._read() as connection:
            return [
                Outcome(
                    outcome_id=row.outcome_id,
                    customer_id=row.customer_id,
                    offer_id=row.offer_id,
                    outcome_type=row.outcome_type,
                    occurred_at=row.occurred_at.replace(tzinfo=UTC),
                    value=row.value,
                    decision_id=row.decision_id,
                )
                for row in connection.execute(query)
            ]

    # --- API keys ----------------------------------------------------------------------------

    def add_key(self, key: ApiKey) -> None:
        """Keep a new API key."""
        row = {
            "key_id": key.key_id,
            "name": key.name,
            "scopes": " ".join(key.scopes),
            "secret_hash": key.secret_hash,
            "created_at": naive_utc(key.created_at),
        }
        self._write(lambda to: to.execute(sa.insert(_KEYS), row).rowcount)

    def api_keys(self, key_id: str | None = None) -> list[ApiKey]:
        """Return every API key (or the one of this id), oldest first, revoked ones included."""
        query = sa.select(_KEYS).order_by(_KEYS.c.created_at, _KEYS.c.key_id)
        if key_id is not None:
            query = query.where(_KEYS.c.key_id == key_id)
        with self._read() as connection:
            return [
                ApiKey(
                    key_id=row.key_id,
                    name=row.name,
                    scopes=tuple(row.scopes.split()),
                    secret_hash=row.secret_hash,
                    created_at=row.created_at.replace(tzinfo=UTC),
                    revoked_at=row.revoked_at.replace(tzinfo=UTC) if row.revoked_at else None,
                )
                for row in connection.execute(query)
            ]

    def revoke_key(self, key_id: str) -> bool:
        """Revoke a key; False when no key of that id was still valid."""
        change = (
            sa.update(_KEYS)
            .where(_KEYS.c.key_id == key_id, _KEYS.c.revoked_at.is_(None))
            .values(revoked_at=_now())
        )
        return self._write(lambda to: to.execute(change).rowcount) == 1

    # --- opening, reading, writing -----------------------------------------------------------

    def ping(self) -> None:
        """Raise StoreError unless the store takes a write lock and answers right now."""
        self._write(lambda to: to.execute(sa.select(_SCHEMA.c.version)).scalar())

    def close(self) -> None:
        """Finish the writes that wait, then let go of the database."""
        self._writer.close()
        self._engine.dispose()

    def _make_engine(self) -> sa.Engine:
        # Every request thread may read at once (AnyIO runs 40), beside the writer.
        if self._url.get_backend_name() != "sqlite":
            return sa.create_engine(self._url, pool_size=8, max_overflow=40, pool_pre_ping=True)
        try:
            Path(self._url.database or "").parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error("cannot be opened", error) from error
        engine = sa.create_engine(self._url, pool_size=8, max_overflow=40)

        @event.listens_for(engine, "connect")
        def _connect(connection: Any, _: object) -> None:
            # We say BEGIN ourselves (below): the driver's own guess starts transactions too late.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            # A writer takes the lock at once: upgrading a read in mid-transaction can only fail.
            write = connection.get_execution_options().get("nextbest_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _create(self) -> None:
        with self._wrapped("cannot be opened"), self._transaction() as connection:
            _METADATA.create_all(connection)
            found = connection.execute(sa.select(sa.func.max(_SCHEMA.c.version))).scalar()
            if found is None:
                connection.execute(sa.insert(_SCHEMA), {"version": SCHEMA_VERSION})
        if found is not None and found > SCHEMA_VERSION:
            raise StoreError(
                self._where,
                "it was made by a newer nextbest",
                expected=f"schema version {SCHEMA_VERSION} or older",
                got=str(found),
                action="Upgrade nextbest, or point NEXTBEST_STORE at another store",
            )
        if found is not None and found < SCHEMA_VERSION:
            raise StoreError(
                self._where,
                "it was made by an earlier nextbest, before the first release",
                expected=f"schema version {SCHEMA_VERSION}",
                got=str(found),
                action="Move it away to begin a new one, or point NEXTBEST_STORE at another store",
            )

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._wrapped("cannot be read"), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._engine.execution_options(nextbest_write=True).begin() as connection:
            yield connection

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in the writer's next transaction and return when it is on disk."""
        try:
            done = self._writer.submit(work)
        except (WriterClosedError, WriterFullError) as error:
            raise self._error("cannot be written", error) from error
        with self._wrapped("cannot be written"):
            return done.result()

    @contextmanager
    def _wrapped(self, problem: str) -> Iterator[None]:
        # The PRAGMAs of a new connection raise the driver's own errors.
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._error(problem, error) from error

    def _error(self, problem: str, error: Exception) -> StoreError:
        cause = getattr(error, "orig", None) or error
        return StoreError(
            self._where,
            problem,
            got=str(cause).split("\n")[0],
            action="Check disk space, permissions and other processes that hold it; then try again",
        )


def _insert_for(backend: str) -> Callable[[sa.Table], Any]:
    """Return what builds an insert that leaves alone the rows whose key is already there."""
    makers: dict[str, Callable[[sa.Table], Any]] = {
        "sqlite": lambda table: sqlite.insert(table).on_conflict_do_nothing(),
        "postgresql": lambda table: postgresql.insert(table).on_conflict_do_nothing(),
    }
    if backend not in makers:
        raise ArgumentError(f"no support for {backend}")
    return makers[backend]


def _now() -> datetime:
    return naive_utc(datetime.now(UTC))


def _stored(row: Any) -> StoredDecision:
    return StoredDecision(
        row.decision_id, row.customer_id, row.request_hash, json.loads(row.record)
    )


def _tallies(answers: Sequence[str], at: datetime, without: str | None) -> sa.Select[Any]:
    """One statement, so that contacts and answers are those of one moment, in every database.

    All contacts are counted as if nobody had answered, from an index alone; then come the few that
    somebody did answer, with the difference that this makes.
    """
    made = _CONTACTS.c
    counts = made.contacted_at <= at
    if without is not None:
        counts &= made.batch.is_(None) | (made.batch != without)
    settled = made.window_ends_at <= at
    tried = settled & made.loss_if_ignored.is_not(None)
    lost, earned = made.loss_if_ignored, made.loss_if_answered
    answered = _answered(answers, at)
    inside, credited = settled & (answered.c.inside == 1), tried & (answered.c.credited == 1)
    zero = sa.literal(0)
    of_contacts = (
        sa.select(
            made.offer_id.label("offer_id"),
            sa.func.count().label("contacts"),
            zero.label("responses"),
            _sum_where(settled, 1).label("settled"),
            zero.label("settled_responses"),
            _sum_where(settled, sa.func.coalesce(made.propensity, 0.0)).label("expected_responses"),
            _sum_where(tried, 1).label("explored"),
            _sum_where(tried, lost).label("loss"),
            _sum_where(tried, lost * lost).label("loss_squared"),
        )
        .where(counts)
        .group_by(made.offer_id)
    )
    same = (made.decision_id == answered.c.decision_id) & (made.rank == answered.c.rank)
    of_answers = (
        sa.select(
            made.offer_id,
            zero,
            sa.func.count(),
            zero,
            _sum_where(inside, 1),
            _sum_where(inside & made.propensity.is_(None), 1.0),
            zero,
            _sum_where(credited, earned - lost),
            _sum_where(credited, earned * earned - lost * lost),
        )
        .select_from(sa.join(answered, _CONTACTS, same))
        .where(counts)
        .group_by(made.offer_id)
    )
    parts = sa.union_all(of_contacts, of_answers).subquery()
    totals = [sa.func.sum(column).label(column.name) for column in list(parts.c)[1:]]
    query = sa.select(parts.c.offer_id, *totals).group_by(parts.c.offer_id)
    return query.order_by(parts.c.offer_id)


def _sum_where(condition: sa.ColumnElement[bool], value: Any) -> sa.ColumnElement[Any]:
    return sa.func.sum(sa.case((condition, value), else_=0))


def _alike(one: sa.ColumnElement[Any], other: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Equality that no index is used for: contacts of one offer are nearly all there are."""
    return sa.case((one == other, 1), else_=0) == 1


def _answered(answers: Sequence[str], at: datetime) -> sa.Subquery:
    """Contacts with an answer, once each: whether in time, and whether its money is theirs."""
    seen, made, later = _OUTCOMES.c, _CONTACTS.c, _CONTACTS.alias("later").c
    in_time = sa.case((seen.occurred_at <= made.window_ends_at, 1), else_=0)
    replaced = (
        sa.select(sa.literal(1))
        .where(later.customer_id == made.customer_id, _alike(later.offer_id, made.offer_id))
        .where(later.contacted_at <= seen.occurred_at)
        .where(
            (later.contacted_at > made.contacted_at)
            | ((later.contacted_at == made.contacted_at) & (later.decision_id > made.decision_id))
        )
        .exists()
    )
    about = (seen.customer_id == made.customer_id) & _alike(seen.offer_id, made.offer_id)
    of_decision = about & (seen.decision_id == made.decision_id)
    of_nothing = about & seen.decision_id.is_(None) & (seen.occurred_at >= made.contacted_at)
    found = [
        sa.select(
            made.decision_id.label("decision_id"),
            made.rank.label("rank"),
            in_time.label("inside"),
            credited.label("credited"),
        )
        .select_from(sa.outerjoin(_OUTCOMES, _CONTACTS, told))
        .where(seen.outcome_type.in_(answers), seen.occurred_at <= at)
        for told, credited in (
            (of_decision, in_time),
            (of_nothing, sa.case((replaced, 0), else_=in_time)),
        )
    ]
    # Joined from the left, or a database without statistics reads all contacts to find the answers;
    # what answers no contact drops out where the contact is looked up again.
    each = sa.union_all(*found).subquery()
    return (
        sa.select(
            each.c.decision_id,
            each.c.rank,
            sa.func.max(each.c.inside).label("inside"),
            sa.func.max(each.c.credited).label("credited"),
        )
        .group_by(each.c.decision_id, each.c.rank)
        .subquery()
    )


def _by_key(connection: sa.Connection, keys: Sequence[str]) -> dict[str, StoredDecision]:
    found = _rows_in(connection, sa.select(_DECISIONS), _DECISIONS.c.idempotency_key, keys)
    return {row.idempotency_key: _stored(row) for row in found}


def _rows_in(
    connection: sa.Connection,
    query: sa.Select[Any],
    column: sa.ColumnElement[Any],
    values: Sequence[str] | None,
) -> Iterator[Any]:
    """Yield the rows whose column is among the values, in portions a database accepts."""
    if values is None:
        yield from connection.execute(query)
        return
    for start in range(0, len(values), IN_LIMIT):
        yield from connection.execute(query.where(column.in_(values[start : start + IN_LIMIT])))


def _columns(rows: Sequence[Any], width: int) -> tuple[tuple[Any, ...], ...]:
    return tuple(zip(*rows, strict=True)) if rows else ((),) * width


def _rows_about(connection: sa.Connection, customer_ids: Sequence[str]) -> Counter[str]:
    """Return how many contacts and outcomes there are of each customer.

    Inside a write transaction this stays true until it commits: SQLite has one writer at a time.
    """
    rows: Counter[str] = Counter()
    for table in (_CONTACTS, _OUTCOMES):
        column = table.c.customer_id
        query = sa.select(column, sa.func.count().label("n")).group_by(column)
        for row in _rows_in(connection, query, column, customer_ids):
            rows[row.customer_id] += row.n
    return rows


def _keep_decisions(
    connection: sa.Connection,
    insert: Callable[[sa.Table], Any],
    records: Sequence[DecisionRecord],
    rows: Sequence[dict[str, Any]],
) -> list[StoredDecision]:
    if not records:
        return []
    connection.execute(insert(_DECISIONS), rows)
    # Read back who holds each key: another request, or another server, may have been first.
    keys = [record.idempotency_key for record in records if record.idempotency_key is not None]
    holders = _by_key(connection, keys) if keys else {}
    kept = [
        holders.get(record.idempotency_key or "")
        or StoredDecision(
            record.decision_id, record.customer_id, record.request_hash, record.record
        )
        for record in records
    ]
    contacts = [
        row
        for record, holder in zip(records, kept, strict=True)
        if holder.decision_id == record.decision_id
        for row in record.contact_rows()
    ]
    if contacts:
        connection.execute(insert(_CONTACTS), contacts)
    return kept


def _keep_outcomes(
    connection: sa.Connection, insert: Callable[[sa.Table], Any], outcomes: Sequence[Outcome]
) -> list[OutcomeStatus]:
    if not outcomes:
        return []
    received_at = _now()
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.outcome_id, {**outcome.row(), "received_at": received_at})
    write = insert(_OUTCOMES).returning(_OUTCOMES.c.outcome_id)
    new = set(connection.execute(write, list(rows.values())).scalars())
    query = sa.select(_OUTCOMES.c.outcome_id, _OUTCOMES.c.content_hash)
    kept = {
        row.outcome_id: row.content_hash
        for row in _rows_in(connection, query, _OUTCOMES.c.outcome_id, list(rows))
    }
    statuses: list[OutcomeStatus] = []
    for outcome in outcomes:
        if kept[outcome.outcome_id] != outcome.content_hash:
            statuses.append("conflict")
        elif outcome.outcome_id in new:
            statuses.append("stored")
            new.discard(outcome.outcome_id)
        else:
            statuses.append("duplicate")
    return statuses
