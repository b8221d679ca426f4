"""Online, online in bulk and batch are one decision, for every customer, arm and way to explore."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.errors import UsageError
from nextbest.serve.batch import BatchSummary, decide_batch, situation_for
from nextbest.serve.records import DecisionRecord, Outcome, Stake
from nextbest.serve.replay import trace_of
from nextbest.serve.runtime import load_state
from nextbest.serve.store import Store

Serve = Callable[..., TestClient]
SALT = "a salt of our own"
ARMS = f"""
[holdout]
salt = "{SALT}"
share = 0.12
offers = {{ "a" = 0.2 }}

[arms]
salt = "{SALT}"
no_contact = 0.15
random_eligible = 0.2
propensity_only = 0.2
no_levers = 0.2

[[levers]]
offer = "b"
multiplier = 3
until = 2020-12-31
reason = "bread is old"
"""
EXPLORATIONS = {
    "greedy": 'policy = "greedy"',
    "epsilon": 'policy = "epsilon"\nepsilon = 0.6\nloss_budget = 500\nlargest_loss = 20\n'
    "largest_gain = 20",
    "softmax": 'policy = "softmax"\ntemperature = 2.0\nmax_loss_share = 0.3',
    "thompson": 'policy = "thompson"\nprior_strength = 4\nnew_offer_reach = 0.4\n'
    "full_reach_contacts = 500",
}
STAGES = "response_window_days = 14"


def explore(project: Path, exploration: str) -> None:
    policy = project / "serving" / "policy.toml"
    section = f'[exploration]\nsalt = "{SALT}"\n{exploration}\n'
    policy.write_text(policy.read_text() + ARMS + section)
    offers = project / "serving" / "offers.toml"
    text = offers.read_text().replace("contact_cost = 0.1", f"contact_cost = 0.1\n{STAGES}")
    # The offer says it itself as well; once is enough.
    offers.write_text(text.replace(f'name = "Apples"\n{STAGES}', 'name = "Apples"'))


def past(store: Store) -> None:
    """Contacts with others, long ago: counts for Thompson and reach, and losses that stop bread."""
    at = shop.NOW - timedelta(days=60)
    records, outcomes = [], []
    for i in range(60):
        stake = Stake(0.3, at + timedelta(days=14), 9.0, -9.0)
        records.append(
            DecisionRecord(
                f"p{i}", f"x{i}", at, "mail", "policy", ("ab"[i % 2],), {}, "h", stakes=(stake,)
            )
        )
        if i % 4 == 0:
            told = (f"o{i}", f"x{i}", "a", "response", at + timedelta(days=2), None, f"p{i}")
            outcomes.append(Outcome(*told))
    store.record_decisions(records)
    store.record_outcomes(outcomes)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    """Stores by name, each with the same past."""
    opened = {}

    def at(name: str) -> Store:
        if name not in opened:
            opened[name] = Store.at(tmp_path / f"{name}.db")
            past(opened[name])
        return opened[name]

    yield at
    for store in opened.values():
        store.close()


@pytest.mark.parametrize(
    ("name", "limit"), [("greedy", 2), ("epsilon", 1), ("softmax", 2), ("thompson", 1)]
)
def test_every_customer_in_every_arm_gets_the_same_in_all_three_ways(
    project: Path,
    serve: Serve,
    stores: Callable[[str], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    limit: int,
) -> None:
    explore(project, EXPLORATIONS[name])
    state = load_state(project)
    everybody = [*shop.CUSTOMERS, "nobody", "nowhere"]
    batch = stores("batch")
    out = tmp_path / "out.parquet"
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 13)
    decide_batch(
        state, situation_for(state, "mail", limit=limit), out, customer_ids=everybody, store=batch,
        record=True,
    )  # fmt: skip
    rows = pq.read_table(out).to_pylist()
    ids = {row["customer_id"]: row["decision_id"] for row in rows}
    expected = {}
    for customer_id, decision_id in ids.items():
        kept = batch.decision(decision_id)
        assert kept is not None
        expected[customer_id] = kept.record

    # Ids decide what is drawn, so both servers get those of the batch; counting, once a minute by
    # the wall clock, must see the past alone.
    monkeypatch.setattr("nextbest.serve.learnt.COUNTS_SECONDS", 1e9)

    def client(store: str) -> TestClient:
        stores(store)
        given = iter([ids[customer_id] for customer_id in everybody])
        monkeypatch.setattr(
            "nextbest.serve.decisions.new_decision_ids", lambda n: list(islice(given, n))
        )
        monkeypatch.setenv("NEXTBEST_STORE", f"sqlite:///{tmp_path / store}.db")
        return serve(project)

    question = {"channel": "mail", "limit": limit, "explain": True}
    one = client("one")
    single = {
        customer_id: one.post("/v1/decisions", json={"customer_id": customer_id, **question}).json()
        for customer_id in everybody
    }
    asked = {"customer_ids": everybody, **question}
    answers = client("many").post("/v1/decisions/batch", json=asked).json()["decisions"]
    assert {answer["customer_id"]: answer for answer in answers} == single
    for customer_id, answer in single.items():
        trace = answer.pop("trace")
        assert answer == expected[customer_id]["answer"]
        again, missing = trace_of(project, expected[customer_id])
        assert again is not None, missing
        for named in ("contributions", "because"):  # a batch does not work them out
            trace.pop(named), again.pop(named)
        assert trace == json.loads(json.dumps(again))
    for row in (row for row in rows if row["rank"]):
        made = single[row["customer_id"]]["offers"][row["rank"] - 1]
        for column in ("offer_id", "selection_probability", "priority", "propensity"):
            assert made[column] == row[column]
        assert single[row["customer_id"]]["arm"] == row["arm"]

    arms = Counter(answer["arm"] for answer in single.values())
    assert set(arms) == {
        "policy", "fallback", "holdout", "no_contact", "random_eligible", "propensity_only",
        "no_levers",
    }  # fmt: skip
    selections = [expected[customer_id]["selection"] for customer_id in shop.CUSTOMERS]
    drawn = [s for s in selections if s["arm"] in ("policy", "no_levers") and s["no_offer"] < 1]
    certain = [s for s in drawn if 1.0 in s["probabilities"].values()]
    assert len(certain) == len(drawn) if name == "greedy" else len(certain) < len(drawn)
    if name == "epsilon":
        assert all(set(expected[c]["inputs"]["stopped"]) == {"b"} for c in shop.CUSTOMERS)
    if name == "thompson":
        learnt = expected[shop.CUSTOMERS[0]]["inputs"]["offer_counts"]
        assert learnt["a"]["settled_responses"] == 15


# --- a batch and its own contacts ----------------------------------------------------------------


def recorded(
    project: Path, store: Store, out: Path, break_off_after: int | None = None
) -> BatchSummary | None:
    def progress(done: int, _: int) -> None:
        if done == break_off_after:
            raise KeyboardInterrupt

    state = load_state(project)
    situation = situation_for(state, "mail")
    try:
        return decide_batch(state, situation, out, store=store, record=True, progress=progress)
    except KeyboardInterrupt:
        return None


def test_a_batch_that_is_resumed_decides_as_if_it_had_never_stopped(
    project: Path, stores: Callable[[str], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own earlier contacts would count: reach and Thompson both follow the counts."""
    explore(project, EXPLORATIONS["thompson"].replace("full_reach_contacts = 500",
                                                      "full_reach_contacts = 50"))  # fmt: skip
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 15)
    files = {name: tmp_path / f"{name}.parquet" for name in ("whole", "broken")}
    whole = recorded(project, stores("whole"), files["whole"])
    assert recorded(project, stores("broken"), files["broken"], break_off_after=45) is None
    before = stores("broken").tallies([], shop.NOW)
    assert before["a"].contacts > 30  # so there is something that must not count
    broken = recorded(project, stores("broken"), files["broken"])
    assert whole is not None and broken is not None
    assert (broken.recorded, broken.recorded_before) == (15, 45)
    assert broken.batch_id == whole.batch_id
    assert pq.read_table(files["broken"]).equals(pq.read_table(files["whole"]))
    assert stores("broken").tallies([], shop.NOW) == stores("whole").tallies([], shop.NOW)
    # For the next batch they do count.
    state = load_state(project)
    other = decide_batch(state, situation_for(state, "email"), store=stores("whole"))
    alone = decide_batch(state, situation_for(state, "email"))
    assert other.funnel["a"]["lost"].get("reach", {}) != alone.funnel["a"]["lost"]["reach"]


def test_a_batch_is_not_resumed_once_offers_have_done_otherwise(
    project: Path, stores: Callable[[str], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response of somebody else changes how likely offers are: its first half would not fit."""
    explore(project, EXPLORATIONS["thompson"])
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 15)
    store = stores("shop")
    assert recorded(project, store, tmp_path / "out.parquet", break_off_after=45) is None
    at = shop.NOW - timedelta(days=58)
    store.record_outcomes([Outcome("late", "x1", "b", "response", at, None, "p1")])
    with pytest.raises(UsageError, match="was recorded before, when other contacts"):
        recorded(project, store, tmp_path / "out.parquet")
