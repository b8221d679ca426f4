"""Decide for every customer at once and write a file: the same decisions as online."""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nextbest.decide.engine import Decisions, Ration
from nextbest.decide.frame import Situation, utc
from nextbest.decide.trace import funnel
from nextbest.errors import StoreError, UsageError, did_you_mean
from nextbest.serve.audience import Past, past_of
from nextbest.serve.batchfile import Table, appending
from nextbest.serve.cores import cores
from nextbest.serve.decisions import ATTEMPTS, decide_for
from nextbest.serve.learnt import Learnt, learnt_of
from nextbest.serve.recording import Filed, records_of
from nextbest.serve.records import naive_utc
from nextbest.serve.runtime import State
from nextbest.serve.scarcity import StoredPrices, write_prices
from nextbest.serve.store import HistoryChangedError, Store

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices
    from nextbest.decide.ration import Rationing

__all__ = ["BatchSummary", "decide_batch", "situation_for"]

CHUNK = 2_000

P = TypeVar("P")
R = TypeVar("R")


@dataclass
class BatchSummary:
    """What a batch decided.

    Attributes
    ----------
    batch_id : the same question to the same bundle, catalogue and policy, with the same contacts
        before it, has the same id.
    recorded, recorded_before : decisions that this run added to the store, and that an earlier run
        of the same batch had added.
    file : where the decisions are; None where none was asked for.
    offers : how many customers got each offer (in any slot).
    expected_profit : sum over all offers made, in the shop's currency.
    funnel : for each offer, how many customers lost it at which step, and why.
    limits : where anything is limited over all customers: value, upper bound and gap of what was
        shared out, what binds, and what one more of it would be worth; else empty.
    """

    batch_id: str
    decided_at: datetime
    channel: str
    file: Path | None = None
    customers: int = 0
    with_offer: int = 0
    no_offer: int = 0
    rows: int = 0
    recorded: int = 0
    recorded_before: int = 0
    expected_profit: float = 0.0
    offers: dict[str, int] = field(default_factory=dict)
    arms: dict[str, int] = field(default_factory=dict)
    funnel: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON types."""
        return {
            **vars(self),
            "decided_at": utc(self.decided_at).isoformat().replace("+00:00", "Z"),
            "file": None if self.file is None else str(self.file),
        }


def situation_for(
    state: State,
    channel: str | None = None,
    *,
    placement: str | None = None,
    context: Mapping[str, str | float | bool | None] | None = None,
    limit: int = 1,
    now: datetime | None = None,
) -> Situation:
    """Return the situation of a batch: the policy's moment, and its only channel by default.

    Raises
    ------
    UsageError: no channel is named where the policy has several, or there is none of that name.
    """
    channels = list(state.rules.tables.channels)
    if channel is None and len(channels) == 1:
        channel = channels[0]
    if channel not in channels:
        raise UsageError(
            "--channel",
            "which channel?" if channel is None else f'there is no channel "{channel}"',
            expected="one of " + ", ".join(channels),
            got=channel or "none",
            action=did_you_mean(channel or "", channels),
        )
    moment = state.moment(lambda: now or datetime.now(UTC))
    return Situation(
        channel=str(channel),
        decided_at=moment,
        placement=placement,
        context=dict(context or {}),
        limit=limit,
    )


def decide_batch(
    state: State,
    situation: Situation,
    out: Path | None = None,
    *,
    customer_ids: Sequence[str] | None = None,
    store: Store | None = None,
    record: bool = False,
    progress: Callable[[int, int], None] | None = None,
    prices_dir: Path | None = None,
    each: Callable[[Decisions], None] | None = None,
) -> BatchSummary:
    """Decide for all customers of the bundle, or for some, and write the decisions to a file.

    The file has one row for each customer and offer made, best first, and one row with rank 0 for
    a customer without an offer. It appears whole or not at all.

    Parameters
    ----------
    state : bundle, catalogue and policy (`nextbest.serve.runtime.load_state`).
    situation : channel, moment, context and number of slots (`situation_for`).
    out : a ``.parquet`` or ``.csv`` file; missing folders are made. None writes nothing.
    customer_ids : whom to decide for; None for every customer with a profile who was not erased.
    store : past contacts and answers, for the contact policy; None means that there were none.
    record : also keep every decision in the store, so that it counts as a contact and outcomes
        can be reported for it. A repeated or resumed batch records each decision once.
    progress : called with the number of customers done and in all.
    prices_dir : where to keep the scarcity prices for single decisions; None keeps none.
    each : called with the decisions, part by part.

    Raises
    ------
    UsageError: the file's name or place cannot be used; or the same question was recorded before,
        when other contacts came before it.
    StoreError: the file or the store cannot be written.
    """
    profiles, erased = state.bundle.profiles, state.shaper.erased
    if customer_ids is None and erased.hashes:
        customer_ids = [one for one in profiles.ids() if one not in erased]
    total = len(profiles) if customer_ids is None else len(customer_ids)
    asked = {
        "bundle": state.bundle.id,
        "catalogue": state.offers.content_hash,
        "policy": state.rules.content_hash,
        **vars(situation),
        "decided_at": utc(situation.decided_at).isoformat(),
    }
    question = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    parts = [
        profiles.ids(slice(start, min(start + CHUNK, total)))
        if customer_ids is None
        else customer_ids[start : start + CHUNK]
        for start in range(0, max(total, 1), CHUNK)  # once for nobody: a file has columns
    ]
    capped = any(offer.max_contacts is not None for offer in state.offers.offers)
    made = Counter(store.contacts_by_offer(situation.decided_at) if store and capped else {})
    # Counted once, and without what an earlier run of this batch recorded: neither may change the
    # batch's own decisions.
    rules, at = state.rules.tables.exploration, situation.decided_at
    learnt = learnt_of(store, rules, at, without_batch=question)
    since = state.shaper.overlay.events_since
    batch_id = _batch_id(question, store, parts, at, learnt, made, since)
    batch = _Batch(state, situation, store, question, batch_id, learnt)
    summary = BatchSummary(batch_id, situation.decided_at, situation.channel, out)
    rationing = _rationing(state, situation, made, total)
    prices, ration = (None, None) if rationing is None else _share(rationing, batch, parts)
    with _looked_through(), appending(out) as write:

        def decided(part: tuple[int, Sequence[str]]) -> tuple[Decisions, Table]:
            start, ids = part
            rows = slice(start, start + len(ids))
            own = None if ration is None else Ration(ration.open[rows], ration.settled[rows])
            asked_of = (ids, prices, own)
            decisions = batch.recorded(*asked_of, summary) if record else batch.decide(*asked_of)[0]
            return decisions, decisions.table()

        starts = [number * CHUNK for number in range(len(parts))]
        # Records go into one store, one part after the other.
        threads = 1 if record else cores()
        for decisions, table in _ahead(decided, list(zip(starts, parts, strict=True)), threads):
            rows = slice(summary.customers, summary.customers + len(decisions))
            write(table)
            _add(summary, decisions, table)
            if each is not None:
                each(decisions)
            if rationing is not None:
                rationing.made(rows, decisions)
            if progress is not None:
                progress(summary.customers, total)
    if rationing is not None:
        summary.limits = rationing.facts()
        if prices_dir is not None:
            stored = StoredPrices(
                state.offers.content_hash,
                state.rules.content_hash,
                situation.decided_at,
                rationing.prices,
            )
            write_prices(prices_dir, situation.channel, stored)
    return summary


def _rationing(
    state: State, situation: Situation, made: Mapping[str, int], customers: int
) -> Rationing | None:
    """Return who shares out what is scarce, if anything is."""
    # Only now: the solver's package takes long to load, and most servers never need it.
    from nextbest.decide.ration import Rationing, constraints

    limits = constraints(state.offers, state.rules.tables, situation.channel, made)
    if not limits:
        return None
    group = state.policy.groups["exclusivity_group"]
    return Rationing(limits, customers, state.offers.offer_ids, situation.limit, group)


def _share(
    rationing: Rationing, batch: _Batch, parts: Sequence[Sequence[str]]
) -> tuple[Prices | None, Ration | None]:
    """Decide for everybody as if there were no limits, and share out what there is."""
    everybody: list[str] = []
    for ids in parts:
        rows = slice(len(everybody), len(everybody) + len(ids))
        rationing.add(rows, batch.decide(ids)[0])
        everybody += ids
    return rationing.share(
        lambda rows, prices, ration: batch.decide([everybody[i] for i in rows], prices, ration)[0]
    )


def _batch_id(
    question: str,
    store: Store | None,
    parts: Sequence[Sequence[str]],
    decided_at: datetime,
    learnt: Learnt,
    made: Counter[str],
    events_since: datetime | None,
) -> str:
    """Hash the question and what had happened before it, the batch's own decisions apart.

    Takes the batch's own contacts, made by an earlier run, off the counts by offer.
    """
    digest = hashlib.sha256(question.encode())
    digest.update(repr(learnt).encode())
    until = naive_utc(decided_at)
    for ids in parts if store is not None else ():
        known = past_of(store, ids, events_since)
        past = known.without([_decision_id(question, one) for one in ids])
        if made:
            made -= Counter(known.contacts.offer_ids) - Counter(past.contacts.offer_ids)
        for told in (past.contacts, past.outcomes, past.events):
            for event in sorted(zip(*vars(told).values(), strict=True), key=repr):
                if event[-2] <= until:
                    digest.update(repr(event).encode())
    if made:
        digest.update(json.dumps(made, sort_keys=True).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Batch:
    """One question to many customers, asked in parts."""

    state: State
    situation: Situation
    store: Store | None
    question: str
    batch_id: str
    learnt: Learnt

    def decide(
        self, ids: Sequence[str], prices: Prices | None = None, ration: Ration | None = None
    ) -> tuple[Decisions, Past]:
        """Decide for some customers; return what was known of them, too."""
        decision_ids = [_decision_id(self.question, customer_id) for customer_id in ids]
        past = past_of(self.store, ids, self.state.shaper.overlay.events_since)
        before = past.without(decision_ids)  # an earlier run's decisions do not hold this one back
        decided = decide_for(
            self.state,
            None,
            ids,
            self.situation,
            decision_ids,
            before,
            self.learnt,
            prices=prices,
            ration=ration,
        )
        return decided, past

    def recorded(
        self,
        ids: Sequence[str],
        prices: Prices | None,
        ration: Ration | None,
        summary: BatchSummary,
    ) -> Decisions:
        """Decide and keep what an earlier run of this batch has not kept."""
        if self.store is None:
            raise UsageError("record", "there is no store to record in")
        for _ in range(ATTEMPTS):
            decisions, past = self.decide(ids, prices, ration)
            kept = self.store.request_hashes(decisions.decision_ids)
            if set(kept.values()) - {self.batch_id}:
                raise UsageError(
                    "--record",
                    "the same question was recorded before, when other contacts came before it",
                    action="Decide for another moment; what was recorded stands",
                )
            new = [row for row, one in enumerate(decisions.decision_ids) if one not in kept]
            filed = Filed({"batch_id": self.batch_id}, self.batch_id)
            asked = [filed] * len(new)
            records = records_of(self.state, decisions, asked, new, batch=self.question)
            try:
                self.store.record_decisions(records, past.rows([ids[row] for row in new]))
            except HistoryChangedError:
                continue
            summary.recorded += len(new)
            summary.recorded_before += len(kept)
            return decisions
        what = "other processes decide for the same customers without a pause"
        raise StoreError("store", what, action="Try again")


@contextmanager
def _looked_through() -> Iterator[None]:
    """Leave alone what is there by now when garbage is searched for: it would be, for each part."""
    if gc.get_freeze_count():  # a server has seen to it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _ahead(work: Callable[[P], R], parts: Sequence[P], threads: int) -> Iterator[R]:
    """Yield what becomes of each part, in order, while threads work on the next ones.

    Scores and sums of large parts are computed outside Python's lock, so that threads help.
    """
    if threads == 1:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(threads) as pool:
        started: deque[Future[R]] = deque()
        for part in parts:
            started.append(pool.submit(work, part))
            if len(started) > threads:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()


def _decision_id(question: str, customer_id: str) -> str:
    """A UUID of version 5 in layout (RFC 9562), its bits a hash of question and customer."""
    name = hashlib.sha256(f"{question}\x1f{customer_id}".encode()).hexdigest()
    variant = "89ab"[int(name[16], 16) & 3]
    return f"{name[:8]}-{name[8:12]}-5{name[13:16]}-{variant}{name[17:20]}-{name[20:32]}"


def _add(
    summary: BatchSummary, decisions: Decisions, table: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    made = table["rank"] > 0
    first = decisions.chosen[:, 0] >= 0
    summary.customers += len(decisions)
    summary.with_offer += int(np.count_nonzero(first))
    summary.no_offer += int(np.count_nonzero(~first))
    summary.rows += len(made)
    # Strangers have no expected profit; the fallback list is not chosen for one.
    summary.expected_profit += float(np.nansum(table["expected_profit"][made]))
    for offer_id in decisions.catalogue.offer_ids:
        summary.offers.setdefault(offer_id, 0)
    for offer_id, count in Counter(table["offer_id"][made].tolist()).items():
        summary.offers[offer_id] += count
    for arm, count in Counter(decisions.arm.tolist()).items():
        summary.arms[arm] = summary.arms.get(arm, 0) + count
    _sum_into(summary.funnel, funnel(decisions)["offers"])


def _sum_into(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _sum_into(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
