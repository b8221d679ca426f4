"""The one decision function: the best next offers for each customer, online and in batch.

`decide` is pure. Profiles, scores, contact history, catalogue, policy and clock are arguments; it
reads nothing else. Every step works element by element over customers × offers, so that deciding a
customer alone gives exactly what deciding a million at once gives for that customer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import holdout, trace
from nextbest.decide.answer import Answers, Selections
from nextbest.decide.arbitrate import Floats, Values, in_cells
from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.choosing import Choosing, Lottery, as_made
from nextbest.decide.explore import EARNED_FROM, Earnings, LossStatistics, OfferCounts
from nextbest.decide.frame import Audience, Columns, Contexts, Frame, Situation, stamp, utc
from nextbest.decide.limits import Counts
from nextbest.decide.offers import BoundCatalogue
from nextbest.decide.steps import Steps
from nextbest.decide.words import written_time
from nextbest.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = ["Audience", "Decisions", "Ration", "Situation", "bind", "decide"]

_NO_COUNTS: Mapping[str, OfferCounts] = MappingProxyType({})
_NONE_STOPPED: Mapping[str, LossStatistics] = MappingProxyType({})


@dataclass(frozen=True)
class Ration:
    """What limits over all customers leave to each of these customers.

    Parameters
    ----------
    open: (n, m) the offers that are left to each customer.
    settled: (n,) customers to whom an assignment has allotted exactly the open offers: they get
        them, and pay no price. The others choose by themselves among what is open.
    """

    open: npt.NDArray[np.bool_]
    settled: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Decisions:
    """What was decided for each customer, with all that explains it.

    Parameters
    ----------
    arm: (n,) how each decision was made: "policy", "fallback" for unknown customers, "holdout", or
        an ablation arm (`holdout.arms`).
    fates: (n, m) what became of each offer, as codes of ``policy.fates``.
    chosen: (n, limit) positions of the chosen offers, best first; -1 for an empty slot.
    selection_probability: (n, limit) probability with which each was chosen given the slots before
        it, or with which no offer was (first slot empty); NaN for further empty slots.
    end_probability: (n,) probability with which the answer ended where it did, given its offers;
        1 where no slot was left.
    probabilities: (n, m + 1) what the first slot was drawn from; the last column is no offer.
    would_choose: (n, limit) as ``chosen``, also for customers who are held out: what they would
        have got.
    best: (n, limit) positions of the offers that each slot would have got without chance, given the
        slots before it; -1 for no offer.
    worth: (n, m) what each offer competed on, before any scarcity price; -inf where it did not
        reach arbitration.
    frame: what rules and formulas read of these customers.
    offer_counts, stopped, prices, ration, contexts: as given to `decide`.
    """

    decision_ids: Sequence[str]
    audience: Audience
    catalogue: BoundCatalogue
    policy: BoundPolicy
    situation: Situation
    arm: npt.NDArray[np.object_]
    fates: npt.NDArray[np.int16]
    values: Values
    chosen: npt.NDArray[np.int64]
    selection_probability: npt.NDArray[np.float64]
    end_probability: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    would_choose: npt.NDArray[np.int64]
    best: npt.NDArray[np.int64]
    worth: npt.NDArray[np.float64]
    frame: Frame
    offer_counts: Mapping[str, OfferCounts]
    stopped: Mapping[str, LossStatistics]
    prices: Prices | None
    ration: Ration | None
    contexts: Contexts | None = None

    def __len__(self) -> int:
        return len(self.decision_ids)

    @cached_property
    def eligible(self) -> npt.NDArray[np.bool_]:
        """(n, m) offers that passed every step before arbitration: what could be chosen from."""
        return self.policy.fates.final[self.fates]

    @cached_property
    def decided_at(self) -> str:
        """When it was decided, as answers write it."""
        return written_time(self.situation.decided_at)

    @cached_property
    def pays(self) -> npt.NDArray[np.bool_]:
        """(n,) to whom scarcity prices mattered: an assignment allots its offers without them."""
        if self.prices is None:
            return np.zeros(len(self), dtype=bool)
        by_value = ~np.isin(self.arm, holdout.WAYS_OF_THEIR_OWN)
        pays: npt.NDArray[np.bool_] = self.audience.known & by_value
        return pays if self.ration is None else pays & ~self.ration.settled

    @cached_property
    def counts(self) -> list[Counts]:
        """What each limit of this channel counted."""
        limits = self.policy.limits_on(self.situation.channel)
        moment = stamp(self.situation.decided_at)
        return limits.count(self.audience.contacts, len(self), moment)

    @cached_property
    def answers(self) -> Answers:
        """The answers to all customers.

        Kept here, they and we keep each other until somebody looks for garbage: where that must not
        be waited for, make them with `nextbest.decide.answer.Answers`.
        """
        return Answers(self)

    @cached_property
    def _selections(self) -> Selections:
        return Selections(self)

    @cached_property
    def losses(self) -> Earnings:
        """What exploring loses, (n, limit) each; NaN where the best offer was made, or none.

        The loss is what the best choice was expected to earn (0 for no offer) less what the offer
        that was drawn instead earns, without a response and with one.
        """
        explored = (self.chosen >= 0) & (self.chosen != self.best)
        explored[self.arm == holdout.RANDOM_ELIGIBLE] = False
        if not explored.any():
            none = np.full(self.chosen.shape, np.nan)
            return Earnings(none, none)
        rows, slots = np.nonzero(explored)
        drawn, best = self.chosen[rows, slots], self.best[rows, slots]
        profit = in_cells(self.values.expected_profit, rows, best)
        missed = np.where(best >= 0, profit, 0.0)
        amounts = (in_cells(getattr(self.values, name), rows, drawn) for name in EARNED_FROM)
        earned = Earnings.from_amounts(*amounts)

        def lost(earns: Floats) -> Floats:
            losses = np.full(self.chosen.shape, np.nan)
            losses[rows, slots] = missed - earns
            return losses

        return Earnings(lost(earned.ignored), lost(earned.answered))

    @cached_property
    def profile_stale(self) -> bool:
        """Whether the profiles are older than the policy's freshness limit."""
        limit = self.policy.policy.tables.profiles.freshness_limit_days
        if limit is None or self.audience.as_of is None:
            return False
        age = utc(self.situation.decided_at) - utc(self.audience.as_of)
        return age.total_seconds() > limit * 86_400

    def situation_of(self, row: int) -> Situation:
        """Where and when one customer's offers will be shown."""
        if self.contexts is None:
            return self.situation
        return replace(self.situation, context=self.contexts[row])

    def answer(self, row: int) -> dict[str, Any]:
        """The answer for one customer, JSON-able: the offers with their numbers and reasons."""
        return self.answers.of(row)

    def trace(self, row: int) -> dict[str, Any]:
        """Every offer's fate at every step for one customer, JSON-able."""
        return trace.trace(self, row)

    def selection(self, row: int) -> dict[str, Any]:
        """What one choice was drawn from, with its probabilities, JSON-able."""
        return self._selections.of(row)

    def table(self) -> dict[str, npt.NDArray[Any]]:
        """All decisions as columns, one row per offer made (or per decision that makes none)."""
        return trace.table(self)


