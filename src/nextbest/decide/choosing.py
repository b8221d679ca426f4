"""The last steps of a decision: what offers compete on in each arm, chance, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide import holdout
from nextbest.decide.arbitrate import (
    Chances,
    Choice,
    Floats,
    Ints,
    Pool,
    Values,
    choose,
    greedy,
    weigh,
)
from nextbest.decide.explore import Earnings, Explorer, OfferCounts, beliefs, uniform
from nextbest.decide.hashing import uniforms
from nextbest.decide.holdout import Assigned
from nextbest.decide.limits import Counts
from nextbest.decide.steps import Steps, compiled_loops

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices
    from nextbest.decide.engine import Ration

__all__ = ["Choosing", "Lottery", "as_made"]


@dataclass(frozen=True)
class Lottery:
    """What the choice depends on beside values: arms, decision ids, and what was learnt so far."""

    arm: Assigned
    decision_ids: Sequence[str]
    offer_counts: Mapping[str, OfferCounts]
    stopped: Collection[str]

    def lots(self, salt: str, rows: npt.NDArray[np.intp] | None, limit: int) -> Floats:
        """One number from 0 to 1 for each of some decisions (None: of all) and each slot."""
        ids = self.decision_ids if rows is None else [self.decision_ids[row] for row in rows]
        slots = [uniforms(salt, "draw", ids, about=str(slot)) for slot in range(limit)]
        return slots[0][:, None] if limit == 1 else np.array(slots).T


@dataclass(frozen=True)
class Choosing:
    """Chooses among the offers that the steps have left.

    Parameters
    ----------
    worth: (n, m) what each offer competes on, -inf where it is out.
    charge: (n, m) scarcity prices; None where nothing is charged.
    allotted: (n, m) False where an assignment gives the offer to others; None without one.
    """

    run: Steps
    values: Values
    lottery: Lottery
    worth: Floats
    charge: Floats | None
    allotted: npt.NDArray[np.bool_] | None

    @classmethod
    def of(
        cls,
        run: Steps,
        values: Values,
        lottery: Lottery,
        prices: Prices | None,
        ration: Ration | None,
    ) -> Choosing:
        """Work out what offers compete on; an assignment allots its customers their offers."""
        worth = np.where(run.fates == 0, _scores(run, values, lottery.arm), -np.inf)
        charge = None if prices is None else _charge(run, values, lottery.arm, prices)
        allotted = None if ration is None else ration.open | ~ration.settled[:, None]
        return cls(run, values, lottery, worth, charge, allotted)

    def arbitrate(self, counts: Sequence[Counts]) -> Choice:
        """Choose, and write why each offer that was still in the running lost."""
        fates, policy, arm = self.run.fates, self.run.policy, self.lottery.arm
        limit = min(self.run.situation.limit, fates.shape[1])
        if limit == 1 and self._is_plain():
            loops = compiled_loops()
            if loops is not None:
                return self._choose_one(loops.choose_one)
        running = self.worth if self.charge is None else self.worth - self.charge
        pools = self._pools(counts) if limit > 1 else []
        chances, lots = self._left_to_chance(limit)
        choice = choose(running, policy.order, limit, [pool for _, pool in pools], chances, lots)
        chosen = choice.chosen
        customers, slots = (chosen >= 0).nonzero()
        fates[customers, chosen[customers, slots]] = policy.fates.by_arm[arm.codes[customers]]
        for (fate, _), out in zip(pools, choice.blocked, strict=True):
            self.run.remove(policy.fates.small[fate], out)
        np.copyto(fates, self._why_not(running, chosen), where=fates == 0)
        return choice

    def _is_plain(self) -> bool:
        """Whether the choice goes by worth, but for a share that is left to chance evenly."""
        settings, arm = self.run.policy.policy.tables.exploration, self.lottery.arm
        return (
            settings.policy in ("greedy", "epsilon")
            and settings.loss_budget is None
            and not self.lottery.stopped
            and self.charge is None
            and self.allotted is None
            and arm.present.isdisjoint(holdout.WAYS_OF_THEIR_OWN)
        )

    def _choose_one(self, loop: Callable[..., None]) -> Choice:
        """Do the same for one slot in one compiled loop."""
        run, arm = self.run, self.lottery.arm
        settings, small = run.policy.policy.tables.exploration, run.policy.fates.small
        explored = run.audience.known
        if settings.policy == "greedy":
            explored, lots = np.zeros_like(explored), np.zeros(len(explored))
        else:
            lots = self.lottery.lots(str(settings.salt), None, 1)[:, 0]
        share = settings.max_loss_share
        n, m = self.worth.shape
        chosen, best = np.empty((n, 1), dtype=np.int64), np.empty((n, 1), dtype=np.int64)
        probability, chances = np.empty((n, 1)), np.empty((n, m + 1))
        loop(
            chosen,
            probability,
            chances,
            best,
            run.fates,
            self.worth,
            run.policy.by_id,
            explored,
            lots,
            settings.epsilon,
            -1.0 if share is None else share,
            self.values.expected_profit,
            run.policy.fates.by_arm[arm.codes],
            small[b.OUTRANKED],
            small[b.NOT_DRAWN],
            small[b.NOTHING_TO_GAIN],
        )
        return Choice(chosen, probability, chances, best, [])

    def _why_not(self, running: Floats, chosen: Ints) -> npt.NDArray[np.int16]:
        """Why the offers that could have been chosen were not, customers × offers."""
        small, arm = self.run.policy.fates.small, self.lottery.arm
        outranked: np.int16 | npt.NDArray[np.int16] = small[b.OUTRANKED]
        by_propensity = arm.among(holdout.PROPENSITY_ONLY)
        if by_propensity is not None:
            outranked = np.where(by_propensity[:, None], small[b.LESS_LIKELY], outranked)
        behind = running <= _last(running, chosen)
        why = np.where(behind, outranked, small[b.NOT_DRAWN])
        if self.charge is not None or self.allotted is not None:
            # Better than the last offer of a full answer, or than none: others need it more, or
            # only chance kept it out.
            better = self.worth > _last(self.worth, chosen)
            kept = behind if self.allotted is None else behind | ~self.allotted
            why = np.where(better & kept, small[b.SCARCE], why)
        why = np.where(self.worth <= 0, small[b.NOTHING_TO_GAIN], why)
        random = arm.among(holdout.RANDOM_ELIGIBLE)
        return why if random is None else np.where(random[:, None], small[b.NOT_DRAWN], why)

    def _in_order(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same with the offers in the order of their ids."""
        order = self.run.policy.order
        return values if order is None else values[:, order]

    def _left_to_chance(self, limit: int) -> tuple[Chances, Floats | None]:
        """Return the probabilities of a slot, and the lots that are drawn for each decision."""
        tables, lottery = self.run.policy.policy.tables, self.lottery
        random = lottery.arm.among(holdout.RANDOM_ELIGIBLE)
        drawn = None if random is None else np.flatnonzero(random)
        explored, everybody = self._explored()
        lots = None
        if everybody:
            lots = lottery.lots(str(tables.exploration.salt), None, limit)
        elif drawn is not None or explored is not None:
            lots = np.zeros((len(self.worth), limit))
            for rows, salt in ((drawn, tables.arms.salt), (explored, tables.exploration.salt)):
                if rows is not None:
                    lots[rows] = lottery.lots(str(salt), rows, limit)
        explorer = None
        if everybody or explored is not None:
            explorer = self._explorer(explored)
        allotted = None
        if self.allotted is not None:
            allotted = self._in_order(self.allotted)

        def chances(running: Floats, leader: Ints) -> Floats:
            if everybody and explorer is not None:
                return explorer.chances(running, leader)
            if allotted is None:
                vector = greedy(running, leader)
            else:
                vector = greedy(np.where(allotted, running, -np.inf))
            if drawn is not None:
                vector[drawn] = uniform(running[drawn])
            if explorer is not None:
                vector[explored] = explorer.chances(running[explored], leader[explored])
            return vector

        return chances, lots

    def _explored(self) -> tuple[npt.NDArray[np.intp] | None, bool]:
        """Rows of the customers for whom the policy explores (None: nobody), or that all are."""
        if self.run.policy.policy.tables.exploration.policy == "greedy":
            return None, False
        apart = self.lottery.arm.among(*holdout.WAYS_OF_THEIR_OWN)
        if apart is None and self.run.known is None:
            return None, True
        known = self.run.audience.known
        rows = np.flatnonzero(known if apart is None else known & ~apart)
        return (rows if rows.size else None), False

    def _explorer(self, rows: npt.NDArray[np.intp] | None) -> Explorer:
        """What exploring needs to know of some customers (None: of all)."""
        settings = self.run.policy.policy.tables.exploration
        values, shape = self.values, self.run.fates.shape

        def of(amounts: Floats) -> Floats:
            # What is unknown belongs to offers that are out of the running.
            known = np.where(np.isfinite(amounts), amounts, 0.0)
            known = known if known.shape == shape else np.broadcast_to(known, shape)
            return self._in_order(known if rows is None else known[rows])

        ids = self.run.catalogue.offer_ids
        order = self.run.policy.order
        ids = ids if order is None else tuple(ids[i] for i in order)
        stopped = np.zeros(len(ids), dtype=bool)
        if self.lottery.stopped:
            stopped[:] = [name in self.lottery.stopped for name in ids]
        # What exploring takes from others is a loss, too.
        charge = None if self.charge is None else of(self.charge)
        profit = of(values.expected_profit)
        profit = profit if charge is None else profit - charge
        possible = earnings = None
        if settings.policy == "thompson" or settings.loss_budget is not None:
            earns = Earnings.of(values)
            earnings = Earnings(of(earns.ignored), of(earns.answered))
        if settings.policy == "thompson" and earnings is not None:
            counts = [self.lottery.offer_counts.get(name, OfferCounts()) for name in ids]
            multiplier = of(values.lever * values.context_weight)
            plain = self.lottery.arm.among(holdout.NO_LEVERS)
            if plain is not None:
                no_levers = (plain if rows is None else plain[rows])[:, None]
                multiplier = np.where(no_levers, of(values.context_weight), multiplier)
            possible = beliefs(
                of(self.run.audience.propensity),
                np.array([c.strength(settings.prior_strength) for c in counts]),
                np.array([c.rate(settings.prior_strength) for c in counts]),
                of(values.margin - values.incentive_cost),
                earnings.ignored,
                multiplier,
            )
            if charge is not None:
                possible -= charge[:, :, None]
        return Explorer(settings, profit, stopped, possible, earnings)

    def _pools(self, counts: Sequence[Counts]) -> list[tuple[tuple[str, str], Pool]]:
        """What several offers of one answer share: their exclusivity group, and each cap's rest."""
        policy, n = self.run.policy, len(self.worth)
        member = policy.groups["exclusivity_group"]
        ones = np.ones((n, int(member.max(initial=0)) + 1), dtype=np.int64)
        pools = [(b.SAME_GROUP, Pool(member, ones))]
        for counted in counts:
            if counted.limit.form == "cap" and counted.limit.kind == "contact":
                pools.append((b.NO_CONTACT_LEFT, Pool(counted.pool, counted.left())))
        at_most = policy.policy.tables.arbitration.at_most_per_category
        if at_most is not None:
            category = policy.groups["category"]
            slots = np.full((n, int(category.max(initial=0)) + 1), at_most)
            pools.append((b.CATEGORY_FULL, Pool(category, slots)))
        return pools


