"""A decision made again from what its record keeps is the same decision, to the last bit."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import pytest
from decide_world import NOW, audience, catalogue, history, offer, policy, situation
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import OFFERS, random_people, same
from test_left_to_chance import COUNTS, EVERY_ARM, SETTINGS, decided, exploring, rules_with

from nextbest.decide.engine import Decisions, bind, decide
from nextbest.decide.inputs import audience_of, redecide
from nextbest.decide.offers import Catalogue
from nextbest.decide.packed import Packing, Unpacked, unpacked
from nextbest.decide.policy import Policy

DRAWN = ("would_choose", "probabilities", "selection_probability", "end_probability", "eligible")


def through_files(decisions: Decisions) -> tuple[Catalogue, Policy]:
    """Catalogue and policy, written and read as an archive does."""
    offers, rules = decisions.catalogue.catalogue, decisions.policy.policy
    read = Catalogue.from_dict(tomllib.loads(offers.to_toml()), offers.where)
    read_rules = Policy.from_dict(tomllib.loads(rules.to_toml()), rules.where)
    assert read.content_hash == offers.content_hash
    assert read_rules.content_hash == rules.content_hash
    return read, read_rules


def stored(decisions: Decisions, row: int, keep: Sequence[str] = ()) -> Unpacked:
    """What a decision was made from, after a journey through what is kept of it."""
    packing = Packing(decisions, keep)
    text = json.loads(json.dumps(packing.text(row), allow_nan=False))
    return unpacked(text, packing.numbers(row), packing.shared, decisions.answer(row))


def inputs_of(decisions: Decisions, row: int, keep: Sequence[str] = ()) -> dict[str, Any]:
    return stored(decisions, row, keep).inputs


def again(decisions: Decisions, row: int, files: tuple[Catalogue, Policy]) -> Decisions:
    inputs = json.loads(json.dumps(inputs_of(decisions, row), allow_nan=False))
    return redecide(inputs, *files)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 3), st.sampled_from(SETTINGS))
def test_a_decision_made_again_from_its_inputs_is_the_same_in_every_arm(
    seed: int, n: int, limit: int, sections: dict[str, Any]
) -> None:
    people = replace(random_people(seed, n), as_of=NOW, versions={"bundle": "b1"})
    ids = [f"{seed}-{i}" for i in range(n)]
    batch = decided(people, rules_with(**EVERY_ARM, **sections), limit, ids, OFFERS)
    files = through_files(batch)
    for i in range(n):
        assert stored(batch, i).selection == json.loads(json.dumps(batch.selection(i)))
        alone = again(batch, i, files)
        same(batch, np.array([i]), alone)
        for name in DRAWN:
            assert getattr(alone, name).tobytes() == getattr(batch, name)[i : i + 1].tobytes(), name
        assert json.dumps(alone.answer(0)) == json.dumps(batch.answer(i))
        trace = batch.trace(i)
        assert json.dumps(alone.trace(0)) == json.dumps(trace)
        for reason, told in zip(batch.answer(i)["no_offer_reasons"], trace["offers"], strict=False):
            step = told["steps"][-1]["step"].replace("_", " ")
            assert reason == f"offer {told['offer_id']}: {step}: {told['why']}"


def test_every_kind_of_value_comes_back_as_it_was() -> None:
    tiny = np.nextafter(0.1, 1)
    columns = {
        "number": np.array([tiny, np.nan, np.inf, -0.0]),
        "text": np.array(["a", None, "é\x7f\"", ""], dtype=object),
        "flag": np.array([True, None, False, True], dtype=object),
        "moment": np.array(["2017-01-02T03:04:05.000006", "NaT", "1969-01-01", "2017-01-01"],
                           dtype="datetime64[us]"),
    }  # fmt: skip
    rules = "(number > 0 or text = 'a' or flag or moment > decided_at) is null"
    people = audience([[0.5]] * 4, columns, as_of=datetime(2017, 12, 9, tzinfo=UTC))
    bound = bind(catalogue(offer(eligibility=rules)), policy(), people.known_columns())
    ids = list("wxyz")
    decisions = decide(people, *bound, situation(placement="cover", limit=2), ids)
    for row in range(4):
        inputs = json.loads(json.dumps(inputs_of(decisions, row), allow_nan=False))
        back = audience_of(inputs)
        for name, values in columns.items():
            one = values[row : row + 1]
            assert back.columns[name].dtype == values.dtype
            assert back.columns[name].tolist() == one.tolist() or np.isnan(values[row])
            if name == "number":
                assert back.columns[name].tobytes() == one.tobytes()
        assert json.dumps(again(decisions, row, through_files(decisions)).trace(0)) == json.dumps(
            decisions.trace(row)
        )


def test_only_what_was_read_is_kept() -> None:
    people = audience([[0.5, 0.5]] * 2, {"spend": [1.0, 2.0], "secret": [3.0, 4.0]},
                      pair_columns={"share": np.ones((2, 2)), "unread": np.ones((2, 2))},
                      contacts=history(("0", "a", "mail", "2017-12-09", "contact"),
                                       ("0", "a", "mail", "2017-11-01", "contact"),
                                       ("0", None, None, "2017-12-09", "purchase"),
                                       ("1", "b", "mail", "2017-12-08", "contact"),
                                       n=2, ids=["a", "b"]))  # fmt: skip
    rules = policy(
        contact={"caps": [{"name": "week", "at_most": 3, "days": 7}]},
        channels={"mail": {"consent_required": False}, "email": {"consent_column": "spend"}},
    )
    offers = catalogue(offer("a", margin="share"), offer("b"))
    bound = bind(offers, rules, people.known_columns())
    decisions = decide(people, *bound, situation(), ["d0", "d1"])
    inputs = inputs_of(decisions, 0)
    assert inputs["profile"]["columns"] == {"spend": 1.0}
    assert inputs["profile"]["pair_columns"] == {"share": [1.0, 1.0]}
    assert "secret" in inputs_of(decisions, 0, keep=["secret"])["profile"]["columns"]
    (kept,) = inputs["contacts"]
    assert (kept["offer_id"], kept["at"]) == ("a", "2017-12-09T00:00:00.000000")
    (other,) = inputs_of(decisions, 1)["contacts"]
    assert other["offer_id"] == "b"


def test_what_a_policy_keeps_of_one_audience_is_not_said_of_another() -> None:
    """Types, versions and offer columns are written once for all decisions from one bundle."""
    share = {"share": np.array([0.5, 2.0])}
    first = audience([[0.5, 0.5]], {"spend": [1.0]}, offer_columns=share, versions={"bundle": "b1"})
    more = {"spend": np.array([2.0]), "clv": np.array([3.0])}
    others = [
        replace(first, versions={"bundle": "b2"}),
        replace(first, offer_columns={"share": np.array([0.25, 4.0])}),
        replace(first, columns=more),
    ]
    offers = catalogue(offer("a", margin="10 * share + spend"), offer("b"))
    bound = bind(offers, policy(), {**first.known_columns(), **others[2].known_columns()})
    for people in [first, *others, first]:
        profile = inputs_of(decide(people, *bound, situation(), ["d"]), 0, ["clv"])["profile"]
        assert profile["versions"] == people.versions
        assert profile["offer_columns"] == {"share": people.offer_columns["share"].tolist()}
        assert profile["columns"] == {name: v[0] for name, v in people.columns.items()}
        assert profile["types"] == dict.fromkeys([*people.columns, "share"], "number")


def test_what_was_learnt_and_stopped_is_kept() -> None:
    people = random_people(3, 4)
    made = decided(people, rules_with(**exploring("thompson")), 1, list("wxyz"), OFFERS)
    inputs = inputs_of(made, 0)
    assert inputs["offer_counts"] == {name: vars(counts) for name, counts in COUNTS.items()}
    assert inputs["stopped"] == {name: vars(lost) for name, lost in made.stopped.items()}
    assert set(inputs["stopped"]) == {"c"}


@pytest.mark.parametrize("change", ["propensity", "columns", "contacts", "decision_id"])
def test_other_inputs_give_another_decision(change: str) -> None:
    """What the round trip holds equal would differ if any of these were lost."""
    events = [(str(i), "a", "mail", "2017-12-09", "contact") for i in range(40)]
    people = audience([[0.5, 0.4, 0.3]] * 40, {"spend": np.arange(40) * 1.0},
                      contacts=history(*events, n=40, ids=["a", "b", "c"]))  # fmt: skip
    rules = policy(
        contact={"caps": [{"name": "week", "at_most": 1, "days": 7, "per": "offer"}]},
        **exploring("epsilon"),
    )
    offers = catalogue(offer("a"), offer("b", margin="1 + spend"), offer("c"))
    bound = bind(offers, rules, people.known_columns())
    decisions = decide(people, *bound, situation(), [f"d{i}" for i in range(40)])
    files = through_files(decisions)
    differs = False
    for row in range(40):
        inputs = json.loads(json.dumps(inputs_of(decisions, row)))
        changed = {
            "propensity": {"profile": {**inputs["profile"], "propensity": [0.1, 0.2, 0.3]}},
            "columns": {"profile": {**inputs["profile"], "columns": {"spend": 3.5}}},
            "contacts": {"contacts": []},
            "decision_id": {"decision_id": "another"},
        }[change]
        other = redecide({**inputs, **changed}, *files)
        differs |= other.answer(0)["offers"] != decisions.answer(row)["offers"]
    assert differs


def test_files_keep_every_kind_of_setting() -> None:
    offers = Catalogue.from_dict(
        {
            "timezone": "America/New_York",
            "assumptions": {"rate": 1e-7, "word": 'a "quoted" \x7f\n😀 \\', "on": True},
            "defaults": {"channels": ["mail", "web"], "starts_at": date(2017, 1, 1)},
            "offers": [
                offer("a", ends_at=date(9999, 12, 31), eligibility={"two words": "rate > 0"}),
                offer("b", margin="rate * 2", budget=1e16, placements=["x.y"], active=False),
            ],
        }
    )
    rules = policy(
        timezone="-05:00",
        clock={"decide_as_of": datetime(2017, 12, 10, 5)},
        contact={
            "quiet_hours": [
                {"name": "night", "starts_at": time(21), "ends_at": time(8, 30),
                 "weekdays": ["monday"]},
            ],
        },
        levers=[{"goal": "sell", "multiplier": 2, "until": date(2018, 1, 1), "reason": "x"}],
        holdout={"salt": "sixteen characters", "offers": {"a": 0.1}},
        context={"hot": "boolean"},
    )  # fmt: skip
    read = Catalogue.from_dict(tomllib.loads(offers.to_toml()))
    assert (read.offers, read.assumptions) == (offers.offers, offers.assumptions)
    assert read.content_hash == offers.content_hash
    read_rules = Policy.from_dict(tomllib.loads(rules.to_toml()), rules.where)
    assert read_rules == rules
