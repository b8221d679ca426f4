"""What is committed comes into the file by itself, and nobody who commits waits for that."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from test_store import decision

from nextbest.serve.store import Store
from nextbest.serve.store.checkpoints import BACKSTOP_PAGES, ROWS, Checkpoints


def fill(store: Store, start: int = 0) -> None:
    """Commit enough for a checkpoint to be due: a decision is two rows at least."""
    store.record_decisions([decision(start + number) for number in range(ROWS)])


def in_file(path: Path) -> int:
    """How many decisions whoever loses the log would find."""
    alone = path.with_name("alone.db")
    shutil.copyfile(path, alone)
    try:
        with sqlite3.connect(alone) as connection:
            ((number,),) = connection.execute("SELECT count(*) FROM decisions")
            return int(number)
    except sqlite3.DatabaseError:  # copied in the middle of it
        return -1


def soon(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_what_was_committed_is_in_the_file_soon(store: Store, path: Path) -> None:
    for round_ in range(3):
        fill(store, round_ * ROWS)
        wanted = (round_ + 1) * ROWS
        assert soon(lambda wanted=wanted: in_file(path) == wanted)  # type: ignore[misc]


def test_the_log_starts_anew_where_all_of_it_is_in_the_file(store: Store, path: Path) -> None:
    fill(store)
    assert soon(lambda: in_file(path) == ROWS)
    log, numbers = path.with_name(path.name + "-wal"), count(ROWS)

    def grows() -> bool:
        size = log.stat().st_size
        for _ in range(10):
            store.record_decisions([decision(next(numbers))])
        return log.stat().st_size > size

    assert soon(lambda: not grows())


def test_who_commits_does_not_wait_for_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write(_: Checkpoints) -> None:
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(Checkpoints, "_write", write)
    fill(store)
    assert begun.wait(10)
    fill(store, ROWS)
    assert store.decision(f"d{2 * ROWS - 1}") is not None
    go_on.set()


def test_a_fault_ends_nothing(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def write(_: Checkpoints) -> None:
        failed.set()
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_write", write)
        fill(store)
        assert failed.wait(10)
    fill(store, ROWS)
    assert soon(lambda: in_file(path) == 2 * ROWS)


def test_the_log_stays_short_where_it_cannot_keep_up(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "_write", lambda _: None)
    large = "x" * 100_000
    pages = 0
    while pages < 1.5 * BACKSTOP_PAGES:
        records = [decision(pages + number, record={"x": large}) for number in range(20)]
        store.record_decisions(records)
        pages += 20 * len(large) // 8_192
    log = path.with_name(path.name + "-wal")
    assert 0.9 * BACKSTOP_PAGES * 8_192 < log.stat().st_size < 1.2 * BACKSTOP_PAGES * 8_192
    assert in_file(path) > 0


def test_nothing_is_left_of_it_when_the_store_is_closed(path: Path) -> None:
    store = Store.at(path)
    fill(store)
    store.close()
    assert not [one for one in threading.enumerate() if one.name == "store-checkpoints"]
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(path.name)] == [
        path.name
    ]
