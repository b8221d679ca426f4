"""From a checked question to a recorded answer: the one way in which the server decides."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from nextbest.decide.engine import Decisions, Ration, decide
from nextbest.decide.frame import Situation, utc
from nextbest.errors import StoreError, did_you_mean
from nextbest.serve.audience import Past, past_of
from nextbest.serve.learnt import Learnt, learnt_of
from nextbest.serve.problems import Problem, pointer
from nextbest.serve.recording import explained, record_of
from nextbest.serve.records import DecisionRecord, StoredDecision
from nextbest.serve.replay import trace_of
from nextbest.serve.runtime import Runtime, State
from nextbest.serve.schemas import BatchRequest, DecisionRequest
from nextbest.serve.store import HistoryChangedError, Store
from nextbest.serve.telemetry import Metrics

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = ["ATTEMPTS", "Decider", "decide_for", "new_decision_id"]

# A key holds no control character, so that this never runs into another request's key.
_KEY_SEPARATOR = "\x1f"
_STRIPES = 1_024
# Each time that we must decide again, somebody else has decided for the same customer.
ATTEMPTS = 100
# Counting reads the whole contact log; a minute more or less of it changes no probability much.
COUNTS_SECONDS = 60.0
Question = DecisionRequest | BatchRequest


def new_decision_id() -> str:
    """Return a new id that sorts by time (UUID version 7, RFC 9562)."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds << 80) | secrets.randbits(80)
    bits = (bits & ~(0xF << 76)) | (0x7 << 76)
    return str(UUID(int=(bits & ~(0x3 << 62)) | (0x2 << 62)))


def decide_for(
    state: State,
    store: Store | None,
    customer_ids: Sequence[str],
    situation: Situation,
    decision_ids: Sequence[str],
    past: Past | None = None,
    learnt: Learnt | None = None,
    *,
    prices: Prices | None = None,
    ration: Ration | None = None,
) -> Decisions:
    """Decide for customers with all that is known of them; online and batch both call this.

    Parameters
    ----------
    past : what was read of the store already; None reads it here.
    learnt : how offers have done so far; None asks the store (`learnt_of`).
    prices, ration : what is scarce (`engine.decide`).
    """
    past = past_of(store, customer_ids) if past is None else past
    if learnt is None:
        learnt = learnt_of(store, state.rules.tables.exploration, situation.decided_at)
    if state.rules.tables.contact.count_history:
        past = past.joined(state.shaper.warehouse(customer_ids))
    contacts = past.history(customer_ids, state.shaper.offer_ids)
    audience = state.shaper.audience(customer_ids, contacts)
    return decide(
        audience,
        state.catalogue,
        state.policy,
        situation,
        decision_ids,
        offer_counts=learnt.counts,
        stopped=learnt.stopped,
        prices=prices,
        ration=ration,
    )


def situation_of(state: State, question: Question, decided_at: datetime) -> Situation:
    """Check a question against the policy in use.

    Raises
    ------
    Problem: ``unknown-channel``, or ``invalid-request`` where a context value does not fit.
    """
    channels = state.rules.tables.channels
    if question.channel not in channels:
        hint = did_you_mean(question.channel, channels)
        detail = f'There is no channel "{question.channel}". Must be one of {", ".join(channels)}.'
        fault = {"pointer": "/channel", "detail": f"{detail} {hint}".rstrip()}
        raise Problem("unknown-channel", fault["detail"], errors=[fault])
    faults = [
        {"pointer": pointer(["context", name]), "detail": f"Must be a {kind}."}
        for name, kind in state.rules.tables.context.items()
        if not _fits(question.context.get(name), kind)
    ]
    if faults:
        first = f"{faults[0]['pointer']}: {faults[0]['detail']}"
        raise Problem("invalid-request", first, errors=faults)
    return Situation(
        channel=question.channel,
        decided_at=decided_at,
        placement=question.placement,
        context=question.context,
        limit=question.limit,
    )


def _fits(value: object, kind: str) -> bool:
    if value is None:
        return True
    if kind == "timestamp":
        return isinstance(value, str) and _is_moment(value)
    return isinstance(value, {"number": float, "string": str, "boolean": bool}[kind])


def _is_moment(text: str) -> bool:
    try:
        utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return False
    return True


