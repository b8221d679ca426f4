"""Parts of the customer base that keep their meaning: value tiers, RFM segments, lifecycle, rules.

Where a part ends is fixed once, at the start of the baseline, and held for every later moment. So
nobody moves because others bought more: only what a customer did or left undone moves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import ibis

from nextbest.decide.rules import Column, compile_rule
from nextbest.errors import ConfigError, DataError, Fault, RuleError, did_you_mean
from nextbest.measure.kpi.check import RULE_COLUMNS
from nextbest.measure.kpi.definitions import HVC, typed
from nextbest.measure.kpi.rows import CUSTOMER, UNKNOWN, Shop
from nextbest.measure.kpi.settings import FILE

__all__ = [
    "GRID", "HVC", "LIFECYCLE", "RFM_ORDER", "TIERS", "UNKNOWN", "Cuts", "Migration",
    "assign", "cut_offs", "dimensions", "migration", "place", "rfm_name",
]  # fmt: skip

#: Segment of each recency score (rows, 5 = bought last) and frequency score (columns 1 to 5).
#: The 5 × 5 grid that RFM dashboards commonly show, under the names that Putler made known:
#: recency against how often and how much, these two averaged.
GRID: Final[Mapping[int, tuple[str, str, str, str, str]]] = {
    5: ("new", "potential loyalists", "potential loyalists", "champions", "champions"),
    4: ("promising", "potential loyalists", "potential loyalists", "loyal", "loyal"),
    3: ("about to sleep", "about to sleep", "need attention", "loyal", "loyal"),
    2: ("hibernating", "hibernating", "at risk", "at risk", "cannot lose"),
    1: ("hibernating", "hibernating", "at risk", "at risk", "cannot lose"),
}
_GONE, _NEVER = "lost", "never bought"
RFM_ORDER: Final = (
    "champions", "loyal", "potential loyalists", "new", "promising", "need attention",
    "about to sleep", "cannot lose", "at risk", "hibernating", _GONE, _NEVER,
)  # fmt: skip
TIERS: Final = (HVC, "middle", "low", "nothing")
LIFECYCLE: Final = ("new", "active", "won back", "at risk", "lapsed", _NEVER)
_ORDERS: Final[Mapping[str, Sequence[str]]] = {
    "value_tier": TIERS, "rfm_segment": RFM_ORDER, "lifecycle": LIFECYCLE,
}  # fmt: skip
_FIFTHS: Final = (0.2, 0.4, 0.6, 0.8)
_FEWEST: Final = 50
_REST: Final = "others"


@dataclass(frozen=True)
class Cuts:
    """Where the parts end: fixed at one moment, used at all others.

    Attributes
    ----------
    as_of : the moment.
    customers : buyers of the look-back days then, from whom they were taken.
    recency, frequency, monetary : the four bounds between the five scores, ascending.
    high, middle : value from which a customer is in the upper tiers; above, not at.
    """

    as_of: datetime
    customers: int
    recency: tuple[float, ...]
    frequency: tuple[float, ...]
    monetary: tuple[float, ...]
    high: float
    middle: float

    def to_dict(self) -> dict[str, Any]:
        """Return the bounds as plain JSON types."""
        return {**vars(self), "as_of": f"{self.as_of.isoformat()}Z"}


def rfm_name(recency: int, frequency: int, monetary: int) -> str:
    """Return the segment of three scores from 1 to 5.

    Frequency and money count as one, their mean rounded up: of two customers who come as often,
    the one who spends more is not in the lesser segment.
    """
    return GRID[recency][(frequency + monetary + 1) // 2 - 1]


def _features(shop: Shop, moments: Sequence[datetime]) -> ibis.Table:
    """One row per moment and customer known by then: what they did in the look-back days."""
    people = shop.settings.customers
    rows = {
        "moment": list(moments),
        "from_": [m - timedelta(days=people.lookback_days) for m in moments],
    }
    when = ibis.memtable(rows, schema=ibis.schema({"moment": "timestamp", "from_": "timestamp"}))
    base = shop.known.cross_join(when)
    base = base.filter(base.since < base.moment)
    o = shop.orders
    o = o.filter(o.amount > 0)
    # A gap before each order tells who came back.
    o = o.mutate(previous=o["at"].lag().over(ibis.window(group_by=CUSTOMER, order_by=o["at"])))
    t = when.inner_join(o, [o["at"] < when.moment])
    recent = t["at"] >= t.from_
    lapsed = t["at"] - ibis.interval(days=people.lapsed_days)
    sums = t.group_by("moment", CUSTOMER).aggregate(
        orders=recent.sum().cast("float64"),
        spend=recent.ifelse(t.amount, 0.0).sum(),
        value=recent.ifelse(t.worth, 0.0).sum(),
        last_order=t["at"].max(),
        returned_at=t["at"].max(where=t.previous < lapsed),
    )
    base = base.left_join(sums, ["moment", CUSTOMER])
    base = base.drop("moment_right", f"{CUSTOMER}_right")
    days = (base.moment.epoch_seconds() - base.last_order.epoch_seconds()) / 86_400.0
    return base.mutate(
        orders=base.orders.fill_null(0.0), spend=base.spend.fill_null(0.0),
        value=base.value.fill_null(0.0), days_since_last_purchase=days,
        tenure_days=(base.moment.epoch_seconds() - base.first_order.epoch_seconds()) / 86_400.0,
    )  # fmt: skip


def cut_offs(shop: Shop, as_of: datetime) -> Cuts:
    """Return the bounds of fifths and tiers among the buyers of the look-back days.

    Raises
    ------
    DataError : the data begin too late, or too few bought.
    """
    days = shop.settings.customers.lookback_days
    first = as_of - timedelta(days=days)
    reach = (as_of - shop.history.data_start).days
    if shop.history.data_start > first + timedelta(days=1):
        raise DataError(
            f"{FILE}: [customers]",
            "the data begin too late to part customers at the start of the baseline",
            expected=f"lookback_days of at most {max(reach, 0)}", got=str(days),
            action="Lower lookback_days, or report a later or shorter period.",
        )  # fmt: skip
    t = _features(shop, [as_of])
    t = t.filter(t.orders > 0)
    share = shop.settings.customers.hvc_share
    wanted: dict[str, Any] = {"n": t.count()}
    for name, column in (("r", t.days_since_last_purchase), ("f", t.orders), ("m", t.spend)):
        wanted |= {f"{name}{i}": column.quantile(q) for i, q in enumerate(_FIFTHS)}
    wanted |= {"high": t.value.quantile(1 - share), "middle": t.value.quantile((1 - share) / 2)}
    row = t.aggregate(**wanted).to_pyarrow().to_pylist()[0]
    if row["n"] < _FEWEST:
        raise DataError(
            "segments", "too few customers to part them", expected=f"at least {_FEWEST} buyers "
            f"in the {days} days before {as_of:%Y-%m-%d}", got=f"{row['n']}",
        )  # fmt: skip
    bounds = {k: tuple(float(row[f"{k}{i}"]) for i in range(len(_FIFTHS))) for k in "rfm"}
    return Cuts(as_of, int(row["n"]), bounds["r"], bounds["f"], bounds["m"],
                float(row["high"]), float(row["middle"]))  # fmt: skip


def dimensions(shop: Shop) -> tuple[str, ...]:
    """Return the ways in which customers are parted: built-in, columns, rules.

    Raises
    ------
    ConfigError : ``customers.by`` names no column, or two ways have one name; all at once.
    """
    people = shop.tables["customers"].columns
    found = ["value_tier", "rfm_segment", "lifecycle"]
    if "channel" in shop.tables["transactions"].columns:
        found.append("channel")
    faults = []
    for name in shop.settings.customers.by:
        if name not in people:
            faults.append(
                Fault(f"{FILE}: [customers]", f'by names column "{name}"', "a column of customers",
                      action=did_you_mean(name, people))
            )  # fmt: skip
        found.append(name)
    found += shop.settings.segments
    twice = {n for n in found if found.count(n) > 1}
    faults += [Fault(FILE, f'two ways to part customers are called "{n}"') for n in sorted(twice)]
    if faults:
        raise ConfigError(faults=faults)
    return tuple(found)


def assign(shop: Shop, cuts: Cuts, moments: Sequence[datetime]) -> ibis.Table:
    """Return (moment, customer, value and one text column per dimension), kept in the database.

    Every customer known at a moment is in it once. What a customers column says is taken as it is
    today: the data hold no earlier state of it.

    Raises
    ------
    ConfigError : a rule cannot be used; every fault at once.
    """
    named = dimensions(shop)
    t = _features(shop, moments)
    r = 5 - _above(t.days_since_last_purchase, cuts.recency)
    f, m = 1 + _above(t.orders, cuts.frequency), 1 + _above(t.spend, cuts.monetary)
    both = (f + m + 1) / 2
    grid = ibis.cases(
        *((((r == row) & (both.floor().cast("int64") == column + 1)), name)
          for row, names in GRID.items() for column, name in enumerate(names)),
        else_=ibis.null("string"),
    )  # fmt: skip
    bought, now = t.orders > 0, t.moment
    people = shop.settings.customers
    since = t.days_since_last_purchase
    t = t.mutate(
        r_score=bought.ifelse(r, ibis.null("int64")), f_score=bought.ifelse(f, ibis.null("int64")),
        m_score=bought.ifelse(m, ibis.null("int64")),
        rfm_segment=ibis.cases(
            (t.last_order.isnull(), _NEVER), (~bought, _GONE), else_=grid
        ),
        value_tier=ibis.cases(
            (~bought, "nothing"), (t.value > cuts.high, HVC), (t.value > cuts.middle, "middle"),
            else_="low",
        ),
        lifecycle=ibis.cases(
            (t.last_order.isnull(), _NEVER),
            (since > people.lapsed_days, "lapsed"),
            (since > people.at_risk_days, "at risk"),
            (t.first_order >= now - ibis.interval(days=people.at_risk_days), "new"),
            (t.returned_at >= now - ibis.interval(days=people.at_risk_days), "won back"),
            else_="active",
        ),
    )  # fmt: skip
    if "channel" in named:
        t = _with_channel(shop, t)
    about = shop.tables["customers"]
    extra = [c for c in about.columns if c not in t.columns and c not in ("known_at",)]
    t = t.left_join(about.select(CUSTOMER, *extra), CUSTOMER).drop(f"{CUSTOMER}_right")
    t = _with_rules(shop, t)
    texts = {n: t[n].cast("string").fill_null(UNKNOWN) for n in named}
    scores = ("r_score", "f_score", "m_score")
    return shop.keep(t.select("moment", CUSTOMER, "value", "spend", "orders", *scores, **texts))


def _above(column: Any, bounds: Sequence[float]) -> Any:
    """How many bounds a value exceeds; equal values stay together, below."""
    found = ibis.literal(0, type="int64")
    for bound in bounds:
        found = found + (column > bound).cast("int64")
    return found


def _with_channel(shop: Shop, t: ibis.Table) -> ibis.Table:
    """Add where a customer spent most in the look-back days; ties go to the first by name."""
    lines = shop.tables["transactions"].select(CUSTOMER, "ordered_at", "amount", "channel")
    spent = t.select("moment", "from_", CUSTOMER).inner_join(lines, CUSTOMER)
    spent = spent.filter((spent.ordered_at >= spent.from_) & (spent.ordered_at < spent.moment))
    by = spent.group_by("moment", CUSTOMER, "channel").aggregate(spent=spent.amount.sum())
    first = ibis.row_number().over(
        group_by=["moment", CUSTOMER], order_by=[by.spent.desc(), by.channel]
    )
    main = by.mutate(rank=first)
    main = main.filter(main["rank"] == 0).select("moment", CUSTOMER, "channel")
    joined = t.left_join(main, ["moment", CUSTOMER])
    return joined.drop("moment_right", f"{CUSTOMER}_right")


def _with_rules(shop: Shop, t: ibis.Table) -> ibis.Table:
    known = {*RULE_COLUMNS, "channel", *shop.tables["customers"].columns}
    columns: Mapping[str, Column] = {n: c for n, c in typed(t).items() if n in known}
    faults: list[Fault] = []
    chosen = {}
    for name, rules in shop.settings.segments.items():
        cases = []
        for part, text in rules.items():
            try:
                where = f"{FILE}: [segments.{name}]"
                rule = compile_rule(text, columns, where=where, name=f'rule "{part}"')
                cases.append(f"WHEN {rule.to_sql()} THEN {_text(part)}")
            except RuleError as wrong:
                faults += wrong.faults
        # A rule that is neither true nor false has not been met.
        chosen[name] = f"CASE {' '.join(cases)} ELSE {_text(_REST)} END"
    if faults:
        raise ConfigError(faults=faults)
    return shop.computed(shop.keep(t), chosen) if chosen else t


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# ------------------------------------------------------------------ who moved


@dataclass(frozen=True)
class Migration:
    """Customers of one segment at the start and of another at the end.

    Attributes
    ----------
    customers : how many; ``value_before`` and ``value_after`` what they were worth over the
        look-back days at either moment.
    """

    dimension: str
    before: str
    after: str
    customers: int
    value_before: float
    value_after: float

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return dict(vars(self))


def migration(
    assigned: ibis.Table, dimension: str, start: datetime, end: datetime
) -> tuple[Migration, ...]:
    """Return who went from which segment to which, in the order of the segments.

    Customers who were not known at the start are ``not yet known`` before.
    """
    before, after = (
        assigned.filter(assigned.moment == ibis.literal(m, type="timestamp")).select(
            CUSTOMER, "value", segment=assigned[dimension]
        )
        for m in (start, end)
    )
    both = after.left_join(before, CUSTOMER, rname="{name}_before")
    both = both.mutate(segment_before=both.segment_before.fill_null("not yet known"))
    found = both.group_by("segment_before", "segment").aggregate(
        customers=both.count(), value_before=both.value_before.fill_null(0.0).sum(),
        value_after=both.value.sum(),
    )  # fmt: skip
    rows = [
        Migration(dimension, r["segment_before"], r["segment"], int(r["customers"]),
                  float(r["value_before"]), float(r["value_after"]))
        for r in found.to_pyarrow().to_pylist()
    ]  # fmt: skip
    rows.sort(key=lambda m: (place(dimension, m.before), place(dimension, m.after)))
    return tuple(rows)


def place(dimension: str, segment: str) -> tuple[int, str]:
    """Where a segment stands among the others of its dimension, the best first."""
    order = list(_ORDERS.get(dimension, ()))
    return (order.index(segment) if segment in order else len(order), segment)
