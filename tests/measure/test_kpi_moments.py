"""Levels and changes against scipy, statsmodels and a jackknife; and what cannot be said."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from nextbest.measure.kpi.moments import PRODUCTS, Change, Moments, Swing, change, level, swing


def moments(y, x, v, u):
    """What the database would add up, from one row per customer."""
    of = {k: np.asarray(c, float) for k, c in zip("yxvu", (y, x, v, u), strict=True)}
    now, then = (of["y"] != 0) | (of["x"] != 0), (of["v"] != 0) | (of["u"] != 0)
    binary = all(set(np.unique(c)) <= {0.0, 1.0} for c in of.values())
    binary = binary and bool((of["y"] <= of["x"]).all() and (of["v"] <= of["u"]).all())
    return Moments(
        int(now.sum()), int(then.sum()), int((now | then).sum()),
        *(float(of[k].sum()) for k in "yxvu"),
        {p: float((of[p[0]] * of[p[1]]).sum()) for p in PRODUCTS},
        int((of["y"] != 0).sum()), int((of["v"] != 0).sum()), binary,
    )  # fmt: skip


def sample(seed=0, n=400):
    draw = np.random.default_rng(seed)
    x, u = draw.poisson(3, n) + 1.0, draw.poisson(3, n) + 1.0
    taste = draw.gamma(2, 10, n)
    return x * taste + draw.normal(0, 5, n), x, u * taste + draw.normal(0, 5, n), u


def test_the_level_of_a_mean_is_students():
    y = sample()[0]
    ones = np.ones_like(y)
    found = level(moments(y, ones, y, ones), 0.05)
    low, high = DescrStatsW(y).tconfint_mean(0.05)
    assert (found.low, found.value, found.high) == pytest.approx((low, y.mean(), high))


@pytest.mark.parametrize(("k", "n"), [(0, 50), (3, 60), (40, 80), (70, 70)])
def test_the_level_of_a_rate_is_wilsons(k, n):
    y = np.r_[np.ones(k), np.zeros(n - k)]
    ones = np.ones(n)
    found = level(moments(y, ones, y, ones), 0.1)
    assert (found.low, found.high) == pytest.approx(proportion_confint(k, n, 0.1, method="wilson"))


def test_the_change_of_a_mean_over_the_same_customers_is_the_paired_t_test():
    y, _, v, _ = sample(1)
    ones = np.ones_like(y)
    found = change(moments(y, ones, v, ones), 0.05)
    theirs = stats.ttest_rel(y, v)
    bounds = theirs.confidence_interval(0.95)
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert (found.difference.low, found.difference.high) == pytest.approx((bounds.low, bounds.high))
    assert found.noise == "customers"


def test_the_change_of_a_ratio_agrees_with_the_jackknife():
    y, x, v, u = sample(2, 2_000)
    found = change(moments(y, x, v, u), 0.05)
    left_out = (y.sum() - y) / (x.sum() - x) - (v.sum() - v) / (u.sum() - u)
    n = len(y)
    spread = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    half = (found.difference.high - found.difference.low) / 2
    assert half == pytest.approx(stats.t.isf(0.025, n - 1) * spread, rel=0.01)
    assert found.difference.value == pytest.approx(y.sum() / x.sum() - v.sum() / u.sum())


def test_customers_of_one_period_only_are_independent():
    y, v = sample(3)[0], sample(4)[0] + 3
    zero = np.zeros_like(y)
    both = moments(np.r_[y, zero], np.r_[zero + 1, zero], np.r_[zero, v], np.r_[zero, zero + 1])
    found = change(both, 0.05)
    theirs = stats.ttest_ind(y, v, equal_var=False)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=0.02)


@given(st.integers(0, 2**31))
def test_the_sums_of_parts_are_the_sums_of_the_whole(seed):
    y, x, v, u = sample(seed, 60)
    whole = moments(y, x, v, u)
    parts = [moments(*(c[s] for c in (y, x, v, u))) for s in (slice(0, 20), slice(20, 60))]
    for name in PRODUCTS:
        added = sum(p.products[name] for p in parts)
        assert added == pytest.approx(whole.products[name])


# ------------------------------------------------------------------ noise over time


def test_the_swing_is_the_mean_moving_range():
    assert swing([1.0, 2.0, 1.0, 3.0, 3.0, 2.0, 4.0, 4.0]).spread == pytest.approx(1 / 1.128)
    assert swing([1.0] * 7) is None and swing([1.0] * 20) is None
    assert swing([1.0, None, *range(10)]) is None


def test_a_change_within_the_swing_is_none_although_customers_all_did_it():
    y = np.full(500, 11.0) + np.random.default_rng(0).normal(0, 0.1, 500)
    ones, v = np.ones(500), np.full(500, 10.0)
    both = moments(y, ones, v, ones)
    assert change(both, 0.05).p_value < 1e-9
    swings = Swing(4.0, 13)
    found = change(both, 0.05, swings=swings, steps=13)
    assert found.noise == "time" and found.p_value > 0.3
    half = stats.t.isf(0.025, 0.62 * 12) * 4.0 * np.sqrt(2 / 13)
    assert found.difference.high - found.difference.value == pytest.approx(half)
    total = change(both, 0.05, swings=swings, steps=13, total=True)
    wide = total.difference.high - total.difference.value
    assert wide == pytest.approx(half * 13)


def test_shops_in_which_nothing_changes_are_flagged_no_more_often_than_said():
    """Customers differ, weeks differ, periods do not: at most 1 in 20 at 95%."""
    draw = np.random.default_rng(7)
    flagged, rounds, n, weeks = 0, 400, 60, 13
    for _ in range(rounds):
        taste = draw.gamma(4, 1, n)[:, None]
        shock = draw.normal(1, 0.1, 2 * weeks)
        bought = taste * shock + draw.normal(0, 0.5, (n, 2 * weeks))
        v, y = bought[:, :weeks].sum(axis=1), bought[:, weeks:].sum(axis=1)
        ones = np.ones(n)
        swings = swing([float(w) for w in bought[:, :weeks].mean(axis=0)])
        both = moments(y, ones, v, ones)
        found = change(both, 0.05, swings=swings, steps=weeks, total=True)
        flagged += found.p_value <= 0.05
    assert flagged <= stats.binom.isf(0.001, rounds, 0.05)
    assert flagged > 0


# ------------------------------------------------------------------ what cannot be said


def test_too_few_customers():
    y = np.arange(29.0) + 1
    assert level(moments(y, y, y, y), 0.05) == "only 29 customers; 30 are needed"
    y = np.zeros(5)
    said = level(moments(y, y, y, y), 0.05, "contacted in time")
    assert said == "no customer contacted in time; 30 are needed"
    many, zero = np.ones(60), np.zeros(60)
    assert "in the baseline" in change(moments(many, many, zero, zero), 0.05)
    assert "in the period" in change(moments(zero, zero, many, many), 0.05)


def test_one_sided_and_constant_outcomes():
    ones, zero = np.ones(100), np.zeros(100)
    rare = np.r_[np.ones(3), np.zeros(97)]
    assert "only 3 customers on the rarer side" in change(moments(rare, ones, zero, ones), 0.05)
    assert "only 0 customers on the rarer side" in change(moments(ones, ones, ones, ones), 0.05)
    seven = np.full(100, 7.0)
    assert "does not vary" in change(moments(seven, ones, seven, ones), 0.05)


def test_nothing_to_divide_by():
    y, ones = sample()[0], np.r_[np.ones(200), -np.ones(200)]
    assert "adds up to 0" in level(moments(y, ones, y, ones), 0.05)
    good = np.ones(400)
    assert "adds up to 0 in the baseline" in change(moments(y, good, y, ones), 0.05)


@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 4), min_size=0, max_size=60),
    st.integers(1, 3),
)
def test_any_customers_get_numbers_or_a_reason(rows, times):
    rows = rows * times
    y, x, v, u = np.array(rows).T if rows else np.zeros((4, 0))
    m = moments(y, x, v, u)
    for found in (level(m, 0.05), change(m, 0.05)):
        if isinstance(found, str):
            assert found
            continue
        interval = found.difference if isinstance(found, Change) else found
        assert interval.low <= interval.value <= interval.high
        assert np.isfinite([interval.low, interval.value, interval.high]).all()


def test_the_scale_of_money_changes_nothing():
    y, x, v, u = sample(5)
    first = change(moments(y, x, v, u), 0.05)
    for scale in (1e-6, 1e6):
        other = change(moments(y * scale, x, v * scale, u), 0.05)
        assert other.p_value == pytest.approx(first.p_value, rel=1e-6)
        assert other.relative == pytest.approx(first.relative, rel=1e-6)


def test_every_product_of_the_four_sums_is_kept():
    pairs = {"".join(sorted(a + b)) for a, b in product("yxvu", repeat=2)}
    assert {"".join(sorted(p)) for p in PRODUCTS} == pairs
    assert replace(moments(*sample())).n == 400
