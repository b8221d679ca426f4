"""The contact policy: consent, caps, cool-offs and mutual exclusion, counted from past contacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from nextbest.decide.nullable import as_column
from nextbest.errors import DataError, did_you_mean

__all__ = [
    "KINDS",
    "ChannelLimits",
    "ContactHistory",
    "Counts",
    "Kind",
    "Limit",
    "Period",
    "QuietHours",
    "Scope",
    "Weekday",
    "consent",
    "reason",
]

Kind = Literal["contact", "acceptance", "refusal", "purchase"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_KIND_CODES: Mapping[str, int] = {kind: code for code, kind in enumerate(KINDS)}
Scope = Literal["customer", "channel", "offer", "category", "exclusivity_group"]
Period = Literal["day", "week", "month"]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)

Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.datetime64]
Mask = npt.NDArray[np.bool_]

_PERIOD_DAYS: Mapping[Period, float] = {"day": 2.0, "week": 8.0, "month": 32.0}
_MICROSECONDS_PER_DAY = 86_400_000_000
# Histories name the channels that somebody was contacted on: few sets of them come again and again.
_HISTORIES = 64
_PLURAL: Mapping[Kind, str] = {
    "contact": "contacts",
    "acceptance": "acceptances",
    "refusal": "refusals",
    "purchase": "purchases",
}
_ABOUT: Mapping[Scope, str] = {
    "customer": "",
    "channel": "",
    "offer": " with this offer",
    "category": " with offers of this category",
    "exclusivity_group": " with offers of this group",
}


@dataclass(frozen=True)
class ContactHistory:
    """What happened between us and the customers so far, one row per event, sorted by customer.

    Parameters
    ----------
    customer: row of the customer in the audience.
    offer: position of the offer in the catalogue; -1 for none, or one no longer in it.
    channel: position in ``channels``; -1 for none.
    time: when it happened, datetime64[us] in UTC.
    kind: position in ("contact", "acceptance", "refusal", "purchase").
    channels: names of the channels.
    """

    customer: Ints
    offer: Ints
    channel: Ints
    time: Times
    kind: Ints
    channels: tuple[str, ...]

    def __post_init__(self) -> None:
        rows = len(self.customer)
        if any(len(c) != rows for c in (self.offer, self.channel, self.time, self.kind)):
            raise DataError("contact history", "the columns differ in length")
        if rows and (self.customer[1:] < self.customer[:-1]).any():
            raise DataError("contact history", "rows are out of order", expected="by customer")

    @classmethod
    def empty(cls) -> ContactHistory:
        """A history in which nothing has happened."""
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, none, np.empty(0, dtype="datetime64[us]"), none, ())

    @classmethod
    def build(
        cls,
        customer_ids: Sequence[str],
        offer_ids: Sequence[str] | Mapping[str, int],
        *,
        customer_id: Sequence[str],
        offer_id: Sequence[str | None],
        channel: Sequence[str | None],
        time: npt.ArrayLike,
        kind: Sequence[str],
    ) -> ContactHistory:
        """Build a history from ids; events of customers outside the audience are left out.

        Parameters
        ----------
        customer_ids: ids of the audience, in its order.
        offer_ids: ids of the catalogue, in its order, or with their positions.
        customer_id, offer_id, channel, time, kind: one entry per event; offer and channel may be
            None (a purchase has neither); times are UTC.

        Raises
        ------
        DataError: a kind of event that we do not know.
        """
        rows = {c: i for i, c in enumerate(customer_ids)}
        offers: Any = offer_ids
        if not isinstance(offer_ids, Mapping):
            offers = {o: i for i, o in enumerate(offer_ids)}
        channels = tuple(sorted({c for c in channel if c is not None}))
        kinds = [_KIND_CODES.get(name, -1) for name in kind]
        if -1 in kinds:
            name = kind[kinds.index(-1)]
            raise DataError(
                "contact history",
                f'kind "{name}" is unknown',
                expected="one of " + ", ".join(KINDS),
                action=did_you_mean(name, KINDS),
            )
        at: Mapping[str | None, int] = {c: i for i, c in enumerate(channels)}
        customers = [rows.get(c, -1) for c in customer_id]
        events = np.array(
            [
                customers,
                [offers.get(o, -1) for o in offer_id],
                [at.get(c, -1) for c in channel],
                kinds,
            ],
            dtype=np.int64,
        )
        order = events[0].argsort(kind="stable")[customers.count(-1) :]
        events, moments = events[:, order], np.asarray(time, dtype="datetime64[us]")[order]
        return cls(events[0], events[1], events[2], moments, events[3], channels)

    def take(self, rows: Sequence[int] | npt.NDArray[np.intp]) -> ContactHistory:
        """Keep the events of some customers, renumbered in the order given."""
        starts = np.searchsorted(self.customer, rows, side="left")
        ends = np.searchsorted(self.customer, rows, side="right")
        sizes = ends - starts
        customer = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
        first = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        at = first + np.arange(len(customer))
        return ContactHistory(
            customer, self.offer[at], self.channel[at], self.time[at], self.kind[at], self.channels
        )


@dataclass(frozen=True)
class Limit:
    """At most ``at_most`` events of a kind within ``days``, counted within a scope.

    A limit on a calendar ``period`` counts since the local midnight in ``zone`` with which the day,
    the week (its Monday) or the month began; it has no days.

    Caps, cool-offs (at most none) and mutual exclusion (at most none of the *other* offers of the
    group) are all limits; ``form`` says which, for the reason that a customer's trace shows.
    """

    name: str
    form: Literal["cap", "cool_off", "exclusion"]
    kind: Kind
    days: float | None
    at_most: int
    scope: Scope
    channels: frozenset[str]
    period: Period | None = None
    zone: tzinfo = UTC

    def applies_to(self, channel: str) -> bool:
        """Say whether decisions on this channel are subject to the limit."""
        return not self.channels or channel in self.channels

    def since(self, decided_at: np.datetime64) -> np.datetime64:
        """The first moment that the limit counts; rolling days are open at their start."""
        if self.period is not None:
            return period_start(self.period, self.zone, decided_at)
        return decided_at - self.length

    @property
    def length(self) -> np.timedelta64:
        """So long ago the rolling days began to count; a period's depends on the moment."""
        microseconds = round((self.days or 0.0) * _MICROSECONDS_PER_DAY)
        return np.timedelta64(microseconds - 1, "us")

    @property
    def at_most_days(self) -> float:
        """So many days back it looks at most; a period's days, and one for the change of clocks."""
        return _PERIOD_DAYS[self.period] if self.period else self.days or 0.0

    @property
    def span(self) -> str:
        """How long the limit counts, in words."""
        if self.period is None:
            return f"in {self.days:g} days"
        return "on this day" if self.period == "day" else f"this {self.period}"


