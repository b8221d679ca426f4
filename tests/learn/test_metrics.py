import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from nextbest.errors import DataError, UsageError
from nextbest.learn import metrics
from nextbest.learn.metrics import Metric


def world(n, rng):
    """Scores that rank well and are known to be miscalibrated."""
    score = rng.beta(1.2, 6, n)
    truth = expit(0.7 * np.log(score / (1 - score)) + 0.3)
    return (rng.random(n) < truth).astype(float), score


def test_intervals_cover_the_truth_about_95_times_in_100():
    names = ["auc", "average_precision", "brier", "log_loss", "lift_at_10", "ece",
             "calibration_slope", "calibration_intercept"]  # fmt: skip
    rng = np.random.default_rng(11)
    y, score = world(300_000, rng)
    truth = {name: metrics.point(name, y, score) for name in names}
    hits = dict.fromkeys(names, 0)
    repeats = 150
    for k in range(repeats):
        y, score = world(800, rng)
        for name, m in metrics.evaluate(names, y, score, resamples=200, seed=k).items():
            hits[name] += m.low <= truth[name] <= m.high
    shares = {name: hit / repeats for name, hit in hits.items()}
    assert all(0.86 <= share < 1 for share in shares.values()), shares


def test_calibrated_scores_rarely_look_miscalibrated():
    rng = np.random.default_rng(3)
    excluded = 0
    for k in range(100):
        score = rng.beta(1.2, 6, 400)
        y = (rng.random(400) < score).astype(float)
        excluded += metrics.evaluate(["ece"], y, score, resamples=200, seed=k)["ece"].low > 0
    assert excluded / 100 < 0.12


def test_miscalibrated_scores_look_miscalibrated():
    y, score = world(2_000, np.random.default_rng(0))
    assert metrics.evaluate(["ece"], y, score)["ece"].low > 0.05


def test_paired_difference_covers_the_true_difference():
    def two(n, rng):
        z = rng.normal(size=n)
        y = (rng.random(n) < expit(z - 1)).astype(float)
        return y, z + rng.normal(size=n), z + 1.3 * rng.normal(size=n)

    rng = np.random.default_rng(1)
    y, a, b = two(400_000, rng)
    truth = metrics.point("auc", y, a) - metrics.point("auc", y, b)
    hits = 0
    for k in range(150):
        y, a, b = two(400, rng)
        d = metrics.paired_difference("auc", y, a, b, resamples=200, seed=k)
        hits += d.low <= truth <= d.high
    assert 0.88 <= hits / 150 <= 0.995


def test_pairing_cancels_what_both_scores_share():
    rng = np.random.default_rng(4)
    y, a = world(2_000, rng)
    b = np.clip(a + rng.normal(0, 0.01, a.size), 0, 1)
    alone = metrics.evaluate(["auc"], y, a)["auc"]
    difference = metrics.paired_difference("auc", y, a, b)
    assert difference.high - difference.low < (alone.high - alone.low) / 3
    assert metrics.paired_difference("auc", y, a, a) == Metric(0, 0, 0)


def test_the_same_seed_gives_the_same_figures_and_another_does_not():
    y, score = world(500, np.random.default_rng(0))
    first = metrics.probability_metrics(y, score, seed=1)
    assert metrics.probability_metrics(y, score, seed=1) == first
    assert metrics.probability_metrics(y, score, seed=2)["auc"].low != first["auc"].low
    assert metrics.probability_metrics(y, score, seed=2)["auc"].value == first["auc"].value


def test_a_higher_level_gives_a_wider_interval():
    y, score = world(500, np.random.default_rng(0))
    narrow, wide = (metrics.evaluate(["auc"], y, score, level=v)["auc"] for v in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_many_rows_go_through_in_chunks():
    y, score = world(100_000, np.random.default_rng(0))
    score = score.round(3)
    found = metrics.evaluate(["auc", "average_precision"], y, score, resamples=60)
    assert found["auc"].value == pytest.approx(roc_auc_score(y, score), rel=1e-12)
    assert found["average_precision"].value == pytest.approx(
        average_precision_score(y, score), rel=1e-12
    )
    # DeLong et al. 1988: the variance of AUC from how each row of one class ranks in the other.
    positive, negative = np.sort(score[y == 1]), np.sort(score[y == 0])
    beaten = np.searchsorted(negative, positive) / negative.size
    beating = 1 - np.searchsorted(positive, negative) / positive.size
    error = np.sqrt(beaten.var() / positive.size + beating.var() / negative.size)
    assert found["auc"].high - found["auc"].low == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_every_figure_lies_in_its_interval_and_survives_json():
    y, score = world(800, np.random.default_rng(2))
    value = np.random.default_rng(2).lognormal(size=800)
    found = {
        **metrics.probability_metrics(y, score),
        **metrics.value_metrics(value, score),
        **metrics.top_share_metrics(y, score, value),
    }
    assert set(found) == set(metrics.METRICS)
    for name, m in found.items():
        assert m.low <= m.value <= m.high, name
        assert Metric.from_dict(json.loads(json.dumps(m.to_dict()))) == m


def test_value_metrics_by_hand():
    found = metrics.value_metrics([10.0, 0.0, 20.0, 10.0], [12.0, 0.0, 16.0, 12.0])
    assert found["mae"].value == pytest.approx(2.0)
    assert found["rmse"].value == pytest.approx(np.sqrt(6.0))
    assert found["aggregate_ratio"].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    "score", [[0.3] * 8, [0.0, 0, 0, 0, 1, 1, 1, 1]], ids=["constant", "perfect"]
)
def test_a_score_without_a_calibration_slope_still_gets_its_other_figures(score):
    y = [0, 0, 0, 0, 1, 1, 1, 1]
    found = metrics.probability_metrics(y, score)
    assert "calibration_slope" not in found
    assert found["auc"].value == (0.5 if score[0] == score[-1] else 1.0)
    with pytest.raises(DataError, match=r"calibration_slope.*no finite value"):
        metrics.evaluate(["calibration_slope"], y, score)


