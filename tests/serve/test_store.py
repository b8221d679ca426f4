"""The store keeps what it acknowledged, once, whoever asks and whatever else fails."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from nextbest.decide.packed import Shared
from nextbest.errors import StoreError
from nextbest.serve.audit import Change
from nextbest.serve.records import Contacts, DecisionRecord, Kept, Outcome, Outcomes
from nextbest.serve.store import Store
from nextbest.serve.store.database import Database
from nextbest.serve.store.rows import insert_rows
from nextbest.serve.store.tables import DECISIONS

AT = datetime(2017, 12, 10, 9, 30, tzinfo=UTC)


def decision(number: int = 1, **changes: object) -> DecisionRecord:
    record = DecisionRecord(
        decision_id=f"d{number}",
        customer_id="7",
        decided_at=AT,
        channel="email",
        arm="policy",
        offer_ids=("a", "b"),
        record={"answer": {"n": number}},
        request_hash="h",
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def outcome(outcome_id: str = "o1", **changes: object) -> Outcome:
    return replace(
        Outcome(outcome_id, "7", "a", "click", AT, 2.5, "d1"),
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


@pytest.fixture
def file_store(path: Path) -> Iterator[Store]:
    """A store in SQLite, for what concerns the file."""
    store = Store.at(path)
    yield store
    store.close()


def test_a_decision_comes_back_as_it_was_recorded(store: Store) -> None:
    store.record_decisions([decision()])
    found = store.decision("d1")
    assert found is not None
    assert (found.customer_id, found.record) == ("7", {"answer": {"n": 1}})
    assert store.decision("d2") is None


def test_what_is_packed_comes_back_wherever_decisions_are_read(store: Store) -> None:
    """What records share is kept once, also where two writers bring it, and stays."""
    shared = [Shared(f"hash {n}", str(n)) for n in range(2)]
    kept = [Kept('{"answer": {}}', bytes([n, 0, 255]), shared[n % 2]) for n in range(4)]
    made = [decision(n, record=kept[n], idempotency_key=f"k{n}") for n in range(4)]
    store.record_decisions(made[:3])
    store.record_decisions(made[3:])
    store.record_decisions([decision(4, record={"answer": {}})])
    for n, one in enumerate(kept):
        found = store.decision(f"d{n}")
        assert found is not None and found.kept == one
    found_by_key = store.decisions_by_keys([f"k{n}" for n in range(4)])
    assert {key: one.kept for key, one in found_by_key.items()} == {
        f"k{n}": one for n, one in enumerate(kept)
    }
    (part,) = store.decision_parts(10)
    assert [one.kept for one in part] == [*kept, Kept('{"answer":{}}')]
    assert [one.kept for one in store.person("7").decisions][:4] == kept
    store.erase("7", Change("user test", "erase", "one customer", {}))
    with store._database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM shared_inputs").scalar() == 2


def test_no_decision_is_kept_without_what_it_shares(url: str) -> None:
    database = Database(url, 5_000)
    Store(url).close()
    row = decision(record=Kept("{}", b"", Shared("nowhere", "{}"))).row()
    fault = (sqlite3.IntegrityError, sa.exc.IntegrityError)
    with pytest.raises(fault, match=r"(?i)foreign key"), database.transaction() as connection:
        insert_rows(connection, DECISIONS, [row])
    database.engine.dispose()


def test_chosen_gives_offers_by_rank_and_an_empty_tuple_for_no_offer(store: Store) -> None:
    store.record_decisions([decision(1, offer_ids=("b", "a")), decision(2, offer_ids=())])
    assert store.chosen(["d1", "d2", "d3"]) == {"d1": ("7", ("b", "a")), "d2": ("7", ())}


def test_history_is_oldest_first_and_only_of_the_customers_asked_for(store: Store) -> None:
    later = AT + timedelta(days=1)
    store.record_decisions(
        [
            decision(1, decided_at=later, offer_ids=("a",)),
            decision(2, offer_ids=("b",)),
            decision(3, customer_id="8", offer_ids=("c",)),
        ]
    )
    store.record_outcomes(
        [outcome("o1", occurred_at=later, decision_id=None), outcome("o2", offer_id=None)]
    )
    naive = AT.replace(tzinfo=None)
    contacts, outcomes = store.history(["7"])
    assert contacts == Contacts(
        ("7", "7"),
        ("b", "a"),
        ("email", "email"),
        (naive, naive + timedelta(days=1)),
        ("d2", "d1"),
    )
    assert outcomes == Outcomes(
        ("7", "7"),
        (None, "a"),
        ("email", None),
        ("click", "click"),
        (naive, naive + timedelta(days=1)),
        ("d1", None),
    )
    assert store.history(None)[0].customer_ids == ("7", "8", "7")
    assert store.history([]) == (Contacts(), Outcomes())


def test_tallies_count_each_contact_once_and_only_its_own_answers(store: Store) -> None:
    later, before = AT + timedelta(days=1), AT - timedelta(days=1)
    store.record_decisions(
        [decision(1), decision(2, offer_ids=("a",)), decision(3, customer_id="8"),
         decision(4, customer_id="9", offer_ids=())]
    )  # fmt: skip
    store.record_outcomes(
        [
            outcome("o1", outcome_type="response"),
            outcome("o2", outcome_type="conversion"),  # the same contact again
            outcome("o3", outcome_type="click", decision_id="d2"),
            outcome("o4", outcome_type="response", decision_id=None, customer_id="8",
                    occurred_at=later),
            outcome("o5", outcome_type="response", decision_id=None, customer_id="8",
                    offer_id="b", occurred_at=before),
        ]
    )  # fmt: skip
    for answers, counts in (
        (["response", "conversion"], {"a": (3, 2), "b": (2, 0)}),
        ([], {"a": (3, 0), "b": (2, 0)}),
    ):
        found = store.tallies(answers, later)
        assert {name: (t.contacts, t.responses) for name, t in found.items()} == counts
    assert store.tallies(["response"], before) == {}


def test_history_takes_more_customers_than_one_statement_may_bind(store: Store) -> None:
    store.record_decisions([decision(1, customer_id="39999", offer_ids=("a",))])
    contacts, _ = store.history([str(number) for number in range(40_000)])
    assert contacts.customer_ids == ("39999",)


def test_a_taken_idempotency_key_returns_the_first_decision_and_adds_no_contact(
    store: Store,
) -> None:
    store.record_decisions([decision(1, idempotency_key="k", request_hash="first")])
    (kept,) = store.record_decisions([decision(2, idempotency_key="k", request_hash="second")])
    assert (kept.decision_id, kept.request_hash) == ("d1", "first")
    assert store.decision("d2") is None
    assert store.history(["7"])[0].offer_ids == ("a", "b")
    assert set(store.decisions_by_keys(["k", "other"])) == {"k"}


def test_recording_the_same_decision_again_changes_nothing(store: Store) -> None:
    store.record_decisions([decision()])
    store.record_decisions([decision(record={"answer": "other"})])
    found = store.decision("d1")
    assert found is not None and found.record == {"answer": {"n": 1}}
    assert store.history(["7"])[0].offer_ids == ("a", "b")


def test_outcomes_are_kept_once_and_contradictions_are_named(store: Store) -> None:
    first = [outcome("o1"), outcome("o1"), outcome("o1", value=3.0), outcome("o2")]
    assert store.record_outcomes(first) == ["stored", "duplicate", "conflict", "stored"]
    again = [outcome("o1"), outcome("o2", outcome_type="open")]
    assert store.record_outcomes(again) == ["duplicate", "conflict"]
    assert store.outcomes(customer_id="7") == [outcome("o1"), outcome("o2")]
    assert store.outcomes(decision_id="d1") == [outcome("o1"), outcome("o2")]
    assert store.outcomes(decision_id="d2") == []


def test_the_same_instant_in_another_time_zone_is_the_same_outcome(store: Store) -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=-5)))
    assert store.record_outcomes([outcome()]) == ["stored"]
    assert store.record_outcomes([outcome(occurred_at=elsewhere)]) == ["duplicate"]


def test_empty_writes_are_allowed(store: Store) -> None:
    assert store.record_decisions([]) == []
    assert store.record_outcomes([]) == []


def test_another_process_reads_what_was_acknowledged(store: Store, url: str) -> None:
    store.record_decisions([decision()])
    store.record_outcomes([outcome()])
    program = """
        import sys
        from nextbest.serve.store import Store
        store = Store(sys.argv[1])
        print(store.decision("d1").record, [o.outcome_id for o in store.outcomes(customer_id="7")])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), url],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "{'answer': {'n': 1}} ['o1']"


