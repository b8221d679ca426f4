"""What each offer is worth for each customer, and which offers win."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Chances",
    "Choice",
    "Pool",
    "Values",
    "choose",
    "expected_cost",
    "expected_profit",
    "greedy",
    "in_cells",
    "leaders",
    "weigh",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Values:
    """The numbers behind every priority, customers × offers; NaN where unknown.

    Money is in the shop's currency, per customer. ``incentive_cost`` is what the shop itself pays
    for a response. ``expected_cost`` may not exceed ``cost_ceiling`` (infinite where there is
    none). ``priority`` is the objective times levers and context weights (see `weigh`).
    """

    margin: Floats
    incentive_cost: Floats
    contact_cost: Floats
    baseline_rate: Floats
    retention_value: Floats
    expected_cost: Floats
    cost_ceiling: Floats
    expected_profit: Floats
    lever: Floats
    context_weight: Floats
    objective: Floats
    priority: Floats


def in_cells(values: npt.NDArray[Any], customers: Ints, offers: Ints) -> npt.NDArray[Any]:
    """Numbers of some customers, each with an offer; values broadcast over customers × offers."""
    rows = customers if len(values) > 1 else 0
    found = values[rows, offers if values.shape[1] > 1 else 0]
    return found if found.ndim else np.full(len(offers), found)


def expected_profit(
    propensity: Floats,
    margin: Floats,
    incentive_cost: Floats,
    contact_cost: Floats,
    retention_value: Floats,
    baseline_rate: Floats | float = 0.0,
) -> Floats:
    """Profit to expect from offering, in the shop's currency; NaN where anything is unknown.

    ``p × (margin − incentive_cost) − p0 × margin − contact_cost + retention_value`` (DESIGN,
    section 4), where ``retention_value = churn_probability × save_rate × clv`` for goal "retain"
    and 0 otherwise, and ``p0`` is the ``baseline_rate``: P(the same response | not contacted).

    With the contact we expect ``p × (margin − incentive_cost) − contact_cost``, without it
    ``p0 × margin``, as nobody is given an incentive then. The difference is what the contact is
    worth: ``(p − p0) × margin − p × incentive_cost − contact_cost``, the incremental value of
    Hansotia & Rukstales (2002), "Incremental value modeling", Journal of Interactive Marketing
    16(3), 35-46. ``p0 × incentive_cost`` of it is subsidy leak: paid to those who would have come
    anyway. All arguments broadcast over customers × offers.
    """
    with_contact: Floats = propensity * (margin - incentive_cost) - contact_cost + retention_value
    with np.errstate(invalid="ignore"):  # nobody's share of an endless margin is unknown
        return with_contact - baseline_rate * margin


def expected_cost(propensity: Floats, incentive_cost: Floats, contact_cost: Floats) -> Floats:
    """Money that offering is expected to cost the shop: ``p × incentive_cost + contact_cost``."""
    return propensity * incentive_cost + contact_cost


def weigh(objective: Floats, multiplier: Floats) -> Floats:
    """Priority: the objective times levers and context weights (all above zero).

    A loss is divided instead of multiplied. So a multiplier above 1 always moves an offer up and
    one below 1 always down, none can turn a loss into a gain, and priority still rises with the
    objective: raising an offer's margin never lowers its rank.
    """
    return np.where(objective >= 0, objective * multiplier, objective / multiplier)


@dataclass(frozen=True)
class Pool:
    """A number of contacts that several offers share within one answer.

    Parameters
    ----------
    member: pool of each offer; -1 for offers outside it.
    left: customers × pools, how many more offers each pool allows.
    """

    member: Ints
    left: Ints


@dataclass(frozen=True)
class Choice:
    """Which offers were drawn, and how likely that was.

    Parameters
    ----------
    chosen: customers × limit, positions of the offers, best first; -1 for an empty slot.
    probability: customers × limit, with which each slot's offer was drawn given the slots before
        it; for the first empty slot, with which no further offer was; NaN behind that.
    chances: customers × (offers + 1), the probabilities that the first slot was drawn from; the
        last column is no offer.
    best: customers × limit, positions of the offers that each slot would have got without chance;
        -1 for no offer.
    blocked: for each pool where it kept an offer out, customers × offers.
    """

    chosen: Ints
    probability: Floats
    chances: Floats
    best: Ints
    blocked: list[npt.NDArray[np.bool_]]


Chances = Callable[[Floats, Ints], Floats]
"""From what is in the running (customers × offers, -inf where out), and the column of each
customer's best offer (`leaders`), to the probability of each."""


