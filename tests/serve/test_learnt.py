"""What the log teaches: how offers did, what trying them cost, and when trying them stops."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shop
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.engine import Decisions
from nextbest.errors import StoreError
from nextbest.serve import learnt as learnt_module
from nextbest.serve.batch import situation_for
from nextbest.serve.decisions import decide_for
from nextbest.serve.learnt import Learnt, Remembered, learnt_of
from nextbest.serve.recording import Filed, records_of
from nextbest.serve.records import DecisionRecord, Outcome, Stake, Tally, naive_utc
from nextbest.serve.runtime import State, load_state, open_store
from nextbest.serve.store import Store
from nextbest.serve.store.tallies import tallies_query

START = datetime(2020, 3, 2, 9, tzinfo=UTC)
ANSWERS = ("response", "conversion")


def day(number: float) -> datetime:
    return START + timedelta(days=number)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.at(tmp_path / "store.db")
    yield store
    store.close()


def contact(number: int, customer: str, at: float, **stake: Any) -> DecisionRecord:
    """Offer a, made to a customer on a day; ``window`` is in days."""
    days = stake.pop("window", 14)
    ends = None if days is None else day(at + days)
    return DecisionRecord(
        f"d{number}", customer, day(at), "mail", "policy", ("a",), {}, "h",
        stakes=(Stake(window_ends_at=ends, **stake),),
    )  # fmt: skip


def answered(
    number: int, customer: str, at: float, to: int | None, kind: str = "response"
) -> Outcome:
    """An outcome on a day that names decision ``to``, or none."""
    named = None if to is None else f"d{to}"
    return Outcome(f"o{number}", customer, "a", kind, day(at), None, named)


# --- the tally -----------------------------------------------------------------------------------

days = st.integers(0, 9)
made = st.tuples(
    st.sampled_from("xy"), days, st.sampled_from([None, 0.25, 0.5]), st.sampled_from([None, 2, 5]),
    st.sampled_from([None, 1.5, -2.0]), st.sampled_from([None, "ours", "another"]),
)  # fmt: skip
told = st.tuples(
    st.sampled_from("xy"), days, st.sampled_from([None, 0, 1, 2]),
    st.sampled_from(["response", "conversion", "click"]),
)  # fmt: skip


@settings(max_examples=25)
@given(
    st.lists(made, min_size=1, max_size=6), st.lists(told, max_size=6), st.integers(0, 14),
    st.sampled_from([None, "ours"]),
)  # fmt: skip
def test_a_tally_is_what_counting_one_by_one_gives(
    tmp_path_factory: pytest.TempPathFactory,
    contacts: list[Any],
    reports: list[Any],
    now: int,
    without: str | None,
) -> None:
    records = []
    for i, (customer, at, p, window, lost, batch) in enumerate(contacts):
        gained = None if lost is None else lost - 4.0
        one = contact(
            i, customer, at, window=window, propensity=p, loss_if_ignored=lost,
            loss_if_answered=gained,
        )  # fmt: skip
        records.append(replace(one, batch=batch))
    outcomes = [answered(i, *report) for i, report in enumerate(reports)]
    store = Store.at(tmp_path_factory.mktemp("tally") / "store.db")
    try:
        store.record_decisions(records)
        store.record_outcomes(outcomes)
        found = store.tallies(ANSWERS, day(now), without_batch=without)
    finally:
        store.close()
    expected = one_by_one(records, outcomes, day(now), without)
    assert found.get("a", Tally()) == expected


def one_by_one(
    records: Sequence[DecisionRecord], outcomes: Sequence[Outcome], now: datetime, without: Any
) -> Tally:
    """The tally of offer a in plain loops, contact by contact."""
    answers = [o for o in outcomes if o.outcome_type in ANSWERS and o.occurred_at <= now]
    tally = dict.fromkeys(vars(Tally()), 0.0)
    for record in records:
        (stake,) = record.stakes
        if record.decided_at > now or (without is not None and record.batch == without):
            continue
        own, shared = [], []
        for one in (o for o in answers if o.customer_id == record.customer_id):
            if one.decision_id == record.decision_id:
                own.append(one)
            elif one.decision_id is None and one.occurred_at >= record.decided_at:
                shared.append(one)
        ends = stake.window_ends_at
        settled = ends is not None and ends <= now
        in_time = settled and any(o.occurred_at <= ends for o in [*own, *shared])  # type: ignore[operator]
        paid = settled and any(
            o.occurred_at <= ends and (o in own or latest_before(o, records) is record)  # type: ignore[operator]
            for o in [*own, *shared]
        )
        tally["contacts"] += 1
        tally["responses"] += bool(own or shared)
        tally["settled"] += settled
        tally["settled_responses"] += in_time
        if settled:
            tally["expected_responses"] += in_time if stake.propensity is None else stake.propensity
        if settled and stake.loss_if_ignored is not None:
            loss = stake.loss_if_answered if paid else stake.loss_if_ignored
            assert loss is not None
            tally["explored"] += 1
            tally["loss"] += loss
            tally["loss_squared"] += loss**2
    return Tally(**tally)  # type: ignore[arg-type]


def latest_before(outcome: Outcome, records: Sequence[DecisionRecord]) -> DecisionRecord:
    of = [r for r in records if r.customer_id == outcome.customer_id]
    before = [r for r in of if r.decided_at <= outcome.occurred_at]
    return max(before, key=lambda r: (r.decided_at, r.decision_id))


def test_a_late_report_counts_once_and_for_the_window_in_which_it_happened(store: Store) -> None:
    tried = {"propensity": 0.2, "loss_if_ignored": 3.0, "loss_if_answered": -7.0}
    store.record_decisions([contact(1, "x", 0, **tried), contact(2, "y", 0, **tried)])

    def lost(at: float) -> tuple[int, float]:
        found = store.tallies(ANSWERS, day(at))["a"]
        return found.explored, found.loss

    assert lost(13.9) == (0, 0.0)  # the window is open: nobody knows yet
    assert lost(14) == (2, 6.0)
    in_time = answered(1, "x", 13, 1)
    assert store.record_outcomes([in_time, in_time]) == ["stored", "duplicate"]
    store.record_outcomes([answered(2, "x", 13, 1, "conversion"), answered(3, "x", 14, None)])
    assert lost(30) == (2, 3.0 - 7.0)
    store.record_outcomes([answered(4, "y", 14.1, 2)])  # too late to be a response
    assert lost(30) == (2, 3.0 - 7.0)
    assert lost(12) == (0, 0.0)


def test_one_purchase_pays_for_one_contact(store: Store) -> None:
    """Two contacts whose windows hold it were both answered, but its money came once."""
    tried = {"propensity": 0.2, "loss_if_ignored": 3.0, "loss_if_answered": -7.0}
    store.record_decisions([contact(1, "x", 0, **tried), contact(2, "x", 2, **tried)])
    store.record_outcomes([answered(1, "x", 5, None)])
    found = store.tallies(ANSWERS, day(30))["a"]
    assert (found.settled_responses, found.loss) == (2, 3.0 - 7.0)


def test_counting_reads_an_index_and_no_row_of_the_contact_log(
    store: Store, tmp_path: Path
) -> None:
    """What keeps the count quick with a million contacts; benchmarks/tallies.py times it."""
    plan = []
    with sqlite3.connect(tmp_path / "store.db") as connection:
        for batch in (None, "ours"):
            query = tallies_query(ANSWERS, START.replace(tzinfo=None), batch)
            text = str(query.compile(store._engine, compile_kwargs={"literal_binds": True}))
            plan += [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + text)]
    scans = [step for step in plan if step.startswith("SCAN contacts")]
    assert scans == ["SCAN contacts USING COVERING INDEX contacts_by_offer"] * 2
    searches = [step for step in plan if step.startswith("SEARCH")]
    assert searches
    for step in searches:  # customers who answered are looked up, by an index that is there
        assert "USING INDEX contacts_by_customer" in step or "autoindex_contacts" in step


# --- a campaign ----------------------------------------------------------------------------------

OFFERS = """
[defaults]
goal = "sell"
channels = ["mail"]
contact_cost = 0.5
response_window_days = 14