def test_acknowledged_writes_outlive_a_killed_process(url: str) -> None:
    program = """
        import os, signal, sys
        from datetime import datetime
        from nextbest.serve.records import DecisionRecord
        from nextbest.serve.store import Store
        store = Store(sys.argv[1])
        for n in range(20):
            record = DecisionRecord(
                f"d{n}", "7", datetime(2020, 1, 1), "email", "policy", ("a",), {}, "h"
            )
            store.record_decisions([record])
            print(n, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), url],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    acknowledged = done.stdout.split()
    assert len(acknowledged) == 20
    store = Store(url)
    assert all(store.decision(f"d{number}") for number in acknowledged)
    assert len(store.history(["7"])[0].at) == 20
    store.close()


def test_threads_and_stores_write_at_once_without_loss(url: str) -> None:
    stores = [Store(url) for _ in range(2)]

    def write(number: int) -> list[str]:
        store = stores[number % 2]
        store.record_decisions([decision(number, customer_id=str(number))])
        return store.record_outcomes([outcome("shared"), outcome(f"o{number}")])

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(write, range(200)))
    assert sum(shared == "stored" for shared, _ in statuses) == 1
    assert all(own == "stored" for _, own in statuses)
    assert len(stores[0].history(None)[0].at) == 400
    for store in stores:
        store.close()


def test_one_key_used_by_many_threads_makes_one_decision(store: Store) -> None:
    def write(number: int) -> str:
        return store.record_decisions([decision(number, idempotency_key="k")])[0].decision_id

    with ThreadPoolExecutor(16) as pool:
        winners = set(pool.map(write, range(50)))
    assert len(winners) == 1
    assert len(store.history(["7"])[0].at) == 2


def test_a_failing_write_does_not_refuse_its_neighbours(file_store: Store, path: Path) -> None:
    """A row without a customer breaks the table's rule; those queued beside it must get in."""
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # holds the first write, so that the rest queue as a group
    with ThreadPoolExecutor(8) as pool:
        bad = decision(0, customer_id=None)
        waiting = [
            pool.submit(file_store.record_decisions, [bad if number == 3 else decision(number)])
            for number in range(8)
        ]
        blocker.execute("COMMIT")
    assert [isinstance(job.exception(), StoreError) for job in waiting] == [
        number == 3 for number in range(8)
    ]
    assert file_store.decision("d0") is not None and file_store.decision("d7") is not None
    blocker.close()


