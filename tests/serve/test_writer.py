"""Group commit: everybody's work gets in once, in order, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from nextbest.serve import writer
from nextbest.serve.writer import (
    GroupWriter,
    Refused,
    Ways,
    WriterClosedError,
    WriterFullError,
    WriterLateError,
)


class Disk:
    """Keeps what is committed; ``transactions`` counts how often, ``gate`` holds commits up."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.transactions = 0
        self.gate = threading.Event()
        self.gate.set()

    @contextmanager
    def transaction(self) -> Iterator[list[int]]:
        draft: list[int] = []
        yield draft
        self.gate.wait(10)
        self.transactions += 1
        self.kept += draft


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_work_that_waits_shares_a_transaction_and_keeps_its_order(disk: Disk) -> None:
    group = GroupWriter(disk.transaction)
    disk.gate.clear()
    futures = [group.submit(lambda draft, n=number: draft.append(n)) for number in range(50)]
    disk.gate.set()
    for future in futures:
        future.result(10)
    group.close()
    assert disk.kept == list(range(50))
    assert disk.transactions <= 3


def test_nothing_is_reported_done_before_its_commit(disk: Disk) -> None:
    group = GroupWriter(disk.transaction)
    disk.gate.clear()
    future = group.submit(lambda draft: draft.append(1))
    with pytest.raises(TimeoutError):
        future.result(0.05)
    disk.gate.set()
    future.result(10)
    assert disk.kept == [1]
    group.close()


def test_a_fault_refuses_its_own_work_only(disk: Disk) -> None:
    def work(draft: list[int], number: int) -> int:
        if number % 7 == 3:
            raise ValueError(number)
        draft.append(number)
        return number

    group = GroupWriter(disk.transaction)
    disk.gate.clear()
    futures = [group.submit(lambda draft, n=number: work(draft, n)) for number in range(30)]
    disk.gate.set()
    for number, future in enumerate(futures):
        if number % 7 == 3:
            assert isinstance(future.exception(10), ValueError)
        else:
            assert future.result(10) == number
    group.close()
    assert disk.kept == [number for number in range(30) if number % 7 != 3]


def test_a_fault_of_the_database_is_everybodys_and_is_met_once(disk: Disk) -> None:
    """Twenty who wait for a locked database must not wait twenty times for it."""
    tried = []

    def work(_: object) -> None:
        tried.append(1)
        raise OSError("locked")

    ways: Ways[list[int]] = Ways(shared=lambda error: isinstance(error, OSError))
    group = GroupWriter(disk.transaction, ways)
    disk.gate.clear()
    first = group.submit(lambda draft: draft.append(1))
    futures = [group.submit(work) for _ in range(20)]
    disk.gate.set()
    first.exception(10)  # alone, or with those behind it
    assert all(isinstance(future.exception(10), OSError) for future in futures)
    assert len(tried) <= 2
    group.close()


def test_a_transaction_that_cannot_begin_refuses_its_group_once() -> None:
    began = []

    @contextmanager
    def transaction() -> Iterator[None]:
        began.append(1)
        raise OSError("locked")
        yield

    all_wait = threading.Event()

    def told(error: Exception) -> Exception:
        all_wait.wait(10)
        return error

    group = GroupWriter(transaction, Ways(told=told))
    futures = [group.submit(lambda _: None) for _ in range(20)]
    all_wait.set()
    assert all(isinstance(future.exception(10), OSError) for future in futures)
    group.close()
    assert len(began) <= 2


def test_what_comes_too_late_is_not_done(disk: Disk) -> None:
    group = GroupWriter(disk.transaction)
    disk.gate.clear()
    first = group.submit(lambda draft: draft.append(1))
    now = time.monotonic()
    late = group.submit(lambda draft: draft.append(2), until=now - 1)
    early = group.submit(lambda draft: draft.append(3), until=now + 3_600)
    disk.gate.set()
    assert isinstance(late.exception(10), WriterLateError)
    assert early.exception(10) is None and first.exception(10) is None
    group.close()
    assert disk.kept == [1, 3]


def test_what_was_cancelled_before_its_turn_is_not_done(disk: Disk) -> None:
    group = GroupWriter(disk.transaction)
    disk.gate.clear()
    first = group.submit(lambda draft: draft.append(1))
    while not first.running():
        time.sleep(0.001)
    second, third = (group.submit(lambda draft: draft.append(2)) for _ in range(2))
    assert not first.cancel() and second.cancel()
    disk.gate.set()
    third.result(10)
    group.close()
    assert disk.kept == [1, 2]


def test_the_names_of_a_group_are_locked_first(disk: Disk) -> None:
    locked: list[list[str]] = []

    def lock(draft: list[int], names: Iterable[str]) -> None:
        assert draft == []
        locked.append(list(names))

    group = GroupWriter(disk.transaction, Ways(lock=lock))
    disk.gate.clear()
    futures = [group.submit(lambda draft: draft.append(1), ["x", str(n)]) for n in range(3)]
    disk.gate.set()
    for future in futures:
        future.result(10)
    group.close()
    assert [name for names in locked for name in names] == ["x", "0", "x", "1", "x", "2"]


def test_a_failing_commit_is_told_and_later_work_gets_in() -> None:
    broken = [True]

    @contextmanager
    def transaction() -> Iterator[None]:
        yield
        if broken[0]:
            raise OSError("disk full")

    group = GroupWriter(transaction)
    with pytest.raises(OSError, match="disk full"):
        group.submit(lambda _: None).result(10)
    broken[0] = False
    assert group.submit(lambda _: 5).result(10) == 5
    group.close()


def test_too_much_work_is_refused_at_once(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QUEUE_LIMIT", 3)
    group = GroupWriter(disk.transaction)
    disk.gate.clear()
    futures = [group.submit(lambda draft: draft.append(1))]
    with pytest.raises(WriterFullError, match="3 writes wait"):
        for _ in range(100):
            futures.append(group.submit(lambda draft: draft.append(1)))
    disk.gate.set()
    for future in futures:
        future.result(10)
    group.close()
    assert len(disk.kept) == len(futures)


def test_closing_finishes_what_waits_and_refuses_the_rest(disk: Disk) -> None:
    group = GroupWriter(disk.transaction)
    futures = [group.submit(lambda draft: draft.append(1)) for _ in range(20)]
    group.close()
    assert all(future.done() for future in futures)
    assert len(disk.kept) == 20
    with pytest.raises(WriterClosedError):
        group.submit(lambda draft: draft.append(1))


def test_work_that_refuses_itself_fails_alone_and_undoes_nothing(disk: Disk) -> None:
    group = GroupWriter(disk.transaction)
    disk.gate.clear()
    first = group.submit(lambda draft: draft.append(1))
    refused = group.submit(lambda _: Refused(ValueError("changed")))
    last = group.submit(lambda draft: draft.append(3))
    disk.gate.set()
    assert isinstance(refused.exception(10), ValueError)
    assert first.exception(10) is None and last.exception(10) is None
    group.close()
    assert disk.kept == [1, 3]
    assert disk.transactions <= 2
