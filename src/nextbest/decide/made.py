"""What is said of the offers that are made: their numbers, and in words why each was chosen.

One kind of reason after the other is said of all offers of a group, as one customer has but few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nextbest.decide.frame import utc
from nextbest.decide.holdout import POLICY, PROPENSITY_ONLY, RANDOM_ELIGIBLE
from nextbest.decide.words import written_time

if TYPE_CHECKING:
    from nextbest.decide.bound import BoundPolicy
    from nextbest.decide.engine import Decisions
    from nextbest.decide.policy import Lever

__all__ = ["OffersMade"]

# Numbers behind an offer's priority that its reasons name.
_MONEY = ("margin", "incentive_cost", "contact_cost", "retention_value", "baseline_rate")
_STRANGER = "nothing is known about this customer: the fallback list decides"


class OffersMade:
    """The offers that some decisions make, with their numbers and reasons.

    All k of them stand in columns, customer by customer, best first.
    """

    def __init__(self, decisions: Decisions) -> None:
        self._of = decisions
        self._moment = utc(decisions.situation.decided_at)
        self._arm: list[str] = decisions.arm.tolist()
        n, m = decisions.fates.shape
        rows, slots = (decisions.chosen >= 0).nonzero()
        offers = decisions.chosen[rows, slots]
        # Where their numbers are in an array that broadcasts over customers × offers.
        self._cells = {(1, 1): 0 * rows, (n, 1): rows, (1, m): offers, (n, m): rows * m + offers}
        self._rows: list[int] = rows.tolist()
        self._offers: list[int] = offers.tolist()
        self._named = _named(decisions.policy)
        self._probability: list[float] = decisions.selection_probability[rows, slots].tolist()
        self._propensity = self._column(decisions.audience.propensity)
        self._profit = self._column(decisions.values.expected_profit)

    def of(self, row: int) -> list[dict[str, Any]]:
        """The offers made to one customer, best first, JSON-able."""
        return [
            {
                "offer_id": offer_id,
                "name": name,
                "rank": rank,
                "propensity": propensity,
                "expected_profit": profit,
                "priority": priority,
                "selection_probability": probability,
                "reasons": [*reasons],
            }
            for rank, (offer_id, name, propensity, profit, priority, probability, reasons)
            in enumerate(self._told[row], start=1)
        ]  # fmt: skip

    @cached_property
    def _told(self) -> list[list[tuple[Any, ...]]]:
        """For each customer what is told of each offer."""
        named = [self._named[offer] for offer in self._offers]
        columns = zip(
            [one.id for one in named],
            [one.name for one in named],
            _finite(self._propensity),
            _finite(self._profit),
            _finite(self._column(self._of.values.priority)),
            self._probability,
            self._reasons(),
            strict=True,
        )
        told: list[list[tuple[Any, ...]]] = [[] for _ in range(len(self._of))]
        for row, one in zip(self._rows, columns, strict=True):
            told[row].append(one)
        return told

    def _column(self, values: npt.NDArray[Any]) -> list[Any]:
        """The offers' numbers; ``values`` broadcast over customers × offers."""
        found: list[Any] = values.take(self._cells[values.shape]).tolist()
        return found

    def _reasons(self) -> list[list[str]]:
        """In plain words, why each offer is made."""
        reasons = self._responses()
        self._say_what_it_earns(reasons)
        self._say_what_weighs(reasons)
        self._say_how_chosen(reasons)
        known: list[bool] = self._of.audience.known.tolist()
        for at, row in enumerate(self._rows):
            if not known[row]:
                reasons[at] = [_STRANGER]
        return reasons

    def _responses(self) -> list[list[str]]:
        """How likely a response is, and within how many days: the first reason of each offer."""
        named = [self._named[offer] for offer in self._offers]
        within = [
            one.window if one.ends_at is None else one.until(one.ends_at - self._moment)
            for one in named
        ]
        return [
            [f"{propensity:.1%} chance of a response{said}"]
            for propensity, said in zip(self._propensity, within, strict=True)
        ]

    def _say_what_it_earns(self, reasons: Sequence[list[str]]) -> None:
        """What each offer's expected profit is made of."""
        columns = [self._column(getattr(self._of.values, name)) for name in _MONEY]
        for said, profit, margin, incentive, contact_cost, kept, rate in zip(
            reasons, self._profit, *columns, strict=True
        ):
            money = (
                f"expected profit {profit:.2f}: margin {margin:.2f}"
                f" less incentive {incentive:.2f} per response, less {contact_cost:.2f} to contact"
            )
            if rate:
                money += f", less {rate * margin:.2f} of margin that would come anyway"
            said.append(f"{money}, plus {kept:.2f} for keeping the customer" if kept else money)

    def _say_what_weighs(self, reasons: Sequence[list[str]]) -> None:
        """What else moves each offer's priority: levers, scarcity prices and context weights."""
        charged = None if self._charge is None else self._column(self._charge)
        for at, offer in enumerate(self._offers):
            named = self._named[offer]
            for until, lever in named.levers:
                if self._moment < until:
                    reasons[at].append(lever)
            if charged is not None and charged[at] > 0:
                price = f"scarcity price {charged[at]:.2f}"
                said = f"{price}: what others would gain from it; priority is less that"
                reasons[at].append(said)
            for number, weight in named.weights:
                if self._holds[number][at]:
                    reasons[at].append(weight)

    @cached_property
    def _holds(self) -> list[list[bool]]:
        """For each context weight, whether its condition holds for each offer."""
        get = self._of.frame.lookup(slice(None))
        weights = self._of.policy.context_weights
        return [self._column(np.atleast_2d(rule.satisfied(get))) for _, rule, _ in weights]

    def _say_how_chosen(self, reasons: Sequence[list[str]]) -> None:
        """Against which others, in which arm, and with which probability each was chosen."""
        how = self._of.policy.policy.tables.exploration.policy
        worth = self._column(self._worth)
        for said, row, probability, own in zip(
            reasons, self._rows, self._probability, worth, strict=True
        ):
            arm = self._arm[row]
            if arm == RANDOM_ELIGIBLE:
                drawn = f"drawn with a probability of {probability:.1%}"
                said.append(f"arm {arm}: {drawn}, whatever it is worth")
                continue
            if arm != POLICY:
                said.append(f"arm {arm}")
            said.append(self._against_the_next(row, own))
            if how != "greedy" and arm != PROPENSITY_ONLY:
                said.append(f"drawn with a probability of {probability:.1%} ({how})")

    def _against_the_next(self, row: int, own: float) -> str:
        best, positions = self._runners_up
        worth = best[row]
        if not math.isfinite(worth):
            fates = self._of.policy.fates
            if fates.limited[self._of.fates[row]].any():
                return "no other offer would earn anything of which there is enough for all"
            return "no other offer that may be made would earn anything"
        name = "propensity" if self._arm[row] == PROPENSITY_ONLY else "priority"
        other = "next" if worth <= own else "better, but not drawn,"
        offer_id = self._named[positions[row]].id
        return f"{name} {own:.2f}; {other} is offer {offer_id} at {worth:.2f}"

    @cached_property
    def _runners_up(self) -> tuple[list[float], list[int]]:
        """For each customer what the best of the offers that lost competed on; -inf for none."""
        of, order = self._of, self._of.policy.order
        behind = np.where(of.policy.fates.lost.take(of.fates), self._worth, -np.inf)
        behind = behind if order is None else behind[:, order]
        first = behind.argmax(axis=1)
        best = behind[np.arange(len(first)), first]
        return best.tolist(), (first if order is None else order[first]).tolist()

    @cached_property
    def _worth(self) -> npt.NDArray[np.float64]:
        """(n, m) what offers competed on in each customer's arm, less what scarcity charged."""
        worth = self._of.worth
        return worth if self._charge is None else worth - self._charge

    @cached_property
    def _charge(self) -> npt.NDArray[np.float64] | None:
        """(n, m) scarcity prices, 0 for customers who do not pay them; None without any."""
        of = self._of
        if of.prices is None:
            return None
        costs = np.broadcast_to(of.values.expected_cost, of.fates.shape)
        return np.where(of.pays[:, None], of.prices.charge(costs), 0.0)


