"""The one decision function: the best next offers for each customer, online and in batch.

`decide` is pure. Profiles, scores, contact history, catalogue, policy and clock are arguments; it
reads nothing else. Every step works element by element over customers × offers, so that deciding a
customer alone gives exactly what deciding a million at once gives for that customer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import binding as b
from nextbest.decide import contact, holdout, trace
from nextbest.decide.answer import Answers, Selections
from nextbest.decide.arbitrate import (
    Chances,
    Choice,
    Floats,
    Pool,
    Values,
    choose,
    expected_cost,
    expected_profit,
    greedy,
    weigh,
)
from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.explore import (
    Earnings,
    Explorer,
    LossStatistics,
    OfferCounts,
    beliefs,
    reach,
    uniform,
)
from nextbest.decide.frame import Audience, Contexts, Frame, Situation, stamp, utc
from nextbest.decide.hashing import uniforms
from nextbest.decide.offers import SHARES, BoundCatalogue
from nextbest.decide.rules import STEPS, Positions
from nextbest.decide.words import written_time
from nextbest.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = ["Audience", "Decisions", "Ration", "Situation", "bind", "decide"]

_EVERY = slice(None)
# Arms whose choice does not go by what an offer is worth.
_WAYS_OF_THEIR_OWN = (holdout.RANDOM_ELIGIBLE, holdout.PROPENSITY_ONLY)
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
        pays: npt.NDArray[np.bool_] = self.audience.known & ~np.isin(self.arm, _WAYS_OF_THEIR_OWN)
        return pays if self.ration is None else pays & ~self.ration.settled

    @cached_property
    def counts(self) -> list[contact.Counts]:
        """What each limit of this channel counted."""
        return list(
            contact.count(
                self.policy.limits,
                self.audience.contacts,
                self.policy.groups,
                n_customers=len(self),
                n_offers=self.fates.shape[1],
                channel=self.situation.channel,
                decided_at=stamp(self.situation.decided_at),
            )
        )

    @cached_property
    def frame(self) -> Frame:
        """What rules and formulas read of these customers."""
        return Frame(self.audience, self.catalogue, self.policy, self.situation, self.contexts)

    @cached_property
    def context_holds(self) -> list[npt.NDArray[np.bool_]]:
        """For each context weight, (n, m) where its condition holds."""
        if not self.policy.context_weights:
            return []
        get = self.frame.lookup(_EVERY)
        return [
            np.broadcast_to(rule.satisfied(get), self.fates.shape)
            for _, rule, _ in self.policy.context_weights
        ]

    @cached_property
    def notes(self) -> dict[Any, Any]:
        """What `nextbest.decide.inputs` has written down so far of all customers together."""
        return {}

    @cached_property
    def answers(self) -> Answers:
        """The answers to all customers."""
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
        rows, slots = np.nonzero(explored)
        drawn, best = self.chosen[rows, slots], self.best[rows, slots]
        profit = np.broadcast_to(self.values.expected_profit, self.fates.shape)
        missed = np.where(best >= 0, profit[rows, best], 0.0)
        earned = _earnings(self.values)

        def lost(earns: Floats) -> Floats:
            losses = np.full(self.chosen.shape, np.nan)
            losses[rows, slots] = missed - np.broadcast_to(earns, self.fates.shape)[rows, drawn]
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
    frame = Frame(audience, catalogue, policy, situation, contexts)
    n, m = audience.propensity.shape
    run = _Run(audience, catalogue, policy, situation, frame, np.zeros((n, m), dtype=np.int16))
    run.candidates()
    run.rules()
    counts = run.contact_policy()
    values = run.value()
    run.hold_out_of_offers()
    run.reach(offer_counts)
    tables = policy.policy.tables
    arm = holdout.arms(tables.holdout, tables.arms, audience.customer_ids, audience.known)
    lottery = _Lottery(arm, decision_ids, offer_counts, stopped)
    run.used_up(ration)
    worth = np.where(run.fates == 0, run.scores(values, arm), -np.inf)
    market = _Market(worth, run.charge(values, arm, prices), run.allotted(ration))
    choice = run.arbitrate(values, counts, lottery, market)
    kept_back = np.isin(arm, (holdout.HELD_OUT, holdout.NO_CONTACT))
    chosen = np.where(kept_back[:, None], -1, choice.chosen)
    probability, end, chances = _as_made(choice, kept_back)
    return Decisions(
        decision_ids,
        audience,
        catalogue,
        policy,
        situation,
        arm,
        run.fates,
        values,
        chosen,
        probability,
        end,
        chances,
        choice.chosen,
        choice.best,
        worth,
        offer_counts,
        stopped,
        prices,
        ration,
        contexts,
    )


def _earnings(values: Values) -> Earnings:
    """What a contact earns with a response and without one; NaN where unknown."""
    with np.errstate(invalid="ignore"):  # as in `expected_profit`
        anyway = values.baseline_rate * values.margin
    ignored = values.retention_value - values.contact_cost - anyway
    return Earnings(ignored, ignored + (values.margin - values.incentive_cost))


def _as_made(choice: Choice, kept_back: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Probabilities of what is really done: whoever is held out surely gets no offer."""
    made = choice.chosen >= 0
    n, limit = made.shape
    slots = made.sum(axis=1)
    full = slots == limit
    end = choice.probability[np.arange(n), np.minimum(slots, limit - 1)]
    end = np.where(full | kept_back, 1.0, end)
    shown = made.copy()
    shown[:, 0] = True
    probability = np.where(shown, choice.probability, np.nan)
    probability[kept_back] = np.nan
    probability[kept_back, 0] = 1.0
    chances = choice.chances.copy()
    chances[kept_back] = 0.0
    chances[kept_back, -1] = 1.0
    return probability, end, chances


