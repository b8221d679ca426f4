import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from nextbest.errors import DataError
from nextbest.learn.statistics import METRICS, fit_logistic

# These fix their bins or their starting point on the whole sample.
FIXED_ON_SAMPLE = {"ece", "calibration_slope", "calibration_intercept"}
AMOUNTS = {"mae", "rmse", "pearson_r", "aggregate_ratio", "value_capture"}


def sample(seed, n=200, ties=True):
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 4, n)
    y = (rng.random(n) < p).astype(float)
    y[:2] = 0, 1
    return y, np.round(p, 1) if ties else p, rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_weighted_figures_agree_with_scikit_learn(seed, ties):
    y, p, w = sample(seed, ties=ties)
    ours = {name: METRICS[name](y, p, 0.2)(w[None, :])[0] for name in METRICS}
    assert ours["auc"] == pytest.approx(roc_auc_score(y, p, sample_weight=w), rel=1e-12)
    assert ours["average_precision"] == pytest.approx(
        average_precision_score(y, p, sample_weight=w), rel=1e-12
    )
    assert ours["brier"] == pytest.approx(brier_score_loss(y, p, sample_weight=w), rel=1e-12)
    assert ours["log_loss"] == pytest.approx(log_loss(y, p, sample_weight=w), rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(METRICS) - FIXED_ON_SAMPLE))
@pytest.mark.parametrize("seed", range(3))
def test_a_row_drawn_k_times_counts_like_k_rows(name, seed):
    y, p, w = sample(seed)
    if name in AMOUNTS:
        y = np.random.default_rng(seed).lognormal(size=y.size)
    times = w.astype(int)
    repeated = METRICS[name](np.repeat(y, times), np.repeat(p, times), 0.2)
    expected = repeated(np.ones((1, times.sum())))[0]
    weighted = METRICS[name](y, p, 0.2)(np.stack([w, w]))
    assert weighted == pytest.approx([expected, expected], rel=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_order_of_rows_does_not_matter(name):
    y, p, _ = sample(3)
    order = np.random.default_rng(0).permutation(y.size)
    one = np.ones((1, y.size))
    shuffled = METRICS[name](y[order], p[order], 0.2)(one)[0]
    assert shuffled == pytest.approx(METRICS[name](y, p, 0.2)(one)[0], rel=1e-9)


def test_lift_takes_tied_rows_in_proportion():
    # The top tenth is one row of ten; three rows tie for it, two of them positive.
    y = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0, 0], dtype=float)
    score = np.array([0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    lift = METRICS["lift_at_10"](y, score, 0.2)(np.ones((1, 10)))[0]
    assert lift == pytest.approx((2 / 3) / 0.3)
    assert METRICS["lift_at_10"](y, np.full(10, 0.5), 0.2)(np.ones((1, 10)))[0] == pytest.approx(1)


def test_lift_of_a_perfect_score_is_one_over_the_rate():
    y = np.repeat([1.0, 0.0], [20, 180])
    assert METRICS["lift_at_10"](y, y, 0.2)(np.ones((1, 200)))[0] == pytest.approx(10)


def test_value_capture_and_precision_by_hand():
    value = np.array([100.0, 50.0, 30.0, 20.0, 0.0])
    score = np.array([5.0, 1.0, 4.0, 3.0, 2.0])
    one = np.ones((1, 5))
    assert METRICS["value_capture"](value, score, 0.4)(one)[0] == pytest.approx(130 / 200)
    flag = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    assert METRICS["precision_at_top_share"](flag, score, 0.4)(one)[0] == pytest.approx(0.5)


def test_ece_by_hand():
    # Ten bins of ten equal scores; each bin is off by exactly 0.05.
    score = np.repeat(np.arange(10) / 10 + 0.05, 10)
    y = np.concatenate([np.repeat([1.0, 0.0], [k, 10 - k]) for k in range(10)])
    assert METRICS["ece"](y, score, 0.2)(np.ones((1, 100)))[0] == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["calibration_slope", "calibration_intercept"])
def test_one_newton_step_stays_close_to_the_full_fit(name):
    y, p, _ = sample(4, n=3_000, ties=False)
    rng = np.random.default_rng(1)
    weights = rng.multinomial(y.size, np.full(y.size, 1 / y.size), size=20).astype(float)
    steps = METRICS[name](y, p, 0.2)(weights)
    full = [
        METRICS[name](np.repeat(y, w), np.repeat(p, w), 0.2)(np.ones((1, w.sum())))[0]
        for w in weights.astype(int)
    ]
    assert np.sqrt(np.mean((steps - full) ** 2)) < 0.06 * np.std(full)


def test_calibration_recovers_a_known_distortion():
    rng = np.random.default_rng(5)
    z = rng.normal(-1, 1.2, 200_000)
    y = (rng.random(z.size) < 1 / (1 + np.exp(-z))).astype(float)
    overconfident = 1 / (1 + np.exp(-2 * z))
    one = np.ones((1, z.size))
    assert METRICS["calibration_slope"](y, overconfident, 0.2)(one)[0] == pytest.approx(
        0.5, abs=0.01
    )
    shifted = 1 / (1 + np.exp(-(z - 0.7)))
    assert METRICS["calibration_intercept"](y, shifted, 0.2)(one)[0] == pytest.approx(0.7, abs=0.02)


def test_fit_logistic_agrees_with_scikit_learn():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 3)) * [1, 10, 0.1]
    y = (rng.random(500) < 1 / (1 + np.exp(-x @ [1, 0.1, 5] + 0.5))).astype(float)
    reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x, y)
    ours = fit_logistic(np.column_stack([x, np.ones(500)]), y)
    assert ours == pytest.approx([*reference.coef_[0], reference.intercept_[0]], rel=1e-4)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 1, 1, 1], [0, 1, 0, 1])],
    ids=["separated", "constant"],
)
def test_fit_logistic_says_when_there_is_no_finite_fit(x, y):
    design = np.column_stack([x, np.ones(4)]).astype(float)
    assert fit_logistic(design, np.array(y, dtype=float)) is None


@pytest.mark.parametrize(
    ("name", "y", "score", "words"),
    [
        ("auc", [1, 1, 1], [0.1, 0.2, 0.3], "only one class"),
        ("average_precision", [0, 0], [0.1, 0.2], "only one class"),
        ("auc", [0, 2], [0.1, 0.2], "not binary"),
        ("brier", [0, 1], [0.1, 1.2], "not probabilities"),
    ],
)
def test_what_cannot_be_answered_is_refused(name, y, score, words):
    with pytest.raises(DataError, match=words):
        METRICS[name](np.array(y, dtype=float), np.array(score), 0.2)
