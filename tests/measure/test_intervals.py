"""Intervals against textbook values, scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from arm_rows import sums_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep

from nextbest.measure.intervals import (
    Interval,
    newcombe,
    newcombe_p,
    relative,
    welch,
    welch_p,
)
from nextbest.measure.sums import Mean


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17: 873-890, table II, method 10.
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 20), 0.6791, 1.0000),
        ((10, 10, 0, 10), 0.6075, 1.0000),
        ((0, 10, 0, 10), -0.2775, 0.2775),
    ],
)
def test_newcombes_own_table(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    found = newcombe(*counts, 0.05)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(
    st.integers(0, 60), st.integers(60, 400), st.integers(0, 60), st.integers(60, 400),
    st.sampled_from([0.01, 0.05, 0.2]),
)  # fmt: skip
def test_newcombe_is_that_of_statsmodels(k1: int, n1: int, k0: int, n0: int, alpha: float) -> None:
    found = newcombe(k1, n1, k0, n0, alpha)
    low, high = confint_proportions_2indep(k1, n1, k0, n0, method="newcomb", alpha=alpha)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert -1 <= found.low <= found.value <= found.high <= 1


@given(st.integers(0, 60), st.integers(60, 400), st.integers(0, 60), st.integers(60, 400))
def test_the_p_value_and_the_interval_agree(k1: int, n1: int, k0: int, n0: int) -> None:
    p = newcombe_p(k1, n1, k0, n0)
    for alpha in (0.01, 0.05, 0.2):
        found = newcombe(k1, n1, k0, n0, alpha)
        if abs(p - alpha) > 1e-9:
            assert (p < alpha) == (found.low > 0 or found.high < 0)
    assert p == pytest.approx(newcombe_p(k0, n0, k1, n1))


def test_welch_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.gamma(2, 3, 60), rng.gamma(2, 4, 140)
    means = sums_of(a).mean, sums_of(b).mean
    theirs = stats.ttest_ind(a, b, equal_var=False)
    found = welch(*means, 0.1)
    assert welch_p(*means) == pytest.approx(theirs.pvalue)
    ci = theirs.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((ci.low, ci.high))


def test_the_relative_interval_of_rates_is_katz() -> None:
    # Agresti (2013), Categorical Data Analysis, section 3.1.4: aspirin and heart attacks,
    # 189 of 11,034 against 104 of 11,037: 1.82, interval 1.43 to 2.31.
    a, b = (Mean(n, k / n, k / n * (1 - k / n)) for k, n in ((189, 11_034), (104, 11_037)))
    found = relative(a, b, 0.05)
    assert isinstance(found, Interval)
    assert (found.value, found.low, found.high) == pytest.approx((1.82, 1.43, 2.31), abs=5e-3)
    low, high = confint_proportions_2indep(189, 11_034, 104, 11_037, compare="ratio", method="log")
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6)


def test_a_ratio_that_means_nothing_is_refused_in_words() -> None:
    sound = Mean(100, 5.0, 1.0)
    for mean in (Mean(100, 0.0, 1.0), Mean(100, -2.0, 1.0)):
        assert "not above zero" in str(relative(sound, mean, 0.05))
    assert "3 standard errors" in str(relative(sound, Mean(100, 0.2, 1.0), 0.05))


@given(st.floats(-50, 50), st.floats(0.1, 99), st.integers(30, 5_000), st.sampled_from([2, 5, 40]))
def test_more_customers_narrow_the_interval(v: float, s2: float, n: int, more: int) -> None:
    def half(n: int) -> float:
        found = welch(Mean(n, v, s2), Mean(2 * n, 1.0, 2 * s2), 0.05)
        return found.high - found.low

    assert half(n * more) < half(n)
    assert half(n * more) == pytest.approx(half(n) / more**0.5, rel=0.06)


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.1, 99))
def test_swapping_the_arms_flips_the_sign(a: float, b: float, s2: float) -> None:
    first, second = Mean(40, a, s2), Mean(90, b, s2 / 2)
    there, back = welch(first, second, 0.05), welch(second, first, 0.05)
    assert (there.value, there.low, there.high) == pytest.approx(
        (-back.value, -back.high, -back.low)
    )