[[offers]]
id = "a"
name = "Apples"
margin = 20

[[offers]]
id = "b"
name = "Bread"
margin = 9

[[offers]]
id = "c"
name = "Cheese"
margin = 9
"""
BUDGET = """
[channels.mail]
consent_required = false

[exploration]
salt = "a salt of our own"
policy = "epsilon"
epsilon = 1.0
loss_budget = 400
largest_loss = 21
largest_gain = 10
"""
# What really happens: nobody wants bread, and everybody wants cheese.
TRUE_RESPONSE = {"a": 0.5, "b": 0.0, "c": 1.0}


def campaign(project: Path, offers: str = OFFERS, policy: str = BUDGET) -> State:
    (project / "serving" / "offers.toml").write_text(offers)
    (project / "serving" / "policy.toml").write_text(policy)
    return load_state(project)


def round_of(state: State, store: Store, number: int) -> Decisions:
    """Decide for all customers three weeks after the round before."""
    at = situation_for(state, "mail", now=day(21 * number))
    ids = [f"{number}-{customer}" for customer in shop.CUSTOMERS]
    return decide_for(state, store, shop.CUSTOMERS, at, ids)


def kept(state: State, store: Store, decisions: Decisions, seed: int) -> None:
    """Record a round, and report the responses of those who respond in truth."""
    random = np.random.default_rng(seed)
    records = records_of(state, decisions, [Filed({}, "h")] * len(decisions))
    store.record_decisions(records)
    reports = [
        Outcome(
            f"o{record.decision_id}", record.customer_id, offer_id, "response",
            record.decided_at + timedelta(days=3), None, record.decision_id,
        )
        for record in records
        for offer_id in record.offer_ids
        if random.random() < TRUE_RESPONSE[offer_id]
    ]  # fmt: skip
    store.record_outcomes(reports)


def true_loss(decisions: Decisions, offer_id: str) -> float:
    """What exploring an offer loses in truth, in expectation, against the best choice's profit."""
    at = decisions.catalogue.offer_ids.index(offer_id)
    profit = decisions.values.expected_profit
    lost = 0.0
    for row in np.flatnonzero(decisions.chosen[:, 0] == at):
        running = np.where(decisions.eligible[row], profit[row], -np.inf)
        if running.argmax() != at:
            margin = {"a": 20, "b": 9, "c": 9}[offer_id]
            lost += max(running.max(), 0.0) - (TRUE_RESPONSE[offer_id] * margin - 0.5)
    return lost


