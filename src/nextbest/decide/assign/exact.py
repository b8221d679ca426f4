"""The best assignment there is, by HiGHS, where the problem is small enough."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from nextbest.decide.assign.market import Market
from nextbest.decide.assign.repair import drop, fill
from nextbest.errors import InternalError

__all__ = ["Optimum", "solve"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Branches tried before the best so far is taken; counted, not timed, to give the same answer on
# every machine.
MOST_BRANCHES = 500
# Pairs among which a good assignment in whole numbers is sought first.
CORE_PAIRS = 2_000
_WHOLE = 1e-6


@dataclass(frozen=True)
class Optimum:
    """The assignment found, the bound that proves how good it is, and the prices.

    Parameters
    ----------
    chosen: (n, slots) positions, -1 for an empty slot.
    bound: no assignment is worth more.
    prices: (k,) dual values of the linear program in which customers may be split.
    """

    chosen: Ints
    bound: float
    prices: Floats


@dataclass(frozen=True)
class _Program:
    """Maximise ``gain @ x`` where ``matrix @ x <= limits``; one x from 0 to 1 for each pair."""

    market: Market
    rows: Ints
    offers: Ints
    gain: Floats
    matrix: Any
    limits: Floats


def solve(market: Market) -> Optimum:
    """Solve as a linear program, and where that splits a customer, in whole numbers.

    The linear program also says what each pair costs at least where it is forced in or out. Pairs
    whose cost is more than the best assignment at hand can lose are settled; only the others go
    to the search in whole numbers.
    """
    program = _program(market)
    # HiGHS has tolerances in absolute terms: gains up to one.
    size = float(program.gain.max())
    relaxed = linprog(
        -program.gain / size,
        A_ub=program.matrix,
        b_ub=program.limits,
        bounds=(0, 1),
        method="highs",
    )
    if relaxed.x is None:
        raise InternalError("assignment", "HiGHS finds no solution", got=str(relaxed.message))
    own = program.matrix.shape[0] - len(market.limits)
    prices = np.maximum(-relaxed.ineqlin.marginals[own:], 0) * size
    bound = -float(relaxed.fun) * size
    chosen = _fitting(program, relaxed.x > 0.5, prices)
    split = np.abs(relaxed.x - np.round(relaxed.x)) > _WHOLE
    if not split.any():
        return Optimum(chosen, bound, prices)
    # First the pairs that the prices leave most open, for a good assignment; then all those that
    # it leaves in doubt, for the best.
    doubt = (relaxed.lower.marginals - relaxed.upper.marginals) * size
    reach = np.sort(doubt)[min(CORE_PAIRS, len(doubt)) - 1]
    core = doubt <= reach
    made, whole_bound = _whole(program, (relaxed.x > 0.5) & ~core, core)
    chosen = _better(market, chosen, _fitting(program, made, prices))
    value = market.account(chosen).value
    # A hair of tolerance: a pair is settled only where the solver's digits leave no doubt.
    open_ = doubt <= bound - value + 1e-7 * bound
    if np.any(open_ & ~core):
        made, whole_bound = _whole(program, (relaxed.x > 0.5) & ~open_, open_)
        chosen = _better(market, chosen, _fitting(program, made, prices))
        value = market.account(chosen).value
    return Optimum(chosen, min(bound, max(whole_bound, value)), prices)


def _better(market: Market, one: Ints, other: Ints) -> Ints:
    """Whichever assignment is worth more; the first where they are worth the same."""
    return other if market.account(other).value > market.account(one).value else one


def _program(market: Market) -> _Program:
    """A variable for each pair worth making; rows for what a customer may get and for limits."""
    rows, offers = np.nonzero(np.isfinite(market.value))
    own = _own_rows(market, rows, offers)
    limits = np.ones(own.shape[0])
    limits[: len(market)] = market.slots
    return _Program(
        market,
        rows,
        offers,
        market.value[rows, offers].astype(np.float64),
        vstack([own, csr_array(market.use(rows, offers))], format="csr"),
        np.concatenate([limits, market.limits]),
    )


def _own_rows(market: Market, rows: Ints, offers: Ints) -> Any:
    """A row for each customer's slots, and for each exclusivity group of each customer."""
    pairs = np.arange(len(rows))
    slots = csr_array((np.ones(len(rows)), (rows, pairs)), shape=(len(market), len(rows)))
    if market.group is None or market.slots == 1:
        return slots
    group = market.group[offers]
    inside = group >= 0
    width = int(market.group.max(initial=0)) + 1
    key, row = np.unique(rows[inside] * width + group[inside], return_inverse=True)
    once = csr_array((np.ones(len(row)), (row, pairs[inside])), shape=(len(key), len(rows)))
    return vstack([slots, once], format="csr")


def _whole(
    program: _Program, sure: npt.NDArray[np.bool_], open_: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], float]:
    """Settle the open pairs in whole numbers: which pairs are made, and a bound on the best."""
    gain, size = program.gain[open_], float(program.gain.max())
    given = float(program.gain[sure].sum())
    left = program.limits - program.matrix[:, sure].sum(axis=1)
    with _quiet():
        solved = milp(
            -gain / size,
            integrality=np.ones(len(gain)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(program.matrix[:, open_], ub=left),
            options={"mip_rel_gap": 0, "node_limit": MOST_BRANCHES},
        )
    made = sure.copy()
    if solved.x is not None:
        made[open_] = solved.x > 0.5
    if solved.mip_dual_bound is None:
        return made, np.inf
    return made, given - float(solved.mip_dual_bound) * size


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what HiGHS prints, with all its output switched off, out of our standard output.

    Some of its searches write from C, past Python, where they would break what `--json` prints.
    """
    sys.stdout.flush()
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        libc.fflush(None)  # what C still holds back would come out later
        os.dup2(kept, 1)
        os.close(kept)


def _fitting(program: _Program, made: npt.NDArray[np.bool_], prices: Floats) -> Ints:
    """The pairs made as slots of their customers, mended where rounding broke a limit."""
    market = program.market
    chosen = np.full((len(market), market.slots), -1, dtype=np.int64)
    rows, offers = program.rows[made], program.offers[made]
    first = np.searchsorted(rows, rows)
    chosen[rows, np.arange(len(rows)) - first] = offers
    return fill(market, drop(market, chosen, prices), prices)
