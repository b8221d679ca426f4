"""What is compiled does what is written in NumPy beside it, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from decide_world import catalogue, policy, situation
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import OFFERS, RULES, random_people

from nextbest.decide import choosing, loops, steps
from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Decisions, bind, decide
from nextbest.decide.policy import Policy

SALT = "a salt of the shop's own"
SECTIONS = ("channels", "applicability", "context", "contact", "levers", "context_weights",
            "fallback")  # fmt: skip
LIMITS: dict[str, list[dict[str, Any]]] = {
    "caps": [
        {"name": "all", "at_most": 3, "days": 30},
        {"name": "own", "at_most": 1, "days": 20, "per": "offer"},
        {"name": "kind", "at_most": 2, "days": 25, "per": "category", "channels": ["mail"]},
        {"name": "here", "at_most": 2, "period": "week", "per": "channel"},
    ],
    "cool_offs": [{"name": "rest", "after": "refusal", "days": 9, "per": "category"}],
    "exclusions": [{"name": "one", "days": 15}],
}
ARMS = {"no_contact": 0.1, "no_levers": 0.2}
WRITTEN = ("fates", "worth", "chosen", "would_choose", "best", "probabilities",
           "selection_probability", "end_probability", "arm")  # fmt: skip


def rules(**sections: Any) -> Policy:
    """The policy of `test_engine` with other sections."""
    told = RULES.tables.model_dump(exclude_unset=True)
    return policy(**{**{name: told[name] for name in SECTIONS}, **sections})


def explored(share: float, costs: float | None) -> dict[str, Any]:
    guard = {} if costs is None else {"max_loss_share": costs}
    return {"salt": SALT, "policy": "epsilon", "epsilon": share, **guard}


def both_ways(
    people: Audience, offers: list[dict[str, Any]], told: Policy, hot: bool
) -> tuple[Decisions, Decisions, list[str]]:
    """Decide with the loops and without, and say which of them ran."""
    bound, bound_rules = bind(
        catalogue(*offers, assumptions={"rate": 0.3}), told, people.known_columns()
    )
    ids = [f"d{i}" for i in range(len(people.customer_ids))]
    at = situation(context={"hot": hot})
    ran: list[str] = []

    def noting(name: str) -> Callable[..., None]:
        loop: Callable[..., None] = getattr(loops, name)

        def run(*given: Any) -> None:
            ran.append(name)
            loop(*given)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("keep_back", "choose_one"):
            patch.setattr(loops, name, noting(name))
        compiled = decide(people, bound, bound_rules, at, ids)
        for module in (steps, choosing):
            patch.setattr(module, "compiled_loops", lambda: None)
        done = list(ran)
        plain = decide(people, bound, bound_rules, at, ids)
    assert ran == done
    return compiled, plain, done


def alike(one: Decisions, other: Decisions) -> None:
    for name in WRITTEN:
        a, b = getattr(one, name), getattr(other, name)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes(), name


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 40),
    order=st.permutations(OFFERS),
    share=st.sampled_from([None, 0.0, 0.3, 1.0]),
    costs=st.sampled_from([None, 0.0, 0.1, 1.0]),
    # With the second many are worth the same.
    objective=st.sampled_from(["expected_profit", "round(expected_profit / 3)"]),
    at_a_loss=st.booleans(),
    held_out=st.booleans(),
    hot=st.booleans(),
)
def test_one_offer_is_chosen_alike(
    seed: int,
    n: int,
    order: list[dict[str, Any]],
    share: float | None,
    costs: float | None,
    objective: str,
    at_a_loss: bool,
    held_out: bool,
    hot: bool,
) -> None:
    """Ties, strangers, offers out of the order of their ids; greedy, epsilon, and what it costs."""
    sections: dict[str, Any] = {"contact": LIMITS, "arbitration": {"objective": objective}}
    if share is not None:
        sections["exploration"] = explored(share, costs)
    if held_out:
        sections |= {"holdout": {"salt": SALT, "share": 0.2}, "arms": {"salt": SALT, **ARMS}}
    if at_a_loss:  # the best of them, too
        order = [{**one, "contact_cost": 5.0 * at} for at, one in enumerate(order, start=1)]
        sections["arbitration"] = {"objective": f"{objective} + 30"}
    compiled, plain, ran = both_ways(random_people(seed, n), order, rules(**sections), hot)
    assert ran[-1] == "choose_one"
    alike(compiled, plain)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 12), kept=st.lists(st.booleans(), min_size=6))
def test_limits_keep_back_the_same_offers(seed: int, n: int, kept: list[bool]) -> None:
    """Any of the limits, on a history with events on no channel, of no offer, and yet to come."""
    rng = np.random.default_rng(seed)
    events = int(rng.integers(1, 8 * n))
    past = ContactHistory(
        np.sort(rng.integers(0, n, events)),
        rng.integers(-1, 4, events),
        rng.integers(-1, 2, events),
        np.datetime64("2017-12-10T05", "us")
        - rng.integers(-2, 30, events).astype("timedelta64[D]"),
        rng.integers(0, 4, events),
        ("email", "mail"),
    )
    chosen = iter(kept)
    some = {form: [one for one in limits if next(chosen)] for form, limits in LIMITS.items()}
    people = replace(random_people(seed, n), contacts=past)
    compiled, plain, ran = both_ways(people, OFFERS, rules(contact=some), hot=True)
    assert ("keep_back" in ran) == any(some.values())
    alike(compiled, plain)
    # What the trace says of each limit is what has befallen the offers.
    names = compiled.policy.fates.names
    limited = {one.limit.name: one.reached for one in compiled.counts}
    for i, j in np.ndindex(*compiled.fates.shape):
        step, reason = names[compiled.fates[i, j]]
        if step == "contact_policy" and reason in limited:
            assert limited[reason][i, j]
        elif step in ("value", "arbitration", "chosen", "arm"):
            assert not any(reached[i, j] for reached in limited.values())


@pytest.mark.parametrize(
    "sections",
    [
        {"exploration": {**explored(0.3, None), "policy": "softmax", "temperature": 2.0}},
        {"exploration": {**explored(0.3, None), "policy": "thompson", "prior_strength": 5.0}},
        {"arms": {"salt": SALT, "random_eligible": 0.25}},
        {"arms": {"salt": SALT, "propensity_only": 0.25}},
    ],
)
def test_what_asks_for_more_is_left_to_numpy(sections: dict[str, Any]) -> None:
    _, _, ran = both_ways(random_people(1, 40), OFFERS, rules(**sections), hot=False)
    assert ran == ["keep_back"]
