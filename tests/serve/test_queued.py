"""Answers before the disk has them: what still holds, what may be lost, and how one is told."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from test_caps import CAPS, LIVE, contacts_of, offers_of
from test_store import decision

from nextbest.serve.api import create_app
from nextbest.serve.runtime import open_store
from nextbest.serve.store import Store


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep everybody from writing to a store meanwhile."""
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store.at(path, queued=True)
    yield store
    store.close()


def on_disk(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute("SELECT count(*) FROM decisions").fetchone()[0])


def test_a_decision_is_answered_before_it_is_on_disk(store: Store, path: Path) -> None:
    with held(path):
        (kept,) = store.record_decisions([decision(1)])
        assert kept.decision_id == "d1"
        assert on_disk(path) == 0
    assert store.decision("d1") is not None  # who reads it waits for it
    assert on_disk(path) == 1 and store.lost == 0


@pytest.mark.parametrize(
    "read",
    [
        lambda store: len(store.history(["7"])[0].at) == 2,
        lambda store: len(store.history(None)[0].at) == 2,
        lambda store: len(store.past(["7"], None)[0].at) == 2,
        lambda store: store.chosen(["d1"])["d1"][0] == "7",
        lambda store: store.decision("d1") is not None,
        lambda store: store.request_hashes(["d1"]) == {"d1": "h"},
        lambda store: store.decisions_by_keys(["k"])["k"].decision_id == "d1",
    ],
)
def test_who_reads_about_it_waits_for_it(store: Store, path: Path, read: object) -> None:
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.append(read(store)))  # type: ignore[operator]
    with held(path):
        store.record_decisions([decision(1, idempotency_key="k")])
        reader.start()
        assert len(store.history(["8"])[0].at) == 0  # others do not
        reader.join(0.1)
        assert reader.is_alive()
    reader.join(10)
    assert found == [True]


def test_one_key_makes_one_decision(store: Store, path: Path) -> None:
    """The second waits for the first, or somebody would hold an answer that is not kept."""
    second: list[str] = []

    def again() -> None:
        kept = store.record_decisions([decision(2, customer_id="8", idempotency_key="k")])
        second.append(kept[0].decision_id)

    writer = threading.Thread(target=again)
    with held(path):
        store.record_decisions([decision(1, idempotency_key="k")])
        writer.start()
        writer.join(0.1)
        assert not second
    writer.join(10)
    assert second == ["d1"]
    same = [decision(n, customer_id=str(n), idempotency_key="twice") for n in (3, 4)]
    assert [one.decision_id for one in store.record_decisions(same)] == ["d3", "d3"]
    assert store.lost == 0


def test_what_is_lost_is_counted_and_the_next_waits_for_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 50)
    store = Store.at(path, queued=True)
    with held(path):
        store.record_decisions([decision(1)])
        assert store.decision("d1") is None
        assert store.lost == 1
        with pytest.raises(Exception, match="locked"):  # no more answers into the void
            store.record_decisions([decision(2)])
    store.record_decisions([decision(3)])
    assert on_disk(path) == 1
    with held(path):
        store.record_decisions([decision(4)])  # it is trusted again
        assert on_disk(path) == 1
    store.close()
    assert on_disk(path) == 2
    assert store.lost == 1


def test_closing_writes_what_waits(path: Path) -> None:
    store = Store.at(path, queued=True)
    for number in range(50):
        store.record_decisions([decision(number)])
    store.close()
    assert on_disk(path) == 50


def test_a_server_with_queued_answers_keeps_caps_and_keys(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTBEST_DURABILITY", "queued")
    (project / "serving" / "policy.toml").write_text(LIVE + CAPS)
    question = {"customer_id": "c01", "channel": "mail"}
    with TestClient(create_app(project, insecure=True)) as client:
        made = [offers_of(client.post("/v1/decisions", json=question)) for _ in range(6)]
        keyed = {**question, "customer_id": "c02", "idempotency_key": "k"}
        first, again = (client.post("/v1/decisions", json=keyed).json() for _ in range(2))
        page = client.get("/metrics").text
    assert made == [1, 1, 1, 0, 0, 0] and contacts_of(project, "c01") == 3
    assert first == again
    assert "nextbest_decisions_lost 0.0" in page and "nextbest_store_queue" in page
    store = open_store(project)
    assert store.decision(first["decision_id"]) is not None
    store.close()
