"""What customers take at given prices: the problem in the form that every solver works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.arbitrate import Pool, choose
from nextbest.decide.assign.problem import Problem, chunks

__all__ = ["Answer", "Market"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answer:
    """What customers take in all: its value, and contacts or money under each constraint."""

    value: float
    used: Floats


@dataclass(frozen=True, eq=False)
class Market:
    """A problem made ready: pairs that can never win are -inf, constraints are matrices.

    Parameters
    ----------
    value: (n, m) above zero, or -inf.
    cost: (n, m) or (m,), finite.
    counts, spends: (k, m) whether a constraint counts an offer's contacts, or its cost.
    limits: (k,) contacts or money.
    by_id: positions of the offers in the order of their ids, which breaks ties.
    """

    value: npt.NDArray[Any]
    cost: npt.NDArray[Any]
    counts: Floats
    spends: Floats
    limits: Floats
    by_id: npt.NDArray[np.intp]
    slots: int
    group: Ints | None

    @classmethod
    def of(cls, problem: Problem) -> Market:
        """Make a checked problem ready; copies its values once."""
        ids = problem.offer_ids
        inside = np.array(
            [[offer_id in one.offer_ids for offer_id in ids] for one in problem.constraints],
            dtype=np.float64,
        ).reshape(len(problem.constraints), len(ids))
        money = np.array([one.unit == "currency" for one in problem.constraints], dtype=bool)
        value = np.where(problem.value > 0, problem.value, -np.inf)
        cost = np.zeros(len(ids)) if problem.cost is None else problem.cost
        if not np.isfinite(cost).all():  # only where the offer may not be made
            cost = np.where(np.isfinite(cost), cost, 0)
        return cls(
            value,
            cost,
            inside * ~money[:, None],
            inside * money[:, None],
            np.array([one.limit for one in problem.constraints], dtype=np.float64),
            np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.intp),
            problem.slots,
            problem.group,
        )

    def __len__(self) -> int:
        return len(self.value)

    def every(self, step: int) -> Market:
        """Return the market of every ``step``-th customer, with its share of what is scarce."""
        value = np.ascontiguousarray(self.value[::step])
        cost = self.cost if self.cost.ndim == 1 else np.ascontiguousarray(self.cost[::step])
        limits = self.limits * (len(value) / len(self))
        return Market(
            value, cost, self.counts, self.spends, limits, self.by_id, self.slots, self.group
        )

    def costs(self, rows: slice | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Costs of some customers, one row for all where they do not depend on the customer."""
        return self.cost[None, :] if self.cost.ndim == 1 else self.cost[rows]

    def adjusted(self, rows: slice | npt.NDArray[Any], prices: Floats) -> Floats:
        """Values of some customers less the price of what is used up; (k,) or (rows, k) prices."""
        charge = prices @ self.counts
        spends = prices @ self.spends
        if np.any(spends):
            charge = charge + self.costs(rows) * spends
        result: Floats = self.value[rows] - charge
        return result

    def pick(self, adjusted: Floats) -> Ints:
        """What each customer takes: (rows, slots) positions, best first; -1 for an empty slot."""
        if self.slots == 1:
            # `choose` would do; but this is asked for thousands of times.
            ranked = adjusted[:, self.by_id]
            best = np.argmax(ranked, axis=1)
            wins = ranked[np.arange(len(ranked)), best] > 0
            return np.where(wins, self.by_id[best], -1).astype(np.int64)[:, None]
        pools = []
        if self.group is not None and self.group.max(initial=-1) >= 0:
            once = np.ones((len(adjusted), int(self.group.max()) + 1), dtype=np.int64)
            pools.append(Pool(self.group, once))
        return choose(adjusted, self.by_id, self.slots, pools).chosen

    def answer(self, prices: Floats) -> Answer:
        """What everybody takes at these prices; its value is after paying them."""
        return self._sum(lambda rows: self._reply(rows, prices))

    def _reply(self, rows: slice, prices: Floats) -> tuple[Ints, Floats]:
        adjusted = self.adjusted(rows, prices)
        return self.pick(adjusted), adjusted

    def account(self, chosen: Ints) -> Answer:
        """What an assignment is worth, and what it uses up."""
        return self._sum(lambda rows: (chosen[rows], self.value[rows]))

    def _sum(self, take: Callable[[slice], tuple[Ints, npt.NDArray[Any]]]) -> Answer:
        m = self.value.shape[1]
        value, contacts, money = 0.0, np.zeros(m), np.zeros(m)
        for rows in chunks(len(self)):
            chosen, worth = take(rows)
            at, slot = np.nonzero(chosen >= 0)
            offer = chosen[at, slot]
            value += float(np.sum(worth[at, offer], dtype=np.float64))
            contacts += np.bincount(offer, minlength=m)
            if self.spends.any():
                cost = np.broadcast_to(self.costs(rows), worth.shape)[at, offer]
                money += np.bincount(offer, weights=cost, minlength=m)
        return Answer(value, self.counts @ contacts + self.spends @ money)

    def use(self, rows: Ints, offers: Ints) -> Floats:
        """(k, pairs) contacts or money that each pair uses up under each constraint."""
        cost = self.cost[offers] if self.cost.ndim == 1 else self.cost[rows, offers]
        used: Floats = self.counts[:, offers] + self.spends[:, offers] * cost
        return used

    def mixture(self, points: Floats, which: Ints) -> Ints:
        """What everybody takes where each customer faces a price list of their own."""
        chosen = np.full((len(self), self.slots), -1, dtype=np.int64)
        for rows in chunks(len(self)):
            chosen[rows] = self.pick(self.adjusted(rows, points[which[rows]]))
        return chosen
