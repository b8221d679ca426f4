"""Confidence sequences: the published formula, and how often they are wrong under daily looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from nextbest.measure import sequences
from nextbest.measure.sums import Mean

TESTS, DAYS, PER_DAY = 1_000, 30, 60


def margin(t: float, rho2: float, alpha: float) -> float:
    """The margin of unit variance as the authors' own package writes it (`drconfseq`)."""
    return math.sqrt(2 * (t * rho2 + 1) * math.log(math.sqrt(t * rho2 + 1) / alpha) / (t**2 * rho2))


@given(st.integers(10, 10**7), st.floats(1e-7, 1.0), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_margin_is_the_published_one(t: int, rho2: float, alpha: float) -> None:
    assert sequences.critical(1.0, alpha) > stats.norm.isf(alpha / 2)
    tuned = -2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)
    theirs = margin(t, rho2, alpha) * math.sqrt(t)
    assert sequences.critical(t * rho2 / tuned, alpha) == pytest.approx(theirs, rel=1e-9)


def test_it_is_narrowest_about_where_it_was_planned() -> None:
    """Against one standard deviation per customer, the width times √planned."""
    progress = np.geomspace(0.05, 20, 400)
    width = [sequences.critical(p, 0.05) for p in progress]
    assert 0.8 < progress[int(np.argmin(width))] < 1.25


@given(st.floats(0.01, 5), st.floats(0.01, 30))
def test_the_p_value_and_the_sequence_agree(value: float, progress: float) -> None:
    a, b = Mean(200, value, 1.0), Mean(300, 0.0, 2.0)
    p = sequences.means_p(a, b, progress)
    for alpha in (0.01, 0.05, 0.2):
        if abs(p - alpha) > 1e-9:
            assert (sequences.means(a, b, alpha, progress).low > 0) == (p < alpha)


def test_the_bet_is_the_mixture_that_it_says() -> None:
    """The closed form against the integral over shares of conversions."""
    for k1, k0, share in ((7, 2, 0.5), (0, 3, 0.9), (40, 9, 0.8)):
        a, b = 100 * share, 100 * (1 - share)
        mixed, _ = quad(
            lambda pi, k1=k1, k0=k0, a=a, b=b, s=share: (
                stats.beta.pdf(pi, a, b) * (pi / s) ** k1 * ((1 - pi) / (1 - s)) ** k0
            ),
            0, 1, epsabs=0, epsrel=1e-10,
        )  # fmt: skip
        found = sequences.evidence_against_equal_rates(k1, k0, share)
        assert float(found) == pytest.approx(math.log(mixed), abs=1e-7)


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0.5, 0.8, 0.95]))
def test_rates_and_their_p_value_agree_and_hold_the_estimate(k1: int, k0: int, s: float) -> None:
    n1, n0 = 1_000, 1_000
    found = sequences.rates(k1, n1, k0, n0, 0.05, s)
    assert found.low < found.high
    assert (found.low == 0) == (k1 == 0) and math.isinf(found.high) == (k0 == 0)
    # A ratio of 1 in customers of equal number is a share of conversions of one half.
    if s == 0.5:
        p = sequences.rates_p(k1, k0, s)
        if k1 and k0:
            assert found.low < found.value < found.high
        if abs(p - 0.05) > 1e-9:
            assert (p < 0.05) == (found.low > 1 or found.high < 1)


# ------------------------------------------------------------------ a thousand A/A tests, daily


def running(rng: np.random.Generator, kind: str) -> list[tuple[np.ndarray, ...]]:
    """Sums of two like arms, test by day: customers, Σy, Σy². A fifth is in the second arm."""
    found = []
    for per_day in (4 * PER_DAY, PER_DAY):
        shape = (TESTS, DAYS, per_day)
        y = (rng.random(shape, dtype=np.float32) < 0.04).astype(np.float64)
        if kind == "amount":
            y *= rng.exponential(30.0, shape)
        n = per_day * np.arange(1, DAYS + 1)
        found.append((n, y.sum(axis=2).cumsum(axis=1), (y * y).sum(axis=2).cumsum(axis=1)))
    return found


def z_of(arms: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    means, variances = [], []
    for n, y, yy in arms:
        means.append(y / n)
        variances.append((yy - y * y / n) / (n - 1) / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num((means[0] - means[1]) / np.sqrt(variances[0] + variances[1]))


@pytest.mark.parametrize("kind", ["amount", "rate"])
def test_a_thousand_like_arms_watched_daily_for_a_month(kind: str) -> None:
    arms = running(np.random.default_rng(11), kind)
    z = z_of(arms)
    progress = (arms[0][0] + arms[1][0]) / (5 * PER_DAY * DAYS)
    reach = np.array([sequences.critical(p, 0.05) for p in progress])
    ever = (np.abs(z) > reach).any(axis=1).mean()
    naive = (np.abs(z) > 1.96).any(axis=1).mean()
    assert ever <= 0.05
    assert naive > 0.2, "the simulation must be one in which ordinary intervals fail"
    if kind == "rate":
        won = sequences.evidence_against_equal_rates(arms[0][1], arms[1][1], 0.8)
        assert (won >= math.log(20)).any(axis=1).mean() <= 0.05


def cohort(rng: np.random.Generator, tests: int) -> np.ndarray:
    """Everybody enters on the first day, and what they spend adds up over the month."""
    arms = []
    for n in (400, 100):
        eager = rng.standard_exponential((tests, 1, n), dtype=np.float32)  # some buy more, always
        spent = rng.standard_exponential((tests, DAYS, n), dtype=np.float32)
        spent *= rng.random((tests, DAYS, n), dtype=np.float32) < 0.1 * eager
        spent = spent.cumsum(axis=1)
        arms.append((n, spent.sum(axis=2, dtype=float), (spent**2).sum(axis=2, dtype=float)))
    return z_of(arms)


def test_a_cohort_whose_outcomes_come_in_daily() -> None:
    rng = np.random.default_rng(12)
    z = np.concatenate([cohort(rng, 100) for _ in range(TESTS // 100)])
    assert (np.abs(z) > sequences.critical(1.0, 0.05)).any(axis=1).mean() <= 0.05
    assert (np.abs(z) > 1.96).any(axis=1).mean() > 0.08


def test_a_cohort_watched_daily_for_a_year() -> None:
    """The hardest case: what comes in on one day says nothing about the next."""
    days = np.random.default_rng(14).standard_normal((4_000, 365)).cumsum(axis=1)
    z = days / np.sqrt(np.arange(1, 366))
    assert (np.abs(z) > sequences.critical(1.0, 0.05)).any(axis=1).mean() <= 0.05


def test_the_bet_finds_a_difference_that_is_there() -> None:
    rng = np.random.default_rng(13)
    k1 = rng.binomial(20_000, 0.06, 400)
    k0 = rng.binomial(5_000, 0.04, 400)
    won = sequences.evidence_against_equal_rates(k1, k0, 0.8)
    assert (won >= math.log(20)).mean() > 0.9
    covered = [
        (i := sequences.rates(int(a), 20_000, int(b), 5_000, 0.05, 0.8)).low <= 1.5 <= i.high
        for a, b in zip(k1, k0, strict=True)
    ]
    assert np.mean(covered) >= 0.95
