"""Segments and paired differences, against scikit-learn, scipy and simulated truth."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import shelf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, pearsonr
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    mean_absolute_error,
    roc_auc_score,
)

from nextbest.learn import segments
from nextbest.learn.metrics import paired_difference
from nextbest.learn.paired import COVERAGE, IDEAL, LESS_IS_BETTER, Rows, goodness

# ------------------------------------------------------------------ drawing segments


def column(**values):
    return segments.assign(pd.DataFrame(values))


def names(series):
    return list(series.cat.categories)


def test_thirds_are_equal_and_say_their_bounds():
    found = column(tenure_days=np.arange(1, 301))["segment.tenure"]
    assert names(found) == [
        "shortest (up to 100 days)", "middle (over 100 to 200 days)", "longest (over 200 days)",
    ]  # fmt: skip
    assert found.value_counts().tolist() == [100, 100, 100]
    assert found[99] != found[100]  # day 100 is in the first, day 101 in the second


def test_equal_values_stay_together_even_if_thirds_become_two():
    found = column(spend_91d=[0.0] * 70 + [5.0] * 30)["segment.value tier"]
    assert names(found) == ["low (up to 0 in 91 days)", "high (over 0 in 91 days)"]
    assert found.value_counts().tolist() == [70, 30]


def test_a_column_that_parts_nobody_is_left_out():
    assert column(tenure_days=[3.0] * 9, offer_type=["a"] * 9, other=range(9)).empty
    assert column(tenure_days=[np.nan] * 9).empty


def test_unknown_is_a_segment_of_its_own():
    found = column(tenure_days=[1.0, 2.0, 3.0, np.nan], offer_type=["b", None, "b", "a"])
    assert found["segment.tenure"].tolist()[3] == "unknown"
    assert names(found["segment.offer type"]) == ["b", "a", "unknown"]


def test_many_categories_become_the_commonest_and_other():
    types = [f"t{i:02}" for i in range(20) for _ in range(20 - i)]
    found = column(offer_type=types)["segment.offer type"]
    assert names(found) == [f"t{i:02}" for i in range(11)] + ["other"]
    assert (found == "other").sum() == sum(20 - i for i in range(11, 20))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(-5, 5), st.just(0.0)), min_size=2, max_size=60),
    st.data(),
)
def test_every_row_is_in_exactly_one_segment_of_each_dimension(spend, data):
    types = data.draw(
        st.lists(st.sampled_from(["a", "b", None]), min_size=len(spend), max_size=len(spend))
    )
    frame = pd.DataFrame({"spend_91d": np.array(spend, dtype=float), "offer_type": types})
    found = segments.assign(frame)
    for dimension in {d for d, _, _ in segments.each(found)}:
        masks = [mask for d, _, mask in segments.each(found) if d == dimension]
        assert (np.sum(masks, axis=0) == 1).all() and len(masks) > 1
    for tier in [m for d, _, m in segments.each(found) if d == "value tier"]:
        # A tier is an interval: nobody outside it lies between two inside.
        inside, outside = frame["spend_91d"][tier], frame["spend_91d"][~tier]
        assert not ((outside > inside.min()) & (outside < inside.max())).any()


def test_stored_segments_come_back_in_their_order():
    found = column(tenure_days=np.arange(9.0), offer_type=list("zzzzyyyxx"))
    content = io.BytesIO()
    found.to_parquet(content)
    again = pd.read_parquet(io.BytesIO(content.getvalue()))
    assert [(d, n) for d, n, _ in segments.each(again)] == [
        (d, n) for d, n, _ in segments.each(found)
    ]
    assert [n for d, n, _ in segments.each(again) if d == "offer type"] == ["z", "y", "x"]


# ------------------------------------------------------------------ figures per segment


def stored(frame, score, baseline):
    return pd.concat([frame.assign(score=score, baseline=baseline), segments.assign(frame)], axis=1)


def test_figures_are_scikit_learns_on_the_rows_of_the_segment():
    frame = shelf.rows(900)
    rows = stored(frame, shelf.scored(frame, 1.0), shelf.scored(frame, 3.0, seed=2))
    found = segments.measure("probability", rows, resamples=200)
    assert [s.dimension for s in found] == ["tenure"] * 3 + ["value tier"] * 3 + ["offer type"] * 2
    for s, (_, _, mask) in zip(found, segments.each(rows), strict=True):
        y, p, q = (rows.loc[mask, c] for c in ("label", "score", "baseline"))
        assert (s.n, s.n_positive) == (mask.sum(), y.sum())
        assert s.mean_outcome == pytest.approx(y.mean())
        assert s.model["auc"].value == pytest.approx(roc_auc_score(y, p))
        assert s.model["average_precision"].value == pytest.approx(average_precision_score(y, p))
        assert s.model["brier"].value == pytest.approx(brier_score_loss(y, p))
        assert s.model["aggregate_ratio"].value == pytest.approx(p.sum() / y.sum())
        assert s.baseline["auc"].value == pytest.approx(roc_auc_score(y, q))
        assert s.difference.difference.value == pytest.approx(
            roc_auc_score(y, p) - roc_auc_score(y, q)
        )
        for m in (*s.model.values(), *s.baseline.values()):
            assert m.low <= m.value <= m.high
    assert sum(s.n for s in found if s.dimension == "tenure") == 900
    json.dumps([s.to_dict() for s in found], allow_nan=False)


def test_figures_of_amounts():
    rng = np.random.default_rng(0)
    frame = shelf.rows(300).assign(label=lambda d: rng.gamma(2, 50, len(d)))
    rows = stored(frame, frame["label"] + rng.normal(0, 20, 300), rng.gamma(2, 50, 300))
    for s, (_, _, mask) in zip(
        segments.measure("clv", rows, resamples=200), segments.each(rows), strict=True
    ):
        y, p = rows.loc[mask, "label"], rows.loc[mask, "score"]
        assert s.n_positive is None
        assert s.model["mae"].value == pytest.approx(mean_absolute_error(y, p))
        assert s.model["pearson_r"].value == pytest.approx(pearsonr(y, p).statistic)
        assert s.difference.better == "better"  # less error is better


def test_too_few_rows_are_said_and_not_measured():
    frame = shelf.rows(300, offers=("mail",)).assign(offer_type=["rare"] * 25 + ["mail"] * 275)
    frame.loc[:24, "label"] = [1.0] * 7 + [0.0] * 18
    rows = stored(frame, shelf.scored(frame, 1.0), 0.3)
    rare = next(s for s in segments.measure("probability", rows, resamples=50) if s.name == "rare")
    assert rare.too_few == "only 7 positives; 20 are needed"
    assert not rare.model and rare.difference is None
    assert segments.too_few("probability", np.repeat([1.0, 0.0], [50, 3])) == (
        "only 3 others; 20 are needed"
    )
    assert segments.too_few("clv", np.zeros(29)) == "only 29 rows; 30 are needed"
    assert segments.too_few("clv", np.zeros(30)) == ""
    assert segments.too_few("probability", np.repeat([1.0, 0.0], [20, 20])) == ""


def test_names_of_metrics_are_plain_and_leave_out_the_bounds():
    segment = segments.Segment("offer type", "Früh/Spät (neu)", 3, 1, 0.3)
    assert segment.key == "segment/offer_type/Fr_h_Sp_t"
    assert segments.Segment("value tier", "low (up to 3)", 3, 1, 0.3).key == (
        "segment/value_tier/low"
    )


def test_all_segments_together_raise_a_false_alarm_in_few_comparisons():
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(60):
        frame = pd.DataFrame(
            {"customer_id": np.arange(240), "label": rng.normal(size=240),
             "offer_type": np.repeat(list("abcdef"), 40)}
        )  # fmt: skip
        rows = stored(frame, rng.normal(size=240), rng.normal(size=240))
        found = segments.measure("clv", rows, resamples=400)
        alarms += any(s.difference.better != "unclear" for s in found)
    # 5% of 60 are 3; judged one by one it would be 1 - .95^6 = 26%, about 16.
    assert alarms <= 9


# ------------------------------------------------------------------ paired differences


def test_with_a_row_for_each_customer_it_is_the_plain_paired_bootstrap():
    frame = shelf.rows(400)
    y, a, b = frame["label"], shelf.scored(frame, 1.0), shelf.scored(frame, 2.0, seed=5)
    rows = Rows(y, frame["customer_id"].to_numpy(), resamples=300, seed=7)
    for metric in ("auc", "average_precision", "brier", "lift_at_10", "calibration_slope"):
        theirs = paired_difference(metric, y, a, b, resamples=300, seed=7)
        assert rows.difference(metric, a, b).difference == theirs


def test_it_agrees_with_scipys_paired_bootstrap():
    frame = shelf.rows(500)
    y, a, b = frame["label"].to_numpy(), shelf.scored(frame, 1.0), shelf.scored(frame, 1.5, seed=5)
    ours = Rows(y, resamples=2_000).difference("brier", a, b).difference
    theirs = bootstrap(
        (y, a, b), lambda y, a, b, axis: ((a - y) ** 2 - (b - y) ** 2).mean(axis=axis),
        paired=True, vectorized=True, n_resamples=2_000, method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)


def test_rows_of_one_customer_do_not_count_as_many():
    frame = shelf.rows(300)
    y, a, b = frame["label"].to_numpy(), shelf.scored(frame, 1.0), shelf.scored(frame, 2.0, seed=5)
    once = Rows(y, np.arange(300), resamples=400)
    again = [np.repeat(v, 4) for v in (y, a, b, np.arange(300))]
    often = Rows(again[0], again[3], resamples=400)
    blind = Rows(again[0], resamples=400)
    assert often.n_customers == 300
    for metric in ("auc", "brier", "average_precision"):
        one, four, wrong = (
            r.difference(metric, *s).difference
            for r, s in ((once, (a, b)), (often, again[1:3]), (blind, again[1:3]))
        )
        assert [four.value, four.low, four.high] == pytest.approx([one.value, one.low, one.high])
        assert wrong.high - wrong.low < 0.65 * (one.high - one.low)


def test_intervals_cover_the_true_difference():
    rng = np.random.default_rng(11)
    # |error| of a normal forecast error of spread s is s * sqrt(2 / pi) on average.
    truth = (1.0 - 1.3) * np.sqrt(2 / np.pi)
    inside = 0
    for _ in range(120):
        y = rng.normal(size=(80, 1)) + rng.normal(size=(80, 2))
        shock = rng.normal(size=(80, 1))  # shared by a customer's two rows
        a = y + (shock + rng.normal(size=y.shape)) / np.sqrt(2)
        b = y + 1.3 * (rng.normal(size=(80, 1)) + rng.normal(size=y.shape)) / np.sqrt(2)
        rows = Rows(y.ravel(), np.repeat(np.arange(80), 2), resamples=400)
        d = rows.difference("mae", a.ravel(), b.ravel()).difference
        inside += d.low <= truth <= d.high
    assert inside / 120 >= 0.88  # 95% wanted; 2 standard errors of 120 trials are 4 points


ALL = ("auc", "average_precision", "brier", "log_loss", "lift_at_10", "ece", "calibration_slope",
       "calibration_intercept", "aggregate_ratio", "precision_at_top_share")  # fmt: skip


def test_a_score_against_itself_differs_by_exactly_nothing():
    frame = shelf.rows(300, per_customer=2)
    score = shelf.scored(frame, 1.0)
    rows = Rows(frame["label"], frame["customer_id"].to_numpy(), resamples=100)
    for metric in ALL:
        d = rows.difference(metric, score, score.copy())
        assert (d.difference.value, d.difference.low, d.difference.high) == (0, 0, 0)
        assert (d.gain.low, d.gain.high, d.better, d.ahead_in) == (0, 0, "same", 0.5)


def test_turned_round_a_difference_changes_its_sign():
    frame = shelf.rows(300)
    a, b = shelf.scored(frame, 0.3), shelf.scored(frame, 3.0, seed=5)
    rows = Rows(frame["label"], resamples=100)
    opposite = {"better": "worse", "worse": "better", "unclear": "unclear"}
    for metric in ALL:
        there, back = rows.difference(metric, a, b), rows.difference(metric, b, a)
        assert back.difference.value == -there.difference.value
        assert back.difference.low == pytest.approx(-there.difference.high)
        assert back.better == opposite[there.better]
        assert back.ahead_in == pytest.approx(1 - there.ahead_in)
    assert rows.difference("auc", a, b).better == "better"
    assert rows.difference("brier", a, b).better == "better"


def test_better_is_more_or_less_or_closer_as_the_figure_asks():
    assert goodness("auc", 0.8) > goodness("auc", 0.7)
    assert all(goodness(m, 0.1) > goodness(m, 0.2) for m in LESS_IS_BETTER)
    for metric, ideal in IDEAL.items():
        assert goodness(metric, ideal) > goodness(metric, ideal + 0.2)
        assert goodness(metric, ideal) > goodness(metric, ideal - 0.2)


def test_a_better_coverage_is_one_closer_to_what_was_promised():
    inside = [np.repeat([1.0, 0.0], [k, 1_000 - k]) for k in (900, 990)]
    d = Rows(np.zeros(1_000)).difference(COVERAGE, *inside)
    assert d.difference.value == pytest.approx(-0.09) and d.better == "better"


def test_a_stricter_level_for_more_judgements_turns_a_close_call():
    rng = np.random.default_rng(0)
    y, noise = np.zeros(400), rng.normal(size=400)
    rows = Rows(y)
    d = rows.difference("mae", y + 1 + noise, y + 1.2 + rng.normal(size=400))
    close = next(
        shift
        for shift in np.linspace(0, 0.6, 61)
        if rows.difference("mae", np.abs(noise), np.abs(noise[::-1]) + shift).better == "better"
    )
    other = np.abs(noise[::-1]) + close
    assert rows.difference("mae", np.abs(noise), other).better == "better"
    assert rows.difference("mae", np.abs(noise), other, among=10).better == "unclear"
    assert d.difference.low < d.difference.value < d.difference.high


def test_a_figure_that_one_side_does_not_have_is_no_difference():
    frame = shelf.rows(200)
    rows = Rows(frame["label"], resamples=50)
    assert rows.difference("calibration_slope", shelf.scored(frame, 1), np.full(200, 0.3)) is None
    assert rows.metric("pearson_r", np.full(200, 0.3)) is None


def test_very_many_rows_are_redrawn_less_often():
    assert Rows(np.zeros(1_000)).resamples == 2_000
    assert Rows(np.zeros(50_000)).resamples == 1_000
    assert Rows(np.zeros(5_000_000)).resamples == 500
