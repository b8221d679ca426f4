"""Point-in-time features: what was known about a customer before a moment, and nothing later.

A feature group is a function of a `Past`. The `Past` has already joined the history to the moments
asked for and removed every row that had not happened, or had not reached us, before `as_of`; a
group only summarises what is left, so it cannot leak by construction. The same expressions give
training rows at many past moments and today's profiles, on any Ibis backend.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ibis
import ibis.expr.types as ir
from ibis import _

from nextbest.data.contract import TABLES
from nextbest.data.feature import Entity as Entity
from nextbest.data.feature import Feature as Feature
from nextbest.data.live import KIND_COLUMNS, Live
from nextbest.errors import ConfigError, DataError, did_you_mean

KEYS: Mapping[Entity, tuple[str, ...]] = {
    "customer": ("customer_id", "as_of"),
    "offer": ("offer_id", "as_of"),
    "pair": ("customer_id", "offer_id", "as_of"),
}
_SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Block:
    """What a group returns: a table keyed by its entity, and what each column means.

    ``columns`` maps each feature name to ``(meaning, unit, fill)``; ``fill`` is the value for an
    entity without any row (0 for counts and sums, None where the value is then unknown). ``live``
    maps the names of those made by `follow` to their measures, and ``source`` is the table that
    these are of.
    """

    table: ir.Table
    columns: Mapping[str, tuple[str, str, float | None]]
    live: Mapping[str, Live] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class FeatureGroup:
    """A named set of features built from one source table.

    ``requires`` lists ``table`` or ``table.column`` names beyond the required ones; where they are
    absent the whole group is unavailable, and `available` says so by name.
    """

    name: str
    source: str
    entity: Entity
    build: Callable[[Past], Block]
    meaning: str
    requires: tuple[str, ...] = ()

    def missing(self, tables: Mapping[str, ir.Table]) -> tuple[str, ...]:
        """Return what the data lack of it: ``table`` or ``table.column`` names."""
        lacking = []
        for need in (self.source, *self.requires):
            table, _dot, column = need.partition(".")
            if table not in tables or (column and column not in tables[table].columns):
                lacking.append(need)
        return tuple(dict.fromkeys(lacking))


def feature_group(
    source: str,
    *,
    entity: Entity = "customer",
    requires: Sequence[str] = (),
) -> Callable[[Callable[[Past], Block]], FeatureGroup]:
    """Turn a function of a `Past` into a `FeatureGroup` named after the function.

    The first line of the function's docstring is the meaning shown by ``nextbest features``.
    """

    def wrap(build: Callable[[Past], Block]) -> FeatureGroup:
        doc = (build.__doc__ or "").strip().splitlines()
        if not doc:
            raise ConfigError(
                f"feature group {build.__name__}",
                "it has no docstring",
                expected="one line that says what the group measures",
            )
        return FeatureGroup(build.__name__, source, entity, build, doc[0], tuple(requires))

    return wrap


@dataclass(frozen=True)
class Past:
    """What was known before each moment of a spine.

    Parameters
    ----------
    tables : the contract's clean tables by name.
    spine : table with ``customer_id, as_of`` and, for pair features, ``offer_id``; one row for
        each moment asked about.
    backend : where to keep shared intermediate results; None keeps none (to compile SQL only).
        Use the past as a context manager, so that they are dropped at the end.
    """

    tables: Mapping[str, ir.Table]
    spine: ir.Table
    backend: Any = None
    _kept: dict[str, ir.Table] = field(default_factory=dict, repr=False, compare=False)

    def __enter__(self) -> Past:
        return self

    def __exit__(self, *_error: object) -> None:
        for table in self._kept.values():
            if self.backend is not None:
                self.backend.drop_table(table.op().name, force=True)
        self._kept.clear()

    def _keep(self, name: str, build: Callable[[], ir.Table]) -> ir.Table:
        # Ibis' own Table.cache drops its tables while the interpreter shuts down, which prints
        # errors; a named temporary table that we drop ourselves does not.
        if name not in self._kept:
            table = build()
            if self.backend is not None:
                unique = f"nextbest_past_{uuid.uuid4().hex}"
                table = self.backend.create_table(unique, table, temp=True)
            self._kept[name] = table
        return self._kept[name]

    def moments(self, entity: Entity) -> ir.Table:
        """Return the distinct keys of an entity in the spine."""
        return self._keep(f"moments:{entity}", lambda: self.spine.select(*KEYS[entity]).distinct())

    def columns(self, table: str) -> tuple[str, ...]:
        """Return the columns that the data offer for a table (empty when it is absent)."""
        return tuple(self.tables[table].columns) if table in self.tables else ()

    def rows(self, table: str) -> ir.Table:
        """Return a customer table's rows known before each moment, with ``as_of`` and ``age_days``.

        A row is kept if its event time and its ``known_at`` both lie strictly before ``as_of``.
        """
        return known_before(self.tables[table], self.moments("customer"), TABLES[table].event_time)

    @cached_property
    def lines(self) -> ir.Table:
        """Transaction lines known before each moment (the finest grain)."""
        return self.rows("transactions")

    @property
    def orders(self) -> ir.Table:
        """One row for each moment and order: time, amount, discount, lines, returns."""
        return self._keep("orders", self._orders)

    def _orders(self) -> ir.Table:
        # Lines of an order that happened and reached us together are known at the same moments:
        # added up first, there are ten times fewer rows to join to the moments.
        lines = self.tables["transactions"]
        money = [c for c in ("amount", "discount", "margin", "quantity") if c in lines.columns]
        together = lines.group_by("customer_id", "order_id", "ordered_at", "known_at").aggregate(
            **{name: exact(lines[name]).sum() for name in money}, n_lines=lines.count()
        )
        t = known_before(together, self.moments("customer"), "ordered_at")
        orders = t.group_by("customer_id", "as_of", "order_id").aggregate(
            ordered_at=t.ordered_at.max(),
            age_days=t.age_days.min(),
            n_lines=t.n_lines.sum(),
            **{name: t[name].sum().cast("float64") for name in money},
        )
        # A return is not a purchase: an order that only gives money back says nothing of activity.
        return orders.mutate(is_purchase=orders.amount >= 0)

    @property
    def purchases(self) -> ir.Table:
        """`orders` without those that only return goods."""
        return self.orders.filter(_.is_purchase)

    @property
    def offers(self) -> ir.Table:
        """The offers asked about, one row for each moment before which the offer was known."""
        return known_before(self.tables["offers"], self.moments("offer"), None)

    def offer_products(self) -> ir.Table:
        """One row for each moment, offer and product it covers."""
        return self._keep("offer_products", self._offer_products)

    def _offer_products(self) -> ir.Table:
        offers = self.offers
        return offers.select("offer_id", "as_of", product_id=offers.product_ids.unnest()).distinct()

    def offer_lines(self, days: int) -> ir.Table:
        """Lines of the last days of products that an offer covers, for each pair asked about."""
        return self._keep(f"offer_lines:{days}", lambda: self._offer_lines(days))

    def _offer_lines(self, days: int) -> ir.Table:
        # Kept, so that no plan begins with all products of all offers for every customer.
        lines = self.lines.filter(_.age_days <= days)
        offered = lines.inner_join(self.offer_products(), ["as_of", "product_id"])
        return offered.semi_join(self.moments("pair"), KEYS["pair"])

    def offer_categories(self) -> ir.Table:
        """One row for each moment, offer and category it covers."""
        offers = self.offers
        return offers.select("offer_id", "as_of", category=offers.categories.unnest()).distinct()


def known_before(table: ir.Table, moments: ir.Table, event_time: str | None) -> ir.Table:
    """Join a table to moments, keeping only rows that had happened and reached us before them.

    Adds ``as_of`` and, for event tables, ``age_days`` (float days from the event to ``as_of``).
    """
    keys = [k for k in ("customer_id", "offer_id") if k in moments.columns and k in table.columns]
    moments = moments.select(*keys, "as_of").distinct()
    joined = table.inner_join(moments, keys)
    keep = joined.filter(joined.known_at.isnull() | (joined.known_at < joined.as_of))
    if event_time is None:
        return keep
    keep = keep.filter(keep[event_time] < keep.as_of)
    return keep.mutate(age_days=days_between(keep[event_time], keep.as_of))


def days_between(start: ir.Value, end: ir.Value) -> ir.Value:
    """Return the days from ``start`` to ``end`` as a float, exact to the second."""
    return (end.epoch_seconds() - start.epoch_seconds()).cast("float64") / _SECONDS_PER_DAY


def total(value: ir.Value, where: ir.Value | None = None) -> ir.Value:
    """Sum a column exactly (to a millionth), so that the order of rows cannot change the result.

    Backends add floating-point numbers in whatever order their threads come by; the last digits
    then differ from run to run, and with them a model trained on the sums.
    """
    return exact(value).sum(where=where).cast("float64")


def average(value: ir.Value, where: ir.Value | None = None) -> ir.Value:
    """Mean of a column with the exactness of `total`; null where there is nothing to average."""
    present = value.notnull() if where is None else value.notnull() & where
    n = present.sum().cast("float64")
    return total(value, where) / ibis.cases((n > 0, n), else_=None)


def deviation(value: ir.Value) -> ir.Value:
    """Sample standard deviation, as exact as `total`; null below two values."""
    n = value.notnull().sum().cast("float64")
    squares = total(value * value) - total(value) * total(value) / ibis.cases(
        (n > 0, n), else_=None
    )
    return (ibis.greatest(squares, 0.0) / ibis.cases((n > 1, n - 1), else_=None)).sqrt()


def exact(value: ir.Value) -> ir.Value:
    return value.cast("float64").try_cast("decimal(30, 6)")


def summarise(
    rows: ir.Table, entity: Entity, features: Mapping[str, tuple[Any, str, str, float | None]]
) -> Block:
    """Aggregate rows to one line per entity: ``{name: (expression, meaning, unit, fill)}``."""
    table = rows.group_by(*KEYS[entity]).aggregate(
        **{name: spec[0] for name, spec in features.items()}
    )
    return Block(table, {name: (m, u, fill) for name, (_e, m, u, fill) in features.items()})


def follow(past: Past, source: str, features: Mapping[str, tuple[Live, str, str]]) -> Block:
    """Measure a table's rows by customer so that the features stay live between refreshes.

    Parameters
    ----------
    source : ``events``, ``contacts`` or ``responses``: every row of it counts.
    features : ``{name: (measure, meaning, unit)}``.

    Raises
    ------
    ConfigError : the table's rows do not reach a server as they happen.
    """
    if source not in KIND_COLUMNS:
        raise ConfigError(
            "follow", f'rows of "{source}" do not reach a server as they happen',
            expected=" or ".join(KIND_COLUMNS),
        )  # fmt: skip
    rows = past.rows(source)
    kind = rows[KIND_COLUMNS[source]]
    spec = {
        name: (_measured(rows, kind, live), meaning, unit, live.fill)
        for name, (live, meaning, unit) in features.items()
    }
    block = summarise(rows, "customer", spec)
    lives = {name: live for name, (live, _m, _u) in features.items()}
    return Block(block.table, block.columns, lives, source)


def _measured(rows: ir.Table, kind: ir.Value, live: Live) -> ir.Value:
    """The batch expression of a measure; `nextbest.data.live.updated` is the same in NumPy."""

    def youngest(of: str | None) -> ir.Value:
        return rows.age_days.min(where=None if of is None else kind == of)

    if live.measure == "distinct":
        where = None if live.days is None else rows.age_days <= live.days
        return kind.nunique(where=where).cast("float64")
    if live.measure == "days_since":
        return youngest(live.of)
    if live.measure == "left_behind":
        left, ended = youngest(live.of), youngest(live.until)
        behind = (left <= live.days) & (ended.isnull() | (left < ended))
        return behind.fill_null(False).cast("float64")
    if live.days is None:
        where = None if live.of is None else kind == live.of
        return rows.count(where=where).cast("float64")
    inside = rows.age_days <= live.days
    if live.of is not None:
        inside = (kind == live.of) & inside
    return inside.sum().cast("float64")


def select(
    table: ir.Table, entity: Entity, features: Mapping[str, tuple[Any, str, str, float | None]]
) -> Block:
    """Like `summarise`, for a table that already has one line per entity."""
    chosen = table.select(*KEYS[entity], **{name: spec[0] for name, spec in features.items()})
    return Block(chosen, {name: (m, u, fill) for name, (_e, m, u, fill) in features.items()})


@dataclass(frozen=True)
class Unavailable:
    """A group that the data cannot feed, and what is missing."""

    group: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.group}: needs {', '.join(self.missing)}"


def available(
    groups: Iterable[FeatureGroup], tables: Mapping[str, ir.Table]
) -> tuple[tuple[FeatureGroup, ...], tuple[Unavailable, ...]]:
    """Split groups into those that the data can feed and those that they cannot."""
    yes, no = [], []
    for group in groups:
        missing = group.missing(tables)
        if missing:
            no.append(Unavailable(group.name, missing))
        else:
            yes.append(group)
    return tuple(yes), tuple(no)


def by_name(groups: Sequence[FeatureGroup], names: Sequence[str], where: str) -> list[FeatureGroup]:
    """Return the groups of the given names, in that order.

    Raises
    ------
    ConfigError : a name is not a known group; the message offers the closest one.
    """
    known = {g.name: g for g in groups}
    for name in names:
        if name not in known:
            raise ConfigError(
                where,
                f'feature group "{name}" does not exist',
                expected="one of " + ", ".join(known),
                action=did_you_mean(name, known),
            )
    return [known[n] for n in names]


def attach(
    past: Past, groups: Sequence[FeatureGroup], entity: Entity
) -> tuple[ir.Table, tuple[Feature, ...]]:
    """Join the groups of one entity onto its moments, one row per moment.

    Returns the table (keys, then features in the order of the groups) and what each feature means.

    Raises
    ------
    DataError : two groups define the same feature.
    """
    table = past.moments(entity)
    features: list[Feature] = []
    for group in groups:
        if group.entity != entity:
            continue
        block = group.build(past)
        names = list(block.columns)
        clash = set(names) & {f.name for f in features}
        if clash:
            raise DataError(
                f"feature group {group.name}",
                f"feature {sorted(clash)[0]} is already defined by another group",
                expected="a name of its own",
            )
        joined = table.left_join(block.table, list(KEYS[entity]))
        filled = {
            name: joined[name] if fill is None else joined[name].fill_null(fill)
            for name, (_m, _u, fill) in block.columns.items()
        }
        table = joined.select(*KEYS[entity], *[f.name for f in features], **filled)
        for name, (meaning, unit, _fill) in block.columns.items():
            features.append(
                Feature(
                    name,
                    meaning,
                    unit,
                    block.source or group.source,
                    group.name,
                    entity,
                    _kind(block.table[name].type()),
                    block.live.get(name),
                )
            )
    return table, tuple(features)


def _kind(dtype: Any) -> str:
    if dtype.is_boolean():
        return "boolean"
    if dtype.is_string():
        return "string"
    return "number"


def describe(groups: Sequence[FeatureGroup], tables: Mapping[str, ir.Table]) -> tuple[Feature, ...]:
    """List every feature the groups define, without touching a row of data."""
    spine = ibis.table(
        {"customer_id": "string", "offer_id": "string", "as_of": "timestamp"}, name="spine"
    )
    past = Past({k: _unbound(k, v) for k, v in tables.items()}, spine)
    found: list[Feature] = []
    for entity in KEYS:
        found.extend(attach(past, groups, entity)[1])
    return tuple(found)


def everything(groups: Sequence[FeatureGroup]) -> tuple[Feature, ...]:
    """Return the features that the groups give where the data hold every column of the contract."""
    tables = {
        name: ibis.table({c.name: c.dtype for c in spec.columns}, name=name)
        for name, spec in TABLES.items()
    }
    return describe(available(groups, tables)[0], tables)


def possible(groups: Sequence[FeatureGroup]) -> frozenset[str]:
    """Return the names of `everything`."""
    return frozenset(f.name for f in everything(groups))


def _unbound(name: str, table: ir.Table) -> ir.Table:
    return ibis.table(table.schema(), name=name)
