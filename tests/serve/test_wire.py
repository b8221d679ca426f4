"""The shortest way, from the socket itself: what no client library would send, and when it ends."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import shop
from fastapi.testclient import TestClient
from wired import listening

from nextbest.serve import decisions, wire
from nextbest.serve.api import create_app
from nextbest.serve.auth import create_key
from nextbest.serve.decisions import Decider
from nextbest.serve.runtime import open_store
from nextbest.serve.wire import Desk


def question(customer_id: str = "c01", **more: Any) -> bytes:
    return json.dumps({"customer_id": customer_id, "channel": "mail", **more}).encode()


def request(body: bytes, *headers: str, line: str = "POST /v1/decisions HTTP/1.1") -> bytes:
    """A request as bytes; with its length, unless the headers say how the body comes."""
    told = ["Host: shop", "Content-Type: application/json", *headers]
    if not any(one.startswith("Transfer-Encoding") for one in headers):
        told.append(f"Content-Length: {len(body)}")
    return "\r\n".join([line, *told, "", ""]).encode() + body


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class Caller:
    """A connection that sends what it is told to."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        status = int(self.file.readline().split()[1])
        lines = iter(self.file.readline, b"\r\n")
        headers = dict(line.decode().rstrip().lower().split(": ", 1) for line in lines)
        return Answer(status, headers, self.file.read(int(headers.get("content-length", 0))))

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.answer()

    def is_closed(self) -> bool:
        return self.file.read(1) == b""


Call = Callable[[], Caller]