def _scores(run: Steps, values: Values, arm: Assigned) -> Floats:
    """What offers compete on, customers × offers, in each customer's arm."""
    by_chance, plain = arm.among(holdout.PROPENSITY_ONLY), arm.among(holdout.NO_LEVERS)
    if by_chance is None and plain is None and run.known is None:
        return values.priority
    score = values.priority.copy()
    if by_chance is not None:
        score[by_chance] = run.audience.propensity[by_chance]
    if plain is not None:
        score[plain] = weigh(values.objective, values.context_weight)[plain]
    if run.known is not None:
        # The fallback list is a ranking in itself: nothing is known to compare offers by.
        rank = np.full(score.shape[1], -np.inf)
        rank[run.policy.fallback] = np.arange(len(run.policy.fallback), 0, -1)
        score[~run.audience.known] = rank
    return score


def _charge(run: Steps, values: Values, arm: Assigned, prices: Prices) -> Floats:
    """What each offer takes from others; nothing where the choice does not go by value."""
    charged = np.broadcast_to(prices.charge(values.expected_cost), run.fates.shape)
    free, apart = ~run.audience.known, arm.among(*holdout.WAYS_OF_THEIR_OWN)
    free = free if apart is None else free | apart
    # Where the cost is unknown the offer is out of the running anyway.
    return np.where(free[:, None] | ~np.isfinite(charged), 0.0, charged)


