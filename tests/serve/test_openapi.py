"""The documentation cannot drift: examples are valid, and every error code is real."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nextbest.serve import schemas
from nextbest.serve.auth import create_key
from nextbest.serve.openapi import EXAMPLES
from nextbest.serve.parsing import parse, parse_events, parse_outcomes
from nextbest.serve.problems import CODES, MEDIA_TYPE
from nextbest.serve.runtime import open_store
from nextbest.serve.writer import WriterFullError

Serve = Callable[..., TestClient]
ASK = {"customer_id": "c01", "channel": "mail"}
REPORT = {
    "outcome_id": "o1",
    "customer_id": "c01",
    "offer_id": "a",
    "outcome_type": "click",
    "occurred_at": "2020-03-02T08:00:00Z",
}


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/openapi.json").json()
    return content


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_call_of_the_design_is_documented(document: dict[str, Any]) -> None:
    assert {(method, path) for path, method, _ in operations(document)} == {
        ("post", "/v1/decisions"),
        ("post", "/v1/decisions/batch"),
        ("get", "/v1/decisions/{decision_id}"),
        ("post", "/v1/outcomes"),
        ("post", "/v1/events"),
        ("get", "/v1/customers/{customer_id}"),
        ("delete", "/v1/customers/{customer_id}"),
        ("get", "/v1/customers/{customer_id}/export"),
        ("get", "/v1/offers"),
        ("get", "/v1/models"),
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }
    for _, _, operation in operations(document):
        assert operation["summary"] and operation["description"]


@pytest.mark.parametrize("model", sorted(EXAMPLES))
def test_every_example_fits_its_model(model: str) -> None:
    for example in EXAMPLES[model].values():
        getattr(schemas, model).model_validate_json(json.dumps(example))


def test_request_examples_are_taken_as_they_are(document: dict[str, Any]) -> None:
    parsers = {
        "/v1/decisions": lambda body: parse(schemas.DecisionRequest, body),
        "/v1/decisions/batch": lambda body: parse(schemas.BatchRequest, body),
        "/v1/outcomes": parse_outcomes,
        "/v1/events": parse_events,
    }
    seen = 0
    for path, _, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        for example in content.get("application/json", {}).get("examples", {}).values():
            parsers[path](json.dumps(example["value"]).encode())
            seen += 1
    assert seen >= 6


def test_every_answer_has_an_example_and_every_error_example_is_a_problem(
    document: dict[str, Any],
) -> None:
    for path, _, operation in operations(document):
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type == "application/json" and status in ("200", "207"):
                    assert content["examples"], (path, status)
                if media_type == MEDIA_TYPE and status != "default":
                    for code, example in content["examples"].items():
                        problem = schemas.ProblemAnswer.model_validate(example["value"])
                        assert (problem.code, str(problem.status)) == (code, status)
                        assert problem.status in CODES[code].statuses


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(document))
    assert len(found) > 10
    for reference in found:
        assert reference.rpartition("/")[2] in document["components"]["schemas"], reference


def test_limits_are_in_the_document(document: dict[str, Any]) -> None:
    models = document["components"]["schemas"]
    assert models["DecisionRequest"]["properties"]["limit"]["maximum"] == 50
    assert models["DecisionRequest"]["additionalProperties"] is False
    assert models["BatchRequest"]["properties"]["customer_ids"]["maxItems"] == 1_000
    types = models["OutcomeReport"]["properties"]["outcome_type"]["enum"]
    assert types == list(schemas.OUTCOME_TYPES)


def test_every_code_is_in_the_table_of_the_documentation(
    client: TestClient, document: dict[str, Any]
) -> None:
    for code in CODES:
        assert f"| `{code}` |" in document["info"]["description"]
    assert client.get("/docs").status_code == 200


def test_every_code_of_a_single_call_is_documented_with_it(document: dict[str, Any]) -> None:
    documented = {
        code
        for _, _, operation in operations(document)
        for response in operation["responses"].values()
        for code in response.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    }
    assert set(CODES) - documented == {"not-found", "method-not-allowed"}


def decide(client: TestClient, **more: Any) -> Any:
    return client.post("/v1/decisions", json={**ASK, **more})


def report(client: TestClient, **more: Any) -> Any:
    return client.post("/v1/outcomes", json={**REPORT, **more})


def happen(client: TestClient, **more: Any) -> Any:
    event = {"event_id": "e", "customer_id": "c01", "event_type": "visit"}
    return client.post("/v1/events", json={**event, "event_at": "2020-03-02T08:00:00Z", **more})


def twice(call: Callable[..., Any], client: TestClient, first: Any, second: Any) -> Any:
    assert call(client, **first).status_code == 200
    return call(client, **second)


# How to meet each code, given a running client.
MEET: dict[str, Callable[[TestClient], Any]] = {
    "malformed-json": lambda c: c.post(
        "/v1/decisions", content="{", headers={"Content-Type": "application/json"}
    ),
    "not-found": lambda c: c.get("/nothing"),
    "unknown-customer": lambda c: c.get("/v1/customers/nobody"),
    "unknown-decision": lambda c: c.get("/v1/decisions/none"),
    "method-not-allowed": lambda c: c.delete("/v1/outcomes"),
    "idempotency-conflict": lambda c: twice(
        decide, c, {"idempotency_key": "k"}, {"idempotency_key": "k", "limit": 2}
    ),
    "outcome-conflict": lambda c: twice(report, c, {}, {"value": 1.0}),
    "event-conflict": lambda c: twice(happen, c, {}, {"value": 1.0}),
    "event-in-future": lambda c: happen(c, event_at="2030-01-01T00:00:00Z"),
    "body-too-large": lambda c: decide(c, placement="x" * 3_000_000),
    "unsupported-media-type": lambda c: c.post("/v1/decisions", content="{}"),
    "invalid-request": lambda c: decide(c, limit=0),
    "unknown-channel": lambda c: decide(c, channel="pigeon"),
    "unknown-offer": lambda c: report(c, offer_id="x"),
    "offer-not-in-decision": lambda c: report(
        c, decision_id=decide(c).json()["decision_id"], offer_id="c"
    ),
    "customer-mismatch": lambda c: report(
        c, decision_id=decide(c).json()["decision_id"], customer_id="c02"
    ),
    "outcome-before-decision": lambda c: report(
        c, decision_id=decide(c).json()["decision_id"], occurred_at="2020-02-01T08:00:00Z"
    ),
    "outcome-in-future": lambda c: report(c, occurred_at="2030-01-01T00:00:00Z"),
}


@pytest.mark.parametrize("code", sorted(MEET))
def test_a_code_can_be_met(client: TestClient, code: str) -> None:
    assert MEET[code](client).json()["code"] == code


def full(*_: object) -> None:
    raise WriterFullError("1 write waits already")


def test_the_other_codes_can_be_met_too(
    project: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that need a server of another kind; together with `MEET` they are all there are."""
    met = {}
    store = open_store(project)
    _, token = create_key(store, "reader", ["read"])
    store.close()
    closed = serve(project, insecure=False)
    met["unauthenticated"] = decide(closed)
    met["forbidden"] = closed.post("/v1/decisions", json=ASK, headers={"X-API-Key": token})

    store = open_store(project)
    _, seldom = create_key(store, "seldom", ["read"], requests_per_minute=1)
    store.close()
    for _ in range(2):
        met["rate-limited"] = closed.get("/v1/offers", headers={"X-API-Key": seldom})

    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 50)
    client = serve(project)
    blocker = sqlite3.connect(project / ".nextbest" / "store.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    met["store-unavailable"] = decide(client)
    blocker.close()

    with monkeypatch.context() as patch:
        patch.setattr("nextbest.serve.writer.GroupWriter.submit", full)
        met["overloaded"] = decide(client)
    with monkeypatch.context() as patch:
        patch.setenv("NEXTBEST_DEADLINE", "1e-9")
        met["deadline-exceeded"] = decide(serve(project))

    with monkeypatch.context() as patch:
        patch.setattr("nextbest.serve.decisions.new_decision_ids", lambda n: n / 0)
        met["internal-error"] = decide(client)

    shutil.rmtree(project / ".nextbest" / "serving")
    met["not-ready"] = decide(serve(project))

    assert {code: response.json()["code"] for code, response in met.items()} == {
        code: code for code in met
    }
    assert met.keys() | MEET.keys() == set(CODES)
