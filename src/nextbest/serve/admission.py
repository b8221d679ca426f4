"""No more requests inside than can be answered in time, and none for longer than its deadline.

A request past its deadline is refused as long as nothing of it is recorded, and nothing is recorded
of it then. One whose record is being written is answered, however late: there is no decision that
is half made.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

from nextbest.serve.http import problem_response
from nextbest.serve.options import Options
from nextbest.serve.problems import Problem

__all__ = ["Admission", "Room", "check_time", "deadline", "is_late", "too_late"]

# Threads that serve a request inherit it.
_UNTIL: ContextVar[float | None] = ContextVar("until", default=None)


class Room:
    """How many are inside one process; everything that admits requests shares it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.inside = 0

    def is_full(self) -> bool:
        """Tell whether nobody else can come in now."""
        return self.inside >= self.options.backlog

    def enter(self) -> float:
        """Let one in, and return its deadline by `time.monotonic`."""
        self.inside += 1
        return time.monotonic() + self.options.deadline_seconds

    def leave(self) -> None:
        """Let one out again."""
        self.inside -= 1


class Admission:
    """ASGI middleware: lets calls of `/v1` in while there is room, and gives each a deadline."""

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        if self._room.is_full():
            most = self._room.options.backlog
            problem = Problem("overloaded", f"{most} requests are being served already.")
            await problem_response(problem, scope)(scope, receive, send)
            return
        token = _UNTIL.set(self._room.enter())
        try:
            await self._app(scope, receive, send)
        finally:
            _UNTIL.reset(token)
            self._room.leave()


def deadline() -> float | None:
    """Return the moment, by `time.monotonic`, after which the request at hand is too late."""
    return _UNTIL.get()


def is_late(until: float | None) -> bool:
    """Tell whether a deadline is over."""
    return until is not None and until < time.monotonic()


def too_late() -> Problem:
    """Return the refusal of a request whose deadline is over."""
    return Problem("deadline-exceeded", "The server did not come to it in time.")


def check_time() -> None:
    """Go on only with a request that is still in time.

    Raises
    ------
    Problem: ``deadline-exceeded``.
    """
    if is_late(deadline()):
        raise too_late()
