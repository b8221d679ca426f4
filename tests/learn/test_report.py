"""What a run shows a reader: pictures that open, and a card whose figures are those of the run."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models as small
from matplotlib.image import imread

from nextbest.data.features import Feature, Unavailable
from nextbest.data.labels import FutureValue, NoPurchase, TopShareOfValue
from nextbest.learn import artifact, evidence
from nextbest.learn.baselines import RunRate, SingleFeature
from nextbest.learn.clv import BetaGeoNBD, CustomerLifetimeValue, GammaGamma
from nextbest.learn.estimators import FeatureEncoder, linear
from nextbest.learn.evidence import Evidence
from nextbest.learn.gates import GateResult
from nextbest.learn.metrics import Metric
from nextbest.learn.model import Model, Plan
from nextbest.learn.report import model_card, pictures
from nextbest.learn.train import TrainResult

CUT = datetime(2024, 5, 1, 5)


def feature(name: str) -> Feature:
    return Feature(name, f"what {name} | means", "unit", "transactions", "g", "customer", "number")


@pytest.fixture(scope="module")
def probability(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    model = small.save_blend(tmp_path_factory.mktemp("blend") / "m")
    n = len(small.raw())
    test = small.raw().assign(
        tenure_days=np.arange(n, dtype=float),
        spend_91d=np.linspace(0, 90, n),
        offer_type=np.where(np.arange(n) < 5, "rare | odd", "usual"),
    )
    scores = pd.DataFrame(
        {"customer_id": [f"c{i}" for i in range(n)], "as_of": pd.Timestamp(CUT),
         "label": small.outcome().astype(float), "score": model.score(small.raw()),
         "baseline": np.linspace(0.1, 0.9, n)}
    )  # fmt: skip
    return evidence.gather(model, test, scores, [feature(c) for c in small.raw()])


@lru_cache(maxsize=1)
def lifetime_rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n, frequency = 300, rng.poisson(2, 300)
    T = rng.uniform(200, 360, n)
    repeat = frequency > 0
    return pd.DataFrame(
        {"frequency": frequency.astype(float),
         "recency": np.where(repeat, T * rng.uniform(0.2, 0.95, n), 0.0), "T": T,
         "monetary_value": np.where(repeat, rng.gamma(6, 5, n), 0.0)}
    )  # fmt: skip


@pytest.fixture(scope="module")
def value(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    rfm = lifetime_rows()
    fitted = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), horizon_days=90).fit(rfm)
    model = artifact.save(
        tmp_path_factory.mktemp("clv") / "m", name="clv", kind="clv", estimator=fitted,
        encoder=FeatureEncoder().fit(rfm), golden_rows=rfm.head(5),
    )  # fmt: skip
    predicted = model.scores(rfm)["clv"]
    scores = pd.DataFrame(
        {"customer_id": [f"c{i}" for i in range(len(rfm))], "as_of": pd.Timestamp(CUT),
         "label": np.random.default_rng(1).poisson(np.maximum(predicted, 0)).astype(float),
         "score": predicted, "baseline": rfm.frequency * 3}
    )  # fmt: skip
    return evidence.gather(model, rfm, scores, [])


def result(kind: str = "probability", **changes: Any) -> TrainResult:
    model = (
        Model(NoPurchase(60, 90), linear(), SingleFeature("x", name="recency"), name="churn")
        if kind == "probability"
        else Model(FutureValue(90), CustomerLifetimeValue(BetaGeoNBD(), GammaGamma()),
                   RunRate("spend_91d", 91, 90), name="clv")
    )  # fmt: skip
    figures = {"auc" if kind == "probability" else "mae": Metric(0.87, 0.8123, 0.91)}
    given: dict[str, Any] = {
        "model": model,
        "plan": Plan(cut=CUT),
        "metrics": {**figures, "brier": Metric(0.05, 0.04, 0.0666)},
        "baseline_name": model.baseline.name,
        "baseline_metrics": {n: Metric(0.7831, 0.7, 0.8) for n in figures},
        "difference": Metric(0.087, 0.01, 0.1),
        "verdict": "beats its baseline (recency)",
        "counts": {"n_train": 12_345, "n_train_positive": 1_234, "n_test": 2_308,
                   "n_positive": 231, "n_in_gap": 4_321},
        "gates": (GateResult("baseline", True, "gain +0.087"),
                  GateResult("calibration", False, "calibration error 0.2")),
        "left_out": {"immature: the label window runs past the data": 1_785},
        "unavailable": (Unavailable("margins", ("transactions.margin",)),),
        "notes": ("value is spend",),
        "importance": (),
        "features": (),
    }  # fmt: skip
    return TrainResult(**given | changes)


# --- pictures -------------------------------------------------------------------------------------


def test_a_probability_is_shown_from_every_side(probability: Evidence) -> None:
    assert set(pictures(probability)) == {
        f"plots/{n}.png" for n in ("roc", "pr", "gain", "lift", "calibration", "effects")
    }


def test_a_value_is_shown_by_rank_and_by_tenth(value: Evidence) -> None:
    assert set(pictures(value)) == {"plots/gain.png", "plots/value.png"}


def test_every_picture_opens_and_shows_something(probability: Evidence, value: Evidence) -> None:
    for kept in (probability, value):
        for name, content in pictures(kept).items():
            pixels = imread(io.BytesIO(content), format="png")
            assert pixels.shape[0] > 100, name
            assert pixels.shape[1] > 300, name
            colours = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)
            assert len(colours) > 20, name


def test_the_same_figures_give_the_same_picture_and_others_another(probability: Evidence) -> None:
    once, twice = pictures(probability), pictures(probability)
    assert once == twice
    model, baseline = probability.curves["model"], probability.curves["baseline"]
    other = pictures(replace(probability, curves={"model": baseline, "baseline": model}))
    changed = {name for name in once if once[name] != other[name]}
    assert changed == set(once) - {"plots/effects.png"}


# --- the card -------------------------------------------------------------------------------------


def test_the_card_says_what_how_and_on_what(probability: Evidence) -> None:
    card = model_card(result(), probability)
    assert card.startswith("# churn\n")
    for words in (
        "no purchase in the next 60 days, among customers who bought in the last 90.",
        "The model beats its baseline (recency).",
        "12,345 training rows, 2,308 test rows (231 positive)",
        "2024-05-01 05:00 UTC",
        "4,321 rows fell into that gap",
        "- left out: 1,785 immature: the label window runs past the data",
        "- feature group not available: margins: needs transactions.margin",
        "baseline: recency |",
        "| auc | 0.8700 | 0.8123 to 0.9100 | 0.7831 |",
        "| brier | 0.0500 | 0.0400 to 0.0666 | – |",
        "- passed baseline: gain +0.087",
        "- FAILED calibration: calibration error 0.2",
        "- value is spend",
        "not what a contact changes",
    ):
        assert words in card
    assert "nan" not in card.lower().split()


def test_what_moves_the_score_is_named_with_its_meaning(probability: Evidence) -> None:
    card = model_card(result(), probability)
    strongest = probability.effects[0]
    assert strongest.feature == "spend"  # which is what the small models' outcome hangs on
    assert rf"| `spend` | what spend \| means | {strongest.mean:.3f} | " in card
    listed = re.findall(r"^\| `(\w+)`", card, flags=re.M)
    assert listed == [e.feature for e in probability.effects]


def test_segments_show_their_own_figures_or_why_there_are_none(probability: Evidence) -> None:
    card = model_card(result(), probability)
    told = [s for s in probability.segments if not s.too_few]
    assert len(told) >= 6
    for s in told:
        m = s.model["auc"]
        (line,) = [r for r in card.splitlines() if r.startswith(f"| {s.label} |")]
        assert f"| {s.n:,} ({s.n_positive:,} positive) | {s.mean_outcome:.4g} |" in line
        assert f"| {m.value:.4f} | {m.low:.4f} to {m.high:.4f} |" in line
    (rare,) = [s for s in probability.segments if s.too_few]
    assert rare.n == 5
    assert f"Too few rows to say how good it is for: {rare.label} ({rare.too_few})" in card


def test_every_table_of_the_card_has_straight_columns(
    probability: Evidence, value: Evidence
) -> None:
    for kept, kind in ((probability, "probability"), (value, "clv")):
        card = model_card(result(kind, baseline_name="a | b"), kept)
        tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.M)
        assert len(tables) >= 2
        for table in tables:
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(widths) == 1, table


def test_a_value_models_card_lists_what_it_learned(value: Evidence) -> None:
    card = model_card(result("clv"), value)
    assert "value over the next 90 days" in card
    assert "What moves the score" not in card
    for name, fitted in value.learned.items():
        assert f"| {name} | {fitted:.5g} |" in card
    assert {n.partition(".")[0] for n in value.learned} == {"BetaGeoNBD", "GammaGamma"}


def test_only_a_model_of_high_value_says_who_is_becoming_so(probability: Evidence) -> None:
    assert "becoming" not in model_card(result(), probability)
    plain = result()
    label = TopShareOfValue(horizon_days=90, share=0.25, active_days=90)
    card = model_card(replace(plain, model=replace(plain.model, label=label)), probability)
    rows = re.findall(r"^\| (is|becoming|slipping): .* by recency \| (\d+) \| ", card, flags=re.M)
    counts = {name: int(n) for name, n in rows}
    top = len(probability.rows) // 4
    assert counts["is"] + counts["becoming"] == counts["is"] + counts["slipping"] == top
    scores = probability.rows["score"].to_numpy()
    past = probability.rows["baseline"].to_numpy()
    both = set(np.argsort(-scores, kind="stable")[:top]) & set(np.argsort(-past)[:top])
    assert counts["is"] == len(both)


@pytest.mark.parametrize(
    ("positives", "words"),
    [(231, ""), (100, "rarer in the test slice (4.3%) than in training (10.0%)"),
     (500, "more common in the test slice (21.7%)")],
)  # fmt: skip
def test_a_rate_that_moved_is_pointed_out(
    probability: Evidence, positives: int, words: str
) -> None:
    counts = {**result().counts, "n_positive": positives}
    card = model_card(result(counts=counts), probability)
    assert ("watch the calibration" in card) == bool(words)
    assert words in card
