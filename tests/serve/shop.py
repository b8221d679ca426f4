"""A small shop, whole and real: trained models, profiles, a bundle, a catalogue and a policy.

Sixty customers, three offers that the profiles know and one ("new") that they do not. Two
channels: mail (no consent needed, capped) and email (consent needed). The clock is fixed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from lightgbm import LGBMClassifier

from nextbest.data.features import Feature
from nextbest.data.profiles import Profiles, from_frames
from nextbest.data.snapshots import ProfileFrames
from nextbest.learn import artifact
from nextbest.learn.estimators import FeatureEncoder, blend, linear
from nextbest.serve.bundle import ModelSource

AS_OF = datetime(2020, 3, 1)
NOW = datetime(2020, 3, 2, 9, tzinfo=UTC)
CUSTOMERS = [f"c{number:02d}" for number in range(60)]

OFFERS = """
[assumptions]
margin_rate = 0.3

[defaults]
goal = "sell"
channels = ["mail", "email"]
margin = "margin_rate * offer_spend"
contact_cost = 0.1

[[offers]]
id = "a"
name = "Apples"
response_window_days = 14

[[offers]]
id = "b"
name = "Bread"
incentive_cost = 0.5
eligibility = "age_band = 'old' or likes_mail"

[[offers]]
id = "c"
name = "Cheese"
ends_at = 2020-02-01

[[offers]]
id = "new"
name = "Added since the last refresh"
"""

POLICY = """
[clock]
decide_as_of = 2020-03-02T09:00:00Z

[profiles]
freshness_limit_days = 2

[context]
weather = "string"
basket_value = "number"
member = "boolean"
last_visit = "timestamp"

[channels.mail]
consent_required = false

[channels.email]
consent_column = "likes_mail"

[[contact.caps]]
name = "two letters a week"
at_most = 2
days = 7
per = "channel"

[[contact.cool_offs]]
name = "pause after a refusal"
after = "refusal"
days = 30
per = "offer"

[[context_weights]]
name = "bread when it rains"
when = "weather = 'rain'"
offer = "b"
multiplier = 100

[fallback]
offers = ["a"]
"""


def feature(name: str, entity: str, dtype: str = "number") -> Feature:
    return Feature(name, f"{name} in words", "unit", "source", "group", entity, dtype)  # type: ignore[arg-type]


def frames() -> ProfileFrames:
    random = np.random.default_rng(7)
    n = len(CUSTOMERS)
    ages = np.array(["young", "old", None], dtype=object)
    customers = pd.DataFrame(
        {
            "customer_id": CUSTOMERS,
            "spend_91d": np.where(np.arange(n) % 10 == 3, np.nan, random.gamma(2.0, 50.0, n)),
            "age_band": pd.Series(ages[np.arange(n) % 3], dtype=object),
            "likes_mail": np.array([1.0, 0.0, np.nan])[np.arange(n) % 3],
        }
    )
    offers = pd.DataFrame(
        {
            "offer_id": ["a", "b", "c"],
            "offer_n_coupons": [5.0, 20.0, np.nan],
            "offer_type": pd.Series(["A", "B", None], dtype=object),
        }
    )
    pairs = pd.DataFrame(
        {
            "customer_id": np.repeat(CUSTOMERS, 3),
            "offer_id": np.tile(["a", "b", "c"], n),
            "offer_spend": random.gamma(2.0, 10.0, 3 * n),
        }
    )
    features = (
        feature("spend_91d", "customer"),
        feature("age_band", "customer", "string"),
        feature("likes_mail", "customer", "boolean"),
        feature("offer_n_coupons", "offer"),
        feature("offer_type", "offer", "string"),
        feature("offer_spend", "pair"),
    )
    return ProfileFrames(AS_OF, customers, offers, pairs, features)


def propensity_rows(shop: ProfileFrames) -> tuple[pd.DataFrame, np.ndarray]:
    rows = shop.pairs.merge(shop.customers, on="customer_id").merge(shop.offers, on="offer_id")
    rows = pd.concat([rows] * 5, ignore_index=True)
    odds = 0.06 * rows["offer_spend"] + 0.004 * rows["spend_91d"].fillna(0) - 2.0
    random = np.random.default_rng(11)
    response = random.random(len(rows)) < 1 / (1 + np.exp(-odds))
    return rows.drop(columns=["customer_id", "offer_id"]), response.astype(float)


def save_propensity(directory: Path, shop: ProfileFrames, seed: int = 1) -> None:
    rows, response = propensity_rows(shop)
    encoder = FeatureEncoder().fit(rows)
    trees = LGBMClassifier(
        n_estimators=20, num_leaves=7, min_child_samples=5, seed=seed, verbose=-1, n_jobs=1
    )
    model = blend({"trees": trees, "linear": linear()})
    model.fit(encoder.transform(rows), response)
    artifact.save(
        directory,
        name="propensity",
        kind="probability",
        estimator=model,
        encoder=encoder,
        golden_rows=rows.head(8),
    )


def save_churn(directory: Path, shop: ProfileFrames) -> np.ndarray:
    rows = shop.customers[["spend_91d", "age_band"]]
    encoder = FeatureEncoder().fit(rows)
    left = (rows["spend_91d"].fillna(0) < 60).astype(float).to_numpy()
    model = linear().fit(encoder.transform(rows), left)
    saved = artifact.save(
        directory,
        name="churn",
        kind="probability",
        estimator=model,
        encoder=encoder,
        golden_rows=rows.head(8),
    )
    return saved.score(rows)


def make_profiles(shop: ProfileFrames, churn: np.ndarray) -> Profiles:
    scores = {"churn_probability": churn, "clv": np.linspace(10, 900, len(CUSTOMERS))}
    meanings = [feature(name, "customer") for name in scores]
    return from_frames(shop, scores, "profiles-1", meanings)


def sources(artefacts: Path, propensity: str = "propensity") -> dict[str, ModelSource]:
    return {
        "propensity": ModelSource(artefacts / propensity, 4, "run-4", ("champion",)),
        "churn": ModelSource(artefacts / "churn", 2, "run-2", ("champion",)),
    }