def period_start(period: Period, zone: tzinfo, moment: np.datetime64) -> np.datetime64:
    """When the local day, week (from Monday) or month of a moment began, in UTC."""
    aware = datetime.fromisoformat(str(moment.astype("datetime64[us]"))).replace(tzinfo=UTC)
    day = aware.astimezone(zone).date()
    if period == "week":
        day -= timedelta(days=day.weekday())
    elif period == "month":
        day = day.replace(day=1)
    midnight = datetime.combine(day, time(), tzinfo=zone).astimezone(UTC)
    return np.datetime64(midnight.replace(tzinfo=None), "us")


@dataclass(frozen=True)
class QuietHours:
    """Hours of the local clock in which a channel keeps silent.

    Parameters
    ----------
    starts_at, ends_at: local times; quiet from the first until just before the second. An end that
        is not after the start lies on the next day.
    weekdays: positions (Monday is 0) of the days on which the quiet hours start.
    channels: the channels that keep silent; empty for all.
    zone: whose clock; where clocks go back, an hour that comes twice is quiet twice.
    """

    name: str
    starts_at: time
    ends_at: time
    weekdays: frozenset[int]
    channels: frozenset[str]
    zone: tzinfo

    def applies_to(self, channel: str) -> bool:
        """Say whether the channel ever keeps silent."""
        return not self.channels or channel in self.channels

    def quiet(self, moment: datetime) -> bool:
        """Say whether an aware moment lies within the quiet hours."""
        local = moment.astimezone(self.zone)
        now, today = local.time(), local.weekday()
        starts_today = today in self.weekdays
        if self.starts_at < self.ends_at:
            return starts_today and self.starts_at <= now < self.ends_at
        started_yesterday = (today - 1) % 7 in self.weekdays
        return (starts_today and now >= self.starts_at) or (
            started_yesterday and now < self.ends_at
        )

    def reason(self, moment: datetime) -> str:
        """Say in words how the quiet hours stand at a moment."""
        local = moment.astimezone(self.zone)
        hours = f"{self.starts_at:%H:%M} to {self.ends_at:%H:%M}"
        day = WEEKDAYS[local.weekday()].capitalize()
        return f"quiet from {hours}; it is {day} {local:%H:%M} ({self.zone})"


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
        kinds = [_KIND_CODES[limit.kind] for limit in self.limits]
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


def consent(column: Any | None, unknown_allowed: bool, n_customers: int) -> Mask:
    """Say who may be contacted on a channel that needs consent.

    Parameters
    ----------
    column: the consent column (boolean, or 0/1, with None/NaN for unknown); None if there is none.
    unknown_allowed: what an unknown consent counts as.
    """
    if column is None:
        return np.full(n_customers, unknown_allowed)
    given, refused = as_column("boolean", column)
    allowed: Mask = ~refused if unknown_allowed else given
    return allowed


def reason(limit: Limit, number: int, channel: str) -> str:
    """Say in words how a limit stands where so many events count."""
    one, many = limit.kind, _PLURAL[limit.kind]
    about = _ABOUT[limit.scope]
    if limit.form == "exclusion":
        about = " with other offers of this group"
    if limit.scope == "channel":
        about = f" by {channel}"
    elif limit.channels:
        about += " by " + " or ".join(sorted(limit.channels))
    if limit.form == "cap":
        return f"{number} of {limit.at_most} {many}{about} {limit.span}"
    if not number:
        return f"no {one}{about} {limit.span}"
    wait = f"{limit.days:g} days to wait after one"
    return f"{number} {one if number == 1 else many}{about} {limit.span}, and {wait}"