def decide(
    audience: Audience,
    catalogue: BoundCatalogue,
    policy: BoundPolicy,
    situation: Situation,
    decision_ids: Sequence[str],
    *,
    offer_counts: Mapping[str, OfferCounts] = _NO_COUNTS,
    stopped: Mapping[str, LossStatistics] = _NONE_STOPPED,
    prices: Prices | None = None,
    ration: Ration | None = None,
    contexts: Contexts | None = None,
) -> Decisions:
    """Decide which offers to make to each customer, or none.

    Parameters
    ----------
    audience: n customers and what is known about them.
    catalogue, policy: as `binding.bind` returns them.
    situation: channel, placement, time, context and number of slots.
    decision_ids: n ids, one per decision; what is left to chance depends on them alone.
    offer_counts: contacts and responses so far by offer id, for new offers' reach and for Thompson
        sampling; an offer that is not there has had none.
    stopped: offers that are no longer explored (`explore.over_budget`), each with what exploring
        it has cost.
    prices: what using up something scarce costs others, for the offers of the catalogue in its
        order; taken off what offers compete on, except in arms that do not compete on value.
    ration: what limits over all customers leave to each; only a batch knows it.
    contexts: n contexts where each customer has one of its own; else the situation's is for all.

    Returns
    -------
    `Decisions`: memory grows with customers × offers; pass a large audience in parts.

    Raises
    ------
    UsageError: the situation names a channel that the policy does not have, or an odd value.
    DataError: the audience lacks a column, or its shapes or probabilities are wrong.
    """
    _check(audience, catalogue, policy, situation, decision_ids, contexts)
    if prices is not None and prices.offer_ids != catalogue.offer_ids:
        raise UsageError("prices", "they are for other offers", action="Use prices.for_offers")
    tables = policy.policy.tables
    # Unknown and endless values are what the steps look for; NumPy need not warn of them.
    with np.errstate(all="ignore"):
        frame = Frame(audience, catalogue, policy, situation, contexts)
        run = Steps.begin(audience, catalogue, policy, situation, frame)
        run.rules()
        counts = run.contact_policy()
        values = run.value()
        run.hold_out_of_offers()
        run.reach(offer_counts)
        arm = holdout.assigned(tables.holdout, tables.arms, audience.customer_ids, audience.known)
        run.used_up(ration)
        lottery = Lottery(arm, decision_ids, offer_counts, stopped)
        choosing = Choosing.of(run, values, lottery, prices, ration)
        choice = choosing.arbitrate(counts)
    kept_back = arm.among(holdout.HELD_OUT, holdout.NO_CONTACT)
    chosen, probability, end, chances = as_made(choice, kept_back)
    return Decisions(
        decision_ids,
        audience,
        catalogue,
        policy,
        situation,
        arm.names,
        run.fates,
        values,
        chosen,
        probability,
        end,
        chances,
        choice.chosen,
        choice.best,
        choosing.worth,
        frame,
        offer_counts,
        stopped,
        prices,
        ration,
        contexts,
    )


