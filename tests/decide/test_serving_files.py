"""The reference project's own offers.toml and policy.toml: live offers, rules, worked examples."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from decide_world import audience, chosen, fates, history

from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Decisions, Situation, bind, decide
from nextbest.decide.policy import load_serving

SERVING = Path(__file__).parents[2] / "serving"
IDS = ("15", "18", "19", "20", "21", "22")
# Mean value and coupon cost per responding household: types C, A, B, C, B, B.
VALUE = [6.0, 70.0, 12.0, 6.0, 12.0, 12.0]
COST = [1.3, 3.0, 1.8, 1.3, 1.8, 1.8]


def household(
    propensity: list[float],
    spend: list[float],
    *,
    orders_182d: float = 20.0,
    contacts: ContactHistory | None = None,
) -> Audience:
    """One household that has bought in every aisle."""
    return audience(
        [propensity],
        {"orders_182d": [orders_182d]},
        pair_columns={
            "offer_product_spend_per_window": np.array([spend]),
            "offer_category_spend_share": np.full((1, 6), 0.5),
        },
        offer_columns={
            "value_per_response": np.array(VALUE),
            "incentive_per_response": np.array(COST),
        },
        contacts=contacts or ContactHistory.empty(),
    )


def decided(people: Audience, **fields: object) -> Decisions:
    catalogue, policy = load_serving(SERVING)
    assert policy.decide_as_of is not None
    bound, rules = bind(catalogue, policy, people.known_columns())
    at = Situation(**{"channel": "mail", "decided_at": policy.decide_as_of, **fields})  # type: ignore[arg-type]
    return decide(people, bound, rules, at, ["d"] * len(people.customer_ids))


LIKELY = household([0.1, 0.2, 0.5, 0.1, 0.3, 0.4], [0.0, 90.0, 10.0, 1.0, 2.0, 5.0])


def test_the_demo_decides_when_six_campaigns_are_live() -> None:
    catalogue, policy = load_serving(SERVING)
    assert policy.decide_as_of == datetime(2017, 12, 10, 5, tzinfo=UTC)
    assert catalogue.offer_ids == IDS
    assert not any(step == "candidate" for step, _ in fates(decided(LIKELY)).values())
    for day, live in ((17, 6), (18, 5), (25, 4)):
        later = decided(LIKELY, decided_at=datetime(2017, 12, day, 17, tzinfo=UTC))
        ended = [fate for fate in fates(later).values() if fate == ("candidate", "ended")]
        assert len(ended) == 6 - live


def test_the_value_of_an_offer_is_as_the_file_says() -> None:
    decisions = decided(LIKELY)
    # .3 × .3 × (.5 × 70 + .5 × 90) = 7.2; .15 × 3 = .45; .2 × (7.2 − .45) − .05 = 1.30
    numbers = decisions.trace(0)["offers"][1]["numbers"]
    assert numbers["margin"] == pytest.approx(7.2)
    assert numbers["incentive_cost"] == pytest.approx(0.45)
    assert numbers["contact_cost"] == 0.05
    assert numbers["expected_profit"] == pytest.approx(1.30)
    # .3 × .3 × (.5 × 12 + .5 × 10) = .99; .5 × (.99 − .27) − .05 = .31; × 1.2 for its last week
    last_week = decisions.trace(0)["offers"][2]["numbers"]
    assert last_week["priority"] == pytest.approx(0.31 * 1.2)
    assert chosen(decisions) == [["18"]]


def test_no_more_than_one_book_at_the_turn_of_the_year() -> None:
    many = chosen(decided(LIKELY, limit=6))[0]
    assert many[:2] == ["18", "19"]
    assert len({"21", "22"} & set(many)) == 1
    sent = history(("0", "21", "mail", "2017-12-07", "contact"), n=1, ids=IDS)
    kept = fates(decided(household([0.3] * 6, [50.0] * 6, contacts=sent)))
    assert kept["21"] == ("contact_policy", "the same offer once in 60 days")
    assert kept["22"] == ("contact_policy", "one book at the turn of the year")


def test_households_that_left_or_had_three_mailings_get_nothing() -> None:
    assert chosen(decided(household([0.5] * 6, [50.0] * 6, orders_182d=0.0))) == [[]]
    three = history(
        *(("0", None, "mail", f"2017-12-0{day}", "contact") for day in (1, 2, 3)), n=1, ids=IDS
    )
    assert chosen(decided(household([0.5] * 6, [50.0] * 6, contacts=three))) == [[]]


def test_a_stranger_gets_the_personal_book() -> None:
    stranger = audience(
        np.full((1, 6), np.nan),
        {"orders_182d": [np.nan]},
        pair_columns={
            name: np.full((1, 6), np.nan)
            for name in ("offer_product_spend_per_window", "offer_category_spend_share")
        },
        offer_columns={
            "value_per_response": np.array(VALUE),
            "incentive_per_response": np.array(COST),
        },
        known=np.array([False]),
    )
    decisions = decided(stranger)
    assert chosen(decisions) == [["18"]]
    assert decisions.arm.tolist() == ["fallback"]


def test_the_examples_in_the_files_work_when_their_mark_is_taken_away(tmp_path: Path) -> None:
    for name in ("offers.toml", "policy.toml"):
        text = (SERVING / name).read_text(encoding="utf-8")
        used = re.sub(r"^#: ", "", text, flags=re.MULTILINE)
        assert used != text
        (tmp_path / name).write_text(used, encoding="utf-8")
    catalogue, policy = load_serving(tmp_path)
    people = audience(
        np.full((1, 7), 0.1),
        {
            "orders_182d": [9.0],
            "orders_91d": [4.0],
            "spend_91d": [200.0],
            "churn_probability": [0.5],
            "clv": [400.0],
            "days_since_last_purchase": [30.0],
            "consent_email": [1.0],
        },
        pair_columns={
            "offer_product_spend_per_window": np.full((1, 7), 5.0),
            "offer_category_spend_share": np.full((1, 7), 0.5),
        },
        offer_columns={
            "value_per_response": np.array([*VALUE, np.nan]),
            "incentive_per_response": np.array([*COST, np.nan]),
        },
    )
    bound, rules = bind(catalogue, policy, people.known_columns())
    at = Situation("mail", datetime(2017, 12, 10, 5, tzinfo=UTC), context={"device": "phone"})
    decisions = decide(people, bound, rules, at, ["d"])
    # .1 × (.3 × 200 / 4 − .6 × 10) − .02 × .3 × 200 / 4 − .6 + .5 × .05 × 400 = 10
    assert chosen(decisions) == [["stay"]]
    assert decisions.values.expected_profit[0, 6] == pytest.approx(10.0)
    assert decisions.values.context_weight[0, 1] == 0.8
    # The stay offer's own share of clv is the lower one: .05 × 400, against .1 × 400.
    assert decisions.values.cost_ceiling.tolist() == [[40.0] * 6 + [20.0]]
    assert [limit.period for limit in rules.limits if limit.period] == ["day"]
    assert [hours.name for hours in rules.quiet_hours] == ["nights"]
