"""Exploration: probabilities by hand, by brute force and by simulation; losses within limits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from nextbest.decide.arbitrate import greedy
from nextbest.decide.explore import (
    BELIEF_POINTS,
    Explorer,
    LossStatistics,
    OfferCounts,
    beliefs,
    best_probability,
    epsilon,
    guard,
    loss_bound,
    over_budget,
    reach,
    softmax,
    uniform,
)
from nextbest.decide.policy import Exploration
from nextbest.errors import DataError

OUT = -np.inf
E = np.e


@pytest.mark.parametrize(
    ("running", "expect"),
    [
        ([5, 3, -1], [1, 0, 0, 0]),
        ([3, 5, OUT], [0, 1, 0, 0]),
        ([5, 5, 1], [1, 0, 0, 0]),
        ([0, -1, OUT], [0, 0, 0, 1]),
        ([OUT, OUT, OUT], [0, 0, 0, 1]),
    ],
)
def test_greedy(running: list[float], expect: list[float]) -> None:
    np.testing.assert_array_equal(greedy(np.array([running], dtype=float)), [expect])


@pytest.mark.parametrize(
    ("running", "expect"),
    [
        ([5, 3, -1], [1 / 3, 1 / 3, 1 / 3, 0]),
        ([OUT, 3, -1], [0, 0.5, 0.5, 0]),
        ([OUT, OUT, OUT], [0, 0, 0, 1]),
    ],
)
def test_random_eligible(running: list[float], expect: list[float]) -> None:
    np.testing.assert_allclose(uniform(np.array([running], dtype=float)), [expect])


@pytest.mark.parametrize(
    ("running", "free", "expect"),
    [
        # 90% for the best, and 10% shared by three offers and none.
        ([5, 3, -1], [1, 1, 1], [0.925, 0.025, 0.025, 0.025]),
        ([5, 3, OUT], [1, 1, 0], [0.9 + 0.1 / 3, 0.1 / 3, 0, 0.1 / 3]),
        ([-5, -3, OUT], [1, 1, 0], [0.1 / 3, 0.1 / 3, 0, 0.9 + 0.1 / 3]),
        ([5, 3, 1], [1, 0, 1], [0.9 + 0.1 / 3, 0, 0.1 / 3, 0.1 / 3]),
        ([OUT, OUT, OUT], [0, 0, 0], [0, 0, 0, 1]),
    ],
)
def test_epsilon(running: list[float], free: list[int], expect: list[float]) -> None:
    got = epsilon(np.array([running], dtype=float), np.array([free], dtype=bool), 0.1)
    np.testing.assert_allclose(got, [expect], rtol=1e-14)


@pytest.mark.parametrize(
    ("running", "temperature", "expect"),
    [
        ([2, 0, OUT], 2, [E / (E + 2), 1 / (E + 2), 0, 1 / (E + 2)]),
        ([-2, OUT, OUT], 2, [1 / (1 + E), 0, 0, E / (1 + E)]),
        ([2, 1, 0], 1e-6, [1, 0, 0, 0]),
        ([2, 1, 0], 1e9, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_softmax(running: list[float], temperature: float, expect: list[float]) -> None:
    values = np.array([running], dtype=float)
    got = softmax(values, np.isfinite(values), temperature)
    np.testing.assert_allclose(got, [expect], rtol=1e-8)
    np.testing.assert_allclose(
        got, special.softmax(np.append(values, [[0.0]], axis=1) / temperature, axis=1), rtol=1e-12
    )


# --- Thompson sampling ---------------------------------------------------------------------------

ONE = np.ones((1, 3))


def believed(propensity: list[float], strength: float, margin: list[float], cost: float) -> Any:
    return beliefs(
        np.array([propensity]), np.full(3, strength), ONE[0], np.array([margin]), -cost * ONE, ONE
    )


def test_the_points_of_a_belief_are_quantiles_of_the_beta() -> None:
    got = believed([0.2, 0.5, 0.01], 50, [10, 1, 100], 0.5)[0]
    middle = (np.arange(BELIEF_POINTS) + 0.5) / BELIEF_POINTS
    for row, (p, margin) in zip(got, ((0.2, 10), (0.5, 1), (0.01, 100)), strict=True):
        want = stats.beta(50 * p, 50 * (1 - p)).ppf(middle) * margin - 0.5
        np.testing.assert_allclose(row, want, rtol=1e-9)


def test_the_probability_of_being_best_is_that_of_trying_every_combination() -> None:
    rng = np.random.default_rng(3)
    possible = np.round(rng.normal(0.3, 1, (6, 3, 5)), 1)  # rounded, so that there are ties
    free = np.array([[1, 1, 1]] * 4 + [[1, 0, 1], [0, 0, 0]], dtype=bool)
    got = best_probability(possible, free)
    for row in range(6):
        counts = np.zeros(4)
        for points in itertools.product(range(5), repeat=3):
            values = [possible[row, j, q] if free[row, j] else OUT for j, q in enumerate(points)]
            best = int(np.argmax(values))  # the first of equals
            counts[best if values[best] > 0 else 3] += 1
        np.testing.assert_allclose(got[row], counts / 125, atol=1e-14)


def test_the_probability_of_being_best_is_that_of_a_simulation() -> None:
    propensity, margin = [0.30, 0.10, 0.02], [10.0, 33.0, 90.0]
    got = best_probability(believed(propensity, 40, margin, 2.5), np.ones((1, 3), dtype=bool))[0]
    rng = np.random.default_rng(5)
    p = np.array(propensity)
    draws = rng.beta(40 * p, 40 * (1 - p), (200_000, 3)) * margin - 2.5
    best = np.where(draws.max(axis=1) > 0, draws.argmax(axis=1), 3)
    simulated = np.bincount(best, minlength=4) / len(best)
    assert simulated.min() > 0.005
    np.testing.assert_allclose(got, simulated, atol=0.01)
    assert got.sum() == pytest.approx(1, abs=1e-14)


def test_what_is_surely_best_is_surely_chosen_and_doubt_spreads() -> None:
    free = np.ones((1, 3), dtype=bool)
    sure = best_probability(believed([0.3, 0.2, 0.1], 1e6, [10, 10, 10], 0.5), free)
    np.testing.assert_array_equal(sure, [[1, 0, 0, 0]])
    doubt = best_probability(believed([0.3, 0.2, 0.1], 10, [10, 10, 10], 0.5), free)[0]
    assert doubt[0] > doubt[1] > doubt[2] > 0
    nothing = best_probability(believed([0.0, 0.0, 0.0], 100, [10, 10, 10], 0.5), free)
    np.testing.assert_array_equal(nothing, [[0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("counts", "strength", "rate"),
    [
        (OfferCounts(), 100, 1),
        (OfferCounts(300, 60), 400, 1),  # nothing is known of what was foretold
        (OfferCounts(300, 60, 60.0), 400, 1),
        (OfferCounts(300, 90, 60.0), 400, (100 + 300 * 1.5) / 400),
        (OfferCounts(300, 0, 60.0), 400, 100 / 400),
        (OfferCounts(0, 0, 0.0), 100, 1),
    ],
)
def test_responses_move_a_belief(counts: OfferCounts, strength: float, rate: float) -> None:
    assert counts.strength(100) == strength
    assert counts.rate(100) == pytest.approx(rate)


def test_a_rate_is_the_posterior_of_the_beta() -> None:
    """Where customers are alike, it is the textbook's: (κp + responses) / (κ + contacts)."""
    p, counts = 0.2, OfferCounts(300, 90, 0.2 * 300)
    assert p * counts.rate(100) == pytest.approx((100 * p + 90) / (100 + 300))


