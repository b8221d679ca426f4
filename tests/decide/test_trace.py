"""The trace, the answer, the funnel and the batch table: complete, true to the decision, JSON."""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import numpy as np
import pytest
from decide_world import (
    audience,
    catalogue,
    chosen,
    fates,
    history,
    offer,
    policy,
    run,
    situation,
)

from nextbest.decide.engine import Decisions
from nextbest.decide.trace import funnel

NAN = np.nan

OFFERS = catalogue(
    offer("win", margin="rate * spend", incentive_cost=2, contact_cost=0.5,
          response_window_days=30, eligibility="tenure_days > 30 and band = 'x'"),
    offer("second", margin=9, applicability={"buyer": "spend > 10"}),
    offer("sent", margin=50),
    offer("dear", margin=50, contact_cost=100),
    offer("blind", margin="missing"),
    offer("over", ends_at=date(2017, 12, 1)),
    assumptions={"rate": 0.5},
)  # fmt: skip
RULES = policy(
    context={"hot": "boolean"},
    suitability={"likely": "propensity >= 0.1"},
    contact={"caps": [{"name": "once", "at_most": 1, "days": 30, "per": "offer"}]},
    levers=[{"offer": "win", "multiplier": 2, "until": date(2017, 12, 31), "reason": "launch"}],
    context_weights=[{"name": "warm", "when": "hot", "multiplier": 1.5, "offer": "win"}],
    fallback={"offers": ["second"]},
)


@pytest.fixture
def decisions() -> Decisions:
    people = audience(
        [[0.2, 0.3, 0.9, 0.5, 0.5, 0.5], [0.2, 0.05, 0.9, 0.5, 0.5, 0.5], [NAN] * 6],
        {
            "tenure_days": [100.0, 20.0, NAN],
            "band": np.array(["x", None, None], dtype=object),
            "spend": [100.0, 5.0, NAN],
            "missing": [NAN, NAN, NAN],
        },
        known=np.array([True, True, False]),
        contacts=history(
            ("0", "sent", "mail", "2017-12-01", "contact"),
            ("1", "sent", "mail", "2017-12-02", "contact"),
            n=3, ids=OFFERS.offer_ids,
        ),
        as_of=datetime(2017, 12, 10, 5),
        versions={"propensity": "3"},
    )  # fmt: skip
    return run(people, OFFERS, RULES, situation(context={"hot": True, "odd": 1}))


def steps(trace: dict[str, Any], offer_id: str) -> dict[str, dict[str, Any]]:
    (found,) = [o for o in trace["offers"] if o["offer_id"] == offer_id]
    return {step["step"]: step for step in found["steps"]}


def test_the_trace_is_json_and_says_what_was_read(decisions: Decisions) -> None:
    trace = json.loads(json.dumps(decisions.trace(0), allow_nan=False))
    assert trace["decision_id"] == "d0"
    assert trace["customer_id"] == "0"
    assert trace["decided_at"] == "2017-12-10T05:00:00Z"
    assert trace["profile_as_of"] == "2017-12-10T05:00:00Z"
    assert trace["arm"] == "policy"
    assert trace["versions"] == {"propensity": "3"}
    assert trace["catalogue_hash"] == OFFERS.content_hash
    assert trace["policy_hash"] == RULES.content_hash
    assert trace["situation"]["context"] == {"hot": True}
    assert trace["situation"]["context_ignored"] == ["odd"]
    assert trace["selection"] == {
        "arm": "policy",
        "policy": "greedy",
        "eligible": ["win", "second", "dear"],
        "probabilities": {"win": 1.0},
        "no_offer": 0.0,
        "end": 1.0,
        "would_choose": ["win"],
    }


def test_the_numbers_behind_the_priority_are_all_there(decisions: Decisions) -> None:
    numbers = decisions.trace(0)["offers"][0]["numbers"]
    # .2 × (.5 × 100 − 2) − .5 = 9.1; × 2 (lever) × 1.5 (context) = 27.3
    assert numbers == {
        "propensity": 0.2,
        "margin": 50.0,
        "incentive_cost": 2.0,
        "contact_cost": 0.5,
        "retention_value": 0.0,
        "expected_profit": pytest.approx(9.1),
        "objective": pytest.approx(9.1),
        "lever": 2.0,
        "context_weight": 1.5,
        "priority": pytest.approx(27.3),
    }


