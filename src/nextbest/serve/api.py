"""The HTTP API of a project: decisions, outcomes, events, customers, offers, models, health.

The routes are synchronous on purpose: they wait for the disk, and FastAPI runs them on threads.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
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
from nextbest.errors import StoreError
from nextbest.serve import events as happened
from nextbest.serve import outcomes as reported
from nextbest.serve import person, tracing
from nextbest.serve.access import Access, LoopbackOnly
from nextbest.serve.admission import Admission, Room, check_time
from nextbest.serve.auth import Caller
from nextbest.serve.decisions import Decider
from nextbest.serve.front import PATH, KnownCallers, ShortWay, is_short
from nextbest.serve.http import Observed, RequestLog, add_error_handlers, body
from nextbest.serve.openapi import answers, install, takes
from nextbest.serve.options import options_of
from nextbest.serve.parsing import is_id, parse, parse_decision, parse_events, parse_outcomes
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
    ErasureAnswer,
    EventReport,
    EventResult,
    EventsAnswer,
    ExportAnswer,
    Health,
    ModelsAnswer,
    OutcomeReport,
    OutcomeResult,
    OutcomesAnswer,
    Readiness,
    StoredDecisionAnswer,
)
from nextbest.serve.store import Store
from nextbest.serve.telemetry import METRICS_MEDIA_TYPE, Metrics, configure_logging, log
from nextbest.serve.wire import STATE, Desk

__all__ = ["create_app"]

RELOAD_SECONDS = 2.0
MEASURE_SECONDS = 10.0
# Reads the contact log of three months.
COMPARE_SECONDS = 300.0
# So long a thread keeps the interpreter where others want it. With Python's own 5 ms every decision
# waits as long for whatever else is being worked on.
SWITCH_SECONDS = 0.0005

Body = Annotated[bytes, Depends(body)]
_BODY_CODES = ("malformed-json", "body-too-large", "unsupported-media-type", "invalid-request")
_BEARER = HTTPBearer(auto_error=False, scheme_name="API key", description="`nb_<id>_<secret>`")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="API key header")


def create_app(
    project_dir: Path,
    *,
    insecure: bool = False,
    clock: Callable[[], datetime] | None = None,
    workers: int = 1,
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
    workers : how many processes run this app side by side, and share the limits of keys.
    short_way : answer ``POST /v1/decisions`` before FastAPI sees it: the same, only sooner.

    Raises
    ------
    ConfigError : an environment variable that cannot be used (`nextbest.serve.options`).
    """
    metrics, room = Metrics(), Room(options_of())
    runtime = Runtime(project_dir, metrics, clock, queued=room.options.queued)
    door = Access(runtime.store, insecure=insecure, workers=workers)
    sweeps = person.Sweeps()
    decider, requests = Decider(runtime, metrics), RequestLog(metrics)
    known = KnownCallers(door.identify)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        configure_logging()
        tracing.configure()
        await run_in_threadpool(runtime.open)
        # What is loaded by now stays. To look all of it through for garbage, again and again, would
        # each time keep every request waiting for a tenth of a second.
        gc.freeze()
        switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        watch = asyncio.create_task(_watch(runtime, door, sweeps))
        desk = Desk(decider, door, known, room, requests)
        yield {STATE: desk} if short_way else {}
        desk.note()
        sys.setswitchinterval(switch_seconds)
        gc.unfreeze()
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await run_in_threadpool(door.write_use, all_of_it=True)
        with suppress(StoreError):
            await run_in_threadpool(sweeps.run, runtime.store(), all_of_it=True)
        await run_in_threadpool(runtime.close)
        await run_in_threadpool(tracing.stop)

    app = _Service(title="nextbest", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.state.runtime = runtime
    add_error_handlers(app)
    access = _Scoped(door)
    _decision_routes(app, runtime, decider, access)
    if short_way:
        route = next(one for one in app.routes if getattr(one, "path", None) == PATH)
        # What goes past the other middleware needs the same around it.
        short: ASGIApp = Admission(ShortWay(decider, door, known, route), room)
        app.short_way = Observed(LoopbackOnly(short) if insecure else short, requests)
    app.add_middleware(Admission, room=room)
    if insecure:
        app.add_middleware(LoopbackOnly)
    app.add_middleware(Observed, requests=requests)
    _outcome_routes(app, runtime, metrics, access)
    _event_routes(app, runtime, metrics, access)
    _reading_routes(app, runtime, access)
    _person_routes(app, runtime, decider, sweeps, access)
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


async def _watch(runtime: Runtime, door: Access, sweeps: person.Sweeps) -> None:
    """Do now and then what nobody asks for: take up new files, measure, hold models to account."""

    def sweep() -> None:
        sweeps.run(runtime.store())

    every: dict[Callable[[], None], float] = {
        runtime.reload: RELOAD_SECONDS,
        door.write_use: RELOAD_SECONDS,
        sweep: RELOAD_SECONDS,
        runtime.measure: MEASURE_SECONDS,
        runtime.compare: COMPARE_SECONDS,
    }
    due = dict.fromkeys(every, 0.0)
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        for job, seconds in every.items():
            if time.monotonic() < due[job]:
                continue
            due[job] = time.monotonic() + seconds
            try:
                await run_in_threadpool(job)
            except Exception:
                # Whatever is wrong, the state in use is as good as before.
                log("watch failed", level=logging.ERROR, exc_info=True, job=job.__name__)


class _Scoped:
    """Makes the dependency that lets a caller in who has a scope."""

    def __init__(self, door: Access) -> None:
        self._door = door

    def __call__(self, scope: str) -> Any:
        def check(
            request: Request,
            bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
            header: Annotated[str | None, Security(_HEADER)],
        ) -> None:
            token = bearer.credentials if bearer is not None else header
            request.state.caller = self._door.admit(token, scope)

        return Depends(check)


def _json(content: Any, status: int = 200) -> Response:
    return Response(
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode(),
        status_code=status,
        media_type="application/json",
    )


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _decision_routes(app: FastAPI, runtime: Runtime, decider: Decider, access: _Scoped) -> None:
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
        found = store.decision(decision_id) if is_id(decision_id) else None
        if found is None:
            raise _no_decision(store, decision_id)
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


def _no_decision(store: Store, decision_id: str) -> Problem:
    erased_at = store.erased_decision(decision_id)
    if erased_at is None:
        return Problem("unknown-decision", f'There is no decision "{decision_id}".')
    gone = f"was erased with everything about its customer on {erased_at:%Y-%m-%d}."
    return Problem("unknown-decision", f'Decision "{decision_id}" {gone}')


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome), "occurred_at": _moment(outcome.occurred_at)}


