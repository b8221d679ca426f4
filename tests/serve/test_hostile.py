"""What attackers send, on every call: refused with a problem, kept nowhere, and never run."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.serve.api import create_app
from nextbest.serve.http import MAX_BODY_BYTES
from nextbest.serve.problems import MEDIA_TYPE
from nextbest.serve.schemas import ProblemAnswer

JSON = {"Content-Type": "application/json"}
# A body that each call takes, to be spoilt one field at a time.
GOOD: dict[str, dict[str, Any]] = {
    "/v1/decisions": {"customer_id": "c01", "channel": "mail"},
    "/v1/decisions/batch": {"customer_ids": ["c01"], "channel": "mail"},
    "/v1/outcomes": {
        "outcome_id": "o1",
        "customer_id": "c01",
        "offer_id": "a",
        "outcome_type": "click",
        "occurred_at": "2020-03-02T08:00:00Z",
    },
    "/v1/events": {
        "event_id": "e1",
        "customer_id": "c01",
        "event_type": "visit",
        "event_at": "2020-03-02T08:00:00Z",
    },
}


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(template, tmp_path_factory.mktemp("hostile") / "shop"))


@pytest.fixture(scope="module")
def client(project: Path) -> Iterator[TestClient]:
    app = create_app(project, insecure=True, clock=lambda: shop.NOW)
    with TestClient(app, raise_server_exceptions=False) as running:
        yield running


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def refused(response: Any, *statuses: int) -> Any:
    """A problem that says what is wrong without repeating it at length."""
    assert response.status_code in (statuses or range(400, 500)), response.text[:500]
    assert response.headers["content-type"] == MEDIA_TYPE
    found = ProblemAnswer.model_validate(response.json())
    assert found.status == response.status_code
    assert len(response.content) < 50_000
    return found


def bodies(document: dict[str, Any]) -> list[str]:
    """Every call that takes a body, so that a new one is tried too."""
    return [
        path
        for path, methods in document["paths"].items()
        if "requestBody" in methods.get("post", {})
    ]


def test_every_call_with_a_body_is_tried(document: dict[str, Any]) -> None:
    assert set(bodies(document)) == set(GOOD)


NESTED = {
    "lists": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "unclosed": b"[" * 1_000_000,
    "in a field": b'{"customer_id": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "in the context": b'{"customer_id": "c", "channel": "mail", "context": {"a": '
    + b'{"b":' * 50_000 + b"1" + b"}" * 50_000 + b"}}",
    "just 300 deep": b'{"context": ' + b"[" * 300 + b"]" * 300 + b"}",
}  # fmt: skip
BROKEN = {
    "not UTF-8": b'{"customer_id": "\xff\xfe", "channel": "mail"}',
    "cut in a character": b'{"customer_id": "\xc3", "channel": "mail"}',
    "overlong": b'{"customer_id": "\xc0\xaf", "channel": "mail"}',
    "a surrogate in UTF-8": b'{"customer_id": "\xed\xa0\x80", "channel": "mail"}',
    "a lone surrogate": b'{"customer_id": "\\ud800", "channel": "mail"}',
    "UTF-16": '{"customer_id": "c01", "channel": "mail"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"customer_id": "c01", "channel": "mail"}',
    "two documents": b'{"customer_id": "c01", "channel": "mail"} {}',
    "nothing": b"",
    "a comment": b'{"customer_id": "c01", "channel": "mail"} // x',
    "single quotes": b"{'customer_id': 'c01', 'channel': 'mail'}",
}
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5_000, "1e400", "0x10", "01",
           "1_000", "+1", ".5")  # fmt: skip


@pytest.mark.parametrize("body", [*NESTED.values(), *BROKEN.values()], ids=[*NESTED, *BROKEN])
def test_bodies_that_are_no_json_or_too_deep(
    client: TestClient, document: dict[str, Any], body: bytes
) -> None:
    for path in bodies(document):
        refused(client.post(path, content=body, headers=JSON), 400, 422)


@pytest.mark.parametrize("number", NUMBERS, ids=[n[:10] for n in NUMBERS])
def test_numbers_that_are_none_or_too_large(client: TestClient, number: str) -> None:
    for path, field in (("/v1/decisions", "limit"), ("/v1/decisions/batch", "limit"),
                        ("/v1/outcomes", "value"), ("/v1/events", "value"),
                        ("/v1/decisions", "context")):  # fmt: skip
        value = f'{{"basket_value": {number}}}' if field == "context" else number
        body = json.dumps(GOOD[path])[:-1] + f', "{field}": {value}}}'
        refused(client.post(path, content=body, headers=JSON), 400, 422)


def test_bodies_that_are_too_large_or_hold_too_many(
    client: TestClient, document: dict[str, Any]
) -> None:
    for path in bodies(document):
        for padding in (b" " * MAX_BODY_BYTES + b"{}", b'{"a": "' + b"x" * MAX_BODY_BYTES + b'"}'):
            refused(client.post(path, content=padding, headers=JSON), 413)
    for path, name in (("/v1/outcomes", "outcome_id"), ("/v1/events", "event_id")):
        many = [{**GOOD[path], name: str(i)} for i in range(1_001)]
        refused(client.post(path, json=many), 422)
    ids = [str(i) for i in range(1_001)]
    refused(client.post("/v1/decisions/batch", json={"customer_ids": ids, "channel": "mail"}), 422)


LONG = "k" * 1_000_000
BOMBS = {
    "a long key": {LONG: 1},
    "a long key in the context": {"context": {LONG: 1}},
    "very many keys": {f"k{i}": i for i in range(30_000)},
    "very many in the context": {"context": {f"k{i}": i for i in range(30_000)}},
    "a long text": {"channel": LONG},
    "a long id": {"customer_id": LONG},
    "many wrong ids": {"customer_ids": [1] * 200_000},
}


@pytest.mark.parametrize("what", BOMBS)
def test_keys_and_texts_beyond_measure_get_a_short_answer(client: TestClient, what: str) -> None:
    for path, good in GOOD.items():
        body = json.dumps({**good, **BOMBS[what]}).encode()
        found = refused(client.post(path, content=body, headers=JSON), 422)
        assert len(found.errors) <= 50
        if what == "very many keys":
            assert found.detail.endswith("faults: too many to name them.")


INJECTED = (
    "' OR '1'='1", "'; DROP TABLE decisions; --", '" OR ""="', "1; SELECT pg_sleep(10)", "c01' --",
    "%' OR customer_id LIKE '%", "TRUE", "1 = 1", "a' or true or 'a' = 'a", "__import__('os')",
    "{{7*7}}", "${jndi:ldap://x}", "$(touch /tmp/x)", "`id`", "../../etc/passwd", "..\\..\\x",
    "\u202egnp.exe", "c01\u2028", "\ufeffc01", "<script>alert(1)</script>", "c01 ", "C01", "ｃ01",
)  # fmt: skip


@pytest.mark.parametrize("text", INJECTED)
def test_text_is_text_wherever_it_is_sent(client: TestClient, project: Path, text: str) -> None:
    """No statement, rule or path: it is a stranger's name, another channel, an unknown offer."""
    asked = {"customer_id": text, "channel": "mail", "placement": text,
             "context": {"weather": text}, "idempotency_key": "k " + text}  # fmt: skip
    answer = client.post("/v1/decisions", json=asked)
    assert answer.status_code == 200 and answer.json()["fallback"] is True
    decision_id = answer.json()["decision_id"]
    stored = client.get(f"/v1/decisions/{decision_id}").json()["request"]
    assert (stored["customer_id"], stored["context"]) == (text, {"weather": text})
    for change in ({"channel": text}, {"context": {text: 1, "basket_value": text}}):
        refused(client.post("/v1/decisions", json={**GOOD["/v1/decisions"], **change}), 422)
    report = {**GOOD["/v1/outcomes"], "outcome_id": "o " + text}
    refused(client.post("/v1/outcomes", json={**report, "offer_id": text}), 422)
    refused(client.post("/v1/outcomes", json={**report, "decision_id": text}), 422)
    assert client.post("/v1/outcomes", json={**report, "customer_id": text}).status_code == 200
    event = {**GOOD["/v1/events"], "event_id": "e " + text, "customer_id": text, "item": text}
    assert client.post("/v1/events", json=event).status_code == 200
    with sqlite3.connect(project / ".nextbest" / "store.db") as connection:
        query = "SELECT item FROM customer_events WHERE event_id = ?"
        assert connection.execute(query, ["e " + text]).fetchall() == [(text,)]
        query = "SELECT customer_id FROM outcomes WHERE outcome_id = ?"
        assert connection.execute(query, ["o " + text]).fetchall() == [(text,)]
    address = quote(text, safe="")
    refused(client.get(f"/v1/customers/{address}"), 404)
    refused(client.get(f"/v1/decisions/{address}"), 404)


