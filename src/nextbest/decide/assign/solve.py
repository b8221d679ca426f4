"""Hand out scarce offers to the customers for whom they are worth most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nextbest.decide.assign import dual, exact
from nextbest.decide.assign.market import Market
from nextbest.decide.assign.prices import Prices, priced
from nextbest.decide.assign.problem import Problem
from nextbest.decide.assign.repair import best_first, drop, fill

__all__ = ["EXACT_PAIRS", "Assignment", "assign"]

# Pairs of customer and offer up to which HiGHS finds the best assignment itself, in seconds.
EXACT_PAIRS = 100_000


@dataclass(frozen=True)
class Assignment:
    """Who gets which offer, what that is worth, and how much better it could be at most.

    Parameters
    ----------
    chosen: (n, slots) positions of the offers, most valuable first; -1 for an empty slot.
    value: sum of the values of all offers made, in the shop's currency.
    upper_bound: no assignment within the limits is worth more.
    prices: what one more of everything scarce is worth, and what is used of it.
    method: "exact" (HiGHS over all pairs) or "prices" (Lagrangian prices, then repair).
    """

    chosen: npt.NDArray[np.int64]
    value: float
    upper_bound: float
    prices: Prices
    method: Literal["exact", "prices"]

    @property
    def gap(self) -> float:
        """The share (0-1) of the upper bound that may be missing."""
        return (self.upper_bound - self.value) / self.upper_bound if self.upper_bound else 0.0


def assign(problem: Problem, *, exact_pairs: int = EXACT_PAIRS) -> Assignment:
    """Choose the offers that are worth most in all within every limit; making none is allowed.

    The same problem always has the same answer. Of offers with the same value after prices, a
    customer gets the one with the smaller id; of customers with the same claim to something
    scarce, the one further up gets it.

    Parameters
    ----------
    problem: values, costs and constraints.
    exact_pairs: with no more pairs of customer and offer worth making, HiGHS finds the best
        assignment; with more, prices and repair find one whose gap is given.
    """
    market = Market.of(problem)
    pairs = int(np.count_nonzero(np.isfinite(market.value)))
    if pairs == 0:
        nothing = np.full((len(market), market.slots), -1, dtype=np.int64)
        return _assignment(problem, market, nothing, 0.0, np.zeros(len(market.limits)), "exact")
    if pairs <= exact_pairs:
        best = exact.solve(market)
        return _assignment(problem, market, best.chosen, best.bound, best.prices, "exact")
    found = dual.minimise(market)
    chosen = market.mixture(found.points, _turns(len(market), found.weights))
    chosen = fill(market, drop(market, chosen, found.prices), found.prices)
    return _assignment(problem, market, chosen, found.bound, found.prices, "prices")


def _turns(n: int, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Deal n customers to the price lists by weight, evenly along any stretch of them.

    Multiples of the golden ratio fill the unit interval more evenly than chance would (Weyl).
    """
    golden = (np.sqrt(5) - 1) / 2
    position = (np.arange(n) + 0.5) * golden % 1
    edges = np.cumsum(weights)[:-1]
    turns: npt.NDArray[np.int64] = np.searchsorted(edges, position, side="right").astype(np.int64)
    return turns


def _assignment(
    problem: Problem,
    market: Market,
    chosen: npt.NDArray[np.int64],
    bound: float,
    prices: npt.NDArray[np.float64],
    method: Literal["exact", "prices"],
) -> Assignment:
    account = market.account(chosen)
    named = priced(problem.constraints, problem.offer_ids, account.used, prices)
    # Sums in another order differ in the last digits: a bound is never below what was found.
    bound = max(bound, account.value)
    return Assignment(best_first(market, chosen), account.value, bound, named, method)
