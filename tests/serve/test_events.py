"""Events over HTTP: kept once, durably; late ones and those of strangers, too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.serve.auth import create_key
from nextbest.serve.records import CustomerEvent, Events
from nextbest.serve.runtime import open_store
from nextbest.serve.schemas import EventsAnswer
from nextbest.serve.store import Store

Serve = Callable[..., TestClient]


def event(event_id: str = "e1", **more: Any) -> dict[str, Any]:
    said = {"event_id": event_id, "customer_id": "c01", "event_type": "cart_add",
            "event_at": "2020-03-02T08:00:00Z", **more}  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def send(client: TestClient, said: Any) -> tuple[int, dict[str, Any]]:
    response = client.post("/v1/events", json=said)
    content: dict[str, Any] = response.json()
    if response.status_code < 300:
        EventsAnswer.model_validate(content)
    return response.status_code, content


def kept(project: Path) -> Events:
    store = open_store(project)
    try:
        return store.past(None, datetime(1970, 1, 1))[2]
    finally:
        store.close()


def test_an_event_is_kept_once(client: TestClient, project: Path) -> None:
    full = event(item="x", category="wine", channel="web", session_id="s1", value=2)
    assert send(client, full) == (200, {"results": [{"event_id": "e1", "status": "stored"}]})
    again = {"results": [{"event_id": "e1", "status": "duplicate"}]}
    assert send(client, full) == (200, again)
    # The same moment, said in another way.
    assert send(client, {**full, "event_at": "2020-03-02T09:00:00+01:00"}) == (200, again)
    assert kept(project) == Events(("c01",), ("cart_add",), (datetime(2020, 3, 2, 8),), ("e1",))


@pytest.mark.parametrize(
    "other",
    [{"customer_id": "c02"}, {"event_type": "visit"}, {"event_at": "2020-03-02T08:00:01Z"},
     {"item": "x"}, {"category": "x"}, {"channel": "x"}, {"session_id": "x"}, {"value": 0}],
)  # fmt: skip
def test_other_content_under_the_same_id_is_a_conflict_and_the_first_stands(
    client: TestClient, project: Path, other: dict[str, Any]
) -> None:
    assert send(client, event())[0] == 200
    before = kept(project)
    status, problem = send(client, event(**other))
    assert (status, problem["code"], problem["errors"][0]["pointer"]) == (
        409, "event-conflict", "/event_id",
    )  # fmt: skip
    assert kept(project) == before


def test_of_a_list_each_event_is_kept_or_refused_by_itself(
    client: TestClient, project: Path
) -> None:
    listed = [event("e1"), event("e2", event_at="2020-03-02T09:06:00Z"), event("e1"),
              event("e1", value=3), event("e3", customer_id="nobody")]  # fmt: skip
    status, answer = send(client, listed)
    assert status == 207
    assert [(r["event_id"], r["status"], r.get("code")) for r in answer["results"]] == [
        ("e1", "stored", None), ("e2", "refused", "event-in-future"), ("e1", "duplicate", None),
        ("e1", "refused", "event-conflict"), ("e3", "stored", None),
    ]  # fmt: skip
    assert kept(project).event_ids == ("e1", "e3")
    # Where none was kept it is a problem, with the place of each.
    status, problem = send(client, [listed[1], listed[3]])
    assert (status, problem["code"]) == (422, "event-in-future")
    assert "None of the 2 events was kept." in problem["detail"]
    assert [e["pointer"] for e in problem["errors"]] == ["/0/event_at", "/1/event_id"]


def test_a_clock_that_is_ahead_by_minutes_is_forgiven_and_one_by_more_is_not(
    client: TestClient, project: Path
) -> None:
    assert send(client, event("ahead", event_at="2020-03-02T09:05:00Z"))[0] == 200
    status, problem = send(client, event("later", event_at="2020-03-02T09:05:00.000001Z"))
    assert (status, problem["code"]) == (422, "event-in-future")
    assert kept(project).at == (shop.NOW.replace(tzinfo=None),)  # it happened when it reached us
    again = {"results": [{"event_id": "ahead", "status": "duplicate"}]}
    assert send(client, event("ahead", event_at="2020-03-02T09:05:00Z")) == (200, again)


def test_late_events_and_those_of_strangers_are_kept(client: TestClient, project: Path) -> None:
    late = event("late", event_at="1999-01-01T00:00:00Z", customer_id="nobody yet")
    assert send(client, late)[0] == 200
    assert kept(project).customer_ids == ("nobody yet",)


@pytest.mark.parametrize(
    ("said", "pointer"),
    [
        (event(event_type="x" * 65), "/event_type"),
        (event(event_type=""), "/event_type"),
        (event(event_type="a\u0000b"), "/event_type"),
        (event(event_at="2020-03-02T08:00:00"), "/event_at"),
        (event(event_at="1960-01-01T00:00:00Z"), "/event_at"),
        (event(value=1e16), "/value"),
        (event(value="1"), "/value"),
        (event(customer_id=None), "/customer_id"),
        ([event(), event("e2", itme="x")], "/1/itme"),
    ],
)
def test_what_breaks_the_schema_is_refused(client: TestClient, said: Any, pointer: str) -> None:
    status, problem = send(client, said)
    assert (status, problem["code"]) == (422, "invalid-request")
    assert problem["errors"][0]["pointer"] == pointer


def test_a_thousand_at_once_and_no_more(client: TestClient, project: Path) -> None:
    assert send(client, [event(f"e{i}") for i in range(1_000)])[0] == 200
    assert len(kept(project).at) == 1_000
    for wrong in ([event(f"f{i}") for i in range(1_001)], []):
        status, problem = send(client, wrong)
        assert (status, problem["code"]) == (422, "invalid-request")


def test_events_need_the_scope_of_outcomes(project: Path, serve: Serve) -> None:
    store = open_store(project)
    tokens = {s: create_key(store, s, [s])[1] for s in ("decide", "outcomes")}
    store.close()
    client = serve(project, insecure=False)

    def status(token: str) -> int:
        said = {"Authorization": f"Bearer {token}"}
        return client.post("/v1/events", json=event(), headers=said).status_code

    assert status(tokens["decide"]) == 403
    assert status(tokens["outcomes"]) == 200


def test_the_metrics_count_them_without_a_word_of_theirs(client: TestClient) -> None:
    send(client, [event(event_type="a very own type"), event("e2", event_at="2021-01-01T00:00Z")])
    page = client.get("/metrics").text
    assert 'nextbest_events_total{status="stored"} 1.0' in page
    assert 'nextbest_events_total{status="refused"} 1.0' in page
    assert "very own" not in page


def test_the_store_gives_events_of_a_customer_from_a_moment_on(url: str) -> None:
    at = datetime(2020, 3, 1, tzinfo=UTC)

    def one(number: int, customer_id: str, hours: float) -> CustomerEvent:
        return CustomerEvent(
            f"e{number}", customer_id, "visit", at + timedelta(hours=hours),
            at + timedelta(hours=9), value=0.1 + 0.2,
        )  # fmt: skip

    store = Store(url)
    try:
        given = [one(1, "a", 3), one(2, "b", 2), one(3, "a", 0), one(4, "a", -1), one(5, "a", 99)]
        assert store.record_events(given) == ["stored"] * 5
        assert store.record_events([given[0], one(1, "b", 3), given[0]]) == [
            "duplicate", "conflict", "duplicate",
        ]  # fmt: skip
        assert store.record_events([]) == []
        contacts, outcomes, events, _ = store.past(["a", "nobody"], at)
        assert (contacts, outcomes) == store.history(["a", "nobody"])
        assert events.event_ids == ("e3", "e1", "e5")
        assert events.at[-1] == datetime(2020, 3, 1, 9)
        assert store.past(["a"], None)[2] == Events()
    finally:
        store.close()
