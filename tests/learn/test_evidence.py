"""What a run keeps: effects, curves, versions, pictures and the model card."""

import json
import platform
from datetime import datetime
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import small_models as small
from sklearn.metrics import precision_recall_curve, roc_curve

from nextbest.data import snapshots
from nextbest.data.features import Feature
from nextbest.learn import evidence, report, train
from nextbest.learn.gates import GateResult
from nextbest.learn.metrics import Metric

KNOWN = [
    Feature(n, f"meaning of {n}", "unit", "source", "group", "customer", "number")
    for n in ("spend", "age", "unused")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.save_blend(tmp_path_factory.mktemp("blend") / "m")


@pytest.fixture(scope="module")
def kept(model):
    test = small.customers().assign(
        customer_id=np.arange(400).astype(str), as_of=pd.Timestamp("2026-01-01"),
        tenure_days=np.arange(400.0), offer_type=np.repeat(["a|b", "rare"], [380, 20]),
        future_value=2.0,
    )  # fmt: skip
    scores = test[["customer_id", "as_of"]].assign(
        label=small.outcome().astype(float),
        score=model.score(small.raw()),
        baseline=np.random.default_rng(0).random(400),
    )
    return evidence.gather(model, test, scores, KNOWN, seed=3)


def test_effects_are_the_models_own_and_point_the_way_they_work(model, kept):
    rows = small.raw().sample(400, random_state=3)  # fewer than 500: all of them
    matrix = model.effects(model.encode(rows))
    by_name = {e.feature: e for e in kept.effects}
    for i, name in enumerate(model.columns):
        assert by_name[name].mean == pytest.approx(np.abs(matrix[:, i]).mean())
    means = [e.mean for e in kept.effects]
    assert means == sorted(means, reverse=True)
    assert kept.effects[0].feature == "spend"
    assert by_name["spend"].direction == "more raises the score"
    assert by_name["spend"].meaning == "meaning of spend"
    assert " raises it most, " in by_name["tier"].direction
    summary = by_name["spend"].to_dict()
    assert summary["low"] < 0 < summary["high"]


def test_the_other_direction_and_none():
    x = np.arange(50.0)
    assert evidence._direction(x, -x) == "more lowers the score"
    assert evidence._direction(x, np.abs(x - 25)) == "either way"
    assert evidence._direction(np.ones(50), x) == "one value only"
    assert evidence._direction(np.full(50, np.nan), x) == "one value only"


def test_rows_keep_segments_and_value_but_not_what_they_hold_already(kept):
    assert {"segment.tenure", "segment.offer type", "future_value"} <= set(kept.rows)
    scores = kept.rows[["customer_id", "label"]].assign(score=0.1, baseline=0.1)
    again = evidence.test_rows(scores, pd.DataFrame({"future_value": scores["label"]}))
    assert "future_value" not in again


def test_curves_agree_with_scikit_learn(kept):
    y, score = kept.rows["label"], kept.rows["score"]
    ours = kept.curves["model"]
    false, true, _ = roc_curve(y, score, drop_intermediate=False)
    at = ours["roc"]["false_positive_rate"]
    points = set(zip(np.round(false, 9), np.round(true, 9), strict=True))
    assert {
        (round(x, 9), round(t, 9))
        for x, t in zip(at, ours["roc"]["true_positive_rate"], strict=True)
    } <= points
    precision, recall, _ = precision_recall_curve(y, score)
    theirs = set(zip(np.round(recall, 9), np.round(precision, 9), strict=True))
    for r, p in zip(ours["pr"]["recall"], ours["pr"]["precision"], strict=True):
        assert (round(r, 9), round(p, 9)) in theirs


def test_curves_of_amounts():
    rng = np.random.default_rng(0)
    actual, predicted = rng.gamma(1, 10, 1_000), rng.gamma(1, 10, 1_000)
    found = evidence.value_curves(actual, predicted)
    share, captured = found["gain"]["share"], found["gain"]["captured"]
    assert (share[0], captured[0], share[-1], captured[-1]) == (0, 0, 1, pytest.approx(1))
    order = np.argsort(-predicted)
    for s, c in zip(share[1:], captured[1:], strict=True):
        assert c == pytest.approx(actual[order[: round(s * 1_000)]].sum() / actual.sum())
    tenths = found["tenths"]
    assert tenths["rows"] == [100.0] * 10
    assert tenths["actual"][-1] == pytest.approx(actual[order[:100]].mean())
    assert tenths["predicted"] == sorted(tenths["predicted"])
    assert evidence.value_curves(np.zeros(40), predicted[:40])["gain"]["captured"][-1] == 0


def test_surroundings_hold_versions_and_no_names_or_paths():
    found = evidence.environment()
    assert found["python"] == platform.python_version()
    for name in ("nextbest", "numpy", "scikit-learn", "lightgbm", "mlflow"):
        assert found["libraries"][name] == version(name)
    text = json.dumps(found)
    assert "/" not in text and "\\" not in text and platform.node() not in text


def test_features_are_what_the_model_reads_in_order(kept):
    assert [f["name"] for f in kept.features] == ["spend", "age", "tier", "member"]
    assert kept.features[0] == {
        "name": "spend", "meaning": "meaning of spend", "unit": "unit", "source": "source",
        "group": "group",
    }  # fmt: skip
    assert kept.features[2] == {"name": "tier"}


def test_files_and_pictures(kept):
    files = kept.files()
    assert set(files) == {
        "test_scores.parquet", "segments.json", "curves.json", "effects.json", "features.json",
        "environment.json",
    }  # fmt: skip
    for name, content in files.items():
        if name.endswith(".json"):
            json.loads(content, parse_constant=pytest.fail)
    assert set(kept.metrics) == {
        "segment/tenure/shortest", "segment/tenure/middle", "segment/tenure/longest",
        "segment/offer_type/a_b",
    }  # fmt: skip
    pictures = report.pictures(kept)
    assert set(pictures) == {
        f"plots/{n}.png" for n in ("roc", "pr", "gain", "lift", "calibration", "effects")
    }
    assert all(p.startswith(b"\x89PNG") and len(p) > 5_000 for p in pictures.values())


def test_pictures_and_parameters_of_a_value_model():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"customer_id": np.arange(90), "label": rng.gamma(1, 9, 90), "as_of": 0,
         "score": rng.gamma(1, 9, 90), "baseline": rng.gamma(1, 9, 90)}
    )  # fmt: skip
    part = type("BetaGeoNBD", (), {"parameters_": {"r": 0.25}})()
    value_model = SimpleNamespace(purchase_model_=part, spend_model_=part)
    model = SimpleNamespace(kind="clv", columns=("T",), value_model=value_model)
    kept = evidence.gather(model, frame, frame, ())
    assert set(report.pictures(kept)) == {"plots/gain.png", "plots/value.png"}
    assert kept.learned == {"BetaGeoNBD.r": 0.25} and kept.effects == ()