def test_a_store_held_by_another_process_is_refused_and_then_works_again(
    file_store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 50)
    impatient = Store.__new__(Store)
    with pytest.raises(StoreError, match=r"cannot be opened.*locked"):
        impatient.__init__(f"sqlite:///{path}")  # type: ignore[misc]
    blocker.execute("COMMIT")
    blocker.close()
    file_store.record_decisions([decision()])
    assert file_store.decision("d1") is not None


def test_a_full_disk_is_refused_and_recovers_without_a_restart(path: Path) -> None:
    store = Store.at(path)
    with store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    # SQLite's own limit raises the very error of a full disk; it is kept per connection.
    with store._database.transaction() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="full"):
        store.record_decisions([decision(record={"big": "x" * 200_000})])
    assert store.decision("d1") is None
    with store._database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    store.record_decisions([decision(record={"big": "x" * 200_000})])
    assert store.decision("d1") is not None
    store.close()


def test_a_store_of_a_newer_version_is_refused(path: Path) -> None:
    Store.at(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(StoreError, match=r"newer nextbest.*got 99"):
        Store.at(path)


def test_a_store_from_before_the_release_is_refused_with_a_way_out(path: Path) -> None:
    Store.at(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 1")
    with pytest.raises(StoreError, match=r"earlier nextbest.*version 2; got 1\. Move it away"):
        Store.at(path)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("not a url", "URL cannot be used"),
        ("mysql://shop", "URL cannot be used"),
        ("nonsense://shop", "URL cannot be used"),
        ("sqlite:////proc/nowhere/store.db", "cannot be opened"),
    ],
)
def test_an_unusable_url_is_refused_in_words(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        Store(url)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("this is not a database, but it is long enough to have a header " * 20)
    with pytest.raises(StoreError, match="not a database"):
        Store.at(path)


def test_a_closed_store_refuses_writes_and_closing_twice_is_harmless(url: str) -> None:
    store = Store(url)
    threads = threading.active_count()
    store.close()
    store.close()
    assert threading.active_count() == threads - 1
    with pytest.raises(StoreError, match="closed"):
        store.record_decisions([decision()])


def test_commits_are_flushed_to_disk(file_store: Store) -> None:
    with file_store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
