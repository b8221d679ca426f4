"""From a choice that takes a little too much to one that fits: drop the least, fill the rest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nextbest.decide.assign.market import Market
from nextbest.decide.assign.problem import chunks

__all__ = ["SLACK", "best_first", "drop", "fill"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Sums of money in floating point: a limit is kept if it is exceeded by no more than this share.
SLACK = 1e-9
# Each round of filling puts at least one offer where it fits; most put thousands.
MOST_ROUNDS = 1_000


def _room(market: Market, chosen: Ints) -> Floats:
    """(k,) how much each limit leaves, with the slack of floating point."""
    return market.limits * (1 + SLACK) - market.account(chosen).used


def _keys(market: Market, rows: Ints, offers: Ints, prices: Floats) -> Floats:
    """Values of pairs less the price of what they use up."""
    value: Floats = market.value[rows, offers] - prices @ market.use(rows, offers)
    return value


def drop(market: Market, chosen: Ints, prices: Floats) -> Ints:
    """Take back offers where a limit is exceeded, those of least value after prices first.

    Of equal ones, customers further down give back first.
    """
    chosen = chosen.copy()
    for k, room in enumerate(_room(market, chosen)):
        if room >= 0:
            continue
        inside = (market.counts[k] + market.spends[k]) > 0
        rows, slots = np.nonzero((chosen >= 0) & inside[chosen])
        offers = chosen[rows, slots]
        order = np.argsort(-_keys(market, rows, offers, prices), kind="stable")
        used = np.cumsum(market.use(rows, offers)[k, order])
        out = order[used > market.limits[k] * (1 + SLACK)]
        chosen[rows[out], slots[out]] = -1
    return chosen


def fill(market: Market, chosen: Ints, prices: Floats) -> Ints:
    """Make further offers while something is left for them, most valuable after prices first.

    In rounds: every customer with a free slot asks for the best that still fits, and requests are
    granted in order of value after prices until a limit is reached (of equal ones, customers
    further up first).
    """
    chosen = chosen.copy()
    room = _room(market, chosen)
    waiting = np.flatnonzero((chosen < 0).any(axis=1))
    for _ in range(MOST_ROUNDS):
        rows, offers = _requests(market, chosen, prices, room, waiting)
        if not len(rows):
            break
        waiting = rows
        order = np.argsort(-_keys(market, rows, offers, prices), kind="stable")
        used = market.use(rows, offers)[:, order]
        fits = np.all((np.cumsum(used, axis=1) <= room[:, None]) | (used == 0), axis=0)
        granted = order[fits]
        slot = np.argmax(chosen[rows[granted]] < 0, axis=1)
        chosen[rows[granted], slot] = offers[granted]
        room = np.maximum(room - used[:, fits].sum(axis=1), 0)
    return chosen


def _requests(
    market: Market, chosen: Ints, prices: Floats, room: Floats, waiting: Ints
) -> tuple[Ints, Ints]:
    """The best offer that still fits for each waiting customer who has one."""
    asking, asked = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    offers = np.flatnonzero((market.counts <= room[:, None]).all(axis=0))
    for part in chunks(len(waiting)):
        rows = waiting[part]
        worth = _open(market, chosen, prices, room, rows, offers)
        best = market.by_id[np.argmax(worth[:, market.by_id], axis=1)]
        has = worth[np.arange(len(rows)), best] > -np.inf
        asking.append(rows[has])
        asked.append(best[has])
    return np.concatenate(asking), np.concatenate(asked)


def _open(
    market: Market, chosen: Ints, prices: Floats, room: Floats, rows: Ints, offers: Ints
) -> Floats:
    """(rows, m) value after prices of what each customer may still get; -inf elsewhere."""
    taken = chosen[rows]
    worth = np.full((len(rows), market.value.shape[1]), -np.inf)
    worth[:, offers] = market.adjusted(rows, prices)[:, offers]
    for k in np.flatnonzero(market.spends.any(axis=1)):
        np.copyto(worth, -np.inf, where=(market.spends[k] > 0) & (market.costs(rows) > room[k]))
    at, slot = np.nonzero(taken >= 0)
    worth[at, taken[at, slot]] = -np.inf
    worth[(taken >= 0).all(axis=1)] = -np.inf
    if market.group is not None and market.slots > 1:
        group = np.where(taken >= 0, market.group[taken], -1)
        for column in range(market.slots):
            same = (group[:, column, None] == market.group) & (market.group >= 0)
            worth[same] = -np.inf
    return worth


def best_first(market: Market, chosen: Ints) -> Ints:
    """Put each customer's offers in order of value, ties by id; empty slots last."""
    if not len(market.by_id):
        return chosen
    place = np.empty(len(market.by_id) + 1, dtype=np.int64)
    place[market.by_id] = np.arange(len(market.by_id))
    place[-1] = len(market.by_id)
    rows = np.arange(len(chosen))[:, None]
    value = np.where(chosen >= 0, market.value[rows, chosen], -np.inf)
    order = np.lexsort((place[chosen], -value), axis=1)
    return np.take_along_axis(chosen, order, axis=1)
