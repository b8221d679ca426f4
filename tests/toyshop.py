"""A tiny shop as a whole project on disk: three rooms, data files, four quick models, two channels.

300 customers, 26 four-week months of purchases, one mailing a month of one of two types. Who buys
often responds more often, and coupon mailings are liked better than catalogues, so that every
model has something to find. The same call always writes the same bytes.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

START = datetime(2022, 1, 1)
UNTIL = datetime(2024, 1, 1)
CUSTOMERS = 300
AISLES = ("bread", "cheese", "fruit", "wine")

SOURCES = '''
"""The toy shop's tables: CSV for what people edit, Parquet for what machines write."""

from pathlib import Path

import ibis

DATA = Path(__file__).parent.parent / "data"


def tables():
    shop = ibis.duckdb.connect()
    return {
        "customers": shop.read_csv(DATA / "customers.csv", types={"customer_id": "string"}),
        "transactions": shop.read_parquet(DATA / "transactions.parquet"),
        "contacts": shop.read_parquet(DATA / "contacts.parquet"),
        "responses": shop.read_parquet(DATA / "responses.parquet"),
        "offers": shop.read_parquet(DATA / "offers.parquet"),
    }
'''.lstrip()

FEATURES = '''
"""The toy shop's own features."""

from ibis import _

from nextbest import Block, Past, feature_group, summarise


@feature_group("transactions", requires=("transactions.category",))
def wine(past: Past) -> Block:
    """Bottles of wine."""
    lines = past.lines.filter(_.category == "wine")
    count = _.count().cast("float64")
    return summarise(lines, "customer", {"wine_lines": (count, "lines of wine", "lines", 0.0)})