@pytest.fixture
def campaign_store(project: Path) -> Iterator[Store]:
    store = open_store(project)
    yield store
    store.close()


def test_a_losing_offer_stops_within_its_budget_and_a_good_one_goes_on(
    project: Path, campaign_store: Store
) -> None:
    state, store = campaign(project), campaign_store
    lost, rounds = 0.0, 0
    decisions = round_of(state, store, 0)
    assert decisions.stopped == {}
    while "b" not in decisions.stopped:
        lost += true_loss(decisions, "b")
        kept(state, store, decisions, seed=rounds)
        rounds += 1
        assert rounds < 9
        decisions = round_of(state, store, rounds)
    assert rounds > 1  # it had its chance
    assert 100 < lost <= 400
    assert set(decisions.stopped) == {"b"}
    assert decisions.stopped["b"].total == pytest.approx(lost)  # nobody ever answered
    b, c = (decisions.catalogue.offer_ids.index(name) for name in "bc")
    best = decisions.best[:, 0]
    assert (decisions.probabilities[best != b, b] == 0).all()
    assert (decisions.probabilities[best != c, c] > 0.2).all()
    total = decisions.stopped["b"].total
    said = f"exploration of it has stopped: it lost {total:.2f} and may have lost "
    for drawn in (-1, 0):
        row = int(np.flatnonzero((best == 0) & (decisions.chosen[:, 0] == drawn))[0])
        trace = decisions.trace(row)
        assert trace["selection"]["stopped"]["b"]["total"] == total
        (bread,) = (one for one in trace["offers"] if one["offer_id"] == "b")
        assert said in bread["steps"][-1]["reason"]
        assert bread["steps"][-1]["reason"].endswith(" of 400.00")
    # A server that starts again, on another connection, knows it too.
    again = open_store(project)
    try:
        restarted = round_of(load_state(project), again, rounds)
    finally:
        again.close()
    assert restarted.stopped == decisions.stopped
    assert restarted.probabilities.tobytes() == decisions.probabilities.tobytes()
    # A larger budget lets it go on.
    more = campaign(project, policy=BUDGET.replace("loss_budget = 400", "loss_budget = 4000"))
    assert round_of(more, store, rounds).stopped == {}


def test_an_offer_is_explored_only_where_one_contact_is_within_the_limits(project: Path) -> None:
    free = round_of(campaign(project), None, 0)  # type: ignore[arg-type]
    low = BUDGET.replace("largest_loss = 21", "largest_loss = 6")
    tight = round_of(campaign(project, policy=low), None, 0)  # type: ignore[arg-type]
    profit = free.values.expected_profit
    best = np.maximum(profit.max(axis=1), 0.0)
    c, leads = 2, profit.argmax(axis=1) == 2
    assert (free.probabilities[:, c] > 0).all()
    over = best + 0.5 > 6  # nobody answers, and the contact's cost is lost as well
    assert 5 < over.sum() < 55
    np.testing.assert_array_equal(tight.probabilities[:, c] > 0, ~over | leads)
    # Cheese earns 8.50 where it is answered: a gain, once the best choice would earn less.
    low = BUDGET.replace("largest_gain = 10", "largest_gain = 4")
    tight = round_of(campaign(project, policy=low), None, 0)  # type: ignore[arg-type]
    over = 8.5 - best > 4
    assert 5 < over.sum() < 55
    np.testing.assert_array_equal(tight.probabilities[:, c] > 0, ~over | leads)


