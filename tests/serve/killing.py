"""Kill a server under load, over and over, and count what it had acknowledged and no longer has.

As a program (`make kill`): 100 kills, with a line for each kind of loss and an exit code of 1 where
there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from nursery import nursery

from nextbest.serve.store import Store

CALLERS = 8
MAIL = {"channel": "mail"}


@dataclass
class Log:
    """What callers know: what they asked, and what was acknowledged to them."""

    asked: dict[str, dict[str, Any]] = field(default_factory=dict)  # by idempotency key
    reported: dict[str, dict[str, Any]] = field(default_factory=dict)  # by outcome id
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)  # by idempotency key
    statuses: dict[str, str] = field(default_factory=dict)  # by outcome id
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    repeated: int = 0

    def decided(self, key: str, answer: dict[str, Any]) -> None:
        earlier = self.answers.setdefault(key, answer)
        if earlier != answer:
            self.faults.append(f"{key} was answered twice, differently")

    def kept(self, outcome_id: str, status: str) -> None:
        if self.statuses.get(outcome_id) and status == "stored":
            self.faults.append(f"{outcome_id} was kept twice")
        if status not in ("stored", "duplicate"):
            self.faults.append(f"{outcome_id} was {status}")
        self.statuses[outcome_id] = status


class Caller:
    """One connection to the server: asks and reports, and remembers what it was told."""

    def __init__(self, port: int, log: Log) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self._log = log
        self.headers: dict[str, str] = {}  # of the last answer

    def close(self) -> None:
        self._connection.close()

    def post(self, path: str, content: Any) -> Any | None:
        """Return the answer, None where it is a refusal; raises where there is none."""
        body = json.dumps(content)
        self._connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        answer = json.loads(response.read())
        if response.status == 200:
            return answer
        self._log.refusals[f"{response.status} {answer['code']}"] += 1
        return None

    def ask(self, key: str) -> dict[str, Any] | None:
        answer = self.post("/v1/decisions", self._log.asked[key])
        if answer is not None:
            self._log.decided(key, answer)
        return answer  # type: ignore[no-any-return]

    def report(self, outcome_ids: list[str]) -> None:
        answer = self.post("/v1/outcomes", [self._log.reported[one] for one in outcome_ids])
        for result in () if answer is None else answer["results"]:
            self._log.kept(result["outcome_id"], result["status"])

    def again(self) -> None:
        """Send again all that was not acknowledged: each must be kept once."""
        for key in [key for key in self._log.asked if key not in self._log.answers]:
            self.ask(key)
            self._log.repeated += 1
        lost = [one for one in self._log.reported if one not in self._log.statuses]
        for start in range(0, len(lost), 100):
            self.report(lost[start : start + 100])
        self._log.repeated += len(lost)

    def work(self, name: str, stopped: Callable[[], bool]) -> None:
        """Ask and report until the server is gone, or `stopped`."""
        number = 0
        while not stopped():
            number += 1
            key = f"{name}-{number}"
            self._log.asked[key] = {"customer_id": key, "idempotency_key": key, **MAIL}
            answer = self.ask(key)
            if answer is None or number % 2 == 0:
                continue
            ids = [f"{key}-{kind}" for kind in ("open", "click")[: 1 + number % 4 // 2]]
            for outcome_id in ids:
                self._log.reported[outcome_id] = {
                    "outcome_id": outcome_id,
                    "decision_id": answer["decision_id"],
                    "outcome_type": outcome_id.rsplit("-", 1)[1],
                    "occurred_at": answer["decided_at"],
                    "value": float(number),
                }
            self.report(ids)


def load(port: int, log: Log, name: str, stopped: Callable[[], bool]) -> list[threading.Thread]:
    """Start callers that work until the server is gone, or `stopped`."""

    def run(number: int) -> None:
        caller = Caller(port, log)
        try:
            caller.work(f"{name}-{number}", stopped)
        except (OSError, HTTPException):
            pass  # the server is gone: whatever was on its way is not acknowledged
        finally:
            caller.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    return threads


def wait_until_ready(port: int) -> None:
    """Return when the server answers."""
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            time.sleep(0.01)
        finally:
            connection.close()


def kill_once(start: Callable[[], tuple[int, int]], log: Log, name: str, seconds: float) -> None:
    """Start a server, have lost calls repeated, put it under load, and kill it.

    ``seconds`` are counted from the first outcome that is acknowledged.
    """
    pid, port = start()
    wait_until_ready(port)
    caller = Caller(port, log)
    caller.again()
    caller.close()
    before = len(log.statuses)
    callers = load(port, log, name, lambda: False)
    while len(log.statuses) == before and any(thread.is_alive() for thread in callers):
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    for thread in callers:
        thread.join()


@dataclass(frozen=True)
class Losses:
    """What is wrong with a store, by what was acknowledged."""

    decisions: list[str]
    outcomes: list[str]
    contacts: list[str]
    strangers: list[str]
    faults: list[str]

    def __bool__(self) -> bool:
        return any(vars(self).values())


def losses(store: Store, log: Log) -> Losses:
    """Compare what was acknowledged with what the store holds."""
    answers = {answer["decision_id"]: answer for answer in log.answers.values()}
    missing = []
    for decision_id, answer in answers.items():
        found = store.decision(decision_id)
        if found is None or found.record["answer"] != answer:
            missing.append(decision_id)
    contacts, _ = store.history(None)
    made = Counter(contacts.decision_ids)
    known = store.decisions_by_keys(list(log.asked))
    held = {one.decision_id for one in known.values()}
    reported = {
        one.outcome_id: one.value
        for customer in {answer["customer_id"] for answer in log.answers.values()}
        for one in store.outcomes(customer_id=customer)
    }
    return Losses(
        decisions=missing,
        outcomes=[one for one in log.statuses if reported.get(one) != log.reported[one]["value"]],
        # Each offer of an answer is one contact, and there are no contacts of anything else.
        contacts=[one for one, answer in answers.items() if made[one] != len(answer["offers"])],
        strangers=[one for one in made if one not in held],
        faults=log.faults,
    )


def main() -> int:
    import shop_project

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", help="database URL; by default SQLite in the project")
    parser.add_argument("--queued", action="store_true", help="with NEXTBEST_DURABILITY=queued")
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    log = Log()
    with tempfile.TemporaryDirectory() as folder:
        models = shop_project.make_artefacts(Path(folder, "models"))
        Path(folder, "shop").mkdir()
        project = shop_project.make_project(Path(folder, "shop"), models)
        url = chosen.store or f"sqlite:///{project}/.nextbest/store.db"
        env = {"NEXTBEST_STORE": url}
        if chosen.queued:
            env["NEXTBEST_DURABILITY"] = "queued"
        started = time.monotonic()
        with nursery() as servers:
            start = partial(servers.start, project, **env)
            for number in range(chosen.rounds):
                kill_once(start, log, f"r{number}", chance.uniform(0.0, 0.5))
        seconds = time.monotonic() - started
        store = Store(url)
        found = losses(store, log)
        store.close()
    print(f"{chosen.rounds} kills in {seconds:.0f} s under load of {CALLERS} callers")
    print(f"acknowledged: {len(log.answers)} decisions, {len(log.statuses)} outcomes")
    print(f"cut off by a kill and sent again: {log.repeated} calls; refused: {dict(log.refusals)}")
    for kind, lost in vars(found).items():
        print(f"lost or twice, {kind}: {len(lost)} {lost[:3] if lost else ''}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
