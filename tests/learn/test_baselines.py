"""Baselines against a calculation of our own: what a careful analyst would do by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from nextbest.errors import DataError
from nextbest.learn.baselines import RunRate, SingleFeature, TypeRateTimesHistory


def world(falling: bool, n: int = 400, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.lognormal(2, 1, n)
    log_odds = (np.log(x) - 2) * (-1.5 if falling else 1.5) - 1
    y = (rng.random(n) < expit(log_odds)).astype(float)
    return pd.DataFrame({"days": np.where(rng.random(n) < 0.1, np.nan, x)}), y


@pytest.mark.parametrize("falling", [False, True])
def test_one_feature_keeps_its_ranks(falling: bool) -> None:
    frame, y = world(falling)
    fitted = SingleFeature("days", name="recency").fit(frame, y)
    asked = frame.dropna().days.to_numpy()
    # Also below and above anything seen in training.
    asked = np.concatenate([asked, [-5.0, 0.0, 1.5 * asked.max(), 2 * asked.max()]])
    score = fitted.score(pd.DataFrame({"days": asked}))
    assert ((score > 0) & (score < 1)).all()
    ranks = rankdata(-asked if falling else asked)
    np.testing.assert_array_equal(rankdata(score), ranks)


@pytest.mark.parametrize("falling", [False, True])
def test_one_feature_becomes_the_probability_of_platt(falling: bool) -> None:
    """Platt (1999): logistic regression on the score with softened targets."""
    frame, y = world(falling)
    x = frame.days.fillna(frame.days.median()).to_numpy()
    z = (x - x.min()) / (x.max() - x.min())
    score = 0.5 + np.arctan(z - 0.5) / np.pi
    log_odds = logit(1 - score if falling else score)[:, None]
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2)
    target = np.where(y == 1, high, low)
    both = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1_000).fit(
        np.concatenate([log_odds, log_odds]), np.repeat([1, 0], len(y)),
        sample_weight=np.concatenate([target, 1 - target]),
    )  # fmt: skip
    expected = both.predict_proba(log_odds)[:, 1]
    found = SingleFeature("days", name="recency").fit(frame, y).score(frame)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.mean() == pytest.approx(y.mean(), abs=0.01)
    assert found.std() > 0.1


def test_an_unknown_feature_counts_as_the_middle_of_training() -> None:
    frame, y = world(falling=False)
    fitted = SingleFeature("days", name="recency").fit(frame, y)
    unknown, middle = fitted.score(pd.DataFrame({"days": [np.nan, frame.days.median()]}))
    assert unknown == middle


def test_a_feature_that_says_nothing_gives_the_rate() -> None:
    y = np.array([1.0, 0.0, 0.0, 0.0] * 50)
    same = pd.DataFrame({"days": np.full(200, 3.0)})
    score = SingleFeature("days", name="recency").fit(same, y).score(same)
    np.testing.assert_allclose(score, 0.25, atol=0.01)


def test_a_feature_that_nobody_knows_is_refused() -> None:
    nothing = pd.DataFrame({"days": [np.nan] * 4})
    with pytest.raises(DataError, match=r'baseline "recency".*"days" is unknown on every'):
        SingleFeature("days", name="recency").fit(nothing, np.array([0.0, 1.0, 0.0, 1.0]))


def test_type_rate_times_history_by_hand() -> None:
    train = pd.DataFrame({"offer_type": ["A"] * 4 + ["B"] * 6})
    y = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 0], dtype=float)
    asked = pd.DataFrame(
        {
            "offer_type": ["A", "A", "B", "C", None, "A"],
            "contacts_total": [0.0, 4.0, 8.0, 0.0, 2.0, np.nan],
            "responses_total": [0.0, 3.0, 0.0, 0.0, 1.0, np.nan],
        }
    )
    r = 0.3  # three of ten
    expected = [
        1 / 2,  # nothing known of the customer: the type's rate
        1 / 2 * ((3 + 2 * r) / (4 + 2)) / r,
        1 / 6 * ((0 + 2 * r) / (8 + 2)) / r,
        r,  # a type never seen: the overall rate
        r * ((1 + 2 * r) / (2 + 2)) / r,
        1 / 2,
    ]
    found = TypeRateTimesHistory().fit(train, y).score(asked)
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), rtol=1e-12)
    assert max(found) == 1.0 > expected[3]


def test_a_heavier_prior_trusts_a_customers_own_rate_less() -> None:
    train = pd.DataFrame({"offer_type": ["A"] * 10})
    y = np.array([1.0] + [0.0] * 9)
    asked = pd.DataFrame({"offer_type": ["A"], "contacts_total": [2.0], "responses_total": [1.0]})
    scores = [
        TypeRateTimesHistory(prior_contacts=k).fit(train, y).score(asked)[0] for k in (1, 4, 16)
    ]
    np.testing.assert_allclose(scores, [(1 + k * 0.1) / (2 + k) for k in (1, 4, 16)], rtol=1e-12)
    assert scores == sorted(scores, reverse=True)


def test_recent_spend_runs_on() -> None:
    rule = RunRate("spend_91d", window_days=91, horizon_days=183, name="last 91 days' rate")
    frame = pd.DataFrame({"spend_91d": [91.0, 0.0, np.nan, 45.5]})
    found = rule.fit(frame, np.zeros(4)).score(frame)
    np.testing.assert_allclose(found, [183.0, 0.0, 0.0, 91.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "needs", "name"),
    [
        (SingleFeature("days", name="recency"), ("days",), "recency"),
        (TypeRateTimesHistory(), ("offer_type", "contacts_total", "responses_total"),
         "type rate × history"),
        (RunRate("spend_91d", 91, 183), ("spend_91d",), "recent run rate"),
    ],
)  # fmt: skip
def test_a_baseline_says_what_it_is_and_what_it_needs(
    rule: SingleFeature | TypeRateTimesHistory | RunRate, needs: tuple[str, ...], name: str
) -> None:
    assert (rule.needs, rule.name) == (needs, name)
