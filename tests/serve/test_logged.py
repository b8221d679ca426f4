"""The log as tables is the store, row by row; what came of a contact is counted again by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.decide.inputs import redecide
from nextbest.decide.policy import Policy
from nextbest.errors import DataError
from nextbest.measure.log import DecisionLog, answered
from nextbest.serve import logged
from nextbest.serve.archive import archived_catalogue, archived_policy, folder
from nextbest.serve.logged import write_log
from nextbest.serve.otherwise import Otherwise, reconsider
from nextbest.serve.records import Outcome, naive_utc
from nextbest.serve.runtime import open_store
from nextbest.serve.store import Store

SALT = "a salt of the shop's own"
CHANCE = f"""
[exploration]
salt = "{SALT}"
policy = "epsilon"
epsilon = 0.6
[holdout]
salt = "{SALT}"
share = 0.2
[arms]
salt = "{SALT}"
random_eligible = 0.2
"""


@pytest.fixture
def store(project: Path, serve: Callable[..., TestClient], monkeypatch) -> Iterator[Store]:
    """Sixty customers and a stranger asked on mail and again on email, one request repeated."""
    ids = map("d{:03d}".format, count())
    monkeypatch.setattr("nextbest.serve.decisions.new_decision_ids", lambda n: list(islice(ids, n)))
    with (project / "serving" / "policy.toml").open("a") as policy:
        policy.write(CHANCE)
    client = serve(project)
    everybody = {"customer_ids": [*shop.CUSTOMERS, "stranger"]}
    for channel, limit, key in (("mail", 1, "k1"), ("email", 2, "k2"), ("mail", 1, "k1")):
        question = {**everybody, "channel": channel, "limit": limit, "idempotency_key": key}
        assert client.post("/v1/decisions/batch", json=question).status_code == 200
    opened = open_store(project)
    yield opened
    opened.close()


def written(project: Path, store: Store, where: Path, **more: Any) -> tuple[Any, DecisionLog]:
    where.mkdir(exist_ok=True)
    return write_log(project, store, where, **more), DecisionLog.open(where)


def test_every_decision_is_there_once_with_what_its_offer_earns(
    project: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged, "PART", 7)  # parts do not show
    made, log = written(project, store, tmp_path / "log", profile=["clv", "age_band"])
    assert (made.decisions, made.without_amounts, made.without_record) == (122, 0, 0)
    rows = log.decisions.to_pyarrow().to_pylist()
    # The repeated request is the first again.
    assert len({row["decision_id"] for row in rows}) == 122
    for row in rows:
        record = store.decision(row["decision_id"]).record
        answer, inputs = record["answer"], record["inputs"]
        again = redecide(
            inputs,
            archived_catalogue(project, inputs["catalogue_hash"]),
            archived_policy(project, inputs["policy_hash"]),
        )
        assert (row["customer_id"], row["arm"]) == (answer["customer_id"], answer["arm"])
        assert row["known"] == (row["customer_id"] != "stranger")
        assert row["would_offer_id"] == (record["selection"]["would_choose"] or [None])[0]
        clv = answer["scores"]["clv"]
        assert row["profile_clv"] == (None if clv is None else str(clv))
        if row["rank"] == 0:
            assert answer["offers"] == []
            assert row["selection_probability"] == record["selection"]["no_offer"]
            assert row["margin"] is None
            continue
        offer = answer["offers"][row["rank"] - 1]
        assert row["offer_id"] == offer["offer_id"]
        assert row["selection_probability"] == offer["selection_probability"]
        at = inputs["offer_ids"].index(row["offer_id"])
        for name in logged.AMOUNTS:
            value = np.broadcast_to(getattr(again.values, name), again.fates.shape)[0, at]
            assert row[name] == (value if np.isfinite(value) else None)
    assert {"policy", "holdout", "random_eligible", "fallback"} == {row["arm"] for row in rows}
    assert {row["rank"] for row in rows} == {0, 1, 2}


def test_the_same_policy_would_have_chosen_with_the_same_chances(
    project: Path, store: Store
) -> None:
    own = Policy.load(project / "serving" / "policy.toml")
    until = naive_utc(shop.NOW) + timedelta(days=30)
    found = reconsider(project, store, Otherwise(own, until, window_days=20, first_slot=True))
    assert np.allclose(found.other, found.logged, rtol=0, atol=1e-12)
    parts = [one for part in store.decision_parts(50) for one in part]
    of_policy = {one.decision_id for one in parts if one.arm == "policy"}
    assert set(found.decision_ids) == of_policy and len(of_policy) > 60
    assert sum(found.left_out.values()) == len(parts) - len(of_policy)


def test_what_cannot_be_worked_out_is_counted_and_said(
    project: Path, store: Store, tmp_path: Path
) -> None:
    for file in folder(project).glob("offers-*"):
        file.unlink()
    made, log = written(project, store, tmp_path / "log")
    offered = log.decisions.filter(log.decisions["rank"] == 1).count().to_pyarrow().as_py()
    assert made.without_amounts == offered > 0
    assert "it is not in the archive" in made.because
    assert log.decisions.margin.notnull().sum().to_pyarrow().as_py() == 0
    without, _ = written(project, store, tmp_path / "log", amounts=False)
    assert without.without_amounts == 0


def test_a_span_of_time(project: Path, store: Store, tmp_path: Path) -> None:
    count, first, last = store.log_span()
    assert count == 122 and first == last == naive_utc(shop.NOW)
    made, log = written(project, store, tmp_path / "log", since=first + timedelta(days=1))
    assert made.decisions == 0 and log.until is None
    made, _ = written(project, store, tmp_path / "log", since=first, until=first)
    assert made.decisions == 0


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"decisions\.parquet: cannot be read"):
        DecisionLog.open(tmp_path)


# ------------------------------------------------------------------ what came of it


def report(number: int, customer: str, offer: str | None, kind: str, days: float,
           value: float | None = None, decision: str | None = None) -> Outcome:  # fmt: skip
    at = shop.NOW + timedelta(days=days)
    return Outcome(f"o{number}", customer, offer, kind, at, value, decision)


def by_hand(rows: pd.DataFrame, outcomes: list[Outcome], days: float) -> dict[Any, Any]:
    """Answered, sold and sales of each contact, one outcome after the other."""
    made = rows[rows["rank"] > 0]
    found = {(r.decision_id, r.offer_id): [False, False, 0.0] for r in made.itertuples()}
    for one in outcomes:
        at = pd.Timestamp(naive_utc(one.occurred_at))
        own = made[(made["customer_id"] == one.customer_id) & (made["offer_id"] == one.offer_id)]
        own = own[own["decided_at"] <= at]
        if one.decision_id is not None:
            own = own[own["decision_id"] == one.decision_id]
        else:
            own = own[own["decided_at"] == own["decided_at"].max()].head(1)
        for contact in own.itertuples():
            end = contact.window_ends_at
            end = contact.decided_at + pd.Timedelta(days=days) if pd.isna(end) else end
            if at <= end:
                entry = found[contact.decision_id, contact.offer_id]
                entry[0] |= one.outcome_type in ("response", "conversion")
                entry[1] |= one.outcome_type in ("conversion", "purchase")
                if one.outcome_type in ("conversion", "purchase"):
                    entry[2] += one.value or 0.0
                if one.outcome_type == "return":
                    entry[2] -= abs(one.value or 0.0)
    return found


def test_what_came_of_each_contact(project: Path, store: Store, tmp_path: Path) -> None:
    _, log = written(project, store, tmp_path / "log")
    rows = log.decisions.to_pandas()
    random = np.random.default_rng(5)
    offers = rows[rows["rank"] == 1].drop_duplicates(["customer_id", "offer_id"])
    outcomes = []
    for number, row in enumerate(offers.itertuples()):
        for _ in range(random.integers(0, 4)):
            kind = str(random.choice(["response", "conversion", "purchase", "return", "click"]))
            named = row.decision_id if random.random() < 0.5 else None
            value = round(float(random.gamma(2, 10)), 2) if random.random() < 0.8 else None
            days = float(random.choice([0.0, 3.0, 14.0, 14.1, 21.0, 40.0]))
            outcomes.append(report(1000 * number + len(outcomes), row.customer_id, row.offer_id,
                                   kind, days, value, named))  # fmt: skip
    outcomes.append(report(9_999_999, "c01", None, "purchase", 1.0, 5.0))  # about no offer
    assert set(store.record_outcomes(outcomes)) == {"stored"}
    made, log = written(project, store, tmp_path / "log")
    assert made.outcomes == len(outcomes)
    expected = by_hand(rows, outcomes, 20)
    found = answered(log, 20).to_pandas()
    assert len(found) == len(expected) == (rows["rank"] > 0).sum()
    for row in found.itertuples():
        answer, sold, sales = expected[row.decision_id, row.offer_id]
        assert (row.answered, row.sold) == (answer, sold)
        assert row.sales == pytest.approx(sales)
    assert 5 < sum(e[0] for e in expected.values()) < len(expected)
    # Without a window of its own nobody knows until when an answer to offer b counts.
    none = answered(log).to_pandas()
    assert none["answered"].isna().equals(none["offer_id"] != "a")
    assert json.dumps(sorted(none["offer_id"].unique())) == '["a", "b"]'
