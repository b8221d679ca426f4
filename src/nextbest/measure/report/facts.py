"""Everything that the report says, as facts: measured once, then told, drawn and written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any, Final

import ibis

from nextbest.data.contract import History
from nextbest.errors import NextbestError
from nextbest.measure import segments as parts
from nextbest.measure.attribution import Attribution, attribute
from nextbest.measure.experiment import Reading as Experiment
from nextbest.measure.kpi.calendar import Calendar, calendar, steps
from nextbest.measure.kpi.definitions import declared
from nextbest.measure.kpi.read import Point, Reading, Wide, overall, per_segment, series
from nextbest.measure.kpi.rows import CUSTOMER, Period, Shop
from nextbest.measure.kpi.settings import Rates, ReportSettings
from nextbest.measure.log import DecisionLog
from nextbest.measure.report.campaigns import Campaign, campaigns
from nextbest.measure.report.cohorts import Cohort, cohorts
from nextbest.measure.report.drivers import Driver, drivers
from nextbest.measure.segments import Cuts, Migration

__all__ = ["Given", "ModelHealth", "Report", "Size", "Total", "gather"]

_TOTALS: Final = {
    "revenue": "Revenue", "orders": "Orders", "buyers": "Customers who bought",
    "new_customers": "New customers", "contacts": "Contacts",
}  # fmt: skip


@dataclass(frozen=True)
class ModelHealth:
    """A model in use, and whether it keeps within its limits.

    Attributes
    ----------
    metric, value, low, high, baseline : the figure that decides, on its test rows, beside the
        simple rule's.
    checks : (what, figure, limit, within) of every health limit.
    drift : ``ok``, ``watch``, ``alarm``, or why it is not known.
    moved : what has moved since training, in words.
    """

    name: str
    version: int
    trained_at: datetime
    metric: str
    value: float
    low: float
    high: float
    baseline_name: str
    baseline: float | None
    checks: tuple[tuple[str, float, float, bool], ...]
    drift: str
    moved: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether no limit is broken and nothing has moved to an alarm."""
        return all(ok for *_, ok in self.checks) and self.drift != "alarm"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        names = ("what", "figure", "limit", "within")
        return {
            **vars(self), "trained_at": self.trained_at.isoformat(), "healthy": self.healthy,
            "checks": [dict(zip(names, c, strict=True)) for c in self.checks],
        }  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What the report tells of, beside the shop's tables.

    Attributes
    ----------
    scores : Arrow table of customer_id and clv, as models see customers now.
    log : the decision log; contacts and responses then come from it.
    models : those in use.
    experiment : arms compared, or None where ``no_experiment`` says why there is none.
    simulated : outcomes are those of a simulation; the page says so on top.
    """

    scores: Any = None
    log: DecisionLog | None = None
    models: tuple[ModelHealth, ...] = ()
    experiment: Experiment | None = None
    no_experiment: str = "nobody was held out, so no effect of the offers is proven"
    simulated: bool = False


@dataclass(frozen=True)
class Total:
    """A plain count or sum of the period, and the same in the baseline."""

    name: str
    title: str
    value: float
    before: float

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class Size:
    """How many customers a segment holds at the start of the period and at its end.

    ``value`` is what they were worth over the look-back days.
    """

    dimension: str
    segment: str
    customers_before: int
    customers: int
    value_before: float
    value: float

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class Report:
    """What happened in a period, held against a baseline.

    Attributes
    ----------
    missing : parts of the report that could not be made, with the reason.
    """

    project: str
    calendar: Calendar
    made_at: datetime
    settings: ReportSettings
    given: Given
    value_basis: str
    contacts_from: str
    totals: tuple[Total, ...]
    drivers: tuple[Driver, ...]
    kpis: tuple[Reading, ...]
    points: tuple[Point, ...]
    cuts: Cuts | None
    sizes: tuple[Size, ...]
    segments: tuple[Reading, ...]
    migrations: tuple[Migration, ...]
    cohorts: tuple[Cohort, ...]
    offers: tuple[Campaign, ...]
    channels: tuple[Campaign, ...]
    attribution: Attribution | None
    missing: Mapping[str, str] = field(default_factory=dict)

    def kpi(self, name: str) -> Reading:
        """Return one key figure."""
        return next(r for r in self.kpis if r.kpi.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        from nextbest.measure.report.findings import findings

        c = self.calendar
        experiment = self.given.experiment
        return {
            "project": self.project, "made_at": f"{self.made_at.isoformat()}Z",
            "simulated": self.given.simulated,
            "period": {"from": f"{c.day(c.current.starts_at)}", "to": f"{c.last_day(c.current)}"},
            "baseline": {"from": f"{c.day(c.baseline.starts_at)}",
                         "to": f"{c.last_day(c.baseline)}"},
            "value_basis": self.value_basis, "contacts_from": self.contacts_from,
            "findings": [f.to_dict() for f in findings(self)],
            "totals": [t.to_dict() for t in self.totals],
            "drivers": [d.to_dict() for d in self.drivers],
            "kpis": [r.to_dict() for r in self.kpis],
            "series": [p.to_dict() for p in self.points],
            "cuts": self.cuts and self.cuts.to_dict(),
            "segment_sizes": [s.to_dict() for s in self.sizes],
            "segments": [r.to_dict() for r in self.segments],
            "migrations": [m.to_dict() for m in self.migrations],
            "cohorts": [o.to_dict() for o in self.cohorts],
            "offers": [o.to_dict() for o in self.offers],
            "channels": [o.to_dict() for o in self.channels],
            "attribution": self.attribution and self.attribution.to_dict(),
            "experiment": experiment.to_dict() if experiment else None,
            "no_experiment": "" if experiment else self.given.no_experiment,
            "models": [m.to_dict() for m in self.given.models],
            "missing": dict(self.missing),
        }  # fmt: skip


def gather(
    project: str,
    history: History,
    settings: ReportSettings,
    rates: Rates,
    zone: tzinfo,
    given: Given,
    *,
    made_at: datetime,
    until: datetime | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure everything that the report says.

    Parameters
    ----------
    project : its name. zone : the shop's clock.
    rates : costs as numbers. given : what is told beside the tables.
    until : first instant after the period (naive UTC); that of the data if None.

    Raises
    ------
    DataError : the data do not cover the period and its baseline.
    ConfigError : the report's settings do not fit the data.
    """
    days = calendar(settings.period, history, zone, until)
    progress("prepare orders and contacts")
    scores = None if given.scores is None else ibis.memtable(given.scores)
    shop = Shop(history, settings, rates, scores, given.log)
    now, then = days.current, days.baseline
    missing: dict[str, str] = {}
    cuts = None
    dimensions: tuple[str, ...] = ()
    try:
        cuts = parts.cut_offs(shop, then.starts_at)
    except NextbestError as error:
        missing["segments"] = str(error)
    moments = sorted({then.starts_at, then.ends_at, now.starts_at, now.ends_at})
    if cuts is not None:
        progress("part customers")
        dimensions = parts.dimensions(shop)
        assigned = parts.assign(shop, cuts, moments)
    else:
        assigned = _nobody(shop)
    weeks = list(steps(days, then, "week"))
    shown = [*steps(days, then, settings.period.every), *steps(days, now, settings.period.every)]
    spans = {p.name: p for p in (then, now, *weeks, *shown)}
    parted_at = {
        p.name: then.starts_at if p.ends_at <= then.ends_at else now.starts_at
        for p in spans.values()
    }
    progress("add up the key figures")
    wide = Wide(shop, _kpis(settings, has_tiers=cuts is not None), list(spans.values()), parted_at,
                assigned, dimensions)  # fmt: skip
    found: Attribution | None = None
    try:
        progress("credit the contacts")
        found = attribute(shop, now)
    except NextbestError as error:
        missing["attribution"] = str(error)
    progress("hold every segment against the baseline")
    counted = _counted(shop, (then, now))
    return Report(
        project, days, made_at, settings, given, shop.value_basis,
        "log" if given.log is not None else "data", _totals(counted), _drivers(counted),
        overall(wide, now.name, then.name, [w.name for w in weeks]),
        series(wide, days, settings.period.every),
        cuts,
        _sizes(assigned, dimensions, now) if cuts else (),
        per_segment(wide, now.name, then.name),
        tuple(m for d in ("value_tier", "lifecycle") if d in dimensions
              for m in parts.migration(assigned, d, now.starts_at, now.ends_at)),
        cohorts(shop, days), campaigns(shop, now, "offer_id"), campaigns(shop, now, "channel"),
        found, missing,
    )  # fmt: skip