def test_what_a_try_costs_is_measured_against_each_slots_own_best(project: Path) -> None:
    state = campaign(project)
    at = situation_for(state, "mail", now=START, limit=2)
    ids = [f"x{i}" for i in range(60)]
    decisions = decide_for(state, None, shop.CUSTOMERS, at, ids)
    profit = decisions.values.expected_profit
    tries = 0
    for row, record in enumerate(records_of(state, decisions, [Filed({}, "h")] * 60)):
        stakes = record.stakes
        left = dict(enumerate(profit[row]))
        offers = [int(j) for j in decisions.chosen[row] if j >= 0]
        assert len(stakes) == len(offers)
        for stake, offer in zip(stakes, offers, strict=True):
            assert stake.propensity == decisions.audience.propensity[row, offer]
            assert stake.window_ends_at == naive_utc(day(14))
            best = max(left, key=lambda j: left[j])
            missed = max(left[best], 0.0)
            if offer == best and missed > 0:
                assert stake.loss_if_ignored is stake.loss_if_answered is None
            else:
                tries += 1
                margin = (20, 9, 9)[offer]
                assert stake.loss_if_ignored == pytest.approx(missed + 0.5)
                assert stake.loss_if_answered == pytest.approx(missed + 0.5 - margin)
            del left[offer]
    assert tries > 20


def test_thompson_learns_from_contacts_whose_window_has_ended(
    project: Path, campaign_store: Store
) -> None:
    thompson = """
[channels.mail]
consent_required = false

[exploration]
salt = "a salt of our own"
policy = "thompson"
prior_strength = 20
"""
    state, store = campaign(project, policy=thompson), campaign_store
    first = round_of(state, store, 0)
    kept(state, store, first, seed=3)
    rules = state.rules.tables.exploration
    soon = learnt_of(store, rules, day(13)).counts
    made = {name: int((first.chosen[:, 0] == j).sum()) for j, name in enumerate("abc")}
    assert {name: one.contacts for name, one in soon.items()} == {
        n: k for n, k in made.items() if k
    }
    for one in soon.values():  # no answer yet says nothing yet
        assert (one.strength(20), one.rate(20)) == (20, 1.0)
    after = learnt_of(store, rules, day(14)).counts
    for j, name in enumerate("abc"):
        p = first.audience.propensity[first.chosen[:, 0] == j, j]
        assert len(p) > 3
        assert after[name].expected_responses == pytest.approx(p.sum())
        ratio = after[name].responses / p.sum()
        assert after[name].strength(20) == 20 + len(p)
        assert after[name].rate(20) == pytest.approx((20 + len(p) * ratio) / (20 + len(p)))
    assert after["b"].rate(20) < 1 < after["c"].rate(20)
    then = round_of(state, store, 1)
    change = (then.probabilities - first.probabilities)[:, :3].mean(axis=0)
    assert change[1] < 0


class Counted:
    """Stands for the store: what is counted first is 1, then 2, ...; ``gate`` holds it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.times, self.gate = 0.0, 0, threading.Event()
        self.gate.set()
        self.fault: Exception | None = None
        monkeypatch.setattr(learnt_module, "learnt_of", self.count)
        monkeypatch.setattr(learnt_module.time, "monotonic", lambda: self.now)

    def count(self, store: object, rules: object, at: datetime) -> Learnt:
        assert self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        self.times += 1
        return Learnt({"times": self.times})  # type: ignore[dict-item]


def test_counts_are_those_of_the_last_minute_and_nobody_waits_for_the_next(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_state(project).rules
    counted, remembered = Counted(monkeypatch), Remembered()

    def learnt(rules: Any = policy) -> int:
        return int(remembered.learnt(store, rules, START).counts["times"])  # type: ignore[call-overload]

    def end() -> None:
        counted.gate.set()
        assert remembered._thread is not None
        remembered._thread.join()

    assert [learnt(), learnt()] == [1, 1]
    counted.now = 61.0
    counted.gate.clear()
    assert [learnt(), learnt()] == [1, 1]  # another thread counts now
    end()
    assert learnt() == 2
    # Another policy, or counts of long ago: then whoever asks counts, and waits for it.
    other = replace(policy, content_hash="other")
    assert [learnt(other), learnt()] == [3, 4]
    counted.now += 120.0
    assert learnt() == 5
    # What cannot be counted on the other thread is counted, and refused, a minute later.
    counted.now += 61.0
    counted.fault = StoreError("store", "it is down")
    assert learnt() == 5
    end()
    counted.now += 60.0
    with pytest.raises(StoreError, match="it is down"):
        learnt()
