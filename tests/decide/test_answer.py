"""What answers say, against the traces that say it offer by offer, and against the numbers."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
from decide_world import audience, catalogue, history, offer, policy, run, situation
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import OFFERS, random_people
from test_left_to_chance import EVERY_ARM, SETTINGS, STOPPED, rules_with

from nextbest.decide.assign import Prices
from nextbest.decide.assign.prices import Price
from nextbest.decide.engine import Decisions, bind, decide
from nextbest.decide.words import WORDS

NAN = np.nan
MANY = [
    {**OFFERS[0], "applicability": {"any": "hot or coupon > 0.5", "own": "propensity > 0.2"}},
    {**OFFERS[1], "response_window_days": 14, "ends_at": date(2017, 12, 14)},
    {
        **OFFERS[2],
        "eligibility": {"own": "share > 0.2 and spend > 5"},
        "baseline_rate": 0.05,
        "ends_at": date(2017, 12, 12),
    },
    {**OFFERS[3], "eligibility": {"same": "share > 0.2 and spend > 5"}, "margin": 8},
    offer(
        "e",
        eligibility={"own": "clv > 40 or share < 0.1"},
        response_window_days=2,
        ends_at=date(2017, 12, 12),
    ),
    offer("f", margin=0.1, contact_cost=0.4, response_window_days=30),
]
RULES: dict[str, Any] = {
    "eligibility": {"own": "spend > 3", "live": "share is not null and coupon is not null"},
    "suitability": {"likely": "propensity >= 0.05"},
    "context": {"hot": "boolean"},
}


def many_people(seed: int, n: int) -> Any:
    """As `random_people`, with two more offers."""
    people, rng = random_people(seed, n), np.random.default_rng(seed)
    wider = {"share": np.hstack([people.pair_columns["share"], rng.random((n, 2))])}
    return audience(
        np.hstack([people.propensity, rng.random((n, 2))]),
        dict(people.columns),
        pair_columns=wider,
        offer_columns={"coupon": np.append(people.offer_columns["coupon"], [0.2, NAN])},
        known=people.known,
        contacts=people.contacts,
    )


def random_decisions(seed: int, n: int, limit: int, sections: dict[str, Any]) -> Decisions:
    people, rng = many_people(seed, n), np.random.default_rng(seed)
    made = catalogue(*MANY, assumptions={"rate": 0.3})
    bound, rules = bind(made, rules_with(**RULES, **EVERY_ARM, **sections), people.known_columns())
    prices = None
    if rng.random() < 0.4:
        units = (("contacts", 0.3), ("currency", 1.0))
        each = tuple(Price(unit, unit, ("b", "e", "f"), 1, 1, price) for unit, price in units)
        prices = Prices(made.offer_ids, each)
    told = [{"hot": [True, False, None][i]} for i in rng.integers(0, 3, n)]
    ids = [f"{seed}-{i}" for i in range(n)]
    return decide(
        people, bound, rules, situation(limit=limit), ids,
        stopped=STOPPED, prices=prices, contexts=told,
    )  # fmt: skip


some_decisions = given(
    st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 3), st.sampled_from(SETTINGS)
)


@settings(max_examples=30)
@some_decisions
def test_no_offer_is_explained_as_the_trace_explains_each_offer(
    seed: int, n: int, limit: int, sections: dict[str, Any]
) -> None:
    decisions = random_decisions(seed, n, limit, sections)
    for row in range(n):
        answer = decisions.answer(row)
        if answer["offers"]:
            assert answer["no_offer_reasons"] == []
            continue
        for said, told in zip(
            answer["no_offer_reasons"], decisions.trace(row)["offers"], strict=True
        ):
            step, reason = told["fate"]["step"], told["fate"]["reason"]
            # Of what is scarce the trace tells the price as well.
            why = WORDS[step, reason] if step == "limits" else told["why"]
            assert said == f"offer {told['offer_id']}: {step.replace('_', ' ')}: {why}"


@settings(max_examples=30)
@some_decisions
def test_offers_are_told_with_the_numbers_of_their_traces(
    seed: int, n: int, limit: int, sections: dict[str, Any]
) -> None:
    decisions = random_decisions(seed, n, limit, sections)
    for row in range(n):
        trace = decisions.trace(row)
        by_id = {one["offer_id"]: one for one in trace["offers"]}
        for rank, made in enumerate(decisions.answer(row)["offers"], start=1):
            numbers = by_id[made["offer_id"]]["numbers"]
            assert made["rank"] == rank
            assert made["name"] == by_id[made["offer_id"]]["name"]
            for name in ("propensity", "expected_profit", "priority"):
                assert made[name] == numbers[name]
            slot = decisions.selection_probability[row, rank - 1]
            assert made["selection_probability"] == slot
            if trace["known_customer"]:
                assert made["reasons"] == reasons(made, trace, numbers)
            else:
                assert made["reasons"] == [
                    "nothing is known about this customer: the fallback list decides"
                ]


def reasons(made: dict[str, Any], trace: dict[str, Any], numbers: dict[str, Any]) -> list[str]:
    """The reasons of an offer, from the trace alone."""
    arm, how = trace["arm"], trace["selection"]["policy"]
    days = {"b": 5, "c": 3, "e": 2, "f": 30}.get(made["offer_id"])
    within = "" if days is None else f" within {days} days"
    said = [f"{made['propensity']:.1%} chance of a response{within}"]
    money = (
        f"expected profit {numbers['expected_profit']:.2f}: margin {numbers['margin']:.2f}"
        f" less incentive {numbers['incentive_cost']:.2f} per response,"
        f" less {numbers['contact_cost']:.2f} to contact"
    )
    if "baseline_rate" in numbers:
        anyway = numbers["baseline_rate"] * numbers["margin"]
        money += f", less {anyway:.2f} of margin that would come anyway"
    if numbers["retention_value"]:
        money += f", plus {numbers['retention_value']:.2f} for keeping the customer"
    said.append(money)
    if numbers["lever"] != 1:
        said.append("lever × 1.3 until 2018-01-02T00:00:00Z: x")
    by_value = arm not in ("random_eligible", "propensity_only")
    charge = numbers.get("scarcity_price", 0.0) if by_value else 0.0
    if charge > 0:
        price = f"scarcity price {charge:.2f}"
        said.append(f"{price}: what others would gain from it; priority is less that")
    if numbers["context_weight"] != 1:
        said.append('context weight "w" × 0.7')
    drawn = f"drawn with a probability of {made['selection_probability']:.1%}"
    if arm == "random_eligible":
        return [*said, f"arm {arm}: {drawn}, whatever it is worth"]
    said += [] if arm == "policy" else [f"arm {arm}"]
    name = "propensity" if arm == "propensity_only" else "priority"
    said.append(against(name, competed(arm, numbers), behind(trace, arm), trace))
    return said if how == "greedy" or arm == "propensity_only" else [*said, f"{drawn} ({how})"]


def competed(arm: str, numbers: dict[str, Any]) -> float:
    """What an offer competed on."""
    if arm == "propensity_only":
        return float(numbers["propensity"])
    if arm != "no_levers":
        return float(numbers["priority"] - numbers.get("scarcity_price", 0.0))
    objective, weight = numbers["objective"], numbers["context_weight"]
    plain = objective * weight if objective >= 0 else objective / weight
    return float(plain - numbers.get("scarcity_price", 0.0))


def behind(trace: dict[str, Any], arm: str) -> list[tuple[float, str]]:
    """What the offers that lost competed on, best first; ties in the order of their ids."""
    lost = ("lower priority", "lower propensity", "another choice was drawn")
    found = [
        (-competed(arm, one["numbers"]), one["offer_id"])
        for one in trace["offers"]
        if one["fate"]["reason"] in lost
    ]
    return [(-worth, offer_id) for worth, offer_id in sorted(found)]


def against(name: str, own: float, lost: list[tuple[float, str]], trace: dict[str, Any]) -> str:
    if not lost:
        if any(one["fate"]["step"] == "limits" for one in trace["offers"]):
            return "no other offer would earn anything of which there is enough for all"
        return "no other offer that may be made would earn anything"
    worth, offer_id = lost[0]
    other = "next" if worth <= own else "better, but not drawn,"
    return f"{name} {own:.2f}; {other} is offer {offer_id} at {worth:.2f}"


# --- rules that go by the same name or text -------------------------------------------------------


@pytest.mark.parametrize("text", ["spend > 5", "share > 5", "kind = 'B'"])
def test_a_rule_of_the_policy_and_one_of_the_offer_may_have_one_name(text: str) -> None:
    people = audience(
        [[0.5, 0.5]] * 2,
        {"spend": [4.0, 1.0]},
        pair_columns={"share": np.ones((2, 2))},
        offer_columns={"kind": np.array(["A", "A"], dtype=object)},
    )
    offers = catalogue(offer("a", eligibility={"own": text}), offer("b", eligibility={"c": text}))
    rules = policy(eligibility={"own": "spend > 3"})
    decisions = run(people, offers, rules)
    seen = {"spend > 5": "spend = 4", "share > 5": "share = 1", "kind = 'B'": "kind = A"}[text]
    assert decisions.answer(0)["no_offer_reasons"] == [
        f'offer a: eligibility: "own", {text} is false ({seen})',
        f'offer b: eligibility: "c", {text} is false ({seen})',
    ]
    assert decisions.answer(1)["no_offer_reasons"] == [
        f'offer {name}: eligibility: "own", spend > 3 is false (spend = 1)' for name in "ab"
    ]


def test_a_reason_is_told_right_however_many_others_were_told_before() -> None:
    n = 70  # more than are kept
    sent = [
        (str(row), "a", "mail", "2017-12-05", "contact") for row in range(n) for _ in range(row)
    ]
    people = audience(np.full((n, 2), 0.5), contacts=history(*sent, n=n, ids=("a", "b")))
    rules = policy(contact={"caps": [{"name": "once", "at_most": 1, "days": 30}]})
    decisions = run(people, catalogue(offer("a"), offer("b")), rules)
    for row in (*range(1, n), *range(1, n)):
        assert decisions.answer(row)["no_offer_reasons"] == [
            f"offer {name}: contact policy: {row} of 1 contacts in 30 days" for name in "ab"
        ]


def test_an_answer_may_be_changed_without_changing_the_next() -> None:
    decisions = run(audience([[0.5, 0.4], [0.0, 0.0]]), catalogue(offer("a"), offer("b")))
    for row in range(2):
        first, again = decisions.answer(row), decisions.answer(row)
        for made in first["offers"]:
            made["reasons"].append("more")
            made["rank"] = 9
        first["no_offer_reasons"].append("more")
        assert decisions.answer(row) == again
