"""A cap holds exactly, however many threads and processes ask for one customer at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from shop import POLICY

from nextbest.serve import decisions
from nextbest.serve.api import create_app
from nextbest.serve.records import Contacts, DecisionRecord, Events, Outcomes, Seen
from nextbest.serve.runtime import open_store
from nextbest.serve.store import HistoryChangedError, Store
from nextbest.serve.store.decisions import keep

Serve = Callable[..., TestClient]
NOW = datetime(2020, 3, 2, 9, tzinfo=UTC)

CAPS = """
[[contact.caps]]
name = "three a day"
at_most = 3
period = "day"
"""
# By the real clock: each decision has a moment of its own.
LIVE = POLICY.replace("decide_as_of = 2020-03-02T09:00:00Z", "").replace("at_most = 2", "at_most=9")


def contacts_of(project: Path, customer_id: str) -> int:
    store = open_store(project)
    try:
        return len(store.history([customer_id])[0].at)
    finally:
        store.close()


def offers_of(response: Any) -> int:
    assert response.status_code == 200, response.text
    return len(response.json()["offers"])


@pytest.mark.parametrize("limit", [1, 2])
def test_fifty_requests_at_once_do_not_pass_a_cap(project: Path, serve: Serve, limit: int) -> None:
    (project / "serving" / "policy.toml").write_text(LIVE + CAPS)
    client = serve(project)
    question = {"customer_id": "c01", "channel": "mail", "limit": limit}
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/decisions", json=question), range(50)))
    assert sum(map(offers_of, answers)) == 3 == contacts_of(project, "c01")


ASK = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from fastapi.testclient import TestClient
from nextbest.serve.api import create_app

project, name = Path(sys.argv[1]), sys.argv[2]
with TestClient(create_app(project, insecure=True)) as client:
    def ask(number):
        if number % 3:
            question = {"customer_id": f"c{number % 2:02d}", "channel": "mail"}
            return client.post("/v1/decisions", json=question).json()["offers"]
        question = {"customer_ids": ["c00", "c01"], "channel": "mail"}
        answers = client.post("/v1/decisions/batch", json=question).json()["decisions"]
        return [offer for answer in answers for offer in answer["offers"]]
    (project / name).touch()
    while not (project / "go").exists():
        time.sleep(0.005)
    with ThreadPoolExecutor(8) as pool:
        print(sum(map(len, pool.map(ask, range(30)))))
"""


