"""A server refuses what it cannot answer in time, records nothing of it, and ends in good order."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import killing
import pytest
from fastapi.testclient import TestClient
from nursery import Nursery

from nextbest.serve.api import create_app
from nextbest.serve.runtime import open_store
from nextbest.serve.writer import GroupWriter

ASK = {"customer_id": "c01", "channel": "mail"}
BATCH = {"customer_ids": ["c01", "c02"], "channel": "mail"}
REPORT = {
    "outcome_id": "o",
    "customer_id": "c01",
    "offer_id": "a",
    "outcome_type": "click",
    "occurred_at": "2020-03-01T00:00:00Z",
}


def refused(response: Any) -> str:
    assert response.status_code == 503 and response.headers["retry-after"].isdigit()
    return str(response.json()["code"])


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/decisions", ASK), ("/v1/decisions/batch", BATCH), ("/v1/outcomes", REPORT)],
)
@pytest.mark.parametrize("short_way", [True, False])
def test_what_is_too_late_is_refused_and_not_recorded(
    project: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, short_way: bool
) -> None:
    monkeypatch.setenv("NEXTBEST_DEADLINE", "1e-9")
    with TestClient(create_app(project, insecure=True, short_way=short_way)) as client:
        assert refused(client.post(path, json=body)) == "deadline-exceeded"
        assert client.get("/healthz").status_code == 200
    store = open_store(project)
    assert store.history(None)[0].at == () and store.outcomes() == []
    store.close()


@pytest.mark.parametrize("short_way", [True, False])
def test_what_waits_too_long_for_the_disk_is_refused_and_never_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, short_way: bool
) -> None:
    """The one that is being written is answered, late; those behind it were never begun."""
    monkeypatch.setenv("NEXTBEST_DEADLINE", "0.3")
    begun = threading.Event()

    def in_time(writer: GroupWriter[Any], jobs: list[Any]) -> list[Any]:
        begun.set()
        return take(writer, jobs)

    take = GroupWriter._in_time
    monkeypatch.setattr(GroupWriter, "_in_time", in_time)
    app = create_app(project, insecure=True, short_way=short_way)
    with TestClient(app) as client, ThreadPoolExecutor(6) as pool:
        assert client.post("/v1/decisions", json=ASK).status_code == 200
        blocker = sqlite3.connect(project / ".nextbest" / "store.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        begun.clear()
        first = pool.submit(client.post, "/v1/outcomes", json=REPORT)
        assert begun.wait(10)
        others = [
            pool.submit(client.post, "/v1/decisions", json={**ASK, "customer_id": f"c1{n}"})
            for n in range(4)
        ]
        time.sleep(0.5)
        blocker.execute("ROLLBACK")
        blocker.close()
        assert first.result().status_code == 200
        assert {refused(other.result()) for other in others} == {"deadline-exceeded"}
    store = open_store(project)
    assert set(store.history(None)[0].customer_ids) == {"c01"}
    store.close()


def test_more_than_there_is_room_for_are_refused_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTBEST_BACKLOG", "3")
    with TestClient(create_app(project, insecure=True)) as client, ThreadPoolExecutor(12) as pool:
        assert client.post("/v1/decisions", json=ASK).status_code == 200
        blocker = sqlite3.connect(project / ".nextbest" / "store.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        waiting = [
            pool.submit(client.post, "/v1/decisions", json={**ASK, "customer_id": f"c1{n}"})
            for n in range(10)
        ]
        while sum(one.done() for one in waiting) < 7:
            time.sleep(0.01)
        assert client.get("/healthz").status_code == 200  # operators always get in
        blocker.execute("ROLLBACK")
        blocker.close()
        answers = [one.result() for one in waiting]
        assert client.post("/v1/decisions", json=ASK).status_code == 200  # there is room again
    said = [answer.status_code for answer in answers]
    assert sorted(said) == [200] * 3 + [503] * 7
    assert {refused(answer) for answer in answers if answer.status_code == 503} == {"overloaded"}


def test_a_server_that_is_told_to_stop_answers_everybody_whom_it_serves(
    project: Path, servers: Nursery
) -> None:
    """What is recorded is what was answered: nobody was left without, and nothing was lost."""
    log = killing.Log()
    with servers.server(project) as (pid, port):
        killing.wait_until_ready(port)
        callers = killing.load(port, log, "r", lambda: False)
        while len(log.answers) < 3 * killing.CALLERS:
            assert any(caller.is_alive() for caller in callers)
            time.sleep(0.005)
        os.kill(pid, signal.SIGTERM)
        for caller in callers:
            caller.join(30)
        assert not any(caller.is_alive() for caller in callers)
    store = open_store(project)
    assert not killing.losses(store, log)
    recorded = store.decisions_by_keys(list(log.asked))
    assert recorded.keys() == log.answers.keys()
    kept = {
        one.outcome_id
        for answer in log.answers.values()
        for one in store.outcomes(decision_id=answer["decision_id"])
    }
    assert kept == log.statuses.keys()
    assert not log.refusals
    store.close()


def test_a_running_server_does_not_look_through_what_it_has_loaded_for_garbage(
    project: Path,
) -> None:
    """Each time, all requests would wait for it; it ends with the server."""
    before = gc.get_freeze_count()
    with TestClient(create_app(project, insecure=True)):
        assert gc.get_freeze_count() > max(before, 10_000)
    assert gc.get_freeze_count() == 0


def test_no_thread_of_a_running_server_keeps_the_interpreter_for_long(project: Path) -> None:
    before = sys.getswitchinterval()
    with TestClient(create_app(project, insecure=True)):
        assert sys.getswitchinterval() < before / 2
    assert sys.getswitchinterval() == before