def _last(amounts: Floats, chosen: npt.NDArray[np.int64]) -> Floats:
    """(n, 1) the amount of the last offer of a full answer; 0 where a slot is left."""
    last = amounts[np.arange(len(amounts)), chosen[:, -1]]
    return np.where(chosen[:, -1] < 0, 0.0, last)[:, None]


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
    for name, column in audience.columns.items():
        _check_shape(name, column.shape, (n,))
    for name, column in audience.pair_columns.items():
        _check_shape(name, column.shape, (n, m))
    for name, column in audience.offer_columns.items():
        _check_shape(name, column.shape, (m,))
    if np.any((audience.propensity < 0) | (audience.propensity > 1)):
        raise DataError("audience", "a propensity is not a probability", expected="from 0 to 1")


def _check_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        what = f"{name} has the wrong shape"
        raise DataError("audience", what, expected=str(expected), got=str(got))


@dataclass(frozen=True)
class _Lottery:
    """What the choice depends on beside values: arms, decision ids, and what was learnt so far."""

    arm: npt.NDArray[np.object_]
    decision_ids: Sequence[str]
    offer_counts: Mapping[str, OfferCounts]
    stopped: Collection[str]

    def lots(self, salt: str, rows: npt.NDArray[np.intp], limit: int) -> Floats:
        """One number from 0 to 1 for each of some decisions and each slot."""
        ids = [self.decision_ids[row] for row in rows]
        slots = [uniforms(salt, "draw", ids, about=str(slot)) for slot in range(limit)]
        return np.stack(slots, axis=1)


