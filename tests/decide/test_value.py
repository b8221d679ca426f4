"""What an offer is worth: who pays, who would have come anyway, and what it may cost."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
from decide_world import audience, catalogue, chosen, fates, offer, policy, run, situation
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.arbitrate import expected_profit
from nextbest.errors import ConfigError

NAN = np.nan


@pytest.mark.parametrize(
    ("fields", "p", "expect"),
    [
        # .4 × (10 − 2) − .5
        ({"incentive_cost": 2, "contact_cost": 0.5}, 0.4, 2.7),
        # the supplier pays three quarters: .4 × (10 − .5) − .5
        ({"incentive_cost": 2, "contact_cost": 0.5, "incentive_shop_share": 0.25}, 0.4, 3.3),
        ({"incentive_cost": "cost", "incentive_shop_share": "share"}, 0.4, 3.4),
        # half of them would have come anyway: (.4 − .2) × 10 − .4 × 2 − .5
        ({"incentive_cost": 2, "contact_cost": 0.5, "baseline_rate": 0.2}, 0.4, 0.7),
        ({"incentive_cost": 2, "contact_cost": 0.5, "baseline_rate": "anyway"}, 0.4, 1.7),
        # all of them would, so that only the cost is left: −.4 × 2
        ({"incentive_cost": 2, "baseline_rate": 0.4}, 0.4, -0.8),
        # contact drives them away
        ({"baseline_rate": 0.5}, 0.4, -1.0),
    ],
)
def test_profit_counts_the_shops_money_and_what_the_contact_adds(
    fields: dict[str, Any], p: float, expect: float
) -> None:
    columns = {"anyway": [0.1], "cost": [3.0], "share": [0.5]}
    decisions = run(audience([[p]], columns), catalogue(offer(**fields)))
    assert decisions.trace(0)["offers"][0]["numbers"]["expected_profit"] == pytest.approx(expect)
    assert chosen(decisions) == ([["a"]] if expect > 0 else [[]])


def test_the_formula_is_the_difference_between_two_simulated_worlds() -> None:
    """A million customers, once contacted and once not; nobody gets an incentive unasked."""
    p, p0, margin, incentive, contact = 0.3, 0.12, 10.0, 2.5, 0.4
    draw = np.random.default_rng(5).random(1_000_000)
    with_contact = np.where(draw < p, margin - incentive, 0.0) - contact
    without = np.where(draw < p0, margin, 0.0)
    formula = expected_profit(*(np.float64(x) for x in (p, margin, incentive, contact, 0)), p0)
    difference = with_contact - without
    assert abs(formula - difference.mean()) < 4 * difference.std() / 1_000


def test_the_leak_is_traced_and_said() -> None:
    offers = catalogue(offer(incentive_cost=2, baseline_rate="anyway", contact_cost=0.5))
    decisions = run(audience([[0.4]], {"anyway": [0.1]}), offers)
    (one,) = decisions.trace(0)["offers"]
    assert one["numbers"]["baseline_rate"] == 0.1
    assert one["numbers"]["subsidy_leak"] == pytest.approx(0.2)
    assert one["expressions"]["baseline_rate"] == {
        "text": "anyway", "value": 0.1, "inputs": {"anyway": 0.1},
    }  # fmt: skip
    assert (
        "less 1.00 of margin that would come anyway"
        in decisions.answer(0)["offers"][0]["reasons"][1]
    )


@pytest.mark.parametrize(
    ("fields", "columns", "says"),
    [
        ({"baseline_rate": "x"}, [NAN], "baseline_rate is unknown"),
        ({"baseline_rate": "x"}, [1.5], "baseline_rate is 1.5, which is not between 0 and 1"),
        ({"baseline_rate": "x"}, [-0.5], "baseline_rate is -0.5, which is not between 0 and 1"),
        ({"incentive_cost": 1, "incentive_shop_share": "x"}, [2.0],
         "incentive_shop_share is 2, which is not between 0 and 1"),
        ({"incentive_cost": 1, "incentive_shop_share": "x"}, [NAN], "incentive_cost is unknown"),
        ({"margin": "x"}, [NAN], "margin is unknown"),
    ],
)  # fmt: skip
def test_a_share_that_is_none_removes_the_offer(
    fields: dict[str, Any], columns: list[float], says: str
) -> None:
    decisions = run(audience([[0.5]], {"x": columns}), catalogue(offer(**fields)))
    assert fates(decisions)["a"] == ("value", "unknown value")
    assert decisions.answer(0)["no_offer_reasons"] == [f"offer a: value: {says}"]


# Expected cost of the offer: .5 × 3 + .5 = 2.
@pytest.mark.parametrize(
    ("general", "own", "clv", "expect", "says"),
    [
        (None, None, NAN, "chosen", ""),
        (0.1, None, 20.0, "chosen", ""),
        (0.1, None, 19.9, "investment ceiling", "expected cost 2.00 is over 1.99"),
        (None, 0.1, 20.0, "chosen", ""),
        (None, 0.1, 19.9, "investment ceiling", "expected cost 2.00 is over 1.99"),
        # the lower one holds
        (0.1, 0.01, 100.0, "investment ceiling", "expected cost 2.00 is over 1.00"),
        (0.01, 0.1, 100.0, "investment ceiling", "expected cost 2.00 is over 1.00"),
        (0.1, None, NAN, "investment ceiling", "clv is unknown"),
    ],
)
def test_an_offer_may_cost_no_more_than_its_share_of_clv(
    general: float | None, own: float | None, clv: float, expect: str, says: str
) -> None:
    fields = {} if own is None else {"max_cost_share_of_clv": own}
    offers = catalogue(offer(incentive_cost=3, contact_cost=0.5, **fields))
    rules = policy(arbitration={} if general is None else {"max_cost_share_of_clv": general})
    decisions = run(audience([[0.5]], {"clv": [clv]}), offers, rules)
    assert fates(decisions)["a"][1] == expect
    if says:
        assert says in decisions.answer(0)["no_offer_reasons"][0]


def test_the_ceiling_counts_only_what_the_shop_pays_and_reads_the_policys_clv() -> None:
    offers = catalogue(offer(incentive_cost=30, incentive_shop_share=0.1, contact_cost=0.5))
    rules = policy(arbitration={"max_cost_share_of_clv": 0.1, "clv": "worth / 2"})
    decisions = run(audience([[0.5]] * 2, {"worth": [40.0, 39.0]}), offers, rules)
    assert chosen(decisions) == [["a"], []]


@pytest.mark.parametrize(
    ("at_most", "limit", "expect"),
    [(1, 3, ["a", "c", "d"]), (2, 3, ["a", "b", "c"]), (1, 1, ["a"])],
)
def test_slots_are_shared_among_categories(at_most: int, limit: int, expect: list[str]) -> None:
    """a and b are of one category; c and d of none, which is not a category."""
    offers = catalogue(offer("a", category="x"), offer("b", category="x"), offer("c"), offer("d"))
    rules = policy(arbitration={"at_most_per_category": at_most})
    decisions = run(audience([[0.5, 0.4, 0.3, 0.2]]), offers, rules, situation(limit=limit))
    assert chosen(decisions) == [expect]
    if at_most == 1 and limit > 1:
        assert fates(decisions)["b"] == ("arbitration", "enough offers of its category")


@settings(max_examples=60)
@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.floats(0, 1), st.floats(0, 50), st.floats(0, 50), st.floats(0.1, 10),
)  # fmt: skip
def test_raising_a_margin_never_lowers_the_rank(
    p: list[float], baseline: float, margin: float, raised_by: float, lever: float
) -> None:
    """As long as contact makes a response likelier; where it does not, margin is what is lost."""
    baseline *= p[1]
    rules = policy(
        levers=[{"offer": "b", "multiplier": lever, "until": date(2018, 1, 1), "reason": "x"}]
    )

    def rank(own: float) -> int:
        offers = catalogue(
            offer("a", margin=20), offer("b", margin=own, baseline_rate=baseline, incentive_cost=1),
            offer("c", margin=5, contact_cost=1),
        )  # fmt: skip
        (made,) = chosen(run(audience([p]), offers, rules, situation(limit=3)))
        return made.index("b") if "b" in made else 9

    assert rank(margin + raised_by) <= rank(margin)


def test_the_trace_shows_what_every_expression_read() -> None:
    offers = catalogue(
        offer(margin="rate * spend", incentive_cost=2, goal="retain", save_rate=0.1),
        assumptions={"rate": 0.5},
    )
    columns = {"spend": [8.0], "churn_probability": [0.5], "clv": [100.0], "boost": [3.0]}
    rules = policy(arbitration={"objective": "expected_profit * boost"})
    (one,) = run(audience([[0.5]], columns), offers, rules).trace(0)["offers"]
    assert one["expressions"] == {
        "margin": {"text": "rate * spend", "value": 4.0, "inputs": {"rate": 0.5, "spend": 8.0}},
        "churn_probability": {
            "text": "churn_probability", "value": 0.5, "inputs": {"churn_probability": 0.5},
        },
        "clv": {"text": "clv", "value": 100.0, "inputs": {"clv": 100.0}},
        "objective": {
            "text": "expected_profit * boost", "value": 18.0,
            "inputs": {"boost": 3.0, "expected_profit": 6.0},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"baseline_rate": 1.5}, "baseline_rate is no share. Must be from 0 to 1; got 1.5."),
        ({"incentive_shop_share": -1}, "incentive_shop_share is no share"),
        ({"max_cost_share_of_clv": 0}, "Must be greater than 0; got 0."),
        ({"max_contacts": -1}, 'field "max_contacts" is wrong'),
        ({"max_contacts_per_batch": 1.5}, "Must be a whole number; got 1.5."),
        ({"budget": -1}, 'field "budget" is wrong'),
        ({"baseline_rate": "x +"}, "baseline_rate cannot be read"),
    ],
)
def test_a_fault_in_the_catalogue_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        catalogue(offer(**fields))
    assert says in str(caught.value)


def test_a_consent_column_is_never_taken_for_an_assumption() -> None:
    offers = catalogue(offer(), assumptions={"consent_mial": True})
    rules = policy(channels={"mail": {"consent_column": "consent_mai"}})
    with pytest.raises(ConfigError) as caught:
        run(audience([[0.5]], {"consent_letter": [1.0]}), offers, rules)
    assert "consent_mial" not in str(caught.value)
    with pytest.raises(ConfigError, match='Did you mean "consent_mail"'):
        run(audience([[0.5]], {"consent_mail": [1.0]}), offers, rules)
