"""Sums add up over any partition, and give the moments that numpy gives on the rows."""

from __future__ import annotations

from dataclasses import astuple
from functools import reduce
from operator import add

import numpy as np
import pytest
from arm_rows import sums_of
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 50), st.integers(-9, 9)), min_size=1))
def test_sums_add_up_over_any_partition(rows: list[tuple[int, int, int]]) -> None:
    part, y, x = (np.array(c, dtype=float) for c in zip(*rows, strict=True))
    parts = [sums_of(y[part == k], x[part == k]) for k in set(part)]
    assert astuple(reduce(add, parts)) == astuple(sums_of(y, x))


def test_moments_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(1)
    y, x = rng.gamma(2, 3, 500), rng.normal(5, 2, 500)
    found = sums_of(y, x)
    assert found.mean.value == pytest.approx(y.mean())
    assert found.mean.variance == pytest.approx(y.var(ddof=1))
    assert found.spread("xy") == pytest.approx(np.cov(x, y)[0, 1])


def test_the_ratios_variance_is_that_of_redrawn_customers() -> None:
    rng = np.random.default_rng(2)
    orders = rng.poisson(3, 4_000) + 1.0
    revenue = orders * rng.gamma(4, 5, 4_000)
    ratio = sums_of(revenue, orders).ratio
    draws = rng.integers(0, 4_000, (1_500, 4_000))
    redrawn = revenue[draws].sum(axis=1) / orders[draws].sum(axis=1)
    assert ratio.value == pytest.approx(revenue.sum() / orders.sum())
    assert np.sqrt(ratio.of_mean) == pytest.approx(redrawn.std(), rel=0.06)


def test_a_constant_has_no_spread_whatever_the_rounding() -> None:
    assert sums_of(np.full(1_000, 0.1)).mean.variance == 0
    assert sums_of(np.full(777, 1234.567)).mean.variance == 0
    assert sums_of(np.array([1e5, 1e5 + 1.0])).mean.variance == pytest.approx(0.5, rel=1e-3)
