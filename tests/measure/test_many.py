"""Corrections against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from nextbest.measure.many import adjusted, level_of_each


@settings(max_examples=15)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_p_values_are_those_of_statsmodels(p: list[float]) -> None:
    for how, theirs in (("holm", "holm"), ("bh", "fdr_bh")):
        assert adjusted(p, how) == pytest.approx(list(multipletests(p, method=theirs)[1]))


def test_intervals_of_all_segments_hold_together() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(8)
    each = level_of_each(adjusted(p, "holm"), "holm", 0.05)
    z = rng.standard_normal((20_000, 8))
    all_hold = (np.abs(z) <= norm.isf(each / 2)).all(axis=1).mean()
    assert 0.945 <= all_hold < 0.96


def test_intervals_of_findings_miss_rarely() -> None:
    """Benjamini & Yekutieli's false coverage rate, with half of the effects real."""
    rng = np.random.default_rng(2)
    truth = np.repeat([0.0, 2.5], 10)
    missed, plain = [], []
    for _ in range(1_500):
        z = truth + rng.standard_normal(20)
        p = adjusted(list(2 * norm.sf(np.abs(z))), "bh")
        chosen = np.array(p) <= 0.05
        reach = norm.isf(level_of_each(p, "bh", 0.05) / 2)
        missed.append((np.abs(z - truth) > reach)[chosen].mean() if chosen.any() else 0.0)
        plain.append((np.abs(z - truth) > 1.96)[chosen].mean() if chosen.any() else 0.0)
    assert np.mean(missed) <= 0.05 < np.mean(plain)


def test_nothing_to_correct() -> None:
    assert adjusted([], "holm") == []
