"""High value is value, not volume; and who becomes high-value is told from who is already.

The customers are made up so that the truth is known: their orders go through the real data
contract, features and labels, and the reference project's own hvc model learns from them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from nextbest.data import snapshots
from nextbest.data.contract import check_and_clean
from nextbest.learn.estimators import FeatureEncoder
from nextbest.learn.metrics import in_top_share, is_and_becoming
from nextbest.project import Project

ROOT = Path(__file__).parents[2]
LEARN, ASK = datetime(2023, 5, 1), datetime(2023, 11, 1)
AISLES = ("bread", "milk", "meat", "wine", "fish", "fruit", "cheese", "toys")
#: kind -> customers at each of the two moments; the rich and the widening are the top fifth
KINDS = {"steady": 210, "rich": 30, "burst": 30, "widening": 30}


def orders(kind: str, at: datetime, rng: np.random.Generator) -> list[tuple[datetime, float, str]]:
    """One customer's half year before a moment and the quarter after it."""

    def shop(first: int, last: int, every: float, amount: float, aisles: Any) -> None:
        for day in np.arange(first, last, every) + rng.uniform(0, every, 1):
            size = amount * rng.uniform(0.8, 1.2)
            made.append((at + timedelta(days=float(day)), size, str(rng.choice(aisles))))

    made: list[tuple[datetime, float, str]] = []
    if kind == "rich":
        shop(-180, 90, 7, 80, AISLES[:5])
        return made
    shop(-180, 90, 9, 20, AISLES[:2])
    if kind == "burst":  # many cheap orders in the last four weeks, then as before
        shop(-27, 0, 0.7, 3, AISLES[:2])
    if kind == "widening":  # a few orders in aisles never visited before, then a full basket
        shop(-25, 0, 5, 8, AISLES[2:])
        shop(0, 90, 4, 60, AISLES)
    return made


@pytest.fixture(scope="module")
def scored() -> pd.DataFrame:
    """Customers of the second moment: kind, label, the model's score and past spend."""
    rng = np.random.default_rng(5)
    rows: dict[str, list[Any]] = {
        n: [] for n in ("customer_id", "order_id", "ordered_at", "amount", "category")
    }
    for at in (LEARN, ASK):
        for kind, count in KINDS.items():
            for i in range(count):
                who = f"{kind}-{at:%m}-{i}"
                for n, (when, amount, aisle) in enumerate(orders(kind, at, rng)):
                    values = (who, f"{who}-{n}", when, round(amount, 2), aisle)
                    for column, value in zip(rows.values(), values, strict=True):
                        column.append(value)
    people = sorted(set(rows["customer_id"]))
    history = check_and_clean(
        {"customers": ibis.memtable({"customer_id": people}), "transactions": ibis.memtable(rows)},
        observed_until=ASK + timedelta(days=91),
    )
    project = Project.open(ROOT)
    model = project.model("hvc")
    snapshot = snapshots.build(history, model.label, model.groups(project.groups), [LEARN, ASK])
    frame = snapshot.frame
    columns = [f.name for f in snapshot.features if f.name not in model.exclude]
    train = frame[frame["as_of"] == LEARN]
    test = frame[frame["as_of"] == ASK].reset_index(drop=True)
    # The customers of one moment have not bought within 90 days of the other: nobody is in both.
    assert len(train) == len(test) == sum(KINDS.values())
    encoder = FeatureEncoder().fit(train[columns])
    estimator = model.estimator.set_params(trees__random_state=0)
    estimator.fit(encoder.transform(train[columns]), train["label"])
    score = estimator.predict_proba(encoder.transform(test[columns]))[:, 1]
    baseline = model.baseline.fit(train, train["label"].to_numpy()).score(test)
    kind = test["customer_id"].str.split("-").str[0]
    return test.assign(kind=kind, score=score, baseline=baseline)


def test_a_burst_of_cheap_orders_is_not_high_value(scored: pd.DataFrame) -> None:
    burst, rich = scored[scored["kind"] == "burst"], scored[scored["kind"] == "rich"]
    # By volume they would be on top.
    assert burst["orders_28d"].min() > rich["orders_28d"].max() * 3
    assert rich["label"].mean() == 1
    assert burst["label"].sum() == 0
    top = in_top_share(scored["score"], 0.2)
    assert not top[burst.index].any()
    assert in_top_share(scored["orders_28d"], 0.2)[burst.index].all()


def test_a_widening_basket_is_becoming_high_value_and_the_rich_are_it(scored: pd.DataFrame) -> None:
    ahead, today = in_top_share(scored["score"], 0.2), in_top_share(scored["baseline"], 0.2)
    widening, rich = scored["kind"] == "widening", scored["kind"] == "rich"
    assert (ahead & today)[rich].all()
    becoming = ahead & ~today
    assert becoming[widening].mean() > 0.9
    assert scored.loc[widening, "new_category_spend_28d"].min() > 0
    # Past spend sees nothing coming: it puts none of them on top but by chance.
    assert today[widening].mean() < 0.5


def test_standing_is_counted_as_by_hand_with_scipys_interval(scored: pd.DataFrame) -> None:
    y, score, past = (scored[c].to_numpy() for c in ("label", "score", "baseline"))
    found = is_and_becoming(y, score, past, share=0.2)
    n = int(len(y) * 0.2)
    ahead, today = (set(np.argsort(-v, kind="stable")[:n]) for v in (score, past))
    groups = {"is": ahead & today, "becoming": ahead - today, "slipping": today - ahead}
    assert found["is"][0] + found["becoming"][0] == n
    for name, members in groups.items():
        count, right = found[name]
        hits = int(y[sorted(members)].sum())
        theirs = binomtest(hits, len(members)).proportion_ci(method="wilson")
        assert count == len(members) > 0
        assert right is not None
        assert right.value == hits / count
        assert (right.low, right.high) == pytest.approx((theirs.low, theirs.high))


def test_nobody_becomes_what_the_past_says_already() -> None:
    y, value = np.array([1.0, 0, 0, 0, 0]), np.arange(5.0)[::-1]
    found = is_and_becoming(y, value, value, share=0.2)
    assert found["becoming"] == found["slipping"] == (0, None)
    assert found["is"][0] == 1
