"""A model's definition: what it reads, what it gives, and every fault before any training."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from lightgbm import LGBMClassifier

from nextbest.data.features import possible
from nextbest.data.groups import BUILT_IN
from nextbest.data.labels import FutureValue, NoPurchase, Response, TopShareOfValue
from nextbest.errors import ConfigError
from nextbest.learn.baselines import RunRate, SingleFeature
from nextbest.learn.clv import BetaGeoNBD, CustomerLifetimeValue, GammaGamma
from nextbest.learn.estimators import linear
from nextbest.learn.model import RFM_COLUMNS, Model

RECENCY = SingleFeature("days_since_last_purchase", name="recency")


def model(**changes: object) -> Model:
    given = {"label": NoPurchase(), "estimator": linear(), "baseline": RECENCY, "name": "churn"}
    return Model(**given | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("label", "kind", "columns"),
    [
        (NoPurchase(), "probability", ("churn_probability",)),
        (TopShareOfValue(), "probability", ("churn_probability", "churn_now")),
        (Response(), "probability", ()),
        (FutureValue(), "clv", ("clv", "clv_low", "clv_high", "p_alive")),
    ],
)
def test_the_label_says_what_kind_it_is_and_what_it_adds_to_profiles(
    label: object, kind: str, columns: tuple[str, ...]
) -> None:
    found = model(label=label)
    assert (found.kind, found.score_columns) == (kind, columns)


def test_a_label_of_high_value_also_says_who_is_there_today() -> None:
    high = {"label": TopShareOfValue(), "name": "hvc"}
    past = SingleFeature("spend_91d", name="past spend")
    found = model(baseline=past, **high)
    assert found.score_columns == ("hvc_probability", "hvc_now")
    assert found.past_value == "spend_91d"
    # Under the file's name, whatever the score is called.
    assert model(baseline=past, score="rising", **high).score_columns == ("rising", "hvc_now")
    # No other label has a top share, and no other baseline is one feature to rank by.
    assert model(baseline=past).score_columns == ("churn_probability",)
    rate = RunRate("spend_91d", window_days=91)
    assert model(baseline=rate, **high).score_columns == ("hvc_probability",)


def test_a_score_may_have_a_name_of_its_own() -> None:
    assert model(score="leaving").score_columns == ("leaving",)


def test_a_model_is_frozen_and_named_after_its_file() -> None:
    nameless = model(name="")
    named = nameless.named("hvc")
    assert (nameless.name, named.name, named.score_columns) == ("", "hvc", ("hvc_probability",))
    assert named.label is nameless.label
    with pytest.raises(FrozenInstanceError):
        named.name = "x"  # type: ignore[misc]


def test_which_groups_it_reads() -> None:
    everything = [g.name for g in BUILT_IN]
    assert [g.name for g in model().groups(BUILT_IN)] == everything
    assert [g.name for g in model(features=("windows", "rfm")).groups(BUILT_IN)] == [
        "windows", "rfm",
    ]  # fmt: skip
    less = model(exclude=("rfm", "tenure_days")).groups(BUILT_IN)
    assert [g.name for g in less] == [n for n in everything if n != "rfm"]
    with pytest.raises(ConfigError, match=r'models/churn\.py.*"window" does not exist.*"windows"'):
        model(features=("window",)).groups(BUILT_IN)


@pytest.mark.parametrize(
    "good",
    [
        model(),
        model(estimator=LGBMClassifier(), calibration="isotonic", features=("rfm",)),
        # A value model is stored as its numbers, whatever scikit-learn can export.
        model(label=FutureValue(), estimator=CustomerLifetimeValue(BetaGeoNBD(), GammaGamma()),
              baseline=RunRate("spend_91d", 91, 365)),
    ],
)  # fmt: skip
def test_a_sound_model_has_no_fault(good: Model) -> None:
    assert good.faults(BUILT_IN) == []


def test_every_fault_is_told_at_once() -> None:
    homemade = LGBMClassifier(objective=lambda y, score: (y, score))
    bad = model(features=("rfn",), calibration="plat", estimator=homemade)
    text = [str(fault) for fault in bad.faults(BUILT_IN)]
    assert len(text) == 3
    assert all(line.startswith("models/churn.py: ") for line in text)
    assert '"rfn" does not exist' in text[0]
    assert 'Did you mean "rfm"?' in text[0]
    assert "unknown calibration. Must be auto, none, platt, isotonic, beta; got plat." in text[1]
    assert "cannot be stored without executable code" in text[2]
    assert "its objective is a Python function" in text[2]


def test_what_the_value_models_read_are_features() -> None:
    lifetime = [g for g in BUILT_IN if g.name == "lifetime"]
    assert set(RFM_COLUMNS) == possible(lifetime)
