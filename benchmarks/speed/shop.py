"""A shop for benchmarks: one trained propensity model, profiles, a catalogue and a policy.

Everything that a decision can meet is there: eligibility rules of the policy and of offers,
consent, caps by channel, offer and category, cool-offs, exclusions, a retention term, a lever, a
context weight, holdout, and exploration that is kept within a share of the profit.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from lightgbm import LGBMClassifier

from nextbest.data.feature import SCORE_GROUP, Feature
from nextbest.data.profiles import Profiles
from nextbest.learn import artifact
from nextbest.learn.estimators import FeatureEncoder
from nextbest.serve.bundle import SCORES, ModelSource, write_bundle

AS_OF = datetime(2026, 1, 1)
N_CUSTOMER_COLUMNS, N_OFFER_COLUMNS, N_PAIR_COLUMNS = 30, 6, 2
TREES, LEAVES = 200, 31
REGIONS = ("east", "north", "south", "west")

CUSTOMER = tuple(f"feature_{i}" for i in range(N_CUSTOMER_COLUMNS))
OFFER = tuple(f"offer_feature_{i}" for i in range(N_OFFER_COLUMNS))
PAIR = tuple(f"pair_feature_{i}" for i in range(N_PAIR_COLUMNS))

POLICY = """
[clock]
decide_as_of = 2026-01-01T06:00:00Z

[profiles]
freshness_limit_days = 2

[context]
device = "string"
basket_value = "number"

[channels.web]
consent_column = "consents"

[eligibility]
"not about to leave for good" = "churn_probability < 0.99"

[suitability]
"worth a contact" = "clv > 1 or hvc_probability > 0.1"

[[contact.caps]]
name = "five a week"
at_most = 5
days = 7
per = "channel"

[[contact.caps]]
name = "the same offer twice a month"
at_most = 2
days = 30
per = "offer"

[[contact.caps]]
name = "three of a category a month"
at_most = 3
days = 30
per = "category"

[[contact.cool_offs]]
name = "pause after a refusal"
after = "refusal"
days = 30
per = "offer"

[[contact.exclusions]]
name = "one of a group"
days = 14

[[levers]]
category = "k1"
multiplier = 1.2
until = 2030-01-01
reason = "a campaign"

[[context_weights]]
name = "large baskets"
when = "basket_value > 50"
category = "k2"
multiplier = 1.5

[fallback]
offers = ["o000", "o001"]

[holdout]
salt = "salt of the benchmark, holdout"
share = 0.02

[exploration]
salt = "salt of the benchmark, exploration"
policy = "epsilon"
epsilon = 0.1
max_loss_share = 0.1
"""

DEFAULTS = """
[assumptions]
margin_rate = 0.3