@pytest.mark.parametrize("wrong", [(-1, 0, None), (3, 4, None), (3, 2, -1.0), (3, 2, np.nan)])
def test_counts_that_do_not_fit_are_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match="the counts do not fit together"):
        OfferCounts(*wrong)


# --- what holds for every policy -----------------------------------------------------------------

POLICIES = ("greedy", "epsilon", "softmax", "thompson")
values = st.one_of(st.just(OUT), st.floats(-50, 50))


def chances(
    policy: str, running: np.ndarray[Any, Any], stopped: Any = None, **more: Any
) -> np.ndarray[Any, Any]:
    m = running.shape[1]
    rules = Exploration(salt="x" * 16, policy=policy, temperature=7.0, **more)
    finite = np.where(np.isfinite(running), running, 0.0)
    spread = np.linspace(-9, 9, BELIEF_POINTS)
    possible = finite[:, :, None] + spread if policy == "thompson" else None
    no = np.zeros(m, dtype=bool)
    return Explorer(rules, finite, no if stopped is None else stopped, possible).chances(running)


@pytest.mark.parametrize("policy", POLICIES)
@given(
    st.lists(st.lists(values, min_size=4, max_size=4), min_size=1, max_size=5), st.integers(0, 4)
)
def test_a_vector_is_a_distribution_over_the_running_and_a_dead_offer_changes_no_bit(
    policy: str, rows: list[list[float]], place: int
) -> None:
    running = np.array(rows)
    vector = chances(policy, running)
    assert (vector >= 0).all()
    np.testing.assert_allclose(vector.sum(axis=1), 1, rtol=1e-14)
    assert (vector[:, :-1][~np.isfinite(running)] == 0).all()
    wider = chances(policy, np.insert(running, place, OUT, axis=1))
    assert np.delete(wider, place, axis=1).tobytes() == vector.tobytes()
    for row in range(len(rows)):
        assert chances(policy, running[[row]]).tobytes() == vector[[row]].tobytes()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=50)
