import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from nextbest.errors import ArtifactError, DataError
from nextbest.learn import calibration
from nextbest.learn.calibration import Beta, Isotonic, NoCalibration, Platt

KINDS = ("none", "platt", "beta", "isotonic")


def world(n=3_000, seed=0, distort=lambda p: p):
    rng = np.random.default_rng(seed)
    p = rng.beta(1.5, 5, n)
    return (rng.random(n) < p).astype(float), distort(p)


def log_loss(y, p):
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return -np.where(y == 1, np.log(p), np.log(1 - p)).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_back_the_same_bits(kind):
    fitted = calibration.fit(kind, *world(distort=np.sqrt))
    again = calibration.calibrator_from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    scores = np.random.default_rng(1).random(1_000)
    assert again.apply(scores).tobytes() == fitted.apply(scores).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_as_in_a_batch(kind):
    fitted = calibration.fit(kind, *world(distort=np.sqrt))
    scores = np.random.default_rng(1).random(4_099)
    together = fitted.apply(scores)
    assert [fitted.apply(scores[i : i + 1])[0] for i in range(0, 4_099, 13)] == list(together[::13])
    assert (fitted.apply(scores[::7]) == together[::7]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_probabilities_rise_with_the_score_and_stay_within_0_and_1(kind, seed):
    y, score = world(300, seed, distort=lambda p: np.round(p, 2))
    p = calibration.fit(kind, y, score).apply(np.linspace(0, 1, 2_001))
    assert (np.diff(p) >= 0).all()
    assert p.min() >= 0
    assert p.max() <= 1


def test_platt_recovers_a_known_distortion():
    y, score = world(200_000, distort=lambda p: expit((logit(p) + 0.4) / 0.5))
    fitted = calibration.fit("platt", y, score)
    assert fitted.slope == pytest.approx(0.5, abs=0.02)
    assert fitted.intercept == pytest.approx(-0.4, abs=0.03)


def test_beta_recovers_a_known_distortion_where_platt_cannot():
    # The inverse of beta calibration with a = 2, b = .5, c = .3, by bisection.
    true = Beta(2.0, 0.5, 0.3)

    def distort(p):
        low, high = np.zeros_like(p), np.ones_like(p)
        for _ in range(50):
            middle = (low + high) / 2
            below = true.apply(middle) < p
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    y, score = world(100_000, distort=distort)
    fitted = calibration.fit("beta", y, score)
    assert (fitted.a, fitted.b, fitted.c) == pytest.approx((2.0, 0.5, 0.3), abs=0.15)
    fresh_y, fresh = world(100_000, seed=9, distort=distort)
    platt = calibration.fit("platt", y, score)
    assert log_loss(fresh_y, fitted.apply(fresh)) < log_loss(fresh_y, platt.apply(fresh))


def test_beta_is_a_logistic_regression_on_two_logarithms():
    # Kull et al. 2017, section 3: features ln(s) and -ln(1 - s).
    y, score = world(50_000, distort=np.sqrt)
    x = np.column_stack([np.log(score), -np.log(1 - score)])
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1_000).fit(x, y)
    fitted = calibration.fit("beta", y, score)
    expected = (*reference.coef_[0], reference.intercept_[0])
    assert (fitted.a, fitted.b, fitted.c) == pytest.approx(expected, abs=0.01)


def test_isotonic_agrees_with_scikit_learn():
    y, score = world(2_000)
    reference = IsotonicRegression(out_of_bounds="clip").fit(score, y)
    at = np.random.default_rng(0).random(500)
    edge = 1 / 2_002
    expected = np.clip(reference.predict(at), edge, 1 - edge)
    assert calibration.fit("isotonic", y, score).apply(at) == pytest.approx(expected, abs=2 * edge)


def test_isotonic_never_says_never():
    p = calibration.fit("isotonic", [0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.7, 0.8]).apply([0, 1])
    assert 0 < p[0] < p[1] < 1


@pytest.mark.parametrize("kind", ["platt", "beta"])
def test_a_score_that_ranks_backwards_becomes_the_base_rate(kind):
    y, score = world(distort=lambda p: 1 - p)
    p = calibration.fit(kind, y, score).apply([0.1, 0.9])
    assert p[0] == p[1] == pytest.approx(y.mean(), abs=0.001)


