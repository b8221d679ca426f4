"""A person who is erased is gone: from answers, from the store, and from its file."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.errors import NotFoundError
from nextbest.jobs import refreshing
from nextbest.project import Project
from nextbest.serve import person
from nextbest.serve.audit import Change, verify
from nextbest.serve.auth import create_key
from nextbest.serve.batch import decide_batch, situation_for
from nextbest.serve.person import Sweeps
from nextbest.serve.records import DecisionRecord, Outcome
from nextbest.serve.replay import replay
from nextbest.serve.runtime import Runtime, load_state, open_store
from nextbest.serve.schemas import ErasureAnswer, ExportAnswer
from nextbest.serve.store import Store
from nextbest.serve.store.erasure import _PERSONAL, _about, _decisions_of, _stored_of
from nextbest.serve.store.tables import METADATA
from nextbest.serve.telemetry import Metrics

Serve = Callable[..., TestClient]
WHO = "c07"
AT = datetime(2020, 3, 2, 8)


def live(client: TestClient, customer_id: str = WHO) -> str:
    """Have a customer decided for, alone and in a batch, answer and look around; the first id."""
    ask = {"customer_id": customer_id, "channel": "mail", "idempotency_key": f"key {customer_id}"}
    made = client.post("/v1/decisions", json=ask).json()
    together = {"customer_ids": [customer_id, "c20"], "channel": "mail"}
    assert client.post("/v1/decisions/batch", json=together).status_code == 200
    for name, about in (("by decision", {"decision_id": made["decision_id"]}),
                        ("by offer", {"customer_id": customer_id, "offer_id": "a"})):  # fmt: skip
        report = {"outcome_id": f"{name} {customer_id}", "outcome_type": "click",
                  "occurred_at": AT.isoformat() + "Z", **about}  # fmt: skip
        assert client.post("/v1/outcomes", json=report).status_code == 200
    return str(made["decision_id"])


def look_around(client: TestClient, customer_id: str = WHO) -> None:
    """Have the customer put something into a basket."""
    event = {"event_id": f"e {customer_id}", "customer_id": customer_id, "event_type": "cart_add",
             "event_at": AT.isoformat() + "Z"}  # fmt: skip
    assert client.post("/v1/events", json=event).status_code == 200


def holding(project: Path, word: str) -> dict[str, int]:
    """How often a word stands in the store's files, by file; they are read as bytes."""
    files = sorted((project / ".nextbest").glob("store.db*"))
    return {f.name: f.read_bytes().count(word.encode()) for f in files if f.stat().st_size}


def test_every_table_with_a_customer_in_it_is_emptied(project: Path, serve: Serve) -> None:
    client = serve(project)
    live(client)
    live(client, "c21")
    look_around(client)
    done = client.delete(f"/v1/customers/{WHO}")
    assert done.status_code == 200
    answer = ErasureAnswer.model_validate(done.json())
    assert answer.removed.model_dump() == {
        "decisions": 2, "contacts": 2, "outcomes": 2, "events": 1,
    }  # fmt: skip
    with sqlite3.connect(project / ".nextbest" / "store.db") as connection:
        for table in METADATA.tables.values():
            rows = connection.execute(f"SELECT * FROM {table.name}").fetchall()
            cells = [str(cell) for row in rows for cell in row]
            assert WHO not in cells and not [c for c in cells if f'"{WHO}"' in c], table.name
            if "customer_id" in table.c and table.name != "customer_events":
                assert rows, f"{table.name}: what is about others stays"


