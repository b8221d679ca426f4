"""Questions that come at once are decided at once, with the answers that each alone would get."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import shop

from nextbest.decide.frame import Situation
from nextbest.errors import DataError, StoreError
from nextbest.serve import line
from nextbest.serve.api import create_app
from nextbest.serve.audience import Past
from nextbest.serve.decisions import decide_for
from nextbest.serve.line import Line, Served, Turns, Waiting
from nextbest.serve.recording import Filed, answer_of, explained, records_of
from nextbest.serve.records import Contacts
from nextbest.serve.runtime import load_state, open_store
from nextbest.serve.store import HistoryChangedError, Store

CONTEXTS: list[dict[str, Any]] = [
    {},
    {"weather": "rain", "basket_value": 3.5},
    {"weather": None, "member": True, "last_visit": "2020-03-01T10:00:00Z"},
    {"weather": "sun", "member": False, "basket_value": None},
    {"nobody asked": 1.0},
]
RULES = """
[eligibility]
"context" = "weather is null or weather <> 'sun' or member"
"visit" = "last_visit is null or last_visit < decided_at or basket_value > 3"
"""


def everything(state: Any, decisions: Any, row: int) -> str:
    """All that is said and kept of one decision."""
    (record,) = records_of(state, decisions, [Filed({"explain": True}, "hash")], [row])
    said = explained(decisions, row, record.kept.read()["contributions"])
    return json.dumps([record.row(), record.contact_rows(), said], default=str)


def test_a_customer_gets_the_same_alone_and_among_others_with_other_contexts(
    project: Path,
) -> None:
    policy = project / "serving" / "policy.toml"
    policy.write_text(shop.POLICY.replace("[fallback]", RULES + "\n[fallback]"))
    state = load_state(project)
    ids = [*shop.CUSTOMERS[:19], "a stranger"]
    decision_ids = [f"d{number}" for number in range(len(ids))]
    contexts = [CONTEXTS[number % len(CONTEXTS)] for number in range(len(ids))]
    times = np.datetime64("2020-03-01T09:00:00").astype(object)
    past = Past(
        Contacts(("c02", "c02", "c05"), ("a", "b", "a"), ("mail",) * 3, (times,) * 3, ("x",) * 3)
    )
    at = Situation("mail", shop.NOW, limit=2)
    together = decide_for(state, None, ids, at, decision_ids, past, contexts=contexts)
    fates = set()
    for row, (customer_id, context) in enumerate(zip(ids, contexts, strict=True)):
        own = Situation("mail", shop.NOW, context=context, limit=2)
        mine = Past(_only(past.contacts, customer_id))
        alone = decide_for(state, None, [customer_id], own, [decision_ids[row]], mine)
        assert everything(state, together, row) == everything(state, alone, 0)
        fates |= {state.policy.fates.names[code] for code in alone.fates[0]}
    assert {("eligibility", "context"), ("contact_policy", "two letters a week")} <= fates


def test_the_answer_as_sent_is_the_answer_as_kept(project: Path) -> None:
    policy = project / "serving" / "policy.toml"
    policy.write_text(shop.POLICY.replace("[fallback]", RULES + "\n[fallback]"))
    state = load_state(project)
    ids = [*shop.CUSTOMERS[:20], "a stranger"]
    contexts = [CONTEXTS[number % len(CONTEXTS)] for number in range(len(ids))]
    at = Situation("mail", shop.NOW, limit=2)
    decision_ids = [f"d{number}" for number in range(len(ids))]
    decisions = decide_for(state, None, ids, at, decision_ids, contexts=contexts)
    names = state.bundle.score_names
    made = set()
    for row, record in enumerate(records_of(state, decisions, [Filed({}, "h")] * len(ids))):
        kept = record.kept.read()["answer"]
        assert json.loads(record.answer_json) == kept == answer_of(decisions, row, names)
        shared = record.kept.shared
        assert shared is not None
        assert record.row()[-3:] == (record.kept.text, record.kept.numbers, shared.hash)
        assert kept["scores"].keys() == set(names)
        made.add(bool(record.offer_ids))
    assert made == {True, False}


def _only(contacts: Contacts, customer_id: str) -> Contacts:
    kept = [i for i, one in enumerate(contacts.customer_ids) if one == customer_id]
    return Contacts(*(tuple(column[i] for i in kept) for column in vars(contacts).values()))


def test_contexts_must_be_as_many_as_customers(project: Path) -> None:
    state = load_state(project)
    with pytest.raises(DataError, match="contexts has the wrong shape"):
        decide_for(state, None, ["c01"], Situation("mail", shop.NOW), ["d"], contexts=[{}, {}])


# --- the whole server --------------------------------------------------------------------------

Ask = Callable[..., Awaitable[httpx.Response]]


def at_once(project: Path, work: Callable[[Ask], Awaitable[Any]]) -> Any:
    """Run ``work`` against a server of the project, on one event loop."""

    async def run() -> Any:
        app = create_app(project, insecure=True, clock=lambda: shop.NOW)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
        ):

            async def ask(customer_id: str, **more: Any) -> httpx.Response:
                question = {"customer_id": customer_id, "channel": "mail", **more}
                return await client.post("/v1/decisions", json=question)

            return await work(ask)

    return asyncio.run(run())


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the groups that were handed to the store."""
    sizes: list[int] = []
    submit = Store.submit_decisions

    def note(self: Store, records: Any, *more: Any) -> Any:
        sizes.append(len(records))
        return submit(self, records, *more)

    monkeypatch.setattr(Store, "submit_decisions", note)
    return sizes


