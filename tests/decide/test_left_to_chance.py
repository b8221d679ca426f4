"""Holdout, arms and exploration inside a decision: what is drawn is what is logged."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from decide_world import audience, catalogue, chosen, fates, offer, policy, run, situation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from test_engine import OFFERS, RULES, random_people, same

from nextbest.decide.engine import Audience, Decisions, bind, decide
from nextbest.decide.explore import (
    LossStatistics,
    OfferCounts,
    over_budget,
    smallest_budget,
)
from nextbest.decide.holdout import held_out_of
from nextbest.decide.policy import Arms, Policy
from nextbest.errors import ConfigError

SALT = "a salt of the shop's own"
LEVER = {"offer": "c", "multiplier": 9, "until": date(2018, 1, 1), "reason": "x"}
THREE = catalogue(offer("b"), offer("c"), offer("a"))


def exploring(name: str, **more: Any) -> dict[str, Any]:
    return {"exploration": {"salt": SALT, "policy": name, "epsilon": 0.4, "temperature": 2.0,
                            "prior_strength": 5.0, **more}}  # fmt: skip


def everybody(arm: str) -> dict[str, Any]:
    """Sections that put (nearly) everybody in one arm; an ablation arm holds a quarter."""
    if arm == "holdout":
        return {"holdout": {"salt": SALT, "share": 1}}
    return {} if arm == "policy" else {"arms": {"salt": SALT, arm: 0.25}}


def copies(n: int, propensity: list[float], arm: str) -> Audience:
    """One customer many times over; ids are chosen so that all are in the arm."""
    ids = [str(i) for i in range(n * 6)]
    if arm in Arms.QUARTERS:
        found = run(audience([propensity] * len(ids)), THREE, policy(**everybody(arm))).arm
        ids = [i for i, a in zip(ids, found, strict=True) if a == arm]
    return audience([propensity] * n, customer_ids=ids[:n])


# --- given a policy and an arm, what is chosen with which probability ---------------------------


@pytest.mark.parametrize(
    ("arm", "sections", "expect"),
    [
        # Worth: b 5, c 4 (36 with its lever), a 3.
        ("policy", {}, {"c": 1.0}),
        ("no_levers", {}, {"b": 1.0}),
        ("propensity_only", {}, {"b": 1.0}),
        ("random_eligible", {}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ("holdout", {}, {"none": 1.0}),
        ("no_contact", {}, {"none": 1.0}),
        ("policy", exploring("epsilon"), {"a": 0.1, "b": 0.1, "c": 0.7, "none": 0.1}),
        ("no_levers", exploring("epsilon"), {"a": 0.1, "b": 0.7, "c": 0.1, "none": 0.1}),
        ("propensity_only", exploring("epsilon"), {"b": 1.0}),
        ("random_eligible", exploring("epsilon"), {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ("no_contact", exploring("epsilon"), {"none": 1.0}),
    ],
)
def test_arms_and_their_probabilities(
    arm: str, sections: dict[str, Any], expect: dict[str, float]
) -> None:
    people = copies(1, [0.5, 0.4, 0.3], arm)
    decisions = run(people, THREE, policy(levers=[LEVER], **everybody(arm), **sections))
    assert decisions.arm.tolist() == [arm]
    names = [*THREE.offer_ids, "none"]
    got = {n: p for n, p in zip(names, decisions.probabilities[0], strict=True) if p}
    assert got == pytest.approx(expect)
    (drawn,) = chosen(decisions)
    probability = decisions.selection_probability[0, 0]
    assert probability == got[drawn[0] if drawn else "none"]


@pytest.mark.parametrize("name", ["epsilon", "softmax", "thompson"])
@pytest.mark.parametrize("arm", ["policy", "random_eligible", "no_levers", "propensity_only"])
def test_offers_are_drawn_as_often_as_the_log_says(name: str, arm: str) -> None:
    n = 3_000
    people = copies(n, [0.5, 0.4, 0.3], arm)
    rules = policy(levers=[{**LEVER, "multiplier": 2}], **everybody(arm), **exploring(name))
    decisions = run(people, THREE, rules)
    assert set(decisions.arm) == {arm}
    vector = decisions.probabilities[0]
    assert (decisions.probabilities == vector).all()
    seen = np.bincount(decisions.chosen[:, 0] % 4, minlength=4)  # no offer (-1) comes last
    assert (seen[vector == 0] == 0).all()
    possible = vector > 0
    if possible.sum() > 1:
        assert chisquare(seen[possible], n * vector[possible]).pvalue > 0.01
    logged = vector[decisions.chosen[:, 0] % 4]
    assert decisions.selection_probability[:, 0].tobytes() == logged.tobytes()


@pytest.mark.parametrize("arm", ["policy", "random_eligible"])
def test_answers_with_several_offers_are_drawn_as_often_as_the_log_says(arm: str) -> None:
    """The probability of a whole answer is the product of its slots' and of its end's."""
    n = 6_000
    offers = catalogue(offer("b", exclusivity_group="g"), offer("c", exclusivity_group="g"),
                       offer("a"))  # fmt: skip
    people = copies(n, [0.5, 0.4, 0.3], arm)
    rules = policy(**everybody(arm), **exploring("epsilon"))
    decisions = run(people, offers, rules, situation(limit=2))
    answers = ["".join(row) for row in chosen(decisions)]
    seen = Counter(answers)
    known = {}
    for row, answer in enumerate(answers):
        slots = decisions.selection_probability[row]
        # An empty first slot is the end itself.
        p = float(np.nanprod(slots)) * (decisions.end_probability[row] if answer else 1.0)
        assert known.setdefault(answer, p) == p
    assert sum(known.values()) == pytest.approx(1)  # every possible answer came up
    assert "bc" not in known  # one offer of a group
    if arm == "policy":
        # First b (.7), then a: the best of what is left (.6) or by chance (.4 / 2).
        assert known["ba"] == pytest.approx(0.7 * 0.8)
        assert known["b"] == pytest.approx(0.7 * 0.2)
        assert known[""] == pytest.approx(0.1)
    answers = sorted(known)
    expect = [n * known[answer] for answer in answers]
    assert chisquare([seen[answer] for answer in answers], expect).pvalue > 0.01


def test_the_draw_depends_on_salt_and_decision_alone() -> None:
    people = audience([[0.5, 0.4, 0.3]] * 200)
    rules = policy(**exploring("epsilon"))
    bound, bound_rules = bind(THREE, rules, {})
    ids = [f"x{i}" for i in range(200)]
    first = decide(people, bound, bound_rules, situation(), ids)
    again = decide(replace(people, customer_ids=ids[::-1]), bound, bound_rules, situation(), ids)
    assert chosen(again) == chosen(first)
    other = decide(people, bound, bound_rules, situation(), ids[::-1])
    assert chosen(other) == chosen(first)[::-1] != chosen(first)
    salted = run(people, THREE, policy(**exploring("epsilon", salt=SALT[::-1])))
    assert chosen(salted) != chosen(first)


# --- what must hold for any input ----------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    exploring(name, max_loss_share=share, new_offer_reach=0.7)
    for name in ("greedy", "epsilon", "softmax", "thompson")
    for share in (None, 0.2)
]
EVERY_ARM: dict[str, Any] = {
    "holdout": {"salt": SALT, "share": 0.15, "offers": {"a": 0.3, "d": 0.2}},
    "arms": {"salt": SALT, **dict.fromkeys(Arms.QUARTERS, 0.2)},
}
STOPPED = {"c": LossStatistics(40, 31.5, 60.0)}
COUNTS = {"a": OfferCounts(40, 9, 7.5), "b": OfferCounts(2_000, 2)}


def rules_with(**sections: Any) -> Policy:
    raw = RULES.tables.model_dump(exclude_unset=True)
    return Policy.from_dict({**raw, **sections}, "serving/policy.toml")


def decided(people: Audience, rules: Policy, limit: int, ids: list[str], offers: Any) -> Decisions:
    made = catalogue(*offers, assumptions={"rate": 0.3})
    bound, bound_rules = bind(made, rules, people.known_columns())
    at = situation(limit=limit, context={"hot": True})
    return decide(people, bound, bound_rules, at, ids, offer_counts=COUNTS, stopped=STOPPED)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(1, 3), st.sampled_from(SETTINGS))
def test_a_batch_equals_each_customer_alone_in_every_arm(
    seed: int, n: int, limit: int, sections: dict[str, Any]
) -> None:
    people, rules = random_people(seed, n), rules_with(**EVERY_ARM, **sections)
    ids = [f"{seed}-{i}" for i in range(n)]
    batch = decided(people, rules, limit, ids, OFFERS)
    for i in range(n):
        row = np.array([i])
        alone = decided(people.take([i]), rules, limit, [ids[i]], OFFERS)
        same(batch, row, alone)
        for name in (
            "would_choose", "probabilities", "selection_probability", "end_probability", "eligible",
        ):  # fmt: skip
            assert getattr(alone, name).tobytes() == getattr(batch, name)[row].tobytes(), name
        assert alone.trace(0) == batch.trace(i)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 4), st.integers(1, 3), st.sampled_from(SETTINGS))
def test_an_offer_nobody_may_have_changes_no_pick_and_no_probability(
    seed: int, place: int, limit: int, sections: dict[str, Any]
) -> None:
    people, rules = random_people(seed, 12), rules_with(**EVERY_ARM, **sections)
    ids = [f"{seed}-{i}" for i in range(12)]
    without = decided(people, rules, limit, ids, OFFERS)
    extra = offer("aa", margin=1e6, eligibility="spend < 0", exclusivity_group="g", category="k")
    offers = [*OFFERS[:place], extra, *OFFERS[place:]]

    def wider(values: np.ndarray[Any, Any], fill: float) -> np.ndarray[Any, Any]:
        return np.insert(values, place, fill, axis=values.ndim - 1)

    past = people.contacts
    moved = np.array([offers.index(o) for o in OFFERS])
    more = replace(
        people,
        propensity=wider(people.propensity, 1.0),
        pair_columns={"share": wider(people.pair_columns["share"], 1.0)},
        offer_columns={"coupon": wider(people.offer_columns["coupon"], 0.0)},
        contacts=replace(past, offer=np.where(past.offer >= 0, moved[past.offer], -1)),
    )
    within = decided(more, rules, limit, ids, offers)
    assert chosen(within) == chosen(without)
    fewer = np.delete(within.probabilities, place, axis=1)
    assert fewer.tobytes() == without.probabilities.tobytes()
    for name in ("selection_probability", "end_probability"):
        assert getattr(within, name).tobytes() == getattr(without, name).tobytes()


@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.sampled_from("abcd"),
    st.floats(0, 50),
    st.sampled_from([exploring(name) for name in ("greedy", "epsilon", "softmax")]),
)
def test_raising_an_offers_margin_never_makes_it_less_likely(
    seed: int, which: str, more: float, sections: dict[str, Any]
) -> None:
    people, rules = random_people(seed, 10), rules_with(**sections)
    raised = [
        {**o, "margin": f"({o['margin']}) + {more!r}"} if o["id"] == which else o for o in OFFERS
    ]
    ids = [str(i) for i in range(10)]
    before, after = (decided(people, rules, 1, ids, offers) for offers in (OFFERS, raised))
    at = before.catalogue.offer_ids.index(which)
    assert (after.probabilities[:, at] >= before.probabilities[:, at] - 1e-12).all()


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_greedy_is_what_it_was_and_surely_so(seed: int, limit: int) -> None:
    people = random_people(seed, 12)
    ids = [str(i) for i in range(12)]
    plain = decided(people, RULES, limit, ids, OFFERS)
    greedy = decided(people, rules_with(exploration={"salt": SALT, "policy": "greedy"}), limit, ids,
                     OFFERS)  # fmt: skip
    same(plain, np.arange(12), greedy)
    assert set(np.unique(plain.probabilities)) <= {0.0, 1.0}
    made = plain.chosen >= 0
    assert (plain.selection_probability[made] == 1).all()
    assert (plain.end_probability == 1).all()
    # No chance at all decides as nothing left to chance.
    never = rules_with(**exploring("epsilon", epsilon=0))
    same(plain, np.arange(12), decided(people, never, limit, ids, OFFERS))


# --- the holdout ---------------------------------------------------------------------------------


def test_who_is_held_out_gets_nothing_and_the_trace_shows_what_it_would_have_been() -> None:
    people = audience([[0.5, 0.4, 0.3]] * 300)
    free = run(people, THREE, policy(**exploring("epsilon")))
    rules = policy(holdout={"salt": SALT, "share": 0.5}, **exploring("epsilon"))
    held = run(people, THREE, rules)
    out = held.arm == "holdout"
    assert 100 < out.sum() < 200
    assert (held.chosen[out] == -1).all()
    assert held.would_choose.tobytes() == free.would_choose.tobytes()
    assert held.chosen[~out].tobytes() == free.chosen[~out].tobytes()
    row = int(np.flatnonzero(out & (free.chosen[:, 0] == 0))[0])
    trace = json.loads(json.dumps(held.trace(row), allow_nan=False))
    assert (trace["arm"], trace["chosen"]) == ("holdout", [])
    assert trace["selection"]["would_choose"] == ["b"]
    assert (trace["selection"]["probabilities"], trace["selection"]["no_offer"]) == ({}, 1.0)
    assert trace["selection"]["eligible"] == ["b", "c", "a"]
    assert fates(held, row)["b"] == ("arm", "holdout")
    last = trace["offers"][0]["steps"][-2:]
    assert [step["passed"] for step in last] == [True, False]
    assert held.answer(row)["no_offer_reasons"][0] == (
        "offer b: arm: the customer is held out: no offer is made, to measure the effect of offers"
    )
    table = held.table()
    where = table["decision_id"] == f"d{row}"
    assert table["arm"][where].tolist() == ["holdout"]
    assert table["selection_probability"][where].tolist() == [1.0]
    assert table["no_offer_because"][where].tolist() == ["arm: holdout"]


def test_a_campaigns_holdout_takes_that_offer_alone() -> None:
    people = audience([[0.5, 0.4, 0.3]] * 300)
    rules = policy(holdout={"salt": SALT, "offers": {"b": 0.4}})
    decisions = run(people, THREE, rules)
    out = held_out_of("b", 0.4, SALT, people.customer_ids)
    assert chosen(decisions) == [["c"] if held else ["b"] for held in out]
    assert set(decisions.arm) == {"policy"}
    row = int(np.flatnonzero(out)[0])
    assert fates(decisions, row)["b"] == ("holdout", "held out of this offer")
    assert not decisions.eligible[row, 0]
    step = decisions.trace(row)["offers"][0]["steps"][-1]
    assert (step["step"], step["passed"]) == ("holdout", False)
    assert decisions.trace(row)["offers"][1]["steps"][-2]["step"] == "holdout"


def test_strangers_can_be_held_out_too() -> None:
    strangers = audience([[np.nan] * 3] * 40, known=np.zeros(40, dtype=bool))
    rules = policy(
        fallback={"offers": ["a"]}, holdout={"salt": SALT, "share": 0.5}, **exploring("epsilon")
    )
    decisions = run(strangers, THREE, rules)
    assert set(decisions.arm) == {"holdout", "fallback"}
    expect = [[] if arm == "holdout" else ["a"] for arm in decisions.arm]
    assert chosen(decisions) == expect
    assert (decisions.selection_probability == 1).all()


# --- new offers, stopped offers, limits on losses ------------------------------------------------


def test_a_new_offer_reaches_a_few_and_then_everybody() -> None:
    people = audience([[0.5, 0.4, 0.3]] * 400)
    bound, rules = bind(THREE, policy(exploration={"salt": SALT, "new_offer_reach": 0.1}), {})
    old = {"c": OfferCounts(5_000, 400), "a": OfferCounts(5_000, 400)}

    def reached(**counts: int) -> np.ndarray[Any, Any]:
        learnt = {**old, "b": OfferCounts(**counts)}
        ids = [str(i) for i in range(400)]
        decisions = decide(people, bound, rules, situation(), ids, offer_counts=learnt)
        got = decisions.chosen[:, 0] == 0
        lost = int(np.flatnonzero(~got)[0]) if not got.all() else None
        if lost is not None:
            assert fates(decisions, lost)["b"] == ("reach", "not yet in its reach")
            assert chosen(decisions)[lost] == ["c"]
            assert decisions.trace(lost)["offers"][0]["steps"][-1]["step"] == "reach"
            assert (
                decisions.trace(lost)["selection"]["offer_counts"]["b"]["contacts"]
                == (counts["contacts"])
            )
        return got

    few, some, all_ = (reached(contacts=50, responses=r) for r in (0, 15, 30))
    assert 0.05 < few.mean() < 0.25
    assert few.sum() < some.sum() < all_.sum() == 400
    assert (some[few]).all()


def test_a_stopped_offer_is_no_longer_explored() -> None:
    people = audience([[0.5, 0.4, 0.3]] * 500)
    bound, rules = bind(THREE, policy(**exploring("epsilon")), {})
    ids = [str(i) for i in range(500)]
    decisions = decide(people, bound, rules, situation(), ids, stopped=STOPPED)
    assert (decisions.probabilities[:, 1] == 0).all()
    assert set(decisions.chosen[:, 0]) == {-1, 0, 2}
    told = decisions.trace(0)["selection"]["stopped"]
    assert {name: LossStatistics(**losses) for name, losses in told.items()} == STOPPED
    assert decisions.eligible.all()


@pytest.mark.parametrize("name", ["epsilon", "softmax", "thompson"])
def test_exploring_costs_no_more_than_its_share_of_the_profit(name: str) -> None:
    people = random_people(11, 200)
    ids = [str(i) for i in range(200)]
    plain = decided(people, rules_with(), 1, ids, OFFERS)
    rules = rules_with(**exploring(name, max_loss_share=0.1))
    guarded, free = (decided(people, r, 1, ids, OFFERS)
                     for r in (rules, rules_with(**exploring(name))))  # fmt: skip

    def earns(decisions: Decisions) -> np.ndarray[Any, Any]:
        profit = np.where(decisions.eligible, decisions.values.expected_profit, 0.0)
        return (decisions.probabilities[:, :-1] * np.nan_to_num(profit)).sum(axis=1)

    known = people.known
    least = 0.9 * np.maximum(earns(plain), 0)[known]
    assert (earns(guarded)[known] >= least - 1e-9).all()
    assert (earns(free)[known] < least - 0.01).any()


def test_thompson_learns_from_responses_between_two_trainings() -> None:
    """An offer that does better than foretold is drawn more often, one that does worse less."""
    people = audience([[0.3, 0.3, 0.3]])
    bound, rules = bind(THREE, policy(**exploring("thompson", prior_strength=50)), {})
    told = {"b": OfferCounts(200, 80, 60.0), "c": OfferCounts(200, 40, 60.0),
            "a": OfferCounts(200, 60, 60.0)}  # fmt: skip
    before, after = (
        decide(people, bound, rules, situation(), ["d"], offer_counts=counts).probabilities[0]
        for counts in ({}, told)
    )
    np.testing.assert_allclose(before[:3], 1 / 3, atol=0.04)
    assert after[0] > 0.8 > 0.2 > after[2] > after[1]


# --- reasons -------------------------------------------------------------------------------------


def reasons(arm: str, sections: dict[str, Any], wanted: str) -> tuple[list[str], dict[str, Any]]:
    people = copies(60, [0.5, 0.4, 0.3], arm)
    decisions = run(people, THREE, policy(levers=[LEVER], **everybody(arm), **sections))
    row = chosen(decisions).index([wanted])
    return decisions.answer(row)["offers"][0]["reasons"], decisions.trace(row)


def test_the_reasons_say_how_chance_came_in() -> None:
    said, trace = reasons("policy", exploring("epsilon"), "a")
    assert said[-2:] == [
        "priority 3.00; better, but not drawn, is offer c at 36.00",
        "drawn with a probability of 10.0% (epsilon)",
    ]
    better = trace["offers"][1]
    assert better["fate"] == {"step": "arbitration", "reason": "another choice was drawn"}
    assert better["steps"][-1]["reason"] == "offer a was drawn"
    said, _ = reasons("random_eligible", {}, "a")
    assert said[-1] == (
        "arm random_eligible: drawn with a probability of 33.3%, whatever it is worth"
    )
    said, trace = reasons("propensity_only", {}, "b")
    assert said[-2:] == ["arm propensity_only", "propensity 0.50; next is offer c at 0.40"]
    assert trace["offers"][1]["steps"][-1]["reason"] == "propensity 0.40 against 0.50 of offer b"
    said, trace = reasons("no_levers", {}, "b")
    assert said[-2:] == ["arm no_levers", "priority 5.00; next is offer c at 4.00"]
    assert trace["offers"][1]["steps"][-1]["reason"] == "priority 4.00 against 5.00 of offer b"


# --- the policy file -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"holdout": {"share": 0.1}}, '[holdout]: field "salt" is missing. Must be a text of your'),
        ({"holdout": {"offers": {"b": 0.1}}}, '[holdout]: field "salt" is missing'),
        ({"arms": {"no_levers": 0.1}}, '[arms]: field "salt" is missing'),
        ({"exploration": {"policy": "epsilon"}}, '[exploration]: field "salt" is missing'),
        ({"exploration": {"new_offer_reach": 0.1}}, "A default could change by itself"),
        ({"holdout": {"salt": "short", "share": 0.1}}, '[holdout]: field "salt" is wrong'),
        ({"holdout": {"salt": SALT, "share": 1.1}}, "less than or equal to 1; got 1.1"),
        ({"holdout": {"salt": SALT, "offers": {"b": -1}}}, '[holdout.offers]: field "b" is wrong'),
        ({"arms": {"salt": SALT, "no_levers": 0.3}}, "less than or equal to 0.25; got 0.3"),
        ({"arms": {"salt": SALT, "no_lever": 0.1}}, 'Did you mean "no_levers"?'),
        ({"exploration": {"salt": SALT, "policy": "ucb"}}, "or 'thompson'; got 'ucb'"),
        ({"exploration": {"salt": SALT, "temperature": 0}}, 'field "temperature" is wrong'),
        ({"exploration": {"salt": SALT, "new_offer_reach": 0}}, '"new_offer_reach" is wrong'),
    ],
)  # fmt: skip
def test_a_fault_in_the_file_is_named(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(**sections)
    assert str(caught.value).startswith("serving/policy.toml: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"holdout": {"salt": SALT, "offers": {"bb": 0.1}}},
            '[holdout.offers]: names offer "bb". Must be the id of an offer in serving/offers',
        ),
        (
            {**exploring("thompson"), "arbitration": {"objective": "propensity"}},
            '"thompson" does not know how uncertain "propensity" is. Must be objective = "expected',
        ),
    ],
)
def test_what_does_not_fit_the_catalogue_is_named(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(THREE, policy(**sections), {})
    assert says in str(caught.value)


def test_sections_that_are_off_need_no_salt() -> None:
    off = policy(holdout={"share": 0, "offers": {"b": 0}}, arms={"no_contact": 0},
                 exploration={"policy": "greedy"})  # fmt: skip
    assert chosen(run(audience([[0.5, 0.4, 0.3]]), THREE, off)) == [["b"]]


# --- the budget in currency ----------------------------------------------------------------------


def budget(**more: Any) -> Policy:
    given = {"loss_budget": 63, "largest_loss": 2, "largest_gain": 8, **more}
    kept = {name: value for name, value in given.items() if value is not None}
    return policy(**exploring("epsilon", **kept))


WINDOWS = catalogue(*(offer(name, response_window_days=14) for name in "bca"))


@pytest.mark.parametrize(
    ("rules", "offers", "says"),
    [
        ({"loss_budget": 62.8}, WINDOWS,
         [r"policy.toml: \[exploration\]: loss_budget 62.8 leaves no room to begin exploring."
          r" Must be at least 62.90, which is 6.1 × \(largest_loss \+ largest_gain\)"]),
        ({"largest_gain": None}, WINDOWS,
         [r'field "largest_gain" is missing. Must be the most that one explored contact may gain']),
        ({"largest_loss": None, "largest_gain": None}, WINDOWS,
         ['field "largest_loss" is missing', 'field "largest_gain" is missing']),
        ({}, THREE,
         [r'serving/offers.toml: offer "b": field "response_window_days" is missing. Must be given,'
          r" as serving/policy.toml has a loss_budget"]),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_work_is_refused(
    rules: dict[str, Any], offers: Any, says: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        bind(offers, budget(**rules), {})
    for text in says:
        assert re.search(text, str(refused.value))


def test_the_smallest_budget_lets_a_new_offer_be_explored() -> None:
    bind(WINDOWS, budget(), {})
    rules = budget().tables.exploration
    new, limits = {"a": LossStatistics()}, rules.loss_limits()
    least = smallest_budget(**limits)
    assert least == pytest.approx(np.log(240) / 0.9 * 10 + 2)
    assert over_budget(new, budget=least, **limits) == set()
    assert over_budget(new, budget=least - 0.01, **limits) == {"a"}


def test_a_try_loses_what_the_contact_really_adds() -> None:
    """Margin that would come anyway is no gain; keeping a customer is one without a response."""
    retain = {"goal": "retain", "save_rate": 0.5, "margin": 4.0, "contact_cost": 0.5}
    offers = catalogue(
        offer("a", margin=20.0, contact_cost=1.0),
        offer("b", margin=10.0, incentive_cost=2.0, incentive_shop_share=0.5, baseline_rate=0.1),
        offer("c", **retain),
    )
    n = 300
    people = audience([[0.5, 0.3, 0.2]] * n, {"churn_probability": [0.2] * n, "clv": [30.0] * n})
    decisions = run(people, offers, policy(**exploring("epsilon")))
    # Best is a: 0.5 × 20 − 1 = 9. b earns −0.1 × 10 anyway, and 9 more with a response;
    # c keeps 0.2 × 0.5 × 30 = 3, costs 0.5, and earns 4 more with a response.
    expect = {0: (np.nan, np.nan), 1: (9 + 1, 10 - 9), 2: (9 - 2.5, 6.5 - 4), -1: (np.nan,) * 2}
    assert set(decisions.chosen[:, 0]) == set(expect)
    for row, drawn in enumerate(decisions.chosen[:, 0].tolist()):
        got = decisions.losses.ignored[row, 0], decisions.losses.answered[row, 0]
        np.testing.assert_allclose(got, expect[drawn], rtol=1e-12)


@pytest.mark.parametrize("arm", ["random_eligible", "propensity_only"])
def test_an_arm_is_no_exploration(arm: str) -> None:
    people = copies(50, [0.5, 0.4, 0.3], arm)
    rules = policy(levers=[LEVER], **everybody(arm), **exploring("epsilon"))
    decisions = run(people, THREE, rules)
    assert (decisions.chosen[:, 0] >= 0).all()
    assert np.isnan(decisions.losses.ignored).all()
