"""Around every request: bodies within limits, refusals as problem documents, logs, metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextbest.errors import StoreError
from nextbest.serve import tracing
from nextbest.serve.problems import MEDIA_TYPE, Problem
from nextbest.serve.store import TooLateError, TooManyError
from nextbest.serve.telemetry import Metrics, Series, log, log_all

__all__ = [
    "MAX_BODY_BYTES",
    "Ended",
    "Observed",
    "RequestLog",
    "add_error_handlers",
    "body",
    "internal_error",
    "is_json",
    "problem_response",
    "read_body",
    "security_headers",
    "store_problem",
]

MAX_BODY_BYTES = 2 * 1024 * 1024

# As OWASP's REST Security Cheat Sheet has them. An answer is data: no browser need show, frame or
# keep it. Only the pages at /docs and /redoc load scripts.
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
DATA_HEADERS = (
    *HEADERS,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_TLS_ONLY = (b"strict-transport-security", b"max-age=31536000")
_PAGES = ("/docs", "/redoc")
# By whether it is a page, and whether it is sent over TLS.
_OWN = {
    (True, False): HEADERS,
    (True, True): (*HEADERS, _TLS_ONLY),
    (False, False): DATA_HEADERS,
    (False, True): (*DATA_HEADERS, _TLS_ONLY),
}


async def body(request: Request) -> bytes:
    """Return the request's body.

    Raises
    ------
    Problem: ``unsupported-media-type`` or ``body-too-large``.
    """
    return await read_body(request.headers.get("content-type", ""), request.receive)


async def read_body(content_type: str, receive: Receive) -> bytes:
    """Return the body of a request whose header Content-Type is given, from where it comes.

    Raises
    ------
    Problem: as `body`.
    """
    if not is_json(content_type):
        got = content_type.partition(";")[0].strip().lower() or "none"
        raise Problem(
            "unsupported-media-type",
            f'The header Content-Type must be application/json; got "{got}".',
        )
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise Problem(
                "body-too-large",
                f"The body must have at most {MAX_BODY_BYTES} bytes.",
                headers={"Connection": "close"},
            )
        parts.append(part)
    return b"".join(parts)


def is_json(content_type: str) -> bool:
    """Tell whether a header Content-Type names JSON.

    Browsers send forms and plain text to any site unasked; JSON only where that site allows it.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def problem_response(problem: Problem, scope: Scope) -> Response:
    """Return a problem as a response, and leave its code for the log and the metrics."""
    scope.setdefault("state", {})["problem_code"] = problem.code
    return Response(
        problem.body(str(scope.get("path", ""))),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers,
    )


def store_problem(error: StoreError) -> Problem:
    """Return what a caller is told of a store that cannot be used, and log the rest."""
    if isinstance(error, TooLateError):
        return Problem("deadline-exceeded", "The store did not come to it in time.")
    if isinstance(error, TooManyError):
        return Problem("overloaded", "More waits to be recorded than the store can take.")
    log("store unavailable", level=logging.ERROR, error=str(error))
    # The caller needs no paths of ours.
    return Problem("store-unavailable", "The store of decisions cannot be read or written now.")


def _http_problem(error: HTTPException, scope: Scope) -> Problem:
    """The router says no in two ways only: no such path, or not with this method."""
    if error.status_code == 405:
        detail = f"{scope['method']} is not possible here."
        return Problem("method-not-allowed", detail, headers=error.headers)
    return Problem("not-found", "There is nothing at this path.")


def add_error_handlers(app: FastAPI) -> None:
    """Turn everything that stops a request into a problem document."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> Response:
        return problem_response(error, request.scope)

    @app.exception_handler(StoreError)
    async def _store(request: Request, error: StoreError) -> Response:
        return problem_response(store_problem(error), request.scope)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return problem_response(_http_problem(error, request.scope), request.scope)


def security_headers(path: str, *, secure: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that every answer carries.

    Parameters
    ----------
    path : where it was asked for.
    secure : whether it is sent over TLS.
    """
    return _OWN[path.startswith(_PAGES), secure]


def internal_error() -> Problem:
    """Return what a caller is told of the error at hand, which is ours, and log the rest."""
    error_id = uuid4().hex
    log("internal error", level=logging.ERROR, exc_info=True, error_id=error_id)
    return Problem("internal-error", f"Error {error_id}.", extra={"error_id": error_id})


class Ended(NamedTuple):
    """A request that was answered, as logs and metrics know it: by its route, never by its path.

    ``code`` is that of a problem; ``more`` are fields of the log alone.
    """

    method: str
    route: str
    status: int
    seconds: float
    code: str | None
    more: Mapping[str, Any]


class RequestLog:
    """Counts requests and writes the log of them."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = Series(metrics.requests)
        self._seconds = Series(metrics.request_seconds)
        self._errors = Series(metrics.errors)

    def note(self, ended: Sequence[Ended]) -> None:
        """Count requests, and log a line for each."""
        for one in ended:
            self._requests[one.method, one.route, one.status].inc()
            self._seconds[one.route,].observe(one.seconds)
            if one.code is not None:
                self._errors[one.code,].inc()
        log_all("request", [_told(one) for one in ended])


def _told(ended: Ended) -> dict[str, Any]:
    said: dict[str, Any] = {
        "method": ended.method,
        "route": ended.route,
        "status": ended.status,
        "ms": round(ended.seconds * 1_000, 3),
    }
    if ended.code is not None:
        said["code"] = ended.code
    return {**said, **ended.more}


class Observed:
    """ASGI middleware that logs and counts each request and answers for what breaks inside.

    The log holds the route's template, never the path: a path may name a customer.
    """

    def __init__(self, app: ASGIApp, requests: RequestLog) -> None:
        self._app = app
        self._log = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch what becomes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        state: MutableMapping[str, Any] = scope.setdefault("state", {})

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                secure = scope.get("scheme") == "https"
                own = security_headers(scope["path"], secure=secure)
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        try:
            with tracing.request(scope["headers"]) as span:
                await self._app(scope, receive, watch)
                if span is not None:
                    self._trace(span, scope, state, status)
        except Exception:
            problem = internal_error()
            if status:  # The answer has begun: cutting the connection is all that is left.
                raise
            await problem_response(problem, scope)(scope, receive, watch)
        finally:
            self._count(scope, state, status, time.perf_counter() - start)

    def _trace(self, span: Any, scope: Scope, state: MutableMapping[str, Any], status: int) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        for name, value in state.get("log_fields", {}).items():
            span.set_attribute(f"nextbest.{name}", value)

    def _count(
        self, scope: Scope, state: MutableMapping[str, Any], status: int, seconds: float
    ) -> None:
        matched = scope.get("route")
        route = getattr(matched, "path", "unmatched")
        # Another method is the caller's text, and could make as many series as it likes.
        known = getattr(matched, "methods", None) or ()
        method = scope["method"] if scope["method"] in known else "other"
        code, more = state.get("problem_code"), state.get("log_fields", {})
        self._log.note([Ended(method, route, status, seconds, code, more)])
