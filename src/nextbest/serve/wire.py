"""The shortest way to a decision: from the socket to the line of those who wait, and back.

`POST /v1/decisions` as nearly all callers send it (a known key, a sound body, no ``explain``, no
pipelining) needs neither a task nor the messages of ASGI, which take longer than deciding. Anything
else, and everything where requests are traced, goes the ordinary way; so no refusal of a request is
written twice, but for what only the line can say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nextbest.errors import StoreError
from nextbest.serve import tracing
from nextbest.serve.access import Access
from nextbest.serve.admission import Room
from nextbest.serve.decisions import Decider, Told
from nextbest.serve.front import PATH, KnownCallers, token_of
from nextbest.serve.http import (
    Ended,
    RequestLog,
    internal_error,
    is_json,
    security_headers,
    store_problem,
)
from nextbest.serve.problems import MEDIA_TYPE, Problem
from nextbest.serve.question import read

__all__ = ["STATE", "DecisionProtocol", "Desk"]

STATE = "desk"
"""Under this name the state of an app's lifespan holds its `Desk`."""

# By then the next group is decided and on its way to the disk, and there is time to write the log.
NOTE_SECONDS = 0.005

_PATH = PATH.encode()
Headers = Sequence[tuple[bytes, bytes]]
Reply = Callable[[int, str, bytes, Mapping[str, str]], None]
"""Takes the status, the media type, the body and further headers of an answer; must not raise."""


class Desk:
    """Takes questions in and hands answers out, on the event loop.

    Parameters
    ----------
    decider, door, known, room, requests : those of the ordinary way.
    """

    def __init__(
        self,
        decider: Decider,
        door: Access,
        known: KnownCallers,
        room: Room,
        requests: RequestLog,
    ) -> None:
        self._decider = decider
        self._door = door
        self._known = known
        self._room = room
        self._requests = requests
        self._ended: list[Ended] = []

    def is_open_at(self, host: str) -> bool:
        """Whether callers may come in at this address of the server."""
        return self._door.is_open_at(host)

    def take(self, headers: Headers, body: bytes, reply: Reply) -> bool:
        """Take a question in, if nothing about it is unusual.

        Parameters
        ----------
        headers : of the request; of several of one name the first counts, as in FastAPI.
        reply : called once, now or later.

        Returns
        -------
        False where it must go the ordinary way; nothing has been done about it then.
        """
        first = dict(reversed(headers))
        caller = self._known.at_hand(token_of(first))
        if (
            caller is None
            or tracing.is_on()
            or self._room.is_full()
            or not is_json(first.get(b"content-type", b"").decode("latin-1"))
        ):
            return False
        question = read(body)
        if question is None or question.explain:
            return False
        start = time.perf_counter()
        until = self._room.enter()

        def tell(found: Told | Exception) -> None:
            self._room.leave()
            self._hand_out(found, start, reply)

        try:
            self._door.allow(caller, "decide")
            self._decider.put(question, until, tell)
        except Exception as error:
            tell(error)
        return True

    def _hand_out(self, found: Told | Exception, start: float, reply: Reply) -> None:
        more: Mapping[str, Any] = {}
        if isinstance(found, Exception):
            problem = _problem(found)
            status, code = problem.status, problem.code
            reply(status, MEDIA_TYPE, problem.body(PATH), problem.headers)
        else:
            status, code = 200, None
            reply(status, "application/json", found.content, {})
            more = {"decision_id": found.decision_id}
        if not self._ended:
            # A group is answered in one go, and its lines are written in one go.
            asyncio.get_running_loop().call_later(NOTE_SECONDS, self.note)
        seconds = time.perf_counter() - start
        self._ended.append(Ended("POST", PATH, status, seconds, code, more))

    def note(self) -> None:
        """Log and count what was answered since the last time."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._requests.note(ended)


def _problem(error: Exception) -> Problem:
    """Return what a caller is told of an error."""
    try:
        raise error
    except Problem as problem:
        return problem
    except StoreError as problem:
        return store_problem(problem)
    except Exception:
        return internal_error()


class _Pending:
    """A question that was taken in, as uvicorn looks at a request that is not answered yet."""

    def __init__(self, protocol: DecisionProtocol, *, secure: bool, keep_alive: bool) -> None:
        self._protocol = protocol
        self._secure = secure
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        # uvicorn sets it when the caller has gone away; nobody waits for that here.
        self.message_event = asyncio.Event()

    def reply(self, status: int, media_type: str, content: bytes, more: Mapping[str, str]) -> None:
        """Send the answer, and let the next request of this connection begin."""
        self.response_complete = True
        protocol = self._protocol
        if protocol.transport.is_closing():
            return
        parts = [STATUS_LINE[status]]
        for name, value in protocol.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (b"content-length: %d\r\n" % len(content), _head(media_type, self._secure))
        for key, text in more.items():
            parts.append(f"{key.lower()}: {text}\r\n".encode("latin-1"))
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", content)
        protocol.transport.write(b"".join(parts))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


@lru_cache(maxsize=8)
def _head(media_type: str, secure: bool) -> bytes:
    headers = ((b"content-type", media_type.encode()), *security_headers(PATH, secure=secure))
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers)


class DecisionProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the shortest way beside the ordinary one.

    It needs an app whose lifespan state holds a `Desk` under `STATE`; for any other app it is
    uvicorn's own.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with a caller."""
        super().connection_made(transport)
        self._body: bytearray | None = None  # of a question that is coming in
        self._desk: Desk | None = self.app_state.get(STATE)
        if self._desk is not None and self.server and not self._desk.is_open_at(self.server[0]):
            self._desk = None
        proxies = self.app.trusted_hosts if isinstance(self.app, ProxyHeadersMiddleware) else ()
        self._behind_proxy = self.client is not None and self.client[0] in proxies

    def on_headers_complete(self) -> None:
        """See which way a request goes."""
        if self._desk is not None and self.url == _PATH and self._is_usual():
            self._body = bytearray()
            return
        if self._desk is not None:
            # Whoever asks for the metrics finds all in them that was answered before.
            self._desk.note()
        super().on_headers_complete()

    def _is_usual(self) -> bool:
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
            and not self.expect_100_continue
            and not self.root_path
            # Answers must come in the order of their requests: uvicorn sees to that.
            and (self.cycle is None or self.cycle.response_complete)
        )

    def on_body(self, body: bytes) -> None:
        """Take in some of the body."""
        if self._body is None:
            super().on_body(body)
            return
        self._body += body
        if len(self._body) > HIGH_WATER_LIMIT:
            self._go_the_ordinary_way()

    def on_message_complete(self) -> None:
        """Hand the question to the desk, or send it the ordinary way."""
        if self._body is not None:
            before = self.cycle
            keep_alive = self.parser.should_keep_alive()
            pending = _Pending(self, secure=self._is_secure(), keep_alive=keep_alive)
            self.cycle = pending  # type: ignore[assignment]
            body = bytes(self._body)
            if self._desk is not None and self._desk.take(self.headers, body, pending.reply):
                self._body = None
                return
            self.cycle = before
            self._go_the_ordinary_way()
        super().on_message_complete()

    def _go_the_ordinary_way(self) -> None:
        body, self._body = self._body, None
        super().on_headers_complete()
        if body:
            super().on_body(bytes(body))

    def _is_secure(self) -> bool:
        """Whether the caller speaks TLS, with us or with a proxy that we may believe."""
        if self._behind_proxy:
            for name, value in self.headers:
                if name == b"x-forwarded-proto":
                    return value.strip() in (b"https", b"wss")
        return self.scheme == "https"
