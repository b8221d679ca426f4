"""Metrics and logs say what happened, and never about whom."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

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