def _last(amounts: Floats, chosen: Ints) -> Floats:
    """(n, 1) the amount of the last offer of a full answer; 0 where a slot is left."""
    last = amounts[np.arange(len(amounts)), chosen[:, -1]]
    return np.where(chosen[:, -1] < 0, 0.0, last)[:, None]


def as_made(
    choice: Choice, kept_back: npt.NDArray[np.bool_] | None
) -> tuple[Ints, Floats, Floats, Floats]:
    """Return what is really done, and its probabilities: who is held out surely gets no offer.

    Parameters
    ----------
    kept_back: (n,) who is held out; None where nobody is.

    Returns
    -------
    chosen, selection_probability, end_probability, probabilities: as `engine.Decisions` has them.
    """
    made = choice.chosen >= 0
    n, limit = made.shape
    probability = choice.probability
    if limit == 1:
        end = probability[:, 0].copy()
    else:
        end = probability[np.arange(n), np.minimum(made.sum(axis=1), limit - 1)]
        probability = np.where(made, probability, np.nan)
        probability[:, 0] = choice.probability[:, 0]
    end[made[:, -1]] = 1.0  # no slot was left
    if kept_back is None:
        return choice.chosen, probability, end, choice.chances
    end[kept_back] = 1.0
    probability = probability.copy()
    probability[kept_back] = np.nan
    probability[kept_back, 0] = 1.0
    chances = choice.chances.copy()
    chances[kept_back] = 0.0
    chances[kept_back, -1] = 1.0
    return np.where(kept_back[:, None], -1, choice.chosen), probability, end, chances
