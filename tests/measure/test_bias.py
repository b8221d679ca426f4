"""The bias report against statsmodels, scipy, and groups whose treatment is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats.contingency import association as scipy_association
from statsmodels.stats.proportion import confint_proportions_2indep

from nextbest.decide.sensitive import BiasLimits, Sensitive
from nextbest.decide.whatif import Segments
from nextbest.measure.bias import Figures, Tally, judge, ratio
from nextbest.measure.intervals import Interval, wilson
from nextbest.measure.proxies import association, proxies

OFFERS = ("a", "b")


def figures(reached: int, n: int, value: float = 1.0) -> Figures:
    """``n`` customers, of whom ``reached`` get offer a, worth ``value`` each."""
    got = np.zeros((n, 2), dtype=bool)
    got[:reached, 0] = True
    return Figures.of(got, np.linspace(0.1, 0.3, n), got[:, 0] * value, OFFERS)


def judged(groups: dict[str, Figures], **rules: Any) -> dict[str, Any]:
    tally = Tally(OFFERS, {"age": Segments("age")})
    tally.groups["age"] = groups
    (found,) = judge(tally, Sensitive(attributes=("age",), **rules))
    return found


# ------------------------------------------------------------------ the interval of a ratio


@pytest.mark.parametrize(("k1", "n1", "k2", "n2"), [(30, 200, 60, 210), (5, 400, 20, 380)])
def test_the_ratio_of_two_shares_is_that_of_the_score_method(
    k1: int, n1: int, k2: int, n2: int
) -> None:
    """Two approximations to the same limits, derived independently."""
    found = ratio(wilson(k1, n1, 0.05), wilson(k2, n2, 0.05))
    assert found is not None
    expected = confint_proportions_2indep(k1, n1, k2, n2, compare="ratio", method="score")
    assert found.value == pytest.approx((k1 / n1) / (k2 / n2))
    assert (found.low, found.high) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("p1", "p2", "n"), [(0.05, 0.06, 200), (0.3, 0.5, 150), (0.01, 0.2, 300)])
def test_the_ratios_interval_holds_the_truth_as_often_as_it_says(
    p1: float, p2: float, n: int
) -> None:
    random = np.random.default_rng(5)
    held = 0
    for k1, k2 in zip(random.binomial(n, p1, 2_000), random.binomial(n, p2, 2_000), strict=True):
        found = ratio(wilson(k1, n, 0.05), wilson(k2, n, 0.05))
        assert found is not None and found.low <= found.value <= found.high
        held += found.low <= p1 / p2 <= found.high
    assert 0.935 <= held / 2_000 <= 0.975


def test_a_group_that_gets_nothing_has_a_ratio_of_zero_with_an_upper_limit() -> None:
    found = ratio(wilson(0, 200, 0.05), wilson(80, 200, 0.05))
    assert found is not None and found.value == found.low == 0
    assert 0 < found.high < 0.1


def test_over_what_may_be_zero_there_is_no_ratio() -> None:
    assert ratio(Interval(1.0, 0.5, 1.5), Interval(0.1, -0.1, 0.3)) is None


# ------------------------------------------------------------------ verdicts


def test_the_four_fifths_rule_on_its_textbook_example() -> None:
    """Uniform Guidelines, Q&A 12: 48 of 80 against 12 of 40 is a rate half as high."""
    found = judged({"x": figures(48, 80), "y": figures(12, 40)}, smallest_group=30)
    reach = found["groups"]["y"]["reach"]
    assert reach["value"] == pytest.approx(0.3)
    assert reach["ratio"]["value"] == pytest.approx(0.5)
    assert reach["verdict"] == "below" and found["verdict"] == "below"
    assert [(one["group"], one["figure"]) for one in found["below"]] == [("y", "reach")]
    assert found["groups"]["x"]["reach"]["ratio"] is None  # the others are held against it


def test_what_chance_explains_is_said_and_not_held_against_the_policy() -> None:
    found = judged({"x": figures(12, 100), "y": figures(8, 100)})
    assert found["groups"]["y"]["reach"]["verdict"] == "below, may be chance"
    assert found["verdict"] == "within"


def test_small_and_unknown_groups_are_shown_and_not_judged() -> None:
    groups = {"x": figures(60, 120), "y": figures(30, 120), "z": figures(0, 99)}
    groups["unknown"] = figures(0, 5_000)
    found = judged(groups)
    z, unknown = found["groups"]["z"], found["groups"]["unknown"]
    assert z["why_not"] == "too small to judge: 99 customers, of 100 needed"
    assert unknown["why_not"] == "the attribute is unknown"
    for one in (z, unknown):
        assert one["reach"]["value"] == 0 and one["reach"]["verdict"] is None
    assert [one["group"] for one in found["below"]] == ["y"]
    assert judged({"x": groups["x"], "z": groups["z"]})["verdict"] == "cannot say"


@pytest.mark.parametrize("against", ["best", "rest"])
def test_equal_groups_are_rarely_found_unequal(against: str) -> None:
    """Six groups with the same reach: at most one alarm in twenty, as the intervals promise."""
    random, alarms = np.random.default_rng(8), 0
    for _ in range(200):
        groups = {f"g{i}": figures(int(k), 150) for i, k in enumerate(random.binomial(150, 0.2, 6))}
        alarms += judged(groups, against=against)["verdict"] == "below"
    assert alarms <= 10


def test_each_figure_has_its_own_limit() -> None:
    groups = {"x": figures(100, 200, value=4.0), "y": figures(95, 200, value=1.0)}
    assert judged(groups)["verdict"] == "within"
    found = judged(groups, limits=BiasLimits(value_ratio=0.5))
    assert [one["figure"] for one in found["below"]] == ["value"]
    assert found["groups"]["y"]["value"]["value"] == pytest.approx(95 / 200)
    groups["y"] = figures(20, 200, value=20.0)
    found = judged(groups, limits=BiasLimits(reach_ratio=None, offer_reach_ratio=0.8))
    assert [one["figure"] for one in found["below"]] == ['reach of offer "a"']


def test_against_the_rest_means_all_others_together() -> None:
    groups = {"x": figures(50, 100), "y": figures(40, 100), "z": figures(10, 100)}
    found = judged(groups, against="rest")["groups"]
    assert found["z"]["reach"]["ratio"]["value"] == pytest.approx(0.1 / 0.45)
    assert found["x"]["reach"]["ratio"]["value"] == pytest.approx(0.5 / 0.25)


def test_parts_add_up() -> None:
    random = np.random.default_rng(3)
    got, propensity = random.random((500, 2)) < 0.3, random.random(500)
    propensity[::7] = np.nan
    value = random.random(500)
    whole = Figures.of(got, propensity, value, OFFERS)
    parts = Figures.none(OFFERS)
    for rows in np.array_split(np.arange(500), 7):
        parts = parts + Figures.of(got[rows], propensity[rows], value[rows], OFFERS)
    assert parts.reach == whole.reach and parts.offers == whole.offers
    assert parts.value.mean.value == pytest.approx(value.mean())
    assert parts.propensity.mean.variance == pytest.approx(np.nanvar(propensity, ddof=1))


# ------------------------------------------------------------------ proxies


def test_association_is_cramers_v_less_what_chance_gives() -> None:
    random = np.random.default_rng(4)
    one = random.integers(0, 3, 20_000)
    other = np.where(random.random(20_000) < 0.4, one, random.integers(0, 4, 20_000))
    counts = np.zeros((3, 4), dtype=int)
    np.add.at(counts, (one, other), 1)
    expected = scipy_association(counts, method="cramer")
    found = association(one.astype(object), other.astype(object))
    assert found == pytest.approx(expected, abs=0.002)
    noise = random.integers(0, 40, 300).astype(object), random.integers(0, 5, 300).astype(object)
    assert association(*noise) < 0.1
    assert association(one.astype(object), one.astype(object)) == pytest.approx(1)
    assert association(one.astype(object), np.full(20_000, "x", dtype=object)) == 0


def test_a_feature_made_of_the_attribute_is_named_first() -> None:
    random = np.random.default_rng(6)
    age = random.integers(18, 90, 3_000).astype(float)
    groups = np.where(age < 40, "young", "old").astype(object)
    groups[::5] = "unknown"
    features = {
        "noise": random.normal(size=3_000),
        "is_senior": (age >= 40).astype(float),
        "years": age + random.normal(0, 12, 3_000),
    }
    found = proxies(groups, features)
    assert [one["feature"] for one in found] == ["is_senior", "years"]
    assert found[0]["association"] == pytest.approx(1, abs=0.001)
