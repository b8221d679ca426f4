"""The reference project's own feature groups, counted again by hand on a few lines."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pytest

from nextbest.data import snapshots
from nextbest.data.contract import check_and_clean
from nextbest.project import Project

NOW = datetime(2023, 9, 1)
#: customer, order, days ago, product, amount, discount, coupon discount
LINES = [
    ("a", "1", 100, "soap", 4.0, 1.0, 0.5),
    ("a", "1", 100, "bread", 2.0, 0.0, 0.0),
    ("a", "2", 20, "soap", 5.0, 0.0, 0.0),
    ("a", "3", 10, "soap", 0.0, 3.0, 3.0),  # free with a coupon
    ("a", "4", 5, "bread", 2.0, 0.0, 0.0),
    ("a", "5", 2, "soap", 5.0, 0.0, 0.0),
    ("a", "6", 200, "shampoo", 9.0, 4.0, 4.0),  # too long ago for the windows
    ("a", "7", -1, "soap", 5.0, 2.0, 2.0),  # tomorrow
    ("b", "8", 3, "bread", 2.0, 0.5, 0.5),
]


@pytest.fixture(scope="module")
def frames() -> snapshots.ProfileFrames:
    columns: dict[str, Any] = {
        "customer_id": [r[0] for r in LINES],
        "order_id": [r[1] for r in LINES],
        "ordered_at": [NOW - timedelta(days=r[2]) for r in LINES],
        "product_id": [r[3] for r in LINES],
        "amount": [r[4] for r in LINES],
        "discount": [r[5] for r in LINES],
        "coupon_discount": [r[6] for r in LINES],
    }
    offers = {
        "offer_id": ["wash"],
        "starts_at": [NOW],
        "ends_at": [NOW + timedelta(days=30)],
        "product_ids": [["soap", "shampoo"]],
    }
    history = check_and_clean(
        {
            "customers": ibis.memtable({"customer_id": ["a", "b", "c"]}),
            "transactions": ibis.memtable(columns),
            "offers": ibis.memtable(offers),
        },
        observed_until=NOW + timedelta(days=60),
    )
    project = Project.open(Path(__file__).parents[1])
    groups = [g for g in project.groups if g.name in ("coupons", "offer_coupons")]
    assert len(groups) == 2
    return snapshots.profile(history, groups, NOW, ["wash"])


def test_coupons_at_the_till(frames: snapshots.ProfileFrames) -> None:
    found = frames.customers.set_index("customer_id")
    assert found.loc["a", "coupon_orders_28d"] == 1
    assert found.loc["a", "coupon_orders_182d"] == 2
    assert found.loc["a", "coupon_discount_182d"] == 3.5
    assert found.loc["a", "coupon_products_182d"] == 1
    assert found.loc["a", "days_since_coupon"] == 10
    assert found.loc["a", "coupon_order_share_182d"] == pytest.approx(2 / 5)
    assert found.loc["a", "coupon_spend_share_182d"] == pytest.approx(3.5 / 18)
    assert found.loc["b", "coupon_order_share_182d"] == 1
    assert found.loc["c", "coupon_orders_182d"] == 0
    assert np.isnan(found.loc["c", "coupon_order_share_182d"])


def test_how_the_offers_products_were_come_by(frames: snapshots.ProfileFrames) -> None:
    found = frames.pairs.set_index("customer_id")
    assert found.loc["a", "offer_coupon_lines"] == 2
    assert found.loc["a", "offer_coupon_discount"] == 3.5
    assert found.loc["a", "days_since_offer_coupon"] == 10
    assert found.loc["a", "offer_product_discount"] == 4
    assert found.loc["a", "offer_product_spend_28d"] == 10
    assert found.loc["a", "offer_products_repeated"] == 1
    assert found.loc["a", "offer_products_regular"] == 1  # four orders of soap
    for nobody in ("b", "c"):
        row = found.loc[nobody].drop(["offer_id", "as_of", "days_since_offer_coupon"])
        assert (row == 0).all()
        assert np.isnan(found.loc[nobody, "days_since_offer_coupon"])
