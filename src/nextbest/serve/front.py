"""The short way to a decision: `POST /v1/decisions`, answered before FastAPI sees it.

FastAPI's machinery takes longer than the decision. What both ways do is one and the same: who may
come in, what is a sound body, how it is read, how it is decided, and how a refusal looks. The route
behind stays for the OpenAPI document, and for the tests that compare the two.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping

from fastapi.concurrency import run_in_threadpool
from fastapi.security.utils import get_authorization_scheme_param
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from nextbest.errors import StoreError
from nextbest.serve.access import Access
from nextbest.serve.auth import Caller
from nextbest.serve.decisions import Decider
from nextbest.serve.http import problem_response, read_body, store_problem
from nextbest.serve.parsing import parse_decision
from nextbest.serve.problems import Problem

__all__ = ["PATH", "KnownCallers", "ShortWay", "is_short", "token_of"]

PATH = "/v1/decisions"
# A revoked key opens this door so many seconds longer, at most.
KNOWN_SECONDS = 2.0
MOST_KNOWN = 1_024


class KnownCallers:
    """Who was looked up a moment ago, so that not every request asks the store; never a refusal.

    Parameters
    ----------
    identify : asks the store who holds a token; takes its time.
    """

    def __init__(self, identify: Callable[[str | None], Caller]) -> None:
        self._identify = identify
        # By the digest of the token, which itself is not kept.
        self._known: dict[bytes, tuple[Caller, float]] = {}
        self._asked: dict[bytes, asyncio.Task[Caller]] = {}

    def at_hand(self, token: str | None) -> Caller | None:
        """Return who holds a token, if it was looked up at most `KNOWN_SECONDS` ago."""
        return self._at_hand(_digest(token))

    def _at_hand(self, digest: bytes) -> Caller | None:
        found = self._known.get(digest)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    async def find(self, token: str | None) -> Caller:
        """Return who holds a token, as the store said at most `KNOWN_SECONDS` ago."""
        digest = _digest(token)
        found = self._at_hand(digest)
        if found is not None:
            return found
        # All callers of one key come to this at the same time, and one of them is to ask.
        asked = self._asked.get(digest)
        if asked is None:
            asked = asyncio.create_task(self._look_up(token, digest))
            self._asked[digest] = asked
        return await asyncio.shield(asked)

    async def _look_up(self, token: str | None, digest: bytes) -> Caller:
        try:
            caller = await run_in_threadpool(self._identify, token)
        finally:
            del self._asked[digest]
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[digest] = (caller, time.monotonic() + KNOWN_SECONDS)
        return caller


def _digest(token: str | None) -> bytes:
    return hashlib.sha256((token or "").encode(errors="surrogatepass")).digest()


def token_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the API key of a request: `Authorization: Bearer`, or else `X-API-Key`."""
    scheme, credentials = get_authorization_scheme_param(_text(headers, b"authorization"))
    if credentials and scheme.lower() == "bearer":
        return credentials
    return _text(headers, b"x-api-key") or None


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def is_short(scope: Scope) -> bool:
    """Whether a request takes the short way."""
    mine = scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST"
    return mine and not scope.get("root_path")


class ShortWay:
    """ASGI application that answers `POST /v1/decisions`.

    Parameters
    ----------
    known : looks callers up at the door.
    route : the route that FastAPI has for the same, by which logs and metrics name the request.
    """

    def __init__(
        self, decider: Decider, door: Access, known: KnownCallers, route: BaseRoute
    ) -> None:
        self._decider = decider
        self._door = door
        self._known = known
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["route"] = self._route
        try:
            content = await self._answer(scope, receive)
        except (Problem, StoreError) as error:
            problem = error if isinstance(error, Problem) else store_problem(error)
            await problem_response(problem, scope)(scope, receive, send)
            return
        headers = [
            (b"content-length", str(len(content)).encode()),
            (b"content-type", b"application/json"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        # Of several headers of one name the first counts, as in FastAPI.
        headers = dict(reversed(list(scope["headers"])))
        self._door.allow(await self._known.find(token_of(headers)), "decide")
        raw = await read_body(_text(headers, b"content-type"), receive)
        told = await self._decider.soon(parse_decision(raw))
        scope["state"]["log_fields"] = {"decision_id": told.decision_id}
        return told.content