def test_the_bytes_are_gone_from_the_file(project: Path, serve: Serve) -> None:
    """Many rows, so that pages were split and moved; the id is like no other text."""
    client = serve(project)
    someone = "PERSON-4711-ERASED"
    for number in range(25):
        for customer_id in (f"other-{number}", someone):
            ask = {"customer_id": customer_id, "channel": "mail", "context": {"weather": "x" * 900},
                   "idempotency_key": f"{customer_id}/{number}"}  # fmt: skip
            assert client.post("/v1/decisions", json=ask).status_code == 200
    assert sum(holding(project, someone).values()) > 60
    done = client.delete(f"/v1/customers/{someone}").json()
    assert done["overwritten"] is True
    assert sum(holding(project, someone).values()) == 0
    assert sum(holding(project, "other-7").values()) > 0


def test_who_is_erased_is_a_stranger_at_once_and_to_every_server(
    project: Path, serve: Serve
) -> None:
    client, other = serve(project), Runtime(project, Metrics(), None)
    other.reload()
    assert other.state().shaper.profile(WHO) is not None
    ask = {"customer_id": WHO, "channel": "mail"}
    assert client.post("/v1/decisions", json=ask).json()["fallback"] is False
    client.delete(f"/v1/customers/{WHO}")
    assert client.get(f"/v1/customers/{WHO}").status_code == 404
    answer = client.post("/v1/decisions", json=ask).json()
    assert answer["fallback"] is True and set(answer["scores"].values()) == {None}
    assert client.get("/v1/customers/c08").status_code == 200
    other.reload()  # as it does every two seconds
    assert other.state().shaper.profile(WHO) is None
    other.close()
    # A server that starts later, and a new bundle with the same people, serve nobody either.
    assert serve(project).get(f"/v1/customers/{WHO}").status_code == 404


def test_what_another_server_recorded_before_it_knew_is_erased_as_well(
    project: Path, serve: Serve
) -> None:
    """Ten seconds later, or when the server stops; and that is in the trail, too."""
    store, clock = open_store(project), [0.0]
    sweeps = Sweeps(lambda: clock[-1])
    person.erase(store, WHO, "key x")
    sweeps.plan(WHO, "key x")
    late = Outcome("late", WHO, "a", "click", shop.NOW)
    store.record_outcomes([late])
    for seconds, left in ((9.9, True), (10.0, False)):
        clock.append(seconds)
        sweeps.run(store)
        assert bool(store.person(WHO)) == left
    details = [json.loads(one.detail)["outcomes"] for one in store.audit_entries()]
    assert details == [0, 1]
    clock.append(100.0)
    sweeps.run(store)
    assert len(store.audit_entries()) == 2, "where nothing is left nothing is said"
    client = serve(project)
    client.delete(f"/v1/customers/{WHO}")
    store.record_outcomes([late])
    client.__exit__(None, None, None)
    assert not store.person(WHO)
    store.close()


def test_caps_begin_anew(project: Path, serve: Serve) -> None:
    """Two letters a week: the third is held back, unless nobody knows of the first two."""
    client = serve(project)
    ask = {"customer_id": "stranger", "channel": "mail"}
    made = [bool(client.post("/v1/decisions", json=ask).json()["offers"]) for _ in range(3)]
    assert made == [True, True, False]
    client.delete("/v1/customers/stranger")
    assert client.post("/v1/decisions", json=ask).json()["offers"]


def test_a_batch_leaves_the_erased_out(project: Path, serve: Serve, tmp_path: Path) -> None:
    serve(project).delete(f"/v1/customers/{WHO}")
    state, out = load_state(project), tmp_path / "out.parquet"
    summary = decide_batch(state, situation_for(state, "mail"), out)
    people = pq.read_table(out)["customer_id"].to_pylist()
    assert summary.customers == len(shop.CUSTOMERS) - 1
    assert set(people) == set(shop.CUSTOMERS) - {WHO}


