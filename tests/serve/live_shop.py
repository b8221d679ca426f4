"""A small shop whose warehouse is at hand: profiles at any moment come from the real expressions.

Twelve customers with events and contacts before the refresh; offer "cart" is for those who left
something in a basket less than a day ago, "news" for everybody. Propensity and churn read live
features.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa

from nextbest.data import snapshots
from nextbest.data.contract import History
from nextbest.data.features import Feature
from nextbest.data.groups import contacts, demographics, engagement, offer, responses
from nextbest.data.profiles import Profiles, from_frames
from nextbest.jobs import refreshing
from nextbest.learn import artifact
from nextbest.learn.estimators import FeatureEncoder, linear
from nextbest.serve.bundle import ModelSource, write_bundle

AS_OF = datetime(2024, 6, 1)
CUSTOMERS = [f"c{number:02d}" for number in range(12)]
OFFERS = ("cart", "news")
GROUPS = (engagement, contacts, responses, demographics, offer)
Row = dict[str, Any]

CATALOGUE = """
[defaults]
goal = "sell"
channels = ["web"]
contact_cost = 0.1

[[offers]]
id = "cart"
name = "Your basket is waiting"
margin = 40
eligibility = "abandoned_cart = 1 and days_since_last_cart_add < 1"

[[offers]]
id = "news"
name = "The newsletter"
margin = 4
"""

POLICY = """
[profiles]
freshness_limit_days = 30

[channels.web]
consent_required = false

[fallback]
offers = ["news"]
"""

_TEXT, _TIME = pa.string(), pa.timestamp("us")
_SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "customers": {"customer_id": _TEXT, "region": _TEXT, "known_at": _TIME},
    "events": {"customer_id": _TEXT, "event_at": _TIME, "event_type": _TEXT, "known_at": _TIME},
    "contacts": {
        "customer_id": _TEXT, "offer_id": _TEXT, "contacted_at": _TIME, "channel": _TEXT,
        "known_at": _TIME,
    },
    "responses": {
        "customer_id": _TEXT, "offer_id": _TEXT, "responded_at": _TIME, "response_type": _TEXT,
        "known_at": _TIME,
    },
    "offers": {"offer_id": _TEXT, "offer_type": _TEXT, "known_at": _TIME},
}  # fmt: skip


def event(customer_id: str, kind: str, at: datetime, known_at: datetime | None = None) -> Row:
    return {"customer_id": customer_id, "event_type": kind, "event_at": at, "known_at": known_at}


def contact(customer_id: str, at: datetime, offer_id: str = "news") -> Row:
    return {"customer_id": customer_id, "offer_id": offer_id, "contacted_at": at, "channel": "web"}


def response(customer_id: str, offer_id: str, at: datetime) -> Row:
    return {"customer_id": customer_id, "offer_id": offer_id, "responded_at": at,
            "response_type": "redemption"}  # fmt: skip


def before() -> dict[str, list[Row]]:
    """What the warehouse knew at the refresh; c00 has done nothing, c11 just left a basket."""
    random = np.random.default_rng(5)
    events, letters = [], []
    for i, customer in enumerate(CUSTOMERS[:-1]):
        kinds = random.choice(["open", "click", "visit", "cart_add", "purchase"], 3 * i)
        ages = random.uniform(1.5, 60, 3 * i)
        events += [
            event(customer, str(kind), AS_OF - timedelta(days=float(age)))
            for kind, age in zip(kinds, ages, strict=True)
        ]
        letters += [
            contact(customer, AS_OF - timedelta(days=float(age)))
            for age in random.uniform(0.1, 120, i)
        ]
    events.append(event("c11", "cart_add", AS_OF - timedelta(hours=20)))
    answers = [response(r["customer_id"], "news", r["contacted_at"]) for r in letters[::3]]
    return {"events": events, "contacts": letters, "responses": answers}


def history(more: dict[str, list[Row]] | None = None, until: datetime = AS_OF) -> History:
    """The shop's warehouse, with what happened since."""
    rows: dict[str, Iterable[Row]] = {
        "customers": [{"customer_id": c, "region": "ns"[i % 2]} for i, c in enumerate(CUSTOMERS)],
        "offers": [{"offer_id": o, "offer_type": o} for o in OFFERS],
        **{name: [*found, *(more or {}).get(name, ())] for name, found in before().items()},
    }
    duck = ibis.duckdb.connect()
    tables = {
        name: duck.create_table(
            name,
            pa.table(
                {c: pa.array([row.get(c) for row in found], kind)
                 for c, kind in _SCHEMAS[name].items()}
            ),
        )
        for name, found in rows.items()
    }  # fmt: skip
    return History(tables, {}, (), AS_OF - timedelta(days=200), until, duck)


def save_models(folder: Path) -> None:
    """A propensity and a churn model that read live features, and say something of everybody."""
    frames = snapshots.profile(history(), GROUPS, AS_OF, OFFERS)
    spine = pd.MultiIndex.from_product([CUSTOMERS, OFFERS], names=["customer_id", "offer_id"])
    pairs = spine.to_frame(index=False).merge(frames.customers).merge(frames.offers)
    columns = ["abandoned_cart", "contacts_28d", "responses_91d", "region", "offer_type"]
    y = pairs["abandoned_cart"] + (pairs["offer_type"] == "news") > 0
    _save(folder / "propensity", "propensity", pairs[columns], y)
    read = ["visits_28d", "contacts_91d", "region"]
    _save(folder / "churn", "churn", frames.customers[read], frames.customers["visits_28d"] < 2)


def _save(directory: Path, name: str, rows: pd.DataFrame, y: Any) -> None:
    encoder = FeatureEncoder().fit(rows)
    artifact.save(
        directory, name=name, kind="probability",
        estimator=linear().fit(encoder.transform(rows), np.asarray(y, dtype=float)),
        encoder=encoder, golden_rows=rows.head(8),
    )  # fmt: skip


def profiles(models: Path, past: History, as_of: datetime) -> Profiles:
    """What `nextbest refresh` would lay out at a moment; of c03 churn is not asked."""
    frames = snapshots.profile(past, GROUPS, as_of, OFFERS)
    churn = artifact.load(models / "churn").score(frames.customers)
    churn[frames.customers["customer_id"] == "c03"] = np.nan
    described = Feature(
        "churn_probability", "will they leave?", "probability", "model churn", "scores",
        "customer", "number",
    )  # fmt: skip
    return from_frames(frames, {"churn_probability": churn}, f"{as_of:%Y%m%d}", [described])


def refresh(project: Path, models: Path, past: History, as_of: datetime) -> str:
    """Make a bundle of the warehouse as of a moment, and the one that is served."""
    laid_out = profiles(models, past, as_of)
    sources = {name: ModelSource(models / name, 1) for name in ("propensity", "churn")}
    recent = refreshing.recent_rows(past, laid_out)
    return write_bundle(project / ".nextbest" / "serving", sources, laid_out, recent=recent)


def write(root: Path, models: Path) -> Path:
    """The shop as a project, refreshed at `AS_OF`."""
    (root / "serving").mkdir(parents=True)
    (root / "serving" / "offers.toml").write_text(CATALOGUE)
    (root / "serving" / "policy.toml").write_text(POLICY)
    refresh(root, models, history(), AS_OF)
    return root
