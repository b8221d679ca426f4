"""Sizes of experiments against R's documentation, statsmodels, and simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import samplesize_proportions_2indep_onetail

from nextbest.errors import UsageError
from nextbest.measure.plan import Plan


def test_the_examples_of_rs_manual() -> None:
    # ?power.prop.test: p1 = .50, p2 = .75, power = .90 gives n = 76.7 in each group, and n = 50
    # gives power 0.740.
    plan = Plan(0.5, 0.25, holdout_share=0.5, power=0.9, looks="once")
    assert plan.size().holdout == plan.size().treated == 77
    assert plan.power_with(100) == pytest.approx(0.740, abs=5e-4)


@given(
    st.floats(2, 20), st.floats(0.05, 0.8), st.sampled_from([0.05, 0.1, 0.5]),
    st.sampled_from([0.01, 0.05]), st.sampled_from([0.8, 0.95]),
)  # fmt: skip
def test_amounts_need_what_statsmodels_says(
    spread: float, effect: float, held: float, alpha: float, power: float
) -> None:
    plan = Plan(
        9.0, effect, spread=spread, holdout_share=held, alpha=alpha, power=power, looks="once"
    )
    n1 = NormalIndPower().solve_power(
        effect / spread, alpha=alpha, power=power, ratio=(1 - held) / held
    )
    assert plan._customers(plan._one_look()) == pytest.approx(n1 / held, rel=1e-3)


def test_rates_need_what_statsmodels_says() -> None:
    plan = Plan(0.03, 0.006, holdout_share=0.5, looks="once", power=0.8)
    theirs = samplesize_proportions_2indep_onetail(0.006, 0.03, 0.8, ratio=1, alpha=0.05)
    assert plan.size().holdout == pytest.approx(theirs, abs=2)


@pytest.mark.parametrize("looks", ["once", "daily"])
def test_experiments_of_the_planned_size_find_the_effect_as_often_as_planned(looks: str) -> None:
    plan = Plan(0.05, 0.015, holdout_share=0.2, power=0.8, looks=looks)  # type: ignore[arg-type]
    size = plan.size()
    rng = np.random.default_rng(1)
    k1 = rng.binomial(size.treated, 0.065, 20_000) / size.treated
    k0 = rng.binomial(size.holdout, 0.05, 20_000) / size.holdout
    pooled = (k1 * size.treated + k0 * size.holdout) / size.customers
    se = np.sqrt(pooled * (1 - pooled) * (1 / size.treated + 1 / size.holdout))
    found = np.abs(k1 - k0) / se > plan._critical()
    assert found.mean() == pytest.approx(0.8, abs=0.015)


def test_the_value_before_saves_its_r2_of_the_customers() -> None:
    plain = Plan(10, 0.5, spread=8, looks="once")
    helped = Plan(10, 0.5, spread=8, looks="once", before_r2=0.4)
    assert helped.size().customers == pytest.approx(0.6 * plain.size().customers, abs=2)


def test_days_and_the_price_of_daily_looks() -> None:
    plan = Plan(0.03, 0.006, customers_per_day=2_000, window_days=30)
    size = plan.size()
    assert size.days == -(-size.customers // 2_000) + 30
    assert size.holdout == pytest.approx(size.customers / 10, abs=1)
    assert 1.5 < size.customers / size.one_look_customers < 2.2
    assert size.to_dict()["one_look_customers"] == Plan(0.03, 0.006, looks="once").size().customers


@given(st.floats(0.01, 0.5), st.integers(3_000, 10**6))
def test_the_effect_that_can_be_found_needs_just_those_customers(rate: float, n: int) -> None:
    effect = Plan(rate, 0.01).detectable(n)
    assert Plan(rate, effect)._customers(Plan(rate, effect)._critical()) == pytest.approx(n)
    assert Plan(rate, effect).power_with(n) == pytest.approx(0.8)
    amount = Plan(5.0, 1.0, spread=3.0).detectable(n)
    assert Plan(5.0, amount, spread=3.0).power_with(n) == pytest.approx(0.8)
    assert norm.isf(0.025) < Plan(rate, effect)._critical()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"baseline": 1.2}, "plan: baseline: not a rate"),
        ({"effect": 0.99}, "plan: baseline + effect: not a rate"),
        ({"effect": 0.0}, "nothing is to be found"),
        ({"spread": -1.0}, "not a standard deviation"),
        ({"holdout_share": 0.0}, "plan: holdout_share: not a share"),
        ({"alpha": 1.0}, "plan: alpha"),
        ({"power": 1.5}, "plan: power"),
        ({"before_r2": 1.0}, "not an R²"),
        ({"customers_per_day": 0.0}, "nobody enters"),
        ({"window_days": -1}, "window_days"),
        ({"looks": "weekly"}, "daily or once; got weekly"),
        ({"baseline": float("nan")}, "not a number"),
    ],
)
def test_impossible_plans(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        Plan(**{"baseline": 0.05, "effect": 0.01, **wrong})  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_too_few_customers_for_any_effect() -> None:
    with pytest.raises(UsageError, match="too few for any effect"):
        Plan(0.05, 0.01).detectable(5)
