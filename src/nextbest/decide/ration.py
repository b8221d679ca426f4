"""Share out what is scarce among all customers of a batch, so that no limit is exceeded.

Whoever leaves the choice to chance must know the probabilities that are in force, and an assignment
of all customers at once has none. So customers come in this order:

1. Those who are held out use up nothing.
2. Arms that do not choose by value (random_eligible, propensity_only) choose one after the other,
   in the order of the batch. An offer is closed for everybody after the customer with whom its
   limit could be exceeded; what is open to a customer therefore depends on earlier draws and never
   on the customer's own, and the logged probability is the one in force.
3. All others share what is left: without exploration by the best assignment there is; with it they
   draw one after the other as in 2, from priorities less the assignment's prices.
4. Customers of whom nothing is known get what is left after them.

Where the decisions of a batch without limits keep all limits anyway, they stand as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import holdout
from nextbest.decide.assign import Constraint, Prices, Problem, assign, offer_limits
from nextbest.decide.assign.prices import priced
from nextbest.decide.assign.repair import SLACK
from nextbest.decide.engine import Decisions, Ration
from nextbest.decide.offers import Catalogue, Offer
from nextbest.decide.policy import PolicyTables

__all__ = ["Deciding", "Rationing", "constraints"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

Deciding = Callable[[Rows, Prices | None, Ration], Decisions]
"""Decides for some customers of the batch, by their numbers in it."""

# Customers decided for together.
PIECE = 2_000
# Costs are kept in single precision: so much of a budget is left alone that no sum exceeds it.
_CAUTION = 1e-6
_KEPT_BACK, _OWN_WAY, _BY_VALUE, _STRANGER = range(4)


def constraints(
    catalogue: Catalogue, tables: PolicyTables, channel: str, contacts: Mapping[str, int]
) -> tuple[Constraint, ...]:
    """Return everything that is scarce in one batch, as catalogue and policy say.

    Parameters
    ----------
    channel: that the batch is for.
    contacts: how often each offer was made before the batch; what is left of its ``max_contacts``
        is the limit.
    """
    budgets, ids = tables.budgets, catalogue.offer_ids
    found = [
        *offer_limits(
            {offer.id: _capacity(offer, contacts.get(offer.id, 0)) for offer in catalogue.offers},
            {offer.id: offer.budget for offer in catalogue.offers},
        )
    ]
    if budgets.total is not None:
        found.append(Constraint("total budget", "currency", ids, budgets.total))
    if channel in budgets.channels:
        name = f'volume of channel "{channel}"'
        found.append(Constraint(name, "contacts", ids, budgets.channels[channel]))
    for what, field, volumes in (
        ("category", "category", budgets.categories),
        ("group", "exclusivity_group", budgets.groups),
    ):
        for name, limit in volumes.items():
            members = tuple(o.id for o in catalogue.offers if getattr(o, field) == name)
            found.append(Constraint(f'volume of {what} "{name}"', "contacts", members, limit))
    return tuple(found)


def _capacity(offer: Offer, made: int) -> int | None:
    limits = [] if offer.max_contacts is None else [max(offer.max_contacts - made, 0)]
    if offer.max_contacts_per_batch is not None:
        limits.append(offer.max_contacts_per_batch)
    return min(limits, default=None)


class Rationing:
    """Collects what a batch's customers would get without limits, and shares out what there is.

    Give it the decisions without limits (`add`), let it `share`, and give it the decisions that
    were made (`made`); `facts` then says what was used and what more of it would be worth.

    Parameters
    ----------
    limits: what is scarce, at least one.
    customers: number of customers in the batch.
    offer_ids: (m,) offers of the catalogue.
    slots: offers that each customer may get.
    group: (m,) exclusivity groups, -1 for none.
    """

    def __init__(
        self,
        limits: tuple[Constraint, ...],
        customers: int,
        offer_ids: tuple[str, ...],
        slots: int,
        group: npt.NDArray[np.int64],
    ) -> None:
        self.limits = limits
        self.offer_ids = offer_ids
        self.slots = min(slots, len(offer_ids))
        self.group = group if self.slots > 1 else None
        self._inside = np.array([np.isin(offer_ids, one.offer_ids) for one in limits])
        self._money = np.array([one.unit == "currency" for one in limits])
        self._at_most = np.array([one.limit for one in limits], dtype=np.float64)
        self._worth = np.full((customers, len(offer_ids)), -np.inf, dtype=np.float32)
        self._cost = np.zeros_like(self._worth) if self._money.any() else None
        self._turn = np.full(customers, _KEPT_BACK)
        self._free = np.zeros(len(limits))
        self._explores = False
        self._method = "no limit binds"
        self._bound = 0.0
        self._prices = priced(limits, offer_ids, self._free, np.zeros(len(limits)))
        self._used = np.zeros(len(limits))
        self._value = 0.0

    def add(self, rows: slice, decisions: Decisions) -> None:
        """Take note of what some customers would get without limits."""
        self._worth[rows] = decisions.worth
        if self._cost is not None:
            self._cost[rows] = _costs(decisions)
        self._turn[rows] = _turns(decisions)
        self._free += self._use(decisions).sum(axis=0)
        self._explores = decisions.policy.policy.tables.exploration.policy != "greedy"

    @property
    def binds(self) -> bool:
        """Whether any limit is exceeded by what all customers would get without limits."""
        return not bool(np.all(self._free <= self._at_most * (1 + SLACK)))

    def share(self, decide: Deciding) -> tuple[Prices | None, Ration | None]:
        """Return scarcity prices, and what is left to each customer; None where no limit binds."""
        by_value = np.flatnonzero(self._turn == _BY_VALUE)
        if not self.binds:
            free = self._problem(by_value, ())
            self._bound = assign(free, exact_pairs=0).upper_bound
            return None, None
        n, m = self._worth.shape
        ration = Ration(np.ones((n, m), dtype=bool), np.zeros(n, dtype=bool))
        left = self._at_most.copy()
        self._in_turn(np.flatnonzero(self._turn == _OWN_WAY), None, ration, left, decide)
        found = assign(self._problem(by_value, self._what_is_left(left)))
        self._method, self._bound, self._prices = found.method, found.upper_bound, found.prices
        if self._explores:
            self._in_turn(by_value, self._prices, ration, left, decide)
        else:
            ration.settled[by_value] = True
            ration.open[by_value] = False
            row, slot = np.nonzero(found.chosen >= 0)
            ration.open[by_value[row], found.chosen[row, slot]] = True
            left -= [one.used for one in found.prices.each]
        self._in_turn(np.flatnonzero(self._turn == _STRANGER), None, ration, left, decide)
        return self._prices, ration

    def made(self, rows: slice, decisions: Decisions) -> None:
        """Take note of what some customers do get."""
        self._used += self._use(decisions).sum(axis=0)
        by_value = (self._turn[rows] == _BY_VALUE)[:, None]
        self._value += float(decisions.worth[_made(decisions) & by_value].sum())

    @property
    def prices(self) -> Prices:
        """What one more of everything scarce is worth, and what is used of it in all."""
        each = (
            replace(price, limit=float(limit), used=float(used))
            for price, limit, used in zip(self._prices.each, self._at_most, self._used, strict=True)
        )
        return Prices(self.offer_ids, tuple(each))

    def facts(self) -> dict[str, Any]:
        """Return value, bound and prices as plain JSON types, with words for each limit."""
        bound = max(self._bound, self._value)
        return {
            "method": self._method,
            "value": self._value,
            "upper_bound": bound,
            "gap": (bound - self._value) / bound if bound else 0.0,
            "binding": [one.constraint for one in self.prices.each if one.binds],
            "prices": [
                {**raw, "in_words": str(one)}
                for raw, one in zip(self.prices.to_dict()["prices"], self.prices.each, strict=True)
            ],
        }

    def _problem(self, rows: Rows, limits: tuple[Constraint, ...]) -> Problem:
        every = len(rows) == len(self._worth)
        cost = self._cost if every or self._cost is None else self._cost[rows]
        return Problem(
            self.offer_ids,
            self._worth if every else self._worth[rows],
            limits,
            cost,
            self.slots,
            self.group,
        )

    def _what_is_left(self, left: Floats) -> tuple[Constraint, ...]:
        """Return the limits after what was used up already."""
        rest = np.maximum(np.where(self._money, left * (1 - _CAUTION), np.round(left)), 0)
        return tuple(
            replace(one, limit=float(amount)) for one, amount in zip(self.limits, rest, strict=True)
        )

    def _in_turn(
        self, rows: Rows, prices: Prices | None, ration: Ration, left: Floats, decide: Deciding
    ) -> None:
        """Let customers choose one after the other; what may not suffice for the next is closed.

        Customers are decided for together; from the first one for whom something closes, the rest
        are decided for again, so that nothing depends on how many are taken at once.
        """
        most = self._most_of_one(rows)
        for start in range(0, len(rows), PIECE):
            part = rows[start : start + PIECE]
            open_ = np.ones((len(part), len(self.offer_ids)), dtype=bool)
            while True:
                decisions = decide(part, prices, Ration(open_, np.zeros(len(part), dtype=bool)))
                use = self._use(decisions)
                before = np.zeros_like(use)
                before[1:] = np.cumsum(use[:-1], axis=0)
                short = before + most > left * (1 + SLACK)
                now = ~((short.astype(float) @ self._inside) > 0)
                changed = np.flatnonzero((now != open_).any(axis=1))
                if not len(changed):
                    break
                # What closes stays closed, whatever later customers would have drawn.
                open_[changed[0] :] &= now[changed[0]]
            ration.open[part] = open_
            left -= use.sum(axis=0)

    def _most_of_one(self, rows: Rows) -> Floats:
        """(k,) the most that one of these customers could use up of each limit."""
        most: Floats = np.minimum(self.slots, self._inside.sum(axis=1)).astype(np.float64)
        if self._cost is None or not len(rows):
            return most
        cost = np.where(np.isfinite(self._worth[rows]), self._cost[rows], 0).max(axis=0)
        dearest = np.where(self._inside, cost, 0).max(axis=1).astype(np.float64) * (1 + _CAUTION)
        most[self._money] *= dearest[self._money]
        return most

    def _use(self, decisions: Decisions) -> Floats:
        """(n, k) what each customer's offers use up of each limit."""
        made = _made(decisions)
        used: Floats = made.astype(np.float64) @ self._inside.T
        if self._cost is not None:
            spent = np.where(made, _costs(decisions), 0.0)
            for k in np.flatnonzero(self._money):
                used[:, k] = spent[:, self._inside[k]].sum(axis=1)
        return used


def _made(decisions: Decisions) -> npt.NDArray[np.bool_]:
    """(n, m) offers that are really made."""
    made = np.zeros(decisions.fates.shape, dtype=bool)
    row, slot = np.nonzero(decisions.chosen >= 0)
    made[row, decisions.chosen[row, slot]] = True
    return made


def _costs(decisions: Decisions) -> Floats:
    """(n, m) expected costs; of an unknown one a budget must fear everything."""
    cost = np.broadcast_to(decisions.values.expected_cost, decisions.fates.shape)
    known: Floats = np.where(np.isnan(cost), np.inf, cost)
    return known


def _turns(decisions: Decisions) -> npt.NDArray[np.int64]:
    """(n,) when each customer's turn is."""
    arm = decisions.arm
    turn = np.full(len(arm), _BY_VALUE)
    turn[np.isin(arm, (holdout.RANDOM_ELIGIBLE, holdout.PROPENSITY_ONLY))] = _OWN_WAY
    turn[arm == holdout.FALLBACK] = _STRANGER
    turn[np.isin(arm, (holdout.HELD_OUT, holdout.NO_CONTACT))] = _KEPT_BACK
    return turn
