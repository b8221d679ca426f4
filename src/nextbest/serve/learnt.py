"""What the log says about each offer as a whole: how it did, and what exploring it has cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from nextbest.decide.explore import LossStatistics, OfferCounts, over_budget
from nextbest.decide.policy import Exploration
from nextbest.serve.audience import ANSWERS
from nextbest.serve.records import Tally
from nextbest.serve.store import Store

__all__ = ["Learnt", "learnt_of"]


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
