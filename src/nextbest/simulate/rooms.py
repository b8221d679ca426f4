"""A simulated shop as a project on disk: its tables, its truth, and three rooms that fit them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from nextbest.errors import ConfigError
from nextbest.project import require_empty
from nextbest.simulate.shop import CHANNEL, START, Shop
from nextbest.simulate.worlds import CYCLE_DAYS, WINDOW_DAYS

__all__ = ["files", "write_project"]

_SOURCES: Final = '''
"""Where the data is: the tables of a simulated shop, in the contract's own names."""

from pathlib import Path

import ibis

DATA = Path(__file__).parent.parent / "data"


def tables() -> dict[str, ibis.Table]:
    """Return the contract's tables."""
    shop = ibis.duckdb.connect()
    return {file.stem: shop.read_parquet(file) for file in sorted(DATA.glob("*.parquet"))}
'''

_FEATURES: Final = '''
"""How often each category was bought: whoever buys it often will buy it unasked."""

from ibis import _

from nextbest import Block, Past, feature_group, summarise

CATEGORIES = @categories@


@feature_group("transactions", requires=("transactions.category",))
def baskets(past: Past) -> Block:
    """Purchases of each category in the last 182 days."""
    lines = past.lines.filter(_.age_days <= 182)
    return summarise(
        lines,
        "customer",
        {
            f"{name}_182d": (
                (_.category == name).sum().cast("float64"),
                f"purchases of {name} in the last 182 days",
                "purchases",
                0.0,
            )
            for name in CATEGORIES
        },
    )
'''

_PROPENSITY: Final = '''
"""Will the customer buy what is offered before the offer ends, once contacted?"""

from lightgbm import LGBMClassifier

from nextbest import Model, Response, TypeRateTimesHistory, blend, linear

model = Model(
    label=Response(),
    estimator=blend(
        {
            "trees": LGBMClassifier(
                n_estimators=80, learning_rate=0.05, num_leaves=7, min_child_samples=30,
                colsample_bytree=0.4, deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1,
            ),
            "linear": linear(C=0.01),
        }
    ),
    baseline=TypeRateTimesHistory(),
    features=(
        "baskets", "windows", "contacts", "responses", "demographics", "offer",
        "offer_type_history", "offer_products",
    ),
)  # fmt: skip
'''

_ANYWAY: Final = '''
"""Will the customer buy from a category unasked? Asked in the quiet fortnights between mailings."""

from nextbest import BuysCategory, Model, SingleFeature, linear


def anyway(category: str) -> Model:
    """Return the model of one category: what its offer's baseline_rate is taken from."""
    return Model(
        label=BuysCategory(category, horizon_days=@window@, active_days=None),
        estimator=linear(C=0.1),
        baseline=SingleFeature(f"{category}_182d", name="past purchases"),
        features=("baskets", "windows"),
    )
'''

_ONE_ANYWAY: Final = '''
"""Will the customer buy @category@ unasked?"""

from ._anyway import anyway