def _kpis(settings: ReportSettings, *, has_tiers: bool) -> Sequence[Any]:
    return [k for k in declared(settings) if has_tiers or k.name != "hvc_value_share"]


def _nobody(shop: Shop) -> ibis.Table:
    """A table of segments without a row, where customers cannot be parted."""
    t = shop.known.select(CUSTOMER, moment=shop.known.since)
    return t.filter(ibis.literal(False))


def _counted(shop: Shop, periods: Sequence[Period]) -> list[dict[str, float]]:
    t = shop.rows(periods)
    if shop.contacts is None:
        t = t.mutate(contacts=0.0)
    counts = t.group_by("period").aggregate(
        customers=t.count(), buyers=t.bought.sum(), orders=t.orders.sum(),
        revenue=t.revenue.sum(), new_customers=t.is_new.sum(),
        contacts=t.contacts.sum(),
    )  # fmt: skip
    rows = {r["period"]: r for r in counts.to_pyarrow().to_pylist()}
    names = ("customers", "buyers", "orders", "revenue", "new_customers", "contacts")
    return [
        {n: float(rows[p.name][n] or 0.0) if p.name in rows else 0.0 for n in names}
        for p in periods
    ]


def _totals(counted: Sequence[Mapping[str, float]]) -> tuple[Total, ...]:
    before, now = counted
    return tuple(Total(n, title, now[n], before[n]) for n, title in _TOTALS.items())


