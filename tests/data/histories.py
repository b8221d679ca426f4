"""Small random histories whose every row is at hand, and their features without the compiling.

A `World` is plain lists of dicts, so that a test can recount any number by hand. `Compiled` turns
feature groups into SQL once; the tables underneath may then change as often as a test likes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa

from nextbest.data.contract import TABLES, History
from nextbest.data.features import KEYS, Entity, FeatureGroup, Past, attach

Row = dict[str, Any]
World = dict[str, list[Row]]
Frames = dict[Entity, pd.DataFrame]

DAY = timedelta(days=1)
START = datetime(2024, 1, 1)
UNTIL = datetime(2024, 12, 1)
CUSTOMERS = ("ann", "bob", "cid", "dee", "eve", "fay")
OFFERS = ("o1", "o2", "o3", "o4")
PRODUCTS = ("p1", "p2", "p3", "p4", "p5", "p6")
CATEGORIES = ("dairy", "fuel", "meat", "wine")
EVENTS = ("open", "click", "visit", "cart_add", "purchase")

TIME, TEXT, NUMBER = pa.timestamp("us"), pa.string(), pa.float64()
SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "customers": {
        "customer_id": TEXT, "region": TEXT, "age_years": NUMBER, "member": pa.bool_(),
        "signed_up_at": TIME, "consent_mail": pa.bool_(), "known_at": TIME,
    },
    "transactions": {
        "customer_id": TEXT, "order_id": TEXT, "ordered_at": TIME, "amount": NUMBER,
        "margin": NUMBER, "discount": NUMBER, "coupon_discount": NUMBER, "quantity": NUMBER,
        "product_id": TEXT, "category": TEXT, "known_at": TIME,
    },
    "events": {
        "customer_id": TEXT, "event_at": TIME, "event_type": TEXT, "item": TEXT, "known_at": TIME,
    },
    "contacts": {
        "customer_id": TEXT, "offer_id": TEXT, "contacted_at": TIME, "channel": TEXT,
        "known_at": TIME,
    },
    "responses": {
        "customer_id": TEXT, "offer_id": TEXT, "responded_at": TIME, "response_type": TEXT,
        "value": NUMBER, "incentive_cost": NUMBER, "known_at": TIME,
    },
    "offers": {
        "offer_id": TEXT, "offer_type": TEXT, "starts_at": TIME, "ends_at": TIME,
        "product_ids": pa.list_(TEXT), "categories": pa.list_(TEXT), "n_coupons": pa.int64(),
        "n_products": pa.int64(), "known_at": TIME,
    },
}  # fmt: skip


def arrow(name: str, rows: Iterable[Row]) -> pa.Table:
    """Rows as an Arrow table of the table's schema; what a row leaves out is null."""
    rows = list(rows)
    return pa.table(
        {c: pa.array([row.get(c) for row in rows], kind) for c, kind in SCHEMAS[name].items()}
    )


def unbound() -> dict[str, ibis.Table]:
    """The tables without a row or a connection, for what only looks at columns."""
    return {
        name: ibis.table(ibis.Schema.from_pyarrow(pa.schema(columns)), name=name)
        for name, columns in SCHEMAS.items()
    }


def history(world: World, connection: Any = None, **changes: Any) -> History:
    """The world as the clean tables that `check_and_clean` would hand on."""
    connection = connection or ibis.duckdb.connect()
    tables = {
        name: connection.create_table(name, arrow(name, rows), overwrite=True)
        for name, rows in world.items()
    }
    given = {"data_start": START, "observed_until": UNTIL, **changes}
    return History(tables, {}, (), backend=connection, **given)


def happened(name: str, row: Row) -> datetime | None:
    """When a row happened; None for customers and offers, which are states."""
    at = TABLES[name].event_time
    return row[at] if at else None


def is_past(name: str, row: Row, as_of: datetime) -> bool:
    """Whether a row had happened and was known before a moment: the contract's own sentence."""
    at, known = happened(name, row), row["known_at"]
    return (at is None or at < as_of) and (known is None or known < as_of)


def past_of(world: World, as_of: datetime) -> World:
    """The rows of a world that had happened and were known before a moment."""
    return {n: [r for r in rows if is_past(n, r, as_of)] for n, rows in world.items()}