@given(st.lists(values, min_size=4, max_size=4), st.integers(0, 3), st.floats(0, 50))
def test_a_better_offer_is_never_less_likely(
    policy: str, row: list[float], which: int, more: float
) -> None:
    before = np.array([row])
    after = before.copy()
    after[0, which] += more
    assert chances(policy, after)[0, which] >= chances(policy, before)[0, which] - 1e-12
    for vector, running in ((chances(policy, before), before), (chances(policy, after), after)):
        # Of two equals the smaller id comes first.
        order = np.lexsort((-np.arange(4), running[0]))
        assert (np.diff(vector[0, order]) >= -1e-12).all()


@pytest.mark.parametrize("policy", ["epsilon", "softmax", "thompson"])
def test_an_offer_that_is_stopped_is_made_only_where_it_is_best(policy: str) -> None:
    running = np.array([[4.0, 3.0, 2.0], [3.0, 4.0, 2.0]])
    open_, stopped = (chances(policy, running, np.array([s, False, False])) for s in (False, True))
    assert (open_[:, 0] > 0).all()
    assert stopped[1, 0] == 0
    np.testing.assert_array_equal(stopped[0], open_[0])  # best there, so nothing changes


@pytest.mark.parametrize("policy", ["epsilon", "softmax", "thompson"])
@given(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=4), st.floats(0, 1))
def test_the_guard_keeps_the_loss_within_its_share_and_no_tighter(
    policy: str, rows: list[list[float]], share: float
) -> None:
    running = np.array(rows)
    profit = np.append(np.where(np.isfinite(running), running, 0.0), np.zeros((len(rows), 1)), 1)
    best, free = greedy(running), chances(policy, running)
    kept = chances(policy, running, max_loss_share=share)
    np.testing.assert_allclose(kept.sum(axis=1), 1, rtol=1e-12)
    earns = (best * profit).sum(axis=1)
    loss = earns - (kept * profit).sum(axis=1)
    tolerance = 1e-12 * (1 + np.abs(profit).max())
    assert (loss <= share * np.maximum(earns, 0) + tolerance).all()
    # Either the policy is left as it was, or the whole share is used.
    whole = np.isclose(loss, share * np.maximum(earns, 0), atol=10 * tolerance)
    assert (whole | np.isclose(kept, free, atol=1e-12).all(axis=1)).all()


def test_the_guard_by_hand() -> None:
    # Greedy earns 10; half of the time an offer of 2 costs 4 on average. 10% allow 1: a quarter.
    best, exploring = np.array([[1.0, 0.0, 0.0]]), np.array([[0.5, 0.5, 0.0]])
    got = guard(best, exploring, np.array([[10.0, 2.0]]), 0.1)
    np.testing.assert_allclose(got, [[0.875, 0.125, 0.0]])
    # An objective other than profit may let exploring earn more; then it is free.
    np.testing.assert_array_equal(guard(best, exploring, np.array([[2.0, 10.0]]), 0.0), exploring)


def test_thompson_without_beliefs_is_refused() -> None:
    explorer = Explorer(Exploration(policy="thompson"), np.ones((1, 1)), np.zeros(1, dtype=bool))
    with pytest.raises(DataError, match="no beliefs"):
        explorer.chances(np.ones((1, 1)))


