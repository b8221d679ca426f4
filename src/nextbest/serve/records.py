"""What the store keeps, as plain values: decisions, outcomes, events, contacts, API keys."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec

from nextbest.decide.packed import Shared, unpacked
from nextbest.errors import DataError

__all__ = [
    "ApiKey",
    "Contacts",
    "CustomerEvent",
    "DecisionRecord",
    "Erased",
    "Events",
    "Kept",
    "LoggedContact",
    "LoggedDecision",
    "Outcome",
    "Outcomes",
    "Person",
    "ReportStatus",
    "Seen",
    "Stake",
    "StoredDecision",
    "Tally",
    "naive_utc",
]

ReportStatus = Literal["stored", "duplicate", "conflict"]
"""New; the same content again; the same id with other content (which is not kept)."""


def naive_utc(moment: datetime) -> datetime:
    """Return ``moment`` as naive UTC, which every database stores and compares alike."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


class Stake(NamedTuple):
    """What was expected of one contact, and what it costs if it was a try; None where unknown.

    Parameters
    ----------
    propensity: P(response within the window), as foretold.
    window_ends_at: until when a response counts.
    loss_if_ignored, loss_if_answered: what the best choice was expected to earn less what this
        offer earns, in the shop's currency; None where it was no try.
    """

    propensity: float | None = None
    window_ends_at: datetime | None = None
    loss_if_ignored: float | None = None
    loss_if_answered: float | None = None