def random_world(seed: int, lines: int = 260, edges: Sequence[datetime] = ()) -> World:
    """A history that passes the contract: returns, gaps, late arrivals, unknown values.

    Some purchases lie exactly 28, 56, 91 and 182 days before each of the ``edges``.
    """
    rng = random.Random(seed)
    span = int((UNTIL - START).total_seconds()) - 40 * 86_400

    def moment() -> datetime:
        return START + timedelta(seconds=rng.randrange(span))

    def known(at: datetime) -> datetime:
        late = rng.choice((0, 0, 0, 3_600, 86_400, 25 * 86_400))
        return at + timedelta(seconds=late)

    def maybe(value: Any, share: float = 0.85) -> Any:
        return value if rng.random() < share else None

    world: World = {name: [] for name in SCHEMAS}
    for i, c in enumerate(CUSTOMERS):
        signed_up = START - timedelta(days=rng.randrange(1, 900))
        world["customers"].append(
            {"customer_id": c, "region": maybe(("north", "south")[i // 2 % 2]),
             "age_years": maybe(float(rng.randrange(18, 90))), "member": maybe(i % 3 == 0),
             "signed_up_at": maybe(signed_up), "consent_mail": True,
             "known_at": None if i % 2 else moment()}
        )  # fmt: skip
    for i, o in enumerate(OFFERS):
        starts = moment()
        products = rng.sample(PRODUCTS, 2 + i % 3)
        world["offers"].append(
            {"offer_id": o, "offer_type": "AB"[i % 2] if i < 3 else None, "starts_at": starts,
             "ends_at": starts + timedelta(days=rng.randrange(20, 150)), "product_ids": products,
             "categories": rng.sample(CATEGORIES, 1 + i % 2), "n_coupons": rng.randrange(1, 9),
             "n_products": len(products), "known_at": None if i < 2 else START + 90 * i * DAY}
        )  # fmt: skip
    # Nobody buys of every category from the start: some are new to them in any month.
    opens = {
        (c, k): START + timedelta(days=rng.randrange(250)) for c in CUSTOMERS for k in CATEGORIES
    }
    times = [moment() for _ in range(lines)]
    times += [edge - d * DAY for edge in edges for d in (28, 56, 91, 182) for _ in range(2)]
    for i, at in enumerate(times):
        customer = rng.choice(CUSTOMERS[:-1])  # fay never buys
        known_of = [k for k in CATEGORIES if opens[customer, k] <= at] or [None]
        known_at = known(at)
        for _ in range(rng.choice((1, 1, 2, 3))):
            back = rng.random() < 0.08
            amount = round(rng.lognormvariate(2, 1), 2) * (-1 if back else 1)
            world["transactions"].append(
                {"customer_id": customer, "order_id": f"t{i}", "ordered_at": at,
                 "amount": 0.0 if rng.random() < 0.03 else amount,
                 "margin": maybe(round(amount * 0.3, 2)), "quantity": -1.0 if back else 1.0,
                 "discount": maybe(rng.choice((0.0, 0.0, 0.5, 1.25))),
                 "coupon_discount": rng.choice((0.0, 0.0, 0.75)),
                 "product_id": maybe(rng.choice(PRODUCTS)),
                 "category": maybe(rng.choice(known_of)), "known_at": known_at}
            )  # fmt: skip
    for _ in range(180):
        at = moment()
        world["events"].append(
            {"customer_id": rng.choice(CUSTOMERS[1:]), "event_at": at,
             "event_type": rng.choice(EVENTS), "item": rng.choice(PRODUCTS), "known_at": known(at)}
        )  # fmt: skip
    for _ in range(90):
        at = moment()
        customer, offer = rng.choice(CUSTOMERS[1:]), rng.choice(OFFERS)
        row = {"customer_id": customer, "offer_id": offer}
        world["contacts"].append(
            {**row, "contacted_at": at, "channel": "mail", "known_at": known(at)}
        )
        for _ in range(rng.choice((0, 0, 1, 2))):
            later = at + timedelta(hours=rng.randrange(0, 800))
            world["responses"].append(
                {**row, "responded_at": later, "response_type": "redemption",
                 "value": maybe(round(rng.lognormvariate(3, 1), 2)),
                 "incentive_cost": maybe(round(rng.random() * 5, 2)), "known_at": known(later)}
            )  # fmt: skip
    return world


def spine_of(moments: Sequence[datetime], offers: Sequence[str] = OFFERS) -> pa.Table:
    """Every customer × offer × moment, and one customer and one offer that no table knows."""
    keys = [(c, o, t) for c in (*CUSTOMERS, "zoe") for o in (*offers, "o9") for t in moments]
    customers, offer_ids, times = zip(*keys, strict=True)
    return pa.table(
        {"customer_id": pa.array(customers), "offer_id": pa.array(offer_ids),
         "as_of": pa.array(times, TIME)}
    )  # fmt: skip


class Compiled:
    """Feature groups as SQL over the tables of one connection, compiled once."""

    def __init__(self, groups: Sequence[FeatureGroup], spine: pa.Table) -> None:
        self.connection = ibis.duckdb.connect()
        # On a few hundred rows, looking for the best plan takes longer than the worst one.
        self.connection.con.execute("SET disabled_optimizers = 'join_order'; SET threads = 1")
        self.load({name: [] for name in SCHEMAS})
        table = self.connection.create_table("spine", spine)
        tables = {name: self.connection.table(name) for name in SCHEMAS}
        self.sql: dict[Entity, str] = {}
        self.names: dict[Entity, list[str]] = {}
        for entity in KEYS:
            expression, features = attach(Past(tables, table), groups, entity)
            self.sql[entity] = str(ibis.to_sql(expression, dialect="duckdb"))
            self.names[entity] = [f.name for f in features]

    def load(self, world: Mapping[str, Iterable[Row]]) -> None:
        duck = self.connection.con
        for name, rows in world.items():
            duck.register("incoming", arrow(name, rows))
            duck.execute(f"CREATE OR REPLACE TABLE {name} AS FROM incoming")
            duck.unregister("incoming")

    def run(self, world: World) -> Frames:
        """The features of a world by entity, one row per key of the spine, sorted by key."""
        self.load(world)
        return {entity: self._query(entity) for entity in self.sql}

    def _query(self, entity: Entity) -> pd.DataFrame:
        frame = self.connection.con.sql(self.sql[entity]).to_arrow_table().to_pandas()
        return frame.set_index(list(KEYS[entity])).sort_index()


def at(frames: Frames, moment: datetime) -> Frames:
    """The rows that were asked about one moment."""
    return {e: f[f.index.get_level_values("as_of") == moment] for e, f in frames.items()}


def differing(one: Frames, two: Frames) -> list[str]:
    """Names of the features that are not the same to the last bit."""
    for entity, frame in one.items():
        assert len(frame)
        assert frame.index.equals(two[entity].index)
    return [c for e, f in one.items() for c in f.columns if bits(f[c]) != bits(two[e][c])]


def bits(column: pd.Series[Any]) -> Any:
    """What two columns must share to be called the same: every bit, and unknown is unknown."""
    if column.dtype == "float64":
        return column.to_numpy().tobytes()
    return [None if pd.isna(v) else v for v in column]
