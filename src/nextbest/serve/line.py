"""Who waits for a decision, and whose turn it is: questions that come at once are answered at once.

Deciding for sixteen customers together takes little longer than deciding for one, and gives each
the same decision. So whoever waits when the event loop has read its sockets is served together;
until it is on disk, the next gather. One group at a time: two would be smaller, cost as much each,
and take the interpreter from each other. About one customer there is one decision at a time, so
that caps hold exactly.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from nextbest.errors import StoreError
from nextbest.serve.telemetry import log

__all__ = ["Line", "Served", "Turns", "Waiting"]

GROUP_LIMIT = 64
LINE_LIMIT = 4_096
# Callers who have just been answered ask again, and all of them together cost less than in two
# halves by turns: they are waited for, this share of the time that their answers took at most.
LINGER_SHARE = 0.15
LINGER_SECONDS = 0.004
# Where fewer than half come back in that time callers ask on their own, and nobody is waited for
# until so many groups later: then it is tried again.
LINGER_AGAIN = 16

A = TypeVar("A")


class Turns:
    """One at a time for each customer, on any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: set[str] = set()

    def take(self, customer_id: str) -> bool:
        """Take a customer's turn, if nobody has it."""
        with self._changed:
            free = customer_id not in self._busy
            self._busy.add(customer_id)
            return free

    def give_back(self, customer_ids: Iterable[str]) -> None:
        """Let others go on."""
        with self._changed:
            self._busy.difference_update(customer_ids)
            self._changed.notify_all()

    @contextmanager
    def alone(self, customer_ids: Sequence[str]) -> Iterator[None]:
        """Wait for the turns of some customers, and hold them; never on an event loop."""
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
            self.give_back(held)


@dataclass(eq=False)
class Waiting(Generic[A]):
    """Somebody who waits for an answer on an event loop.

    Parameters
    ----------
    asked : the question.
    customer_id : whom it is about.
    kind : only questions of one kind are answered together.
    tell : takes the answer, or the error that is one; should not raise.
    attempts : how often it was served in vain.
    """

    asked: A
    customer_id: str
    kind: Hashable
    tell: Callable[[Any], None]
    attempts: int = 0


Answers = Sequence[tuple[Waiting[A], Any]]


@dataclass
class Served(Generic[A]):
    """What has become of a group.

    Parameters
    ----------
    told : answers (or errors to raise) that are ready.
    kept : when it is done, `finish` gives the answers of the others, or None to serve them again.
    """

    told: Answers[A] = ()
    kept: Future[Any] | None = None
    finish: Callable[[Future[Any]], Answers[A] | None] = field(default=lambda _: ())


