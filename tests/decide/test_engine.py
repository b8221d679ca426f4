"""The decision function: each step against hand-worked cases, and what must hold for any input."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from decide_world import (
    NOW,
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
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Decisions, Situation, bind, decide
from nextbest.decide.frame import Columns
from nextbest.errors import DataError, UsageError

NAN = np.nan


@pytest.mark.parametrize(
    ("fields", "at", "expect"),
    [
        ({}, {}, "chosen"),
        ({"active": False}, {}, "switched off"),
        ({"channels": ["email"]}, {}, "not on this channel"),
        ({"placements": ["top"]}, {"placement": "top"}, "chosen"),
        ({"placements": ["top"]}, {"placement": "foot"}, "not for this placement"),
        ({"placements": ["top"]}, {}, "chosen"),
        ({}, {"placement": "top"}, "chosen"),
        ({"starts_at": datetime(2017, 12, 10, 5, tzinfo=UTC)}, {}, "chosen"),
        ({"starts_at": datetime(2017, 12, 10, 5, 0, 1, tzinfo=UTC)}, {}, "not started yet"),
        ({"ends_at": datetime(2017, 12, 10, 5, tzinfo=UTC)}, {}, "ended"),
        ({"ends_at": datetime(2017, 12, 10, 5, 0, 1, tzinfo=UTC)}, {}, "chosen"),
        ({"ends_at": date(2017, 12, 10)}, {}, "chosen"),
        ({"ends_at": date(2017, 12, 9)}, {}, "ended"),
    ],
)
def test_only_live_offers_for_the_place_are_candidates(
    fields: dict[str, Any], at: dict[str, Any], expect: str
) -> None:
    both = {"mail": {"consent_required": False}, "email": {}}
    decisions = run(
        audience([[0.5]]), catalogue(offer(**fields)), policy(channels=both), situation(**at)
    )
    assert fates(decisions)["a"][1] == expect


@pytest.mark.parametrize("step", ["eligibility", "applicability", "suitability"])
def test_a_rule_must_be_true_and_unknown_is_not(step: str) -> None:
    people = audience([[0.5]] * 3, {"tenure_days": [100.0, 10.0, NAN]})
    offers = catalogue(offer("a", **{step: "tenure_days > 30"}))
    assert chosen(run(people, offers)) == [["a"], [], []]
    assert fates(run(people, offers), 2)["a"] == (step, step)
    everywhere = policy(**{step: {"old": "tenure_days > 30"}})
    assert chosen(run(people, catalogue(offer("a")), everywhere)) == [["a"], [], []]
    assert fates(run(people, catalogue(offer("a")), everywhere), 1)["a"] == (step, "old")


def test_steps_come_in_order_and_the_first_that_fails_is_the_fate() -> None:
    people = audience([[0.5]], {"x": [0.0]})
    rules = {"eligibility": "x > 1", "applicability": "x > 2", "suitability": "x > 3"}
    decisions = run(people, catalogue(offer("a", **rules)))
    assert fates(decisions)["a"] == ("eligibility", "eligibility")
    ended = run(people, catalogue(offer("a", ends_at=date(2017, 1, 1), **rules)))
    assert fates(ended)["a"] == ("candidate", "ended")


def test_rules_read_customer_pair_offer_context_and_assumption_columns() -> None:
    people = audience(
        [[0.5, 0.5], [0.5, 0.5]],
        {"tenure_days": [5.0, 50.0], "band": np.array(["x", None], dtype=object)},
        pair_columns={"share": np.array([[0.1, 0.9], [0.9, NAN]])},
        offer_columns={"kind": np.array(["A", "B"], dtype=object)},
    )
    rule = (
        "share > floor and (kind = 'A' or band = 'x') and channel = 'mail' and device = 'phone'"
        " and decided_at >= timestamp '2017-12-10 05:00:00' and propensity = 0.5"
    )
    decisions = run(
        people,
        catalogue(offer("a"), offer("b"), assumptions={"floor": 0.5}),
        policy(context={"device": "string"}, eligibility={"all": rule}),
        situation(context={"device": "phone"}),
    )
    assert chosen(decisions) == [["b"], ["a"]]


def test_value_is_hand_worked() -> None:
    people = audience(
        [[0.2, 0.1], [0.02, 0.5]],
        {"spend": [100.0, 40.0], "churn_probability": [0.5, 0.1], "clv": [200.0, 100.0]},
        offer_columns={"coupon": np.array([5.0, 2.0])},
    )
    offers = catalogue(
        offer("a", margin="rate * spend", incentive_cost="coupon", contact_cost=0.5),
        offer("b", goal="retain", save_rate=0.1, margin=1, incentive_cost="coupon",
              contact_cost=0.25),
        assumptions={"rate": 0.3},
    )  # fmt: skip
    decisions = run(people, offers)
    expect = [
        # .2 × (30 − 5) − .5;  .1 × (1 − 2) − .25 + .5 × .1 × 200
        [4.5, 9.65],
        # .02 × (12 − 5) − .5; .5 × (1 − 2) − .25 + .1 × .1 × 100
        [-0.36, 0.25],
    ]
    np.testing.assert_allclose(decisions.values.expected_profit, expect, rtol=1e-12)
    assert chosen(decisions) == [["b"], ["b"]]
    assert fates(decisions, 1)["a"] == ("arbitration", "no offer is better")


@pytest.mark.parametrize(
    ("fields", "columns", "p"),
    [
        ({"margin": "spend"}, {"spend": [NAN]}, 0.5),
        ({"incentive_cost": "spend"}, {"spend": [NAN]}, 0.5),
        ({"contact_cost": "1 / spend"}, {"spend": [0.0]}, 0.5),
        ({"margin": "exp(spend)"}, {"spend": [1e6]}, 0.5),
        ({"incentive_cost": "spend"}, {"spend": [-1.0]}, 0.5),
        ({"contact_cost": "spend"}, {"spend": [-1.0]}, 0.5),
        ({}, {}, NAN),
        ({"goal": "retain", "save_rate": 0.1}, {"churn_probability": [NAN], "clv": [9.0]}, 0.5),
        ({"goal": "retain", "save_rate": 0.1}, {"churn_probability": [0.5], "clv": [NAN]}, 0.5),
    ],
)
def test_an_unknown_or_impossible_value_removes_the_offer(
    fields: dict[str, Any], columns: dict[str, Any], p: float
) -> None:
    decisions = run(audience([[p, 0.1]], columns), catalogue(offer("a", **fields), offer("b")))
    assert fates(decisions)["a"] == ("value", "unknown value")
    assert chosen(decisions) == [["b"]]


def test_ties_are_broken_by_id_and_no_offer_wins_at_zero() -> None:
    offers = catalogue(offer("c"), offer("a"), offer("b", contact_cost=1))
    decisions = run(audience([[0.5, 0.5, 0.6], [0.0, 0.0, 0.1]]), offers)
    assert chosen(decisions) == [["a"], []]
    assert fates(decisions, 1)["b"] == ("arbitration", "no offer is better")


LEVER = {"multiplier": 3, "until": date(2017, 12, 10), "reason": "x"}


@pytest.mark.parametrize(
    ("sections", "expect"),
    [
        ({}, "b"),
        ({"levers": [{**LEVER, "offer": "a"}]}, "a"),
        ({"levers": [{**LEVER, "category": "games"}]}, "a"),
        ({"levers": [{**LEVER, "goal": "sell"}]}, "b"),
        ({"levers": [{**LEVER, "offer": "a", "until": date(2017, 12, 9)}]}, "b"),
        ({"levers": [{**LEVER, "offer": "a"}, {**LEVER, "offer": "b"}]}, "b"),
        ({"context_weights": [{"name": "w", "when": "hot", "multiplier": 3, "offer": "a"}]}, "a"),
        ({"context_weights": [{"name": "w", "when": "hot", "multiplier": 3}]}, "b"),
        ({"context_weights": [{"name": "w", "when": "not hot", "multiplier": 3,
                               "offer": "a"}]}, "b"),
        ({"context_weights": [{"name": "w", "when": "cold", "multiplier": 3, "offer": "a"}]}, "b"),
        ({"arbitration": {"objective": "propensity"}}, "a"),
        ({"arbitration": {"objective": "expected_profit - 10 * margin + bonus"}}, "a"),
        ({"arbitration": {"objective": "bonus / 0"}}, ""),
    ],
)  # fmt: skip
def test_levers_context_and_objective_change_the_order(
    sections: dict[str, Any], expect: str
) -> None:
    # a is likelier (.5 × 10 = 5), b is worth more (.4 × 20 = 8).
    offers = catalogue(offer("a", category="games"), offer("b", margin=20))
    decisions = run(
        audience([[0.5, 0.4]], {"bonus": [200.0]}),
        offers,
        policy(context={"hot": "boolean", "cold": "boolean"}, **sections),
        situation(context={"hot": True}),
    )
    assert "".join(chosen(decisions)[0]) == expect


def test_a_lever_cannot_make_a_loss_worth_making() -> None:
    rules = policy(levers=[{**LEVER, "offer": "a", "multiplier": 1000}])
    decisions = run(audience([[0.01]]), catalogue(offer("a", contact_cost=1)), rules)
    assert chosen(decisions) == [[]]
    assert decisions.values.priority[0, 0] == pytest.approx(-0.9 / 1000)


def test_several_slots_take_one_offer_per_group_and_respect_the_rest_of_a_cap() -> None:
    offers = catalogue(
        offer("a", exclusivity_group="g"), offer("b", exclusivity_group="g"), offer("c"), offer("d")
    )
    p = [[0.9, 0.8, 0.7, 0.6]] * 2
    three = situation(limit=3)
    assert chosen(run(audience(p), offers, at=three)) == [["a", "c", "d"]] * 2
    assert chosen(run(audience(p), offers, at=situation(limit=99)))[0] == ["a", "c", "d"]
    past = history(("1", "d", "mail", "2017-12-01", "contact"), n=2, ids=offers.offer_ids)
    capped = policy(contact={"caps": [{"name": "two", "at_most": 2, "days": 30}]})
    decisions = run(audience(p, contacts=past), offers, capped, three)
    assert chosen(decisions) == [["a", "c"], ["a"]]
    assert fates(decisions, 0)["b"] == ("arbitration", "another offer of its exclusivity group")
    assert fates(decisions, 0)["d"] == ("arbitration", "no contact left in this answer")
    assert decisions.selection_probability.tolist()[1][0] == 1.0
    assert np.isnan(decisions.selection_probability[1, 1:]).all()


def test_strangers_get_the_fallback_list_in_its_order_and_are_marked() -> None:
    offers = catalogue(
        offer("a", eligibility="x > 0"), offer("b"), offer("c", ends_at=date(2017, 1, 1))
    )
    people = audience(
        [[0.9, 0.8, 0.7], [NAN, NAN, NAN]], {"x": [1.0, NAN]}, known=np.array([True, False])
    )
    rules = policy(fallback={"offers": ["c", "b", "a"]})
    decisions = run(people, offers, rules, situation(limit=2))
    assert chosen(decisions) == [["a", "b"], ["b", "a"]]
    assert decisions.arm.tolist() == ["policy", "fallback"]
    none = run(people, offers, policy())
    assert chosen(none) == [["a"], []]
    assert fates(none, 1)["b"] == ("fallback", "not in the fallback list")
    assert none.arm.tolist() == ["policy", "fallback"]


def test_strangers_are_still_subject_to_consent_and_caps() -> None:
    people = audience([[NAN]], {"consent_mail": [NAN]}, known=np.array([False]))
    asked = {"channels": {"mail": {"consent_required": True}}, "fallback": {"offers": ["a"]}}
    assert chosen(run(people, catalogue(offer("a")), policy(**asked))) == [[]]
    past = history(("0", "a", "mail", "2017-12-09", "contact"), n=1, ids=["a"])
    capped = policy(
        fallback={"offers": ["a"]}, contact={"caps": [{"name": "c", "at_most": 1, "days": 9}]}
    )
    stranger = audience([[NAN]], known=np.array([False]), contacts=past)
    assert chosen(run(stranger, catalogue(offer("a")), capped)) == [[]]


@pytest.mark.parametrize(
    ("age", "limit", "expect"),
    [(timedelta(days=2), 2, False), (timedelta(days=2, seconds=1), 2, True), (None, 2, False),
     (timedelta(days=900), None, False)],
)  # fmt: skip
def test_a_profile_past_its_limit_is_flagged(
    age: timedelta | None, limit: int | None, expect: bool
) -> None:
    as_of = None if age is None else (NOW - age).replace(tzinfo=None)
    people = audience([[0.5]], as_of=as_of)
    profiles = {} if limit is None else {"freshness_limit_days": limit}
    decisions = run(people, catalogue(offer("a")), policy(profiles=profiles))
    assert decisions.profile_stale is expect
    assert decisions.answer(0)["profile_stale"] is expect


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ({"channel": "mial"}, '"mial" is not known. Must be one of mail. Did you mean "mail"?'),
        ({"limit": 0}, "there is no slot to fill. Must be 1 or more; got 0."),
        ({"context": {"device": 3}}, 'context "device": the value does not fit. Must be a string'),
        ({"context": {"n": True}}, "Must be a number; got True."),
        ({"context": {"yes": 1}}, "Must be a boolean; got 1."),
        ({"context": {"when": "soon"}}, "Must be a time such as 2017-12-24T05:00:00Z; got 'soon'."),
        ({"context": {"when": 5}}, "Must be a timestamp; got 5."),
    ],
)
def test_an_odd_situation_is_the_callers_mistake(at: dict[str, Any], says: str) -> None:
    rules = policy(
        context={"device": "string", "n": "number", "yes": "boolean", "when": "timestamp"}
    )
    with pytest.raises(UsageError) as caught:
        run(audience([[0.5]]), catalogue(offer("a")), rules, situation(**at))
    assert says in str(caught.value)


def test_context_of_every_type_is_read_and_what_is_not_told_is_unknown() -> None:
    rules = policy(
        context={"device": "string", "n": "number", "yes": "boolean", "asked_at": "timestamp"},
        eligibility={
            "r": "device = 'phone' and n > 1 and yes and asked_at < timestamp '2018-01-01'"
        },
    )
    told = {"device": "phone", "n": 2, "yes": True, "asked_at": "2017-12-31T23:00:00Z"}
    offers = catalogue(offer("a"))
    assert chosen(run(audience([[0.5]]), offers, rules, situation(context=told))) == [["a"]]
    for name in told:
        partly = {k: v for k, v in told.items() if k != name}
        assert chosen(run(audience([[0.5]]), offers, rules, situation(context=partly))) == [[]]
        nothing = {**told, name: None}
        assert chosen(run(audience([[0.5]]), offers, rules, situation(context=nothing))) == [[]]
    late = {**told, "asked_at": "2018-01-01T00:00:00+00:00"}
    assert chosen(run(audience([[0.5]]), offers, rules, situation(context=late))) == [[]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"known": np.ones(3, dtype=bool)}, "known has the wrong shape. Must be (2,); got (3,)."),
        ({"propensity": np.ones((2, 3))}, "propensity has the wrong shape. Must be (2, 1)"),
        ({"columns": {"x": np.ones(3)}}, "x has the wrong shape"),
        ({"pair_columns": {"y": np.ones((2, 2))}}, "y has the wrong shape. Must be (2, 1)"),
        ({"offer_columns": {"z": np.ones(2)}}, "z has the wrong shape. Must be (1,)"),
        ({"propensity": np.array([[0.1], [1.1]])}, "a propensity is not a probability"),
        ({"columns": {}}, 'column "x" is missing'),
    ],
)
def test_an_audience_that_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    people = audience([[0.5], [0.5]], {"x": [1.0, 2.0]})
    bound, rules = bind(
        catalogue(offer("a", eligibility="x > 0")), policy(), people.known_columns()
    )
    with pytest.raises(DataError) as caught:
        decide(replace(people, **change), bound, rules, situation(), ["1", "2"])
    assert says in str(caught.value)


def test_what_was_not_bound_together_is_refused() -> None:
    people = audience([[0.5]])
    bound, _ = bind(catalogue(offer("a")), policy(), {})
    _, rules = bind(catalogue(offer("a")), policy(), {})
    with pytest.raises(UsageError, match="not bound together"):
        decide(people, bound, rules, situation(), ["1"])
    with pytest.raises(DataError, match="decision_ids has the wrong shape"):
        decide(people, rules.catalogue, rules, situation(), ["1", "2"])


def test_an_empty_audience_is_no_error() -> None:
    decisions = run(audience(np.zeros((0, 1))), catalogue(offer("a")), at=situation(limit=2))
    assert len(decisions) == 0
    assert decisions.table()["offer_id"].tolist() == []


def test_the_audience_tells_the_types_of_its_columns() -> None:
    people = audience(
        [[0.5]] * 2,
        {
            "n": [1, 2],
            "b": [True, False],
            "gaps": np.array([None, True], dtype=object),
            "text": np.array([None, "x"], dtype=object),
            "nothing": np.array([None, None], dtype=object),
            "t": np.array(["2017-01-01", "NaT"], dtype="datetime64[us]"),
        },
        pair_columns={"pair": np.zeros((2, 1))},
        offer_columns={"kind": np.array(["A"], dtype=object)},
    )
    found = {name: (c.type, c.source) for name, c in people.known_columns().items()}
    assert found == {
        "n": ("number", "customer"),
        "b": ("boolean", "customer"),
        "gaps": ("boolean", "customer"),
        "text": ("string", "customer"),
        "nothing": ("string", "customer"),
        "t": ("timestamp", "customer"),
        "pair": ("number", "pair"),
        "kind": ("string", "offer"),
    }


# ---- what must hold for any input -----------------------------------------------------------

OFFERS = [
    offer("d", margin="ln(spend) * share", eligibility="seg = 'x' or spend > 20"),
    offer("b", margin="rate * exp(share)", incentive_cost="coupon", exclusivity_group="g",
          suitability="share > 0.1 and not (spend between 40 and 50)"),
    offer("c", goal="retain", save_rate=0.05, margin=3, contact_cost=0.2, category="k",
          exclusivity_group="g"),
    offer("a", margin="round(spend / 7, 1)", contact_cost="rate", category="k"),
]  # fmt: skip
RULES = policy(
    channels={"mail": {"consent_required": True}},
    applicability={"any": "lower(seg) is null or lower(seg) <> 'z'"},
    context={"hot": "boolean"},
    contact={
        "caps": [
            {"name": "all", "at_most": 2, "days": 30},
            {"name": "own", "at_most": 1, "days": 20, "per": "offer"},
        ],
        "cool_offs": [{"name": "rest", "after": "refusal", "days": 9, "per": "category"}],
        "exclusions": [{"name": "one", "days": 15}],
    },
    levers=[{"category": "k", "multiplier": 1.3, "until": date(2018, 1, 1), "reason": "x"}],
    context_weights=[{"name": "w", "when": "hot and share > 0.5", "multiplier": 0.7}],
    fallback={"offers": ["a", "d"]},
)


def random_people(seed: int, n: int) -> Audience:
    rng = np.random.default_rng(seed)

    def gappy(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.where(rng.random(values.shape) < 0.1, NAN, values)

    events = int(rng.integers(0, 4 * n))
    return audience(
        gappy(rng.random((n, 4))),
        {
            "spend": gappy(rng.random(n) * 60),
            "seg": rng.choice(np.array(["x", "y", "Z", None], dtype=object), n),
            "churn_probability": gappy(rng.random(n)),
            "clv": gappy(rng.random(n) * 300),
            "consent_mail": rng.choice(np.array([1.0, 1.0, 1.0, 0.0, NAN]), n),
        },
        # A view with gaps in memory, as a slice of the profiles' array is.
        pair_columns={"share": gappy(rng.random((n, 4))).repeat(3, axis=1)[:, ::3]},
        offer_columns={"coupon": gappy(rng.random(4))},
        known=rng.random(n) < 0.8,
        contacts=ContactHistory(
            np.sort(rng.integers(0, n, events)),
            rng.integers(-1, 4, events),
            rng.integers(-1, 1, events),
            np.datetime64("2017-12-10T05", "us")
            - rng.integers(0, 40 * 86_400, events).astype("timedelta64[s]"),
            rng.integers(0, 4, events),
            ("mail",),
        ),
    )


def same(batch: Decisions, rows: np.ndarray[Any, Any], alone: Decisions) -> None:
    """Equal to the last bit, NaN included."""
    m = len(batch.catalogue.offer_ids)
    assert alone.fates.tobytes() == batch.fates[rows].tobytes()
    assert alone.chosen.tobytes() == batch.chosen[rows].tobytes()
    assert alone.arm.tolist() == batch.arm[rows].tolist()
    for name in vars(batch.values):
        whole = np.broadcast_to(getattr(batch.values, name), (len(batch), m))[rows]
        part = np.broadcast_to(getattr(alone.values, name), (len(rows), m))
        assert np.ascontiguousarray(part).tobytes() == np.ascontiguousarray(whole).tobytes(), name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 3), st.booleans())
def test_a_batch_equals_each_customer_alone_to_the_last_bit(
    seed: int, n: int, limit: int, hot: bool
) -> None:
    people = random_people(seed, n)
    offers = catalogue(*OFFERS, assumptions={"rate": 0.3})
    bound, rules = bind(offers, RULES, people.known_columns())
    at = situation(limit=limit, context={"hot": hot})
    batch = decide(people, bound, rules, at, [str(i) for i in range(n)])
    for i in range(n):
        same(batch, np.array([i]), decide(people.take([i]), bound, rules, at, [str(i)]))
    half = np.arange(n)[::-2]
    same(batch, half, decide(people.take(half), bound, rules, at, [str(i) for i in half]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 4), st.integers(1, 3))
def test_adding_an_ineligible_offer_changes_nothing(seed: int, place: int, limit: int) -> None:
    people = random_people(seed, 8)
    without = run(
        people, catalogue(*OFFERS, assumptions={"rate": 0.3}), RULES, situation(limit=limit)
    )
    extra = offer("aa", margin=1e6, eligibility="spend < 0", exclusivity_group="g", category="k")
    offers = [*OFFERS[:place], extra, *OFFERS[place:]]
    old = [offers.index(o) for o in OFFERS]
    moved = np.insert(np.arange(4), place, -1)

    def wider(values: np.ndarray[Any, Any], fill: float) -> np.ndarray[Any, Any]:
        return np.insert(values, place, fill, axis=values.ndim - 1)

    past = people.contacts
    renumbered = np.where(past.offer >= 0, np.array(old)[past.offer], -1)
    more = replace(
        people,
        propensity=wider(people.propensity, 1.0),
        pair_columns={"share": wider(people.pair_columns["share"], 1.0)},
        offer_columns={"coupon": wider(people.offer_columns["coupon"], 0.0)},
        contacts=replace(past, offer=renumbered),
    )
    assert moved[place] == -1
    within = run(more, catalogue(*offers, assumptions={"rate": 0.3}), RULES, situation(limit=limit))
    assert chosen(within) == chosen(without)
    names = without.policy.fates.names
    for i in range(8):
        assert fates(within, i) == {**fates(without, i), "aa": fates(within, i)["aa"]}
    assert names == within.policy.fates.names


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from("abcd"),
    st.floats(0, 50),
    st.integers(1, 3),
    st.floats(0.1, 10),
)
def test_raising_an_offers_margin_never_lowers_its_rank(
    seed: int, which: str, more: float, limit: int, multiplier: float
) -> None:
    people = random_people(seed, 8)
    rules = policy(
        levers=[
            {"offer": which, "multiplier": multiplier, "until": date(2018, 1, 1), "reason": "x"}
        ],
        contact={"caps": [{"name": "all", "at_most": 2, "days": 30}]},
    )

    def place(offers: list[dict[str, Any]]) -> list[int]:
        made = catalogue(*offers, assumptions={"rate": 0.3})
        decisions = run(people, made, rules, situation(limit=limit))
        rows = chosen(decisions)
        return [row.index(which) if which in row else 99 for row in rows]

    before = place(OFFERS)
    raised = [
        {**o, "margin": f"({o['margin']}) + {more!r}"} if o["id"] == which else o for o in OFFERS
    ]
    assert all(new <= old for new, old in zip(place(raised), before, strict=True))


def test_times_may_be_naive_utc_or_any_offset() -> None:
    offers = catalogue(offer("a", starts_at=NOW))
    for moment in (NOW, NOW.replace(tzinfo=None), datetime.fromisoformat("2017-12-10T00:00-05:00")):
        at = Situation("mail", moment)
        assert chosen(run(audience([[0.5]]), offers, at=at)) == [["a"]]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 2))
def test_many_at_once_are_decided_as_few_are(seed: int, limit: int) -> None:
    """Of many customers a rule looks at its own offers alone, of few at all: to the same end."""
    n = 600
    people = random_people(seed, n)
    bound, rules = bind(
        catalogue(*OFFERS, assumptions={"rate": 0.3}), RULES, people.known_columns()
    )
    at = situation(limit=limit, context={"hot": True})
    batch = decide(people, bound, rules, at, [str(i) for i in range(n)])
    for part in np.split(np.arange(n), 6):
        same(batch, part, decide(people.take(part), bound, rules, at, [str(i) for i in part]))


def test_columns_are_decoded_when_they_are_read_and_once() -> None:
    read = []

    def decoded(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        read.append(name)
        return values + 1

    columns = Columns(("spend", "visits"), np.array([[1.0, 2.0], [3.0, 4.0]]), decoded)
    assert (columns.shape, len(columns), list(columns)) == ((2,), 2, ["spend", "visits"])
    assert "visits" in columns and "clv" not in columns and columns.get("clv") is None
    assert not read
    assert columns["visits"].tolist() == columns["visits"].tolist() == [3.0, 5.0]
    assert read == ["visits"]
    people = replace(audience([[0.5]] * 2), columns=columns)
    assert chosen(run(people, catalogue(offer("a", eligibility="spend > 3")))) == [[], ["a"]]
    with pytest.raises(DataError, match="spend has the wrong shape"):
        run(replace(audience([[0.5]] * 3), columns=columns), catalogue(offer("a")))