def test_replay_and_lookup_say_why_a_decision_is_gone(project: Path, serve: Serve) -> None:
    client = serve(project)
    decision_id = live(client)
    client.delete(f"/v1/customers/{WHO}")
    found = client.get(f"/v1/decisions/{decision_id}")
    assert (found.status_code, found.json()["code"]) == (404, "unknown-decision")
    assert "was erased with everything about its customer" in found.json()["detail"]
    store = open_store(project)
    with pytest.raises(NotFoundError, match="it was erased with everything about its customer"):
        replay(project, store, decision_id)
    with pytest.raises(NotFoundError, match="the store does not hold it"):
        replay(project, store, "never made")
    store.close()
    assert "erased" not in client.get("/v1/decisions/never-made").json()["detail"]


def test_keys_and_ids_of_the_erased_are_new_again(project: Path, serve: Serve) -> None:
    """An idempotency key decides anew; an outcome of an erased decision has no decision."""
    client = serve(project)
    ask = {"customer_id": WHO, "channel": "mail", "idempotency_key": f"key {WHO}"}
    decision_id = live(client)
    assert client.post("/v1/decisions", json=ask).json()["decision_id"] == decision_id
    client.delete(f"/v1/customers/{WHO}")
    again = client.post("/v1/decisions", json=ask).json()
    assert again["decision_id"] != decision_id and again["fallback"] is True
    report = {"outcome_id": "late", "decision_id": decision_id, "outcome_type": "click",
              "occurred_at": AT.isoformat() + "Z"}  # fmt: skip
    late = client.post("/v1/outcomes", json=report)
    assert (late.status_code, late.json()["code"]) == (422, "unknown-decision")


def test_a_batch_whose_member_was_erased_cannot_be_repeated_by_its_key(client: TestClient) -> None:
    ask = {"customer_ids": [WHO, "c20"], "channel": "mail", "idempotency_key": "together"}
    first = client.post("/v1/decisions/batch", json=ask)
    assert client.post("/v1/decisions/batch", json=ask).json() == first.json()
    client.delete(f"/v1/customers/{WHO}")
    again = client.post("/v1/decisions/batch", json=ask)
    assert (again.status_code, again.json()["code"]) == (409, "idempotency-conflict")


def test_tallies_count_the_erased_no_more(project: Path, serve: Serve) -> None:
    """What offers have learnt from a person goes with the person: contacts and answers alike."""
    client = serve(project)
    live(client, WHO)
    live(client, "c21")
    store = open_store(project)
    now = datetime(2020, 3, 9, tzinfo=UTC)
    before = store.tallies(["click"], now)
    client.delete(f"/v1/customers/{WHO}")
    after = store.tallies(["click"], now)
    assert sum(t.contacts for t in before.values()) == 6  # c20 got two letters in company
    assert sum(t.contacts for t in after.values()) == 4
    assert sum(t.responses for t in after.values()) < sum(t.responses for t in before.values())
    store.close()


def test_the_trail_says_how_much_was_erased_by_whom_and_not_of_whom(
    project: Path, serve: Serve
) -> None:
    store = open_store(project)
    key, token = create_key(store, "ops", ["admin"])
    client = serve(project, insecure=False)
    client.headers["X-API-Key"] = token
    live(client)
    mark = client.delete(f"/v1/customers/{WHO}").json()["audit"]
    entry = store.audit_entries()[-1]
    assert (entry.number, entry.hash) == (mark["number"], mark["hash"])
    assert (entry.actor, entry.action, entry.subject) == (
        f"key {key.key_id}", "erase", "one customer",
    )  # fmt: skip
    assert json.loads(entry.detail) == {"decisions": 2, "contacts": 2, "outcomes": 2, "events": 0}
    store.close()


def test_to_erase_twice_or_somebody_unknown_is_harmless(client: TestClient) -> None:
    nothing = {"decisions": 0, "contacts": 0, "outcomes": 0, "events": 0}
    live(client)
    assert client.delete(f"/v1/customers/{WHO}").json()["removed"] != nothing
    for customer_id in (WHO, "nobody", "' OR 1=1 --", "%25", "_"):
        assert client.delete(f"/v1/customers/{customer_id}").json()["removed"] == nothing
    assert client.get("/v1/customers/c08").status_code == 200


