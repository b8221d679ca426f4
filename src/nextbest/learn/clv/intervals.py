"""Intervals for each customer's future, from simulation that is shared by all customers alike.

For a customer who is active at T, the distribution of the future depends on (frequency, T) alone.
So futures are simulated once for each frequency on a fixed grid of log(alpha + T), and every
customer reads quantiles off the two neighbouring grid points. Grid and random streams depend on the
model and on the customer's own frequency only: a customer gets the same interval in a batch of a
million and alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from nextbest.learn.clv.estimator import DRAWS
from nextbest.learn.clv.histories import Array, Histories, Index, distinct

if TYPE_CHECKING:
    from nextbest.learn.clv.purchase import PurchaseModel

_GRID_STEP: Final = 0.2
_PURCHASE_DRAWS: Final = 1
_FUTURE_STREAM: Final = 3


class Worth(Protocol):
    """Turns simulated purchase counts into their worth, in units of the customer's scale."""

    def __call__(self, counts: Array, x: float, rng: np.random.Generator) -> Array: ...


def _count(counts: Array, x: float, rng: np.random.Generator) -> Array:
    return counts


class FutureTables:
    """Sorted simulated futures of active customers, made when a (frequency, T) first asks."""

    def __init__(self, model: PurchaseModel, horizon: float, worth: Worth = _count) -> None:
        self._model, self._horizon, self._worth = model, horizon, worth
        self._draws = model._draws(_PURCHASE_DRAWS)
        self._alpha = model.parameters_["alpha"]

    def position(self, T: Array) -> Array:
        """Where T lies on the grid, in steps."""
        out: Array = np.log1p(T / self._alpha) / _GRID_STEP
        return out

    def at(self, x: float, step: int) -> Array:
        """Sorted futures, (DRAWS,), of active customers at one grid point."""
        T = self._alpha * float(np.expm1(step * _GRID_STEP))
        # The same stream at every step, so that neighbours differ by T and not by luck.
        rng, rng_worth = (np.random.default_rng((_FUTURE_STREAM, int(x), i)) for i in (0, 1))
        counts = self._model._sample_if_alive(self._draws, x, T, self._horizon, rng)
        return np.sort(self._worth(counts, x, rng_worth))


def zero_inflated_interval(
    tables: FutureTables, histories: Histories, p_alive: Array, level: float
) -> tuple[Array, Array]:
    """Bounds that hold the future with probability `level`, (customers,) each.

    Where the chance of nothing at all is below (1 - level) / 2 the tails are equal. Above that, the
    lower bound is 0 and the whole error is left at the top, so that the interval does not cover
    more than it says. Customers whose chance of nothing is `level` or more get [0, 0] here.
    """
    low, high = np.zeros(len(p_alive)), np.zeros(len(p_alive))
    frequencies, inverse = distinct(histories.x)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=len(frequencies)))
    tail = (1.0 - level) / 2.0
    for x, start, end in zip(frequencies, np.append(0, ends[:-1]), ends, strict=True):
        rows = order[start:end]
        steps, share, table = _columns(tables, float(x), histories.T[rows])
        zero = (table == 0.0).mean(axis=1)
        nothing = 1.0 - p_alive[rows] * (1.0 - _between(zero[steps], zero[steps + 1], share))
        one_sided = nothing >= tail
        for out, q in (
            (low, np.where(one_sided, 0.0, tail)),
            (high, np.where(one_sided, level, 1.0 - tail)),
        ):
            out[rows] = _quantile(table, steps, share, p_alive[rows], q)
    return low, high


def _columns(tables: FutureTables, x: float, T: Array) -> tuple[Index, Array, Array]:
    """For each T its left grid point (as a row of the table) and the way to the next one."""
    position = tables.position(T)
    left = position.astype(np.intp)
    wanted = np.unique(np.concatenate([left, left + 1]))
    table = np.array([tables.at(x, int(step)) for step in wanted])
    return np.searchsorted(wanted, left), position - left, table


def _quantile(table: Array, steps: Index, share: Array, p_alive: Array, q: Array) -> Array:
    """Quantile q of a future that is 0 with probability 1 - p_alive, else drawn from the table."""
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.where(q > 1.0 - p_alive, (q - (1.0 - p_alive)) / p_alive, 0.0)
    # Sorted draw i is the quantile (i + 1/2) / DRAWS.
    at = np.clip(level * DRAWS - 0.5, 0.0, DRAWS - 1.0)
    below = np.minimum(at.astype(np.intp), DRAWS - 2)
    part = at - below
    left = _between(table[steps, below], table[steps, below + 1], part)
    right = _between(table[steps + 1, below], table[steps + 1, below + 1], part)
    out: Array = np.where(level > 0.0, _between(left, right, share), 0.0)
    return out


def _between(left: Array, right: Array, share: Array) -> Array:
    out: Array = left + share * (right - left)
    return out