@pytest.fixture(scope="module")
def address(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    project = Path(shutil.copytree(template, tmp_path_factory.mktemp("wire") / "shop"))
    with listening(create_app(project, insecure=True, clock=lambda: shop.NOW)) as found:
        yield found


@pytest.fixture
def call(address: tuple[str, int]) -> Iterator[Call]:
    callers: list[Caller] = []

    def connect() -> Caller:
        callers.append(Caller(address))
        return callers[-1]

    # Whoever came a moment ago is known; before that each goes the ordinary way.
    assert connect().ask(request(question())).status == 200
    yield connect
    for caller in callers:
        caller.socket.close()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each question that came to the desk was taken in there."""
    told: list[bool] = []
    take = Desk.take

    def note(self: Desk, *given: Any) -> bool:
        told.append(take(self, *given))
        return told[-1]

    monkeypatch.setattr(Desk, "take", note)
    return told


def test_a_usual_question_takes_the_shortest_way(call: Call, taken: list[bool]) -> None:
    caller = call()
    ids = [caller.ask(request(question("c02"))).content["decision_id"] for _ in range(3)]
    assert taken == [True] * 3 and len(set(ids)) == 3


def test_bytes_may_come_one_by_one_and_in_chunks(call: Call, taken: list[bool]) -> None:
    caller = call()
    for byte in request(question("c03"), "X-Slow: yes"):
        caller.send(bytes([byte]))
    assert caller.answer().content["customer_id"] == "c03"
    body = question("c04")
    chunks = [body[:7], body[7:20], body[20:]]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"
    answer = caller.ask(request(coded, "Transfer-Encoding: chunked"))
    assert answer.content["customer_id"] == "c04"
    assert taken == [True, True]


def test_what_is_unusual_goes_the_ordinary_way(call: Call, taken: list[bool]) -> None:
    caller = call()
    assert caller.ask(request(question(), line="POST /v1/decisions?a=b HTTP/1.1")).status == 200
    assert taken == []
    assert "trace" in caller.ask(request(question(explain=True))).content
    assert caller.ask(request(b'{"channel": 1')).content["code"] == "malformed-json"
    assert taken == [False, False]
    # More than is kept waiting in memory before anybody looks at it.
    large = question(context={"basket_value": 1.0}).ljust(100_000)
    assert caller.ask(request(large)).status == 200
    too_large = caller.ask(request(b" " * (3 * 1024 * 1024)))
    assert (too_large.status, too_large.headers["connection"]) == (413, "close")
    assert taken == [False, False]


def test_who_waits_for_leave_to_send_the_body_gets_it(call: Call) -> None:
    caller, whole = call(), request(question(), "Expect: 100-continue")
    head, body = whole[: -len(question())], question()
    caller.send(head)
    assert caller.file.readline() == b"HTTP/1.1 100 Continue\r\n" and caller.file.readline()
    assert caller.ask(body).status == 200


def test_several_requests_in_one_breath_are_answered_in_their_order(
    call: Call, taken: list[bool]
) -> None:
    caller = call()
    get = b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n"
    parts = [request(question("c05")), get, request(question("c06")), request(question("c07"))]
    caller.send(b"".join(parts))
    answers = [caller.answer() for _ in parts]
    assert [one.status for one in answers] == [200] * 4
    told = [one.content.get("customer_id") for one in answers]
    assert told == ["c05", None, "c06", "c07"]
    assert caller.ask(request(question("c08"))).content["customer_id"] == "c08"
    assert taken == [True, True]  # the first, and the one that came alone


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("POST /v1/decisions HTTP/1.1", ["Connection: close"]),
        ("POST /v1/decisions HTTP/1.0", []),
    ],
)
def test_a_connection_ends_where_the_caller_wants_no_more(
    call: Call, line: str, headers: list[str]
) -> None:
    caller = call()
    answer = caller.ask(request(question(), *headers, line=line))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert caller.is_closed()


def test_nonsense_is_refused_and_others_are_served_on(call: Call) -> None:
    caller = call()
    assert caller.ask(b"NONSENSE\r\n\r\n").status == 400
    assert call().ask(request(question())).status == 200


def test_callers_who_go_away_leave_the_others_their_answers(call: Call) -> None:
    def one(number: int) -> int:
        caller = call()
        caller.send(request(question(f"c{number:02d}")))
        if number % 3 == 0:
            caller.socket.close()
            return 0
        return caller.answer().status

    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(one, range(36)))
    assert statuses == [0 if number % 3 == 0 else 200 for number in range(36)]


@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.1.2.3"])
def test_only_a_proxy_that_is_trusted_says_that_callers_use_tls(
    project: Path, trusted: str
) -> None:
    app = create_app(project, insecure=True, clock=lambda: shop.NOW)
    with listening(app, forwarded_allow_ips=trusted) as address:
        caller = Caller(address)
        for _ in ("the ordinary way", "the shortest way"):
            answers = [
                caller.ask(request(question(), f"X-Forwarded-Proto: {scheme}"))
                for scheme in ("https", "http")
            ]
            told = ["strict-transport-security" in one.headers for one in answers]
            assert told == [trusted == "127.0.0.1", False]
        caller.socket.close()


def test_a_key_is_held_to_its_limit_and_scope_on_the_shortest_way(
    project: Path, taken: list[bool]
) -> None:
    store = open_store(project)
    _, limited = create_key(store, "web", ["decide"], requests_per_minute=12)
    _, reader = create_key(store, "tool", ["read"])
    store.close()
    with listening(create_app(project, clock=lambda: shop.NOW)) as address:
        caller = Caller(address)

        def codes(token: str, n: int) -> list[Any]:
            told = [caller.ask(request(question(), f"X-API-Key: {token}")) for _ in range(n)]
            return [one.content.get("code") for one in told]

        assert codes(limited, 3) == [None, None, "rate-limited"]
        late = caller.ask(request(question(), f"Authorization: Bearer {limited}"))
        assert late.status == 429 and int(late.headers["retry-after"]) >= 1
        assert late.headers["content-type"] == "application/problem+json"
        assert codes(reader, 2) == ["forbidden", "forbidden"]
        assert codes("nb_000000000000_" + "x" * 43, 2) == ["unauthenticated"] * 2
        caller.socket.close()
    # The first of each key goes the ordinary way, and so does whoever is nobody.
    assert taken == [False, True, True, True, False, True, False, False]


def test_what_breaks_inside_is_said_logged_and_counted_and_the_next_is_answered(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(create_app(project, insecure=True, clock=lambda: shop.NOW)) as address:
        caller = Caller(address)
        assert caller.ask(request(question())).status == 200
        with monkeypatch.context() as broken:
            broken.setattr(decisions, "records_of", lambda *_: 1 / 0)
            answer = caller.ask(request(question("secret-person")))
        assert (answer.status, answer.content["code"]) == (500, "internal-error")
        assert answer.headers["x-content-type-options"] == "nosniff"
        good = caller.ask(request(question()))
        assert good.status == 200
        caller.send(b"GET /metrics HTTP/1.1\r\nHost: shop\r\n\r\n")
        page = caller.answer().body.decode()
        caller.socket.close()
    assert 'nextbest_errors_total{code="internal-error"} 1.0' in page
    counted = 'nextbest_http_requests_total{method="POST",route="/v1/decisions",status="%s"} %s'
    assert counted % (200, "2.0") in page and counted % (500, "1.0") in page
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (error,) = (line for line in lines if line["event"] == "internal error")
    assert error["error_id"] == answer.content["error_id"]
    assert "ZeroDivisionError" in error["traceback"]
    requests = [line for line in lines if line.get("route") == "/v1/decisions"]
    assert [line["status"] for line in requests] == [200, 500, 200]
    assert requests[2]["decision_id"] == good.content["decision_id"]
    assert "secret-person" not in str(lines)


def test_what_was_answered_is_logged_when_the_server_stops_and_counted_when_somebody_looks(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wire, "NOTE_SECONDS", 3_600.0)
    with listening(create_app(project, insecure=True, clock=lambda: shop.NOW)) as address:
        caller = Caller(address)
        told = [caller.ask(request(question())) for _ in range(3)]
        caller.send(b"GET /metrics HTTP/1.1\r\nHost: shop\r\n\r\n")
        page = caller.answer().body.decode()
        told.append(caller.ask(request(question())))
        caller.socket.close()
    counted = 'nextbest_http_requests_total{method="POST",route="/v1/decisions",status="200"} 3.0'
    assert counted in page
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    ids = [line["decision_id"] for line in lines if line.get("route") == "/v1/decisions"]
    assert ids == [one.content["decision_id"] for one in told]


def test_whoever_waits_when_the_server_stops_is_answered(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go_on = threading.Event(), threading.Event()
    together = Decider._decide_together

    def slow(self: Decider, group: Any) -> Any:
        waiting.set()
        assert go_on.wait(30)
        return together(self, group)

    # Deciding off the event loop, so that the server can begin to stop meanwhile.
    monkeypatch.setattr(Decider, "_quick", lambda self: False)
    app = create_app(project, insecure=True, clock=lambda: shop.NOW)
    with ThreadPoolExecutor(2) as pool:
        with listening(app) as address:
            caller = Caller(address)
            assert caller.ask(request(question())).status == 200
            monkeypatch.setattr(Decider, "_decide_together", slow)
            asked = pool.submit(caller.ask, request(question("c09")))
            assert waiting.wait(30)
            pool.submit(lambda: (time.sleep(1), go_on.set()))
        answer = asked.result(30)
    assert answer.status == 200 and answer.headers["connection"] == "close"
    assert caller.is_closed()
    store = open_store(project)
    assert store.decision(answer.content["decision_id"]) is not None
    store.close()


def test_a_server_without_keys_answers_nobody_from_elsewhere(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn alone would bind any address."""
    monkeypatch.setattr("nextbest.serve.access.is_away", lambda host: True)
    with listening(create_app(project, insecure=True, clock=lambda: shop.NOW)) as address:
        caller = Caller(address)
        for _ in range(2):
            assert caller.ask(request(question())).content["code"] == "forbidden"
        caller.socket.close()


def test_an_app_without_a_desk_is_served_as_by_uvicorn(project: Path) -> None:
    app = create_app(project, insecure=True, clock=lambda: shop.NOW, short_way=False)
    with listening(app) as address:
        caller = Caller(address)
        assert [caller.ask(request(question())).status for _ in range(2)] == [200, 200]
        caller.socket.close()
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