def _check(
    audience: Audience,
    catalogue: BoundCatalogue,
    policy: BoundPolicy,
    situation: Situation,
    decision_ids: Sequence[str],
    contexts: Contexts | None,
) -> None:
    channels = policy.policy.tables.channels
    if situation.channel not in channels:
        raise UsageError(
            "channel",
            f'"{situation.channel}" is not known',
            expected="one of " + ", ".join(channels),
            action=did_you_mean(situation.channel, channels),
        )
    if situation.limit < 1:
        got = str(situation.limit)
        raise UsageError("limit", "there is no slot to fill", expected="1 or more", got=got)
    if policy.catalogue is not catalogue:
        raise UsageError("decide", "catalogue and policy were not bound together")
    n, m = len(audience.customer_ids), len(catalogue.offer_ids)
    _check_shape("known", audience.known.shape, (n,))
    _check_shape("decision_ids", (len(decision_ids),), (n,))
    if contexts is not None:
        _check_shape("contexts", (len(contexts),), (n,))
    _check_shape("propensity", audience.propensity.shape, (n, m))
    _check_shapes(audience.columns, (n,))
    _check_shapes(audience.pair_columns, (n, m))
    _check_shapes(audience.offer_columns, (m,))
    # Unknown ones (NaN) are left aside by both.
    low = np.fmin.reduce(audience.propensity, axis=None, initial=0.0)
    if low < 0 or np.fmax.reduce(audience.propensity, axis=None, initial=0.0) > 1:
        raise DataError("audience", "a propensity is not a probability", expected="from 0 to 1")


def _check_shapes(columns: Mapping[str, npt.NDArray[Any]], expected: tuple[int, ...]) -> None:
    if type(columns) is Columns and columns.shape == expected:  # without decoding any
        return
    for name, values in columns.items():
        if values.shape != expected:
            _check_shape(name, values.shape, expected)


def _check_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        what = f"{name} has the wrong shape"
        raise DataError("audience", what, expected=str(expected), got=str(got))
