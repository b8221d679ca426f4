"""The steps of a decision up to what each offer is worth: who may get what, and what for.

Every step writes the fate of the offers that it removes. All of them work element by element over
customers × offers, so that a customer alone gets what a million at once would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide import contact, holdout
from nextbest.decide.arbitrate import Floats, Values, expected_cost, expected_profit, weigh
from nextbest.decide.bound import BoundPolicy
from nextbest.decide.explore import OfferCounts, reach
from nextbest.decide.frame import Audience, Frame, Situation, utc
from nextbest.decide.hashing import uniforms
from nextbest.decide.limits import ChannelLimits, Counts
from nextbest.decide.offers import BoundCatalogue
from nextbest.decide.rules import Positions

if TYPE_CHECKING:
    from nextbest.decide.engine import Ration

__all__ = ["Steps", "compiled_loops"]

_EVERY = slice(None)
# For so few customers each call of NumPy takes longer than what it does to their offers.
_FEW = 256
_ENDLESS = np.full((1, 1), np.inf)
_ENDLESS.setflags(write=False)


@cache
def compiled_loops() -> ModuleType | None:
    """Return `nextbest.decide.loops`, or None where nothing can be compiled.

    The first call takes a second, and many where nothing was compiled before.
    """
    from nextbest.decide import loops

    return loops if loops.available() else None


@dataclass(frozen=True)
class Steps:
    """One run of the steps over n customers and m offers.

    Parameters
    ----------
    fates: (n, m) codes of ``policy.fates``; 0 where an offer is still in the running.
    known: (n, 1) who has a profile; None where all do.
    """

    audience: Audience
    catalogue: BoundCatalogue
    policy: BoundPolicy
    situation: Situation
    frame: Frame
    fates: npt.NDArray[np.int16]
    known: npt.NDArray[np.bool_] | None

    @classmethod
    def begin(
        cls,
        audience: Audience,
        catalogue: BoundCatalogue,
        policy: BoundPolicy,
        situation: Situation,
        frame: Frame,
    ) -> Steps:
        """Keep live offers for the channel and placement; strangers keep the fallback list."""
        moment = utc(situation.decided_at)
        live = policy.candidates(situation.channel, situation.placement, moment)
        fates = live[None].repeat(len(audience.propensity), axis=0)
        known = None if audience.known.all() else audience.known[:, None]
        run = cls(audience, catalogue, policy, situation, frame, fates, known)
        if known is not None:
            run.remove(policy.fates.small[b.NOT_FALLBACK], ~known & ~policy.listed)
        return run

    def remove(self, code: np.int16, lost: Any, offers: Positions = _EVERY) -> None:
        """Write the fate of offers that are lost here and were not lost before."""
        if isinstance(offers, slice):
            np.putmask(self.fates, (self.fates == 0) & lost, code)
        else:
            part = self.fates.take(offers, 1)
            np.putmask(part, (part == 0) & lost, code)
            self.fates[:, offers] = part

    def rules(self) -> None:
        """Remove offers whose rules are not satisfied; rules say nothing about strangers."""
        for code, named, concerned in self.policy.rules_in_order:
            holds = named.rule.holds(self.frame.lookup(named.offers))
            if holds.all():
                continue
            lost = ~holds if self.known is None else self.known & ~holds
            if _same_for_all(lost) and len(self.fates) <= _FEW:
                # Quicker than picking out the rule's offers.
                self.remove(code, lost & concerned)
            else:
                self.remove(code, lost, named.offers)

    def contact_policy(self) -> list[Counts]:
        """Remove offers that consent or a limit keeps back; return what the limits counted."""
        channel, small = self.situation.channel, self.policy.fates.small
        rule = self.policy.policy.tables.channels[channel]
        if rule.consent_required:
            refused = ~self.consent()
            if refused.any():
                self.remove(small[b.NO_CONSENT], refused[:, None])
        for hours in self.policy.quiet_hours:
            if hours.applies_to(channel) and hours.quiet(utc(self.situation.decided_at)):
                self.remove(small["contact_policy", hours.name], True)
        history, limits = self.audience.contacts, self.policy.limits_on(channel)
        if self.situation.limit == 1:  # only further slots ask how much is left
            if not len(history.customer) or not limits.names:
                return []
            loops = compiled_loops()
            if loops is not None:
                self._keep_back(history, limits, loops.keep_back)
                return []
        counts = limits.count(
            history, len(self.fates), self.frame.moment, idle=self.situation.limit > 1
        )
        for counted in counts:
            if not counted.idle:
                self.remove(small["contact_policy", counted.limit.name], counted.reached)
        return counts

    def _keep_back(
        self,
        history: contact.ContactHistory,
        limits: ChannelLimits,
        loop: Callable[..., None],
    ) -> None:
        """Remove offers that a limit keeps back, in one compiled loop."""
        loop(
            self.fates,
            history.customer,
            history.offer,
            history.channel,
            history.time.astype("datetime64[us]", copy=False).view(np.int64),
            history.kind,
            *limits.windows(history, self.frame.moment),
            *limits.pools,
            self.policy.limit_fates(self.situation.channel),
        )

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
            name: amount.computed(self.frame.lookup)
            for name, amount in self.catalogue.amounts.items()
        }
        sound = self.catalogue.sound(amounts)
        # Only the shop's part of the incentive is a cost to the shop.
        amounts["incentive_cost"] = amounts.pop("incentive_shop_share") * amounts["incentive_cost"]
        amounts["retention_value"] = self._retention_value()
        propensity = self.audience.propensity
        profit = expected_profit(propensity, **amounts)
        cost = expected_cost(propensity, amounts["incentive_cost"], amounts["contact_cost"])
        computed = {**amounts, "expected_cost": cost, "expected_profit": profit}
        objective = self._objective(computed)
        moment = utc(self.situation.decided_at)
        lever, weight = self.policy.lever(moment), self._context_weight()
        priority = weigh(objective, lever * weight)
        sound = sound & np.isfinite(priority)
        if objective is not profit:
            sound &= np.isfinite(profit)
        small = self.policy.fates.small
        if not sound.all():
            self.remove(small[b.UNKNOWN_VALUE], self._of_known(~sound))
        ceiling = _ENDLESS
        if self.policy.ceiling is not None:
            ceiling = self._cost_ceiling(self.policy.ceiling)
            # A ceiling that is unknown, because clv is, allows nothing.
            self.remove(small[b.OVER_CEILING], self._of_known(~(cost <= ceiling)))
        return Values(
            **computed,
            cost_ceiling=ceiling,
            lever=lever,
            context_weight=weight,
            objective=objective,
            priority=priority,
        )

    def _of_known(self, lost: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return lost if self.known is None else lost & self.known

    def _objective(self, computed: Mapping[str, Floats]) -> Floats:
        """What the policy maximises, customers × offers."""
        shape, formula = self.fates.shape, self.policy.objective
        if formula.text in computed:  # one of these numbers as it is
            return _filled(computed[formula.text], shape)
        read = {name: computed[name] for name in computed.keys() & formula.columns}
        pairs = {name: _filled(value, shape) for name, value in read.items()}
        get = self.frame.with_pairs(pairs).lookup(_EVERY)
        return _filled(np.asarray(formula.term.run(get), dtype=np.float64), shape)

    def _cost_ceiling(self, ceiling: b.Ceiling) -> Floats:
        """The most that contacting may be expected to cost: its share of the customer's clv."""
        limits = np.full(self.fates.shape, np.inf)
        clv = ceiling.clv.term.run(self.frame.lookup(ceiling.offers))
        limits[:, ceiling.offers] = ceiling.share * clv
        return limits

    def _retention_value(self) -> Floats:
        retention = self.policy.retention
        if retention is None:
            return np.zeros((1, 1))
        get = self.frame.lookup(retention.offers)
        churn, clv = retention.churn_probability.term.run(get), retention.clv.term.run(get)
        value = np.zeros(self.fates.shape)
        value[:, retention.offers] = churn * retention.save_rate * clv
        return value

    def _context_weight(self) -> Floats:
        weight = self.policy.ones
        for (one, rule, offers), concerned in zip(
            self.policy.context_weights, self.policy.weighed, strict=True
        ):
            holds = rule.holds(self.frame.lookup(offers))
            if not holds.any():
                continue
            if _same_for_all(holds):
                factor = np.where(holds & concerned, one.multiplier, 1.0)
            else:
                factor = np.ones(self.fates.shape)
                factor[:, offers] = np.where(holds, one.multiplier, 1.0)
            weight = factor if weight is self.policy.ones else weight * factor
        return weight

    def hold_out_of_offers(self) -> None:
        """Remove an offer for the customers who are held out of it."""
        salt = str(self.policy.policy.tables.holdout.salt)
        for offer_id, at, share in self.policy.held_out_offers:
            held = holdout.held_out_of(offer_id, share, salt, self.audience.customer_ids)
            code = self.policy.fates.small[b.HELD_OUT_OF_OFFER]
            self.remove(code, held[:, None], np.array([at]))

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
                code = self.policy.fates.small[b.NOT_REACHED]
                self.remove(code, (place >= share)[:, None], np.array([at]))

    def used_up(self, ration: Ration | None) -> None:
        """Remove offers of which nothing is left for customers who choose by themselves."""
        if ration is not None:
            code = self.policy.fates.small[b.USED_UP]
            self.remove(code, ~ration.open & ~ration.settled[:, None])


def _same_for_all(holds: Any) -> bool:
    """Whether a rule says the same of all its offers."""
    return bool(holds.ndim < 2 or holds.shape[1] == 1)


def _filled(values: Floats, shape: tuple[int, ...]) -> Floats:
    """The same for every customer and offer."""
    return values if values.shape == shape else np.broadcast_to(values, shape)
