"""What is said of each decision: the offers with their numbers and reasons, or why there is none.

Everything is looked up for all customers at once, so that writing one answer is a matter of a few
list items.
"""

from __future__ import annotations

import math
from datetime import datetime
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.arbitrate import in_cells
from nextbest.decide.frame import utc
from nextbest.decide.holdout import POLICY, PROPENSITY_ONLY, RANDOM_ELIGIBLE
from nextbest.decide.unmade import NoOfferReasons
from nextbest.decide.words import plain_list, written_time

if TYPE_CHECKING:
    from nextbest.decide.engine import Decisions
    from nextbest.decide.policy import Lever

__all__ = ["Answers", "Selections"]

# The numbers behind an offer's priority that its reasons name.
_MONEY = ("margin", "incentive_cost", "contact_cost", "retention_value", "baseline_rate")


class Answers:
    """The answers to all customers of some decisions."""

    def __init__(self, decisions: Decisions) -> None:
        self.decisions = decisions
        self._arm: list[str] = decisions.arm.tolist()
        self._known: list[bool] = decisions.audience.known.tolist()
        # Everything below is about the offers made, one customer after the other.
        self._rows, self._slots = np.nonzero(decisions.chosen >= 0)
        self._at = decisions.chosen[self._rows, self._slots]
        self._first: list[int] = np.searchsorted(self._rows, np.arange(len(self._arm) + 1)).tolist()
        self._offers: list[int] = self._at.tolist()
        self._moment = utc(decisions.situation.decided_at)

    def of(self, row: int) -> dict[str, Any]:
        """The answer to one customer, JSON-able; ``no_offer_reasons`` says why none is made."""
        offers = self.offers(row)
        return {
            **self.head(row),
            "offers": offers,
            "no_offer_reasons": self.no_offer_reasons.of(row),
        }

    @cached_property
    def no_offer_reasons(self) -> NoOfferReasons:
        """Why those who get no offer get none."""
        return NoOfferReasons(self.decisions)

    def head(self, row: int) -> dict[str, Any]:
        """Who was decided for, when and how."""
        return {
            "decision_id": self.decisions.decision_ids[row],
            "customer_id": self.decisions.audience.customer_ids[row],
            "decided_at": self.decisions.decided_at,
            "arm": self._arm[row],
            "known_customer": self._known[row],
            "profile_stale": self.decisions.profile_stale,
        }

    def offers(self, row: int) -> list[dict[str, Any]]:
        """The offers made to one customer, best first."""
        first, last = self._first[row], self._first[row + 1]
        if first == last:
            return []
        offers = self.decisions.catalogue.catalogue.offers
        propensity, profit, priority, probability = self._numbers
        return [
            {
                "offer_id": offers[self._offers[i]].id,
                "name": offers[self._offers[i]].name,
                "rank": i - first + 1,
                "propensity": propensity[i],
                "expected_profit": profit[i],
                "priority": priority[i],
                "selection_probability": probability[i],
                "reasons": self._why(row, i),
            }
            for i in range(first, last)
        ]

    def _each(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One number of each offer made; ``values`` broadcast over customers × offers."""
        return in_cells(values, self._rows, self._at)

    @cached_property
    def _numbers(self) -> tuple[list[Any], list[Any], list[Any], list[float]]:
        """Propensity, expected profit, priority and selection probability."""
        of = self.decisions
        values = (of.audience.propensity, of.values.expected_profit, of.values.priority)
        propensity, profit, priority = (plain_list(self._each(one)) for one in values)
        chances = of.selection_probability[self._rows, self._slots].tolist()
        return propensity, profit, priority, chances

    @cached_property
    def _money(self) -> list[tuple[float, ...]]:
        values = [self._each(getattr(self.decisions.values, name)).tolist() for name in _MONEY]
        return list(zip(*values, strict=True))

    def _why(self, row: int, i: int) -> list[str]:
        """In plain words, why an offer is made."""
        if not self._known[row]:
            return ["nothing is known about this customer: the fallback list decides"]
        offer = self._offers[i]
        propensity, profit, _, _ = self._numbers
        reasons = [
            f"{propensity[i]:.1%} chance of a response{self._within(offer)}",
            self._money_in_words(profit[i], i),
        ]
        policy = self.decisions.policy
        for until, lever in self._levers[offer]:
            if self._moment < until:
                reasons.append(lever)
        if self._price is not None and self._price[i] > 0:
            price = f"scarcity price {self._price[i]:.2f}"
            reasons.append(f"{price}: what others would gain from it; priority is less that")
        for number in policy.weights_by_offer[offer]:
            if self._weighs[number][i]:
                weight, _, _ = policy.context_weights[number]
                reasons.append(f'context weight "{weight.name}" × {weight.multiplier:g}')
        return reasons + self._choice(row, i)

    def _money_in_words(self, profit: float, i: int) -> str:
        margin, incentive, contact_cost, kept, rate = self._money[i]
        said = (
            f"expected profit {profit:.2f}: margin {margin:.2f} less incentive {incentive:.2f}"
            f" per response, less {contact_cost:.2f} to contact"
        )
        if rate:
            said += f", less {rate * margin:.2f} of margin that would come anyway"
        return f"{said}, plus {kept:.2f} for keeping the customer" if kept else said

    def _within(self, offer: int) -> str:
        """How long the customer can respond: the offer's window, or less where it ends before."""
        details = self.decisions.catalogue.catalogue.offers[offer]
        days = details.response_window_days
        if details.ends_at is not None:
            left = math.ceil((utc(details.ends_at) - self._moment).total_seconds() / 86_400)
            days = min(days, left) if days else left
        return "" if days is None else f" within {days} days"

    @cached_property
    def _levers(self) -> list[list[tuple[datetime, str]]]:
        """The levers of each offer, in words and until when."""
        policy = self.decisions.policy
        if "levers" not in policy.notes:
            policy.notes["levers"] = [
                [(one.until, _lever(one)) for one in levers] for levers in policy.levers_by_offer
            ]
        levers: list[list[tuple[datetime, str]]] = policy.notes["levers"]
        return levers

    @cached_property
    def _weighs(self) -> list[list[bool]]:
        """For each context weight, whether it holds for each offer made."""
        return [self._each(holds).tolist() for holds in self.decisions.context_holds]

    def _choice(self, row: int, i: int) -> list[str]:
        """How an offer was chosen: against which others, in which arm, with which probability."""
        arm = self._arm[row]
        drawn = f"drawn with a probability of {self._numbers[3][i]:.1%}"
        if arm == RANDOM_ELIGIBLE:
            return [f"arm {arm}: {drawn}, whatever it is worth"]
        reasons = [self._against_the_next(row, i)]
        if arm != POLICY:
            reasons = [f"arm {arm}", *reasons]
        how = self.decisions.policy.policy.tables.exploration.policy
        if how != "greedy" and arm != PROPENSITY_ONLY:
            reasons.append(f"{drawn} ({how})")
        return reasons

    def _against_the_next(self, row: int, i: int) -> str:
        best, positions = self._runners_up
        worth, position = best[row], positions[row]
        if position < 0:
            fates = self.decisions.policy.fates
            if fates.limited[self.decisions.fates[row]].any():
                return "no other offer would earn anything of which there is enough for all"
            return "no other offer that may be made would earn anything"
        name = "propensity" if self._arm[row] == PROPENSITY_ONLY else "priority"
        own = self._own_worth[i]
        other = "next" if worth <= own else "better, but not drawn,"
        offer_id = self.decisions.catalogue.offer_ids[position]
        return f"{name} {own:.2f}; {other} is offer {offer_id} at {worth:.2f}"

    @cached_property
    def _own_worth(self) -> list[float]:
        own: list[float] = self._worth[self._rows, self._at].tolist()
        return own

    @cached_property
    def _runners_up(self) -> tuple[list[float], list[int]]:
        """For each customer what the best of the offers that lost competed on; -1 for none."""
        of, order = self.decisions, self.decisions.policy.order
        behind = np.where(of.policy.fates.lost[of.fates], self._worth, -np.inf)
        behind = behind if order is None else behind[:, order]
        first = behind.argmax(axis=1)
        best = behind[np.arange(len(first)), first]
        position = np.where(np.isfinite(best), first if order is None else order[first], -1)
        return best.tolist(), position.tolist()

    @cached_property
    def _worth(self) -> npt.NDArray[np.float64]:
        """(n, m) what offers competed on in each customer's arm, less what scarcity charged."""
        worth = self.decisions.worth
        return worth if self._charge is None else worth - self._charge

    @cached_property
    def _price(self) -> list[float] | None:
        """What scarcity charged for each offer made."""
        return None if self._charge is None else self._each(self._charge).tolist()

    @cached_property
    def _charge(self) -> npt.NDArray[np.float64] | None:
        """(n, m) scarcity prices, 0 for customers who do not pay them; None without any."""
        prices = self.decisions.prices
        if prices is None:
            return None
        of = self.decisions
        costs = np.broadcast_to(of.values.expected_cost, of.fates.shape)
        return np.where(of.pays[:, None], prices.charge(costs), 0.0)


def _lever(lever: Lever) -> str:
    return f"lever × {lever.multiplier:g} until {written_time(lever.until)}: {lever.reason}"


class Selections:
    """What the choices of some decisions were drawn from."""

    def __init__(self, decisions: Decisions) -> None:
        self._ids = decisions.catalogue.offer_ids
        self._policy = decisions.policy.policy.tables.exploration.policy
        self._arm: list[str] = decisions.arm.tolist()
        self._eligible: list[list[bool]] = decisions.eligible.tolist()
        # The last of the probabilities is that of no offer.
        self._chances: list[list[float]] = decisions.probabilities[:, :-1].tolist()
        self._none: list[float] = decisions.probabilities[:, -1].tolist()
        self._end: list[float] = decisions.end_probability.tolist()
        self._would_choose: list[list[int]] = decisions.would_choose.tolist()

    def of(self, row: int) -> dict[str, Any]:
        """What one choice was drawn from; offers with a probability of 0 are left out.

        ``probabilities`` and ``no_offer`` are those of the first slot; ``end`` is the probability
        with which the answer ended after its last offer, where slots were left. Offers that a
        customer would have got without the holdout are under ``would_choose``.
        """
        ids, chances = self._ids, self._chances[row]
        return {
            "arm": self._arm[row],
            "policy": self._policy,
            "eligible": list(compress(ids, self._eligible[row])),
            "probabilities": dict(zip(compress(ids, chances), filter(None, chances), strict=True)),
            "no_offer": self._none[row],
            "end": self._end[row],
            "would_choose": [ids[j] for j in self._would_choose[row] if j >= 0],
        }
