"""How often limits on contacts were used up: caps, cool-offs and mutual exclusion, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.contact import KIND_CODES, ContactHistory, Ints, Limit, Mask, Scope, Times

__all__ = ["ChannelLimits", "Counts"]

# Histories name the channels that somebody was contacted on: few sets of them come again and again.
_HISTORIES = 64


@dataclass(frozen=True)
class Counts:
    """Events that a limit counts: per customer and pool, and which pool each offer falls in.

    Parameters
    ----------
    counted: customers × pools.
    pool: pool of each offer; -1 where the limit does not concern the offer.
    own: customers × offers, events of the offer itself, for mutual exclusion only.
    idle: nobody has reached the limit for any offer.
    """

    limit: Limit
    counted: Ints
    pool: Ints
    own: Ints | None
    idle: bool

    @cached_property
    def per_offer(self) -> Ints:
        """Events that count against each offer: customers × offers."""
        counts = self.counted[:, self.pool]
        if self.own is not None:
            counts = counts - self.own
        return np.where(self.pool >= 0, counts, 0)

    @cached_property
    def reached(self) -> Mask:
        """Where the limit keeps an offer back: customers × offers."""
        # Pools are fewer than offers; an offer outside them takes what the last one says, for now.
        if self.own is None:
            over = (self.counted > _allowed(self.limit)).take(self.pool, axis=1, mode="wrap")
        else:
            counted = self.counted.take(self.pool, axis=1, mode="wrap")
            over = counted - self.own > _allowed(self.limit)
        reached: Mask = over & (self.pool >= 0)
        return reached

    def left(self) -> Ints:
        """How many more contacts the limit allows: customers × pools."""
        return np.maximum(self.limit.at_most - self.counted, 0)


def _allowed(limit: Limit) -> int:
    """So many events keep nothing back yet."""
    return limit.at_most - 1 if limit.form == "cap" else 0


def _pools(limit: Limit, groups: Mapping[Scope, Ints], n_offers: int) -> Ints:
    if limit.scope in ("customer", "channel"):
        return np.zeros(n_offers, dtype=np.int64)
    if limit.scope == "offer":
        return np.arange(n_offers, dtype=np.int64)
    return groups[limit.scope]


def _applying(limits: Sequence[Limit], channel: str) -> list[Limit]:
    return [limit for limit in limits if limit.applies_to(channel)]


class _Windows:
    """What limits count of the past in decisions on a channel: which events, and since when."""

    def __init__(self, limits: Sequence[Limit], channel: str) -> None:
        self.limits = limits
        kinds = [KIND_CODES[limit.kind] for limit in self.limits]
        self.kinds = np.array(kinds, dtype=np.int64)
        lengths = [limit.length for limit in self.limits]
        self._lengths = np.array(lengths, dtype="timedelta64[us]")
        self._periods = [row for row, one in enumerate(self.limits) if one.period is not None]
        self._wanted = [{channel} if one.scope == "channel" else one.channels for one in limits]
        self._by_channels: dict[tuple[str, ...], Mask] = {}

    def inside(self, history: ContactHistory, decided_at: np.datetime64) -> Mask:
        """Which events each limit counts, limits × events."""
        found: Mask = history.time >= self.since(decided_at)[:, None]
        found &= history.time <= decided_at
        found &= history.kind == self.kinds[:, None]
        wanted = self.on(history.channels)
        found &= wanted.take(history.channel, axis=1, mode="wrap")  # -1, for none, is the last
        return found

    def since(self, decided_at: np.datetime64) -> Times:
        """The first moment that each limit counts."""
        since = decided_at - self._lengths
        for row in self._periods:
            since[row] = self.limits[row].since(decided_at)
        return since

    def on(self, channels: tuple[str, ...]) -> Mask:
        """Which channels, and none, each limit counts the events of."""
        found = self._by_channels.get(channels)
        if found is None:
            rows = [[*(not of or name in of for name in channels), not of] for of in self._wanted]
            if len(self._by_channels) >= _HISTORIES:
                self._by_channels.clear()
            found = np.array(rows, dtype=bool).reshape(-1, len(channels) + 1)
            self._by_channels[channels] = found
        return found


class ChannelLimits:
    """The limits that decisions on one channel are subject to, counted in one pass.

    Parameters
    ----------
    limits: all of the policy's; those of other channels are left out.
    groups: for "category" and "exclusivity_group", the group of each offer (-1 for none).
    """

    def __init__(
        self, limits: Sequence[Limit], groups: Mapping[Scope, Ints], n_offers: int, channel: str
    ) -> None:
        self._limits = _applying(limits, channel)
        self._pool = [_pools(limit, groups, n_offers) for limit in self._limits]
        # Every limit owns some columns of one table of counts: a column for each of its pools (or
        # one that stays empty), and behind those of all limits, for each exclusion, its offers'.
        sizes = [max(int(pool.max(initial=-1)) + 1, 1) for pool in self._pool]
        self._first = np.cumsum([0, *sizes])
        self._allowed = np.repeat([_allowed(limit) for limit in self._limits], sizes)
        exclusions = [i for i, one in enumerate(self._limits) if one.form == "exclusion"]
        # An exclusion counts its events a second time, by offer.
        counted_twice = [self._limits[i] for i in exclusions]
        self._windows = _Windows([*self._limits, *counted_twice], channel)
        places = [
            _places(pool, int(first), everywhere=limit.scope in ("customer", "channel"))
            for limit, pool, first in zip(self._limits, self._pool, self._first, strict=False)
        ]
        self._pools = [slice(a, b) for a, b in pairwise(self._first.tolist())]
        self._width = int(self._first[-1])
        self._own: list[slice | None] = [None] * len(self._limits)
        for i in exclusions:
            self._own[i] = slice(self._width, self._width + n_offers)
            places.append(_places(np.arange(n_offers), self._width, everywhere=False))
            self._width += n_offers
        # The column of an event, by limit (or exclusion) and offer; the last is for no offer. What
        # does not count goes to a column behind all others.
        columns = np.array(places, dtype=np.int64).reshape(-1, n_offers + 1)
        self._columns = np.where(columns < 0, self._width, columns)

    def count(
        self,
        history: ContactHistory,
        n_customers: int,
        decided_at: np.datetime64,
        *,
        idle: bool = True,
    ) -> list[Counts]:
        """Count past events against each limit; only where some are reached, unless ``idle``."""
        if not self._limits:
            return []
        table = self._table(history, n_customers, decided_at)
        over = (table[:, : self._first[-1]] > self._allowed).any(axis=0)
        busy = np.logical_or.reduceat(over, self._first[:-1]).tolist()
        return [
            Counts(limit, table[:, pools], pool, None if own is None else table[:, own], not some)
            for limit, pools, pool, own, some in zip(
                self._limits, self._pools, self._pool, self._own, busy, strict=True
            )
            if some or idle
        ]

    def counted(self, history: ContactHistory, decided_at: np.datetime64) -> npt.NDArray[np.intp]:
        """Return the positions of the events that any of the limits counts."""
        return np.flatnonzero(self._windows.inside(history, decided_at).any(axis=0))

    def windows(self, history: ContactHistory, decided_at: np.datetime64) -> tuple[Any, ...]:
        """Which events count, as `loops.keep_back` reads it; an exclusion's events twice."""
        windows = self._windows
        since, until = windows.since(decided_at).view(np.int64), int(decided_at.view(np.int64))
        wanted = windows.on(history.channels)
        return windows.kinds, since, until, wanted, self._columns, self._width

    @cached_property
    def pools(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Where each limit's counts stand, as `loops.keep_back` reads it."""
        own = [-1 if columns is None else columns.start for columns in self._own]
        allowed = [_allowed(limit) for limit in self._limits]
        return self._first[:-1], np.array(self._pool), np.array(own), np.array(allowed)

    @property
    def names(self) -> list[str]:
        """The names of the limits."""
        return [limit.name for limit in self._limits]

    def _table(self, history: ContactHistory, n_customers: int, decided_at: np.datetime64) -> Ints:
        if not len(history.customer):
            return np.zeros((n_customers, self._width + 1), dtype=np.int64)
        inside = self._windows.inside(history, decided_at)
        width = self._width + 1
        cells = self._columns.take(history.offer, axis=1, mode="wrap")  # -1, for none, is the last
        cells += history.customer * width
        counted: Ints = np.bincount(cells[inside], minlength=n_customers * width)
        return counted.astype(np.int64, copy=False).reshape(n_customers, width)


def _places(pool: Ints, first: int, *, everywhere: bool) -> Ints:
    """(m + 1,) the column of an event with each offer and with none; -1 if it does not count."""
    return np.append(np.where(pool >= 0, pool + first, -1), first if everywhere else -1)
