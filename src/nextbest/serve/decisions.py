"""From a checked question to a recorded answer: the one way in which the server decides."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nextbest.decide.engine import Decisions, Ration, decide
from nextbest.decide.frame import Contexts, Situation, utc
from nextbest.errors import StoreError, did_you_mean
from nextbest.serve import tracing
from nextbest.serve.admission import check_time, deadline, is_late, too_late
from nextbest.serve.audience import Past, past_of
from nextbest.serve.learnt import Learnt, learnt_of
from nextbest.serve.line import Line, Served, Turns, Waiting
from nextbest.serve.problems import Problem, pointer
from nextbest.serve.question import DecisionQuestion
from nextbest.serve.recording import Filed, explained, records_of
from nextbest.serve.records import DecisionRecord, Seen, StoredDecision
from nextbest.serve.replay import trace_of
from nextbest.serve.runtime import Runtime, State
from nextbest.serve.schemas import BatchRequest
from nextbest.serve.store import HistoryChangedError, Store
from nextbest.serve.telemetry import Metrics, Series

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = ["ATTEMPTS", "Decider", "Told", "decide_for", "new_decision_ids"]

# A key holds no control character, so that this never runs into another request's key.
_KEY_SEPARATOR = "\x1f"
# Each time that we must decide again, somebody else has decided for the same customer.
ATTEMPTS = 100
# Counting reads the whole contact log; a minute more or less of it changes no probability much.
COUNTS_SECONDS = 60.0
Question = DecisionQuestion | BatchRequest
# The first digit of a UUID's fourth group: two bits that are fixed, and two of chance.
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def new_decision_ids(n: int) -> list[str]:
    """Return n new ids that sort by time (UUID version 7, RFC 9562)."""
    now = f"{time.time_ns() // 1_000_000:012x}"
    start = f"{now[:8]}-{now[8:]}-7"
    chance = os.urandom(10 * n).hex()
    parts = (chance[i : i + 20] for i in range(0, 20 * n, 20))
    return [f"{start}{r[:3]}-{_VARIANT[r[3]]}{r[4:7]}-{r[7:19]}" for r in parts]


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
    contexts: Contexts | None = None,
) -> Decisions:
    """Decide for customers with all that is known of them; online and batch both call this.

    Parameters
    ----------
    past : what was read of the store already; None reads it here.
    learnt : how offers have done so far; None asks the store (`learnt_of`).
    prices, ration : what is scarce (`engine.decide`).
    contexts : one for each customer, where they differ.
    """
    if past is None:
        past = past_of(store, customer_ids, state.shaper.overlay.events_since)
    if learnt is None:
        learnt = learnt_of(store, state.rules.tables.exploration, situation.decided_at)
    news = state.shaper.news(customer_ids, past, situation.decided_at)
    if state.rules.tables.contact.count_history:
        past = past.joined(state.shaper.warehouse(customer_ids))
    contacts = past.history(customer_ids, state.shaper.offer_ids)
    audience = state.shaper.audience(customer_ids, contacts, news)
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
        contexts=contexts,
    )


def situation_of(question: Question, decided_at: datetime) -> Situation:
    """Return where and when the offers will be shown."""
    return Situation(
        channel=question.channel,
        decided_at=decided_at,
        placement=question.placement,
        context=question.context,
        limit=question.limit,
    )


def check_question(state: State, question: Question) -> None:
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
    told = question.context
    faults = [
        {"pointer": pointer(["context", name]), "detail": f"Must be a {kind}."}
        for name, kind in state.rules.tables.context.items()
        if name in told and not _fits(told[name], kind)
    ]
    if faults:
        first = f"{faults[0]['pointer']}: {faults[0]['detail']}"
        raise Problem("invalid-request", first, errors=faults)


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


class Told(NamedTuple):
    """An answer as it is sent: its decision, and the JSON."""

    decision_id: str
    content: bytes

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Told:
        """Write an answer down."""
        return cls(answer["decision_id"], msgspec.json.encode(answer))


class Asked(NamedTuple):
    """What was asked about one customer.

    Parameters
    ----------
    question : as it came; of many customers the same for each.
    key : its idempotency key.
    request, request_hash : what is kept of the question.
    until : its deadline (`nextbest.serve.admission`).
    trace : the caller's, as the question came; None where nobody traces.
    """

    question: Question
    customer_id: str
    key: str | None
    request: Mapping[str, Any]
    request_hash: str
    until: float | None = None
    trace: Any = None


def _traces(asked: Iterable[Asked]) -> Iterable[Any]:
    return (one.trace for one in asked)


@dataclass(frozen=True)
class _Made:
    """Decisions that are ready to be kept."""

    state: State
    decisions: Decisions
    records: Sequence[DecisionRecord]
    seen: Seen | None


class Decider:
    """Answers decision requests of one server."""

    def __init__(self, runtime: Runtime, metrics: Metrics) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._decisions = Series(metrics.decisions)
        self._turns = Turns()
        self._line: Line[Asked] = Line(self._turns, self._serve, self._quick)
        self._counting = threading.Lock()
        self._counted: tuple[str, float, Learnt] | None = None

    def one(self, question: DecisionQuestion) -> dict[str, Any]:
        """Decide for one customer and return the answer once it is on disk."""
        return self._alone(question, [question.customer_id], [question.idempotency_key])[0]

    async def soon(self, question: DecisionQuestion) -> Told:
        """Do the same as `one` on an event loop, together with others who ask at the same time."""
        if question.explain:  # takes long: nobody else should wait for it
            return Told.of(await asyncio.to_thread(self.one, question))
        answer = asyncio.get_running_loop().create_future()

        def tell(found: Told | Exception) -> None:
            if answer.done():  # whoever asked has gone away
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        self.put(question, deadline(), tell)
        found: Told = await answer
        return found

    def put(
        self,
        question: DecisionQuestion,
        until: float | None,
        tell: Callable[[Told | Exception], None],
    ) -> None:
        """Do the same as `soon` for whoever need not be waited for.

        Parameters
        ----------
        question : one without ``explain``.
        until : its deadline (`nextbest.serve.admission`).
        tell : takes the answer or the error, later and on the event loop; must not raise.

        Raises
        ------
        StoreError: too many wait already.
        """
        request, request_hash = _request_of(question)
        customer_id, key = question.customer_id, question.idempotency_key
        asked = Asked(question, customer_id, key, request, request_hash, until, tracing.here())
        kind = (question.channel, question.placement, question.limit)
        self._line.put(Waiting(asked, customer_id, kind, tell))

    def many(self, question: BatchRequest) -> list[dict[str, Any]]:
        """Decide for many customers; all or none of the decisions are recorded."""
        key = question.idempotency_key
        keys = [
            None if key is None else f"{key}{_KEY_SEPARATOR}{i}"
            for i in range(len(question.customer_ids))
        ]
        return self._alone(question, question.customer_ids, keys)

    def one_at_a_time(self, customer_ids: Sequence[str]) -> AbstractContextManager[None]:
        """Keep this process from deciding for these customers meanwhile."""
        return self._turns.alone(customer_ids)

    # --- one question, on the caller's thread ------------------------------------------------

    def _alone(
        self, question: Question, customer_ids: Sequence[str], keys: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        request, request_hash = _request_of(question)
        # Of many customers each decision keeps its own alone.
        shared = {name: value for name, value in request.items() if name != "customer_ids"}
        trace = tracing.here()
        asked = [
            Asked(
                question,
                customer_id,
                key,
                {"customer_id": customer_id, **shared},
                request_hash,
                trace=trace,
            )
            for customer_id, key in zip(customer_ids, keys, strict=True)
        ]
        # Requests to this process about one customer wait for each other. Those to other processes
        # do not: whoever finds at the end that one of them was faster decides again.
        with self.one_at_a_time(customer_ids):
            for _ in range(ATTEMPTS):
                check_time()
                with suppress(HistoryChangedError):
                    return self._decide_once(question, asked)
        raise _never_alone()

    def _decide_once(self, question: Question, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        state, store = self._runtime.state(), self._runtime.store()
        earlier = _earlier(store, asked)
        if earlier:
            return self._repeated(question, asked, [earlier.get(one.key or "") for one in asked])
        customer_ids = [one.customer_id for one in asked]
        past = past_of(store, customer_ids, state.shaper.overlay.events_since)
        # Only now look at the clock: no contact that another process made may lie in the future.
        moment = state.moment(self._runtime.clock)
        check_question(state, question)
        made = self._make(state, store, asked, situation_of(question, moment), past)
        with self._metrics.stage("store", _traces(asked)):
            kept = store.record_decisions(made.records, made.seen, deadline())
        if any(_is_other(one, record) for one, record in zip(kept, made.records, strict=True)):
            return self._repeated(question, asked, kept)  # another server was first
        self._count(made.records)
        answers = [msgspec.json.decode(record.answer_json) for record in made.records]
        if question.explain:
            for row, answer in enumerate(answers):
                record = made.records[row].kept.read()
                answer["trace"] = explained(made.decisions, row, record["contributions"])
        return answers

    # --- many questions at once --------------------------------------------------------------

    def _quick(self) -> bool:
        """Whether reading what is known takes no longer than deciding."""
        try:
            return self._runtime.store().is_file
        except StoreError:
            return False

    def _serve(self, group: list[Waiting[Asked]]) -> Served[Asked]:
        try:
            return self._decide_together(group)
        except (Problem, StoreError) as error:
            return Served([(waiting, error) for waiting in group])
        except Exception as error:
            if len(group) == 1:
                return Served([(group[0], error)])
        # Whatever is wrong with one of them alone may not refuse the others.
        answers: list[tuple[Waiting[Asked], Any]] = []
        for waiting in group:
            try:
                (answer,) = self._decide_once(waiting.asked.question, [waiting.asked])
                answers.append((waiting, Told.of(answer)))
            except HistoryChangedError:
                answers.append((waiting, _never_alone()))
            except Exception as error:
                answers.append((waiting, error))
        return Served(answers)

    def _decide_together(self, group: list[Waiting[Asked]]) -> Served[Asked]:
        state, store = self._runtime.state(), self._runtime.store()
        earlier = _earlier(store, [waiting.asked for waiting in group])
        customer_ids = [waiting.customer_id for waiting in group]
        past = past_of(store, customer_ids, state.shaper.overlay.events_since)
        # Only now look at the clock: no contact that another process made may lie in the future.
        moment = state.moment(self._runtime.clock)
        told: list[tuple[Waiting[Asked], Any]] = []
        new: list[Waiting[Asked]] = []
        for waiting in group:
            asked = waiting.asked
            try:
                if is_late(asked.until):
                    raise too_late()
                if waiting.attempts >= ATTEMPTS:
                    raise _never_alone()
                if asked.key in earlier:
                    found = [earlier[asked.key]]
                    (answer,) = self._repeated(asked.question, [asked], found)
                    told.append((waiting, Told.of(answer)))
                    continue
                check_question(state, asked.question)
                new.append(waiting)
            except (Problem, StoreError) as error:
                told.append((waiting, error))
        if not new:
            return Served(told)
        # Of one group all but the context is alike.
        situation = situation_of(new[0].asked.question, moment)
        made = self._make(state, store, [w.asked for w in new], situation, past)
        started = time.perf_counter()
        limits = [waiting.asked.until for waiting in new if waiting.asked.until is not None]
        kept = store.submit_decisions(made.records, made.seen, max(limits, default=None))
        return Served(told, kept, partial(self._finish, new, made.records, started))

    def _finish(
        self,
        group: list[Waiting[Asked]],
        records: Sequence[DecisionRecord],
        started: float,
        done: Future[list[StoredDecision]],
    ) -> list[tuple[Waiting[Asked], Any]] | None:
        """Return the answers of a group whose transaction has ended; None to decide again."""
        self._metrics.staged("store", started, _traces(waiting.asked for waiting in group))
        error = done.exception()
        if isinstance(error, HistoryChangedError):
            return None
        if error is not None:
            return [(waiting, error) for waiting in group]
        answers: list[tuple[Waiting[Asked], Any]] = []
        new = []
        for waiting, record, one in zip(group, records, done.result(), strict=True):
            if _is_other(one, record):  # another server was first
                asked = waiting.asked
                try:
                    (answer,) = self._repeated(asked.question, [asked], [one])
                    answers.append((waiting, Told.of(answer)))
                except Problem as problem:
                    answers.append((waiting, problem))
            else:
                new.append(record)
                answers.append((waiting, Told(record.decision_id, record.answer_json)))
        self._count(new)
        return answers

    # --- both --------------------------------------------------------------------------------

    def _make(
        self,
        state: State,
        store: Store,
        asked: Sequence[Asked],
        situation: Situation,
        past: Past,
    ) -> _Made:
        """Decide, and write down what the store is to keep."""
        ids = new_decision_ids(len(asked))
        customer_ids = [one.customer_id for one in asked]
        first = asked[0].question.context
        alike = all(one.question.context == first for one in asked)
        with self._metrics.stage("decide", _traces(asked)):
            learnt = self._learnt(state, store, situation.decided_at)
            decisions = decide_for(
                state,
                store,
                customer_ids,
                situation,
                ids,
                past,
                learnt,
                prices=state.prices_for(situation),
                contexts=None if alike else [one.question.context for one in asked],
            )
        with self._metrics.stage("explain", _traces(asked)):
            filed = [Filed(one.request, one.request_hash, one.key) for one in asked]
            records = records_of(state, decisions, filed)
        seen = past.rows(customer_ids) if state.policy.limits else None
        return _Made(state, decisions, records, seen)

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
        self,
        question: Question,
        asked: Sequence[Asked],
        found: Sequence[StoredDecision | None],
    ) -> list[dict[str, Any]]:
        pairs = zip(asked, found, strict=True)
        same = [f for a, f in pairs if f is not None and f.request_hash == a.request_hash]
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

    def _count(self, records: Sequence[DecisionRecord]) -> None:
        for record in records:
            offer = record.offer_ids[0] if record.offer_ids else "none"
            self._decisions[record.arm, record.channel, offer].inc()


def _request_of(question: Question) -> tuple[dict[str, Any], str]:
    """Return what is kept of a question, and its hash."""
    if isinstance(question, DecisionQuestion):
        request = question.request
    else:
        request = question.model_dump(mode="json", exclude={"idempotency_key"})
    said = msgspec.json.encode(request, order="sorted")
    return request, hashlib.sha256(said).hexdigest()


def _earlier(store: Store, asked: Sequence[Asked]) -> dict[str, StoredDecision]:
    """Return what was decided before under the keys of these questions."""
    keys = [one.key for one in asked if one.key is not None]
    return store.decisions_by_keys(keys) if keys else {}


def _is_other(kept: StoredDecision, own: DecisionRecord) -> bool:
    return kept.decision_id != own.decision_id


def _never_alone() -> StoreError:
    what = "other processes decide for the same customers without a pause"
    return StoreError("store", what, action="Try again")