# --- reach ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expect"),
    [
        (OfferCounts(), 0.05),
        (OfferCounts(20, 15), 0.05 + 0.95 / 2),
        (OfferCounts(40, 30), 1.0),
        (OfferCounts(250, 0), 0.05 + 0.95 / 4),
        (OfferCounts(1_000, 0), 1.0),
        (OfferCounts(9_000, 500), 1.0),
    ],
)
def test_an_offer_reaches_more_customers_as_it_becomes_known(
    counts: OfferCounts, expect: float
) -> None:
    assert reach(counts, Exploration(new_offer_reach=0.05)) == pytest.approx(expect)
    assert reach(counts, Exploration()) == 1.0


# --- the running budget --------------------------------------------------------------------------

CAMPAIGNS, CONTACTS = 1_000, 3_000
LOSS, GAIN, BUDGET = 1.0, 8.0, 200.0


def simulated(response: float, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Running totals of losses and of their squares: a contact costs 1; a response earns 9."""
    rng = np.random.default_rng(seed)
    losses = np.where(rng.random((CAMPAIGNS, CONTACTS)) < response, -GAIN, LOSS)
    return np.cumsum(losses, axis=1), np.cumsum(losses**2, axis=1)


def stopped_at(bound: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Contacts made in each campaign when it is stopped, or all."""
    over = bound + LOSS > BUDGET
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1, CONTACTS)


@pytest.mark.parametrize("response", [0.0, 0.02, 0.06, 0.09, 0.1])
def test_a_campaign_breaks_its_budget_in_at_most_one_of_twenty(response: float) -> None:
    total, squares = simulated(response, seed=int(response * 100))
    bound = loss_bound(total, squares, largest_loss=LOSS, largest_gain=GAIN)
    made = stopped_at(bound)
    lost = made * (LOSS - response * (LOSS + GAIN))
    assert np.mean(lost > BUDGET) <= 0.05
    if response <= 0.06:
        assert (made < CONTACTS).all()  # what loses is stopped,
        assert np.median(lost) > BUDGET / 4  # but not before it has had a chance


def test_a_campaign_that_earns_is_let_go_on() -> None:
    total, squares = simulated(0.2, seed=1)
    made = stopped_at(loss_bound(total, squares, largest_loss=LOSS, largest_gain=GAIN))
    assert np.mean(made == CONTACTS) > 0.95


def test_the_true_loss_stays_below_the_bound_at_every_single_look() -> None:
    response = 0.1
    total, squares = simulated(response, seed=2)
    truth = np.arange(1, CONTACTS + 1) * (LOSS - response * (LOSS + GAIN))
    limits = {"largest_loss": LOSS, "largest_gain": GAIN}
    above = loss_bound(total, squares, **limits)
    below = loss_bound(total, squares, side="lower", **limits)
    assert np.mean((truth > above).any(axis=1)) <= 0.05
    assert np.mean((truth < below).any(axis=1)) <= 0.05
    # A 95% interval for one look is broken in far more than one of twenty when looked at daily.
    n = np.arange(1, CONTACTS + 1)
    naive = total + 1.645 * np.sqrt(np.maximum(squares - total**2 / n, 0))
    assert np.mean((truth > naive)[:, 100:].any(axis=1)) > 0.15


def test_statistics_add_up_and_name_the_offers_to_stop() -> None:
    first, second = LossStatistics.of([1.0, -2.0]), LossStatistics.of([3.0])
    assert first + second == LossStatistics.of([1.0, -2.0, 3.0]) == LossStatistics(3, 2.0, 14.0)
    losses = {
        "bad": LossStatistics.of(np.ones(150)),
        "new": LossStatistics(),
        "good": LossStatistics.of(np.tile([1.0, 1.0, 1.0, -8.0], 200)),
    }
    limits = {"budget": BUDGET, "largest_loss": LOSS, "largest_gain": GAIN}
    assert over_budget(losses, **limits) == {"bad"}
    # The smallest budget with which an offer can begin, as the manual says.
    least = np.log(12 / 0.05) / 0.9 * (LOSS + GAIN) + LOSS
    assert over_budget({"new": LossStatistics()}, **{**limits, "budget": least - 0.01}) == {"new"}
    assert over_budget({"new": LossStatistics()}, **{**limits, "budget": least + 0.01}) == set()


@pytest.mark.parametrize("limits", [(0.0, 0.0), (-1.0, 2.0), (1.0, -1.0), (np.nan, 1.0)])
def test_losses_without_limits_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="the losses of one contact need limits"):
        loss_bound(0.0, 0.0, largest_loss=limits[0], largest_gain=limits[1])