@dataclass(frozen=True)
class _Market:
    """What offers compete on: their worth, less what they take from others, if they are open.

    Parameters
    ----------
    worth: (n, m), -inf where an offer is out.
    charge: (n, m) or (1, 1), scarcity prices.
    allotted: (n, m) or (1, 1), False where an assignment gives the offer to others.
    """

    worth: Floats
    charge: Floats
    allotted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Run:
    """One run of the steps; each writes the fate of the offers that it removes."""

    audience: Audience
    catalogue: BoundCatalogue
    policy: BoundPolicy
    situation: Situation
    frame: Frame
    fates: npt.NDArray[np.int16]

    def _remove(self, fate: tuple[str, str], lost: Any, offers: Positions = _EVERY) -> None:
        """Write the fate of offers that are lost here and were not lost before."""
        code = self.policy.fates.codes[fate]
        if isinstance(offers, slice):
            np.copyto(self.fates, code, where=(self.fates == 0) & lost)
        else:
            part = self.fates[:, offers]
            np.copyto(part, code, where=(part == 0) & lost)
            self.fates[:, offers] = part

    def candidates(self) -> None:
        """Keep live offers for the channel and placement; strangers keep the fallback list."""
        at, moment = self.situation, utc(self.situation.decided_at)
        for i, offer in enumerate(self.catalogue.catalogue.offers):
            fate = b.OPEN
            if not offer.active:
                fate = b.INACTIVE
            elif at.channel not in offer.channels:
                fate = b.OTHER_CHANNEL
            elif at.placement and offer.placements and at.placement not in offer.placements:
                fate = b.OTHER_PLACEMENT
            elif offer.starts_at is not None and moment < offer.starts_at:
                fate = b.NOT_STARTED
            elif offer.ends_at is not None and moment >= offer.ends_at:
                fate = b.ENDED
            if fate is not b.OPEN:
                self.fates[:, i] = self.policy.fates.codes[fate]
        if not self.audience.known.all():
            listed = np.zeros(self.fates.shape[1], dtype=bool)
            listed[self.policy.fallback] = True
            self._remove(b.NOT_FALLBACK, ~self.audience.known[:, None] & ~listed)

    def rules(self) -> None:
        """Remove offers whose rules are not satisfied; rules say nothing about strangers."""
        known = self.audience.known[:, None]
        for step in STEPS:
            for named in (*self.policy.rules, *self.catalogue.rules):
                if named.step == step:
                    satisfied = named.rule.satisfied(self.frame.lookup(named.offers))
                    self._remove((step, named.name), known & ~satisfied, named.offers)

    def contact_policy(self) -> list[contact.Counts]:
        """Remove offers that consent or a limit keeps back; return what the limits counted."""
        n, m = self.fates.shape
        channel = self.situation.channel
        rule = self.policy.policy.tables.channels[channel]
        if rule.consent_required:
            allowed = self.consent()
            self._remove(b.NO_CONSENT, ~allowed[:, None])
        for hours in self.policy.quiet_hours:
            if hours.applies_to(channel) and hours.quiet(utc(self.situation.decided_at)):
                self._remove(("contact_policy", hours.name), True)
        if not len(self.audience.contacts.customer) and self.situation.limit == 1:
            return []
        counts = list(
            contact.count(
                self.policy.limits,
                self.audience.contacts,
                self.policy.groups,
                n_customers=n,
                n_offers=m,
                channel=channel,
                decided_at=stamp(self.situation.decided_at),
            )
        )
        for counted in counts:
            self._remove(("contact_policy", counted.limit.name), counted.reached)
        return counts

    def consent(self) -> npt.NDArray[np.bool_]:
        """Who may be contacted on the channel."""
        channel = self.situation.channel
        name = self.policy.consent_columns[channel]
        column = None if name is None else self.audience.columns[name]
        unknown_allowed = self.policy.policy.tables.channels[channel].unknown_consent == "allow"
        return contact.consent(column, unknown_allowed, len(self.fates))

    def value(self) -> Values:
        """Compute expected profit and priority; remove what is unknown or beyond its ceiling."""
        amounts = {
            name: amount.evaluate(self.frame.lookup)
            for name, amount in self.catalogue.amounts.items()
        }
        shares = [amounts[name] for name in SHARES]
        # Only the shop's part of the incentive is a cost to the shop.
        amounts["incentive_cost"] = amounts.pop("incentive_shop_share") * amounts["incentive_cost"]
        amounts["retention_value"] = self._retention_value()
        propensity = self.audience.propensity
        profit = expected_profit(propensity, **amounts)
        cost = expected_cost(propensity, amounts["incentive_cost"], amounts["contact_cost"])
        ceiling = self._cost_ceiling()
        computed = {**amounts, "expected_cost": cost, "expected_profit": profit}
        self.frame.add_pairs(
            {name: np.broadcast_to(value, profit.shape) for name, value in computed.items()}
        )
        objective = self.policy.objective.evaluate(self.frame.lookup(_EVERY))
        objective = np.broadcast_to(np.asarray(objective, dtype=np.float64), profit.shape)
        lever, weight = self._multipliers()
        priority = weigh(objective, lever * weight)
        sound = np.isfinite(profit) & np.isfinite(priority)
        sound &= (amounts["incentive_cost"] >= 0) & (amounts["contact_cost"] >= 0)
        for share in shares:
            sound &= (share >= 0) & (share <= 1)
        known = self.audience.known[:, None]
        self._remove(b.UNKNOWN_VALUE, ~sound & known)
        # A ceiling that is unknown, because clv is, allows nothing.
        self._remove(b.OVER_CEILING, ~(cost <= ceiling) & known)
        return Values(
            **computed,
            cost_ceiling=ceiling,
            lever=lever,
            context_weight=weight,
            objective=objective,
            priority=priority,
        )

    def _cost_ceiling(self) -> npt.NDArray[np.float64]:
        """The most that contacting may be expected to cost: its share of the customer's clv."""
        ceiling = self.policy.ceiling
        if ceiling is None:
            return np.full((1, 1), np.inf)
        limits = np.full(self.fates.shape, np.inf)
        clv = ceiling.clv.evaluate(self.frame.lookup(ceiling.offers))
        limits[:, ceiling.offers] = ceiling.share * clv
        return limits

    def _retention_value(self) -> npt.NDArray[np.float64]:
        retention = self.policy.retention
        if retention is None:
            return np.zeros((1, 1))
        get = self.frame.lookup(retention.offers)
        churn, clv = retention.churn_probability.evaluate(get), retention.clv.evaluate(get)
        value = np.zeros(self.fates.shape)
        value[:, retention.offers] = churn * retention.save_rate * clv
        return value

    def _multipliers(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        n, m = self.fates.shape
        moment = utc(self.situation.decided_at)
        lever = np.ones((1, m))
        for one, offers in self.policy.levers:
            if moment < one.until:
                lever[:, offers] *= one.multiplier
        weight = np.ones((n if self.policy.context_weights else 1, m))
        for one_weight, rule, offers in self.policy.context_weights:
            holds = rule.satisfied(self.frame.lookup(offers))
            weight[:, offers] *= np.where(holds, one_weight.multiplier, 1.0)
        return lever, weight

    def hold_out_of_offers(self) -> None:
        """Remove an offer for the customers who are held out of it."""
        rules = self.policy.policy.tables.holdout
        for offer_id, share in rules.offers.items():
            if share > 0:
                at = self.catalogue.offer_ids.index(offer_id)
                ids = self.audience.customer_ids
                held = holdout.held_out_of(offer_id, share, str(rules.salt), ids)
                self._remove(b.HELD_OUT_OF_OFFER, held[:, None], np.array([at]))

    def reach(self, offer_counts: Mapping[str, OfferCounts]) -> None:
        """Remove a new offer for the customers whom it does not reach yet."""
        rules = self.policy.policy.tables.exploration
        if rules.new_offer_reach is None:
            return
        for at, offer_id in enumerate(self.catalogue.offer_ids):
            share = reach(offer_counts.get(offer_id, OfferCounts()), rules)
            if share < 1:
                ids = self.audience.customer_ids
                place = uniforms(str(rules.salt), "reach", ids, about=offer_id)
                self._remove(b.NOT_REACHED, (place >= share)[:, None], np.array([at]))

    def used_up(self, ration: Ration | None) -> None:
        """Remove offers of which nothing is left for customers who choose by themselves."""
        if ration is not None:
            self._remove(b.USED_UP, ~ration.open & ~ration.settled[:, None])

    def allotted(self, ration: Ration | None) -> npt.NDArray[np.bool_]:
        """Where an offer may be chosen; an assignment allots its customers their offers."""
        if ration is None:
            return np.ones((1, 1), dtype=bool)
        return ration.open | ~ration.settled[:, None]

    def charge(self, values: Values, arm: npt.NDArray[np.object_], prices: Prices | None) -> Floats:
        """What each offer takes from others; nothing where the choice does not go by value."""
        if prices is None:
            return np.zeros((1, 1))
        charged = np.broadcast_to(prices.charge(values.expected_cost), self.fates.shape)
        free = np.isin(arm, _WAYS_OF_THEIR_OWN) | ~self.audience.known
        # Where the cost is unknown the offer is out of the running anyway.
        return np.where(free[:, None] | ~np.isfinite(charged), 0.0, charged)

    def arbitrate(
        self, values: Values, counts: Sequence[contact.Counts], lottery: _Lottery, market: _Market
    ) -> Choice:
        """Choose, and write why each offer that was still in the running lost."""
        limit = min(self.situation.limit, self.fates.shape[1])
        running = market.worth - market.charge
        pools = self._pools(counts) if limit > 1 else []
        chances, lots = self._left_to_chance(values, lottery, limit, market)
        choice = choose(
            running, self.policy.by_id, limit, [pool for _, pool in pools], chances, lots
        )
        chosen = choice.chosen
        customers, slots = np.nonzero(chosen >= 0)
        picked = (customers, chosen[customers, slots])
        self.fates[picked] = self.policy.fates.codes[b.CHOSEN]
        for arm, fate in ((holdout.HELD_OUT, b.HELD_OUT), (holdout.NO_CONTACT, b.NO_CONTACT_ARM)):
            of_arm = lottery.arm[customers] == arm
            self.fates[customers[of_arm], picked[1][of_arm]] = self.policy.fates.codes[fate]
        for (fate, _), out in zip(pools, choice.blocked, strict=True):
            self._remove(fate, out)
        random = (lottery.arm == holdout.RANDOM_ELIGIBLE)[:, None]
        self._remove(b.NOT_DRAWN, random)
        self._remove(b.NOTHING_TO_GAIN, market.worth <= 0)
        # Better than the last offer of a full answer, or than none: others need it more, or only
        # chance kept it out.
        behind = running <= _last(running, chosen)
        better = market.worth > _last(market.worth, chosen)
        self._remove(b.SCARCE, better & (behind | ~market.allotted))
        self._remove(b.NOT_DRAWN, ~behind)
        self._remove(b.LESS_LIKELY, (lottery.arm == holdout.PROPENSITY_ONLY)[:, None])
        self._remove(b.OUTRANKED, True)
        return choice

    def scores(self, values: Values, arm: npt.NDArray[np.object_]) -> Floats:
        """What offers compete on, customers × offers, in each customer's arm."""
        score = np.array(np.broadcast_to(values.priority, self.fates.shape))
        by_chance = arm == holdout.PROPENSITY_ONLY
        score[by_chance] = self.audience.propensity[by_chance]
        plain = arm == holdout.NO_LEVERS
        if plain.any():
            score[plain] = weigh(values.objective, self._multiplier(values, levers=False))[plain]
        known = self.audience.known
        if not known.all():
            # The fallback list is a ranking in itself: nothing is known to compare offers by.
            rank = np.full(score.shape[1], -np.inf)
            rank[self.policy.fallback] = np.arange(len(self.policy.fallback), 0, -1)
            score[~known] = rank
        return score

    def _multiplier(self, values: Values, *, levers: bool) -> Floats:
        factor = values.lever * values.context_weight if levers else values.context_weight
        return np.broadcast_to(factor, self.fates.shape)

    def _left_to_chance(
        self, values: Values, lottery: _Lottery, limit: int, market: _Market
    ) -> tuple[Chances, Floats]:
        """Return the probabilities of a slot, and the lots that are drawn for each decision."""
        tables = self.policy.policy.tables
        random = np.flatnonzero(lottery.arm == holdout.RANDOM_ELIGIBLE)
        exploring = self.audience.known & ~np.isin(lottery.arm, _WAYS_OF_THEIR_OWN)
        explored = np.flatnonzero(exploring & (tables.exploration.policy != "greedy"))
        lots = np.zeros((len(self.fates), limit))
        for rows, salt in ((random, tables.arms.salt), (explored, tables.exploration.salt)):
            if rows.size:
                lots[rows] = lottery.lots(str(salt), rows, limit)
        explorer = self._explorer(values, lottery, explored, market) if explored.size else None
        allotted = np.broadcast_to(market.allotted, self.fates.shape)[:, self.policy.by_id]

        def chances(running: Floats) -> Floats:
            vector = greedy(np.where(allotted, running, -np.inf))
            if random.size:
                vector[random] = uniform(running[random])
            if explorer is not None:
                vector[explored] = explorer.chances(running[explored])
            return vector

        return chances, lots

    def _explorer(
        self, values: Values, lottery: _Lottery, rows: npt.NDArray[np.intp], market: _Market
    ) -> Explorer:
        """What exploring needs to know of some customers, offers in the order of their ids."""
        settings = self.policy.policy.tables.exploration
        by_id = self.policy.by_id
        ids = [self.catalogue.offer_ids[i] for i in by_id]

        def of(amounts: Floats) -> Floats:
            # What is unknown belongs to offers that are out of the running.
            known = np.where(np.isfinite(amounts), amounts, 0.0)
            return np.broadcast_to(known, self.fates.shape)[np.ix_(rows, by_id)]

        earns = _earnings(values)
        possible = None
        if settings.policy == "thompson":
            counts = [lottery.offer_counts.get(name, OfferCounts()) for name in ids]
            no_levers = (lottery.arm[rows] == holdout.NO_LEVERS)[:, None]
            possible = beliefs(
                of(self.audience.propensity),
                np.array([c.strength(settings.prior_strength) for c in counts]),
                np.array([c.rate(settings.prior_strength) for c in counts]),
                of(values.margin - values.incentive_cost),
                of(earns.ignored),
                np.where(
                    no_levers,
                    of(self._multiplier(values, levers=False)),
                    of(self._multiplier(values, levers=True)),
                ),
            )
            possible -= of(market.charge)[:, :, None]
        stopped = np.array([name in lottery.stopped for name in ids])
        # What exploring takes from others is a loss, too.
        profit = of(values.expected_profit) - of(market.charge)
        earnings = Earnings(of(earns.ignored), of(earns.answered))
        return Explorer(settings, profit, stopped, possible, earnings)

    def _pools(self, counts: Sequence[contact.Counts]) -> list[tuple[tuple[str, str], Pool]]:
        """What several offers of one answer share: their exclusivity group, and each cap's rest."""
        member = self.policy.groups["exclusivity_group"]
        ones = np.ones((len(self.fates), int(member.max(initial=0)) + 1), dtype=np.int64)
        pools = [(b.SAME_GROUP, Pool(member, ones))]
        for counted in counts:
            if counted.limit.form == "cap" and counted.limit.kind == "contact":
                pools.append((b.NO_CONTACT_LEFT, Pool(counted.pool, counted.left())))
        at_most = self.policy.policy.tables.arbitration.at_most_per_category
        if at_most is not None:
            category = self.policy.groups["category"]
            slots = np.full((len(self.fates), int(category.max(initial=0)) + 1), at_most)
            pools.append((b.CATEGORY_FULL, Pool(category, slots)))
        return pools
