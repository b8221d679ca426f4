"""What the log says about each offer as a whole: how it did, and what exploring it has cost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from nextbest.decide.explore import LossStatistics, OfferCounts, over_budget
from nextbest.decide.policy import Exploration, Policy
from nextbest.errors import StoreError
from nextbest.serve.audience import ANSWERS
from nextbest.serve.records import Tally
from nextbest.serve.store import Store
from nextbest.serve.telemetry import log

__all__ = ["Learnt", "Remembered", "learnt_of"]

# Counting reads the whole contact log; a minute more or less of it changes no probability much.
COUNTS_SECONDS = 60.0


@dataclass(frozen=True)
class Learnt:
    """What `nextbest.decide.engine.decide` is told about offers, by offer id.

    Parameters
    ----------
    counts : contacts and responses so far; empty where the policy does not depend on them.
    stopped : offers that are no longer explored, with what exploring them has cost.
    """

    counts: Mapping[str, OfferCounts] = field(default_factory=dict)
    stopped: Mapping[str, LossStatistics] = field(default_factory=dict)


def learnt_of(
    store: Store | None, rules: Exploration, at: datetime, *, without_batch: str | None = None
) -> Learnt:
    """Return what the store knows at a moment, as far as the policy depends on it.

    Parameters
    ----------
    at : what happened later does not count.
    without_batch : a batch whose own contacts do not count (`DecisionRecord.batch`).
    """
    if store is None or not (rules.learns() or rules.has_budget()):
        return Learnt()
    tallies = store.tallies(ANSWERS, at, without_batch=without_batch)
    counts = {name: _counts(tally) for name, tally in tallies.items()} if rules.learns() else {}
    if rules.loss_budget is None:
        return Learnt(counts)
    losses = {
        name: LossStatistics(tally.explored, tally.loss, tally.loss_squared)
        for name, tally in tallies.items()
    }
    stopped = over_budget(losses, budget=rules.loss_budget, **rules.loss_limits())
    return Learnt(counts, {name: losses[name] for name in sorted(stopped)})


def _counts(tally: Tally) -> OfferCounts:
    return OfferCounts(
        tally.contacts,
        tally.responses,
        tally.expected_responses,
        tally.settled,
        tally.settled_responses,
    )


class Remembered:
    """How offers have done as it was counted last, which is counted again after a minute.

    Whoever decides meanwhile does not wait for it, but gets what was counted before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By which policy and when, by the monotonic clock.
        self._last: tuple[str, float, Learnt] | None = None
        self._thread: threading.Thread | None = None

    def learnt(self, store: Store, rules: Policy, at: datetime) -> Learnt:
        """Return what was counted at most two minutes ago; errors as of the store.

        Parameters
        ----------
        at : until when it is counted, where it has to be.
        """
        with self._lock:
            last = self._last
            age = 0.0 if last is None else time.monotonic() - last[1]
            if last is None or last[0] != rules.content_hash or age >= 2 * COUNTS_SECONDS:
                return self._count(store, rules, at)
            if age >= COUNTS_SECONDS and (self._thread is None or not self._thread.is_alive()):
                given = (store, rules, at)
                self._thread = threading.Thread(target=self._again, args=given, daemon=True)
                self._thread.start()
            return last[2]

    def _count(self, store: Store, rules: Policy, at: datetime) -> Learnt:
        now, learnt = time.monotonic(), learnt_of(store, rules.tables.exploration, at)
        self._last = (rules.content_hash, now, learnt)
        return learnt

    def _again(self, store: Store, rules: Policy, at: datetime) -> None:
        try:
            self._count(store, rules, at)
        except StoreError as error:
            # Whoever decides a minute from now counts first, and is told.
            log("offers not counted", level=logging.WARNING, error=str(error))
