"""Credits against published worked tables, brute-force Shapley, and rules worked by hand."""

from collections import Counter
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import permutations
from math import factorial

import ibis
import kpi_shop as toy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.errors import DataError
from nextbest.measure.attribution import RULES, attribute, credits, removal_effects
from nextbest.measure.kpi.settings import AttributionSettings

START = datetime(2024, 1, 1)


def table(journeys):
    """Rows of (names in order, responded, value), a day apart, the last a day before the end."""
    rows = {k: [] for k in ("journey", "at", "contact", "name", "value", "responded", "age_days")}
    for i, (names, responded, value) in enumerate(journeys):
        for j, name in enumerate(names):
            one = (f"j{i}", START + timedelta(days=j), j, name, float(value), responded,
                   float(len(names) - j))  # fmt: skip
            for key, v in zip(rows, one, strict=True):
                rows[key].append(v)
    return ibis.memtable(rows)


def by_name(journeys, **options):
    return {c.name: c for c in credits(table(journeys), **options)[0]}


def test_the_chain_of_a_published_example():
    """Puzyrov (2019), "Markov chain attribution: simple explanation of removal effect"."""
    ads, mail = "google ads", "mailing"
    journeys = [((ads,), True, 1)] * 2 + [((mail,), True, 1), ((ads, mail), True, 1),
                                          ((ads,), False, 0)]  # fmt: skip
    found = by_name(journeys)
    # P = 0.8 · (2/4 + 1/4 · 1) + 0.2 · 1 = 0.8; 0.2 without ads, 0.4 without mailing.
    assert found[ads].removal_effect == pytest.approx(0.75)
    assert found[mail].removal_effect == pytest.approx(0.5)
    assert found[ads].responses["markov"] == pytest.approx(4 * 0.6)


@pytest.mark.parametrize("back_to", ["app", "social", "exit"])
def test_the_chain_of_another_published_example(back_to):
    """Cross Validated question 336227: 11.4% still buy if the notifications lead nowhere.

    Wherever they led before.
    """
    steps = {
        ("app", "social"): 0.5, ("app", "store"): 0.5, ("social", "store"): 0.3,
        ("social", "notifications"): 0.15, ("social", "exit"): 0.5, ("social", "buy"): 0.05,
        ("store", "social"): 0.4, ("store", "notifications"): 0.1, ("store", "exit"): 0.4,
        ("store", "buy"): 0.1, ("notifications", back_to): 1.0,
    }  # fmt: skip
    effects = removal_effects(steps, start="app", response="buy")
    assert walked(steps) * (1 - effects["notifications"]) == pytest.approx(0.114, abs=5e-4)


def walked(steps):
    """The chance to buy, by walking the chain a thousand steps."""
    states = sorted({s for pair in steps for s in pair})
    matrix = np.zeros((len(states), len(states)))
    for (a, b), p in steps.items():
        matrix[states.index(a), states.index(b)] = p
    for end in ("exit", "buy"):
        matrix[states.index(end), states.index(end)] = 1
    at = np.eye(len(states))[states.index("app")]
    return (at @ np.linalg.matrix_power(matrix, 1_000))[states.index("buy")]


journeys_of_few = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcd"), min_size=1, max_size=5).map(tuple),
        st.booleans(),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=8,
).filter(lambda js: any(led for _, led, _ in js))


@settings(max_examples=6)
@given(journeys_of_few)
def test_shapley_is_the_mean_contribution_over_all_orders(journeys):
    found = by_name(journeys)
    led = [(set(names), value) for names, responded, value in journeys if responded]

    def worth(coalition, what):
        return sum(v if what else 1 for names, v in led if names <= coalition)

    players = sorted(found)
    wanted = Counter()
    for what in (0, 1):
        for order in permutations(players):
            inside = set()
            for player in order:
                before = worth(inside, what)
                inside = inside | {player}
                wanted[player, what] += worth(inside, what) - before
    for player in players:
        orders = factorial(len(players))
        assert found[player].responses["shapley"] == pytest.approx(wanted[player, 0] / orders)
        assert found[player].value["shapley"] == pytest.approx(wanted[player, 1] / orders)


