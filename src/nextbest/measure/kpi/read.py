"""Key figures of a period against a baseline: overall, per segment, and step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, Literal

import ibis
from scipy.stats import t as student

from nextbest.measure.intervals import Interval
from nextbest.measure.kpi import moments
from nextbest.measure.kpi.calendar import Calendar, Every, steps
from nextbest.measure.kpi.definitions import Kpi, own_sums
from nextbest.measure.kpi.moments import Change, Moments, Swing
from nextbest.measure.kpi.rows import (
    CUSTOMER,
    PERIOD,
    UNKNOWN,
    Period,
    Shop,
    periods_table,
)
from nextbest.measure.many import Correction, adjusted, level_of_each

__all__ = [
    "NOT_YET_KNOWN", "Flag", "Point", "Reading", "Wide", "moments_by", "overall", "per_segment",
    "series",
]  # fmt: skip

#: Segment of customers who came only after the period had begun.
NOT_YET_KNOWN: Final = "not yet known"
#: Steps of the baseline that limits of a series need.
_FEWEST_STEPS: Final = 8
_D2: Final = 1.128
_APART: Final = "\x1f"

Flag = Literal["up", "down", "steady", "not enough", "absent"]


@dataclass(frozen=True)
class Reading:
    """A key figure of a period beside its baseline, for everybody or one segment.

    Attributes
    ----------
    value : the figure with its interval; None where ``why`` says why there is none.
    before : the figure in the baseline.
    change : how far apart they are; None where ``why`` says why nobody can say.
    customers : with a part in the figure in the period.
    together : the change with the interval that holds for all that are judged beside it at once.
    p_adjusted : the change's p-value among all of these.
    flag : ``up`` and ``down`` are beyond noise, ``steady`` is not.
    """

    kpi: Kpi
    dimension: str
    segment: str
    customers: int
    value: Interval | None
    before: float | None
    change: Change | None
    flag: Flag
    why: str = ""
    p_adjusted: float | None = None
    together: Interval | None = None

    @property
    def news(self) -> Literal["good", "bad", "neutral", ""]:
        """What the flag means for the shop; nothing where nothing has moved."""
        if self.flag not in ("up", "down"):
            return ""
        if self.kpi.better == "either":
            return "neutral"
        return "good" if (self.flag == "up") == (self.kpi.better == "higher") else "bad"

    def to_dict(self) -> dict[str, Any]:
        """Return the reading as plain JSON types."""
        k = self.kpi
        return {
            "kpi": k.name, "title": k.title, "meaning": k.meaning, "unit": k.unit,
            "timing": k.timing, "better": k.better,
            "dimension": self.dimension, "segment": self.segment, "customers": self.customers,
            "value": self.value and self.value.to_dict(), "before": self.before,
            "change": self.change and self.change.to_dict(), "p_adjusted": self.p_adjusted,
            "together": self.together and self.together.to_dict(),
            "flag": self.flag, "news": self.news, "why": self.why,
        }  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A key figure of one day, week or month.

    Attributes
    ----------
    value : the figure with its interval; None where ``why`` says why there is none.
    in_baseline : it is one of those that the others are held against.
    low, high : between them it is within the usual; None where there are too few to say.
    flag : ``up`` or ``down`` where it lies outside by more than chance, all steps counted.
    """

    kpi: str
    step: str
    starts_at: datetime
    in_baseline: bool
    value: Interval | None
    why: str = ""
    low: float | None = None
    high: float | None = None
    flag: Flag = "not enough"

    def to_dict(self) -> dict[str, Any]:
        """Return the point as plain JSON types."""
        return {
            **vars(self), "starts_at": f"{self.starts_at.isoformat()}Z",
            "value": self.value and self.value.to_dict(),
        }  # fmt: skip


