"""Group commit: one thread writes for all, so that one flush to disk serves everyone who waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["GroupWriter", "Refused", "WriterClosedError", "WriterFullError"]

GROUP_LIMIT = 256
QUEUE_LIMIT = 4_096

C = TypeVar("C")
T = TypeVar("T")


class WriterClosedError(Exception):
    """The writer was closed before this work was handed in."""


class WriterFullError(Exception):
    """More work waits than the disk can take; refusing now is better than collapsing later."""


@dataclass(frozen=True)
class Refused:
    """What work returns that changed nothing: its future fails with ``error``, nobody else's."""

    error: Exception


@dataclass(frozen=True)
class _Job(Generic[C]):
    work: Callable[[C], Any]
    names: Sequence[str]
    done: Future[Any]


def _as_it_is(error: Exception) -> Exception:
    return error


def _no_lock(transaction: object, names: Iterable[str]) -> None:
    pass


class GroupWriter(Generic[C]):
    """Runs pieces of work in shared transactions, in the order in which they were handed in.

    Parameters
    ----------
    transaction: opens a transaction that commits durably on leaving and rolls back on an error.
        Work may run twice when a neighbour in its group fails, so it must change nothing else.
    told: turns what a transaction raised into what the future fails with.
    lock: called first in each transaction, with the names of all its work.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[C]],
        told: Callable[[Exception], Exception] = _as_it_is,
        lock: Callable[[C, Iterable[str]], None] = _no_lock,
    ) -> None:
        self._transaction = transaction
        self._told = told
        self._lock = lock
        self._jobs: queue.Queue[_Job[C] | None] = queue.Queue(QUEUE_LIMIT)
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[C], T | Refused], names: Sequence[str] = ()) -> Future[T]:
        """Queue ``work``; the future resolves when its transaction is on disk.

        ``names`` are of what no other writer of the same database may change meanwhile.
        """
        done: Future[T] = Future()
        with self._gate:
            if self._closed:
                raise WriterClosedError("the store is closed")
            try:
                self._jobs.put_nowait(_Job(work, names, done))
            except queue.Full:
                raise WriterFullError(f"{QUEUE_LIMIT} writes wait already") from None
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
            jobs = [job for job in waiting if job is not None]
            if jobs:
                self._run(jobs)

    def _run(self, jobs: Sequence[_Job[C]]) -> None:
        try:
            with self._transaction() as connection:
                self._lock(connection, [name for job in jobs for name in job.names])
                results = [job.work(connection) for job in jobs]
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(self._told(error))
                return
            # One job's fault must not refuse the others: each goes alone.
            for job in jobs:
                self._run([job])
            return
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Refused):
                job.done.set_exception(result.error)
            else:
                job.done.set_result(result)