def _each(request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The request as each decision's record keeps it: of many customers, each has its own alone."""
    if "customer_ids" not in request:
        yield request
        return
    shared = {name: value for name, value in request.items() if name != "customer_ids"}
    for customer_id in request["customer_ids"]:
        yield {"customer_id": customer_id, **shared}


class Decider:
    """Answers decision requests of one server."""

    def __init__(self, runtime: Runtime, metrics: Metrics) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        self._counting = threading.Lock()
        self._counted: tuple[str, float, Learnt] | None = None

    def one(self, question: DecisionRequest) -> dict[str, Any]:
        """Decide for one customer and return the answer once it is on disk."""
        return self._decide(question, [question.customer_id], [question.idempotency_key])[0]

    def many(self, question: BatchRequest) -> list[dict[str, Any]]:
        """Decide for many customers; all or none of the decisions are recorded."""
        key = question.idempotency_key
        keys = [
            None if key is None else f"{key}{_KEY_SEPARATOR}{i}"
            for i in range(len(question.customer_ids))
        ]
        return self._decide(question, question.customer_ids, keys)

    def _decide(
        self, question: Question, customer_ids: Sequence[str], keys: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        request = question.model_dump(mode="json", exclude={"idempotency_key"})
        request_hash = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        # Requests to this process about one customer wait for each other. Those to other processes
        # do not: whoever finds at the end that one of them was faster decides again.
        with self.one_at_a_time(customer_ids):
            for _ in range(ATTEMPTS):
                with suppress(HistoryChangedError):
                    return self._decide_once(question, customer_ids, keys, request, request_hash)
        what = "other processes decide for the same customers without a pause"
        raise StoreError("store", what, action="Try again")

    def _decide_once(
        self,
        question: Question,
        customer_ids: Sequence[str],
        keys: Sequence[str | None],
        request: Mapping[str, Any],
        request_hash: str,
    ) -> list[dict[str, Any]]:
        state, store = self._runtime.state(), self._runtime.store()
        if keys[0] is not None:
            earlier = store.decisions_by_keys([key for key in keys if key is not None])
            if earlier:
                found = [earlier.get(key or "") for key in keys]
                return self._repeated(question, request_hash, found)
        past = past_of(store, customer_ids)
        # Only now look at the clock: no contact that another process made may lie in the future.
        situation = situation_of(state, question, state.moment(self._runtime.clock))
        ids = [new_decision_id() for _ in customer_ids]
        with self._metrics.stage("decide"):
            learnt = self._learnt(state, store, situation.decided_at)
            prices = state.prices_for(situation)
            decisions = decide_for(
                state, store, customer_ids, situation, ids, past, learnt, prices=prices
            )
        with self._metrics.stage("explain"):
            records = [
                record_of(state, decisions, row, asked, request_hash, key)
                for row, (key, asked) in enumerate(zip(keys, _each(request), strict=True))
            ]
        seen = past.rows(customer_ids) if state.policy.limits else None
        with self._metrics.stage("store"):
            kept = store.record_decisions(records, seen)
        if any(one.decision_id != own for one, own in zip(kept, ids, strict=True)):
            return self._repeated(question, request_hash, kept)  # another server was first
        self._count(state, records)
        answers = [dict(record.record["answer"]) for record in records]
        if question.explain:
            for row, answer in enumerate(answers):
                said = records[row].record["contributions"]
                answer["trace"] = explained(decisions, row, said)
        return answers

    def _learnt(self, state: State, store: Store, at: datetime) -> Learnt:
        """Return how offers have done, counted again after a minute or with a new policy."""
        with self._counting:
            now, policy = time.monotonic(), state.rules.content_hash
            last = self._counted
            if last is None or last[0] != policy or now - last[1] >= COUNTS_SECONDS:
                learnt = learnt_of(store, state.rules.tables.exploration, at)
                last = self._counted = (policy, now, learnt)
            return last[2]

    def _repeated(
        self, question: Question, request_hash: str, found: Sequence[StoredDecision | None]
    ) -> list[dict[str, Any]]:
        same = [one for one in found if one is not None and one.request_hash == request_hash]
        if len(same) < len(found):
            raise Problem(
                "idempotency-conflict",
                f'The idempotency_key "{question.idempotency_key}" was used for another request.',
                errors=[{"pointer": "/idempotency_key", "detail": "Must be new."}],
            )
        answers = [dict(one.record["answer"]) for one in same]
        if question.explain:
            for answer, one in zip(answers, same, strict=True):
                answer["trace"] = trace_of(self._runtime.project_dir, one.record)[0]
        return answers

    @contextmanager
    def one_at_a_time(self, customer_ids: Sequence[str]) -> Iterator[None]:
        """Keep this process from deciding for these customers meanwhile."""
        # In a fixed order, or two batches could wait for each other for ever.
        stripes = sorted({hash(customer_id) % _STRIPES for customer_id in customer_ids})
        with ExitStack() as held:
            for stripe in stripes:
                held.enter_context(self._stripes[stripe])
            yield

    def _count(self, state: State, records: Sequence[DecisionRecord]) -> None:
        for record in records:
            offer = record.offer_ids[0] if record.offer_ids else "none"
            self._metrics.decisions.labels(record.arm, record.channel, offer).inc()
