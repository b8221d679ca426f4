"""The HTTP API of a project: decisions, outcomes, customers, offers, models, health.

The routes are synchronous on purpose: they wait for the disk, and FastAPI runs them on threads.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nextbest import __version__
from nextbest.serve import outcomes as reported
from nextbest.serve.admission import Admission, Room, check_time
from nextbest.serve.auth import Caller, authenticate
from nextbest.serve.decisions import Decider
from nextbest.serve.front import PATH, ShortWay, is_short
from nextbest.serve.http import Observed, add_error_handlers, body
from nextbest.serve.openapi import answers, install, takes
from nextbest.serve.options import options_of
from nextbest.serve.parsing import parse, parse_decision, parse_outcomes
from nextbest.serve.problems import Problem
from nextbest.serve.records import Outcome
from nextbest.serve.replay import trace_of
from nextbest.serve.runtime import Runtime
from nextbest.serve.schemas import (
    BatchAnswer,
    BatchRequest,
    CatalogueAnswer,
    CustomerAnswer,
    DecisionAnswer,
    DecisionRequest,
    Health,
    ModelsAnswer,
    OutcomeReport,
    OutcomeResult,
    OutcomesAnswer,
    Readiness,
    StoredDecisionAnswer,
)
from nextbest.serve.telemetry import METRICS_MEDIA_TYPE, Metrics, configure_logging, log

__all__ = ["create_app"]

RELOAD_SECONDS = 2.0

Body = Annotated[bytes, Depends(body)]
_BODY_CODES = ("malformed-json", "body-too-large", "unsupported-media-type", "invalid-request")
_ANYBODY = Caller("insecure", ("admin",))
_BEARER = HTTPBearer(auto_error=False, scheme_name="API key", description="`nb_<id>_<secret>`")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="API key header")


def create_app(
    project_dir: Path,
    *,
    insecure: bool = False,
    clock: Callable[[], datetime] | None = None,
    short_way: bool = True,
) -> FastAPI:
    """Return the API of a project as an ASGI application.

    The app starts even where models, configuration or store are missing or broken: it then answers
    503, and ``/readyz`` says why. A new bundle, catalogue or policy is taken up while it runs; one
    that is refused leaves the last good one in use.

    Parameters
    ----------
    project_dir : the folder with ``serving/`` and ``.nextbest/``.
    insecure : let everybody in. Only for development on the loopback interface.
    clock : returns the current time (aware UTC); the policy may fix the moment of decisions.
    short_way : answer ``POST /v1/decisions`` before FastAPI sees it: the same, only sooner.

    Raises
    ------
    ConfigError : an environment variable that cannot be used (`nextbest.serve.options`).
    """
    metrics, room = Metrics(), Room(options_of())
    runtime = Runtime(project_dir, metrics, clock, queued=room.options.queued)
    decider = Decider(runtime, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        configure_logging()
        await run_in_threadpool(runtime.open)
        watch = asyncio.create_task(_watch(runtime))
        yield
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await run_in_threadpool(runtime.close)

    app = _Service(title="nextbest", version=__version__, lifespan=lifespan, redirect_slashes=False)
    add_error_handlers(app)
    access = _Access(runtime, insecure)
    _decision_routes(app, runtime, decider, access)
    if short_way:
        route = next(one for one in app.routes if getattr(one, "path", None) == PATH)
        short = Admission(ShortWay(decider, access, route), room)
        app.short_way = Observed(short, metrics)
    app.add_middleware(Admission, room=room)
    app.add_middleware(Observed, metrics=metrics)
    _outcome_routes(app, runtime, metrics, access)
    _reading_routes(app, runtime, access)
    _operator_routes(app, runtime, metrics, access)
    install(app)
    return app


class _Service(FastAPI):
    """The API, and the short way to a decision before it."""

    short_way: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self.short_way is not None and is_short(scope):
            await self.short_way(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _watch(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        try:
            await run_in_threadpool(runtime.reload)
        except Exception:
            # Whatever is wrong with the new files, the state in use is as good as before.
            log("reload failed", level=logging.ERROR, exc_info=True)


class _Access:
    """Makes the dependency that lets a caller in who has a scope."""

    def __init__(self, runtime: Runtime, insecure: bool) -> None:
        self._runtime = runtime
        self._insecure = insecure

    def __call__(self, scope: str) -> Any:
        def check(
            bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
            header: Annotated[str | None, Security(_HEADER)],
        ) -> None:
            self.admit(bearer.credentials if bearer is not None else header, scope)

        return Depends(check)

    def admit(self, token: str | None, scope: str) -> Caller:
        """Return the caller who holds a token, or refuse."""
        if self._insecure:
            return _ANYBODY
        caller = authenticate(self._runtime.store(), token)
        if caller is None:
            raise Problem(
                "unauthenticated",
                "The API key is missing, unknown or revoked.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return self.allow(caller, scope)

    def allow(self, caller: Caller, scope: str) -> Caller:
        """Return a caller who is known already, if the key may do this."""
        if not caller.may(scope):
            raise Problem("forbidden", f'This call needs the scope "{scope}".')
        return caller


def _json(content: Any, status: int = 200) -> Response:
    return Response(
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode(),
        status_code=status,
        media_type="application/json",
    )


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _decision_routes(app: FastAPI, runtime: Runtime, decider: Decider, access: _Access) -> None:
    codes = (*_BODY_CODES, "unknown-channel", "idempotency-conflict", "not-ready")

    @app.post(
        "/v1/decisions",
        tags=["decisions"],
        summary="Decide for one customer",
        response_model=DecisionAnswer,
        responses=answers("/v1/decisions", DecisionAnswer, codes),
        openapi_extra=takes(DecisionRequest),
        dependencies=[access("decide")],
    )
    def decide(request: Request, raw: Body) -> Response:
        """Which offers should this customer get now? The answer is on disk before it is given.

        A customer without a profile gets the policy's fallback (`"fallback": true`).
        """
        answer = decider.one(parse_decision(raw))
        request.state.log_fields = {"decision_id": answer["decision_id"]}
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @app.post(
        "/v1/decisions/batch",
        tags=["decisions"],
        summary="Decide for up to 1,000 customers",
        response_model=BatchAnswer,
        responses=answers("/v1/decisions/batch", BatchAnswer, codes),
        openapi_extra=takes(BatchRequest),
        dependencies=[access("decide")],
    )
    def decide_batch(request: Request, raw: Body) -> Response:
        """The same question for many customers: one answer each, all recorded or none."""
        decisions = decider.many(parse(BatchRequest, raw))
        request.state.log_fields = {"decisions": len(decisions)}
        return _json({"decisions": decisions})

    @app.get(
        "/v1/decisions/{decision_id}",
        tags=["decisions"],
        summary="A decision and its trace",
        response_model=StoredDecisionAnswer,
        responses=answers(
            "/v1/decisions/{decision_id}", StoredDecisionAnswer, ["unknown-decision"]
        ),
        dependencies=[access("read")],
    )
    def decision(decision_id: str) -> Response:
        """What was asked, answered and why; and the outcomes reported since."""
        store = runtime.store()
        found = store.decision(decision_id)
        if found is None:
            raise Problem("unknown-decision", f'There is no decision "{decision_id}".')
        trace, missing = trace_of(runtime.project_dir, found.record)
        return _json(
            {
                "request": found.record["request"],
                "decision": found.record["answer"],
                "trace": trace,
                "missing": missing or None,
                "outcomes": [_outcome(one) for one in store.outcomes(decision_id=decision_id)],
            }
        )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome), "occurred_at": _moment(outcome.occurred_at)}


def _outcome_routes(app: FastAPI, runtime: Runtime, metrics: Metrics, access: _Access) -> None:
    codes = (
        *_BODY_CODES,
        "unknown-offer",
        "unknown-decision",
        "offer-not-in-decision",
        "customer-mismatch",
        "outcome-in-future",
        "outcome-conflict",
        "not-ready",
    )

    @app.post(
        "/v1/outcomes",
        tags=["outcomes"],
        summary="Report what happened",
        response_model=OutcomesAnswer,
        responses=answers("/v1/outcomes", OutcomesAnswer, codes, also=[207]),
        openapi_extra=takes(OutcomeReport, many=True),
        dependencies=[access("outcomes")],
    )
    def report(raw: Body) -> Response:
        """One outcome or a list of up to 1,000. What is acknowledged is on disk, once.

        Of a list each outcome is kept or refused by itself: 200 where all were kept, 207 where
        some were, and a problem where none was.
        """
        check_time()
        reports, many = parse_outcomes(raw)
        state = runtime.state()
        now = max(runtime.clock(), state.moment(runtime.clock))
        results = reported.record(runtime.store(), reports, state.offers.offer_ids, now)
        for one, result in zip(reports, results, strict=True):
            metrics.outcomes.labels(one.outcome_type, result.status).inc()
        refused = [result for result in results if result.status == "refused"]
        if len(refused) == len(results):
            raise _refusal(results, many)
        content = {"results": [result.model_dump(exclude_none=True) for result in results]}
        return _json(content, 207 if refused else 200)


def _refusal(results: list[OutcomeResult], many: bool) -> Problem:
    errors = [
        {
            "pointer": f"/{number}/{result.field}" if many else f"/{result.field}",
            "code": result.code,
            "detail": result.detail,
        }
        for number, result in enumerate(results)
    ]
    code, detail = str(results[0].code), str(results[0].detail)
    if many and len(results) > 1:
        detail = f"None of the {len(results)} outcomes was kept. The first: {detail}"
    status = 409 if code == "outcome-conflict" and not many else 422
    return Problem(code, detail, status=status, errors=errors)


def _reading_routes(app: FastAPI, runtime: Runtime, access: _Access) -> None:
    @app.get(
        "/v1/customers/{customer_id}",
        tags=["reading"],
        summary="A customer's profile and scores",
        response_model=CustomerAnswer,
        responses=answers(
            "/v1/customers/{customer_id}", CustomerAnswer, ["unknown-customer", "not-ready"]
        ),
        dependencies=[access("read")],
    )
    def customer(customer_id: str) -> Response:
        """Features and scores as of the last refresh."""
        state = runtime.state()
        profile = state.shaper.profile(customer_id)
        if profile is None:
            raise Problem("unknown-customer", f'There is no profile of customer "{customer_id}".')
        scores = state.bundle.score_names
        return _json(
            {
                "customer_id": customer_id,
                "as_of": _moment(state.bundle.as_of),
                "profile_stale": state.is_stale(state.moment(runtime.clock)),
                "features": {k: v for k, v in profile.items() if k not in scores},
                "scores": {name: profile.get(name) for name in scores},
                "bundle": state.bundle.id,
            }
        )

    @app.get(
        "/v1/offers",
        tags=["reading"],
        summary="The catalogue",
        response_model=CatalogueAnswer,
        responses=answers("/v1/offers", CatalogueAnswer, ["not-ready"]),
        dependencies=[access("read")],
    )
    def offers() -> Response:
        """The offers in use, as `serving/offers.toml` and the table that it names state them."""
        catalogue = runtime.state().offers
        return _json({"catalogue": catalogue.content_hash, "offers": catalogue.to_dict()})

    @app.get(
        "/v1/models",
        tags=["reading"],
        summary="The models in use",
        response_model=ModelsAnswer,
        responses=answers("/v1/models", ModelsAnswer, ["not-ready"]),
        dependencies=[access("read")],
    )
    def models() -> Response:
        """Versions and aliases of the models in use."""
        bundle = runtime.state().bundle
        listed = [
            {
                "name": name,
                "kind": model.kind,
                "version": model.version,
                "run_id": bundle.sources[name]["run_id"],
                "aliases": bundle.sources[name]["aliases"],
                "digest": model.digest,
            }
            for name, model in bundle.models.items()
        ]
        created_at = _moment(bundle.created_at)
        return _json({"bundle": bundle.id, "created_at": created_at, "models": listed})


def _operator_routes(app: FastAPI, runtime: Runtime, metrics: Metrics, access: _Access) -> None:
    @app.get(
        "/healthz",
        tags=["operating"],
        summary="Alive?",
        response_model=Health,
        responses=answers("/healthz", Health, []),
    )
    async def health() -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    @app.get(
        "/readyz",
        tags=["operating"],
        summary="Ready to decide?",
        response_model=Readiness,
        responses={
            **answers("/readyz", Readiness, []),
            503: {"model": Readiness, "description": "Not ready; each part says why."},
        },
    )
    def ready() -> Response:
        """200 where bundle, configuration and store are ready, else 503; and why, part by part."""
        parts = runtime.parts()
        good = all(fine for fine, _ in parts.values())
        detail = {name: {"ready": fine, "detail": said} for name, (fine, said) in parts.items()}
        return _json({"ready": good, "parts": detail}, 200 if good else 503)

    @app.get(
        "/metrics",
        tags=["operating"],
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text format."}},
        dependencies=[access("read")],
    )
    def prometheus() -> Response:
        """Counts, latencies and ages; needs the scope `read`."""
        runtime.measure()
        return Response(metrics.page(), media_type=METRICS_MEDIA_TYPE)