class Wide:
    """Customers' rows of several periods with their segments, kept in the database.

    Parameters
    ----------
    periods : those to have rows of.
    moments : of each period by name, when its customers were parted.
    assigned : from `segments.assign`.
    kpis : those that will be asked for; a figure without input is not computed.
    """

    def __init__(
        self,
        shop: Shop,
        kpis: Sequence[Kpi],
        periods: Sequence[Period],
        moments_of: Mapping[str, datetime],
        assigned: ibis.Table,
        dimensions: Sequence[str],
    ) -> None:
        self.shop = shop
        self.absent = {k.name: reason for k in kpis if (reason := k.needs(shop))}
        self.kpis = tuple(k for k in kpis if k.name not in self.absent)
        self.all_kpis = tuple(kpis)
        self._pairs: dict[tuple[str, str], dict[str, dict[str, list[Moments]]]] = {}
        self._singles: dict[str, list[Moments]] | None = None
        self.dimensions = tuple(dimensions)
        t = shop.rows(periods)
        for part in own_sums(shop, periods_table(periods)):
            t = t.left_join(part, [PERIOD, CUSTOMER])
            t = t.drop(f"{PERIOD}_right", f"{CUSTOMER}_right")
            t = t.mutate(**{c: t[c].fill_null(0.0) for c in part.columns
                            if c not in (PERIOD, CUSTOMER)})  # fmt: skip
        if shop.scores is not None and "clv" in shop.scores.columns:
            t = t.left_join(shop.scores.select(CUSTOMER, "clv"), CUSTOMER)
            t = t.drop(f"{CUSTOMER}_right")
        when = ibis.memtable(
            {PERIOD: [p.name for p in periods], "moment": [moments_of[p.name] for p in periods]},
            schema=ibis.schema({PERIOD: "string", "moment": "timestamp"}),
        )
        t = t.inner_join(when, PERIOD)
        # What the customers table says holds for new customers too.
        own = [d for d in dimensions if d in shop.settings.customers.by]
        people = shop.tables["customers"]
        about = {d: people[d].cast("string").fill_null(UNKNOWN) for d in own}
        t = t.left_join(people.select(CUSTOMER, **about), CUSTOMER).drop(f"{CUSTOMER}_right")
        parted = assigned.select("moment", CUSTOMER, *(d for d in dimensions if d not in own))
        t = t.left_join(parted, ["moment", CUSTOMER])
        t = t.drop(*(c for c in t.columns if c.endswith("_right")))
        named = {d: t[d].fill_null(NOT_YET_KNOWN) for d in dimensions}
        t = t.mutate(**named)
        terms = {}
        for i, k in enumerate(self.kpis):
            terms[f"y{i}"] = k.top(t).cast("float64").fill_null(0.0)
            terms[f"x{i}"] = k.bottom(t).cast("float64").fill_null(0.0)
        self.table = shop.keep(t.select(PERIOD, CUSTOMER, *dimensions, **terms))

    def pairs(self, current: str, baseline: str) -> dict[str, dict[str, list[Moments]]]:
        """Return the moments of all figures, now against the baseline, by dimension and segment.

        The dimension of everybody has no name, nor has its one segment.
        """
        key = (current, baseline)
        if key not in self._pairs:
            self._pairs[key] = self._add_up(current, baseline)
        return self._pairs[key]

    def _add_up(self, current: str, baseline: str) -> dict[str, dict[str, list[Moments]]]:
        t = self.table
        t = t.filter(t[PERIOD].isin([current, baseline]))
        now = t[PERIOD] == current
        each = {}
        for i in range(len(self.kpis)):
            for name, mask, column in (
                ("y", now, f"y{i}"), ("x", now, f"x{i}"), ("v", ~now, f"y{i}"),
                ("u", ~now, f"x{i}"),
            ):  # fmt: skip
                each[f"{name}{i}"] = mask.ifelse(t[column], 0.0)
        t = t.select(CUSTOMER, *self.dimensions, **each)
        # One query for all dimensions: each customer is once in every one of them.
        parts = [
            t.select(CUSTOMER, *each, cell=ibis.literal(f"{d}{_APART}") + (t[d] if d else ""))
            for d in ("", *self.dimensions)
        ]
        cells = ibis.union(parts[0], *parts[1:]) if len(parts) > 1 else parts[0]
        people = cells.group_by("cell", CUSTOMER).aggregate(**{c: cells[c].sum() for c in each})
        found: dict[str, dict[str, list[Moments]]] = {d: {} for d in ("", *self.dimensions)}
        for cell, sums in moments_by(people, "cell", len(self.kpis)).items():
            dimension, _, segment = cell.partition(_APART)
            found[dimension][segment] = sums
        return found

    def singles(self) -> dict[str, list[Moments]]:
        """Return the moments of all figures by period, without a baseline."""
        if self._singles is None:
            zero = {f"{a}{i}": ibis.literal(0.0) for i in range(len(self.kpis)) for a in "vu"}
            self._singles = moments_by(self.table.mutate(**zero), PERIOD, len(self.kpis))
        return self._singles


def moments_by(people: ibis.Table, by: str, count: int) -> dict[str, list[Moments]]:
    """Reduce customers to moments, one list of figures for each value of a column.

    Parameters
    ----------
    people : one row per customer and value of ``by``, with ``y<i>``, ``x<i>`` now and ``v<i>``,
        ``u<i>`` in the baseline, for i below ``count``.
    """
    columns: dict[str, Any] = {}
    for i in range(count):
        columns |= _sums(people, i)
    found = people.group_by(by).aggregate(**columns).to_pyarrow().to_pylist()
    return {row[by]: [_moment(row, i) for i in range(count)] for row in found}


