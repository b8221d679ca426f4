"""The contact policy: consent, quiet hours, and limits on past contacts in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from nextbest.decide.nullable import as_column
from nextbest.errors import DataError, did_you_mean

__all__ = [
    "KINDS",
    "KIND_CODES",
    "ContactHistory",
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
KIND_CODES: Mapping[str, int] = {kind: code for code, kind in enumerate(KINDS)}
Scope = Literal["customer", "channel", "offer", "category", "exclusivity_group"]
Period = Literal["day", "week", "month"]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)

Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.datetime64]
Mask = npt.NDArray[np.bool_]

_PERIOD_DAYS: Mapping[Period, float] = {"day": 2.0, "week": 8.0, "month": 32.0}
_MICROSECONDS_PER_DAY = 86_400_000_000
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
        kinds = [KIND_CODES.get(name, -1) for name in kind]
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
