"""What customers are worth after the window comes from profiles that were made after it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.errors import DataError
from nextbest.measure.experiment import Design
from nextbest.proof.experiments import Asked, FromLog, read_log
from nextbest.serve.records import Outcome
from nextbest.serve.runtime import open_store

EARLY = datetime(2020, 1, 20)
HALF = """
[holdout]
salt = "a salt of the shop's own"
share = 0.5
"""


def said(project: Path, *outcomes: str, **asked: Any) -> FromLog:
    rooms: Any = SimpleNamespace(root=project)
    question = Asked(outcomes, days=20, margin_share=0.5, **asked)
    return read_log(rooms, question, Design(), lambda _: None)


def test_clv_is_margin_and_what_the_profiles_expect_after_it(
    project: Path, serve: Callable[..., TestClient]
) -> None:
    policy = project / "serving" / "policy.toml"
    text = policy.read_text().replace("2020-03-02T09:00:00Z", "2020-01-20T00:00:00Z")
    policy.write_text(text + HALF)
    question = {"customer_ids": shop.CUSTOMERS, "channel": "mail"}
    answers = serve(project).post("/v1/decisions/batch", json=question).json()["decisions"]
    held = {a["customer_id"] for a in answers if a["arm"] == "holdout"}
    assert 20 < len(held) < 40
    buyers = {customer: 10.0 + i for i, customer in enumerate(shop.CUSTOMERS[::3])}
    store = open_store(project)
    store.record_outcomes([
        Outcome(f"o{customer}", customer, None, "purchase", EARLY + timedelta(days=3), value)
        for customer, value in buyers.items()
    ])  # fmt: skip
    store.record_outcomes([
        Outcome("late", "c00", None, "click", EARLY + timedelta(days=40)),
    ])  # fmt: skip
    store.close()
    # The profiles are of March 1, 40 days after the decisions, and clv rises evenly to 900.
    clv = dict(zip(shop.CUSTOMERS, [10 + i * 890 / 59 for i in range(60)], strict=True))
    found = said(project, "clv", "margin").reading.overall
    for arm, mean in (("policy", found[0].mean), ("holdout", found[0].mean_against)):
        own = [c for c in shop.CUSTOMERS if (c in held) == (arm == "holdout")]
        offers = {a["customer_id"]: len(a["offers"]) for a in answers}
        each = [0.5 * buyers.get(c, 0.0) - 0.1 * offers[c] + clv[c] for c in own]
        assert mean == pytest.approx(sum(each) / len(own))
    with pytest.raises(DataError, match="or profiles as of 2020-03-05"):
        said(project, "clv", until=datetime(2020, 3, 5))