def _sums(t: ibis.Table, i: int) -> dict[str, Any]:
    of = {a: t[f"{a}{i}"] for a in "yxvu"}
    now, then = (of["y"] != 0) | (of["x"] != 0), (of["v"] != 0) | (of["u"] != 0)
    yes = [c.isin([0.0, 1.0]) for c in of.values()]
    binary = yes[0] & yes[1] & yes[2] & yes[3] & (of["y"] <= of["x"]) & (of["v"] <= of["u"])
    return {
        f"n{i}": now.sum(), f"n_before{i}": then.sum(), f"n_either{i}": (now | then).sum(),
        f"active{i}": (of["y"] != 0).sum(), f"active_before{i}": (of["v"] != 0).sum(),
        f"binary{i}": binary.all(),
        **{f"{a}{i}": c.sum() for a, c in of.items()},
        **{f"{p}{i}": (of[p[0]] * of[p[1]]).sum() for p in moments.PRODUCTS},
    }  # fmt: skip


def _moment(row: Mapping[str, Any], i: int) -> Moments:
    def whole(name: str) -> int:
        return int(row[f"{name}{i}"])

    def number(name: str) -> float:
        return float(row[f"{name}{i}"])

    return Moments(
        whole("n"), whole("n_before"), whole("n_either"),
        number("y"), number("x"), number("v"), number("u"),
        {p: number(p) for p in moments.PRODUCTS}, whole("active"), whole("active_before"),
        bool(row[f"binary{i}"]),
    )  # fmt: skip


# ------------------------------------------------------------------ against the baseline


def overall(
    wide: Wide, current: str, baseline: str, weeks: Sequence[str], alpha: float = 0.05
) -> tuple[Reading, ...]:
    """Return every declared figure, with its change where one can be judged.

    Parameters
    ----------
    weeks : names of the baseline's weeks, in order, from which the usual swing is taken.
    alpha : of every interval, and of a false flag among all figures (Holm 1979).
    """
    found = wide.pairs(current, baseline)[""].get("")
    by_week = wide.singles() if weeks else {}
    swings = [
        moments.swing([_value(by_week, w, i) for w in weeks]) if k.over_time != "none" else None
        for i, k in enumerate(wide.kpis)
    ]
    asked = [
        _Asked(kpi, "", "", found[i] if found else None, swings[i], len(weeks))
        for i, kpi in enumerate(wide.kpis)
    ]
    by_name = {r.kpi.name: r for r in _flagged(asked, "holm", alpha)}
    return tuple(by_name.get(k.name) or _absent(k, wide.absent[k.name]) for k in wide.all_kpis)


def _value(by_period: Mapping[str, list[Moments]], name: str, i: int) -> float | None:
    return by_period[name][i].value if name in by_period else None


def per_segment(
    wide: Wide, current: str, baseline: str, alpha: float = 0.05
) -> tuple[Reading, ...]:
    """Return every figure for every segment of every dimension.

    A customer is in the segment of the start of either period: those who were champions then are
    held against those who were champions before. Flags keep the expected share of false ones
    among them to alpha (Benjamini & Hochberg 1995). ``not yet known`` is left out.
    """
    asked = [
        _Asked(kpi, dimension, segment, found[i])
        for dimension in wide.dimensions
        for segment, found in sorted(wide.pairs(current, baseline)[dimension].items())
        if segment != NOT_YET_KNOWN
        for i, kpi in enumerate(wide.kpis)
    ]
    return tuple(_flagged(asked, "bh", alpha))


@dataclass(frozen=True)
class _Asked:
    """A figure to read: of whom, from which moments, and how it moves by itself."""

    kpi: Kpi
    dimension: str
    segment: str
    moments: Moments | None
    swings: Swing | None = None
    weeks: int = 1


def _absent(kpi: Kpi, reason: str) -> Reading:
    return Reading(kpi, "", "", 0, None, None, None, "absent", reason)


def _read(asked: _Asked, alpha: float) -> Reading:
    kpi, m = asked.kpi, asked.moments
    place = (kpi, asked.dimension, asked.segment)
    if m is None:
        return Reading(*place, 0, None, None, None, "not enough", "there is no customer")
    shown = moments.level(m, alpha, kpi.who)
    if isinstance(shown, str):
        return Reading(*place, m.n, None, m.before, None, "not enough", shown)
    if kpi.today_only:
        reason = "models see customers as they are now; there is no figure for the baseline"
        return Reading(*place, m.n, shown, None, None, "not enough", reason)
    moved = _moved(asked, m, alpha)
    if isinstance(moved, str):
        return Reading(*place, m.n, shown, m.before, None, "not enough", moved)
    return Reading(*place, m.n, shown, m.before, moved, "steady")


