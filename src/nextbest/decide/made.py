"""What is said of the offers that are made: their numbers, and in words why each was chosen.

Each kind of reason is written for all offers of a group in one go: one customer has but few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
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
_STRANGER = ("nothing is known about this customer: the fallback list decides",)


class OffersMade:
    """The offers that some decisions make.

    What is told of them stands in columns: k offers, customer by customer, best first.
    """

    def __init__(self, decisions: Decisions) -> None:
        self._of = decisions
        self._named = _named(decisions.policy)
        n, m = decisions.fates.shape
        at, slots = (decisions.chosen >= 0).nonzero()
        offers = decisions.chosen[at, slots]
        # Where in an array that broadcasts over customers × offers the offers' numbers are.
        self._cells = {(1, 1): at * 0, (n, 1): at, (1, m): offers, (n, m): at * m + offers}
        self._rows: list[int] = at.tolist()
        self._offers: list[int] = offers.tolist()
        self._drawn: list[float] = decisions.selection_probability[at, slots].tolist()
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
            self._drawn,
            self._reasons(),
            strict=True,
        )
        told: list[list[tuple[Any, ...]]] = [[] for _ in range(len(self._of))]
        for row, one in zip(self._rows, columns, strict=True):
            told[row].append(one)
        return told

    def _column(self, values: npt.NDArray[Any]) -> list[Any]:
        """(k,) the offers' numbers; ``values`` broadcast over customers × offers."""
        found: list[Any] = values.take(self._cells[values.shape]).tolist()
        return found

    def _reasons(self) -> Iterator[Sequence[str]]:
        """In plain words, why each offer is made."""
        known: list[bool] = self._of.audience.known.tolist()
        written = zip(
            self._rows,
            self._responses(),
            self._money(),
            self._weights(),
            self._choices(),
            strict=True,
        )
        for row, response, money, weights, choice in written:
            yield (response, money, *weights, *choice) if known[row] else _STRANGER

    def _responses(self) -> Iterator[str]:
        """How likely a response is, and how long the customer has: the window, or until the end."""
        moment = utc(self._of.situation.decided_at)
        for offer, propensity in zip(self._offers, self._propensity, strict=True):
            days, ends_at = self._named[offer].window
            if ends_at is not None:
                left = math.ceil((ends_at - moment).total_seconds() / 86_400)
                days = min(days, left) if days else left
            within = "" if days is None else f" within {days} days"
            yield f"{propensity:.1%} chance of a response{within}"

    def _money(self) -> Iterator[str]:
        """What each offer's expected profit is made of."""
        columns = [self._column(getattr(self._of.values, name)) for name in _MONEY]
        written = zip(self._profit, *columns, strict=True)
        for profit, margin, incentive, contact_cost, kept, rate in written:
            said = (
                f"expected profit {profit:.2f}: margin {margin:.2f}"
                f" less incentive {incentive:.2f} per response, less {contact_cost:.2f} to contact"
            )
            if rate:
                said += f", less {rate * margin:.2f} of margin that would come anyway"
            yield f"{said}, plus {kept:.2f} for keeping the customer" if kept else said

    def _weights(self) -> Iterator[Sequence[str]]:
        """What else moves each offer's priority: levers, scarcity prices and context weights."""
        moment = utc(self._of.situation.decided_at)
        charged = [0.0] * len(self._rows) if self._charge is None else self._column(self._charge)
        for row, offer, charge in zip(self._rows, self._offers, charged, strict=True):
            said = []
            for until, lever in self._named[offer].levers:
                if moment < until:
                    said.append(lever)
            if charge > 0:
                price = f"scarcity price {charge:.2f}"
                said.append(f"{price}: what others would gain from it; priority is less that")
            for number, weight in self._named[offer].weights:
                if self._of.context_holds[number].item(row, offer):
                    said.append(weight)
            yield said

    def _choices(self) -> Iterator[Sequence[str]]:
        """How each was chosen: against which others, in which arm, with which probability."""
        how = self._of.policy.policy.tables.exploration.policy
        arms: list[str] = self._of.arm.tolist()
        for row, probability, against in zip(
            self._rows, self._drawn, self._against_the_next(arms), strict=True
        ):
            arm = arms[row]
            if arm == RANDOM_ELIGIBLE:
                drawn = f"drawn with a probability of {probability:.1%}"
                yield (f"arm {arm}: {drawn}, whatever it is worth",)
                continue
            said = [against] if arm == POLICY else [f"arm {arm}", against]
            if how != "greedy" and arm != PROPENSITY_ONLY:
                said.append(f"drawn with a probability of {probability:.1%} ({how})")
            yield said

    def _against_the_next(self, arms: Sequence[str]) -> Iterator[str]:
        """What each offer competed on, against the best of those that the customer does not get."""
        best, positions = self._runners_up()
        for row, own in zip(self._rows, self._column(self._worth), strict=True):
            worth = best[row]
            if not math.isfinite(worth):
                yield self._nothing_next(row)
                continue
            name = "propensity" if arms[row] == PROPENSITY_ONLY else "priority"
            other = "next" if worth <= own else "better, but not drawn,"
            offer_id = self._named[positions[row]].id
            yield f"{name} {own:.2f}; {other} is offer {offer_id} at {worth:.2f}"

    def _nothing_next(self, row: int) -> str:
        fates = self._of.policy.fates
        if fates.limited[self._of.fates[row]].any():
            return "no other offer would earn anything of which there is enough for all"
        return "no other offer that may be made would earn anything"

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
    window: within how many days a customer can respond, and when the offer ends.
    levers: until when each holds, and its words.
    weights: numbers of the context weights that the offer may have, and their words.
    """

    id: str
    name: str
    window: tuple[int | None, datetime | None]
    levers: list[tuple[datetime, str]]
    weights: list[tuple[int, str]]


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
                (offer.response_window_days, offer.ends_at and utc(offer.ends_at)),
                [(lever.until, _lever(lever)) for lever in levers],
                [(number, weights[number]) for number in numbers],
            )
            for offer, levers, numbers in zip(
                offers, policy.levers_by_offer, policy.weights_by_offer, strict=True
            )
        ]
    named: list[_Named] = policy.notes["named"]
    return named


def _lever(lever: Lever) -> str:
    return f"lever × {lever.multiplier:g} until {written_time(lever.until)}: {lever.reason}"


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
