"""The one door of a server: who calls, whether the key may do that, and how often.

Every way in asks `Access.admit`, so that no path has rules of its own.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from nextbest.errors import StoreError
from nextbest.serve.auth import Caller, authenticate
from nextbest.serve.http import problem_response
from nextbest.serve.problems import Problem
from nextbest.serve.store import Store
from nextbest.serve.telemetry import log

__all__ = ["Access", "KeyUse", "LoopbackOnly", "RateLimits", "is_loopback"]

# What may come at once, as a share of a minute's requests.
BURST_SHARE = 1 / 6
# When a key was last used need not be known to the second, and a write each time would cost.
USE_EVERY = timedelta(minutes=1)
_ANYBODY = Caller("insecure", ("admin",))
_OPEN_DOOR = Problem(
    "forbidden", "Without API keys the server answers on the loopback interface only."
)


def is_loopback(host: str) -> bool:
    """Tell whether only programs on this machine reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class RateLimits:
    """Holds each key to its requests per minute: a token bucket (as GCRA, ITU-T I.371).

    A key of N requests per minute gets N / 60 a second, and may send N / 6 at once (at least one).
    Each of the workers holds an equal share of it, so that together they never let more through.

    Parameters
    ----------
    workers: how many processes share the key's limit.
    clock: seconds that only ever grow.
    """

    def __init__(self, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._lock = threading.Lock()
        # By key: when the bucket is full again.
        self._full_at: dict[str, float] = {}

    def take(self, caller: Caller) -> None:
        """Count one request.

        Raises
        ------
        Problem: ``rate-limited``, with the seconds to wait.
        """
        limit = caller.requests_per_minute
        if limit is None:
            return
        seconds_each = 60.0 * self._workers / limit
        at_once = max(1.0, BURST_SHARE * limit / self._workers)
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.get(caller.key_id, now), now)
            wait = full_at - now - (at_once - 1.0) * seconds_each
            # A rounding error is no reason to send anybody away.
            if wait <= 1e-6:
                self._full_at[caller.key_id] = full_at + seconds_each
                return
        raise Problem(
            "rate-limited",
            f"This key may send {limit} requests per minute.",
            headers={"Retry-After": str(math.ceil(wait))},
        )


class KeyUse:
    """Remembers when keys were last used, and writes it down later, once a minute for each key."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._used: dict[str, datetime] = {}
        self._written: dict[str, datetime] = {}

    def note(self, caller: Caller) -> None:
        """Remember that a key was used now; costs no more than that."""
        self._used[caller.key_id] = self._clock()

    def write(self, store: Store, *, all_of_it: bool = False) -> None:
        """Bring what is due to the store; `all_of_it` when the server stops."""
        due = {
            key_id: at
            for key_id, at in list(self._used.items())
            if all_of_it
            or at - self._written.get(key_id, datetime.min.replace(tzinfo=UTC)) >= USE_EVERY
        }
        due = {key_id: at for key_id, at in due.items() if self._written.get(key_id) != at}
        if due:
            store.note_key_use(due)
            self._written |= due


class Access:
    """Lets callers in.

    Parameters
    ----------
    store: returns the store that holds the keys.
    insecure: let everybody in; the app then also needs `LoopbackOnly`.
    workers: how many processes share the keys' limits.
    """

    def __init__(
        self, store: Callable[[], Store], *, insecure: bool = False, workers: int = 1
    ) -> None:
        self._store = store
        self._insecure = insecure
        self._limits = RateLimits(workers)
        self._use = KeyUse()

    def is_open_at(self, host: str) -> bool:
        """Whether callers may come in at an address of the server; without keys not at all."""
        return not (self._insecure and is_away(host))

    def admit(self, token: str | None, scope: str) -> Caller:
        """Return the caller, or refuse.

        Parameters
        ----------
        token: as the caller sent it.
        scope: what the call needs.

        Raises
        ------
        Problem: ``unauthenticated``, ``rate-limited`` or ``forbidden``.
        StoreError: the keys cannot be read now.
        """
        return self.allow(self.identify(token), scope)

    def identify(self, token: str | None) -> Caller:
        """Return who holds a token.

        Raises
        ------
        Problem: ``unauthenticated``.
        StoreError: the keys cannot be read now.
        """
        if self._insecure:
            return _ANYBODY
        caller = authenticate(self._store(), token)
        if caller is None:
            raise Problem(
                "unauthenticated",
                "The API key is missing, unknown or revoked.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return caller

    def allow(self, caller: Caller, scope: str) -> Caller:
        """Return a caller who is known already, if the key may do this, now."""
        if caller is _ANYBODY:  # there is no key
            return caller
        self._use.note(caller)
        self._limits.take(caller)
        if not caller.may(scope):
            raise Problem("forbidden", f'This call needs the scope "{scope}".')
        return caller

    def write_use(self, *, all_of_it: bool = False) -> None:
        """Write down when keys were last used, as far as that is due."""
        try:
            self._use.write(self._store(), all_of_it=all_of_it)
        except StoreError as error:
            log("use of keys not written", error=str(error))


class LoopbackOnly:
    """ASGI middleware that answers nothing that came in at an address others can reach.

    `nextbest serve` binds no such address without keys; uvicorn alone would.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        host, _ = scope.get("server") or (None, None)
        if host is not None and is_away(host) and scope["type"] == "http":
            await problem_response(_OPEN_DOOR, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)


@lru_cache(maxsize=64)  # the same few for every request: the server's own
def is_away(host: str) -> bool:
    """Tell whether this is an address, and one that others can reach."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return not is_loopback(host)
