"""The one decision function: the best next offers for each customer, online and in batch.

`decide` is pure. Profiles, scores, contact history, catalogue, policy and clock are arguments; it
reads nothing else. Every step works element by element over customers × offers, so that deciding a
customer alone gives exactly what deciding a million at once gives for that customer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import binding as b
from nextbest.decide import contact, trace
from nextbest.decide.arbitrate import (
    Pool,
    Values,
    choose,
    expected_cost,
    expected_profit,
    weigh,
)
from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.frame import Audience, Frame, Situation, stamp, utc
from nextbest.decide.offers import SHARES, BoundCatalogue
from nextbest.decide.rules import STEPS, Positions
from nextbest.errors import DataError, UsageError, did_you_mean

__all__ = ["Audience", "Decisions", "Situation", "bind", "decide"]

_EVERY = slice(None)


@dataclass(frozen=True)
class Decisions:
    """What was decided for each customer, with all that explains it.

    Parameters
    ----------
    arm: (n,) how each decision was made: "policy", or "fallback" for unknown customers.
    fates: (n, m) what became of each offer, as codes of ``policy.fates``.
    chosen: (n, limit) positions of the chosen offers, best first; -1 for an empty slot.
    selection_probability: (n, limit) probability with which the policy chose each, or chose to
        make no offer (first slot empty); NaN for further empty slots.
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

    def __len__(self) -> int:
        return len(self.decision_ids)

    @property
    def profile_stale(self) -> bool:
        """Whether the profiles are older than the policy's freshness limit."""
        limit = self.policy.policy.tables.profiles.freshness_limit_days
        if limit is None or self.audience.as_of is None:
            return False
        age = utc(self.situation.decided_at) - utc(self.audience.as_of)
        return age.total_seconds() > limit * 86_400

    def answer(self, row: int) -> dict[str, Any]:
        """The answer for one customer, JSON-able: the offers with their numbers and reasons."""
        return trace.answer(self, row)

    def trace(self, row: int) -> dict[str, Any]:
        """Every offer's fate at every step for one customer, JSON-able."""
        return trace.trace(self, row)

    def table(self) -> dict[str, npt.NDArray[Any]]:
        """All decisions as columns, one row per offer made (or per decision that makes none)."""
        return trace.table(self)


def decide(
    audience: Audience,
    catalogue: BoundCatalogue,
    policy: BoundPolicy,
    situation: Situation,
    decision_ids: Sequence[str],
) -> Decisions:
    """Decide which offers to make to each customer, or none.

    Parameters
    ----------
    audience: n customers and what is known about them.
    catalogue, policy: as `binding.bind` returns them.
    situation: channel, placement, time, context and number of slots.
    decision_ids: n ids, one per decision.

    Returns
    -------
    `Decisions`: memory grows with customers × offers; pass a large audience in parts.

    Raises
    ------
    UsageError: the situation names a channel that the policy does not have, or an odd value.
    DataError: the audience lacks a column, or its shapes or probabilities are wrong.
    """
    _check(audience, catalogue, policy, situation, decision_ids)
    frame = Frame(audience, catalogue, policy, situation)
    n, m = audience.propensity.shape
    run = _Run(audience, catalogue, policy, situation, frame, np.zeros((n, m), dtype=np.int16))
    run.candidates()
    run.rules()
    counts = run.contact_policy()
    values = run.value()
    chosen = run.arbitrate(values, counts)
    arm = np.full(n, "policy", dtype=object)
    arm[~audience.known] = "fallback"
    probability = np.where(chosen >= 0, 1.0, np.nan)
    probability[:, 0] = 1.0
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
    )


def _check(
    audience: Audience,
    catalogue: BoundCatalogue,
    policy: BoundPolicy,
    situation: Situation,
    decision_ids: Sequence[str],
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
            self._remove(("contact_policy", counted.limit.name), counted.reached())
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

    def arbitrate(self, values: Values, counts: Sequence[contact.Counts]) -> Any:
        """Choose, and write why each offer that was still in the running lost."""
        limit = min(self.situation.limit, self.fates.shape[1])
        still = self.fates == 0
        running = np.where(still, values.priority, -np.inf)
        known = self.audience.known
        if not known.all():
            # The fallback list is a ranking in itself: nothing is known to compare offers by.
            rank = np.zeros(running.shape[1])
            rank[self.policy.fallback] = np.arange(len(self.policy.fallback), 0, -1)
            running[~known] = np.where(still[~known], rank, -np.inf)
        pools = self._pools(counts) if limit > 1 else []
        chosen, blocked = choose(running, self.policy.by_id, limit, [pool for _, pool in pools])
        customers, slots = np.nonzero(chosen >= 0)
        self.fates[customers, chosen[customers, slots]] = self.policy.fates.codes[b.CHOSEN]
        for (fate, _), out in zip(pools, blocked, strict=True):
            self._remove(fate, out)
        self._remove(b.NOTHING_TO_GAIN, running <= 0)
        self._remove(b.OUTRANKED, True)
        return chosen

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
