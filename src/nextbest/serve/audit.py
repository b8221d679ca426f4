"""The audit trail: who changed what, in a chain of hashes that shows what was tampered with.

Each entry carries the hash of the one before it, so that changing, removing or moving any of them
breaks the chain from there on. Nobody can shorten the chain unseen who has to match a head (number
and hash of the last entry) that was kept elsewhere.
"""

from __future__ import annotations

import getpass
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nextbest.serve.records import naive_utc

__all__ = ["GENESIS", "AuditEntry", "Change", "Verdict", "link", "local_actor", "verify"]

GENESIS = "0" * 64
"""What the first entry carries as the hash of the one before it."""


@dataclass(frozen=True)
class Change:
    """Something worth remembering: who did what to which thing.

    Parameters
    ----------
    actor: who, e.g. ``key 0123456789ab`` or ``user anna``; never a customer.
    action: what, e.g. ``promote``, ``key-create``, ``erase``.
    subject: which thing, e.g. ``model churn version 3``; never a customer.
    detail: more of it, as plain JSON types without personal data.
    """

    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class AuditEntry:
    """A change as the trail keeps it; ``detail`` is the text that was hashed."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: str
    previous_hash: str
    hash: str

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON types."""
        at = self.at.isoformat().replace("+00:00", "Z")
        return {**vars(self), "at": at, "detail": json.loads(self.detail)}


@dataclass(frozen=True)
class Verdict:
    """Whether the trail is whole; ``problem`` names the first entry that is not as written.

    ``number`` and ``head`` are those of the last entry: keep them elsewhere, and a trail that was
    cut short shows.
    """

    entries: int
    number: int
    head: str
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON types."""
        return {"ok": self.problem is None, **vars(self)}


def link(change: Change, number: int, at: datetime, previous_hash: str) -> AuditEntry:
    """Return the entry that follows the one whose hash is ``previous_hash``."""
    detail = json.dumps(change.detail, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # As every database gives it back.
    actor, subject = change.actor[:128], change.subject[:256]
    said = (number, at, actor, change.action, subject, detail, previous_hash)
    return AuditEntry(*said, hash=_hash(*said))


def verify(entries: Iterable[AuditEntry], head: str | None = None) -> Verdict:
    """Go through the trail from its first entry and stop at the first that is not as written.

    Parameters
    ----------
    entries: all of them, by number.
    head: the hash of an entry, kept elsewhere, that must be among them.
    """
    previous, count, seen = GENESIS, 0, False

    def found(problem: str | None) -> Verdict:
        return Verdict(count, count, previous, problem)

    for entry in entries:
        expected = count + 1
        if entry.number != expected:
            return found(f"entry {expected} is missing; the next one there is {entry.number}")
        if entry.hash != _hash_of(entry):
            return found(f"entry {entry.number} was changed: its content does not give its hash")
        if entry.previous_hash != previous:
            return found(
                f"entry {entry.number} does not follow entry {count}: one of them was replaced"
            )
        count, previous = entry.number, entry.hash
        seen = seen or entry.hash == head
    if head is not None and not seen:
        return found(
            f"no entry has the hash {head}: the trail was cut short after it was noted, "
            "or written anew"
        )
    return found(None)


def local_actor() -> str:
    """Return who runs a command on this machine."""
    try:
        return f"user {getpass.getuser()}"
    except (OSError, KeyError):  # A container's user may have no name.
        return "user unknown"


def _hash_of(entry: AuditEntry) -> str:
    return _hash(
        entry.number,
        entry.at,
        entry.actor,
        entry.action,
        entry.subject,
        entry.detail,
        entry.previous_hash,
    )


def _hash(
    number: int,
    at: datetime,
    actor: str,
    action: str,
    subject: str,
    detail: str,
    previous_hash: str,
) -> str:
    said = [number, naive_utc(at).isoformat(), actor, action, subject, detail, previous_hash]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
