"""Assignments under limits, held against brute force, HiGHS over all pairs, and LP duality."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.assign import (
    Assignment,
    Constraint,
    Prices,
    Problem,
    assign,
    offer_limits,
    price_adjusted,
)
from nextbest.errors import DataError, NextbestError, UsageError

IDS = ("a", "b", "c")


def check_limits(problem: Problem, found: Assignment) -> None:
    """What was chosen is allowed, worth what it says, and uses what it says."""
    n, m = problem.value.shape
    made = np.zeros((n, m))
    for row, offers in enumerate(found.chosen):
        taken = [int(j) for j in offers if j >= 0]
        assert len(set(taken)) == len(taken)
        if problem.group is not None and problem.slots > 1:
            groups = [g for g in problem.group[taken] if g >= 0]
            assert len(set(groups)) == len(groups)
        made[row, taken] = 1
    assert np.all(problem.value[made == 1] > 0)
    assert found.value == pytest.approx(problem.value[made == 1].sum())
    assert found.upper_bound >= found.value
    cost = np.zeros(m) if problem.cost is None else problem.cost
    for constraint, price in zip(problem.constraints, found.prices.each, strict=True):
        inside = np.isin(problem.offer_ids, constraint.offer_ids)
        weight = np.where(inside, 1.0 if constraint.unit == "contacts" else cost, 0.0)
        used = np.where(made == 1, np.broadcast_to(weight, made.shape), 0).sum()
        assert used <= constraint.limit * (1 + 1e-8) + 1e-12
        assert price.used == pytest.approx(used)
        assert price.price >= 0


def brute_force(problem: Problem) -> float:
    """Try every assignment there is."""
    n, m = problem.value.shape
    cost = np.broadcast_to(np.zeros(m) if problem.cost is None else problem.cost, (n, m))
    sets = [s for size in range(problem.slots + 1) for s in itertools.combinations(range(m), size)]
    if problem.group is not None:
        group = problem.group
        sets = [
            s for s in sets
            if all(group[i] < 0 or group[i] != group[j] for i, j in itertools.combinations(s, 2))
        ]  # fmt: skip
    best = 0.0
    for plan in itertools.product(sets, repeat=n):
        pairs = [(i, j) for i, offers in enumerate(plan) for j in offers]
        if not all(problem.value[i, j] > 0 for i, j in pairs):
            continue
        used = [
            sum(
                1 if c.unit == "contacts" else cost[i, j]
                for i, j in pairs
                if problem.offer_ids[j] in c.offer_ids
            )
            for c in problem.constraints
        ]
        if all(u <= c.limit + 1e-9 for u, c in zip(used, problem.constraints, strict=True)):
            best = max(best, sum(problem.value[i, j] for i, j in pairs))
    return float(best)


@st.composite
def small(draw: Any) -> Problem:
    """Four customers or fewer, three offers, every kind of limit; ties and zeros are common."""
    n, slots = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    amounts = st.sampled_from([np.nan, -np.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 3.7, 10.0])
    value = np.array(draw(st.lists(amounts, min_size=3 * n, max_size=3 * n))).reshape(n, 3)
    costs = st.sampled_from([0.0, 0.3, 1.0, 1.9])
    cost = np.array(draw(st.lists(costs, min_size=3 * n, max_size=3 * n))).reshape(n, 3)
    limits = [
        *offer_limits({"a": draw(st.integers(0, 3)), "b": None}, {"c": draw(costs)}),
        Constraint("mail", "contacts", ("b", "c"), draw(st.integers(0, 4))),
        Constraint("total", "currency", IDS, draw(st.sampled_from([0.0, 1.5, 3.0, 9.0]))),
    ]
    group = draw(st.sampled_from([None, np.array([0, 0, -1]), np.array([-1, 1, 1])]))
    if draw(st.booleans()):
        cost = cost[0]
    return Problem(IDS, value, tuple(limits), cost, slots, group)


@given(small())
@settings(max_examples=80)
def test_exact_is_what_brute_force_finds(problem: Problem) -> None:
    best = brute_force(problem)
    found = assign(problem)
    check_limits(problem, found)
    assert found.method == "exact"
    assert found.value == pytest.approx(best, abs=1e-6)
    assert found.upper_bound == pytest.approx(best, abs=1e-5)


@given(small())
@settings(max_examples=50)
def test_prices_keep_every_limit_and_their_bound_holds(problem: Problem) -> None:
    found = assign(problem, exact_pairs=0)
    check_limits(problem, found)
    assert found.upper_bound >= brute_force(problem) - 1e-9


def shop(n: int, m: int, seed: int, slots: int = 1) -> Problem:
    rng = np.random.default_rng(seed)
    chance = rng.beta(1, 8, (n, m)) * rng.lognormal(0, 0.5, (n, 1))
    margin = rng.lognormal(3, 0.5, m)
    value, cost = chance * margin * 0.7 - 0.3, chance * margin * 0.3 + 0.3
    value[rng.random((n, m)) < 0.3] = np.nan
    ids = tuple(f"o{j}" for j in range(m))
    limits = offer_limits(
        {offer_id: int(n / m / 2) for offer_id in ids}, {ids[0]: n / m * 0.3, ids[1]: None}
    )
    total = Constraint("total", "currency", ids, n * 0.25)
    group = np.array([0, 0, *[-1] * (m - 2)])
    return Problem(ids, value, (*limits, total), cost, slots, group)


@pytest.mark.parametrize("slots", [1, 2])
def test_both_ways_agree_at_medium_size(slots: int) -> None:
    problem = shop(100, 5, 3, slots)
    best, fast = assign(problem), assign(problem, exact_pairs=0)
    check_limits(problem, best)
    check_limits(problem, fast)
    assert fast.value <= best.upper_bound * (1 + 1e-9)
    assert fast.upper_bound >= best.value
    # Whole customers can do no better than split ones, which is what prices bound.
    assert fast.upper_bound >= best.upper_bound * (1 - 1e-9)


def test_both_bounds_are_the_same_where_nobody_is_split() -> None:
    problem = shop(400, 5, 3)
    limits = offer_limits(dict.fromkeys(problem.offer_ids, 30), {})
    problem = Problem(problem.offer_ids, problem.value, limits)
    best, fast = assign(problem), assign(problem, exact_pairs=0)
    assert best.gap < 1e-9
    assert fast.upper_bound == pytest.approx(best.value, rel=1e-4)
    assert fast.gap < 0.01


def test_large_gap_is_small() -> None:
    problem = shop(70_000, 8, 5)
    found = assign(problem)
    assert found.method == "prices"
    assert found.gap < 1e-3
    check_limits(problem, found)
    # Complementary slackness: only what is used up has a price.
    for price in found.prices.each:
        if price.binds:
            assert price.used > 0.99 * price.limit


def test_the_answer_is_the_same_twice() -> None:
    found, again = (assign(shop(3_000, 4, 1), exact_pairs=0) for _ in range(2))
    np.testing.assert_array_equal(found.chosen, again.chosen)
    assert found.prices == again.prices


def test_tied_customers_are_shared_out() -> None:
    """All customers are alike: prices alone would send everybody to one offer."""
    value = np.tile([3.0, 2.0, 1.0], (9_000, 1))
    limits = offer_limits({"a": 2_000, "b": 3_000, "c": 500}, {})
    found = assign(Problem(IDS, value, limits), exact_pairs=0)
    assert found.value == 2_000 * 3 + 3_000 * 2 + 500
    assert found.gap < 1e-4


def test_a_price_is_what_one_more_contact_is_worth() -> None:
    problem = shop(60, 4, 2)
    base = offer_limits(dict.fromkeys(problem.offer_ids, 6), {})
    found = assign(Problem(problem.offer_ids, problem.value, base))
    assert any(price.binds for price in found.prices.each)
    for price in found.prices.each:
        (offer_id,) = price.offer_ids
        values = {}
        for change in (-1, 1):
            capacity = dict.fromkeys(problem.offer_ids, 6) | {offer_id: 6 + change}
            other = Problem(problem.offer_ids, problem.value, offer_limits(capacity, {}))
            values[change] = assign(other).value
        assert values[1] - found.value <= price.price + 1e-6
        assert found.value - values[-1] >= price.price - 1e-6


def test_deciding_by_price_takes_what_the_assignment_gives() -> None:
    """Where nobody is split, best after prices is the assignment (complementary slackness)."""
    problem = shop(60, 4, 2)
    limits = offer_limits(dict.fromkeys(problem.offer_ids, 6), {})
    found = assign(Problem(problem.offer_ids, problem.value, limits))
    adjusted = price_adjusted(problem.value, np.zeros(4), found.prices)
    adjusted = np.where(problem.value > 0, adjusted, -np.inf)
    best = np.maximum(adjusted.max(axis=1), 0)
    taken = found.chosen[:, 0]
    own = np.where(taken >= 0, adjusted[np.arange(60), taken], 0)
    np.testing.assert_allclose(own, best, atol=1e-6)
    bound = best.sum() + sum(p.price * p.limit for p in found.prices.each)
    assert bound == pytest.approx(found.value)


def test_order_of_customers_and_offers_does_not_change_the_value() -> None:
    problem = shop(80, 4, 7)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(80), rng.permutation(4)
    ids = tuple(problem.offer_ids[j] for j in columns)
    other = Problem(
        ids,
        problem.value[rows][:, columns],
        problem.constraints,
        np.asarray(problem.cost)[rows][:, columns],
    )
    same = Problem(problem.offer_ids, problem.value, problem.constraints, problem.cost)
    assert assign(other).value == pytest.approx(assign(same).value, rel=1e-6)


@pytest.mark.parametrize("exact_pairs", [0, 1_000])
def test_nothing_to_give(exact_pairs: int) -> None:
    one = np.array([[1.0, 2.0, 3.0]])
    none = offer_limits(dict.fromkeys(IDS, 0), {})
    cases = [
        (Problem(IDS, one, none), 0.0),
        (Problem(IDS, np.full((5, 3), np.nan), none), 0.0),
        (Problem((), np.zeros((5, 0))), 0.0),
        (Problem(IDS, np.zeros((0, 3)), none), 0.0),
        (Problem(IDS, one), 3.0),
    ]
    for problem, value in cases:
        found = assign(problem, exact_pairs=exact_pairs)
        assert (found.value, found.chosen.shape) == (value, (len(problem), 1))
        assert found.upper_bound == pytest.approx(value, abs=1e-3)


def test_ties_go_to_the_smaller_id() -> None:
    found = assign(Problem(("b", "a"), np.ones((1, 2))), exact_pairs=0)
    assert found.chosen.tolist() == [[1]]


def test_prices_survive_json_and_speak() -> None:
    limits = offer_limits({"a": 1}, {})
    prices = assign(Problem(IDS, np.array([[2.0, np.nan, np.nan]] * 2), limits)).prices
    assert Prices.from_dict(json.loads(json.dumps(prices.to_dict()))) == prices
    words = 'capacity of offer "a": 1 of 1 used; one more contact is worth 2.'
    assert str(prices.each[0]) == words
    moved = prices.for_offers(("new", "a"))
    np.testing.assert_array_equal(
        price_adjusted(np.array([[5.0, 5.0]]), np.zeros(2), moved), [[5.0, 3.0]]
    )
    for change in ({"price": -1.0}, {"price": float("nan")}, {"unit": "hours"}, {"more": 1}):
        raw = prices.to_dict()
        raw["prices"][0] |= change
        with pytest.raises(DataError):
            Prices.from_dict(raw)
    with pytest.raises(DataError, match="for_offers"):
        price_adjusted(np.ones((1, 2)), np.zeros(2), prices)


VALUE = np.ones((2, 3))
WRONG: list[tuple[type[NextbestError], str, dict[str, Any]]] = [
    (DataError, "limit", {"constraints": offer_limits({"a": -1}, {})}),
    (DataError, "whole", {"constraints": (Constraint("x", "contacts", ("a",), 1.5),)}),
    (DataError, "limit", {"constraints": offer_limits({}, {"a": np.nan}), "cost": VALUE}),
    (DataError, "needs to know", {"constraints": offer_limits({}, {"a": 1.0})}),
    (DataError, "customer number 0", {"cost": np.full((2, 3), np.nan)}),
    (DataError, "zero or more", {"cost": np.array([0.0, -1.0, 0.0])}),
    (DataError, "shape", {"cost": np.zeros((3, 2))}),
    (DataError, "shape", {"value": np.zeros((2, 2))}),
    (DataError, "shape", {"group": np.zeros(2, dtype=np.int64)}),
    (DataError, "infinitely", {"value": np.full((2, 3), np.inf)}),
    (DataError, "kind of number", {"value": np.ones((2, 3), dtype=np.int64)}),
    (UsageError, "slot", {"slots": 0}),
    (UsageError, "no offer", {"constraints": offer_limits({"z": 1}, {})}),
    (UsageError, "unit", {"constraints": (Constraint("x", "hours", ("a",), 1),)}),  # type: ignore
    (UsageError, "twice", {"constraints": offer_limits({"a": 1}, {}) * 2}),
]


@pytest.mark.parametrize(("error", "words", "change"), WRONG)
def test_wrong_questions_are_refused(
    error: type[NextbestError], words: str, change: dict[str, Any]
) -> None:
    with pytest.raises(error, match=words):
        Problem(**{"offer_ids": IDS, "value": VALUE} | change)


def test_the_solver_prints_nothing() -> None:
    """This problem makes HiGHS write from C, whatever its options say."""
    code = """
import numpy as np
from nextbest.decide.assign import Constraint, Problem, assign
rng = np.random.default_rng(3)
n, ids = int(rng.integers(20, 60)), tuple("abcde")
value, cost = rng.random((n, 5)), rng.random((n, 5)) + 0.1
limits = [Constraint("total", "currency", ids, 0.15 * n)]
limits += [Constraint(i, "currency", (i,), 0.05 * n) for i in ids]
limits += [Constraint("letters", "contacts", ids[:2], 3)]
print("before")
group = np.array([0, 0, 1, 1, -1])
assign(Problem(ids, value, tuple(limits), cost, slots=int(rng.integers(1, 3)), group=group))
print("after")
"""
    for unbuffered in ((), ("-u",)):
        command = [sys.executable, *unbuffered, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "before\nafter\n"