def test_a_constant_prediction_has_no_correlation_but_an_error():
    found = metrics.value_metrics([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert "pearson_r" not in found
    assert found["mae"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("y", "score", "words"),
    [
        ([], [], "there are no rows"),
        ([0, 1], [0.1], "differ in length"),
        ([0, 1], [0.1, float("nan")], "missing"),
        ([0, 1], ["a", "b"], "not numbers"),
        ([0, 0, 0], [0.1, 0.2, 0.3], "only one class"),
        ([[0, 1]], [[0.1, 0.2]], "wrong shape"),
    ],
)
def test_bad_input_is_named(y, score, words):
    with pytest.raises(DataError, match=words):
        metrics.probability_metrics(y, score)


def test_misuse_is_named():
    with pytest.raises(UsageError, match=r'no metric "acu".*Did you mean "auc"'):
        metrics.point("acu", [0, 1], [0.1, 0.2])
    with pytest.raises(UsageError, match=r"share.*\(0, 1\]"):
        metrics.top_share_metrics([0, 1], [0.1, 0.2], [1, 2], share=0)


def test_no_future_value_at_all_has_no_capture():
    with pytest.raises(DataError, match="value_capture"):
        metrics.top_share_metrics([0, 1], [0.1, 0.2], [0, 0])


def test_curves_agree_with_the_figures():
    y, score = world(150, np.random.default_rng(6))
    found = metrics.curves(y, score)
    roc = found["roc"]
    area = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
    assert area == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert found["gain"]["captured"][0] == 0
    assert found["gain"]["captured"][-1] == found["lift"]["lift"][-1] == 1
    tenth = np.interp(0.1, found["gain"]["share"], found["gain"]["captured"])
    assert tenth / 0.1 == pytest.approx(metrics.point("lift_at_10", y, score))
    assert found["pr"]["precision"][-1] == pytest.approx(y.mean())
    assert sum(found["reliability"]["rows"]) == 150


def test_curves_stay_small_on_many_rows():
    y, score = world(20_000, np.random.default_rng(6))
    found = metrics.curves(y, score)
    assert all(len(c) <= 201 for curve in found.values() for c in curve.values())
    json.dumps(found, allow_nan=False)


def test_reliability_intervals_hold_the_true_rate_of_calibrated_scores():
    rng = np.random.default_rng(0)
    score = rng.beta(1, 4, 5_000)
    r = metrics.curves((rng.random(5_000) < score).astype(float), score)["reliability"]
    inside = [lo <= s <= hi for lo, s, hi in zip(r["low"], r["mean_score"], r["high"], strict=True)]
    assert sum(inside) >= 8


def test_rows_of_one_customer_count_once_however_often_they_are_repeated():
    """Every row four times over says no more: with customers named, the interval is the same."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 120).astype(float)
    a = np.clip(0.3 * y + rng.uniform(0, 0.7, y.size), 0.01, 0.99)
    b = np.clip(0.1 * y + rng.uniform(0, 0.9, y.size), 0.01, 0.99)
    who = np.array([f"c{i}" for i in range(y.size)], dtype=object)
    four = [np.repeat(v, 4) for v in (y, a, b, who)]
    names = ["auc", "brier", "log_loss", "average_precision"]
    once = metrics.evaluate(names, y, a, seed=3)
    repeated = metrics.evaluate(names, four[0], four[1], seed=3, customers=four[3])
    for name in names:
        assert repeated[name].to_dict() == pytest.approx(once[name].to_dict(), rel=1e-12)
    blind = metrics.evaluate(names, four[0], four[1], seed=3)
    for name in names:
        width, honest = (m[name].high - m[name].low for m in (blind, once))
        assert width < 0.7 * honest  # half of it in expectation
    difference = metrics.paired_difference("auc", y, a, b, seed=3)
    again = metrics.paired_difference("auc", *four[:3], seed=3, customers=four[3])
    assert again.to_dict() == pytest.approx(difference.to_dict(), rel=1e-12)
    # One row for each customer is the ordinary bootstrap, draw by draw.
    assert metrics.evaluate(names, y, a, seed=3, customers=who) == once
    assert metrics.probability_metrics(y, a, customers=who) == metrics.probability_metrics(y, a)
    with pytest.raises(DataError, match="customers and y differ in length"):
        metrics.evaluate(names, y, a, customers=who[:5])
