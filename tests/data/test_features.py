"""Features: nothing from the future, the numbers recounted by hand, the same bits every time."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import histories
import ibis
import numpy as np
import pandas as pd
import pytest
import sqlglot
from histories import (
    CATEGORIES,
    CUSTOMERS,
    DAY,
    EVENTS,
    OFFERS,
    PRODUCTS,
    SCHEMAS,
    START,
    UNTIL,
    Compiled,
    Frames,
    Row,
    World,
    differing,
    is_past,
    past_of,
    random_world,
    spine_of,
    unbound,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lifetimes.utils import summary_data_from_transaction_data

from nextbest.data import snapshots
from nextbest.data.contract import TABLES, History, check_and_clean
from nextbest.data.features import (
    KEYS,
    Block,
    Entity,
    FeatureGroup,
    Past,
    attach,
    available,
    by_name,
    describe,
    feature_group,
    possible,
    summarise,
)
from nextbest.data.groups import BUILT_IN
from nextbest.data.snapshots import ProfileFrames
from nextbest.errors import ConfigError, DataError
from nextbest.project import Project

GROUPS = Project.open(Path(__file__).parents[2]).groups
TICK = timedelta(microseconds=1)
EARLY, MIDDLE, LATE = START + 20 * DAY, datetime(2024, 5, 1), datetime(2024, 9, 1, 6, 30)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """Every group, asked about everybody at two moments: the later sees what the first cannot."""
    return Compiled(GROUPS, spine_of([MIDDLE, LATE]))


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(11, edges=(MIDDLE, LATE))


@pytest.fixture(scope="module")
def features(compiled: Compiled, world: World) -> Frames:
    return compiled.run(world)


# --- nothing from the future ----------------------------------------------------------------------


def late_times(as_of: datetime) -> st.SearchStrategy[tuple[datetime, datetime]]:
    """(when it happened, when it was known): at least one of them not before the moment."""
    return st.sampled_from(
        [
            (as_of, as_of),
            (as_of + TICK, as_of + TICK),
            (as_of - TICK, as_of),
            (as_of - 30 * DAY, as_of + TICK),
            (as_of - 100 * DAY, as_of + 3 * DAY),
            (as_of + 5 * DAY, as_of + 9 * DAY),
            (UNTIL, UNTIL),
        ]
    )


AMOUNTS = st.sampled_from([0.01, 7.5, 99.99, 1e6])
WHO, WHAT = st.sampled_from([*CUSTOMERS, "zoe"]), st.sampled_from([*OFFERS, "o9"])


def late_rows(name: str, as_of: datetime, ids: list[str]) -> st.SearchStrategy[list[Row]]:
    """Any rows of a table that a moment must not see; ``ids`` are free customer or offer ids."""
    columns: dict[str, st.SearchStrategy[Any]] = {
        "customers": {
            "customer_id": st.sampled_from(ids), "region": st.sampled_from(["east", None]),
            "age_years": st.sampled_from([33.0, None]), "member": st.booleans(),
            "signed_up_at": st.just(START),
        },
        "transactions": {
            "customer_id": WHO, "order_id": st.sampled_from(["t1", "t2", "new1", "new2"]),
            "amount": AMOUNTS | AMOUNTS.map(lambda a: -a), "margin": AMOUNTS, "discount": AMOUNTS,
            "coupon_discount": AMOUNTS, "product_id": st.sampled_from(PRODUCTS),
            "category": st.sampled_from([*CATEGORIES, "toys"]),
        },
        "events": {"customer_id": WHO, "event_type": st.sampled_from(EVENTS)},
        "contacts": {"customer_id": WHO, "offer_id": WHAT, "channel": st.just("mail")},
        "responses": {
            "customer_id": WHO, "offer_id": WHAT, "response_type": st.just("redemption"),
            "value": AMOUNTS, "incentive_cost": AMOUNTS,
        },
        "offers": {
            "offer_id": st.sampled_from(ids), "offer_type": st.sampled_from("AB"),
            "ends_at": st.just(UNTIL), "n_coupons": st.integers(1, 9),
            "product_ids": st.lists(st.sampled_from(PRODUCTS), unique=True),
            "categories": st.lists(st.sampled_from(CATEGORIES), unique=True),
        },
    }[name]  # fmt: skip
    at = TABLES[name].event_time

    def stamp(row: Row, times: tuple[datetime, datetime]) -> Row:
        return row | ({at: times[0]} if at else {}) | {"known_at": times[1]}

    rows = st.builds(stamp, st.fixed_dictionaries(columns), late_times(as_of))
    if at is None:
        return st.lists(rows, max_size=len(ids), unique_by=lambda r: r[f"{name[:-1]}_id"])
    return st.lists(rows, max_size=8)


def free_ids(world: World, name: str, as_of: datetime) -> list[str]:
    key, unknown = f"{name[:-1]}_id", {"customers": "zoe", "offers": "o9"}[name]
    return [r[key] for r in world[name] if not is_past(name, r, as_of)] + [unknown]


def futures(world: World, as_of: datetime) -> st.SearchStrategy[World]:
    """Any future in place of the real one: rows added, changed, deleted, but none of the past."""
    past = past_of(world, as_of)
    strategies = {}
    for name in SCHEMAS:
        ids = free_ids(world, name, as_of) if TABLES[name].event_time is None else []
        strategies[name] = late_rows(name, as_of, ids).map(lambda rows, n=name: past[n] + rows)
    return st.fixed_dictionaries(strategies)


WORLD = random_world(11, edges=(MIDDLE, LATE))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(other=futures(WORLD, MIDDLE))
def test_no_future_changes_a_feature(compiled: Compiled, features: Frames, other: World) -> None:
    assert (
        differing(histories.at(features, MIDDLE), histories.at(compiled.run(other), MIDDLE)) == []
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_another_future_of_one_table_changes_what_comes_later_only(
    compiled: Compiled, world: World, features: Frames, name: str
) -> None:
    stranger = random_world(99, lines=400)
    late = [r for r in stranger[name] if not is_past(name, r, MIDDLE)]
    if name in ("customers", "offers"):
        free = free_ids(world, name, MIDDLE)
        late = [r for r in late if r[f"{name[:-1]}_id"] in free]
    assert late
    found = compiled.run(world | {name: past_of(world, MIDDLE)[name] + late})
    assert differing(histories.at(features, MIDDLE), histories.at(found, MIDDLE)) == []
    assert differing(histories.at(features, LATE), histories.at(found, LATE)) != []


def newcomer(name: str, at: datetime, known_at: datetime) -> Row:
    row = {
        "customers": {"customer_id": "zoe", "region": "east"},
        "transactions": {"customer_id": "ann", "order_id": "n", "amount": 5.0, "category": "toys"},
        "events": {"customer_id": "bob", "event_type": "visit"},
        "contacts": {"customer_id": "bob", "offer_id": "o1", "channel": "mail"},
        "responses": {"customer_id": "bob", "offer_id": "o1", "response_type": "redemption",
                      "value": 5.0, "incentive_cost": 1.0},
        "offers": {"offer_id": "o9", "offer_type": "A", "ends_at": UNTIL, "product_ids": ["p1"],
                   "categories": ["meat"]},
    }[name]  # fmt: skip
    event_time = TABLES[name].event_time
    return row | {"known_at": known_at} | ({event_time: at} if event_time else {})


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_row_counts_from_the_instant_after_it_happened_and_was_known(
    compiled: Compiled, world: World, features: Frames, name: str
) -> None:
    def changed_by(at: datetime, known_at: datetime) -> list[str]:
        found = compiled.run(world | {name: [*world[name], newcomer(name, at, known_at)]})
        return differing(histories.at(features, MIDDLE), histories.at(found, MIDDLE))

    assert changed_by(MIDDLE - TICK, MIDDLE - TICK) != []
    assert changed_by(MIDDLE - TICK, MIDDLE) == []
    assert changed_by(MIDDLE, MIDDLE) == []
    # Either time alone keeps a row out, whatever the other one claims.
    assert changed_by(MIDDLE, MIDDLE - TICK) == [] or TABLES[name].event_time is None


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_past_matters(compiled: Compiled, world: World, features: Frames, name: str) -> None:
    """What the tests above find unchanged would change, were the rows a little earlier."""
    recent = past_of(world, MIDDLE)[name]
    recent.sort(key=lambda r: histories.happened(name, r) or START)
    without = [r for r in world[name] if r is not recent[-1]]
    found = compiled.run(world | {name: without})
    assert differing(histories.at(features, MIDDLE), histories.at(found, MIDDLE)) != []


# --- the numbers, recounted by hand ---------------------------------------------------------------

Expected = dict[str, Any]


def age(at: datetime, as_of: datetime) -> float:
    return (as_of - at).total_seconds() / 86_400


def money(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(math.fsum(known), 6) if known else None


def mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def of(past: World, table: str, customer: str) -> list[Row]:
    return [r for r in past[table] if r["customer_id"] == customer]


def purchases(past: World, customer: str) -> list[Row]:
    """One row per order, but for those that give back more than they take."""
    orders = defaultdict(list)
    for line in of(past, "transactions", customer):
        orders[line["order_id"]].append(line)
    sums = [
        {"at": max(x["ordered_at"] for x in lines), "lines": len(lines)}
        | {c: money(x[c] for x in lines) for c in ("amount", "margin", "discount")}
        for lines in orders.values()
    ]
    return [o for o in sums if o["amount"] >= 0]


def rfm(past: World, customer: str, as_of: datetime) -> Expected:
    o = purchases(past, customer)
    return {
        "days_since_last_purchase": min((age(x["at"], as_of) for x in o), default=None),
        "mean_order_value": mean(x["amount"] for x in o),
        "median_order_value": statistics.median(x["amount"] for x in o) if o else None,
        "lines_per_order": mean(x["lines"] for x in o),
    }


def totals(past: World, customer: str, as_of: datetime) -> Expected:
    o = purchases(past, customer)
    return {
        "tenure_days": max((age(x["at"], as_of) for x in o), default=None),
        "orders_total": len(o),
        "spend_total": sum(x["amount"] for x in o),
        "purchase_days_total": len({x["at"].date() for x in o}),
    }


def windows(past: World, customer: str, as_of: datetime) -> Expected:
    o = purchases(past, customer)
    inside = {d: [x for x in o if as_of - x["at"] <= d * DAY] for d in (28, 91, 182)}
    found = {f"orders_{d}d": len(rows) for d, rows in inside.items()}
    found |= {f"spend_{d}d": sum(x["amount"] for x in rows) for d, rows in inside.items()}
    for what in ("spend", "orders"):
        rate = {d: found[f"{what}_{d}d"] / d for d in inside}
        found[f"{what}_trend"] = ratio(rate[28], rate[91])
        found[f"{what}_trend_long"] = ratio(rate[91], rate[182])
    return found | {"order_value_91d": mean(x["amount"] for x in inside[91])}


def timing(past: World, customer: str, as_of: datetime) -> Expected:
    last: dict[Any, float] = {}
    for order in purchases(past, customer):
        day, days = order["at"].date(), age(order["at"], as_of)
        last[day] = min(days, last.get(day, days))
    ages = [last[day] for day in sorted(last)]
    gaps = [one - two for one, two in pairwise(ages)]
    return {
        "purchase_days_91d": sum(a <= 91 for a in ages),
        "mean_gap_days": mean(gaps),
        "max_gap_days": max(gaps, default=None),
        "gap_deviation_days": statistics.stdev(gaps) if len(gaps) > 1 else None,
        "overdue_ratio": ratio(min(ages, default=None), mean(gaps)),
    }


def lifetime(past: World, customer: str, as_of: datetime) -> Expected:
    by_day = defaultdict(list)
    for order in purchases(past, customer):
        by_day[order["at"].date()].append(order)
    days = [by_day[d] for d in sorted(by_day)]
    if not days:
        return dict.fromkeys(("frequency", "recency", "T", "monetary_value"))
    first, last = (min(o["at"] for o in day) for day in (days[0], days[-1]))
    return {
        "frequency": len(days) - 1,
        "recency": age(first, last),
        "T": age(first, as_of),
        "monetary_value": mean(money(o["margin"] for o in day) for day in days[1:]) or 0.0,
    }


def categories(past: World, customer: str, as_of: datetime) -> Expected:
    spend, first, last = defaultdict(list), {}, {}
    for line in sorted(of(past, "transactions", customer), key=lambda r: r["ordered_at"]):
        if line["category"] and line["amount"] > 0:
            days = age(line["ordered_at"], as_of)
            spend[line["category"]].append((days, line["amount"]))
            first.setdefault(line["category"], days)
            last[line["category"]] = days
    recent = {c: sum(a for d, a in rows if d <= 91) for c, rows in spend.items()}
    everything = sum(recent.values())
    shares = [v / everything for v in recent.values()] if everything else []
    fresh = [c for c in spend if first[c] <= 28 and max(first.values()) > 56]
    return {
        "categories_total": len(spend),
        "categories_91d": sum(d <= 91 for d in last.values()),
        "categories_28d": sum(d <= 28 for d in last.values()),
        "new_categories_28d": len(fresh),
        "new_category_spend_28d": sum(a for c in fresh for _d, a in spend[c]),
        "category_top_share_91d": max(shares, default=None),
        "category_entropy_91d": -sum(s * math.log(s) for s in shares if s) if shares else None,
    }


def products(past: World, customer: str, as_of: datetime) -> Expected:
    days = defaultdict(list)
    for line in of(past, "transactions", customer):
        if line["product_id"] and line["amount"] > 0:
            days[line["product_id"]].append(age(line["ordered_at"], as_of))
    return {
        "products_total": len(days),
        "products_91d": sum(min(d) <= 91 for d in days.values()),
        "repeat_product_share": mean(len(d) > 1 for d in days.values()),
    }


def discounts(past: World, customer: str, as_of: datetime) -> Expected:
    o = [x for x in purchases(past, customer) if x["discount"] is not None]
    recent = [x for x in o if as_of - x["at"] <= 91 * DAY]

    def share(orders: list[Row]) -> float | None:
        given = sum(x["discount"] for x in orders)
        return ratio(given, given + sum(x["amount"] for x in orders)) if orders else None

    return {
        "discount_share": share(o),
        "discount_share_91d": share(recent),
        "discounted_order_share": mean(x["discount"] > 0 for x in o),
    }


def margins(past: World, customer: str, as_of: datetime) -> Expected:
    o = purchases(past, customer)
    return {
        "margin_total": money(x["margin"] for x in o) or 0.0,
        "margin_91d": money(x["margin"] for x in o if as_of - x["at"] <= 91 * DAY) or 0.0,
    }


def engagement(past: World, customer: str, as_of: datetime) -> Expected:
    ages = defaultdict(list)
    for e in of(past, "events", customer):
        ages[e["event_type"]].append(age(e["event_at"], as_of))
    found = {
        f"{noun}_{days}d": sum(a <= days for a in ages[kind])
        for kind, noun in (("open", "opens"), ("click", "clicks"), ("visit", "visits"),
                           ("cart_add", "cart_adds"))
        for days in (7, 28)
    }  # fmt: skip
    cart = min(ages["cart_add"], default=math.inf)
    bought = min(ages["purchase"], default=math.inf)
    return found | {
        "days_since_last_visit": min(ages["visit"], default=None),
        "days_since_last_cart_add": min(ages["cart_add"], default=None),
        "abandoned_cart": cart <= 7 and cart < bought,
    }


def contacts(past: World, customer: str, as_of: datetime) -> Expected:
    ages = [age(c["contacted_at"], as_of) for c in of(past, "contacts", customer)]
    return {
        "contacts_total": len(ages),
        "contacts_28d": sum(a <= 28 for a in ages),
        "contacts_91d": sum(a <= 91 for a in ages),
        "days_since_last_contact": min(ages, default=None),
    }


def responses(past: World, customer: str, as_of: datetime) -> Expected:
    asked = {c["offer_id"] for c in of(past, "contacts", customer)}
    ages = defaultdict(list)
    for r in of(past, "responses", customer):
        ages[r["offer_id"]].append(age(r["responded_at"], as_of))
    return {
        "responses_total": len(ages),
        "responses_91d": sum(min(a) <= 91 for a in ages.values()),
        "response_actions": sum(len(a) for a in ages.values()),
        "response_rate": len(ages) / (len(asked) + 4) if asked else 0.0,
        "days_since_last_response": min((min(a) for a in ages.values()), default=None),
    }


def demographics(past: World, customer: str, as_of: datetime) -> Expected:
    row = next(iter(of(past, "customers", customer)), {})
    signed_up = row.get("signed_up_at")
    return {c: row.get(c) for c in ("region", "age_years", "member")} | {
        "signed_up_at": age(signed_up, as_of) if signed_up else None
    }


def coupons(past: World, customer: str, as_of: datetime) -> Expected:
    used = [
        (age(r["ordered_at"], as_of), r)
        for r in of(past, "transactions", customer) if r["coupon_discount"] > 0
    ]  # fmt: skip
    found: Expected = {}
    for days in (28, 91, 182):
        inside = [r for a, r in used if a <= days]
        found[f"coupon_orders_{days}d"] = len({r["order_id"] for r in inside})
        found[f"coupon_discount_{days}d"] = sum(r["coupon_discount"] for r in inside)
    bought = {r["product_id"] for a, r in used if a <= 182} - {None}
    lately = [
        r for r in of(past, "transactions", customer) if age(r["ordered_at"], as_of) <= 182
    ]  # fmt: skip
    spend = sum(r["amount"] for r in lately)
    orders = len({r["order_id"] for r in lately})
    return found | {
        "coupon_order_share_182d": ratio(found["coupon_orders_182d"], orders),
        "coupon_spend_share_182d": found["coupon_discount_182d"] / spend if spend > 0 else None,
        "coupon_products_182d": len(bought),
        "days_since_coupon": min((a for a, _r in used), default=None),
    }


def offer_row(past: World, offer_id: str) -> Row:
    return next((o for o in past["offers"] if o["offer_id"] == offer_id), {})


def offer(past: World, offer_id: str, as_of: datetime) -> Expected:
    o = offer_row(past, offer_id)
    return {
        "offer_type": o.get("offer_type"),
        "offer_days_left": -age(o["ends_at"], as_of) if o else None,
        "offer_n_coupons": o.get("n_coupons"),
        "offer_n_products": o.get("n_products"),
        "offer_n_categories": len(o["categories"]) if o else None,
    }


def of_type(past: World, table: str, offer_id: str) -> list[Row]:
    """Rows about offers of the same known type."""
    kind = offer_row(past, offer_id).get("offer_type")
    return [
        r for r in past[table] if kind and offer_row(past, r["offer_id"]).get("offer_type") == kind
    ]


def offer_economics(past: World, offer_id: str, as_of: datetime) -> Expected:
    each = defaultdict(list)
    for r in of_type(past, "responses", offer_id):
        each[r["customer_id"], r["offer_id"]].append(r)
    return {
        "incentive_per_response": mean(
            money(r["incentive_cost"] for r in rows) for rows in each.values()
        ),
        "value_per_response": mean(money(r["value"] for r in rows) for rows in each.values()),
    }


def offer_type_history(past: World, customer: str, offer_id: str, as_of: datetime) -> Expected:
    asked = [r for r in of_type(past, "contacts", offer_id) if r["customer_id"] == customer]
    answered = [r for r in of_type(past, "responses", offer_id) if r["customer_id"] == customer]
    answered = answered if asked else []
    n, m = (len({r["offer_id"] for r in rows}) for rows in (asked, answered))
    return {
        "type_contacts": n,
        "type_responses": m,
        "type_response_rate": m / (n + 4) if asked else 0.0,
        "days_since_type_contact": min(
            (age(r["contacted_at"], as_of) for r in asked), default=None
        ),
        "days_since_type_response": min(
            (age(r["responded_at"], as_of) for r in answered), default=None
        ),
    }


def bought_lately(past: World, customer: str, as_of: datetime) -> list[tuple[float, Row]]:
    rows = [(age(r["ordered_at"], as_of), r) for r in of(past, "transactions", customer)]
    return [(a, r) for a, r in rows if r["amount"] > 0 and a <= 182]


def offer_products(past: World, customer: str, offer_id: str, as_of: datetime) -> Expected:
    o, lines = offer_row(past, offer_id), bought_lately(past, customer, as_of)
    mine = [(a, r) for a, r in lines if o and r["product_id"] in o["product_ids"]]
    spend = sum(r["amount"] for _a, r in mine)
    seen = max([28.0, *(a for a, _r in lines)])
    left = max(-age(o["ends_at"], as_of), 0.0) if o else 0.0
    return {
        "offer_product_spend_share": ratio(spend, sum(r["amount"] for _a, r in lines)) or 0.0,
        "offer_product_spend_per_window": spend / seen * left,
        "offer_product_spend_91d": sum(r["amount"] for a, r in mine if a <= 91),
        "offer_products_bought": len({r["product_id"] for _a, r in mine}),
        "offer_product_lines": len({(r["product_id"], r["order_id"]) for _a, r in mine}),
        "days_since_offer_product": min((a for a, _r in mine), default=None),
    }


def offer_coupons(past: World, customer: str, offer_id: str, as_of: datetime) -> Expected:
    wanted = offer_row(past, offer_id).get("product_ids", ())
    lines = [
        (age(r["ordered_at"], as_of), r)
        for r in of(past, "transactions", customer)
        if r["product_id"] in wanted and (r["amount"] > 0 or r["coupon_discount"] > 0)
    ]
    lines = [(a, r) for a, r in lines if a <= 182]
    used = [(a, r) for a, r in lines if r["coupon_discount"] > 0]
    orders = defaultdict(set)
    for _a, r in lines:
        orders[r["product_id"]].add(r["order_id"])
    return {
        "offer_coupon_lines": len(used),
        "offer_coupon_discount": sum(r["coupon_discount"] for _a, r in used),
        "days_since_offer_coupon": min((a for a, _r in used), default=None),
        "offer_product_discount": sum(r["discount"] or 0 for _a, r in lines),
        "offer_product_spend_28d": sum(r["amount"] for a, r in lines if a <= 28),
        "offer_products_repeated": sum(len(ids) >= 2 for ids in orders.values()),
        "offer_products_regular": sum(len(ids) >= 4 for ids in orders.values()),
    }


def offer_categories(past: World, customer: str, offer_id: str, as_of: datetime) -> Expected:
    o = offer_row(past, offer_id)
    lines = [r for _a, r in bought_lately(past, customer, as_of) if r["category"]]
    mine = sum(r["amount"] for r in lines if o and r["category"] in o["categories"])
    share = ratio(mine, sum(r["amount"] for r in lines))
    return {"offer_category_spend_share": share or 0.0}


BY_HAND: dict[str, Callable[..., Expected]] = {
    f.__name__: f
    for f in (rfm, totals, windows, timing, lifetime, categories, products, discounts, margins,
              engagement, contacts, responses, demographics, coupons, offer, offer_economics,
              offer_type_history, offer_products, offer_coupons, offer_categories)
}  # fmt: skip


def test_every_group_is_recounted_by_hand() -> None:
    assert set(BY_HAND) == {g.name for g in GROUPS}


@pytest.fixture(scope="module")
def recounted() -> tuple[World, Frames]:
    moments = [EARLY, MIDDLE, LATE]
    world = random_world(5, lines=300, edges=moments)
    return world, Compiled(GROUPS, spine_of(moments)).run(world)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_the_numbers_are_those_counted_by_hand(
    group: FeatureGroup, recounted: tuple[World, Frames]
) -> None:
    world, frames = recounted
    names = [f.name for f in describe([group], unbound())]
    past = {t: past_of(world, t) for t in (EARLY, MIDDLE, LATE)}
    distinct = defaultdict(set)
    for key, row in frames[group.entity][names].iterrows():
        *ids, moment = key
        expected = BY_HAND[group.name](past[moment], *ids, moment.to_pydatetime())
        assert set(expected) == set(names)
        for name, want in expected.items():
            found, where = row[name], f"{name} of {ids} at {moment}"
            distinct[name].add(want)
            if want is None or isinstance(want, str):
                assert (None if pd.isna(found) else found) == want, where
            else:
                # Sums are kept to a millionth; a spread is the root of their difference.
                slack = 5e-3 if name == "gap_deviation_days" else 1e-5
                assert found == pytest.approx(float(want), rel=1e-9, abs=slack), where
    # A feature that is the same for everybody would not have been put to the test.
    assert [n for n, values in distinct.items() if len(values - {None}) < 2] == []


def test_lifetime_words_are_those_of_the_lifetimes_package() -> None:
    """In whole days: orders at midnight, counted up to a midnight."""
    rng = random.Random(3)
    until = START + 200 * DAY
    world: World = {name: [] for name in SCHEMAS}
    for i in range(150):
        at = START + rng.randrange(200) * DAY
        world["transactions"].append(
            {"customer_id": rng.choice(CUSTOMERS), "order_id": str(i), "ordered_at": at,
             "amount": 9.0, "margin": round(rng.lognormvariate(2, 1), 2), "known_at": at}
        )  # fmt: skip
    compiled = Compiled([g for g in BUILT_IN if g.name == "lifetime"], spine_of([until]))
    found = compiled.run(world)["customer"].droplevel("as_of").drop("zoe")
    expected = summary_data_from_transaction_data(
        pd.DataFrame(world["transactions"]), "customer_id", "ordered_at", "margin",
        observation_period_end=until, freq="D",
    ).sort_index()  # fmt: skip
    assert len(expected) == len(CUSTOMERS)
    pd.testing.assert_frame_equal(
        found[["frequency", "recency", "T", "monetary_value"]].astype(float),
        expected[["frequency", "recency", "T", "monetary_value"]].astype(float),
        check_names=False, check_column_type=False, rtol=1e-9,
    )  # fmt: skip


# --- the same bits every time ---------------------------------------------------------------------


def test_the_order_of_the_rows_changes_no_bit(compiled: Compiled) -> None:
    world = random_world(21, lines=1_500)
    for i, row in enumerate(world["transactions"]):
        # From a cent to a million and with endless digits, so that sums of floats differ.
        row["amount"] = row["amount"] * 10.0 ** (i % 6) / 3
    found, plain = compiled.run(world), set()
    for seed in range(4):
        rng = random.Random(seed)
        shuffled = {name: rng.sample(rows, len(rows)) for name, rows in world.items()}
        plain.add(np.cumsum([r["amount"] for r in shuffled["transactions"]])[-1])
        assert differing(found, compiled.run(shuffled)) == []
    assert len(plain) > 1


def test_threads_change_no_bit() -> None:
    """Enough rows that DuckDB shares them out: its own sum of floats depends on the threads."""
    groups = by_name(BUILT_IN, ("totals", "windows", "lifetime", "categories", "discounts"), "")
    compiled = Compiled(groups, spine_of([LATE], offers=()))
    duck = compiled.connection.con
    duck.execute(
        """CREATE OR REPLACE TABLE transactions AS
        SELECT ['ann', 'bob', 'cid'][1 + i % 3] AS customer_id, (i // 250)::VARCHAR AS order_id,
            TIMESTAMP '2024-01-01' + INTERVAL (i % 20000000) SECOND AS ordered_at,
            round((hash(i) % 1000) * 10.0 ** (hash(i + 7) % 7) / 1000, 2) AS amount,
            amount / 3 AS margin, 0.1 AS discount, 0.0 AS coupon_discount, 1.0 AS quantity,
            'p1' AS product_id, ['meat', 'wine'][1 + i % 2] AS category, ordered_at AS known_at
        FROM range(0, 20000000, 50) AS rows(i)"""
    )
    # What threads may do to a sum of floats, without leaving to chance whether they do it today.
    duck.execute("SET threads = 1")
    orders = ("margin", "-margin", "hash(order_id)")
    rows = "SELECT sum(margin) FROM (SELECT margin FROM transactions ORDER BY {})"
    plain = {duck.execute(rows.format(order)).fetchall()[0] for order in orders}
    found = []
    for threads in (1, 4):
        duck.execute(f"SET threads = {threads}")
        for _ in range(2):
            found.append({entity: compiled._query(entity) for entity in compiled.sql})
    assert found[0]["customer"].orders_total.max() == 80_000
    assert len(plain) > 1
    assert all(differing(found[0], other) == [] for other in found[1:])


# --- which groups there are, and what they need ---------------------------------------------------


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
@pytest.mark.parametrize("dialect", ["duckdb", "pyspark"])
@pytest.mark.usefixtures("spark_options")
def test_every_group_compiles(group: FeatureGroup, dialect: str) -> None:
    keys = {"customer_id": "string", "offer_id": "string", "as_of": "timestamp"}
    spine = ibis.table(keys, name="spine")
    table, features = attach(Past(unbound(), spine), [group], group.entity)
    sql = ibis.to_sql(table, dialect=dialect)
    (statement,) = sqlglot.parse(sql, read={"pyspark": "spark"}.get(dialect, dialect))
    assert statement.named_selects == [*KEYS[group.entity], *(f.name for f in features)]
    assert features
    # Ibis 12 writes isinf() as FALSE for Spark without a word.
    assert "FALSE OR FALSE" not in sql


WITHOUT = [
    (("transactions.category",), {"categories", "offer_categories"}),
    (("transactions.product_id",), {"products", "offer_products", "coupons", "offer_coupons"}),
    (("transactions.discount",), {"discounts", "offer_coupons"}),
    (("transactions.margin",), {"margins"}),
    (("transactions.coupon_discount",), {"coupons", "offer_coupons"}),
    (("transactions.quantity",), set()),
    (("offers.offer_type",), {"offer_economics", "offer_type_history"}),
    (("offers.product_ids",), {"offer_products", "offer_coupons"}),
    (("offers.ends_at",), {"offer_products"}),
    (("offers.categories",), {"offer_categories"}),
    (("offers.n_coupons", "offers.n_products"), set()),
    (("responses.value",), {"offer_economics"}),
    (("responses.incentive_cost",), {"offer_economics"}),
    (("events",), {"engagement"}),
    (("contacts",), {"contacts", "responses", "offer_type_history"}),
    (("responses",), {"responses", "offer_economics", "offer_type_history"}),
    (("offers",), {"offer", "offer_economics", "offer_type_history", "offer_products",
                   "offer_coupons", "offer_categories"}),
]  # fmt: skip


@pytest.mark.parametrize(("missing", "lost"), WITHOUT, ids=lambda v: ", ".join(sorted(v)))
def test_what_is_missing_makes_exactly_its_groups_unavailable(
    missing: tuple[str, ...], lost: set[str]
) -> None:
    tables = unbound()
    for need in missing:
        name, _dot, column = need.partition(".")
        if column:
            tables[name] = tables[name].drop(column)
        else:
            del tables[name]
    usable, unavailable = available(GROUPS, tables)
    assert {u.group for u in unavailable} == lost
    assert [g.name for g in GROUPS if g.name not in lost] == [g.name for g in usable]
    for u in unavailable:
        assert all(m.startswith(missing) for m in u.missing)
        assert str(u) == f"{u.group}: needs {', '.join(u.missing)}"
    assert {f.group for f in describe(usable, tables)} == {g.name for g in usable}


def test_a_shop_that_only_knows_who_bought_what_when_still_has_features() -> None:
    rows = [
        {"customer_id": "ann", "order_id": "1", "ordered_at": START, "amount": 5.0},
        {"customer_id": "ann", "order_id": "2", "ordered_at": START + 9 * DAY, "amount": 7.0},
    ]
    history = check_and_clean(
        {"customers": ibis.memtable({"customer_id": ["ann", "bob"]}),
         "transactions": ibis.memtable(pd.DataFrame(rows))},
        observed_until=UNTIL,
    )  # fmt: skip
    found = snapshots.profile(history, GROUPS, START + 10 * DAY)
    ann, bob = (found.customers.set_index("customer_id").loc[c] for c in ("ann", "bob"))
    assert (ann.spend_28d, ann.days_since_last_purchase, ann.monetary_value) == (12.0, 1.0, 7.0)
    assert (bob.spend_28d, bob.orders_total) == (0.0, 0.0)
    assert math.isnan(bob.days_since_last_purchase)
    assert {f.group for f in found.features} == {"rfm", "totals", "windows", "timing", "lifetime"}
    assert {u.group for u in found.unavailable} == {
        g.name for g in GROUPS if g.name not in {f.group for f in found.features}
    } - {"demographics"}


def test_features_are_described_without_a_row_of_data() -> None:
    found = describe(GROUPS, unbound())
    names = [f.name for f in found]
    assert len(names) == len(set(names)) == 96 + 7
    for feature in found:
        assert feature.meaning
        assert feature.unit
        assert feature.source in TABLES
        assert feature.dtype in ("number", "string", "boolean")
    group = {g.name: g for g in GROUPS}
    assert all((f.source, f.entity) == (g.source, g.entity)
               for f in found for g in [group[f.group]])  # fmt: skip
    assert {f.group for f in found if f.live} == {"engagement", "contacts", "responses"}
    assert [f.name for f in found if f.group == "responses" and not f.live] == ["response_rate"]
    assert all(f.live for f in found if f.group in ("engagement", "contacts"))
    assert {f.name: f.dtype for f in found if f.dtype != "number"} == {
        "region": "string", "member": "boolean", "offer_type": "string",
    }  # fmt: skip


@pytest.fixture(scope="module")
def profiled(world: World) -> tuple[History, set[str], ProfileFrames]:
    """What `profile` makes of the world, and the tables that were there before."""
    history = histories.history(world)
    before = tables(history)
    return history, before, snapshots.profile(history, GROUPS, MIDDLE, OFFERS)


def tables(history: History) -> set[str]:
    """Names of all tables of the backend; Ibis 12 cannot list them on DuckDB 2."""
    rows = history.backend.con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    return {name for (name,) in rows}


def by_entity(found: ProfileFrames) -> dict[Entity, pd.DataFrame]:
    return {"customer": found.customers, "offer": found.offers, "pair": found.pairs}


def test_a_description_is_of_the_features_that_come(
    profiled: tuple[History, set[str], ProfileFrames],
) -> None:
    described = describe(GROUPS, unbound())
    assert profiled[2].features == described
    for entity, frame in by_entity(profiled[2]).items():
        names = [f.name for f in described if f.entity == entity]
        assert list(frame.columns) == [*KEYS[entity], *names]


def test_what_is_compiled_once_is_what_the_profile_computes(
    profiled: tuple[History, set[str], ProfileFrames], features: Frames
) -> None:
    for entity, frame in by_entity(profiled[2]).items():
        keys = list(KEYS[entity])
        ours = histories.at(features, MIDDLE)[entity].reset_index()
        both = frame.merge(ours, on=keys, suffixes=("", " again"))
        assert len(both) == len(frame)
        for name in (c for c in frame.columns if c not in keys):
            pd.testing.assert_series_equal(
                both[name], both[f"{name} again"], check_names=False, check_dtype=False,
                check_exact=True,
            )  # fmt: skip


def test_shared_results_are_dropped_at_the_end(
    profiled: tuple[History, set[str], ProfileFrames],
) -> None:
    history, before, _found = profiled
    assert tables(history) == before


def test_consent_and_keys_are_no_features() -> None:
    names = {f.name for f in describe(GROUPS, unbound())}
    assert not names & {"consent_mail", "customer_id", "offer_id", "known_at", "as_of"}


def test_possible_features_need_no_data() -> None:
    contract = possible(BUILT_IN)
    assert {"margin_91d", "categories_total", "clicks_7d", "incentive_per_response"} <= contract
    assert "region" not in contract


def test_a_time_among_the_attributes_becomes_days_and_a_list_is_refused() -> None:
    (signed_up,) = [f for f in describe(GROUPS, unbound()) if f.name == "signed_up_at"]
    assert signed_up.unit == "days"
    tables = unbound()
    tables["customers"] = tables["customers"].mutate(tags=ibis.array(["a"]))
    with pytest.raises(DataError, match=r'column "tags" cannot be a feature.*got array<string>'):
        describe(GROUPS, tables)


# --- groups of one's own --------------------------------------------------------------------------


@feature_group("events", requires=("events.item",))
def items(past: Past) -> Block:
    """Things looked at.

    More words that the list of features need not show.
    """
    rows = past.rows("events")
    spec = {"items_seen": (rows.item.nunique(), "different things looked at", "items", 0.0)}
    return summarise(rows, "customer", spec)


def test_a_group_of_ones_own(world: World) -> None:
    assert (items.name, items.meaning, items.requires) == ("items", "Things looked at.",
                                                           ("events.item",))  # fmt: skip
    found = snapshots.profile(histories.history(world), [items], MIDDLE).customers
    past = past_of(world, MIDDLE)
    assert dict(zip(found.customer_id, found.items_seen, strict=True)) == {
        c: len({e["item"] for e in of(past, "events", c)}) for c in CUSTOMERS
    }


def test_a_group_must_say_what_it_measures() -> None:
    with pytest.raises(ConfigError, match="feature group silent: it has no docstring"):

        @feature_group("events")
        def silent(past: Past) -> Block:
            raise AssertionError


def test_two_groups_cannot_define_one_feature() -> None:
    with pytest.raises(DataError, match="items_seen is already defined by another group"):
        describe([items, items], unbound())


def test_groups_are_found_by_name_in_the_order_asked() -> None:
    assert [g.name for g in by_name(GROUPS, ("timing", "rfm"), "x")] == ["timing", "rfm"]
    with pytest.raises(ConfigError, match=r'"timin" does not exist.*Did you mean "timing"'):
        by_name(GROUPS, ("timin",), "models/churn.py")