def test_erasing_waits_for_a_store_that_is_held_and_then_says_so(
    project: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 50)
    client = serve(project)
    blocker = sqlite3.connect(project / ".nextbest" / "store.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    refused = client.delete(f"/v1/customers/{WHO}")
    assert (refused.status_code, refused.json()["code"]) == (503, "store-unavailable")
    assert client.get(f"/v1/customers/{WHO}").status_code == 200
    blocker.execute("ROLLBACK")
    # A reader that began before keeps the old pages alive: that is said, and asking again helps.
    blocker.execute("BEGIN")
    blocker.execute("SELECT count(*) FROM decisions").fetchall()
    live(client, "PERSON-4711-READ")
    assert client.delete("/v1/customers/PERSON-4711-READ").json()["overwritten"] is False
    assert sum(holding(project, "PERSON-4711-READ").values()) > 0
    blocker.execute("ROLLBACK")
    blocker.close()
    assert client.delete("/v1/customers/PERSON-4711-READ").json()["overwritten"] is True
    assert sum(holding(project, "PERSON-4711-READ").values()) == 0


def test_any_database_erases_and_exports_alike(url: str) -> None:
    """Two servers erase the same and another person at once: one salt, and nothing left."""
    stores = [Store(url) for _ in range(2)]
    for number, customer_id in enumerate((WHO, "other", "kept")):
        made = DecisionRecord(
            f"d{number}", customer_id, shop.NOW, "mail", "policy", ("a",), {}, "h"
        )
        stores[0].record_decisions([made])
        stores[0].record_outcomes([Outcome(f"o{number}", customer_id, "a", "click", shop.NOW)])
    assert stores[0].person(WHO).contacts[0]["contacted_at"] == "2020-03-02T09:00:00Z"
    erase = Change("user test", "erase", "one customer", {})
    with ThreadPoolExecutor(4) as pool:
        done = list(
            pool.map(lambda i: stores[i % 2].erase((WHO, "other")[i // 2], erase), range(4))
        )
    assert sum(removed["decisions"] for removed, *_ in done) == 2
    for store in stores:
        known = store.erased()
        assert [one in known for one in (WHO, "other", "kept")] == [True, True, False]
        assert len(known.hashes) == 2
        assert not store.person(WHO) and not store.person("other") and store.person("kept")
        assert store.erased_decision("d0") is not None and store.erased_decision("d2") is None
        assert verify(store.audit_entries()).number == 4
    stores[0].lift_erasures(known.hashes)
    assert WHO not in stores[1].erased()
    assert stores[1].erased_decision("d0") is not None, "why a decision is gone stays known"
    for store in stores:
        store.close()


def test_finding_a_person_reads_no_row_of_others(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "store.db")
    with store._database.read() as connection:
        rows = [_about(table, WHO) for table in _PERSONAL.values()]
        for query in (_decisions_of(WHO), _stored_of(WHO), *rows):
            text = query.compile(connection, compile_kwargs={"literal_binds": True})
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
            steps = [step for *_, step in plan if step.startswith(("SCAN", "SEARCH"))]
            assert steps and all("USING" in step and "SCAN" not in step for step in steps), steps
    store.close()


def test_the_salt_makes_the_same_person_another_hash_in_another_store(tmp_path: Path) -> None:
    kept = []
    for name in ("one", "other"):
        store = Store.at(tmp_path / f"{name}.db")
        store.erase(WHO, Change("user test", "erase", "one customer", {}))
        known = store.erased()
        assert WHO in known and "c08" not in known
        kept.append(known.hashes)
        store.close()
    assert not kept[0] & kept[1]


def test_a_refresh_without_the_person_forgets_who_was_erased(
    project: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as a bundle on disk holds the profile the hash stays; then it goes, too."""
    client = serve(project)
    client.delete(f"/v1/customers/{WHO}")
    client.delete("/v1/customers/never-in-a-bundle")
    for room in ("models", "training"):
        (project / room).mkdir()
    (project / "training" / "training.toml").write_text("")
    opened, store = Project.open(project), open_store(project)
    with monkeypatch.context() as shared:
        shared.setenv("NEXTBEST_STORE", f"sqlite:///{project}/.nextbest/store.db")
        refreshing.forget_who_is_gone(opened)
        assert len(store.erased().hashes) == 2  # another machine may have the bundle still
    refreshing.forget_who_is_gone(opened)
    known = store.erased()
    assert WHO in known and "never-in-a-bundle" not in known
    for folder in opened.serving_state.glob("*/profiles"):
        shutil.rmtree(folder)
    refreshing.forget_who_is_gone(opened)
    assert store.erased().hashes == frozenset()
    store.close()


# ------------------------------------------------------------------ export


def test_an_export_holds_all_that_is_known(project: Path, serve: Serve) -> None:
    client = serve(project)
    decision_id = live(client)
    look_around(client)
    response = client.get(f"/v1/customers/{WHO}/export")
    found = response.json()
    ExportAnswer.model_validate(found)
    profile = client.get(f"/v1/customers/{WHO}").json()
    profile.pop("profile_stale")
    assert found["profile"] == profile
    stored = client.get(f"/v1/decisions/{decision_id}").json()
    (made,) = (one for one in found["decisions"] if one["decision_id"] == decision_id)
    assert (made["record"]["answer"], made["trace"]) == (stored["decision"], stored["trace"])
    assert {one["outcome_id"] for one in found["outcomes"]} == {
        f"by decision {WHO}", f"by offer {WHO}",
    }  # fmt: skip
    assert len(found["contacts"]) == 2
    assert found["events"][0]["event_at"] == "2020-03-02T08:00:00Z"
    assert "c20" not in response.text, "who was decided for in the same call is nobody's business"


def test_an_export_holds_every_row_and_column_about_the_person(project: Path, serve: Serve) -> None:
    """Held against the tables themselves, so that a new table or column is not forgotten."""
    client = serve(project)
    live(client)
    look_around(client)
    found = client.get(f"/v1/customers/{WHO}/export").json()
    names = {"decisions": "decisions", "contacts": "contacts", "outcomes": "outcomes",
             "customer_events": "events"}  # fmt: skip
    for table in METADATA.tables.values():
        if "customer_id" not in table.c:
            continue
        rows = found[names[table.name]]
        with sqlite3.connect(project / ".nextbest" / "store.db") as connection:
            query = f"SELECT count(*) FROM {table.name} WHERE customer_id = ?"
            assert connection.execute(query, [WHO]).fetchone()[0] == len(rows) > 0
        if table.name != "decisions":
            columns: set[str] = set(table.c.keys()) - {"content_hash", "batch"}
            assert {frozenset(row) for row in rows} == {frozenset(columns)}


def test_nobody_knows_anything_of_a_stranger_or_of_the_erased(client: TestClient) -> None:
    live(client)
    client.delete(f"/v1/customers/{WHO}")
    for customer_id in (WHO, "nobody"):
        response = client.get(f"/v1/customers/{customer_id}/export")
        assert (response.status_code, response.json()["code"]) == (404, "unknown-customer")


def test_an_export_is_in_the_trail_without_the_person(project: Path, serve: Serve) -> None:
    client = serve(project)
    live(client)
    assert client.get(f"/v1/customers/{WHO}/export").status_code == 200
    store = open_store(project)
    entry = store.audit_entries()[-1]
    assert (entry.actor, entry.action, entry.subject) == ("key insecure", "export", "one customer")
    assert json.loads(entry.detail) == {"decisions": 2, "contacts": 2, "outcomes": 2, "events": 0}
    assert WHO not in json.dumps([one.to_dict() for one in store.audit_entries()])
    store.close()