@settings(max_examples=6)
@given(journeys_of_few)
def test_every_rule_gives_away_exactly_what_there_was(journeys):
    found, _, total = credits(table(journeys))
    assert total == len(journeys)
    led = [value for _, responded, value in journeys if responded]
    for rule in RULES:
        assert sum(c.responses[rule] for c in found) == pytest.approx(len(led))
        assert sum(c.value[rule] for c in found) == pytest.approx(sum(led))
    assert all(0 <= c.removal_effect <= 1 + 1e-9 for c in found)


def test_rules_worked_by_hand():
    found = by_name([(("a", "b", "c", "b"), True, 8), (("a",), True, 1)], half_life_days=1.0)
    assert {n: c.responses["last_touch"] for n, c in found.items()} == {"a": 1, "b": 1, "c": 0}
    assert {n: c.responses["linear"] for n, c in found.items()} == {"a": 1.25, "b": 0.5, "c": 0.25}
    position = {n: c.responses["position"] for n, c in found.items()}
    assert position == pytest.approx({"a": 1.4, "b": 0.5, "c": 0.1})
    # Ages 4, 3, 2, 1 days weigh 1, 2, 4, 8 of 15.
    decay = {n: c.responses["time_decay"] for n, c in found.items()}
    assert decay == pytest.approx({"a": 1 + 1 / 15, "b": 10 / 15, "c": 4 / 15})
    assert found["b"].value["last_touch"] == 8 and found["a"].touches == 2


def test_two_contacts_share_by_position():
    found = by_name([(("a", "b"), True, 1)])
    assert found["a"].responses["position"] == found["b"].responses["position"] == 0.5


# ------------------------------------------------------------------ from a shop's tables


@lru_cache(maxsize=1)
def kinds():
    return toy.shop(toy.kinds())


def with_window(days, by="offer"):
    shop = kinds()
    wanted = AttributionSettings(window_days=days, by=by)
    shop.settings = shop.settings.model_copy(update={"attribution": wanted})
    return shop


def test_journeys_of_a_shop():
    """In the period 30 of often answer on 145 and all of never on 144, within 7 days of book."""
    found = attribute(with_window(7), toy.days(kinds().history).current)
    assert (found.responses, found.without, found.several) == (70, 0, 0)
    (book,) = found.credits
    assert book.name == "book" and book.responses["linear"] == 70
    assert book.value["linear"] == 30 * 20 + 40 * 60
    # Ten of often led nowhere after book, all of often after note: one journey each customer.
    assert found.journeys == 70 + 40


def test_a_longer_window_sees_earlier_contacts():
    found = attribute(with_window(40), toy.days(kinds().history).current)
    (book,) = found.credits
    # The answer on 145 had book on 114 and 141 before it, that on 144 on 130 and 142.
    assert book.touches == 30 * 2 + 40 * 2


def test_by_channel_and_by_a_type_that_is_not_there():
    found = attribute(with_window(7, "channel"), toy.days(kinds().history).current)
    assert [c.name for c in found.credits] == ["mail"]
    with pytest.raises(DataError, match="offer_type"):
        attribute(with_window(7, "offer_type"), toy.days(kinds().history).current)


def test_without_contacts_or_responses_nothing_is_credited():
    people = {"a": {"region": "x"}}
    bare = toy.history(people, [("a", 20, 5)])
    silent = toy.history(people, [("a", 20, 5)], [("a", "book", 150)])
    for found, said in ((bare, "no contacts"), (silent, "no responses")):
        with pytest.raises(DataError, match=said):
            attribute(toy.shop(found), toy.days(kinds().history).current)
