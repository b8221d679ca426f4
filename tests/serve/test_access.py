"""Who may come in, how often, and what every answer tells a browser."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from nextbest.errors import UsageError
from nextbest.serve.access import Access, KeyUse, RateLimits, is_loopback
from nextbest.serve.api import create_app
from nextbest.serve.auth import Caller, create_key
from nextbest.serve.problems import Problem
from nextbest.serve.runtime import open_store
from nextbest.serve.store import Store

Serve = Callable[..., TestClient]
ASK = {"customer_id": "c01", "channel": "mail"}


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def taken(limits: RateLimits, caller: Caller) -> int:
    """0 where the request was let in, else the seconds to wait."""
    try:
        limits.take(caller)
    except Problem as refused:
        assert (refused.code, refused.status) == ("rate-limited", 429)
        return int(refused.headers["Retry-After"])
    return 0


# ------------------------------------------------------------------ how often


def test_a_key_without_a_limit_is_never_held_back() -> None:
    limits, anybody = RateLimits(clock=Clock()), Caller("k", ())
    assert [taken(limits, anybody) for _ in range(10_000)] == [0] * 10_000


@pytest.mark.parametrize("limit", [1, 6, 60, 600])
@pytest.mark.parametrize("workers", [1, 4])
def test_no_minute_ever_sees_more_than_the_limit_and_what_may_come_at_once(
    limit: int, workers: int
) -> None:
    """Counted by brute force over every minute that begins with a request."""
    clock, caller, draw = Clock(), Caller("k", (), limit), random.Random(limit)
    every = [RateLimits(workers, clock) for _ in range(workers)]
    let_in = []
    while clock.now < 1_000 + 240:
        clock.now += draw.choice([0.0, 0.01, 0.2, 20.0 / limit])
        if taken(draw.choice(every), caller) == 0:
            let_in.append(clock.now)
    at_once = max(limit / 6, workers)  # each worker lets at least one in
    for number, first in enumerate(let_in):
        within = bisect_left(let_in, first + 60) - number
        assert within <= limit + at_once + 1e-9
    # They asked more often than that all the time, so that hardly anything was left unused.
    assert len(let_in) >= 0.8 * 4 * limit


def test_who_waits_as_told_is_let_in() -> None:
    clock, caller = Clock(), Caller("k", (), 6)
    limits = RateLimits(clock=clock)
    assert taken(limits, caller) == 0
    wait = taken(limits, caller)
    assert wait == 10
    clock.now += wait - 1
    assert taken(limits, caller) == 1
    clock.now += 1
    assert taken(limits, caller) == 0


def test_keys_do_not_use_up_each_others_limits() -> None:
    limits = RateLimits(clock=Clock())
    one, other = (Caller(name, (), 1) for name in ("one", "other"))
    assert [taken(limits, one), taken(limits, one) > 0, taken(limits, other)] == [0, True, 0]


def test_a_key_that_asks_too_often_is_told_when_to_come_back(project: Path, serve: Serve) -> None:
    store = open_store(project)
    _, token = create_key(store, "web", ["decide"], requests_per_minute=12)
    _, free = create_key(store, "free", ["decide"])
    store.close()
    client = serve(project, insecure=False)
    limited, unlimited = {"X-API-Key": token}, {"X-API-Key": free}
    answers = [client.post("/v1/decisions", json=ASK, headers=limited) for _ in range(4)]
    assert [a.status_code for a in answers[:2]] == [200, 200]  # 12 / 6 at once
    assert answers[-1].status_code == 429
    assert answers[-1].json()["code"] == "rate-limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 5
    # What a key may not do counts too, or scopes could be guessed at for free.
    assert client.get("/v1/offers", headers=limited).status_code == 429
    assert client.post("/v1/decisions", json=ASK, headers=unlimited).status_code == 200


@pytest.mark.parametrize("limit", [0, -1, 1_000_001])
def test_an_unusable_limit_is_refused(tmp_path: Path, limit: int) -> None:
    store = Store.at(tmp_path / "store.db")
    with pytest.raises(UsageError, match=r"--requests-per-minute.*1 to 1,000,000"):
        create_key(store, "web", ["decide"], requests_per_minute=limit)
    assert store.api_keys() == [] and store.audit_entries() == []
    store.close()


# ------------------------------------------------------------------ when it was last used


def test_last_use_is_written_once_a_minute_and_never_goes_back(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "store.db")
    key, _ = create_key(store, "web", ["decide"])
    start = datetime(2020, 3, 2, 9, tzinfo=UTC)
    now = start
    written = []
    use, keep = KeyUse(lambda: now), store.note_key_use

    class Counted:
        def note_key_use(self, used: dict[str, datetime]) -> None:
            written.append(used)
            keep(used)

    caller = Caller(key.key_id, ())
    for second in range(0, 150):
        now = start + timedelta(seconds=second)
        use.note(caller)
        use.write(Counted())  # type: ignore[arg-type]
    assert [used[key.key_id] - start for used in written] == [
        timedelta(seconds=s) for s in (0, 60, 120)
    ]
    use.write(Counted(), all_of_it=True)  # type: ignore[arg-type]
    assert store.api_keys()[0].last_used_at == start + timedelta(seconds=149)
    use.write(Counted(), all_of_it=True)  # type: ignore[arg-type]
    assert len(written) == 4
    store.note_key_use({key.key_id: start})
    assert store.api_keys()[0].last_used_at == start + timedelta(seconds=149)
    store.close()


def test_a_server_writes_down_which_keys_were_used(project: Path) -> None:
    store = open_store(project)
    used, token = create_key(store, "used", ["read"])
    unused, _ = create_key(store, "unused", ["read"])
    with TestClient(create_app(project)) as client:
        assert client.get("/v1/offers", headers={"X-API-Key": token}).status_code == 200
        assert client.get("/v1/offers", headers={"X-API-Key": token + "x"}).status_code == 401
    found = {key.key_id: key.last_used_at for key in store.api_keys()}
    assert found[used.key_id] is not None and found[unused.key_id] is None
    store.close()


# ------------------------------------------------------------------ without keys


@pytest.mark.parametrize(
    ("host", "ours"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False),
     ("localhost.example.com", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, ours: bool) -> None:
    assert is_loopback(host) == ours


@pytest.mark.parametrize("host", ["192.168.1.5", "2001:db8::1", "0.0.0.0"])
def test_without_keys_no_answer_leaves_the_machine_whoever_bound_the_address(
    project: Path, serve: Serve, host: str
) -> None:
    """uvicorn alone checks no address, so that every request is looked at."""
    client = serve(project)
    away = TestClient(client.app, base_url=f"http://{f'[{host}]' if ':' in host else host}:8000")
    for call in (lambda: away.get("/v1/offers"), lambda: away.post("/v1/decisions", json=ASK)):
        assert call().json()["code"] == "forbidden"
    near = TestClient(client.app, base_url="http://127.0.0.1:8000")
    assert near.get("/v1/offers").status_code == 200


def test_with_keys_any_address_is_fine(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "store.db")
    key, token = create_key(store, "web", ["read"])
    assert Access(lambda: store).admit(token, "read").key_id == key.key_id
    client = TestClient(create_app(tmp_path), base_url="http://192.168.1.5:8000")
    assert client.get("/healthz").status_code == 200
    store.close()


# ------------------------------------------------------------------ what browsers are told


def test_every_answer_has_the_headers_that_keep_browsers_out(client: TestClient) -> None:
    expected = {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }
    data = {
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    }
    for method, path in (
        ("POST", "/v1/decisions"), ("GET", "/v1/offers"), ("DELETE", "/v1/customers/c01"),
        ("GET", "/v1/nothing"), ("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/openapi.json"),
    ):  # fmt: skip
        response = client.request(method, path)
        assert {**expected, **data}.items() <= dict(response.headers).items(), path
        assert "strict-transport-security" not in response.headers  # the proxy's word, over TLS
        assert "server" not in response.headers
    page = client.get("/docs")
    assert expected.items() <= dict(page.headers).items()
    assert "content-security-policy" not in page.headers  # or its scripts would not load
    secure = TestClient(client.app, base_url="https://testserver")
    assert secure.get("/healthz").headers["strict-transport-security"] == "max-age=31536000"


def test_other_sites_may_not_read_or_send(client: TestClient) -> None:
    """CORS is off: no answer allows an origin, and what a browser asks beforehand is refused."""
    site = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    responses = [
        client.options("/v1/decisions", headers=site),
        client.get("/v1/offers", headers=site),
        client.post("/v1/decisions", json=ASK, headers=site),
    ]
    assert [r.status_code for r in responses] == [405, 200, 200]
    for response in responses:
        assert not [name for name in response.headers if name.startswith("access-control-")]
    # What needs no leave from the site is refused for its type.
    form = {**site, "Content-Type": "text/plain"}
    assert client.post("/v1/decisions", content="{}", headers=form).status_code == 415