class _Named(NamedTuple):
    """What the answers of a policy say of an offer, whoever gets it.

    Parameters
    ----------
    days, window: within how many days a customer can respond, and the same in words.
    ends_at: when the offer ends, in UTC.
    levers: until when each holds, and its words.
    weights: numbers of the context weights that the offer may have, and their words.
    """

    id: str
    name: str
    days: int | None
    window: str
    ends_at: datetime | None
    levers: list[tuple[datetime, str]]
    weights: list[tuple[int, str]]

    def until(self, end: timedelta) -> str:
        """How long a customer can respond where the offer may end before its window does."""
        left = math.ceil(end.total_seconds() / 86_400)
        return _within(min(self.days, left) if self.days else left)


def _named(policy: BoundPolicy) -> list[_Named]:
    """What is said of each offer, put together once."""
    if "named" not in policy.notes:
        weights = [
            f'context weight "{one.name}" × {one.multiplier:g}'
            for one, _, _ in policy.context_weights
        ]
        offers = policy.catalogue.catalogue.offers
        policy.notes["named"] = [
            _Named(
                offer.id,
                offer.name,
                offer.response_window_days,
                _within(offer.response_window_days),
                None if offer.ends_at is None else utc(offer.ends_at),
                [(lever.until, _lever(lever)) for lever in levers],
                [(number, weights[number]) for number in numbers],
            )
            for offer, levers, numbers in zip(
                offers, policy.levers_by_offer, policy.weights_by_offer, strict=True
            )
        ]
    named: list[_Named] = policy.notes["named"]
    return named


def _within(days: int | None) -> str:
    return "" if days is None else f" within {days} days"


def _lever(lever: Lever) -> str:
    return f"lever × {lever.multiplier:g} until {written_time(lever.until)}: {lever.reason}"


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
