"""What a person may ask for: everything that is known of them, and that it be forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nextbest.errors import DataError
from nextbest.serve.audience import past_of
from nextbest.serve.audit import Change
from nextbest.serve.replay import trace_of
from nextbest.serve.runtime import State
from nextbest.serve.store import Store

__all__ = ["Sweeps", "erase", "export", "profile_of"]

# By then every other server has read who was erased, and written what it began before.
SETTLED_SECONDS = 10.0

# The trail outlives the person's data, so it says neither who nor anything that leads there.
SOMEBODY = "one customer"


def erase(store: Store, customer_id: str, actor: str) -> dict[str, Any]:
    """Remove all that the store holds of a customer, and have the profile served no more.

    Returns how many rows there were by kind, whether their bytes are gone from the store's file,
    and number and hash of the entry in the audit trail.
    """
    removed, entry, overwritten = store.erase(customer_id, Change(actor, "erase", SOMEBODY, {}))
    return {
        "removed": removed,
        "overwritten": overwritten,
        "audit": {"number": entry.number, "hash": entry.hash},
    }


class Sweeps:
    """Erases once more what other servers, which did not know of it yet, recorded meanwhile.

    Parameters
    ----------
    clock: seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, tuple[float, str]] = {}

    def plan(self, customer_id: str, actor: str) -> None:
        """Look again, when all servers know, at somebody who was erased just now."""
        self._due[customer_id] = (self._clock() + SETTLED_SECONDS, actor)

    def run(self, store: Store, *, all_of_it: bool = False) -> None:
        """Look at those whose time has come; `all_of_it` when the server stops."""
        now = self._clock()
        for customer_id, (at, actor) in list(self._due.items()):
            if all_of_it or at <= now:
                if store.person(customer_id):
                    erase(store, customer_id, actor)
                else:
                    store.overwrite()  # perhaps somebody was reading before
                # Only now: what failed is tried again.
                self._due.pop(customer_id, None)


def export(
    project_dir: Path, state: State, store: Store, customer_id: str, actor: str, now: datetime
) -> dict[str, Any] | None:
    """Return all that bundle and store hold of a customer as plain JSON types, or None.

    That it was handed out goes into the audit trail, without saying whose data it was.
    """
    profile, held = profile_of(state, store, customer_id, now), store.person(customer_id)
    if profile is None and not held:
        return None
    contacts, responses = state.shaper.told(customer_id)
    decisions = []
    for decision in held.decisions:
        record, trace = None, None
        try:
            record = decision.record
            trace, missing = trace_of(project_dir, record)
        except DataError as error:  # a person gets what there is
            missing = str(error)
        decisions.append(
            {
                "decision_id": decision.decision_id,
                "record": record,
                "trace": trace,
                "missing": missing or None,
            }
        )
    found = {
        "profile": profile,
        "decisions": decisions,
        "contacts": list(held.contacts),
        "outcomes": list(held.outcomes),
        "events": list(held.events),
        "warehouse": {"contacts": contacts, "responses": responses},
    }
    counts = {name: len(rows) for name, rows in found.items() if isinstance(rows, list)}
    store.audit(Change(actor, "export", SOMEBODY, counts))
    return {"customer_id": customer_id, "exported_at": _moment(datetime.now(UTC)), **found}


def profile_of(
    state: State, store: Store, customer_id: str, now: datetime
) -> dict[str, Any] | None:
    """Return features and scores of a customer, or None for a stranger.

    They are as of the last refresh; live ones, and what follows them, as of ``now``.
    """
    past = past_of(store, [customer_id], state.shaper.overlay.events_since)
    found = state.shaper.profile(customer_id, state.shaper.news([customer_id], past, now))
    if found is None:
        return None
    profile, live = found
    scores = state.bundle.score_names
    return {
        "customer_id": customer_id,
        "as_of": _moment(state.bundle.as_of),
        "features": {k: v for k, v in profile.items() if k not in scores},
        "scores": {name: profile.get(name) for name in scores},
        "live": None if live is None else {"at": _moment(now), **live},
        "bundle": state.bundle.id,
    }


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