@pytest.mark.parametrize("quick", [True, False], ids=["on the loop", "on a thread"])
def test_many_at_once_each_get_their_own_answer(
    project: Path, groups: list[int], monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    if not quick:
        monkeypatch.setattr(Store, "is_file", False)

    async def work(ask: Ask) -> list[httpx.Response]:
        asked = [ask(customer_id) for customer_id in shop.CUSTOMERS]
        asked += [ask("c01", channel="fax"), ask("c02", context={"member": "yes"})]
        asked += [ask("c03", channel="email"), ask("c04", limit=3)]
        return list(await asyncio.gather(*asked))

    answers = at_once(project, work)
    n = len(shop.CUSTOMERS)
    assert [one.json()["customer_id"] for one in answers[:n]] == shop.CUSTOMERS
    assert [one.json().get("code") for one in answers[n:]] == [
        "unknown-channel", "invalid-request", None, None,
    ]  # fmt: skip
    assert len(answers[n + 3].json()["offers"]) <= 3
    store = open_store(project)
    for one in answers[:n]:
        kept = store.decision(one.json()["decision_id"])
        assert kept is not None
        assert kept.record["answer"] == one.json()
    store.close()
    assert sum(groups) == n + 2
    assert max(groups) > 10


def test_a_cap_holds_when_a_customer_is_asked_about_many_times_at_once(project: Path) -> None:
    async def work(ask: Ask) -> list[httpx.Response]:
        return list(await asyncio.gather(*[ask(c) for c in ["c01", "c02"] * 8]))

    made = Counter(
        one.json()["customer_id"] for one in at_once(project, work) if one.json()["offers"]
    )
    assert made == {"c01": 2, "c02": 2}  # two letters a week


def test_a_key_that_comes_twice_at_once_gives_one_decision(project: Path) -> None:
    async def work(ask: Ask) -> list[httpx.Response]:
        keyed = [ask("c01", idempotency_key="k"), ask("c01", idempotency_key="k")]
        return list(await asyncio.gather(*keyed, ask("c02", idempotency_key="k")))

    first, second, other = at_once(project, work)
    assert first.json() == second.json()
    # Which of the two questions had the key first is chance; the other one is refused.
    assert {first.status_code, other.status_code} == {200, 409}


def test_whoever_was_overtaken_by_another_process_is_decided_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, turned_down = Store.submit_decisions, []

    def sometimes(self: Store, records: Any, *more: Any) -> Any:
        if len(turned_down) < 3:
            turned_down.append(records)
            failed: Future[Any] = Future()
            failed.set_exception(HistoryChangedError())
            return failed
        return submit(self, records, *more)

    monkeypatch.setattr(Store, "submit_decisions", sometimes)

    async def work(ask: Ask) -> list[httpx.Response]:
        return list(await asyncio.gather(ask("c01"), ask("c02")))

    answers = at_once(project, work)
    assert [one.status_code for one in answers] == [200, 200]
    assert len(turned_down) == 3
    lost = {record.decision_id for records in turned_down for record in records}
    assert not lost & {one.json()["decision_id"] for one in answers}


def test_one_that_breaks_does_not_take_the_others_along(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextbest.serve import decisions

    real = decisions.records_of

    def breaks(state: Any, made: Any, *more: Any) -> Any:
        if "c02" in made.audience.customer_ids:
            raise ZeroDivisionError
        return real(state, made, *more)

    monkeypatch.setattr(decisions, "records_of", breaks)

    async def work(ask: Ask) -> list[httpx.Response]:
        return list(await asyncio.gather(ask("c01"), ask("c02"), ask("c03")))

    answers = at_once(project, work)
    assert [one.status_code for one in answers] == [200, 500, 200]
    assert answers[1].json()["code"] == "internal-error"


def test_a_store_that_is_down_answers_503_to_everybody(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> Any:
        raise StoreError("store", "it is down")

    monkeypatch.setattr(Store, "past", down)

    async def work(ask: Ask) -> list[httpx.Response]:
        return list(await asyncio.gather(*[ask(c) for c in shop.CUSTOMERS[:5]]))

    answers = at_once(project, work)
    assert {(one.status_code, one.headers["retry-after"]) for one in answers} == {(503, "2")}


# --- the line itself -----------------------------------------------------------------------------


async def wait_in(waits: Line[int], asked: int, customer_id: str, kind: object) -> int:
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waits.put(Waiting(asked, customer_id, kind, told.set_result))
    return await told


def test_a_full_line_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "LINE_LIMIT", 2)
    never: Future[None] = Future()

    async def run() -> None:
        waits: Line[int] = Line(Turns(), lambda _: Served((), never), lambda: True)
        tasks = [asyncio.create_task(wait_in(waits, n, f"c{n}", None)) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="wait already"):
            await wait_in(waits, 9, "c9", None)
        for task in tasks:
            task.cancel()

    asyncio.run(run())


def test_nobody_is_served_twice_at_once_nor_beside_a_batch_that_holds_the_customer() -> None:
    busy: set[str] = set()
    served: list[list[str]] = []
    turns = Turns()

    def serve(group: list[Waiting[int]]) -> Served[int]:
        ids = [waiting.customer_id for waiting in group]
        assert len(set(ids)) == len(ids)
        assert not busy & set(ids)
        assert len({waiting.kind for waiting in group}) == 1
        served.append(ids)
        return Served([(waiting, waiting.asked) for waiting in group])

    async def run() -> list[int]:
        waits: Line[int] = Line(turns, serve, lambda: True)
        with turns.alone(["a"]):
            busy.add("a")
            asked = [(n, "abc"[n % 3], n % 2) for n in range(12)]
            tasks = [asyncio.create_task(wait_in(waits, *one)) for one in asked]
            await asyncio.sleep(0.05)
            assert sum("a" in group for group in served) == 0
            assert sum(len(group) for group in served) == 8
            busy.clear()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(run()) == list(range(12))
    assert sum(len(group) for group in served) == 12


def test_whoever_waits_is_served_with_those_who_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "LINGER_SHARE", 1e9)
    monkeypatch.setattr(line, "LINGER_SECONDS", 0.5)
    served: list[list[str]] = []
    disk: Future[None] = Future()

    def serve(group: list[Waiting[int]]) -> Served[int]:
        served.append([waiting.customer_id for waiting in group])
        answers = [(waiting, waiting.asked) for waiting in group]
        return Served((), disk, lambda _: answers) if len(served) == 1 else Served(answers)

    async def run() -> None:
        waits: Line[int] = Line(Turns(), serve, lambda: True)

        async def twice() -> None:
            await wait_in(waits, 1, "a", None)
            await asyncio.sleep(0.01)  # the way to the caller and back
            await wait_in(waits, 2, "c", None)

        first = asyncio.create_task(twice())
        await asyncio.sleep(0)
        second = asyncio.create_task(wait_in(waits, 3, "b", None))
        await asyncio.sleep(0)
        disk.set_result(None)
        await asyncio.gather(first, second)

    asyncio.run(run())
    assert served == [["a"], ["b", "c"]]


def test_who_is_waited_for_is_served_as_soon_as_all_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line, "LINGER_SHARE", 1e9)
    monkeypatch.setattr(line, "LINGER_SECONDS", 3_600.0)
    served: list[list[str]] = []

    def serve(group: list[Waiting[int]]) -> Served[int]:
        served.append(sorted(waiting.customer_id for waiting in group))
        return Served([(waiting, waiting.asked) for waiting in group])

    async def run() -> None:
        waits: Line[int] = Line(Turns(), serve, lambda: True)

        async def caller(name: str, pause: float) -> None:
            for number in range(3):
                await wait_in(waits, number, name, None)
                await asyncio.sleep(pause)

        await asyncio.gather(caller("a", 0.0), caller("b", 0.01), caller("c", 0.02))

    asyncio.run(run())
    assert served == [["a", "b", "c"]] * 3


