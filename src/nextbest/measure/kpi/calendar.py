"""The days that are reported and the days they are held against, by the shop's own clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import pairwise
from typing import Final, Literal

from nextbest.data.contract import History
from nextbest.errors import DataError
from nextbest.measure.kpi.rows import Period
from nextbest.measure.kpi.settings import FILE, PeriodSettings

__all__ = ["Calendar", "calendar", "steps"]

_YEAR_DAYS: Final = 364  # whole weeks, so that weekdays fall on weekdays
Every = Literal["day", "week", "month"]


@dataclass(frozen=True)
class Calendar:
    """The period, its baseline, and the shop's clock."""

    current: Period
    baseline: Period
    zone: tzinfo

    def day(self, moment: datetime) -> date:
        """Return the shop's own date at a moment of naive UTC."""
        return moment.replace(tzinfo=UTC).astimezone(self.zone).date()

    def last_day(self, period: Period) -> date:
        """Return the last date that a period covers."""
        return self.day(period.ends_at) - timedelta(days=1)


def calendar(
    settings: PeriodSettings, history: History, zone: tzinfo, until: datetime | None = None
) -> Calendar:
    """Return the period that ends with the last complete day, and a baseline of the same length.

    Parameters: ``until`` first instant after the period (naive UTC); that of the data if None.

    Raises
    ------
    DataError : the data do not cover both, or they overlap.
    """
    end = min(until or history.observed_until, history.observed_until)
    last = end.replace(tzinfo=UTC).astimezone(zone).date()
    length = timedelta(days=settings.days)
    first = last - length
    if isinstance(settings.baseline, date):
        before = settings.baseline
    else:
        back = length if settings.baseline == "before" else timedelta(days=_YEAR_DAYS)
        before = first - back
    where = f"{FILE}: [period]"
    if before + length > first:
        raise DataError(where, "the baseline runs into the period",
                        expected=f"a baseline that starts by {first - length}",
                        got=str(before))  # fmt: skip
    found = Calendar(
        Period("current", _utc(first, zone), _utc(last, zone)),
        Period("baseline", _utc(before, zone), _utc(before + length, zone)),
        zone,
    )
    begin = history.data_start
    if begin > found.baseline.starts_at + timedelta(days=1):
        raise DataError(
            where, "the data do not cover the baseline",
            expected=f"data from {before} on, for {settings.days} days and as many before them",
            got=f"data from {found.day(begin)} on", action="Report fewer days, or a later period.",
        )  # fmt: skip
    return found


def steps(calendar: Calendar, period: Period, every: Every) -> Iterator[Period]:
    """Yield the whole days, weeks or months of a period; a part of one at its edge is left out.

    Weeks end with the period, so that the last one is complete.
    """
    first, end = calendar.day(period.starts_at), calendar.day(period.ends_at)
    days = (end - first).days
    if every == "month":
        bounds = [d for d in (first + timedelta(days=i) for i in range(days + 1)) if d.day == 1]
    else:
        size = 1 if every == "day" else 7
        bounds = [first + timedelta(days=i) for i in range(days % size, days + 1, size)]
    for a, b in pairwise(bounds):
        zone = calendar.zone
        yield Period(f"{every} {a.isoformat()}", _utc(a, zone), _utc(b, zone))


def _utc(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time(), tzinfo=zone).astimezone(UTC).replace(tzinfo=None)
