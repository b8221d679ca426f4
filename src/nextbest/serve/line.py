"""Who waits for a decision, and whose turn it is: questions that come at once are answered at once.

Deciding for sixteen customers together takes little longer than deciding for one, and gives each
the same decision. So a single thread takes all questions that wait, decides, and hands the records
to the store's writer; while the disk works, the next questions gather. About one customer there is
one decision at a time, so that caps hold exactly.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nextbest.errors import StoreError

__all__ = ["Line", "Waiting", "tell"]

GROUP_LIMIT = 64
LINE_LIMIT = 4_096

A = TypeVar("A")


@dataclass(eq=False)
class Waiting(Generic[A]):
    """Somebody who waits for an answer.

    Parameters
    ----------
    asked : the question.
    customer_id : whom it is about; nobody else about the same customer is served meanwhile.
    kind : only questions of one kind are answered together.
    answer : where the answer goes; on an event loop if ``loop`` is one.
    """

    asked: A
    customer_id: str
    kind: Hashable
    answer: Future[Any] | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    attempts: int = 0


class Line(Generic[A]):
    """Serves whoever waits, in groups.

    Parameters
    ----------
    serve : called on the line's own thread with a group of one kind, no two about one customer. It
        must see to it that `done` is called for each of them, now or later, and must not raise.
    """

    def __init__(self, serve: Callable[[list[Waiting[A]]], None]) -> None:
        self._serve = serve
        self._changed = threading.Condition()
        self._waiting: deque[Waiting[A]] = deque()
        self._busy: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closing = False

    def join(self, new: Waiting[A]) -> None:
        """Wait for an answer.

        Raises
        ------
        StoreError: too many wait already; refusing now is better than collapsing later.
        """
        with self._changed:
            if len(self._waiting) >= LINE_LIMIT:
                raise StoreError(
                    "server", f"{LINE_LIMIT:,} decisions wait already", action="Try again later"
                )
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="decider", daemon=True)
                self._thread.start()
            self._waiting.append(new)
            self._changed.notify_all()

    def again(self, group: Iterable[Waiting[A]]) -> None:
        """Put a group that was served in vain back to where it came from: the front."""
        with self._changed:
            for waiting in group:
                self._busy.discard(waiting.customer_id)
                self._waiting.appendleft(waiting)
            self._changed.notify_all()

    def done(self, group: Iterable[Waiting[A]]) -> None:
        """Let others about the same customers go on."""
        with self._changed:
            self._busy.difference_update(waiting.customer_id for waiting in group)
            self._changed.notify_all()

    @contextmanager
    def alone(self, customer_ids: Sequence[str]) -> Iterator[None]:
        """Keep everybody else about these customers waiting; the line itself never waits here."""
        held: list[str] = []
        try:
            # In one order for all, or two batches could wait for each other for ever.
            for customer_id in sorted(set(customer_ids)):
                with self._changed:
                    while customer_id in self._busy:
                        self._changed.wait()
                    self._busy.add(customer_id)
                held.append(customer_id)
            yield
        finally:
            with self._changed:
                self._busy.difference_update(held)
                self._changed.notify_all()

    def close(self) -> None:
        """Serve those who wait, then stop; a later `join` opens the line again."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        with self._changed:
            self._thread = None

    def _run(self) -> None:
        while group := self._next():
            self._serve(group)

    def _next(self) -> list[Waiting[A]]:
        """Wait for a group that can be served; nobody where the line is closing and empty."""
        with self._changed:
            while True:
                group = self._take()
                # Who is being written about may come back.
                if group or (self._closing and not self._waiting and not self._busy):
                    return group
                self._changed.wait()

    def _take(self) -> list[Waiting[A]]:
        group: list[Waiting[A]] = []
        left: deque[Waiting[A]] = deque()
        while self._waiting and len(group) < GROUP_LIMIT:
            waiting = self._waiting.popleft()
            alike = not group or waiting.kind == group[0].kind
            if alike and waiting.customer_id not in self._busy:
                self._busy.add(waiting.customer_id)
                group.append(waiting)
            else:
                left.append(waiting)
        self._waiting.extendleft(reversed(left))
        return group


def tell(answers: Iterable[tuple[Waiting[Any], Any]]) -> None:
    """Give each who waits the answer, or raise it there; one call for all on one event loop."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[tuple[Any, Any]]] = {}
    for waiting, answer in answers:
        by_loop.setdefault(waiting.loop, []).append((waiting.answer, answer))
    for loop, these in by_loop.items():
        if loop is None:
            _settle(these)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, these)


def _settle(these: Iterable[tuple[Any, Any]]) -> None:
    for future, answer in these:
        if future.done():  # whoever asked has gone away
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
