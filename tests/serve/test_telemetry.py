"""Metrics and logs say what happened, and never about whom."""

from __future__ import annotations

import json
import logging
import logging.handlers
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from nextbest.serve import telemetry
from nextbest.serve.auth import create_key, revoke_key
from nextbest.serve.runtime import open_store

Serve = Callable[..., TestClient]
REPORT = {
    "outcome_id": "o1",
    "customer_id": "c01",
    "offer_id": "a",
    "outcome_type": "click",
    "occurred_at": "2020-03-02T08:00:00Z",
}


def metric(client: TestClient, name: str, **labels: str) -> float:
    total = 0.0
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                total += sample.value
    return total


def ask(client: TestClient, customer_id: str, channel: str = "mail") -> Any:
    return client.post("/v1/decisions", json={"customer_id": customer_id, "channel": channel})


def test_decisions_are_counted_by_arm_channel_and_offer(client: TestClient) -> None:
    for _ in range(3):
        ask(client, "nobody")  # the third meets the cap
    ask(client, "c02", "email")
    name = "nextbest_decisions_total"
    assert metric(client, name, arm="fallback", channel="mail", offer="a") == 2
    assert metric(client, name, arm="fallback", channel="mail", offer="none") == 1
    assert metric(client, name, arm="policy", channel="email", offer="none") == 1


def test_a_repeated_decision_is_counted_once(client: TestClient) -> None:
    question = {"customer_id": "c01", "channel": "mail", "idempotency_key": "k"}
    for _ in range(3):
        assert client.post("/v1/decisions", json=question).status_code == 200
    assert metric(client, "nextbest_decisions_total") == 1


def test_outcomes_are_counted_by_type_and_status(client: TestClient) -> None:
    client.post("/v1/outcomes", json=[REPORT, REPORT, {**REPORT, "value": 1.0}])
    name = "nextbest_outcomes_total"
    for status in ("stored", "duplicate", "refused"):
        assert metric(client, name, outcome_type="click", status=status) == 1


def test_errors_are_counted_by_code(client: TestClient) -> None:
    ask(client, "c01", "pigeon")
    client.get("/nothing")
    assert metric(client, "nextbest_errors_total", code="unknown-channel") == 1
    assert metric(client, "nextbest_errors_total", code="not-found") == 1


def test_each_stage_is_timed(client: TestClient) -> None:
    ask(client, "c01")
    for stage in ("decide", "explain", "store"):
        assert metric(client, "nextbest_stage_seconds_count", stage=stage) == 1


def test_what_callers_make_up_makes_no_new_series(client: TestClient) -> None:
    """Otherwise anybody could fill the memory of the server and of Prometheus."""
    for number in range(5):
        client.get(f"/nothing/{number}")
        client.get(f"/v1/customers/x{number}")
        client.request(f"METHOD{number}", "/v1/offers")
        ask(client, "c01", f"channel{number}")
    page = client.get("/metrics").text
    for made_up in ("nothing/", "x1", "METHOD1", "channel1"):
        assert made_up not in page