class Line(Generic[A]):
    """Serves whoever waits, in groups; everything but ``serve`` runs on the event loop.

    Parameters
    ----------
    turns : of the customers.
    serve : decides for a group of one kind, no two about one customer; must not raise.
    quick : whether ``serve`` may run on the event loop, because it waits for no network.
    """

    def __init__(
        self,
        turns: Turns,
        serve: Callable[[list[Waiting[A]]], Served[A]],
        quick: Callable[[], bool],
    ) -> None:
        self._turns = turns
        self._serve = serve
        self._quick = quick
        self._waiting: deque[Waiting[A]] = deque()
        self._busy = False
        self._called = False
        self._began = 0.0
        # How many are waited for, until when by the loop's clock.
        self._wanted = 0
        # How many waited already when others were told, and how many those were.
        self._hoped: tuple[int, int] | None = None
        self._in_vain = 0
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._thread: ThreadPoolExecutor | None = None

    def put(self, waiting: Waiting[A]) -> None:
        """Let somebody wait, on the event loop that runs; told later, never from in here.

        Raises
        ------
        StoreError: too many wait already; refusing now is better than collapsing later.
        """
        if len(self._waiting) >= LINE_LIMIT:
            raise StoreError(
                "server", f"{LINE_LIMIT:,} decisions wait already", action="Try again later"
            )
        self._waiting.append(waiting)
        self._call(asyncio.get_running_loop())

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        """See who is next, after everything that has arrived is read."""
        if self._called or self._busy:
            return
        if len(self._waiting) >= self._wanted or loop.time() >= self._until:
            self._called = True
            loop.call_soon(self._turn, loop)
        elif self._timer is None:
            self._timer = loop.call_at(self._until, self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._called = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy:  # the timer was faster
            return
        self._see_who_came()
        group = self._take()
        if not group:
            if self._waiting:
                # Somebody off this line has the turn of the first: look again in a moment.
                self._called = True
                loop.call_later(0.001, self._turn, loop)
            return
        self._busy = True
        self._began = time.perf_counter()
        if self._quick():
            self._served(loop, group, self._serve(group))
        else:
            self._thread = self._thread or ThreadPoolExecutor(1, "decider")
            done = self._thread.submit(self._serve, group)
            self._when(loop, done, lambda done: self._served(loop, group, done.result()))

    def _see_who_came(self) -> None:
        if self._hoped is not None:
            before, told = self._hoped
            self._hoped = None
            if len(self._waiting) - before < told / 2:
                self._in_vain = LINGER_AGAIN

    def _take(self) -> list[Waiting[A]]:
        group: list[Waiting[A]] = []
        left: deque[Waiting[A]] = deque()
        while self._waiting and len(group) < GROUP_LIMIT:
            waiting = self._waiting.popleft()
            alike = not group or waiting.kind == group[0].kind
            if alike and self._turns.take(waiting.customer_id):
                group.append(waiting)
            else:
                left.append(waiting)
        self._waiting.extendleft(reversed(left))
        return group

    def _when(
        self,
        loop: asyncio.AbstractEventLoop,
        done: Future[Any],
        then: Callable[[Future[Any]], None],
    ) -> None:
        """Go on here when something is done on another thread."""

        def tell(done: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(then, done)

        done.add_done_callback(tell)

    def _served(
        self, loop: asyncio.AbstractEventLoop, group: list[Waiting[A]], served: Served[A]
    ) -> None:
        self._tell(served.told)
        told = {id(waiting) for waiting, _ in served.told}
        rest = [waiting for waiting in group if id(waiting) not in told]
        if served.kept is None:
            self._end(loop, len(served.told))
        else:
            # Not `served` itself: it holds the future, and that would hold it in turn, with all
            # that the group was made of, until somebody looks for garbage.
            finish = served.finish
            self._when(loop, served.kept, lambda kept: self._kept(loop, rest, finish, kept))

    def _kept(
        self,
        loop: asyncio.AbstractEventLoop,
        rest: list[Waiting[A]],
        finish: Callable[[Future[Any]], Answers[A] | None],
        kept: Future[Any],
    ) -> None:
        answers: Answers[A] | None
        try:
            answers = finish(kept)
        except Exception as error:  # or nobody would ever be served again
            answers = [(waiting, error) for waiting in rest]
        if answers is None:
            self._turns.give_back(waiting.customer_id for waiting in rest)
            for waiting in rest:
                waiting.attempts += 1
            self._waiting.extendleft(reversed(rest))
        else:
            self._tell(answers)
        self._end(loop, len(answers or ()))

    def _end(self, loop: asyncio.AbstractEventLoop, told: int) -> None:
        """Wait for those who were told, who may ask again, a moment at most."""
        if self._in_vain:
            self._in_vain -= 1
            self._wanted, seconds = 0, 0.0
        else:
            took = time.perf_counter() - self._began
            seconds = min(LINGER_SECONDS, LINGER_SHARE * took)
            self._hoped = len(self._waiting), told
            self._wanted = min(GROUP_LIMIT, len(self._waiting) + told)
        # Counted from when the answers are on their way, which comes next.
        loop.call_soon(self._linger, loop, seconds)

    def _linger(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._busy = False
        self._until = loop.time() + seconds
        if self._waiting:
            self._call(loop)

    def _tell(self, answers: Answers[A]) -> None:
        self._turns.give_back(waiting.customer_id for waiting, _ in answers)
        for waiting, answer in answers:
            try:
                waiting.tell(answer)
            except Exception:  # one who cannot be told keeps no other from the answer
                log("internal error", level=logging.ERROR, exc_info=True)