def test_a_rule_reads_context_as_a_value_and_never_as_a_rule(client: TestClient) -> None:
    """The rule is ``weather = 'rain'``: text that would end its quotation changes nothing."""
    weights = {}
    for weather in ("rain", "sun", "' or true or '", "rain' or '1'='1"):
        asked = {"customer_id": "c04", "channel": "mail", "explain": True,
                 "context": {"weather": weather}}  # fmt: skip
        trace = client.post("/v1/decisions", json=asked).json()["trace"]
        (bread,) = (one for one in trace["offers"] if one["offer_id"] == "b")
        weights[weather] = bread["numbers"]["context_weight"]
    assert weights == {"rain": 100.0, "sun": 1.0, "' or true or '": 1.0, "rain' or '1'='1": 1.0}


PATHS = (
    "/v1/customers/../decisions", "/v1/customers/..%2f..%2fetc%2fpasswd", "/v1/customers/%2e%2e",
    "/v1/customers/%2e%2e%2f%2e%2e%2f.nextbest%2fstore.db", "/v1/decisions/..%5c..%5cx",
    "/v1/decisions/%252e%252e%252f", "/v1/customers//", "/.nextbest",
    "/docs/../../.nextbest/store.db", "/v1/customers/c01%00", "/v1/customers/%00",
    "/v1/decisions/%00", "/v1/customers/%0d%0aSet-Cookie:%20a=b", "/v1/customers/%ff%fe",
    "/v1/customers/%ed%a0%80", "/v1/customers/" + "x" * 20_000, "/v1/customers/c01/export/../..",
    "/v1/customers/%00/export", "/v1/customers/" + "%2e%2e%2f" * 500 + "export", "//evil.example/",
    "/v1/customers/c01;export", "/openapi.json/..", "/v1%2fcustomers%2fnobody",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=[p[:40] for p in PATHS])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_paths_that_lead_elsewhere_lead_nowhere(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, client.base_url.copy_with(raw_path=path.encode()))
    if method == "DELETE" and response.status_code == 200:  # a stranger of that name
        assert not any(response.json()["removed"].values())
    else:
        refused(response, 404, 405)
    assert "set-cookie" not in response.headers
    assert client.get("/v1/customers/c01").status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "FOO"])
def test_methods_that_no_call_takes(client: TestClient, method: str) -> None:
    for path in GOOD:
        refused(client.request(method, path), 405)


def test_headers_that_lie(client: TestClient) -> None:
    body = json.dumps(GOOD["/v1/decisions"])
    for headers in (
        {"Content-Type": "application/json; charset=utf-16"},
        {**JSON, "Content-Encoding": "gzip"},
        {**JSON, "X-HTTP-Method-Override": "DELETE"},
        {**JSON, "Host": "evil.example"},
        {**JSON, "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "evil.example"},
    ):
        answer = client.post("/v1/decisions", content=body, headers=headers)
        assert answer.status_code == 200 and "evil" not in answer.text
    for token in ("nb_" + "é" * 12, "nb_\x7f", " ", "nb_0123456789ab_" + "A" * 100_000):
        header = {"X-API-Key": token.encode("utf-8")}
        assert client.get("/v1/offers", headers=header).status_code == 200  # no keys here


def test_after_all_that_the_store_is_whole(client: TestClient, project: Path) -> None:
    with sqlite3.connect(project / ".nextbest" / "store.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert client.get("/readyz").json()["ready"] is True
