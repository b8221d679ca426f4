"""Every way to be wrong gets its own clear problem document, and none brings the server down."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextbest.serve.auth import create_key
from nextbest.serve.problems import CODES, MEDIA_TYPE, pointer
from nextbest.serve.runtime import open_store
from nextbest.serve.schemas import ProblemAnswer

Serve = Callable[..., TestClient]
JSON = {"Content-Type": "application/json"}
ASK = {"customer_id": "c01", "channel": "mail"}
REPORT = {
    "outcome_id": "o1",
    "customer_id": "c01",
    "offer_id": "a",
    "outcome_type": "click",
    "occurred_at": "2020-03-02T08:00:00Z",
}


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """Check that a response is a complete problem document, and return it."""
    assert response.headers["content-type"] == MEDIA_TYPE
    content: dict[str, Any] = response.json()
    ProblemAnswer.model_validate(content)
    assert (response.status_code, content["status"], content["code"]) == (status, status, code)
    assert status in CODES[code].statuses
    assert content["title"] == CODES[code].title
    assert content["instance"] == response.request.url.path
    assert "Traceback" not in response.text
    return content


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"customer_id": "c01",}',
        b"\xff\xfe",
        b'{"customer_id": "\xc3\x28"}',
        b'{"customer_id": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"limit": 1' + b"0" * 10_000 + b"}",
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/decisions", "/v1/decisions/batch", "/v1/outcomes", "/v1/events"]
)
def test_malformed_json(client: TestClient, path: str, body: bytes) -> None:
    problem(client.post(path, content=body, headers=JSON), 400, "malformed-json")


@pytest.mark.parametrize(
    ("path", "base", "change", "where", "says"),
    [
        ("/v1/decisions", ASK, {"customer_id": 1}, "/customer_id", "got a number"),
        ("/v1/decisions", ASK, {"customer_id": ""}, "/customer_id", "at least 1 character"),
        ("/v1/decisions", ASK, {"customer_id": "x" * 129}, "/customer_id", "at most 128"),
        ("/v1/decisions", ASK, {"customer_id": "a\nb"}, "/customer_id", "pattern"),
        ("/v1/decisions", ASK, {"customer_id": "a\x00"}, "/customer_id", "pattern"),
        ("/v1/decisions", ASK, {"customer_id": ...}, "/customer_id", "missing"),
        ("/v1/decisions", ASK, {"channel": None}, "/channel", "got null"),
        ("/v1/decisions", ASK, {"limit": 0}, "/limit", "greater than or equal to 1"),
        ("/v1/decisions", ASK, {"limit": 51}, "/limit", "less than or equal to 50"),
        ("/v1/decisions", ASK, {"limit": 1.5}, "/limit", "integer"),
        ("/v1/decisions", ASK, {"limit": True}, "/limit", "integer"),
        ("/v1/decisions", ASK, {"limit": "2"}, "/limit", "got text"),
        ("/v1/decisions", ASK, {"limit": 10**30}, "/limit", "less than or equal to 50"),
        ("/v1/decisions", ASK, {"explain": "yes"}, "/explain", "boolean"),
        ("/v1/decisions", ASK, {"context": []}, "/context", "got a list"),
        ("/v1/decisions", ASK, {"context": {"x": []}}, "/context/x", "text, a number"),
        ("/v1/decisions", ASK, {"context": {"a/b~": {}}}, "/context/a~1b~0", "text, a number"),
        ("/v1/decisions", ASK, {"context": {"x": 10**400}}, "/context/x", "1e15"),
        ("/v1/decisions", ASK, {"context": {"x": "y" * 1025}}, "/context/x", "1024"),
        ("/v1/decisions", ASK, {"context": {"a\n": 1}}, "/context/a\n", "The name"),
        ("/v1/decisions", ASK, {"context": {str(n): n for n in range(65)}}, "/context", "64"),
        ("/v1/decisions", ASK, {"context": {"weather": 3}}, "/context/weather", "Must be a string"),
        ("/v1/decisions", ASK, {"context": {"member": 1}}, "/context/member", "Must be a boolean"),
        (
            "/v1/decisions",
            ASK,
            {"context": {"basket_value": True}},
            "/context/basket_value",
            "Must be a number",
        ),
        (
            "/v1/decisions",
            ASK,
            {"context": {"last_visit": "0001-01-01T00:00+14:00"}},
            "/context/last_visit",
            "Must be a timestamp",
        ),
        ("/v1/decisions", ASK, {"custmer": "x"}, "/custmer", "Unknown field"),
        ("/v1/decisions", ASK, {"chanel": "x"}, "/chanel", 'Did you mean "channel"?'),
        ("/v1/decisions/batch", {"channel": "mail"}, {}, "/customer_ids", "missing"),
        (
            "/v1/decisions/batch",
            {"channel": "mail"},
            {"customer_ids": []},
            "/customer_ids",
            "at least 1",
        ),
        (
            "/v1/decisions/batch",
            {"channel": "mail"},
            {"customer_ids": [str(n) for n in range(1001)]},
            "/customer_ids",
            "at most 1000",
        ),
        (
            "/v1/decisions/batch",
            {"channel": "mail"},
            {"customer_ids": ["a", "a"]},
            "",
            "each customer once",
        ),
        (
            "/v1/decisions/batch",
            {"channel": "mail"},
            {"customer_ids": ["a", 5]},
            "/customer_ids/1",
            "got a number",
        ),
        ("/v1/outcomes", REPORT, {"outcome_type": "clik"}, "/outcome_type", "one of impression"),
        ("/v1/outcomes", REPORT, {"occurred_at": "yesterday"}, "/occurred_at", "datetime"),
        ("/v1/outcomes", REPORT, {"occurred_at": 1583139600}, "/occurred_at", "got a number"),
        (
            "/v1/outcomes",
            REPORT,
            {"occurred_at": "2020-03-02T08:00:00"},
            "/occurred_at",
            "timezone",
        ),
        ("/v1/outcomes", REPORT, {"occurred_at": "1066-10-14T09:00:00Z"}, "/occurred_at", "1970"),
        ("/v1/outcomes", REPORT, {"occurred_at": "0001-01-01T00:00:00+14:00"}, "/occurred_at", ""),
        ("/v1/outcomes", REPORT, {"value": "5"}, "/value", "got text"),
        ("/v1/outcomes", REPORT, {"value": 1e300}, "/value", "less than"),
        ("/v1/outcomes", REPORT, {"offer_id": ...}, "", "a customer_id and an offer_id"),
        ("/v1/outcomes", REPORT, {"outcome_id": ...}, "/outcome_id", "missing"),
    ],
)
def test_a_fault_in_the_request_is_named_with_its_place(
    client: TestClient, path: str, base: dict[str, Any], change: Any, where: str, says: str
) -> None:
    body = {k: v for k, v in {**base, **change}.items() if v is not ...}
    found = problem(client.post(path, json=body), 422, "invalid-request")
    details = {error["pointer"]: error["detail"] for error in found["errors"]}
    assert where in details, details
    assert says in details[where]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "body",
    [
        '{"customer_id": "c01", "channel": "mail", "context": {"basket_value": %s}}',
        '{"customer_id": "c01", "channel": "mail", "limit": %s}',
    ],
)
def test_numbers_that_are_none_are_refused(client: TestClient, body: str, number: str) -> None:
    response = client.post("/v1/decisions", content=body % number, headers=JSON)
    assert response.status_code in (400, 422)
    problem(response, response.status_code, response.json()["code"])


def test_every_fault_is_reported_at_once(client: TestClient) -> None:
    response = client.post("/v1/decisions", json={"customer_id": 1, "limit": 0, "foo": 1})
    found = problem(response, 422, "invalid-request")
    pointers = {error["pointer"] for error in found["errors"]}
    assert pointers == {"/customer_id", "/channel", "/limit", "/foo"}


@pytest.mark.parametrize("body", ["null", "[]", '"text"', "5"])
def test_a_body_of_another_kind_is_refused(client: TestClient, body: str) -> None:
    problem(client.post("/v1/decisions", content=body, headers=JSON), 422, "invalid-request")


def test_an_unknown_channel_comes_with_a_hint(client: TestClient) -> None:
    response = client.post("/v1/decisions", json={**ASK, "channel": "emial"})
    found = problem(response, 422, "unknown-channel")
    assert 'Did you mean "email"?' in found["detail"]
    assert found["errors"][0]["pointer"] == "/channel"


def test_a_body_that_is_too_large_is_refused(client: TestClient) -> None:
    body = b'{"customer_id": "' + b"x" * 3_000_000 + b'"}'
    problem(client.post("/v1/decisions", content=body, headers=JSON), 413, "body-too-large")


def test_a_body_that_comes_in_pieces_is_measured_too(client: TestClient) -> None:
    pieces = (b"x" * 1_000_000 for _ in range(3))
    problem(client.post("/v1/decisions", content=pieces, headers=JSON), 413, "body-too-large")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_browser_would_send_unasked_is_refused(
    client: TestClient, media_type: str
) -> None:
    response = client.post(
        "/v1/decisions", content=json.dumps(ASK), headers={"Content-Type": media_type}
    )
    problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/decisions/", "/v1/customers/a/b"])
def test_an_unknown_path(client: TestClient, path: str) -> None:
    problem(client.get(path, follow_redirects=False), 404, "not-found")


def test_a_method_that_the_path_does_not_take(client: TestClient) -> None:
    response = client.put("/v1/outcomes", json=REPORT)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("customer_id", ["nobody", "C01", "c0", "c011", "c01%00", "%00", "é"])
def test_an_unknown_customer(client: TestClient, customer_id: str) -> None:
    problem(client.get(f"/v1/customers/{customer_id}"), 404, "unknown-customer")


@pytest.mark.parametrize("decision_id", ["none-such", "%00", "x" * 500, "' OR 1=1 --"])
def test_an_unknown_decision(client: TestClient, decision_id: str) -> None:
    problem(client.get(f"/v1/decisions/{decision_id}"), 404, "unknown-decision")


def test_keys_and_scopes_are_asked_for(project: Path, serve: Serve) -> None:
    store = open_store(project)
    tokens = {scope: create_key(store, scope, [scope])[1] for scope in ("decide", "read", "admin")}
    store.close()
    client = serve(project, insecure=False)
    response = client.post("/v1/decisions", json=ASK)
    problem(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    for headers in (
        {"Authorization": f"Bearer {tokens['decide']}x"},
        {"Authorization": f"Basic {tokens['decide']}"},
        {"X-API-Key": ""},
    ):
        problem(client.post("/v1/decisions", json=ASK, headers=headers), 401, "unauthenticated")
    read = {"Authorization": f"Bearer {tokens['read']}"}
    found = problem(client.post("/v1/decisions", json=ASK, headers=read), 403, "forbidden")
    assert '"decide"' in found["detail"]
    for headers in (
        {"Authorization": f"Bearer {tokens['decide']}"},
        {"X-API-Key": tokens["decide"]},
        {"X-API-Key": tokens["admin"]},
    ):
        assert client.post("/v1/decisions", json=ASK, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/decisions", "decide"),
        ("POST", "/v1/decisions/batch", "decide"),
        ("GET", "/v1/decisions/x", "read"),
        ("POST", "/v1/outcomes", "outcomes"),
        ("POST", "/v1/events", "outcomes"),
        ("GET", "/v1/customers/x", "read"),
        ("DELETE", "/v1/customers/x", "admin"),
        ("GET", "/v1/customers/x/export", "admin"),
        ("GET", "/v1/offers", "read"),
        ("GET", "/v1/models", "read"),
        ("GET", "/metrics", "read"),
    ],
)
def test_every_route_asks_for_its_own_scope(
    project: Path, serve: Serve, method: str, path: str, scope: str
) -> None:
    store = open_store(project)
    others = {"decide", "outcomes", "read"} - {scope}
    _, wrong = create_key(store, "wrong", sorted(others))
    _, right = create_key(store, "right", [scope])
    store.close()
    client = serve(project, insecure=False)
    assert client.request(method, path).status_code == 401
    assert client.request(method, path, headers={"X-API-Key": wrong}).status_code == 403
    assert client.request(method, path, headers={"X-API-Key": right}).status_code not in (401, 403)


def test_health_needs_no_key(project: Path, serve: Serve) -> None:
    client = serve(project, insecure=False)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200


def test_without_a_bundle_the_server_runs_and_says_what_is_missing(
    project: Path, serve: Serve
) -> None:
    shutil.rmtree(project / ".nextbest" / "serving")
    client = serve(project)
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "nextbest refresh" in ready.json()["parts"]["bundle"]["detail"]
    response = client.post("/v1/decisions", json=ASK)
    problem(response, 503, "not-ready")
    assert int(response.headers["retry-after"]) > 0


def test_a_store_that_fails_is_a_503_and_nothing_is_acknowledged(
    project: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 50)
    client = serve(project)
    blocker = sqlite3.connect(project / ".nextbest" / "store.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for path, body in (("/v1/decisions", ASK), ("/v1/outcomes", REPORT)):
        response = client.post(path, json=body)
        problem(response, 503, "store-unavailable")
        assert int(response.headers["retry-after"]) > 0
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["store"]["ready"]) == (503, False)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert client.post("/v1/outcomes", json=REPORT).json()["results"][0]["status"] == "stored"
    assert client.get("/readyz").status_code == 200


def test_a_store_that_cannot_be_opened_is_a_503_until_it_can(project: Path, serve: Serve) -> None:
    store = project / ".nextbest" / "store.db"
    store.mkdir()
    client = serve(project)
    problem(client.post("/v1/decisions", json=ASK), 503, "store-unavailable")
    store.rmdir()
    assert client.post("/v1/decisions", json=ASK).status_code == 200


def test_what_breaks_inside_is_a_500_with_an_id_that_the_log_explains(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError(" ".join(["secret", "inside"]))

    monkeypatch.setattr("nextbest.serve.decisions.decide_for", broken)
    response = client.post("/v1/decisions", json=ASK)
    found = problem(response, 500, "internal-error")
    assert "secret inside" not in response.text
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"] == "internal error"]
    assert line["error_id"] == found["error_id"]
    # Where and what, but not the message: it may hold what the caller sent.
    assert line["traceback"].endswith("RuntimeError") and "in broken" in line["traceback"]
    assert "secret inside" not in "".join(json.dumps(one) for one in lines)
    monkeypatch.setenv("NEXTBEST_DEBUG", "1")
    client.post("/v1/decisions", json=ASK)
    assert "RuntimeError: secret inside" in capfd.readouterr().err


def test_pointers_escape_as_rfc_6901_says() -> None:
    assert pointer(["a/b", "m~n", 0]) == "/a~1b/m~0n/0"
    assert pointer([]) == ""


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
fields = st.sampled_from(
    ["customer_id", "customer_ids", "channel", "context", "limit", "explain", "idempotency_key",
     "placement", "outcome_id", "decision_id", "offer_id", "outcome_type", "occurred_at", "value",
     "event_id", "event_type", "event_at"]
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from(["/v1/decisions", "/v1/decisions/batch", "/v1/outcomes", "/v1/events"]),
    body=anything
    | st.dictionaries(fields, anything)
    | st.builds(lambda more: {**ASK, **more}, st.dictionaries(fields, anything, max_size=2))
    | st.builds(lambda more: {**REPORT, **more}, st.dictionaries(fields, anything, max_size=2)),
)
def test_no_json_at_all_breaks_the_server(client: TestClient, path: str, body: Any) -> None:
    response = client.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        problem(response, response.status_code, response.json()["code"])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_break_the_server(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/decisions", content=body, headers=JSON)
    assert 400 <= response.status_code < 500
    problem(response, response.status_code, response.json()["code"])
