"""What is said of each decision: the offers with their numbers and reasons, or why there is none.

What all customers share is looked up once, so that writing one answer is a matter of a few items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.frame import utc
from nextbest.decide.holdout import POLICY, PROPENSITY_ONLY, RANDOM_ELIGIBLE
from nextbest.decide.unmade import NoOfferReasons
from nextbest.decide.words import written_time

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
        self._chosen: list[list[int]] = decisions.chosen.tolist()
        self._moment = utc(decisions.situation.decided_at)
        values = decisions.values
        self._propensity = _reader(decisions.audience.propensity)
        self._profit, self._priority = _reader(values.expected_profit), _reader(values.priority)
        self._money = [_reader(getattr(values, name)) for name in _MONEY]
        self._chance = _reader(decisions.selection_probability)

    def of(self, row: int) -> dict[str, Any]:
        """The answer to one customer, JSON-able; ``no_offer_reasons`` says why none is made."""
        answer = self.head(row)
        answer["offers"] = offers = self.offers(row)
        answer["no_offer_reasons"] = [] if offers else self._no_offer_reasons.of(row)
        return answer

    @cached_property
    def _no_offer_reasons(self) -> NoOfferReasons:
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
        offers = self.decisions.catalogue.catalogue.offers
        made = [(slot, offer) for slot, offer in enumerate(self._chosen[row]) if offer >= 0]
        return [
            {
                "offer_id": offers[offer].id,
                "name": offers[offer].name,
                "rank": rank,
                "propensity": _finite(self._propensity(row, offer)),
                "expected_profit": _finite(self._profit(row, offer)),
                "priority": _finite(self._priority(row, offer)),
                "selection_probability": self._chance(row, slot),
                "reasons": self._why(row, offer, slot),
            }
            for rank, (slot, offer) in enumerate(made, start=1)
        ]

    def _why(self, row: int, offer: int, slot: int) -> list[str]:
        """In plain words, why an offer is made."""
        if not self._known[row]:
            return ["nothing is known about this customer: the fallback list decides"]
        reasons = [
            f"{self._propensity(row, offer):.1%} chance of a response{self._within(offer)}",
            self._money_in_words(row, offer),
        ]
        policy = self.decisions.policy
        for until, lever in self._levers[offer]:
            if self._moment < until:
                reasons.append(lever)
        if self._charge is not None:
            charge = self._charge.item(row, offer)
            if charge > 0:
                price = f"scarcity price {charge:.2f}"
                reasons.append(f"{price}: what others would gain from it; priority is less that")
        for number in policy.weights_by_offer[offer]:
            if self.decisions.context_holds[number].item(row, offer):
                weight, _, _ = policy.context_weights[number]
                reasons.append(f'context weight "{weight.name}" × {weight.multiplier:g}')
        return reasons + self._choice(row, offer, slot)

    def _money_in_words(self, row: int, offer: int) -> str:
        margin, incentive, contact_cost, kept, rate = [read(row, offer) for read in self._money]
        said = (
            f"expected profit {self._profit(row, offer):.2f}: margin {margin:.2f}"
            f" less incentive {incentive:.2f} per response, less {contact_cost:.2f} to contact"
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

    def _choice(self, row: int, offer: int, slot: int) -> list[str]:
        """How an offer was chosen: against which others, in which arm, with which probability."""
        arm = self._arm[row]
        drawn = f"drawn with a probability of {self._chance(row, slot):.1%}"
        if arm == RANDOM_ELIGIBLE:
            return [f"arm {arm}: {drawn}, whatever it is worth"]
        reasons = [self._against_the_next(row, offer)]
        if arm != POLICY:
            reasons = [f"arm {arm}", *reasons]
        how = self.decisions.policy.policy.tables.exploration.policy
        if how != "greedy" and arm != PROPENSITY_ONLY:
            reasons.append(f"{drawn} ({how})")
        return reasons

    def _against_the_next(self, row: int, offer: int) -> str:
        best, positions = self._runners_up
        worth, position = best[row], positions[row]
        if position < 0:
            fates = self.decisions.policy.fates
            if fates.limited[self.decisions.fates[row]].any():
                return "no other offer would earn anything of which there is enough for all"
            return "no other offer that may be made would earn anything"
        name = "propensity" if self._arm[row] == PROPENSITY_ONLY else "priority"
        own = self._worth.item(row, offer)
        other = "next" if worth <= own else "better, but not drawn,"
        offer_id = self.decisions.catalogue.offer_ids[position]
        return f"{name} {own:.2f}; {other} is offer {offer_id} at {worth:.2f}"

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
    def _charge(self) -> npt.NDArray[np.float64] | None:
        """(n, m) scarcity prices, 0 for customers who do not pay them; None without any."""
        prices = self.decisions.prices
        if prices is None:
            return None
        of = self.decisions
        costs = np.broadcast_to(of.values.expected_cost, of.fates.shape)
        return np.where(of.pays[:, None], prices.charge(costs), 0.0)


def _reader(values: npt.NDArray[Any]) -> Callable[[int, int], Any]:
    """Read one number of a customer and an offer; ``values`` broadcast over all of them.

    Few numbers of each row are wanted, and one is read faster than an array is made of some.
    """
    item = values.item
    if len(values) > 1 and values.shape[1] > 1:
        return item
    # Whatever does not vary is read at position 0.
    by_row, by_column = int(len(values) > 1), int(values.shape[1] > 1)
    return lambda row, column: item(row * by_row, column * by_column)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lever(lever: Lever) -> str:
    return f"lever × {lever.multiplier:g} until {written_time(lever.until)}: {lever.reason}"


class Selections:
    """What the choices of some decisions were drawn from."""

    def __init__(self, decisions: Decisions) -> None:
        self._ids = decisions.catalogue.offer_ids
        self._policy = decisions.policy.policy.tables.exploration.policy
        self._arm: list[str] = decisions.arm.tolist()
        self._eligible, self._chances = decisions.eligible, decisions.probabilities
        self._end: list[float] = decisions.end_probability.tolist()
        self._would_choose: list[list[int]] = decisions.would_choose.tolist()

    def of(self, row: int) -> dict[str, Any]:
        """What one choice was drawn from; offers with a probability of 0 are left out.

        ``probabilities`` and ``no_offer`` are those of the first slot; ``end`` is the probability
        with which the answer ended after its last offer, where slots were left. Offers that a
        customer would have got without the holdout are under ``would_choose``.
        """
        ids, chances = self._ids, self._chances[row].tolist()
        return {
            "arm": self._arm[row],
            "policy": self._policy,
            "eligible": list(compress(ids, self._eligible[row].tolist())),
            # The last one is no offer, and has no name.
            "probabilities": dict(zip(compress(ids, chances), filter(None, chances), strict=False)),
            "no_offer": chances[-1],
            "end": self._end[row],
            "would_choose": [ids[j] for j in self._would_choose[row] if j >= 0],
        }