def result(**changes):
    figure = {"auc": Metric(0.8, 0.7, 0.9), "brier": Metric(0.1, 0.09, 0.11)}
    facts = {
        "model": SimpleNamespace(name="churn", label=SimpleNamespace(meaning="the customer left")),
        "plan": SimpleNamespace(cut=datetime(2026, 1, 1)), "metrics": figure, "primary": "auc",
        "baseline_name": "recency | days", "baseline_metrics": {"auc": Metric(0.6, 0.5, 0.7)},
        "verdict": "beats its baseline", "left_out": {"immature": 7}, "unavailable": ("x",),
        "counts": {"n_train": 1_000, "n_train_positive": 100, "n_test": 400, "n_positive": 200,
                   "n_in_gap": 5},
        "gates": (GateResult("baseline", False, "too low"),), "notes": ("a note",),
        "tuning": None, "moved": (), "choice": None,
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **changes})


def test_the_model_card_says_what_how_good_for_whom_worse_and_limits(kept):
    card = report.model_card(result(), kept)
    for text in (
        "# churn\n", "**What it predicts.** the customer left.", "The model beats its baseline.",
        "1,000 training rows, 400 test rows (200 positive)", "Test slice from 2026-01-01",
        "- left out: 7 immature", "| auc | 0.8000 | 0.7000 to 0.9000 | 0.6000 |",
        "| brier | 0.1000 | 0.0900 to 0.1100 | – |", "baseline: recency \\| days |",
        "- FAILED baseline: too low", "- a note", "## For whom", "| tenure shortest (up to 133",
        "offer type a\\|b", "- Worse than the baseline for: no segment.",
        "| `spend` | meaning of spend |", "more raises the score",
        "Too few rows to say how good it is for: offer type rare (only ",
        "as of 2026-01-01.", "more common in the test slice (50.0%) than in training (10.0%)",
        "not what a contact changes",
    ):  # fmt: skip
        assert text in card, text
    tables = [line for line in card.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in tables}
    assert widths == {5, 8}  # no cell breaks a row


def test_a_card_without_segments_or_effects_says_so(kept):
    bare = evidence.Evidence("clv", kept.rows, (), {}, (), {"BetaGeoNBD.r": 0.25}, ())
    card = report.model_card(result(), bare)
    assert "so nothing is known per segment" in card
    assert "| BetaGeoNBD.r | 0.25 |" in card and "## What moves the score" not in card


def test_value_is_held_against_models_that_look_for_it():
    y, value = np.array([1.0, 0, 0]), pd.DataFrame({"future_value": [9.0, 1, 2]})
    assert train._value_sought(value, y).tolist() == [9, 1, 2]
    assert train._value_sought(value, 1 - y) is None  # as those who leave
    assert train._value_sought(pd.DataFrame({"x": [1]}), y) is None


def test_columns_for_segments_are_fetched_for_models_that_do_not_read_them(monkeypatch):
    asked = []

    def build(history, label, groups, as_of):
        asked.append([g.name for g in groups])
        keys = {"customer_id": ["b", "a"], "as_of": [1, 1]}
        return SimpleNamespace(frame=pd.DataFrame({**keys, "tenure_days": [2.0, 9.0], "x": [0, 0]}))

    monkeypatch.setattr(snapshots, "build", build)
    groups = [
        SimpleNamespace(name=n, missing=lambda tables: ()) for n in ("rfm", "totals", "windows")
    ]
    test = pd.DataFrame({"customer_id": ["a", "b", "c"], "as_of": [1, 1, 1], "spend_91d": 1.0})
    model, plan = SimpleNamespace(label=None), SimpleNamespace(test_as_of=())
    found = train._with_segments(test, model, plan, SimpleNamespace(tables={}), groups)
    assert asked == [["totals"]]
    assert found["tenure_days"].tolist()[:2] == [9.0, 2.0] and np.isnan(found["tenure_days"][2])
    assert list(found) == ["customer_id", "as_of", "spend_91d", "tenure_days"]
    again = train._with_segments(found, model, plan, SimpleNamespace(tables={}), groups)
    assert again is found and len(asked) == 1
