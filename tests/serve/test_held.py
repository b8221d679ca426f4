"""What the held connection tells of others' writes is exact, and costs nobody a wait."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextbest.serve.audience import past_of
from nextbest.serve.records import DecisionRecord, Outcome, Seen
from nextbest.serve.store import HistoryChangedError, Store
from nextbest.serve.store.decisions import keeper, rows_about
from nextbest.serve.writer import Refused

AT = datetime(2026, 1, 1, tzinfo=UTC)
PEOPLE = ("a", "b")


def decision(number: int, customer_id: str = "a") -> DecisionRecord:
    return DecisionRecord(f"d{number}", customer_id, AT, "web", "policy", ("o",), {}, "h")


def outcome(number: int, customer_id: str = "a") -> Outcome:
    return Outcome(f"o{number}", customer_id, "o", "click", AT)


def seen_by(store: Store) -> Seen:
    return past_of(store, PEOPLE).rows(PEOPLE)


def certain(store: Store, seen: Seen) -> bool:
    """Whether the store is certain that nobody has written; it must then be so."""

    def look(_: object) -> bool:
        return store._database.untouched_since(seen.moment)

    return store._write(look)


STEPS = ("read", "look", "decide", "report", "other decides", "other touches", "fail", "let go")


@settings(max_examples=60)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=14))
@example(["read", "other decides", "look", "look"])
@example(["other decides", "read", "decide", "look"])
@example(["read", "let go", "other decides", "look"])
@example(["read", "other decides", "fail", "look"])
def test_who_is_certain_that_nobody_has_written_is_right(steps: list[str]) -> None:
    """Whatever happens in between, here and in another process, against counting the rows."""
    with tempfile.TemporaryDirectory() as folder:
        store, other = (Store.at(Path(folder, "store.db")) for _ in range(2))
        seen: list[Seen] = []
        for number, step in enumerate(steps):
            if step == "read":
                seen.append(seen_by(store))
            elif step == "decide":
                store.record_decisions([decision(number)])
            elif step == "report":
                store.record_outcomes([outcome(number)])
            elif step == "other decides":
                other.record_decisions([decision(number)])
            elif step == "other touches":
                other.ping()
            elif step == "fail":
                with pytest.raises(UnicodeEncodeError):
                    store.record_decisions([decision(number, "\ud800")])
            elif step == "let go":
                store._engine.dispose()
            for one in seen if step == "look" else ():
                if certain(store, one):
                    with store._database.read() as connection:
                        assert rows_about(connection, PEOPLE) == Counter(one.rows)
        store.close()
        other.close()


def test_one_who_is_alone_is_certain_and_counts_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.record_decisions([decision(1)])
    seen = seen_by(store)
    monkeypatch.setattr("nextbest.serve.store.decisions.rows_about", None)
    store.record_decisions([decision(2)], seen)
    store.record_decisions([decision(3)], seen_by(store))
    assert len(store.history(["a"])[0].at) == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.record_decisions([decision(9)]),
        lambda store: store.record_outcomes([outcome(9)]),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_decision_is_not_kept_when_somebody_has_written_since(
    store: Store, path: Path, write: Callable[[Store], object], own: bool
) -> None:
    store.record_decisions([decision(1)])
    seen = seen_by(store)
    if own:
        write(store)
    else:
        other = Store.at(path)
        write(other)
        other.close()
    with pytest.raises(HistoryChangedError):
        store.record_decisions([decision(2)], seen)
    store.record_decisions([decision(2)], seen_by(store))


def test_work_before_it_in_the_same_transaction_counts(store: Store) -> None:
    store.ping()
    seen = seen_by(store)
    known = store._database.untouched_since
    with store._database.transaction() as connection:
        assert isinstance(keeper([decision(1)], seen, known)(connection), list)
        overtaken = keeper([decision(2)], seen, known)(connection)
        assert isinstance(overtaken, Refused)
        stranger = keeper([decision(3, "b")], Seen({"b": 0}, seen.moment), known)(connection)
        assert isinstance(stranger, list)


def test_who_reads_does_not_wait_for_who_writes(store: Store) -> None:
    store.record_decisions([decision(1)])
    with store._database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM contacts")
        assert len(past_of(store, ["a"]).contacts.at) == 1  # as it was before
    assert len(past_of(store, ["a"]).contacts.at) == 0


def test_nothing_is_left_open_when_a_store_is_closed(path: Path) -> None:
    store = Store.at(path)
    store.record_decisions([decision(1)])
    assert len(past_of(store, ["a"]).contacts.at) == 1
    store.close()
    # SQLite keeps its journal while any connection of any process is open.
    assert [file.name for file in path.parent.iterdir()] == ["store.db"]
