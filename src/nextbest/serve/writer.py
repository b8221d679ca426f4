"""Group commit: one thread writes for all, so that one flush to disk serves everyone who waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = [
    "GroupWriter",
    "Refused",
    "Ways",
    "WriterClosedError",
    "WriterFullError",
    "WriterLateError",
]

GROUP_LIMIT = 256
QUEUE_LIMIT = 4_096

C = TypeVar("C")
T = TypeVar("T")


class WriterClosedError(Exception):
    """The writer was closed before this work was handed in."""


class WriterFullError(Exception):
    """More work waits than the disk can take; refusing now is better than collapsing later."""


class WriterLateError(Exception):
    """The time that the caller gave was up before the work began; nothing was done."""


@dataclass(frozen=True)
class Refused:
    """What work returns that changed nothing: its future fails with ``error``, nobody else's."""

    error: Exception


@dataclass(frozen=True)
class _Job(Generic[C]):
    work: Callable[[C], Any]
    names: Sequence[str]
    until: float | None
    done: Future[Any]


@dataclass(frozen=True)
class Ways(Generic[C]):
    """How a writer goes about its transactions, beside opening them.

    Parameters
    ----------
    lock: called first in each transaction, with the names of all its work.
    told: turns what a transaction raised into what the future fails with.
    shared: tells whether what work raised would have met its neighbours too.
    """

    lock: Callable[[C, Iterable[str]], None] = lambda transaction, names: None
    told: Callable[[Exception], Exception] = lambda error: error
    shared: Callable[[Exception], bool] = lambda error: False


class GroupWriter(Generic[C]):
    """Runs pieces of work in shared transactions, in the order in which they were handed in.

    Parameters
    ----------
    transaction: opens a transaction that commits durably on leaving and rolls back on an error.
        Work may run twice when a neighbour in its group fails, so it must change nothing else.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[C]],
        ways: Ways[C] | None = None,
    ) -> None:
        self._transaction = transaction
        self._ways: Ways[C] = ways or Ways()
        self._jobs: queue.SimpleQueue[_Job[C] | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """About how many pieces of work wait for their transaction to begin."""
        return self._jobs.qsize()

    def submit(
        self,
        work: Callable[[C], T | Refused],
        names: Sequence[str] = (),
        until: float | None = None,
    ) -> Future[T]:
        """Queue ``work``; the future resolves when its transaction is on disk.

        Parameters
        ----------
        work: returns its result, or `Refused` where it has changed nothing.
        names: of what no other writer of the same database may change meanwhile.
        until: by `time.monotonic`; work that has not begun by then is not done.

        Raises
        ------
        WriterClosedError, WriterFullError: it is not queued.
        """
        done: Future[T] = Future()
        with self._gate:
            if self._closed:
                raise WriterClosedError("the store is closed")
            # Only here is anything put in: while we hold the gate nobody else can fill the queue.
            if self._jobs.qsize() >= QUEUE_LIMIT:
                raise WriterFullError(f"{QUEUE_LIMIT} writes wait already")
            self._jobs.put(_Job(work, names, until, done))
        return done

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        self._jobs.put(None)
        self._thread.join()

    def _loop(self) -> None:
        last = False
        while not last:
            waiting = [self._jobs.get()]
            while len(waiting) < GROUP_LIMIT and not self._jobs.empty():
                waiting.append(self._jobs.get())
            last = waiting[-1] is None
            jobs = self._in_time([job for job in waiting if job is not None])
            while jobs:
                jobs = self._run(jobs)

    def _in_time(self, jobs: list[_Job[C]]) -> list[_Job[C]]:
        """Refuse what came too late, and what nobody waits for any more; return the rest."""
        now, left = time.monotonic(), []
        for job in jobs:
            if not job.done.set_running_or_notify_cancel():
                continue
            if job.until is not None and job.until < now:
                late = WriterLateError("its time was up before its turn came")
                job.done.set_exception(self._ways.told(late))
                continue
            left.append(job)
        return left

    def _run(self, jobs: list[_Job[C]]) -> list[_Job[C]]:
        """Run jobs in one transaction and return those that must be run again."""
        results: list[Any] = []
        at_work: _Job[C] | None = None
        try:
            with self._transaction() as connection:
                self._ways.lock(connection, [name for job in jobs for name in job.names])
                for job in jobs:
                    at_work = job
                    results.append(job.work(connection))
                at_work = None
        except Exception as error:
            # One job's fault must not refuse the others. A fault of the database is everybody's:
            # to try each of them again would only take as many times as long to fail.
            if at_work is None or self._ways.shared(error):
                failed, again = jobs, []
            else:
                failed, again = [at_work], [job for job in jobs if job is not at_work]
            for job in failed:
                job.done.set_exception(self._ways.told(error))
            return again
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Refused):
                job.done.set_exception(result.error)
            else:
                job.done.set_result(result)
        return []
