"""The audit trail: what is in it, and that nobody can change it unseen."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.serve.audit import GENESIS, AuditEntry, Change, link, verify
from nextbest.serve.auth import create_key, revoke_key
from nextbest.serve.runtime import Runtime, load_state, note_configuration, open_store
from nextbest.serve.store import Store
from nextbest.serve.telemetry import Metrics

Serve = Callable[..., TestClient]


def change(number: int = 1) -> Change:
    return Change("user test", "promote", f"model churn version {number}", {"version": number})


def filled(store: Store, entries: int = 6) -> list[AuditEntry]:
    return [store.audit(change(number)) for number in range(1, entries + 1)]


def test_each_entry_carries_the_hash_of_the_one_before(store: Store) -> None:
    made = filled(store)
    found = store.audit_entries()
    assert found == made and [one.number for one in found] == [1, 2, 3, 4, 5, 6]
    assert [one.previous_hash for one in found] == [GENESIS, *(one.hash for one in found[:-1])]
    verdict = verify(found)
    assert (verdict.problem, verdict.number, verdict.head) == (None, 6, found[-1].hash)


def test_the_hash_is_the_one_that_the_manual_says(store: Store) -> None:
    """Worked out here from the words of serving/README.md, so that anybody can."""
    (entry,) = filled(store, 1)
    said = [1, entry.at.replace(tzinfo=None).isoformat(), "user test", "promote",
            "model churn version 1", '{"version":1}', "0" * 64]  # fmt: skip
    assert entry.hash == hashlib.sha256(json.dumps(said).encode()).hexdigest()


TAMPERED: dict[str, tuple[str, str]] = {
    "content": ("UPDATE audit SET detail = '{\"version\":9}' WHERE number = 3", "entry 3 was chan"),
    "actor": ("UPDATE audit SET actor = 'user nobody' WHERE number = 1", "entry 1 was changed"),
    "time": ("UPDATE audit SET at = '2001-01-01 00:00:00.000000' WHERE number = 6", "entry 6 was"),
    "hash": ("UPDATE audit SET hash = 'f' WHERE number = 5", "entry 5 was changed"),
    "removed": ("DELETE FROM audit WHERE number = 4", "entry 4 is missing"),
    "first removed": ("DELETE FROM audit WHERE number = 1", "entry 1 is missing"),
    "reordered": (
        "UPDATE audit SET number = CASE number WHEN 2 THEN -3 ELSE -2 END WHERE number IN (2, 3);"
        "UPDATE audit SET number = -number WHERE number < 0",
        "entry 2 was changed",
    ),
    "renumbered": (
        "DELETE FROM audit WHERE number = 2; UPDATE audit SET number = -number WHERE number > 2;"
        "UPDATE audit SET number = -number - 1 WHERE number < 0",
        "entry 2 was changed",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_tampered_with_is_named(store: Store, path: Path, how: str) -> None:
    filled(store)
    statement, says = TAMPERED[how]
    with sqlite3.connect(path) as connection:
        connection.executescript(statement)
    verdict = verify(store.audit_entries())
    assert verdict.problem is not None and says in verdict.problem


def test_an_entry_that_was_written_anew_does_not_fit_the_next(store: Store) -> None:
    """Whoever forges one entry with a right hash must forge all that follow."""
    made = filled(store)
    forged = link(change(99), 3, made[2].at, made[1].hash)
    verdict = verify([*made[:2], forged, *made[3:]])
    assert verdict.problem == "entry 4 does not follow entry 3: one of them was replaced"


def test_a_trail_that_was_cut_short_or_forged_to_its_end_misses_a_head_kept_elsewhere(
    store: Store, path: Path
) -> None:
    head = filled(store)[-1].hash
    assert verify(store.audit_entries(), head).problem is None
    store.audit(change(7))
    assert verify(store.audit_entries(), head).problem is None  # an older head is still there
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM audit WHERE number > 5")
    assert verify(store.audit_entries()).problem is None  # the chain itself cannot tell
    assert "cut short" in str(verify(store.audit_entries(), head).problem)
    assert "cut short" in str(verify([], head).problem)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.text(), st.text(), st.dictionaries(st.text(), st.text())), max_size=6),
    st.data(),
)
def test_any_trail_verifies_and_any_change_of_it_does_not(said: Any, data: Any) -> None:
    at, previous, trail = datetime(2020, 1, 1, tzinfo=UTC), GENESIS, []
    for number, (actor, subject, detail) in enumerate(said, start=1):
        trail.append(link(Change(actor, "x", subject, detail), number, at, previous))
        previous = trail[-1].hash
    assert verify(trail).problem is None
    if len(trail) > 1:
        other = data.draw(st.permutations(trail))
        assert (verify(other).problem is None) == (other == trail)
        gone = data.draw(st.integers(0, len(trail) - 2))
        assert verify(trail[:gone] + trail[gone + 1 :]).problem is not None


def test_many_writers_at_once_make_one_chain(url: str) -> None:
    """Each with connections of its own, as several servers have; SQLite and PostgreSQL."""
    stores = [Store(url) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: stores[i % 3].audit(change(i)), range(60)))
    found = stores[0].audit_entries()
    assert verify(found).problem is None and len(found) == 60
    assert {json.loads(one.detail)["version"] for one in found} == set(range(60))
    for store in stores:
        store.close()


def test_of_many_who_bring_the_same_news_one_is_heard(url: str) -> None:
    stores = [Store(url) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda i: stores[i % 3].audit_if_new(change(1)), range(12)))
    assert [one.number for one in made if one is not None] == [1]
    assert verify(stores[0].audit_entries()).problem is None
    for store in stores:
        store.close()


def test_the_same_news_is_noted_once(store: Store) -> None:
    assert store.audit_if_new(change(1)) is not None
    assert store.audit_if_new(change(1)) is None
    other = Change("user test", "promote", "model churn version 1", {"version": 2})
    assert store.audit_if_new(other) is not None
    assert store.audit_if_new(change(1)) is not None  # it is news again
    assert len(store.audit_entries()) == 3


# ------------------------------------------------------------------ what goes into it


def said(store: Store) -> list[tuple[str, str, Any]]:
    return [(e.action, e.subject, json.loads(e.detail)) for e in store.audit_entries()]


def test_keys_leave_a_trace_when_made_and_when_revoked_and_no_secret(store: Store) -> None:
    key, token = create_key(store, "web", ["decide"], 60, actor="user anna")
    revoke_key(store, key.key_id, actor="user anna")
    detail = {"name": "web", "scopes": ["decide"], "requests_per_minute": 60}
    assert said(store) == [
        ("key-create", f"key {key.key_id}", detail),
        ("key-revoke", f"key {key.key_id}", {}),
    ]
    kept = json.dumps([one.to_dict() for one in store.audit_entries()])
    assert token.split("_", 2)[2] not in kept
    assert {one.actor for one in store.audit_entries()} == {"user anna"}


def test_a_server_notes_a_new_policy_and_catalogue_once_for_all_workers(
    project: Path, serve: Serve
) -> None:
    state = load_state(project)
    for _ in range(2):
        serve(project)
    store = open_store(project)
    both = [
        ("configure", "serving/policy.toml", {"content_hash": state.rules.content_hash}),
        ("configure", "serving/offers.toml", {"content_hash": state.offers.content_hash}),
    ]
    assert said(store) == both
    policy = project / "serving" / "policy.toml"
    policy.write_text(policy.read_text().replace("at_most = 2", "at_most = 3"))
    runtime = Runtime(project, Metrics(), None)
    runtime.reload()
    changed = runtime.state().rules.content_hash
    assert said(store) == [*both, ("configure", "serving/policy.toml", {"content_hash": changed})]
    note_configuration(store, runtime.state(), "user anna")
    assert len(said(store)) == 3
    runtime.close()
    store.close()


def test_a_refused_policy_is_not_noted(project: Path) -> None:
    policy = project / "serving" / "policy.toml"
    runtime = Runtime(project, Metrics(), None)
    runtime.reload()
    before = runtime.store().audit_entries()
    policy.write_text("nonsense = 1\n")
    runtime.reload()
    assert runtime.store().audit_entries() == before
    runtime.close()