def started(command: Sequence[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def test_two_processes_on_one_store_do_not_pass_a_cap(
    project: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTBEST_STORE", url)
    (project / "serving" / "policy.toml").write_text(LIVE + CAPS.replace("= 3", "= 5"))
    names = ("one", "two")
    servers = [started([sys.executable, "-c", ASK, str(project), name]) for name in names]
    while not all((project / name).exists() for name in names):
        assert all(server.poll() is None for server in servers)
        time.sleep(0.02)
    (project / "go").touch()
    made = [int(server.communicate()[0]) for server in servers]
    assert all(server.returncode == 0 for server in servers)
    assert sum(made) == 10
    assert [contacts_of(project, customer) for customer in ("c00", "c01")] == [5, 5]


class OtherServer:
    """Records a decision of another server at the worst moment: while this one reads or decides."""

    def __init__(self, store: Store, clock: Callable[[], datetime], times: int) -> None:
        self.store, self.clock, self.times, self.made = store, clock, times, 0

    def decides(self) -> None:
        if self.made < self.times:
            self.made += 1
            record = DecisionRecord(
                f"other-{self.made}", "c01", self.clock(), "mail", "policy", ("a",), {}, "h"
            )
            self.store.record_decisions([record])


def raced(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    *,
    before_reading: bool,
    at_most: int = 3,
) -> Any:
    """Ask once while another server makes contacts; return the response."""
    caps = CAPS.replace("= 3", f"= {at_most}")
    (project / "serving" / "policy.toml").write_text(LIVE + caps)
    moments = (NOW + timedelta(seconds=n) for n in range(10_000))
    read = Store.past

    def past(
        store: Store, ids: Sequence[str] | None, since: datetime | None
    ) -> tuple[Contacts, Outcomes, Events, int | None]:
        if before_reading:
            other.decides()
        found = read(store, ids, since)
        if not before_reading:
            other.decides()
        return found

    app = create_app(project, insecure=True, clock=lambda: next(moments))
    with TestClient(app) as client:
        other = OtherServer(open_store(project), lambda: next(moments), times)
        monkeypatch.setattr(Store, "past", past)
        response = client.post("/v1/decisions", json={"customer_id": "c01", "channel": "mail"})
        other.store.close()
    assert other.made == times
    return response


def test_who_was_overtaken_while_deciding_decides_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offers_of(raced(project, monkeypatch, 3, before_reading=False)) == 0


def test_who_was_overtaken_below_the_cap_still_makes_the_offer(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offers_of(raced(project, monkeypatch, 2, before_reading=False)) == 1


def test_a_contact_that_was_read_never_lies_in_the_future(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other server decides after our request has come, and before we look."""
    response = raced(project, monkeypatch, 1, before_reading=True, at_most=1)
    assert offers_of(response) == 0


def test_a_customer_whom_others_contact_without_a_pause_is_refused_not_contacted(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "ATTEMPTS", 10)
    response = raced(project, monkeypatch, 10, before_reading=False)
    assert (response.status_code, response.json()["code"]) == (503, "store-unavailable")
    assert contacts_of(project, "c01") == 10


def record(number: int, customer_id: str) -> DecisionRecord:
    return DecisionRecord(f"d{number}", customer_id, NOW, "mail", "policy", ("a",), {}, "h")


def test_the_store_keeps_nothing_of_a_decision_that_was_overtaken(url: str) -> None:
    store = Store(url)
    store.record_decisions([record(1, "c01")], Seen({"c01": 0}))
    with pytest.raises(HistoryChangedError):
        store.record_decisions([record(2, "c02"), record(3, "c01")], Seen({"c02": 0, "c01": 0}))
    assert store.decision("d2") is None and store.decision("d3") is None
    store.record_decisions([record(4, "c02"), record(5, "c01")], Seen({"c02": 0, "c01": 1}))
    assert len(store.history(None)[0].at) == 3
    store.close()


def test_who_decides_waits_for_a_contact_that_is_being_written(url: str) -> None:
    """Another server has written a contact and not committed yet: it counts already."""
    one, other = Store(url), Store(url)
    with ThreadPoolExecutor(1) as pool:
        with one._database.transaction() as connection:
            one._database.lock(connection, ["c01"])
            keep(connection, [record(1, "c01")], [record(1, "c01").row()])
            waiting = pool.submit(other.record_decisions, [record(2, "c01")], Seen({"c01": 0}))
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
        assert isinstance(waiting.exception(), HistoryChangedError)
    assert one.history(["c01"])[0].decision_ids == ("d1",)
    one.close()
    other.close()


RACE = """
import sys
from datetime import datetime
from nextbest.serve.records import DecisionRecord, Seen
from nextbest.serve.store import HistoryChangedError, Store

url, name = sys.argv[1:]
store, turn, at = Store(url), 0, datetime(2020, 1, 1)
print("ready", flush=True)
sys.stdin.readline()
while True:
    turn += 1
    group = [f"c{(turn + step) % 3}" for step in range(2)][:: 1 if turn % 2 else -1]
    contacts, _, _, moment = store.past(group, None)
    seen = {customer: contacts.customer_ids.count(customer) for customer in group}
    if min(seen.values()) == 25:
        break
    records = [
        DecisionRecord(f"{name}-{turn}-{c}", c, at, "mail", "policy", ("a",), {"seen": n}, "h")
        for c, n in seen.items()
        if n < 25
    ]
    try:
        store.record_decisions(records, Seen(seen, moment))
    except HistoryChangedError:
        pass
store.close()
"""


def test_processes_that_race_for_the_same_customers_each_see_what_was_before(url: str) -> None:
    """Groups of customers that overlap, in two orders: no contact is missed, nobody is stuck."""
    Store(url).close()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for name in ("x", "y", "z")
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=120)
        assert racer.returncode == 0
    store = Store(url)
    contacts, _ = store.history(None)
    seen: dict[str, list[int]] = {"c0": [], "c1": [], "c2": []}
    for customer, decision_id in zip(contacts.customer_ids, contacts.decision_ids, strict=True):
        found = store.decision(decision_id)
        assert found is not None
        seen[customer].append(found.record["seen"])
    store.close()
    # Had two decided without seeing each other, a number would be there twice. A racer stops when
    # two of the customers are done, so that the third may not be.
    assert {customer: sorted(numbers) for customer, numbers in seen.items()} == {
        customer: list(range(len(numbers))) for customer, numbers in seen.items()
    }
    assert sorted(map(len, seen.values()))[1:] == [25, 25]
