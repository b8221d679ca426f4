"""What was decided and what came of it, kept durably: the only package that speaks to a database.

SQLite in WAL mode by default, PostgreSQL by URL. A write is durable when the call returns: the
commit has reached the disk. Writes of one process share transactions (``writer.py``), because the
disk's flush, not the insert, is what a decision waits for.

Each concern has a module of functions over a connection; `Store` is the door to all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from nextbest.serve.audit import AuditEntry, Change
from nextbest.serve.records import (
    ApiKey,
    Contacts,
    CustomerEvent,
    DecisionRecord,
    Erased,
    Events,
    LoggedDecision,
    Outcome,
    Outcomes,
    Person,
    ReportStatus,
    Seen,
    StoredDecision,
    Tally,
)
from nextbest.serve.store import (
    audit,
    decisions,
    erasure,
    events,
    history,
    keys,
    outcomes,
    parts,
    schema,
    tallies,
)
from nextbest.serve.store.database import Database
from nextbest.serve.store.faults import HistoryChangedError, TooLateError, TooManyError
from nextbest.serve.store.pending import Pending
from nextbest.serve.store.tables import SCHEMA, SCHEMA_VERSION
from nextbest.serve.telemetry import log
from nextbest.serve.writer import GroupWriter, Refused, WriterClosedError, WriterFullError

__all__ = ["HistoryChangedError", "Store", "TooLateError", "TooManyError"]

BUSY_TIMEOUT_MS = 5_000

T = TypeVar("T")


class Store:
    """Decisions, outcomes and API keys behind one door; safe to share between threads.

    Parameters
    ----------
    url: an SQLAlchemy database URL, e.g. ``sqlite:////srv/shop/.nextbest/store.db`` or
        ``postgresql://nextbest@db/decisions``. A store of an earlier version is upgraded.
    queued: decisions are answered when they are queued to be written, before they are on disk. A
        process that dies loses what waits. Within one process caps and idempotency keys hold as
        ever: who reads about a customer waits for what is being written. Two processes that decide
        for one customer in the same moment do not see each other.

    Raises
    ------
    StoreError: the database cannot be opened, written or read, is held by somebody else for more
        than five seconds, or was made by another version of nextbest.
    """

    def __init__(self, url: str, *, queued: bool = False) -> None:
        self._database = Database(url, BUSY_TIMEOUT_MS)
        self._engine = self._database.engine
        try:
            with (
                self._database.told("cannot be opened"),
                self._database.transaction() as connection,
            ):
                self._database.lock(connection, [SCHEMA.name])
                upgraded = schema.prepare(connection, self._database.where)
        except BaseException:
            self._database.close()
            raise
        if upgraded is not None:
            log("store upgraded", schema_before=upgraded, schema_now=SCHEMA_VERSION)
        self._writer = GroupWriter(self._database.transaction, self._database.ways())
        self._pending = Pending()
        self._queued = queued

    @classmethod
    def at(cls, path: Path, *, queued: bool = False) -> Store:
        """Open (or make) the SQLite store in the file ``path``."""
        url = sa.URL.create("sqlite", database=str(path.absolute()))
        return cls(url.render_as_string(hide_password=False), queued=queued)

    @property
    def waiting(self) -> int:
        """About how many writes wait for their turn at the disk."""
        return self._writer.waiting

    @property
    def lost(self) -> int:
        """How many decisions were answered and then not kept; 0 where nothing is queued."""
        return self._pending.lost

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine, which is read without waiting for anybody."""
        return self._database.is_file

    # --- decisions ---------------------------------------------------------------------------

    def record_decisions(
        self,
        records: Sequence[DecisionRecord],
        seen: Seen | None = None,
        until: float | None = None,
    ) -> list[StoredDecision]:
        """Keep decisions, all or none, and return what the store now holds for each.

        Where an idempotency key was already taken the earlier decision comes back instead: its
        ``decision_id`` differs from the one offered and its ``request_hash`` tells whether the
        question was the same.

        Parameters
        ----------
        seen: what `past` gave. Where somebody has added a row since, nothing is kept.
        until: by `time.monotonic`; what has not begun to be written by then is not kept.

        Raises
        ------
        HistoryChangedError: decide again, with what is known now.
        TooLateError: nothing was kept.
        """
        return self.submit_decisions(records, seen, until).result()

    def submit_decisions(
        self,
        records: Sequence[DecisionRecord],
        seen: Seen | None = None,
        until: float | None = None,
    ) -> Future[list[StoredDecision]]:
        """Hand decisions in without waiting: the future holds what `record_decisions` returns.

        It resolves, on the writer's thread, when the decisions are on disk, or fails with the
        error that `record_decisions` raises. Where decisions are queued it is resolved already.

        Raises
        ------
        TooManyError: too many writes wait.
        StoreError: the store is closed.
        """
        names = decisions.names_of(records)
        keys = [record.idempotency_key for record in records if record.idempotency_key is not None]
        if not self._queued:
            return self._submit(self._keeper(records, seen), names, until)
        with self._pending.changing:
            if not self._pending.takes(keys):
                kept = self._submit(self._keeper(records, seen), names, until)
                kept.add_done_callback(self._tell_waited)
                return kept
            # It is answered: it was made, whatever other processes have done meanwhile.
            write = self._submit(self._keeper(records, None), names)
            self._pending.add([*names, *(record.decision_id for record in records)], write)
        write.add_done_callback(lambda ended: self._tell_queued(records, ended))
        answered: Future[list[StoredDecision]] = Future()
        answered.set_result([decisions.as_stored(record) for record in records])
        return answered

    def decision(self, decision_id: str) -> StoredDecision | None:
        """Return one stored decision, or None."""
        self._pending.wait([decision_id])
        with self._database.read() as connection:
            return decisions.find(connection, decision_id)

    def decisions_by_keys(self, keys: Sequence[str]) -> dict[str, StoredDecision]:
        """Return the decisions made under these idempotency keys, by key."""
        self._pending.wait(keys)
        with self._database.read_about(keys) as connection:
            return decisions.by_keys(connection, keys)

    def request_hashes(self, decision_ids: Sequence[str]) -> dict[str, str]:
        """Return, for each decision that is kept, the hash of the question that it answers."""
        self._pending.wait(decision_ids)
        with self._database.read() as connection:
            return decisions.request_hashes(connection, decision_ids)

    def chosen(self, decision_ids: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return, for each known decision, its customer and the offers it chose by rank."""
        self._pending.wait(decision_ids)
        with self._database.read() as connection:
            return decisions.chosen(connection, decision_ids)

    def decided_at(self, decision_ids: Sequence[str]) -> dict[str, datetime]:
        """Return, for each known decision, when it was made (aware UTC)."""
        self._pending.wait(decision_ids)
        with self._database.read() as connection:
            return decisions.decided_at(connection, decision_ids)

    def history(self, customer_ids: Sequence[str] | None) -> tuple[Contacts, Outcomes]:
        """Return past contacts and outcomes of these customers (None: of all), oldest first."""
        self._pending.wait(customer_ids)
        with self._database.read() as connection:
            return history.history(connection, customer_ids)

    def past(
        self, customer_ids: Sequence[str] | None, events_since: datetime | None
    ) -> tuple[Contacts, Outcomes, Events, int | None]:
        """Return `history`, events since a moment (None: none), and when it was read (`Seen`)."""
        self._pending.wait(customer_ids)
        moment = self._database.moment
        with self._database.read_about(customer_ids) as connection:
            told = history.history(connection, customer_ids)
            if events_since is None:
                return *told, Events(), moment
            return *told, events.since(connection, customer_ids, events_since), moment

    def tallies(
        self,
        answers: Sequence[str],
        at: datetime,
        *,
        without_batch: str | None = None,
        since: datetime | None = None,
    ) -> dict[str, Tally]:
        """Return how each offer has done, over all customers.

        Parameters
        ----------
        answers: outcome types that count as an answer. Each contact is answered once at most,
            however often and however late it is reported. An outcome that names no decision answers
            the customer's contacts with the offer before it; its money counts for the last of them.
        at: contacts and outcomes after this moment do not count.
        without_batch: neither do contacts of this batch.
        since: neither do contacts before this moment.
        """
        with self._database.read() as connection:
            return tallies.tallies(connection, answers, at, without_batch, since)

    def contacts_by_offer(self, until: datetime) -> dict[str, int]:
        """Return how often each offer was made up to a moment."""
        with self._database.read() as connection:
            return tallies.contacts_by_offer(connection, until)

    # --- the log, part by part ---------------------------------------------------------------

    def log_span(self) -> tuple[int, datetime | None, datetime | None]:
        """Return how many decisions there are, and the first and last moment of the log."""
        with self._database.read() as connection:
            return parts.span(connection)

    def decision_parts(
        self, size: int, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[list[LoggedDecision]]:
        """Yield all decisions from one moment to before another (naive UTC), so many at a time.

        Each part is read by itself, so that a long reading holds nobody up. Decisions made while
        it lasts may or may not be among them.
        """
        last = ""
        while True:
            with self._database.read() as connection:
                part = parts.decisions_after(connection, last, size, since, until)
            if not part:
                return
            yield part
            last = part[-1].decision_id

    def outcome_parts(self, size: int) -> Iterator[list[Outcome]]:
        """Yield all outcomes, so many at a time; see `decision_parts`."""
        last = ""
        while True:
            with self._database.read() as connection:
                part = parts.outcomes_after(connection, last, size)
            if not part:
                return
            yield part
            last = part[-1].outcome_id

    # --- outcomes ----------------------------------------------------------------------------

    def record_outcomes(self, reports: Sequence[Outcome]) -> list[ReportStatus]:
        """Keep outcomes once each and return the status of each, in order."""
        customers = [one.customer_id for one in reports]
        return self._submit(lambda to: outcomes.keep(to, reports), customers).result()

    def outcomes(
        self, *, customer_id: str | None = None, decision_id: str | None = None
    ) -> list[Outcome]:
        """Return the outcomes of a customer or of a decision, oldest first."""
        with self._database.read() as connection:
            return outcomes.find(connection, customer_id, decision_id)

    # --- events ------------------------------------------------------------------------------

    def record_events(self, reports: Sequence[CustomerEvent]) -> list[ReportStatus]:
        """Keep events once each and return the status of each, in order."""
        return self._write(lambda to: events.keep(to, reports))

    # --- API keys ----------------------------------------------------------------------------

    def add_key(self, key: ApiKey, change: Change) -> None:
        """Keep a new API key, and who made it."""

        def keep(to: sa.Connection) -> None:
            audit.append(to, change)
            keys.add(to, key)

        self._note(keep)

    def api_keys(self, key_id: str | None = None) -> list[ApiKey]:
        """Return every API key (or the one of this id), oldest first, revoked ones included."""
        with self._database.read() as connection:
            return keys.find(connection, key_id)

    def revoke_key(self, key_id: str, change: Change) -> bool:
        """Revoke a key and keep who did; False when no key of that id was still valid."""

        def revoke(to: sa.Connection) -> bool:
            revoked = keys.revoke(to, key_id)
            if revoked:
                audit.append(to, change)
            return revoked

        return self._note(revoke)

    def note_key_use(self, used: Mapping[str, datetime]) -> None:
        """Keep when keys were last used, by key id."""
        self._write(lambda to: keys.note_use(to, used))

    # --- audit trail -------------------------------------------------------------------------

    def audit(self, change: Change) -> AuditEntry:
        """Add an entry to the audit trail."""
        return self._note(lambda to: audit.append(to, change))

    def audit_if_new(self, change: Change) -> AuditEntry | None:
        """The same, unless the last entry of this action and subject has this very detail."""
        return self._note(lambda to: audit.append_if_new(to, change))

    def audit_entries(self) -> list[AuditEntry]:
        """Return the whole audit trail by number."""
        with self._database.read() as connection:
            return list(audit.entries(connection))

    # --- a person ----------------------------------------------------------------------------

    def person(self, customer_id: str) -> Person:
        """Return every row about a customer."""
        self._pending.wait([customer_id])
        with self._database.read() as connection:
            return erasure.person(connection, customer_id)

    def erase(self, customer_id: str, change: Change) -> tuple[dict[str, int], AuditEntry, bool]:
        """Remove every row about a customer, and from now on count the customer as erased.

        Returns how many rows there were by kind, the entry of the audit trail (``change`` with
        these numbers), and whether the bytes are gone from the file (`Database.overwrite`).
        """

        def remove(to: sa.Connection) -> tuple[dict[str, int], AuditEntry]:
            removed = erasure.erase(to, customer_id)
            return removed, audit.append(to, replace(change, detail={**change.detail, **removed}))

        removed, entry = self._note(remove, customer_id)
        return removed, entry, self.overwrite()

    def overwrite(self) -> bool:
        """Have what was removed gone from the file, too; False where that is not possible now."""
        return self._database.overwrite()

    def erased(self) -> Erased:
        """Return who was erased and may still be in a bundle."""
        with self._database.read() as connection:
            return erasure.erased(connection)

    def erased_decision(self, decision_id: str) -> datetime | None:
        """Return when a decision was erased with its customer, or None."""
        with self._database.read() as connection:
            return erasure.erased_decision(connection, decision_id)

    def lift_erasures(self, hashes: Collection[str]) -> None:
        """Forget erased people whom no bundle holds any more."""
        self._write(lambda to: erasure.lift(to, hashes))

    # --- all of them -------------------------------------------------------------------------

    def ping(self) -> None:
        """Raise StoreError unless the store takes a write to disk right now."""
        self._write(schema.touch)

    def close(self) -> None:
        """Finish the writes that wait, then let go of the database."""
        self._writer.close()
        self._database.close()

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in the writer's next transaction and return when it is on disk."""
        return self._submit(work).result()

    def _note(self, work: Callable[[sa.Connection], T], *names: str) -> T:
        """The same for work that adds to the audit trail, beside others' work on ``names``."""
        return self._submit(work, [audit.TRAIL, *names]).result()

    def _submit(
        self,
        work: Callable[[sa.Connection], T | Refused],
        names: Sequence[str] = (),
        until: float | None = None,
    ) -> Future[T]:
        try:
            return self._writer.submit(work, names, until)
        except WriterFullError as error:
            raise TooManyError(self._database.where, str(error), action="Try again") from error
        except WriterClosedError as error:
            raise self._database.fault("cannot be written", error) from error

    def _keeper(
        self, records: Sequence[DecisionRecord], seen: Seen | None
    ) -> Callable[[sa.Connection], list[StoredDecision] | Refused]:
        return decisions.keeper(records, seen, self._database.untouched_since)

    def _tell_waited(self, ended: Future[list[StoredDecision]]) -> None:
        if ended.exception() is None:
            self._pending.ended(lost=0, sound=True)

    def _tell_queued(
        self, records: Sequence[DecisionRecord], ended: Future[list[StoredDecision]]
    ) -> None:
        """Say what became of decisions that were answered before."""
        error = ended.exception()
        if error is None:
            pairs = zip(records, ended.result(), strict=True)
            lost = [
                mine.decision_id for mine, kept in pairs if mine.decision_id != kept.decision_id
            ]
        else:
            lost = [record.decision_id for record in records]
        self._pending.ended(lost=len(lost), sound=error is None)
        if lost:
            why = "another process had used the idempotency key" if error is None else str(error)
            log("decisions lost", level=logging.ERROR, decision_ids=lost, error=why)
