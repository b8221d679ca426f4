"""What each offer is worth for each customer, and which offers win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Pool", "Values", "choose", "expected_cost", "expected_profit", "weigh"]

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


def choose(
    priority: Floats, by_id: npt.NDArray[np.intp], limit: int, pools: Sequence[Pool]
) -> tuple[Ints, list[npt.NDArray[np.bool_]]]:
    """Pick up to ``limit`` offers for each customer, best first.

    Parameters
    ----------
    priority: customers × offers; -inf where an offer is out of the running. An offer must beat
        zero, which is what making no offer is worth.
    by_id: positions of the offers in the order of their ids, which breaks ties.
    limit: number of slots, at least 1.
    pools: contacts that the answer may use up; only asked for more than one slot.

    Returns
    -------
    The picked positions, customers × limit, -1 for an empty slot; and for each pool where it kept
    an offer out, customers × offers.
    """
    n, m = priority.shape
    chosen = np.full((n, limit), -1, dtype=np.int64)
    customers = np.arange(n)
    running = priority[:, by_id]
    members = [pool.member[by_id] for pool in pools]
    left = [pool.left.copy() for pool in pools]
    blocked = [np.zeros((n, m), dtype=bool) for _ in pools]
    for slot in range(min(limit, m)):
        best = np.argmax(running, axis=1)
        wins = running[customers, best] > 0
        if not wins.any():
            break
        chosen[wins, slot] = by_id[best[wins]]
        running[customers[wins], best[wins]] = -np.inf
        if slot + 1 == limit:
            break
        for member, remaining, out in zip(members, left, blocked, strict=True):
            _use_up(member, remaining, out, running, customers[wins], best[wins])
    return chosen, [out[:, np.argsort(by_id)] for out in blocked]


def _use_up(member: Ints, left: Ints, out: Any, running: Floats, rows: Any, picked: Any) -> None:
    """Take one contact from the picked offer's pool, and close the pool when it is empty."""
    pool = member[picked]
    inside = pool >= 0
    left[rows[inside], pool[inside]] -= 1
    closed = (left[:, member] <= 0) & (member >= 0) & np.isfinite(running)
    out |= closed
    running[closed] = -np.inf
