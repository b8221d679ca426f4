"""Drift: statistics against scipy and by hand, known worlds, and the UCI bank data by month."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nextbest.errors import ArtifactError, DataError, UsageError
from nextbest.learn.drift import (
    DriftLimits,
    base_rate_drift,
    drift,
    rates_over_time,
    reference,
)

BANK = Path(__file__).parents[3] / "shared/data/bank/bank_additional_first70pct.parquet"
QUICK = settings(max_examples=40, deadline=None)


def column(values):
    return pd.DataFrame({"x": values})


def moved(before, now, **options):
    """The drift of one column; the reference travels through JSON, as it does in real life."""
    kept = json.loads(json.dumps(reference(column(before), ["x"], **options), allow_nan=False))
    return drift(kept, column(now)).features[0]


# ------------------------------------------------------------------ the index


def test_psi_by_hand():
    before, now = ["a"] * 50 + ["b"] * 30 + ["c"] * 20, ["a"] * 20 + ["b"] * 30 + ["c"] * 50
    found = moved(before, now)
    # Each count raised by a half; "any other" and "unknown" are empty then and now.
    p, q = np.array([50.5, 30.5, 20.5]) / 101.5, np.array([20.5, 30.5, 50.5]) / 101.5
    assert found.psi == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-12)
    assert (found.status, found.test) == ("alarm", "chi2")


def test_psi_of_a_shifted_normal_is_near_its_closed_form():
    rng = np.random.default_rng(0)
    before, now = rng.normal(0, 1, 200_000), rng.normal(0.5, 1, 200_000)
    fine, coarse = moved(before, now, bins=200).psi, moved(before, now).psi
    assert fine == pytest.approx(0.5**2, rel=0.03)  # Jeffreys' divergence of the two densities
    assert 0.85 * fine < coarse < fine  # bins lose some of it


def test_without_change_the_index_has_the_mean_of_yurdakul():
    rng = np.random.default_rng(1)
    n, m, bins = 4_000, 150, 10
    found = [moved(rng.normal(size=n), rng.normal(size=m), bins=bins).psi for _ in range(200)]
    assert np.mean(found) == pytest.approx((bins - 1) * (1 / n + 1 / m), rel=0.08)


def test_chance_in_few_rows_is_no_alarm_though_the_index_is_high():
    rng = np.random.default_rng(2)
    before = rng.normal(size=5_000)
    found = [moved(before, rng.normal(size=40)) for _ in range(200)]
    assert np.mean([d.psi >= 0.1 for d in found]) > 0.8
    assert np.mean([d.status != "ok" for d in found]) <= 0.02


def test_a_trifle_in_a_million_rows_is_no_alarm_though_it_is_no_chance():
    rng = np.random.default_rng(3)
    found = moved(rng.normal(size=1_000_000), rng.normal(0.02, 1, 1_000_000))
    assert found.q_value < 1e-9
    assert found.psi < 0.01
    assert found.status == "ok"


@QUICK
@given(
    st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=200),
    st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=200),
)
def test_the_index_is_never_negative_and_nothing_against_itself(before, now):
    before, now = np.array(before, dtype=float), np.array(now, dtype=float)
    found = moved(before, now)
    assert found.psi >= 0
    assert 0 <= found.p_value <= 1
    same = moved(before, np.random.default_rng(0).permutation(before))
    assert (same.psi, same.statistic, same.status) == (0, 0, "ok")


@QUICK
@given(st.integers(0, 10_000), st.floats(0.1, 3), st.floats(-5, 5))
def test_a_change_of_unit_changes_nothing(seed, scale, shift):
    rng = np.random.default_rng(seed)
    before, now = rng.integers(0, 400, 500) / 16, rng.integers(50, 500, 300) / 16
    plain, other = moved(before, now), moved(np.exp(before / 16), np.exp(now / 16))
    assert other.psi == pytest.approx(plain.psi, rel=1e-9)
    assert other.statistic == pytest.approx(plain.statistic, abs=1e-12)


# ------------------------------------------------------------------ the tests


@QUICK
@given(
    st.lists(st.integers(0, 60), min_size=30, max_size=300),
    st.lists(st.integers(0, 60), min_size=30, max_size=300),
)
def test_ks_is_scipys_with_ties_where_every_value_is_known(before, now):
    # More than 20 and at most 200 values, so that they are compared as numbers and kept exactly.
    before, now = [*range(25), *before], now
    found = moved(np.array(before) / 8, np.array(now) / 8)
    theirs = stats.ks_2samp(before, now, method="asymp")
    assert found.test == "ks"
    assert found.statistic == pytest.approx(theirs.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_ks_at_200_points_is_at_most_a_hair_under_scipys(seed):
    rng = np.random.default_rng(seed)
    before, now = rng.lognormal(0, 1, 3_000), rng.lognormal(0.1 * seed / 5, 1, 2_000)
    ours, theirs = moved(before, now).statistic, stats.ks_2samp(before, now).statistic
    assert theirs - 0.006 <= ours <= theirs + 1e-12


def test_ks_sees_what_falls_below_all_that_was_known():
    before = np.concatenate([np.zeros(500), np.arange(1, 501)])
    now = np.concatenate([np.full(250, -1.0), np.zeros(250), np.arange(1, 501)])
    assert moved(before, now).statistic == stats.ks_2samp(before, now).statistic


def test_ks_counts_unknown_as_the_lowest_value():
    rng = np.random.default_rng(5)
    before, now = rng.normal(size=3_000), rng.normal(size=3_000)
    now[rng.random(3_000) < 0.3] = np.nan
    found = moved(before, now)
    assert found.statistic == pytest.approx(np.isnan(now).mean(), abs=0.03)
    assert (found.unknown_reference, found.unknown) == (0, np.isnan(now).mean())
    assert found.status == "alarm"
    assert "unknown: 0.0% before" in str(found)


def test_chi_square_is_scipys():
    rng = np.random.default_rng(6)
    before, now = rng.integers(0, 6, 900), rng.integers(0, 6, 500)
    table = [np.bincount(before, minlength=6), np.bincount(now, minlength=6)]
    theirs = stats.chi2_contingency(table, correction=False)
    found = moved(before, now)
    assert found.statistic == pytest.approx(theirs.statistic, rel=1e-12)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.poisson(2, n),
        lambda rng, n: np.where(rng.random(n) < 0.7, 0, rng.lognormal(size=n)),
        lambda rng, n: rng.choice(np.array(["a", "b", None, "rare"]), n, p=[0.6, 0.3, 0.09, 0.01]),
    ],
    ids=["smooth", "counts", "mostly zero", "text"],
)
def test_without_change_small_p_values_are_as_rare_as_they_say(draw):
    rng = np.random.default_rng(7)
    p = [moved(draw(rng, 600), draw(rng, 200)).p_value for _ in range(250)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)


def test_repeated_customers_count_once():
    rng = np.random.default_rng(8)
    people, today = rng.normal(size=60), rng.normal(0.35, 1, 60)
    repeated = np.repeat(people, 50)
    naive, honest = moved(repeated, np.repeat(today, 2)), moved(repeated, today, units=60)
    assert honest.p_value > 5 * naive.p_value
    assert honest.p_value == pytest.approx(
        stats.kstwo.sf(honest.statistic, 30), rel=1e-12
    )  # 60 and 60 independent rows


def test_p_values_are_corrected_over_the_features_and_the_score_stands_alone():
    rng = np.random.default_rng(9)
    names = [f"f{i}" for i in range(12)]
    before = pd.DataFrame(rng.normal(size=(400, 12)), columns=names)
    now = pd.DataFrame(rng.normal(0.1, 1, size=(400, 12)), columns=names)
    report = drift(reference(before, names, scores=before["f0"]), now, scores=now["f0"])
    p = np.array([d.p_value for d in report.features])
    order = np.argsort(p)
    by_hand = np.empty(12)
    by_hand[order] = np.minimum.accumulate((p[order] * 12 / np.arange(1, 13))[::-1])[::-1]
    assert [d.q_value for d in report.features] == pytest.approx(np.minimum(by_hand, 1))
    f0 = next(d for d in report.features if d.name == "f0")
    assert report.score.q_value == f0.p_value < f0.q_value


# ------------------------------------------------------------------ kinds of columns


def test_a_constant_that_changes_is_an_alarm():
    found = moved(np.zeros(500), np.full(200, 5.0))
    assert found.status == "alarm"
    assert "a value not among those listed at training: 0.0% before, 100.0% now" in found.moved


def test_a_change_among_the_few_that_are_not_zero_is_seen():
    rng = np.random.default_rng(10)
    before = np.where(rng.random(4_000) < 0.6, 0.0, rng.lognormal(0, 0.3, 4_000))
    now = np.where(rng.random(2_000) < 0.6, 0.0, rng.lognormal(1, 0.3, 2_000))
    kept = reference(column(before), ["x"])["features"]["x"]
    zero = kept["edges"].index(0.0)
    assert kept["counts"][zero] == (before == 0).sum()  # zero has a bin of its own
    assert moved(before, now).status == "alarm"


def test_a_new_category_and_one_that_went():
    found = moved(["a", "b"] * 200, ["a", "c"] * 100)
    assert found.status == "alarm"
    assert found.moved in ('"b": 50.0% before, 0.0% now',) or "not among" in found.moved


def test_rare_categories_share_a_bin():
    many = [f"v{i}" for i in range(50) for _ in range(60 - i)]
    kept = reference(column(many), ["x"])["features"]["x"]
    assert kept["values"] == [f"v{i}" for i in range(20)]
    assert kept["counts"][20:] == [sum(60 - i for i in range(20, 50)), 0]


def test_booleans_integers_and_infinities():
    assert moved(np.array([True, False] * 100), np.array([True] * 100)).status == "alarm"
    assert moved(pd.array([1, 2, None] * 50), pd.array([1, 2, None] * 50)).psi == 0
    rng = np.random.default_rng(11)
    before = np.append(rng.normal(size=500), [np.inf, -np.inf])
    assert moved(before, before).unknown == pytest.approx(2 / 502)


def test_nothing_known_before_or_now():
    assert moved([np.nan] * 50, [np.nan] * 80).status == "ok"
    assert moved([np.nan] * 50, np.arange(80.0)).status == "alarm"
    gone = moved(np.arange(80.0), [np.nan] * 50)
    assert (gone.status, gone.median, gone.unknown) == ("alarm", None, 1.0)


# ------------------------------------------------------------------ the report


def world(shift):
    rng = np.random.default_rng(12)
    n = 1_500
    return pd.DataFrame(
        {
            "calm": rng.normal(size=n),
            "creeps": rng.normal(0.4 * shift, 1, n),
            "runs": rng.normal(2 * shift, 1, n),
        }
    )


def test_the_report_puts_the_worst_first_in_plain_words():
    before, now = world(0), world(1)
    kept = reference(before, list(before), scores=np.linspace(0, 1, 999))
    report = drift(kept, now, scores=np.linspace(0.5, 1, 777))
    assert [(d.name, d.status) for d in report.features] == [
        ("runs", "alarm"),
        ("creeps", "watch"),
        ("calm", "ok"),
    ]
    assert report.status == "alarm"
    assert report.named("alarm") == ("score", "runs")
    lines = report.lines()
    assert lines[0] == (
        "1,500 rows now against 1,500 at training: 1 of 3 features in alarm, 1 to watch"
    )
    assert lines[1].startswith("score: alarm; ")
    assert lines[2].startswith("runs: alarm; above ")
    assert "median -0.0" in lines[2] or "median 0.0" in lines[2]
    assert report.lines(most=1)[-1] == "and 1 more"
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["status"] == "alarm"


def test_limits_are_kept():
    before, now = world(0), world(1)
    strict = drift(reference(before, ["creeps"]), now, limits=DriftLimits(psi_alarm=0.12))
    lax = drift(reference(before, ["creeps"]), now, limits=DriftLimits(psi_watch=0.2))
    unsure = drift(reference(before, ["creeps"]), now, limits=DriftLimits(alpha=0))
    assert (strict.status, lax.status, unsure.status) == ("alarm", "ok", "ok")


def test_no_score_now_or_then_is_no_score():
    before = world(0)
    assert drift(reference(before, ["calm"]), before, scores=np.ones(5)).score is None
    assert drift(reference(before, ["calm"], scores=np.ones(5)), before).score is None


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: reference(f, ["clam"]), DataError, 'lack the column "clam".*"calm"'),
        (lambda f: reference(f[:0], ["calm"]), DataError, "no rows"),
        (lambda f: reference(f, ["calm"], bins=1), UsageError, "at least 2; got 1"),
        (lambda f: reference(f, ["calm"], scores=[[1.0]]), DataError, "wrong shape"),
        (lambda f: drift(reference(f, ["calm"]), f[["runs"]]), DataError, 'column "calm"'),
        (lambda f: drift(reference(f, ["calm"]), f[:0]), DataError, "no rows"),
        (lambda f: drift({"rows": 3}, f), ArtifactError, "cannot be read.*Train the model again"),
        (
            lambda f: drift({**reference(f, ["calm"]), "features": {"calm": {}}}, f),
            ArtifactError,
            "cannot be read",
        ),
    ],
)
def test_misuse_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call(world(0))


# ------------------------------------------------------------------ the base rate


def test_base_rates_by_hand():
    (found,) = base_rate_drift((50, 1_000), {"march": (90, 1_000)})
    assert found.odds_ratio == pytest.approx((90.5 / 910.5) / (50.5 / 950.5))
    assert found.p_value == pytest.approx(
        stats.fisher_exact([[90, 910], [50, 950]]).pvalue, rel=1e-12
    )
    half = 1.959963984540054 * np.sqrt(1 / 90.5 + 1 / 910.5 + 1 / 50.5 + 1 / 950.5)
    assert np.log([found.low, found.high]) == pytest.approx(
        np.log(found.odds_ratio) + np.array([-half, half])
    )
    assert found.status == "alarm"
    assert str(found).startswith("march: alarm; base rate 5.0% before, 9.0% now in 1,000 rows")


def test_base_rate_alarms_need_size_and_certainty():
    found = base_rate_drift(
        (50_000, 1_000_000),
        {"trifle": (51_000, 1_000_000), "few": (1, 10), "gone": (0, 500), "drops": (30, 1_000)},
    )
    status = {f.block: f.status for f in found}
    assert status == {"trifle": "ok", "few": "ok", "gone": "alarm", "drops": "alarm"}
    assert found[0].q_value < 0.01


@QUICK
@given(st.integers(0, 300), st.integers(0, 200))
def test_either_outcome_tells_the_same_base_rate_story(a, b):
    (one,) = base_rate_drift((a, 300), {"now": (b, 200)})
    (other,) = base_rate_drift((300 - a, 300), {"now": (200 - b, 200)})
    assert one.status == other.status
    assert one.p_value == pytest.approx(other.p_value, rel=1e-6)
    assert one.odds_ratio == pytest.approx(1 / other.odds_ratio)


def test_blocks_are_held_against_all_rows_before_them():
    y = [0, 1, 0, 0, 1, 1, 1, 0]
    found = rates_over_time(y, ["a", "a", "b", "b", "b", "a", "a", "a"])
    assert [f.block for f in found] == ["b", "a"]
    assert [(f.rows_reference, f.rows) for f in found] == [(2, 3), (5, 3)]
    again = rates_over_time(y, ["a", "b", "b", "a", "a", "b", "b", "b"])
    assert [f.block for f in again] == ["b", "a", "b (2)"]
    assert rates_over_time([0, 1], ["a", "a"]) == ()


@pytest.mark.parametrize(
    "call",
    [
        lambda: base_rate_drift((5, 3), {"a": (1, 2)}),
        lambda: base_rate_drift((1, 3), {"a": (0, 0)}),
        lambda: rates_over_time([0, 2], ["a", "b"]),
        lambda: rates_over_time([0, 1], ["a"]),
        lambda: rates_over_time([], []),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(DataError, match="cannot be used"):
        call()


# ------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def bank():
    if not BANK.exists():
        pytest.skip(f"{BANK} is absent: the UCI bank data are not part of the project")
    return pd.read_parquet(BANK)


def test_bank_alarms_in_the_months_where_the_base_rate_moves(bank):
    found = rates_over_time((bank["y"] == "yes").astype(int), bank["month"].tolist())
    status = {f.block: f.status for f in found}
    # .031 in May, then .043, .061, .052, .627, .053, one of ten in December, .447, .164.
    assert status == {
        "jun": "watch",
        "jul": "alarm",
        "aug": "ok",
        "oct": "alarm",
        "nov": "ok",
        "dec": "ok",
        "mar": "alarm",
        "apr": "alarm",
    }


def test_bank_features_that_move_by_month_are_named_and_the_others_are_not(bank):
    steady = ["age", "job", "marital", "education", "day_of_week", "loan", "campaign"]
    economy = ["emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m", "nr.employed"]
    may = bank[: (bank["month"] != "may").idxmax()]
    report = drift(reference(may, [*steady, *economy]), bank[bank["month"] == "jun"])
    assert set(report.named("alarm")) == set(economy)
    assert all(d.psi > 1 for d in report.features[:5])
    halves = np.random.default_rng(0).permutation(len(may)) % 2 == 0
    still = drift(reference(may[halves], [*steady, *economy]), may[~halves])
    assert still.status == "ok"
