"""Around every request: bodies within limits, refusals as problem documents, logs, metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import Any
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
from nextbest.serve.telemetry import Metrics, Series, log

__all__ = [
    "MAX_BODY_BYTES",
    "Observed",
    "add_error_handlers",
    "body",
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
    media_type = content_type.partition(";")[0].strip().lower()
    # Browsers send forms and plain text to any site unasked; JSON only where that site allows it.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem(
            "unsupported-media-type",
            f'The header Content-Type must be application/json; got "{media_type or "none"}".',
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


def security_headers(scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that every answer carries."""
    return _OWN[scope["path"].startswith(_PAGES), scope.get("scheme") == "https"]


class Observed:
    """ASGI middleware that logs and counts each request and answers for what breaks inside.

    The log holds the route's template, never the path: a path may name a customer.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = Series(metrics.requests)
        self._seconds = Series(metrics.request_seconds)
        self._errors = Series(metrics.errors)

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
                message["headers"] = [*message.get("headers", ()), *security_headers(scope)]
            await send(message)

        try:
            with tracing.request(scope["headers"]) as span:
                await self._app(scope, receive, watch)
                if span is not None:
                    self._trace(span, scope, state, status)
        except Exception:
            error_id = uuid4().hex
            log("internal error", level=logging.ERROR, exc_info=True, error_id=error_id)
            if status:  # The answer has begun: cutting the connection is all that is left.
                raise
            problem = Problem("internal-error", f"Error {error_id}.", extra={"error_id": error_id})
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
        code = state.get("problem_code")
        self._requests[method, route, status].inc()
        self._seconds[route,].observe(seconds)
        if code is not None:
            self._errors[code,].inc()
        log(
            "request",
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1_000, 3),
            **({"code": code} if code is not None else {}),
            **state.get("log_fields", {}),
        )
