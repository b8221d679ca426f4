"""Drift since the test: what grows by nature or had moved before is no news, what is new is named.

A small shop whose truth is known: every customer has a steady amount, a total that only grows, and
the days since the last of the shop's campaigns, which jump whenever there is one.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nextbest.errors import ArtifactError, DataError
from nextbest.learn import watch

FIRST = datetime(2023, 1, 1)
COLUMNS = ["amount", "total", "since_campaign", "region"]
CUSTOMERS = 1_000


def rows(month: int, *, seed: int = 0, amount: float = 20.0) -> pd.DataFrame:
    """The customers at the end of one month; campaigns go out every third month."""
    random = np.random.default_rng((seed, month))
    steady = np.random.default_rng(99).gamma(4.0, 1.0, CUSTOMERS)
    return pd.DataFrame(
        {
            "customer_id": [f"c{i}" for i in range(CUSTOMERS)],
            "as_of": FIRST + timedelta(days=30 * month),
            "amount": amount * random.gamma(5.0, 0.2, CUSTOMERS),
            "total": steady * (month + 1) ** 1.0 + 0.01,
            "since_campaign": 30.0 * (month % 3) + random.integers(0, 3, CUSTOMERS),
            "region": random.choice(["north", "south"], CUSTOMERS),
        }
    )


TRAIN = pd.concat([rows(m) for m in range(6)], ignore_index=True)
TEST = rows(7)


@pytest.fixture(scope="module")
def memory() -> dict[str, Any]:
    kept = watch.remember(TRAIN, TEST, COLUMNS, np.linspace(0, 1, CUSTOMERS) ** 2)
    return json.loads(json.dumps(kept, allow_nan=False))


def named(found: watch.Watch) -> set[str]:
    return {d.name for d in found.report.all if d.status != "ok"}


def test_what_only_grows_is_told_from_what_goes_up_and_down() -> None:
    assert watch.one_way(TRAIN, COLUMNS) == ("total",)
    falling = TRAIN.assign(left=-TRAIN.total, region=TRAIN.region)
    assert watch.one_way(falling, ["left", "amount"]) == ("left",)
    # Goods that come back: one step in two hundred lowers the total, and it is still a total.
    returned = TRAIN.total.to_numpy().copy()
    returned[5 * CUSTOMERS : 5 * CUSTOMERS + 25] = 0.0
    assert watch.one_way(TRAIN.assign(total=returned), ["total"]) == ("total",)
    returned[5 * CUSTOMERS : 5 * CUSTOMERS + 400] = 0.0
    assert watch.one_way(TRAIN.assign(total=returned), ["total"]) == ()
    # With one row for each customer nobody can say.
    assert watch.one_way(TEST, COLUMNS) == ()


@pytest.mark.parametrize("month", [8, 9, 10])
def test_a_shop_that_goes_on_as_before_moves_nothing(memory: dict[str, Any], month: int) -> None:
    found = watch.watch(memory, rows(month), np.linspace(0, 1, 500) ** 2)
    assert (found.status, named(found)) == ("ok", set())
    assert found.one_way == ("total",)
    (line,) = found.lines()
    assert line == "nothing has moved since training (3 features and the score, 1,000 rows)"
    # The same rows held against the training rows alone raise an alarm for silly reasons.
    if month != 9:
        assert "since_campaign" in found.known


def test_what_is_new_is_named_with_size_and_test(memory: dict[str, Any]) -> None:
    found = watch.watch(memory, rows(8, amount=35.0), np.linspace(0, 1, 500) ** 2)
    assert (found.status, named(found)) == ("alarm", {"amount"})
    first, line = found.lines()
    assert first == "1 of 3 features and the score moved since training (1,000 rows)"
    assert line.startswith("amount: alarm; ") and "PSI" in line and "ks" in line


def test_scores_that_moved_are_named(memory: dict[str, Any]) -> None:
    found = watch.watch(memory, rows(8), np.linspace(0, 1, 500) ** 0.5)
    assert named(found) == {"score"} and found.status == "alarm"


def test_what_had_moved_by_the_test_and_stayed_is_no_news() -> None:
    moved = watch.remember(TRAIN, rows(7, amount=35.0), COLUMNS)
    assert named(watch.watch(moved, rows(8, amount=35.0))) == set()
    # Back to where it was in training: the model was shown to hold there as well.
    assert named(watch.watch(moved, rows(8))) == set()
    assert named(watch.watch(moved, rows(8, amount=70.0))) == {"amount"}


def test_the_base_rate_counts_customers_not_rows(memory: dict[str, Any]) -> None:
    def rate(positives: int, of: int) -> watch.Watch:
        return watch.watch(
            memory, rows(8), positives=(600, 6_000), later={"as of June": (positives, of)}
        )

    assert rate(105, 1_000).status == "ok"
    raised = rate(200, 1_000)
    assert raised.status == "alarm"
    assert raised.lines()[1].startswith("as of June: alarm; base rate 10.0% before, 20.0% now")
    assert raised.rates[0].rows_reference == CUSTOMERS  # of 6,000 rows
    # From 10% to 15% in 200 rows: 6,000 rows would call it certain, 1,000 customers do not.
    assert rate(30, 200).status == "ok"


def test_everything_is_plain_json(memory: dict[str, Any]) -> None:
    found = watch.watch(memory, rows(8), positives=(600, 6_000), later={"now": (90, 1_000)})
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["status"] == "ok" and facts["one_way"] == ["total"]
    assert [r["block"] for r in facts["rates"]] == ["now"]


def test_what_cannot_be_answered_is_refused(memory: dict[str, Any]) -> None:
    with pytest.raises(DataError, match='the rows lack the column "amount"'):
        watch.watch(memory, rows(8).drop(columns="amount"))
    for damaged in ({}, {**memory, "usual": {}}, {**memory, "tested": 3}):
        with pytest.raises(ArtifactError, match=r"it cannot be read.*Train the model again"):
            watch.watch(damaged, rows(8))