class Kept(NamedTuple):
    """The record of a decision as it is kept: all of it as JSON text, or packed.

    Parameters
    ----------
    text: JSON.
    numbers, shared: what of a packed record is not in the text (`nextbest.decide.packed`).
    """

    text: str
    numbers: bytes | None = None
    shared: Shared | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Kept:
        """Keep all of a record as text."""
        return cls(msgspec.json.encode(record).decode())

    def read(self) -> Mapping[str, Any]:
        """Return the record in full, which is not to be written to.

        Raises
        ------
        DataError: it is damaged.
        """
        try:
            record: dict[str, Any] = json.loads(self.text)
            if self.shared is None:
                return record
            made_from, answer = record.pop("made_from"), record["answer"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise DataError("the record", "its text is damaged", got=got) from None
        found = unpacked(made_from, self.numbers or b"", self.shared, answer)
        return {**record, "selection": found.selection, "inputs": found.inputs}


@dataclass(frozen=True)
class DecisionRecord:
    """One decision to keep: who, when, which offers by rank, and ``record`` in full.

    Parameters
    ----------
    record: as it is kept, or what is to be kept as text.
    stakes: one for each offer, or none at all.
    batch: what all decisions of a batch share, None for those made online.
    answer_json: the answer that ``record`` holds, as JSON for the caller; empty where it holds
        none.
    """

    decision_id: str
    customer_id: str
    decided_at: datetime
    channel: str
    arm: str
    offer_ids: tuple[str, ...]
    record: Mapping[str, Any] | Kept
    request_hash: str
    idempotency_key: str | None = None
    stakes: tuple[Stake, ...] = ()
    batch: str | None = None
    answer_json: bytes = b""

    @cached_property
    def kept(self) -> Kept:
        """``record`` as it is kept."""
        return self.record if isinstance(self.record, Kept) else Kept.of(self.record)

    def row(self) -> tuple[Any, ...]:
        """Return the columns of the decision's table, in their order."""
        text, numbers, shared = self.kept
        return (
            self.decision_id,
            self.customer_id,
            naive_utc(self.decided_at),
            self.channel,
            self.arm,
            len(self.offer_ids),
            self.idempotency_key,
            self.request_hash,
            text,
            numbers,
            None if shared is None else shared.hash,
        )

    def contact_rows(self) -> list[tuple[Any, ...]]:
        """Return the columns of the contact log, in their order, for each offer chosen."""
        stakes = self.stakes or (Stake(),) * len(self.offer_ids)
        at = naive_utc(self.decided_at)
        return [
            (
                self.decision_id,
                rank,
                self.customer_id,
                offer_id,
                self.channel,
                at,
                self.batch,
                propensity,
                None if ends_at is None else naive_utc(ends_at),
                loss_if_ignored,
                loss_if_answered,
            )
            for rank, (
                offer_id,
                (propensity, ends_at, loss_if_ignored, loss_if_answered),
            ) in enumerate(zip(self.offer_ids, stakes, strict=True), start=1)
        ]


@dataclass(frozen=True)
class Seen:
    """What was known of customers when it was decided for them.

    Parameters
    ----------
    rows: number of contacts and outcomes of each.
    moment: of the store, from before they were read; None where it knows none.
    """

    rows: Mapping[str, int]
    moment: int | None = None


@dataclass(frozen=True)
class StoredDecision:
    """A decision as the store holds it; its record is read when somebody asks."""

    decision_id: str
    customer_id: str
    request_hash: str
    kept: Kept

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The record in full (`Kept.read`)."""
        return self.kept.read()


@dataclass(frozen=True)
class LoggedContact:
    """An offer that a decision made, as the contact log holds it; times are naive UTC."""

    rank: int
    offer_id: str
    propensity: float | None
    window_ends_at: datetime | None


@dataclass(frozen=True)
class LoggedDecision:
    """A decision as the log holds it; ``decided_at`` is naive UTC."""

    decision_id: str
    customer_id: str
    decided_at: datetime
    channel: str
    arm: str
    kept: Kept
    contacts: tuple[LoggedContact, ...]

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The record in full; empty where it is damaged."""
        try:
            return self.kept.read()
        except DataError:
            return {}


@dataclass(frozen=True)
class Outcome:
    """Something that happened after a decision; ``outcome_id`` is the caller's and unique."""

    outcome_id: str
    customer_id: str
    offer_id: str | None
    outcome_type: str
    occurred_at: datetime
    value: float | None = None
    decision_id: str | None = None

    def row(self) -> dict[str, Any]:
        """Return the outcome as columns of its table."""
        return {
            **vars(self),
            "occurred_at": naive_utc(self.occurred_at),
            "content_hash": self.content_hash,
        }

    @property
    def content_hash(self) -> str:
        """A hash of everything said, so that a repeat can be told from a contradiction."""
        return _hash({**vars(self), "occurred_at": naive_utc(self.occurred_at).isoformat()})


@dataclass(frozen=True)
class CustomerEvent:
    """Something a customer did beside buying; ``event_id`` is the caller's and unique.

    ``event_at`` is as reported, ``received_at`` when it reached us: it is known from then on.
    """

    event_id: str
    customer_id: str
    event_type: str
    event_at: datetime
    received_at: datetime
    item: str | None = None
    category: str | None = None
    channel: str | None = None
    session_id: str | None = None
    value: float | None = None

    def row(self) -> dict[str, Any]:
        """Return the event as columns of its table.

        By a clock that is ahead of ours it would not have happened yet: it happened on receipt.
        """
        received_at = naive_utc(self.received_at)
        return {
            **vars(self),
            "event_at": min(naive_utc(self.event_at), received_at),
            "received_at": received_at,
            "content_hash": self.content_hash,
        }

    @property
    def content_hash(self) -> str:
        """A hash of everything said, so that a repeat can be told from a contradiction."""
        said = {**vars(self), "event_at": naive_utc(self.event_at).isoformat()}
        del said["received_at"]
        return _hash(said)


def _hash(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Events:
    """Events reported in the past, as equally long columns (times are naive UTC)."""

    customer_ids: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    at: tuple[datetime, ...] = ()
    event_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contacts:
    """Offers chosen in the past, as equally long columns (times are naive UTC)."""

    customer_ids: tuple[str, ...] = ()
    offer_ids: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    at: tuple[datetime, ...] = ()
    decision_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcomes:
    """Outcomes reported in the past, as equally long columns (times are naive UTC).

    The channel is that of the decision; None where the report named none.
    """

    customer_ids: tuple[str, ...] = ()
    offer_ids: tuple[str | None, ...] = ()
    channels: tuple[str | None, ...] = ()
    types: tuple[str, ...] = ()
    at: tuple[datetime, ...] = ()
    decision_ids: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Tally:
    """How an offer has done so far, over all customers.

    Parameters
    ----------
    contacts, responses: how often it was made, and how many of these were answered at any time.
    settled, settled_responses: contacts whose response window has ended, and how many of these
        were answered within it.
    expected_responses: how many of the settled contacts were foretold to be answered; one of
        unknown propensity counts as if foretold right.
    explored, loss, loss_squared: settled contacts that were tries, and the sums of their losses
        (`Stake`) and of the squares of these.
    """

    contacts: int = 0
    responses: int = 0
    settled: int = 0
    settled_responses: int = 0
    expected_responses: float = 0.0
    explored: int = 0
    loss: float = 0.0
    loss_squared: float = 0.0


@dataclass(frozen=True)
class ApiKey:
    """An API key as it is kept: the secret itself is nowhere, only its SHA-256."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    secret_hash: str
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True)
class Erased:
    """People who were erased, as salted hashes: ``customer_id in erased`` tells one of them.

    Their profiles are not served, though a bundle still holds them.
    """

    salt: str = ""
    hashes: frozenset[str] = frozenset()

    def __contains__(self, customer_id: object) -> bool:
        return bool(self.hashes) and self.hash_of(str(customer_id)) in self.hashes

    def hash_of(self, name: str) -> str:
        """Return the salted hash (HMAC-SHA256) of an id."""
        said = name.encode("utf-8", errors="surrogatepass")
        return hmac.digest(self.salt.encode(), said, "sha256").hex()


@dataclass(frozen=True)
class Person:
    """Every row that the store holds of one customer, as plain JSON types, oldest first.

    ``decisions`` are ids and records; ``contacts``, ``outcomes`` and ``events`` are rows.
    """

    decisions: tuple[StoredDecision, ...]
    contacts: tuple[Mapping[str, Any], ...]
    outcomes: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]

    def __bool__(self) -> bool:
        return any((self.decisions, self.contacts, self.outcomes, self.events))
