"""Comparisons against independent computation, and what they say in words."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shelf
import small_models as small
from rich.console import Console
from shelf import Shelf
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
)

from nextbest.errors import RegistryError
from nextbest.learn import compare_words as words
from nextbest.learn import evidence
from nextbest.learn.compare import BASELINE, Comparison, Pair, SegmentPair, compare
from nextbest.learn.compare import gather as gather_slowly
from nextbest.learn.compare_table import tables
from nextbest.learn.metrics import Metric
from nextbest.learn.paired import Difference
from nextbest.learn.registry import Baseline, Registry

FRAME = shelf.rows(900, per_customer=2)
GOOD, FAIR, POOR = (
    shelf.scored(FRAME, noise, seed=seed) for noise, seed in ((0.2, 1), (1, 2), (4, 3))
)


def gather(kept, name, versions=None):
    return gather_slowly(kept, name, versions, resamples=200)


def facts_of(kept, versions=None):
    return gather(kept, "churn", versions).to_dict()


@pytest.fixture(scope="module")
def two():
    kept = Shelf()
    kept.add(FRAME, FAIR, POOR, aliases=["champion"], n_train=4_000, features=("a", "b"),
             params={"C": "0.1", "calibration_log_loss": "{1}"})  # fmt: skip
    kept.add(FRAME, GOOD, POOR, features=("a", "c"), snapshot="s2", commit="fedcba9876",
             params={"C": "0.3", "depth": "7", "calibration_log_loss": "{2}"},
             libraries={"numpy": "2.1"})  # fmt: skip
    return kept


@pytest.fixture(scope="module")
def found(two):
    return gather(two, "churn")


def entry(facts, of, to):
    return next(d for d in facts["differences"] if (d["of"], d["to"]) == (of, to))


# ------------------------------------------------------------------ the figures


def test_the_shape_that_others_rely_on(found):
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["model"] == "churn" and facts["primary"] == "auc" and facts["reference"] == 1
    assert [v["version"] for v in facts["versions"]] == [1, 2]
    assert facts["versions"][0]["aliases"] == ["champion"]
    assert facts["versions"][0]["created_at"] == "2026-01-01T00:00:00+00:00"
    assert facts["versions"][1]["params"]["C"] == "0.3" and facts["versions"][1]["run_id"] == "r2"
    for side in (*facts["versions"], facts["baseline"]):
        for metric in ("auc", "average_precision", "brier", "lift_at_10"):
            assert set(side["metrics"]["test"][metric]) == {"value", "low", "high"}
    assert facts["baseline"]["name"] == "recency"
    assert (facts["n_test"], facts["n_positive"]) == (900, int(FRAME["label"].sum()))
    assert facts["verdict"] == " ".join(t for t in facts["answers"].values() if t)
    assert [(d["of"], d["to"]) for d in facts["differences"]] == [
        (2, 1), (2, "baseline"), (1, "baseline"),
    ]  # fmt: skip
    assert [(s["of"], s["to"]) for s in facts["segments"]] == [(2, 1)]
    assert [(c["of"], c["to"]) for c in facts["changes"]] == [(2, 1)]


@pytest.mark.parametrize(
    ("of", "to", "ours", "theirs"),
    [(2, 1, GOOD, FAIR), (2, BASELINE, GOOD, POOR), (1, BASELINE, FAIR, POOR)],
)
def test_differences_are_those_of_scikit_learn(found, of, to, ours, theirs):
    d = entry(found.to_dict(), of, to)
    y = FRAME["label"]
    for name, of_rows in (
        ("auc", roc_auc_score), ("average_precision", average_precision_score),
        ("brier", brier_score_loss), ("log_loss", log_loss),
    ):  # fmt: skip
        m = d["metrics"][name]
        assert m["of"]["value"] == pytest.approx(of_rows(y, ours))
        assert m["to"]["value"] == pytest.approx(of_rows(y, theirs))
        assert m["value"] == pytest.approx(of_rows(y, ours) - of_rows(y, theirs))
        assert m["low"] <= m["value"] <= m["high"] and m["better"] == "better"
    assert d["rows"]["shared"] == d["rows"]["of"] == d["rows"]["to"] == 900
    assert d["rows"]["customers"] == 450


def test_segments_are_compared_on_their_own_rows(found):
    y = FRAME["label"]
    for s in found.to_dict()["segments"][0]["rows"]:
        if s["dimension"] == "offer type":
            mask = FRAME["offer_type"] == s["name"]
            expected = roc_auc_score(y[mask], GOOD[mask]) - roc_auc_score(y[mask], FAIR[mask])
            assert s["differences"]["auc"]["value"] == pytest.approx(expected)
            assert (s["n"], s["n_positive"]) == (mask.sum(), y[mask].sum())
            assert s["of"]["auc"]["value"] == pytest.approx(roc_auc_score(y[mask], GOOD[mask]))


def test_agreement_counts_the_best_tenth_in_common(found):
    a = found.main.agreement
    tops = [set(np.argsort(-s, kind="stable")[:90]) for s in (GOOD, FAIR)]
    assert (a["top_rows"], a["top_rows_in_common"]) == (90, len(tops[0] & tops[1]))
    ranks = np.corrcoef(pd.Series(GOOD).rank(), pd.Series(FAIR).rank())[0, 1]
    assert a["rank_correlation"] == pytest.approx(ranks)


def test_what_changed(found):
    changes = found.to_dict()["changes"][0]
    assert changes["data"]["snapshot"] == {"before": "s1", "after": "s2"}
    assert changes["data"]["counts"] == {"n_train": {"before": 4_000, "after": 5_000}}
    assert changes["features"] == {"known": True, "added": ["c"], "removed": ["b"]}
    assert changes["parameters"] == {
        "C": {"before": "0.1", "after": "0.3"}, "depth": {"before": None, "after": "7"},
    }  # fmt: skip
    assert changes["libraries"] == {"numpy": {"before": "2.0", "after": "2.1"}}
    assert changes["code"] == {"before": "abcdef0123", "after": "fedcba9876"}


# ------------------------------------------------------------------ which versions, which rows


def test_one_version_is_held_against_its_baseline_also_by_segment(two):
    for wanted in (["champion"], ["1"], [1], [1, "champion"]):
        facts = facts_of(two, wanted)
        assert [v["version"] for v in facts["versions"]] == [1]
        assert facts["reference"] is None and facts["changes"] == []
    assert [(d["of"], d["to"], d["to_name"]) for d in facts["differences"]] == [
        (1, "baseline", "recency")
    ]
    assert len(facts["segments"][0]["rows"]) == 8
    assert facts["verdict"].startswith(
        'Version 1 (the champion) is better than its baseline "recency" by auc.'
    )


def test_the_champion_is_the_reference_wherever_it_stands():
    kept = Shelf()
    for score, aliases in ((FAIR, ()), (GOOD, ["champion"]), (POOR, ())):
        kept.add(FRAME, score, POOR, aliases=aliases, segmented=False)
    found = gather(kept, "churn")
    assert found.reference == 2 and [(p.of, p.to) for p in found.pairs] == [(3, 2), (1, 2)]
    assert found.pairs[1].differences["auc"].better == "worse"
    assert "Version 1 is worse than version 2 (the champion) by auc (-0." in found.verdict
    assert gather(kept, "churn", [3, 1]).reference == 1  # else the oldest


def test_versions_and_models_that_are_not_there(two):
    with pytest.raises(RegistryError, match=r'no version or alias "7".*one of 1, 2'):
        compare(two, "churn", [7])
    with pytest.raises(RegistryError, match="no version was named"):
        compare(two, "churn", [])
    with pytest.raises(RegistryError, match='no model "churn" is registered'):
        compare(Shelf(), "churn")


def test_only_shared_rows_count_where_versions_were_tested_on_others():
    kept = Shelf()
    kept.add(FRAME[:600], FAIR[:600], POOR[:600])
    order = np.random.default_rng(0).permutation(np.arange(200, 900))
    kept.add(FRAME.iloc[order], GOOD[order], POOR[order])
    facts = facts_of(kept)
    d = entry(facts, 2, 1)
    assert d["rows"] == {
        "shared": 400, "of": 700, "to": 600, "positives": int(FRAME["label"][200:600].sum()),
        "customers": 200, "outcomes_changed": 0,
    }  # fmt: skip
    y = FRAME["label"][200:600]
    assert d["metrics"]["auc"]["of"]["value"] == pytest.approx(roc_auc_score(y, GOOD[200:600]))
    assert d["metrics"]["auc"]["to"]["value"] == pytest.approx(roc_auc_score(y, FAIR[200:600]))
    assert "on the 400 test rows in common (of 700 and 600)" in facts["verdict"]


def refusal(second, *, first=None, **settings):
    kept = Shelf()
    kept.add(FRAME, FAIR, POOR, **(first or {}))
    kept.add(second, FAIR[: len(second)], POOR[: len(second)], **settings)
    found = gather(kept, "churn")
    pair = found.pairs[0]
    assert not pair.differences and not pair.segments
    assert f"cannot be compared with version 1: {pair.refused}." in found.verdict
    json.dumps(found.to_dict(), allow_nan=False)
    return pair.refused


def test_a_comparison_is_refused_with_its_reason():
    others = FRAME.assign(customer_id=lambda d: "x" + d["customer_id"])
    assert refusal(others).startswith("too few test rows in common: only 0 positives")
    assert refusal(FRAME[:40]).startswith("too few test rows in common: only ")
    assert refusal(FRAME.drop(columns="offer_id").drop_duplicates("customer_id")) == (
        "their test rows are of different kinds"
    )
    assert refusal(FRAME.assign(customer_id="c", offer_id="o")) == (
        "the test rows of version 2 are not unique"
    )
    assert refusal(FRAME, params={"label": "buys"}) == (
        "they answer different questions: label is the customer leaves in version 1 and buys in "
        "version 2"
    )
    assert refusal(FRAME, tested=False) == "the run of version 2 keeps no test scores"
    assert refusal(FRAME, first={"tested": False}) == "the run of version 1 keeps no test scores"


def test_a_run_without_anything_but_figures_is_still_shown():
    kept = Shelf()
    kept.add(FRAME, FAIR, POOR, tested=False, features=None, commit=None, snapshot=None)
    found = gather(kept, "churn")
    assert "keeps no test scores; train it again" in found.verdict
    assert found.to_dict()["versions"][0]["metrics"]["test"]["auc"]


def test_outcomes_that_later_data_corrected_are_counted_and_the_newer_hold():
    kept = Shelf()
    late = FRAME.copy()
    late.loc[:4, "label"] = 1 - late.loc[:4, "label"]
    kept.add(FRAME, FAIR, POOR)
    kept.add(late, GOOD, POOR)
    d = entry(facts_of(kept), 2, 1)
    assert d["rows"]["outcomes_changed"] == 5
    assert d["metrics"]["auc"]["to"]["value"] == pytest.approx(roc_auc_score(late["label"], FAIR))


def test_equal_scores_differ_by_exactly_nothing():
    kept = Shelf()
    for _ in range(2):
        kept.add(FRAME, FAIR, POOR)
    pair = gather(kept, "churn").main
    for d in (*pair.differences.values(), *(s.differences["auc"] for s in pair.segments)):
        assert (d.difference.value, d.difference.low, d.difference.high) == (0, 0, 0)
        assert d.better == "same"
    assert pair.agreement["same_scores"] and pair.agreement["top_rows_in_common"] == 90


def test_segments_win_and_lose_where_they_were_made_to():
    letters = (FRAME["offer_type"] == "letter").to_numpy()
    kept = Shelf()
    kept.add(FRAME, FAIR, POOR)
    kept.add(FRAME, np.where(letters, GOOD, shelf.scored(FRAME, 6.0, seed=9)), POOR)
    segment = facts_of(kept)["segments"][0]
    assert "offer type letter" in segment["better_for"]
    assert "offer type mail" in segment["worse_for"]


def test_segments_come_from_whichever_run_keeps_them():
    kept = Shelf()
    kept.add(FRAME, FAIR, POOR)
    kept.add(FRAME, GOOD, POOR, segmented=False)
    assert len(gather(kept, "churn").main.segments) == 8


def test_a_run_from_before_features_were_kept_says_not_known():
    kept = Shelf()
    kept.add(FRAME, FAIR, POOR, features=None, snapshot=None, commit=None)
    kept.add(FRAME, GOOD, POOR)
    changes = facts_of(kept)["changes"][0]
    assert changes["features"] == {"known": False, "added": [], "removed": []}
    assert changes["data"]["snapshot"] is None and changes["data"]["known"] is False
    assert changes["code"] is None


# ------------------------------------------------------------------ amounts, future value


def test_models_of_value_are_judged_by_their_error():
    rng = np.random.default_rng(0)
    frame = FRAME.drop(columns="offer_id").drop_duplicates("customer_id").reset_index(drop=True)
    frame["label"] = rng.gamma(2, 50, len(frame))
    near, far = (frame["label"] + rng.normal(0, spread, len(frame)) for spread in (5, 40))
    kept = Shelf()
    for score, half in ((far, 60.0), (near, 9.0)):
        kept.add(frame, score, far * 0.5, kind="clv", low=score - half, high=score + half)
    found = gather(kept, "churn")
    assert found.kind == "clv" and found.primary == "mae"
    d = entry(found.to_dict(), 2, 1)
    y = frame["label"]
    assert d["rows"]["positives"] is None
    assert d["metrics"]["mae"]["value"] == pytest.approx(
        mean_absolute_error(y, near) - mean_absolute_error(y, far)
    )
    assert d["metrics"]["mae"]["better"] == "better" and d["metrics"]["mae"]["gain"]["low"] > 0
    coverage = d["metrics"]["interval_coverage"]
    assert coverage["of"]["value"] == pytest.approx((np.abs(y - near) <= 9).mean())
    assert coverage["to"]["value"] == pytest.approx((np.abs(y - far) <= 60).mean())
    assert "interval_coverage" not in entry(found.to_dict(), 2, BASELINE)["metrics"]
    assert found.verdict.startswith("Version 2 is better than version 1 by mae. Its mae is ")


def test_another_span_of_evaluation_is_another_question():
    assert "evaluation_days is 90 in version 1 and 180 in version 2" in refusal(
        FRAME, first={"params": {"evaluation_days": "90"}}, params={"evaluation_days": "180"}
    )


def test_value_held_by_the_top_is_compared_where_it_is_known():
    frame = FRAME.assign(future_value=np.random.default_rng(0).gamma(1, 10, 900) * FRAME["label"])
    kept = Shelf()
    kept.add(frame, FAIR, POOR)
    kept.add(frame, GOOD, POOR)
    m = entry(facts_of(kept), 2, 1)["metrics"]["value_capture"]
    k = int(frame["label"].sum())
    held = [frame["future_value"].to_numpy()[np.argsort(-s)[:k]].sum() for s in (GOOD, FAIR)]
    total = frame["future_value"].sum()
    assert m["of"]["value"] == pytest.approx(held[0] / total)
    assert m["value"] == pytest.approx((held[0] - held[1]) / total)


# ------------------------------------------------------------------ in words


def difference(value, better, *, half=0.01, less=False):
    m = Metric(value, value - half, value + half)
    gain = Metric(-value, -value - half, -value + half) if less else m
    ahead = {"better": 0.999, "worse": 0.002, "same": 0.5}.get(better, 0.6)
    return Difference(m, gain, ahead, better)


def pair(better, value=0.02, *, metric="auc", base=0.8, segments=(), changes=None, **settings):
    figures = {metric: Metric(base + value, 0, 0), "lift_at_10": Metric(4.2, 4, 5)}
    made = Pair(
        of=2, to=1, kind="probability", primary=metric, to_champion=True,
        n_of=1_653, n_to=1_653, n_shared=1_653, n_positive=266, resamples=2_000,
        of_figures=figures,
        to_figures={metric: Metric(base, 0, 0), "lift_at_10": Metric(4.0, 4, 5)},
        differences={
            metric: difference(value, better, less=metric == "mae"),
            "lift_at_10": difference(0.2, "unclear"),
        },
        segments=tuple(segments), changes=changes,
    )  # fmt: skip
    return replace(made, **settings)


def said(made, question):
    versions = (shelf.Shelf(),)  # not looked at by the sentences about one pair
    found = Comparison("churn", made.kind, made.primary, versions, 1, (made,), (), {})
    return words.answers(found)[question]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (pair("better"), "Version 2 is better than version 1 (the champion) by auc."),
        (pair("worse", -0.02), "Version 2 is worse than version 1 (the champion) by auc."),
        (
            pair("unclear"),
            "Version 2 is not clearly better or worse than version 1 (the champion) by auc.",
        ),
        (
            pair("better", 0.001),
            "Version 2 is better than version 1 (the champion) by auc, though by less than 1% of "
            "what is left to gain.",
        ),
        (
            pair("worse", 2.0, metric="mae", base=355.0, of_champion=True, to_champion=False),
            "Version 2 (the champion) is worse than version 1 by mae, though by less than 1% of "
            "it.",
        ),
        (
            pair("same", 0.0, agreement={"same_scores": True}),
            "Version 2 gives every row the same score as version 1 (the champion).",
        ),
        (
            pair("same", 0.0, agreement={"same_scores": False}),
            "Version 2 has the same auc as version 1 (the champion), though not the same scores.",
        ),
        (
            pair("better", refused="their test rows are of different kinds", differences={}),
            "Version 2 cannot be compared with version 1 (the champion): their test rows are of "
            "different kinds.",
        ),
        (
            pair("better", differences={}),
            "Version 2 and version 1 (the champion) share no figure that decides, so they cannot "
            "be compared.",
        ),
        (
            pair("better", to=BASELINE, to_name="recency", to_champion=False),
            'Version 2 is better than its baseline "recency" by auc.',
        ),
    ],
)
def test_is_it_better(made, sentence):
    assert said(made, "better") == sentence


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            pair("better"),
            "Its auc is 0.8200 against 0.8000 on the same 1,653 test rows: +0.0200, 95% interval "
            "+0.0100 to +0.0300. Among its best tenth of rows it finds 112 of the 266 positives, "
            "the other 106.",
        ),
        (
            pair("unclear", n_positive=None, n_of=2_000),
            "Its auc is 0.8200 against 0.8000 on the 1,653 test rows in common (of 2,000 and "
            "1,653): +0.0200, 95% interval +0.0100 to +0.0300.",
        ),
        (
            pair("same", 0.0, n_positive=None),
            "Its auc is 0.8000 on the same 1,653 test rows.",
        ),
    ],
)  # fmt: skip
def test_by_how_much(made, sentence):
    assert said(made, "how_much") == sentence


@pytest.mark.parametrize(
    ("main", "others", "sentence"),
    [
        ("better", {"brier": "better"}, "Better too by brier."),
        ("better", {"brier": "worse"}, "Worse, though, by brier."),
        ("worse", {"brier": "better", "ece": "better"}, "Better, though, by brier, ece."),
        ("unclear", {"brier": "worse"}, "Worse by brier."),
        ("better", {"brier": "better", "ece": "worse"}, "Better by brier. Worse by ece."),
        ("better", {"brier": "unclear"}, ""),
    ],
)
def test_the_other_figures(main, others, sentence):
    made = pair(main, n_positive=None)
    more = {name: difference(0.1, better) for name, better in others.items()}
    made = replace(made, differences={"auc": made.differences["auc"], **more})
    assert said(made, "how_much").partition("+0.0300.")[2].strip() == sentence


@pytest.mark.parametrize(
    ("better", "sentence"),
    [
        (
            "better",
            "Hardly chance: with the customers redrawn 2,000 times its auc came out ahead 1,998 "
            "times.",
        ),
        (
            "worse",
            "Hardly chance: with the customers redrawn 2,000 times its auc came out behind 1,996 "
            "times.",
        ),
        (
            "unclear",
            "It may be chance: with the customers redrawn 2,000 times its auc came out ahead 1,200 "
            "times.",
        ),
        ("same", ""),
    ],
)
def test_is_that_chance(better, sentence):
    assert said(pair(better), "chance") == sentence


def segment(name, better=None, value=0.03):
    known = {"auc": difference(value, better)} if better else {}
    return SegmentPair("tenure", name, 100, 10, 0.1, "" if better else "only 7", {}, {}, known)


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        (
            [segment("new", "better"), segment("old", "worse", -0.05), segment("mid", "unclear")],
            "Better for tenure new by 0.0300; worse for tenure old by 0.0500.",
        ),
        (
            [segment("new", "worse", -0.05), segment("old")],
            "Better for no segment beyond chance; worse for tenure new by 0.0500. 1 segment has "
            "too few rows to say.",
        ),
        (
            [segment("new", "unclear"), segment("mid", "unclear"), segment("a"), segment("b")],
            "No segment gains or loses beyond chance (2 judged together). 2 segments have too few "
            "rows to say.",
        ),
        ([segment("new")], "No segment has enough rows to say for whom."),
        ([], ""),
        (
            [segment(f"s{i}", "better") for i in range(9)],
            "Better for "
            + ", ".join(f"tenure s{i} by 0.0300" for i in range(6))
            + " and 3 more; worse for no segment beyond chance.",
        ),
    ],
)
def test_for_whom(segments, sentence):
    assert said(pair("better", segments=segments), "for_whom") == sentence


NOTHING = {
    "data": {"known": True, "snapshot": None, "counts": {}},
    "features": {"known": True, "added": [], "removed": []},
    "parameters": {}, "learned": {}, "libraries": {}, "code": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Nothing changed in data, features, parameters, libraries or code."),
        (
            {"features": {"known": False, "added": [], "removed": []}},
            "No change is on record; which features the older run read is not known.",
        ),
        (
            {
                "data": {
                    "known": True,
                    "snapshot": {"before": "x", "after": "y"},
                    "counts": {"n_train": {"before": 1_000, "after": 2_000}},
                },
                "features": {"known": True, "added": ["a", "b"], "removed": ["c"]},
                "parameters": {"C": {"before": "0.1", "after": "0.3"},
                               "depth": {"before": None, "after": "7"},
                               "folds": {"before": "4", "after": None}},
                "libraries": {"numpy": {"before": "2.0", "after": "2.1"}},
                "code": {"before": "abcdef0123", "after": "fedcba9876"},
            },
            "Changed since version 1 (the champion): the data (1,000 training rows before, 2,000 "
            "now); 2 features added (a, b); 1 feature removed (c); parameters C 0.1 to 0.3, depth "
            "now 7, folds no longer 4; numpy 2.0 to 2.1; the project's code abcdef0 to fedcba9.",
        ),
        (
            {"parameters": {"estimator": {"before": "A", "after": "B"},
                            "estimator.x": {"before": "1", "after": None}}},
            "Changed since version 1 (the champion): parameters estimator A to B.",
        ),
        (
            {"data": {"known": True, "snapshot": None,
                      "counts": {"n_test": {"before": 1, "after": 2}}}},
            "Changed since version 1 (the champion): the rows drawn from the same data.",
        ),
    ],
)  # fmt: skip
def test_what_changed_in_words(changes, sentence):
    assert said(pair("better", changes={**NOTHING, **changes}), "changed") == sentence


@pytest.mark.parametrize(
    ("better", "sentence"),
    [
        ("better", 'It beats its baseline "recency" (auc +0.0200, 95% interval +0.0100 to '),
        ("unclear", 'It does not clearly beat its baseline "recency" (auc +0.0200, 95%'),
        ("worse", 'It is worse than its baseline "recency" (auc'),
        ("same", 'It is no better than its baseline "recency" (auc'),
    ],
)  # fmt: skip
def test_and_the_baseline(better, sentence):
    own = pair(better, to=BASELINE, to_name="recency", to_champion=False)
    found = Comparison("churn", "probability", "auc", (), 1, (pair("unclear"),), (own,), {})
    assert words.answers(found)["baseline"].startswith(sentence)


def test_versions_without_any_figure_cannot_be_compared():
    kept = Shelf()
    kept.add(FRAME, FAIR, POOR)
    kept.kept[0] = replace(kept.kept[0], metrics={}, baseline=None)
    assert gather(kept, "churn").verdict == (
        "These versions share no figure on the test rows, so they cannot be compared."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0000"), (0.8458, "0.8458"), (-0.00067123, "-0.00067"), (0.000032, "0.000032"),
     (4.2111, "4.211"), (35.61234, "35.61"), (355.61, "355.6"), (12_345.6, "12,346"),
     (-1.5, "-1.500"), (9.99999, "10.000")],
)  # fmt: skip
def test_numbers_as_a_person_reads_them(value, text):
    assert words.number(value) == text
    assert words.signed(value) == ("0" if value == 0 else ("+" if value > 0 else "") + text)


# ------------------------------------------------------------------ the terminal


def printed(comparison, width=80):
    out = io.StringIO()
    for part in tables(comparison):
        Console(file=out, width=width).print(part)
    return out.getvalue()


def folded(text, words_):
    """Whether the first column of the table says this, over several lines."""
    first = (line.partition("│")[0].strip() for line in text.splitlines())
    return words_.replace(" ", "") in "".join(first).replace(" ", "")


def test_the_terminal_shows_differences_and_segments_in_eighty_columns(found):
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "version 2 less version 1, on 900 shared rows" in text
    auc = found.main.differences["auc"].difference
    value, low, high = (words.signed(v) for v in (auc.value, auc.low, auc.high))
    assert f"{value} │ {low} to {high}" in text
    assert "For whom: auc, version 2 less version 1" in text
    assert "too few" not in text
    assert folded(text, "offer type letter") and folded(text, "tenure longest (over 599 days)")


def test_the_terminal_keeps_its_columns_where_a_segment_has_too_few_rows():
    kept = Shelf()
    few = FRAME.assign(offer_type=["rare"] * 20 + ["mail"] * 880)
    kept.add(few, FAIR, POOR)
    text = printed(gather(kept, "churn"))
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.endswith("too few "))
    assert [c.strip() for c in row.split("│")[2:]] == ["–", "–", "too few"]


def test_the_terminal_lists_more_than_two_versions_by_the_figure_that_decides():
    kept = Shelf()
    for score in (FAIR, GOOD, FAIR):
        kept.add(FRAME, score, POOR, segmented=False)
    kept.add(FRAME[:40], FAIR[:40], POOR[:40])
    text = printed(gather(kept, "churn"))
    assert "auc of every version less version 1" in text
    assert folded(text, "4: too few test rows in common: only")
    assert "the same in every redraw" in text and "not compared" in text


# ------------------------------------------------------------------ a real registry


def test_a_real_registry(tmp_path, monkeypatch, empty_registry):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "state").mkdir()
    shutil.copy(empty_registry, tmp_path / "state")
    registry = Registry(None, tmp_path / "state")
    stored = small.save_blend(tmp_path / "m")
    rows = small.customers().assign(customer_id=[f"c{i}" for i in range(400)])
    rows = rows.assign(
        as_of=pd.Timestamp("2026-01-01"), tenure_days=np.arange(400.0),
        offer_type=np.repeat(["Früh (neu)", "b"], 200),
    )  # fmt: skip
    scores = rows[["customer_id", "as_of"]].assign(
        label=small.outcome().astype(float), score=stored.score(small.raw()), baseline=0.4
    )
    kept = evidence.gather(stored, rows, scores, ())
    y = scores["label"]
    for metrics in ({"test": {"auc": Metric(0.8, 0.7, 0.9)}, **kept.metrics},) * 2:
        run_id = registry.log_run(
            "churn", artifact_dir=tmp_path / "m", params={"a": 1}, metrics=metrics,
            baseline=Baseline("recency", {"test": {"auc": Metric(0.5, 0.5, 0.5)}}),
            counts={"n_test": 400, "n_positive": int(y.sum())}, files=kept.files(),
        )  # fmt: skip
        registry.register("churn", run_id)
    found = json.loads(json.dumps(compare(registry, "churn"), allow_nan=False))
    first = found["versions"][0]
    assert first["metrics"]["test"]["auc"] == {"value": 0.8, "low": 0.7, "high": 0.9}
    assert first["metrics"]["segment/offer_type/b"]["auc"]["value"] == pytest.approx(
        roc_auc_score(y[200:], scores["score"][200:])
    )
    assert first["params"] == {"a": "1"}
    assert "Version 2 gives every row the same score as version 1." in found["verdict"]
    assert entry(found, 2, BASELINE)["metrics"]["auc"]["value"] == pytest.approx(
        roc_auc_score(y, scores["score"]) - 0.5
    )
    with pytest.raises(RegistryError, match='no version or alias "9"'):
        compare(registry, "churn", [9])
