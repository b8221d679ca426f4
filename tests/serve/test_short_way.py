"""`POST /v1/decisions` takes short ways past ASGI and FastAPI: all say the same, word for word."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import shop
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wired import listening

from nextbest.serve import front
from nextbest.serve.api import create_app
from nextbest.serve.auth import Caller, create_key, revoke_key
from nextbest.serve.parsing import parse, parse_decision
from nextbest.serve.problems import Problem
from nextbest.serve.question import read
from nextbest.serve.runtime import open_store
from nextbest.serve.schemas import DecisionRequest

FIELDS = list(DecisionRequest.model_fields)
GOOD = {"customer_id": "c01", "channel": "mail"}

# --- bodies: mostly almost right ---------------------------------------------------------------

odd_texts = st.sampled_from(
    ["", "c01", "c02", "nobody", "mail", "email", "rain", "x" * 128, "x" * 129, "x" * 1025, "a\nb",
     "a\n", "\x7f", "\x85", "é", "😀", "\u2028", "2020-01-01T00:00:00Z", "weather", "1"]
)  # fmt: skip
texts = odd_texts | st.text(max_size=6)
# As they stand in the body: JSON knows neither NaN nor the first zero of 01.
odd_numbers = st.sampled_from(
    ["0", "-0", "-0.0", "1", "2", "50", "51", "1.0", "1e0", "01", "+1", "1.", ".5", "1e400",
     "-1e400", "1e-400", "1e15", "1000000000000000.1", "-1e15", "9007199254740993", "1" + "0" * 30,
     "1" + "0" * 5000, "NaN", "Infinity", "-Infinity", "0x10", "1_000"]
)  # fmt: skip
numbers = odd_numbers | st.floats(allow_nan=False, allow_infinity=False).map(repr)
escaped = st.sampled_from(
    [r'"\ud800"', r'"\ud83d\ude00"', r'"\udc00x"', r'"\u0000"', r'"c\u00301"', r'"\q"', r'"\/"',
     '"\t"', '"open', "'c01'"]
)  # fmt: skip
scalars = st.one_of(
    texts.map(json.dumps),
    texts.map(lambda text: json.dumps(text, ensure_ascii=False)),
    numbers,
    escaped,
    st.sampled_from(["null", "true", "false", "True", "None"]),
)


def as_object(members: list[tuple[str, str]]) -> str:
    """Members as they come, so that names may come twice."""
    return "{" + ", ".join(f"{name}: {value}" for name, value in members) + "}"


names = st.sampled_from(["weather", "basket_value", "member", "last_visit"]) | texts
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]")
        | st.lists(st.tuples(names.map(json.dumps), inner), max_size=4).map(as_object)
    ),
    max_leaves=6,
)
contexts = st.lists(st.tuples(names.map(json.dumps), scalars | values), max_size=4).map(as_object)
likely: dict[str, st.SearchStrategy[str]] = {
    "customer_id": st.sampled_from(['"c01"', '"c02"', '"nobody"']),
    "channel": st.sampled_from(['"mail"', '"mail"', '"email"', '"fax"']),
    "placement": st.sampled_from(["null", '"top"']),
    "context": contexts,
    "limit": st.sampled_from(["1", "2", "50"]) | numbers,
    "explain": st.sampled_from(["false", "true", "0", '"yes"']),
    "idempotency_key": st.sampled_from(["null", '"k1"', '"k2"', '"k3"']),
}


@st.composite
def objects(draw: st.DrawFn) -> str:
    fields = ["customer_id", "channel", *draw(st.lists(st.sampled_from(FIELDS), max_size=4))]
    members = [(json.dumps(name), draw(likely[name])) for name in fields]
    if draw(st.integers(0, 3)) == 0:  # one thing is wrong
        at = draw(st.integers(0, len(members) - 1))
        name = draw(st.sampled_from([members[at][0], '"customerid"', '"Channel"', '""']))
        members[at] = (name, draw(values))
    return as_object(draw(st.permutations(members)))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    text = draw(objects() | objects() | objects() | values)
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32-be"]))
    body = text.encode(encoding, errors="surrogatepass")
    if draw(st.integers(0, 7)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(min_size=1, max_size=2)) + body[at:]
    if draw(st.integers(0, 15)) == 0:
        body = body[: draw(st.integers(0, len(body)))]
    return draw(st.sampled_from([b"", b"", b"", b" \n", b"\x00"])) + body


def taken(body: bytes, way: Any) -> Any:
    """What a reader makes of a body: every field with its type, or the refusal."""
    try:
        found = way(body)
    except Problem as problem:
        return problem.document("/")
    values = {name: getattr(found, name) for name in FIELDS}
    # 1 and True and 1.0 are equal to Python.
    return repr(sorted(values.items())), repr(sorted(found.context.items()))


@settings(max_examples=500)
@given(bodies())
@example(b"[" * 100_000)
@example(b'{"context": ' * 50_000)
@example(b'{"customer_id": "c01", "channel": "mail", "context": {"weather": "a\xed\xa0\x80"}}')
@example(b'{"customer_id": "c01", "channel": "mail", "channel": "email", "limit": 2, "limit": 3}')
@example(as_object([(json.dumps(k), json.dumps(v)) for k, v in GOOD.items()]).encode())
@example(json.dumps({**GOOD, "context": {str(n): n for n in range(64)}}).encode())
@example(json.dumps({**GOOD, "context": {str(n): n for n in range(65)}}).encode())
def test_the_quick_reader_takes_exactly_what_the_schema_takes(body: bytes) -> None:
    expected = taken(body, lambda raw: parse(DecisionRequest, raw))
    assert taken(body, parse_decision) == expected
    quick = read(body)
    if quick is not None:  # it never takes what the schema refuses
        assert taken(body, lambda _: quick) == expected


@settings(max_examples=100)
@given(
    st.fixed_dictionaries(
        {"customer_id": st.sampled_from(["c01", "é" * 128]), "channel": st.just("mail")},
        optional={
            "context": st.dictionaries(
                st.sampled_from(["a", "b"]),
                st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=9),
            ),
            "limit": st.integers(1, 50),
            "explain": st.booleans(),
        },
    )
)
def test_the_quick_reader_needs_no_help_with_sound_questions(question: dict[str, Any]) -> None:
    assert read(json.dumps(question).encode()) is not None


# --- the whole way -------------------------------------------------------------------------------


class Ways:
    """Three servers of three copies of a project, and the keys that all know.

    One behind a real socket, one as ASGI that goes past FastAPI, and one all through FastAPI.
    """

    def __init__(self, template: Path, folder: Path, running: ExitStack) -> None:
        first = Path(shutil.copytree(template, folder / "short"))
        store = open_store(first)
        self.tokens: dict[str, str] = {}
        for name, scope in (
            ("web", "decide"),
            ("tool", "read"),
            ("boss", "admin"),
            ("old", "decide"),
        ):
            key, self.tokens[name] = create_key(store, name, [scope])
            if name == "old":
                revoke_key(store, key.key_id)
        store.close()
        wired, longest = (shutil.copytree(first, folder / name) for name in ("wired", "long"))
        host, port = running.enter_context(
            listening(create_app(Path(wired), clock=lambda: shop.NOW))
        )
        self.clients: list[httpx.Client] = [
            running.enter_context(httpx.Client(base_url=f"http://{host}:{port}", timeout=60))
        ]
        for project, short_way in ((first, True), (Path(longest), False)):
            app = create_app(project, clock=lambda: shop.NOW, short_way=short_way)
            client = TestClient(app, raise_server_exceptions=False)
            self.clients.append(running.enter_context(client))

    def ask(self, method: str, path: str, headers: Any, body: bytes) -> None:
        """Ask all, and compare everything but the ids of decisions."""
        values = dict(headers).values()
        # Spaces around a value do not travel.
        clients = self.clients[any(value != value.strip() for value in values) :]
        *others, expected = (
            client.request(method, path, headers=headers, content=body) for client in clients
        )
        for one in others:
            assert one.status_code == expected.status_code, (one.text, expected.text)
            assert without_ids(one) == without_ids(expected)
            assert headers_of(one) == headers_of(expected)


def headers_of(response: httpx.Response) -> list[tuple[str, str]]:
    """Headers but the date, which uvicorn adds."""
    return sorted(one for one in response.headers.items() if one[0] != "date")


def without_ids(response: Any) -> Any:
    if not response.content:
        return None
    content = response.json()
    content.pop("decision_id", None)
    if content.get("trace"):
        content["trace"].pop("decision_id", None)
    return content


@pytest.fixture(scope="module")
def ways(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with ExitStack() as running:
        yield Ways(template, tmp_path_factory.mktemp("ways"), running)


content_types = st.sampled_from(
    [
        *["application/json"] * 6,
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/problem+json",
        "application/x-www-form-urlencoded",
        "text/plain",
        "json",
        "",
    ]
)
methods = st.sampled_from(
    ["POST"] * 8 + ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "post"]
)
paths = st.sampled_from(
    ["/v1/decisions"] * 8 + ["/v1/decisions/", "/v1/decisions?limit=2", "//v1/decisions"]
)


@st.composite
def keys(draw: st.DrawFn) -> list[tuple[str, str]]:
    who = draw(st.sampled_from(["web"] * 6 + ["boss", "tool", "old", "none", "other"]))
    how = draw(
        st.sampled_from(
            ["Bearer {}"] * 4 + ["bearer {}", "Bearer  {} ", "Basic {}", "{}", "Bearer", "X"]
        )
    )
    return [(who, how)]


@settings(max_examples=150)
@given(methods, paths, content_types, keys(), bodies())
def test_all_ways_accept_refuse_and_answer_alike(
    ways: Ways,
    method: str,
    path: str,
    content_type: str,
    keys: list[tuple[str, str]],
    body: bytes,
) -> None:
    headers = {"Content-Type": content_type}
    for who, how in keys:
        token = ways.tokens.get(who, "nb_000000000000_" + "x" * 43)
        if who != "none":
            headers |= {"X-API-Key": token} if how == "X" else {"Authorization": how.format(token)}
    ways.ask(method, path, headers, body)


@pytest.mark.parametrize(
    "question",
    [
        GOOD,
        {**GOOD, "limit": 50},
        {**GOOD, "customer_id": "nobody"},
        {**GOOD, "channel": "email", "context": {"weather": "rain", "member": True}},
        {**GOOD, "explain": True, "idempotency_key": "again"},
        {**GOOD, "explain": True, "idempotency_key": "again"},
        {**GOOD, "idempotency_key": "again"},
        {**GOOD, "channel": "fax"},
        {**GOOD, "context": {"last_visit": "yesterday"}},
    ],
    ids=repr,
)
def test_all_ways_answer_questions_alike(ways: Ways, question: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json", "X-API-Key": ways.tokens["web"]}
    ways.ask("POST", "/v1/decisions", headers, json.dumps(question).encode())


@pytest.mark.parametrize("first", ["web", "old"])
def test_all_ways_read_the_same_of_two_headers_of_one_name(ways: Ways, first: str) -> None:
    """Else whoever checks the one in front of us could be told another."""
    tokens = [ways.tokens[first], ways.tokens["old" if first == "web" else "web"]]
    types = ["application/json", "text/plain"]
    body = json.dumps(GOOD).encode()
    for kinds in (types, types[::-1]):
        headers = [("Content-Type", kind) for kind in kinds]
        ways.ask("POST", front.PATH, [*headers, *(("X-API-Key", token) for token in tokens)], body)
        bearers = [("Authorization", f"Bearer {token}") for token in tokens]
        ways.ask("POST", front.PATH, [*headers, *bearers, ("X-API-Key", tokens[1])], body)


def test_all_ways_refuse_bodies_that_are_too_large(ways: Ways) -> None:
    headers = {"Content-Type": "application/json", "X-API-Key": ways.tokens["web"]}
    ways.ask("POST", "/v1/decisions", headers, b" " * (3 * 1024 * 1024))


def test_a_revoked_key_opens_the_door_for_two_seconds_at_most(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(shutil.copytree(template, tmp_path / "shop"))
    now = [1_000.0]
    monkeypatch.setattr(front.time, "monotonic", lambda: now[0])
    store = open_store(project)
    key, token = create_key(store, "web", ["decide"])
    with TestClient(create_app(project, clock=lambda: shop.NOW)) as client:
        headers = {"Authorization": f"Bearer {token}"}

        def status() -> int:
            return client.post("/v1/decisions", json=GOOD, headers=headers).status_code

        assert status() == 200
        revoke_key(store, key.key_id)
        now[0] += front.KNOWN_SECONDS + 0.01
        assert status() == 401
        now[0] -= 1.0  # a refusal leaves nothing behind that would let the key in again
        _, token = create_key(store, "new", ["decide"])
        headers = {"Authorization": f"Bearer {token}"}
        assert status() == 200
    store.close()


def test_many_who_come_with_one_key_at_once_ask_the_store_once() -> None:
    looked_up: list[str | None] = []

    def identify(token: str | None) -> Caller:
        looked_up.append(token)
        time.sleep(0.05)
        if token != "good":
            raise Problem("unauthenticated", "Nobody's.")
        return Caller("k", ("decide",))

    async def ask(known: front.KnownCallers, token: str) -> object:
        try:
            return (await known.find(token)).key_id
        except Problem as problem:
            return problem.code

    async def run() -> None:
        known = front.KnownCallers(identify)
        for again in (1, 2):
            tokens = ["good", "bad"] * 16
            answers = await asyncio.gather(*(ask(known, token) for token in tokens))
            assert answers == ["k", "unauthenticated"] * 16
            # The good one is known by then; what was refused is looked up again.
            assert sorted(map(str, looked_up)) == ["bad"] * again + ["good"]
        # Whoever goes away leaves the answer to the others.
        first, second = (asyncio.create_task(ask(known, "bad")) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == "unauthenticated" and looked_up.count("bad") == 3

    asyncio.run(run())