def _outcome_routes(app: FastAPI, runtime: Runtime, metrics: Metrics, access: _Scoped) -> None:
    codes = (
        *_BODY_CODES,
        "unknown-offer",
        "unknown-decision",
        "offer-not-in-decision",
        "customer-mismatch",
        "outcome-in-future",
        "outcome-before-decision",
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
        return _results(results, many, "outcomes")


def _event_routes(app: FastAPI, runtime: Runtime, metrics: Metrics, access: _Scoped) -> None:
    codes = (*_BODY_CODES, "event-in-future", "event-conflict", "not-ready")

    # The scope is that of outcomes: both are reports of what customers did, from the same systems.
    @app.post(
        "/v1/events",
        tags=["events"],
        summary="Report what customers do",
        response_model=EventsAnswer,
        responses=answers("/v1/events", EventsAnswer, codes, also=[207]),
        openapi_extra=takes(EventReport, many=True),
        dependencies=[access("outcomes")],
    )
    def report(raw: Body) -> Response:
        """One event or a list of up to 1,000. What is acknowledged is on disk, once.

        Live features of the customer's next decision count it. Of a list each event is kept or
        refused by itself: 200 where all were kept, 207 where some were, a problem where none was.
        """
        check_time()
        reports, many = parse_events(raw)
        state = runtime.state()
        now = max(runtime.clock(), state.moment(runtime.clock))
        results = happened.record(runtime.store(), reports, now)
        for result in results:
            metrics.events.labels(result.status).inc()
        return _results(results, many, "events")


def _results(
    results: Sequence[OutcomeResult] | Sequence[EventResult], many: bool, what: str
) -> Response:
    """Answer what became of each report, or refuse where none was kept."""
    refused = [result for result in results if result.status == "refused"]
    if len(refused) == len(results):
        raise _refusal(refused, many, what)
    content = {"results": [result.model_dump(exclude_none=True) for result in results]}
    return _json(content, 207 if refused else 200)


def _refusal(results: Sequence[OutcomeResult | EventResult], many: bool, what: str) -> Problem:
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
        detail = f"None of the {len(results)} {what} was kept. The first: {detail}"
    status = 409 if code.endswith("-conflict") and not many else 422
    return Problem(code, detail, status=status, errors=errors)


def _reading_routes(app: FastAPI, runtime: Runtime, access: _Scoped) -> None:
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
        """Features and scores as of the last refresh; live ones, and what follows them, as of now.

        `live` says which those are, where there is news of the customer.
        """
        state = runtime.state()
        now = state.moment(runtime.clock)
        profile = person.profile_of(state, runtime.store(), customer_id, now)
        if profile is None:
            raise _no_customer(customer_id)
        return _json({**profile, "profile_stale": state.is_stale(now)})

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


def _no_customer(customer_id: str) -> Problem:
    return Problem("unknown-customer", f'There is no profile of customer "{customer_id}".')


def _person_routes(
    app: FastAPI, runtime: Runtime, decider: Decider, sweeps: person.Sweeps, access: _Scoped
) -> None:
    @app.delete(
        "/v1/customers/{customer_id}",
        tags=["people"],
        summary="Erase a person",
        response_model=ErasureAnswer,
        responses=answers("/v1/customers/{customer_id}", ErasureAnswer, ["unknown-customer"]),
        dependencies=[access("admin")],
    )
    def erase(request: Request, customer_id: str) -> Response:
        """Removes decisions, contacts, outcomes and events; the profile is served no more.

        Whoever was never heard of is erased too: nobody can tell afterwards.
        """
        if not is_id(customer_id):
            raise _no_customer(customer_id)
        # No decision that began before may be kept after it.
        with decider.one_at_a_time([customer_id]):
            done = person.erase(runtime.store(), customer_id, _actor(request))
            runtime.heed_erasures()
        sweeps.plan(customer_id, _actor(request))
        return _json(done)

    @app.get(
        "/v1/customers/{customer_id}/export",
        tags=["people"],
        summary="All that is known of a person",
        response_model=ExportAnswer,
        responses=answers(
            "/v1/customers/{customer_id}/export", ExportAnswer, ["unknown-customer", "not-ready"]
        ),
        dependencies=[access("admin")],
    )
    def export(request: Request, customer_id: str) -> Response:
        """Profile, scores, decisions with their traces, contacts, outcomes and events."""
        state, store, actor = runtime.state(), runtime.store(), _actor(request)
        found = None
        if is_id(customer_id):
            now = state.moment(runtime.clock)
            found = person.export(runtime.project_dir, state, store, customer_id, actor, now)
        if found is None:
            raise _no_customer(customer_id)
        return _json(found)


def _actor(request: Request) -> str:
    caller: Caller = request.state.caller
    return f"key {caller.key_id}"


def _operator_routes(app: FastAPI, runtime: Runtime, metrics: Metrics, access: _Scoped) -> None:
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