@pytest.mark.parametrize(
    ("row", "offer_id", "step", "reason"),
    [
        (0, "win", "arbitration", "rank 1"),
        (0, "second", "arbitration", "priority 2.70 against 27.30 of offer win"),
        (0, "dear", "arbitration", "priority -75.00: making no offer is better"),
        (0, "blind", "value", "margin is unknown"),
        (0, "over", "candidate", "it has ended"),
        (2, "second", "arbitration", "rank 1"),
        (2, "win", "fallback", "nothing is known about the customer, and it is not in the "
                               "fallback list"),
        (2, "over", "candidate", "it has ended"),
    ],
)  # fmt: skip
def test_the_last_step_says_why(
    decisions: Decisions, row: int, offer_id: str, step: str, reason: str
) -> None:
    last = list(steps(decisions.trace(row), offer_id).values())[-1]
    assert (last["step"], last["reason"]) == (step, reason)


def test_a_failing_rule_shows_its_text_its_clauses_and_what_they_saw(decisions: Decisions) -> None:
    found = steps(decisions.trace(1), "win")
    assert list(found) == ["candidate", "eligibility"]
    assert found["eligibility"] == {
        "step": "eligibility",
        "passed": False,
        "rules": [
            {
                "rule": "eligibility",
                "of": "offer",
                "text": "tenure_days > 30 and band = 'x'",
                "passed": False,
                "clauses": [
                    {
                        "clause": "tenure_days > 30",
                        "outcome": "false",
                        "values": {"tenure_days": 20.0},
                    },
                    {"clause": "band = 'x'", "outcome": "unknown", "values": {"band": None}},
                ],
            }
        ],
    }
    named = steps(decisions.trace(1), "second")["applicability"]["rules"][0]
    assert (named["rule"], named["of"], named["passed"]) == ("buyer", "offer", False)
    shared = steps(decisions.trace(0), "second")["suitability"]["rules"][0]
    assert (shared["rule"], shared["of"], shared["passed"]) == ("likely", "policy", True)


def test_the_contact_policy_shows_its_counts(decisions: Decisions) -> None:
    rules = steps(decisions.trace(0), "sent")["contact_policy"]["rules"]
    assert rules == [
        {
            "rule": "once",
            "passed": False,
            "reason": "1 of 1 contacts with this offer in 30 days",
        }
    ]


def test_the_steps_end_where_the_fate_says(decisions: Decisions) -> None:
    for row in range(3):
        trace = decisions.trace(row)
        for one in trace["offers"]:
            *passed, last = one["steps"]
            assert all(step["passed"] for step in passed)
            step, reason = fates(decisions, row)[one["offer_id"]]
            assert one["fate"] == {"step": step, "reason": reason}
            if step == "chosen":
                assert last["step"] == "arbitration"
                assert last["passed"] is True
            else:
                assert last["step"] == step
                assert last["passed"] is False


def test_the_answer_gives_reasons_in_plain_words(decisions: Decisions) -> None:
    answer = json.loads(json.dumps(decisions.answer(0), allow_nan=False))
    (made,) = answer["offers"]
    assert (made["offer_id"], made["name"], made["rank"]) == ("win", "WIN", 1)
    assert made["propensity"] == 0.2
    assert made["selection_probability"] == 1.0
    assert made["reasons"] == [
        "20.0% chance of a response within 30 days",
        "expected profit 9.10: margin 50.00 less incentive 2.00 per response, less 0.50 to contact",
        "lever × 2 until 2018-01-01T00:00:00Z: launch",
        'context weight "warm" × 1.5',
        "priority 27.30; next is offer second at 2.70",
    ]
    assert answer["no_offer_reasons"] == []


def test_no_offer_is_an_answer_with_reasons(decisions: Decisions) -> None:
    answer = decisions.answer(1)
    assert answer["offers"] == []
    assert answer["no_offer_reasons"] == [
        "offer win: eligibility: tenure_days > 30 is false (tenure_days = 20)",
        'offer second: applicability: "buyer", spend > 10 is false (spend = 5)',
        "offer sent: contact policy: 1 of 1 contacts with this offer in 30 days",
        "offer dear: arbitration: priority -75.00: making no offer is better",
        "offer blind: value: margin is unknown",
        "offer over: candidate: it has ended",
    ]
    assert decisions.trace(1)["selection"]["no_offer"] == 1.0


def test_a_stranger_is_marked(decisions: Decisions) -> None:
    answer = json.loads(json.dumps(decisions.answer(2), allow_nan=False))
    assert (answer["arm"], answer["known_customer"]) == ("fallback", False)
    (made,) = answer["offers"]
    assert (made["offer_id"], made["propensity"], made["expected_profit"]) == ("second", None, None)
    assert made["reasons"] == ["nothing is known about this customer: the fallback list decides"]
    json.dumps(decisions.trace(2), allow_nan=False)


