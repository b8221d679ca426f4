"""Labels: recounted by hand, at the very edges of their windows, and nothing unseen is a no."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Any

import pytest
from histories import CUSTOMERS, DAY, OFFERS, SCHEMAS, START, UNTIL, Row, World, random_world
from histories import history as as_history

from nextbest.data.contract import History
from nextbest.data.labels import (
    CLOSED,
    IMMATURE,
    LEFT_TRUNCATED,
    BuysCategory,
    Examples,
    FutureValue,
    Label,
    NoPurchase,
    Response,
    TopShareOfValue,
)
from nextbest.errors import DataError

AS_OF = [START + d * DAY for d in (40, 100, 160, 220)]
TICK = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(17, edges=AS_OF)


@pytest.fixture(scope="module")
def history(world: World) -> History:
    return as_history(world)


def rows(examples: Examples) -> list[Row]:
    found: list[Row] = examples.table.to_pyarrow().to_pylist()
    return found


def by_key(examples: Examples, column: str = "label") -> dict[tuple[Any, ...], Any]:
    keys = ("customer_id", "offer_id", "as_of")
    found = {tuple(r[k] for k in keys if k in r): r[column] for r in rows(examples)}
    assert len(found) == len(rows(examples))
    return found


# --- by hand --------------------------------------------------------------------------------------


def active(world: World, as_of: datetime, days: int | None) -> set[str]:
    return {
        r["customer_id"]
        for r in world["transactions"]
        if r["amount"] >= 0 and r["ordered_at"] < as_of and r["known_at"] < as_of
        and (days is None or r["ordered_at"] >= as_of - days * DAY)
    }  # fmt: skip


def future(world: World, customer: str, as_of: datetime, days: int) -> tuple[int, float]:
    """Orders and margin inside the window: from the moment on, up to but not at its end."""
    inside = [
        r
        for r in world["transactions"]
        if r["customer_id"] == customer and as_of <= r["ordered_at"] < as_of + days * DAY
    ]
    orders = {r["order_id"] for r in inside if r["amount"] >= 0}
    return len(orders), sum(r["margin"] or 0.0 for r in inside)


@pytest.mark.parametrize(("horizon", "active_days"), [(7, 30), (3, 90)])
def test_churn_is_recounted(world: World, history: History, horizon: int, active_days: int) -> None:
    label = NoPurchase(horizon, active_days)
    found = label.examples(history, AS_OF)
    expected = {
        (c, t): float(future(world, c, t, horizon)[0] == 0)
        for t in AS_OF
        for c in active(world, t, active_days)
    }
    assert by_key(found) == expected
    assert set(expected.values()) == {0.0, 1.0}
    assert by_key(found, "label_end") == {k: k[-1] + horizon * DAY for k in expected}
    assert by_key(found, "future_value") == pytest.approx(
        {(c, t): future(world, c, t, horizon)[1] for c, t in expected}, abs=1e-6
    )
    assert found.left_out == {}


@pytest.mark.parametrize("active_days", [30, None])
def test_buying_from_a_category_is_recounted(
    world: World, history: History, active_days: int | None
) -> None:
    found = BuysCategory("wine", 10, active_days).examples(history, [*AS_OF, UNTIL - 9 * DAY])
    expected = {
        (c, t): float(any(
            r["customer_id"] == c and r["category"] == "wine" and r["amount"] > 0
            and t <= r["ordered_at"] < t + 10 * DAY
            for r in world["transactions"]
        ))
        for t in AS_OF
        for c in active(world, t, active_days)
    }  # fmt: skip
    assert by_key(found) == expected
    assert set(expected.values()) == {0.0, 1.0}
    assert by_key(found, "label_end") == {k: k[-1] + 10 * DAY for k in expected}
    assert list(found.left_out.values()) == [len(active(world, UNTIL - 9 * DAY, active_days))]


def test_a_category_that_nobody_bought_from_is_refused(history: History) -> None:
    with pytest.raises(DataError, match=r'no purchase has the category "wines".*"wine"'):
        BuysCategory("wines").examples(history, AS_OF)


def test_churn_may_ask_about_everybody_who_ever_bought(world: World, history: History) -> None:
    label = NoPurchase(7, active_days=None)
    expected = {
        (c, t): float(future(world, c, t, 7)[0] == 0) for t in AS_OF for c in active(world, t, None)
    }
    assert by_key(label.examples(history, AS_OF)) == expected
    assert "who bought before" in label.meaning


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_high_value_is_recounted(world: World, history: History, share: float) -> None:
    found = by_key(TopShareOfValue(60, share, 90).examples(history, AS_OF))
    expected = {}
    for t in AS_OF:
        people = active(world, t, 90)
        ranked = sorted(people, key=lambda c: (-round(future(world, c, t, 60)[1], 6), c))
        expected |= {(c, t): float(i < int(len(people) * share)) for i, c in enumerate(ranked)}
    assert found == expected
    assert set(found.values()) == {0.0, 1.0}


def test_future_value_is_recounted(world: World, history: History) -> None:
    found = FutureValue(60).examples(history, AS_OF)
    expected = {(c, t): future(world, c, t, 60)[1] for t in AS_OF for c in active(world, t, None)}
    assert by_key(found) == pytest.approx(expected, abs=1e-6)
    assert by_key(found) == by_key(found, "future_value")
    assert len(set(expected.values())) > len(AS_OF)


def test_value_is_spend_where_the_data_hold_no_margin(world: World) -> None:
    history = as_history(world)
    tables = dict(history.tables)
    tables["transactions"] = tables["transactions"].drop("margin")
    spend = {n: [r | {"margin": r["amount"]} for r in t] if n == "transactions" else t
             for n, t in world.items()}  # fmt: skip
    found = FutureValue(60).examples(History(tables, {}, (), START, UNTIL, history.backend), AS_OF)
    assert by_key(found) == pytest.approx(
        {(c, t): future(spend, c, t, 60)[1] for t in AS_OF for c in active(world, t, None)},
        abs=1e-6,
    )


def responses_by_hand(
    world: World, window_days: int | None, start: datetime, until: datetime
) -> tuple[dict[tuple[str, str, datetime], float], Counter[str]]:
    first: dict[tuple[str, str], datetime] = {}
    for c in world["contacts"]:
        key = c["customer_id"], c["offer_id"]
        first[key] = min(c["contacted_at"], first.get(key, c["contacted_at"]))
    ends = {o["offer_id"]: o["ends_at"] for o in world["offers"]}
    labels, out = {}, Counter()
    for (customer, offer), at in first.items():
        end = at + window_days * DAY if window_days else ends[offer]
        if end is None or end > until:
            out[IMMATURE] += 1
        elif at >= end:
            out[CLOSED] += 1
        elif at < start:
            out[LEFT_TRUNCATED] += 1
        else:
            labels[customer, offer, at] = float(
                any(
                    (r["customer_id"], r["offer_id"]) == (customer, offer)
                    and at <= r["responded_at"] < end
                    for r in world["responses"]
                )
            )
    return labels, out


def campaigns(seed: int) -> World:
    """Contacts all through the year with offers that run for a while, one of them for ever."""
    rng = random.Random(seed)

    def moment() -> datetime:
        return START + rng.randrange(300) * DAY

    world: World = {name: [] for name in SCHEMAS}
    for offer in OFFERS:
        ends = START + rng.randrange(150, 290) * DAY
        world["offers"].append({"offer_id": offer, "ends_at": None if offer == "o4" else ends})
    for _ in range(200):
        key = {"customer_id": f"c{rng.randrange(80)}", "offer_id": rng.choice(OFFERS)}
        at = moment()
        world["contacts"].append(key | {"contacted_at": at, "known_at": at})
        if rng.random() < 0.7:
            later = at + rng.randrange(90) * DAY
            world["responses"].append(key | {"responded_at": later, "known_at": later})
    return world


@pytest.mark.parametrize("window_days", [None, 14, 60])
@pytest.mark.parametrize("seed", range(2))
def test_response_is_recounted(window_days: int | None, seed: int) -> None:
    world = campaigns(seed)
    start, until = START + 30 * DAY, START + 280 * DAY
    found = Response(window_days).examples(
        as_history(world, data_start=start, observed_until=until), AS_OF
    )
    labels, out = responses_by_hand(world, window_days, start, until)
    assert by_key(found) == labels
    assert found.left_out == out
    assert set(labels.values()) == {0.0, 1.0}
    assert set(out) == {IMMATURE, LEFT_TRUNCATED} | (set() if window_days else {CLOSED})
    contacted = {(c["customer_id"], c["offer_id"]) for c in world["contacts"]}
    assert len(labels) + out.total() == len(contacted)


# --- the edges of a window ------------------------------------------------------------------------


def small(**given: list[Row]) -> World:
    return {name: given.get(name, []) for name in SCHEMAS}


def bought(at: datetime, amount: float = 5.0, customer: str = "ann", **more: Any) -> Row:
    line = {"customer_id": customer, "order_id": f"{customer}{at}", "ordered_at": at,
            "amount": amount, "margin": amount, "known_at": at}  # fmt: skip
    return line | more


T = START + 100 * DAY
CUSTOMER_LABELS: list[Label] = [NoPurchase(10, 30), TopShareOfValue(10, 1.0, 30), FutureValue(10)]


@pytest.mark.parametrize(
    ("at", "inside"),
    [(T - TICK, False), (T, True), (T + 10 * DAY - TICK, True), (T + 10 * DAY, False)],
)
def test_the_window_holds_its_first_instant_and_not_its_last(at: datetime, inside: bool) -> None:
    world = small(transactions=[bought(T - 5 * DAY, 1.0), bought(at, 7.0)])
    history = as_history(world)
    (churn,) = rows(NoPurchase(10, 30).examples(history, [T]))
    assert churn["label"] == float(not inside)
    (value,) = rows(FutureValue(10).examples(history, [T]))
    assert value["label"] == 7.0 * inside


@pytest.mark.parametrize(
    ("at", "known_at", "asked"),
    [
        (T - 30 * DAY, T - 30 * DAY, True),
        (T - 30 * DAY - TICK, T - 30 * DAY, False),
        (T - TICK, T - TICK, True),
        (T - TICK, T, False),
        (T, T, False),
    ],
)
@pytest.mark.parametrize("label", CUSTOMER_LABELS[:2], ids=lambda v: type(v).__name__)
def test_only_the_known_active_are_asked_about(
    label: Label, at: datetime, known_at: datetime, asked: bool
) -> None:
    history = as_history(small(transactions=[bought(at, known_at=known_at)]))
    assert len(rows(label.examples(history, [T]))) == asked
    assert label.population(history, T).count().to_pyarrow().as_py() == asked


def test_everybody_who_ever_bought_has_a_future_value() -> None:
    history = as_history(small(transactions=[bought(START), bought(T, customer="bob")]))
    assert by_key(FutureValue(10).examples(history, [T])) == {("ann", T): 0.0}


def test_a_return_is_not_a_purchase() -> None:
    world = small(
        transactions=[
            bought(T - DAY), bought(T + DAY, -3.0),
            bought(T - DAY, -3.0, "bob"),
            bought(T - DAY, customer="cid"), bought(T + DAY, 0.0, "cid"),
        ]
    )  # fmt: skip
    history = as_history(world)
    assert by_key(NoPurchase(10, 30).examples(history, [T])) == {("ann", T): 1.0, ("cid", T): 0.0}
    values = by_key(FutureValue(10).examples(history, [T]))
    assert values == {("ann", T): -3.0, ("cid", T): 0.0}


@pytest.mark.parametrize("label", CUSTOMER_LABELS, ids=lambda v: type(v).__name__)
def test_a_window_that_runs_past_the_data_is_counted_and_left_out(label: Label) -> None:
    world = small(transactions=[bought(T - DAY), bought(T - DAY, customer="bob")])
    moments = [T - 9 * DAY, T, T + TICK, T + 5 * DAY]
    found = label.examples(as_history(world, observed_until=T + 10 * DAY), moments)
    assert {r["as_of"] for r in rows(found)} == {T}
    assert found.left_out == {IMMATURE: 4}
    none = label.examples(as_history(world, observed_until=T), moments[1:])
    assert rows(none) == []
    assert none.left_out == {IMMATURE: 6}
    nothing = label.examples(as_history(world), [])
    assert (rows(nothing), nothing.left_out) == ([], {})


@pytest.mark.parametrize(
    ("at", "label"),
    [(T, 1.0), (T + 10 * DAY - TICK, 1.0), (T + 10 * DAY, 0.0), (T - TICK, 0.0)],
)
@pytest.mark.parametrize("window_days", [None, 10])
def test_a_response_counts_from_the_contact_to_the_end(
    at: datetime, label: float, window_days: int | None
) -> None:
    key = {"customer_id": "ann", "offer_id": "o1"}
    world = small(
        offers=[{"offer_id": "o1", "ends_at": T + 10 * DAY}],
        contacts=[key | {"contacted_at": t, "known_at": t} for t in (T, T + DAY)],
        responses=[
            key | {"responded_at": at, "known_at": at},
            {"customer_id": "bob", "offer_id": "o1", "responded_at": T, "known_at": T},
        ],
    )
    found = Response(window_days).examples(as_history(world), [])
    assert by_key(found) == {("ann", "o1", T): label}
    (row,) = rows(found)
    assert row["label_end"] == T + 10 * DAY


def test_contacts_of_the_very_first_and_last_instant_count() -> None:
    ends = T + 10 * DAY

    def given(start: datetime, until: datetime) -> Examples:
        world = small(
            offers=[{"offer_id": "o1", "ends_at": ends}],
            contacts=[{"customer_id": "ann", "offer_id": "o1", "contacted_at": T, "known_at": T}],
        )
        return Response().examples(as_history(world, data_start=start, observed_until=until), [])

    assert by_key(given(T, ends)) == {("ann", "o1", T): 0.0}
    assert given(T + TICK, ends).left_out == {LEFT_TRUNCATED: 1}
    assert given(T, ends - TICK).left_out == {IMMATURE: 1}


# --- exactly the share ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "share", "positive"),
    [(10, 0.2, 2), (100, 0.29, 29), (50, 0.58, 29), (7, 0.5, 3), (3, 0.2, 0), (4, 1.0, 4)],
)
def test_exactly_the_share_is_positive_and_ties_go_by_id(
    n: int, share: float, positive: int
) -> None:
    people = [f"c{i:03}" for i in range(n)]
    world = small(transactions=[bought(T - DAY, customer=c) for c in reversed(people)])
    found = by_key(TopShareOfValue(10, share, 30).examples(as_history(world), [T]))
    assert {c for (c, _t), label in found.items() if label} == set(people[:positive])


def test_each_moment_has_its_own_top(world: World, history: History) -> None:
    found = by_key(TopShareOfValue(60, 0.5, 90).examples(history, AS_OF))
    per_moment = defaultdict(list)
    for (_c, t), label in found.items():
        per_moment[t].append(label)
    assert {t: sum(v) for t, v in per_moment.items()} == {
        t: len(active(world, t, 90)) // 2 for t in AS_OF
    }


# --- words and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "entity", "horizon", "words"),
    [
        (NoPurchase(60, 90), "customer", 60,
         "no purchase in the next 60 days, among customers who bought in the last 90"),
        (TopShareOfValue(90, 0.2), "customer", 90, "in the top 20% of value over the next 90 days"),
        (FutureValue(365), "customer", 365, "value over the next 365 days"),
        (Response(), "pair", None, "the customer responds before the offer ends, once contacted"),
        (Response(14), "pair", 14, "the customer responds within 14 days, once contacted"),
    ],
)  # fmt: skip
def test_a_label_says_what_it_means(
    label: Label, entity: str, horizon: float | None, words: str
) -> None:
    assert (label.entity, label.horizon_days, label.meaning) == (entity, horizon, words)


@pytest.mark.parametrize("missing", ["contacts", "responses", "offers"])
def test_a_response_needs_its_tables(history: History, missing: str) -> None:
    tables = {n: t for n, t in history.tables.items() if n != missing}
    less = History(tables, {}, (), START, UNTIL, history.backend)
    with pytest.raises(DataError, match=f'table "{missing}" is missing.*training/sources.py'):
        Response().examples(less, [])


def test_a_response_needs_a_window(history: History) -> None:
    tables = dict(history.tables)
    tables["offers"] = tables["offers"].drop("ends_at")
    less = History(tables, {}, (), START, UNTIL, history.backend)
    with pytest.raises(DataError, match="no response window"):
        Response().examples(less, [])
    assert rows(Response(30).examples(less, [])) != []


def test_everybody_who_bought_may_get_an_offer(world: World, history: History) -> None:
    found = Response().population(history, AS_OF[1]).customer_id.to_pyarrow().to_pylist()
    assert sorted(found) == sorted(active(world, AS_OF[1], None))
    assert set(found) < set(CUSTOMERS)
