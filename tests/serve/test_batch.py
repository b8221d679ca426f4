"""Batch decisions are the online decisions, in a file that appears whole or not at all."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from shop import CUSTOMERS, POLICY

from nextbest.errors import StoreError, UsageError
from nextbest.serve.batch import decide_batch, situation_for
from nextbest.serve.runtime import State, load_state, open_store

Serve = Callable[..., TestClient]


@pytest.fixture
def state(project: Path) -> State:
    return load_state(project)


def by_customer(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["customer_id"], []).append(row)
    return found


@pytest.mark.parametrize("channel", ["mail", "email"])
@pytest.mark.parametrize("limit", [1, 2])
def test_batch_and_online_decide_alike_for_every_customer(
    project: Path, serve: Serve, state: State, channel: str, limit: int
) -> None:
    context = {"weather": "rain"}
    situation = situation_for(state, channel, context=context, limit=limit)
    out = project / "out.parquet"
    summary = decide_batch(state, situation, out)
    rows = by_customer(pq.read_table(out).to_pylist())
    assert sorted(rows) == CUSTOMERS
    client = serve(project)
    for customer_id in CUSTOMERS:
        question = {
            "customer_id": customer_id,
            "channel": channel,
            "context": context,
            "limit": limit,
        }
        online = client.post("/v1/decisions", json=question).json()["offers"]
        batch = [row for row in rows[customer_id] if row["rank"] > 0]
        assert len(online) == len(batch)
        for one, row in zip(online, batch, strict=True):
            for name in (
                "offer_id", "rank", "propensity", "expected_profit", "priority",
                "selection_probability",
            ):  # fmt: skip
                assert one[name] == row[name], (customer_id, name)
    assert summary.customers == len(CUSTOMERS)


def test_decisions_do_not_depend_on_how_the_batch_is_cut(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    situation = situation_for(state, "mail", limit=2)
    one = decide_batch(state, situation, whole)
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 7)
    other = decide_batch(state, situation, cut)
    assert pq.read_table(whole).equals(pq.read_table(cut))
    same = {**one.to_dict(), "file": None, "expected_profit": None}
    assert same == {**other.to_dict(), "file": None, "expected_profit": None}
    assert math.isclose(one.expected_profit, other.expected_profit, rel_tol=1e-12)


def test_the_summary_adds_up(state: State, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    situation = situation_for(state, "email")
    seen = []
    summary = decide_batch(state, situation, out, progress=lambda *at: seen.append(at))
    rows = pq.read_table(out).to_pylist()
    assert seen[-1] == (60, 60)
    assert summary.rows == len(rows) == 60
    assert summary.with_offer + summary.no_offer == summary.customers == 60
    assert sum(summary.offers.values()) == summary.with_offer > 0
    assert summary.no_offer > 0
    assert summary.arms == {"policy": 60}
    profit = sum(row["expected_profit"] for row in rows if row["rank"] > 0)
    assert math.isclose(summary.expected_profit, profit, rel_tol=1e-12)
    for offer_id, fates in summary.funnel.items():
        lost = sum(sum(reasons.values()) for reasons in fates["lost"].values())
        assert fates["customers"] == 60 == lost + fates["chosen"]
        assert fates["chosen"] == summary.offers[offer_id]
    assert summary.funnel["c"]["lost"] == {"candidate": {"ended": 60}}


def test_a_customer_without_an_offer_has_a_row_that_says_why(state: State, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    decide_batch(state, situation_for(state, "email"), out)
    rows = by_customer(pq.read_table(out).to_pylist())
    (row,) = rows["c02"]  # has not said whether mail is liked
    assert (row["rank"], row["offer_id"], row["propensity"]) == (0, None, None)
    assert row["no_offer_because"] == "contact_policy: consent"


def test_csv_holds_the_same_as_parquet(state: State, tmp_path: Path) -> None:
    situation = situation_for(state, "mail")
    decide_batch(state, situation, tmp_path / "out.parquet")
    decide_batch(state, situation, tmp_path / "out.csv")
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(table[0])
    for row, expected in zip(rows, table, strict=True):
        assert row["customer_id"] == expected["customer_id"]
        assert row["offer_id"] == (expected["offer_id"] or "")
        if expected["expected_profit"] is not None:
            assert float(row["expected_profit"]) == expected["expected_profit"]


def test_the_same_batch_has_the_same_ids_and_another_has_others(
    state: State, tmp_path: Path
) -> None:
    ids = {}
    for name, limit in (("first", 1), ("again", 1), ("other", 2)):
        out = tmp_path / f"{name}.parquet"
        decide_batch(state, situation_for(state, "mail", limit=limit), out)
        ids[name] = pq.read_table(out)["decision_id"].to_pylist()
    assert ids["first"] == ids["again"]
    assert len(set(ids["first"])) == 60
    assert not set(ids["first"]) & set(ids["other"])


def test_single_customers_and_strangers_can_be_asked_for(state: State) -> None:
    situation = situation_for(state, "mail")
    summary = decide_batch(state, situation, customer_ids=["c01", "nobody"])
    assert (summary.customers, summary.arms) == (2, {"policy": 1, "fallback": 1})


def test_nobody_to_decide_for_is_an_empty_file(state: State, tmp_path: Path) -> None:
    for name in ("out.parquet", "out.csv"):
        out = tmp_path / name
        summary = decide_batch(state, situation_for(state, "mail"), out, customer_ids=[])
        assert summary.customers == summary.rows == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert (tmp_path / "out.csv").read_text().startswith('"decision_id"')


def test_recorded_decisions_count_as_contacts_and_take_outcomes(
    project: Path, serve: Serve, state: State, tmp_path: Path
) -> None:
    situation = situation_for(state, "mail")
    store = open_store(project)
    out = tmp_path / "out.parquet"
    decide_batch(state, situation, out, store=store, record=True)
    decide_batch(state, situation, out, store=store, record=True)  # harmless
    assert len(store.history(["c01"])[0].at) == 1
    store.close()
    (row,) = by_customer(pq.read_table(out).to_pylist())["c01"]
    client = serve(project)
    stored = client.get(f"/v1/decisions/{row['decision_id']}").json()
    assert stored["decision"]["offers"][0]["offer_id"] == row["offer_id"]
    report = {
        "outcome_id": "o1",
        "decision_id": row["decision_id"],
        "outcome_type": "response",
        "occurred_at": "2020-03-02T09:00:00Z",
    }
    assert client.post("/v1/outcomes", json=report).status_code == 200


def test_past_contacts_hold_a_batch_back(project: Path, serve: Serve, state: State) -> None:
    client = serve(project)
    for _ in range(2):
        client.post("/v1/decisions", json={"customer_id": "c01", "channel": "mail"})
    store = open_store(project)
    summary = decide_batch(state, situation_for(state, "mail"), store=store)
    store.close()
    free = decide_batch(state, situation_for(state, "mail"))
    assert (summary.no_offer, free.no_offer) == (free.no_offer + 1, free.no_offer)
    held = sum(
        reasons.get("two letters a week", 0)
        for fates in summary.funnel.values()
        for reasons in fates["lost"].values()
    )
    assert held > 0


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("out.xlsx", UsageError, r"ends in \.parquet or \.csv; got .*out\.xlsx"),
        ("out", UsageError, r"ends in \.parquet or \.csv"),
        ("folder.csv", UsageError, "there is a folder of this name"),
        ("file/out.csv", StoreError, "the file cannot be written"),
    ],
)
def test_a_file_that_cannot_be_is_refused(
    state: State, tmp_path: Path, name: str, error: type[Exception], says: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=says):
        decide_batch(state, situation_for(state, "mail"), tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.iterdir() if "out" in entry.name) == []


def test_missing_folders_are_made(state: State, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "down" / "out.parquet"
    decide_batch(state, situation_for(state, "mail"), out)
    assert pq.read_table(out).num_rows == 60


def test_a_batch_that_fails_midway_leaves_the_file_before_it(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("yesterday")
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 10)

    def stop(done: int, _: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decide_batch(state, situation_for(state, "mail"), out, progress=stop)
    assert out.read_text() == "yesterday"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.csv", "shop"]


def test_the_only_channel_is_the_default_and_others_must_be_named(
    project: Path, state: State
) -> None:
    with pytest.raises(UsageError, match=r"which channel.*one of mail, email"):
        situation_for(state)
    with pytest.raises(UsageError, match=r'no channel "emial".*Did you mean "email"'):
        situation_for(state, "emial")
    one = POLICY.replace('[channels.email]\nconsent_column = "likes_mail"\n', "")
    (project / "serving" / "policy.toml").write_text(one)
    offers = project / "serving" / "offers.toml"
    offers.write_text(offers.read_text().replace('["mail", "email"]', '["mail"]'))
    assert situation_for(load_state(project)).channel == "mail"


def test_without_a_fixed_clock_the_moment_is_given(project: Path) -> None:
    policy = POLICY.replace("decide_as_of = 2020-03-02T09:00:00Z", "")
    (project / "serving" / "policy.toml").write_text(policy)
    now = datetime(2020, 3, 5, tzinfo=UTC)
    assert situation_for(load_state(project), "mail", now=now).decided_at == now


def test_a_repeated_batch_records_each_decision_once_and_says_so(
    project: Path, state: State, tmp_path: Path
) -> None:
    situation = situation_for(state, "mail")
    store = open_store(project)
    first = decide_batch(state, situation, tmp_path / "1.parquet", store=store, record=True)
    again = decide_batch(state, situation, tmp_path / "2.parquet", store=store, record=True)
    assert (first.recorded, first.recorded_before) == (60, 0)
    assert (again.recorded, again.recorded_before) == (0, 60)
    assert again.batch_id == first.batch_id
    assert pq.read_table(tmp_path / "1.parquet").equals(pq.read_table(tmp_path / "2.parquet"))
    assert len(store.history(None)[0].at) == first.with_offer
    store.close()


def test_a_batch_that_broke_off_is_resumed(
    project: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 25)
    situation = situation_for(state, "mail")
    store = open_store(project)

    def breaks_off(done: int, _: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decide_batch(state, situation, store=store, record=True, progress=breaks_off)
    summary = decide_batch(state, situation, store=store, record=True)
    assert (summary.recorded, summary.recorded_before) == (35, 25)
    assert len(store.history(None)[0].at) == summary.with_offer
    store.close()


def test_other_contacts_before_it_make_another_batch(
    project: Path, serve: Serve, state: State
) -> None:
    client = serve(project)
    situation = situation_for(state, "mail")
    store = open_store(project)
    before = decide_batch(state, situation, store=store).batch_id
    client.post("/v1/decisions", json={"customer_id": "c01", "channel": "mail"})
    after = decide_batch(state, situation, store=store, record=True).batch_id
    assert before != after
    client.post("/v1/decisions", json={"customer_id": "c04", "channel": "mail"})
    with pytest.raises(UsageError, match="was recorded before, when other contacts"):
        decide_batch(state, situation, store=store, record=True)
    # What comes after the batch's moment is not before it.
    early = situation_for(state, "email")
    early = replace(early, decided_at=early.decided_at - timedelta(days=1))
    one = decide_batch(state, early, store=store).batch_id
    client.post("/v1/decisions", json={"customer_id": "c07", "channel": "mail"})
    assert decide_batch(state, early, store=store).batch_id == one
    store.close()


def test_what_a_batch_records_does_not_change_its_own_later_customers(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new offer's reach follows the log as it was when the batch began."""
    policy = project / "serving" / "policy.toml"
    reach = 'salt = "a salt of our own"\nnew_offer_reach = 0.3\nfull_reach_contacts = 5\n'
    policy.write_text(policy.read_text() + f"[exploration]\n{reach}")
    state = load_state(project)
    situation = situation_for(state, "mail")
    whole = decide_batch(state, situation)
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 7)
    store = open_store(project)
    try:
        cut = decide_batch(state, situation, store=store, record=True)
        assert cut.offers == whole.offers
        assert cut.offers["a"] + cut.offers["b"] < 40
        later = decide_batch(state, situation_for(state, "email"), store=store)
    finally:
        store.close()
    assert later.funnel["a"]["lost"].get("reach") is None  # by now everybody is reached