def greedy(running: Floats, leader: Ints | None = None) -> Floats:
    """Put all probability on the best offer, or on no offer where none is above zero.

    Parameters
    ----------
    running: customers × offers in the order of their ids; -inf where an offer is out. Ties go to
        the first.
    leader: what `leaders` returns for it, where that is known.

    Returns
    -------
    customers × (offers + 1); the last column is no offer.
    """
    n, m = running.shape
    chances = np.zeros((n, m + 1))
    chances[np.arange(n), leaders(running) if leader is None else leader] = 1.0
    return chances


def leaders(running: Floats) -> Ints:
    """Return for each customer the column of the best offer, or the one behind the last."""
    best: Ints = running.argmax(axis=1)
    best[running[np.arange(len(running)), best] <= 0] = running.shape[1]
    return best


def choose(
    priority: Floats,
    by_id: npt.NDArray[np.intp] | None,
    limit: int,
    pools: Sequence[Pool],
    chances: Chances = greedy,
    lots: Floats | None = None,
) -> Choice:
    """Draw up to ``limit`` offers for each customer, one slot after the other.

    A slot's offer is drawn from the probabilities of what is still in the running: without the
    offers of earlier slots, and without those that a pool has no room for. Drawing no offer ends
    the answer. The draw is the inverse of the distribution function, offers in the order of their
    ids: the same lot draws the same offer, also after an offer of probability 0 is added.

    Parameters
    ----------
    priority: customers × offers; -inf where an offer is out of the running. No offer is worth zero.
    by_id: positions of the offers in the order of their ids, which breaks ties; None where they
        stand in it.
    limit: number of slots, at least 1.
    pools: contacts that the answer may use up; only asked for more than one slot.
    chances: gives a slot's probabilities, with the offers in the order of their ids.
    lots: customers × limit, numbers in [0, 1); needed only where something is left to chance.
    """
    n, m = priority.shape
    lots = np.zeros((n, limit)) if lots is None else lots
    customers = np.arange(n)
    position = np.arange(m + 1)
    if by_id is not None:
        position[:m] = by_id
    position[m] = -1
    # A copy where slots take offers out of it.
    running = priority[:, position[:-1]] if by_id is not None or limit > 1 else priority
    members = [pool.member[position[:-1]] for pool in pools]
    left = [pool.left.copy() for pool in pools]
    blocked = [np.zeros((n, m), dtype=bool) for _ in pools]
    slots: list[tuple[Ints, Floats, Ints]] = []
    first = np.empty((n, 0))
    ended = None
    for slot in range(limit):
        leader = leaders(running)
        now = chances(running, leader)
        first = now if slot == 0 else first
        drawn = _draw(now, lots[:, slot])
        found = position[drawn], now[customers, drawn], position[leader]
        slots.append(found)
        if ended is not None:
            for values, nothing in zip(found, _EMPTY, strict=True):
                values[ended] = nothing
        if slot + 1 == limit:
            break
        ended = drawn == m if ended is None else ended | (drawn == m)
        rows = np.flatnonzero(~ended)
        if not rows.size:
            break
        running[rows, drawn[rows]] = -np.inf
        for member, remaining, out in zip(members, left, blocked, strict=True):
            _use_up(member, remaining, out, running, rows, drawn[rows])
    if by_id is not None:
        back = np.argsort(by_id)
        first = first[:, np.append(back, m)]
        blocked = [out[:, back] for out in blocked]
    chosen, probability, best = (
        _side_by_side(columns, limit, nothing)
        for columns, nothing in zip(zip(*slots, strict=True), _EMPTY, strict=True)
    )
    return Choice(chosen, probability, first, best, blocked)


# What stands in a slot behind the first empty one: offer, probability, best offer.
_EMPTY = (-1, np.nan, -1)


def _side_by_side(columns: Sequence[npt.NDArray[Any]], limit: int, nothing: Any) -> Any:
    """(n, limit) some (n,) columns, and behind them nothing."""
    if limit == 1:
        return columns[0][:, None]
    table = np.full((len(columns[0]), limit), nothing)
    table[:, : len(columns)] = np.array(columns).T
    return table


def _draw(chances: Floats, lots: Floats) -> Ints:
    """Return for each customer the first column at which the probabilities so far pass the lot."""
    # cumsum adds from left to right, whatever the shape: a zero in between changes no bit.
    so_far = chances.cumsum(axis=1)
    drawn: Ints = (so_far > lots[:, None] * so_far[:, -1:]).argmax(axis=1)
    return drawn


def _use_up(member: Ints, left: Ints, out: Any, running: Floats, rows: Any, picked: Any) -> None:
    """Take one contact from the picked offer's pool, and close the pool when it is empty."""
    pool = member[picked]
    inside = pool >= 0
    left[rows[inside], pool[inside]] -= 1
    if left.min(initial=1) > 0:
        return
    closed = (left[:, member] <= 0) & (member >= 0) & np.isfinite(running)
    out |= closed
    running[closed] = -np.inf