def test_what_breaks_for_one_group_or_caller_keeps_nobody_else_from_answers() -> None:
    broken: Future[None] = Future()

    def serve(group: list[Waiting[int]]) -> Served[int]:
        answers = [(waiting, waiting.asked) for waiting in group]
        if group[0].asked == 0:
            return Served((), broken, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
        return Served(answers)

    async def run() -> list[Any]:
        waits: Line[int] = Line(Turns(), serve, lambda: True)
        told: list[Any] = []
        waits.put(Waiting(0, "a", None, told.append))
        await asyncio.sleep(0.01)
        waits.put(Waiting(1, "b", None, lambda answer: told.append(answer / 0)))
        waits.put(Waiting(2, "c", None, told.append))
        broken.set_result(None)
        await asyncio.sleep(0.05)
        assert await wait_in(waits, 3, "a", None) == 3
        return told

    error, other = asyncio.run(run())
    assert isinstance(error, ZeroDivisionError) and other == 2


def test_whoever_comes_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "LINGER_SHARE", 1e9)
    monkeypatch.setattr(line, "LINGER_SECONDS", 3_600.0)

    def serve(group: list[Waiting[int]]) -> Served[int]:
        return Served([(waiting, waiting.asked) for waiting in group])

    async def run() -> list[int]:
        waits: Line[int] = Line(Turns(), serve, lambda: True)
        async with asyncio.timeout(60):
            return [await wait_in(waits, n, "a", None) for n in range(3)]

    assert asyncio.run(run()) == [0, 1, 2]
