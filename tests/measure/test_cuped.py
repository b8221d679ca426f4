"""CUPED against the regression that it is, and against the truth of a simulator."""

from __future__ import annotations

import numpy as np
import pytest
from arm_rows import sums_of
from statsmodels.regression.linear_model import OLS

from nextbest.measure.cuped import adjust


def draw(seed: int, n: int = 2_000, effect: float = 1.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    before = rng.gamma(2, 10, n)
    treated = rng.random(n) < 0.8
    return 0.7 * before + rng.normal(0, 8, n) + effect * treated, before, treated


def test_it_is_the_regression_on_arm_and_value_before() -> None:
    y, x, treated = draw(1)
    found = adjust(sums_of(y[treated], x[treated]), sums_of(y[~treated], x[~treated]))
    assert found is not None
    fit = OLS(y, np.column_stack([np.ones_like(y), treated, x])).fit()
    assert found.theta == pytest.approx(fit.params[2])
    assert found.first.value - found.second.value == pytest.approx(fit.params[1])
    se = np.sqrt(found.first.of_mean + found.second.of_mean)
    assert se == pytest.approx(fit.bse[1], rel=0.02)


def test_the_variance_that_is_gone_is_r_squared() -> None:
    y, x, treated = draw(2, n=20_000)
    found = adjust(sums_of(y[treated], x[treated]), sums_of(y[~treated], x[~treated]))
    assert found is not None
    # R² of the simulator: 0.49 × 200 / (0.49 × 200 + 64)
    assert found.variance_reduction == pytest.approx(98 / 162, abs=0.02)


def test_it_is_unbiased_and_its_standard_error_is_true() -> None:
    found = []
    for seed in range(400):
        y, x, t = draw(seed, n=300)
        one = adjust(sums_of(y[t], x[t]), sums_of(y[~t], x[~t]))
        assert one is not None
        se = np.sqrt(one.first.of_mean + one.second.of_mean)
        found.append((one.first.value - one.second.value, se))
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(1.0, abs=3 * values.std() / 20)
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)


def test_a_value_before_that_is_the_same_for_all_adjusts_nothing() -> None:
    y = np.arange(40.0)
    assert adjust(sums_of(y, np.full(40, 3.0)), sums_of(y, np.full(40, 3.0))) is None
