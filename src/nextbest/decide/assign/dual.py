"""Prices at which customers by themselves take no more than there is, at any size.

The constraints are bought off at prices, one for each (Lagrangian relaxation): every customer then
takes the best after prices, and the total is a bound that no assignment can beat. The prices that
make it smallest are the shadow prices. They are found by cutting planes inside a box around the
best prices so far (Marsten, Hogan and Blankenship 1975, *The Boxstep Method for Large-Scale
Optimization*, Operations Research 23(3)); each step is a small linear program for HiGHS and one
look at every customer. The weights of its cuts also say which share of the customers to decide at
which of the prices tried, so that together they use up what there is (Dantzig-Wolfe).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from nextbest.decide.assign.market import Answer, Market
from nextbest.errors import InternalError

__all__ = ["Dual", "minimise"]

Floats = npt.NDArray[np.float64]

# The bound is within this share of the best bound there is.
TOLERANCE = 1e-5
# Looks at every customer, at most. What is left then shows up in the gap.
MOST_ANSWERS = 400
# Prices are first sought among so many customers, then among ever more, up to all of them.
FIRST_SAMPLE = 4_000
GROWTH = 16


@dataclass(frozen=True)
class Dual:
    """The best bound found, and where.

    Parameters
    ----------
    bound: no assignment is worth more, in the shop's currency.
    prices: (k,) value per contact or per unit of currency.
    points: (t, k) prices that were tried, of which the customers are to be decided at shares
        ``weights`` (t,) so that they use up what there is.
    answers: how often all customers were looked at.
    """

    bound: float
    prices: Floats
    points: Floats
    weights: Floats
    answers: int


def minimise(market: Market) -> Dual:
    """Find the prices at which the bound is smallest.

    Deterministic: samples are every so many customers, and nothing is drawn.
    """
    free = market.answer(np.zeros(len(market.limits)))
    if np.all(free.used <= market.limits):
        nothing = np.zeros(len(market.limits))
        return Dual(free.value, nothing, nothing[None, :], np.ones(1), 1)
    scale = _scale(market, free)
    steps = [1]
    while len(market) // (steps[0] * GROWTH) >= FIRST_SAMPLE:
        steps.insert(0, steps[0] * GROWTH)
    start, box = np.zeros(len(scale)), 1.0
    for step in steps:
        part = market if step == 1 else market.every(step)
        search = _Search(part, scale, start, box)
        search.run()
        # A sample's prices are off by about one over the root of its size.
        start, box = search.center, 4 / np.sqrt(len(part))
    return replace(search.result(), answers=search.answers + 1)


def _scale(market: Market, free: Answer) -> Floats:
    """A typical price of each constraint: mean value of an offer taken, or value per money."""
    everything = free.value
    m = market.counts.shape[1]
    every = replace(market, counts=np.ones((1, m)), spends=np.zeros((1, m)), limits=np.zeros(1))
    taken = every.answer(np.zeros(1)).used[0]
    money = replace(every, counts=np.zeros((1, m)), spends=np.ones((1, m)))
    spent = money.answer(np.zeros(1)).used[0]
    in_money = market.spends.any(axis=1)
    scale: Floats = np.where(in_money, everything / max(spent, 1e-300), everything / taken)
    return scale


@dataclass(frozen=True)
class _Step:
    """Where the cuts are lowest inside the box."""

    point: Floats
    height: float
    weights: Floats
    at_edge: bool


class _Search:
    """Cutting planes in a box; prices are in units of their scale here."""

    def __init__(self, market: Market, scale: Floats, start: Floats, box: float) -> None:
        self.market = market
        self.scale = scale
        self.box = box
        self.points: list[Floats] = []
        self.slopes: list[Floats] = []
        self.heights: list[float] = []
        self.center = start
        self.best = self.look(start)
        self.weights = np.ones(1)

    @property
    def answers(self) -> int:
        return len(self.points)

    def look(self, point: Floats) -> float:
        """Ask every customer at some prices: the bound there, kept as a cut."""
        said = self.market.answer(point * self.scale)
        slope = (self.market.limits - said.used) * self.scale
        bound = said.value + float(self.market.limits @ (point * self.scale))
        self.points.append(point)
        self.slopes.append(slope)
        self.heights.append(bound - float(slope @ point))
        return bound

    def run(self) -> None:
        """Step until the cuts say that no prices inside a box with room are better."""
        while self.best > 0 and self.answers < MOST_ANSWERS:
            step = self.lowest()
            self.weights = step.weights
            promised = self.best - step.height
            if promised <= TOLERANCE * self.best:
                if not step.at_edge:
                    return
                self.box *= 4
                continue
            bound = self.look(step.point)
            gained = self.best - bound
            if gained > 0:
                self.center, self.best = step.point, bound
            if gained >= 0.5 * promised and step.at_edge:
                self.box *= 2
            elif gained < 0:
                self.box *= 0.7

    def lowest(self) -> _Step:
        """Minimise the highest of the cuts over the box around the center."""
        k, slopes = len(self.center), np.array(self.slopes)
        unit = self.best
        low = np.maximum(self.center - self.box, 0)
        high = self.center + self.box
        solved = linprog(
            np.append(np.zeros(k), 1.0),
            A_ub=np.column_stack([slopes / unit, -np.ones(len(slopes))]),
            b_ub=-np.array(self.heights) / unit,
            bounds=[*zip(low, high, strict=True), (None, None)],
            method="highs",
        )
        if solved.x is None:
            raise InternalError("assignment", "a step has no solution", got=str(solved.message))
        point = np.clip(solved.x[:k], low, high)
        weights = np.maximum(-solved.ineqlin.marginals, 0)
        pulls = solved.upper.marginals[:k] != 0
        pulls |= (solved.lower.marginals[:k] != 0) & (low > 0)
        return _Step(point, float(solved.x[k]) * unit, weights / weights.sum(), bool(pulls.any()))

    def result(self) -> Dual:
        """The best bound, with prices in value per contact or per unit of currency."""
        weights = np.append(self.weights, np.zeros(len(self.points) - len(self.weights)))
        used = weights > 1e-9
        points = np.array(self.points)[used] * self.scale
        shares = weights[used] / weights[used].sum()
        return Dual(self.best, self.center * self.scale, points, shares, self.answers)
