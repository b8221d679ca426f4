"""Customers of an experiment from the log, counted again customer by customer, and refusals."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nextbest.errors import DataError, UsageError
from nextbest.measure.collect import collect, outcome_of
from nextbest.measure.entrants import BEFORE, Entered, Entry, enter
from nextbest.measure.log import DecisionLog

START = datetime(2024, 3, 1)
UNTIL = START + timedelta(days=60)
ENTRY = Entry(days=20, until=UNTIL, retained_days=8)
ARMS = ("policy", "policy", "policy", "holdout", "random_eligible")


class World:
    """A log drawn at random, as frames and as files."""

    def __init__(self, seed: int, customers: int = 150) -> None:
        random = np.random.default_rng(seed)
        rows, told, sold = [], [], []
        for c in range(customers):
            name, arm = f"c{c:04d}", str(random.choice(ARMS))
            stranger_first = random.random() < 0.2
            times = np.sort(random.integers(0, 58 * 86_400, random.integers(1, 5)))
            for k, second in enumerate(times):
                at = START + timedelta(seconds=int(second))
                known = not (stranger_first and k == 0)
                real = arm if known or arm == "holdout" else "fallback"
                would = str(random.choice(["a", "b"])) if random.random() < 0.8 else None
                made = [] if real == "holdout" or would is None else [would]
                if made and random.random() < 0.3:
                    made.append("c")
                head = {
                    "decision_id": f"{name}-{k}", "customer_id": name, "decided_at": at,
                    "channel": str(random.choice(["mail", "app"])), "placement": None,
                    "arm": real, "known": known, "would_offer_id": would,
                    "profile_clv": str(round(float(random.gamma(2, 50)), 3)) if known else None,
                    "profile_region": str(random.choice(["north", "south"])) if known else None,
                }  # fmt: skip
                amounts = {"margin": 9.0, "incentive_cost": 2.0 + c % 3, "contact_cost": 0.5}
                for rank, offer in enumerate(made, 1):
                    end = at + timedelta(days=5) if offer == "a" else None
                    rows.append({**head, "rank": rank, "offer_id": offer, "window_ends_at": end,
                                 **amounts})  # fmt: skip
                if not made:
                    rows.append({**head, "rank": 0, "offer_id": None, "window_ends_at": None})
                for offer in made or [None]:
                    if random.random() < 0.5:
                        later = at + timedelta(hours=float(random.uniform(0, 24 * 25)))
                        kind = str(random.choice(["response", "conversion", "purchase", "return"]))
                        told.append({
                            "outcome_id": f"o{len(told)}", "decision_id": f"{name}-{k}",
                            "customer_id": name, "offer_id": offer, "outcome_type": kind,
                            "occurred_at": later, "value": float(random.integers(1, 50)),
                        })  # fmt: skip
            for _ in range(random.integers(0, 6)):
                at = START + timedelta(days=float(random.uniform(-30, 60)))
                amount = float(random.integers(-10, 60))
                sold.append({"customer_id": name, "ordered_at": at, "amount": amount,
                             "margin": amount / 4})  # fmt: skip
        self.decisions, self.outcomes = pd.DataFrame(rows), pd.DataFrame(told)
        self.sales = pd.DataFrame(sold)
        for frame in (self.decisions, self.outcomes, self.sales):
            for column in frame.columns:
                if column.endswith("_at"):
                    frame[column] = frame[column].astype("datetime64[us]")
        people = self.decisions[["customer_id"]].drop_duplicates()
        self.people = people.assign(
            clv_remainder=np.arange(len(people), dtype=float),
            tier=np.where(np.arange(len(people)) % 2, "high", "low"),
        )

    def open(self, folder: Path) -> DecisionLog:
        self.decisions.to_parquet(folder / "decisions.parquet", index=False)
        self.outcomes.to_parquet(folder / "outcomes.parquet", index=False)
        return DecisionLog.open(folder)

    def by_hand(self, entry: Entry) -> dict[str, dict[str, Any]]:
        """Every outcome of every customer who could be watched, one after the other."""
        found, people = {}, self.people.set_index("customer_id")
        watched = timedelta(days=entry.days)
        for name, own in self.decisions.groupby("customer_id"):
            known = own[own["known"]].sort_values(["decided_at", "rank"])
            if known.empty or known["decided_at"].iloc[0] + watched > entry.until:
                continue
            first = known.iloc[0]
            start, end = first["decided_at"], first["decided_at"] + watched
            made = own[(own["rank"] > 0) & (own["decided_at"] >= start) & (own["decided_at"] < end)]
            said = self.outcomes[self.outcomes["customer_id"] == name]
            inside = said[(said["occurred_at"] >= start) & (said["occurred_at"] < end)]
            costs = 0.0
            for contact in made.itertuples():
                last = contact.window_ends_at
                last = contact.decided_at + watched if pd.isna(last) else last
                answers = said[
                    (said["decision_id"] == contact.decision_id)
                    & (said["offer_id"] == contact.offer_id)
                    & said["outcome_type"].isin(["response", "conversion"])
                    & (said["occurred_at"] <= last)
                ]
                costs += 0.5 + (contact.incentive_cost if len(answers) else 0.0)
            if entry.purchases == "log":
                sign = inside["outcome_type"].map({"return": -1, "conversion": 1, "purchase": 1})
                sign = sign.astype(float)
                sales = pd.DataFrame({"at": inside["occurred_at"], "amount": sign * inside["value"],
                                      "bought": sign > 0}).dropna()  # fmt: skip
                margin, earlier = 0.25 * sales["amount"].sum(), 0.0
            else:
                own_sales = self.sales[self.sales["customer_id"] == name]
                at = own_sales["ordered_at"]
                before = own_sales[(at >= start - watched) & (at < start)]
                earlier = before["amount"].sum()
                within = own_sales[(at >= start) & (at < end)]
                sales = pd.DataFrame({"at": within["ordered_at"], "amount": within["amount"],
                                      "bought": within["amount"] > 0})  # fmt: skip
                margin = within["margin"].sum()
            late = end - timedelta(days=entry.retained_days)
            bought = sales[sales["bought"].astype(bool)]
            would = first["would_offer_id"]
            person = people.loc[name]
            found[name] = {
                "arm": first["arm"],
                "response": inside["outcome_type"].isin(["response", "conversion"]).any(),
                "conversion": len(bought) > 0,
                "revenue": sales["amount"].sum(),
                "margin": margin - costs,
                "retention": (bought["at"] >= late).any(),
                "clv": margin - costs + person["clv_remainder"],
                "offer": "no offer" if pd.isna(would) else would,
                "channel": first["channel"], "tier": person["tier"],
                "region": first["profile_region"], "before": earlier,
                "logged": float(first["profile_clv"]),
            }  # fmt: skip
        return found


@pytest.fixture(scope="module")
def world() -> World:
    return World(7)


@pytest.fixture
def log(world: World, tmp_path: Path) -> DecisionLog:
    return world.open(tmp_path)


EVERY = ["response", "conversion", "revenue", "margin", "retention", "clv"]


def rows(found: Entered) -> dict[str, dict[str, Any]]:
    return {row.pop("customer_id"): row for row in found.table.to_pyarrow().to_pylist()}


@pytest.mark.parametrize("purchases", ["log", "data"])
def test_every_outcome_of_every_customer(world: World, log: DecisionLog, purchases: str) -> None:
    share = 0.25 if purchases == "log" else None
    entry = Entry(20, UNTIL, retained_days=8, purchases=purchases, margin_share=share)
    backend = log.decisions.get_backend()
    people = backend.create_table("people", world.people)
    sales = backend.create_table("sales", world.sales) if purchases == "data" else None
    by = ["offer", "channel", "tier", "region"]
    before = "clv" if purchases == "log" else None
    found = enter(log, entry, EVERY, by, before=before, sales=sales, people=people)
    expected = world.by_hand(entry)
    got = rows(found)
    assert got.keys() == expected.keys() and len(got) > 100
    for name, hand in expected.items():
        for column in ("arm", *by, "response", "conversion", "retention"):
            assert got[name][column] == hand[column], (name, column)
        for column in ("revenue", "margin", "clv"):
            assert got[name][column] == pytest.approx(hand[column]), (name, column)
        was = hand["before" if purchases == "data" else "logged"]
        assert got[name][BEFORE] == pytest.approx(was)
    everybody = world.decisions["customer_id"].nunique()
    never = world.decisions.groupby("customer_id")["known"].any()
    assert found.strangers == (~never).sum() > 0
    assert found.unfinished == everybody - found.strangers - len(got) > 5
    assert bool(found.notes) == (purchases == "log")


def test_numbers_become_fifths(log: DecisionLog) -> None:
    found = enter(log, ENTRY, ["response"], ["clv"])
    cells = collect(found.table, [outcome_of("response")], ["clv"])
    sizes: dict[str, int] = {}
    for cell in cells:
        sizes[cell.segments[0]] = sizes.get(cell.segments[0], 0) + cell.n
    assert [name[0] for name in sorted(sizes)] == list("12345")
    assert max(sizes.values()) - min(sizes.values()) <= 2


def test_the_start_leaves_out_who_entered_before(world: World, log: DecisionLog) -> None:
    since = START + timedelta(days=10)
    entry = Entry(20, UNTIL, since=since, retained_days=8)
    later = World.by_hand(
        _with(world, world.decisions[world.decisions["decided_at"] >= since]), entry
    )
    assert rows(enter(log, entry, ["response"])).keys() == later.keys()


def _with(world: World, decisions: pd.DataFrame) -> World:
    other = World.__new__(World)
    other.__dict__ = {**world.__dict__, "decisions": decisions}
    return other


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "ask", "says"),
    [
        ({}, {"outcomes": ["sales"]}, 'unknown outcome "sales"'),
        ({}, {"by": ["regoin"]}, 'Did you mean "region"'),
        ({}, {"before": "age"}, 'no column "age" in the log'),
        ({}, {"outcomes": ["margin"]}, "no margin in the log"),
        ({}, {"outcomes": ["clv"]}, "worth after the window"),
        ({}, {"outcomes": ["retention"], "entry": Entry(20, UNTIL, retained_days=20)},
         "looks at all days"),
        ({}, {"entry": Entry(20, START)}, "there are no decisions in the log"),
        ({}, {"entry": Entry(60, UNTIL)}, "nobody could be watched to the end"),
        ({"arm": "moved"}, {}, "customers are in two arms"),
        ({"known": "nobody"}, {}, "nobody could be watched to the end"),
        ({"outcomes": "one side"}, {"outcomes": ["revenue"]}, "for one side only"),
    ],
)  # fmt: skip
def test_what_the_log_cannot_answer(
    world: World, tmp_path: Path, change: dict[str, str], ask: dict[str, Any], says: str
) -> None:
    other = _with(world, world.decisions.copy())
    if "arm" in change:
        other.decisions.loc[other.decisions["decision_id"] == "c0001-1", "arm"] = "no_levers"
        other.decisions.loc[other.decisions["customer_id"] == "c0001", "known"] = True
    if "known" in change:
        other.decisions["known"] = False
    if "outcomes" in change:
        held = world.decisions.loc[world.decisions["arm"] == "holdout", "customer_id"]
        other.outcomes = world.outcomes[~world.outcomes["customer_id"].isin(held)]
    asked = {"entry": ENTRY, "outcomes": ["response"], **ask}
    with pytest.raises(DataError) as refused:
        enter(other.open(tmp_path), asked.pop("entry"), asked.pop("outcomes"), **asked)
    assert says in str(refused.value)


def test_impossible_entries_are_named_all_at_once() -> None:
    with pytest.raises(UsageError) as refused:
        Entry(0, UNTIL, retained_days=-1, purchases="data", margin_share=2)
    assert len(refused.value.faults) == 4