def _moved(asked: _Asked, m: Moments, alpha: float) -> Change | str:
    total = asked.kpi.over_time == "sum"
    return moments.change(
        m, alpha, swings=asked.swings, steps=asked.weeks, total=total, who=asked.kpi.who
    )


def _flagged(asked: Sequence[_Asked], how: Correction, alpha: float) -> list[Reading]:
    """Read a family of figures and flag each at the level that all of them ask for together."""
    read = [_read(a, alpha) for a in asked]
    p = adjusted([r.change.p_value for r in read if r.change is not None], how)
    each = level_of_each(p, how, alpha) if p else alpha
    corrected = iter(p)
    made = []
    for a, r in zip(asked, read, strict=True):
        if r.change is None or a.moments is None:
            made.append(r)
            continue
        own = next(corrected)
        flag: Flag = "steady"
        if own <= alpha:
            flag = "up" if r.change.difference.value > 0 else "down"
        strict = _moved(a, a.moments, each)
        together = None if isinstance(strict, str) else strict.difference
        made.append(replace(r, p_adjusted=own, flag=flag, together=together))
    return made


# ------------------------------------------------------------------ step by step


def series(wide: Wide, calendar: Calendar, every: Every, alpha: float = 0.05) -> tuple[Point, ...]:
    """Return every figure for each whole day, week or month of baseline and period.

    A step is flagged where it lies outside what the baseline's steps lead to expect. The limits
    are Laney's (2002): the interval of the step's own customers, widened or narrowed by how much
    the steps of the baseline in fact differ from each other, so that neither many customers make
    everything remarkable nor few make nothing so. Flags of one figure are corrected for its many
    steps (Benjamini & Hochberg 1995).
    """
    spans = [(p, True) for p in steps(calendar, calendar.baseline, every)]
    spans += [(p, False) for p in steps(calendar, calendar.current, every)]
    found = wide.singles()
    made: list[Point] = []
    for i, kpi in enumerate(wide.kpis):
        if kpi.today_only:
            continue
        points, spreads = [], []
        for period, before in spans:
            m = found[period.name][i] if period.name in found else None
            shown = moments.level(m, alpha, kpi.who) if m else "there is no customer"
            name = period.name.partition(" ")[2]
            at = (kpi.name, name, period.starts_at, before)
            points.append(Point(*at, None, shown) if isinstance(shown, str) else Point(*at, shown))
            spreads.append(_spread(m) if m and not isinstance(shown, str) else 0.0)
        centre = _centre(found, [p.name for p, before in spans if before], i)
        made += _limits(points, spreads, centre, alpha)
    return tuple(made)


def _spread(m: Moments) -> float:
    """Standard error of a figure between customers."""
    value = m.y / m.x
    p = m.products
    around = p["yy"] - 2 * value * p["xy"] + value**2 * p["xx"]
    return float((max(0.0, around) * m.n / (m.n - 1)) ** 0.5 / m.x)


def _centre(found: Mapping[str, list[Moments]], names: Iterable[str], i: int) -> float | None:
    parts = [found[n][i] for n in names if n in found]
    below = sum(m.x for m in parts)
    return sum(m.y for m in parts) / below if below > 0 else None


def _limits(
    points: Sequence[Point], spreads: Sequence[float], centre: float | None, alpha: float
) -> list[Point]:
    """Hold each step against the baseline's, by Laney's limits."""
    usable = [
        (p.value.value - centre) / s
        for p, s in zip(points, spreads, strict=True)
        if p.in_baseline and p.value is not None and s > 0 and centre is not None
    ]
    if len(usable) < _FEWEST_STEPS or centre is None:
        return list(points)
    ranges = [abs(b - a) for a, b in pairwise(usable)]
    width = sum(ranges) / len(ranges) / _D2
    if width == 0:
        return list(points)
    freedom = Swing(width, len(usable)).freedom
    edge = float(student.isf(alpha / 2, freedom)) * width
    made = []
    new = [p.value is not None and s > 0 and not p.in_baseline
           for p, s in zip(points, spreads, strict=True)]  # fmt: skip
    p_values = [
        float(2 * student.sf(abs(p.value.value - centre) / (s * width), freedom))
        for p, s, is_new in zip(points, spreads, new, strict=True)
        if is_new and p.value is not None
    ]
    corrected = iter(adjusted(p_values, "bh"))
    for point, s, is_new in zip(points, spreads, new, strict=True):
        if point.value is None or s == 0:
            made.append(point)
            continue
        flag: Flag = "steady"
        if is_new and next(corrected) <= alpha:
            flag = "up" if point.value.value > centre else "down"
        made.append(replace(point, low=centre - edge * s, high=centre + edge * s, flag=flag))
    return made