'''.lstrip()

PROPENSITY = """
from lightgbm import LGBMClassifier

from nextbest import Model, Response, TypeRateTimesHistory, blend, linear

model = Model(
    label=Response(),
    estimator=blend({
        "trees": LGBMClassifier(n_estimators=25, num_leaves=4, n_jobs=1, verbose=-1,
                                deterministic=True, force_row_wise=True),
        "linear": linear(C=0.01),
    }),
    baseline=TypeRateTimesHistory(),
    exclude=("lifetime",),
)
""".lstrip()

CHURN = """
from nextbest import Model, NoPurchase, SingleFeature, linear

model = Model(
    label=NoPurchase(horizon_days=30, active_days=90),
    estimator=linear(C=0.01),
    baseline=SingleFeature("days_since_last_purchase", name="recency"),
    features=("rfm", "windows", "wine"),
)
""".lstrip()

HVC = """
from nextbest import Model, SingleFeature, TopShareOfValue, linear

model = Model(
    label=TopShareOfValue(horizon_days=60, share=0.2, active_days=90),
    estimator=linear(C=0.01),
    baseline=SingleFeature("spend_28d", name="past spend"),
    features=("rfm", "windows"),
)
""".lstrip()

CLV = """
from nextbest import (
    CustomerLifetimeValue, FutureValue, GammaGamma, Model, ModifiedBetaGeoNBD, RunRate,
)

model = Model(
    label=FutureValue(horizon_days=180),
    estimator=CustomerLifetimeValue(
        purchase_model=ModifiedBetaGeoNBD(), spend_model=GammaGamma(),
        horizon_days=180, discount_rate_per_year=0.1,
    ),
    baseline=RunRate("spend_91d", window_days=91, horizon_days=120, name="last quarter's rate"),
)
""".lstrip()

TRAINING = """
[project]
name = "toy-shop"
timezone = "Europe/Paris"
observed_until = 2024-01-01T00:00:00Z
as_of = 2023-12-01
seed = 7

[data]
error_limit = 0.05

[jobs]
order = ["propensity", "churn", "hvc", "clv"]

[gates]
min_positives = 20
baseline_margin = 0.2
champion_margin = 0.2
max_calibration_error = 0.25

[models.propensity]
cut = 2023-05-01
folds = 2

[models.churn]
cut = 2023-10-01
train_from = 2022-09-01
every_days = 60
folds = 2

[models.hvc]
cut = 2023-09-01
train_from = 2022-09-01
every_days = 60
folds = 2

# More positives than the shop has customers: this gate always refuses.
[models.hvc.gates]
min_positives = 10000

[models.clv]
cut = 2023-08-01
evaluation_days = 120
""".lstrip()

OFFERS = """
timezone = "Europe/Paris"

[assumptions]
margin_rate = 0.4

[defaults]
goal = "sell"
channels = ["mail", "email"]
margin = "margin_rate * value_per_response"
contact_cost = 0.10

[[offers]]
id = "coupons-now"
name = "Coupons for December"
category = "coupons"
starts_at = 2023-11-20
ends_at = 2023-12-31
incentive_cost = 1.0
suitability = "orders_182d >= 1"

[[offers]]
id = "catalogue-now"
name = "The Christmas catalogue"
category = "catalogue"
contact_cost = 0.60
starts_at = 2023-11-20
ends_at = 2023-12-31

[[offers]]
id = "stay"
name = "We miss you"
goal = "retain"
save_rate = 0.05
margin = 4
incentive_cost = 3
contact_cost = 0.60
eligibility = "churn_probability > 0.3 and clv > 20"

[[offers]]
id = "over"
name = "Coupons of the spring"
ends_at = 2023-06-01
""".lstrip()

POLICY = """
timezone = "Europe/Paris"

[clock]
decide_as_of = 2023-12-01

[profiles]
freshness_limit_days = 2

[channels.mail]
consent_required = false

[channels.email]
consent_required = true

[eligibility]
"still a customer" = "orders_182d >= 1"

[[contact.caps]]
name = "the same offer once in 60 days"
at_most = 1
days = 60
per = "offer"

[fallback]
offers = ["coupons-now"]
""".lstrip()

_FILES = {
    "models/features.py": FEATURES,
    "models/propensity.py": PROPENSITY,
    "models/churn.py": CHURN,
    "models/hvc.py": HVC,
    "models/clv.py": CLV,
    "training/sources.py": SOURCES,
    "training/training.toml": TRAINING,
    "serving/offers.toml": OFFERS,
    "serving/policy.toml": POLICY,
}


def write(root: Path) -> Path:
    """Write the whole project into a folder, and return it."""
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "data").mkdir(exist_ok=True)
    for name, frame in _tables().items():
        if name == "customers":
            frame.to_csv(root / "data" / "customers.csv", index=False)
        else:
            frame.to_parquet(root / "data" / f"{name}.parquet", index=False)
    return root


def customer_ids() -> list[str]:
    return [f"c{number:03d}" for number in range(CUSTOMERS)]


def _tables() -> dict[str, pd.DataFrame]:
    random = np.random.default_rng(20240101)
    ids = np.array(customer_ids())
    orders_per_year = random.gamma(1.2, 12.0, CUSTOMERS) + 1.0
    basket = random.gamma(4.0, 6.0, CUSTOMERS)
    taste = random.integers(0, len(AISLES), CUSTOMERS)
    left = np.where(random.random(CUSTOMERS) < 0.35, random.uniform(120, 760, CUSTOMERS), 10_000.0)
    lines = []
    for i in range(CUSTOMERS):
        at = random.exponential(365 / orders_per_year[i])
        while at < min((UNTIL - START).days, left[i]):
            for aisle in {int(taste[i]), int(random.integers(0, len(AISLES)))}:
                lines.append(
                    {
                        "customer_id": ids[i],
                        "order_id": f"{ids[i]}-{at:.4f}",
                        "ordered_at": START + timedelta(days=round(at, 4)),
                        "amount": round(float(basket[i] * random.gamma(5.0, 0.1)), 2) + 0.5,
                        "product_id": f"{AISLES[aisle]}-{random.integers(0, 5)}",
                        "category": AISLES[aisle],
                    }
                )
            at += random.exponential(365 / orders_per_year[i])
    offers, contacts, responses = _mailings(random, ids, orders_per_year, left, basket)
    customers = pd.DataFrame(
        {
            "customer_id": ids,
            "region": np.array(["north", "south"])[np.arange(CUSTOMERS) % 2],
            "consent_email": np.arange(CUSTOMERS) % 3 > 0,
        }
    )
    return {
        "customers": customers,
        "transactions": pd.DataFrame(lines),
        "contacts": contacts,
        "responses": responses,
        "offers": offers,
    }


def _mailings(
    random: np.random.Generator,
    ids: np.ndarray,
    orders_per_year: np.ndarray,
    left: np.ndarray,
    basket: np.ndarray,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    def offer(name: str, kind: str, starts: datetime, days: int) -> dict[str, object]:
        aisles = ["bread", "cheese"] if kind == "coupons" else ["wine"]
        return {
            "offer_id": name,
            "name": name,
            "offer_type": kind,
            "category": kind,
            "starts_at": starts,
            "ends_at": starts + timedelta(days=days),
            "categories": aisles,
            "product_ids": [f"{aisle}-{n}" for aisle in aisles for n in range(5)],
            "n_coupons": 8 if kind == "coupons" else 1,
            "n_products": 5 * len(aisles),
        }

    offers, contacts, responses = [], [], []
    for month in range(25):
        kind = ("coupons", "catalogue")[month % 2]
        day = 14 + 28 * month
        row = offer(f"{kind}-{month:02d}", kind, START + timedelta(days=day), 21)
        offers.append(row)
        appeal = 0.35 if kind == "coupons" else 0.12
        for i in np.flatnonzero(random.random(len(ids)) < 0.4):
            contact = {"customer_id": ids[i], "offer_id": row["offer_id"]}
            contacts.append({**contact, "contacted_at": row["starts_at"], "channel": "mail"})
            keen = min(orders_per_year[i] / 20, 2.0) if day < left[i] else 0.02
            if random.random() < appeal * keen:
                at = START + timedelta(days=day + float(random.uniform(0.5, 20)))
                responses.append(
                    {
                        **contact,
                        "responded_at": at,
                        "response_type": "redemption",
                        "value": round(float(basket[i]), 2),
                        "incentive_cost": 1.0,
                    }
                )
    now = datetime(2023, 11, 20)
    offers += [offer(f"{kind}-now", kind, now, 42) for kind in ("coupons", "catalogue")]
    return pd.DataFrame(offers), pd.DataFrame(contacts), pd.DataFrame(responses)