def test_the_log_has_a_line_for_each_request_with_its_code(
    client: TestClient, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = ask(client, "c01").json()
    ask(client, "c01", "pigeon")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    good, bad = (line for line in lines if line["event"] == "request")
    assert good["decision_id"] == answer["decision_id"]
    assert (good["route"], good["status"]) == ("/v1/decisions", 200)
    assert (bad["status"], bad["code"]) == (422, "unknown-channel")


def test_a_line_is_the_same_whoever_else_listens(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it is written at once, else as a record that other handlers see with its fields."""
    secret = SECRETS["exception"]
    monkeypatch.setattr("time.time", lambda: 1_583_139_600.123_9)
    telemetry.configure_logging()
    logger, seen = logging.getLogger("nextbest.serve"), logging.handlers.BufferingHandler(99)
    monkeypatch.setattr(logger, "handlers", [telemetry._OURS])  # pytest adds its own to each logger

    def write() -> str:
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            telemetry.log("100 %s", level=level, text="a\n\u2028é", number=0.1, path=Path("x"))
        try:
            raise RuntimeError(secret)
        except RuntimeError:
            telemetry.log("broken", level=logging.ERROR, exc_info=True, error_id="e")
        telemetry.log("nothing raised", exc_info=True)
        return capfd.readouterr().err

    assert telemetry._is_ours_alone()
    alone = write()
    logger.addHandler(seen)
    assert not telemetry._is_ours_alone()
    assert write() == alone
    assert [vars(record).get("fields") for record in seen.buffer[-2:]] == [{"error_id": "e"}, {}]
    lines = [json.loads(line) for line in alone.split("\n")[:-1]]
    assert [line["level"] for line in lines] == ["info", "error", "error", "info"]
    assert lines[0] == {
        "time": "2020-03-02T09:00:00.123+00:00", "level": "info", "event": "100 %s",
        "text": "a\n\u2028é", "number": 0.1, "path": "x",
    }  # fmt: skip
    assert "RuntimeError" in lines[2]["traceback"] and secret not in alone


def test_answers_carry_safe_headers(client: TestClient) -> None:
    for response in (ask(client, "c01"), client.get("/v1/nothing")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


def test_a_change_of_policy_reaches_a_running_server(
    project: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.serve.api.RELOAD_SECONDS", 0.01)
    client = serve(project)
    before = ask(client, "c01").json()["versions"]["policy"]
    policy = project / "serving" / "policy.toml"
    policy.write_text(policy.read_text().replace("at_most = 2", "at_most = 20"))
    for _ in range(500):
        after = ask(client, "c01").json()["versions"]["policy"]
        if after != before:
            break
        time.sleep(0.01)
    assert after != before


SECRETS = {
    "customer_id": "person-4711@example.org",
    "outcome_id": "till-receipt-0815",
    "event_id": "cookie-of-jane",
    "item": "a-book-about-illness",
    "idempotency_key": "session-of-jane-doe",
    "weather": "i live in elm street",
    "placement": "in-front-of-jane",
    "token": "nb_0123456789ab_" + "J" * 43,
    "nonsense": "jane-in-a-broken-body",
    "path": "jane-in-a-path",
    "exception": "jane-in-an-error",
}


def test_nothing_personal_and_no_secret_is_in_any_line_of_the_log(
    project: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every logger at its most talkative, every call, and all that can go wrong with it."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 50)
    store = open_store(project)
    key, token = create_key(store, "ops", ["admin"])
    store.close()
    secrets = {**SECRETS, "real token": token, "its secret": token.split("_", 2)[2]}
    client = serve(project, insecure=False)
    client.headers["X-API-Key"] = token
    who = secrets["customer_id"]
    asked = {"customer_id": who, "channel": "mail", "placement": secrets["placement"],
             "idempotency_key": secrets["idempotency_key"],
             "context": {"weather": secrets["weather"]}}  # fmt: skip
    report = {**REPORT, "customer_id": who, "outcome_id": secrets["outcome_id"]}
    event = {"event_id": secrets["event_id"], "customer_id": who, "event_type": "visit",
             "event_at": REPORT["occurred_at"], "item": secrets["item"]}  # fmt: skip

    def everything() -> set[int]:
        seen = set()
        for explain in (False, True):
            more = {"explain": explain, "idempotency_key": f"{who} {explain}"}
            seen.add(client.post("/v1/decisions", json={**asked, **more}).status_code)
        batch = {**asked, "customer_ids": [who, "c01"]}
        del batch["customer_id"]
        for path, body in (
            ("/v1/decisions", asked), ("/v1/decisions", {**asked, "limit": 3}),
            ("/v1/decisions/batch", batch), ("/v1/outcomes", report),
            ("/v1/outcomes", {**report, "value": 2.0}), ("/v1/outcomes", [report, report]),
            ("/v1/outcomes", {**report, "offer_id": secrets["nonsense"]}),
            ("/v1/events", event), ("/v1/events", {**event, "value": 2.0}),
            ("/v1/events", {**event, "event_at": secrets["nonsense"]}),
            ("/v1/decisions", {secrets["nonsense"]: secrets["nonsense"]}),
            ("/v1/decisions", {**asked, "channel": secrets["nonsense"]}),
        ):  # fmt: skip
            seen.add(client.post(path, json=body).status_code)
        broken = f'{{"{secrets["nonsense"]}": '
        json_type = {"Content-Type": "application/json"}
        seen.add(client.post("/v1/outcomes", content=broken, headers=json_type).status_code)
        forged = {"X-API-Key": secrets["token"]}
        seen.add(client.get(f"/v1/customers/{who}", headers=forged).status_code)
        for path in (f"/v1/customers/{who}", f"/v1/customers/{who}/export", f"/{secrets['path']}",
                     f"/v1/decisions/{secrets['path']}", f"/v1/offers?name={who}"):  # fmt: skip
            seen.add(client.get(path).status_code)
        return seen

    assert {200, 400, 401, 404, 409, 422} <= everything()
    blocker = sqlite3.connect(project / ".nextbest" / "store.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    assert 503 in everything()
    assert client.delete(f"/v1/customers/{who}").status_code == 503
    blocker.execute("ROLLBACK")
    blocker.close()

    def fails(*_: object, **__: object) -> Any:
        try:
            {}[who]
        except KeyError as missing:
            raise RuntimeError(secrets["exception"]) from missing

    with monkeypatch.context() as patch:
        patch.setattr("nextbest.serve.decisions.decide_for", fails)
        patch.setattr("nextbest.serve.person.profile_of", fails)
        assert 500 in everything()
    assert client.delete(f"/v1/customers/{who}").status_code == 200
    revoke = open_store(project)
    revoke_key(revoke, key.key_id)
    revoke.close()

    ours = capfd.readouterr().err
    assert len(ours.splitlines()) > 60
    events = {json.loads(line)["event"] for line in ours.splitlines()}
    assert {"request", "internal error", "store unavailable"} <= events
    formatter = logging.Formatter("%(name)s %(message)s %(fields)s", defaults={"fields": ""})
    others = [
        formatter.format(logging.makeLogRecord({**vars(r), "exc_info": None, "exc_text": None}))
        for r in caplog.records
        if not r.name.startswith(("httpx", "httpcore", "asyncio"))  # the test's own client
    ]
    for name, secret in secrets.items():
        assert secret not in ours, name
        assert not [line for line in others if secret in line], name