def _drivers(counted: Sequence[Mapping[str, float]]) -> tuple[Driver, ...]:
    before, now = ((c["customers"], c["buyers"], c["orders"], c["revenue"]) for c in counted)
    return drivers(before, now)


def _sizes(assigned: ibis.Table, dimensions: Sequence[str], now: Period) -> tuple[Size, ...]:
    made = []
    for dimension in dimensions:
        t = assigned
        at_end = t.moment == ibis.literal(now.ends_at, type="timestamp")
        at_start = t.moment == ibis.literal(now.starts_at, type="timestamp")
        rows = t.group_by(segment=t[dimension]).aggregate(
            customers=at_end.sum(), customers_before=at_start.sum(),
            value=at_end.ifelse(t.value, 0.0).sum(),
            value_before=at_start.ifelse(t.value, 0.0).sum(),
        )  # fmt: skip
        found = [
            Size(dimension, r["segment"], int(r["customers_before"]), int(r["customers"]),
                 float(r["value_before"]), float(r["value"]))
            for r in rows.to_pyarrow().to_pylist()
        ]  # fmt: skip
        made += sorted(found, key=lambda s: parts.place(dimension, s.segment))
    return tuple(made)


def slipped(report: Report) -> tuple[list[Migration], list[Migration]]:
    """Return who came into the top value tier over the period, and who left it."""
    tiers = [m for m in report.migrations if m.dimension == "value_tier"]
    came = [m for m in tiers if m.after == parts.HVC and m.before != parts.HVC]
    left = [m for m in tiers if m.before == parts.HVC and m.after != parts.HVC]
    return came, left