model = anyway("@category@")
'''

_TRAINING: Final = """
# How and when the models are trained. A mailing goes out every @cycle@ days and runs for @window@.

[project]
name = "simulated-@world@"
observed_until = @until@
as_of = @until@
seed = @seed@

[jobs]
order = @order@

[gates]
min_positives = 20
baseline_margin = 0.05

# The last two mailings are the test.
[models.propensity]
cut = @last_two@
folds = 2
"""

_ANYWAY_PLAN: Final = """
# Asked at the start of each quiet fortnight, when no offer runs; the last one is the test.
[models.anyway_@category@]
cut = @last_mailing@
train_from = @first_quiet@
every_days = @cycle@
test = [@last_quiet@]
folds = 2
"""

_OFFERS: Final = """
# The offers of the next mailing. A purchase that would have been made anyway is not counted as the
# offer's: baseline_rate is its chance, from the models of the quiet fortnights.

[defaults]
goal = "sell"
channels = ["@channel@"]
contact_cost = @contact_cost@
response_window_days = @window@
"""

_OFFER: Final = """
[[offers]]
id = "@id@"
name = "Money off @id@"
category = "@id@"
margin = @margin@
incentive_cost = @incentive_cost@
baseline_rate = "coalesce(anyway_@id@_probability, 0)"
"""

_POLICY: Final = """
# Decisions are made for the day on which the simulated history ends.
[clock]
decide_as_of = @until@

[channels.@channel@]
consent_required = true

[fallback]
offers = []
"""


def write_project(shop: Shop, target: Path) -> list[Path]:
    """Write a shop's history as Parquet, its truth beside it, and a project that trains on it.

    Parameters
    ----------
    target : a new or empty folder. ``data/`` holds the contract's tables, ``truth.parquet`` what no
        real shop knows and no model reads.

    Returns
    -------
    The files, in the order of their names; the same shop gives the same bytes.

    Raises
    ------
    ConfigError : the folder holds something already, or cannot be written.
    """
    require_empty(target)
    try:
        _write_tables(shop, target)
        for name, text in files(shop).items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.lstrip("\n"), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(str(target), "it cannot be written", got=reason) from None
    return sorted(path for path in target.rglob("*") if path.is_file())


def _write_tables(shop: Shop, target: Path) -> None:
    import pandas as pd

    (target / "data").mkdir(parents=True, exist_ok=True)
    for name, frame in shop.tables().items():
        frame.to_parquet(target / "data" / f"{name}.parquet", index=False)
    truth = shop.truth()
    n, m = truth.profit.shape
    pd.DataFrame({
        "customer_id": [c for c in truth.customer_ids for _ in range(m)],
        "offer_id": list(truth.offer_ids) * n,
        "response_probability_contacted": truth.contacted.ravel(),
        "response_probability_left_alone": truth.left_alone.ravel(),
        "expected_profit": truth.profit.ravel(),
    }).to_parquet(target / "truth.parquet", index=False)  # fmt: skip


def files(shop: Shop) -> dict[str, str]:
    """Return the text of every file of the three rooms, by its name."""
    ids = [offer.id for offer in shop.offers]
    models = ["propensity", *(f"anyway_{name}" for name in ids)]
    last_mailing = int(shop.mailings[-1])
    common: dict[str, object] = {
        "world": shop.world.name, "seed": min(shop.seed, 2**31 - 1), "channel": CHANNEL,
        "cycle": CYCLE_DAYS, "window": WINDOW_DAYS, "until": _day(shop.days),
        "contact_cost": shop.world.contact_cost, "order": json.dumps(models),
        "categories": "(" + ", ".join(f'"{name}"' for name in ids) + ")",
        "last_two": _day(last_mailing - CYCLE_DAYS), "last_mailing": _day(last_mailing),
        "last_quiet": _day(last_mailing + WINDOW_DAYS),
        "first_quiet": _day(CYCLE_DAYS + WINDOW_DAYS),
    }  # fmt: skip
    plans = [_filled(_ANYWAY_PLAN, {**common, "category": name}) for name in ids]
    offers = [_filled(_OFFER, vars(offer)) for offer in shop.offers]
    return {
        "models/features.py": _filled(_FEATURES, common),
        "models/propensity.py": _PROPENSITY,
        "models/_anyway.py": _filled(_ANYWAY, common),
        **{f"models/anyway_{name}.py": _filled(_ONE_ANYWAY, {"category": name}) for name in ids},
        "training/sources.py": _SOURCES,
        "training/training.toml": _filled(_TRAINING, common) + "".join(plans),
        "serving/offers.toml": _filled(_OFFERS, common) + "".join(offers),
        "serving/policy.toml": _filled(_POLICY, common),
    }


def _day(number: int) -> str:
    """A day of the history as TOML writes it, in UTC."""
    moment: datetime = START + timedelta(days=number)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _filled(text: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text