[defaults]
goal = "sell"
channels = ["web"]
margin = "margin_rate * (60 + 20 * coalesce(offer_feature_0, 0) + 5 * coalesce(feature_5, 0))"
contact_cost = 0.05
response_window_days = 14
"""

CHANNEL = "web"


def make(folder: Path, customers: int, offers: int, *, pairs: bool = True, seed: int = 1) -> Path:
    """Write a project that can serve, and return its folder."""
    rng = np.random.default_rng(seed)
    (folder / "serving").mkdir(parents=True)
    (folder / "serving" / "offers.toml").write_text(catalogue(offers))
    (folder / "serving" / "policy.toml").write_text(POLICY)
    pair_columns = PAIR if pairs else ()
    frame, response = training_rows(rng, pair_columns)
    encoder = FeatureEncoder().fit(frame)
    trees = LGBMClassifier(n_estimators=TREES, num_leaves=LEAVES, verbose=-1, n_jobs=1, seed=seed)
    trees.fit(encoder.transform(frame), response)
    artifact.save(
        folder / "propensity",
        name="propensity",
        kind="probability",
        estimator=trees,
        encoder=encoder,
        golden_rows=frame.head(20),
    )
    source = ModelSource(folder / "propensity", 1, "run", ("champion",))
    made = profiles(rng, customers, offers, pair_columns)
    write_bundle(folder / ".nextbest" / "serving", {"propensity": source}, made)
    return folder


def catalogue(offers: int) -> str:
    """The catalogue as TOML: three in four offers with rules, every fifth to retain."""
    parts = [DEFAULTS]
    for i in range(offers):
        lines = [
            "[[offers]]",
            f'id = "o{i:03d}"',
            f'name = "Offer {i}"',
            f'category = "k{i % 5}"',
            f"incentive_cost = {1 + i % 3}",
        ]
        if i % 10 == 3:
            lines.append(f'margin = "{30 + i} * margin_rate"')
        if i % 4:
            lines.append(f"eligibility = \"feature_{i % 4} > -1.5 or region = 'north'\"")
        if i % 5 == 0:
            lines += ['goal = "retain"', "save_rate = 0.05"]
        if i % 10 == 1:
            lines.append(f'exclusivity_group = "g{i % 3}"')
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def training_rows(rng: Any, pair_columns: tuple[str, ...]) -> tuple[pd.DataFrame, Any]:
    """Contacts with their answers."""
    n, names = 20_000, (*CUSTOMER, *OFFER, *pair_columns)
    frame = pd.DataFrame(numbers(rng, (n, len(names))), columns=list(names))
    frame.insert(0, "region", pd.Series(rng.choice(REGIONS, n), dtype=object))
    known = frame[list(names)].fillna(0.0).to_numpy()
    score = known @ rng.normal(size=len(names)) / 6 + known[:, 0] * known[:, N_CUSTOMER_COLUMNS] / 2
    return frame, (score + rng.logistic(size=n) > 1.5).astype(float)


COLUMNS = ("region", "consents", *CUSTOMER, *SCORES)


def profiles(rng: Any, customers: int, offers: int, pair_columns: tuple[str, ...]) -> Profiles:
    """Profiles of so many customers for so many offers."""
    matrix = customer_matrix(rng, customers)
    pairs = numbers(rng, (customers, offers, len(pair_columns)))
    return laid_out(rng, ids(0, customers), matrix, offers, pair_columns, pairs)


def customer_matrix(rng: Any, customers: int) -> Any:
    """Features and scores of customers at random."""
    matrix = np.empty((customers, len(COLUMNS)))
    matrix[:, 0] = rng.integers(0, len(REGIONS), customers)
    matrix[:, 1] = rng.random(customers) < 0.95
    matrix[:, 2 : 2 + len(CUSTOMER)] = numbers(rng, (customers, len(CUSTOMER)))
    matrix[:, -6:-3] = rng.random((customers, 3))
    matrix[:, -3:] = rng.gamma(2.0, 100.0, customers)[:, None] * np.array([1.0, 0.5, 2.0])
    return matrix


def laid_out(
    rng: Any, customer_ids: Any, matrix: Any, offers: int, pair_columns: tuple[str, ...], pairs: Any
) -> Profiles:
    """Profiles of these customers."""
    kinds = {"region": "string", "consents": "boolean"}
    features = [
        Feature(name, name, "unit", "source", SCORE_GROUP if name in SCORES else "group", entity,
                kinds.get(name, "number"))
        for entity, names in (("customer", COLUMNS), ("offer", OFFER), ("pair", pair_columns))
        for name in names
    ]  # fmt: skip
    return Profiles(
        version="profiles",
        as_of=AS_OF,
        customer_ids=customer_ids,
        columns=COLUMNS,
        matrix=matrix,
        categories={"region": REGIONS},
        offer_ids=tuple(f"o{i:03d}" for i in range(offers)),
        offer_columns=OFFER,
        offer_matrix=numbers(rng, (offers, len(OFFER))),
        pair_columns=pair_columns,
        pairs=pairs,
        features=tuple(features),
    )


def write_customers(path: Path, customers: int, part: int = 50_000) -> None:
    """Write a Parquet file of customers, their features and scores."""
    rng = np.random.default_rng(7)
    kinds = [("customer_id", pa.string()), *((name, pa.float64()) for name in COLUMNS)]
    with pq.ParquetWriter(path, pa.schema(kinds)) as file:
        for start in range(0, customers, part):
            n = min(part, customers - start)
            texts = [one.decode() for one in ids(start, n).tolist()]
            columns = [pa.array(texts), *map(pa.array, customer_matrix(rng, n).T)]
            file.write_table(pa.Table.from_arrays(columns, schema=file.schema))


def read_customers(path: Path, offers: int) -> Profiles:
    """Lay out the customers of a Parquet file as profiles, a row group at a time."""
    file = pq.ParquetFile(path)
    matrix = np.empty((file.metadata.num_rows, len(COLUMNS)))
    found, done = [], 0
    for number in range(file.num_row_groups):
        table = file.read_row_group(number)
        rows = slice(done, done + table.num_rows)
        for j, name in enumerate(COLUMNS):
            matrix[rows, j] = table.column(name).to_numpy()
        found.append(np.array(table.column("customer_id").to_pylist(), dtype=np.bytes_))
        done += table.num_rows
    pairs = np.empty((len(matrix), offers, 0))
    rng = np.random.default_rng(1)
    return laid_out(rng, np.concatenate(found), matrix, offers, (), pairs)


def ids(start: int, customers: int) -> Any:
    """Ids of customers, sorted."""
    return np.array([f"c{i:07d}" for i in range(start, start + customers)], dtype=np.bytes_)


def numbers(rng: Any, shape: tuple[int, ...]) -> Any:
    """Numbers of which one in twenty is unknown."""
    values = rng.normal(size=shape)
    values[rng.random(shape) < 0.05] = np.nan
    return values