@pytest.mark.parametrize("kind", ["platt", "beta", "isotonic"])
def test_separated_classes_and_constant_scores_still_fit(kind):
    apart = calibration.fit(kind, [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]).apply([0.1, 0.9])
    assert 0 < apart[0] < 0.5 < apart[1] < 1
    same = calibration.fit(kind, [0, 0, 1, 1], [0.4] * 4).apply([0.4])
    assert same == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("distort", "chosen"),
    [
        (lambda p: expit(2.5 * logit(p)), {"platt", "beta"}),
        (lambda p: np.where(p < 0.25, p / 3, 0.6 + p / 3), {"isotonic"}),
    ],
    ids=["overconfident", "with a jump"],
)
def test_choose_takes_what_fits_fresh_rows_best(distort, chosen):
    found = calibration.choose([world(3_000, seed=k, distort=distort) for k in (11, 12, 13)])
    assert found.calibrator.kind in chosen
    assert found.calibrator.kind == min(found.log_loss, key=found.log_loss.get)
    fresh_y, fresh = world(20_000, seed=5, distort=distort)
    assert log_loss(fresh_y, found.calibrator.apply(fresh)) < log_loss(fresh_y, fresh) - 0.01


def test_choose_is_repeatable_and_explains_itself():
    blocks = [world(500, seed=k) for k in (1, 2)]
    first = calibration.choose(blocks)
    assert calibration.choose(blocks) == first
    told = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert set(told["log_loss"]) == set(KINDS)
    assert told["positives"] == sum(y.sum() for y, _score in blocks)


def test_one_block_or_one_class_leaves_the_score_alone():
    assert calibration.choose([world(500)]).calibrator == NoCalibration()
    assert calibration.choose([([0, 0], [0.1, 0.2]), ([1, 1], [0.1, 0.2])]).calibrator == (
        NoCalibration()
    )


@pytest.mark.parametrize(
    ("y", "score", "words"),
    [
        ([0, 0], [0.1, 0.2], "only one class"),
        ([], [], "no rows"),
        ([0, 1], [0.1, 1.5], "not probabilities"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(y, score, words):
    with pytest.raises(DataError, match=words):
        calibration.fit("platt", y, score)


def test_an_unknown_kind_is_refused():
    with pytest.raises(DataError, match="none or platt or beta or isotonic; got temperature"):
        calibration.fit("temperature", [0, 1], [0.1, 0.9])


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"kind": "pickle"},
        {"kind": "platt", "slope": -1.0, "intercept": 0.0},
        {"kind": "platt", "slope": 1.0},
        {"kind": "beta", "a": 1.0, "b": "x", "c": 0.0},
        {"kind": "beta", "a": 1.0, "b": None, "c": 0.0},
        {"kind": "isotonic", "scores": [], "probabilities": []},
        {"kind": "isotonic", "scores": [0.1, 0.2], "probabilities": [0.5, 0.4]},
        {"kind": "isotonic", "scores": [0.2, 0.1], "probabilities": [0.4, 0.5]},
    ],
)
def test_a_damaged_calibrator_is_refused(damaged):
    with pytest.raises(ArtifactError, match="calibrator: it cannot be read"):
        calibration.calibrator_from_dict(damaged)


def test_calibrators_apply_by_hand():
    assert NoCalibration().apply([0.2]) == pytest.approx([0.2])
    assert Platt(2.0, 0.0).apply([0.8]) == pytest.approx([16 / 17])
    assert Beta(1.0, 1.0, 0.0).apply([0.3]) == pytest.approx([0.3])
    line = Isotonic((0.2, 0.6), (0.1, 0.5))
    assert line.apply([0.0, 0.2, 0.4, 0.6, 1.0]) == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.5])


# ------------------------------------------------------------------ over time


def fold(n, seed, level, stretch):
    """Outcomes at a base rate that drifts, scores at another level and too bold by ``stretch``."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1, n)
    y = (rng.random(n) < expit(z + level)).astype(float)
    return y, expit(stretch * z - 1.0)


def test_the_shape_is_learned_although_levels_drift():
    blocks = [fold(4_000, k, level, 2.5) for k, level in enumerate((-2.0, -1.0, 0.0))]
    found = calibration.choose(blocks, level_learned=True)
    assert found.calibrator.kind in ("platt", "beta")
    assert found.rows == 12_000
    apart = logit(found.calibrator.apply([0.8])) - logit(found.calibrator.apply([0.2]))
    assert apart == pytest.approx((logit(0.8) - logit(0.2)) / 2.5, rel=0.2)


def test_scores_of_the_right_shape_are_mostly_left_alone():
    kept = 0
    for seed in range(0, 60, 3):
        blocks = [fold(500, seed + k, -1.0, 1.0) for k in range(3)]
        kept += calibration.choose(blocks).calibrator == NoCalibration()
    assert kept >= 12


def test_with_fewer_than_two_usable_blocks_there_is_no_later_to_judge_on():
    good, empty = fold(500, 0, -1.0, 2.5), (np.zeros(5), np.full(5, 0.2))
    assert calibration.choose([good, empty]).calibrator == NoCalibration()
    assert calibration.choose([empty]).rows == 5
    assert calibration.choose([good], "platt").calibrator.kind == "platt"