def test_reasons_name_retention_groups_and_negative_costs() -> None:
    people = audience(
        [[0.5, 0.4, 0.3, 0.2]],
        {"churn_probability": [0.5], "clv": [100.0], "cost": [-1.0]},
    )
    offers = catalogue(
        offer("keep", goal="retain", save_rate=0.2, exclusivity_group="g"),
        offer("twin", exclusivity_group="g"),
        offer("odd", incentive_cost="cost"),
        offer("last"),
    )
    decisions = run(people, offers, policy(fallback={}), situation(limit=2))
    assert chosen(decisions) == [["keep", "last"]]
    trace = decisions.trace(0)
    assert trace["chosen"][0]["reasons"][1].endswith("plus 10.00 for keeping the customer")
    # Nothing came behind the last one: the twin is out for another reason.
    assert trace["chosen"][1]["reasons"][-1] == (
        "no other offer that may be made would earn anything"
    )
    assert steps(trace, "odd")["value"]["reason"] == "incentive_cost is negative"
    assert steps(trace, "twin")["arbitration"]["reason"] == (
        "another offer of its exclusivity group is in the answer"
    )


def test_consent_is_shown_with_the_value_seen() -> None:
    rules = policy(channels={"mail": {}})
    asked = run(audience([[0.5]], {"consent_mail": [NAN]}), catalogue(offer("a")), rules)
    assert asked.answer(0)["no_offer_reasons"] == [
        "offer a: contact policy: consent_mail is unknown"
    ]
    absent = run(audience([[0.5]]), catalogue(offer("a")), rules)
    assert absent.answer(0)["no_offer_reasons"] == [
        "offer a: contact policy: the data have no consent column"
    ]


def test_times_and_strangers_without_a_slot_are_told() -> None:
    rules = policy(
        fallback={"offers": ["a", "b"]},
        eligibility={"early": "decided_at < timestamp '2017-12-01'"},
    )
    people = audience([[0.5, 0.5]] * 2, known=np.array([True, False]))
    decisions = run(people, catalogue(offer("a"), offer("b")), rules)
    assert decisions.answer(0)["no_offer_reasons"][0] == (
        "offer a: eligibility: \"early\", decided_at < timestamp '2017-12-01' is false "
        "(decided_at = 2017-12-10T05:00:00Z)"
    )
    assert steps(decisions.trace(1), "b")["arbitration"]["reason"] == (
        "the offers before it in the fallback list fill the slots"
    )


def test_the_funnel_counts_every_customer_once_per_offer(decisions: Decisions) -> None:
    counted = json.loads(json.dumps(funnel(decisions)))
    assert counted["customers"] == 3
    assert counted["unknown_customers"] == 1
    assert (counted["with_an_offer"], counted["with_no_offer"]) == (2, 1)
    assert counted["arms"] == {"policy": 2, "fallback": 1}
    assert counted["offers"]["win"] == {
        "customers": 3,
        "lost": {
            "fallback": {"not in the fallback list": 1},
            "eligibility": {"eligibility": 1},
        },
        "chosen": 1,
    }
    assert counted["offers"]["over"]["lost"] == {"candidate": {"ended": 3}}
    for one in counted["offers"].values():
        lost = sum(sum(reasons.values()) for reasons in one["lost"].values())
        assert lost + one["chosen"] == one["customers"]


def test_the_table_has_a_row_per_offer_made_and_one_where_none_is() -> None:
    people = audience([[0.5, 0.4, 0.3], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]])
    offers = catalogue(offer("a"), offer("b"), offer("c"))
    decisions = run(people, offers, at=situation(limit=2))
    table = decisions.table()
    assert {len(column) for column in table.values()} == {4}
    assert table["decision_id"].tolist() == ["d0", "d0", "d1", "d2"]
    assert table["customer_id"].tolist() == ["0", "0", "1", "2"]
    assert table["rank"].tolist() == [1, 2, 1, 0]
    assert table["offer_id"].tolist() == ["a", "b", "a", None]
    np.testing.assert_allclose(table["propensity"], [0.5, 0.4, 0.1, NAN])
    np.testing.assert_allclose(table["expected_profit"], [5.0, 4.0, 1.0, NAN])
    np.testing.assert_allclose(table["selection_probability"], [1.0, 1.0, 1.0, 1.0])
    assert table["no_offer_because"].tolist() == [
        None, None, None, "arbitration: no offer is better",
    ]  # fmt: skip
    assert table["decided_at"][0] == np.datetime64("2017-12-10T05:00:00")
    assert set(table["policy_hash"]) == {decisions.policy.policy.content_hash}


def test_the_table_agrees_with_the_answers(decisions: Decisions) -> None:
    table = decisions.table()
    told = [
        (answer["decision_id"], made["offer_id"], made["expected_profit"])
        for answer in (decisions.answer(i) for i in range(3))
        for made in answer["offers"]
    ]
    listed = [
        (decision, offer_id, None if np.isnan(profit) else profit)
        for decision, offer_id, profit in zip(
            table["decision_id"], table["offer_id"], table["expected_profit"], strict=True
        )
        if offer_id is not None
    ]
    assert told == listed
