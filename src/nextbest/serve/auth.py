"""API keys: who may ask for decisions, report outcomes, read, or administer."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nextbest.errors import Fault, NotFoundError, UsageError, did_you_mean
from nextbest.serve.audit import Change, local_actor
from nextbest.serve.records import ApiKey
from nextbest.serve.store import Store

__all__ = ["SCOPES", "Caller", "authenticate", "create_key", "list_keys", "revoke_key"]

SCOPES = ("decide", "outcomes", "read", "admin")
"""What a key may be allowed to do; ``admin`` includes the other three."""

MAX_PER_MINUTE = 1_000_000

_TOKEN = re.compile(r"nb_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
# Compared against when the key id is unknown, so that both refusals take the same path.
_NO_HASH = hashlib.sha256(b"no such key").hexdigest()


@dataclass(frozen=True)
class Caller:
    """Who is calling: the key's public id, and what it may do."""

    key_id: str
    scopes: tuple[str, ...]
    requests_per_minute: int | None = None

    def may(self, scope: str) -> bool:
        """Tell whether this caller has ``scope``."""
        return scope in self.scopes or "admin" in self.scopes


def create_key(
    store: Store,
    name: str,
    scopes: Sequence[str],
    requests_per_minute: int | None = None,
    *,
    actor: str | None = None,
) -> tuple[ApiKey, str]:
    """Make an API key and return it with its token, which is shown here and kept nowhere.

    Parameters
    ----------
    store: where the key's hash is kept.
    name: what the key is for, 1 to 128 characters, e.g. ``web``.
    scopes: one or more of ``decide``, ``outcomes``, ``read``, ``admin``.
    requests_per_minute: how often it may be used (`nextbest.serve.access.RateLimits`); None for
        as often as it likes.
    actor: who makes it, for the audit trail; the user of this machine by default.

    Raises
    ------
    UsageError: the name is empty or too long, a scope does not exist, or nothing would be allowed.
    """
    faults = [
        Fault(
            "--scope",
            f'there is no scope "{scope}"',
            "one of " + ", ".join(SCOPES),
            scope,
            did_you_mean(scope, SCOPES),
        )
        for scope in scopes
        if scope not in SCOPES
    ]
    if not scopes:
        faults.append(Fault("--scope", "a key needs a scope", "one of " + ", ".join(SCOPES)))
    if not 1 <= len(name.strip()) <= 128 or not name.isprintable():
        faults.append(
            Fault("--name", "the name is unusable", "1 to 128 printable characters", repr(name))
        )
    if requests_per_minute is not None and not 1 <= requests_per_minute <= MAX_PER_MINUTE:
        faults.append(
            Fault(
                "--requests-per-minute",
                "the key could never be used, or the limit limits nothing",
                f"1 to {MAX_PER_MINUTE:,}, or left out",
                str(requests_per_minute),
            )
        )
    if faults:
        raise UsageError(faults=faults)
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = ApiKey(
        key_id=key_id,
        name=name.strip(),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        secret_hash=_hash(secret),
        created_at=datetime.now(UTC),
        requests_per_minute=requests_per_minute,
    )
    detail = {
        "name": key.name,
        "scopes": list(key.scopes),
        "requests_per_minute": requests_per_minute,
    }
    store.add_key(key, Change(actor or local_actor(), "key-create", f"key {key_id}", detail))
    return key, f"nb_{key_id}_{secret}"


def list_keys(store: Store) -> list[ApiKey]:
    """Return every key, oldest first, revoked ones included; no secret is among the fields."""
    return store.api_keys()


def revoke_key(store: Store, key_id: str, *, actor: str | None = None) -> None:
    """Make a key useless from now on.

    Parameters
    ----------
    actor: who does it, for the audit trail; the user of this machine by default.

    Raises
    ------
    NotFoundError: no key of that id was valid.
    """
    change = Change(actor or local_actor(), "key-revoke", f"key {key_id}", {})
    if not store.revoke_key(key_id, change):
        valid = [key.key_id for key in store.api_keys() if key.revoked_at is None]
        raise NotFoundError(
            "keys",
            f'there is no valid key "{key_id}"',
            expected="the id of a key that is not revoked",
            got=key_id,
            action=did_you_mean(key_id, valid) or "See `nextbest keys list`",
        )


def authenticate(store: Store, token: str | None) -> Caller | None:
    """Return who holds this token, or None when it is missing, malformed, unknown or revoked."""
    match = _TOKEN.fullmatch(token or "")
    if match is None:
        return None
    found = store.api_keys(match[1])
    expected = found[0].secret_hash if found else _NO_HASH
    same = hmac.compare_digest(_hash(match[2]), expected)
    if not same or not found or found[0].revoked_at is not None:
        return None
    return Caller(found[0].key_id, found[0].scopes, found[0].requests_per_minute)


def _hash(secret: str) -> str:
    # The secret is 256 random bits: a slow hash would protect nothing that guessing could reach.
    return hashlib.sha256(secret.encode()).hexdigest()
